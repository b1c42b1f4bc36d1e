"""A benchmark as a run: answered, killed, gone on with, exported, imported, judged."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from duogen_core.data.runs.log import json_lines
from duogen_core.data.runs.run import begin, work
from duogen_core.document import Document, Picture, Text
from duogen_core.document.store import save_document
from duogen_core.errors import DuoGenError
from duogen_core.evaluation.benchmarks import Item, benchmark
from duogen_core.evaluation.judging import JudgeEngine, make_way, score_of
from duogen_core.evaluation.models import Model
from duogen_core.evaluation.running import (
    FAILED,
    ImportEngine,
    RunEngine,
    answered,
    checked_items,
    export,
    spread,
)
from duogen_core.llm.answers import Recording
from duogen_core.llm.client import Client, Endpoint
from tests.core.endpoint_server import completion, endpoint_server
from tests.core.evaluation.benchmarks.layout_ueval import write_requests
from tests.core.evaluation.benchmarks.test_contract import layout


class Steps(Model):
    """Writes the request's words back and draws the seed. fails: ids that it raises an error for."""

    name, uses_gpu = "steps", False

    def __init__(self, fails: tuple[str, ...] = (), seconds: float = 0.0) -> None:
        self.fails, self.seconds = fails, seconds

    def identity(self):
        return {"model": self.name}

    def answer(self, item: Item, seed: int) -> Document:
        if item.id in self.fails:
            raise DuoGenError("The model has a headache; try again.")
        return super().answer(item, seed)

    def reply(self, document: Document, images: int | None, seed: int) -> Document:
        time.sleep(self.seconds)
        pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
        said = Text(f"{document.last_turn.text} ({seed})")
        return document.begin_turn("assistant", [said, Picture(pixels, {"seed": seed}), Text("The end.")])


def engine(folder: Path, **how) -> RunEngine:
    model = Steps(how.pop("fails", ()), how.pop("seconds", 0.0))
    return RunEngine("ueval", folder / "ueval.json", lambda: model, **how)


def do(folder: Path, engine, size: int = 2, **how) -> list[dict]:
    return list(work(begin(folder, engine, size), engine, **how))


def files(folder: Path) -> dict[str, bytes]:
    """All of a run but its times."""
    found = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.parent.name != "times")
    return {str(file.relative_to(folder)): file.read_bytes() for file in found if file.name != "answers.jsonl"}


@pytest.fixture
def requests(tmp_path) -> Path:
    return write_requests(tmp_path)


def test_a_run_is_exported_and_imported(tmp_path, requests):
    entries = do(tmp_path / "run", engine(tmp_path))
    assert [entry["id"] for entry in entries] == ["1", "2", "3", "a/b ../c"]
    bench = benchmark("ueval")
    found = list(answered(tmp_path / "run", bench, checked_items(bench, requests)))
    assert all(document.meta["benchmark"] == "ueval" and document.meta["id"] == item.id for item, document in found)
    main = export(bench, found, tmp_path / "submission", "steps")
    assert [entry["image_answer"] for entry in json.loads(main.read_text())][3] == ["images/a_b_.._c-1.png"]
    do(tmp_path / "back", ImportEngine("ueval", requests, tmp_path / "submission", "steps"))
    back = list(answered(tmp_path / "back", bench, checked_items(bench, requests)))
    for (item, ours), (other, theirs) in zip(found, back, strict=True):
        assert item.id == other.id and item.text(ours) == item.text(theirs)
        assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(ours.pictures, theirs.pictures, strict=True))
    again = export(bench, back, tmp_path / "again", "steps")
    assert files(again.parent) == files(main.parent)
    with pytest.raises(DuoGenError, match="is there already"):
        export(bench, back, tmp_path / "again", "steps")


def test_a_failed_export_leaves_what_was_there(tmp_path, requests):
    do(tmp_path / "run", engine(tmp_path))
    bench = benchmark("ueval")
    pairs = list(answered(tmp_path / "run", bench, checked_items(bench, requests)))
    export(bench, pairs, tmp_path / "submission", "steps")
    before = files(tmp_path / "submission")

    def broken():
        yield pairs[0]
        raise DuoGenError("no more")

    with pytest.raises(DuoGenError, match="no more"):
        export(bench, broken(), tmp_path / "submission", "steps", replaced=True)
    assert files(tmp_path / "submission") == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run", "submission", "ueval.json"]
    export(bench, pairs[:1], tmp_path / "submission", "steps", replaced=True)
    assert len(json.loads((tmp_path / "submission" / "submission.json").read_text())) == 1


