"""The DOM walker: a page's HTML -> text and images in source order, tables and captions included.

Main-text extractors lose a third and more of the step pictures of how-to pages; this keeps every image that a browser
would show and marks what stands in navigation, adverts and the like, for the rules to judge. Text comes out as plain
Markdown (`block_writer`); links lose their addresses. Iterative, within the caps of the preset; the parser reads
nothing but the bytes it is given.

The tag, the role and the names in class and id tell which parts of a page are no content (`region_of`): whole names
(GIMP's "guimenu" is no menu), and for adverts the words that names are made of, since every site has names of its
own ("sideBarAd-2", "ad_box300"). What a visitor cannot see (`is_hidden`) is told by attributes and the style in the
element; style sheets are not read. What a page says about itself (`statements`) goes into the Walk too.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from duogen_core.data.web.block_writer import BlockWriter
from duogen_core.data.web.image_elements import image_of
from duogen_core.data.web.page import Block, ImageRef, Walk
from duogen_core.errors import DuoGenError, MissingPackage

HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCK_TAGS = (
    "address article aside blockquote body center dd details dialog dir div dl dt fieldset figure footer form header "
    "hgroup hr legend main menu nav ol p section summary table tbody tfoot thead ul"
)
BLOCKS = frozenset(_BLOCK_TAGS.split())
LISTS = frozenset({"ul", "ol", "menu", "dir"})
FIGURES = frozenset({"figure", "informalfigure", "wp-caption", "thumb", "image-caption"})
CAPTIONS = frozenset({"caption", "title", "wp-caption-text", "thumbcaption", "image-caption-text"})
SHOWN = frozenset({"img", "image", "svg", "input", "video", "object", "embed"})
LEAVES = frozenset({"svg", "video"})  # what stands inside is no text of the page
VOID = re.compile(r"<(source|track|wbr|embed|keygen|bgsound)\b([^<>]*)>", re.IGNORECASE)  # libxml2 nests in them
LAST = re.compile(r"</(?:body|html)\s*>", re.IGNORECASE)  # libxml2 reads no further, browsers do
CELL_CHARACTERS = 300  # a longer cell makes a table one that only lays out a page
LAYOUT = ("img", "table", "ul", "ol", "dl", "pre", "h1", "h2", "h3", "h4", "form", "figure", "svg", "object", "video")


class TooMuch(DuoGenError):
    """A page beyond a cap. rule and value say which."""

    def __init__(self, rule: str, value: int) -> None:
        super().__init__(f"The page is beyond a cap: {rule} ({value}).")
        self.rule, self.value = rule, value


def walk(html: str, max_nodes: int = 50_000, max_depth: int = 200) -> Walk:
    """Returns all that a page shows, in source order. Raises TooMuch beyond the caps."""
    root = parse(html)
    if root is None:
        return Walk(())
    walker = _Walker(max_nodes, max_depth)
    walker.run(root)
    return Walk(tuple(walker.items), nodes=walker.nodes, depth=walker.deepest, **statements(root))


def parse(html: str) -> Any:
    """Returns the tree of a page, or None where there is none."""
    try:
        from lxml import etree
    except ImportError:
        raise MissingPackage("Reading pages", "lxml", "data") from None
    # The page was decoded before (`encodings`), so what it states of its encoding must not count again.
    parser = etree.HTMLParser(
        encoding="utf-8", huge_tree=False, no_network=True, remove_comments=True, remove_pis=True, recover=True
    )
    html = VOID.sub(r"<\1\2></\1>", LAST.sub("", html))
    try:
        return etree.fromstring(html.encode("utf-8", "replace"), parser)
    except etree.LxmlError:
        return None


class _Walker:
    def __init__(self, max_nodes: int, max_depth: int) -> None:
        self.max_nodes, self.max_depth = max_nodes, max_depth
        self.nodes = self.deepest = 0
        self.items: list[Block | ImageRef] = []
        self.writer = BlockWriter(self.items)
        self.regions: list[str] = []
        self.links: list[tuple[str, bool]] = []  # that are open: where they lead, and whether they are paid for
        self.figures: list[int] = []  # how many items there were before each

    def run(self, root: Any) -> None:
        """Walks depth first, with a stack of our own: a page may be deeper than Python's."""
        stack = [(root, iter(root), self.start(root))]
        self.writer.add(root.text)
        while stack:
            element, children, leave = stack[-1]
            child = next(children, None)
            if child is None:
                stack.pop()
                for step in leave:
                    step()
                # lxml keeps the text behind an element as its tail; it belongs to the parent, which is still open.
                if stack:
                    self.writer.add(element.tail)
                continue
            self.count(len(stack) + 1)
            if not isinstance(child.tag, str) or child.tag in UNSEEN or is_hidden(child):
                self.writer.add(child.tail)
            elif child.tag == "noscript":
                self.fallback(child)
                self.writer.add(child.tail)
            else:
                stack.append((child, iter(()) if child.tag in LEAVES else iter(child), self.start(child)))
                if child.tag not in LEAVES:
                    self.writer.add(child.text)
        self.writer.flush()

    def count(self, depth: int) -> None:
        self.nodes += 1
        self.deepest = max(self.deepest, depth)
        if self.nodes > self.max_nodes:
            raise TooMuch("too_many_nodes", self.nodes)
        if depth > self.max_depth:
            raise TooMuch("too_deep", depth)

    def start(self, element: Any) -> list[Any]:
        """Begins an element; returns what is to be done at its end."""
        tag, writer = element.tag, self.writer
        leave: list[Any] = []
        if (region := region_of(element)) or tag in BLOCKS:
            writer.flush()
            leave.append(writer.flush)
        if region:
            self.regions.append(writer.region)
            writer.region = writer.region or region
            leave.append(self.end_region)
        classes = frozenset((element.get("class") or "").lower().split())
        if tag == "figure" or FIGURES & classes:
            self.figures.append(len(self.items))
            leave.append(self.end_figure)
        if tag in ("figcaption", "caption") or (self.figures and CAPTIONS & classes):
            writer.begin("caption")
            leave.append(writer.end)
        elif tag in SHOWN:
            self.show(self.image(element))
        elif tag == "a":
            self.links.append((element.get("href") or "", "sponsored" in (element.get("rel") or "").lower().split()))
            writer.links += 1
            leave.append(self.end_link)
        elif tag in HEADINGS:
            writer.begin("heading", "#" * HEADINGS[tag] + " ")
            leave.append(writer.end)
        elif tag in LISTS:
            writer.begin_list(element.get("start") if tag == "ol" else None, numbered=tag == "ol")
            leave.append(writer.end_list)
        elif tag == "li":
            writer.begin_item()
            leave.append(writer.end_item)
        elif tag == "pre":
            writer.begin_code()
            leave.append(writer.end_code)
        elif tag == "br":
            writer.line_break()
        elif tag == "table":
            writer.begin_table(is_data(element))
            leave.append(writer.end_table)
        elif tag == "tr":
            writer.begin_row()
            leave.append(writer.end_row)
        elif tag in ("td", "th"):
            writer.begin_cell()
            leave.append(writer.end_cell)
        return leave

    def image(self, element: Any) -> ImageRef | None:
        link, paid = self.links[-1] if self.links else ("", False)
        image = image_of(element, self.writer.region, link)
        if image is not None:
            image.paid = paid
        return image

    def show(self, image: ImageRef | None) -> None:
        if image is not None:
            self.writer.picture(image)

    def fallback(self, noscript: Any) -> None:
        """Adds a picture for visitors without scripts, most often the real address of the one just before it."""
        for element in noscript.iter("img"):
            image = self.image(element)
            self.writer.flush()
            last = self.items[-1] if self.items else None
            if image and isinstance(last, ImageRef) and last.kind == "img":
                last.sources = tuple(dict.fromkeys(image.sources + last.sources))
            elif image:
                self.writer.picture(image)

    def end_region(self) -> None:
        self.writer.region = self.regions.pop()

    def end_link(self) -> None:
        self.links.pop()
        self.writer.links -= 1

    def end_figure(self) -> None:
        self.writer.flush()
        inside = self.items[self.figures.pop() :]
        caption = " ".join(item.text for item in inside if isinstance(item, Block) and item.kind == "caption")
        for item in inside:
            if isinstance(item, ImageRef) and not item.caption:
                item.caption = caption[:1000]


