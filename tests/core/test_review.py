"""Redraws: a refused image is drawn again from another seed, the best one is kept, and its meta tells of all tries."""

from __future__ import annotations

import numpy as np
import pytest

from duogen_core.document import Document, Picture, Text
from duogen_core.document.pending import placeholder, with_planned_stop
from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.picture_sampling import picture_prompt, picture_seed, redraw_request, step_text
from duogen_core.pipeline import Callbacks, generate
from duogen_core.review import TRIES, Asked, Review, draw_reviewed, redraw_seed, try_name
from duogen_core.settings import Settings
from tests.core.tiny import random_components, request, scripted

BAD = {"shows": False, "wrong": "It is too dark."}
GOOD = {"shows": True, "same_cast": True, "wrong": ""}


class Scripted:
    """A critic that says these things one after another, and remembers what it was asked."""

    def __init__(self, *says: Review | DuoGenError) -> None:
        self.says, self.asked = list(says), []

    def review(self, asked: Asked) -> Review:
        self.asked.append(asked)
        says = self.says.pop(0)
        if isinstance(says, Exception):
            raise says
        return says


class Painting:
    """A painter whose images are plain: as bright as the number of the draw. It remembers seeds and documents."""

    name = "painting"

    def __init__(self, cancel_at: int | None = None) -> None:
        self.seeds, self.documents, self.cancel_at = [], [], cancel_at

    def draw(self, document, seed, on_step, cancelled, size):
        if len(self.seeds) == self.cancel_at:
            raise Cancelled
        self.seeds.append(seed)
        self.documents.append(document)
        return np.full((16, 16, 3), len(self.seeds), np.uint8)

    def clear(self):
        pass


def planned(*captions: str) -> Document:
    parts = [part for caption in captions for part in (Text(f"About {caption}."), placeholder((16, 16), caption))]
    return with_planned_stop(request("Draw it.").begin_turn("assistant", parts), "end")


def answer(critic, painter, *captions: str, redraws: int = 3, **callbacks) -> Document:
    watch = Callbacks(**callbacks)
    return generate(None, planned(*captions), Settings(seed=5), watch, painter=painter, critic=critic, redraws=redraws)


def test_a_refused_image_is_drawn_again_until_the_critic_is_content():
    critic, painter, tried = Scripted(Review(**BAD, score=0.3), Review(True, score=0.9)), Painting(), []
    document = answer(critic, painter, "a cat", on_try=lambda k, number, one: tried.append((k, number, one.review)))
    (picture,) = document.pictures
    assert painter.seeds == [5, redraw_seed(5, 1)] and redraw_seed(5, 1) != 5
    assert picture.pixels[0, 0, 0] == 2 and picture.meta["seed"] == redraw_seed(5, 1)
    first = try_name(Picture(np.full((16, 16, 3), 1, np.uint8)))
    assert picture.meta[TRIES] == [
        {"seed": 5, "score": 0.3, **BAD, "same_cast": True, "prompt": "", "image": first},
        {"seed": redraw_seed(5, 1), "score": 0.9, **GOOD, "prompt": "", "kept": True},
    ]
    assert [(k, number, review.shows) for k, number, review in tried] == [(0, 0, False), (0, 1, True)]
    assert document.generation["stop_reason"] == "end"


@pytest.mark.parametrize(("scores", "kept"), [((0.2, 0.7, 0.5), 2), ((0.5, 0.5, 0.5), 1), ((0.0, 0.0, 0.1), 3)])
def test_where_none_is_good_the_highest_score_is_kept_and_of_equals_the_first(scores, kept):
    painter = Painting()
    document = answer(Scripted(*(Review(**BAD, score=score) for score in scores)), painter, "a cat", redraws=2)
    assert len(painter.seeds) == 3 and document.pictures[0].pixels[0, 0, 0] == kept


def test_a_good_image_is_kept_before_a_higher_score():
    critic = Scripted(Review(True, same_cast=False, score=0.95), Review(True, score=0.6))
    assert answer(critic, Painting(), "a cat").pictures[0].pixels[0, 0, 0] == 2


def test_without_redraws_the_critic_only_says_what_it_thinks():
    document = answer(Scripted(Review(**BAD, score=0.1)), painter := Painting(), "a cat", redraws=0)
    assert painter.seeds == [5] and document.pictures[0].meta[TRIES][0]["wrong"] == BAD["wrong"]


