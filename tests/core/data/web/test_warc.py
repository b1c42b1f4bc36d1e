"""WARC files as crawlers leave them: compressed answers, files that are cut off, damaged, or gzipped as a whole."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
import zlib
from pathlib import Path

import brotli
import pytest
import zstandard
from warcio.warcwriter import WARCWriter

from duogen_core.cli import main
from duogen_core.data.sources import open_source
from duogen_core.data.web.encodings import decoded
from duogen_core.data.web.warc import Damage, Record, records
from tests.core.data.web.test_run import record
from tests.core.web_pages import file, photo, recipe

HOST = "http://www.example.com"


def web(*arguments: object) -> int:
    return main(["data", "web", *map(str, arguments), "--workers", "1", "--quiet"])


def documents(out: Path) -> list:
    source = open_source(f"webdataset:{out / 'shards'}")
    return [source.load(index) for index in range(len(source))]


def crawl(path: Path, pictures: int = 4) -> list[int]:
    """A page with pictures, and a second one behind them; the places of the records."""
    buffer, places = io.BytesIO(), []
    writer = WARCWriter(buffer, gzip=path.name.endswith(".gz"))

    def add(url: str, data: bytes, kind: str, **headers: str) -> None:
        places.append(buffer.tell())
        record(writer, url, data, kind, **headers)

    names = [f"{number}.png" for number in range(pictures)]
    add(f"{HOST}/one.html", recipe(*names).encode(), "text/html")
    for number, name in enumerate(names):
        add(f"{HOST}/{name}", file(photo(seed=number)), "image/png")
    add(f"{HOST}/two.html", recipe(names[0]).replace("Bread", "Cake").encode(), "text/html")
    add(f"{HOST}/last.png", file(photo(seed=99)), "image/png")
    path.write_bytes(buffer.getvalue())
    return places


# ---------------------------------------------------------------- compressed answers


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def chunked(data: bytes) -> bytes:
    pieces = [data[start : start + 100] for start in range(0, len(data), 100)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("br", brotli.compress),
        ("BR", brotli.compress),
        ("zstd", zstd),
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
        ("br", lambda data: data),  # kept decoded under its old header
        ("zstd", lambda data: data),
        ("unheard-of", lambda data: data),
    ],
)
@pytest.mark.parametrize("in_chunks", [False, True])
def test_answers_are_read_however_they_were_compressed(encoding, pack, in_chunks, tmp_path):
    buffer = io.BytesIO()
    writer, send = WARCWriter(buffer, gzip=True), chunked if in_chunks else bytes
    headers = {"Content_Encoding": encoding, **({"Transfer_Encoding": "chunked"} if in_chunks else {})}
    record(writer, f"{HOST}/p.html", send(pack(recipe("a.png").encode())), "text/html", **headers)
    record(writer, f"{HOST}/a.png", send(pack(file(photo(seed=1)))), "image/png", **headers)
    (tmp_path / "crawl.warc.gz").write_bytes(buffer.getvalue())
    assert web(tmp_path / "crawl.warc.gz", "--out", tmp_path / "out") == 0
    (document,) = documents(tmp_path / "out")
    assert document.pictures[0].pixels.shape == (240, 320, 3)


@pytest.mark.parametrize(("encoding", "package"), [("br", "brotli"), ("zstd", "zstandard")])
def test_a_missing_package_is_named(encoding, package, tmp_path, monkeypatch, capsys):
    buffer = io.BytesIO()
    record(WARCWriter(buffer, gzip=True), f"{HOST}/p.html", b"x", "text/html", Content_Encoding=encoding)
    (tmp_path / "crawl.warc.gz").write_bytes(buffer.getvalue())
    monkeypatch.setitem(sys.modules, package, None)
    assert web(tmp_path / "crawl.warc.gz", "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert f"the package {package} is not installed" in told and "'.[data]'" in told
    monkeypatch.undo()
    assert web(tmp_path / "crawl.warc.gz", "--out", tmp_path / "out") == 0


@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "pack"), [("br", brotli.compress), ("zstd", zstd), ("gzip", gzip.compress)])
def test_what_expands_without_end_is_cut_at_the_cap(encoding, pack):
    assert len(decoded(pack(bytes(200_000_000)), encoding, 1000)) == 1001


@pytest.mark.parametrize(("encoding", "pack"), [("br", brotli.compress), ("zstd", zstd), ("gzip", gzip.compress)])
def test_of_an_answer_that_is_cut_off_its_beginning_is_there(encoding, pack):
    text = random.Random(0).randbytes(400_000)
    found = decoded(pack(text)[:300_000], encoding, 1_000_000)
    assert 100_000 < len(found) < len(text) and text.startswith(found)


# ---------------------------------------------------------------- damage


def kinds(path: Path) -> list[int | tuple[int, str, int | None]]:
    found = records(path)
    return [
        each.place if isinstance(each, Record) else (each.place, each.rule, each.next)
        for each in found
        if isinstance(each, Damage) or each.kind != "warcinfo"
    ]


@pytest.mark.parametrize("name", ["crawl.warc.gz", "crawl.warc"])
@pytest.mark.parametrize("cut", [1, 5, 9, 300, 3000])
def test_a_file_that_is_cut_off_gives_what_is_whole_and_says_so(name, cut, tmp_path, capsys):
    path, out = tmp_path / name, tmp_path / "out"
    places = crawl(path)
    if name.endswith(".gz") or cut > 4:  # the blank lines behind a record are no loss
        path.write_bytes(path.read_bytes()[:-cut])
        assert kinds(path) == [*places[:-1], (places[-1], "cut_off", None)]
        assert web(path, "--out", out) == 0
        note = f"{path} is cut off in the record at byte {places[-1]:,}"
        assert note in capsys.readouterr().out
        assert [len(document.pictures) for document in documents(out)] == [4, 1]
        (line,) = map(json.loads, (out / "inputs.jsonl").open())
        assert (line["input"], line["rule"], line["value"]) == (str(path), "cut_off", places[-1])
        assert main(["data", "stats", str(out), "--json", str(tmp_path / "stats.json")]) == 0
        assert note in capsys.readouterr().out
        figures = json.loads((tmp_path / "stats.json").read_text())
        assert figures["notes"][0].startswith(note) and figures["inputs"]["refused"] == {"cut_off": 1}
        assert web(path, "--out", out) == 0 and note in capsys.readouterr().out  # and again when it goes on


@pytest.mark.parametrize("name", ["crawl.warc.gz", "crawl.warc"])
def test_what_stands_behind_a_damaged_place_is_read(name, tmp_path, capsys):
    path = tmp_path / name
    places = crawl(path)
    data = bytearray(path.read_bytes())
    data[places[2] : places[2] + 700] = bytes(700)  # the headers of the second picture's record too
    path.write_bytes(data)
    assert kinds(path) == [*places[:2], (places[2], "damaged", places[3]), *places[3:]]
    assert web(path, "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert f"{path} is damaged at byte {places[2]:,}; reading went on at byte {places[3]:,}." in told
    assert [len(document.pictures) for document in documents(tmp_path / "out")] == [3, 1]


def test_a_few_lost_bytes_in_the_middle_cost_one_record(tmp_path):
    path = tmp_path / "crawl.warc"
    places = crawl(path)
    data = path.read_bytes()
    path.write_bytes(data[: places[3] - 500] + data[places[3] - 400 :])  # the third record states more than it has
    shifted = [place - 100 for place in places[3:]]
    assert kinds(path) == [*places[:2], (places[2], "damaged", shifted[0]), *shifted]


@pytest.mark.slow
def test_every_record_that_no_damage_touched_is_read(tmp_path):
    path = tmp_path / "crawl.warc.gz"
    places = crawl(path)
    data, rng = path.read_bytes(), random.Random(5)
    for _ in range(100):
        changed = bytearray(data)
        at = rng.randrange(len(data))
        for offset in range(at, min(at + rng.choice((1, 1, 10, 5000)), len(data))):
            changed[offset] ^= rng.randrange(1, 256)
        path.write_bytes(changed)
        ends = [*places[1:], len(data)]
        touched = {p for p, end in zip(places, ends) if any(changed[k] != data[k] for k in range(p, end))}
        found = kinds(path)
        whole = {each for each in found if isinstance(each, int)}
        assert whole >= set(places) - touched
        # A byte of a gzip header that says nothing, such as the time, may change: then no record is lost either.
        assert whole == set(places) or any(isinstance(each, tuple) for each in found)


def test_a_file_that_is_gzipped_as_a_whole_gets_one_sentence(tmp_path, capsys):
    crawl(tmp_path / "crawl.warc")
    path = tmp_path / "crawl.warc.gz"
    path.write_bytes(gzip.compress((tmp_path / "crawl.warc").read_bytes()))
    assert web(path, "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert f"{path} is gzipped as a whole" in told and "gunzip" in told and told.count("\n") == 1
    assert web(tmp_path / "crawl.warc", "--out", tmp_path / "out") == 0
    assert len(documents(tmp_path / "out")) == 2


def test_a_file_that_is_no_warc_is_named(tmp_path, capsys):
    (tmp_path / "x.warc.gz").write_bytes(gzip.compress(b"something else"))
    (tmp_path / "y.warc").write_bytes(b"something else")
    for name in ("x.warc.gz", "y.warc"):
        assert web(tmp_path / name, "--out", tmp_path / f"out-{name}") == 0
        told = capsys.readouterr().out
        assert "is damaged at byte 0, and no record was found behind it" in told and "hold no page" in told


def test_another_file_does_not_get_the_index_of_the_first(tmp_path, monkeypatch):
    """A start that ended before its plan leaves an index behind."""
    from duogen_core.data.runs import run

    crawl(tmp_path / "a.warc.gz", 1)
    crawl(tmp_path / "b.warc.gz", 3)
    real = run.write_plan
    monkeypatch.setattr(run, "write_plan", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert web(tmp_path / "a.warc.gz", "--out", tmp_path / "out") == 130
    monkeypatch.setattr(run, "write_plan", real)
    assert web(tmp_path / "b.warc.gz", "--out", tmp_path / "out") == 0
    assert [len(document.pictures) for document in documents(tmp_path / "out")] == [3, 1]
