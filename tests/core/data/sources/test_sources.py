"""Sources: every format gives the same samples, and every bad input its sentence."""

from __future__ import annotations

import io
import json
import pickle
import re
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from duogen_core.data.sources import (
    Bad,
    Limits,
    Sample,
    Source,
    open_source,
)
from duogen_core.document import Document, Text, Turn
from duogen_core.document.store import document_json, save_document
from duogen_core.errors import DuoGenError
from tests.core.documents import picture
from tests.core.sample_sets import (
    ANSWER,
    COUNT,
    FORMATS,
    USER,
    guide,
    members,
    numbers,
    only_bad,
    png,
    write_jsonl,
    write_kind,
    write_tar,
)


@pytest.fixture(params=FORMATS)
def good(request, tmp_path):
    return open_source(write_kind(request.param, tmp_path, [guide(i) for i in range(COUNT)]))


# ---------------------------------------------------------------- every format


def test_a_source_gives_the_documents_that_were_written(good):
    assert len(good) == COUNT and not good.endless
    for i in range(COUNT):
        sample = good.read(i)
        assert isinstance(sample, Sample) and sample.index == i and sample.source == good.name
        assert sample.document == guide(i) and sample.label == good.label(i)
        assert [np.array_equal(a.pixels, b.pixels) for a, b in zip(sample.document.pictures, guide(i).pictures)] == [
            True,
            True,
        ]


def test_an_epoch_is_every_sample_once_in_an_order_of_seed_and_number(good):
    orders = {(seed, n): tuple(numbers(good.epoch(seed, n))) for seed in (0, 1) for n in (0, 1, 2)}
    assert all(sorted(order) == list(range(COUNT)) for order in orders.values())
    assert len(set(orders.values())) >= 5
    assert tuple(numbers(good.epoch(0, 1))) == orders[0, 1]


def test_an_epoch_goes_on_where_it_was_left(good, monkeypatch):
    whole = numbers(good.epoch(3, 0))
    begun = good.epoch(3, 0)
    assert numbers(islice(begun, 4)) == whole[:4] and begun.position == 4
    read = []
    monkeypatch.setattr(good, "load", lambda index, load=good.load: read.append(index) or load(index))
    assert numbers(good.epoch(3, 0).skip(begun.position)) == whole[4:]
    assert len(read) == COUNT - 4  # what is skipped is not read


def test_a_source_can_be_sent_to_another_process(good):
    assert numbers(pickle.loads(pickle.dumps(good)).epoch(0, 0)) == numbers(good.epoch(0, 0))


@pytest.mark.parametrize("kind", FORMATS)
def test_identity_follows_the_data_and_not_its_place(kind, tmp_path):
    identities = []
    for name, count in (("one", 4), ("two", 4), ("three", 5)):
        (tmp_path / name).mkdir()
        identities.append(open_source(write_kind(kind, tmp_path / name, [guide(i) for i in range(count)])).identity())
    assert identities[0] == identities[1] != identities[2]
    assert json.loads(json.dumps(identities[0])) == identities[0]


# ---------------------------------------------------------------- what a sample must be


@pytest.mark.parametrize(
    "turns, match",
    [
        ((), "has no turns"),
        ((USER,), "no assistant turn"),
        ((ANSWER,), "turns[0] has the role assistant; expected user"),
        ((USER, USER, ANSWER), "turns[1] has the role user; expected assistant"),
        ((USER, ANSWER, Turn("system", (Text("Be kind."),))), "turns[2] has the role system"),
        ((USER, Turn("assistant", (Text(" \n"),))), "turns[1] (assistant) is empty"),
        ((Turn("user", (picture(),)), Turn("assistant", (picture(),))), "no text at all"),
        (
            (USER, Turn("assistant", (picture(size=(9000, 4)),))),
            "turns[1].parts[0], an image, is 9000x4 pixels",
        ),
        ((USER, Turn("assistant", (picture(size=(401, 2)),))), "more than 200 times"),
        ((USER, Turn("assistant", tuple(picture() for _ in range(65)))), "65 images; at most 64"),
    ],
)
def test_documents_that_cannot_be_learnt_from(tmp_path, turns, match):
    save_document(Document(turns), tmp_path / "set" / "a")
    only_bad(open_source(f"documents:{tmp_path / 'set'}"), match)