def test_what_a_scorer_wrote_into_the_submission_stays(tmp_path, requests):
    do(tmp_path / "run", engine(tmp_path))
    bench, out = benchmark("ueval"), tmp_path / "submission"
    pairs = list(answered(tmp_path / "run", bench, checked_items(bench, requests)))
    main = export(bench, pairs, out, "steps", replaced=True)
    images = {file.name for file in (out / "images").iterdir()}
    (out / "images" / "mine.txt").write_text("mine")
    (out / "results").mkdir()
    (out / "results" / "scores.json").write_text("paid for")
    export(bench, pairs[:1], out, "steps", replaced=True)
    assert len(json.loads(main.read_text())) == 1  # what was ours is as the new one is
    left = {file.name for file in (out / "images").iterdir()}
    assert left == {"mine.txt"} | {name for name in images if name.startswith("1-")} != images
    assert (out / "results" / "scores.json").read_text() == "paid for"


def test_what_failed_is_asked_again(tmp_path, requests):
    entries = do(tmp_path / "run", engine(tmp_path, fails=("2",)))
    assert [(entry["id"], entry.get("rule")) for entry in entries if not entry["kept"]] == [("2", FAILED)]
    do(tmp_path / "run", engine(tmp_path))
    do(tmp_path / "whole", engine(tmp_path))
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    with pytest.raises(DuoGenError, match="3 requests in a row failed, the last with: The model has a headache"):
        do(tmp_path / "other", engine(tmp_path, fails=("1", "2", "3")), give_up=3)


def test_other_requests_are_another_run(tmp_path, requests):
    do(tmp_path / "run", engine(tmp_path))
    entries = json.loads(requests.read_text())
    entries[0]["prompt"] = "Another question"
    requests.write_text(json.dumps(entries))
    with pytest.raises(DuoGenError, match="requests"):
        do(tmp_path / "run", engine(tmp_path))


def test_a_limit_is_spread_over_the_file_and_an_answer_does_not_depend_on_it(tmp_path, requests):
    assert spread(10, 4) == [0, 2, 5, 7] and spread(3, 10) == [0, 1, 2]
    do(tmp_path / "run", engine(tmp_path, limit=2))
    do(tmp_path / "whole", engine(tmp_path))
    bench = benchmark("ueval")
    some, every = (
        {item.id: document for item, document in answered(tmp_path / name, bench, checked_items(bench, requests))}
        for name in ("run", "whole")
    )
    assert list(some) == ["1", "3"] and all(every[id_] == some[id_] for id_ in some)


def test_a_process_reads_the_file_once_for_all_its_shards(tmp_path, requests):
    one, opened = engine(tmp_path), []
    chosen = one.chosen_items
    one.chosen_items = lambda: opened.append(1) or chosen()
    ids = [item.id for shard in ([0, 1], [3]) for item in one.read(shard)]
    assert ids == ["1", "2", "a/b ../c"] and len(opened) == 1
    assert [item.id for item in one.read([0, 2])] == ["1", "3"] and len(opened) == 2  # back: from the beginning
    with pytest.raises(DuoGenError, match="has become shorter"):
        list(one.read([9]))


@pytest.mark.parametrize("field, length", [("id", 2001), ("task", 201)])
def test_names_that_no_file_of_results_could_hold(tmp_path, requests, field, length):
    """Told before anything is answered, or paid for."""
    entries = json.loads(requests.read_text())
    entries[1][field] = "x" * length
    requests.write_text(json.dumps(entries))
    with pytest.raises(DuoGenError, match="of a request is too long; expected 2000 and 200"):
        do(tmp_path / "run", engine(tmp_path))


