"""The converters' preset: every threshold under the name of its rule. presets/edits.yaml holds them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duogen_core.data.runs.presets import preset_values
from duogen_core.errors import DuoGenError

FOLDER = Path(__file__).with_name("presets")
DEFAULT = "edits"
Preset = dict[str, dict[str, Any]]


def load_preset(name: str = DEFAULT, settings: Sequence[str] = ()) -> Preset:
    """A named preset or a YAML file, with settings such as picture.min_side=256 on top."""
    values = preset_values(FOLDER, DEFAULT, name, settings)
    if values["store"]["format"] not in ("jpeg", "png"):
        raise DuoGenError(f"store.format is {values['store']['format']!r}; expected jpeg or png.")
    return values
