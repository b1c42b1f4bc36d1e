"""Images that the walker keeps in source order, beside trafilatura, markdownify and html2text on the same pages.

    python tests/bench/web_walker.py [--browser chromium] [--every N]     needs the material of web_material.py

The reference is what a browser shows: every image that is loaded and has a place on the page, asked for in the browser
itself; without --browser, every <img> that html.parser sees. Also: the pages of GIMP help with at least two
real pictures (150x100 and larger) that the engine finds, beside a count by html.parser and the files' headers.
"""

from __future__ import annotations

import argparse
import json
import posixpath
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import checkout  # noqa: F401
from PIL import Image
from web_material import GIMP, GNUCASH, folder

from duogen_core.data.runs.presets import load_preset
from duogen_core.data.web.engine import WebEngine
from duogen_core.data.web.inputs import open_inputs
from duogen_core.data.web.walker import walk

MARKDOWN_IMAGE = re.compile(r"!\[[^\]]*\]\(<?([^)\s>]+)")
ASK = """<!doctype html><pre id=out></pre><script>
const pages = PAGES, found = {};
function next(k) {
  if (k == pages.length) { document.getElementById('out').textContent = JSON.stringify(found); document.title = 'done'; return; }
  const frame = document.createElement('iframe');
  frame.width = 1200; frame.height = 800;
  frame.onload = () => {
    const images = [...frame.contentDocument.images];
    found[pages[k]] = images.filter(i => i.naturalWidth > 0 && i.getClientRects().length > 0).map(i => i.getAttribute('src'));
    frame.remove(); next(k + 1);
  };
  frame.src = pages[k];
  document.body.append(frame);
}
onload = () => next(0);
</script>"""  # noqa: E501


class Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "img" and dict(attrs).get("src"):
            self.found.append(dict(attrs)["src"])


def by_parser(pages: Sequence[Path]) -> dict[Path, list[str]]:
    found = {}
    for page in pages:
        images = Images()
        images.feed(page.read_text("utf-8"))
        found[page] = images.found
    return found


def by_browser(pages: Sequence[Path], browser: str) -> dict[Path, list[str]]:
    with tempfile.TemporaryDirectory() as place:
        ask = Path(place, "ask.html")
        ask.write_text(ASK.replace("PAGES", json.dumps([page.as_uri() for page in pages])), "utf-8")
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            f"--user-data-dir={place}",
        ]
        flags += ["--virtual-time-budget=100000000", "--dump-dom"]
        run = subprocess.run([browser, *flags, ask.as_uri()], capture_output=True, text=True, check=True)
    text = re.search(r"<pre id=\"out\">(.*?)</pre>", run.stdout, re.DOTALL)
    found = json.loads(unescape(text.group(1)))
    return {page: found[page.as_uri()] for page in pages}


def tools() -> dict[str, Callable[[str], list[str]]]:
    import html2text
    import markdownify
    import trafilatura

    def in_markdown(text: str | None) -> list[str]:
        return MARKDOWN_IMAGE.findall(text or "")

    inline = ["td", "th", "li", "p", "a", "h1", "h2", "h3", "h4", "div", "span", "dt", "dd"]
    plain = html2text.HTML2Text()
    plain.body_width = 0
    return {
        "this walker": lambda html: [image.sources[-1] for image in walk(html).images],
        "trafilatura": lambda html: in_markdown(
            trafilatura.extract(html, include_images=True, output_format="markdown")
        ),
        "trafilatura, favor_recall": lambda html: in_markdown(
            trafilatura.extract(html, include_images=True, output_format="markdown", favor_recall=True)
        ),
        "markdownify": lambda html: in_markdown(markdownify.markdownify(html)),
        "markdownify, inline images": lambda html: in_markdown(
            markdownify.markdownify(html, keep_inline_images_in=inline)
        ),
        "html2text": lambda html: in_markdown(plain.handle(html)),
    }


def in_order(reference: Sequence[str], found: Sequence[str]) -> int:
    """The length of the longest common subsequence, by the files' names."""
    a, b = ([posixpath.basename(unquote(source)) for source in each] for each in (reference, found))
    row = [0] * (len(b) + 1)
    for x in a:
        previous = 0
        for k, y in enumerate(b, 1):
            previous, row[k] = row[k], previous + 1 if x == y else max(row[k], row[k - 1])
    return row[-1]


def compare(pages: Sequence[Path], browser: str | None) -> None:
    reference = by_browser(pages, browser) if browser else by_parser(pages)
    total = sum(map(len, reference.values()))
    print(f"{pages[0].parent.name}: {len(pages)} pages, {total} images")
    for name, tool in tools().items():
        started, kept = time.process_time(), 0
        for page in pages:
            kept += in_order(reference[page], tool(page.read_text("utf-8")))
        spent = (time.process_time() - started) / len(pages) * 1000
        print(f"  {name:28} {kept:5} kept in order, {kept / total:7.2%}, {spent:5.1f} ms a page")


def real_pictures(pages: Sequence[Path]) -> None:
    """Pages with two pictures of 150x100 or more: as the engine's own rules find them, and counted independently."""
    counted = 0
    for page, sources in by_parser(pages).items():
        sizes = [Image.open(page.parent / unquote(source)).size for source in sources]
        counted += sum(width >= 150 and height >= 100 for width, height in sizes) >= 2
    found = 0
    any_page = [
        "page.languages=[]",
        "page.min_words=0",
        "page.max_linked=1",
        "page.max_repeated=1",
        "page.min_pictures=0",
    ]
    with WebEngine(load_preset("web", settings=any_page)) as engine:
        input_ = open_inputs([str(pages[0].parent)])[0]
        too_small = {"icon", "small", "region", "narrow", "low", "missing"}
        for page in pages:
            judged = engine.page(input_, page.name).judged.values()
            found += sum(each.verdict is None or each.verdict.rule not in too_small for each in judged) >= 2
    print(f"pages with two real pictures: {found} by the engine, {counted} counted independently")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--browser", metavar="CHROMIUM")
    parser.add_argument("--every", type=int, default=1, metavar="N")
    args = parser.parse_args()
    for manual in (GIMP, GNUCASH):
        compare(sorted((folder() / manual).glob("*.html"))[:: args.every], args.browser)
    real_pictures(sorted((folder() / GIMP).glob("*.html"))[:: args.every])
