"""The page of results: its figures, intervals, judges, published figures, gallery; and hostile text in all of it."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import os
import re
import shutil

import numpy as np
import pytest
from markupsafe import escape

from duogen_core.cli import main
from duogen_core.evaluation import benchmark_report as reports
from duogen_core.evaluation.benchmarks import Metric, Score, benchmark
from duogen_core.evaluation.results import Case, Results, read_results
from duogen_core.evaluation.statistics import bootstrap
from tests.core.evaluation.benchmarks.test_contract import THERE, layout
from tests.core.evaluation.pairs import CATEGORIES, HOSTILE, METRICS, write_answers

IDS = [f"r{number}" for number in range(24)]
BASE = np.random.default_rng(1).integers(0, 6, len(IDS))


def values(shift: int = 0, step: int = 99):
    return lambda k: {"image quality": int(np.clip(BASE[k] + shift * (k % step > 0), 0, 5)), "ended": float(k % 4 > 0)}


@pytest.fixture
def folder(tmp_path):
    write_answers(tmp_path / "a", "alpha", IDS, values())
    write_answers(tmp_path / "a", "alpha", IDS, values(1, 3), judge="other")
    write_answers(tmp_path / "b", HOSTILE, IDS[:20], values(-1), seed=77)
    return tmp_path


def report(folder, *more, files=("a", "b")):
    out = folder / "report.html"
    code = main(["evaluate", "report", *(str(folder / name) for name in files), "--out", str(out), "--quiet", *more])
    assert code == 0
    return out.read_text("utf-8")


class Tags(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)


def test_nothing_of_a_model_or_judge_becomes_markup(folder):
    text = report(folder)
    found = Tags(text)
    assert "script" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    sources = [value for name, value in found.attributes if name in ("src", "href")]
    assert sources and all(value.startswith("data:image/jpeg;base64,") for value in sources)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    words = "".join(found.words)
    assert HOSTILE in words  # as text: it is the name of a model, a category, and in every request and reason


def test_figures_and_their_intervals(folder, capsys):
    report(folder, "--json")
    (found,) = json.loads(capsys.readouterr().out)["benchmarks"]
    labels = ["alpha, judge", "alpha, other", HOSTILE]
    assert list(found["figures"]["image quality"]) == labels
    ours = found["figures"]["image quality"]["alpha, judge"]
    low, high = bootstrap(BASE.astype(float))
    assert ours == {"value": pytest.approx(BASE.mean()), "interval": [low, high], "n": 24}
    rows = found["metrics"]["image quality"]["categories"]
    assert set(rows) == set(CATEGORIES)
    crafts = [BASE[k] for k in range(24) if k % 3 == 1]
    assert rows["Crafts"]["alpha, judge"]["value"] == pytest.approx(np.mean(crafts))
    assert rows["Crafts"]["alpha, judge"]["n"] == 8 and rows["Crafts"][HOSTILE]["n"] == 7
    (difference,) = found["differences"]
    assert (difference["of"], difference["to"]) == (HOSTILE, "alpha, judge")
    quality = difference["rows"][0]["figure"]
    apart = [int(np.clip(BASE[k] - (k % 99 > 0), 0, 5)) - BASE[k] for k in range(20)]
    assert quality["n"] == 20 and quality["value"] == pytest.approx(np.mean(apart))


def test_two_judges_of_the_same_answers(folder, capsys):
    report(folder, "--json")
    (found,) = json.loads(capsys.readouterr().out)["benchmarks"]
    (agreed,) = found["agreement"]
    assert agreed["model"] == "alpha" and agreed["judges"] == ["judge", "other"]
    quality, ended = agreed["rows"]
    assert quality["n"] == 24 and quality["kappa"] < quality["weighted"] < 1 and 0.8 < quality["spearman"] < 1
    assert (ended["kappa"], ended["weighted"]) == (1, None)
    shutil.copytree(folder / "a", folder / "again")  # the same judge twice is no agreement of two
    (folder / "again" / "results-other.json").unlink()
    (folder / "a" / "results-other.json").unlink()
    report(folder, "--json", files=("a", "again"))
    assert json.loads(capsys.readouterr().out)["benchmarks"][0]["agreement"] == []


def results(scores, summary, name="made up", metrics=METRICS, **more):
    cases = tuple(Case(score.id, score.category, score.values, {}, score.detail) for score in scores)
    return Results(name, "m", "j", summary, cases, metrics, **more)


def test_what_does_not_apply_is_left_out():
    scores = [Score("1", "", {"image quality": 4, "ended": None}), Score("2", "", {"image quality": None, "ended": 1})]
    one = results(scores, {"image quality": 4.0})
    assert reports.mean_of(one.cases, "image quality").to_json() == {"value": 4, "interval": None, "n": 1}
    assert reports.mean_of(one.cases, "nothing").value is None


def test_samples_of_one_prompt_are_drawn_together():
    """Four images of a prompt that are all alike say no more than one: the interval is that of the prompts."""
    random = np.random.default_rng(0)
    right = random.integers(0, 2, 50).astype(float)
    grouped = [Score(f"{k}-{n}", "", {"ended": right[k]}, {}, {"prompt": str(k)}) for k in range(50) for n in range(4)]
    alone = [Score(f"{k}-{n}", "", {"ended": right[k]}) for k in range(50) for n in range(4)]
    once = [Score(f"{k}", "", {"ended": right[k]}) for k in range(50)]
    width = {}
    for name, scores in (("grouped", grouped), ("alone", alone), ("once", once)):
        figure = reports.mean_of(results(scores, {}).cases, "ended")
        assert figure.value == pytest.approx(right.mean())
        width[name] = figure.interval[1] - figure.interval[0]
    assert width["grouped"] == pytest.approx(width["once"], rel=0.2) and width["alone"] < 0.65 * width["once"]


def test_official_sums_that_are_no_mean_have_an_interval():
    """UEval's overall: the mean of two means over different numbers of answers, by the jackknife."""
    bench, random = benchmark("ueval"), np.random.default_rng(3)
    scores = [
        Score(str(k), "art", {"text": float(random.random()), "image": float(random.random()) if k % 2 else None})
        for k in range(300)
    ]
    one = Results.of(bench, scores, model="m")
    figure = reports.official(one)["overall"]
    texts = [score.values["text"] for score in scores]
    images = [score.values["image"] for score in scores if score.values["image"] is not None]
    spread = 0.5 * np.sqrt(np.var(texts) / 300 + np.var(images) / 150)  # text and image of one answer are independent
    assert figure.value == pytest.approx((np.mean(texts) + np.mean(images)) / 2)
    reach = (figure.interval[1] - figure.interval[0]) / 2
    assert reach == pytest.approx(1.96 * spread, rel=0.15)
    assert reports.official(one)["text"].interval == bootstrap(texts)
    # a summary that the scores do not give is shown as it stands, and without an interval
    assert reports.official(results(scores, {"overall": 0.9}, "ueval", bench.metrics))["overall"].interval is None


