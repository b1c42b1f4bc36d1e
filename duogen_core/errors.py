"""The errors of this pack. A message is a sentence: what was wrong, where, what was expected, what to do."""

from __future__ import annotations


class DuoGenError(ValueError):
    """Something the user can put right. The command line prints it and exits 2, ComfyUI shows it on the node."""


class Cancelled(Exception):
    """The user stopped the run. Not a failure: whatever was finished before stays."""


class MissingPackage(DuoGenError):
    """An optional package that something needs and that is not installed; `extra` is its group in pyproject.toml."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what}: the package {package} is not installed; run pip install -e '.[{extra}]' in the pack's folder."
        )
