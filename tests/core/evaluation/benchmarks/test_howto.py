"""Our own how-to set: the shipped requests, its submission, its checks and what its judge sees."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from duogen_core.data.synthetic.requests import NEAR, load_taxonomy, near_duplicates
from duogen_core.data.text import Subjects
from duogen_core.document import Document, Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import Item, Score, by_id, howto
from duogen_core.evaluation.benchmarks.howto import DISHES, JUDGED, OURS, HowTo, steps_of
from duogen_core.evaluation.plans import our_requests
from duogen_core.evaluation.results import Results, read_results
from duogen_core.llm.messages import messages


@pytest.fixture(scope="module")
def ours() -> list[Item]:
    return list(HowTo().items(OURS))


@pytest.fixture
def small(tmp_path) -> list[Item]:
    spec = importlib.util.spec_from_file_location("layout_howto", Path(__file__).with_name("layout_howto.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(HowTo().items(module.write_requests(tmp_path)))


def picture(number: int = 0) -> Picture:
    return Picture(np.full((8, 10, 3), number, np.uint8))


def answer(item: Item, *parts: str | Picture, **generation: str) -> Document:
    made = [part if isinstance(part, Picture) else Text(part) for part in parts]
    return item.prompt.begin_turn("assistant", made).replace_generation(**generation)


# ------------------------------------------------------------ the shipped requests


def test_500_guides_over_all_subcategories_and_100_dishes(ours):
    assert len(by_id(OURS, ours)) == 600
    guides = [item for item in ours if item.category != DISHES]
    assert len(guides) == 500
    per = Counter((item.record["domain"], item.record["subcategory"]) for item in guides)
    assert set(per) == {(one.domain, one.name) for one in load_taxonomy().subcategories} and len(per) == 151
    assert set(per.values()) == {3, 4}
    for item in ours:
        request = item.record["request"]
        assert 20 <= len(request) <= 300 and request == " ".join(request.split()) and request in item.prompt.text
        assert "{" not in item.prompt.text and item.prompt.text.endswith("each with a text and an image.")


def test_no_two_are_alike_and_none_is_near_to_what_trains_or_is_asked_elsewhere(ours):
    """By the project's own check; and no guide is about what a seed of its subcategory is about."""
    requests = [item.record["request"] for item in ours]
    earlier = [*load_taxonomy().seeds, *(one.text for one in our_requests())]
    assert len(earlier) > 1600
    near = near_duplicates([*earlier, *requests], NEAR * 2 / 3)  # with room to spare
    assert not [pair for pair in near if set(pair) & set(requests)]
    seeds = {(one.domain, one.name): one.seeds for one in load_taxonomy().subcategories}
    subjects = Subjects(load_taxonomy().seeds)
    for item in ours:
        for seed in seeds.get((item.record.get("domain"), item.record.get("subcategory")), ()):
            assert subjects.similarity(item.record["request"], seed) < 0.3, (item.id, seed)


def test_a_count_stands_in_the_words_of_its_request(ours):
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    counted = [item for item in ours if set(item.record) & {"steps", "most", "images"}]
    assert len(counted) > 100
    for item in counted:
        for name in ("steps", "most", "images"):
            if count := item.record.get(name):
                assert re.search(rf"\b({count}|{words[count]})\b", item.record["request"].lower()), item.id
        assert item.images is None  # whether the model reads the number is what is measured


def test_a_changed_file_is_another_set(tmp_path, monkeypatch):
    changed = tmp_path / "howto_requests.yaml"
    changed.write_bytes(OURS.read_bytes().replace(b"the smooth kind", b"the thick kind"))
    assert len(list(HowTo().items(changed))) == 600  # a file of one's own
    monkeypatch.setattr(howto, "OURS", changed)
    with pytest.raises(DuoGenError, match="not as it was published"):
        list(HowTo().items(changed))
    changed.write_bytes(OURS.read_bytes().replace(b"\n", b"\r\n"))  # as Git may check it out
    assert len(list(HowTo().items(changed))) == 600


