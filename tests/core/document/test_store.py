"""Writing documents: round trips to the byte, and writing that fails at the worst moment."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from duogen_core.document import Document, Picture, Text, store
from duogen_core.document.reading import load_document
from duogen_core.document.store import DocumentWriter, save_document
from duogen_core.errors import DuoGenError
from duogen_core.files import unlock_all
from duogen_core.render import write_rendered
from tests.core.documents import files, picture, sample


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
        patch.setattr(store, "discard", dying(store.discard))
        patch.setattr("duogen_core.files.discard", dying(store.discard))
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


@pytest.mark.parametrize("moment", range(1, 16))
def test_killed_while_an_earlier_answer_is_replaced_nothing_is_lost(tmp_path, monkeypatch, moment):
    """Neither the earlier answer, before the new one stands there, nor what the user put beside it."""
    mine = {"notes.txt": b"mine", "images/sketch.jpg": b"mine too", "images/more/deep.txt": b"mine as well"}
    save_document(sample(2), tmp_path / "a")
    for name, data in mine.items():
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_bytes(data)
    calls = 0

    def dying(function):
        def wrapper(*args, **kw):
            nonlocal calls
            calls += 1
            if calls >= moment:
                raise Killed
            return function(*args, **kw)

        return wrapper

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        for owner, name in [(Path, "write_bytes"), (Path, "mkdir"), (os, "replace"), (os, "rename"), (os, "unlink")]:
            patch.setattr(owner, name, dying(getattr(owner, name)))
        patch.setattr(store, "discard", dying(store.discard))
        save_document(sample(1), tmp_path / "a", overwrite=True)
    unlock_all()  # the process is gone
    if (tmp_path / "a").exists():
        assert load_document(tmp_path / "a") in (sample(1), sample(2))
    store.finish_swap(tmp_path / "a")
    assert load_document(tmp_path / "a") in (sample(1), sample(2))
    save_document(sample(3), tmp_path / "a", overwrite=True)
    assert load_document(tmp_path / "a") == sample(3) and [path.name for path in tmp_path.iterdir()] == ["a"]
    found = files(tmp_path / "a")
    assert {name: found.get(name) for name in mine} == mine


def a_link(at: Path, to: Path) -> None:
    try:
        at.symlink_to(to, target_is_directory=to.is_dir())
    except OSError:
        pytest.skip("this system lets us make no symbolic links")


def test_links_inside_an_answer_are_never_followed(tmp_path):
    """An answer that somebody sent may hold links to folders and files of the user's."""
    home = tmp_path / "home"
    (home / "keys").mkdir(parents=True)
    for name in ("keys/id_rsa", "keys/000.png", "thesis.txt"):
        (home / name).write_text("the user's own")
    state = files(home)
    folder = save_document(Document().begin_turn("user", [Text("hi")]), tmp_path / "got")
    a_link(folder / "images", home / "keys")
    a_link(folder / "other", home / "keys")
    for name in ("document.html", "document.md"):
        a_link(folder / name, home / "thesis.txt")
        a_link(folder / f".{name}.duogen-tmp", home / "thesis.txt")
    a_link(folder / ".document.json.duogen-tmp", home / "thesis.txt")
    write_rendered(load_document(folder), folder)
    writer = DocumentWriter(folder, overwrite=True)
    for document in growing(2):
        writer.update(document)
        write_rendered(document, folder)
        assert files(home) == state
        assert load_document(folder) == document and not (folder / "images").is_symlink()
    assert (folder / "other").is_symlink()  # one that is in nobody's way stays
    shutil.rmtree(folder / "images")
    a_link(folder / "images", home / "keys")
    writer.update(sample(4))
    assert files(home) == state and load_document(folder) == sample(4)


def test_a_link_instead_of_the_document_is_replaced_not_followed(tmp_path):
    (tmp_path / "home").mkdir()
    kept = save_document(sample(1), tmp_path / "home/kept")
    state = files(kept)
    folder = tmp_path / "got"
    folder.mkdir()
    a_link(folder / "document.json", kept / "document.json")
    save_document(sample(2), folder, overwrite=True)
    assert files(kept) == state and load_document(folder) == sample(2)


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
