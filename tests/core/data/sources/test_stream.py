"""Streams of shards: order, exact resume, lanes, notes, damaged shards, addresses that fail, and what they cost."""

from __future__ import annotations

import json
import pickle
import tarfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from duogen_core.cli import main
from duogen_core.data import export
from duogen_core.data.export import write_rows
from duogen_core.data.sources import Bad, BadLog, Sample, open_mixture, open_source, shards
from duogen_core.data.sources.rows import rows_of
from duogen_core.data.sources.shard_blocks import START, open_blocks
from duogen_core.data.sources.shards import Unreachable, shards_of
from duogen_core.data.sources.stream import MOST
from duogen_core.errors import DuoGenError
from tests.core.sample_sets import guide, members, numbers, write_documents, write_tar

PER_SHARD = 10


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(shards, "WAIT", 0.0)


def write_shards(root: Path, count: int = 7, kind: str = "tar", per_shard: int = PER_SHARD) -> Path:
    root.mkdir(exist_ok=True)
    for shard in range(count):
        documents = [guide(shard * per_shard + k, (4, 4)) for k in range(per_shard)]
        if kind == "tar":
            write_tar(root / f"s-{shard:03d}.tar", [members(f"{d.meta['number']:05d}", d) for d in documents])
        else:
            with (root / f"s-{shard:03d}.parquet").open("wb") as stream:
                write_rows(stream, (rows_of(d, f"{d.meta['number']:05d}") for d in documents))
    return root


@pytest.fixture(params=["tar", "parquet"])
def folder(request, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(export, "GROUP_BYTES", 1)  # a row group for every sample
    return write_shards(tmp_path / request.param, 7, request.param)


def options(place: object, **more) -> dict:
    return {"source": f"stream:{place}", "shuffle": 12, "lanes": 3, **more}


def draws(mixture, count: int, start: int = 0) -> list[int]:
    return [mixture.draw(k).document.meta["number"] for k in range(start, start + count)]


class Served(BaseHTTPRequestHandler):
    """Serves a folder, with ranges or without; says 503 to the first `failing` requests, and breaks off some."""

    root: Path
    ranges = True
    failing = 0
    broken = 0
    seen: list[str]

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        cls = type(self)
        cls.seen.append(self.path)
        file = cls.root / self.path.lstrip("/").partition("?")[0]
        if cls.failing > 0:
            cls.failing -= 1
            self.send_error(503)
            return
        if file.is_dir():
            page = "".join(f'<a href="/{each.relative_to(cls.root)}">x</a>' for each in sorted(file.iterdir())).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page)
            return
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        wanted = self.headers.get("Range")
        if wanted and cls.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            first, last = int(first), min(int(last or len(data)), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        else:
            self.send_response(200)
        if cls.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and cls.broken > 0 and len(data) > 1000:
            cls.broken -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """serve(root, **behaviour) -> (address, handler class)"""
    running = []

    def start(root: Path, **behaviour):
        handler = type("Handler", (Served,), {"root": root, "seen": [], **behaviour})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}", handler

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


# ---------------------------------------------------------------- the order


def test_every_sample_of_an_epoch_comes_once_and_the_next_epoch_has_another_order(folder):
    mixture = open_mixture(options(folder, lanes=7), seed=1)  # as many lanes as shards of one size: epochs are even
    first, second = draws(mixture, 70), draws(mixture, 70, 70)
    assert sorted(first) == sorted(second) == list(range(70)) and first != second != sorted(second)
    assert draws(open_mixture(options(folder, lanes=7), seed=1), 140) == first + second
    assert draws(open_mixture(options(folder, lanes=7), seed=2), 70) != first


def test_every_epoch_has_every_sample_also_where_lanes_do_not_divide_the_shards(folder):
    # After n draws all lanes have read as many of their own; each sample comes as often as its shard was read.
    counts = Counter(draws(open_mixture(options(folder), seed=4), 3 * 7 * PER_SHARD))
    assert sorted(counts) == list(range(70)) and set(counts.values()) == {3}


def test_samples_are_those_of_the_map_style_source(folder):
    kind = "webdataset" if folder.name == "tar" else "parquet"
    whole = {d.meta["number"]: d for d in map(open_source(f"{kind}:{folder}").load, range(70))}
    stream = open_mixture(options(folder), seed=0)
    for k in range(30):
        sample = stream.draw(k)
        assert sample.document == whole[sample.document.meta["number"]] and not sample.skipped


