"""Finds model files in ComfyUI's folders and loads them: DuoGen checkpoints and published models.

In: a name from one of ComfyUI's lists. Out: what travels between nodes, each under ComfyUI's memory management: a
language model, a connector, a MODEL, a VAE.

A DuoGen checkpoint is a folder in this pack's `models/` (the bundled `duogen-tiny`) or in ComfyUI's `models/duogen`.
Published models lie in text_encoders, diffusion_models, diffusers and duogen. The lists are ComfyUI's own
(folder_paths, so extra_model_paths.yaml holds) and open no file: a file is listed for its ending, a folder for the
config.json in it. Names are those of ComfyUI's folders, so that the front end can tell which files a workflow misses.

Loading reads the headers first, builds the module without memory, gives its layers ComfyUI's classes, and maps the
weights from the file. A fault raises before anything is handed on, so nothing half-loaded is left.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import folder_paths

from .. import PACK

if TYPE_CHECKING:
    import comfy.model_patcher
    import numpy as np

    from duogen_core.vae import PictureVae

    from .model_config import PictureLatent
    from .model_management import ModelHandle, Precision

FOLDER = "duogen"
INDEX = "model_index.json"
WAN_WIDTHS = {16: 96, 48: 160}  # of the VAEs of Wan 2.1 and 2.2 as published, by their channels
ENDINGS = (".safetensors", ".sft")
# ComfyUI lists no .gguf; under these names of ours it does, in the same folders. Its own lists stay as they are.
GGUF = {category: f"duogen_gguf_{category}" for category in ("text_encoders", "diffusion_models", FOLDER)}
NO_MODEL = re.compile(r"(?i)mmproj|-(?!00001-)\d{5}-of-\d{5}\.gguf$")  # of GGUF files, what goes along with another
# Where to look, and what makes a folder there a model: one of these files.
MLLM = {"text_encoders": ("config.json",), FOLDER: ("config.json",)}
DIT = {
    "diffusion_models": ("config.json", "transformer/config.json"),
    "diffusers": ("transformer/config.json",),
    FOLDER: ("config.json", "transformer/config.json"),
}
TOKENIZER = {"text_encoders": ("tokenizer.json", "vocab.json"), FOLDER: ("tokenizer.json", "vocab.json")}
CONTROLNET = {"controlnet": ("config.json",)}
OWN_TOKENIZER = "auto"


def register_model_folder() -> None:
    """ComfyUI's models/duogen, beside whatever extra_model_paths.yaml names for `duogen`."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    for category, ours in GGUF.items():
        folder_paths.folder_names_and_paths[ours] = (folder_paths.folder_names_and_paths[category][0], {".gguf"})


def checkpoints() -> dict[str, Path]:
    """Name -> folder, in the order of the list. A folder of the user's without an index is listed as well: loading it
    says what it lacks, which helps more than its absence."""
    found = {entry.parent.name: entry.parent for entry in sorted((PACK / "models").glob(f"*/{INDEX}"))}
    for root in folder_paths.get_folder_paths(FOLDER):
        if Path(root).is_dir():
            for folder in sorted(entry for entry in Path(root).iterdir() if entry.is_dir()):
                found.setdefault(folder.name, folder)
    return found


def checkpoint_folder(name: str) -> Path:
    from duogen_core.errors import DuoGenError

    folder = checkpoints().get(name)
    if folder is None:
        raise DuoGenError(f"There is no DuoGen checkpoint {name!r}; put its folder into models/{FOLDER}.")
    return folder


def checkpoint_fingerprint(name: str, *parts: str) -> str:
    """Changes when a file of the checkpoint (or of these parts of it) does, so that it is loaded again."""
    folder = checkpoints().get(name)
    if folder is None:
        return ""
    return fingerprint_of(folder / INDEX, *(folder / part for part in parts or ("",)))


def fingerprint_of(*paths: Path) -> str:
    """Changes when one of these files, or a file in one of these folders, does.

    Goes by times and sizes: reading gigabytes of weights at each run would be slow. ctime is there because a file that
    is copied over another may keep an older mtime.
    """
    files = []
    for path in paths:
        inside = [Path(top, file) for top, _, names in os.walk(path, followlinks=True) for file in names]
        files += sorted(inside) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in files if file.is_file()]
    return repr([(file, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino) for file, stat in stats])


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
    if category in GGUF:
        listed += [name for name in folder_paths.get_filename_list(GGUF[category]) if not NO_MODEL.search(name)]
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
        path = path_of(name, places)
        parts_of_gguf = (
            sorted(path.parent.glob("*.gguf")) if path.suffix.lower() == ".gguf" else []
        )  # mmproj, a split set
        return fingerprint_of(path, *parts_of_gguf, *([beside] if beside else []))
    except DuoGenError as error:
        return str(error)


