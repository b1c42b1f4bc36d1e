"""A small share of each campaign of run.py, and the campaigns themselves: they notice what they are there to notice."""

from __future__ import annotations

import json
import random
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.hardening import disk, docs, docs_commands, hostile, kills, mutations, twice, whole
from tests.hardening.sentences import wrong_with
from tests.hardening.subjects import Subject
from tests.hardening.zygote import Ended, Guard, Limits, Zygote

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and forks"),
    pytest.mark.slow,
]
BAD = "tests.hardening.bad_commands"


@pytest.fixture(scope="module")
def zygote():
    with Zygote() as forks:
        yield forks


def faults(scores: list) -> list[str]:
    assert scores
    return [fault for score in scores for fault in score.faults]


# ---------------------------------------------------------------- a share of each


# Of each kind one: pictures, checkpoints, one large file, shards by one process, shards by several.
SOME = ["generate", "train stage1", "convert to one file", "data web, a folder", "data editing"]


def test_kills(zygote):
    scores = kills.campaign(10, seed=1, names=SOME, zygote=zygote)
    assert sum(len(score.moments) for score in scores) == 10
    assert faults(scores) == []


def test_hostile_inputs(zygote):
    scores = hostile.campaign(40, seed=1, zygote=zygote)
    assert len(scores) > 25 and sum(score.distinct for score in scores) >= 40
    assert faults(scores) == []


@pytest.mark.parametrize("kind", ["files", "memory"])
def test_a_full_disk_and_no_memory(zygote, kind):
    scores = disk.campaign(1, seed=1, names=SOME, kinds=[kind], zygote=zygote)
    assert sum(score.runs.get(kind, 0) for score in scores) > 0
    assert faults(scores) == []


@pytest.mark.skipif(not disk.can_mount(), reason="only root mounts a tmpfs")
def test_a_disk_that_is_really_full(zygote):
    assert faults(disk.campaign(1, seed=1, names=["generate", "convert"], kinds=["tmpfs"], zygote=zygote)) == []


def test_two_runs_at_once(zygote):
    scores = twice.campaign(1, seed=1, names=SOME, zygote=zygote)
    assert sum(score.refused for score in scores) > len(scores) // 2
    assert faults(scores) == []


def test_every_command_option_and_setting_of_the_pages_is_known(zygote):
    assert docs.unknown() == []
    assert docs.unknown_options() == []
    assert docs.unknown_settings(zygote) == []


@pytest.mark.parametrize("page", sorted({each.page for each in (*docs_commands.commands(), *docs_commands.programs())}))
def test_the_commands_of_a_page_do_what_it_says(zygote, page):
    assert faults(docs.campaign([page], zygote=zygote)) == []


def test_the_scripts_of_the_benchmarks_answer():
    assert len(docs.scripts()) > 10
    assert docs.scripts_answer() == []


# ---------------------------------------------------------------- the campaigns notice


def test_what_a_command_may_not_say(zygote, tmp_path):
    def said(function: str, *arguments: object) -> str:
        return wrong_with(zygote.run(arguments, module=f"{BAD}:{function}"), (0, 2))

    assert "traceback" in said("fails")
    assert said("says", "Error: There is no file x; check the path.") == ""
    assert "0 sentences" in said("says", "no file")
    assert "several lines" in said("says", "Error: There is no file x;\ncheck the path.")
    assert "control characters" in said("says", "Error: There is no file \x1b[31mx; check it.")
    assert "characters" in said("says", f"Error: There is no file {'x' * 5000}.")
    assert "no sentence" in said("says", "Error: a.json cannot be read: MemoryError: ")
    late = zygote.run([], module=f"{BAD}:takes_time", seconds=0.3)
    assert late.timed_out and "was killed" in wrong_with(late, (0, 2))


def test_what_a_command_may_not_do(zygote, tmp_path):
    def outside(function: str, *arguments: object) -> tuple[str, ...]:
        return zygote.run(arguments, module=f"{BAD}:{function}", guard=Guard((str(tmp_path / "out"),))).outside

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    assert outside("writes_outside", tmp_path / "out" / "a") == ()
    for path in (tmp_path / "b", tmp_path / "out" / ".." / "c", tmp_path / "out" / "link" / "d"):
        assert len(outside("writes_outside", path)) == 1
    assert [each.split()[0] for each in outside("connects")] == ["socket.getaddrinfo", "socket.connect"]
    assert outside("starts_a_program")[0].startswith("subprocess.Popen")
    assert outside("unpickles")[0].startswith("pickle.find_class")


def test_memory_is_measured_and_bounded(zygote):
    small, large = (zygote.run([size << 20], module=f"{BAD}:takes_memory") for size in (1, 600))
    assert 550 << 20 < large.memory - small.memory < 700 << 20
    assert zygote.run([600 << 20], module=f"{BAD}:takes_memory", limits=Limits(memory=200 << 20)).code == 1


def test_a_kill_takes_the_workers_too(zygote):
    child = zygote.start([], module=f"{BAD}:takes_time")
    while not child.members():  # until it has made its session
        pass
    assert child.members() == [child.pid]
    child.kill(group=True)
    assert child.wait().code == -9 and child.members() == []


