"""A machine that gives out, without memory, disk or open files, is never taken for damage of what was being read.

Whoever took it so would leave a page, a picture or a sample out for good, in a run that ends well.
"""

from __future__ import annotations

import errno
import json
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from duogen_core.cli import main
from duogen_core.data.pairs.editing.rows import open_rows
from duogen_core.data.pictures.classing import Nsfw
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.sources.parquet import picture_bytes
from duogen_core.data.web import inputs, warc
from duogen_core.data.web.engine import WebEngine
from duogen_core.data.web.inputs import Folder
from duogen_core.document.reading import load_document
from duogen_core.errors import DuoGenError, is_system_failure, states_too_much
from duogen_core.files import read_limited
from duogen_core.mllm.tokenizer import load_tokenizer
from duogen_core.render.pdf_text import coverage
from duogen_core.weights.pickled import load_pickled
from tests.core.data.web.test_warc import crawl
from tests.core.web_pages import file, photo, recipe, site

NO_FILES = OSError(errno.EMFILE, "Too many open files")


def raising(error: Exception) -> Callable[..., Any]:
    def fails(*_: object, **__: object) -> None:
        raise error

    return fails


def once(function: Callable[..., Any], error: Exception, wanted: Callable[..., bool]) -> Callable[..., Any]:
    """The function, but for the first call that is wanted."""
    left = [error]

    def called(*values: Any, **named: Any) -> Any:
        if left and wanted(*values):
            raise left.pop()
        return function(*values, **named)

    return called


def web(*arguments: object) -> int:
    return main(["data", "web", *map(str, arguments), "--workers", "1", "--quiet"])


def results(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for name in ("shards", "logs") for path in sorted((out / name).iterdir())}


