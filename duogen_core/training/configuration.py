"""Settings of a training run: a dataclass with defaults, a YAML or TOML file over it, and `name=value` over that.

    config = load_config(Stage2Config, Path("my.yaml"), ["lr=1e-3", "families.guide=0.5"])

A misspelt key is named with the nearest right one; a value of the wrong kind with what was expected; both with the file
or the command line, whichever it came from. Nested dataclasses and mappings are sections of the file.
`to_yaml(config)` is the file that would give the same config.

A dataclass may have `fixed`, {name: where its value comes from}: fields that its user does not set, since the command
does. They are refused with that sentence, and neither `to_yaml` nor --help lists them.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent
from typing import Any, ClassVar, TypeVar

import yaml

from duogen_core.config_text import (
    ConfigTextError,
    read_toml,
    read_yaml,
    shorten,
)
from duogen_core.errors import DuoGenError


class TrainingError(DuoGenError):
    """A run folder or a training setting that cannot be used, or a step that makes going on pointless."""


T = TypeVar("T")
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


class ConfigError(DuoGenError):
    """A training configuration that cannot be used."""


# Settings, and values of settings, that had other names once: files that have these still work, and so do runs that
# were begun with them.
RENAMED = {
    "alone": "single_image_weight",
    "unshifted": "unshifted_share",
    "recall_weight": "probe_weight",
    "micro_tokens": "tokens",
}
# Settings that there were, and what is to be given instead.
REPLACED = {
    "frames": "give 'tokens': those of images (one of 512x512 pixels has 1,024) and of text in a batch or a pass; "
    "what frames=48 was for Sketchbook is about tokens=5000"
}
RENAMED_VALUES = {"states": {"ahead": "cached", "on_the_fly": "online"}}


def by_todays_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one section, whatever they were called when they were written."""
    found = {}
    for name, value in values.items():
        name = RENAMED.get(name, name)
        known = RENAMED_VALUES.get(name, {})
        found[name] = known.get(value, value) if isinstance(value, str) else value
    return found


@dataclass(frozen=True)
class Place:
    """Where a setting was given, for errors: "my.yaml", or "'lora' of the settings given on the command line"."""

    file: str | None
    overrides: frozenset[tuple[str, ...]]  # the paths of all settings of the command line
    path: tuple[str, ...] = ()  # of the section
    key: str | None = None  # of the setting itself

    def section(self, name: str) -> Place:
        return replace(self, path=(*self.path, name), key=None)

    def at(self, key: object) -> Place:
        return replace(self, key=str(key))

    @property
    def source(self) -> str:
        full = self.path if self.key is None else (*self.path, *self.key.split("."))
        # An override gives what lies at its own path and below, and is a part of what lies above.
        given = any(full[: len(each)] == each or each[: len(full)] == full for each in self.overrides)
        return "the settings given on the command line" if given or self.file is None else self.file

    def __str__(self) -> str:
        return f"'{'.'.join(self.path)}' of {self.source}" if self.path else self.source


