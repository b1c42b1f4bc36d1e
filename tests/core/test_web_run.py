"""data web from the command line: shards, resume, kills, full disks, WARC files, and what `data check` says of it."""

from __future__ import annotations

import errno
import io
import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from duogen_core.cli import main
from duogen_core.data.sources import open_source
from duogen_core.data.web.plan import begin, open_run
from duogen_core.data.web.preset import load_preset
from duogen_core.data.web.run import work
from duogen_core.errors import DuoGenError
from tests.core.web_pages import file, page, photo, recipe, screenshot, site

ROOT = Path(__file__).parents[2]


def web(*arguments: object) -> int:
    return main(["data", "web", *map(str, arguments), "--quiet"])


def results(out: Path) -> dict[str, bytes]:
    """All that a run wrote and that may not differ between two runs."""
    return {path.name: path.read_bytes() for name in ("shards", "logs") for path in sorted((out / name).iterdir())}


@pytest.fixture
def pages(tmp_path) -> Path:
    bodies = {f"p{k:02d}.html": recipe("a.png", "b.png").replace("Bread", f"Bread {k}") for k in range(7)}
    return site(tmp_path / "site", {**bodies, "text.html": page("<p>only text")})


def test_a_folder_becomes_documents_that_stage_one_can_read(pages, tmp_path, capsys):
    assert web(pages, "--out", tmp_path / "out", "--workers", 1, "--shard-pages", 3) == 0
    assert "7 documents with 14 pictures from 8 pages" in capsys.readouterr().out
    source = open_source(f"webdataset:{tmp_path / 'out' / 'shards'}")
    assert len(source) == 7
    assert all(hasattr(source.read(index), "document") for index in range(7))
    assert source.load(3).turns[1].parts[0].text.startswith("# Bread 3")
    assert main(["data", "check", f"webdataset:{tmp_path / 'out' / 'shards'}", "--quiet"]) == 0
    lines = [json.loads(line) for path in sorted((tmp_path / "out" / "logs").iterdir()) for line in path.open()]
    assert [line["number"] for line in lines] == list(range(8))
    assert (lines[7]["page"], lines[7]["kept"], lines[7]["rule"], lines[7]["value"]) == (
        "text.html",
        False,
        "text_only",
        0,
    )
    assert [picture["class"] for picture in lines[0]["pictures"]] == ["photo", "screenshot"]


def test_two_workers_write_the_same_bytes_as_one(pages, tmp_path):
    web(pages, "--out", tmp_path / "one", "--workers", 1, "--shard-pages", 2)
    web(pages, "--out", tmp_path / "two", "--workers", 2, "--shard-pages", 2)
    assert len(results(tmp_path / "one")) == 8
    assert results(tmp_path / "one") == results(tmp_path / "two")


def test_a_run_that_was_left_goes_on_and_ends_the_same(pages, tmp_path):
    web(pages, "--out", tmp_path / "whole", "--workers", 1, "--shard-pages", 2)
    run = begin(tmp_path / "parts", [str(pages)], load_preset(), 2)
    work_ = work(run)
    next(work_)
    work_.close()
    assert [run.is_done(shard) for shard in range(4)] == [True, False, False, False]
    done = run.log(0).stat().st_mtime_ns
    (tmp_path / "parts" / "shards" / ".00001.tar.99.duogen-tmp").write_bytes(b"half")
    assert web(pages, "--out", tmp_path / "parts", "--workers", 1, "--shard-pages", 2) == 0
    assert run.log(0).stat().st_mtime_ns == done
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_kills_at_any_moment_change_nothing(pages, tmp_path):
    web(pages, "--out", tmp_path / "whole", "--workers", 1, "--shard-pages", 1)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "duogen_core", "data", "web", pages, "--out", out, "--quiet"]
    command += ["--workers", "1", "--shard-pages", "1"]
    for shards in (0, 3):  # kill it when this many are done
        child = subprocess.Popen(list(map(str, command)), cwd=ROOT)
        while child.poll() is None and len(list(out.glob("logs/*.jsonl"))) <= shards:
            time.sleep(0.01)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert web(pages, "--out", out, "--workers", 1, "--shard-pages", 1) == 0
    assert results(out) == results(tmp_path / "whole")


