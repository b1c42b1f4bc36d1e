"""A step's own folder in a run: whether it may be gone on with is told by the run.json that its first start wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duogen_core import __version__
from duogen_core.document import plain_json
from duogen_core.errors import DuoGenError
from duogen_core.store import write_atomically

VERSION = 1


def begin_step(folder: Path, kind: str, identity: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> None:
    """Makes the folder, or goes on with it if it was begun with the same identity."""
    whole = plain_json({**identity, "duogen": __version__}, "identity")
    file = folder / "run.json"
    if file.exists():
        found = read_step(folder, kind)["identity"]
        if found != whole:
            named = sorted(name for name in {*found, *whole} if found.get(name) != whole.get(name))
            raise DuoGenError(
                f"{folder} was begun with other values of {', '.join(named)}; give the same again to go on with it, or "
                "choose another folder, or remove this one."
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DuoGenError(f"The folder {folder} cannot be made ({error.strerror}); choose another.") from None
    value = {"format": kind, "version": VERSION, **(more or {}), "identity": whole}
    write_atomically(file, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def read_step(folder: Path, kind: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / "run.json").read_text("utf-8"))
        if value["format"] != kind or value["version"] != VERSION or not isinstance(value["identity"], dict):
            raise KeyError("format")
        return value
    except FileNotFoundError:
        raise DuoGenError(f"{folder} holds no run.json; expected a folder that `data synthetic` made.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DuoGenError(f"{folder / 'run.json'} cannot be read ({error}); was it made by `data synthetic`?") from None