def test_the_gallery(folder):
    one = read_results(folder / "a" / "results-judge.json")
    found = reports.chosen(one, 3)
    worth = {case.id: reports.worth(case, one.metrics) for case in one.cases}
    ids = {title: [case.id for case in cases] for title, cases in found.items()}
    assert [worth[id] for id in ids["Best"]] == sorted(worth.values())[::-1][:3]
    assert [worth[id] for id in ids["Worst"]] == sorted(worth.values())[:3]
    assert len({id for title in ids for id in ids[title]}) == 9
    assert reports.chosen(one, 3) == found != reports.chosen(one, 3, seed=1)
    lower = {"image quality": Metric(0, 5, "", lower=True)}
    assert reports.worth(Case("1", "", {"image quality": 5}), lower) == 0
    few = results([Score("1", "", {"ended": 1}), Score("2", "", {"ended": 0}), Score("3", "", {})], {})
    titles = {title: [case.id for case in cases] for title, cases in reports.chosen(few, 4).items()}
    assert titles == {"Best": ["1"], "Worst": ["2"], "By chance": ["3"]}


def test_an_answer_that_is_gone_does_not_stop_the_report(folder):
    assert "not at hand" not in report(folder)
    shutil.rmtree(folder / "b" / "shards")
    text = report(folder)
    assert text.count("The answer is not at hand") == 12 and "does not exist" in text
    assert "<img" not in report(folder, "--gallery", "0")


