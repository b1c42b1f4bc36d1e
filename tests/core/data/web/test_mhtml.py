"""MHTML, pages saved as one file: pictures by address and by id, charsets, hostile files, and beside other pages."""

from __future__ import annotations

import base64
import quopri
from pathlib import Path

import pytest

from duogen_core.data.runs.presets import load_preset
from duogen_core.data.web import inputs
from duogen_core.data.web.engine import PageResult, WebEngine
from duogen_core.data.web.inputs import open_inputs, read_mhtml
from duogen_core.errors import DuoGenError
from tests.core.web_pages import file, photo, recipe, screenshot

URL = "https://www.example.com/bread/index.html"
Part = tuple[str, dict[str, str], bytes]


def message(
    html: str, *parts: Part, kind: str = "text/html", charset: str = "", head: str = "", page: str = ""
) -> bytes:
    """As Chromium writes it: the page quoted-printable, pictures base64."""
    body = quopri.encodestring(html.encode(charset or "utf-8"))
    lines = [
        "From: <Saved by Blink>",
        f"Snapshot-Content-Location: {URL}",
        "Subject: =?utf-8?Q?How=20to=20bake=20bread?=",
        "Date: Fri, 6 Mar 2026 10:20:30 +0100",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/related;\r\n\ttype="text/html";\r\n\tboundary="----B"{head}',
        "",
        "",
        "------B",
        f"Content-Type: {kind}" + (f"; charset={charset}" if charset else ""),
        f"Content-ID: <{page or 'frame-1@mhtml.blink'}>",
        "Content-Transfer-Encoding: quoted-printable",
        f"Content-Location: {URL}",
        "",
        "",
    ]
    data = "\r\n".join(lines).encode() + body
    for kind_, headers, content in parts:
        lines = ["", "------B", f"Content-Type: {kind_}", "Content-Transfer-Encoding: base64"]
        data += "\r\n".join([*lines, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode()
        data += base64.encodebytes(content).replace(b"\n", b"\r\n")
    return data + b"\r\n------B--\r\n"


A = ("image/png", {"Content-Location": "https://cdn.example.com/a.png"}, file(photo(seed=1)))
B = ("image/png", {"Content-ID": "<b-1@mhtml.blink>"}, file(screenshot(seed=2)))
SECRET = ("text/css", {"Content-Location": "file:///etc/x.png"}, file(photo(seed=3)))


@pytest.fixture(scope="module")
def engine():
    with WebEngine(load_preset("web")) as engine:
        yield engine


@pytest.fixture
def look(engine, tmp_path):
    def look(data: bytes, name: str = "bread.mhtml") -> PageResult:
        (tmp_path / name).write_bytes(data)
        (tmp_path / "beside.png").write_bytes(file(photo(seed=4)))
        return engine.page(open_inputs([str(tmp_path / name)])[0], name)

    return look


def rules(outcome: PageResult) -> list[str]:
    return [judged.verdict.rule if judged.verdict else "kept" for judged in outcome.judged.values()]


@pytest.mark.parametrize("name", ["bread.mhtml", "bread.MHT"])
def test_a_saved_page_with_its_pictures(look, name):
    outcome = look(
        message(recipe("https://cdn.example.com/a.png", "cid:b-1@mhtml.blink", "../../beside.png"), A, B), name
    )
    assert rules(outcome) == ["kept", "kept", "missing"]
    document = outcome.document
    assert document.meta["url"] == URL and document.meta["time"] == "2026-03-06T09:20:30Z"
    assert document.pictures[1].pixels.tolist() == screenshot(seed=2).tolist()
    assert document.pictures[0].meta["url"] == "https://cdn.example.com/a.png"


def test_relative_addresses_and_those_that_are_refused(look):
    part = ("image/png", {"Content-Location": "https://www.example.com/bread/i/a.png"}, file(photo(seed=1)))
    outcome = look(message(recipe("i/a.png", "file:///etc/x.png", "http://10.0.0.1/a.png"), part, SECRET))
    assert rules(outcome) == ["kept", "refused_link", "refused_link"]


def test_the_charset_of_the_part_counts(look):
    html = recipe("https://cdn.example.com/a.png").replace("Put the", "Žádný řízek. Put the")
    assert "Žádný řízek" in look(message(html, A, charset="iso-8859-2")).document.text


def test_the_start_of_the_message_says_which_part_is_the_page(look):
    frame = (
        "text/html",
        {"Content-ID": "<page@x>", "Content-Location": URL},
        recipe("https://cdn.example.com/a.png").encode(),
    )
    data = message("<p>only a frame", frame, A, head=';\r\n\tstart="<page@x>"')
    assert look(data).verdict is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holds no page"),
        (b"\x00\xff\xfe" * 1000, "holds no page"),
        (message("<p>x", kind="text/plain"), "holds no page"),
        (b'Content-Type: multipart/related; boundary="a"\r\n\r\n--a\r\n' * 60, "declares more than 50 boundaries"),
        (
            message("<p>x", *[("text/css", {}, b"x")] * 60).replace(b"text/css", b"text/css\r\nX: boundary=1"),
            "boundaries",
        ),
    ],
)
def test_files_that_are_no_saved_pages(look, data, words):
    assert look(data).verdict.rule == "unreadable"
    with pytest.raises(DuoGenError, match=words):
        read_mhtml(data, "x.mhtml")


def test_caps(monkeypatch):
    monkeypatch.setattr(inputs, "MAX_PARTS", 3)
    with pytest.raises(DuoGenError, match="has 5 parts"):
        read_mhtml(message("<p>x", A, B, A, B), "x.mhtml")
    monkeypatch.setattr(inputs, "MAX_BYTES", 1000)
    with pytest.raises(DuoGenError, match="is larger than"):
        read_mhtml(message("<p>x", A), "x.mhtml")


def test_a_page_that_is_too_long_and_a_file_that_is_cut_off(look):
    outcome = look(message("<p>x</p>" * 1_100_000))
    assert outcome.verdict.rule == "too_many_bytes"
    whole = message(recipe("https://cdn.example.com/a.png", "cid:b-1@mhtml.blink"), A, B)
    outcome = look(whole[: len(whole) - 3000])
    assert rules(outcome) == ["kept", "broken"]


def test_saved_pages_stand_among_others_in_a_folder(engine, tmp_path):
    for name, data in {
        "a.html": recipe("b.png").encode(),
        "z.mhtml": message(recipe(A[1]["Content-Location"]), A),
    }.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "b.png").write_bytes(file(photo(seed=2)))
    (input_,) = open_inputs([str(tmp_path)])
    assert [engine.page(input_, name).verdict for name in input_.names()] == [None, None]
    assert Path(input_.path) == tmp_path