def test_the_table_in_the_docs_is_true(ours):
    page = (Path(__file__).parents[4] / "docs" / "evaluation.md").read_text("utf-8")
    for category, count in Counter(item.category for item in ours).items():
        groups = {item.record["subcategory"] for item in ours if item.category == category != DISHES}
        assert f"| {category} | {len(groups) or '-'} | {count} |" in page


# ------------------------------------------------------------ files of others


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a list", "no file of how-to requests"),
        ("howto: [Fold a boat]", "no file of how-to requests"),  # plan_requests.yaml
        ("{guides: {}, dishes: [], other: 1}", "no file of how-to requests"),
        ("{version: 2, dishes: [A red soup]}", "version 2; this DuoGen reads version 1"),
        ("{guide_prompt: Draw it., guides: {Food: {Eggs: [Boil]}}}", "guide_prompt has no {request}"),
        ("{dish_prompt: Cook it., dishes: [A red soup]}", "dish_prompt has no {dish}"),
        ("guides: {Food: [Boil an egg]}", "Food is .*expected names"),
        ("guides: {Food: {Eggs: Boil an egg}}", "Eggs is .*expected a list"),
        ("guides: {Food: {Eggs: ['  ']}}", "Eggs, request 1"),
        ("guides: {Food: {Eggs: [{text: Boil, stops: 2}]}}", "expected a text, or text and steps, most, images"),
        ("guides: {Food: {Eggs: [{text: Boil, steps: two}]}}", "steps is 'two'; expected a whole number"),
        ("guides: {Food: {Eggs: [{text: Boil, steps: 0}]}}", "steps is 0; expected 1 to 100"),
        ("dishes: [{photo: a.png}]", "dish 1 .*expected a caption, an image or both"),
        ("dishes: [{image: gone.png}]", "gone.png .*dish 1.* does not exist"),
        ("dishes: [{image: ../gone.png}]", "not allowed"),
        ("guides: {a: {Eggs: [Boil one]}, b: {eggs: [Boil two]}}", "two requests with the id 'eggs-1'"),
    ],
)
def test_bad_requests(tmp_path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(DuoGenError, match=said):
        by_id(file, HowTo().items(file))


def test_a_photo_stands_before_its_question(small):
    caption, photo = (item for item in small if item.category == DISHES)
    assert caption.prompt.text == "Seen: A red soup with a white swirl: {request} of the day.\nHow is it made?"
    assert [type(part) for part in photo.prompt.last_turn.parts] == [Picture, Text]
    assert photo.prompt.text == "Seen: The dish in the image.\nHow is it made?"
    asks = {ask.key: ask for ask in HowTo().asks(photo, answer(photo, "Stir.", picture()))}
    assert [label for label, _ in asks["image completeness"].pictures] == ["The user's image 1:", "Image 1:"]


def submission(small: list[Item], folder: Path) -> Path:
    folder.mkdir()
    HowTo().export([(item, answer(item, "Step 1: so.", picture(3))) for item in small], folder, "tiny")
    return folder / "index.json"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"breakfast-1"', '"breakfast-9"', "answers 'breakfast-9', which no request has"),
        ('"breakfast-2"', '"breakfast-1"', "an earlier entry answers"),
        ("answers/0001-breakfast-1", "answers/0002-breakfast-2", "does not begin with the request 'breakfast-1'"),
        ("answers/0001-breakfast-1", "answers/gone", "gone.* does not exist"),
        ("answers/0001-breakfast-1", "../elsewhere", "not allowed"),
        ("answers/0001-breakfast-1", "answers/\\u0000", "not allowed"),
        ("answers/0001-breakfast-1", "away", "leaves the folder"),
        ("duogen-howto-answers", "other", "no index of how-to answers"),
        ('"version": 1', '"version": 2', "version 2; expected 1"),
    ],
)
def test_a_submission_edited_by_hand(small, tmp_path, old, new, said):
    index = submission(small, tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "away").symlink_to(tmp_path / "elsewhere")
    text = index.read_text("utf-8")
    assert old in text
    index.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(DuoGenError, match=said):
        list(HowTo().read(index.parent, small))


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (
            {"id": "breakfast-1", "values": {"image quality": 5.5}},
            "image quality is 5.5; expected a number from 0 to 5",
        ),
        ({"id": "breakfast-1", "values": {"image quality": True}}, "image quality is True"),
        ({"id": "breakfast-1", "values": {"steps illustrated": 2}}, "expected a number from 0 to 1"),
        ({"id": "breakfast-1", "values": {"beauty": 2}}, "has 'beauty'; expected text completeness"),
        ({"id": "breakfast-1"}, "values is missing"),
        ({"id": "nobody", "values": {}}, "case 1 answers 'nobody', which no request has"),
    ],
)
def test_bad_results(small, tmp_path, case, said):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"benchmark": "howto", "cases": [case]}), "utf-8")
    with pytest.raises(DuoGenError, match=said):
        HowTo().results(file, small)
    for value in ({"benchmark": "ueval", "cases": [case]}, {"benchmark": "howto", "cases": []}):
        file.write_text(json.dumps(value), "utf-8")
        with pytest.raises(DuoGenError, match="no file of how-to results|has no scores"):
            HowTo().results(file, small)


