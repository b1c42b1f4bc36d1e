"""Files of results: the round trip, where answers lie, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from duogen_core.data.runs.shards import add_document, as_png
from duogen_core.document import Document, Picture, Text
from duogen_core.document.store import save_document
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import Metric, Score, benchmark
from duogen_core.evaluation.results import Case, Results, read_results

HOSTILE = "</script><b>1</b>\u2028 “x”"


def answer(number: int) -> Document:
    picture = Picture(np.full((8, 8, 3), number, np.uint8))
    return Document().begin_turn("user", [Text("Q")]).begin_turn("assistant", [Text(f"A{number}"), picture])


def small(**changes):
    cases = (
        Case("1", "art", {"text": 0.5, "image": None}, {"text": HOSTILE}, {"n": [1]}, "documents/1"),
        Case(HOSTILE, "", {"text": 1}),
    )
    metrics = {"text": Metric(0, 1, "rubrics met"), "image": Metric(0, 1, "rubrics met", "check", True)}
    values = {"benchmark": "ueval", "model": "a", "judge": "b", "summary": {"text": 0.75}, "cases": cases}
    return Results(**{**values, "metrics": metrics, "about": {"spent": {"requests": 3}}, **changes})


def test_a_file_comes_back(tmp_path):
    results = small()
    results.write(tmp_path / "r.json")
    back = read_results(tmp_path / "r.json")
    assert back.folder == tmp_path
    assert back.cases == results.cases and back.metrics == results.metrics and back.about == results.about
    assert (back.benchmark, back.model, back.judge, back.summary) == ("ueval", "a", "b", {"text": 0.75})
    back.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "r.json").read_bytes()


def test_of_scores(tmp_path):
    scores = [Score("1", "art", {"text": 0.5, "image": 1.0}), Score("2", "art", {"text": 1.0, "image": None})]
    made = Results.of(benchmark("ueval"), scores, model="m", judge="j", documents={"2": "x/2"}, about={"seed": 1})
    made.write(tmp_path / "r.json")
    back = read_results(tmp_path / "r.json")
    assert [case.score for case in back.cases] == scores and back.cases[1].document == "x/2"
    assert back.summary["overall"] == 0.875 and back.about == {"seed": 1} and set(back.metrics) == {"text", "image"}


def test_documents_lie_in_folders_and_in_tars(tmp_path):
    import tarfile

    save_document(answer(1), tmp_path / "documents" / "1")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for number in (2, 3):
            add_document(archive, f"{number:08d}", answer(number), lambda picture: as_png(picture.pixels))
    places = ["documents/1", "documents/1/document.json", "s.tar#00000002", "s.tar#00000003"]
    cases = tuple(Case(str(number), "", {}, document=place) for number, place in enumerate(places))
    results = small(cases=cases, folder=tmp_path)
    assert [results.document(case).last_turn.text for case in cases] == ["A1", "A1", "A2", "A3"]
    with pytest.raises(DuoGenError, match="no sample '9'"):
        results.document(Case("9", "", {}, document="s.tar#9"))
    with pytest.raises(DuoGenError, match="do not say where"):
        results.document(Case("9", "", {}))
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "documents" / "1")
    with pytest.raises(DuoGenError, match="leaves the folder"):
        small(folder=tmp_path / "inside").document(Case("9", "", {}, document="link"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in ("loop", "loop#1", "x" * 5000):
        with pytest.raises(DuoGenError):
            results.document(Case("9", "", {}, document=place))


@pytest.mark.parametrize(
    "path, value, says",
    [
        (("format",), "duogen-report", "no file of results"),
        (("version",), 2, "reads version 1"),
        (("version",), True, "reads version 1"),
        (("model",), "", "model"),
        (("model",), "m" * 201, "at most 200"),
        (("judge",), None, "judge"),
        (("summary",), {"text": "0.5"}, "expected a number"),
        (("summary",), [1], "expected an object"),
        (("summary",), {"text": 1e300}, "expected a number up to"),
        (("cases",), {}, "expected a list"),
        (("cases", 0), 1, "case 1"),
        (("cases", 1, "id"), "1", "two cases with the id '1'"),
        (("cases", 0, "values", "text"), 1.5, r"case 1 \('1'\).* from 0 to 1"),
        (("cases", 0, "values", "text"), True, "expected a number"),
        (("cases", 0, "values", "other"), 1, "no metric 'other'"),
        (("cases", 0, "reasons", "text"), 3, "expected a text"),
        (("cases", 0, "document"), "../secret", "not allowed"),
        (("cases", 0, "document"), "/etc/passwd", "not allowed"),
        (("cases", 0, "document"), "c:\\x", "not allowed"),
        (("cases", 0, "more"), 1, "'more' is not known"),
        (("metrics", "text", "low"), 2, "low below high"),
        (("metrics", "text", "by"), "me", "judge or check"),
    ],
)
def test_what_is_refused(tmp_path, path, value, says):
    whole = place = json.loads(json.dumps(small().to_json()))
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    file = tmp_path / "r.json"
    file.write_text(json.dumps(whole), "utf-8")
    with pytest.raises(DuoGenError, match=says) as raised:
        read_results(file)
    assert "r.json" in str(raised.value)


def test_nothing_is_written_that_cannot_be_read(tmp_path):
    wrong = small(cases=(Case("1", "", {"text": float("nan")}),))
    with pytest.raises(DuoGenError, match="expected a number"):
        wrong.write(tmp_path / "r.json")
    with pytest.raises(DuoGenError):
        small(cases=(Case("1", "", {"text": 7.0}),)).write(tmp_path / "r.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "r.json").write_text('{"format": "duogen-benchmark", "version": 1, "x": NaN}')
    with pytest.raises(DuoGenError, match="NaN"):
        read_results(tmp_path / "r.json")
