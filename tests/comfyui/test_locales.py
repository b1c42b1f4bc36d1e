"""Every node, input and output has its words in English and Chinese, and no word outlives what it was for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from english_locale import LOCALES, english
from server import Server

CHINESE = re.compile("[\u4e00-\u9fff]")


def read(locale: str, name: str) -> dict[str, Any]:
    return json.loads((LOCALES / locale / f"{name}.json").read_text("utf-8"))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    else:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")


@pytest.fixture(scope="module")
def said(server: Server) -> dict[str, Any]:
    """What the nodes say."""
    return english(server.get("/object_info"))


def test_english_is_what_the_nodes_say(said: dict[str, Any]):
    kept, now = dict(leaves(read("en", "nodeDefs"))), dict(leaves(said))
    changed = sorted(path for path in kept.keys() | now.keys() if kept.get(path) != now.get(path))
    assert not changed, "run tests/comfyui/english_locale.py, and look over locales/zh"


def test_chinese_is_complete(said: dict[str, Any]):
    kept, now = dict(leaves(read("zh", "nodeDefs"))), dict(leaves(said))
    assert sorted(now.keys() - kept.keys()) == [], "not translated"
    assert sorted(kept.keys() - now.keys()) == [], "translated, but no longer there"
    prose = [
        path for path, text in kept.items() if path.endswith(("tooltip", "description")) and not CHINESE.search(text)
    ]
    assert prose == [], "not in Chinese"


def test_translations_keep_what_the_user_has_to_type(said: dict[str, Any]):
    """Examples such as `3: 1234` or `last 2`, markers and file names are the same in every language."""
    typed = re.compile(r"<image1>|\b\d+: \d+\b|\blast \d+|document\.json|models/duogen|images/000\.png|%[^%]+%")
    kept = dict(leaves(read("zh", "nodeDefs")))
    for path, text in leaves(said):
        for piece in typed.findall(text):
            assert piece in kept[path], f"{path}: {piece} is missing"


def test_socket_types_and_categories(server: Server, said: dict[str, Any]):
    info = {name: node for name, node in server.get("/object_info").items() if name in said}
    types = {type_ for node in info.values() for type_ in node["output"] if type_.startswith("DUOGEN_")}
    served = server.get("/i18n")
    for locale in ("en", "zh"):
        main = read(locale, "main")
        assert set(main["dataTypes"]) == types
        used = {piece for node in info.values() for piece in node["category"].split("/")}
        assert set(main["nodeCategories"]) <= used
        assert set(said) <= set(served[locale]["nodeDefs"]), "the server does not hand it out"
    assert set(read("en", "main")["nodeCategories"]) == set(read("zh", "main")["nodeCategories"])


def test_a_user_reads_of_images_only(said: dict[str, Any]):
    """One word for one thing: ComfyUI's own. Values and ids of saved workflows keep the other one."""
    kept = re.compile(r"picture, end or max_tokens|`picture`")
    texts = [(path, text) for path, text in leaves(said) if not path.endswith("/name")]
    texts += [(page.name, page.read_text("utf-8")) for page in sorted((LOCALES.parent / "web" / "docs").glob("*.md"))]
    for file in sorted((LOCALES.parent / "workflows").glob("*.json")):
        workflow = json.loads(file.read_text("utf-8"))
        titles = [node.get("title") or "" for node in workflow["nodes"]] + [
            each["title"] for each in workflow["groups"]
        ]
        notes = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
        texts += [(file.name, text) for text in (*titles, *notes)]
    assert [path for path, text in texts if "picture" in kept.sub("", text).lower()] == []