def tokenizer_folder(name: str) -> Path:
    """Where the tokenizer for a single file of weights lies. "auto": the one that ComfyUI has for Qwen's models."""
    if name == OWN_TOKENIZER:
        return Path(find_spec("comfy.ops").origin).parent / "text_encoders" / "qwen25_tokenizer"
    path = path_of(name, TOKENIZER)
    return path / "mllm" if (path / INDEX).is_file() else path


def load_checkpoint(name: str) -> tuple[ModelHandle, ModelHandle, comfy.model_patcher.ModelPatcher, Any]:
    """(language model, connector, MODEL, VAE) of a DuoGen checkpoint. Weights are mapped from the files in the types
    they have there, quantised ones (`convert --quantise`) included."""
    from duogen_core import checkpoint as core_checkpoint
    from duogen_core.dit.loading import load_dit as load_core_dit
    from duogen_core.mllm.loading import load_mllm

    from .diffusion_model import make_model
    from .families import class_name
    from .model_management import connector_handle, mllm_handle

    folder = checkpoint_folder(name)
    core_checkpoint.check_checkpoint(folder)
    mllm_precision, dit_precision = (_precision(folder / part, part) for part in ("mllm", "dit"))
    parts = core_checkpoint.load_checkpoint(
        folder,
        loaders={
            "mllm": lambda path: load_mllm(path, dtype=mllm_precision.kept, prepare=mllm_precision.prepare),
            "dit": lambda path: load_core_dit(path, dtype=dit_precision.kept, prepare=dit_precision.prepare),
        },
    )
    vae, latents = comfyui_vae(parts.vae)
    sampling = parts.config.sampling
    model = make_model(
        parts.dit, shift=sampling.shift, latent_format=latents, sampling=sampling, precision=dit_precision
    )
    model.cached_patcher_init = (load_dit, (name,))
    vae.patcher.cached_patcher_init = (load_vae_patcher, (name,))
    mllm = mllm_handle(parts.mllm, mllm_precision)
    mllm.config = parts.config
    return mllm, connector_handle(parts.connector, class_name(parts.dit)), model, vae


def load_mllm(name: str, tokenizer: str = OWN_TOKENIZER) -> ModelHandle:
    """The language model of a DuoGen checkpoint, or a published Qwen-VL.

    tokenizer: where that of a single file of weights lies; a folder has its own. The images of a published one are as
    large as those of the image model that draws them.
    """
    from duogen_core.checkpoint import PUBLISHED_PICTURE, CheckpointConfig, check_checkpoint
    from duogen_core.mllm import loading
    from duogen_core.weights.gguf import is_gguf

    from .model_management import Precision, mllm_handle

    if is_checkpoint(name):
        folder = checkpoint_folder(name)
        config = check_checkpoint(folder)
        precision = _precision(folder / "mllm", "mllm")
        core = loading.load_mllm(folder / "mllm", dtype=precision.kept, prepare=precision.prepare)
    else:
        path, beside = path_of(name, MLLM), tokenizer_folder(tokenizer)
        own = path.is_dir() or (is_gguf(path) and tokenizer == OWN_TOKENIZER)  # it brings its tokenizer
        loading.detect_family(path)  # says what is wrong with a folder or file before anything else does
        precision = Precision.of(*loading.stored_in(path), mm.text_encoder_device())
        core = loading.load_mllm(path, precision.kept, precision.prepare, tokenizer=None if own else beside)
        config = CheckpointConfig(name=path.name if path.is_dir() else path.stem, picture=PUBLISHED_PICTURE)
    mllm = mllm_handle(core, precision)
    mllm.config = config
    return mllm


def load_connector(name: str, mllm: ModelHandle | None = None) -> ModelHandle:
    """The connector of a DuoGen checkpoint, or `crossattn_proj` of a Cosmos-Predict2.5.

    mllm: says how many layers the connector reads, where its file does not; a checkpoint's is checked against it.
    """
    from duogen_core.checkpoint import check_checkpoint
    from duogen_core.connector import Connector
    from duogen_core.dit.loading import open_published

    from .compatibility import check_connector
    from .model_management import connector_handle

    if not is_checkpoint(name):
        shape = (mllm.core.num_layers, mllm.core.hidden_size) if mllm is not None else None
        return connector_handle(open_published(path_of(name, DIT)).load_connector(shape), "PackedCosmos")
    folder = checkpoint_folder(name)
    check_checkpoint(folder)
    connector = connector_handle(Connector.from_pretrained(folder / "connector"), family_in(folder / "dit"))
    if mllm is not None:
        check_connector(mllm, connector)
    return connector


