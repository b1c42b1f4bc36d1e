"""Comparisons by a judge: both orders, what follows the position, what counts, and going on."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from duogen_core.cli import main
from duogen_core.data.runs.log import json_lines
from duogen_core.document.store import save_document
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.answer_sets import open_answers, pair_of, shared_ids
from duogen_core.evaluation.pairwise import METRICS, PairEngine, agreed, asked_of, position_bias, verdicts
from duogen_core.evaluation.ratings import read_ratings
from duogen_core.llm.answers import Recording
from duogen_core.llm.client import Client, Endpoint
from tests.core.endpoint_server import completion, endpoint_server, refusing, send
from tests.core.evaluation.pairs import answer, likes, likes_the_first, reply, write_answers
from tests.core.evaluation.test_running import files, killed_at_moments

IDS = ["a boat", "b/../x", "c", "d", "e"]


@pytest.fixture
def two(tmp_path):
    for model, seed in (("alpha", 0), ("beta", 50)):
        write_answers(tmp_path / model, model, IDS, lambda k: {"image quality": k % 6, "ended": 1}, seed=seed)
    return tmp_path


def compare(folder, server, *more):
    first, second = (str(folder / name / "results-judge.json") for name in ("alpha", "beta"))
    return main(
        ["evaluate", "compare", first, second, "--out", str(folder / "compared"), "--endpoint", server.url, "--llm",
         "stand-in", "--quiet", "--json", "--parallel", "1", *more]
    )  # fmt: skip


def judge(choose, fail_after=None):
    def answer_(handler):
        if fail_after is not None and len(handler.server.asked) > fail_after:
            refusing(400)(handler)
        else:
            send(handler, completion(reply(handler.body, choose)))

    return answer_


def test_a_fair_judge(two, capsys):
    with endpoint_server(judge(likes("beta"))) as server:
        assert compare(two, server) == 0
        assert len(server.asked) == 2 * len(IDS)
    figures = json.loads(capsys.readouterr().out)
    assert set(figures["metrics"]) == set(METRICS)
    for found in figures["metrics"].values():
        assert found["elo"]["beta"]["rating"] > 1000 > found["elo"]["alpha"]["rating"]
        assert found["wins"] == [{"first": "alpha", "second": "beta", "share": 0, "interval": None, "ratings": 5}]
    assert figures["position_bias"]["all"] == {"pairs": 25, "same": 1, "first": 0, "second": 0, "half": 0}
    rated = read_ratings([two / "compared" / "ratings.json"])
    assert len(rated) == 25 and {(one.said, one.right) for one in rated} == {(2, "beta")}
    assert {one.rater for one in rated} == {"stand-in"}


def test_what_only_one_has_answered_is_counted(two, capsys):
    """A model that fails at the hard requests must not seem to be compared on all of them."""
    write_answers(two / "beta", "beta", IDS[:3], lambda k: {"image quality": 1, "ended": 1}, seed=50)
    with endpoint_server(judge(likes("beta"))) as server:
        assert compare(two, server) == 0
    assert json.loads(capsys.readouterr().out)["answered_by_one"] == 2


def test_a_judge_that_likes_what_comes_first_decides_nothing(two, capsys):
    with endpoint_server(judge(likes_the_first)) as server:
        assert compare(two, server) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["position_bias"]["all"] == {"pairs": 25, "same": 0, "first": 1, "second": 0, "half": 0}
    for found in figures["metrics"].values():
        assert found["ties"] == 1 and found["elo"]["alpha"]["rating"] == found["elo"]["beta"]["rating"] == 1000


def test_a_judge_with_a_known_bias_is_measured(two, capsys):
    """For image quality it follows the position, for all else it is fair: one fifth of all verdicts."""

    def choose(metric, first, second):
        return "second" if metric == "image_quality" else likes("alpha")(metric, first, second)

    with endpoint_server(judge(choose)) as server:
        assert compare(two, server) == 0
    figures = json.loads(capsys.readouterr().out)
    bias = figures["position_bias"]
    assert bias["image quality"]["second"] == 1 and bias["text completeness"]["same"] == 1
    assert bias["all"]["second"] == pytest.approx(0.2) and bias["all"]["same"] == pytest.approx(0.8)


def test_it_goes_on_and_judges_nothing_twice(two, capsys):
    with endpoint_server(judge(likes("alpha"), fail_after=5)) as server:  # two pairs and a half
        assert compare(two, server, "--shard", "1", "--give-up", "1") == 2
        first = [json.dumps(body, sort_keys=True) for _, _, body in server.asked]
    with endpoint_server(judge(likes("alpha"))) as server:
        assert compare(two, server, "--shard", "1", "--give-up", "1") == 0
        second = [json.dumps(body, sort_keys=True) for _, _, body in server.asked]
    assert len(first) == 6 and len(second) == 5  # the one that was refused, and the other four
    assert not set(first[:5]) & set(second) and len({*first, *second}) == 10
    with endpoint_server(judge(likes("alpha"))) as server:
        assert compare(two, server, "--shard", "1") == 0
        assert not server.asked
    capsys.readouterr()


def test_pairs_that_came_later_are_asked_about_and_the_others_are_not(two, capsys):
    write_answers(two / "beta", "beta", IDS[:3], lambda k: {"image quality": 1, "ended": 1}, seed=50)
    with endpoint_server(judge(likes("alpha"))) as server:
        assert compare(two, server) == 0 and len(server.asked) == 2 * 3
        write_answers(two / "beta", "beta", IDS, lambda k: {"image quality": 1, "ended": 1}, seed=50)
        assert compare(two, server) == 0 and len(server.asked) == 2 * 5
        assert compare(two, server) == 0 and len(server.asked) == 2 * 5
    capsys.readouterr()


def test_other_points_are_another_comparing(two, capsys, monkeypatch):
    with endpoint_server(judge(likes("alpha"))) as server:
        assert compare(two, server) == 0
        monkeypatch.setitem(METRICS, "image quality", "whose images are brighter")
        assert compare(two, server) == 2
    assert "begun with other values of questions;" in capsys.readouterr().err


def test_the_same_answer_twice_is_a_tie_and_not_asked(tmp_path, capsys):
    for model in ("alpha", "beta"):
        save_document(answer("c", "same"), tmp_path / model / "c")
    with endpoint_server(judge(likes_the_first)) as server:
        code = main(["evaluate", "compare", str(tmp_path / "alpha"), str(tmp_path / "beta"), "--out",
                     str(tmp_path / "out"), "--endpoint", server.url, "--llm", "x", "--quiet"])  # fmt: skip
        assert code == 0 and not server.asked
    out = capsys.readouterr().out
    assert "the same answer twice" in out and "ties: 1.00" in out


def test_the_question(two):
    first, second = (open_answers(two / name / "results-judge.json") for name in ("alpha", "beta"))
    pair = pair_of(first, second, "a boat")
    ask, turned = asked_of(pair), asked_of(pair, turned=True)
    names = [name for name, _ in ask.pictures]
    assert names == ["The user's image 1:", "First answer, image 1:", "First answer, image 2:",
                     "Second answer, image 1:", "Second answer, image 2:"]  # fmt: skip
    assert (ask.data["first"], ask.data["second"]) == (turned.data["second"], turned.data["first"])
    assert "alpha step 1 of a boat. \n[Image 1]" in ask.data["first"] and "beta" in turned.data["first"]
    assert ask.pictures[1][1] == turned.pictures[3][1] and ask.pictures[0][1] == turned.pictures[0][1]
    assert ask.prompt == turned.prompt and ask.schema == turned.schema
    assert len(ask.schema["required"]) == 5


def test_without_images_only_the_text_is_asked_about(tmp_path):
    for model in ("alpha", "beta"):
        save_document(answer("c", model, pictures=0), tmp_path / model / "c")
    pair = pair_of(open_answers(tmp_path / "alpha"), open_answers(tmp_path / "beta"), "c")
    assert asked_of(pair).schema["required"] == ["text_completeness"]


def test_what_counts():
    said = {"text_completeness": {"reason": "", "better": "first"}, "image_quality": {"reason": "", "better": "tie"}}
    assert verdicts(said) == {"text completeness": "first", "image quality": "tie"}
    names = ("w", "x", "y", "z")
    as_given = dict(zip(names, ("first", "first", "first", "tie")))
    turned = dict(zip(names, ("second", "first", "tie", "tie")))
    assert agreed(as_given, turned) == {"w": "first", "x": "tie", "y": "tie", "z": "tie"}
    assert agreed(turned, as_given) == {"w": "second", "x": "tie", "y": "tie", "z": "tie"}
    found = position_bias([{"as_given": as_given, "turned": turned}, {"same": True, "as_given": {}, "turned": {}}])
    assert found["all"] == {"pairs": 4, "same": 0.5, "first": 0.25, "second": 0, "half": 0.25}


def test_answers_that_are_no_pair(two, tmp_path):
    first = open_answers(two / "alpha" / "results-judge.json")
    assert shared_ids(first, first) == IDS
    save_document(answer("other", "x"), tmp_path / "x" / "c")
    save_document(answer("other", "x"), tmp_path / "y" / "nothing")
    with pytest.raises(DuoGenError, match="different requests under the id 'c'"):
        pair_of(first, open_answers(tmp_path / "x"), "c")
    with pytest.raises(DuoGenError, match="no request in common"):
        shared_ids(first, open_answers(tmp_path / "y"))
    with pytest.raises(DuoGenError, match="holds no answers"):
        open_answers(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ((), "Both models are called 'alpha'"),
        (("--llm", ""), "Name a judge"),
        (("--mllm", "m"), "name one of the two"),
        (("--llm", "j" * 201), "expected a text of at most 200"),
        (("--llm", " "), "expected a text of at most 200"),
        (("--names", "a", " "), "A name of --names is ' '"),
    ],
)
def test_what_compare_refuses(two, capsys, more, sentence):
    same = str(two / "alpha" / "results-judge.json")
    code = main(["evaluate", "compare", same, same, "--out", str(two / "o"), "--endpoint", "http://127.0.0.1:9/v1",
                 "--llm", "x", "--quiet", *more])  # fmt: skip
    assert code == 2 and sentence in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_kill_9_at_twenty_moments_ends_with_the_same_bytes(two):
    first, second = (two / name / "results-judge.json" for name in ("alpha", "beta"))
    turn = iter(range(1000))

    def slow(handler):
        time.sleep(0.01)
        judge(likes("beta"))(handler)

    with endpoint_server(slow) as server:

        def make() -> PairEngine:
            file = two / ("timed.jsonl" if next(turn) == 0 else "answers.jsonl")  # of the undisturbed run its own
            endpoint = Endpoint(server.url, "stand-in", attempts=1, answers=2)
            return PairEngine(first, second, lambda: Client(endpoint, Recording(file)))

        assert killed_at_moments(make, two / "compared") == 20
    assert files(two / "compared") == files(two / "timed")
    keys = [line["key"] for line in json_lines(two / "answers.jsonl")]
    assert len(keys) == len(set(keys)) == 2 * len(IDS)


def test_prose_in_place_of_json_costs_the_pair_and_is_asked_for_again(two, capsys):
    """Of three attempts none fits: the pair has no verdict, the others have. More attempts go on after those three,
    which are kept."""

    def prose_for_one(handler):
        if "step 1 of c." in json.dumps(handler.body["messages"]):
            send(handler, completion("I would say that the first one is better."))
        else:
            judge(likes("beta"))(handler)

    with endpoint_server(prose_for_one) as server:
        assert compare(two, server) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["unjudged"] == 1 and figures["position_bias"]["all"]["pairs"] == 20
    with endpoint_server(judge(likes("beta"))) as server:
        assert compare(two, server) == 0 and not server.asked
        assert json.loads(capsys.readouterr().out)["unjudged"] == 1
        assert compare(two, server, "--answers", "4") == 0
        assert len(server.asked) == 2  # the fourth attempt, and the other order
    assert json.loads(capsys.readouterr().out)["unjudged"] == 0


def test_replay_needs_no_server(two, capsys):
    with endpoint_server(judge(likes("beta"))) as server:
        assert compare(two, server, "--price", "1,2") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["spent"]["cost"] == pytest.approx(2 * len(IDS) * (7 * 1 + 3 * 2) / 1e6)
    (two / "compared").rename(two / "kept")
    (two / "compared").mkdir()
    shutil.copy(two / "kept" / "answers.jsonl", two / "compared")
    assert compare(two, server, "--replay") == 0  # the server is gone
    again = json.loads(capsys.readouterr().out)
    assert again["tokens"] == figures["tokens"] == {"prompt": 2 * len(IDS) * 7, "completion": 2 * len(IDS) * 3}
    assert again["metrics"] == figures["metrics"] and again["spent"]["recorded"] == 2 * len(IDS)
    assert files(two / "compared" / "shards") == files(two / "kept" / "shards")
