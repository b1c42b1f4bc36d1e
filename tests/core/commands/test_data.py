"""Every command of `data`: --json means the same in all of them."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from duogen_core.cli import COMMANDS, command_of, main
from tests.core.sample_sets import guide, write_documents
from tests.core.synthetic_writer import write_taxonomy, writing_server

ROOT = Path(__file__).parents[3]


def modules(commands: dict, name: str = "data"):
    for each, (_, inside, *_) in commands.items():
        if isinstance(inside, dict):
            yield from modules(inside, f"{name} {each}")
        else:
            yield f"{name} {each}", inside


DATA = dict(modules(COMMANDS["data"][1]))


def parser_of(module: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    command_of(module).add_arguments(parser)
    return parser


def test_json_is_one_option(tmp_path, capsys):
    """Without a file it prints figures and nothing else; with one, as it ever was, the text is printed too."""
    options = [a for m in DATA.values() for a in parser_of(m)._actions if "--json" in a.option_strings]
    assert len(options) >= 11 and {(each.nargs, each.const) for each in options} == {("?", "-")}
    source = f"documents:{write_documents(tmp_path / 'set', [guide(0), guide(1)])}"
    assert main(["data", "check", source, "--json", "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["totals"]["good"] == 2
    assert main(["data", "check", source, "--json", str(tmp_path / "report.json"), "--quiet"]) == 0
    assert "samples" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text()) == printed
    assert main(["data", "check", "--json"]) == 2  # with nothing to look at


def test_a_resumed_export_says_what_is_there(tmp_path, capsys):
    source = f"documents:{write_documents(tmp_path / 'set', [guide(i) for i in range(5)])}"
    command = ["data", "export", source, "--out", str(tmp_path / "out"), "--shard-samples", "2", "--to", "webdataset"]
    assert main(command) == 0
    first = capsys.readouterr()
    assert "5 documents written." in first.out and "bad_samples" not in first.out
    assert not (tmp_path / "out" / "bad_samples.jsonl").exists()
    rates = [int(found.replace(",", "")) for found in re.findall(r"([\d,]+) a second", first.err)]
    assert all(rate < 100_000 for rate in rates)
    assert main(command) == 0
    assert "0 documents written; 5 were done before." in capsys.readouterr().out


@pytest.fixture
def begun(tmp_path, capsys):
    """A folder of steps whose `expand` found its endpoint down and whose `plan` went well."""
    folder, model = tmp_path / "run", ["--llm", "tiny", "--quiet"]
    taxonomy = ["--taxonomy", str(write_taxonomy(tmp_path / "taxonomy"))]
    with writing_server() as server:
        pass  # it is gone again
    down = ["--endpoint", server.url, *taxonomy]
    import duogen_core.llm.client as client

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "_pause", lambda *_: 0.0)
        assert main(["data", "synthetic", "expand", str(folder), *down, *model]) == 2
    with writing_server() as server:
        plan = ["data", "synthetic", "plan", str(folder), "--limit", "1", "--endpoint", server.url, *taxonomy, *model]
        assert main(plan) == 0
    capsys.readouterr()
    return folder


def test_a_step_that_finished_nothing_hides_no_other(begun, capsys):
    assert main(["data", "stats", str(begun)]) == 0
    shown = capsys.readouterr().out
    assert "answers" in shown and f"{begun / 'expand'}\nbegun, and nothing is finished yet" in shown
    assert main(["data", "stats", str(begun), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["plan"]
    assert main(["data", "view", str(begun), "--quiet"]) == 0
    assert "nothing is finished yet" in (begun / "report.html").read_text("utf-8")
    assert main(["data", "stats", str(begun / "expand")]) == 2
    error = capsys.readouterr().err
    assert "no finished shard yet; run the command that made it again" in error and "--out" not in error


def test_a_run_that_refused_everything_can_be_looked_at(tmp_path, capsys, monkeypatch):
    from duogen_core.data.runs import Outcome
    from duogen_core.data.synthetic import drawing

    refused = {"kept": False, "rule": "few_pictures", "value": "0", "pictures": []}
    monkeypatch.setattr(drawing.AnswerEngine, "do", lambda *_: Outcome(refused))
    command = ["data", "synthetic", "answer", str(tmp_path / "run"), "--limit", "1", "--quiet"]
    for _ in ("begun", "done before"):
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert "refused: 1 few_pictures:" in shown
        assert "Nothing was kept: of 1 documents few_pictures refused 1. `data stats" in shown
    assert main(["data", "view", str(tmp_path / "run"), "--quiet"]) == 0
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Documents: none was kept" in page and "few_pictures" in page
    capsys.readouterr()


@pytest.mark.parametrize("kind", ["web", "video", "editing"])
@pytest.mark.parametrize("details", [{}, {"preset": 3, "paths": []}, []])
def test_a_run_that_does_not_say_what_it_was_begun_with_cannot_be_looked_at(kind, details, tmp_path, capsys):
    for name in ("shards", "logs", "times"):
        (tmp_path / "run" / name).mkdir(parents=True)
    about = {"format": f"duogen-{kind}-run", "version": 1, "identity": {}, "items": 1, "shards": 1, "details": details}
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    (tmp_path / "run" / "plan.jsonl").write_text('{"shard": 0, "first": 0, "items": [[0, "a.html"]]}\n')
    entry = {"number": 0, "entry": 0, "page": "a.html", "kept": False, "rule": "small", "value": 3, "pictures": []}
    (tmp_path / "run" / "logs" / "00000.jsonl").write_text(json.dumps(entry) + "\n")
    (tmp_path / "run" / "times" / "00000.json").write_text('{"pages": 1, "seconds": 1.0, "stages": {}}')
    assert main(["data", "view", str(tmp_path / "run"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and "run.json cannot be read" in error
        and not (tmp_path / "run" / "report.html").exists()
    )


def test_dialogues_without_a_model(tmp_path, capsys):
    from tests.core.dialogue_pages import write_pages

    pages = write_pages(tmp_path / "web", 3)
    off = [word for step in ("describe", "rewrite", "dialogue") for word in ("--set", f"{step}.ask=false")]
    command = ["data", "dialogues", str(pages), "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*command, *off]) == 0
    shown = capsys.readouterr().out
    assert "3 dialogues" in shown and "No model was asked." in shown
    assert main([*command, *off]) == 0  # goes on: nothing is left to do
    (tmp_path / "other").mkdir()
    command[4] = str(tmp_path / "other" / "out")
    assert main([*command, *off[:-2]]) == 2  # one step still asks
    assert "--llm is missing" in capsys.readouterr().err
    assert main([*command, *off, "--set", "place.by=model"]) == 2
    assert "--llm is missing" in capsys.readouterr().err


def test_only_real_line_ends_end_a_line(tmp_path):
    """JSON may hold U+2028, U+0085 and the like as they are; str.splitlines takes them for line ends."""
    from duogen_core.data.runs.run import Run
    from duogen_core.data.sources import Bad, BadLog, open_source
    from duogen_core.data.synthetic.requests import Request, read_requests, request_lines
    from duogen_core.llm.answers import Recording

    odd = "one\u2028two\x85three\x0bfour"
    requests = [Request("home", "paint", odd), Request("home", "paint", "five")]
    file = tmp_path / "requests.jsonl"
    file.write_bytes(request_lines(requests).replace(b"\n", b"\r\n") + b"\n")
    assert [each.text.split()[-1] for each in read_requests(file)] == ["four", "five"]
    (tmp_path / "logs").mkdir()
    run, log = Run(tmp_path, "dialogues", 2, 1, 2, ("endpoint",)), tmp_path / "logs" / "00000.jsonl"
    log.write_text(json.dumps({"rule": "", "title": odd}, ensure_ascii=False) + "\n", "utf-8")
    assert run.is_done(0)
    log.write_text(json.dumps({"rule": "endpoint", "title": odd}, ensure_ascii=False) + "\n", "utf-8")
    assert not run.is_done(0)
    log.write_text('{"rule": "", "ti', "utf-8")  # half a line is no finished shard
    assert not run.is_done(0)
    answers = tmp_path / "answers.jsonl"
    answers.write_text(
        json.dumps({"key": "k", "answer": {"text": odd}}, ensure_ascii=False) + '\n{"key": "l", "an', "utf-8"
    )
    assert Recording(answers).find("k") == {"text": odd} and answers.read_bytes().endswith(b"}}\n")
    turns = [{"role": role, "parts": [{"type": "text", "text": odd}]} for role in ("user", "assistant")]
    document = {"format": "duogen-document", "version": 1, "turns": turns}
    (tmp_path / "set.jsonl").write_text(json.dumps(document, ensure_ascii=False) + "\n\n", "utf-8")
    source = open_source(f"jsonl:{tmp_path / 'set.jsonl'}")
    assert len(source) == 1 and source.load(0).turns[0].text == odd
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"source": f"a{odd}", "index": 3}, ensure_ascii=False) + "\n", "utf-8")
    assert len(BadLog(bad)) == 1 and not BadLog(bad)(Bad(f"a{odd}", 3, "", ""))
