"""Every benchmark through the contract of `duogen_core.evaluation.benchmarks`, with small files in its own layout.

A benchmark's files are written by layout_NAME.py beside this test: `write_requests(folder) -> file`, at least four
requests, hard ones among them (text of several lines, quotes, other scripts, an id that is no file name if ids may be
so), and `write_results(folder, ids) -> file or folder`, as the official scorer writes them.
"""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from duogen_core.data.runs.run import begin, work
from duogen_core.document import Document, Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import NAMES, Item, benchmark, by_id
from duogen_core.evaluation.judging import messages_for
from duogen_core.evaluation.running import ImportEngine, checked_items
from duogen_core.evaluation.running import answered as find_answers

HERE = Path(__file__).parent
THERE = [name for name in NAMES if (HERE / f"layout_{name}.py").is_file()]


def layout(name: str):
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"layout_{name}", HERE / f"layout_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(number: int) -> Picture:
    return Picture(np.random.default_rng(number).integers(0, 255, (24, 32, 3), np.uint8))


def answered(item: Item, number: int) -> Document:
    """What some model might give: as many pictures as are due, or none at all (the last of four says nothing)."""
    replies = []
    for turn in range(1 + len(item.later)):
        due = 2 if item.due(turn) is None else item.due(turn)
        parts = []
        for k in range(due if number % 4 != 3 else 0):
            parts += [
                Text(f"Step {k + 1}: “fold” (3) the paper\nof turn {turn}. "),
                picture(100 * number + 10 * turn + k),
            ]
        if number % 4 != 3:
            parts.append(Text("The end."))
        replies.append(parts)
    return item.conversation(replies)


@pytest.fixture(params=THERE)
def case(request, tmp_path):
    bench = benchmark(request.param)
    file = layout(request.param).write_requests(tmp_path)
    items = list(bench.items(file))
    return bench, file, items, [(item, answered(item, number)) for number, item in enumerate(items)]


def test_items(case):
    bench, file, items, _ = case
    assert len(by_id(file, items)) == len(items) >= 4
    for item in items:
        assert len(item.images_later) in (0, len(item.later))
        assert item.prompt.last_turn.role == "user" and (item.prompt.text.strip() or item.prompt.pictures)
    assert bench.title and bench.source and bench.metrics


def test_a_submission_comes_back(case, tmp_path):
    """Texts and pictures of every answer, as many and in their order (a JPEG loses a little)."""
    bench, _, items, answers = case
    (tmp_path / "out").mkdir()
    main = bench.export(answers, tmp_path / "out", "duogen-tiny")
    assert main.exists() and main.is_relative_to(tmp_path / "out")
    back = {item.id: document for item, document in bench.read(tmp_path / "out", items)}
    for item, document in answers:
        ours = item.pictures(document)
        if not ours and item.id not in back:
            continue
        theirs = item.pictures(back[item.id])
        assert len(theirs) == len(ours), item.id
        for one, other in zip(ours, theirs):
            assert one.size == other.size
            assert np.abs(one.pixels.astype(int) - other.pixels).mean() < 40


def test_a_submission_is_imported_and_its_answers_are_found(case, tmp_path):
    """As a run, and under the requests that they answer, in the order of the submission."""
    bench, file, items, answers = case
    (tmp_path / "out").mkdir()
    bench.export(answers, tmp_path / "out", "duogen-tiny")
    engine = ImportEngine(bench.name, file, tmp_path / "out", "m")
    list(work(begin(tmp_path / "run", engine, 2), engine))
    back = {item.id: document for item, document in find_answers(tmp_path / "run", bench, checked_items(bench, file))}
    there = [item.id for item, _ in bench.read(tmp_path / "out", items)]
    assert list(back) == there and len(there) >= len(items) - 1


def test_results_are_read(case, tmp_path):
    bench, _, items, _ = case
    place = layout(bench.name).write_results(tmp_path, [item.id for item in items])
    scores = bench.results(place, items)
    assert {score.id for score in scores} == {item.id for item in items}
    for score in scores:
        for name, value in score.values.items():
            metric = bench.metrics[name]
            assert value is None or metric.low <= value <= metric.high, name
    assert bench.summary(scores)
    assert bench.results(place, [replace(item, prompt=Document(), later=()) for item in items]) == scores


def test_a_judge_can_be_asked(case):
    """Every question has a schema that can be compiled, and a reply that fits it gives a score on the scale."""
    bench, _, _, answers = case
    for item, document in answers:
        said = {}
        for ask in bench.asks(item, document):
            jsonschema.Draft202012Validator.check_schema(ask.schema)
            said[ask.key] = smallest(ask.schema)
            jsonschema.validate(said[ask.key], ask.schema)
            assert all(f"${{{name}}}" in ask.prompt for name in ask.data)
        score = bench.score(item, document, said)
        assert score.id == item.id and set(score.values) <= set(bench.metrics)
        for name, value in score.values.items():
            assert value is None or bench.metrics[name].low <= value <= bench.metrics[name].high
        unjudged = bench.score(item, document, {})
        assert all(unjudged.values.get(name) is None for name, metric in bench.metrics.items() if metric.by == "judge")