def test_documents_of_the_users_own(tmp_path, requests):
    """Found by their names; a template may have framed the request with more words."""
    bench = benchmark("ueval")
    items = {item.id: item for item in checked_items(bench, requests)}
    framed = Document().begin_turn("user", [Text("Please! " + items["3"].prompt.text)])
    save_document(framed.begin_turn("assistant", [Text("Done.")]), tmp_path / "mine" / "3")
    save_document(items["1"].prompt.begin_turn("assistant", [Text("First.")]), tmp_path / "mine" / "1")
    found = list(answered(tmp_path / "mine", bench, items.values()))
    assert [(item.id, item.text(document)) for item, document in found] == [("1", "First."), ("3", "Done.")]
    assert found[1][1].turns[0] == items["3"].prompt.turns[0]
    save_document(framed.begin_turn("assistant", [Text("Done.")]), tmp_path / "mine" / "4")
    with pytest.raises(DuoGenError, match="answers '4', which no request has"):
        list(answered(tmp_path / "mine", bench, items.values()))
    with pytest.raises(DuoGenError, match="does not exist"):
        list(answered(tmp_path / "nothing", bench, items.values()))


def test_a_submission_in_any_order_is_imported(tmp_path, requests):
    """Whoever wrote it: the answers are found again under their requests."""
    do(tmp_path / "run", engine(tmp_path))
    bench = benchmark("ueval")
    pairs = list(answered(tmp_path / "run", bench, checked_items(bench, requests)))
    main = export(bench, pairs, tmp_path / "submission", "steps")
    main.write_text(json.dumps(json.loads(main.read_text())[::-1]))
    do(tmp_path / "back", ImportEngine("ueval", requests, tmp_path / "submission", "steps"))
    back = {item.id: document for item, document in answered(tmp_path / "back", bench, checked_items(bench, requests))}
    assert {item.id: item.text(document) for item, document in pairs} == {
        item.id: item.text(back[item.id]) for item, _ in pairs
    }


@pytest.mark.parametrize("name", ["imgedit", "gedit", "geneval", "comm", "weave"])
def test_a_folder_without_an_answer_is_not_imported_as_none(tmp_path, name):
    """Their images are found by their place, so a wrong folder is one where all are missing."""
    file = layout(name).write_requests(tmp_path)
    (tmp_path / "other" / "m" / "fullset").mkdir(parents=True)
    with pytest.raises(DuoGenError, match="other answers none of the requests of"):
        do(tmp_path / "back", ImportEngine(name, file, tmp_path / "other", "m"))
    assert not (tmp_path / "back").exists()


def test_answers_to_other_words_under_the_same_ids_are_refused(tmp_path, requests):
    """Another version of the file of requests: what was asked then is not what would be judged now."""
    do(tmp_path / "run", engine(tmp_path))
    entries = json.loads(requests.read_text())
    entries[1]["prompt"] += " In winter."
    requests.write_text(json.dumps(entries))
    bench = benchmark("ueval")
    with pytest.raises(DuoGenError, match="answers a request '2' with other words or images"):
        list(answered(tmp_path / "run", bench, checked_items(bench, requests)))


def test_the_name_of_a_document_is_an_id_whatever_is_in_it(tmp_path, requests):
    from duogen_core.evaluation.answer_sets import open_answers

    entries = json.loads(requests.read_text())
    entries[0]["id"] = "v1.5"
    requests.write_text(json.dumps(entries))
    bench = benchmark("ueval")
    first = next(iter(checked_items(bench, requests)))
    document = first.prompt.begin_turn("assistant", [Text("Ice.")])
    save_document(replace(document, meta={"id": "of another affair"}), tmp_path / "mine" / "v1.5")
    for place in ("mine", "mine/v1.5", "mine/v1.5/document.json"):
        ((item, _),) = answered(tmp_path / place, bench, checked_items(bench, requests))
        assert item.id == "v1.5"
    assert open_answers(tmp_path / "mine").ids == ["v1.5"]


def test_a_run_of_another_kind_is_named(tmp_path, requests):
    do(tmp_path / "run", engine(tmp_path))
    with pytest.raises(DuoGenError, match="made by `evaluate judge`"):
        do(tmp_path / "run", judging(requests, tmp_path / "run", "http://127.0.0.1:1/v1", tmp_path / "a.jsonl"))


# ------------------------------------------------------------ judging


def judging(requests: Path, answers: Path, url: str, recording: Path, mode: str = "record") -> JudgeEngine:
    endpoint = Endpoint(url, "judge", attempts=1, answers=2)
    return JudgeEngine("ueval", requests, answers, lambda: Client(endpoint, Recording(recording, mode)))


