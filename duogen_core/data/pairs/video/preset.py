"""The video engine's preset: every threshold under the name of its rule. presets/clips.yaml holds them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duogen_core.data.runs.presets import preset_values
from duogen_core.errors import DuoGenError

FOLDER = Path(__file__).with_name("presets")
DEFAULT = "clips"
Preset = dict[str, dict[str, Any]]


def load_preset(name: str = DEFAULT, settings: Sequence[str] = ()) -> Preset:
    """A named preset or a YAML file, with settings such as clip.seconds=3 on top."""
    values = preset_values(FOLDER, DEFAULT, name, settings)
    clip, store = values["clip"], values["store"]
    if not 0 < clip["min_seconds"] <= clip["seconds"] <= 600:
        raise DuoGenError(
            f"clip.seconds is {clip['seconds']} and clip.min_seconds {clip['min_seconds']}; expected more than 0, the "
            "second at most the first, and at most 600."
        )
    if store["format"] not in ("jpeg", "png"):
        raise DuoGenError(f"store.format is {store['format']!r}; expected jpeg or png.")
    return values
