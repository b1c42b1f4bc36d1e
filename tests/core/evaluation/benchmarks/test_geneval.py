"""GenEval: four samples of a prompt, the rules for objects, the official sums, submissions that were edited."""

from __future__ import annotations

import json

import pytest

from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import benchmark
from duogen_core.evaluation.benchmarks.geneval import COLOURS, relations, verdict
from tests.core.evaluation.benchmarks import layout_geneval as layout
from tests.core.evaluation.benchmarks.test_contract import answered, picture

BENCH = benchmark("geneval")


@pytest.fixture
def items(tmp_path):
    return list(BENCH.items(layout.write_requests(tmp_path)))


def seen(name, box=(100, 100, 300, 300), colour="red", **more):
    return {"class": name, "box": list(box), "colour": colour, **more}


def test_four_samples_of_each_prompt(items):
    assert [item.id for item in items[:5]] == ["00000-0", "00000-1", "00000-2", "00000-3", "00001-0"]
    assert len(items) == 4 * len(layout.REQUESTS) and all(item.images == 1 for item in items)


def test_an_answer_without_an_image_is_scored(items, tmp_path):
    """The scorer means over the files that are there; the last of four answers has none."""
    (tmp_path / "out").mkdir()
    answers = [(item, answered(item, number)) for number, item in enumerate(items[:8])]
    BENCH.export(answers, tmp_path / "out", "m")
    assert len(list((tmp_path / "out").glob("*/samples/000?.png"))) == 8
    back = {item.id: document for item, document in BENCH.read(tmp_path / "out", items)}
    assert list(back) == [item.id for item in items[:8]]
    assert [len(document.pictures) for document in back.values()] == [1, 1, 1, 0] * 2
    assert json.loads((tmp_path / "out/00001/metadata.jsonl").read_text("utf-8")) == layout.REQUESTS[1]


def test_names_of_the_official_generator(items, tmp_path):
    """diffusers_generate.py writes 00000.png, and a grid.png beside."""
    folder = tmp_path / "out/00002/samples"
    folder.mkdir(parents=True)
    (folder / "00003.png").write_bytes(picture(1).to_png())
    (folder / "grid.png").write_bytes(b"")
    assert [item.id for item, _ in BENCH.read(tmp_path / "out", items)] == ["00002-3"]
    (folder / "0003.png").write_bytes(picture(1).to_png())
    with pytest.raises(DuoGenError, match="both sample 3"):
        list(BENCH.read(tmp_path / "out", items))


def test_a_submission_of_other_requests(items, tmp_path):
    BENCH.export([(items[0], answered(items[0], 0))], tmp_path, "m")
    (tmp_path / "00000/metadata.jsonl").write_text('{"prompt": "a photo of a bench"}')
    with pytest.raises(DuoGenError, match="00000/metadata.jsonl.*a photo of a bench.*another file of requests"):
        list(BENCH.read(tmp_path, items))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vqa_list": []}, "geneval2"),
        ({"include": []}, "include is empty"),
        ({"tag": ""}, "tag is empty"),
        ({"include": [{"class": "dog", "count": 0}]}, "count is 0"),
        ({"include": [{"class": "dog", "count": 1, "color": "teal"}]}, "color is 'teal'"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "position is"),
        ({"include": [{"count": 1}]}, "class is missing"),
    ],
)
def test_requests_that_are_none(change, message, tmp_path):
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps({**layout.REQUESTS[0], **change}))
    with pytest.raises(DuoGenError, match=f"requests.jsonl, line 1.*{message}"):
        list(BENCH.items(file))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"filename": "0000.png"}, "filename"),
        ({"filename": f"a/{'9' * 5000}/samples/0000.png"}, "filename"),
        ({"filename": "a/00099/samples/0000.png"}, "do not have there"),
        ({"prompt": "a photo of a cow"}, "do not have there"),
        ({"correct": 2}, "correct is 2"),
        ({"correct": None}, "correct is None"),
    ],
)
def test_results_that_are_none(change, message, items, tmp_path):
    file = layout.write_results(tmp_path, [items[0].id])
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DuoGenError, match=f"results.jsonl, line 1.*{message}"):
        BENCH.results(file, items)


