"""The DOM walker: text and images in source order, tables and captions, what is hidden, and hostile pages."""

from __future__ import annotations

import time

import pytest

from duogen_core.data.web.encodings import decode_page, garbled
from duogen_core.data.web.page import Block
from duogen_core.data.web.walker import TooMuch, walk
from tests.core.web_pages import page


def seen(html: str) -> list[str]:
    """Texts as they are, images as <address>."""
    items = walk(page(html)).items
    return [
        item.text if isinstance(item, Block) else f"<{item.sources[0] if item.sources else item.kind}>"
        for item in items
    ]


def test_source_order_with_lists_headings_and_layout_tables():
    html = """<h2>Dough</h2><p>Mix <b>well</b>.</p><img src=1.png><ol start=3><li>Knead<img src=2.png>for long</li>
    <li><p>Rest</p><p>an hour</p></li></ol><table><tr><td><img src=3.png></td><td><p>Bake it</p></td></tr></table>"""
    assert seen(html) == [
        "## Dough",
        "Mix well.",
        "<1.png>",
        "3. Knead",
        "<2.png>",
        "for long",
        "4. Rest",
        "an hour",
        "<3.png>",
        "Bake it",
    ]


def test_a_picture_in_the_middle_of_a_paragraph_cuts_it_and_says_so():
    first, image, second, third = walk(page("<p>Press the <img src=i.png> button.</p><p>Done.</p>")).items
    assert (first.cut, second.continues, third.continues) == (True, True, False)
    assert (first.text, image.sources, second.text) == ("Press the", ("i.png",), "button.")


def test_data_tables_become_rows():
    html = "<table><tr><th>Key<th>Use</tr><tr><td>A|B<td>all <i>of</i> it</tr></table>"
    assert seen(html) == ["| Key | Use |\n| --- | --- |\n| A\\|B | all of it |"]


def test_code_keeps_its_white_space():
    assert seen("<pre>a\n  b\n</pre>") == ["```\na\n  b\n```"]


@pytest.mark.parametrize(
    "html",
    [
        "<figure><img src=1.png><figcaption>A loaf.</figcaption></figure>",
        "<figure><figcaption>A loaf.</figcaption><img src=1.png></figure>",
        "<div class='figure'><p class='title'>A loaf.</p><div><img src=1.png></div></div>",
        "<div class='wp-caption'><a href=x><img src=1.png></a><p class='wp-caption-text'>A loaf.</p></div>",
    ],
)
def test_captions_belong_to_their_picture_and_stay_in_the_text(html):
    result = walk(page(html))
    assert [image.caption for image in result.images] == ["A loaf."]
    assert [block.text for block in result.blocks] == ["A loaf."]


@pytest.mark.parametrize(
    "hidden",
    [
        "<p hidden>x<img src=1.png></p>",
        "<div style='color:red; display : none'>x<img src=1.png></div>",
        "<p style='font-size:0'>x</p>",
        "<p style='position:absolute;left:-9999px'>x</p>",
        "<script>x</script><style>x</style><template>x<img src=1.png></template>",
        "<!-- x <img src=1.png> -->",
    ],
)
def test_what_nobody_sees_is_not_there(hidden):
    assert seen(f"<p>before</p>{hidden}<p>after</p>") == ["before", "after"]


def test_regions_are_marked_and_kept():
    html = "<nav><a href=x>Home</a><img src=n.png></nav><p class=guimenu>File</p><div id=sidebar>Other</div>"
    result = walk(page(html))
    assert [item.region for item in result.items] == ["nav", "nav", "", "aside"]
    assert result.blocks[0].linked == 4


