"""Imports point one way: the contracts of pyproject.toml hold, each of them can fail; and imports are light."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def lint(root: Path) -> tuple[int, str]:
    run = subprocess.run([sys.executable, "-c", LINT], cwd=root, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def test_imports_point_one_way():
    pytest.importorskip("importlinter")
    code, said = lint(ROOT)
    assert code == 0, said


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The Python files of the core and of the nodes: the linter reads them and runs none."""
    pytest.importorskip("importlinter")
    root = tmp_path_factory.mktemp("tree")
    for package in ("duogen_core", "nodes"):
        for file in (ROOT / package).rglob("*.py"):
            target = root / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    shutil.copyfile(ROOT / "pyproject.toml", root / "pyproject.toml")
    return root


@pytest.mark.parametrize(
    "file,line,broken",
    [
        ("duogen_core/weights/headers.py", "import duogen_core.mllm.base", "duogen_core.weights.headers -> "),
        ("duogen_core/dit/frames.py", "def f():\n    import duogen_core.checkpoint", "duogen_core.dit.frames -> "),
        ("duogen_core/dit/frames.py", "import duogen_core.dit.cosmos", "No cycles are allowed in duogen_core.dit"),
        ("duogen_core/pipeline.py", "import nodes.extension", "duogen_core.pipeline -> nodes.extension"),
        ("duogen_core/errors.py", "import folder_paths", "duogen_core.errors -> folder_paths"),
        ("duogen_core/strange.py", "", "strange"),  # a module that has no layer
    ],
)
def test_a_forbidden_import_is_found(copy, file, line, broken):
    path = copy / file
    before = path.read_text("utf-8") if path.exists() else None
    try:
        path.write_text((before or "") + f"\n{line}\n", encoding="utf-8")
        code, said = lint(copy)
    finally:
        path.unlink() if before is None else path.write_text(before, encoding="utf-8")
    assert code == 1 and broken in said, said


def test_the_package_alone_is_light():
    heavy = "[name for name in ('torch', 'transformers', 'diffusers', 'PIL', 'numpy') if name in sys.modules]"
    code = f"import sys, duogen_core, duogen_core.errors, duogen_core.dit, duogen_core.mllm; print({heavy})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("script", sorted((ROOT / "tests" / "bench").glob("*.py")), ids=lambda script: script.stem)
def test_a_benchmark_finds_this_checkout(script):
    """Started as its text says, with nothing installed: by its file's name, without PYTHONPATH."""
    text = script.read_text("utf-8")
    if '__name__ == "__main__"' not in text or not re.search(r"^\s*(from|import) (duogen_core|tests)\b", text, re.M):
        return
    assert re.search(r"^\s*(import checkout|sys\.path[.[])", text, re.M), f"{script.name} finds no duogen_core"
