"""Files of ratings by people and judges: read strictly, joined with their key, made into win rates and Elo."""

from __future__ import annotations

import json

import pytest

from duogen_core.cli import main
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.ratings import Rated, agreement, ratings_json, read_ratings, summary, write_ratings

QUALITY = "image quality"


def key(page="p1", pairs=(("1", "a", "b"), ("2", "b", "a"), ("3", "a", "c"), ("4", "c", "b"))):
    entries = [dict(zip(("item", "left", "right"), pair)) for pair in pairs]
    return {"format": "duogen-rating-key", "version": 1, "benchmark": "howto", "page": page, "metrics": [QUALITY],
            "pairs": entries}  # fmt: skip


def sheet(*verdicts, rater="Ann", page="p1", **changes):
    entries = [{"pair": k, "metric": QUALITY, "verdict": verdict} for k, verdict in enumerate(verdicts, 1)]
    return {"format": "duogen-ratings", "version": 1, "benchmark": "howto", "rater": rater, "page": page,
            "ratings": entries, **changes}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write_(**values):
        files = []
        for name, value in values.items():
            files.append(tmp_path / f"{name}.json")
            files[-1].write_text(json.dumps(value), "utf-8")
        return files

    return write_


def test_people_do_not_know_the_models_and_the_key_does(write):
    found = read_ratings(write(ann=sheet("left", "right", "tie"), key=key()))
    assert found == [
        Rated("1", "a", "b", QUALITY, "left", "Ann"),
        Rated("2", "b", "a", QUALITY, "right", "Ann"),
        Rated("3", "a", "c", QUALITY, "tie", "Ann"),
    ]
    assert [one.said for one in found] == [1, 1, 0]


def test_standings(write):
    rated = read_ratings(write(ann=sheet("left", "right", "tie", "left"), ben=sheet("left", rater="Ben"), key=key()))
    (standing,) = summary(rated)
    assert standing.metric == QUALITY and standing.ties == 0.2
    assert standing.pairs["a", "b"][0] == 1 and standing.pairs["a", "b"][2] == 3
    assert standing.pairs["a", "c"][0] == 0.5 and standing.pairs["b", "c"][0] == 0
    assert list(standing.ratings)[-1] == "b" and standing.ratings["b"].comparisons == 4


def test_agreement_of_raters(write):
    ann, ben = sheet("left", "right", "tie", "left"), sheet("left", "left", "tie", "left", rater="Ben")
    found = agreement(read_ratings(write(ann=ann, ben=ben, key=key())))
    # of each pair the first, first, none, second and first, second, none, second: 3 of 4 the same, (2 + 1 + 2) / 16
    # by chance
    assert found["Ann", "Ben"] == (pytest.approx((3 / 4 - 5 / 16) / (1 - 5 / 16)), 4)


def test_raters_who_toss_coins_do_not_agree_however_many_models_there_are():
    found = []
    for k, (left, right) in enumerate([("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")]):
        for n, verdicts in enumerate([("left", "left"), ("left", "right"), ("right", "left"), ("right", "right")]):
            found += [Rated(f"{k} {n}", left, right, QUALITY, one, who) for one, who in zip(verdicts, ("Ann", "Ben"))]
    assert agreement(found) == {("Ann", "Ben"): (pytest.approx(0), 16)}


def test_a_win_rate_of_many_raters_is_of_so_many_requests(write):
    ratings = [Rated(str(k), "a", "b", QUALITY, "left" if k % 3 else "right", "r") for k in range(12)]
    (one,) = summary(ratings)
    (many,) = summary([Rated(x.item, "a", "b", QUALITY, x.verdict, f"r{n}") for x in ratings for n in range(5)])
    (low, high), (lower, higher) = one.pairs["a", "b"][1], many.pairs["a", "b"][1]
    assert many.pairs["a", "b"][2] == 60 and higher - lower > 0.8 * (high - low)


def test_a_judges_file_comes_back(tmp_path):
    rated = [Rated("x", "a", "b", QUALITY, "left", "judge"), Rated("x", "a", "b", "other", "tie", "judge")]
    write_ratings(tmp_path / "r.json", ratings_json("howto", "judge", rated, spent={"cost": 1}))
    assert read_ratings([tmp_path / "r.json"]) == rated
    assert json.loads((tmp_path / "r.json").read_text())["spent"] == {"cost": 1}


@pytest.mark.parametrize(
    "files, says",
    [
        ({"x": {"format": "duogen-benchmark"}}, "x.json holds no ratings"),
        ({"x": sheet("left", version=2), "key": key()}, "version 2"),
        ({"x": sheet("left")}, "key is not among these files"),
        ({"x": sheet("left"), "key": key("p2")}, "saved by the page 'p1'"),
        ({"key": key()}, "no ratings"),
        ({"x": sheet(*["left"] * 5), "key": key()}, "rating 5: pair is 5; the page has pairs 1 to 4"),
        ({"x": sheet("up"), "key": key()}, "the verdict is 'up'"),
        ({"x": sheet("left", ratings=[{"pair": 1, "verdict": "left"}]), "key": key()}, "metric is None"),
        ({"x": sheet("left", ratings={}), "key": key()}, "list of objects"),
        ({"x": sheet("left"), "y": sheet("right"), "key": key()}, "both have the rating of '1' by 'Ann'"),
        ({"x": sheet("left"), "y": sheet("right", rater="B", benchmark="ueval"), "key": key()}, "howto, ueval"),
        ({"x": sheet("left"), "key": key(pairs=[("1", "a", "a")])}, "with itself"),
        ({"x": sheet("left"), "key": key(pairs=[("1", "a", "")])}, "key.json, pair 1: right"),
        ({"x": []}, "holds no ratings"),
        ({"x": sheet("left", page=["p1"]), "key": key()}, "page is"),
    ],
)
def test_what_is_refused(write, files, says):
    with pytest.raises(DuoGenError, match=says):
        read_ratings(write(**files))


def test_the_command(write, capsys):
    files = [str(file) for file in write(ann=sheet("left", "right", "tie", "left"), key=key())]
    assert main(["evaluate", "ratings", *files]) == 0
    out = capsys.readouterr().out
    assert out.startswith(QUALITY) and "a against b: 1.00 of 2 won" in out and "Elo" in out
    assert main(["evaluate", "ratings", *files, "--metric", QUALITY, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["metrics"]) == [QUALITY] and set(figures["metrics"][QUALITY]["elo"]) == {"a", "b", "c"}
    assert main(["evaluate", "ratings", *files, "--metric", "beauty"]) == 2
    assert f"they are of {QUALITY}" in capsys.readouterr().err
