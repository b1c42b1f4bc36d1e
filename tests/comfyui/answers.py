"""What tests compare: the document a run saved, the command line's answer, and whether two answers are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import graphs
import numpy as np
from server import PACK, Result, Server

from duogen_core.document import Document
from duogen_core.document.reading import load_document


def command_line(out: Path, checkpoint: Path | None, *options: str, prompt: str = graphs.REQUEST) -> Document:
    """What `python -m duogen_core generate` answers. checkpoint: None where options name the parts."""
    subprocess.run(
        [
            *(sys.executable, "-m", "duogen_core", "generate", prompt, "--out", str(out), "--quiet"),
            *(() if checkpoint is None else ("--model", str(checkpoint))),
            *("--seed", "7", *options),
        ],
        check=True,
        cwd=PACK,
        env={**os.environ, "PYTHONPATH": str(PACK)},
        timeout=300,
    )
    return load_document(out)


def saved_document(server: Server, result: Result, node: str = "5") -> Document:
    assert result.error is None, result.error
    return load_document(server.base / "output" / result.outputs[node]["document"][0]["folder"])


def assert_same_turns(ours: Document, theirs: Document) -> None:
    assert [turn.role for turn in ours.turns] == [turn.role for turn in theirs.turns]
    assert [turn.text for turn in ours.turns] == [turn.text for turn in theirs.turns]
    assert len(ours.pictures) == len(theirs.pictures)
    for mine, other in zip(ours.pictures, theirs.pictures, strict=True):
        assert mine.size == other.size
        assert mine.meta == other.meta, f"{mine.meta} is not {other.meta}"
        difference = np.abs(mine.pixels.astype(int) - other.pixels.astype(int)).mean()
        assert difference <= 1.0, f"pictures differ by {difference:.3f} of 255 in the mean"


def assert_same_answer(ours: Document, theirs: Document) -> None:
    assert_same_turns(ours, theirs)
    assert dict(ours.generation) == dict(theirs.generation)
