"""Hides packages, as if they were not installed.

In: `hide(names)`, a function that returns the modules that are not there; it is asked at each import. With
$DUOGEN_TEST_BLOCKED those whose names stand in that file (launch.py imports this before ComfyUI starts).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any


class Hiding:
    """A finder of sys.meta_path that does not find some modules; all else is its own."""

    def __init__(self, finder: Any, names: Callable[[], Collection[str]]) -> None:
        self.finder, self.names = finder, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in self.names() else self.finder.find_spec(name, path, target)


def hide(names: Callable[[], Collection[str]]) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] in names()]:
        del sys.modules[module]
    sys.meta_path[:] = [Hiding(finder, names) for finder in sys.meta_path]


if listed := os.environ.get("DUOGEN_TEST_BLOCKED"):
    hide(lambda: Path(listed).read_text("utf-8").split())
