"""Documents on disk: round trips to the byte, hostile files, and writing that fails at the worst moment."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from duogen_core import store
from duogen_core.document import Document, Picture, Text, Turn
from duogen_core.errors import DuoGenError
from duogen_core.store import DocumentWriter, load_document, save_document


def picture(value=0, size=(12, 8), **meta):
    rng = np.random.default_rng(value)
    return Picture(rng.integers(0, 256, (size[1], size[0], 3), np.uint8), meta)


def sample(pictures=2) -> Document:
    document = Document(
        (
            Turn("system", (Text("Be kind."),)),
            Turn("user", (Text("Häuser? 🏠\n"), picture(9, (5, 7))), {"source": "me"}),
        )
    )
    document = document.begin_turn("assistant")
    for k in range(pictures):
        text = f"Step {k + 1}: “paint” – ✓"
        document = document.append(Text(text, {"scores": [0.1, 1e-7]})).append(picture(k, seed=7 + k, text=text))
    generation = {"model": "duogen-tiny", "seed": 7, "guidance": 2.0, "stop_reason": "end"}
    return Document(document.turns, generation, {"split": "test", "own": {"ключ": [1, None, True]}})


def files(root: Path) -> dict[str, bytes]:
    if root.is_file():
        return {root.name: root.read_bytes()}
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def put(folder: Path, value, picture_name="images/000.png") -> Path:
    """A hand-made document folder with one picture."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(folder / picture_name)
    text = value if isinstance(value, (str, bytes)) else json.dumps(value)
    (folder / "document.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def base(file="images/000.png", **changes):
    parts = [{"type": "text", "text": "hello"}, {"type": "image", "file": file}]
    return {"format": "duogen-document", "version": 1, "turns": [{"role": "user", "parts": parts}], **changes}


@pytest.mark.parametrize("name", ["a", "a.zip", "deep/er/a"])
def test_save_load_save_is_the_same_to_the_byte(tmp_path, name):
    document = sample()
    first = save_document(document, tmp_path / name)
    loaded = load_document(first)
    second = save_document(loaded, tmp_path / "second" / Path(name).name)
    assert loaded == document
    assert files(first) == files(second)
    if first.is_dir():
        assert list(files(first)) == ["document.json", "images/000.png", "images/001.png", "images/002.png"]
        assert load_document(first / "document.json") == document


def test_the_json_is_the_documented_one(tmp_path):
    text = (save_document(sample(1), tmp_path / "a") / "document.json").read_text("utf-8")
    value = json.loads(text)
    assert (value["format"], value["version"]) == ("duogen-document", 1)
    assert value["turns"][1]["parts"][1] == {"type": "image", "file": "images/000.png"}
    assert value["generation"]["stop_reason"] == "end" and value["meta"]["own"] == {"ключ": [1, None, True]}
    assert "🏠" in text  # readable, not escaped


def test_pictures_carry_seed_and_step_text(tmp_path):
    folder = save_document(sample(1), tmp_path / "a")
    with Image.open(folder / "images/001.png") as image:
        assert image.text == {"seed": "7", "text": "Step 1: “paint” – ✓"}


def test_an_empty_document_and_an_empty_folder(tmp_path):
    assert load_document(save_document(Document(), tmp_path)) == Document()


def test_foreign_picture_formats_and_a_shared_file(tmp_path):
    value = base("images/photo.jpg")
    value["turns"][0]["parts"].append({"type": "image", "file": "images/photo.jpg", "meta": {"again": True}})
    document = load_document(put(tmp_path, value, "images/photo.jpg"))
    assert [p.meta for p in document.pictures] == [{}, {"again": True}]
    assert document.pictures[0].pixels is document.pictures[1].pixels


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
    monkeypatch.setattr("duogen_core.store_read.MAX_TOTAL_PIXELS", 15)
    with pytest.raises(DuoGenError, match="15 pixels in all"):
        load_document(put(tmp_path, base()))


def test_missing_places(tmp_path):
    for name in ("nowhere", "nowhere.zip", "nowhere/document.json"):
        with pytest.raises(DuoGenError, match="does not exist"):
            load_document(tmp_path / name)
    with pytest.raises(DuoGenError, match=r"document\.json does not exist"):
        load_document(tmp_path)


def zipped(path: Path, entries, **info) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            member = zipfile.ZipInfo(name)
            for key, value in info.items():
                setattr(member, key, value)
            archive.writestr(member, data)
    return path


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


def test_nothing_but_a_document_is_ever_replaced(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(DuoGenError, match="choose another"):
            save_document(sample(), tmp_path / "notes", overwrite=overwrite)
        with pytest.raises(DuoGenError, match="is a file"):
            save_document(sample(), tmp_path / "notes/thesis.txt", overwrite=overwrite)
    for name in ("a", "a.zip"):
        save_document(sample(1), tmp_path / name)
        with pytest.raises(DuoGenError, match="overwritten"):
            save_document(sample(), tmp_path / name)
        with pytest.raises(DuoGenError, match="overwritten"):
            DocumentWriter(tmp_path / name)
        assert load_document(tmp_path / name) == sample(1)
    with pytest.raises(DuoGenError, match="no name"):
        save_document(sample(), "")
    with pytest.raises(DuoGenError, match="cannot be used"):
        save_document(sample(), "a\0b")


def test_overwriting_keeps_the_users_other_files(tmp_path):
    folder = save_document(sample(5), tmp_path / "a")
    for name in ("notes.txt", "images/sketch.jpg", "document.html"):
        (folder / name).write_text("mine")
    save_document(sample(1), folder, overwrite=True)
    assert list(files(folder)) == [
        "document.json",
        "images/000.png",
        "images/001.png",
        "images/sketch.jpg",
        "notes.txt",
    ]
    assert load_document(folder) == sample(1) and list(tmp_path.iterdir()) == [folder]


class Disk:
    """Lets `room` writes succeed; then every write puts half of its bytes down and fails."""

    def __init__(self, monkeypatch, room: int, code: int = errno.ENOSPC):
        self.room, write = room, Path.write_bytes

        def write_bytes(path, data):
            if self.room <= 0:
                write(path, data[: len(data) // 2])
                raise OSError(code, os.strerror(code), str(path))
            self.room -= 1
            return write(path, data)

        monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("room", range(4))
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_changes_nothing(tmp_path, monkeypatch, room, before):
    target = tmp_path / "deep/a"
    if before:
        save_document(sample(1), target)
    state = files(tmp_path)
    with monkeypatch.context() as patch:
        Disk(patch, room)
        with pytest.raises(DuoGenError, match="disk is full"):
            save_document(sample(), target, overwrite=before)
    assert files(tmp_path) == state
    assert before or list(tmp_path.iterdir()) == []  # not even the empty folders above it remain


def test_a_full_disk_leaves_the_zip_as_it_was(tmp_path, monkeypatch):
    target = save_document(sample(1), tmp_path / "a.zip")
    state = files(tmp_path)

    def full(*_args, **_kw):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "writestr", full)
        with pytest.raises(DuoGenError, match="disk is full"):
            save_document(sample(), target, overwrite=True)
    assert files(tmp_path) == state


def test_a_failing_rename_puts_the_old_document_back(tmp_path, monkeypatch):
    target, rename, calls = save_document(sample(1), tmp_path / "a"), os.rename, []

    def second_fails(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, destination)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(DuoGenError, match="could not be written"):
        save_document(sample(), target, overwrite=True)
    assert load_document(target) == sample(1) and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_an_output_folder_that_may_not_be_written(tmp_path, monkeypatch, code):
    def refuse(path, *_args, **_kw):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for name in ("a", "deep/a"):
        with pytest.raises(DuoGenError, match="may write to"):
            save_document(sample(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    for name in ("file/a", "file/a.zip", "file/deep/a"):
        with pytest.raises(DuoGenError, match="written"):
            save_document(sample(), tmp_path / name)
    assert files(tmp_path) == {"file": b"x"}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DuoGenError, match="may write to"):
        save_document(sample(), tmp_path / "a")


def growing(pictures: int) -> list[Document]:
    return [sample(k) for k in range(pictures + 1)]


@pytest.mark.parametrize("name", ["a", "a.zip"])
def test_the_writer_ends_like_a_single_save(tmp_path, name):
    writer = DocumentWriter(tmp_path / name)
    for document in growing(3):
        writer.update(document)
        assert load_document(tmp_path / name) == document
    save_document(sample(3), tmp_path / "once" / name)
    assert files(tmp_path / name) == files(tmp_path / "once" / name)


def test_the_writer_writes_each_picture_once(tmp_path, monkeypatch):
    encoded = []
    encode = Picture.to_png
    monkeypatch.setattr(Picture, "to_png", lambda p: encoded.append(p) or encode(p))
    writer = DocumentWriter(tmp_path / "a")
    for document in growing(4):
        writer.update(document)
    assert len(encoded) == 5


def test_the_writer_replaces_what_is_no_continuation(tmp_path):
    writer = DocumentWriter(tmp_path / "a")
    writer.update(sample(3))
    other = Document().begin_turn("user", [picture(50)])
    writer.update(other)
    assert load_document(tmp_path / "a") == other
    assert list(files(tmp_path / "a")) == ["document.json", "images/000.png"]


class Killed(BaseException):
    """Stands for a kill: nothing in the code may rely on running after it."""


@pytest.mark.parametrize("moment", range(1, 40))
def test_killed_at_any_moment_the_finished_pictures_are_readable(tmp_path, monkeypatch, moment):
    """Every file system call of a growing answer is a moment to die; the cleaning up dies with it."""
    calls = 0

    def dying(function):
        def wrapper(*args, **kw):
            nonlocal calls
            calls += 1
            if calls == moment:
                if function is write_bytes:
                    write_bytes(args[0], args[1][: len(args[1]) // 2])
                raise Killed
            if calls > moment:
                raise Killed
            return function(*args, **kw)

        return wrapper

    write_bytes = Path.write_bytes
    documents, done = growing(4), None
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", dying(write_bytes))
        patch.setattr(Path, "mkdir", dying(Path.mkdir))
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(os, "rename", dying(os.rename))
        patch.setattr(store, "_discard", dying(store._discard))
        try:
            writer = DocumentWriter(tmp_path / "a")
            for document in documents:
                writer.update(document)
                done = document
        except Killed:
            pass
    if done is None:
        assert not (tmp_path / "a").exists()  # nothing was finished yet, and nothing half-written has the name
        return
    assert load_document(tmp_path / "a") in (done, documents[min(documents.index(done) + 1, 4)])
    DocumentWriter(tmp_path / "a", overwrite=True).update(documents[-1])
    assert list(files(tmp_path / "a")) == list(files(save_document(documents[-1], tmp_path / "fresh")))


@pytest.mark.parametrize("room", range(2, 10))
def test_a_full_disk_at_picture_k_leaves_the_finished_ones(tmp_path, monkeypatch, room):
    writer, done = DocumentWriter(tmp_path / "a"), None
    with monkeypatch.context() as patch:
        Disk(patch, room)
        with pytest.raises(DuoGenError, match="disk is full"):
            for document in growing(6):
                writer.update(document)
                done = document
    assert load_document(tmp_path / "a") == done
    assert not [name for name in files(tmp_path) if "tmp" in name]
