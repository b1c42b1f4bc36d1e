"""Presets of every engine: thresholds under the names of their rules, in YAML files of sections.

    preset = load_preset("web", "mine.yaml", ["page.min_words=50"])
    preset.page["min_words"], preset["page"]["min_words"]

The engine's first preset holds every name; another one, a file of the user and single settings only change values: a
name it does not have, or a value of another kind, is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from duogen_core.config_text import ConfigTextError, read_yaml, shorten
from duogen_core.errors import DuoGenError

FOLDERS = {  # of the engines, and their first presets
    "web": ("web", "howto"),
    "dedup": ("dedup", "howto"),
    "dialogues": ("dialogues", "howto"),
    "synthetic": ("synthetic", "default"),
    "video": ("pairs/video", "clips"),
    "editing": ("pairs/editing", "edits"),
}
FILES = (("nsfw", "model"), ("advert", "hosts"))  # settings that name a file
FORMATS = ("jpeg", "png")  # in which pictures are stored


class Preset(dict[str, dict[str, Any]]):
    """Section -> rule -> threshold. Sections are attributes too."""

    name = ""

    def __getattr__(self, section: str) -> dict[str, Any]:
        try:
            return self[section]
        except KeyError:
            raise AttributeError(section) from None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **{section: dict(values) for section, values in self.items()}}

    @property
    def digest(self) -> str:
        return digest({**self.to_json(), "name": ""})

    def part(self, *sections: str) -> dict[str, Any]:
        """What a step depends on: its sections alone, so that the others may change."""
        return {section: dict(self[section]) for section in sections}


def load_preset(engine: str, name: str = "", settings: Sequence[str] = ()) -> Preset:
    """A named preset of an engine or a YAML file, on top of the engine's first one, with settings on top."""
    below, default = FOLDERS[engine]
    folder = Path(__file__).parents[1] / below / "presets"
    values = _read(folder / f"{default}.yaml")
    if name and name != default:
        merge(values, _read(_file(folder, name)), f"the preset {name}")
    for setting in settings:
        merge(values, _parse(setting), f"--set {shorten(setting)}")
    for section, rule in FILES:
        if path := values.get(section, {}).get(rule):
            values[section][rule] = str(Path(path).absolute())  # workers may stand elsewhere
    _check(values)
    return _named(values, name or default)


def _check(values: Mapping[str, Mapping[str, Any]]) -> None:
    """What a kind of value does not say."""
    if (stored := values.get("store", {}).get("format", "png")) not in FORMATS:
        raise DuoGenError(f"store.format is {stored!r}; expected {' or '.join(FORMATS)}.")
    clip = values.get("clip")
    if clip and not 0 < clip["min_seconds"] <= clip["seconds"] <= 600:
        raise DuoGenError(
            f"clip.seconds is {clip['seconds']} and clip.min_seconds {clip['min_seconds']}; expected more than 0, the "
            "second at most the first, and at most 600."
        )


def preset_of_run(engine: str, value: Mapping[str, Any]) -> Preset:
    """The preset that a run.json holds: what a started run goes on with."""
    values = load_preset(engine)
    merge(values, {section: value[section] for section in values}, "the run's preset")
    return _named(values, str(value.get("name", "")))


def _named(values: dict[str, dict[str, Any]], name: str) -> Preset:
    preset = Preset(values)
    preset.name = name
    return preset


def digest(values: Any) -> str:
    """Changes when any value does."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def merge(values: dict[str, Any], more: Mapping[str, Any], where: str, path: str = "") -> None:
    for name, new in more.items():
        full = f"{path}{name}"
        if name not in values:
            raise DuoGenError(
                f"{where} has {shorten(full)}, which is not a rule; the names are {', '.join(map(str, values))}."
            )
        old = values[name]
        if isinstance(old, dict) and isinstance(new, Mapping):
            merge(old, new, where, f"{full}.")
        elif _kind(old) is not _kind(new):
            raise DuoGenError(
                f"{where} sets {full} to {shorten(repr(new))}; expected {_kind(old).__name__}, such as {old!r}."
            )
        else:
            values[name] = new


def _file(folder: Path, name: str) -> Path:
    inside = folder / f"{name}.yaml"
    file = inside if inside.parent == folder and inside.is_file() else Path(name)
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise DuoGenError(f"There is no preset {name}; give {known}, or the name of a YAML file.")
    return file


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        values = read_yaml(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ConfigTextError) as error:
        raise DuoGenError(f"The preset {file} cannot be read: {error}.") from None
    if not isinstance(values, dict):
        raise DuoGenError(f"The preset {file} must hold sections such as page: and picture:.")
    return values


def _parse(setting: str) -> dict[str, Any]:
    names, equals, text = setting.partition("=")
    try:
        value = read_yaml(text)
    except ConfigTextError as error:
        raise DuoGenError(f"The value in --set {shorten(setting)} cannot be read: {error}.") from None
    if not equals or "." not in names:
        raise DuoGenError(f"--set {shorten(setting)} cannot be read; write it like page.min_words=50.")
    for name in reversed(names.strip().split(".")):
        value = {name: value}
    return value


def _kind(value: Any) -> type:
    return float if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)
