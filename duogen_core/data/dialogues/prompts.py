"""The prompts of these steps: plain files in prompts/, read once; their digest tells one run's from another's."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from duogen_core.data.llm.messages import PROMPTS, load_prompt

FOLDER = Path(__file__).with_name("prompts")


@cache
def prompt(name: str) -> str:
    return load_prompt(FOLDER / f"{name}.txt")


def prompts_digest() -> str:
    """Changes when any prompt does, those of the client included."""
    total = hashlib.sha256()
    for file in [*sorted(FOLDER.glob("*.txt")), *sorted(PROMPTS.glob("*.txt"))]:
        total.update(f"{file.name}\0{load_prompt(file)}\0".encode())
    return total.hexdigest()[:16]
