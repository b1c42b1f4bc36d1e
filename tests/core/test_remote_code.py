"""No folder brings code of its own: every call that could run it says trust_remote_code=False."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADING = ("from_pretrained", "from_config")
# They run code that a folder or a name brings, whatever they are told.
RUNNING = frozenset(
    {"get_class_from_dynamic_module", "DiffusionPipeline", "exec", "eval", "runpy", "pickle", "dill", "joblib"}
)


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted([*ROOT.glob("duogen_core/**/*.py"), *ROOT.glob("nodes/**/*.py"), ROOT / "__init__.py"]):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text("utf-8"))


def is_auto(name: str) -> bool:
    """Whether a class of transformers or diffusers chooses by a config what it builds, auto_map included."""
    return name.startswith("Auto") and not name.startswith("Autoencoder")


def test_every_call_that_chooses_by_a_config_refuses_remote_code():
    found = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADING):
                continue
            if not any(map(is_auto, ast.unparse(node.func.value).split("."))):
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            value = given.get("trust_remote_code")
            assert isinstance(value, ast.Constant) and value.value is False, (
                f"{path}:{node.lineno} says no trust_remote_code=False"
            )
            found.append(path)
    assert found.count("duogen_core/data/pictures/classing.py") == 2  # calls are found


def test_classes_that_choose_are_called_by_their_names():
    """Under another name, or handed on, the call above would not be seen."""
    for path, tree in trees():
        called = {id(node.func.value) for node in ast.walk(tree) if isinstance(node, ast.Call) and
                  isinstance(node.func, ast.Attribute)}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert not any(is_auto(each.name) and each.asname for each in node.names), f"{path}:{node.lineno}"
            if isinstance(node, ast.Name) and is_auto(node.id):
                assert id(node) in called, f"{path}:{node.lineno}: {node.id} is used without a call"


def test_nothing_allows_remote_code_or_runs_it():
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, f"{path}:{node.value.lineno}"
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                on_module = isinstance(node.func, ast.Attribute) and name in ("exec", "eval")  # model.eval(), re.eval
                assert name not in RUNNING or on_module, f"{path}:{node.lineno}: {name}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {each.name for each in node.names} | {getattr(node, "module", None) or ""}
                assert not names & RUNNING, f"{path}:{node.lineno}: {names & RUNNING}"


def test_code_in_the_folder_of_a_classifier_is_not_run(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from duogen_core.data.pictures.classing import Nsfw
    from duogen_core.errors import DuoGenError

    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()\nclass C:\n    pass\n"
    for name in ("config_code.py", "model_code.py", "processor_code.py"):
        (tmp_path / name).write_text(code)
    maps = {"AutoConfig": "config_code.C", "AutoModelForImageClassification": "model_code.C"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of", "auto_map": maps}))
    processor = {"image_processor_type": "X", "auto_map": {"AutoImageProcessor": "processor_code.C"}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DuoGenError, match="cannot be loaded as an image classifier: it needs code of its own") as told:
        Nsfw({"model": str(tmp_path), "labels": ["nsfw"]})
    assert not mark.exists() and "trust_remote_code" not in str(told.value)