def test_an_image_that_was_scored_twice(items, tmp_path):
    """Two runs in one file: the scorer's sums would count both."""
    file = layout.write_results(tmp_path, [items[0].id, items[1].id])
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
    with pytest.raises(DuoGenError, match="results.jsonl, line 3 .*an earlier line scores, too"):
        BENCH.results(file, items)


def test_official_sums(items, tmp_path):
    """Of six tags one has two prompts, so a mean over images is another figure than the mean over tags."""
    scores = BENCH.results(layout.write_results(tmp_path, [item.id for item in items]), items)
    summary = BENCH.summary(scores[:8] + scores[24:])  # two tags: two prompts of one, one of the other
    assert summary["images"] == 0.5 and summary["prompts"] == 1 and summary["overall"] == 0.5
    summary = BENCH.summary(scores[:4] + scores[4:5])
    assert summary["images"] == 3 / 5 and summary["overall"] == 0.75 and summary["two_object: correct"] == 1


@pytest.mark.parametrize(
    "request_, objects, correct",
    [
        (0, [seen("dog", score=0.31)], True),
        (0, [seen("dog", score=0.3)], False),
        (0, [seen("dog"), seen("dog"), seen("cat")], True),  # one is asked for, and more are no fault there
        (1, [seen("cup")], False),
        (1, [seen("cup"), seen("tv remote")], True),
        (2, [seen("clock", score=0.95)] * 2, True),
        (2, [seen("clock", score=0.95), seen("clock", score=0.85)], False),  # numbers need 0.9
        (2, [seen("clock")] * 3, False),
        (3, [seen("bus", colour="blue")], True),
        (3, [seen("bus", colour="red", score=0.9), seen("bus", colour="blue", score=0.8)], False),  # the surest
        (4, [seen("cat", (600, 100, 800, 300)), seen("cow")], True),
        (4, [seen("cow", (600, 100, 800, 300)), seen("cat")], False),
        (4, [seen("cow")], False),
        (5, [seen("vase"), seen("apple", colour="white")], True),
        (5, [seen("vase", colour="white"), seen("apple")], False),
    ],
)
def test_rules(request_, objects, correct, items):
    item = items[4 * request_]
    assert verdict(item.record, objects, (512, 512))[0] == correct
    score = BENCH.score(item, answered(item, 0), {"objects": {"objects": objects}})
    assert score.values == {"correct": float(correct)} and bool(score.reasons["correct"]) != correct
    assert BENCH.score(item, item.prompt, {"objects": {"objects": objects}}).values == {"correct": 0.0}


def test_each_of_several_has_the_colour():
    record = {"tag": "colors", "include": [{"class": "bus", "count": 2, "color": "blue"}]}
    two = [seen("bus", colour="blue"), seen("bus", colour="red")]
    assert verdict(record, two, (512, 512)) == (False, "bus is blue, red, not blue")
    assert verdict(record, [two[0], two[0], two[1]], (512, 512)) == (True, "")


def test_positions():
    """Boxes 200 wide: 20 + 20 of the offset do not count, and more than half of it must be left."""
    here = (400, 400, 600, 600)
    for offset, found in [((-39, 0), set()), ((-81, 0), {"left of"}), ((79, 0), set()), ((0, -300), {"above"}),
                          ((300, 300), {"right of", "below"}), ((0, 0), set())]:  # fmt: skip
        box = [here[0] + offset[0], here[1] + offset[1], here[2] + offset[0], here[3] + offset[1]]
        assert relations(box, here, (1000, 1000)) == found, offset
    # What is far in thousandths of the width is near in a tall image.
    assert relations((700, 500, 900, 700), (300, 200, 500, 400), (1000, 1000)) == {"right of", "below"}
    assert relations((700, 500, 900, 700), (300, 200, 500, 400), (200, 1000)) == {"below"}


def test_what_is_asked(items):
    """Colours only where one matters; a position's target is among the classes."""
    plain, coloured, placed = (BENCH.asks(items[k], answered(items[k], 0))[0] for k in (0, 12, 16))
    one = coloured.schema["properties"]["objects"]["items"]
    assert one["properties"]["colour"]["enum"] == list(COLOURS) and "colour" in coloured.prompt
    assert "colour" not in str(plain.schema) and "colour" not in plain.prompt
    assert placed.data["classes"] == "cat, cow" and placed.pictures[0][1] == picture(0)
