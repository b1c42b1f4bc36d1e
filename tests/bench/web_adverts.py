"""How well adverts are told from pictures of the page: hosts and names of EasyList, banners planted in real pages.

    python tests/bench/web_adverts.py [--more FOLDER]     needs gimp-help-en, gnucash-docs and
                                                          webext-ublock-origin-firefox of web_material.py

names: 2,000 of EasyList's class names and ids, and all names in the manuals' pages (and in HTML under FOLDER), which
hold no adverts. hosts: 2,000 of its hosts, by the engine's own short list and with advert.hosts set to EasyList.
planted: banners of the trade's sizes at random places of the manuals' pages, 200 of each way that a page may show one.
pictures: how many of the manuals' own pictures are claimed to be adverts.
"""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path

import checkout  # noqa: F401
from PIL import Image
from web_material import GIMP, GNUCASH, folder

from duogen_core.data.runs.presets import load_preset
from duogen_core.data.web.page import ImageRef
from duogen_core.data.web.pictures import AD_SIZES, advert, advert_size, read_hosts
from duogen_core.data.web.walker import region_named, walk

SEED = 31
PAGE = "http://manual.example.org/page.html"
NAME = re.compile(r"""(?:class|id)\s*=\s*["']([^"']{1,300})["']""")
BLOCK = re.compile(r"</(?:p|li|h[1-6]|div)>")


def is_advert(ref: ImageRef, size: tuple[int, int], preset) -> bool:
    if ref.region == "ad" or not advert(ref, PAGE, preset).keep:
        return True
    return not advert_size(ref, {"width": size[0], "height": size[1]}, PAGE).keep


def size_of(page: Path, ref: ImageRef) -> tuple[int, int]:
    try:
        with Image.open(page.parent / ref.sources[0]) as image:
            return image.size
    except (OSError, IndexError):
        return ref.width or 0, ref.height or 0


def names(easylist: Path, pages: list[str]) -> list[str]:
    rules = (line.strip() for line in easylist.read_text("utf-8").splitlines())
    found = [line[3:] for line in rules if re.fullmatch(r"##[.#][A-Za-z0-9_-]+", line)]
    chosen = random.Random(SEED).sample(found, 2000)
    known = sum(region_named(name) == "ad" for name in chosen)
    print(f"names of EasyList known: {known / len(chosen):.3f} of {len(chosen):,} (of {len(found):,})")
    used = {name for page in pages for match in NAME.finditer(page) for name in match.group(1).split()}
    taken = sorted(name for name in used if region_named(name) == "ad")
    print(f"names in pages without adverts taken for one: {len(taken)} of {len(used):,}", *taken[:20])
    return found


def hosts(easylist: Path, plain, listed) -> list[str]:
    found = sorted(read_hosts(str(easylist)))
    chosen = random.Random(SEED).sample(found, 2000)
    for words, preset in (("without a list", plain), ("with EasyList", listed)):
        known = sum(not advert(ImageRef((f"https://cdn.{host}/x.png",)), PAGE, preset).keep for host in chosen)
        print(f"hosts of EasyList known {words}: {known / len(chosen):.3f} of {len(chosen):,} (of {len(found):,})")
    return found


def planted(pages: list[str], names: list[str], hosts: list[str], plain, listed) -> None:
    rng = random.Random(SEED)
    sizes = sorted(AD_SIZES)
    away, inside = '<a href="https://shop.example.net/buy">{}</a>', '<a href="other.html">{}</a>'
    ways = {
        "from a host of EasyList": '<img src="https://cdn.{host}/x.png">',
        "in a place named as in EasyList": '<div class="{name}"><img src="b.png"></div>',
        "size stated, leads to another site": away.format('<img src="b.png" width="{w}" height="{h}">'),
        "size in the file alone, leads to another site": away.format('<img src="b.png">'),
        "rel=sponsored, size of any picture": '<a rel="sponsored" href="/out"><img src="b.png" alt="any"></a>',
        "leads to the same site, size in the file alone": inside.format('<img src="b.png">'),
    }
    for way, markup in ways.items():
        found = {"plain": 0, "listed": 0}
        for _ in range(200):
            page, (width, height) = rng.choice(pages), rng.choice(sizes)
            place = rng.choice([match.end() for match in BLOCK.finditer(page)])
            banner = markup.format(host=rng.choice(hosts), name=rng.choice(names), w=width, h=height)
            banner = banner.replace("b.png", "planted-b.png").replace("x.png", "planted-x.png")
            size = (640, 480) if "any picture" in way else (width, height)
            for ref in walk(page[:place] + banner + page[place:]).images:
                if "planted-" in ref.sources[0]:
                    for name, preset in (("plain", plain), ("listed", listed)):
                        found[name] += is_advert(ref, size, preset)
        print(f"planted, {way}: {found['plain'] / 200:.3f} found, {found['listed'] / 200:.3f} with EasyList")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--more", type=Path, help="further HTML without adverts, for the names")
    more = parser.parse_args().more
    easylist = next((folder() / "webext-ublock-origin-firefox").rglob("easylist.txt"))
    plain, listed = load_preset("web"), load_preset("web", settings=[f"advert.hosts={easylist}"])
    files = [file for manual in (GIMP, GNUCASH) for file in sorted((folder() / manual).rglob("*.html"))]
    pages = [file.read_text("utf-8", "replace") for file in files]
    extra = (
        [file.read_text("utf-8", "replace") for file in sorted(more.rglob("*.htm*")) if file.is_file()] if more else []
    )
    found_names, found_hosts = names(easylist, pages + extra), hosts(easylist, plain, listed)
    planted([page for page in pages if BLOCK.search(page)], found_names, found_hosts, plain, listed)
    refs = [(file, ref) for file, page in zip(files, pages) for ref in walk(page, 10**6, 1000).images]
    claimed = [ref for file, ref in refs if is_advert(ref, size_of(file, ref), listed)]
    print(f"pictures of the manuals claimed to be adverts: {len(claimed)} of {len(refs):,}", *claimed[:5])


if __name__ == "__main__":
    main()
