"""data web from the command line: shards, resume, kills, full disks, WARC files, and what `data check` says of it."""

from __future__ import annotations

import errno
import io
import json
import os
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
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.runs.run import begin, open_run, work
from duogen_core.data.sources import open_source
from duogen_core.data.web.engine import WebEngine
from duogen_core.data.web.pictures import read_hosts
from duogen_core.errors import DuoGenError
from tests.core.web_pages import file, page, photo, recipe, screenshot, site

ROOT = Path(__file__).parents[4]


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
    assert "7 documents with 14 images from 8 pages" in capsys.readouterr().out
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
    engine = WebEngine(load_preset("web"), [str(pages)], tmp_path / "parts")
    run = begin(tmp_path / "parts", engine, 2)
    work_ = work(run, engine)
    for _ in range(3):  # a whole shard, and the first page of the next
        next(work_)
    work_.close()
    assert [run.is_done(shard) for shard in range(4)] == [True, False, False, False]
    done = run.log(0).stat().st_mtime_ns
    (tmp_path / "parts" / "shards" / ".00001.tar.99.duogen-tmp").write_bytes(b"half")
    assert web(pages, "--out", tmp_path / "parts", "--workers", 1, "--shard-pages", 2) == 0
    assert run.log(0).stat().st_mtime_ns == done
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["run.json", "plan.jsonl"])
@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"[]\n", b"{}\n", b"[" * 100_000, b'{"shard": 0, "inp', b'{"a":' * 900 + b"1" + b"}" * 900],
)
def test_a_damaged_file_of_a_run_is_a_sentence(pages, tmp_path, capsys, name, data):
    out = tmp_path / "out"
    assert web(pages, "--out", out, "--workers", 1, "--shard-pages", 3) == 0
    (out / name).write_bytes(data)
    capsys.readouterr()
    assert web(pages, "--out", out, "--workers", 1, "--shard-pages", 3) == 2
    said = capsys.readouterr().err
    assert str(out / name) in said and len(said.splitlines()) == 1
    if name == "plan.jsonl":
        (out / name).unlink()
        assert web(pages, "--out", out, "--workers", 1, "--shard-pages", 3) == 2
        assert "plan.jsonl cannot be read" in capsys.readouterr().err


def test_a_kill_before_the_plan_is_whole_changes_nothing(pages, tmp_path):
    out = tmp_path / "out"
    for name in ("index", "shards", "logs", "times"):
        (out / name).mkdir(parents=True)
    (out / ".plan.jsonl.duogen-tmp").write_text('{"shard": 0, "inp')
    (out / "index" / ".000.sqlite.duogen-tmp").write_bytes(b"half")
    assert web(pages, "--out", out, "--workers", 1) == 0
    assert open_run(out, "web").items == 8


def test_a_full_disk_leaves_whole_shards_and_a_sentence(pages, tmp_path, monkeypatch, capsys):
    from duogen_core.data.runs import run

    add, calls = run.add_document, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(*arguments)

    monkeypatch.setattr(run, "add_document", full)
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
        assert "was begun with other values of" in capsys.readouterr().err
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
    assert open_run(tmp_path / "out", "web").items in (1, 2)


def test_a_damaged_picture_in_a_warc_file_is_a_dropped_picture(tmp_path):
    path = crawl(tmp_path / "crawl.warc.gz")
    engine = WebEngine(load_preset("web"), [str(path)], tmp_path / "out")
    run = begin(tmp_path / "out", engine, 64)
    with sqlite3.connect(tmp_path / "out" / "index" / "000.sqlite") as base:
        place = base.execute("select place from others where url like '%/a.png'").fetchone()[0]
    data = bytearray(path.read_bytes())
    data[place : place + 400] = bytes(400)
    path.write_bytes(data)
    assert [entry["kept"] for entry in work(run, engine)] == [True, False]
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
        open_run(tmp_path, "web")


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
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 130
    assert "the same command goes on." in errors and "Traceback" not in errors
    assert not list(out.rglob("*.jsonl.*"))
    assert web(pages, "--out", out, "--workers", 1, "--shard-pages", 1) == 0


# ---------------------------------------------------------------- going on


def summary(text: str) -> str:
    return text.splitlines()[0]


def test_a_finished_run_that_is_started_again_reports_what_it_holds(pages, tmp_path, capsys):
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    web(pages, "--out", out, "--workers", 1, "--shard-pages", 3)
    assert summary(capsys.readouterr().out).startswith("7 documents with 14 images from 8 pages, ")
    web(pages, "--out", out, "--workers", 1, "--shard-pages", 3, "--json", figures)
    assert summary(capsys.readouterr().out) == "7 documents with 14 images from 8 pages (all done before):"
    found = json.loads(figures.read_text())
    assert [found[name] for name in ("pages", "kept", "pictures", "pages_before", "pages_in_all")] == [8, 7, 14, 8, 8]
    (out / "logs" / "00001.jsonl").unlink()
    web(pages, "--out", out, "--workers", 1, "--shard-pages", 3)
    assert summary(capsys.readouterr().out).startswith("7 documents with 14 images from 8 pages (5 done before), ")


