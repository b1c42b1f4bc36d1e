"""ImgEdit: single edits and conversations, how a judge's words are read, requests and results that are none."""

from __future__ import annotations

import json

import pytest

from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import benchmark
from tests.core.evaluation.benchmarks import layout_imgedit as layout
from tests.core.evaluation.benchmarks.test_contract import answered, picture

BENCH = benchmark("imgedit")


@pytest.fixture
def items(tmp_path):
    return list(BENCH.items(layout.write_requests(tmp_path)))


@pytest.fixture
def conversations(tmp_path):
    return list(BENCH.items(layout.write_conversations(tmp_path)))


def test_edits_without_an_image_have_one_of_the_same_size(items, tmp_path):
    """basic_bench.py writes an error for a missing file, which step1_get_avgscore.py breaks on."""
    (tmp_path / "out").mkdir()
    BENCH.export([(item, answered(item, k)) for k, item in enumerate(items)], tmp_path / "out", "m")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"{key}.png" for key in layout.REQUESTS}
    back = {item.id: document for item, document in BENCH.read(tmp_path / "out", items)}
    assert [len(item.pictures(back[item.id])) for item in items] == [1, 1, 1, 0] * 2 + [1]
    from PIL import Image

    assert Image.open(tmp_path / "out/32.png").size == items[3].prompt.pictures[0].size == (40, 31)


def test_images_are_shared(items):
    """171 images serve 737 requests: each is held once."""
    assert items[0].prompt.pictures[0] is items[1].prompt.pictures[0]
    assert items[1].prompt.pictures[0] is not items[2].prompt.pictures[0]


def test_conversations(conversations, tmp_path):
    first = conversations[0]
    assert first.category == "content_memory" and first.images == 1
    assert [parts[0].text for parts in first.later] == ["Add a plate.", "Go back to the first image."]
    assert len(conversations[1].later) == 1
    (tmp_path / "out").mkdir()
    answers = [(item, answered(item, k)) for k, item in enumerate(conversations)]
    BENCH.export(answers, tmp_path / "out", "m")
    assert (tmp_path / "out/1_turn3.png").is_file() and not (tmp_path / "out/2_turn3.png").exists()
    (tmp_path / "out/1_turn2.png").unlink()
    back = dict(zip("1234", (document for _, document in BENCH.read(tmp_path / "out", conversations))))
    replies = first.replies(back["1"])
    assert [len(parts) for parts in replies] == [1, 0, 1] and replies[2][0].pixels.shape == (24, 32, 3)
    assert (replies[2][0].pixels == first.pictures(answers[0][1])[2].pixels).all()
    assert [len(parts) for parts in conversations[3].replies(back["4"])] == [0, 0]
    with pytest.raises(DuoGenError, match="people judge"):
        BENCH.results(layout.write_results(tmp_path, ["1"]), conversations)


def test_a_judge_of_a_conversation_sees_what_was_before(conversations):
    item = conversations[0]
    document = answered(item, 0)
    asks = BENCH.asks(item, document)
    assert [ask.key for ask in asks] == ["turn1", "turn2", "turn3"]
    assert [len(ask.pictures) for ask in asks] == [2, 3, 4]
    assert asks[1].pictures[-1][1] == item.pictures(document)[1]
    assert asks[1].data["instructions"].splitlines()[1] == "2. Add a plate."
    reply = {"reason": "r", "instruction": 4, "naturalness": 5, "detail": 2}
    score = BENCH.score(item, document, {ask.key: reply for ask in asks})
    assert score.values == {"score": 10 / 3, "instruction": 4, "naturalness": 4, "detail": 2}
    cut = BENCH.score(item, item.prompt, {ask.key: reply for ask in asks})
    assert set(cut.values.values()) == {1}


def test_a_judge_is_held_to_the_official_rule(items):
    """The second and third score are never above the first one; an edit that is not there has the lowest ones."""
    reply = {"edit": {"reason": "r", "instruction": 2, "naturalness": 5, "detail": 1}}
    score = BENCH.score(items[0], answered(items[0], 0), reply)
    assert score.values == {"score": 5 / 3, "instruction": 2, "naturalness": 2, "detail": 1}
    assert set(BENCH.score(items[0], items[0].prompt, reply).values.values()) == {1}