def is_data(table: Any) -> bool:
    """Tells whether a table holds data, in short cells, rather than laying out a page."""
    if next(table.iter(*LAYOUT[:1], *LAYOUT[2:]), None) is not None or table.find(".//table") is not None:
        return False
    rows = [[cell for cell in row if cell.tag in ("td", "th")] for row in table.iter("tr")]
    cells = [cell for row in rows for cell in row]
    # Two columns on average, less some for cells that span several: a table of one column only lays out.
    if len(rows) < 2 or len(cells) < 2 * len(rows) * 0.8:
        return False
    return all(sum(map(len, cell.itertext())) <= CELL_CHARACTERS for cell in cells)


TAGS = {"nav": "nav", "aside": "aside", "footer": "footer", "dialog": "popup"}
ROLES = {
    "navigation": "nav",
    "banner": "header",
    "contentinfo": "footer",
    "complementary": "aside",
    "search": "search",
    "dialog": "popup",
}
NAMES = {
    "nav": "nav navbar navheader navfooter navigation nav-links menu mainmenu main-menu topnav breadcrumb breadcrumbs "
    "pagination pager skip-link toc-nav",
    "header": "site-header page-header masthead topbar",
    "footer": "site-footer page-footer footer colophon",
    "aside": "sidebar side-bar widget widget-area related related-posts recommended see-also-posts",
    "comments": "comments comment-list disqus_thread",
    "popup": "cookie cookies cookie-banner consent gdpr newsletter subscribe popup modal",
    "share": "share sharing share-buttons social social-links addtoany",
    "ad": "promo",
}
REGIONS = {name: region for region, names in NAMES.items() for name in names.split()}
_AD_WORDS = (
    "ad ads adv advert adverts advertisement advertisements advertising advertorial advertiser adsense adslot adslots "
    "adunit adunits adbox adboxes adcontainer adcontent adbanner adbanners adbar adarea adframe adheader adfooter "
    "adhead adtop adleft adright adlabel adtext adlink adlinks adholder adplace adplacement adplaceholder adspace "
    "adspot adspots adwrap adwrapper adzone adtag adsbygoogle adsbox adserver dfp doubleclick sponsor sponsors "
    "sponsored sponsorship taboola outbrain revcontent mgid sidead bannerad bannerads topad topads textad textads "
    "googlead googleads"
)
_NO_AD = "no non has with without free hide show enabled disabled blocker blocked detected"
AD_WORDS, NO_AD = frozenset(_AD_WORDS.split()), frozenset(_NO_AD.split())
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of a name: side, Bar and Ad of "sideBarAd-2"
WHOLE = frozenset({"html", "body", "main", "article", "td", "tr", "tbody"})  # never taken for a region as a whole
UNSEEN = frozenset(
    {"script", "style", "template", "head", "title", "meta", "link", "iframe", "frame", "canvas", "audio", "math"}
    | {"select", "datalist", "textarea", "map", "noframes", "noembed", "param", "source", "track", "colgroup"}
)
INVISIBLE = re.compile(
    r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|opacity\s*:\s*0(?:\.0*)?\s*(?:;|!|$)|"
    r"font-size\s*:\s*0(?:px|em|pt|%)?\s*(?:;|!|$)|(?:left|top|text-indent)\s*:\s*-\d{4,})",
    re.IGNORECASE,
)


