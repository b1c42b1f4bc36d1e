"""RealUnify: its four files, its option letters, and what its scorers would take wrongly."""

from __future__ import annotations

import json

import pytest

from duogen_core.document import Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import by_id
from duogen_core.evaluation.benchmarks.realunify import DRAW, MAIN, RealUnify, option_in
from tests.core.evaluation.benchmarks.test_contract import answered, layout, picture

LAYOUT = layout("realunify")
BENCH = RealUnify()
KINDS = ("UEG_direct", "UEG_step", "GEU_direct", "GEU_step")


def items_of(folder, kind):
    return list(BENCH.items(LAYOUT.write_requests(folder, kind)))


def edit(file, change):
    value = json.loads(file.read_text("utf-8"))
    change(value)
    file.write_text(json.dumps(value), "utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_four_kinds_of_requests_go_out_and_come_back(kind, tmp_path):
    items = items_of(tmp_path, kind)
    answers = [(item, answered(item, number)) for number, item in enumerate(items)]
    (tmp_path / "out").mkdir()
    BENCH.export(answers, tmp_path / "out", "m")
    back = {item.id: document for item, document in BENCH.read(tmp_path / "out", items)}
    asked = {entry["index"]: entry for entry in json.loads((tmp_path / f"{kind}.json").read_text("utf-8"))}
    for entry in json.loads((tmp_path / "out" / MAIN).read_text("utf-8")):
        assert asked[entry["index"]].items() <= entry.items()  # with all that the scorer reads of it
    for item, document in answers:
        assert len(item.replies(back[item.id])) == 1 + len(item.later)
        assert [one.digest for one in item.pictures(back[item.id])] == [one.digest for one in item.pictures(document)]
        assert BENCH.score(item, back[item.id], {}).values == BENCH.score(item, document, {}).values


def test_ids_that_are_no_names_of_files_keep_their_images_apart(tmp_path):
    file = LAYOUT.write_requests(tmp_path)
    edit(file, lambda value: [entry.update(task_type=task) for entry, task in zip(value, ["a/b", "a b", "a_b", "A_b"])])
    edit(file, lambda value: [entry.update(index=7) for entry in value])
    items = list(BENCH.items(file))
    answers = [(item, item.prompt.begin_turn("assistant", [picture(k)])) for k, item in enumerate(items)]
    (tmp_path / "out").mkdir()
    BENCH.export(answers, tmp_path / "out", "m")
    back = [item.pictures(document) for item, document in BENCH.read(tmp_path / "out", items)]
    assert back == [[picture(k)] for k in range(4)]


def test_what_is_asked_in_two_steps(tmp_path):
    direct, step = items_of(tmp_path, "UEG_direct")[0], items_of(tmp_path, "UEG_step")[0]
    assert direct.due(0) == 1 and not direct.later and step.later == ((Text(DRAW),),)
    assert (step.due(0), step.due(1)) == (0, 1)
    assert step.prompt.text == f"Write a prompt that says exactly what to draw: {direct.prompt.text}"
    direct, step = items_of(tmp_path, "GEU_direct")[0], items_of(tmp_path, "GEU_step")[0]
    assert len(direct.prompt.pictures) == len(step.prompt.pictures) == 1
    assert step.prompt.text.startswith("Change the image") and step.later[0][0].text == direct.prompt.text
    assert direct.due(0) is step.due(1) is None and step.due(0) == 1


def test_which_step_it_is_says_the_file_or_the_field(tmp_path):
    file = LAYOUT.write_requests(tmp_path, "UEG_step")
    assert file.rename(tmp_path / "mine.json") and next(BENCH.items(tmp_path / "mine.json")).later
    (tmp_path / "mine.json").rename(tmp_path / "UEG_direct.json")
    assert not next(BENCH.items(tmp_path / "UEG_direct.json")).later


def test_a_question_without_its_prompt(tmp_path):
    file = LAYOUT.write_requests(tmp_path, "GEU_direct")
    edit(file, lambda value: value[0].pop("evaluation_prompt"))
    text = next(BENCH.items(file)).prompt.text
    assert text.splitlines()[1:] == ["A. up", "B. down", "C. left", "D. right",
                                     "Answer with the letter of the right option."]  # fmt: skip


@pytest.mark.parametrize("text, option", [
    ("C", "C"), ("Answer: C", "C"), ("The best answer is (D).", "D"), ("Best option: C", "C"), ("c", ""), ("", ""),
    ("Because it turns, C", "B"), ("up", ""), ("**B**", "B"), ("The Answer is D, not A", "D"),
])  # fmt: skip
def test_options(text, option):
    assert option_in(text) == option


def test_words_around_drafts_are_no_answer(tmp_path):
    """ "A draft:" would be option A."""
    item = items_of(tmp_path, "GEU_direct")[0]
    document = item.prompt.begin_turn("assistant", [Text("A draft:"), picture(1), Text("C")])
    assert BENCH.score(item, document, {}).values == {"answer": 1}
    (tmp_path / "out").mkdir()
    file = BENCH.export([(item, document)], tmp_path / "out", "m")
    assert json.loads(file.read_text("utf-8"))[0]["response"] == "C"
    only_before = item.prompt.begin_turn("assistant", [Text("C"), picture(1)])
    assert BENCH.score(item, only_before, {}).values == {"answer": 1}


def test_a_second_question_that_was_never_answered(tmp_path):
    """The first reply's text is no answer to it."""
    item = items_of(tmp_path, "GEU_step")[0]
    document = item.prompt.begin_turn("assistant", [Text("C")])
    assert BENCH.score(item, document, {}).values == {"answer": 0}


def test_every_question_must_be_right(tmp_path):
    item = items_of(tmp_path, "UEG_direct")[2]
    document = item.prompt.begin_turn("assistant", [picture(1), picture(2)])
    asks = BENCH.asks(item, document)
    assert [ask.data["question"] for ask in asks] == ["Are there three circles?", "Is there a square?"]
    assert all(ask.pictures[0][1] is document.pictures[-1] for ask in asks)
    for first, second, score in (("yes", "no", 1), ("yes", "yes", 0), ("no", "no", 0)):
        said = {"question 1": {"answer": first}, "question 2": {"answer": second}}
        assert BENCH.score(item, document, said).values == {"image": score}
    (tmp_path / "out").mkdir()
    entry = json.loads(BENCH.export([(item, document)], tmp_path / "out", "m").read_text("utf-8"))[0]
    assert entry["generated_image"] == entry["generated_images"][-1] != entry["generated_images"][0]
    nothing = item.prompt.begin_turn("assistant", [Text("I cannot.")])
    assert len(BENCH.asks(item, nothing)) == 1
    item = items_of(tmp_path, "UEG_direct")[1]
    assert BENCH.score(item, nothing, {"question 1": {"answer": "yes"}}).values == {"image": 0}


@pytest.mark.parametrize("change, says", [
    (lambda value: value[1].update(index=99), "answers '.*-99', which no request has"),
    (lambda value: value.append(value[0]), "an earlier entry answers, too"),
    (lambda value: value.__setitem__(slice(None), [None]), "has no scores"),
])  # fmt: skip
def test_results_of_other_requests(change, says, tmp_path):
    items = items_of(tmp_path, "UEG_direct")
    place = LAYOUT.write_results(tmp_path, [item.id for item in items])
    edit(place, change)
    with pytest.raises(DuoGenError, match=says):
        BENCH.results(place, items)


def test_results_of_the_judge_and_of_the_letters(tmp_path):
    items = items_of(tmp_path, "UEG_direct")
    place = LAYOUT.write_results(tmp_path, [item.id for item in items])
    edit(place, lambda value: value.append(None))  # what its judge failed on
    assert BENCH.summary(BENCH.results(place, items))["image"] == 0.25
    edit(place, lambda value: value[0].update(score=2))
    with pytest.raises(DuoGenError, match="entry 1: score is 2; expected a number from 0 to 1"):
        BENCH.results(place, items)

    items = items_of(tmp_path, "GEU_direct")
    (tmp_path / "out").mkdir()
    said = ["C", "The answer is A", "no idea", "A or B"]
    answers = [(item, item.prompt.begin_turn("assistant", [Text(text)])) for item, text in zip(items, said)]
    file = BENCH.export(answers, tmp_path / "out", "m")
    summary = BENCH.summary(BENCH.results(file, items))
    assert summary["answer"] == 0.5 and summary["mental_tracking: answer"] == 1
    assert summary == BENCH.summary(BENCH.score(item, document, {}) for item, document in answers)
    edit(file, lambda value: value[0].pop("response"))
    with pytest.raises(DuoGenError, match="response is missing"):
        BENCH.results(file, items)


@pytest.mark.parametrize("kind, change, message", [
    ("UEG_direct", lambda v: v[0].update(question_list=[]), "question_list is empty"),
    ("UEG_direct", lambda v: v[0]["question_list"][0].update(answer="perhaps"), "expected yes or no"),
    ("UEG_direct", lambda v: v[1].update(index=0, task_type="world_knowledge"), "two requests with the id"),
    ("GEU_direct", lambda v: v[0].update(answer="E"), "expected A, B, C or D"),
    ("GEU_direct", lambda v: v[0].update(input_image="../secret.png"), "not allowed"),
    ("GEU_step", lambda v: v[0].update(input_image="image/no.png"), "image/no.png.*entry 1.*does not exist"),
    ("GEU_step", lambda v: v[0].update(edit_prompt=None), "edit_prompt is None"),
    ("GEU_direct", lambda v: v[0].update(evaluation_prompt="", option=["x"] * 9), "option has 9 entries; expected 2"),
])  # fmt: skip
def test_bad_requests_are_named(kind, change, message, tmp_path):
    file = LAYOUT.write_requests(tmp_path, kind)
    edit(file, change)
    with pytest.raises(DuoGenError, match=message):
        by_id(file, BENCH.items(file))


def test_a_submission_edited_by_hand(tmp_path):
    items = items_of(tmp_path, "UEG_direct")
    (tmp_path / "out").mkdir()
    answers = [(item, answered(item, number)) for number, item in enumerate(items)]
    file = BENCH.export(answers, tmp_path / "out", "m")
    good = file.read_text("utf-8")
    for change, message in (
        (lambda v: v[0].update(index=99), "'world_knowledge-99', which no request has"),
        (lambda v: v.append(v[0]), "an earlier entry answers"),
        (lambda v: v[0].update(generated_image="images/x.png"), "none of generated_images"),
    ):
        file.write_text(good, "utf-8")
        edit(file, change)
        with pytest.raises(DuoGenError, match=message):
            list(BENCH.read(file, items))
    file.write_text(good, "utf-8")
    edit(file, lambda v: [entry.pop("generated_images") for entry in v])  # anybody else's has the one alone
    assert [len(item.pictures(document)) for item, document in BENCH.read(file, items)] == [1, 1, 1, 0]