def test_the_buffer_mixes_a_shard(tmp_path):
    write_shards(tmp_path / "set", 1, per_shard=60)
    mixed = draws(open_mixture(options(tmp_path / "set", shuffle=60), seed=3), 60)
    blocks = draws(open_mixture(options(tmp_path / "set", shuffle=20), seed=3), 60)
    in_order = draws(open_mixture(options(tmp_path / "set", shuffle=1), seed=3), 60)
    assert in_order == sorted(mixed) == sorted(blocks) == list(range(60))
    assert sum(abs(a - b) for a, b in enumerate(mixed)) > 60 * 10
    assert all(sorted(blocks[at : at + 20]) == list(range(at, at + 20)) for at in (0, 20, 40))
    # a small buffer in bytes makes small blocks, of one sample at least
    assert draws(open_mixture(options(tmp_path / "set", shuffle=60, buffer_mb=1), seed=3), 60) == mixed


# ---------------------------------------------------------------- exact resume


def test_a_resume_sees_what_an_unbroken_run_sees_with_and_without_notes(folder, tmp_path):
    unbroken = draws(open_mixture(options(folder), seed=5), 200)
    begun = open_mixture(options(folder), seed=5)
    begun.keep(tmp_path / "notes")
    assert draws(begun, 93) == unbroken[:93]
    for notes in (tmp_path / "notes", tmp_path / "none"):
        resumed = open_mixture(options(folder), seed=5)
        resumed.keep(notes)
        resumed.load_state_dict({**begun.state_dict(), "position": 93})
        assert [sample.document.meta["number"] for sample in islice(resumed, 107)] == unbroken[93:]
    # any place, forwards and backwards
    there = open_mixture(options(folder), seed=5)
    for k in (150, 3, 77, 199, 0):
        assert draws(there, 1, k) == unbroken[k : k + 1]


def test_another_number_of_ranks_and_workers_sees_the_same(folder, tmp_path):
    unbroken = draws(open_mixture(options(folder), seed=6), 120)
    found = {}
    for ranks, span in ((2, range(60)), (3, range(60, 120))):
        for rank in range(ranks):
            mixture = open_mixture(options(folder), seed=6)
            mixture.keep(tmp_path / "notes")
            found |= {k: mixture.draw(k).document.meta["number"] for k in span if mixture.reader(k, ranks) == rank}
    assert [found[k] for k in range(120)] == unbroken


def test_readers_that_go_by_lanes_read_every_shard_once(folder, monkeypatch):
    """In one epoch, two readers open disjoint shards, and together all."""
    opened = []
    for reader in range(2):
        source = open_source(options(folder, lanes=6))
        mixture_of = open_mixture(options(folder, lanes=6), seed=1)
        mixture_of.sources[0] = source
        for k in range(60):  # six of seven shards: one for every lane
            if mixture_of.reader(k, 2) == reader:
                mixture_of.draw(k)
        opened.append(set(source._opened))
    assert not opened[0] & opened[1] and len(opened[0] | opened[1]) == 6