def smallest(schema):
    """A value that fits a schema of the kind judges get."""
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = schema["type"]
    if kind == "object":
        return {name: smallest(one) for name, one in schema["properties"].items()}
    if kind == "array":
        return [smallest(schema["items"])] * schema.get("minItems", 0)
    return {"string": "because", "integer": schema.get("minimum", 0), "number": schema.get("minimum", 0),
            "boolean": False}[kind]  # fmt: skip


def test_other_files_are_refused_with_a_sentence(case, tmp_path):
    bench, _, items, _ = case
    other = tmp_path / "other.json"
    for content in ('[{"a": 1}]', "[]", "{", "[1]", '[{"id": "1"}]'):
        other.write_text(content)
        with pytest.raises(DuoGenError, match="other.json"):
            by_id(other, bench.items(other))
        with pytest.raises(DuoGenError):
            bench.results(other, items)
    with pytest.raises(DuoGenError, match="does not exist"):
        list(bench.items(tmp_path / "nothing.json"))


def test_no_name_leaves_the_folder(case, tmp_path):
    """A submission edited by hand, whose pictures lie elsewhere, is refused."""
    bench, _, items, answers = case
    (tmp_path / "out").mkdir()
    main = bench.export(answers, tmp_path / "out", "duogen-tiny")
    if not main.is_file() or main.suffix not in (".json", ".jsonl"):
        pytest.skip("its pictures are found by their place")
    (tmp_path / "secret.png").write_bytes(picture(1).to_png())
    text = main.read_text("utf-8")
    names = set(_names(json.loads(text) if main.suffix == ".json" else
                                     [json.loads(line) for line in text.splitlines()]))  # fmt: skip
    assert names
    for name in names:
        text = text.replace(json.dumps(name), '"../secret.png"')
    main.write_text(text, "utf-8")
    with pytest.raises(DuoGenError, match="secret"):
        list(bench.read(tmp_path / "out", items))


@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", "..", "a/b\\c: d?"])
def test_no_name_of_a_model_leaves_the_folder(case, tmp_path, name):
    bench, _, items, answers = case
    before = {one for one in tmp_path.rglob("*") if one.is_file()}
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    main = bench.export(answers, out, name.replace("/elsewhere", f"{tmp_path}/elsewhere"))
    assert main.resolve().is_relative_to(out)
    written = {one for one in tmp_path.rglob("*") if one.is_file()} - before
    assert written and all(one.is_relative_to(out) for one in written)
    assert len(list(bench.read(out, items))) >= len(items) - 1


def _names(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _names(one)
    elif isinstance(value, str) and value.lower().endswith((".png", ".jpg", ".jpeg")):
        yield value


OTHER_KINDS = (
    None, 5, -1, True, 10**400, [], {}, [None], {"a": 1}, "", "x" * 3000, "a/" * 3000, "../x", "\0", "9" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("part", ["requests", "submission", "results"])
def test_parts_of_another_kind_end_in_a_sentence(case, part, tmp_path):
    """Whatever stands in any place of a file, it is read, or refused with a sentence; nothing ends in a traceback."""
    bench, file, items, answers = case
    if part == "requests":
        place = file
    elif part == "results":
        place = layout(bench.name).write_results(tmp_path, [item.id for item in items])
    else:
        (tmp_path / "out").mkdir()
        bench.export(answers, place := tmp_path / "out", "duogen-tiny")

    def read():
        if part == "submission":
            return list(bench.read(place, items))
        if part == "results":
            return bench.summary(bench.results(place, items))
        for number, item in enumerate(by_id(file, bench.items(file)).values()):
            document = answered(item, number)
            said = {ask.key: smallest(ask.schema) for ask in bench.asks(item, document) if messages_for(ask)}
            bench.score(item, document, said)

    files = [place] if place.is_file() else sorted(place.rglob("*.json*"))
    files = [one for one in files if one.suffix in (".json", ".jsonl") and one.stat().st_size]
    chance = random.Random(bench.name)
    for _ in range(30 if files else 0):
        changed = chance.choice(files)
        good = changed.read_text("utf-8")
        entries = [json.loads(line) for line in good.splitlines()] if changed.suffix == ".jsonl" else json.loads(good)
        if not (places := list(_places(entries))):
            continue
        container, key = chance.choice(places)
        container[key] = chance.choice(OTHER_KINDS)
        lines = entries if changed.suffix == ".jsonl" else [entries]
        changed.write_text("\n".join(map(json.dumps, lines)), "utf-8")
        with suppress(DuoGenError):
            read()
        changed.write_text(good, "utf-8")


def _places(value):
    """(list or object, index or name) of everything in a value, but for what stands far back in a list."""
    for key in value if isinstance(value, dict) else range(min(len(value), 3)) if isinstance(value, list) else ():
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def test_a_conversation_goes_on_whatever_was_answered():
    later = ((Text("b"),), (Text("c"),))
    item = Item("1", Document().begin_turn("user", [Text("a")]), later=later)
    document = item.conversation([[Text("x")], []])
    assert [(turn.role, turn.text) for turn in document.turns] == [
        ("user", "a"), ("assistant", "x"), ("user", "b"), ("assistant", ""), ("user", "c"), ("assistant", ""),
    ]  # fmt: skip
    assert item.replies(document) == [(Text("x"),), (), ()]


def test_a_benchmark_that_is_not_there():
    with pytest.raises(DuoGenError, match="choose from ueval, opening"):
        benchmark("uval")
    assert import_module("duogen_core.evaluation.benchmarks.ueval").BENCHMARK().name == "ueval"