def test_published_figures_stand_beside_ours(folder, capsys):
    scores = [Score("1", "art", {"text": 0.5, "image": 0.25}), Score("2", "art", {"text": 1.0, "image": 0.25})]
    (folder / "u").mkdir()
    Results.of(benchmark("ueval"), scores, model="mine").write(folder / "u" / "results-x.json")
    report(folder, "--json", files=("u",))
    rows = json.loads(capsys.readouterr().out)["benchmarks"][0]["published"]
    found = {row["model"]: row for row in rows if row["metric"] == "overall"}
    assert found["Nano Banana"]["value"] == 66.0 and "2606.13679" in found["Nano Banana"]["source"]
    assert found["mine"]["value"] == pytest.approx(50.0) and found["mine"]["ours"]  # 0.5, on the scale to 100


def test_every_published_figure_has_its_source():
    found = reports.published()
    assert len(found) > 40
    for one in found:
        assert 0 <= one["value"] <= one["high"] and len(one["source"]) > 10 and one["model"]
        assert one["benchmark"] in reports.NAMES


def test_models_and_judges_have_labels_of_their_own(tmp_path):
    def made(model, judge, folder=None):
        return Results("made up", model, judge, {}, (), folder=folder)

    given = [made("a", "x"), made("a", "y"), made("b", ""), made("a", "x")]
    assert reports._labels(given) == ["a, x (1)", "a, y", "b", "a, x (4)"]
    runs = [made("a", "x", tmp_path / "one"), made("a", "x", tmp_path / "two"), made("a", "y", tmp_path / "two")]
    assert reports._labels(runs) == ["a, x (one)", "a, x (two)", "a, y"]


def test_two_runs_of_one_model_are_two_models_and_not_two_judges(folder, capsys):
    """They share the model's name, but not the answers."""
    write_answers(folder / "c", "alpha", IDS, values(-1), judge="other", seed=5)
    report(folder, "--json", files=("a", "c"))
    (found,) = json.loads(capsys.readouterr().out)["benchmarks"]
    assert [one["judges"] for one in found["agreement"]] == [["judge", "other"]]
    assert [(one["of"], one["to"]) for one in found["differences"]] == [("alpha, other (c)", "alpha, other (a)")]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["a", "--out", "report.txt"], "name of an HTML file"),
        (["nothing", "--out", "r.html"], "nothing does not exist"),
        (["c", "--out", "r.html"], "no file of results"),
        (["a", "a/results-judge.json", "--out", "r.html"], "given twice"),
        (["a", "--out", "r.html", "--gallery", "101"], "0 to 100"),
        (["a", "--out", "r.html", "--seed", "-1"], "at least 0"),
        (["a/shards/00000.tar", "--out", "r.html"], "00000.tar"),
    ],
)
def test_what_is_refused(folder, monkeypatch, capsys, more, sentence):
    (folder / "c").mkdir()
    monkeypatch.chdir(folder)
    assert main(["evaluate", "report", *more, "--quiet"]) == 2
    assert sentence in capsys.readouterr().err


def test_the_table_on_the_terminal(folder, capsys):
    report(folder)
    out = capsys.readouterr().out
    assert re.search(r"alpha, judge, 24 answers\n    image quality: 2\.\d\d  \(\d\.\d\d to \d\.\d\d\)", out)
    assert out.rstrip().endswith("report.html")


@pytest.mark.parametrize("name", THERE)
def test_a_report_of_every_benchmark(name, tmp_path):
    """From small results as the official scorer writes them: its own figures, each in the table."""
    bench, files = benchmark(name), layout(name)
    items = list(bench.items(files.write_requests(tmp_path)))
    scores = bench.results(files.write_results(tmp_path, [item.id for item in items]), items)
    one = Results.of(bench, scores, model="m", judge="official")
    figures = reports.official(one)
    assert {key: figure.value for key, figure in figures.items()} == pytest.approx(dict(one.summary), nan_ok=False)
    for key, figure in figures.items():
        assert figure.scale[0] <= figure.value <= figure.scale[1], key
        assert figure.interval is None or figure.interval[0] <= figure.value <= figure.interval[1], key
    (part,) = reports.sections([one, one], gallery=1)
    text = reports.page([part])
    assert part["figures"] and part["tables"]
    for row in part["figures"]:
        assert str(escape(row["name"])) in text