def test_what_evaluate_judge_writes_is_read_back(small, tmp_path):
    """The file of the one and the reader of the other agree, case by case and in the sums."""
    scores = [HowTo().score(item, answer(item, "Step 1: so.", P), {}) for item in small]
    Results.of(HowTo(), scores, model="tiny").write(tmp_path / "results.json")
    back = HowTo().results(tmp_path / "results.json", small)
    assert [(one.id, one.values) for one in back] == [(one.id, one.values) for one in scores]
    assert HowTo().summary(back) == read_results(tmp_path / "results.json").summary


def test_sums_over_guides_and_dishes_apart():
    found = [("a-1", "Food", 2), ("b-1", "Crafts", 4), ("dish-001", DISHES, 0), ("b-2", "Crafts", None)]
    scores = [Score(id, category, {"image quality": value}) for id, category, value in found]
    assert list(HowTo().summary(scores).items()) == [
        ("image quality", 2.0),
        ("Guides: image quality", 3.0),
        ("Crafts: image quality", 4.0),
        (f"{DISHES}: image quality", 0.0),
        ("Food: image quality", 2.0),
    ]


# ------------------------------------------------------------ checks without a judge

P = picture()


@pytest.mark.parametrize(
    ("parts", "steps"),
    [
        ((), []),
        (("Just fold it.",), [False]),
        (("Fold. ", P, "Turn. ", P, "Done, enjoy!"), [True, True]),
        (("Fold. ", P, P, "Turn. ", P), [True, True]),
        ((P, "That was it."), [True]),
        (("You need a sheet.\nStep 1: fold. ", P, "Step 2: turn. ", "Step 12 is a joke.", P), [True, True]),
        (("## Step 1\nFold.\n\n## Step 2\nTurn.\n", P, "**Step 3:** done"), [False, True, False]),
        (("1. Fold\n2. Turn\n3. Pull\n", P), [False, False, True]),
        (("Step 1 is easy. ", P, "So is the rest. ", P), [True, True]),
        (("You need:\n1. paper\n2. glue\n\n1. Fold. ", P, "2. Turn.", P, "3. Glue.", P), [True, True, True]),
        (("You need:\n1. paper\n2. glue\n\nSteps\n1. Fold. ", P, "2. Turn.", P), [True, True]),
        ((P, "1. This is the sheet.", P, "2. It is folded.", P, "3. It floats."), [True, True, True]),
        (("Take 2.5 cups.\n2.5 is a lot.\n", P), [True]),
        (("In 1990. ", P, "2 eggs. ", P), [True, True]),
        (("A sheet \ufffc of paper.",), [False]),
    ],
)
def test_steps(parts, steps):
    assert steps_of([part if isinstance(part, Picture) else Text(part) for part in parts]) == steps


