"""Presets of every engine: thresholds under the names of their rules, in YAML files of sections.

    values = preset_values(folder, "howto", "mine.yaml", ["page.min_words=50"])

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

Preset = dict[str, dict[str, Any]]  # section -> rule -> threshold


def preset_values(folder: Path, default: str, name: str, settings: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The sections of a named preset or a YAML file on top of the default one, with settings on top."""
    values = _read(folder / f"{default}.yaml")
    if name != default:
        merge(values, _read(_file(folder, name)), f"the preset {name}")
    for setting in settings:
        merge(values, _parse(setting), f"--set {shorten(setting)}")
    return values


def digest(values: Any) -> str:
    """Changes when any value does."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def merge(values: dict[str, Any], more: Mapping[str, Any], where: str, path: str = "") -> None:
    for name, new in more.items():
        full = f"{path}{name}"
        if name not in values:
            raise DuoGenError(
                f"{where} has {shorten(full)}, which is no rule; the names are {', '.join(map(str, values))}."
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
