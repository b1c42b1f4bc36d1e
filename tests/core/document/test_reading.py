"""Reading documents from disk: broken, foreign and hostile files are named, and nothing outside is touched."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import stat
import time

import pytest
from PIL import Image

from duogen_core.document.reading import load_document
from duogen_core.document.store import save_document
from duogen_core.errors import DuoGenError, MissingPackage
from duogen_core.files import parse_json
from duogen_core.training.configuration import TrainingError
from tests.core.documents import base, files, put, sample, zipped


def test_foreign_picture_formats_and_a_shared_file(tmp_path):
    value = base("images/photo.jpg")
    value["turns"][0]["parts"].append({"type": "image", "file": "images/photo.jpg", "meta": {"again": True}})
    document = load_document(put(tmp_path, value, "images/photo.jpg"))
    assert [p.meta for p in document.pictures] == [{}, {"again": True}]
    assert document.pictures[0].pixels is document.pictures[1].pixels


def deep_meta(levels: int) -> str:
    inner = '{"a":' * levels + "1" + "}" * levels
    return json.dumps(base(meta="HERE")).replace('"HERE"', inner)


@pytest.mark.parametrize(
    "value, expected",
    [
        (base(version=2), "version is 2"),
        (base(version="1"), "version is '1'"),
        (base(version=True), "version is True"),
        (base(format="other"), "format is 'other'"),
        ({"format": "duogen-document", "version": 1}, "'turns' is missing"),
        (base(turns={}), "expected a list"),
        (base(turns=[{"role": "robot", "parts": []}]), r"turns\[0\]: the role is 'robot'"),
        (base(turns=[{"role": ["user"], "parts": []}]), "the role is"),
        (base(turns=[{"role": "user", "parts": [{"type": "video", "file": "x"}]}]), r"parts\[0\].*'video'"),
        (base(turns=[{"role": "user", "parts": ["hello"]}]), r"parts\[0\]"),
        (base(turns=[{"role": "user", "parts": [{"type": "text", "text": 3}]}]), r"parts\[0\].*string"),
        (base(turns=[{"role": "user", "parts": [{"type": "text"}]}]), "'text' is missing"),
        (base(turns=[{"role": "user", "parts": [{"type": "image", "file": 3}]}]), "relative path"),
        (base(turns=[{"role": "user", "parts": [], "colour": 1}]), "'colour' is not known here"),
        (base(meta=[]), "expected an object"),
        (base(generation=None), "null"),
        ([], "expected an object"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ('{"format": "duogen-document", "format": "x"}', "'format' stands twice"),
        ('{"version": NaN}', "NaN"),
        ("[" * 100_000, "nested too deeply"),
        (deep_meta(500), "nested too deeply"),
        (deep_meta(199), "nested too deeply"),
        (deep_meta(151), "nested too deeply"),
        (json.dumps(base("\ud800.png")), "not allowed"),
        (json.dumps(base("a" * 5000 + ".png")), "does not exist|cannot be"),
        (json.dumps(base(meta={"a\x1b[2J": float(1), "\ud800": 1})), "Unicode"),
        ('{"version": ' + "9" * 5000 + "}", "document.json"),
        (b"\xff\xfe{}", "UTF-8"),
        (json.dumps(base(meta={"x": "\ud800"})), "Unicode"),
        (" " * (16 * 2**20 + 1), "larger than 16 MB"),
        (base("images/001.png"), "images/001.png .*does not exist"),
        (base("images"), "is not a file"),
    ],
)
def test_broken_documents_are_named(tmp_path, value, expected):
    with pytest.raises(DuoGenError, match=expected) as error:
        load_document(put(tmp_path, value))
    assert "document.json" in str(error.value)


def test_meta_as_deep_as_it_may_be_is_kept(tmp_path):
    document = load_document(put(tmp_path / "a", deep_meta(150)))
    assert load_document(save_document(document, tmp_path / "b")) == document


def test_a_name_that_no_file_can_have(tmp_path):
    for name in ("a" * 5000, "a\0b", "a" * 5000 + ".zip", "\ud800"):
        with pytest.raises(DuoGenError, match=r"does not exist|cannot be read") as error:
            load_document(name)
        assert len(str(error.value)) < 2100 and str(error.value).isprintable()


def test_many_names_are_checked_in_one_pass():
    """Time grows with the number of names, not with its square: 16 times the names may not take 256 times as long."""

    def seconds(names: int) -> float:
        text = "{" + ",".join(f'"{i:x}":0' for i in range(names)) + f',"{names - 1:x}":0}}'
        best = float("inf")
        gc.collect()  # else a collection of what other tests left may fall into the measurement
        for _ in range(3):
            started = time.process_time()
            with pytest.raises(DuoGenError, match="stands twice"):
                parse_json(text, "x")
            best = min(best, time.process_time() - started)
        return best

    assert seconds(64_000) < 81 * seconds(4_000)


def test_foreign_text_in_messages_steers_no_terminal(tmp_path):
    """Names with escape characters, marks of direction, line ends, and of any length are quoted in our messages."""
    hostile = "\x1b]0;owned\x07\x1b[2J\u202egnp.\x9b31m\r\nError: all is well"
    values = [
        base(meta={hostile: {"a": float(2), hostile * 3000: {"deep": "\ud800"}}}),
        base(format=hostile),
        base(turns=[{"role": hostile * 9999, "parts": []}]),
        base(file=hostile),
        {**base(), hostile: 1},
    ]
    for value in values:
        with pytest.raises(DuoGenError) as error:
            load_document(put(tmp_path, json.dumps(value)))
        message = str(error.value)
        assert message.isprintable() and len(message) <= 2000
        assert message.startswith(str(tmp_path)[:20]) and message.endswith(".")
    for make in (DuoGenError, TrainingError, lambda text: MissingPackage(text, "x", "y")):
        assert str(make(hostile)).isprintable() and str(pickle.loads(pickle.dumps(DuoGenError(hostile)))).isprintable()


ESCAPES = ["../secret.png", "images/../../secret.png", "/etc/passwd", "..\\secret.png", "C:\\x.png", "C:x.png", "a//b"]
ESCAPES += ["./a.png", "", "a\0b.png", "a\n.png", "//host/share.png", "file:///etc/passwd", "images/000.png/"]


@pytest.mark.parametrize("name", ESCAPES)
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    with pytest.raises(DuoGenError, match=r"turns\[0\].parts\[1\].*not allowed"):
        load_document(put(tmp_path / "document", base(name)))


def test_links_that_leave_the_folder_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    folder = put(tmp_path / "document", base("images/link.png"))
    os.symlink(tmp_path / "secret.png", folder / "images/link.png")
    with pytest.raises(DuoGenError, match="leaves the document's folder"):
        load_document(folder)
    os.remove(folder / "images/link.png")
    os.symlink("000.png", folder / "images/link.png")
    assert len(load_document(folder).pictures) == 1  # a link within the folder is the user's own affair
    os.remove(folder / "images/link.png")
    os.symlink("link.png", folder / "images/link.png")
    with pytest.raises(DuoGenError, match=r"link\.png"):
        load_document(folder)


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = put(tmp_path, base("images/pipe.png"))
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(folder / "images/pipe.png")
    with pytest.raises(DuoGenError, match="is not a file"):
        load_document(folder)


def test_a_damaged_picture_is_named(tmp_path):
    folder = put(tmp_path, base())
    data = (folder / "images/000.png").read_bytes()
    (folder / "images/000.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DuoGenError, match=r"images/000.png.*parts\[1\].*damaged"):
        load_document(folder)


def test_too_many_pixels_in_all(tmp_path, monkeypatch):
    monkeypatch.setattr("duogen_core.document.reading.MAX_TOTAL_PIXELS", 15)
    with pytest.raises(DuoGenError, match="15 pixels in all"):
        load_document(put(tmp_path, base()))


def test_missing_places(tmp_path):
    for name in ("nowhere", "nowhere.zip", "nowhere/document.json"):
        with pytest.raises(DuoGenError, match="does not exist"):
            load_document(tmp_path / name)
    with pytest.raises(DuoGenError, match=r"document\.json does not exist"):
        load_document(tmp_path)


def test_a_zip_of_the_folder_itself_is_read(tmp_path):
    folder = save_document(sample(), tmp_path / "a")
    entries = [(f"answer/{name}", data) for name, data in files(folder).items()]
    assert load_document(zipped(tmp_path / "b.zip", [("answer/", b""), *entries])) == sample()


def test_hostile_zips(tmp_path):
    good = json.dumps(base("images/000.png"))
    with pytest.raises(DuoGenError, match=r"'\.\./evil\.txt' is not allowed"):
        load_document(zipped(tmp_path / "slip.zip", [("document.json", good), ("../evil.txt", "x")]))
    with pytest.raises(DuoGenError, match="not allowed"):
        load_document(zipped(tmp_path / "slip2.zip", [("document.json", good), ("..\\evil.txt", "x")]))
    with pytest.raises(DuoGenError, match="not allowed"):
        load_document(zipped(tmp_path / "abs.zip", [("/document.json", good)]))
    with pytest.raises(DuoGenError, match="is a link"):
        link = [("document.json", good)]
        load_document(zipped(tmp_path / "link.zip", link, external_attr=(stat.S_IFLNK | 0o777) << 16))
    with pytest.raises(DuoGenError, match=r"images/000.png .* is not in"):
        load_document(zipped(tmp_path / "missing.zip", [("document.json", good)]))
    with pytest.raises(DuoGenError, match=r"no document\.json"):
        load_document(zipped(tmp_path / "empty.zip", []))
    with pytest.raises(DuoGenError, match="larger than 16 MB"):
        bomb = zipped(tmp_path / "bomb.zip", [("document.json", b" " * (16 * 2**20 + 1))], compress_type=8)
        load_document(bomb)
    with pytest.warns(UserWarning), pytest.raises(DuoGenError, match="twice"):
        load_document(zipped(tmp_path / "twice.zip", [("document.json", good), ("document.json", good)]))
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(DuoGenError, match=r"not a \.zip"):
        load_document(tmp_path / "text.zip")
    data = save_document(sample(), tmp_path / "cut.zip").read_bytes()
    for end in range(0, len(data) - 1, 97):
        (tmp_path / "cut.zip").write_bytes(data[:end])
        with pytest.raises(DuoGenError):
            load_document(tmp_path / "cut.zip")
    for position in range(0, len(data), 61):  # flipped bytes: an error or the document, never another exception
        (tmp_path / "cut.zip").write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
        with contextlib.suppress(DuoGenError):
            load_document(tmp_path / "cut.zip")
