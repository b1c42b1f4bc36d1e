"""Reading a page as passages and pictures, and putting pictures after the text they show."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from duogen_core.data.dialogues.draft import (
    Draft,
    join,
    paragraphs,
    read_draft,
)
from duogen_core.data.dialogues.placement import Clue, clue_of, fit, place, place_by_model
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.text import words_of
from duogen_core.document import (
    Document,
    Picture,
    Text,
    Turn,
)
from duogen_core.llm.client import Client, Endpoint
from tests.core.dialogue_pages import STEPS, page
from tests.core.endpoint_server import QUICK, endpoint_server
from tests.core.scripted_writer import Writer

RULES = load_preset("dialogues")["place"]
PIXELS = np.zeros((4, 4, 3), np.uint8)


def draft_of(*parts: str | Picture, title: str = "Title") -> Draft:
    made = tuple(Text(part) if isinstance(part, str) else part for part in parts)
    return read_draft(Document((Turn("user", (Text(title),)), Turn("assistant", made))))


def placed(draft: Draft, **rules) -> tuple[int, ...]:
    return place(draft, [clue_of(picture) for picture in draft.pictures], {**RULES, **rules}).places


def right(draft: Draft) -> tuple[int, ...]:
    """After which step each picture belongs."""
    names = [alt for _, _, alt in STEPS]
    return tuple(names.index(picture.meta["alt"]) + 1 for picture in draft.pictures)


def test_a_page_becomes_passages_with_their_headings():
    found = draft_of(
        "# Bread\n\n## Dough\n\nMix flour and water for ten minutes.\n\n1. Wait an hour.\n2. Fold it.",
        Picture(PIXELS),
        "Baking\n\nPut it into the oven.\n\n```\nheat 220\n\nwait 40\n```",
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n\n## End",
    )
    assert found.passages == (
        "# Bread\n\n## Dough\n\nMix flour and water for ten minutes.",
        "1. Wait an hour.",
        "2. Fold it.",
        "Baking\n\nPut it into the oven.",
        "```\nheat 220\n\nwait 40\n```",
        "| a | b |\n| --- | --- |\n| 1 | 2 |",
        "## End",
    )
    assert found.places == (3,) and found.title == "Title"
    assert paragraphs(join(found.passages)) == paragraphs(found.text)
    assert "1. Wait an hour.\n2. Fold it." in found.text and "minutes.\n\n1. Wait" in found.text


def test_captions_go_with_their_picture():
    picture = Picture(PIXELS, {"caption": "Figure 3. The red valve closed"})
    found = draft_of("Turn the valve.\n\nFigure 3. The red valve", picture, "Closed\n\nNow water flows out of it.")
    assert found.passages == ("Turn the valve.", "Now water flows out of it.") and found.places == (1,)
    other = draft_of("The red valve closed\n\nTurn the valve.", picture)
    assert other.passages == ("The red valve closed\n\nTurn the valve.",), "only beside the picture is it its caption"


def test_under_a_heading_a_picture_belongs_to_the_text_to_come():
    found = draft_of("Before it.\n\n## The valve", Picture(PIXELS), "Turn the valve to the left.")
    assert found.passages == ("Before it.", "## The valve\n\nTurn the valve to the left.") and found.places == (2,)


@pytest.mark.parametrize("order", [(0, 0, 0, 0), (4, 4, 4, 4), (4, 3, 2, 1), (2, 1, 4, 3), (3, 3, 1, 1)])
def test_pictures_find_their_text(order):
    draft = read_draft(page(places=order))
    assert placed(draft) == right(draft)


def test_a_page_in_order_is_left_alone():
    found = place(read_draft(page()), [Clue("the last clamps"), Clue(""), Clue("red"), Clue("")], RULES)
    assert not found.trusted, "two clues that both point elsewhere are evidence against the page's places"
    good = read_draft(page())
    wrong = replace(good.pictures[1], meta={"alt": "Turn by hand"})  # a weak clue, half to each of two others
    draft = replace(good, pictures=(good.pictures[0], wrong, *good.pictures[2:]))
    assert placed(draft) == (1, 2, 3, 4)
    assert placed(draft, trust=2.0)[1] in (1, 4)
    early = read_draft(page(places=(0, 1, 2, 3)))
    assert place(early, [clue_of(each) for each in early.pictures], RULES).trusted
    assert placed(early) == (1, 2, 3, 4), "before its text is moved to after it"


def test_order_is_kept_where_that_costs_nothing():
    """The second picture says nothing; between its neighbours it stands right, wherever the page had it."""
    draft = read_draft(page(places=(4, 4, 4, 4)))
    silent = [replace(draft.pictures[0], meta={}) if i == 1 else each for i, each in enumerate(draft.pictures)]
    found = place(replace(draft, pictures=tuple(silent)), [clue_of(each) for each in silent], RULES)
    assert found.in_order and found.places[0] == 1 and found.places[1] in (2, 3) and found.places[2:] == (3, 4)
    turned = read_draft(page(places=(4, 3, 2, 1)))
    assert not place(turned, [clue_of(each) for each in turned.pictures], RULES).in_order


def test_what_is_read_in_a_picture_is_a_clue():
    clues = [Clue("", seen="clamps fasten"), Clue("", seen="Cartridge 4711 rinse"), Clue(""), Clue("")]
    draft = read_draft(page(places=(1, 1, 2, 2)))
    fits = fit(draft, clues, RULES)
    assert fits[0].index(max(fits[0])) == 3 and fits[1].index(max(fits[1])) == 2
    assert fits[2] == [0.0] * 4


def test_shuffled_pictures_of_many_pages_go_back():
    rng = random.Random(5)
    for _ in range(30):
        draft = read_draft(page(places=tuple(rng.randint(0, 4) for _ in STEPS)))
        assert placed(draft, trust=2.0) == right(draft)


def requested(title: str, first: str) -> Draft:
    alts = ("Drawing a boat: a green flag", "Drawing a boat: a red hull")
    text = f"{first}\n\nStart with a red hull at the bottom.\n\nNow add a green flag above it all."
    return draft_of(text, *(Picture(PIXELS, {"alt": alt}) for alt in alts), title=title)


def test_an_introduction_that_repeats_the_request_takes_no_pictures():
    request = "Show me how to draw a boat with a red hull and a green flag."
    draft = requested(request, "A red hull and a green flag make a boat worth drawing: show me yours.")
    assert placed(draft, trust=2.0) == (3, 2)
    assert placed(draft, trust=2.0, restated_weight=1.0) == (1, 1), "its words would be as good a place as the steps'"
    headed = replace(draft, passages=(f"# {request}\n\nBoats are easy.", *draft.passages[1:]))
    assert fit(headed, [Clue("a boat")], RULES) == fit(headed, [Clue("a boat")], {**RULES, "restated_weight": 1.0})


def test_a_name_is_no_request():
    draft = requested("Boat: red hull", "A boat with a red hull and a green flag.")
    clues = [clue_of(picture) for picture in draft.pictures]
    assert fit(draft, clues, RULES) == fit(draft, clues, {**RULES, "restated_weight": 0.0})
    assert fit(draft, clues, RULES) != fit(draft, clues, {**RULES, "restated_weight": 0.0, "request_words": 3})


@pytest.mark.parametrize("places", [(), (0,)])
def test_nothing_to_place(places):
    empty = Draft("", (), tuple(page(places=places).pictures), places)
    assert placed(empty) == places
    assert placed(read_draft(page(places=()))) == ()


def test_words():
    assert words_of("Selected the tiles, see Figure 3.2 and step 4!") == ["#3.2", "#4", "select", "til"]
    assert words_of("selects a tile") == ["select", "til"]
    assert words_of("Öffne das Ventil") == ["öffn", "das", "ventil"]


def test_a_model_places_behind_the_same_interface():
    draft = read_draft(page(places=(4, 4, 1, 1)))
    clues = [clue_of(picture) for picture in draft.pictures]
    bad = {"places": [{"image": 1, "passage": 2}] * 4}
    answers = iter([bad, {"places": [{"image": i, "passage": k} for i, k in ((2, 2), (1, 1), (4, 4), (3, 3))]}])
    writer = Writer(place=lambda _: next(answers))
    with endpoint_server(writer) as server:
        client = Client(Endpoint(server.url, "tiny", limits=QUICK))
        assert place_by_model(draft, clues, RULES, client).places == (1, 2, 3, 4)
        assert writer.steps == ["place", "place"]
        assert "The images are [1, 2, 3, 4], each once" in server.asked[1][2]["messages"][-1]["content"]
