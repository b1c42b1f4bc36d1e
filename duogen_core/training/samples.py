"""Answers of a model in training, to look at: <run folder>/samples/000500/draw.html and so on.

Stage 2 draws. Stage 1 only writes: where it says <BOV>, the picture of the ideal answer is put in. The VAE shows
pictures before and after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from duogen_core.checkpoint import Components
from duogen_core.document import Document, Picture, Text
from duogen_core.files import write_atomically
from duogen_core.mllm.base import Mllm
from duogen_core.picture_sampling import fit_area
from duogen_core.pipeline import generate
from duogen_core.render import render_html
from duogen_core.settings import Settings
from duogen_core.training.checkpoints import evaluation_mode
from duogen_core.training.data import Example
from duogen_core.vae import PictureVae

SETTINGS = Settings(max_images=8, max_new_tokens=300)  # an untrained model may not know where to end


Look = Callable[[str, Document], object]  # is shown each answer as soon as it is there: name, document


def write_samples(
    components: Components,
    folder: Path,
    step: int,
    ideals: Mapping[str, Document],
    look: Look = lambda name, answer: None,
) -> list[Path]:
    """The requests of some ideal conversations, always the same ones, answered from the last drawing turn on."""
    answers = ((name, generate(components, *asked(ideal, components))) for name, ideal in ideals.items())
    return write_all(answers, folder, step, look)


def asked(ideal: Document, components: Components) -> tuple[Document, Settings]:
    """What comes before the last turn that draws, and how to answer it: in pictures of that turn's size."""
    last = max(k for k, turn in enumerate(ideal.turns) if turn.role == "assistant" and turn.pictures)
    size = fit_area(*ideal.turns[last].pictures[0].size, components.config)
    return Document(ideal.turns[:last]), replace(SETTINGS, size=size)


def write_round_trips(vae: PictureVae, pictures: Sequence[np.ndarray], folder: Path, step: int) -> list[Path]:
    """Pictures, uint8 [H, W, 3], each with what is left of it after encoding and decoding."""
    document = Document()
    for pixels in pictures:
        document = document.begin_turn("user", [Picture(pixels)])
        document = document.begin_turn("assistant", [Picture(vae.decode_pixels(vae.encode(pixels)))])
    return write_all([("pictures", document)], folder, step)


def write_all(
    answers: Iterable[tuple[str, Document]], folder: Path, step: int, look: Look = lambda name, answer: None
) -> list[Path]:
    target = folder / "samples" / f"{step:06d}"
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name, document in answers:
        path = target / f"{file_name(name)}.html"
        write_atomically(path, render_html(document).encode("utf-8"))
        written.append(path)
        look(file_name(name), document)
    return written


def ideal_answers(examples: Mapping[str, Sequence[Example]]) -> dict[str, Document]:
    """The first conversation of each source, or family, that is to be shown."""
    return {name: some[0].document for name, some in examples.items() if some[0].shown}


def write_answers(mllm: Mllm, ideals: Mapping[str, Document], folder: Path, step: int) -> list[Path]:
    """What the MLLM answers to the requests of some ideal conversations."""
    try:
        with evaluation_mode(mllm.model):
            return write_all(((name, answer(mllm, ideal)) for name, ideal in ideals.items()), folder, step)
    finally:
        mllm.clear_cache()


@torch.no_grad()
def answer(mllm: Mllm, ideal: Document, max_new_tokens: int = SETTINGS.max_new_tokens) -> Document:
    """The last assistant turn, written anew; its pictures are the ideal ones, as long as there are any."""
    last = max(k for k, turn in enumerate(ideal.turns) if turn.role == "assistant")
    pictures = iter([part for part in ideal.turns[last].parts if isinstance(part, Picture)])
    document = Document(ideal.turns[:last]).begin_turn("assistant")
    while max_new_tokens > 0:
        written = mllm.continue_(document, max_new_tokens=max_new_tokens)
        max_new_tokens -= max(1, written.tokens)
        if written.text:
            document = document.append(Text(written.text))
        if written.stop != "picture":
            break
        picture = next(pictures, None)
        if picture is None:
            return document.append(Text("\n[an image, where the ideal answer has none left]"))
        document = document.append(picture)
    return document


def file_name(name: str) -> str:
    """A source's name as that of a file: jsonl:data/train.jsonl -> jsonl-data-train.jsonl"""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-100:] or "sample"