def says(met: str = "yes", reason: str = "It is seen."):
    return completion(json.dumps({"reason": reason, "met": met}))


def test_a_judge_is_asked_every_rubric_once(tmp_path, requests):
    do(tmp_path / "run", engine(tmp_path))
    with endpoint_server(says("yes"), says("no", "No dust."), says("unsure"), says("yes")) as server:
        entries = do(tmp_path / "judged", judging(requests, tmp_path / "run", server.url, tmp_path / "a.jsonl"))
        asked = len(server.asked)
        again = do(tmp_path / "judged2", judging(requests, tmp_path / "run", server.url, tmp_path / "a.jsonl"))
        assert len(server.asked) == asked == 9  # rubrics: 2 + 2 + 3 + 2
    assert [score_of(entry).values for entry in entries] == [
        {"text": 1.0, "image": 0.0},
        {"text": 0.5, "image": None},
        {"text": None, "image": 1.0},
        {"text": 1.0, "image": 1.0},
    ]
    assert entries[0]["reasons"]["image"] == "No dust."
    assert [entry["values"] for entry in again] == [entry["values"] for entry in entries]
    body = server.asked[1][2]
    assert sum(part["type"] == "image_url" for part in body["messages"][-1]["content"]) == 1
    replayed = judging(requests, tmp_path / "run", "http://127.0.0.1:1/v1", tmp_path / "a.jsonl", "replay")
    do(tmp_path / "judged3", replayed)
    assert files(tmp_path / "judged3") == files(tmp_path / "judged")


def test_a_judge_that_answers_out_of_scale_or_in_prose(tmp_path, requests):
    do(tmp_path / "run", engine(tmp_path))
    replies = [completion("Great answer!"), says("perhaps"), *[says()] * 30]
    with endpoint_server(*replies) as server:
        entries = do(tmp_path / "judged", judging(requests, tmp_path / "run", server.url, tmp_path / "a.jsonl"), 1)
        assert [entry.get("rule") for entry in entries] == ["judge_failed", None, None, None]
        assert "text 1" in entries[0]["value"]


def test_another_question_or_another_judge_is_another_judging(tmp_path, requests, monkeypatch):
    from duogen_core.evaluation.benchmarks.ueval import UEval

    do(tmp_path / "run", engine(tmp_path))

    def judge(url: str, options=None, **how) -> JudgeEngine:
        endpoint = Endpoint(url, "judge", options=options or {})
        client = lambda: Client(endpoint, Recording(tmp_path / "a.jsonl"))  # noqa: E731
        return JudgeEngine("ueval", requests, tmp_path / "run", client, **how)

    with endpoint_server(says()) as server:
        do(tmp_path / "judged", judge(server.url))
        for other, named in (
            (judge(server.url, {"reasoning_effort": "low"}), "options"),
            (judge(server.url, about={"dtype": "bf16"}), "dtype"),
        ):
            with pytest.raises(DuoGenError, match=f"begun with other values of {named};"):
                do(tmp_path / "judged", other)
        asks = UEval.asks
        changed = lambda *given: [replace(ask, prompt=ask.prompt + " Be kind.") for ask in asks(*given)]  # noqa: E731
        monkeypatch.setattr(UEval, "asks", changed)
        with pytest.raises(DuoGenError, match="begun with other values of questions;"):
            do(tmp_path / "judged", judge(server.url))


def test_more_answers_are_judged_and_the_others_are_not_paid_for_again(tmp_path, requests):
    """What failed in the run was asked again since: the judging has answers of another number, and the same replies."""
    do(tmp_path / "run", engine(tmp_path, fails=("2",)))
    file, judged = tmp_path / "judged" / "answers.jsonl", tmp_path / "judged"
    judged.mkdir()
    with endpoint_server(says()) as server:
        do(judged, judging(requests, tmp_path / "run", server.url, file))
        assert len(server.asked) == 7
        assert not make_way(judged, judging(requests, tmp_path / "run", server.url, file), 2)
        do(tmp_path / "run", engine(tmp_path))
        more = judging(requests, tmp_path / "run", server.url, file)
        with pytest.raises(DuoGenError, match="begun with other values of answers"):
            do(judged, more)
        assert make_way(judged, more, 2)
        assert [entry["id"] for entry in do(judged, more)] == ["1", "2", "3", "a/b ../c"]
        assert len(server.asked) == 9
        other = judging(requests, tmp_path / "run", server.url, file)
        other.about_judge = {"dtype": "bf16"}
        other.answers = tmp_path / "run"
        assert not make_way(judged, other, 2)