def test_a_kill_before_the_plan_is_whole_changes_nothing(pages, tmp_path):
    out = tmp_path / "out"
    for name in ("index", "shards", "logs", "times"):
        (out / name).mkdir(parents=True)
    (out / ".plan.jsonl.duogen-tmp").write_text('{"shard": 0, "inp')
    (out / "index" / ".000.sqlite.duogen-tmp").write_bytes(b"half")
    assert web(pages, "--out", out, "--workers", 1) == 0
    assert open_run(out).pages == 8


def test_a_full_disk_leaves_whole_shards_and_a_sentence(pages, tmp_path, monkeypatch, capsys):
    from duogen_core.data import shards

    add, calls = shards.add_document, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(*arguments)

    monkeypatch.setattr(shards, "add_document", full)
    assert web(pages, "--out", tmp_path / "out", "--workers", 1, "--shard-pages", 2) == 2
    assert "The disk is full" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out" / "shards").iterdir()] == ["00000.tar"]
    monkeypatch.undo()
    web(pages, "--out", tmp_path / "out", "--workers", 1, "--shard-pages", 2)
    web(pages, "--out", tmp_path / "whole", "--workers", 1, "--shard-pages", 2)
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_another_run_in_the_same_folder_is_refused(pages, tmp_path, capsys):
    out = tmp_path / "out"
    web(pages, "--out", out, "--workers", 1)
    for other in ((pages, "--set", "page.min_words=30"), (pages, "--shard-pages", 5), (pages / "p00.html",)):
        assert web(*other, "--out", out, "--workers", 1) == 2
        assert "holds a run with other inputs, rules or shard sizes" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    assert web(pages, "--out", tmp_path / "mine") == 2
    assert "has something else in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gone", "--out", "o"), "gone does not exist"),
        ((".", "--out", "o", "--workers", "0"), "--workers is 0"),
        ((".", "--out", "o", "--preset", "x"), "There is no preset x"),
        ((".", "--out", "../o"), "There is no page in ."),
        ((".", "--out", "./o/p"), "lies in the input ."),
    ],
)
def test_wrong_commands_get_a_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert web(*arguments) == 2
    assert words in capsys.readouterr().err


def record(writer: WARCWriter, url: str, data: bytes, kind: str, status: str = "200 OK", **headers: str) -> None:
    given = [("Content-Type", kind), *((name.replace("_", "-"), value) for name, value in headers.items())]
    http = StatusAndHeaders(status, given, protocol="HTTP/1.1")
    entry = writer.create_warc_record(url, "response", payload=io.BytesIO(data), http_headers=http)
    writer.write_record(entry)


def crawl(path: Path, cut: int = 0) -> Path:
    """A WARC file with two pages, pictures, redirects, and things that are no pages."""
    buffer = io.BytesIO()
    writer = WARCWriter(buffer, gzip=path.name.endswith(".gz"), warc_version="WARC/1.0")
    host = "http://www.example.com"
    images = ("../i/a.png", "http://www.example.com/i/moved.png", "/i/inside.png", "/i/loop.png", "/i/none.png")
    record(writer, f"{host}/p/one.html", recipe(*images).encode(), "text/html; charset=utf-8")
    record(writer, f"{host}/i/a.png", file(photo(seed=1)), "image/png")
    record(writer, f"{host}/i/b.png", file(screenshot(seed=2)), "application/octet-stream")
    record(writer, f"{host}/i/moved.png", b"", "text/plain", "302 Found", Location="/i/b.png")
    record(writer, f"{host}/i/inside.png", b"", "text/plain", "302 Found", Location="http://10.0.0.7/admin.png")
    record(writer, "http://10.0.0.7/admin.png", file(photo(seed=9)), "image/png")
    record(writer, f"{host}/i/loop.png", b"", "text/plain", "301 Moved", Location="/i/loop.png")
    record(writer, f"{host}/gone.html", b"<p>gone", "text/html", "404 Not Found")
    record(writer, f"{host}/p/two.html", recipe("/i/b.png").encode(), "text/html", X_Robots_Tag="noai")
    data = buffer.getvalue()
    path.write_bytes(data[: len(data) - cut] if cut else data)
    return path


