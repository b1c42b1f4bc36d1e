"""Presets: every threshold of the engine under the name of its rule, in a YAML file.

    preset = load_preset("howto", ["page.min_words=50"])

presets/howto.yaml holds every name and is what another preset, or a file of the user, changes; a name it does not have
is refused. Out: a Preset, whose sections are plain mappings and whose `digest` changes when any value does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from duogen_core.errors import DuoGenError

FOLDER = Path(__file__).with_name("presets")
DEFAULT = "howto"


@dataclass(frozen=True)
class Preset:
    name: str
    page: Mapping[str, Any]
    load: Mapping[str, Any]
    picture: Mapping[str, Any]
    duplicate: Mapping[str, Any]
    personal: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **{section: dict(getattr(self, section)) for section in SECTIONS}}

    @property
    def digest(self) -> str:
        values = {**self.to_json(), "name": ""}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


SECTIONS = ("page", "load", "picture", "duplicate", "personal")


def load_preset(name: str = DEFAULT, settings: Sequence[str] = ()) -> Preset:
    """A named preset or a YAML file, with settings such as page.min_words=50 on top."""
    values = _read(FOLDER / f"{DEFAULT}.yaml")
    if name != DEFAULT:
        _merge(values, _read(_file(name)), f"the preset {name}")
    for setting in settings:
        _merge(values, _parse(setting), f"--set {setting}")
    return Preset(name, **values)


def preset_from_json(value: Mapping[str, Any]) -> Preset:
    """The preset that `to_json` described: what a started run goes on with."""
    values = _read(FOLDER / f"{DEFAULT}.yaml")
    _merge(values, {section: value[section] for section in SECTIONS}, "the run's preset")
    return Preset(str(value["name"]), **values)


def _file(name: str) -> Path:
    inside = FOLDER / f"{name}.yaml"
    file = inside if inside.parent == FOLDER and inside.is_file() else Path(name)
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise DuoGenError(f"There is no preset {name}; give {known}, or the name of a YAML file.")
    return file


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DuoGenError(f"The preset {file} cannot be read: {error}.") from None
    if not isinstance(values, dict):
        raise DuoGenError(f"The preset {file} must hold sections such as page: and picture:.")
    return values


def _parse(setting: str) -> dict[str, Any]:
    names, equals, text = setting.partition("=")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        equals = ""
    if not equals or "." not in names:
        raise DuoGenError(f"--set {setting} cannot be read; write it like page.min_words=50.")
    for name in reversed(names.strip().split(".")):
        value = {name: value}
    return value


def _merge(values: dict[str, Any], more: Mapping[str, Any], where: str, path: str = "") -> None:
    for name, new in more.items():
        full = f"{path}{name}"
        if name not in values:
            raise DuoGenError(f"{where} has {full}, which is no rule; the names are {', '.join(map(str, values))}.")
        old = values[name]
        if isinstance(old, dict) and isinstance(new, Mapping):
            _merge(old, new, where, f"{full}.")
        elif _kind(old) is not _kind(new):
            raise DuoGenError(f"{where} sets {full} to {new!r}; expected {_kind(old).__name__}, such as {old!r}.")
        else:
            values[name] = new


def _kind(value: Any) -> type:
    return float if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)
