"""Answers of a model in training, to look at: <run folder>/samples/000500/draw.html and so on.

Stage 2 draws. Stage 1 only writes: where it says <BOV>, the picture of the ideal answer is put in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from duogen_core.checkpoint import Components
from duogen_core.data.sketchbook.cases import Case
from duogen_core.data.sketchbook.tasks import evaluation_case
from duogen_core.document import Document, Picture, Text
from duogen_core.mllm.base import Mllm
from duogen_core.pipeline import Settings, generate
from duogen_core.render import render_html
from duogen_core.store import write_atomically
from duogen_core.training.loop import rng_for

FAMILIES = ("guide", "draw", "edit", "plan")
WRITTEN = (*FAMILIES, "draft", "describe")
SETTINGS = Settings(max_images=8, max_new_tokens=300)  # an untrained model may not know where to end


def write_samples(components: Components, folder: Path, step: int) -> list[Path]:
    """One request of each family that draws, always the same ones, answered and written as HTML."""
    target = folder / "samples" / f"{step:06d}"
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for family in FAMILIES:
        request = evaluation_case(family, rng_for(0, "samples", family)).prompt
        path = target / f"{family}.html"
        write_atomically(path, render_html(generate(components, request, SETTINGS)).encode("utf-8"))
        written.append(path)
    return written


def ideal_answers(cases: Mapping[str, Sequence[Document | Case]]) -> dict[str, Document]:
    """The first conversation of each source that the model is scored on, and of Sketchbook's main families."""
    first = {name: some[0] for name, some in cases.items()}
    return {
        name: case.document if isinstance(case, Case) else case
        for name, case in first.items()
        if name in WRITTEN or not isinstance(case, Case)
    }


def write_answers(mllm: Mllm, ideals: Mapping[str, Document], folder: Path, step: int) -> list[Path]:
    """What the MLLM answers to the requests of some ideal conversations."""
    target = folder / "samples" / f"{step:06d}"
    target.mkdir(parents=True, exist_ok=True)
    written, training = [], mllm.model.training
    mllm.model.eval()
    try:
        for name, ideal in ideals.items():
            path = target / f"{file_name(name)}.html"
            write_atomically(path, render_html(answer(mllm, ideal)).encode("utf-8"))
            written.append(path)
    finally:
        mllm.model.train(training)
        mllm.clear_cache()
    return written


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
            return document.append(Text("\n[a picture, where the ideal answer has none left]"))
        document = document.append(picture)
    return document


def file_name(name: str) -> str:
    """A source's name as that of a file: jsonl:data/train.jsonl -> jsonl-data-train.jsonl"""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-100:] or "sample"