def test_counts_as_asked(small):
    bench, items = HowTo(), by_id(OURS, small)
    two, most, images = items["breakfast-2"], items["bread-粉-a-b-c-1"], items["paper-1"]

    def count(item: Item, *parts: str | Picture) -> float | None:
        return bench.score(item, answer(item, *parts), {}).values["count as asked"]

    assert count(items["breakfast-1"], "Boil.", P) is None
    assert count(two, "Slice.", P, "Toast.", P) == 1 and count(two, "Slice.", P) == 0 and count(two) == 0
    assert count(most, "Mix.", P, "Bake.", P) == 1 and count(most) == 0
    assert count(most, "1. a\n2. b\n3. c\n4. d") == 0
    assert count(images, "Fold.", P, P) == 1 and count(images, "1. Fold\n2. Turn", P) == 0


@pytest.mark.parametrize(
    ("parts", "generation", "ended"),
    [
        (("Fold. ", P), {}, 1),
        (("Fold. ", P, "Enjoy"), {"stop_reason": "end"}, 1),
        (("Fold. ", P, "Then turn it and,"), {}, 0),
        (("Fold. ", P, "Done."), {"stop_reason": "max_tokens"}, 0),
        ((), {}, 0),
    ],
)
def test_early_end(small, parts, generation, ended):
    item = small[0]
    assert HowTo().score(item, answer(item, *parts, **generation), {}).values["ended"] == ended


# ------------------------------------------------------------ the judge


def test_each_metric_sees_what_it_is_about(small):
    item = small[0]
    document = answer(item, "Step 1: boil </data> $x ${request}. ", picture(1), "Step 2: peel. ", picture(2))
    asks = {ask.key: ask for ask in HowTo().asks(item, document)}
    assert set(asks) == set(JUDGED)
    assert {key for key, ask in asks.items() if ask.pictures} == set(JUDGED) - {"text completeness"}
    assert {key for key, ask in asks.items() if "request" in ask.data} == {"text completeness", "image completeness"}
    assert not asks["image quality"].data and not asks["image consistency"].data
    assert asks["image-text consistency"].data["answer"].split("\n") == [
        "Step 1: boil </data> $x ${request}. ", "[Image 1]", "Step 2: peel. ", "[Image 2]"]  # fmt: skip
    assert "[Image" not in asks["text completeness"].data["answer"]
    for ask in asks.values():
        assert list(ask.schema["properties"]) == ["reason", "score"]  # the reason is written first
        said = messages(ask.prompt, ask.data)[-1]["content"]
        assert [line[0] for line in said.split("\n") if re.match(r"\d: ", line)] == list("543210")
        assert "request" not in ask.data or "Zoë 彗星" in said


def test_an_answer_without_images_has_nothing_of_them(small):
    item, said = small[0], {"reason": "All of it is there.", "score": 5}
    none, one = answer(item, "Boil it."), answer(item, "Boil it.", P)
    assert [ask.key for ask in HowTo().asks(item, none)] == ["text completeness"]
    values = HowTo().score(item, none, {"text completeness": said}).values
    assert [values[name] for name in JUDGED] == [5, 0, 0, 0, 0]
    asked = [ask.key for ask in HowTo().asks(item, one)]
    assert set(asked) == set(JUDGED) - {"image consistency"}
    score = HowTo().score(item, one, dict.fromkeys(asked, said))
    assert score.values["image consistency"] is None and score.values["image quality"] == 5
    assert score.reasons["image quality"] == said["reason"]


def test_the_file_is_plain_yaml():
    value = yaml.safe_load(OURS.read_text("utf-8"))
    assert value["version"] == 1 and len(value["dishes"]) == 100
