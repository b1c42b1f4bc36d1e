"""Settings of a training run: a dataclass with defaults, a YAML or TOML file over it, and `name=value` over that.

    config = load_config(Stage2Config, Path("my.yaml"), ["lr=1e-3", "families.guide=0.5"])

A misspelt key is named with the nearest right one; a value of the wrong kind with what was expected. Nested dataclasses
and mappings are sections of the file. `to_yaml(config)` is the file that would give the same config.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from duogen_core.errors import DuoGenError

T = TypeVar("T")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


class ConfigError(DuoGenError):
    """A training configuration that cannot be used."""


def load_config(cls: type[T], file: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Defaults of the dataclass, then the file, then the overrides "key=value" (values read as YAML)."""
    values: dict[str, Any] = {}
    where = "the settings given on the command line"
    if file is not None:
        values, where = read_file(Path(file)), str(file)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"'{override}' is not a setting; expected name=value, such as lr=0.001.")
        put(values, key.strip().split("."), read_value(text, override))
    return build(cls, values, where)


def read_file(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {file} cannot be read: {error}.") from error
    try:
        values = toml_values(text) if file.suffix.lower() == ".toml" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"The configuration {file} is not valid: {' '.join(str(error).split())}.") from error
    if not isinstance(values or {}, dict):
        raise ConfigError(f"The configuration {file} must be a list of settings such as 'lr: 0.001'.")
    return values or {}


def toml_values(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError as error:  # Python 3.10
        raise ConfigError("Python 3.10 reads no TOML; write the configuration as YAML (.yaml).") from error
    return tomllib.loads(text)


def read_value(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value in '{override}' cannot be read.") from error


def put(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"'{'.'.join(keys)}' goes into '{key}', which is a single value.")
    values[keys[-1]] = value


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from plain values; unknown keys and wrong kinds raise a ConfigError that names them."""
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            meant = f"did you mean '{near[0]}'?" if near else f"it can have {', '.join(known)}."
            raise ConfigError(f"There is no setting '{key}' in {where}; {meant}")
    for name, field in known.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"The setting '{name}' is missing in {where}; it has no default.")
    return cls(**{key: fitting(hints[key], value, key, where) for key, value in values.items()})


def fitting(kind: Any, value: Any, key: str, where: str) -> Any:
    """`value` as the type that the dataclass declares."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return fitting(next(each for each in inner if each is not type(None)), value, key, where)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(kind, value, f"'{key}' of {where}")
    if origin is typing.Literal:
        if value in inner:
            return value
        raise ConfigError(f"'{key}' in {where} is {value!r}; expected one of {', '.join(map(str, inner))}.")
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if isinstance(value, Mapping):
            of = inner[1] if len(inner) == 2 else Any
            return {str(name): fitting(of, each, f"{key}.{name}", where) for name, each in value.items()}
        raise ConfigError(f"'{key}' in {where} is {value!r}; expected a section of names and values.")
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        if inner[:1] == (Any,) and isinstance(value, (str, Mapping)):  # one source for a list of them
            value = [value]
        if isinstance(value, (list, tuple)):
            of = inner[0] if inner else Any
            found = [fitting(of, each, key, where) for each in value]
            return tuple(found) if origin is tuple else found
        raise ConfigError(f"'{key}' in {where} is {value!r}; expected a list.")
    return scalar(kind, value, key, where)


def scalar(kind: Any, value: Any, key: str, where: str) -> Any:
    if kind is Any:
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, str):  # YAML 1.1 takes 1e-3 for a text
        try:
            return float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    if dataclasses.is_dataclass(kind):
        first = dataclasses.fields(kind)[0].name
        raise ConfigError(f"'{key}' in {where} is {value!r}; expected a section of settings, such as {key}.{first}.")
    raise ConfigError(f"'{key}' in {where} is {value!r}; expected {KINDS.get(kind, kind.__name__)}.")


def check_numbers(config: Any, *, least: Mapping[str, int], above_0: Sequence[str] = ()) -> None:
    """A ConfigError for numbers with which nothing would be trained, or without end. None stands for no number."""
    for name in (*least, *above_0):
        value = getattr(config, name)
        if value is not None and not (value > 0 if name in above_0 else value >= least[name]):
            expected = "a number above 0" if name in above_0 else f"at least {least[name]}"
            raise ConfigError(f"'{name}' is {value}; expected {expected}.")


def to_yaml(config: Any) -> str:
    """The configuration as a file that `load_config` reads back."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