def test_a_run_that_keeps_nothing_says_which_rule_refused_most(pages, tmp_path, capsys):
    out = tmp_path / "out"
    assert web(pages, "--out", out, "--workers", 1, "--set", "page.min_words=5000") == 0
    told = capsys.readouterr().out
    assert "Nothing was kept: of 8 pages too_short refused 7." in told and f"data view {out}" in told
    assert web(pages, "--out", out, "--workers", 1, "--set", "page.min_words=5000") == 0
    assert "too_short refused 7" in capsys.readouterr().out
    assert web(pages, "--out", tmp_path / "o2", "--workers", 1, "--set", "picture.icon_side=9999") == 0
    assert "of 14 pictures icon refused 14" in capsys.readouterr().out


def edited(path: Path) -> None:
    """Other contents of the same length, and the same time as far as a program can set it."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("changed", ["p03.html", "b.png", "crawl.warc.gz"])
def test_an_input_that_was_edited_is_another_one(pages, tmp_path, capsys, changed, old):
    crawl(pages / "crawl.warc.gz")
    if old:  # so old that its digest is remembered
        for path in pages.iterdir():
            os.utime(path, (1_600_000_000, 1_600_000_000))
    assert web(pages, "--out", tmp_path / "out", "--workers", 1) == 0
    assert web(pages, "--out", tmp_path / "out", "--workers", 1) == 0
    edited(pages / changed)
    assert web(pages, "--out", tmp_path / "out", "--workers", 1) == 2
    assert "other values of inputs" in capsys.readouterr().err
    edited(pages / changed)
    assert web(pages, "--out", tmp_path / "out", "--workers", 1) == 0


@pytest.mark.parametrize("changed", ["p03.html", "a.png"])
def test_of_a_single_page_what_it_shows_counts_too(pages, tmp_path, changed):
    command = (pages / "p03.html", "--out", tmp_path / "out", "--workers", 1)
    assert web(*command) == 0
    edited(pages / "p04.html")
    edited(pages / "c.png")
    assert web(*command) == 0
    edited(pages / changed)
    assert web(*command) == 2


def test_lists_of_adverts_are_known_by_their_hosts(pages, tmp_path):
    (tmp_path / "hosts").write_text("||ads.example.com^\n")
    command = (pages, "--out", tmp_path / "out", "--workers", 1, "--set", f"advert.hosts={tmp_path / 'hosts'}")
    assert web(*command) == 0
    (tmp_path / "hosts").write_text("||ad2.example.com^\n")
    read_hosts.cache_clear()  # the next start is another process
    assert web(*command) == 2


def test_digests_are_not_taken_again_of_what_is_old_and_unchanged(tmp_path, monkeypatch):
    from duogen_core.data.runs import folder
    from duogen_core.data.runs.folder import FileDigests

    read = []
    real = folder.hashlib.sha256
    monkeypatch.setattr(folder.hashlib, "sha256", lambda: read.append(1) or real())
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
    os.utime(tmp_path / "old", (1_600_000_000, 1_600_000_000))
    for _ in range(3):
        digests = FileDigests(tmp_path / "digests.json")
        assert digests.of(tmp_path / "old") != digests.of(tmp_path / "new")
        digests.save()
    assert len(read) == 1 + 3  # what was written just now may be written again within the same time
    (tmp_path / "digests.json").write_text("[")
    assert FileDigests(tmp_path / "digests.json").of(tmp_path / "old")


@pytest.mark.parametrize("torn", [lambda data: data[:-20], lambda data: b"", lambda data: data[:-9] + bytes(9)])
def test_a_log_that_lost_its_end_is_made_again(pages, tmp_path, torn):
    out = tmp_path / "out"
    for name in ("p01.html", "p04.html"):
        (pages / name).rename(pages / name.replace("p0", "p0\u2028\u0085"))
    web(pages, "--out", out, "--workers", 1, "--shard-pages", 3)
    whole = results(out)
    assert any("\u2028" in data.decode() for name, data in whole.items() if name.endswith("jsonl"))
    log = out / "logs" / "00001.jsonl"
    log.write_bytes(torn(log.read_bytes()))
    assert main(["data", "stats", str(out)]) == 0  # of what is there
    assert [open_run(out, "web").is_done(shard) for shard in range(3)] == [True, False, True]
    assert web(pages, "--out", out, "--workers", 1, "--shard-pages", 3) == 0
    assert results(out) == whole
    log.write_bytes(b"{\n" + log.read_bytes())
    assert main(["data", "stats", str(out)]) == 2  # that is no kill's work
