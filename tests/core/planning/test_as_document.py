"""A plan as a Document: placeholders in their places, what painters read, and that the pipeline draws it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from duogen_core.document import Document, Picture, Text
from duogen_core.document.pending import before_next_picture, is_pending, looked_at, pending_picture, planned_size
from duogen_core.document.reading import load_document
from duogen_core.document.store import DocumentWriter
from duogen_core.errors import DuoGenError
from duogen_core.mllm.base import Continuation
from duogen_core.mllm.prompted import Prompted
from duogen_core.picture_sampling import picture_prompt
from duogen_core.pipeline import Callbacks, generate
from duogen_core.planning.as_document import plan_of, planned, with_plan
from duogen_core.planning.plan import Member, Part, Plan, PlannedPicture, Reference
from duogen_core.review import Review
from duogen_core.settings import Settings
from tests.core.planning.test_plan import STORY, part
from tests.core.tiny import drawing, random_components, request, scripted

ASKED = request("Tell a story of a fox.")


class Painter:
    """Paints the number of the picture as a colour, and remembers what it was given."""

    name = "scripted"

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def draw(self, document, seed, on_step, cancelled, due):
        self.asked.append((picture_prompt(document), len(document.pictures), seed, planned_size(due)))
        return np.full((8, 8, 3), len(self.asked), np.uint8)

    def clear(self) -> None:
        pass


def captions(plan: Plan, painter: str, request: Document = ASKED, **how) -> list[str]:
    return [picture.meta.get("caption", "") for picture in planned(request, plan, painter, **how).last_turn.pictures]


def test_texts_and_placeholders_stand_in_order():
    document = planned(ASKED, STORY, size=(32, 16))
    parts = document.last_turn.parts
    assert [type(part).__name__ for part in parts] == ["Text", "Picture"] * 4 + ["Text"]
    assert all(is_pending(picture) for picture in document.pictures)
    assert [picture.size for picture in document.pictures] == [(32, 16)] * 3 + [(64, 48)]
    assert [picture.meta["looks_at"] for picture in document.pictures] == [[], [1], [1, 2], [2]]
    assert document.turns[0] == ASKED.turns[0] and plan_of(document) == STORY


def test_texts_of_parts_without_a_picture_are_parted():
    document = planned(ASKED, Plan("", (Part("One."), Part("Two."))))
    assert document.text == "One.\n\nTwo."


def test_words_alone_say_everything_every_time():
    one, two, three, _ = captions(STORY, "text")
    assert one == "The Fox in a meadow. the Fox: a small red fox with a green hat. watercolour."
    assert two == "A meadow in the wind. watercolour."
    assert three == "The Fox in a forest. the Fox: a small red fox with a green hat. watercolour."


def test_models_that_edit_are_told_by_the_numbers_of_what_they_see():
    one, two, three, four = captions(STORY, "edit")
    assert one == "The Fox in a meadow. the Fox: a small red fox with a green hat. watercolour."
    assert two == "Continue from image 1: A meadow in the wind. Keep what else is in image 1 the same. watercolour."
    assert three == "Continue from image 2: The Fox in a forest. Keep the Fox as in image 1. watercolour."
    assert four == "New scene: The fox's hat on a branch, wet. the Fox: a small red fox with a green hat. watercolour."


def test_the_users_pictures_come_first():
    asked = Document().begin_turn("user", [Picture(np.zeros((8, 8, 3), np.uint8)), Text("A story of this fox.")])
    one, two, three, _ = captions(STORY, "edit", asked)
    assert one.startswith("Use image 1 as given by the user. The Fox in a meadow.")
    assert two.startswith("Continue from image 2:") and three.startswith("Continue from image 3:")
    looks = [picture.meta["looks_at"] for picture in planned(asked, STORY).last_turn.pictures]
    assert looks == [[1], [1, 2], [1, 2, 3], [1, 3]]
    # A painter that takes one picture sees the user's first, then the state before.
    looks = [picture.meta["looks_at"] for picture in planned(asked, STORY, most=1).last_turn.pictures]
    assert looks == [[1], [2], [3], [3]]


def test_a_painter_that_takes_one_picture_sees_the_state_before():
    document = planned(ASKED, STORY, most=1)
    assert [picture.meta["looks_at"] for picture in document.last_turn.pictures] == [[], [1], [2], [2]]
    assert "image 2" not in captions(STORY, "edit", most=1)[2]


def test_duogens_own_models_read_the_text():
    assert captions(STORY, "conversation") == [""] * 4
    assert captions(Plan("", (part("", "A boat."),)), "conversation") == ["A boat."]


def test_an_unknown_kind_of_painter():
    with pytest.raises(DuoGenError, match="no kind of painter 'oil'; choose one of: edit, text, conversation"):
        planned(ASKED, STORY, "oil")


def test_any_painter_draws_a_plan_and_no_model_writes():
    painter, kept = Painter(), []
    answer = generate(None, planned(ASKED, STORY), Settings(seed=7, max_images=9), Callbacks(on_document=kept.append),
                      painter=painter)  # fmt: skip
    assert [asked[0] for asked in painter.asked] == captions(STORY, "edit")
    assert [asked[1] for asked in painter.asked] == [0, 1, 2, 3]  # each sees those before it, and no placeholder
    assert painter.asked[3][3] == (64, 48) and painter.asked[0][3] is None
    assert [picture.pixels[0, 0, 0] for picture in answer.pictures] == [1, 2, 3, 4]
    assert answer.generation["model"] == "scripted" and answer.generation["stop_reason"] == "end"
    assert answer.pictures[2].meta["looks_at"] == [1, 2] and answer.pictures[2].meta["text"] == "It searched."
    assert answer.last_turn.parts[-1] == Text("The end.") and plan_of(answer) == STORY
    assert [len([p for p in d.pictures if not is_pending(p)]) for d in kept] == [1, 2, 3, 4, 4]


def test_our_own_models_draw_a_plan_as_they_draw_an_answer():
    texts = [(text, "picture") for text in ("A wall.", "A roof.")]
    components = drawing(random_components())
    scripted(components, *texts, ("Done.", "end"))
    written = generate(components, ASKED, Settings(seed=3, steps=2))
    plan = Plan("", (part("A wall.", "a wall"), part("A roof.", "a roof"), part("Done.")))
    drawn = generate(
        random_components(), planned(ASKED, plan, "conversation", size=(32, 32)), Settings(seed=3, steps=2)
    )
    for ours, theirs in zip(drawn.pictures, written.pictures, strict=True):
        assert np.abs(ours.pixels.astype(int) - theirs.pixels).max() <= 1
    assert drawn.text == written.text and drawn.generation == written.generation


def test_a_plan_that_was_stopped_goes_on_from_disk(tmp_path):
    painter = Painter()
    watch = Callbacks(on_picture=lambda k, _: k == 1 and setattr(painter, "draw", stop))
    stopped = generate(None, planned(ASKED, STORY), Settings(seed=7), watch, painter=painter)
    assert stopped.generation["stop_reason"] == "interrupted" and pending_picture(stopped) is not None
    DocumentWriter(tmp_path / "answer").update(stopped)
    again = load_document(tmp_path / "answer")
    assert len(before_next_picture(again).pictures) == 2
    rest = Painter()
    whole = generate(None, again, Settings(seed=7), painter=rest)
    assert [asked[1] for asked in rest.asked] == [2, 3] and pending_picture(whole) is None
    unstopped = Painter()
    generate(None, planned(ASKED, STORY), Settings(seed=7), painter=unstopped)
    assert rest.asked == unstopped.asked[2:]  # the same seeds, too
    assert whole.generation["stop_reason"] == "end" and whole.text.endswith("The end.")


def stop(*_):
    from duogen_core.errors import Cancelled

    raise Cancelled("stopped")


def test_a_limit_of_images_cuts_the_plan_there():
    answer = generate(None, planned(ASKED, STORY), Settings(max_images=2), painter=Painter())
    assert len(answer.pictures) == 2 and answer.generation["stop_reason"] == "max_images"
    assert answer.text.endswith("It searched.")


def test_without_a_plan_a_painter_alone_cannot_answer():
    with pytest.raises(DuoGenError, match="a painter alone cannot write"):
        generate(None, ASKED, painter=Painter())


def test_another_plan_keeps_what_was_drawn_before_the_first_change():
    answer = generate(None, planned(ASKED, STORY), Settings(), painter=Painter())
    changed = STORY.with_part(2, part("It searched long.", "The Fox at a river."))
    again = with_plan(answer, changed)
    assert [is_pending(picture) for picture in again.last_turn.pictures] == [False, False, True, True]
    assert again.pictures[1] == answer.pictures[1] and "It searched long." in again.text and plan_of(again) == changed
    same = with_plan(answer, replace(STORY, parts=(*STORY.parts[:-1], part("Good night."))))
    assert not any(map(is_pending, same.pictures)) and same.text.endswith("Good night.")
    style = with_plan(answer, STORY.with_style("ink"))
    assert all(map(is_pending, style.last_turn.pictures))


def test_the_plan_of_an_answer_that_was_never_planned():
    document = ASKED.begin_turn("assistant", [Text("A wall.")])
    document = document.append(Picture(np.zeros((8, 8, 3), np.uint8), {"caption": "a grey wall"})).append(Text("Done."))
    assert plan_of(document) == Plan("", (part("A wall.", "a grey wall"), part("Done.")))
    with pytest.raises(DuoGenError, match="has no answer"):
        plan_of(ASKED)


def test_the_cast_is_told_once_it_is_in_view():
    plan = Plan("", (part("a", "The boat."), part("b", "The boat and the sail.")),
                (Member("boat", "red"), Member("sail", "white")))  # fmt: skip
    assert (
        captions(plan, "edit")[1]
        == "Continue from image 1: The boat and the sail. Keep boat as in image 1. sail: white."
    )


def test_a_picture_that_looks_at_none():
    plan = Plan("", (part("a", "The boat."), Part("b", PlannedPicture("The sea.", looks_at=()))))
    assert captions(plan, "edit")[1] == "The sea."
    assert Reference(1) not in (plan.pictures[1].looks_at or ())


# ------------------------------------------------------------ a writer whose markers are no good


def prompted(*script: tuple[str, str, str]):
    """Tiny components with a prompted writer of this script: text, stop, caption."""
    components = random_components()
    components.mllm.prompted = Prompted()
    texts = iter(script)

    def continue_(document, **how):
        text, stop, caption = next(texts)
        return Continuation(text, stop, 3, caption)

    components.mllm.continue_ = continue_
    return components


@pytest.mark.parametrize(
    ("script", "notice"),
    [
        ([("", "picture", "")], "asks for an image without saying what it shows. The answer is planned first."),
        ([("A wall.", "picture", "a wall"), ("", "picture", "a roof")], "asks for two images in a row"),
    ],
)
def test_markers_that_are_no_good_give_way_to_a_plan(script, notice):
    asked, notices, painter = [], [], Painter()

    def replan(document):
        asked.append(document)
        return planned(document, STORY, "text")

    answer = generate(prompted(*script), ASKED, Settings(), Callbacks(on_notice=notices.append), painter=painter,
                      replan=replan)  # fmt: skip
    assert asked == [ASKED] and len(notices) == 1 and notice in notices[0]
    assert len(answer.pictures) == 4 and plan_of(answer) == STORY and answer.text.endswith("The end.")
    assert [asked[0] for asked in painter.asked][-4:] == captions(STORY, "text")


def test_without_a_planner_it_is_said_once_and_the_answer_goes_on():
    script = [("A wall.", "picture", ""), ("A roof.", "picture", ""), ("Done.", "end", "")]
    notices, painter = [], Painter()
    answer = generate(prompted(*script), ASKED, Settings(), Callbacks(on_notice=notices.append), painter=painter)
    assert len(notices) == 1 and "better answers when they plan first" in notices[0] and len(answer.pictures) == 2
    assert [asked[0] for asked in painter.asked] == ["A wall.", "A roof."]


def test_good_markers_and_trained_models_are_left_alone():
    script = [("A wall.", "picture", "a wall"), ("Done.", "end", "")]
    notices = []
    generate(prompted(*script), ASKED, Settings(), Callbacks(on_notice=notices.append), painter=Painter(),
             replan=lambda _: pytest.fail("there was no need"))  # fmt: skip
    components = random_components()
    scripted(components, ("", "picture"), ("", "picture"), ("", "end"))
    generate(components, ASKED, Settings(), Callbacks(on_notice=notices.append), painter=Painter())
    assert notices == []


def test_a_painter_that_takes_no_pictures_is_given_none():
    for asked in (ASKED, Document().begin_turn("user", [Picture(np.zeros((8, 8, 3), np.uint8)), Text("This fox.")])):
        document = planned(asked, STORY, "text", most=0)
        assert [picture.meta["looks_at"] for picture in document.last_turn.pictures] == [[]] * 4


def test_a_request_is_about_its_own_pictures_and_else_about_the_latest():
    def pictures(count):
        return [Picture(np.full((8, 8, 3), n, np.uint8)) for n in range(count)]

    earlier = request("Draw six.").begin_turn("assistant", [Text("Here."), *pictures(6)])
    own = earlier.begin_turn("user", [*pictures(1), Text("A story of this one.")])
    assert [p.meta["looks_at"] for p in planned(own, STORY).last_turn.pictures][:2] == [[7], [7, 8]]
    none = earlier.begin_turn("user", [Text("A story of that.")])
    assert [p.meta["looks_at"] for p in planned(none, STORY).last_turn.pictures][:2] == [[4, 5, 6], [5, 6, 7]]


def test_earlier_pictures_that_a_plan_names_itself_are_all_seen():
    own = tuple(Reference(number) for number in (1, 2, 3, 4))
    plan = Plan("", (*(part(f"{n}.", f"Thing {n}.") for n in range(4)), Part("", PlannedPicture("All.", own))))
    assert planned(ASKED, plan).pictures[4].meta["looks_at"] == [1, 2, 3, 4]
    assert planned(ASKED, plan, most=2).pictures[4].meta["looks_at"] == [1, 2]


def test_a_changed_text_is_drawn_again_by_a_painter_that_reads_it():
    answer = generate(None, planned(ASKED, STORY, "conversation"), Settings(), painter=Painter())
    again = with_plan(answer, STORY.with_part(1, part("The rain came.", "A meadow in the wind.")))
    assert [is_pending(picture) for picture in again.last_turn.pictures] == [False, True, True, True]
    assert not any(map(is_pending, with_plan(answer, STORY).last_turn.pictures))


@pytest.mark.parametrize(
    "meta", [{"looks_at": ["1", 0, -1, None, 99, 1.0]}, {"looks_at": 7}, {"size": "ab"}, {"size": [1, 10**9]}]
)
def test_what_a_file_says_of_a_picture_and_makes_no_sense_counts_as_nothing(meta):
    turn = [Text("One."), Picture(np.zeros((8, 8, 3), np.uint8), {"pending": True, "caption": "a", **meta})]
    document = replace(ASKED.begin_turn("assistant", turn))
    due = pending_picture(document)
    assert planned_size(due) is None and looked_at(document, due) in ([], None)
    with_planned = replace(document, turns=(document.turns[0], replace(document.turns[1], meta={"planned": "end"})))
    painter = Painter()
    generate(None, with_planned, Settings(), painter=painter, critic=Content())
    assert len(painter.asked) == 1


class Content:
    def review(self, asked):
        return Review(True)


def test_a_bad_marker_beyond_the_limit_of_images_loses_nothing():
    script = [("A wall.", "picture", "a wall"), ("A roof.", "picture", "")]
    answer = generate(prompted(*script), ASKED, Settings(max_images=1), painter=Painter(),
                      replan=lambda _: pytest.fail("the answer ends here anyway"))  # fmt: skip
    assert len(answer.pictures) == 1 and answer.generation["stop_reason"] == "max_images"


def test_finished_pictures_are_not_lost_to_a_plan():
    script = [("A wall.", "picture", "a wall"), ("A roof.", "picture", "a roof"), ("A door.", "picture", ""),
              ("Done.", "end", "")]  # fmt: skip
    notices = []
    answer = generate(prompted(*script), ASKED, Settings(), Callbacks(on_notice=notices.append), painter=Painter(),
                      replan=lambda _: pytest.fail("two images are finished"))  # fmt: skip
    assert len(answer.pictures) == 3 and answer.text == "A wall.A roof.A door.Done."
    assert len(notices) == 1 and "plan first" in notices[0]