@pytest.mark.parametrize(
    ("function", "expected"),
    [("writes_in_place", "half written under a final name"), ("leaves_temporary_files", "is left over")],
)
def test_kills_notice_what_is_half_written_or_left_over(zygote, tmp_path, monkeypatch, function, expected):
    monkeypatch.setattr("tests.hardening.zygote.MODULE", f"{BAD}:{function}")
    monkeypatch.setitem(Zygote.start.__kwdefaults__, "module", f"{BAD}:{function}")
    killing = kills.Killing(Subject("bad", lambda out: [[out]]), zygote, tmp_path)
    score = killing.run(4, random.Random(0))
    assert len(score.moments) == 4 and any(expected in fault for fault in score.faults), score.faults


def test_two_runs_of_a_command_that_takes_no_lock_are_noticed(zygote, tmp_path, monkeypatch):
    monkeypatch.setitem(Zygote.start.__kwdefaults__, "module", f"{BAD}:writes_in_place")
    score = twice.Pairs(Subject("bad", lambda out: [[out]]), zygote, tmp_path).run(2, random.Random(0))
    assert score.refused == 0 and all("looked for no other" in fault for fault in score.faults) and score.faults


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.png", "a.zip", "a.html", "a.tar"])
def test_a_file_that_is_cut_is_not_whole(tmp_path, name):
    import tarfile

    path = tmp_path / name
    if name == "a.png":
        Image.effect_noise((40, 40), 50).save(path)
    elif name == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x", "y" * 500)
    elif name == "a.tar":
        with tarfile.open(path, "w") as archive:
            archive.add(__file__, "x")
    else:
        path.write_text(
            {"a.json": '{"a": [1, 2]}', "a.jsonl": '{"a": 1}\n{"b": 2}\n', "a.html": "<html>x</html>"}[name]
        )
    assert whole.broken(tmp_path) == []
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    assert len(whole.broken(tmp_path)) == 1
    path.rename(tmp_path / f".{name}.12ab34cd.duogen-tmp")
    assert whole.broken(tmp_path) == [] and len(whole.left_over(tmp_path)) == 1


def test_folders_are_compared_but_for_times(tmp_path):
    for name, seconds, loss in (("one", 1.0, 0.5), ("two", 2.0, 0.5), ("three", 1.0, 0.25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"seconds": seconds, "loss": loss}) + "\n")
    (tmp_path / "three" / "more.txt").write_text("x")
    assert whole.differences(tmp_path / "one", tmp_path / "two") == []
    found = whole.differences(tmp_path / "one", tmp_path / "three")
    assert found == ["more.txt is one too many", "metrics.jsonl differs"]


def test_generators_repeat_and_vary():
    values = [repr(mutations.mutated({"a": [1, {"b": "c"}]}, random.Random(k), 2)) for k in range(200)]
    assert values == [repr(mutations.mutated({"a": [1, {"b": "c"}]}, random.Random(k), 2)) for k in range(200)]
    assert len(set(values)) > 120


def test_commands_are_found_on_a_page():
    text = (
        "Run `python -m duogen_core\ninspect X` or:\n\n```\npython -m duogen_core a \\\n   --b   # why\nls\n```\n"
        "~~~\npython -m duogen_core c\n~~~\n"
    )
    found = [each.text for each in docs_commands.of_page("x.md", text)]
    assert found == ["python -m duogen_core inspect X", "python -m duogen_core a --b", "python -m duogen_core c"]


def test_a_command_that_does_not_do_what_its_page_says_is_a_fault(zygote, monkeypatch):
    wrong = docs.Runs(makes=("nothing",))
    monkeypatch.setitem(docs.COMMANDS, "python -m duogen_core train stage1 --help", wrong)
    found = docs.follow("python -m duogen_core train stage1 --help", Path.cwd(), {}, docs.Score("x"), zygote)
    assert found == "nothing is not there afterwards"
    monkeypatch.delitem(docs.COMMANDS, "python -m duogen_core train stage1 --help")
    assert any("nothing says how to try" in each for each in docs.unknown())


def test_a_renamed_option_or_setting_is_noticed_wherever_a_page_names_it(zygote, monkeypatch):
    pages = {
        "data.md": "`data check` has `--samplez`, and `stage1.stepz=3` and\n`lora.rank=16` and `--set page.minwords=50`"
    }
    monkeypatch.setattr(docs_commands, "pages", lambda: pages)
    assert docs.unknown_options() == [
        "data.md:1: no command of this page has --samplez", "data.md:2: no command of this page has --set",
    ]  # fmt: skip
    wrong = [each.split(" has ")[1] for each in docs.unknown_settings(zygote)]
    assert sorted(wrong) == ["page.minwords=50", "stage1.stepz=3"]


def test_ended_by_a_signal_is_never_right():
    assert "signal 11" in wrong_with(Ended(-11, 0, 0, "", "", (), ()), (0, 2))
