"""What `generate` and `generate --requests` share: settings, the folder to write, the model, words about an answer.

In: the options of generate.py. Everything that can be checked is checked before anything slow begins.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from duogen_core.checkpoint import DEFAULT_MODEL
from duogen_core.commands.progress import Progress
from duogen_core.device_options import Placement, placement_of
from duogen_core.errors import DuoGenError
from duogen_core.files import TEMPORARY, read_json

if TYPE_CHECKING:
    from duogen_core.checkpoint import Components
    from duogen_core.document import Document
    from duogen_core.settings import Settings


MAX_IMAGES = 8  # of an answer that is written as it goes


def checked_out(name: str) -> Path:
    """Returns a folder that can be written. Of what stands there, only an earlier answer is ever replaced."""
    if not name.strip():
        raise DuoGenError("--out has no name; give the folder to write the answer to.")
    out = Path(name)
    if out.suffix.lower() == ".zip":
        raise DuoGenError(f"--out {name} names a .zip; generate writes a folder, so give it another name.")
    if "\0" in name:
        raise DuoGenError(f"--out {name!r} is not a valid name for a folder; choose another one.")
    if os.path.lexists(out):
        if not out.is_dir():
            raise DuoGenError(f"--out {name} is a file; it must be a folder.")
        try:
            if any(out.iterdir()) and not _is_answer(out):
                raise DuoGenError(
                    f"The folder {name} is not empty and not an earlier answer; choose another --out, so that nothing "
                    f"of yours is overwritten."
                )
        except OSError as error:
            raise DuoGenError(f"The folder {name} cannot be read ({error.strerror}); choose another --out.") from None
    # The document is written beside its final name first, so it is the folder above that must let us write.
    parent = out.absolute().parent
    while not os.path.lexists(parent) and parent != parent.parent:
        parent = parent.parent
    try:
        # With the longest name that will be needed: what is written stands beside the folder first.
        os.rmdir(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=f".new{TEMPORARY}", dir=parent))
    except OSError as error:
        raise DuoGenError(
            f"--out {name} cannot be written ({error.strerror}); choose a folder that you may write to."
        ) from None
    return out


def _is_answer(folder: Path) -> bool:
    try:
        value = read_json(folder / "document.json")
    except DuoGenError:
        return False
    return isinstance(value, dict) and value.get("format") == "duogen-document" and bool(value.get("generation"))


def settings_of(args: argparse.Namespace, seed: int | None) -> Settings:
    from duogen_core.settings import Settings

    return Settings(
        seed=0 if seed is None else seed,
        steps=args.steps,
        guidance=args.guidance,
        shift=args.shift,
        refresh=args.refresh,
        size=_size(args.size),
        max_images=MAX_IMAGES if args.max_images is None else args.max_images,
        max_new_tokens=args.max_tokens,
        temperature=_temperature(args.temperature),
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
    )


def _temperature(text: str) -> float | None:
    """None: the model's own."""
    if text == "model":
        return None
    try:
        return float(text)
    except ValueError:
        raise DuoGenError(f"--temperature is {text!r}; expected a number from 0 to 10, or model.") from None


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*", text)
    if not match:
        raise DuoGenError(f"The size {text!r} is not WIDTHxHEIGHT, for example 128x128.")
    return int(match[1]), int(match[2])


def load_placed(args: argparse.Namespace, document: Document, settings: Settings, progress: Progress) -> Components:
    """Loads the model that the options name, where they say; document: as large a request as it is to answer."""
    parts, placement = _parts(args), placement_of(args)
    if args.threads is not None:
        if args.threads < 1:
            raise DuoGenError(f"--threads must be at least 1, not {args.threads}.")
        import torch

        torch.set_num_threads(args.threads)
    components = _load_parts(parts, placement, progress) if parts else _load(_model(args), placement, progress)
    _place(components, placement, document, settings, progress)
    from duogen_core.picture_sampling import working_device, working_dtype

    precision = str(working_dtype(components.dit)).removeprefix("torch.")
    progress.line(f"Images are computed on {working_device(components.dit)}, in {precision}.")
    return components


def _parts(args: argparse.Namespace) -> dict[str, str | None] | None:
    """Returns the published files that make up the model, or None for a DuoGen model."""
    named = {name: getattr(args, name) for name in ("mllm", "dit", "vae")}
    about = {name: getattr(args, name) for name in ("tokenizer", "convention")}
    unused = next((name for name, value in about.items() if value), None)
    if not any(named.values()):
        if unused:
            raise DuoGenError(f"--{unused} is about published files; name them with --mllm, --dit and --vae.")
        return None
    if args.model is not None:
        raise DuoGenError("--model names a whole model; leave it out, or leave out --mllm, --dit and --vae.")
    missing = next((name for name, value in named.items() if not value), None)
    if missing:
        raise DuoGenError(f"A model of published files needs --mllm, --dit and --vae; --{missing} is missing.")
    return {**named, **about}


def _model(args: argparse.Namespace) -> str:
    return DEFAULT_MODEL if args.model is None else args.model


def _load_parts(parts: dict[str, str | None], placement: Placement, progress: Progress) -> Components:
    from duogen_core.checkpoint import load_parts
    from duogen_core.devices import choose_device

    choose_device(placement.device)  # one that is not there is told before minutes of loading
    progress.line(f"Loading {Path(parts['mllm']).name}, {Path(parts['dit']).name} and {Path(parts['vae']).name} …")
    return load_parts(**parts)


def _load(model: str, placement: Placement, progress: Progress) -> Components:
    from duogen_core.checkpoint import check_checkpoint, resolve_model

    check_checkpoint(resolve_model(model))  # quick, and before the libraries, whose import takes seconds
    progress.line(f"Loading {model} …")
    from duogen_core.placement import load

    return load(model, placement)


def _place(
    components: Components, placement: Placement, document: Document, settings: Settings, progress: Progress
) -> None:
    from duogen_core.document.pending import before_next_picture
    from duogen_core.memory import Need
    from duogen_core.picture_sampling import picture_size
    from duogen_core.placement import place

    document = before_next_picture(document)
    size = picture_size(document, components.config, settings.size)
    # An answer seldom has as many images as it may have; nor is the memory of many needed before they are there.
    references = len(document.pictures) + min(settings.max_images, 4)
    place(components, placement, Need(*size, references, settings.max_new_tokens + 2048), progress.line)


def say_size(settings: Settings, progress: Progress, step: int) -> None:
    """Says where images are drawn in another size than was asked for. step: the model's picture.step."""
    if settings.size:
        from duogen_core.vae import fit_size

        if (size := fit_size(*settings.size, step)) != settings.size:
            wanted, drawn = ("x".join(map(str, one)) for one in (settings.size, size))
            progress.line(f"Images are drawn in {drawn}, the nearest size in multiples of {step} to {wanted}.")


REASONS = {
    "end": "the answer is complete",
    "max_images": "stopped at the limit of images (--max-images)",
    "max_tokens": "stopped at the limit of text (--max-tokens)",
    "interrupted": "interrupted",
}


def count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def summary(document: Document, out: Path, pictures: int, progress: Progress) -> dict:
    return {
        "document": str(out),
        "html": str(out / "document.html"),
        "markdown": str(out / "document.md"),
        "text": document.text,
        "pictures": pictures,
        "seconds": round(progress.elapsed(), 2),
        **document.generation,
    }