def test_a_ten_thousand_pixel_picture_is_refused_and_the_limit_can_be_set(tmp_path):
    large = Document((USER, Turn("assistant", (picture(size=(10_000, 100)),))))
    save_document(large, tmp_path / "set" / "a")
    source = open_source(f"documents:{tmp_path / 'set'}")
    only_bad(source, "10000x100 pixels")
    wider = open_source(f"documents:{tmp_path / 'set'}", limits=Limits(max_side=10_000))
    assert isinstance(wider.read(0), Sample)
    with pytest.raises(DuoGenError, match="max_side is 0"):
        Limits(max_side=0)


def test_a_system_turn_and_an_unanswered_last_request_are_fine(tmp_path):
    system = Turn("system", (Text("Be kind."),))
    save_document(Document((system, USER, ANSWER, USER)), tmp_path / "set" / "a")
    assert isinstance(open_source(f"documents:{tmp_path / 'set'}").read(0), Sample)


def test_an_unforeseen_error_is_a_bad_sample_too(good, monkeypatch):
    def fail(_index):
        raise RuntimeError("the decoder lost its way")

    monkeypatch.setattr(good, "load", fail)
    only_bad(good, "RuntimeError: the decoder lost its way")


def test_a_sentence_does_not_quote_a_whole_file(tmp_path):
    save_document(guide(0), tmp_path / "set" / "a")
    replace_in(tmp_path / "set" / "a", '"user"', f'"{"robot" * 10_000}"')
    assert len(only_bad(open_source(f"documents:{tmp_path / 'set'}"), "the role is 'robotrobot").sentence) < 1100


# ---------------------------------------------------------------- document folders


