"""Rendering: what a model, a user or a file wrote never becomes more than text, pictures and plain links."""

from __future__ import annotations

import base64
import gc
import html
import io
import json
import random
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from duogen_core.document import (
    Document,
    Picture,
    Text,
    Turn,
)
from duogen_core.document.pending import placeholder
from duogen_core.document.reading import load_document
from duogen_core.document.store import save_document
from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.render import (
    render_html,
    render_markdown,
    render_pdf,
    write_rendered,
)
from duogen_core.render.markdown import harmless
from duogen_core.render.parsing import MAX_BRACKETS

HOSTILE = [
    "<script>alert(1)</script>",
    "</div></main><script src=//evil.example/x.js></script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<!-- --><style>*{display:none}</style>",
    "<iframe src=https://evil.example>",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](java&#115;cript:alert(1))",
    "[click](&#x6A;avascript&colon;alert(1))",
    "[click](\tjavascript:alert(1))",
    "[click](<javascript:alert(1)>)",
    "[click](vbscript:x) [file](file:///etc/passwd) [relative](../../x)",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "[click](data:image/svg+xml;base64,PHN2Zz4=)",
    "<javascript:alert(1)>",
    "[empty]()",
    "[ref][1]\n\n[1]: javascript:alert(1)",
    "[1]: javascript:alert(1)",
    "![pixel](https://evil.example/pixel.png)",
    '!["><script>alert(1)</script>](https://evil.example/a.png \'x" onerror="alert(1)\')',
    "![pixel][p]\n\n[p]: https://evil.example/pixel.png",
    "\\![pixel](https://evil.example/pixel.png)",
    "[![pixel](https://evil.example/pixel.png)](https://ok.example)",
    '```"><script>alert(1)</script>\ncode\n```',
    '[a](https://ok.example "\\" onmouseover=\\"alert(1)")',
    '[a](https://ok.example"onmouseover="alert(1)")',
    "{{ 7 * 7 }}{% raw %}{{ config }}",
    "a\0b \u202e reversed \x1b[31m",
    "| a | b |\n|---|---|\n| <b>x</b> | [x](javascript:1) |",
    "http://[::1 [x](http://[::1)",
    "| a |\n|-|\n| b | [x](javascript:alert(1)) |",  # a cell too many: the table drops it, a reader without tables not
    "| a |\n|-|\n| b | [x][j] |\n\n[j]: javascript:alert(1)",
    "| [x](javascript:alert(1)) |\nno table",
    "[a](javascript:1) [x\\](javascript:alert(1))",  # escaped once: once more, and the bracket would be free
    "[a](javascript:1) [x\\\\](javascript:alert(1)) [x\\][j]\n\n[j]: javascript:1",
    "- a\n\n      [x](javascript:alert(1))",
]
TAGS = """html head meta title style body main section div p details summary figure img footer span h1 h2 h3 h4 h5 h6
    ul ol li blockquote pre code em strong s a hr br table thead tbody tr th td"""
ATTRIBUTES = "lang charset name content http-equiv class dir src alt width height href rel title start style"


