"""What a request wants: 200 requests in English, 40 in German, Spanish and Chinese, labelled by hand; hard ones.

The second half of each file was written before the code, and measured once before anything was changed for it: kind,
count and pictures were all right for 97 of 100, and for 20 of 20 in other languages.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from duogen_core.document import Document, Picture, Text
from duogen_core.planning.language import language_of, words_of
from duogen_core.planning.requests import Wish, wish_of

HERE = Path(__file__).parent
PICTURES = {"-": None, "yes": True, "no": False}


def labelled(name: str):
    for line in (HERE / name).read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            kind, count, pictures, *language, text = [
                part.strip() for part in line.split(" | ", 3 if "english" in name else 4)
            ]
            yield kind, count, PICTURES[pictures], (language or ["en"])[0], text


def count_of(wish: Wish) -> str:
    if wish.count is None and (wish.least or wish.most):
        return f"{wish.least or ''}..{wish.most or ''}"
    return str(wish.count or "-")


@pytest.mark.parametrize(
    ("name", "number"), [("requests_english.txt", 200), ("requests_other.txt", 40), ("requests_later.txt", 272)]
)
def test_kind_count_and_pictures_are_found(name, number):
    rows = list(labelled(name))
    assert len(rows) == number
    wrong = [
        (text, wish)
        for kind, count, pictures, _, text in rows
        if ((wish := wish_of(text)).kind, count_of(wish), wish.pictures) != (kind, count, pictures)
    ]
    assert len(wrong) <= 0.02 * number, wrong
    languages = [(text, wish_of(text).language) for *_, language, text in rows if wish_of(text).language != language]
    assert len(languages) <= 0.04 * number, languages


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("How do I paint a house with 4 windows?", "-"),
        ("A recipe for pancakes, for 2 people, ready in 30 minutes, with 3 eggs", "-"),
        ("Explain step 3 of making bread: how do I knead it?", "-"),
        ("Show me how to sew a button, one picture per step", "-"),
        ("Show me how to sew a button, one step at a time", "-"),
        ("How do I build stairs with 6 steps?", "-"),
        ("How do I hang three pictures in a row?", "-"),
        ("Tell me a story about the three little pigs", "-"),
        ("A picture for each of the four seasons: how does the garden change?", "4"),
        ("Show how to dress a doll, with a picture for each of the three outfits", "3"),
        ("How do I fold a hat? Steps: 5", "5"),
        ("How do I fold a hat in five (5) quick, easy steps?", "5"),
        ("I found a guide with 12 steps and it was too long. How do I fold a hat in 4 steps?", "4"),
        ("A story in three acts with five scenes", "5"),
        ("How do I fold a hat in no more than 6 steps?", "..6"),
        ("How do I fold a hat in fewer than 6 steps?", "..5"),
        ("How do I fold a hat? 3 or more steps", "3.."),
        ("How do I fold a hat in 4-6 steps?", "4..6"),
        ("How do I fold a hat in half a dozen steps?", "6"),
        ("How do I fold a hat in 200 steps?", "200"),
        ("Wie falte ich einen Hut? Höchstens 5 Schritte", "..5"),
        ("Ein vierteiliger Comic über einen Hund", "4"),
        ("¿Cómo doblo un sombrero en al menos 3 pasos?", "3.."),
        ("怎么折帽子？最多五步", "..5"),
        ("怎么做四个人吃的饭，30分钟", "-"),
    ],
)
def test_numbers_that_count_and_numbers_that_do_not(text, count):
    assert count_of(wish_of(text)) == count


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Who wrote the story of the three musketeers?", "plain"),
        ("What is a recipe?", "plain"),
        ("What's a good recipe for lentil soup?", "howto"),
        ('Translate "tell me a story" into German.', "plain"),
        ("Translate into French: How do I make a hat in 4 steps?", "plain"),
        ("How do I remove rust from a pan?", "howto"),
        ("How do I delete a row in SQL?", "plain"),
        ("Die Geschichte der Stadt Köln", "plain"),
        ("", "unsure"),
        ("?!", "unsure"),
        ("<script>alert(1)</script>", "unsure"),
    ],
)
def test_kinds_that_look_like_others(text, kind):
    assert wish_of(text).kind == kind


def test_a_document_asks_with_its_last_turn_of_the_user():
    guide = Document().begin_turn("system", [Text("Tell a story.")]).begin_turn("user", [Text("How do I fold a hat?")])
    assert wish_of(guide) == Wish("howto", None, None, "en")
    shorter = guide.begin_turn("assistant", [Text("Fold it.")]).begin_turn("user", [Text("Shorter please: 3 steps")])
    assert (wish_of(shorter).kind, wish_of(shorter).count) == ("howto", 3)
    assert wish_of(guide.begin_turn("user", [Text("Draw a cat.")])).kind == "unsure"
    assert wish_of(Document()) == Wish()


def test_an_edit_is_one_picture():
    picture = Picture(np.zeros((16, 16, 3), np.uint8))
    for text in ("make the roof blue", "Please remove the dog.", "Mach das Dach blau", "把屋顶改成蓝色"):
        wish = wish_of(Document().begin_turn("user", [picture, Text(text)]))
        assert (wish.kind, wish.count, wish.pictured) == ("unsure", 1, True), text
    asked = wish_of(Document().begin_turn("user", [picture, Text("How do I build this, in 4 steps?")]))
    assert (asked.kind, asked.count) == ("howto", 4)


def test_whether_pictures_are_due():
    cases = {
        "How do I fold a hat?": True,
        "How do I fold a hat? Only text, please.": False,
        "What is the capital of France?": False,
        "What is the capital of France? With a picture, please.": True,
        "Draw a cat on a roof.": True,
        "paper boats": None,
    }
    assert {text: wish_of(text).pictured for text in cases} == cases


def test_long_and_hostile_requests_end():
    for piece in ("how ", "a picture of ", "step by step ", "1 2 3 4 ", '"', "tell " * 20, "(" * 50, "four "):
        wish_of(piece * 20_000)
    long = "I like hats. " * 4000 + "How do I fold one in 4 steps?"
    assert (wish_of(long).kind, wish_of(long).count) == ("howto", 4)


def test_languages_and_words():
    texts = {
        "Comment plier un bateau en papier ?": "fr",
        "Hoe vouw ik een papieren boot?": "nl",
        "Как сложить кораблик из бумаги?": "ru",
        "紙の船の折り方を教えてください": "ja",
        "종이배를 어떻게 접나요?": "ko",
        "Receita de bolo de cenoura, por favor": "pt",
        "Come si fa il tiramisù?": "it",
        "Tiramisu": "",
    }
    assert {text: language_of(text) for text in texts} == texts
    assert words_of("Don’t  fold 折纸 it") == ["don't", "fold", "折", "纸", "it"]


def test_how_many_parts_may_come():
    cases = {
        "How do I fold a hat?": (3, 8),
        "How do I fold a hat in 2 steps?": (2, 2),
        "How do I fold a hat in at most 2 steps?": (2, 2),
        "How do I fold a hat in at most 5 steps?": (3, 5),
        "How do I fold a hat in at least 10 steps?": (10, 10),
        "How do I fold a hat in 9 to 12 steps?": (9, 12),
    }
    assert {text: wish_of(text).parts(3, 8) for text in cases} == cases
