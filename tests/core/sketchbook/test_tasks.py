"""Sketchbook's task families: texts say exactly what the pictures show, and nothing held out occurs."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from random import Random

import numpy as np
import pytest

from duogen_core.document import Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.sketchbook.boards import (
    MOVES,
    board_from_dict,
    board_to_dict,
    draw_board,
    random_board,
    read_board,
    solve,
)
from duogen_core.sketchbook.checker import read_scene
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import (
    CANVASES,
    CELLS,
    COLOURS,
    HELD_OUT,
    KINDS,
    SIZES,
    Scene,
    Shape,
    scene_from_dict,
)
from duogen_core.sketchbook.tasks import (
    FAMILIES,
    WEIGHTS,
    WITH_HELD_OUT,
    evaluation_case,
    training_case,
)
from duogen_core.sketchbook.tasks.common import PLACES, PLURALS, Case, cells_of, join, shape_words
from duogen_core.sketchbook.tasks.plan import parse_move
from duogen_core.sketchbook.tasks.questions import LONGEST, PLAIN
from duogen_core.sketchbook.tasks.scenes import LENGTHS, MOST_SHAPES
from duogen_core.sketchbook.things import NOVEL, THINGS, ideal_picture, parse_step

PLACE_OF = {words: cell for cell, words in PLACES.items()}
SHAPE = re.compile(
    rf"an? ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(KINDS)}) "
    rf"({'|'.join(sorted(PLACE_OF, key=len, reverse=True))})"
)


def cases(family: str, count: int, seed: int = 0) -> list[Case]:
    rng = Random(seed)
    return [FAMILIES[family](rng, canvas=CANVASES[k % 3]) for k in range(count)]


def answer(case: Case) -> list[Text | Picture]:
    return list(case.document.turns[-1].parts)


def scene_in(text: str, canvas: tuple[int, int]) -> Scene:
    """The scene that a sentence of the assistant describes."""
    shapes = tuple(Shape(PLACE_OF[place], kind, colour, size) for size, colour, kind, place in SHAPE.findall(text))
    background = re.search(r"on an? (\w+) background", text)
    return Scene(shapes, background[1] if background else "cream", canvas)


def same(picture: Picture, pixels: np.ndarray) -> bool:
    return np.array_equal(picture.pixels, pixels)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_case_is_a_conversation_whose_prompt_ends_with_the_user(family: str) -> None:
    for seed in range(60):
        case, again = FAMILIES[family](Random(seed)), FAMILIES[family](Random(seed))
        assert case.document == again.document and case.truth == again.truth
        assert case.family == family
        assert json.loads(json.dumps(case.truth)) == case.truth
        rounds = len(case.document.turns) // 2
        assert [turn.role for turn in case.document.turns] == ["user", "assistant"] * rounds
        assert rounds <= {"quiz": LONGEST, "edit_chain": len(LENGTHS) + 1}.get(family, 2)
        assert case.prompt.turns == case.document.turns[:-1]
        parts = answer(case)
        assert isinstance(parts[0], Text)
        # A text before every picture: it is the order for that picture.
        for before, part in pairwise(parts):
            assert isinstance(before, Text) != isinstance(part, Text)


def test_draw_the_sentence_alone_gives_the_picture() -> None:
    for case in cases("draw", 300):
        text, picture = answer(case)
        scene = scene_in(text.text, picture.size)
        assert scene == scene_from_dict(case.truth["scene"])
        assert same(picture, draw_scene(scene))
        assert len(case.truth["asked"]) == len(scene.shapes)
        for asked in case.truth["asked"]:
            stated = {key: value for key, value in asked.items() if value}
            assert any(stated.items() <= vars(shape).items() for shape in scene.shapes)


@pytest.mark.parametrize("family", ["guide", "continue"])
def test_steps_read_from_the_text_give_the_pictures(family: str) -> None:
    for case in cases(family, 150):
        thing, done = THINGS[case.truth["thing"]], case.truth.get("done", 0)
        parts, colours = answer(case), {name: case.truth["colours"][name] for name in case.truth["parts"][:done]}
        assert len(parts) == 2 * (thing.steps - done) + 1 and isinstance(parts[-1], Text)
        if done:
            assert same(case.prompt.pictures[-1], ideal_picture(thing, colours, done, case.prompt.pictures[-1].size))
        for k in range(thing.steps - done):
            step = parse_step(parts[2 * k].text, thing)
            assert step is not None and step == parse_step(parts[2 * k].text)
            assert (step.number, step.part) == (done + k + 1, thing.parts[done + k].name)
            colours[step.part] = step.colour
            picture = parts[2 * k + 1]
            assert same(picture, ideal_picture(thing, colours, step.number, picture.size))
        assert colours == case.truth["colours"]
        assert case.truth["asked"].items() <= colours.items()


def test_asked_colours_stand_in_the_request() -> None:
    for case in cases("guide", 200):
        request = case.document.turns[0].text.replace("gray", "grey")
        for part, colour in case.truth["asked"].items():
            assert f"{colour} {part}" in request


def test_text_without_a_step_is_not_parsed() -> None:
    assert parse_step("The house is done.") is None
    assert parse_step("Step 2: Add a red elephant on top.") is None
    assert parse_step("Step 2: Add a red sail on top of the walls.", "house") is None
    assert parse_step("Step 12: Add an orange roof on top of the walls.", "house") == (12, "roof", "orange")


def test_edit_changes_what_the_sentence_says() -> None:
    seen = Counter()
    for case in cases("edit", 400):
        before, after = scene_from_dict(case.truth["before"]), scene_from_dict(case.truth["after"])
        text, picture = answer(case)
        assert before != after
        assert same(case.prompt.pictures[-1], draw_scene(before)) and same(picture, draw_scene(after))
        operation = case.truth["operation"]
        seen[operation] += 1
        gone, came = set(before.shapes) - set(after.shapes), set(after.shapes) - set(before.shapes)
        for shape in gone or came if operation != "add" else came:
            assert f"{shape.size} {shape.colour} {shape.kind} {PLACES[shape.cell]}" in text.text
        if operation == "recolour":
            assert text.text.endswith(f"is now {came.pop().colour}.")
        if operation == "move":
            assert text.text.endswith(f"is now {PLACES[came.pop().cell]}.")
        if operation == "background":
            assert text.text == f"Done: the background is now {after.background}."
    assert len(seen) == 5 and min(seen.values()) > 20


@pytest.mark.slow
def test_each_edit_of_a_chain_starts_from_the_picture_before_it() -> None:
    lengths, begun = Counter(), Counter()
    for case in cases("edit_chain", 300):
        turns, scenes = case.document.turns, [read_scene(picture.pixels) for picture in case.document.pictures]
        edits = [turn for turn in turns if turn.role == "assistant" and turn.text.startswith("Done: ")]
        lengths[len(edits)] += 1
        begun["drawn" if len(turns) > 2 * len(edits) else "given"] += 1
        assert len(edits) == case.truth["edits"] == len(scenes) - 1
        assert [scenes[-2], scenes[-1]] == [scene_from_dict(case.truth[name]) for name in ("before", "after")]
        assert max(len(scene.shapes) for scene in scenes) <= MOST_SHAPES
        for (before, after), turn in zip(pairwise(scenes), edits, strict=True):
            gone, came = set(before.shapes) - set(after.shapes), set(after.shapes) - set(before.shapes)
            assert len(gone) <= 1 and len(came) <= 1 and before != after
            named = [*gone, *came][:1]  # the shape as it was, or the new one
            expected = shape_words(named[0]) if named else f"the background is now {after.background}"
            assert expected in turn.text
    assert set(lengths) == {2, 3, 4} and min(*lengths.values(), *begun.values()) > 20


def test_plan_moves_lead_to_the_goal() -> None:
    lengths = Counter()
    for case in cases("plan", 150):
        board = board_from_dict(case.truth["board"])
        assert read_board(case.prompt.pictures[-1].pixels) == board
        parts = answer(case)
        lengths[len(parts) // 2] += 1
        assert len(parts) // 2 == case.truth["shortest"] and isinstance(parts[-1], Text)
        for number in range(1, len(parts) // 2 + 1):
            found, name = parse_move(parts[2 * number - 2].text)
            assert found == number
            board = board.move(name)
            assert board is not None and read_board(parts[2 * number - 1].pixels) == board
        assert board.solved
    assert set(lengths) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("canvas", CANVASES)
def test_boards_are_read_back_also_from_noisy_pictures(canvas: tuple[int, int]) -> None:
    rng, noise = Random(1), np.random.default_rng(1)
    for _ in range(100):
        board = random_board(rng, canvas)
        pixels = draw_board(board)
        assert (pixels.shape[1], pixels.shape[0]) == canvas
        assert read_board(pixels) == board
        noisy = np.clip(pixels + noise.normal(0, 12, pixels.shape), 0, 255).astype(np.uint8)
        assert read_board(noisy) == board
        assert board_from_dict(json.loads(json.dumps(board_to_dict(board)))) == board


def test_a_picture_without_a_board_is_none() -> None:
    board = random_board(Random(2), (128, 128))
    pixels = np.array(draw_board(board))
    column, row = board.marker
    pixels[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = (238, 228, 206)
    assert read_board(pixels) is None
    assert read_board(np.full((128, 128, 3), 255, np.uint8)) is None


def test_a_board_knows_its_edges_and_walls() -> None:
    board = board_from_dict(
        {"columns": 4, "rows": 4, "marker": [0, 0], "goal": [2, 0], "walls": [[1, 0]], "marker_colour": "red"}
    )
    assert board.move("right") is None and board.move("up") is None and board.move("left") is None
    assert solve(board) == ["down", "right", "right", "up"]
    assert solve(board_from_dict({**board_to_dict(board), "walls": [[1, 0], [0, 1]]})) is None


def test_draft_answers_are_what_the_new_picture_shows() -> None:
    for case in cases("draft", 300):
        before, after = scene_from_dict(case.truth["before"]), scene_from_dict(case.truth["after"])
        assert same(case.prompt.pictures[-1], draw_scene(before))
        _, picture, conclusion = answer(case)
        assert before != after and same(picture, draw_scene(after))
        words = case.truth["question"].split()
        if words[-1] in ("row", "column"):
            number = sum(shape.cell in cells_of(" ".join(words[-2:])) for shape in after.shapes)
        else:
            *colour, noun = words
            kind = "cross" if noun == "crosses" else noun[:-1]
            number = sum(
                (not colour or shape.colour == colour[0]) and kind in ("shape", shape.kind) for shape in after.shapes
            )
        assert case.truth["answer"] == str(number)
        assert conclusion.text.endswith(f"Answer: {number}.")


def test_describe_draws_nothing_and_says_what_is_there() -> None:
    seen = Counter()
    for case in cases("describe", 600):
        (text,) = answer(case)
        assert isinstance(text, Text) and text.text == case.truth["answer"]
        assert all(word in text.text for word in case.truth["key"])
        seen[case.truth["question"]] += 1
        if case.truth["question"] == "scene":
            picture = case.prompt.pictures[0]
            assert scene_in(text.text, picture.size) == scene_from_dict(case.truth["scene"])
            assert same(picture, draw_scene(scene_from_dict(case.truth["scene"])))
        if case.truth["question"] in ("plain", "unknown"):
            assert not case.prompt.pictures
    assert len(seen) == 8


def test_talk_is_without_an_image_and_half_of_it_is_of_things_that_are_not_known():
    talk = cases("talk", 400)
    assert not any(case.document.pictures for case in talk)
    unknown = [case for case in talk if case.truth["question"] == "unknown"]
    assert 150 < len(unknown) < 250 and all("not learned to draw" in case.truth["answer"] for case in unknown)
    assert {case.document.turns[-1].text for case in talk} >= {answer for _, answer, _ in PLAIN}


def test_a_quiz_is_about_one_picture_and_its_answers_are_true() -> None:
    seen, longest = Counter(), 0
    for case in cases("quiz", 400):
        (picture,) = case.document.pictures
        on_board = re.search(r"marker|goal|move|column \d", case.document.text)
        board, asked = read_board(picture.pixels) if on_board else None, set()
        for question, reply in zip(case.document.turns[::2], case.document.turns[1::2], strict=True):
            assert question.text not in asked and len(reply.parts) == 1
            asked.add(question.text)
            if board is not None and " move" in question.text:
                seen["move"] += 1
                names = [name for name in MOVES if board.move(name)]
                said = [name for name in MOVES if name in reply.text]
                assert said == names if "can" in question.text else said and said[0] in names
            elif board is not None:
                seen["board"] += 1
                column, row = (int(number) - 1 for number in re.findall(r"\d", reply.text))
                place = (column, row)
                what = "marker" if place == board.marker else "goal" if place == board.goal else "all"
                assert (
                    what in reply.text if place in (board.marker, board.goal, *board.walls) else "Nothing" in reply.text
                )
            elif " row" in question.text or " column" in question.text:
                seen["band"] += 1
                shapes = read_scene(picture.pixels).shapes
                cells = cells_of(" ".join(question.text.rstrip("?").split()[-2:]))
                assert int(re.search(r"\d", reply.text).group()) == sum(shape.cell in cells for shape in shapes)
            elif reply.text.startswith("I see the ") and "There" not in reply.text:
                seen["group"] += 1
                shapes, words = read_scene(picture.pixels).shapes, question.text
                named = [s for s in shapes if s.colour in words.split() or f" {PLURALS[s.kind]} " in f" {words[:-1]} "]
                assert reply.text == f"I see {join([f'the {shape_words(shape)}' for shape in named])}."
        longest = max(longest, len(asked))
    assert len(seen) == 4 and longest == LONGEST


def scenes_in(case: Case) -> list[Scene]:
    return [scene_from_dict(case.truth[key]) for key in ("scene", "before", "after") if case.truth.get(key)]


@pytest.mark.slow
def test_training_never_shows_a_held_out_pair() -> None:
    rng, families = Random(3), Counter()
    for _ in range(3000):
        case = training_case(rng)
        families[case.family] += 1
        assert not any(shape.held_out for scene in scenes_in(case) for shape in scene.shapes)
        if "colours" in case.truth:
            thing = THINGS[case.truth["thing"]]
            assert not any((case.truth["colours"][part.name], part.kind) in HELD_OUT for part in thing.parts)
        for turn in case.document.turns:
            for colour, kind in HELD_OUT:
                assert f"{colour} {kind}" not in turn.text
    assert set(families) == set(WEIGHTS) == set(FAMILIES) - {"talk"}  # which is for replay


@pytest.mark.parametrize("family", WITH_HELD_OUT)
def test_held_out_cases_have_a_held_out_pair(family: str) -> None:
    rng = Random(4)
    for _ in range(100):
        case = evaluation_case(family, rng, held_out=True)
        assert any(shape.held_out for scene in scenes_in(case) for shape in scene.shapes)


def test_evaluation_refuses_what_there_is_not() -> None:
    with pytest.raises(DuoGenError, match="no task family 'poem'"):
        evaluation_case("poem", Random(0))
    with pytest.raises(DuoGenError, match="no held-out cases"):
        evaluation_case("guide", Random(0), held_out=True)


def test_every_step_of_every_thing_is_plain_to_see() -> None:
    rng = Random(5)
    assert len(THINGS) == 20
    for thing in (*THINGS.values(), *NOVEL.values()):
        assert 3 <= thing.steps <= 6
        assert any(part.free for part in thing.parts)
        for canvas in CANVASES:
            colours = thing.choose_colours(rng)
            pictures = [ideal_picture(thing, colours, step, canvas) for step in range(thing.steps + 1)]
            for before, after in pairwise(pictures):
                changed = np.abs(before.astype(int) - after.astype(int)).max(2) > 20
                rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
                scale = min(canvas) / 128
                assert changed.sum() >= 240 * scale**2
                assert min(np.ptp(rows), np.ptp(columns)) >= 10 * scale


def test_colours_of_a_thing_can_be_told_apart() -> None:
    rng = Random(6)
    for _ in range(500):
        thing = rng.choice(list(THINGS.values()))
        colours = thing.choose_colours(rng)
        own = [colours[part.name] for part in thing.parts if part.like is None]
        assert len(set(own)) == len(own) and "cream" not in own
        assert all(colours[part.name] == colours[part.like] for part in thing.parts if part.like)


def test_places_cover_all_cells() -> None:
    assert set(PLACES) == set(CELLS)
    assert len(set(PLACES.values())) == len(CELLS)


def test_the_vocabulary_is_small() -> None:
    rng, words = Random(7), set()
    for _ in range(800):
        for turn in training_case(rng).document.turns:
            words.update(re.findall(r"[A-Za-z]+", turn.text.lower()))
    assert len(words) < 400
