"""The folder, the shards and the reports that all data engines share."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from duogen_core.data.runs.folder import (
    FOLDERS,
    RunFolder,
    begin_step,
    check_unused,
    make_folders,
    names_below,
    read_run,
    write_plan,
)
from duogen_core.data.runs.report import Spread, badge
from duogen_core.data.runs.shards import new_shard, photos_as_jpeg
from duogen_core.document import (
    Document,
    Picture,
    Text,
    Turn,
)
from duogen_core.errors import DuoGenError

PIXELS = np.zeros((8, 8, 3), np.uint8)


def new_run(folder: Path) -> RunFolder:
    make_folders(folder, FOLDERS)
    return RunFolder(folder)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_shard_has_its_tar_its_times_and_its_log(tmp_path):
    run = new_run(tmp_path)
    pictures = (Picture(PIXELS, {"class": "photo"}), Picture(PIXELS))
    document = Document((Turn("user", (Text("Grüße"), *pictures)),))
    with new_shard(run, 2) as shard:
        shard.log({"number": 7, "title": "ü"})
        shard.add("00000007", document, photos_as_jpeg(90))
        shard.seconds["walk"] += 1.5
        assert not run.is_done(2)
    assert run.is_done(2) and run.log(2).read_text("utf-8") == '{"number": 7, "title": "ü"}\n'
    with tarfile.open(run.tar(2)) as archive:
        assert archive.getnames() == ["00000007.json", "00000007.000.jpg", "00000007.001.png"]
    times = json.loads(run.times(2).read_text())
    assert times["entries"] == 1 and times["stages"] == {"walk": 1.5} and times["seconds"] > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, DuoGenError])
def test_a_shard_that_is_left_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_shard(new_run(tmp_path), 0) as shard:
        shard.log({})
        raise error("x")
    assert files(tmp_path) == []


def test_what_a_kill_left_is_swept_away(tmp_path):
    run = new_run(tmp_path)
    for name in ("shards/.00001.tar.ab.duogen-tmp", "logs/.00002.jsonl.duogen-tmp", "logs/00001.jsonl"):
        (tmp_path / name).write_bytes(b"half")
    run.sweep(1)
    assert files(tmp_path) == ["logs/.00002.jsonl.duogen-tmp", "logs/00001.jsonl"]
    run.sweep()
    assert files(tmp_path) == ["logs/00001.jsonl"]


def test_the_same_identity_goes_on_and_another_is_named(tmp_path):
    begin_step(tmp_path / "run", "synthetic-plan", {"seed": 1, "model": "a"})
    written = (tmp_path / "run" / "run.json").read_bytes()
    begin_step(tmp_path / "run", "synthetic-plan", {"model": "a", "seed": 1})
    assert (tmp_path / "run" / "run.json").read_bytes() == written
    assert read_run(tmp_path / "run", "synthetic-plan", lambda value: value["identity"]["seed"]) == 1
    with pytest.raises(DuoGenError, match="other values of seed;"):
        begin_step(tmp_path / "run", "synthetic-plan", {"seed": 2, "model": "a"})
    with pytest.raises(DuoGenError, match="was it made by `data web`"):
        read_run(tmp_path / "run", "web", dict)
    with pytest.raises(DuoGenError, match=r"'gone'.*was it made by `data synthetic plan`"):
        read_run(tmp_path / "run", "synthetic-plan", lambda value: value["gone"])


def test_only_an_unused_folder_or_what_a_kill_left_is_taken(tmp_path):
    check_unused(tmp_path / "not there")
    new_run(tmp_path)
    (tmp_path / ".run.json.duogen-tmp").touch()
    (tmp_path / "plan.jsonl").touch()
    check_unused(tmp_path)
    (tmp_path / "logs" / "00000.jsonl").touch()
    with pytest.raises(DuoGenError, match="something else in it"):
        check_unused(tmp_path)


def test_a_plan_cuts_each_group_for_itself(tmp_path):
    items = [[0, "a"], [0, "b"], [0, "c"], [2, "d"], [2, "e"]]
    assert write_plan(tmp_path, items, 2, lambda item: item[0]) == (5, 3)
    assert [json.loads(line) for line in (tmp_path / "plan.jsonl").open()] == [
        {"shard": 0, "first": 0, "items": [[0, "a"], [0, "b"]]},
        {"shard": 1, "first": 2, "items": [[0, "c"]]},
        {"shard": 2, "first": 3, "items": [[2, "d"], [2, "e"]]},
    ]


def test_names_are_sorted_and_no_link_or_hidden_file_is_among_them(tmp_path):
    for name in ("b.HTML", "a/z.html", "a/.x.html", ".git/y.html", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "d.html").symlink_to(tmp_path / "b.HTML")
    assert list(names_below(tmp_path, (".html",))) == ["a/z.html", "b.HTML"]


def test_what_is_shown_is_spread_and_the_same_in_any_order():
    chosen = []
    for order in (range(1000), reversed(range(1000))):
        spread = Spread(10)
        for place in order:
            spread.add(place, f"thing {place}")
        chosen.append(list(spread))
    assert chosen[0] == chosen[1] and len(chosen[0]) == 10 and chosen[0] == sorted(chosen[0])
    assert chosen[0][0][0] < 500 < chosen[0][-1][0] and all(thing == f"thing {place}" for place, thing in chosen[0])


def test_badges_are_escaped():
    assert badge("") == "<span class=kept>kept</span>"
    assert badge("small", 0) == "<span class=refused>small 0</span>"
    assert "<b>" not in badge("cut", "<b>") and len(badge("x", "y" * 900)) < 250
