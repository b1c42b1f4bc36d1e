"""GenEval 2: one image for each prompt, results without any ids, the two means, what a judge is asked."""

from __future__ import annotations

import json
import statistics

import pytest

from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import benchmark
from tests.core.evaluation.benchmarks import layout_geneval2 as layout
from tests.core.evaluation.benchmarks.test_contract import answered

BENCH = benchmark("geneval2")


@pytest.fixture
def items(tmp_path):
    return list(BENCH.items(layout.write_requests(tmp_path)))


def test_every_prompt_has_an_image(items, tmp_path):
    """The scorer stops at a prompt without one; the fourth answer has none."""
    (tmp_path / "out").mkdir()
    main = BENCH.export([(item, answered(item, k)) for k, item in enumerate(items)], tmp_path / "out", "m")
    names = json.loads(main.read_text("utf-8"))
    assert list(names) == [record["prompt"] for record in layout.REQUESTS]
    assert all((main.parent / name).is_file() for name in names.values())
    assert [len(document.pictures) for _, document in BENCH.read(main, items)] == [1, 1, 1, 0] * 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"include": []}, "first GenEval"),
        ({"vqa_list": [["Is it?", "No"]]}, "'No' is none"),
        ({"vqa_list": [["Is it?"]]}, "expected .question, answer"),
        ({"skills": ["count"]}, "skills does not have one"),
        ({"skills": ["count", "attribute", "colour"]}, "skills has 'colour'"),
        ({"atom_count": "3"}, "atom_count is '3'"),
        ({"prompt": layout.REQUESTS[0]["prompt"]}, "has the prompt of .*line 1; every prompt must be there once"),
    ],
)
def test_requests_that_are_none(change, message, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text(
        json.dumps(layout.REQUESTS[0]) + "\n" + json.dumps({**layout.REQUESTS[0], "prompt": "an ox", **change})
    )
    with pytest.raises(DuoGenError, match=f"data.jsonl, line 2.*{message}"):
        list(BENCH.items(file))


def test_results_belong_to_their_requests_by_order_alone(items, tmp_path):
    """So those of a part, or of other requests, are refused."""
    file = layout.write_results(tmp_path, [item.id for item in items])
    with pytest.raises(DuoGenError, match="8 prompts, and there are 3 requests"):
        BENCH.results(file, items[:3])
    with pytest.raises(DuoGenError, match="list 0000 has 2 scores; expected one for each of 3"):
        file.write_text(json.dumps(json.loads(file.read_text())[::-1]))
        BENCH.results(file, items)
    for value in (1.5, -0.5, "1", None, True):
        file.write_text(json.dumps([[value]] * 8))
        with pytest.raises(DuoGenError, match="list 0000 has .*; expected probabilities"):
            BENCH.results(file, items)


def test_a_submission_of_other_prompts(items, tmp_path):
    (tmp_path / "images.json").write_text('{"a boat": "images/0000.png"}')
    with pytest.raises(DuoGenError, match="a boat.*no request has"):
        list(BENCH.read(tmp_path, items))


def test_official_sums(items, tmp_path):
    scores = BENCH.results(layout.write_results(tmp_path, [item.id for item in items]), items)
    lists = json.loads((tmp_path / "score_lists.json").read_text())
    summary = BENCH.summary(scores)
    assert summary["Soft-TIFA AM"] == pytest.approx(100 * statistics.mean(map(statistics.mean, lists)))
    assert summary["Soft-TIFA GM"] == pytest.approx(100 * statistics.mean(map(statistics.geometric_mean, lists)))
    assert summary["verb: Soft-TIFA AM"] == pytest.approx(45)
    assert summary["10 atoms: Soft-TIFA GM"] == pytest.approx(100 * (0.9 * 0.45) ** 0.5)
    names = list(summary)
    assert names.index("9 atoms: Soft-TIFA GM") < names.index("10 atoms: Soft-TIFA GM")
    (tmp_path / "score_lists.json").write_text(json.dumps([[0.5]] * 8))
    assert BENCH.summary(BENCH.results(tmp_path / "score_lists.json", items)) == {"VQAScore": 50}
    (tmp_path / "score_lists.json").write_text(json.dumps([[0, 0.5, 1]] * 2 + [[0, 1]] * 6))
    assert BENCH.summary(BENCH.results(tmp_path / "score_lists.json", items))["Soft-TIFA GM"] == 0


def test_a_judge_answers_each_question(items):
    item = items[1]
    document = answered(item, 0)
    asks = BENCH.asks(item, document)
    assert [ask.key for ask in asks] == ["1", "2", "3"]
    assert asks[0].schema["properties"]["answer"]["type"] == "integer" and "number" in asks[0].prompt
    assert asks[1].schema["properties"]["answer"] == {"enum": ["yes", "no"]}
    right = {"1": {"answer": 7, "reason": "seen"}, **{k: {"answer": "yes", "reason": "seen"} for k in "23"}}
    assert BENCH.score(item, document, right).values == {"am": 1.0, "gm": 1.0}
    wrong = BENCH.score(item, document, {**right, "1": {"answer": 6, "reason": "six of them"}})
    assert wrong.values == {"am": 2 / 3, "gm": 0.0} and "six of them" in wrong.reasons["am"]
    assert BENCH.score(item, item.prompt, right).values == {"am": 0.0, "gm": 0.0}
