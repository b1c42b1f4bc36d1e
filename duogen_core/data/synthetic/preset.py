"""The synthetic engine's preset: presets/default.yaml, a file of the user and settings on top.

preset = load_preset(None, ["answer.max_pictures=5"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from duogen_core.data.runs.presets import preset_values

PRESETS = Path(__file__).with_name("presets")
DEFAULT = "default"


@dataclass(frozen=True)
class Preset:
    expand: Mapping[str, Any]
    request: Mapping[str, Any]
    answer: Mapping[str, Any]
    picture: Mapping[str, Any]

    def part(self, *sections: str) -> dict[str, Any]:
        """What a step depends on: its sections alone, so that the others may change."""
        return {name: dict(asdict(self)[name]) for name in sections}


def load_preset(name: str | None = None, settings: Sequence[str] = ()) -> Preset:
    return Preset(**preset_values(PRESETS, DEFAULT, name or DEFAULT, settings))