def region_of(element: Any) -> str:
    """Returns the name of the region that this element begins, or nothing."""
    tag = element.tag
    if tag in WHOLE:
        return ""
    if tag in TAGS:
        return TAGS[tag]
    role = element.get("role")
    if role and role.strip().lower() in ROLES:
        return ROLES[role.strip().lower()]
    for attribute in ("class", "id"):
        for name in (element.get(attribute) or "").split():
            if region := region_named(name):
                return region
    return ""


@lru_cache(maxsize=20_000)
def region_named(name: str) -> str:
    """Returns the region that a name in class or id means. "no-ads" and "ad-free" describe pages, not adverts."""
    if name.lower() in REGIONS:
        return REGIONS[name.lower()]
    words = {word.lower() for word in WORDS.findall(name[:200])}
    return "ad" if words & AD_WORDS and not words & NO_AD else ""


def is_hidden(element: Any) -> bool:
    """Tells whether a browser shows nothing of this element, as far as the element itself says."""
    if element.get("hidden") is not None and (element.get("hidden") or "").lower() != "until-found":
        return True
    style = element.get("style")
    return bool(style) and INVISIBLE.search(style) is not None


MOST = 500  # characters of any of them
RIGHTS = ("dc.rights", "dcterms.rights", "dcterms.license", "copyright", "rights", "license")
ROBOTS = ("robots", "googlebot")


def statements(root: Any) -> dict[str, str]:
    """Returns the fields of Walk that are about the whole page."""
    found = dict.fromkeys(("title", "language", "licence", "robots", "base", "canonical"), "")
    found["language"] = _clean(root.get("lang") or root.get("{http://www.w3.org/XML/1998/namespace}lang"))
    wishes: list[str] = []
    for element in root.iter("title", "base", "meta", "link", "a"):
        tag, relation = element.tag, (element.get("rel") or "").lower().split()
        if tag == "title" and not found["title"]:
            found["title"] = _clean("".join(element.itertext()))
        elif tag == "base" and not found["base"]:
            found["base"] = _clean(element.get("href"))
        elif tag == "meta":
            name = (element.get("name") or element.get("property") or "").lower()
            if name in ROBOTS:
                wishes.append((element.get("content") or "").lower())
            elif name in RIGHTS and not found["licence"]:
                found["licence"] = _clean(element.get("content"))
        elif "license" in relation and element.get("href"):
            found["licence"] = _clean(element.get("href"))
        elif tag == "link" and "canonical" in relation and not found["canonical"]:
            found["canonical"] = _clean(element.get("href"))
    found["robots"] = _clean(", ".join(wishes))
    return found


def _clean(text: str | None) -> str:
    return " ".join((text or "").split())[:MOST]