def test_the_critic_sees_what_a_reader_sees():
    critic = Scripted(Review(True), Review(**BAD, prompt="a black dog"), Review(True))
    document = answer(critic, painter := Painting(), "a cat", "a dog")
    first, second, third = critic.asked
    assert (first.request, first.text, first.prompt, first.tried) == ("Draw it.", "About a cat.", "a cat", "")
    assert first.earlier == () and second.earlier == document.pictures[:1] and second.tried == ""
    assert (third.prompt, third.tried, third.picture.pixels[0, 0, 0]) == ("a dog", "a black dog", 3)
    assert painter.documents[2].last_turn.meta["caption"] == "a black dog", "the painter gets the better prompt"
    assert document.pictures[1].meta["caption"] == "a dog", "the answer keeps its own"
    assert document.pictures[1].meta[TRIES][1]["prompt"] == "a black dog"
    assert painter.seeds[1] == picture_seed(5, 1), "the first try is what is drawn without a critic"


def test_a_model_of_conversations_gets_a_short_one_with_the_better_prompt():
    first, last = (Picture(np.full((16, 16, 3), shade, np.uint8)) for shade in (1, 2))
    document = request("Draw it.").begin_turn("assistant", [Text("Here."), first]).begin_turn("user", [Text("On.")])
    document = document.begin_turn("assistant", [Text("One."), last, Text("Two.")])
    better = redraw_request(document, "Better.", 1, conversation=True)
    assert better.pictures == (last,) and [turn.text for turn in better.turns] == ["On.", "Better."]
    alone = redraw_request(document, "Better.", 3, conversation=True)
    assert alone.pictures == () and [turn.text for turn in alone.turns] == ["Better.", "Better."]
    other = redraw_request(document, "Better.", 1, conversation=False)
    assert other.turns[:3] == document.turns[:3] and picture_prompt(other) == "Better."
    assert step_text(other) == "Two.", "a painter of prompts sees the conversation as it is"


def test_the_answer_of_a_model_of_conversations_stays_as_it_was_written():
    class Says(Scripted):
        def review(self, asked):
            super().review(asked)
            return Review(bool(asked.tried), prompt="Step 1. A blue wall.")

    components = random_components()
    scripted(components, ("Step 1. A wall.", "picture"), ("Done.", "end"))
    critic = Says(*[Review(True)] * 2)
    answered = generate(components, request("How?"), Settings(steps=1, size=(64, 32)), critic=critic, redraws=2)
    assert answered.last_turn.parts[0].text == "Step 1. A wall.", "the answer stays as it was written"
    one, two = answered.pictures[0].meta[TRIES]
    assert answered.pictures[0].size == (64, 32)
    assert two["kept"] and two["prompt"] == "Step 1. A blue wall." and one["image"] != try_name(answered.pictures[0])


def test_a_critic_that_cannot_tell_costs_no_image():
    said = []
    document = answer(Scripted(DuoGenError("nobody there")), Painting(), "a cat", on_notice=said.append)
    assert document.pictures[0].meta[TRIES] == [{"seed": 5, "prompt": "", "kept": True}]
    assert len(said) == 1 and "nobody there" in said[0]


def test_cancel_keeps_the_best_of_what_was_drawn():
    critic, painter = Scripted(*[Review(**BAD, score=0.1)] * 2), Painting(cancel_at=2)
    document = answer(critic, painter, "a cat", "a dog")
    assert document.generation["stop_reason"] == "interrupted"
    finished, waiting = document.pictures
    assert finished.pixels[0, 0, 0] == 1 and len(finished.meta[TRIES]) == 2
    assert waiting.meta["pending"], "what was planned can go on later"


def test_cancel_in_the_first_try_leaves_the_place_pending():
    document = answer(Scripted(), Painting(cancel_at=0), "a cat")
    assert document.pictures[0].meta["pending"] and document.generation["stop_reason"] == "interrupted"


def test_too_many_redraws_are_refused():
    with pytest.raises(DuoGenError, match="between 0 and 100"):
        draw_reviewed(lambda *_: None, lambda picture, prompt: None, Scripted(), 101, 0)