def load_config(cls: type[T], file: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Defaults of the dataclass, then the file, then the overrides "key=value" (values read as YAML)."""
    values = {} if file is None else read_file(Path(file))
    paths = set()
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = tuple(part.strip() for part in key.split("."))
        if not equals or not all(keys):
            raise ConfigError(f"'{shorten(override)}' is not a setting; expected name=value, such as lr=0.001.")
        set_value(values, keys, read_value(text, override))
        paths.add(keys)
    return build(cls, values, Place(None if file is None else str(file), frozenset(paths)))


def read_file(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {file} cannot be read: {error}.") from error
    try:
        values = read_toml(text) if file.suffix.lower() == ".toml" else read_yaml(text)
    except ConfigTextError as error:
        raise ConfigError(f"The configuration {file} is not valid: {error}.") from error
    if not isinstance(values or {}, dict):
        raise ConfigError(f"The configuration {file} must be a list of settings such as 'lr: 0.001'.")
    return values or {}


def read_value(text: str, override: str) -> Any:
    try:
        return read_yaml(text)
    except ConfigTextError as error:
        cut = text.count("[") > text.count("]") or text.count("{") > text.count("}")
        hint = " A shell ends it at a space: put name=value in quotes." if cut else ""
        raise ConfigError(f"The value in '{shorten(override)}' cannot be read: {error}.{hint}") from error


def set_value(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Sets values[key][key]… = value, as lora.rank=8 on the command line asks for."""
    for key in keys[:-1]:
        if values.get(key) is None:  # "lora: null" of a printed configuration
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise ConfigError(f"'{'.'.join(keys)}' goes into '{key}', which is a single value.")
    values[keys[-1]] = value


def build(cls: type[T], values: Mapping[str, Any], where: Place) -> T:
    """A dataclass from plain values; unknown keys and wrong kinds raise a ConfigError that names them."""
    hints = typing.get_type_hints(cls)
    fixed = getattr(cls, "fixed", {})
    if issubclass(cls, RunConfig):
        values = by_todays_names(values)
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key in fixed:
            full = ".".join((*where.path, str(key)))
            raise ConfigError(f"'{full}' cannot be set in {where.at(key).source}: it is {fixed[key]}.")
        if key in REPLACED and key not in known:
            raise ConfigError(f"There is no setting '{key}' any more, as in {where.at(key)}; {REPLACED[key]}.")
        if key not in known:
            settings = [name for name in known if name not in fixed]
            near = difflib.get_close_matches(str(key), settings, n=1, cutoff=0.5)
            meant = f"did you mean '{near[0]}'?" if near else f"it can have {', '.join(settings)}."
            raise ConfigError(f"There is no setting '{shorten(str(key))}' in {where.at(key)}; {meant}")
    for name, field in known.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"The setting '{name}' is missing in {where.at(name)}; it has no default.")
    return cls(**{key: fitting(hints[key], value, key, where) for key, value in values.items()})


def fitting(kind: Any, value: Any, key: str, where: Place) -> Any:
    """`value` as the type that the dataclass declares. key: its name, "families.guide" for a part of a mapping."""
    said = f"'{key}' in {where.at(key)} is {shorten(repr(value))}"
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return fitting(next(each for each in inner if each is not type(None)), value, key, where)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(kind, value, where.section(key))
    if origin is typing.Literal:
        if value in inner:
            return value
        raise ConfigError(f"{said}; expected one of {', '.join(map(str, inner))}.")
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if isinstance(value, Mapping):
            of = inner[1] if len(inner) == 2 else Any
            return {str(name): fitting(of, each, f"{key}.{name}", where) for name, each in value.items()}
        raise ConfigError(f"{said}; expected a section of names and values.")
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        if inner[:1] == (Any,) and isinstance(value, (str, Mapping)):  # one source for a list of them
            value = [value]
        if isinstance(value, (list, tuple)):
            if origin is tuple and inner and Ellipsis not in inner and len(value) != len(inner):
                raise ConfigError(f"{said}; expected a list of {len(inner)}.")
            of = inner[0] if inner else Any
            found = [fitting(of, each, key, where) for each in value]
            return tuple(found) if origin is tuple else found
        raise ConfigError(f"{said}; expected a list.")
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
        fixed = getattr(kind, "fixed", {})
        first = next(field.name for field in dataclasses.fields(kind) if field.name not in fixed)
        raise ConfigError(f"{said}; expected a section of settings, such as {key}.{first}.")
    raise ConfigError(f"{said}; expected {KINDS.get(kind, kind.__name__)}.")


def check_numbers(config: Any, *, least: Mapping[str, int], above_0: Sequence[str] = ()) -> None:
    """A ConfigError for numbers with which nothing would be trained, or without end. None stands for no number."""
    for name in (*least, *above_0):
        value = getattr(config, name)
        if value is not None and not (value > 0 if name in above_0 else value >= least[name]):
            expected = "a number above 0" if name in above_0 else f"at least {least[name]}"
            raise ConfigError(f"'{name}' is {value}; expected {expected}.")


def check_betas(betas: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"'betas' are {list(betas)}; expected two numbers from 0 to below 1, as of AdamW.")


def check_share(share: float) -> None:
    if not 0 <= share <= 0.5:
        raise ConfigError(f"'eval_share' is {share}; expected a share of the documents to hold out, 0 to 0.5.")


def to_yaml(config: Any) -> str:
    """The configuration as a file that `load_config` reads back."""
    return yaml.safe_dump(plain(config, fixed=False), sort_keys=False, allow_unicode=True)


