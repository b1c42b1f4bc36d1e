"""Stand-ins for torchvision, torchaudio and spandrel, so that ComfyUI starts on a machine that has torch alone.

ComfyUI imports them at start-up, for nodes that have nothing to do with this pack. Where the real module imports, it
is used. Where it does not (not installed, or built for another torch), a module takes its place whose every name
resolves, and whose every call fails with a sentence: start-up succeeds, and nothing can silently run on a fake.
In: nothing. Out: `sys.modules` and `sys.meta_path` prepared. Used by launch.py before ComfyUI's main.py runs.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

PACKAGES = ("torchvision", "torchaudio", "spandrel")


class _Anything(type):
    """Metaclass of the placeholder: any attribute of a placeholder is another placeholder."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{cls.__qualname__}.{name}")


def _placeholder(path: str) -> type:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            f"{path} was called, but this test server runs with a stand-in for it; install the real one."
        )

    return _Anything(path, (), {"__init__": refuse})


class _StandIn(ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(f"{self.__name__}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `name` and every module below it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname == self.name or fullname.startswith(self.name + "."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__version__ = "0.0.0+standin"


def _define_missing_operators() -> None:
    """A torchvision built for CUDA looks up compiled operators while it is imported; without CUDA they are absent."""
    import torch

    for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor a) -> Tensor"):
        try:
            _LIBRARIES.append(torch.library.Library("torchvision", "FRAGMENT"))
            _LIBRARIES[-1].define(schema)
        except RuntimeError:
            pass  # the operator exists, which is what we want


_LIBRARIES: list[Any] = []


def _importable(name: str) -> bool:
    if importlib.util.find_spec(name) is None:
        return False
    for prepare in (lambda: None, _define_missing_operators if name == "torchvision" else None):
        if prepare is None:
            continue
        prepare()
        try:
            importlib.import_module(name)
            return True
        except Exception:
            for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
                del sys.modules[loaded]
    return False


def install() -> list[str]:
    """Put a stand-in where the real package does not import; returns the names that were replaced."""
    missing = [name for name in PACKAGES if not _importable(name)]
    if missing:
        # These two ask "is torchvision there?" once and remember the answer: it must be the true one.
        from transformers.utils import import_utils

        import_utils.is_torchvision_available()
        import_utils.is_torchvision_v2_available()
    for name in missing:
        sys.meta_path.insert(0, _Finder(name))
    return missing
