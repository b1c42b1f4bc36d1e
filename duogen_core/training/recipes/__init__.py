"""Configurations that come with the package, by name: `train stage1 --config tiny-stage1`.

recipes/<command>/<name>.yaml; the first line is a comment that says what it is for, which `train <command> --help`
lists.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from duogen_core.training.configuration import ConfigError

FOLDER = Path(__file__).parent


def recipes_of(command: str) -> dict[str, str]:
    """{name: what it is for}"""
    files = sorted((FOLDER / command).glob("*.yaml"))
    return {file.stem: file.read_text("utf-8").splitlines()[0].lstrip("# ") for file in files}


def find_config(given: str, command: str) -> Path:
    """The file that --config means: one that exists, or the name of a recipe."""
    path = Path(given)
    if path.is_file() or path.suffix in (".yaml", ".yml", ".toml", ".json") or path.name != given:
        return path
    names = recipes_of(command)
    if given in names:
        return FOLDER / command / f"{given}.yaml"
    others = [file.parent.name for file in FOLDER.glob(f"*/{given}.yaml")]
    if others:
        raise ConfigError(f"'{given}' is a recipe of train {others[0]}, not of train {command}.")
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.4)
    if not names:
        meant = f"train {command} has none, so give a YAML or TOML file."
    else:
        meant = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names)}."
    raise ConfigError(f"There is no file and no recipe '{given}'; {meant}")
