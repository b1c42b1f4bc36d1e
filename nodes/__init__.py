"""The ComfyUI side of DuoGen: thin nodes around `duogen_core`.

`definitions` holds the schemas, `steps` what the nodes do, `host` all that touches ComfyUI's private side; imports go
in this direction only. Importing this package costs little: node classes hold schemas only, and model code is imported
when a node runs.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent


def _make_core_importable() -> None:
    """`import duogen_core` must find the core beside us. Only that one name: the pack's folder never goes on sys.path,
    where its `nodes`, `models` and `tests` would shadow other people's."""
    if "duogen_core" in sys.modules:
        return
    folder = PACK / "duogen_core"
    spec = importlib.util.spec_from_file_location(
        "duogen_core", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["duogen_core"] = module
    spec.loader.exec_module(module)


_make_core_importable()

from .host import self_check  # noqa: E402  (the core has to be importable first)

self_check.report()  # before anything else is imported from a ComfyUI that may lack it

try:
    from .extension import DuoGenExtension
except (AttributeError, ImportError) as error:
    DuoGenExtension = self_check.without_nodes(error)

__all__ = ["DuoGenExtension"]