def test_documents_lie_at_any_depth(tmp_path):
    for name in ("b", "a/x", "a/y.zip", "a/deep/er/z"):
        save_document(guide(0), tmp_path / "set" / name)
    (tmp_path / "set" / ".cache").mkdir()
    (tmp_path / "set" / "README.md").write_text("about")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "set" / "b")
    (tmp_path / "set" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    source = open_source(f"documents:{tmp_path / 'set'}")
    assert source.names == ["a/deep/er/z", "a/x", "a/y.zip", "b", "c"]
    assert all(isinstance(source.read(i), Sample) for i in range(5))
    assert open_source(f"documents:{tmp_path / 'set' / 'b'}").read(0).document == guide(0)
    assert open_source(f"documents:{tmp_path / 'set' / 'a' / 'y.zip'}").read(0).document == guide(0)


def test_a_folder_of_pictures_beside_the_documents_is_no_document(tmp_path):
    save_document(guide(0), tmp_path / "a")
    (tmp_path / "images").mkdir()
    assert open_source(f"documents:{tmp_path}").names == ["a"]


@pytest.mark.parametrize(
    "break_it, match",
    [
        (lambda d: (d / "images/000.png").unlink(), "images/000.png (named by"),
        (lambda d: (d / "document.json").unlink(), "document.json does not exist"),
        (lambda d: (d / "document.json").write_text('{"format":'), "not valid JSON"),
        (lambda d: (d / "images/001.png").write_bytes(b"text"), "not an image that can be read"),
        (lambda d: replace_in(d, '"user"', '"robot"'), "the role is 'robot'; expected one of system, user, assistant"),
        (lambda d: replace_in(d, "images/000.png", "../../secret.png"), "is not allowed"),
    ],
    ids=["missing picture", "missing json", "broken json", "no picture", "wrong role", "path outside"],
)
def test_a_broken_document_folder(tmp_path, break_it, match):
    save_document(guide(0), tmp_path / "set" / "a")
    break_it(tmp_path / "set" / "a")
    only_bad(open_source(f"documents:{tmp_path / 'set'}"), match)


def replace_in(folder: Path, old: str, new: str) -> None:
    file = folder / "document.json"
    file.write_text(file.read_text().replace(old, new))


def test_a_broken_zip(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK not really")
    only_bad(open_source(f"documents:{tmp_path}"), "damaged or not a .zip")


# ---------------------------------------------------------------- JSONL


def test_lines_are_found_across_blocks_and_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("duogen_core.data.sources.documents.CHUNK", 7)
    file = write_jsonl(tmp_path / "a.jsonl", [guide(0), guide(1)])
    first, second = file.read_bytes().splitlines()
    file.write_bytes(first + b"\r\n\r\n\n" + second)  # empty lines between, and no line end at the last
    source = open_source(f"jsonl:{file}")
    assert [source.label(i) for i in range(len(source))] == [f"{file}, line 1", f"{file}, line 4"]
    assert numbers(source.read(i) for i in range(2)) == [0, 1]


def test_several_files_and_a_folder_of_them(tmp_path):
    for name, number in (("b.jsonl", 1), ("a.jsonl", 0)):
        write_jsonl(tmp_path / name.removesuffix(".jsonl") / name, [guide(number)])
    source = open_source(f"jsonl:{tmp_path}/*/*.jsonl")
    assert numbers(source.read(i) for i in range(2)) == [0, 1]
    assert len(open_source(f"jsonl:{tmp_path / 'a'}")) == 1


@pytest.mark.parametrize(
    "line, match",
    [
        (b"{broken", "not valid JSON"),
        (b'"text"', "expected an object"),
        (b"\xff\xfe", "not UTF-8"),
        (json.dumps(document_json(guide(0), ["nowhere.png"] * 2)).encode(), "nowhere.png"),
        (json.dumps(document_json(guide(0), ["/etc/passwd"] * 2)).encode(), "is not allowed"),
        (json.dumps(document_json(Document((USER,)))).encode(), "no assistant turn"),
    ],
    ids=["broken", "no object", "no text", "missing picture", "path outside", "no answer"],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, match):
    file = write_jsonl(tmp_path / "a.jsonl", [guide(0)], tail=line + b"\n")
    source = open_source(f"jsonl:{file}")
    assert isinstance(source.read(0), Sample)
    assert only_bad(source, match, 1).label == f"{file}, line 2"


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "set" / "a.jsonl").write_text(json.dumps(document_json(guide(0), ["link.png"] * 2)))
    only_bad(open_source(f"jsonl:{tmp_path / 'set' / 'a.jsonl'}"), "leaves the document's folder")


def test_a_line_without_end_is_not_read(tmp_path, monkeypatch):
    file = write_jsonl(tmp_path / "a.jsonl", [guide(0)])
    monkeypatch.setattr("duogen_core.data.sources.documents.MAX_JSON_BYTES", 100)
    only_bad(open_source(f"jsonl:{file}"), "is longer than")


# ---------------------------------------------------------------- webdataset tars


def tar_of(tmp_path, *samples) -> Source:
    return open_source(f"webdataset:{write_tar(tmp_path / 'a.tar', samples)}")


def test_members_may_be_named_in_full_or_after_the_key(tmp_path):
    first, second = guide(0), guide(1)
    whole = [f"./x/b.{k}.png" for k in range(2)]
    full = [("./x/b.json", json.dumps(document_json(second, ["x/b.0.png", "1.png"])).encode())]
    full += [(name, png(each)) for name, each in zip(whole, second.pictures)]
    folder = tarfile.TarInfo("x")
    folder.type = tarfile.DIRTYPE
    source = tar_of(tmp_path, [("x", folder)], members("a", first), full)
    assert numbers(source.read(i) for i in range(2)) == [0, 1]


def test_long_names_and_other_members(tmp_path):
    key = "folder/" + "k" * 200
    source = tar_of(tmp_path, [*members(key, guide(0)), (f"{key}.txt", b"a note")], members("b", guide(1)))
    assert numbers(source.read(i) for i in range(2)) == [0, 1]


def link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "sample, match",
    [
        (members("a", guide(0))[:2], "001.png (named by"),
        (members("a", guide(0))[1:], "a.json is missing: the sample has only a.000.png, a.001.png"),
        ([("a.json", b"{"), *members("a", guide(0))[1:]], "a.json is not valid JSON"),
        ([*members("a", guide(0))[:2], ("a.001.png", b"noise")], "not an image that can be read"),
        ([*members("a", guide(0)), members("a", guide(0))[2]], "is in it twice"),
        ([*members("a", guide(0))[:2], ("a.001.png", link("a.001.png"))], "is a link or a device"),
        ([(f"../{name}", data) for name, data in members("a", guide(0))], "is not allowed"),
    ],
    ids=["missing picture", "missing json", "broken json", "no picture", "twice", "link", "path outside"],
)
def test_a_bad_sample_in_a_tar(tmp_path, sample, match):
    source = tar_of(tmp_path, sample, members("b", guide(1)))
    only_bad(source, match)
    assert numbers([source.read(1)]) == [1]  # the next one is whole