def test_notes_save_reading_and_survive_a_kill(folder, tmp_path, monkeypatch):
    begun = open_mixture(options(folder), seed=7)
    begun.keep(tmp_path / "notes")
    unbroken = draws(begun, 150)
    (file,) = (tmp_path / "notes").glob("*.jsonl")
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][: len(lines[-1]) // 2] + '\n[999, 5]\n["x"]\n[0, -3]\n')

    outlined = []
    resumed = open_mixture(options(folder), seed=7)
    resumed.keep(tmp_path / "notes")
    blocks = type(open_blocks(resumed.sources[0].shards[0], 1, 1))
    true_outline = blocks.outline
    monkeypatch.setattr(blocks, "outline", lambda self, place: outlined.append(place) or true_outline(self, place))
    assert draws(resumed, 20, 130) == unbroken[130:]
    assert len(outlined) <= 1, "only what the torn line said is looked up again"
    outlined.clear()
    assert draws(open_mixture(options(folder), seed=7), 20, 130) == unbroken[130:] and len(outlined) > 10


def test_a_lost_note_between_two_others_is_found_again(folder, tmp_path):
    begun = open_mixture(options(folder), seed=7)
    begun.keep(tmp_path / "notes")
    unbroken = draws(begun, 150)
    (file,) = (tmp_path / "notes").glob("*.jsonl")
    file.write_text("\n".join(file.read_text().splitlines()[::2]) + "\n")
    resumed = open_mixture(options(folder), seed=7)
    resumed.keep(tmp_path / "notes")
    assert draws(resumed, 150) == unbroken


def test_another_setting_or_another_shard_is_another_recipe(folder):
    state = open_mixture(options(folder), seed=0).state_dict()
    for changed, words in ((options(folder, shuffle=24), "shuffle"), (options(folder, lanes=2), "lanes")):
        with pytest.raises(DuoGenError, match=words):
            open_mixture(changed, seed=0).load_state_dict(state)
    next(folder.iterdir()).unlink()
    with pytest.raises(DuoGenError, match="shards of source 1"):
        open_mixture(options(folder), seed=0).load_state_dict(state)


def test_no_picture_is_decoded_on_the_way(folder, monkeypatch):
    from duogen_core.document import reading

    unbroken = draws(open_mixture(options(folder), seed=8), 121)
    decoded = []
    true = reading.document_from_json
    for name in ("tars", "rows"):
        module = f"duogen_core.data.sources.{name}.document_from_json"
        monkeypatch.setattr(module, lambda *args: decoded.append(1) or true(*args))
    assert draws(open_mixture(options(folder), seed=8), 1, 120) == unbroken[120:] and len(decoded) == 1


# ---------------------------------------------------------------- worker processes, mixtures, memory


def _drawn(mixture, span):
    return draws(mixture, len(span), span[0])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_draw_the_same(folder, method, serve):
    address, _ = serve(folder)
    place = f"{address}/s-{{000..006}}.{folder.name}"
    mixture = open_mixture(options(place), seed=9)
    expected = draws(mixture, 40)  # open files and read blocks are left behind by whoever goes on
    with get_context(method).Pool(1) as pool:
        assert pool.apply(_drawn, (mixture, range(20, 40))) == expected[20:]


def test_a_mixture_with_map_style_sources(folder, tmp_path):
    write_documents(tmp_path / "own", [guide(1000 + k, (4, 4)) for k in range(5)])
    specs = [options(folder, weight=3), f"documents:{tmp_path / 'own'}"]
    mixture = open_mixture(specs, seed=2)
    found = draws(mixture, 400)
    assert 60 < sum(number >= 1000 for number in found) < 140
    assert draws(open_mixture(specs, seed=2), 100, 300) == found[300:]
    streamed = [k for k in range(400) if found[k] < 1000]
    assert all((mixture.reader(k, 3) is not None) == (found[k] < 1000) for k in range(400))
    assert Counter(mixture.reader(k, 3) for k in streamed[:99]) == {0: 33, 1: 33, 2: 33}
    assert mixture.epochs(400)[0] == len(streamed)  # of a stream draws are counted, as of whatever has no length


def test_blocks_that_were_used_least_lately_are_let_go(folder):
    source = open_source(options(folder, lanes=7))
    expected = draws(open_mixture(options(folder, lanes=7), seed=3), 70)
    mixture = open_mixture(options(folder, lanes=7), seed=3)
    source = mixture.sources[0]
    one = open_blocks(source.shards[0], source.documents, source.bytes).read(START).size
    source.held_bytes = 2 * one
    for k in range(70):
        assert mixture.draw(k).document.meta["number"] == expected[k]
        assert sum(each.block.size for lane in source._lanes.values() for each in lane.blocks) <= 3 * one


def fetched_in(mixture, span, rank: int = 0, readers: int = 1):
    return {k: mixture.fetch(k) for k in span if mixture.reader(k, readers) == rank}


def test_what_a_reader_fetches_another_process_draws_without_a_shard(folder, monkeypatch):
    reader, decoder = (open_mixture(options(folder), seed=4) for _ in range(2))
    expected = draws(open_mixture(options(folder), seed=4), 30)
    for first in (0, 10, 20):
        given = fetched_in(reader, range(first, first + 10))
        decoder.give(pickle.loads(pickle.dumps(given)))
        assert [decoder.header(k).document.meta["number"] for k in given] == expected[first : first + 10]
        assert draws(decoder, 10, first) == expected[first : first + 10]
    assert not decoder.sources[0]._lanes and len(decoder.sources[0]._given) <= 10
    assert all(blocks.file._file is None for blocks in decoder.sources[0]._opened.values())
    assert not pickle.loads(pickle.dumps(decoder.sources[0]))._given, "it is not sent with the source"
    small = len(pickle.dumps(given[20].raw))
    assert small < 2 * len(pickle.dumps(reader.sources[0]._raw(given[20].index)[1])) and small < 20_000


def test_a_sample_that_proves_damaged_in_the_other_process_is_replaced_as_everywhere(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    documents = [guide(k, (16, 16)) for k in range(8)]
    write_tar(root / "s.tar", [members(f"{d.meta['number']:05d}", d) for d in documents])
    data = bytearray((root / "s.tar").read_bytes())
    at = data.index(b"IDAT") + 6  # behind the header of the first picture
    data[at : at + 4] = b"\xff" * 4
    (root / "s.tar").write_bytes(data)
    alone = open_mixture(options(root, lanes=1), seed=1)
    expected = [alone.draw(k) for k in range(8)]
    assert any(sample.skipped for sample in expected)
    reader, decoder = (open_mixture(options(root, lanes=1), seed=1) for _ in range(2))
    for mixture in (reader, decoder):
        mixture.keep(tmp_path / "notes")
    decoder.give(fetched_in(reader, range(8)))
    found = [decoder.draw(k) for k in range(8)]
    assert [each.index for each in found] == [each.index for each in expected]
    assert [len(each.skipped) for each in found] == [len(each.skipped) for each in expected]
    assert decoder.sources[0]._lanes and decoder.sources[0].notes.counts, "it went to the shard, and had the notes"
    decoder.give({})
    assert not decoder.sources[0]._lanes, "and holds nothing of it any more"


@pytest.mark.parametrize(("lanes", "readers"), [(7, 1), (7, 3), (6, 3), (3, 7), (1, 4), (2, 5)])
def test_every_reader_has_its_part(folder, lanes, readers):
    mixture = open_mixture(options(folder, lanes=lanes), seed=1)
    whose = [mixture.reader(k, readers) for k in range(lanes * readers * 4)]
    assert set(whose) == set(range(readers)) and max(Counter(whose).values()) <= 4 * lanes * -(-readers // lanes) * 2
    if readers <= lanes:
        assert all(reader == k % lanes % readers for k, reader in enumerate(whose))  # draw k lies in lane k % lanes
    else:  # a reader has one lane
        assert all(len({k % lanes for k, each in enumerate(whose) if each == r}) == 1 for r in range(readers))
    assert open_mixture("sketchbook", seed=0).reader(5, readers) is None


# ---------------------------------------------------------------- where shards lie


def test_shards_by_range_pattern_folder_and_index(folder):
    ending = folder.name
    (folder / "index.txt").write_text(f"# shards\ns-004.{ending}\n./s-001.{ending}\n")
    listed = [{"url": f"s-00{k}.{ending}", "nsamples": 3} for k in (2, 0)]
    (folder / "index.json").write_text(json.dumps({"__kind__": "wids-shard-index-v1", "shardlist": listed}))
    for end, names in (
        ("", range(7)),
        (f"/s-{{002..004}}.{ending}", (2, 3, 4)),
        (f"/s-00[01].{ending}", (0, 1)),
        (f"/s-005.{ending}", (5,)),
        ("/index.txt", (4, 1)),
        ("/index.json", (2, 0)),
    ):
        found = shards_of(f"{folder}{end}", (".tar", ".parquet"))
        assert [shard.name for shard in found] == [f"s-00{k}.{ending}" for k in names], end
    assert sorted(set(draws(open_mixture(options(folder / "index.txt"), seed=0), 60))) == [
        *range(10, 20),
        *range(40, 50),
    ]


@pytest.mark.parametrize("line", ["../s-000.tar", "/etc/s.tar", "s3://elsewhere/s.tar", "a.pkl", "file:///etc/x.tar"])
def test_an_index_names_nothing_outside_its_folder(tmp_path, line):
    write_shards(tmp_path / "set", 1)
    (tmp_path / "set" / "index.txt").write_text(f"s-000.tar\n{line}\n")
    with pytest.raises(DuoGenError, match="index.txt, entry 2"):
        open_source(f"stream:{tmp_path / 'set' / 'index.txt'}")


def test_memory_addresses(folder):
    expected = draws(open_mixture(options(folder), seed=0), 100)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for file in folder.iterdir():
        memory.pipe(f"/bucket/a/{file.name}", file.read_bytes())
    ending = folder.name
    for place in ("memory://bucket/a", f"memory://bucket/a/*.{ending}", f"memory://bucket/a/s-{{000..006}}.{ending}"):
        assert draws(open_mixture(options(place), seed=0), 100) == expected, place
    memory.pipe("/bucket/a/index.txt", f"s-003.{ending}\n".encode())
    assert set(draws(open_mixture(options("memory://bucket/a/index.txt"), seed=0), 10)) == set(range(30, 40))
    memory.store.clear()


def test_http_with_ranges_without_them_failing_and_breaking_off(folder, serve):
    expected = draws(open_mixture(options(folder), seed=0), 100)
    ending = folder.name
    for behaviour in ({}, {"failing": 3}, {"broken": 4}):
        address, handler = serve(folder, **behaviour)
        mixture = open_mixture(options(f"{address}/s-{{000..006}}.{ending}"), seed=0)
        assert draws(mixture, 100) == expected, behaviour
        assert handler.failing == handler.broken == 0
    address, _ = serve(folder)
    assert draws(open_mixture(options(f"{address}/*.{ending}"), seed=0), 20) == expected[:20]
    if ending == "tar":
        address, _ = serve(folder, ranges=False)
        assert draws(open_mixture(options(f"{address}/s-{{000..006}}.tar"), seed=0), 100) == expected


def test_addresses_that_cannot_be_reached(folder, serve, tmp_path):
    address, _ = serve(folder)
    ending = folder.name
    mixture = open_mixture(options(f"{address}/s-{{000..009}}.{ending}?token=secret"), seed=0)
    with pytest.raises(Unreachable, match=rf"s-00[789].{ending} is not there, or may not be read") as caught:
        draws(mixture, 100)
    assert "secret" not in str(caught.value)
    with pytest.raises(Unreachable, match="nothing at|is not there"):
        open_source(f"stream:{address}/none/*.tar")
    with pytest.raises(Unreachable, match=r"127.0.0.1:9/a.tar cannot be reached: .*It was tried 6 times"):
        open_source("stream:http://127.0.0.1:9/a.tar").look(1)
    address, _ = serve(folder, failing=10**6)
    with pytest.raises(Unreachable, match="cannot be reached"):
        draws(open_mixture(options(f"{address}/s-{{000..006}}.{ending}"), seed=0), 1)
    with pytest.raises(DuoGenError, match="does not exist; check the path"):
        open_source(f"stream:{tmp_path}/none-*.tar")
    for named in ("*.tar", "a.tar"):
        with pytest.raises(Unreachable, match="fsspec does not take"):
            open_source(f"stream:nonsense://bucket/{named}").look(1)
    with pytest.raises(DuoGenError, match="stream:s3://bucket/a.tar reads those"):
        open_source("webdataset:s3://bucket/a.tar")


def test_a_protocol_whose_package_is_missing(monkeypatch):
    import importlib

    registry = importlib.import_module("fsspec.registry")  # of that name fsspec has a variable, too
    entry = {"class": "no_such_package.Files", "err": "Install cloudfs to access the cloud"}
    monkeypatch.setitem(registry.known_implementations, "cloud", entry)
    for named in ("*.tar", "a.tar"):  # of one that is named, nothing is looked up before it is read
        with pytest.raises(Unreachable, match=r"cloud:// addresses need a package .*Install cloudfs.*\[stream\]"):
            open_source(f"stream:cloud://bucket/{named}").look(1)


def test_a_missing_shard_stops_the_run_and_the_same_command_goes_on(folder, serve, tmp_path):
    expected = draws(open_mixture(options(folder), seed=0), 100)
    ending = folder.name
    address, handler = serve(folder)
    mixture = open_mixture(options(f"{address}/s-{{000..006}}.{ending}"), seed=0)
    mixture.keep(tmp_path / "notes")
    assert draws(mixture, 30) == expected[:30]
    handler.failing = 10**6
    with pytest.raises(Unreachable):
        draws(mixture, 70, 30)
    handler.failing = 0
    resumed = open_mixture(options(f"{address}/s-{{000..006}}.{ending}"), seed=0)
    resumed.keep(tmp_path / "notes")
    assert draws(resumed, 70, 30) == expected[30:]


# ---------------------------------------------------------------- bad samples and damaged shards


def bad_of(mixture, count: int) -> list[Bad]:
    found = []
    mixture.on_bad = found.append
    for k in range(count):
        mixture.draw(k)
    return found


def test_a_tar_that_ends_early_is_named_and_what_was_read_stays(tmp_path):
    root = write_shards(tmp_path / "set", 4)
    whole = (root / "s-002.tar").read_bytes()
    with tarfile.open(root / "s-002.tar") as archive:
        cut = archive.getmembers()[16]  # of the sixth sample, in the middle of a picture
    assert cut.name == "00025.000.png"
    (root / "s-002.tar").write_bytes(whole[: cut.offset_data + 20])
    mixture = open_mixture(options(root, lanes=1), seed=0)
    bad = bad_of(mixture, 36)
    assert len(bad) == 1 and "s-002.tar: the shard ends early" in bad[0].sentence
    assert "in the middle of its member '00025.000.png'" in bad[0].sentence
    drawn = [sample.document.meta["number"] for sample in (mixture.draw(k) for k in range(36))]
    assert {20, 21, 22, 23, 24} < set(drawn) and not {25, 26, 27, 28, 29} & set(drawn)
    # the order is the same after a resume, also where the end of the shard is found by its headers
    again = open_mixture(options(root, lanes=1), seed=0)
    assert draws(again, 6, 30) == drawn[30:]
    with pytest.raises(DuoGenError, match="s-002.tar: the shard ends early.*set damaged: skip"):
        draws(open_mixture(options(root, lanes=1, damaged="stop"), seed=0), 36)


def test_shards_that_are_no_shards(tmp_path):
    root = write_shards(tmp_path / "set", 2)
    write_shards(root, 0)
    (root / "t-0.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    (root / "t-1.tar").write_bytes(b"not a tar" * 200)
    (root / "t-2.tar").write_bytes(b"")
    (root / "t-3.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"url": ["x"]}), root / "t-4.parquet")
    mixture = open_mixture(options(root, lanes=1), seed=0)
    bad = bad_of(mixture, 60)
    sentences = " ".join(each.sentence for each in bad)
    assert len(bad) == 4
    for words in (
        "t-0.tar is compressed with gzip",
        "t-1.tar, byte 0: the tar is damaged or cut off here",
        "t-3.parquet",
        "t-4.parquet has no column sample_id",
    ):
        assert words in sentences
    assert sorted(set(draws(mixture, 60))) == list(range(20))


def test_nothing_good_at_all(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    (root / "a.tar").write_bytes(b"")
    with pytest.raises(DuoGenError, match="holds no sample"):
        draws(open_mixture(options(root), seed=0), 1)
    (root / "a.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(DuoGenError, match="no sample in it can be used"):
        draws(open_mixture(options(root), seed=0), 1)


def test_members_are_never_unpickled_nor_lead_elsewhere(tmp_path):
    """webdataset's own readers would run pickle.loads on .pyd and torch.load on .pth members."""

    class Boom:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    pickled = pickle.dumps(Boom())
    root = tmp_path / "set"
    root.mkdir()
    link = tarfile.TarInfo("e.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    good = [members(f"{k}", guide(k, (4, 4))) for k in range(3)]
    good[0] += [("0.pyd", pickled), ("0.pkl", pickled), ("0.pth", pickled)]
    outside = json.loads(good[1][0][1])
    outside["turns"][0]["parts"][1]["file"] = "../../secret.png"
    write_tar(root / "a.tar", [
        *good, [("b.json", pickled)], [("c.pyd", pickled)], [("../d.json", b"{}")], [("e.json", link)],
        [("f.json", json.dumps(outside).encode()), *((f"f{n[1:]}", d) for n, d in good[1][1:])],
    ])  # fmt: skip
    found = list(open_source(f"stream:{root}").walk(0))
    assert numbers(each for each in found if isinstance(each, Sample)) == [0, 1, 2]
    assert len(found) == 8 and not (tmp_path / "boom").exists()
    sentences = " ".join(each.sentence for each in found if isinstance(each, Bad))
    for words in ("not UTF-8", "c.json is missing", "../d.json", "is a link or a device", "../../secret.png"):
        assert words in sentences, sentences


def test_a_header_that_states_a_size_nothing_has(tmp_path):
    root = write_shards(tmp_path / "set", 2)
    data = bytearray((root / "s-001.tar").read_bytes())
    with tarfile.open(root / "s-001.tar") as archive:
        at = archive.getmembers()[3].offset
    header = bytearray(data[at : at + 512])
    header[124:136] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[at : at + 512] = header
    (root / "s-001.tar").write_bytes(data)
    found = list(open_source(f"stream:{root}").walk(1))
    assert isinstance(found[0], Sample) and isinstance(found[-1], Bad) and len(found) == 2


def test_a_damaged_row_group_costs_its_samples_and_not_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "GROUP_BYTES", 1)
    root = write_shards(tmp_path / "set", 2, "parquet")
    file = root / "s-001.parquet"
    data = bytearray(file.read_bytes())
    group = pq.ParquetFile(file).metadata.row_group(4)
    column = next(
        group.column(k) for k in range(group.num_columns) if "binary_content" in group.column(k).path_in_schema
    )
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(data)
    found = list(open_source(f"stream:{root}").walk(1))
    assert len(found) == 10 and [k for k, each in enumerate(found) if isinstance(each, Bad)] == [4]
    assert "s-001.parquet, row group 4" in found[4].sentence
    walked = draws(open_mixture(options(root), seed=1), 40)
    assert draws(open_mixture(options(root), seed=1), 10, 30) == walked[30:]


def test_samples_that_go_on_in_the_next_row_group(tmp_path):
    rows = [row for k in range(9) for row in rows_of(guide(k, (4, 4)), f"{k:03d}")]
    (tmp_path / "set").mkdir()
    from duogen_core.data.sources.rows import schema

    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), tmp_path / "set" / "a.parquet", row_group_size=4)
    for shuffle in (1, 2, 5, 100):
        source = open_source({"source": f"stream:{tmp_path / 'set'}", "shuffle": shuffle})
        assert numbers(source.walk(0)) == list(range(9))
        mixture = open_mixture({"source": f"stream:{tmp_path / 'set'}", "shuffle": shuffle}, seed=0)
        assert sorted(draws(mixture, 9)) == list(range(9))


def test_what_stands_in_the_place_of_bad_samples(tmp_path):
    """A shard of which nothing can be used: others of the lane come in its place, the same for everyone."""
    root = write_shards(tmp_path / "set", 5)
    write_tar(root / "s-001.tar", [[(f"{k}.json", b"{")] for k in range(PER_SHARD)])
    log = BadLog()
    mixture = open_mixture(options(root), seed=0, on_bad=log)
    found = draws(mixture, 60)
    assert len(log) == PER_SHARD and not set(range(10, 20)) & set(found)
    assert draws(open_mixture(options(root), seed=0), 30, 30) == found[30:]


def test_wrong_settings(tmp_path):
    write_shards(tmp_path / "set", 1)
    for wrong, words in (
        ({"shuffle": 0}, "shuffle is 0"),
        ({"lanes": 1.5}, "lanes is 1.5"),
        ({"buffer_mb": True}, "buffer_mb is True"),
        ({"damaged": "ignore"}, "expected skip or stop"),
        ({"storage": "anon"}, "expected a table"),
        ({"shufle": 3}, "did you mean 'shuffle'"),
    ):
        with pytest.raises(DuoGenError, match=words):
            open_source(options(tmp_path / "set") | wrong)


def test_numbers_that_are_none():
    assert MOST > 2**31
    with pytest.raises(TypeError):
        len(open_source("stream:memory://bucket/a.tar"))


# ---------------------------------------------------------------- commands


def test_data_check_reads_a_stream_to_its_end(folder, capsys):
    for more, count in (([], 70), (["--samples", "25"], 25), (["--workers", "2"], 70)):
        assert main(["data", "check", f"stream:{folder}", "--json", "--quiet", *more]) == 0
        assert json.loads(capsys.readouterr().out)["sources"][0]["samples"] == count
    assert main(["data", "export", f"stream:{folder}", "--out", str(folder.parent / "out")]) == 2
    assert "is a stream" in capsys.readouterr().err


def test_data_check_names_an_address_that_cannot_be_reached(capsys):
    assert main(["data", "check", "stream:http://127.0.0.1:9/a.tar", "--quiet"]) == 2
    assert "127.0.0.1:9/a.tar cannot be reached" in capsys.readouterr().err