class Checker(HTMLParser):
    """Reads a page as a browser would and refuses everything that could run or fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[dict] = []
        self.links: list[dict] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        assert tag in TAGS.split(), f"<{tag}>"
        assert set(found) <= set(ATTRIBUTES.split()), (tag, found)
        assert "style" not in found or tag in ("th", "td"), found  # the alignment of a table's column
        if tag == "img":
            assert found["src"].startswith("data:image/png;base64,")
            self.images.append(found)
        if tag == "a":
            assert found.get("href", "https").split(":")[0] in ("http", "https", "mailto"), found
            assert found["rel"] == "noopener noreferrer"
            self.links.append(found)

    def handle_data(self, data):
        self.text += data


def picture(value=0, **meta):
    return Picture(np.full((4, 6, 3), value, np.uint8), meta)


def answer(text: str) -> Document:
    """The same text in every place that takes one."""
    turns = [Turn(role, (Text(text, {"x": text}), picture(text=text, seed=text))) for role in ("system", "user")]
    turns.append(Turn("assistant", (Text(text), picture(1, text=text), Text(text))))
    return Document(tuple(turns), {"model": text, "seed": text, "stop_reason": text}, {"caption": text})


def check_markdown(document: Document) -> None:
    """What a careless viewer makes of the Markdown: HTML on, every link allowed."""
    paths = [f"images/{k:03d}.png" for k in range(len(document.pictures))]
    text = render_markdown(document, paths)
    for tables in ("enable", "disable"):
        viewer = MarkdownIt("commonmark", {"html": True})
        getattr(viewer, tables)("table")
        viewer.validateLink = lambda url: True
        check_tokens(viewer.parse(text), paths)


def check_tokens(blocks: list, paths: list[str]) -> None:
    images = []
    for block in blocks:
        assert block.type != "html_block", block.content
        for token in block.children or ():
            assert token.type != "html_inline", token.content
            if token.type == "image":
                images.append(token.attrGet("src"))
            if token.type == "link_open":
                assert token.attrGet("href").split(":")[0].lower() in ("http", "https", "mailto"), token.attrs
    assert images == paths


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text):
    page = Checker(render_html(answer(text)))
    assert len(page.images) == 3
    check_markdown(answer(text))


def test_hostile_text_in_any_mixture_stays_text():
    rng = random.Random(0)
    pieces = [*HOSTILE, "`", "```\n", "\n\n", "[", "](", ")", "<", ">", '"', "'", "\\", "&lt;", "> ", "- ", "    ", "!"]
    for _ in range(200):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(2, 6)))
        Checker(render_html(answer(text)))
        check_markdown(answer(text))


def other_viewers() -> list:
    """Python-Markdown, which reads much otherwise than CommonMark, and which does not look at addresses."""
    markdown = pytest.importorskip("markdown")
    extra = ["footnotes", "tables", "fenced_code", "def_list", "abbr"]
    return [markdown.markdown, lambda text: markdown.markdown(text, extensions=extra)]


@pytest.mark.parametrize("text", [*HOSTILE, "[a](java\nscript:alert(1))", "[a](\njavascript:1)", "[a] (javascript:1)"])
def test_other_viewers_find_no_link_that_runs(text):
    document = answer(f"{text}\n\n- {text}\n\n> {text}")
    paths = [f"images/{k:03d}.png" for k in range(len(document.pictures))]
    for viewer in other_viewers():
        for link in re.findall(r'<a\b[^>]*href="([^"]*)"', viewer(render_markdown(document, paths))):
            bare = re.sub(r"[\x00-\x20]", "", html.unescape(link)).lower()
            assert re.match(r"(https?|mailto):|[^:]*$", bare), link


def test_links_that_are_safe_stay_as_they_are():
    text = (
        "See [the page](https://ok.example/a_(b)), <https://ok.example>, [mail](mailto:a@b.example), [r][1] and "
        "`[x](page.html)`.\n\n| a | b |\n|---|---|\n| [x](https://ok.example) | y |\n\n```\n[x](page.html)\n```\n\n"
        "[1]: https://ok.example"
    )
    assert harmless(text) == text.replace("<https", "&lt;https")


GROWING = {  # how it is repeated: time may grow with the length, not with its square
    "brackets": ("[a][", 1000),
    "open brackets": ("[", 2000),
    "images": ("![a](", 1000),
    "definitions": ("[r]: http://x.y\n", 750),
    "links": ("[a](http://b.c) ", 750),
    "emphasis": ("**a*", 600),
    "table": ("|a|\n|-|\n", 250),
    "quotations": (">", 750),
    "lists": ("- ", 500),
    "lines": ("a\n", 700),
    "marks": ("\u0301", 2000),
    "one word": ("x", 20000),
    "words": ("word ", 5000),
    "deep lines": ("                                        - a\n", 200),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize("render", [render_html, lambda document: render_markdown(document, []), render_pdf])
def test_time_grows_with_the_length_of_a_text(name, role, render):
    piece, count = GROWING[name]
    if render is render_pdf:  # which lays out pages, and is the slowest by far
        count //= 3

    def seconds(times: int) -> float:
        document = Document().begin_turn(role, [Text("a" + piece * count * times)])
        start = time.process_time()
        render(document)
        return time.process_time() - start

    render(Document().begin_turn(role, [Text(piece)]))  # what is imported and looked up once
    gc.collect()  # else a collection of what other tests left may fall into the measurement
    assert min(seconds(12), seconds(12)) < 40 * max(seconds(1), 0.01)  # 144 times, if it grew with the square


@pytest.mark.parametrize("name", ["lines", "emphasis", "table", "deep lines"])
@pytest.mark.parametrize(
    "render", [render_html, lambda document, cancelled: render_markdown(document, [], cancelled), render_pdf]
)
def test_rendering_can_be_given_up(name, render):
    """The question is asked along a text, not once a document."""
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 20

    with pytest.raises(Cancelled):
        render(Document().begin_turn("assistant", [Text("a" + GROWING[name][0] * 200)]), cancelled=cancelled)
    assert asked == 21


def test_a_pdf_of_one_long_word_can_be_given_up():
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 20

    with pytest.raises(Cancelled):
        render_pdf(Document().begin_turn("user", [Text("x" * 20_000)]), cancelled=cancelled)


def test_text_of_too_many_brackets_keeps_its_words():
    text = "[a](https://x.example) " * (MAX_BRACKETS + 1)
    page = Checker(render_html(Document().begin_turn("assistant", [Text(text)])))
    assert not page.links and page.text.count("[a](https://x.example)") == MAX_BRACKETS + 1
    markdown = render_markdown(Document().begin_turn("assistant", [Text(text)]), [])
    assert Checker(MarkdownIt("commonmark").render(markdown)).text.count("[a](https://x.example)") == MAX_BRACKETS + 1


def test_an_open_code_fence_does_not_swallow_the_pictures():
    for fence in ("```", "~~~~", "````python\n```", "- ```", "> ```", "word\n\t~~~"):
        check_markdown(answer(f"look:\n{fence}\ncode"))


def test_data_that_travels_with_the_page_stays_data():
    data = {"workflow": {"title": "\"><script>alert(1)</script> Grüße ' </head>"}}
    page = render_html(answer("hello"), data)
    Checker(page)
    (content,) = re.findall(r'<meta name="duogen-data" content="([^"]*)">', page)
    assert json.loads(html.unescape(content)) == data
    assert "duogen-data" not in render_html(answer("hello"))


def test_a_role_that_slipped_through_is_escaped():
    turn = Turn("user", (Text("x"),))
    object.__setattr__(turn, "role", '"><script>alert(1)</script>')
    page = Checker(render_html(Document((turn,))))
    assert "<script>alert(1)</script>" in page.text


def test_hostile_text_is_still_shown():
    page = Checker(render_html(answer("<script>alert(1)</script>")))
    assert page.text.count("<script>alert(1)</script>") >= 4


def test_the_page_needs_nothing_else_and_forbids_the_rest():
    page = render_html(answer("hello"))
    assert "Content-Security-Policy" in page and "default-src 'none'" in page
    assert "<script" not in page and "url(" not in page and "@import" not in page
    assert 'name="viewport"' in page


def test_markdown_of_a_model_is_formatted_and_a_persons_words_are_not():
    document = Document().begin_turn("user", [Text("**Draw**\n  a house")])
    document = document.begin_turn(
        "assistant", [Text("**Bold**, `x < 1`\n\n1. one\n2. two\n\n[link](https://a.example/?b=1&c=2)")]
    )
    page = render_html(document)
    assert "<strong>Bold</strong>" in page and "<li>two</li>" in page and "**Draw**\n  a house" in page
    assert Checker(page).links[0]["href"] == "https://a.example/?b=1&c=2"
    assert "<title>**Draw** a house</title>" in page


def test_pictures_are_inside_in_order_with_their_words():
    document = Document().begin_turn("user", [Text("?"), picture(1)]).begin_turn("assistant", [Text("Step 1")])
    document = document.append(picture(2, text='Paint "the" roof')).append(picture(3))
    images = Checker(render_html(document)).images
    assert [image["alt"] for image in images] == ["Image 1", 'Image 2: Paint "the" roof', "Image 3"]
    for value, image in enumerate(images, start=1):
        with Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) as decoded:
            assert decoded.getpixel((0, 0)) == (value,) * 3 and decoded.size == (6, 4)


def test_the_reader_learns_how_the_answer_ended():
    document = (
        Document().begin_turn("assistant", [Text("Step 1")]).replace_generation(stop_reason="interrupted", seed=7)
    )
    assert "interrupted here" in render_html(document) and "seed 7" in render_html(document)
    assert "interrupted here" in render_markdown(document, [])
    assert "interrupted" not in render_html(document.replace_generation(stop_reason="end"))


def test_markdown_reads_as_the_answer():
    document = Document().begin_turn("user", [Text("A house?\nRed."), picture()])
    document = document.begin_turn("assistant", [Text("Step 1: walls."), picture(), Text("Step 2: roof.\n"), picture()])
    assert render_markdown(document, ["images/0.png", "a b(1).png", "/view?filename=x.png&type=temp"]) == (
        "> A house?\n> Red.\n>\n> ![Image 1](images/0.png)\n\nStep 1: walls.\n\n![Image 2](a%20b%281%29.png)\n\n"
        "Step 2: roof.\n\n![Image 3](/view?filename=x.png&type=temp)\n"
    )
    with pytest.raises(DuoGenError, match="3 images, but 1 paths"):
        render_markdown(document, ["a.png"])


def test_empty_documents_render():
    for document in (Document(), Document().begin_turn("user"), Document().begin_turn("assistant", [Text("  ")])):
        Checker(render_html(document))
        assert isinstance(render_markdown(document, []), str)


def test_files_lie_beside_the_document(tmp_path):
    document = answer("Häuser 🏠")
    folder = save_document(document, tmp_path / "a")
    page, markdown = write_rendered(document, folder)
    assert page == folder / "document.html" and "Häuser 🏠" in page.read_text("utf-8")
    assert "![Image 2](images/001.png)" in markdown.read_text("utf-8")
    assert load_document(folder) == document
    with pytest.raises(DuoGenError, match=r"document\.html"):
        write_rendered(document, tmp_path / "nowhere")


def test_an_image_that_is_planned_stands_as_its_words():
    document = Document().begin_turn("user", [Text("Draw.")]).begin_turn("assistant", [Text("A wall.")])
    document = document.append(placeholder((64, 64), 'a <b>wall</b> & "roof" ![x](http://a.b/c)'))
    page = render_html(document)
    assert "[Image 1, not drawn yet: a &lt;b&gt;wall&lt;/b&gt; &amp; &#34;roof&#34;" in page and "<img" not in page
    text = render_markdown(document, ["images/000.png"])
    assert '[Image 1, not drawn yet: a &lt;b>wall&lt;/b> & "roof" !\\[x]' in text and "images/000.png" not in text
    assert render_pdf(document).startswith(b"%PDF")