def test_questions_that_changed_do_not_make_way(tmp_path, requests, monkeypatch):
    from duogen_core.evaluation.benchmarks.ueval import UEval

    do(tmp_path / "run", engine(tmp_path, fails=("2",)))
    with endpoint_server(says()) as server:
        do(tmp_path / "judged", judging(requests, tmp_path / "run", server.url, tmp_path / "a.jsonl"))
    do(tmp_path / "run", engine(tmp_path))
    asks = UEval.asks
    monkeypatch.setattr(UEval, "asks", lambda *given: [replace(ask, prompt=ask.prompt + " !") for ask in asks(*given)])
    assert not make_way(
        tmp_path / "judged", judging(requests, tmp_path / "run", "http://x/v1", tmp_path / "a.jsonl"), 2
    )


def test_an_endpoint_that_stops_half_way(tmp_path, requests):
    """The same command goes on, and nothing is judged twice."""
    do(tmp_path / "run", engine(tmp_path))
    down = lambda handler: handler.send_error(500)  # noqa: E731
    with endpoint_server(says(), says(), says(), down) as server, pytest.raises(DuoGenError, match="in a row failed"):
        do(tmp_path / "judged", judging(requests, tmp_path / "run", server.url, tmp_path / "a.jsonl"), give_up=2)
    with endpoint_server(says()) as server:
        do(tmp_path / "judged", judging(requests, tmp_path / "run", server.url, tmp_path / "a.jsonl"))
        assert len(server.asked) == 6  # of nine
    with endpoint_server(says()) as server:
        do(tmp_path / "whole", judging(requests, tmp_path / "run", server.url, tmp_path / "b.jsonl"))
    assert files(tmp_path / "judged") == files(tmp_path / "whole")


# ------------------------------------------------------------ kill -9


def killed_at_moments(make, folder: Path, kills: int = 20) -> int:
    """Runs `make()` into the folder in a child that is killed at some moment, again and again; the number of kills."""
    moments, killed = random.Random(0), 0
    started = time.perf_counter()
    do(folder.with_name("timed"), make(), 1)
    usual = time.perf_counter() - started
    while killed < kills:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                do(folder, make(), 1)
                code = 0
            except BaseException:
                folder.with_name("error.txt").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        time.sleep(moments.uniform(0.0, usual / 3))
        os.kill(child, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended != 1, folder.with_name("error.txt").read_text()
        if ended < 0:  # or by another signal: a fork of a process that has threads of other libraries may crash
            killed += 1
        else:  # it had ended, and another begins
            assert files(folder) == files(folder.with_name("timed"))
            shutil.rmtree(folder)
    do(folder, make(), 1)
    return killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_kill_9_costs_nothing_but_time(tmp_path, requests):
    assert killed_at_moments(lambda: engine(tmp_path, seconds=0.02), tmp_path / "run") == 20
    assert files(tmp_path / "run") == files(tmp_path / "timed")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_kill_9_of_a_judge_pays_for_nothing_twice(tmp_path, requests):
    do(tmp_path / "run", engine(tmp_path))
    slow = lambda handler: (time.sleep(0.01), handler.send_response(200), _write(handler))  # noqa: E731
    with endpoint_server(slow) as server:
        turn = iter(range(1000))

        def make() -> JudgeEngine:
            # of the undisturbed run its own recording
            file = tmp_path / ("timed.jsonl" if next(turn) == 0 else "a.jsonl")
            return judging(requests, tmp_path / "run", server.url, file)

        assert killed_at_moments(make, tmp_path / "judged") == 20
    assert files(tmp_path / "judged") == files(tmp_path / "timed")
    lines = list(json_lines(tmp_path / "a.jsonl"))
    assert len({line["key"] for line in lines}) == len(lines) == 9


def _write(handler) -> None:
    body = says()
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
