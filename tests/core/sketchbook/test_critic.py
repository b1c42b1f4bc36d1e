"""The exact checker as a critic: from the words and the images alone it knows what is due, and refuses all else."""

from __future__ import annotations

import inspect
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from duogen_core.document import Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.review import Asked
from duogen_core.sketchbook import critic as module
from duogen_core.sketchbook.checker import read
from duogen_core.sketchbook.critic import SketchbookCritic, asked_shapes, edits
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import COLOURS, Scene, Shape, scene_from_dict
from duogen_core.sketchbook.tasks import evaluation_case
from duogen_core.sketchbook.tasks.common import Case

CRITIC = SketchbookCritic()


def cases(family: str, count: int = 60) -> list[Case]:
    return [evaluation_case(family, Random(f"critic-{family}-{number}")) for number in range(count)]


def asked(case: Case, pixels: np.ndarray | None = None, text: str | None = None) -> Asked:
    """Of the ideal answer's first picture; or of other pixels in its place, or beside another text."""
    parts = case.document.last_turn.parts
    index = next(number for number, part in enumerate(parts) if isinstance(part, Picture))
    said = "".join(part.text for part in parts[:index] if isinstance(part, Text)) if text is None else text
    picture = parts[index] if pixels is None else Picture(pixels)
    return Asked(case.prompt.last_turn.text, said, said, picture, case.prompt.pictures)


@pytest.mark.parametrize("family", ["draw", "edit", "edit_chain", "plan"])
def test_ideal_images_are_good(family):
    for case in cases(family):
        review = CRITIC.review(asked(case))
        assert review.good and review.wrong == "" and review.score == 1.0, case.prompt.last_turn.text


@pytest.mark.parametrize("family", ["edit", "edit_chain", "plan"])
def test_an_image_in_which_nothing_has_changed_is_refused(family):
    for case in cases(family):
        review = CRITIC.review(asked(case, case.prompt.pictures[-1].pixels))
        assert not review.good and review.wrong and review.score < 0.5, case.prompt.last_turn.text


@pytest.mark.parametrize("family", ["edit", "edit_chain"])
def test_any_other_change_of_the_scene_is_refused(family):
    """Each shape of the right scene in another colour, one after another; what was asked for is never guessed."""
    for case in cases(family, 25):
        after = scene_from_dict(case.truth["after"])
        for shape in after.shapes:
            taken = {shape.colour, after.background}
            other = next(colour for colour in COLOURS if colour not in taken)
            wrong = after.remove(shape).add(replace(shape, colour=other))
            review = CRITIC.review(asked(case, draw_scene(wrong)))
            assert not review.good and shape.kind in review.wrong and review.score < 0.99


def test_what_is_due_comes_from_the_words_and_the_image_alone():
    """The critic's module never reads a case's truth, and is given nothing that holds it."""
    assert "truth[" not in inspect.getsource(module) and not hasattr(Asked, "truth")
    for family in ("edit", "edit_chain"):
        for case in cases(family):
            before = read(case.prompt.pictures[-1].pixels).scene
            assert scene_from_dict(case.truth["after"]) in edits(case.prompt.last_turn.text, before)


def test_what_a_request_leaves_open_is_free_unless_the_answer_says_it():
    before = Scene((Shape("top", "star", "red"),))
    request = "Add a blue circle on the left."
    large, small = (before.add(Shape("left", "circle", "blue", size)) for size in ("large", "small"))
    assert set(edits(request, before)) == {large, small}
    earlier = (Picture(draw_scene(before)),)

    def good(scene: Scene, text: str) -> bool:
        return CRITIC.review(Asked(request, text, text, Picture(draw_scene(scene)), earlier)).good

    assert good(large, "") and good(small, "")
    said = "Done: there is now a small blue circle on the left."
    assert good(small, said) and not good(large, said)
    # the user's word counts more than the answer's
    assert good(large, "Done: there is now a small green circle on the left.")


def test_the_better_prompts_say_what_is_due_whatever_the_answer_says():
    before = Scene((Shape("top", "star", "red"), Shape("left", "heart", "blue")))
    request, picture = "Remove the shape at the top.", Picture(draw_scene(before.remove(before.shapes[1])))
    said = "Done: the large blue heart on the left is gone."
    asked = Asked(request, said, said, picture, (Picture(draw_scene(before)),))
    right, whole = "Done: the large red star at the top is gone.", "Here is a large blue heart on the left."
    prompts = [""]
    for _ in range(4):
        review = CRITIC.review(replace(asked, tried=prompts[-1]))
        prompts.append(review.prompt)
    assert prompts[1:] == [f"{right} {whole}", right, whole, f"{right} {whole}"]
    assert "missing: large blue heart" in review.wrong.lower() and "not asked for: large red star" in review.wrong
    nothing_left = replace(asked, request="Delete the star.", earlier=(Picture(draw_scene(Scene(before.shapes[:1]))),))
    assert CRITIC.review(nothing_left).prompt == right


def test_the_nearer_an_image_comes_the_higher_its_score():
    before = Scene((Shape("top", "star", "red"), Shape("left", "heart", "blue")))
    earlier, request = (Picture(draw_scene(before)),), "Make the background green."
    nothing, half, empty = before, Scene((before.shapes[0],), "green"), Scene((), "white")
    scores = [
        CRITIC.review(Asked(request, "", "", Picture(draw_scene(scene)), earlier)).score
        for scene in (empty, nothing, half)
    ]
    assert max(scores[:2]) < scores[2] < 1


def test_drawings_of_what_was_asked_for():
    wishes, background = asked_shapes(
        "Please draw a little gray star in the top left corner and a heart, on a blue background."
    )
    assert background == "blue"
    assert wishes[0] == {"size": "small", "colour": "grey", "kind": "star", "cell": "top left"}
    assert wishes[1] == {"size": None, "colour": None, "kind": "heart", "cell": None}
    for case in cases("draw", 25):
        scene = scene_from_dict(case.truth["scene"])
        other = replace(
            scene,
            background=next(
                c for c in ("white", "black", "pink") if c not in {s.colour for s in scene.shapes} | {scene.background}
            ),
        )
        assert not CRITIC.review(asked(case, draw_scene(other))).good
        assert not CRITIC.review(asked(case, draw_scene(scene.remove(scene.shapes[0])), text="")).good


def test_a_smear_is_not_good():
    case = cases("edit", 1)[0]
    pixels = case.document.last_turn.pictures[0].pixels.copy()
    pixels[60:68, 20:40] = (10, 200, 10)
    assert not CRITIC.review(asked(case, pixels)).good


@pytest.mark.parametrize("request_text", ["How do I draw a house?", "Make it nicer.", "Remove the hexagon."])
def test_of_other_requests_it_cannot_tell(request_text):
    before = (Picture(draw_scene(Scene((Shape("top", "star", "red"),)))),)
    with pytest.raises(DuoGenError, match="checker of Sketchbook"):
        CRITIC.review(Asked(request_text, "", "", before[0], before))
