"""Answers of a model in training, to look at: <run folder>/samples/000500/draw.html and so on."""

from __future__ import annotations

from pathlib import Path

from duogen_core.checkpoint import Components
from duogen_core.data.sketchbook.tasks import evaluation_case
from duogen_core.pipeline import Settings, generate
from duogen_core.render import render_html
from duogen_core.store import write_atomically
from duogen_core.training.loop import rng_for

FAMILIES = ("guide", "draw", "edit", "plan")
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
