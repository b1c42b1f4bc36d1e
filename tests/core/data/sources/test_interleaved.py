"""Interleaved Parquet rows: exact round trips, rows of others, row groups, damaged rows, and `data export`."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from duogen_core.cli import main
from duogen_core.data import export
from duogen_core.data.export import write_rows
from duogen_core.data.sources import Sample, open_source
from duogen_core.data.sources.rows import METADATA, RESERVED, rows_of, schema
from duogen_core.document import (
    Document,
    Picture,
    Text,
    Turn,
)
from duogen_core.errors import DuoGenError
from tests.core.documents import picture, sample
from tests.core.sample_sets import guide, only_bad, write_documents, write_kind


def write(file: Path, rows: list[dict], columns: pa.Schema | None = None) -> str:
    pq.write_table(pa.Table.from_pylist(rows, schema=columns), file)
    return f"parquet:{file}"


def foreign(position: int, modality: str, sample_id: str = "a", **cells) -> dict:
    """A row as Curator's reader makes it, with a column of the user's."""
    row = {**dict.fromkeys(RESERVED), "sample_id": sample_id, "position": position, "modality": modality}
    return {**row, "url": None, "title": None, **cells}


def png(value: int = 0) -> bytes:
    return picture(value).to_png()


STREAM = [
    foreign(METADATA, "metadata", url="http://a.example.com/", title="Bake bread"),
    foreign(0, "image", binary_content=png(1), content_type="image/png"),
    foreign(1, "text", text_content="Mix."),
    foreign(3, "image", binary_content=png(2), content_type="image/png"),
    foreign(7, "text", text_content="Bake."),
]


def test_the_columns_are_those_of_curator():
    """The names and types of nemo_curator.tasks.interleaved.INTERLEAVED_SCHEMA, and ours after them."""
    types = {"position": "int32", "binary_content": "large_binary", "turn": "int32"}
    assert [(each.name, str(each.type)) for each in schema()] == [
        (name, types.get(name, "string")) for name in (*RESERVED, "turn", "role", "meta")
    ]
    assert [each.name for each in schema() if not each.nullable] == ["sample_id", "position", "modality"]


def test_a_document_survives_with_everything_in_it(tmp_path):
    documents = [sample(3), guide(1), Document((Turn("user", (Text("Why?"),)), Turn("assistant"))), sample(0)]
    with (tmp_path / "a.parquet").open("wb") as stream:
        assert write_rows(stream, (rows_of(d, str(k)) for k, d in enumerate(documents))) == 4
    source = open_source(f"parquet:{tmp_path / 'a.parquet'}")
    assert [source.load(index) for index in range(4)] == documents
    assert [source.load(index).generation for index in range(4)] == [d.generation for d in documents]
    assert source.load(0).turns[2].parts[0].meta == {"scores": [0.1, 1e-7]}
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["position"] for row in rows if row["sample_id"] == "1"] == [-1, 0, 1, 2, 3, 4]


def test_small_row_groups_and_samples_that_go_on_in_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "GROUP_BYTES", 1)
    with (tmp_path / "a.parquet").open("wb") as stream:
        write_rows(stream, (rows_of(guide(k), str(k)) for k in range(3)))
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=4)  # Curator cuts by rows, not by samples
    for name in ("a", "b"):
        source = open_source(f"parquet:{tmp_path / name}.parquet")
        assert [source.load(index) for index in (2, 0, 1)] == [guide(2), guide(0), guide(1)]


def test_what_a_filter_dropped_is_gone_and_the_rest_is_whole(tmp_path):
    rows = rows_of(guide(5), "x")
    del rows[4]  # the answer's picture
    without = open_source(write(tmp_path / "a.parquet", rows, schema())).load(0)
    assert without.meta == {"number": 5}
    assert [type(part) for part in without.turns[1].parts] == [Text, Text]
    bare = open_source(write(tmp_path / "b.parquet", rows[1:], schema())).load(0)
    assert [turn.role for turn in bare.turns] == ["user", "assistant"] and bare.meta == {}


def test_rows_of_others(tmp_path):
    document = open_source(write(tmp_path / "a.parquet", STREAM[::-1])).load(0)
    assert [[type(part) for part in turn.parts] for turn in document.turns] == [[Picture, Text], [Picture, Text]]
    assert document.turns[0].text == "Mix." and document.turns[1].pictures[0] == picture(2)
    assert document.meta == {"sample_id": "a", "url": "http://a.example.com/", "title": "Bake bread"}
    spec = {"source": f"parquet:{tmp_path / 'a.parquet'}", "request": "title"}
    document = open_source(spec).load(0)
    assert document.turns[0].text == "Bake bread" and len(document.turns[1].parts) == 4
    with pytest.raises(DuoGenError, match="titel"):
        open_source({**spec, "request": "titel"})


def test_pictures_that_a_row_only_points_to(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(1))
    (tmp_path / "secret.png").write_bytes(png(2))
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    with tarfile.open(tmp_path / "in" / "t.tar", "w") as archive:
        info = tarfile.TarInfo("x.png")
        info.size = len(png(3))
        archive.addfile(info, io.BytesIO(png(3)))
    text = foreign(0, "text", text_content="Look.")

    def load(**reference):
        rows = [text, foreign(1, "image", source_ref=json.dumps(reference))]
        return open_source(write(tmp_path / "in" / "a.parquet", rows)).load(0).pictures[0]

    assert load(path="a.png", member=None) == picture(1)
    assert load(path=str(tmp_path / "in" / "t.tar"), member="x.png") == picture(3)
    assert load(path="t.tar", member="x.png", byte_offset=512, byte_size=len(png(3))) == picture(3)
    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "s3://bucket/a.png", "/etc/passwd"):
        with pytest.raises(DuoGenError, match="outside of"):
            load(path=path)
    for reference, words in (
        ({"path": None}, "without a source_ref"),
        ({"path": "none.png"}, "does not exist"),
        ({"path": "t.tar", "member": "y.png"}, "has no member"),
        ({"path": "a.png", "frame_index": 2}, "a frame of a TIFF"),
        ({"path": "a.png", "member": "x", "byte_offset": -5, "byte_size": 9}, "not an image that can be read"),
        ({"path": "a.png", "member": "x", "byte_offset": 2**70, "byte_size": 9}, "cannot be read"),
    ):
        with pytest.raises(DuoGenError, match=words):
            load(**reference)
    spec = {"source": f"parquet:{tmp_path / 'in' / 'a.parquet'}", "root": str(tmp_path)}
    write(tmp_path / "in" / "a.parquet", [text, foreign(1, "image", source_ref=json.dumps({"path": "secret.png"}))])
    assert open_source(spec).load(0).pictures[0] == picture(2)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (foreign(8, "audio"), "the modality is 'audio'"),
        (foreign(7, "text", text_content="again"), "the position 7 is used twice"),
        (foreign(8, "text"), "a text without text_content"),
        (foreign(8, "image"), "without its bytes"),
        (foreign(8, "image", binary_content=b"%PDF-"), "is a PDF; expected a PNG"),
        (foreign(8, "image", materialize_error="missing member 'x'"), "missing member 'x'"),
        (foreign(8, "image", source_ref="{"), "not valid JSON"),
    ],
)
def test_bad_rows_are_bad_samples(tmp_path, row, words):
    only_bad(open_source(write(tmp_path / "a.parquet", [*STREAM, row])), words)


def test_bad_turns_are_bad_samples(tmp_path):
    rows = rows_of(guide(0), "x")
    only_bad(open_source(write(tmp_path / "a.parquet", [{**r, "turn": 10**6} for r in rows], schema())), "no turn")
    rows[0]["meta"] = "[]"
    only_bad(open_source(write(tmp_path / "b.parquet", rows, schema())), "not a document's")


@pytest.mark.parametrize("position", [None, 1.5, "1", "x", float("nan"), float("inf"), [1], {"a": 1}, True])
def test_a_position_that_is_no_whole_number_is_named(tmp_path, position):
    rows = [foreign(position, "text", text_content="Hm."), foreign(position, "text", text_content="Oh.")]
    for row in rows:
        row["sample_id"] = "b"
    (bad,) = [open_source(write(tmp_path / "a.parquet", rows)).read(0)]
    assert "a position is" in bad.sentence and "expected a whole number" in bad.sentence


def test_whole_numbers_may_be_floats(tmp_path):
    """As pandas writes whole numbers beside missing ones."""
    rows = [{**row, "position": float(row["position"])} for row in STREAM]
    assert open_source(write(tmp_path / "a.parquet", rows)).load(0).pictures == (picture(1), picture(2))


@pytest.mark.parametrize("turn", ["0", 0.5, [0]])
def test_a_turn_that_is_no_whole_number_is_named(tmp_path, turn):
    rows = [{**row, "turn": turn} for row in rows_of(guide(0), "x")]
    only_bad(open_source(write(tmp_path / "a.parquet", rows)), "a turn is")


@pytest.mark.parametrize("sample_id", [None, ["a"], {"a": 1}, True, 1.5, b"a"])
def test_a_sample_id_that_is_no_name_is_one_sentence(tmp_path, sample_id):
    with pytest.raises(DuoGenError, match="row group 0, row 0: the sample_id is"):
        open_source(write(tmp_path / "a.parquet", [{**foreign(0, "text"), "sample_id": sample_id}]))
    with pytest.raises(DuoGenError, match="row 1: the sample_id is 'None'"):
        open_source(write(tmp_path / "b.parquet", [foreign(0, "text"), {**foreign(1, "text"), "sample_id": None}]))


def test_damaged_parquet_is_sentences(tmp_path):
    """Bytes changed anywhere: in pages, in the footer, in texts."""
    from random import Random

    whole = (Path(write(tmp_path / "a.parquet", STREAM * 1).removeprefix("parquet:"))).read_bytes()
    rng, bad = Random(0), 0
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.choice((0, 0xFF, 0x80, rng.randrange(256)))
        (tmp_path / "a.parquet").write_bytes(data)
        try:
            found = open_source(f"parquet:{tmp_path / 'a.parquet'}").read(0)
        except DuoGenError:
            bad += 1
            continue
        if not isinstance(found, Sample):
            bad += 1
            assert not re.search(r"row 0: [A-Z]\w*: ", found.sentence), found.sentence
    assert bad > 50


def test_row_groups_that_fit_are_decoded_once_in_a_shuffled_epoch(tmp_path, monkeypatch):
    documents = [guide(i) for i in range(24)]
    with (tmp_path / "a.parquet").open("wb") as stream:
        pq.write_table(
            pa.Table.from_pylist([r for i, d in enumerate(documents) for r in rows_of(d, str(i))], schema=schema()),
            stream,
            row_group_size=24,
        )
    decoded = []
    plain = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, **k: decoded.append((group, *k)) or plain(self, group, **k),
    )
    source = open_source(f"parquet:{tmp_path / 'a.parquet'}")
    decoded.clear()
    assert len(list(source.epoch(0, 0))) == 24
    assert len(decoded) == len(set(decoded)) == 6
    monkeypatch.setattr("duogen_core.data.sources.parquet.HELD_BYTES", 1)  # then the last one alone is held
    source = open_source(f"parquet:{tmp_path / 'a.parquet'}")
    assert len(list(source.epoch(0, 1))) == 24 and len(source._held) == 1


def test_files_that_are_no_interleaved_rows(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DuoGenError, match="cannot be read as Parquet"):
        open_source(f"parquet:{tmp_path / 'a.parquet'}")
    with pytest.raises(DuoGenError, match="has no column sample_id"):
        open_source(write(tmp_path / "b.parquet", [{"text": "x"}]))
    with pytest.raises(DuoGenError, match="do not stand together"):
        open_source(write(tmp_path / "c.parquet", [foreign(0, "text"), foreign(0, "text", "b"), foreign(1, "text")]))


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "mint1t"])
def test_export_gives_the_same_documents_and_goes_on(tmp_path, capsys, kind):
    documents = [guide(k) for k in range(5)]
    write_documents(tmp_path / "set", documents)
    (tmp_path / "set" / "02" / "document.json").write_text("{")
    out, command = tmp_path / "out", ["data", "export", f"documents:{tmp_path / 'set'}", "--to", kind, "--quiet"]
    assert main([*command, "--out", str(out), "--shard-samples", "2"]) == 0
    assert "4 documents written, 1 bad ones" in capsys.readouterr().out
    assert "02" in (out / "bad_samples.jsonl").read_text()
    source = open_source(f"{kind.replace('mint1t', 'webdataset')}:{out}")
    assert [source.load(k) for k in range(4)] == [documents[k] for k in (0, 1, 3, 4)]
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    second = sorted(files)[1]
    (out / second).unlink()
    (out / f".{second}.0.duogen-tmp").write_bytes(b"half")
    assert main([*command, "--out", str(out), "--shard-samples", "2"]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    assert main([*command, "--out", str(out), "--shard-samples", "3"]) == 2
    assert "other options" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "set")]) == 2
    assert "something else in it" in capsys.readouterr().err
    (out / "export.json").write_bytes(b"[" * 100_000)
    assert main([*command, "--out", str(out), "--shard-samples", "2"]) == 2
    assert "export.json is nested too deeply" in capsys.readouterr().err


def test_export_of_photographs_as_jpeg(tmp_path):
    soft = Image.fromarray(picture(0, (8, 6)).pixels).resize((96, 72), Image.Resampling.BICUBIC)
    photo = Picture(np.asarray(soft), {"class": "photo"})
    document = Document((Turn("user", (Text("Show."),)), Turn("assistant", (photo, picture(1)))))
    write_documents(tmp_path / "set", [document])
    main(
        [
            "data",
            "export",
            f"documents:{tmp_path / 'set'}",
            "--out",
            str(tmp_path / "o"),
            "--photo-quality",
            "90",
            "--quiet",
        ]
    )
    kinds = pq.read_table(tmp_path / "o" / "00000.parquet")["content_type"].to_pylist()
    assert kinds == ["application/json", "text/plain", "image/jpeg", "image/png"]
    read = open_source(f"parquet:{tmp_path / 'o'}").load(0).pictures
    assert read[1] == picture(1) and np.abs(read[0].pixels.astype(int) - photo.pixels).mean() < 6


def test_endless_sources_are_not_exported(tmp_path, capsys):
    assert main(["data", "export", "sketchbook", "--out", str(tmp_path / "o"), "--quiet"]) == 2
    assert "is endless" in capsys.readouterr().err


def test_parquet_rows_can_be_checked_and_mixed(tmp_path, capsys):
    spec = write_kind("parquet", tmp_path, [guide(k) for k in range(4)])
    assert main(["data", "check", spec, "--quiet"]) == 0
    assert isinstance(open_source(spec).read(3), Sample)


def write_lists(file: Path, value: dict, **pictures: bytes) -> str:
    with tarfile.open(file, "w") as archive:
        for name, data in [*pictures.items(), ("json", json.dumps(value).encode())]:
            info = tarfile.TarInfo(f"doc%2F1.{name.replace('_', '.')}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return f"webdataset:{file}"


def test_tars_of_mint1t_and_curator(tmp_path):
    value = {"sample_id": "doc/1", "texts": ["Mix.", None, None, "Bake."], "url": "http://a.example.com/"}
    value["images"] = [None, "doc%2F1.1.png", None, None]
    document = open_source(write_lists(tmp_path / "a.tar", value, **{"1_png": png(1)})).load(0)
    assert document.turns[0].text == "Mix." and document.turns[1].pictures == (picture(1),)
    assert document.meta == {"sample_id": "doc/1", "url": "http://a.example.com/"}
    value["images"][1] = "http://a.example.com/x.png"
    only_bad(open_source(write_lists(tmp_path / "b.tar", value)), "is not allowed")
    value["images"][1] = "other.png"
    only_bad(open_source(write_lists(tmp_path / "c.tar", value)), "not among the sample's members")


def test_our_rows_in_curator_s_tars_keep_their_turns(tmp_path):
    """As Curator writes rows with columns of the user: lists for each part, the metadata row's value for the sample."""
    rows = rows_of(guide(3), "doc/1")
    parts = rows[1:]
    value = {"sample_id": "doc/1", "meta": rows[0]["meta"], "texts": [row["text_content"] for row in parts]}
    value["images"] = [f"doc%2F1.{k}.png" if row["binary_content"] else None for k, row in enumerate(parts)]
    value |= {name: [row[name] for row in parts] for name in ("turn", "role")}
    pictures = {f"{k}_png": row["binary_content"] for k, row in enumerate(parts) if row["binary_content"]}
    assert open_source(write_lists(tmp_path / "a.tar", value, **pictures)).load(0) == guide(3)