def settings_help(config: Any) -> str:
    """The defaults as YAML, as --help shows them; of a section that is off, such as `lora: null`, what it can have."""
    hints, lines = typing.get_type_hints(type(config)), []
    for field in dataclasses.fields(config):
        if field.name in getattr(config, "fixed", ()):
            continue
        value = getattr(config, field.name)
        section = next((kind for kind in typing.get_args(hints[field.name]) if dataclasses.is_dataclass(kind)), None)
        if dataclasses.is_dataclass(value):
            lines.append(f"{field.name}:\n" + indent(settings_help(value), "  "))
        elif value is None and section:
            lines.append(f"{field.name}: null  # off; with one of these, such as {field.name}.")
            lines[-1] += f"{dataclasses.fields(section)[0].name}=…, it is on:\n" + indent(to_yaml(section()), "  # ")
        else:
            lines.append(yaml.safe_dump({field.name: plain(value)}, sort_keys=False, allow_unicode=True))
    return "".join(lines)


def plain(value: Any, fixed: bool = True) -> Any:
    """As values of YAML and JSON. fixed: with the fields that the command itself sets."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        left_out = () if fixed else getattr(value, "fixed", ())
        names = [field.name for field in dataclasses.fields(value) if field.name not in left_out]
        return {name: plain(getattr(value, name), fixed) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(each, fixed) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, fixed) for each in value]
    return str(value) if isinstance(value, Path) else value


# -- what every run has


@dataclass(kw_only=True)
class RunConfig:
    """Settings of every training run. It ends at `steps` or `minutes`, whichever comes first; the learning rate
    anneals to that end. A run found in `out` is continued."""

    command: ClassVar[str]  # "stage1", of `train stage1`; its recipes lie in the folder of that name

    out: Path = Path("runs/unnamed")  # run folder
    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    device: str = "cpu"  # or cuda; with accelerate's launcher its own
    threads: int | None = None  # CPU threads; None: torch's own choice
    warmup: int = 100  # steps of rising learning rate
    lr_floor: float = 0.02  # share of the learning rate that is left at the end of the cosine
    checkpoint_minutes: float = 4.0
    log_every: int = 20  # steps
    tensorboard: bool = True  # figures for TensorBoard too, in <out>/tensorboard
    wandb: str | None = None  # project at Weights & Biases for the figures; with WANDB_MODE=offline kept in <out>
    bf16: bool = True
    peak_tflops: float | None = None  # of one device, for the share of it that is used; None: by the device's name

    def __post_init__(self) -> None:
        least = {"steps": 1, "threads": 1, "warmup": 0, "checkpoint_minutes": 0, "log_every": 1}
        check_numbers(self, least=least, above_0=("minutes", "peak_tflops"))
        if not 0 <= self.lr_floor <= 1:
            raise ConfigError(f"'lr_floor' is {self.lr_floor}; expected a share of the learning rate, 0 to 1.")


# -- recipes: configurations that come with the package, by name: `train stage1 --config tiny-stage1`

RECIPES = Path(__file__).parent / "recipes"  # <command>/<name>.yaml; the first line, a comment, says what it is for


def recipes_of(command: str) -> dict[str, str]:
    """{name: what it is for}"""
    files = sorted((RECIPES / command).glob("*.yaml"))
    return {file.stem: file.read_text("utf-8").splitlines()[0].lstrip("# ") for file in files}


def find_config(given: str, command: str) -> Path:
    """The file that --config means: one that exists, or the name of a recipe."""
    path = Path(given)
    if path.is_file() or path.suffix in (".yaml", ".yml", ".toml", ".json") or path.name != given:
        return path
    names = recipes_of(command)
    if given in names:
        return RECIPES / command / f"{given}.yaml"
    others = [file.parent.name for file in RECIPES.glob(f"*/{given}.yaml")]
    if others:
        raise ConfigError(f"'{given}' is a recipe of train {others[0]}, not of train {command}.")
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.4)
    if not names:
        meant = f"train {command} has none, so give a YAML or TOML file."
    else:
        meant = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names)}."
    raise ConfigError(f"There is no file and no recipe '{given}'; {meant}")
