"""Published models by the names that ComfyUI's lists show: what lies in text_encoders, diffusion_models and duogen.

In: a name from one of the lists below. Out: the path of a file or a folder. The lists are ComfyUI's own (folder_paths,
so extra_model_paths.yaml holds) and open no file: a name is listed for how it ends, a folder for the config.json in it.
What it is, and that it is whole, is found out when it is loaded. Names are those of ComfyUI's folders, so that the
front end can tell a workflow which of its files are missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import folder_paths

from ..definitions.load_checkpoint import (
    FOLDER,
    INDEX,
    checkpoint_fingerprint,
    checkpoints,
    fingerprint_of,
)

ENDINGS = (".safetensors", ".sft")
# Where to look, and what makes a folder there a model: one of these files.
MLLM = {"text_encoders": ("config.json",), FOLDER: ("config.json",)}
DIT = {
    "diffusion_models": ("config.json", "transformer/config.json"),
    "diffusers": ("transformer/config.json",),
    FOLDER: ("config.json", "transformer/config.json"),
}
TOKENIZER = {"text_encoders": ("tokenizer.json", "vocab.json"), FOLDER: ("tokenizer.json", "vocab.json")}
OWN_TOKENIZER = "auto"


def names(places: dict[str, tuple[str, ...]], *, files: bool = True) -> list[str]:
    """The DuoGen checkpoints, then what the folders hold, each name once."""
    found = dict.fromkeys(checkpoints())
    for category, marks in places.items():
        inside = tuple(f"{folder}{os.sep}" for folder in folders(category, marks))
        found |= dict.fromkeys(name.rstrip(os.sep) for name in inside)
        if files:
            found |= dict.fromkeys(name for name in file_names(category) if not name.startswith(inside))
    return list(found)


def folders(category: str, marks: tuple[str, ...]) -> Iterator[str]:
    """The folders in a category that hold one of the marks."""
    for root in folder_paths.get_folder_paths(category):
        try:
            entries = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        except OSError:
            continue  # a folder that was never made
        yield from (name for name in entries if any(Path(root, name, mark).is_file() for mark in marks))


def file_names(category: str) -> list[str]:
    listed = [name for name in folder_paths.get_filename_list(category) if name.lower().endswith(ENDINGS)]
    # In our own folder every folder is a checkpoint, and what lies in it is a part of that.
    return [name for name in listed if os.sep not in name] if category == FOLDER else listed


def is_checkpoint(name: str) -> bool:
    """Whether this is a DuoGen checkpoint rather than a published model; an unreadable folder counts as one."""
    folder = checkpoints().get(name)
    return folder is not None and ((folder / INDEX).is_file() or not any(_marked(folder)))


def _marked(folder: Path) -> Iterator[Path]:
    marks = {mark for places in (MLLM, DIT) for found in places.values() for mark in found}
    return (folder / mark for mark in marks if (folder / mark).is_file())


def path_of(name: str, places: dict[str, tuple[str, ...]]) -> Path:
    """Where a listed model lies."""
    from duogen_core.errors import DuoGenError

    if name in checkpoints():
        return checkpoints()[name]
    inside = os.path.relpath(os.path.join("/", name), "/")  # as folder_paths does it: never outside of the folder
    for category in places:
        for root in folder_paths.get_folder_paths(category):
            if (path := Path(root, inside)).exists():
                return path
    raise DuoGenError(f"There is no model {name!r} in {', '.join(f'models/{category}' for category in places)}.")


def fingerprint(name: str, places: dict[str, tuple[str, ...]], *parts: str, beside: Path | None = None) -> str:
    """Changes when a file of the model does, so that it is loaded again. parts: of a DuoGen checkpoint. beside: a
    folder that a published model is loaded with."""
    from duogen_core.errors import DuoGenError

    if is_checkpoint(name):
        return checkpoint_fingerprint(name, *parts)
    try:
        return fingerprint_of(path_of(name, places), *([beside] if beside else []))
    except DuoGenError as error:
        return str(error)


def tokenizer_folder(name: str) -> Path:
    """Where the tokenizer for a single file of weights lies. "auto": the one that ComfyUI has for Qwen's models."""
    if name == OWN_TOKENIZER:
        import comfy.ops

        return Path(comfy.ops.__file__).parent / "text_encoders" / "qwen25_tokenizer"
    path = path_of(name, TOKENIZER)
    return path / "mllm" if (path / INDEX).is_file() else path
