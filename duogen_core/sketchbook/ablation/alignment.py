"""Alignment data, as stage 2 of the paper has it: a picture, what to change, and the changed picture without a word.

Made of Sketchbook's edits. Out: a folder of Document folders, a pure function of seed and count; it appears whole.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from duogen_core.document import Document
from duogen_core.document.store import save_document
from duogen_core.sketchbook.tasks import training_case
from duogen_core.training.run import rng_for


def wordless_edit(seed: int, number: int) -> Document:
    """Two pictures: the user's, and after the instruction the assistant's."""
    rng = rng_for(seed, "alignment", number)
    while True:
        document = training_case(rng, {"edit": 1.0}).document
        *earlier, answer = document.turns
        if len(earlier) == 1 and earlier[0].pictures:
            return Document((*earlier, replace(answer, parts=answer.pictures)))


def make(folder: Path, count: int, seed: int) -> Path:
    """The folder; made unless it is there."""
    if not folder.exists():
        new = folder.with_name(folder.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        for number in range(count):
            save_document(wordless_edit(seed, number), new / f"{number:06d}")
        new.rename(folder)
    return folder
