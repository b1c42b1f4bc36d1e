"""Texts and seeds that are given, as the viewer's Keep and Edit write them, stay; only what follows is made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import graphs
import pytest
from answers import saved_document
from server import Result, Server

PICTURES, EDITED = 3, "A wall of my own."
pytestmark = pytest.mark.slow


def ran(result: Result, stage: str) -> int:
    assert result.error is None, result.error
    return sum(node.endswith(f".{stage}") for node in result.ran)


def texts(document: Any) -> list[str]:
    return [part.text for part in document.last_turn.parts if hasattr(part, "text")]


def kept(document: Any, count: int) -> str:
    """As the viewer's Keep writes it."""
    pairs = zip(texts(document)[:count], document.last_turn.pictures, strict=False)
    return json.dumps({number: {"text": text, "seed": one.meta["seed"]} for number, (text, one) in enumerate(pairs, 1)})


def guide(random_model: Path, request: str, **inputs: Any) -> dict[str, Any]:
    return graphs.answer(random_model.name, request, prefix="given/answer", max_images=PICTURES, **inputs)


def test_kept_images_stay_under_another_seed(server: Server, random_model: Path):
    """Words are chosen by chance here, so that another seed would write others; what is kept is not drawn again."""
    graph = guide(random_model, "Keep two of three.", seed=40, temperature=1.0)
    old = saved_document(server, server.run(graph))
    graph["3"]["inputs"] |= {"seed": 41, "given": kept(old, 2)}
    again = server.run(graph)
    new = saved_document(server, again)
    assert new.last_turn.parts[:4] == old.last_turn.parts[:4] and new.pictures[2] != old.pictures[2]
    assert ran(again, "sample") == 1, "kept images were drawn again"
    graph["3"]["inputs"]["given"] = ""
    assert saved_document(server, server.run(graph)).pictures[0] != old.pictures[0]


@pytest.mark.parametrize("mode", ["as it goes", "plan first"])
def test_an_edited_text_goes_on_from_there(server: Server, random_model: Path, mode: str):
    graph = guide(random_model, f"Edit the second, {mode}.", seed=40, mode=mode)
    old = saved_document(server, server.run(graph))
    graph["3"]["inputs"]["given"] = json.dumps({2: {"text": EDITED, "edited": True}})
    again = server.run(graph)
    new = saved_document(server, again)
    assert texts(new)[:2] == [texts(old)[0], EDITED] and len(new.pictures) == PICTURES
    assert new.pictures[0] == old.pictures[0] and new.pictures[1] != old.pictures[1]
    assert ran(again, "sample") == PICTURES - 1, "the image before the edit was drawn again"
    assert new.pictures[1].meta["text"] == EDITED


def test_an_edited_end_draws_nothing(server: Server, random_model: Path):
    graph = guide(random_model, "Edit the end.", seed=40)
    graph["3"]["inputs"]["given"] = json.dumps({2: {"text": EDITED, "end": True}})
    first = server.run(graph)
    document = saved_document(server, first)
    assert (ran(first, "sample"), texts(document)[-1]) == (1, EDITED)
    assert document.generation["stop_reason"] == "end"
    graph["3"]["inputs"]["given"] = json.dumps({2: {"text": "Other words.", "end": True}})
    assert ran(server.run(graph), "sample") == 0


def test_given_in_the_loop(server: Server, random_model: Path):
    """Loop Open has the first, Loop Close the others; seeds that are what they were draw nothing again."""
    graph = graphs.loop(random_model.name, "Three in a loop.", prefix="given/loop", max_images=PICTURES)
    old = saved_document(server, server.run(graph))
    seeds = [picture.meta["seed"] for picture in old.pictures]
    graph["9"]["inputs"]["given"] = json.dumps({2: {"seed": seeds[1]}, 3: {"text": EDITED, "edited": True}})
    again = server.run(graph)
    new = saved_document(server, again)
    assert texts(new)[:3] == [*texts(old)[:2], EDITED] and new.pictures[:2] == old.pictures[:2]
    assert [node.count("next.") for node in again.ran if node.endswith("p.sample")] == [1, 2], "only 3, and the limit"

    graph["3"]["inputs"]["given"] = json.dumps({1: {"text": EDITED, "seed": 5}})
    first = saved_document(server, server.run(graph))
    assert (texts(first)[0], first.pictures[0].meta["seed"]) == (EDITED, 5)
    assert first.generation["seed"] == 7, "the seed of the answer is as it was"
    graph["9"]["inputs"]["given"] = json.dumps({1: {"seed": 5}})
    assert "give them there" in server.run(graph).error["exception_message"]


@pytest.mark.parametrize(
    "given", ["2: words", "[]", '{"0": {}}', '{"2": "words"}', '{"2": {"seed": -1}}', '{"2": {"text": 7}}',
              '{"2": {"html": "<b>"}}', '{"x": {}}', json.dumps({2: {"text": "w" * 20_001}}),
              '{"2": {"text": "w", "caption": "half a character: \\ud83c"}}'],
)  # fmt: skip
def test_what_cannot_be_given_is_refused(server: Server, random_model: Path, given: str):
    result = server.run(guide(random_model, "Refused.", seed=1, given=given))
    assert "What is given" in result.error["exception_message"] and "expected" in result.error["exception_message"]
