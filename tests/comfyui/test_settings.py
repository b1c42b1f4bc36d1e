"""ComfyUI's settings of this pack: what the server does with them, and that no answer depends on them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import graphs
import pytest
from answers import saved_document
from server import PACK, Server


def test_each_setting_of_the_page_has_its_words():
    page = (PACK / "web" / "duogen" / "settings.js").read_text("utf-8")
    ids = set(re.findall(r'"(DuoGen\.\w+)"', page))
    assert ids >= {"DuoGen.Keys", "DuoGen.LivePreview", "DuoGen.Folder", "DuoGen.Language"}
    for locale in (PACK / "locales").iterdir():
        words = json.loads((locale / "settings.json").read_text("utf-8"))
        assert set(words) == {name.replace(".", "_") for name in ids}, locale
    plain = re.sub(r'"\s*\+\s*"', "", page)
    for words in json.loads((PACK / "locales" / "en" / "settings.json").read_text("utf-8")).values():
        assert f'"{words["name"]}"' in plain and f'"{words["tooltip"]}"' in plain, "not what the page says"


@pytest.mark.slow
def test_without_live_preview_nothing_is_made_for_it(server: Server, random_model: Path):
    """Neither pieces of text nor previews are sent; the answer is the same, and each finished image still appears."""
    seen: dict[bool, list[tuple[str, Any]]] = {True: [], False: []}
    answers = []
    try:
        for live in seen:
            server.post("/settings", {"DuoGen.LivePreview": live})
            graph = graphs.answer(random_model.name, "Live or not.", prefix=f"settings/{live}", max_images=1)
            graph["3"]["inputs"]["steps"] = 2 + live  # not what the other run has cached
            result = server.run(graph, watch=lambda kind, data, _, live=live: seen[live].append((kind, data)))
            assert result.error is None, result.error
            answers.append(saved_document(server, result))
    finally:
        server.post("/settings", {"DuoGen.LivePreview": True})
    kinds = {live: [kind for kind, _ in messages] for live, messages in seen.items()}
    assert "preview" in kinds[True] and "preview" not in kinds[False]
    phases = {
        live: [data["phase"] for kind, data in messages if kind == "duogen_progress"] for live, messages in seen.items()
    }
    assert phases[False].count("writing") < phases[True].count("writing")
    assert "drawing" in phases[False], "which image it is at is still told"
    finished = [
        data for kind, data in seen[False] if kind == "executed" and "duogen_document" in (data["output"] or {})
    ]
    assert finished, "no finished image was shown"
    assert answers[0].turns[-1].text == answers[1].turns[-1].text
