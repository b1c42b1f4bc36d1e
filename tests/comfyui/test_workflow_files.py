"""The files that are made of others are up to date: apps, lists of model files, views; and each says what it must."""

from __future__ import annotations

import json
import re

import pytest
from workflow_files import APP, APPS, BLUEPRINTS, FILES, SUBGRAPHS, WORKFLOWS, made_of, models_of, templates

TEMPLATES = templates()
AGAIN = "run python tests/comfyui/workflow_files.py with the address of a running ComfyUI"


def note_of(name: str) -> str:
    return next(node["widgets_values"][0] for node in TEMPLATES[name]["nodes"] if node["type"] == "MarkdownNote")


def test_files_are_what_the_program_writes():
    made = made_of(TEMPLATES)
    assert set(made) == {file.name for file in WORKFLOWS.glob("*.json")}, AGAIN
    assert [name for name, text in made.items() if (WORKFLOWS / name).read_text("utf-8") != text] == [], AGAIN
    assert {f"{name}{APP}.json" for name in APPS} <= set(made)
    assert {file.stem for file in SUBGRAPHS.iterdir()} == set(BLUEPRINTS), AGAIN


def test_names_lead_a_newcomer():
    """01 to 10 need nothing but the pack, and each number is there once."""
    assert [name[:3] for name in TEMPLATES] == [f"{number:02d} " for number in range(1, len(TEMPLATES) + 1)]
    assert [name for name in TEMPLATES if not models_of(TEMPLATES[name])] == [n for n in TEMPLATES if n < "11"]
    assert all(len(name) <= 32 and re.fullmatch(r"[\w .,-]+", name) for name in TEMPLATES), "the card is cut off"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_note_guides(name: str):
    """What it does, what to change first, which files with size, folder and licence, what to do next; in short."""
    note = note_of(name)
    wanted = ["## ", "**Change first:**", *(["**Files**"] if models_of(TEMPLATES[name]) else []), "**Next:**"]
    places = [note.find(words) for words in wanted]
    assert -1 not in places and places == sorted(places)
    assert len(re.sub(r"(?m)^- .*$", "", note).split()) <= 190, "a note is to be read"
    assert set(re.findall(r"\*\*(\d\d[^*]*)\*\*", note)) <= set(TEMPLATES), "another template, by its whole name"
    for model in models_of(TEMPLATES[name]):
        size, licence = FILES[model["name"]]
        assert f"- `{model['directory']}/{model['name']}` ({size}, {licence})" in note


def test_every_model_is_offered():
    """The node that asks for a file says where the front end finds it; and the file is the one in its widget."""
    for name, workflow in TEMPLATES.items():
        for node in workflow["nodes"]:
            named = [value for value in node.get("widgets_values") or [] if str(value).endswith(".safetensors")]
            models = node["properties"].get("models", [])
            assert [model["name"] for model in models] == named, f"{name}: {node['type']}"
            for model in models:
                assert model["url"].startswith("https://huggingface.co/") and model["directory"]


def test_apps_name_inputs_that_are_there():
    for name in APPS:
        app = json.loads((WORKFLOWS / f"{name}{APP}.json").read_text("utf-8"))
        nodes = {node["id"]: node for node in app["nodes"]}
        assert app["extra"]["linearMode"] is True
        for node, widget, *_ in app["extra"]["linearData"]["inputs"]:
            (entry,) = [entry for entry in nodes[node]["inputs"] if entry["name"] == widget]
            assert entry["label"] and entry["link"] is None and "widget" in entry
        assert app["extra"]["linearData"]["outputs"] and set(app["extra"]["linearData"]["outputs"]) <= set(nodes)