def test_a_tar_that_was_cut_off(tmp_path):
    file = write_tar(tmp_path / "a.tar", [members(key, guide(i)) for i, key in enumerate("ab")])
    whole = open_source(f"webdataset:{file}")
    file.write_bytes(file.read_bytes()[: whole.offsets[1] + 600])
    source = open_source(f"webdataset:{file}")
    assert len(source) == 3 and numbers([source.read(0)]) == [0]
    only_bad(source, "damaged", 1)
    only_bad(source, "damaged or cut off here", 2)


def test_a_damaged_header_in_the_middle(tmp_path):
    file = write_tar(tmp_path / "a.tar", [members(key, guide(i)) for i, key in enumerate("abc")])
    data = bytearray(file.read_bytes())
    at = open_source(f"webdataset:{file}").offsets[1]
    data[at : at + 512] = b"x" * 512
    file.write_bytes(data)
    source = open_source(f"webdataset:{file}")
    assert len(source) == 2 and numbers([source.read(0)]) == [0]
    only_bad(source, f"byte {at}: the tar is damaged", 1)


def test_compressed_tars_and_other_files(tmp_path):
    file = write_tar(tmp_path / "a.tar", [members("a", guide(0))])
    with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
        archive.add(file)
    with pytest.raises(DuoGenError, match="compressed with gzip; unpack it"):
        open_source(f"webdataset:{tmp_path / 'b.tar'}")
    (tmp_path / "c.tar").write_bytes(b"text" * 500)
    only_bad(open_source(f"webdataset:{tmp_path / 'c.tar'}"), "the tar is damaged")
    (tmp_path / "d.tar").write_bytes(b"")
    with pytest.raises(DuoGenError, match="holds no sample"):
        open_source(f"webdataset:{tmp_path / 'd.tar'}")
    with pytest.raises(DuoGenError, match="e-001.tar does not exist"):
        write_tar(tmp_path / "e-000.tar", [members("a", guide(0))])
        open_source(f"webdataset:{tmp_path}/e-{{000..001}}.tar")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_no_memory_is_no_fault_of_the_sample(tmp_path, monkeypatch, error):
    """It would be left out for good, by an export that ends well."""
    source = open_source(write_kind("jsonl", tmp_path, [guide(0)]))

    def load(_):
        raise error

    monkeypatch.setattr(source, "load", load)
    with pytest.raises(DuoGenError, match="This machine failed at .*line 1"):
        source.read(0)


# ---------------------------------------------------------------- tars that state what cannot be


