"""Data flows one way: no room of the core imports, at whatever depth, a room that imports it; and imports are light."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "duogen_core"


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(CORE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in sorted(CORE.rglob("*.py"))}


def imports(node: ast.AST) -> set[str]:
    """Modules of the core that a piece of code imports, inside functions too, but not for type checking only."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return set()
    found: set[str] = set()
    if isinstance(node, ast.Import):
        found = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports here are absolute"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            found.add(inner if inner in MODULES else node.module)
    for child in ast.iter_child_nodes(node):
        found |= imports(child)
    return found & MODULES.keys()


def test_no_import_circle():
    graph = {name: imports(ast.parse(file.read_text("utf-8"))) for name, file in MODULES.items()}
    assert graph["duogen_core.document.store"] >= {"duogen_core.document.reading", "duogen_core.document"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_package_alone_is_light():
    heavy = "[name for name in ('torch', 'transformers', 'diffusers', 'PIL', 'numpy') if name in sys.modules]"
    code = f"import sys, duogen_core, duogen_core.errors, duogen_core.dit, duogen_core.mllm; print({heavy})"
    run = subprocess.run([sys.executable, "-c", code], cwd=CORE.parent, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