def load_dit(
    name: str, convention: str | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The MODEL of a DuoGen checkpoint, Cosmos-Predict2.5 or Wan in any of their layouts, or a file that ComfyUI's Save
    Diffusion Model wrote of one of them. A published Wan comes with a message on the node: it reads umT5's text.

    convention: of a published one: "pre-trained", "post-trained", None: as the file says. disable_dynamic: ComfyUI's
    word, for when it loads the model once more itself (`cached_patcher_init`), with weights of its own: to train a
    LoRA, for hooks, for a second device.
    """
    from duogen_core.checkpoint import check_checkpoint, vae_path
    from duogen_core.dit.loading import load_dit as load_core_dit
    from duogen_core.dit.loading import open_published, open_saved
    from duogen_core.dit.wan_files import WanFile
    from duogen_core.vae import PictureVae

    from .diffusion_model import make_model
    from .families import dtypes_of
    from .lora import report
    from .model_config import PictureLatent
    from .model_management import Precision

    if not is_checkpoint(name):
        path = path_of(name, DIT)
        saved = open_saved(path)
        file = saved or open_published(path, convention)
        family = class_in(file.config) or ("PackedWan" if isinstance(file, WanFile) else "PackedCosmos")
        count = sum(math.prod(entry.shape) for entry in file.weights.entries.values())
        precision = Precision.of(file.dtype, count, mm.get_torch_device(), dtypes_of(family))
        channels = file.config.get("out_channels")
        latents = PictureLatent(channels=channels) if saved is None else PictureLatent.from_note(saved.latents, path)
        dit, sampling = file.load_dit(precision.kept, precision.prepare), file.sampling
        if isinstance(file, WanFile):
            report(
                f"{file.name} as published draws nothing from a language model's states: it reads umT5's text, from "
                "CLIPTextEncode behind CLIPLoader of the type wan. DuoGen's stage 2 teaches it the states, with a "
                "connector in front (docs/training.md)."
            )
    else:
        folder = checkpoint_folder(name)
        sampling = check_checkpoint(folder).sampling
        # The statistics and preview colours of the latents come from the VAE they were made with; it is not kept.
        latents = comfyui_vae(PictureVae.from_pretrained(vae_path(folder)), latents_only=True)[1]
        precision = _precision(folder / "dit", "dit")
        dit = load_core_dit(folder / "dit", dtype=precision.kept, prepare=precision.prepare).eval()
    model = make_model(
        dit, shift=sampling.shift, latent_format=latents, sampling=sampling, precision=precision,
        dynamic=not disable_dynamic,
    )  # fmt: skip
    model.cached_patcher_init = (load_dit, (name, convention))
    return model


def load_vae_patcher(name: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The VAE's weights of a DuoGen checkpoint once more, for ComfyUI's Select VAE Device. disable_dynamic is there for
    the call alone: ComfyUI's own VAE has one kind of patcher."""
    from duogen_core.checkpoint import vae_path
    from duogen_core.vae import PictureVae

    return comfyui_vae(PictureVae.from_pretrained(vae_path(checkpoint_folder(name))))[0].patcher


def controlnets() -> list[str]:
    """The DuoGen checkpoints that have a ControlNet, then the folders in models/controlnet that hold one."""
    own = [name for name, folder in checkpoints().items() if (folder / "controlnet" / "config.json").is_file()]
    inside = folders("controlnet", CONTROLNET["controlnet"])
    return list(dict.fromkeys([*own, *inside]))


def controlnet_folder(name: str) -> Path:
    own = checkpoints().get(name)
    return own / "controlnet" if own is not None else path_of(name, CONTROLNET)


def load_controlnet(name: str) -> Any:
    """The CONTROL_NET of a DuoGen checkpoint, or of a folder in models/controlnet as `train controlnet` writes it."""
    from duogen_core.dit.controlnet import PackedControlNet
    from duogen_core.mllm.loading import stored_in

    from .controlnet import control_of
    from .model_management import Precision

    folder = controlnet_folder(name)
    precision = Precision.of(*stored_in(folder, "weights of the ControlNet"), mm.get_torch_device())
    net = PackedControlNet.from_pretrained(folder, dtype=precision.kept, prepare=precision.prepare, copy=False)
    return control_of(net.eval(), precision)


def _precision(folder: Path, part: str) -> Precision:
    from duogen_core.mllm.loading import stored_in

    from .families import dtypes_of
    from .model_management import Precision

    if part == "mllm":
        return Precision.of(*stored_in(folder, "weights of the MLLM"), mm.text_encoder_device())
    stored = stored_in(folder, "weights of the DiT")
    return Precision.of(*stored, mm.get_torch_device(), dtypes_of(family_in(folder)))


def family_in(folder: Path) -> str | None:
    """The class, in the core, of the DiT in a checkpoint's folder, by its config.json; None: loading says what is
    wrong with it."""
    from duogen_core.files import read_json

    return class_in(read_json(folder / "config.json", "configuration of a DiT"))


def class_in(config: Any) -> str | None:
    """config: of a DiT, as read from a file."""
    from duogen_core.dit import FAMILIES

    named = config.get("_class_name") if isinstance(config, dict) else None
    return FAMILIES[named][1] if isinstance(named, str) and named in FAMILIES else None


def comfyui_vae(vae: PictureVae, *, latents_only: bool = False) -> tuple[Any, PictureLatent]:
    """The core's VAE -> (ComfyUI's VAE, or None with latents_only; what its latents look like to a MODEL)."""
    import comfy.sd
    import torch

    from duogen_core.errors import DuoGenError

    from .model_config import PictureLatent
    from .model_management import SMALL_MODEL

    small = sum(p.numel() for p in vae.model.parameters()) < SMALL_MODEL // 10
    statistics = vae.model.config
    colours = preview_colours(vae) if small else None
    published = WAN_WIDTHS.get(statistics.z_dim)
    own_width = None if statistics.base_dim == published else statistics.base_dim
    if own_width is not None and statistics.z_dim == 48:
        raise DuoGenError(
            f"This checkpoint's VAE is that of Wan 2.2 at a width of {own_width}; ComfyUI loads it at the published "
            f"width alone, {published}. Answer with it on the command line."
        )
    latents = PictureLatent(statistics.latents_mean, statistics.latents_std, colours, own_width)
    if latents_only:
        return None, latents
    loaded = comfy.sd.VAE(sd=vae.to_single_file(), dtype=torch.float32 if small else None)
    loaded.throw_exception_if_invalid()
    loaded.duogen_latents = latents  # for compatibility.check_vae: ComfyUI's VAE does not tell whose latents it makes
    return loaded, latents


def preview_colours(vae: PictureVae) -> tuple[list[list[float]], list[float]]:
    """(RGB factors of each channel, bias): the linear map from this VAE's latents to colours that fits best.

    ComfyUI's previews need one, and the published one fits Wan's own weights only. A VAE this small was trained on the
    Sketchbook world alone, so the map is fitted to a few images of it, with every colour and kind of shape.
    """
    import numpy as np

    latents, colours = [], []
    for chart in sketchbook_charts():
        latent = vae.encode(chart)[0]
        latents.append(latent.flatten(1).T.double().cpu().numpy())  # [cells, channels]
        height, width = latent.shape[1:]
        side = chart.shape[0] // height  # pixels of a cell: 8, and with Wan 2.2's VAE 16
        colours.append(chart.reshape(height, side, width, side, 3).mean((1, 3)).reshape(-1, 3) / 127.5 - 1)
    cells = np.vstack(latents)
    solution: Any = np.linalg.lstsq(np.hstack([cells, np.ones((len(cells), 1))]), np.vstack(colours), rcond=None)[0]
    return solution[:-1].tolist(), solution[-1].tolist()


def sketchbook_charts(count: int = 4) -> list[np.ndarray]:
    """Images [128, 128, 3] of the Sketchbook world that show all its colours and kinds of shapes."""
    from itertools import cycle

    from duogen_core.sketchbook.drawing import draw_scene
    from duogen_core.sketchbook.scene import CELLS, COLOURS, KINDS, Scene, Shape

    kinds, colours = cycle(KINDS), cycle(colour for colour in COLOURS if colour != "cream")
    return [
        draw_scene(Scene(tuple(Shape(cell, next(kinds), next(colours)) for cell in CELLS[number % 2 :: 2])))
        for number in range(count)
    ]