def read_whole(spec: str) -> list[Sample | Bad]:
    """Every sample or its sentence; a source that cannot be opened is none. Anything else is raised."""
    try:
        source = open_source(spec)
    except DuoGenError:
        return []
    found = [source.read(index) for index in range(len(source))]
    for each in found:
        # `read` turns any exception into a Bad; one that nobody foresaw is named by its class
        assert isinstance(each, Sample) or not re.search(r"\b[A-Z]\w*(Error|Exception): ", each.sentence), each.sentence
    return found


def with_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def base_256(number: int) -> bytes:
    return (0x80 << 88 | number & ((1 << 88) - 1)).to_bytes(12, "big")


SIZES = (2**33, 2**63 - 1, 2**63, 2**80, 2**88 - 1, -1, -512, -(2**62))


@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"g", b"S", b"5"], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_a_tar_whose_header_states_an_absurd_size(tmp_path, kind, size):
    file = write_tar(tmp_path / "a.tar", [members(key, guide(i)) for i, key in enumerate("abc")])
    at = open_source(f"webdataset:{file}").offsets[1]
    data = bytearray(file.read_bytes())
    header = data[at : at + 512]
    header[124:136] = base_256(size)
    header[156:157] = kind
    data[at : at + 512] = with_checksum(header)
    file.write_bytes(data)
    found = read_whole(f"webdataset:{file}")
    assert isinstance(found[0], Sample) and any(isinstance(each, Bad) for each in found)


@pytest.mark.parametrize(
    "records",
    [
        {"GNU.sparse.map": "0,x", "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "x"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.json", "GNU.sparse.realsize": "-9"},
        {"GNU.sparse.size": "1" * 5000},
        {"size": "8589934592"},
        {"size": "x"},
        {"mtime": "1e999", "uid": "9" * 400},
        {"path": "../b.json"},
    ],
)
def test_a_tar_with_a_broken_pax_header(tmp_path, records):
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        for key in "ab":
            for name, data in members(key, guide(0)):
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = len(data), records if name == "b.json" else {}
                archive.addfile(info, io.BytesIO(data))
    found = read_whole(f"webdataset:{file}")
    assert isinstance(found[0], Sample)


def test_mutated_tars_are_sentences(tmp_path):
    from random import Random

    whole = write_tar(tmp_path / "a.tar", [members(key, guide(i)) for i, key in enumerate("ab")]).read_bytes()
    heads = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    rng = Random(0)
    for _ in range(300):
        data, at = bytearray(whole), rng.choice(heads)
        header = data[at : at + 512]
        for _ in range(rng.randint(1, 4)):
            place = rng.choice((rng.randrange(512), rng.randrange(100, 160)))
            header[place] = rng.choice((0, 0x20, 0x2D, 0x30, 0x37, 0x53, 0x78, 0x80, 0xFF, rng.randrange(256)))
        data[at : at + 512] = with_checksum(header)
        (tmp_path / "a.tar").write_bytes(data)
        read_whole(f"webdataset:{tmp_path / 'a.tar'}")


# ---------------------------------------------------------------- keys of webdataset


def test_samples_that_would_share_a_key_are_named(tmp_path):
    source = tar_of(tmp_path, members("22.05", guide(0)), members("22.06", guide(1)), members("b", guide(2)))
    only_bad(source, "22.05.json and 22.06.json would share the key '22'")
    assert numbers([source.read(1)]) == [2]
    only_bad(tar_of(tmp_path, members("22.05", guide(0)), members("b", guide(1))), "would have the key '22'")


def test_members_that_stand_apart_and_keys_that_come_twice_are_named(tmp_path):
    one, two = members("a", guide(0)), members("b", guide(1))
    source = tar_of(tmp_path, one[:1], two, one[1:])
    only_bad(source, "is not among the sample's members", 0)
    assert numbers([source.read(1)]) == [1]
    only_bad(source, "its key is already at byte 0 of the same tar", 2)
    source = tar_of(tmp_path, one, two, members("a", guide(2)))  # a tar that was written on
    assert numbers(source.read(i) for i in range(2)) == [0, 1]
    only_bad(source, "two samples need two keys", 2)