@pytest.mark.parametrize(
    ("html", "sources"),
    [
        ("<img src=p.gif data-src=real.png>", ("real.png", "p.gif")),
        ("<img src=s.png srcset='s.png 1x, l.png 2x'>", ("l.png", "s.png")),
        ("<img srcset='s.png 320w, l.png 1280w, m.png 640w'>", ("l.png", "m.png", "s.png")),
        ("<img srcset='a.jpg 1024w 768h, b.jpg 2048w 1536h'>", ("b.jpg", "a.jpg")),
        ("<picture><source srcset='w.webp 800w'><img src=j.jpg></picture>", ("w.webp", "j.jpg")),
        ("<picture><source data-srcset='a.avif 2x, b.avif'><img data-src=c.jpg src=data:,></picture>",
         ("c.jpg", "a.avif", "b.avif", "data:,")),
        ("<img data-baseurl='p.jpg' data-c-nd='1130x635'>", ("p.jpg",)),
        ("<img data-thumb-src='/i/12345' data-page='/p/1' data-x='1.5'>", ("/i/12345",)),
        ("<img src='/img/placeholder.png' data-big='https://a.example/p.webp?x=1'>",
         ("https://a.example/p.webp?x=1", "/img/placeholder.png")),
        ("<img src=spacer.gif data-sizes-set='s.jpg 1x, l.jpg 2x' data-json='{\"src\": \"j.jpg\"}'>",
         ("l.jpg", "s.jpg", "spacer.gif")),
        ("<img src=real.jpg data-share='other.jpg' data-original=true>", ("real.jpg",)),
        ("<picture><source type=image/webp data-url='w.webp'>"
         "<source media=print data-set='a.jpg 1x, b.jpg 2x'><img></picture>", ("w.webp", "b.jpg", "a.jpg")),
        ("<picture><source data-url='w.webp'><img src=real.jpg></picture>", ("real.jpg",)),
        ("<input type=image data-src=/b.png src=spacer.gif>", ("/b.png", "spacer.gif")),
        ("<img src=p.gif><noscript><img src=real.png></noscript>", ("real.png", "p.gif")),
        ("<noscript><img src=only.png></noscript>", ("only.png",)),
        ("<object data=o.png></object>", ("o.png",)),
        ("<input type=image src=b.png>", ("b.png",)),
        ("<video poster=v.jpg><p>no video</p></video>", ("v.jpg",)),
        ("<svg><text>drawn</text></svg>", ()),
    ],
)  # fmt: skip
def test_addresses_of_a_picture_best_first(html, sources):
    result = walk(page(html))
    assert [image.sources for image in result.images] == [sources]
    assert not result.blocks


@pytest.mark.parametrize("html", ["<img>", "<img src=''>", "<input type=text src=x.png>", "<object data=film.swf>"])
def test_no_picture(html):
    assert walk(page(html)).images == []


def test_statements_of_the_page():
    head = """<base href="http://a.example/b/"><meta name=robots content="noai"><link rel=license href="http://l.example">
    <link rel=canonical href="http://c.example/p">"""
    result = walk(page("<p>x", head=head))
    assert (result.title, result.language, result.robots) == ("How to bake bread", "en", "noai")
    assert (result.base, result.licence, result.canonical) == (
        "http://a.example/b/",
        "http://l.example",
        "http://c.example/p",
    )


def test_a_hundred_thousand_nodes_and_deep_nesting_end_quickly():
    started = time.process_time()
    with pytest.raises(TooMuch) as many:
        walk(page("<p>x</p>" * 100_000))
    assert (many.value.rule, many.value.value) == ("too_many_nodes", 50_001)
    with pytest.raises(TooMuch) as deep:
        walk(page("<div>" * 100_000))
    assert deep.value.rule == "too_deep"
    walk(page("<table><tr><td>" * 60), max_nodes=200_000)
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    "html",
    [
        "",
        "<",
        "\x00",
        "<p" * 5000,
        "<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><p>&b;</p>",
        "<p>&#xD800;&#0;</p>",
    ],
)
def test_broken_pages_do_not_break_anything(html):
    text = "".join(block.text for block in walk(decode_page(html.encode())).blocks)
    assert "aaaa" not in text
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("Käse".encode(), "", "Käse"),
        ("Käse".encode("latin-1"), "", "Käse"),
        ("Käse".encode(), "text/html; charset=iso-8859-1", "Käse"),
        ("“Käse”".encode("cp1252"), "text/html; charset=ISO-8859-1", "“Käse”"),
        ("Käse".encode("utf-16"), "", "Käse"),
        ("сыр".encode("koi8-r"), "text/html; charset=koi8-r", "сыр"),
        ("сыр".encode("cp1251"), "text/html; charset=x-cp1251", "сыр"),  # a label that only browsers know
        ("똠양꿍".encode("cp949"), "text/html; charset=euc-kr", "똠양꿍"),  # as browsers read EUC-KR
        (b'<meta charset="shift_jis">' + "チーズ".encode("shift_jis"), "", '<meta charset="shift_jis">チーズ'),
        (b"+ADw-script+AD4- \xff", "text/html; charset=utf-7", "+ADw-script+AD4- ÿ"),
        (b"abc\xff", "text/html; charset=zlib", "abcÿ"),
        (b"a\x00b\x08c", "", "abc"),
    ],
)
def test_encodings(body, content_type, text):
    assert decode_page(body, content_type) == text


def test_mixed_encodings_are_measured():
    text = decode_page("Käse ".encode() * 9 + "Käse".encode("latin-1"), "text/html; charset=utf-8")
    assert garbled(text) == pytest.approx(1 / 49)