@pytest.mark.parametrize("name", ["crawl.warc", "crawl.warc.gz"])
def test_a_warc_file_with_its_pictures_and_redirects(name, tmp_path):
    assert web(crawl(tmp_path / name), "--out", tmp_path / "out", "--workers", 1) == 0
    first, second = map(json.loads, (tmp_path / "out" / "logs" / "00000.jsonl").open())
    assert first["kept"] and first["url"] == "http://www.example.com/p/one.html"
    assert [picture.get("rule", "kept") for picture in first["pictures"]] == [
        "kept",
        "kept",
        "refused_link",
        "refused_link",
        "missing",
    ]
    assert [picture.get("value") for picture in first["pictures"][2:4]] == ["private host", "too many redirects"]
    assert (second["rule"], second["value"]) == ("robots", "noai")
    document = open_source(f"webdataset:{tmp_path / 'out' / 'shards'}").load(0)
    assert document.meta["time"] and document.pictures[1].meta["url"] == "http://www.example.com/i/b.png"


def test_a_warc_file_that_is_cut_off_gives_what_is_whole(tmp_path, capsys):
    path = crawl(tmp_path / "crawl.warc.gz", cut=700)
    assert main(["data", "web", str(path), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "1 documents" in capsys.readouterr().out
    assert open_run(tmp_path / "out").pages in (1, 2)


def test_a_damaged_picture_in_a_warc_file_is_a_dropped_picture(tmp_path):
    path = crawl(tmp_path / "crawl.warc.gz")
    run = begin(tmp_path / "out", [str(path)], load_preset())
    with sqlite3.connect(tmp_path / "out" / "index" / "000.sqlite") as base:
        place = base.execute("select place from others where url like '%/a.png'").fetchone()[0]
    data = bytearray(path.read_bytes())
    data[place : place + 400] = bytes(400)
    path.write_bytes(data)
    assert [result["kept"] for result in work(run)] == [1]
    first = json.loads((tmp_path / "out" / "logs" / "00000.jsonl").read_text().split("\n")[0])
    assert [picture.get("rule") for picture in first["pictures"]][:2] == ["unreadable", None]


def test_a_page_that_breaks_the_engine_is_logged_and_the_run_goes_on(pages, tmp_path, monkeypatch):
    from duogen_core.data.web import engine

    def compose(page, *arguments):
        if page.name == "p03.html":
            raise ZeroDivisionError("by nothing")
        return real(page, *arguments)

    real = engine.compose
    monkeypatch.setattr(engine, "compose", compose)
    assert web(pages, "--out", tmp_path / "out", "--workers", 1) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "logs" / "00000.jsonl").open()]
    assert [line["kept"] for line in lines] == [True, True, True, False, True, True, True, False]
    assert (lines[3]["rule"], lines[3]["value"]) == ("failed", "ZeroDivisionError: by nothing")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(DuoGenError, match=r"holds no run\.json"):
        open_run(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_stops_the_workers_and_says_how_to_go_on(pages, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "duogen_core", "data", "web", pages, "--out", out]
    command += ["--workers", "2", "--shard-pages", "1"]
    child = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores it
    )  # fmt: skip
    while child.poll() is None and not list(out.glob("logs/*.jsonl")):
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "the same command goes on." in errors and "Traceback" not in errors
    assert not list(out.rglob("*.jsonl.*"))
    assert web(pages, "--out", out, "--workers", 1, "--shard-pages", 1) == 0
