"""YAML and TOML that a person wrote -> plain values: texts, numbers, true, false, nothing, lists and mappings.

    read_yaml("lr: 1e-3\\nfamilies: {guide: 2}")        {"lr": "1e-3", "families": {"guide": 2}}
    read_toml("lr = 0.001")                             {"lr": 0.001}

Whatever the text holds, it is a value or a `ConfigTextError` whose message is one line: what is wrong, and where.
Dates stay the texts they are; a name given twice in one YAML section is refused, since only the last would count.
"""

from __future__ import annotations

import datetime
import re
from typing import Any

import yaml

MAX_DEPTH = 50  # sections and lists inside one another
MAX_VALUES = 100_000
LARGEST = 2**63  # of a whole number, either way


class ConfigTextError(ValueError):
    """A text that is not YAML or TOML, or holds what no setting can be. The message ends without a full stop."""


class _Loader(yaml.SafeLoader):
    """The safe loader without dates: an output folder may be called 2026-02-28, and nothing here needs a date."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigTextError(_one_line(error)) from error
    except RecursionError as error:
        raise ConfigTextError("sections and lists are nested too deep") from error
    # `!!int x`, `!!bool x`, `!!timestamp x` and numbers of 5,000 digits break PyYAML's own constructors.
    except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        raise ConfigTextError(f"a value is not of the kind it is said to be ({_one_line(error)})") from error
    return _plain(value)


def read_toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        try:
            import tomli as tomllib
        except ModuleNotFoundError as error:
            raise ConfigTextError(
                "Python 3.10 reads TOML with the package tomli; run pip install tomli, or write the file as YAML"
            ) from error
    try:
        value = tomllib.loads(text)
    except RecursionError as error:
        raise ConfigTextError("sections and lists are nested too deep") from error
    except (ValueError, ArithmeticError) as error:  # TOMLDecodeError is a ValueError, and so are too many digits
        raise ConfigTextError(_one_line(error)) from error
    return _plain(value)


def _plain(value: Any) -> Any:
    """The value, dates as texts; a ConfigTextError for what nothing here can use."""
    count = 0

    def walk(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if depth > MAX_DEPTH:
            raise ConfigTextError(f"sections and lists are nested deeper than {MAX_DEPTH}")
        if count > MAX_VALUES:  # a few lines of YAML can name themselves into billions of values
            raise ConfigTextError(f"it holds more than {MAX_VALUES:,} values")
        if isinstance(value, str) and ("\0" in value or (not value.isascii() and _has_surrogates(value))):
            raise ConfigTextError("a text holds a character that no file name and no file can hold")
        if isinstance(value, dict):
            return {walk(key, depth + 1): walk(each, depth + 1) for key, each in value.items()}
        if isinstance(value, list):
            return [walk(each, depth + 1) for each in value]
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise ConfigTextError("a whole number is larger than any setting can be")
        if isinstance(value, (datetime.date, datetime.time)):
            return value.isoformat()
        if isinstance(value, (set, bytes, tuple)):
            raise ConfigTextError(f"a {type(value).__name__} is not a value that a setting can have")
        return value

    return walk(value, 0)


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark
        said = error.problem + (f", in line {mark.line + 1}, column {mark.column + 1}" if mark else "")
    else:
        said = str(error) or type(error).__name__
    return shorten(re.sub(r"\s+", " ", said).strip().rstrip("."))


def shorten(text: str, most: int = 200) -> str:
    """For error messages: what was given, at most `most` characters of it."""
    return text if len(text) <= most else f"{text[:most]}…"
