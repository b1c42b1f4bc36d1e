"""Planning: what a writer is told, that its reply streams part by part, and what is asked for again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from duogen_core.document import Document, Picture, Text
from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.llm.answers import Answer
from duogen_core.llm.client import Client, Endpoint
from duogen_core.planning.plan import MAX_PARTS, Part, PlannedPicture, token_budget
from duogen_core.planning.requests import Wish, wish_of
from duogen_core.planning.writing import plan_messages, plan_prompt, what_is_wanted, write_plan, write_plans
from tests.core.tiny import request

BOAT = request("How do I fold a paper boat?")
STEPS = [
    ("Fold the sheet in half.", "A white paper sheet folded in half on a wooden table."),
    ("Fold the corners to the middle.", "The white paper with two corners folded into a pointed roof."),
    ("Pull the boat open.", "A finished white paper boat that stands on the table."),
]


def plan(*steps, **more) -> str:
    parts = [{"text": text, "picture": picture} for text, picture in steps]
    return json.dumps({"title": "A paper boat", "cast": [{"name": "paper", "looks": "white"}], "parts": parts} | more)


class Model:
    """Answers in turn; what it was asked stands in `asked`. Pieces of seven characters are streamed."""

    sees = False

    def __init__(self, *replies: str, finish: str = "stop") -> None:
        self.replies, self.finish, self.asked = list(replies), finish, []

    def __call__(self, body, on_text=None, cancelled=None):
        return self.many([body], on_text and (lambda _, piece: on_text(piece)), cancelled)[0]

    def many(self, bodies, on_text=None, cancelled=None):
        answers = []
        for row, body in enumerate(bodies):
            self.asked.append(body)
            text = self.replies[min(len(self.asked), len(self.replies)) - 1]
            for start in range(0, len(text), 7):
                if cancelled and cancelled():
                    raise Cancelled("stopped")
                if on_text:
                    on_text(row, text[start : start + 7])
            answers.append(Answer(text, self.finish, 5, 5, True))
        return answers


def client(model: Model) -> Client:
    return Client(Endpoint("http://127.0.0.1:1/v1", "m", attempts=1, answers=2), transport=model)


def test_a_plan_is_asked_for_in_the_schema_of_its_request():
    model = Model(plan(*STEPS))
    written = write_plan(client(model), BOAT, style="ink drawing")
    assert [(part.text, part.picture.shows) for part in written.parts] == STEPS
    assert written.style == "ink drawing" and written.cast[0].name == "paper"
    (body,) = model.asked
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["parts"]["minItems"] == 3 and body["reply_penalty"] == 1.1
    assert body["max_tokens"] == token_budget(wish_of(BOAT))
    system, asked = body["messages"]
    assert "JSON object" in system["content"] and "style" not in system["content"]
    assert "$schema" not in system["content"] and "minItems" not in system["content"]  # the grammar says it
    assert asked["content"].startswith("How do I fold a paper boat?") and "a guide of 3 to 6 parts" in asked["content"]


def test_parts_are_told_as_they_come():
    told, text = [], []
    written = write_plan(
        client(Model(plan(*STEPS))), BOAT, on_part=lambda *each: told.append(each), on_text=text.append
    )
    assert told == list(enumerate(written.parts)) and "".join(text) == plan(*STEPS)


def test_a_plan_of_the_wrong_count_is_asked_for_once_more_and_the_better_one_counts():
    asked = request("How do I fold a paper boat in 3 steps?")
    model, told = Model(plan(*STEPS[:2]), plan(*STEPS)), []
    written = write_plan(client(model), asked, on_part=lambda index, part: told.append(index))
    assert len(written.parts) == 3 and told == [0, 1, 0, 1, 2]
    assert "asks for 3" in model.asked[1]["messages"][-1]["content"]
    worse = Model(plan(*STEPS[:2]), plan(("Fold it all.", None)))
    assert len(write_plan(client(worse), asked).parts) == 2  # neither is right: the one with less wrong


def test_a_reply_that_is_no_plan_is_asked_for_once_more_then_told():
    model = Model("I cannot do that.", plan(*STEPS))
    assert len(write_plan(client(model), BOAT).parts) == 3
    assert "not JSON" in model.asked[1]["messages"][-1]["content"]
    with pytest.raises(DuoGenError, match="The model m gave no usable answer in 2 attempts: The answer is not JSON"):
        write_plan(client(Model("I cannot do that.")), BOAT)


def test_of_a_reply_that_was_cut_off_the_finished_parts_count():
    cut = plan(*STEPS)[:-60]
    written = write_plan(client(Model(cut, finish="length")), BOAT)
    assert [part.text for part in written.parts] == [text for text, _ in STEPS[:2]]


def test_a_caption_that_is_no_good_is_asked_for_alone():
    bad = [*STEPS[:2], (STEPS[2][0], "It is open.")]
    model, notices = Model(plan(*bad), '{"picture": "A white paper boat on a blue pond. And the"}'), []
    written = write_plan(client(model), BOAT, on_notice=notices.append)
    assert written.parts[2].picture.shows == "A white paper boat on a blue pond."
    assert notices == ["The writer is asked for one description of images alone."]  # nothing else shows that it works
    asked = model.asked[1]["messages"][-1]["content"]
    assert "It is open." in asked and "Pull the boat open." in asked and STEPS[1][1] in asked
    # Another one that is no better does not replace it; it is asked for once more, by chance, of the text alone.
    model = Model(plan(*bad), '{"picture": "It is it."}')
    assert write_plan(client(model), BOAT).parts[2].picture.shows == "It is open."
    assert len(model.asked) == 3 and model.asked[2]["temperature"] == 0.7
    assert "It is open." not in model.asked[2]["messages"][-1]["content"]
    model = Model(plan(*bad), "no", "no", '{"picture": "A white boat lies on a blue pond."}')
    assert write_plan(client(model), BOAT).parts[2].picture.shows == "A white boat lies on a blue pond."
    assert write_plan(client(Model(plan(*bad), "no")), BOAT).parts[2].picture.shows == "It is open."


def test_several_plans_are_one_batch():
    model = Model(plan(*STEPS), "nothing", plan(*STEPS), "nothing")
    first, second, third = write_plans(client(model), [BOAT] * 3, batch=3)
    assert len(first.parts) == len(third.parts) == 3 and isinstance(second, DuoGenError)


def test_cancelled_while_it_is_written():
    seen = []
    with pytest.raises(Cancelled):
        write_plan(client(Model(plan(*STEPS))), BOAT, on_part=lambda *each: seen.append(each), cancelled=lambda: seen)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("wish", "line"),
    [
        (Wish("howto", 4, None, "de"), "Write a guide of exactly 4 parts, one step in each, each with a text and a "
         "picture, in German."),
        (Wish("story", 1), "Write a story of exactly 1 part, one scene in each, each with a text and a picture, in the "
         "language of the request."),
        (Wish("plain", language="en"), "This needs no pictures: answer in 1 to 3 short texts, in English."),
        (Wish("unsure", language="en"), "If this is a plain question, kind is plain: answer in 1 to 3 short texts "
         "without pictures. Otherwise kind is illustrated: write an answer of 3 to 6 parts, each with a text and a "
         "picture. Write in English."),
    ],
)  # fmt: skip
def test_what_code_found_is_one_line(wish, line):
    assert what_is_wanted(wish) == line


def test_the_conversation_goes_along_and_pictures_to_those_who_see():
    pixels = np.zeros((8, 8, 3), np.uint8)
    document = Document().begin_turn("user", [Picture(pixels), Text("Draw this <|im_end|> fox.")])
    document = document.begin_turn("assistant", [Text("Here."), Picture(pixels, {"caption": "a red fox"})])
    document = document.begin_turn("user", [Text("Tell its story in 3 scenes.")])
    blind = plan_messages(document, wish_of(document), sees=False)
    assert [message["role"] for message in blind] == ["system", "user", "assistant", "user"]
    assert blind[1]["content"].startswith("[a picture that you cannot see]") and "<|im_end|>" not in str(blind)
    assert blind[2]["content"] == "Here.[a picture: a red fox]"
    seeing = plan_messages(document, wish_of(document), sees=True)
    assert [part["type"] for part in seeing[1]["content"]] == ["image_url", "text"]
    notices = []
    write_plan(client(Model(plan(*STEPS))), document, on_notice=notices.append)
    assert notices == ["The writer does not see images; it is told their captions, where they have any."]


def test_one_text_for_writers_known_by_text_alone():
    prompt = plan_prompt(BOAT)
    assert prompt.startswith("You plan answers") and "User: How do I fold a paper boat?" in prompt


def test_a_document_without_a_request():
    with pytest.raises(DuoGenError, match="no turn|empty"):
        write_plan(client(Model("")), Document())


def test_a_plain_answer_has_no_pictures():
    model = Model(json.dumps({"title": "Paris", "parts": [{"text": "Paris is the capital of France."}]}))
    written = write_plan(client(model), request("What is the capital of France?"))
    assert written.parts == (Part("Paris is the capital of France."),)
    assert "picture" not in str(model.asked[0]["response_format"])


def test_sizes_stay_when_sentences_are_cut():
    steps = [{"text": text, "picture": {"shows": f"{shows} And the", "size": [128, 64]}} for text, shows in STEPS]
    written = write_plan(client(Model(json.dumps({"parts": steps}))), BOAT)
    assert written.parts[0].picture == PlannedPicture(STEPS[0][1], None, (128, 64))


@pytest.mark.parametrize(
    ("shows", "kept"),
    [
        ("A picture of a fox on a hill.", "A fox on a hill."),
        ("The image shows two eggs in a pan.", "Two eggs in a pan."),
        ("A close-up photo of a knot.", "A close-up photo of a knot."),
        ("Das Bild zeigt ein rotes Haus am See.", "Ein rotes Haus am See."),
        ("Una imagen de una casa roja.", "Una casa roja."),
        ("A picture frame of wood on a wall.", "A picture frame of wood on a wall."),
    ],
)
def test_that_a_picture_is_one_goes_without_saying(shows, kept):
    steps = [*STEPS[:2], ("3. Pull it open.", shows)]
    part = write_plan(client(Model(plan(*steps), "no")), BOAT).parts[2]
    assert part.picture.shows == kept and part.text == "Pull it open."


def test_a_part_is_no_member_of_the_cast():
    cast = [{"name": "Step 1", "looks": "a sheet"}, {"name": "Paper", "looks": "white"}]
    written = write_plan(client(Model(plan(*STEPS, cast=cast))), BOAT)
    assert [member.name for member in written.cast] == ["Paper"]


def test_a_last_sentence_without_a_full_stop_stays():
    steps = [("Mix the flour. Bake it for 20 min", "A bowl of flour. Behind it stands an oven"), *STEPS[1:]]
    part = write_plan(client(Model(plan(*steps), "no")), BOAT).parts[0]
    assert (part.text, part.picture.shows) == steps[0]


def test_half_a_character_pair_is_no_reason_to_lose_a_plan():
    bad = [*STEPS[:2], (STEPS[2][0], "It is open.")]
    written = write_plan(client(Model(plan(*bad), '{"picture": "A white paper boat \\ud83d on a pond."}')), BOAT)
    assert written.parts[2].picture.shows == "A white paper boat ? on a pond."


def test_more_parts_than_a_plan_may_have_are_told_once_and_not_asked_for_again():
    asked, notices = request("How do I fold a paper boat in 150 steps?"), []
    steps = [(f"Fold the sheet at mark {n}.", f"A white sheet with a fold at mark {n}.") for n in range(MAX_PARTS)]
    model = Model(plan(*steps), "no")
    written = write_plan(client(model), asked, on_notice=notices.append)
    assert len(written.parts) == MAX_PARTS and "exactly 100 parts" in model.asked[0]["messages"][-1]["content"]
    told = "The request asks for 150 parts; a plan has at most 100, so these are planned."
    assert notices[0] == told and notices.count(told) == 1
    assert not any("asks for" in str(body["messages"][2:]) for body in model.asked)


def test_an_answer_that_ended_too_early_is_told():
    notices = []
    longer = [*STEPS, ("Let the boat swim.", "A white paper boat that swims on a blue pond.")]
    written = write_plan(client(Model(plan(*longer)[:-20], finish="length")), BOAT, on_notice=notices.append)
    assert len(written.parts) == 3
    assert notices == ["The writer's answer ended too early; kept are its whole parts: 3."]
    notices.clear()
    write_plan(client(Model(plan(*STEPS))), BOAT, on_notice=notices.append)
    assert notices == []


def test_a_long_conversation_begins_with_the_user():
    document = Document()
    for number in range(5):
        document = document.begin_turn("user", [Text(f"Question {number}?")])
        document = document.begin_turn("assistant", [Text("Yes.")])
    document = document.begin_turn("user", [Text("Tell a story in 3 scenes.")])
    roles = [message["role"] for message in plan_messages(document, wish_of(document), sees=False)]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]


def test_a_writer_that_may_see_is_not_told_that_it_does_not():
    document = Document().begin_turn("user", [Picture(np.zeros((8, 8, 3), np.uint8)), Text("A story of it.")])
    assert "[a picture]" in plan_prompt(document) and "cannot see" not in plan_prompt(document)


@pytest.mark.parametrize(
    ("title", "kept"), [("A few words.", ""), ("A Paper Boat", "A Paper Boat"), ("Parts", "Parts")]
)
def test_a_title_out_of_the_instructions_is_none(title, kept):
    assert write_plan(client(Model(plan(*STEPS, title=title))), BOAT).title == kept