@pytest.mark.parametrize(
    "said, score, detail",
    [
        ("Brief reasoning: a: b.\nPrompt Compliance: 4\nVisual Naturalness: 3\nDetail: 2", 3, 2),
        ("**Prompt Compliance**: 5\n  Visual: 4 \nDetail: 4", 4.33, 4),
        ("Prompt Compliance: 4/5\nVisual: 3\nDetail: 2", 2.5, None),
        ("Brief reasoning: 5\nPrompt Compliance: 1\nVisual: 1\nDetail: 1", 2, None),  # so it counts
        ("Prompt Compliance: 4\nNote: 1: bad", 4, None),
        (f"Prompt Compliance: {4:05000}", 4, None),
        ("I cannot judge this.", None, None),
        ({"error": "Connection error."}, None, None),
        (3.67, 3.67, None),
    ],
)
def test_what_the_official_judge_said(said, score, detail, items, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"1082": said}))
    found = BENCH.results(tmp_path, items)[0]
    assert found.values["score"] == score and found.values.get("detail") == detail


def test_aspects_by_the_kind_of_edit(items, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"7": "Style: 5\nContent: 4\nRendering: 3"}))
    assert BENCH.results(tmp_path, items)[0].values == {"score": 4, "instruction": 5, "detail": 4, "naturalness": 3}


def test_official_sums(items, tmp_path):
    scores = BENCH.results(layout.write_results(tmp_path, [item.id for item in items]), items)
    summary = BENCH.summary(scores)
    assert summary["adjust: score"] == 1.33 and summary["style: score"] == 1.67
    assert summary["overall"] == pytest.approx(sum(scores[k].values["score"] for k in range(9)) / 9)
    assert BENCH.summary(scores[:1] * 3 + scores[1:2])["overall"] == pytest.approx((1.33 + 1.67) / 2)


@pytest.mark.parametrize("said", ["A: 6", "A: 0", "A: " + "9" * 5000, 0.5, 7, None, ["A: 1"], True])
def test_results_that_are_none(said, items, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"1082": said}))
    with pytest.raises(DuoGenError, match="result.json, 1082 .*expected"):
        BENCH.results(tmp_path, items)
    (tmp_path / "result.json").write_text(json.dumps({"1": "A: 3"}))
    with pytest.raises(DuoGenError, match="result.json, 1 is the number of no request"):
        BENCH.results(tmp_path, items)


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("1", {"id": "animal/9.jpg"}, r"animal/9\.jpg \(named by .*, 1\) does not exist"),
        ("1", {"id": "../3.png"}, "not allowed"),
        ("1", {"edit_type": "resize"}, "edit_type is 'resize'"),
        ("1", {"edit_type": None}, "edit_type is None"),
        ("1", {"prompt": 3}, "prompt is 3"),
        ("a/b", {}, "has a / in it"),
        ("..", {}, "not allowed"),
    ],
)
def test_requests_that_are_none(key, change, message, tmp_path):
    layout.write_pictures(tmp_path)
    file = tmp_path / "asked.json"
    file.write_text(json.dumps({key: {**layout.REQUESTS["31"], **change}}))
    with pytest.raises(DuoGenError, match=f"asked.json, .*{message}|{message}"):
        list(BENCH.items(file))


@pytest.mark.parametrize("turns, message", [
    ({"turn1": "Add a cup."}, "turn2 is missing; expected text"),
    ({"turn1": None, "turn2": "Add a cup."}, "turn1 is None; expected text"),
    ({"turn1": None}, "turn1 is None; expected text"),
    ({"turn1": "Add a cup.", "turn2": None, "turn3": "Add two."}, "turn2 is None; expected text"),
])  # fmt: skip
def test_a_conversation_has_all_its_turns(turns, message, tmp_path):
    layout.write_pictures(tmp_path)
    (tmp_path / "asked.json").write_text(json.dumps({"1": {"id": "3.png", **turns}}))
    with pytest.raises(DuoGenError, match=f"asked.json, 1: {message}"):
        list(BENCH.items(tmp_path / "asked.json"))


def test_other_parts_of_imgedit(tmp_path):
    """UGE's requests have no kind; JSON with a number twice is no JSON."""
    layout.write_pictures(tmp_path)
    (tmp_path / "UGE_edit.json").write_text('{"1": {"id": "3.png", "prompt": "Remove it."}}')
    with pytest.raises(DuoGenError, match="UGE_edit.json, 1 has no edit_type"):
        list(BENCH.items(tmp_path / "UGE_edit.json"))
    (tmp_path / "twice.json").write_text('{"1": {}, "1": {}}')
    with pytest.raises(DuoGenError, match="twice.json: the name '1' stands twice"):
        list(BENCH.items(tmp_path / "twice.json"))


def test_a_linked_image_stays_outside(items, tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(1).to_png())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/7.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DuoGenError, match="leaves the document's folder"):
        list(BENCH.read(tmp_path / "out", items))
