"""data editing: every published layout becomes Documents, wrong ones are one sentence, hostile rows are refused."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from duogen_core.cli import main
from duogen_core.data.pairs.editing.rows import open_rows
from duogen_core.data.pairs.report import write_report
from duogen_core.data.sources import open_source
from duogen_core.document import Document, Text
from duogen_core.errors import DuoGenError
from tests.core.clips import scene

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
BEFORE, _, AFTER, *_, LATER = scene(3, 20)
AFTER = np.roll(AFTER, 25, axis=1)


def png(pixels: np.ndarray, format_: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_)
    return buffer.getvalue()


def image(pixels: np.ndarray) -> dict[str, Any]:
    """A picture as `datasets` stores it."""
    return {"bytes": png(pixels), "path": "000.png"}


def write(file: Path, rows: Sequence[Mapping[str, Any]], group: int = 2) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(list(rows)), file, row_group_size=group)
    return file


def editing(layout: str, path: Path, out: Path, *options: object) -> int:
    return main(["data", "editing", layout, str(path), "--out", str(out), "--quiet", *map(str, options)])


def documents(out: Path) -> list[Document]:
    source = open_source(f"webdataset:{out / 'shards'}")
    return [source.load(index) for index in range(len(source))]


def shape(document: Document) -> list[str]:
    """user: P for a picture, words for a text; one string a turn."""
    return [" ".join(part.text if isinstance(part, Text) else "P" for part in turn.parts) for turn in document.turns]


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted((out / "logs").iterdir()) for line in file.open()]


ROWS = {
    "instructpix2pix": {
        "original_prompt": "a field",
        "original_image": image(BEFORE),
        "edit_prompt": "move the square",
        "edited_prompt": "a field with a square",
        "edited_image": image(AFTER),
    },
    "ultraedit": {
        "ssim": 0.5,
        "source_caption": "a field",
        "target_caption": "a field too",
        "idx": 1,
        "edit_prompt": "move the square",
        "source_image": image(BEFORE),
        "edited_image": image(AFTER),
    },
    "hq-edit": {
        "input": "a field",
        "input_image": image(BEFORE),
        "edit": "move the square",
        "inverse_edit": "move it back",
        "output": "a field too",
        "output_image": image(AFTER),
    },
    "anyedit": {
        "image_id": "7",
        "edit_instruction": "move the square",
        "edit_type": "movement",
        "image_file": image(BEFORE),
        "edited_file": image(AFTER),
        "visual_input": None,
    },
    "magicbrush": {
        "img_id": "12",
        "turn_index": 1,
        "source_img": image(BEFORE),
        "mask_img": image(BEFORE),
        "instruction": "move the square",
        "target_img": image(AFTER),
    },
}


@pytest.mark.parametrize("layout", ROWS)
def test_every_layout_becomes_two_pictures_and_a_request(tmp_path, layout, capsys):
    path = write(tmp_path / "set.parquet", [ROWS[layout]])
    assert editing(layout, path, tmp_path / "out", "--set", "store.format=png") == 0
    assert "1 documents with 1 edits of 1 samples, " in capsys.readouterr().out
    assert editing(layout, path, tmp_path / "out", "--set", "store.format=png") == 0
    assert "1 documents with 1 edits of 1 samples (all done before):" in capsys.readouterr().out
    (document,) = documents(tmp_path / "out")
    assert shape(document) == ["P move the square", "P"]
    assert np.array_equal(document.pictures[0].pixels, BEFORE)
    assert np.array_equal(document.pictures[1].pixels, AFTER)
    assert document.meta["alignment"] is True
    assert document.meta["source"] == layout
    assert main(["data", "check", f"webdataset:{tmp_path / 'out' / 'shards'}", "--quiet"]) == 0


def test_what_a_set_says_of_its_rows_is_kept(tmp_path):
    editing("ultraedit", write(tmp_path / "set.parquet", [ROWS["ultraedit"]]), tmp_path / "out", "--both-stages")
    (document,) = documents(tmp_path / "out")
    assert (document.meta["licence"], document.meta["ssim"], document.meta["row"]) == ("CC-BY-4.0", 0.5, 0)
    assert "alignment" not in document.meta


def test_turns_of_one_picture_become_one_conversation(tmp_path):
    def row(picture: str, turn: int, source: np.ndarray, target: np.ndarray, text: str) -> dict[str, Any]:
        more = {"source_img": image(source), "target_img": image(target), "instruction": text}
        return {"img_id": picture, "turn_index": turn, **more}

    rows = [
        row("a", 1, BEFORE, AFTER, "one"),
        row("a", 2, AFTER, LATER, "two"),
        row("a", 3, BEFORE, LATER, "three"),  # starts from another picture than the last answer
        row("b", 1, BEFORE, AFTER, "four"),
        row("b", 3, BEFORE, AFTER, "five"),  # a turn is missing
        row("c", 1, BEFORE, AFTER, "six"),
        row("c", 2, AFTER, AFTER, "seven"),  # nothing changes: the conversation ends before
    ]
    assert editing("magicbrush", write(tmp_path / "set.parquet", rows, 3), tmp_path / "out") == 0
    assert [shape(document) for document in documents(tmp_path / "out")] == [
        ["P one", "P", "two", "P", "P three", "P"],
        ["P four", "P"],
        ["P five", "P"],
        ["P six", "P"],
    ]
    assert log(tmp_path / "out")[3]["ended_by"] == {"rule": "still", "value": 0.0}


def test_the_way_back(tmp_path, capsys):
    path = write(tmp_path / "set.parquet", [ROWS["hq-edit"]])
    assert editing("hq-edit", path, tmp_path / "out", "--inverse", "--set", "store.format=png") == 0
    there, back = documents(tmp_path / "out")
    assert (shape(there), shape(back)) == (["P move the square", "P"], ["P move it back", "P"])
    assert np.array_equal(back.pictures[1].pixels, BEFORE)
    other = write(tmp_path / "other.parquet", [ROWS["ultraedit"]])
    assert editing("ultraedit", other, tmp_path / "other", "--inverse") == 2
    assert "hq-edit has" in capsys.readouterr().err


def test_a_second_picture_of_the_user(tmp_path):
    rows = [{**ROWS["anyedit"], "visual_input": image(LATER)}, ROWS["anyedit"]]
    editing("anyedit", write(tmp_path / "set.parquet", rows), tmp_path / "out")
    assert [shape(document)[0] for document in documents(tmp_path / "out")] == [
        "P P move the square",
        "P move the square",
    ]


def files(folder: Path) -> None:
    (folder / "image").mkdir(parents=True)
    for name, pixels in (("a", BEFORE), ("b", AFTER), ("c", LATER)):
        (folder / "image" / f"{name}.png").write_bytes(png(pixels))
    (folder.parent / "secret.png").write_bytes(png(LATER))


def test_sharegpt_4o_image_is_a_list_beside_its_pictures(tmp_path):
    files(tmp_path / "set")
    good = {"input_prompt": "Move it.", "input_image": ["image/a.png"], "output_image": "image/b.png"}
    two = {**good, "input_image": ["image/a.png", "image/c.png"]}
    bad = [{**good, "input_image": [name]} for name in ("../secret.png", "/etc/passwd", "image/none.png")]
    (tmp_path / "set" / "text_and_image_to_image.json").write_text(
        json.dumps([good, two, *bad, {**good, "input_image": []}])
    )
    (tmp_path / "set" / "text_to_image.json").write_text("[]")
    assert editing("sharegpt-4o-image", tmp_path / "set", tmp_path / "out") == 0
    assert [shape(document)[0] for document in documents(tmp_path / "out")] == ["P Move it.", "P P Move it."]
    assert [entry.get("rule") for entry in log(tmp_path / "out")] == [None, None, *["missing"] * 3, "no_picture"]


def test_x2i_says_where_its_pictures_stand(tmp_path):
    files(tmp_path / "set")
    one, two = "<img><|image_1|></img>", "<img><|image_2|></img>"
    row = {"task_type": "edit", "input_images": ["image/a.png", "image/c.png"], "output_image": "image/b.png"}
    texts = [f"Put {two} into {one}, and keep {one}.", f"Only {one}.", "Mix them."]
    lines = [json.dumps({**row, "instruction": text}) for text in texts]
    (tmp_path / "set" / "mix.jsonl").write_text("\n".join(lines))
    assert editing("x2i", tmp_path / "set" / "mix.jsonl", tmp_path / "out", "--set", "store.format=png") == 0
    first, second = documents(tmp_path / "out")
    assert shape(first)[0] == "Put P into P , and keep picture 1 ."
    assert np.array_equal(first.pictures[0].pixels, LATER)
    assert shape(second)[0] == "P P Mix them."
    assert log(tmp_path / "out")[1]["rule"] == "markers"


def bomb() -> bytes:
    return png(np.zeros((7000, 7000, 3), np.uint8))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"edit_prompt": "  "}, "no_instruction"),
        ({"edit_prompt": None}, "no_instruction"),
        ({"edit_prompt": "x " * 3000}, "long_instruction"),
        ({"edited_image": None}, "no_picture"),
        ({"edited_image": image(BEFORE)}, "still"),
        ({"edited_image": image(AFTER[:, :100])}, "shape"),
        ({"original_image": image(BEFORE[:40, :40]), "edited_image": image(AFTER[:40, :40])}, "small"),
        ({"edited_image": {"bytes": png(AFTER)[:-500], "path": None}}, "broken"),
        ({"edited_image": {"bytes": b"<svg xmlns='x'/>", "path": None}}, "svg"),
        ({"edited_image": {"bytes": b"%PDF-1.4", "path": None}}, "unknown_format"),
        ({"edited_image": {"bytes": None, "path": "/etc/passwd"}}, "missing"),
        ({"original_image": {"bytes": bomb(), "path": None}}, "too_many_pixels"),
    ],
)
def test_a_row_that_cannot_be_learnt_from_is_refused_by_name(tmp_path, change, rule, capsys):
    row = ROWS["instructpix2pix"]
    schema = pa.Table.from_pylist([row]).schema
    parquet.write_table(pa.Table.from_pylist([{**row, **change}], schema=schema), tmp_path / "set.parquet")
    assert editing("instructpix2pix", tmp_path / "set.parquet", tmp_path / "out") == 0
    (entry,) = log(tmp_path / "out")
    assert (entry["rule"], entry["kept"]) == (rule, False)
    assert f"Nothing was kept: of 1 samples {rule} refused 1. `data stats" in capsys.readouterr().out


def test_a_wrong_layout_is_one_sentence_with_what_was_found(tmp_path, capsys):
    path = write(tmp_path / "set.parquet", [ROWS["hq-edit"]])
    assert editing("ultraedit", path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "has the columns input, input_image, edit, inverse_edit, output, output_image" in error
    assert "expects source_image, edit_prompt, edited_image" in error
    assert "those of hq-edit" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_with_several_splits_asks_which(tmp_path, capsys):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "dev-00000-of-00001"):
        write(tmp_path / "set" / "data" / f"{name}.parquet", [ROWS["ultraedit"]] * 3)
    assert editing("ultraedit", tmp_path / "set", tmp_path / "out") == 2
    assert "has the splits dev, train; choose with --split" in capsys.readouterr().err
    assert editing("ultraedit", tmp_path / "set", tmp_path / "out", "--split", "test") == 2
    assert "has no split test" in capsys.readouterr().err
    assert editing("ultraedit", tmp_path / "set", tmp_path / "out", "--split", "tr*") == 0
    assert len(documents(tmp_path / "out")) == 6


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("a.json", b"{", "cannot be read as JSON"),
        ("a.json", b'{"a": 1}', "not a list of objects"),
        ("a.json", b"[]", "has no rows"),
        ("a.csv", b"a,b", "is not a data set"),
        ("a.arrow", b"x", "cannot be read by datasets"),
    ],
)
def test_files_that_are_no_sets(tmp_path, capsys, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert editing("ultraedit", tmp_path / name, tmp_path / "out") == 2
    assert words in capsys.readouterr().err
    with pytest.raises(DuoGenError, match="does not exist"):
        open_rows(str(tmp_path / "gone"))


def test_what_datasets_saved_is_read_where_it_lies(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"input_image": datasets.Image(), "edit_prompt": datasets.Value("string"), "edited_image": datasets.Image()}
    )
    row = {"input_image": image(BEFORE), "edit_prompt": "move", "edited_image": image(AFTER)}
    found = datasets.Dataset.from_list([row] * 3, features=features)
    datasets.DatasetDict({"train": found}).save_to_disk(str(tmp_path / "set"))
    assert editing("instructpix2pix", tmp_path / "set", tmp_path / "out") == 0
    assert [shape(document)[0] for document in documents(tmp_path / "out")] == ["P move"] * 3


def test_rows_are_the_same_however_they_are_cut(tmp_path):
    rows = [{**ROWS["ultraedit"], "idx": k, "edit_prompt": f"edit {k}"} for k in range(11)]
    write(tmp_path / "set" / "a.parquet", rows[:7], 3)
    write(tmp_path / "set" / "b.parquet", rows[7:], 2)
    opened = open_rows(str(tmp_path / "set"), split="*")
    for start, stop in ((0, 11), (2, 3), (5, 9), (6, 7), (10, 11), (3, 3)):
        read = [row["edit_prompt"] for row in opened.read(start, stop, ["edit_prompt"])]
        assert read == [f"edit {k}" for k in range(start, stop)]


def test_shards_workers_and_a_left_run_change_nothing(tmp_path):
    rows = [{**ROWS["ultraedit"], "edit_prompt": f"edit {k}"} for k in range(7)]
    path = write(tmp_path / "set.parquet", rows)
    written = []
    for name, workers in (("one", 1), ("two", 2)):
        assert editing("ultraedit", path, tmp_path / name, "--shard-samples", 2, "--workers", workers) == 0
        written.append([file.read_bytes() for file in sorted((tmp_path / name).glob("[sl]*/*"))])
    assert written[0] == written[1]
    assert len(written[0]) == 8
    for file in ("logs/00001.jsonl", "shards/00003.tar", "logs/00003.jsonl"):
        (tmp_path / "one" / file).unlink()
    assert editing("ultraedit", path, tmp_path / "one", "--shard-samples", 2) == 0
    assert [file.read_bytes() for file in sorted((tmp_path / "one").glob("[sl]*/*"))] == written[0]
    assert editing("ultraedit", path, tmp_path / "one") == 2


def test_the_report_shows_what_was_kept_and_refused_and_runs_nothing(tmp_path):
    row = ROWS["instructpix2pix"]
    rows = [{**row, "edit_prompt": "<script>alert(1)</script>"}, row, {**row, "edited_image": image(BEFORE)}]
    editing("instructpix2pix", write(tmp_path / "set.parquet", rows), tmp_path / "out")
    write_report(tmp_path / "out", tmp_path / "report.html", samples=1)
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "<summary>kept: 1 shown</summary>" in html
    assert "<summary>still: 1 shown</summary>" in html
    assert html.count("<img ") == 4
    assert "<script" not in html
    assert "default-src 'none'" in html
    write_report(tmp_path / "out", tmp_path / "report.html")
    assert "&lt;script&gt;" in (tmp_path / "report.html").read_text("utf-8")


@pytest.fixture
def decoded(monkeypatch):
    """How many rows with pictures were decoded from Parquet files."""
    counts = {"rows": 0}
    plain = parquet.ParquetFile.iter_batches

    def counted(self, *args, **kwargs):
        pictures = any("image" in name for name in kwargs["columns"])
        for batch in plain(self, *args, **kwargs):
            counts["rows"] += len(batch) * pictures
            yield batch

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", counted)
    return counts


def tiny_set(file: Path, count: int, group: int, layout: str = "ultraedit") -> Path:
    changed = {name: image(BEFORE[:16, :16] if "in" in name or "source" in name else AFTER[-16:, -16:])
               for name in ROWS[layout] if "image" in name and name != "image_id"}  # fmt: skip
    return write(file, [{**ROWS[layout], **changed} for _ in range(count)], group)


TINY = ("--set", "picture.min_side=8", "--set", "pair.min_change=0")


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [20, 80])
def test_every_row_of_a_row_group_is_decoded_once(tmp_path, decoded, count, workers):
    path = tiny_set(tmp_path / "set.parquet", count, group=1000)  # one row group, several shards
    assert editing("ultraedit", path, tmp_path / "out", *TINY, "--shard-samples", 7, "--workers", workers) == 0
    assert [entry["kept"] for entry in log(tmp_path / "out")] == [True] * count
    assert decoded["rows"] == count
    write_report(tmp_path / "out", tmp_path / "report.html")
    assert decoded["rows"] <= 2 * count


def test_the_way_back_decodes_no_row_again(tmp_path, decoded):
    path = tiny_set(tmp_path / "set.parquet", 24, group=1000, layout="hq-edit")
    assert editing("hq-edit", path, tmp_path / "out", "--inverse", *TINY, "--shard-samples", 5) == 0
    assert len(log(tmp_path / "out")) == 48 and decoded["rows"] == 24


def test_going_on_decodes_only_the_row_groups_that_are_needed(tmp_path, decoded):
    path = tiny_set(tmp_path / "set.parquet", 40, group=8)
    assert editing("ultraedit", path, tmp_path / "out", *TINY, "--shard-samples", 4) == 0
    assert decoded["rows"] == 40
    for number in (3, 8):  # half of row group 1, half of row group 4
        (tmp_path / "out" / "logs" / f"{number:05d}.jsonl").unlink()
    decoded.update(rows=0)
    assert editing("ultraedit", path, tmp_path / "out", *TINY, "--shard-samples", 4) == 0
    assert decoded["rows"] == 16


def test_a_damaged_row_group_is_one_sentence_and_keeps_what_was_done(tmp_path, capsys):
    path = tiny_set(tmp_path / "set.parquet", 12, group=6)
    where = parquet.ParquetFile(path).metadata.row_group(1).column(5).data_page_offset
    data = bytearray(path.read_bytes())
    data[where : where + 40] = b"\xff" * 40
    path.write_bytes(data)
    assert editing("ultraedit", path, tmp_path / "out", *TINY, "--shard-samples", 3, "--workers", 1) == 2
    error = capsys.readouterr().err
    assert "row group 1 is damaged" in error and error.count("\n") == 1
    assert len(log(tmp_path / "out")) == 6


def test_only_real_line_ends_end_a_line_of_json(tmp_path, capsys):
    files(tmp_path / "set")
    row = {"task_type": "edit", "input_images": ["image/a.png"], "output_image": "image/b.png"}
    lines = [json.dumps({**row, "instruction": text}, ensure_ascii=False) for text in ("one\u2028two\x85", "three")]
    file = tmp_path / "set" / "mix.jsonl"
    file.write_text(f"{lines[0]}\r\n\n{lines[1]}", "utf-8", newline="")
    assert editing("x2i", file, tmp_path / "out") == 0
    assert [shape(document)[0] for document in documents(tmp_path / "out")] == ["P one\u2028two", "P three"]
    file.write_text(lines[1] + "\n\n[1]\n")
    assert editing("x2i", file, tmp_path / "other") == 2
    assert "mix.jsonl, line 3 is not an object" in capsys.readouterr().err
