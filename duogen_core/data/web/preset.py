"""Presets: every threshold of the engine under the name of its rule, in a YAML file.

    preset = load_preset("howto", ["page.min_words=50"])

presets/howto.yaml holds every name and is what another preset, or a file of the user, changes; a name it does not have
is refused. Out: a Preset, whose sections are plain mappings and whose `digest` changes when any value does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core.data.runs.presets import digest, merge, preset_values

FOLDER = Path(__file__).with_name("presets")
DEFAULT = "howto"


@dataclass(frozen=True)
class Preset:
    name: str
    page: Mapping[str, Any]
    load: Mapping[str, Any]
    picture: Mapping[str, Any]
    advert: Mapping[str, Any]
    nsfw: Mapping[str, Any]
    duplicate: Mapping[str, Any]
    personal: Mapping[str, Any]
    fetch: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **{section: dict(getattr(self, section)) for section in SECTIONS}}

    @property
    def digest(self) -> str:
        return digest({**self.to_json(), "name": ""})


SECTIONS = ("page", "load", "picture", "advert", "nsfw", "duplicate", "personal", "fetch")


def load_preset(name: str = DEFAULT, settings: Sequence[str] = ()) -> Preset:
    """A named preset or a YAML file, with settings such as page.min_words=50 on top."""
    values = preset_values(FOLDER, DEFAULT, name, settings)
    for section, entry in (("nsfw", "model"), ("advert", "hosts")):
        if path := values[section][entry]:
            values[section][entry] = str(Path(path).absolute())  # workers may stand elsewhere
    return Preset(name, **values)


def preset_from_json(value: Mapping[str, Any]) -> Preset:
    """The preset that `to_json` described: what a started run goes on with."""
    values = preset_values(FOLDER, DEFAULT, DEFAULT)
    merge(values, {section: value[section] for section in SECTIONS}, "the run's preset")
    return Preset(str(value["name"]), **values)
