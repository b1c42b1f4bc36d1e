"""Small files in ImgEdit's own layout: its basic part, and a conversation of its multi-turn part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from duogen_core.document import Picture

REQUESTS = {
    "1082": {"id": "animal/1.jpg", "prompt": "Give the snail a blue shell.", "edit_type": "adjust"},
    "7": {"id": "animal/1.jpg", "prompt": "Draw it as a “woodcut”\n木版画.", "edit_type": "style"},
    "31": {"id": "human/2.png", "prompt": "Add a hat.", "edit_type": "add"},
    "32": {"id": "human/2.png", "prompt": "Remove the hat.", "edit_type": "remove"},
    "33": {"id": "human/2.png", "prompt": "Replace the hat by a cap.", "edit_type": "replace"},
    "x-34": {"id": "human/2.png", "prompt": "Let him wave.", "edit_type": "action"},
    "35": {"id": "3.png", "prompt": "Cut out the chair.", "edit_type": "extract"},
    "36": {"id": "3.png", "prompt": "Put it on a beach.", "edit_type": "background"},
    "37": {"id": "3.png", "prompt": "Paint it red, and add a dog.", "edit_type": "compose"},
}
CONVERSATIONS = {
    "1": {"id": "3.png", "turn1": "From now on, all that is new is green. Add a cup.", "turn2": "Add a plate.",
          "turn3": "Go back to the first image."},
    "2": {"id": "animal/1.jpg", "turn1": "Add a leaf.", "turn2": "Make \"it\" larger.\nMuch larger."},
    "3": {"id": "3.png", "turn1": "Add a fork.", "turn2": "Remove it."},
    "4": {"id": "human/2.png", "turn1": "Add a scarf.", "turn2": "Make it 青."},
}  # fmt: skip


def write_pictures(folder: Path) -> None:
    for number, name in enumerate(("animal/1.jpg", "human/2.png", "3.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = np.full((30 + number, 40, 3), 50 * number, np.uint8)
        (folder / name).write_bytes(Picture(pixels).to_png())


def write_requests(folder: Path) -> Path:
    write_pictures(folder)
    file = folder / "basic_edit.json"
    file.write_text(json.dumps(REQUESTS), "utf-8")
    return file


def write_conversations(folder: Path) -> Path:
    write_pictures(folder)
    file = folder / "content_memory.json"
    file.write_text(json.dumps(CONVERSATIONS), "utf-8")
    return file


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `basic_bench.py` writes them."""
    said = {
        id: f"Brief reasoning: mostly done: well.\nPrompt Compliance: {1 + number % 5}\nVisual Naturalness: 2\n"
        "Physical & Detail Integrity: 1"
        for number, id in enumerate(ids)
    }
    file = folder / "result.json"
    file.write_text(json.dumps(said, indent=4), "utf-8")
    return file
