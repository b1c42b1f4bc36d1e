"""data dialogues from the command line: shards, resume, kills, replay, failing endpoints, and `data check` of it."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from duogen_core.cli import main
from duogen_core.data.dialogues.engine import DialogueEngine, no_models
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.runs.run import begin
from duogen_core.data.sources import open_source
from tests.core import scripted_writer
from tests.core.dialogue_pages import write_pages
from tests.core.endpoint_server import endpoint_server, hanging, refusing, send
from tests.core.scripted_writer import Writer

ROOT = Path(__file__).parents[4]


def dialogues(pages: Path, out: Path, server, *more: object) -> int:
    where = ["--base-url", server.url] if server else ["--replay"]
    common = [*where, "--model", "tiny", "--shard-documents", 2, "--quiet", *more]
    return main(["data", "dialogues", *map(str, (pages, "--out", out, *common))])


def results(out: Path) -> dict[str, bytes]:
    """All that a run wrote and that may not differ between two runs with the same answers."""
    return {
        f"{name}/{path.name}": path.read_bytes()
        for name in ("shards", "logs")
        for path in sorted((out / name).iterdir())
    }


def log(out: Path) -> list[dict]:
    return [json.loads(line) for file in sorted((out / "logs").iterdir()) for line in file.open()]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    return write_pages(tmp_path_factory.mktemp("pages") / "web", 5)


@pytest.fixture(scope="module")
def whole(pages, tmp_path_factory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with endpoint_server(Writer()) as server:
        assert dialogues(pages, out, server) == 0
    return out


def test_a_run_that_stage_one_can_read(whole, capsys):
    assert main(["data", "check", f"webdataset:{whole / 'shards'}", "--quiet"]) == 0
    source = open_source(f"webdataset:{whole / 'shards'}")
    assert len(source) == 5 and source.load(3).turns[0].text.startswith("How do I do this: Service the water cleaner 3")
    entries = log(whole)
    assert [entry["number"] for entry in entries] == list(range(5)) and all(entry["kept"] for entry in entries)
    assert main(["data", "stats", str(whole)]) == 0
    shown = capsys.readouterr().out
    assert "documents        5  100.0%" in shown and "screenshot  20  100.0%" in shown
    assert len(list((whole / "shards").iterdir())) == 3


def test_replay_needs_no_endpoint_and_gives_the_same_bytes(pages, whole, tmp_path, capsys):
    assert dialogues(pages, tmp_path / "out", None, "--record", whole / "answers.jsonl", "--parallel", 3) == 0
    assert results(tmp_path / "out") == results(whole)
    assert "0 requests, 0 + 0 tokens, 30 answers from the recording" in capsys.readouterr().out
    other = ("--record", whole / "answers.jsonl", "--set", "dialogue.max_request_words=70")
    assert dialogues(pages, tmp_path / "other", None, *other) == 2
    assert "has no answer to the request" in capsys.readouterr().err


def test_a_run_that_is_begun_again_reports_all_that_it_holds(pages, whole, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "out")
    command = pages, out, None, "--record", whole / "answers.jsonl", "--json", tmp_path / "figures.json"
    assert dialogues(*command) == 0
    assert "5 dialogues with 20 images from 5 documents (all done before).\n" in capsys.readouterr().out
    (out / "logs" / "00001.jsonl").unlink()
    assert dialogues(*command) == 0
    assert "5 dialogues with 20 images from 5 documents (3 done before).\n" in capsys.readouterr().out
    found = json.loads((tmp_path / "figures.json").read_text())
    assert (found["documents"], found["kept"], found["pictures"], found["documents_before"]) == (5, 5, 20, 3)


def test_a_run_that_keeps_nothing_says_which_rule_refused_most(pages, whole, tmp_path, capsys):
    refusing_all = "--record", whole / "answers.jsonl", "--set", "document.min_words=9999"
    assert dialogues(pages, tmp_path / "out", None, *refusing_all) == 0
    assert "Nothing was kept: of 5 documents document.min_words refused 5" in capsys.readouterr().out


def test_a_stopped_run_goes_on(pages, whole, tmp_path):
    out = tmp_path / "out"
    writer = Writer()
    with endpoint_server(writer) as server:
        assert dialogues(pages, out, server) == 0
        for name in ("logs/00001.jsonl", "shards/00002.tar", "logs/00002.jsonl"):
            (out / name).unlink()
        (out / "shards" / ".00001.tar.ab12.duogen-tmp").write_bytes(b"half")
        lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
        (out / "answers.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:30])
        log_ = out / "logs" / "00000.jsonl"
        log_.write_bytes(log_.read_bytes()[:-30])  # what a loss of power leaves: half a last line
        before = len(writer.steps)
        assert dialogues(pages, out, server) == 0
    assert results(out) == results(whole)
    assert len(writer.steps) == before + 2, "only the answers that the kill took are asked for again"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills with a signal")
def test_kills_at_any_moment_change_nothing(pages, whole, tmp_path):
    out = tmp_path / "killed"
    with endpoint_server(Writer()) as server:
        command = [sys.executable, "-m", "duogen_core", "data", "dialogues", pages, "--out", out, "--model", "tiny"]
        command += ["--base-url", server.url, "--shard-documents", 2, "--quiet", "--parallel", 2]
        for answers in (3, 17):  # kill it when this many are there
            child = subprocess.Popen(list(map(str, command)), cwd=ROOT)
            file = out / "answers.jsonl"
            while child.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < answers):
                time.sleep(0.005)
            child.kill()
            assert child.wait() in (-signal.SIGKILL, 0)
        assert dialogues(pages, out, server) == 0
    assert results(out) == results(whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_does_not_wait_for_an_answer(pages, tmp_path):
    command = [
        sys.executable,
        "-m",
        "duogen_core",
        "data",
        "dialogues",
        pages,
        "--out",
        tmp_path / "o",
        "--llm",
        "tiny",
    ]
    with endpoint_server(hanging) as server:
        child = subprocess.Popen(
            list(map(str, [*command, "--endpoint", server.url])), cwd=ROOT, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores it
        )  # fmt: skip
        while child.poll() is None and not server.asked:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        errors = child.communicate(timeout=100)[1]  # the server would keep it waiting for 120 seconds
    assert child.returncode == 130 and "the same command goes on" in errors and "Traceback" not in errors


def failing(**by_number):
    """A writer whose dialogue step does something else for the pages with these numbers."""

    def dialogue(body):
        number = scripted_writer.data_of(body, "title").rsplit(" ", 1)[1]
        return by_number.get(f"n{number}") or scripted_writer.dialogue(body)

    return Writer(dialogue=dialogue)


@pytest.mark.slow
def test_failures_are_counted_by_name(pages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("duogen_core.llm.client.time.sleep", lambda _: None)
    monkeypatch.setattr("duogen_core.llm.client._pause", lambda *_: 0.0)
    lies = lambda handler: send(handler, b'{"choices": [', headers={"Content-Length": "500"})  # noqa: E731
    with endpoint_server(failing(n0="Prose.", n1=refusing(400), n2=lies, n3=hanging)) as server:
        figures = tmp_path / "figures.json"
        assert dialogues(pages, tmp_path / "out", server, "--timeout", 1, "--parallel", 4, "--json", figures) == 0
    found = json.loads(figures.read_text())
    assert (found["documents"], found["kept"], found["refused"]) == (5, 1, {"endpoint": 3, "dialogue.answer": 1})
    assert found["usage"]["writer"]["retries"] > 0 and found["usage"]["writer"]["completion_tokens"] > 0
    assert [entry.get("rule") for entry in log(tmp_path / "out")] == ["dialogue.answer", *["endpoint"] * 3, None]
    shown = capsys.readouterr().out
    assert "1 dialogues with 4 images from 5 documents" in shown and "Refused: 3 endpoint, 1 dialogue.answer." in shown
    assert main(["data", "stats", str(tmp_path / "out")]) == 0
    assert "endpoint" in capsys.readouterr().out


def test_an_endpoint_that_is_down_stops_the_run_and_costs_nothing(pages, whole, tmp_path, capsys):
    out = tmp_path / "out"
    with endpoint_server(refusing(401, "no key")) as server:
        assert dialogues(pages, out, server, "--give-up", 3) == 2
    assert "3 documents in a row failed, the last with: " in capsys.readouterr().err
    assert [entry["rule"] for entry in log(out)] == ["endpoint"] * 2
    with endpoint_server(Writer()) as server:
        assert dialogues(pages, out, server) == 0
    assert results(out) == results(whole)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--set", "place.by=none"), "other values of preset;"),
        (("--shard-documents", 3), "other values of shard_documents;"),
        (("--llm", "other"), "other values of eyes, writer;"),
        (("--set", "rewrite.chunk=3"), "which is not a rule"),
        (("--give-up", 0), "--give-up is 0"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(more, words, pages, whole, capsys):
    with endpoint_server(Writer()) as server:
        assert dialogues(pages, whole, server, *more) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_is_no_input(tmp_path, capsys):
    assert main(["data", "dialogues", str(tmp_path), "--out", str(tmp_path / "o"), "--replay", "--llm", "x"]) == 2
    assert "holds no shards" in capsys.readouterr().err


def test_a_damaged_sample_is_one_line(pages, tmp_path):
    tar = tmp_path / "cut.tar"
    data = (pages / "shards" / "00000.tar").read_bytes()
    tar.write_bytes(data[: len(data) // 2])
    with endpoint_server(Writer()) as server:
        assert main(["data", "dialogues", f"webdataset:{tar}", "--out", str(tmp_path / "out"), "--quiet",
                     "--endpoint", server.url, "--llm", "tiny"]) == 0  # fmt: skip
    entries = log(tmp_path / "out")
    assert entries[-1]["rule"] == "unreadable" and "damaged" in entries[-1]["value"] and entries[0]["kept"]


def test_another_describer(pages, tmp_path):
    writer, describer = Writer(), Writer()
    with endpoint_server(writer) as server, endpoint_server(describer) as other:
        assert dialogues(pages, tmp_path / "out", server, "--describer-base-url", other.url, "--eyes-model", "see") == 0
    assert set(describer.steps) == {"describe"} and "describe" not in writer.steps
    made = open_source(f"webdataset:{tmp_path / 'out' / 'shards'}").load(0).meta["dialogue"]
    assert (made["writer"], made["eyes"]) == ("tiny", "see")


def test_begin_refuses_a_shard_without_documents():
    from duogen_core.errors import DuoGenError

    with pytest.raises(DuoGenError, match="A shard has 0 documents"):
        begin(Path("x"), DialogueEngine(load_preset("dialogues"), no_models), 0)


def test_a_machine_that_gives_out_costs_no_document(pages, whole, tmp_path, monkeypatch, capsys):
    from duogen_core.data.dialogues import engine

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    with endpoint_server(Writer()) as server:
        monkeypatch.setattr(engine, "compose", full)
        assert dialogues(pages, out, server) == 2
        assert "This machine failed" in capsys.readouterr().err and log(out) == []
        monkeypatch.undo()
        assert dialogues(pages, out, server) == 0
    assert results(out) == results(whole)
