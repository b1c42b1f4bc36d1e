"""data stats on the logs of any engine: stages by their names, the first failing rule, several steps, damaged logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from duogen_core.cli import main
from duogen_core.data.runs.log import LATER


def write_run(folder: Path, kind: str, lines: list[dict], seconds: dict | None = None, **about) -> Path:
    (folder / "logs").mkdir(parents=True)
    (folder / "times").mkdir()
    (folder / "run.json").write_text(json.dumps({"format": f"duogen-{kind}-run", "version": 1, **about}))
    for number, line in enumerate(lines):  # a shard each
        (folder / "logs" / f"{number:05d}.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "times" / "00000.json").write_text(json.dumps({"stages": seconds or {}}))
    return folder


VIDEO = [
    {"kept": True, "shots": [{"first": 0}], "pairs": [{"class": "object"}, {"rule": "still", "value": 0.1}]},
    {"kept": False, "rule": "too_short", "value": 3, "pairs": []},
    {"kept": False, "rule": "no_pair_left", "value": 0, "pairs": [{"rule": "cut"}, {"class": "camera"}]},
]


def figures(folder: Path, file: Path) -> dict:
    assert main(["data", "stats", str(folder), "--json", str(file), "--plot", str(file.with_suffix(".png"))]) == 0
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return json.loads(file.read_text())


def test_stages_are_named_by_the_engine_and_by_the_lists_in_its_log(tmp_path, capsys):
    found = figures(write_run(tmp_path / "run", "video", VIDEO, {"decode": 2.5}, items=9), tmp_path / "s.json")
    assert (found["run"], found["planned"], found["seconds"]) == ("video", 9, {"decode": 2.5})
    assert found["videos"] == {"in": 3, "kept": 1, "refused": {"too_short": 1, "no_pair_left": 1}}
    assert found["pairs"] == {
        "in": 4, "kept": 1, "refused": {"still": 1, "cut": 1, LATER: 1}, "classes": {"object": 1}
    }  # fmt: skip
    assert "shots" not in found  # no rule looks at them
    table = capsys.readouterr().out
    assert "videos" in table and "  too_short" in table and "-1" in table and "decode 2.5" in table


def test_an_entry_may_name_its_stage(tmp_path):
    lines = [{"stage": "captions", "kept": True}, {"stage": "rewrites", "kept": False, "rule": "overlap", "value": 0.2}]
    found = figures(write_run(tmp_path / "run", "other", lines), tmp_path / "s.json")
    assert found["captions"]["kept"] == 1 and found["rewrites"]["refused"] == {"overlap": 1}


def test_the_steps_of_a_run_each_have_a_table(tmp_path, capsys):
    write_run(tmp_path / "run" / "b-first", "synthetic", [{"kept": True, "words": 7, "removed": {}}])
    write_run(tmp_path / "run" / "a-second", "synthetic", [{"kept": False, "rule": "blank"}])
    found = figures(tmp_path / "run", tmp_path / "s.json")
    assert list(found) == ["b-first", "a-second"]
    assert found["b-first"]["words"] == 7 and found["a-second"]["documents"]["refused"] == {"blank": 1}


@pytest.mark.parametrize("line", ["{", "[1]", "null"])
def test_a_damaged_log_gets_a_sentence(tmp_path, capsys, line):
    folder = write_run(tmp_path / "run", "video", VIDEO)
    (folder / "logs" / "00001.jsonl").write_text(line + "\n")
    assert main(["data", "stats", str(folder)]) == 2
    assert "00001.jsonl, line 1: expected a JSON object" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run.json", "times/00000.json", "logs/00000.jsonl"])
@pytest.mark.parametrize(
    "data",
    [b"\n\0", b"\xff\xfe", b"[" * 100_000 + b"\n", b'{"a":' * 900 + b"1" + b"}" * 900 + b"\n", b"[]\n"],
    ids=["nul", "utf16", "deep", "900 deep", "list"],
)
def test_a_damaged_file_of_a_run_is_a_sentence(tmp_path, capsys, name, data):
    run = write_run(tmp_path / "run", "video", VIDEO)
    (run / name).write_bytes(data)
    code, said = main(["data", "stats", str(run)]), capsys.readouterr().err
    assert code in (0, 2) and len(said.splitlines()) == code // 2
    assert not code or said.startswith(f"Error: {run / name}")
    assert code or (name, data) == ("times/00000.json", b"[]\n") or name.startswith("logs")