# ---------------------------------------------------------------- WARC files


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "There is not enough memory"),
        (sqlite3.OperationalError("database or disk is full"), "database or disk is full"),
    ],
)
def test_an_index_that_the_machine_cannot_make_says_nothing_of_the_file(tmp_path, monkeypatch, capsys, error, words):
    from warcio.recordloader import ArcWarcRecordLoader

    crawl(tmp_path / "crawl.warc.gz")
    assert web(tmp_path / "crawl.warc.gz", "--out", tmp_path / "whole") == 0
    capsys.readouterr()
    with monkeypatch.context() as patched:
        if isinstance(error, MemoryError):
            patched.setattr(ArcWarcRecordLoader, "parse_record_stream", raising(error))
        else:
            patched.setattr(warc, "_index_record", raising(error))
        assert web(tmp_path / "crawl.warc.gz", "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert words in told and len(told.splitlines()) == 1 and "damaged" not in told
    assert web(tmp_path / "crawl.warc.gz", "--out", tmp_path / "out") == 0
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["notes"] == []


def test_a_record_that_does_not_fit_into_memory_stops_the_run(tmp_path, monkeypatch, capsys):
    crawl(tmp_path / "crawl.warc.gz")
    assert web(tmp_path / "crawl.warc.gz", "--out", tmp_path / "whole") == 0
    for call in (1, 2):  # that of the first page, and that of its first picture
        calls = iter(range(call))
        wanted = lambda *_, calls=calls: next(calls, None) is None  # noqa: E731
        with monkeypatch.context() as patched:
            patched.setattr(warc, "_body", once(warc._body, MemoryError(), wanted))
            assert web(tmp_path / "crawl.warc.gz", "--out", tmp_path / f"out{call}") == 2
        assert "This machine failed at the page " in capsys.readouterr().err
        assert web(tmp_path / "crawl.warc.gz", "--out", tmp_path / f"out{call}") == 0
        assert results(tmp_path / f"out{call}") == results(tmp_path / "whole")


def test_an_index_that_cannot_be_read_refuses_no_picture(tmp_path, capsys):
    crawl(tmp_path / "crawl.warc.gz")
    out = tmp_path / "out"
    assert web(tmp_path / "crawl.warc.gz", "--out", out) == 0
    whole = results(out)
    (out / "logs" / "00000.jsonl").unlink()
    index = out / "index" / "000.sqlite"
    kept = index.read_bytes()
    with sqlite3.connect(index) as base:
        base.execute("drop table others")
    assert web(tmp_path / "crawl.warc.gz", "--out", out) == 2
    assert "This machine failed at the page" in capsys.readouterr().err
    assert not (out / "logs" / "00000.jsonl").exists()
    index.write_bytes(kept)
    assert web(tmp_path / "crawl.warc.gz", "--out", out) == 0
    assert results(out) == whole


# ---------------------------------------------------------------- folders of pages


@pytest.mark.parametrize(("method", "name"), [("open", "p.html"), ("read_bytes", "a.png")])
def test_too_many_open_files_lose_no_page_and_no_picture(tmp_path, monkeypatch, method, name):
    pages = site(tmp_path / "site", {"p.html": recipe("a.png")}, {"a.png": file(photo(seed=1))})
    with WebEngine(load_preset("web")) as engine:
        with monkeypatch.context() as patched:
            patched.setattr(Path, method, once(getattr(Path, method), NO_FILES, lambda path, *_: path.name == name))
            with pytest.raises(DuoGenError, match=r"failed at the page p.html \(Too many open files\)"):
                engine.page(Folder(pages), "p.html")
        assert engine.page(Folder(pages), "p.html").document is not None


# ---------------------------------------------------------------- whatever else a library reads for us


def saved_page(folder: Path, patched: pytest.MonkeyPatch) -> None:
    patched.setattr(inputs.email, "message_from_bytes", raising(MemoryError()))
    inputs.read_mhtml(b"", "a.mhtml")


def classifier(folder: Path, patched: pytest.MonkeyPatch) -> None:
    import transformers

    (folder / "config.json").write_text("{}")
    patched.setattr(transformers.AutoImageProcessor, "from_pretrained", raising(MemoryError()))
    Nsfw({**load_preset("web").nsfw, "model": str(folder)})


def parquet_set(folder: Path, patched: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    (folder / "a.parquet").write_bytes(b"PAR1")
    patched.setattr(pyarrow.parquet, "ParquetFile", raising(MemoryError("malloc of size 4096 failed")))
    open_rows(str(folder / "a.parquet"))


def tokenizer(folder: Path, patched: pytest.MonkeyPatch) -> None:
    import tokenizers

    (folder / "tokenizer.json").write_text("{}")
    patched.setattr(tokenizers, "Tokenizer", type("Tokenizer", (), {"from_file": raising(MemoryError())}))
    load_tokenizer(folder)


def official_weights(folder: Path, patched: pytest.MonkeyPatch) -> None:
    import torch

    patched.setattr(torch, "load", raising(RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)")))
    load_pickled(folder / "a.pt")


def zipped_document(folder: Path, patched: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("document.json", "{}")
    patched.setattr(zipfile.ZipExtFile, "read", raising(MemoryError()))
    load_document(folder / "a.zip")


def any_file(folder: Path, patched: pytest.MonkeyPatch) -> None:
    (folder / "a").write_bytes(b"a")
    patched.setattr(Path, "open", raising(OSError(errno.ENOMEM, "Cannot allocate memory")))
    read_limited(folder / "a", 9, "a")


def member_of_a_tar(folder: Path, patched: pytest.MonkeyPatch) -> None:
    (folder / "a.tar").write_bytes(b"")
    patched.setattr("tarfile.open", raising(OSError(errno.ENOMEM, "Cannot allocate memory")))
    picture_bytes({"source_ref": json.dumps({"path": "a.tar", "member": "b.png"})}, folder, "here")


def font(folder: Path, patched: pytest.MonkeyPatch) -> None:
    patched.setattr("fontTools.ttLib.TTFont", raising(MemoryError()))
    coverage(folder / "a.ttf")


@pytest.mark.parametrize(
    "read",
    [
        saved_page, classifier, parquet_set, tokenizer, official_weights, zipped_document, any_file, member_of_a_tar,
        font,
    ],
)  # fmt: skip
def test_no_memory_is_no_damage(tmp_path, monkeypatch, read):
    with pytest.raises((MemoryError, OSError, RuntimeError)) as found, monkeypatch.context() as patched:
        read(tmp_path, patched)
    assert is_system_failure(found.value), found.value


def test_a_file_that_states_a_size_that_nothing_has_is_damaged():
    """Memory is refused then too, whatever the machine has."""
    assert states_too_much(MemoryError("malloc of size 4611686018427387904 failed"))
    assert not is_system_failure(MemoryError("malloc of size 4611686018427387904 failed"))
    assert is_system_failure(MemoryError("malloc of size 65536 failed")) and is_system_failure(MemoryError())
