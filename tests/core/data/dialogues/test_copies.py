"""Copies that come to stand side by side by placement: one of the two is dropped, and the log says which and why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from duogen_core.data.dialogues.draft import Draft
from duogen_core.data.dialogues.engine import DialogueEngine, DialogueResult
from duogen_core.data.dialogues.placement import copies
from duogen_core.data.runs.presets import load_preset
from duogen_core.document import Document, Picture, Turn
from duogen_core.llm.client import Client, Endpoint
from tests.core.dialogue_pages import STEPS, page, picture
from tests.core.web_pages import screenshot

RULES = load_preset("dialogues")["duplicate"]
NO_MODEL = ("describe.ask=false", "rewrite.ask=false", "dialogue.ask=false")
ALTS = [alt for _, _, alt in STEPS]


def smaller(original: Picture, **meta) -> Picture:
    image = Image.fromarray(original.pixels).resize((120, 90), Image.Resampling.LANCZOS)
    return Picture(np.asarray(image), meta)


def with_picture_at_the_end(added: Picture) -> Document:
    document = page()
    request, answer = document.turns
    return replace(document, turns=(request, Turn("assistant", (*answer.parts, added))))


def made(document: Document, *settings: str) -> DialogueResult:
    client = Client(Endpoint("http://x/v1", "none"))
    engine = DialogueEngine(load_preset("dialogues", "howto", [*NO_MODEL, *settings]), lambda: (client, client))
    return engine.document(document)


def kept(outcome: DialogueResult) -> list[str]:
    return [each.meta["alt"] for each in outcome.document.pictures]


def test_a_copy_from_elsewhere_goes_once_it_stands_beside_its_picture():
    document = with_picture_at_the_end(smaller(picture(1), alt=ALTS[1]))
    outcome = made(document, "place.trust=2")
    assert kept(outcome) == ALTS and len(document.pictures) == 5
    *others, last = outcome.log()["pictures"]
    assert last["rule"] == "duplicate" and last["to"] == 2 and last["value"] < RULES["max_part"]
    assert not any("rule" in each for each in others)
    assert kept(made(document, "place.trust=2", "duplicate.drop=false")) == [*ALTS[:2], ALTS[1], *ALTS[2:]]
    assert kept(made(document, "place.by=none")) == [*ALTS, ALTS[1]], "apart, they are no consecutive copies"


def test_the_same_bytes_count_as_a_copy_too():
    outcome = made(with_picture_at_the_end(picture(0)), "place.trust=2")
    assert kept(outcome) == ALTS and [each.get("rule") for each in outcome.pictures] == [None] * 4 + ["duplicate"]


def draft_of(*pictures: Picture, places: tuple[int, ...]) -> Draft:
    return Draft("Title", ("One.", "Two.", "Three."), pictures, places)


@pytest.mark.parametrize(
    ("scores", "dropped"), [((1.0, 0.2), {1}), ((0.2, 1.0), {0}), ((0.5, 0.5), {1})], ids=["first", "second", "equal"]
)
def test_the_one_that_fits_its_place_better_stays(scores, dropped):
    one = Picture(screenshot(160, 120, seed=1))
    assert set(copies(draft_of(one, smaller(one), places=(1, 1)), scores, RULES)) == dropped


def test_only_pictures_side_by_side_are_compared():
    one, other = (Picture(screenshot(160, 120, seed=seed)) for seed in (1, 2))
    three = (one, other, smaller(one))
    assert copies(draft_of(*three, places=(1, 1, 1)), (1.0,) * 3, RULES) == {}
    assert copies(draft_of(*three, places=(1, 3, 2)), (1.0,) * 3, RULES) == {}, "there is text between them"
    assert set(copies(draft_of(*three, places=(1, 3, 1)), (1.0,) * 3, RULES)) == {2}
    run = (one, smaller(one), smaller(one), other)
    assert set(copies(draft_of(*run, places=(1, 1, 1, 2)), (0.1, 0.2, 0.3, 0.0), RULES)) == {0, 1}


def test_copies_are_known_as_in_the_web_engine():
    assert {**load_preset("web").duplicate, "drop": True} == RULES
