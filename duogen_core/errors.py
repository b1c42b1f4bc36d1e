"""The errors of this pack. A message is a sentence: what was wrong, where, what was expected, what to do."""

from __future__ import annotations


class DuoGenError(ValueError):
    """Something the user can put right. The command line prints it and exits 2, ComfyUI shows it on the node."""


class Cancelled(Exception):
    """The user stopped the run. Not a failure: whatever was finished before stays."""