def test_published_figures_name_sums_that_there_are(tmp_path):
    """Where an entry says what our own sums call it, they do."""
    for name in dict.fromkeys(one["benchmark"] for one in reports.published() if "figure" in one):
        bench, files = benchmark(name), layout(name)
        (tmp_path / name).mkdir()
        items = list(bench.items(files.write_requests(tmp_path / name)))
        scores = bench.results(files.write_results(tmp_path / name, [item.id for item in items]), items)
        known = set(bench.summary(scores))
        for one in reports.published():
            assert one["benchmark"] != name or one.get("figure") is None or one["figure"] in known, one


def test_sums_on_another_scale_and_of_categories():
    scores = [Score(str(k), "ab"[k % 2], {"image quality": float(k % 4), "ended": 1.0}) for k in range(8)]
    mean = {group: np.mean([k % 4 for k in range(8) if "ab"[k % 2] == group]) for group in "ab"}
    shares = results(scores, {"image quality": 0.15, "overall": 0.2, "a: image quality": mean["a"]})
    figures = reports.official(shares)
    assert figures["image quality"].scale == figures["overall"].scale == (0.0, 0.5)  # a tenth of 0 to 5
    assert figures["a: image quality"].scale == (0.0, 5.0) and figures["a: image quality"].count == 4
    assert figures["a: image quality"].interval == bootstrap([0, 2, 0, 2])
    (part,) = reports.sections([shares], gallery=0)
    assert [row["name"] for row in part["figures"]] == ["image quality", "overall"] and part["by_group"] == []
    other = results(scores, {"image quality": 1.5, "a: image quality": mean["a"], "b: image quality": 4.0})
    (part,) = reports.sections([other], gallery=0)  # the official sum of b is not the mean of its scores
    assert [row["name"] for row in part["by_group"]] == ["a: image quality", "b: image quality"]
    assert "The benchmark's figures by category" in reports.page([part])
    alone = results(scores, {"a: image quality": mean["a"]})
    assert [row["name"] for row in reports.sections([alone], gallery=0)[0]["figures"]] == ["a: image quality"]


def test_an_interval_stays_on_its_scale(folder):
    bench = benchmark("ueval")
    scores = [Score(str(k), "", {"text": float(k > 0), "image": float(k > 1)}) for k in range(12)]
    one = Results.of(bench, scores, model="m", about={"unjudged": [HOSTILE] * 1000})
    low, high = reports.official(one)["overall"].interval
    assert 0.6 < low < 11 / 12 - 1 / 24 < high == 1.0
    assert "<td>–</td>" in reports.page(reports.sections([one], gallery=0))


def test_judges_on_two_scales_have_no_labels_in_common():
    """Files made by hand: the one scores image quality to 5, the other to 10."""
    one = Results("made up", "m", "a", {}, (Case("1", "", {"image quality": 3, "ended": 1}),), METRICS)
    metrics = {**METRICS, "image quality": Metric(0, 10, "")}
    other = Results("made up", "m", "b", {}, (Case("1", "", {"image quality": 8, "ended": 1}),), metrics)
    assert [row["metric"] for row in reports.judges_agree(one, other)] == ["ended"]
    assert [row["metric"] for row in reports.differences(one, other)] == ["ended"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_folder_whose_name_is_no_unicode(folder):
    try:
        shutil.copytree(folder / "a", folder / os.fsdecode(b"a\xff"))
    except OSError:
        pytest.skip("this file system has no such names")
    assert "alpha, judge (a?)" in report(folder, files=("a", os.fsdecode(b"a\xff")))


def test_what_the_model_failed_at_is_counted(folder):
    one = read_results(folder / "a" / "results-judge.json")
    for about, said in (({}, "–"), ({"unjudged": 1}, 1), ({"unjudged": 1, "failed": 2}, 3), ({"failed": HOSTILE}, "–")):
        (part,) = reports.sections([dataclasses.replace(one, about=about)], 0)
        assert part["columns"][0]["unjudged"] == said
