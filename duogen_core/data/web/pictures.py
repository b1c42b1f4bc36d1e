"""The pictures of a page: finds, decodes and judges them. ImageRef -> Judged.

Each address of a picture is tried until one gives a picture that can be read. Then the rules are asked in order; the
first that says no counts, and each says by what value it decides:
    before the pixels are known   region (navigation, places of adverts), advert (addresses, stated sizes)
    by the decoder's facts        advert (sizes of the trade), icon, small
    by the pixels                 blank, code, then by class narrow, low, aspect; nsfw if there is a model for it

Pictures that stand on many pages, as icons do, are decoded once: what is known of the last ones is kept, by the hash of
their bytes. Advertisers' hosts may come from a file that the user names (preset advert.hosts): a hosts file, or a
filter list such as EasyList, of which only entries that stand for a whole host count: ||host^ with at most the options
third-party, popup and image. No list comes with this project.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from duogen_core.data.pictures.classing import Nsfw, class_of, code_share
from duogen_core.data.pictures.decoding import Decoder
from duogen_core.data.pictures.duplicates import Fingerprint, fingerprints_of
from duogen_core.data.runs.presets import Preset
from duogen_core.data.web.page import Found, ImageRef, Input, Page, Verdict, Walk
from duogen_core.errors import DuoGenError

ICON_NAMES = re.compile(
    r"(?:^|[/_.-])(?:icons?|logos?|sprites?|avatars?|badges?|bullets?|emoji|smil(?:ey|ies)|favicon|spacer|buttons?|"
    r"btn|arrows?|spinner|loading|gravatar)(?=[/_.\d-]|$)",
    re.IGNORECASE,
)
AD_HOSTS = re.compile(
    r"(?:^|\.)(?:doubleclick\.net|googlesyndication\.com|googleadservices\.com|adservice\.google\.[a-z.]+|adnxs\.com|"
    r"amazon-adsystem\.com|taboola\.com|outbrain\.com|criteo\.(?:com|net)|scorecardresearch\.com|quantserve\.com|"
    r"advertising\.com|pubmatic\.com|rubiconproject\.com|zedo\.com|media\.net|moatads\.com|adform\.net)$"
)
AD_HOST_NAMES = re.compile(r"^(?:ads?\d*|adserver|adimg|banners?)\.")
AD_PATHS = re.compile(r"/(?:ads?|adverts?|advertis(?:ing|ements?)|banner-?ads?|sponsors?|adserver)/", re.IGNORECASE)
AD_SIZES = frozenset(
    {(728, 90), (468, 60), (300, 250), (336, 280), (160, 600), (120, 600), (300, 600), (320, 50), (320, 100), (970, 90)}
    | {(970, 250), (234, 60), (120, 240), (125, 125), (250, 250), (200, 200), (300, 1050), (88, 31)}
)
HOST = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)+"
FILTER = re.compile(rf"\|\|({HOST})\^(?:\$(?:third-party|popup|image|all|doc|document|,)+)?$")
HOSTS_LINE = re.compile(rf"(?:(?:0\.0\.0\.0|127\.0\.0\.1)\s+)?({HOST})\s*(?:#.*)?$")
REMEMBERED = 2000  # refused pictures
HELD_BYTES = 48 * 2**20  # of pixels


@dataclass
class Seen:
    """A decoded picture and what is measured of it; each measure is taken when a rule first needs it."""

    facts: dict[str, Any]
    pixels: np.ndarray = field(repr=False)
    nsfw: float | None = None  # where there is a model for it

    @property
    def size(self) -> tuple[int, int]:
        return self.facts["width"], self.facts["height"]

    @cached_property
    def kind(self) -> tuple[str, float]:
        return class_of(self.pixels)

    @cached_property
    def code(self) -> tuple[float, str]:
        return code_share(self.pixels)

    @cached_property
    def fingerprints(self) -> tuple[Fingerprint, ...]:
        return fingerprints_of(self.pixels)

    def drop_fingerprints(self) -> None:
        """Frees what is only compared within a page: it is larger than many a picture."""
        self.__dict__.pop("fingerprints", None)

    @cached_property
    def one_colour(self) -> float:
        """Returns the share of the picture that is its most frequent colour, in steps of 8."""
        codes = (self.pixels[::2, ::2] >> 3).astype(np.int32)
        counts = np.bincount((codes[..., 0] << 10 | codes[..., 1] << 5 | codes[..., 2]).ravel())
        return float(counts.max() / counts.sum())


@dataclass
class Judged:
    """A picture of a page after the rules. verdict: the rule that refused it, or None; then `seen` is there."""

    ref: ImageRef
    verdict: Verdict | None
    url: str = ""
    sha256: str = ""
    facts: dict[str, Any] | None = None
    seen: Seen | None = None

    def log(self) -> dict[str, Any]:
        """Returns what the run's log says of it."""
        entry: dict[str, Any] = {"source": self.ref.sources[0][:200] if self.ref.sources else ""}
        if self.facts and "width" in self.facts:
            entry["size"] = [self.facts["width"], self.facts["height"]]
        if self.sha256:
            entry["sha256"] = self.sha256
        if self.seen and "kind" in self.seen.__dict__:  # only if a rule came to ask for it
            entry["class"], entry["certainty"] = self.seen.kind
        if self.seen and self.seen.nsfw is not None:
            entry["nsfw"] = self.seen.nsfw
        return {**entry, **({"rule": self.verdict.rule, "value": self.verdict.value} if self.verdict else {})}


class Pictures:
    def __init__(self, preset: Preset, decoder: Decoder) -> None:
        self.preset, self.decoder = preset, decoder
        self.refused: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.held: OrderedDict[str, Seen] = OrderedDict()
        self.held_bytes = 0
        self.nsfw = Nsfw(preset.nsfw) if preset.nsfw["model"] else None

    def judge(self, ref: ImageRef, page: Page, walk: Walk, input_: Input) -> Judged:
        if (verdict := before_loading(ref, page.url, self.preset)) is not None:
            return Judged(ref, verdict)
        refused: Judged | None = None
        for source in ref.sources:
            found = self._bytes(source, page, walk, input_)
            if found.rule:
                if refused is None or not refused.sha256:  # a file that cannot be read says more than none
                    refused = Judged(ref, Verdict(found.rule, False, found.value), found.url)
                continue
            sha256 = hashlib.sha256(found.data).hexdigest()
            facts, seen = self._decode(sha256, found.data)
            if seen is not None:
                verdict = by_facts(ref, facts, page.url, self.preset)
                verdict = verdict or by_pixels(seen, self.preset) or self._by_model(seen)
                self._hold(sha256, seen)
                return Judged(ref, verdict, found.url, sha256, facts, seen)
            if refused is None or not refused.sha256:
                # Its size was read before a rule of the decoder refused it, and says more.
                verdict = by_facts(ref, facts, page.url, self.preset) if "width" in facts else None
                verdict = verdict or Verdict(facts["rule"], False, facts.get("format", ""))
                refused = Judged(ref, verdict, found.url, sha256, facts)
        return refused or Judged(ref, Verdict("missing", False, "no address"))

    def _bytes(self, source: str, page: Page, walk: Walk, input_: Input) -> Found:
        try:
            found = input_.picture(page, walk, source, self.preset.load["max_bytes"])
        except DuoGenError as error:  # its place in the input is damaged
            return Found(rule="unreadable", value=str(error)[:300])
        if not found.rule and len(found.data) > self.preset.load["max_bytes"]:
            return Found(url=found.url, rule="too_many_bytes", value=len(found.data))
        return found

    def _decode(self, sha256: str, data: bytes) -> tuple[dict[str, Any], Seen | None]:
        if sha256 in self.held:
            self.held.move_to_end(sha256)
            return self.held[sha256].facts, self.held[sha256]
        if sha256 in self.refused:
            self.refused.move_to_end(sha256)
            return self.refused[sha256], None
        facts, pixels = self.decoder.decode(data)
        if pixels is None:
            self.refused[sha256] = facts
            if len(self.refused) > REMEMBERED:
                self.refused.popitem(last=False)
            return facts, None
        return facts, Seen(facts, pixels)

    def _by_model(self, seen: Seen) -> Verdict | None:
        """Asks the last rule, the most expensive one."""
        if self.nsfw is None:
            return None
        if seen.nsfw is None:
            seen.nsfw = self.nsfw.score(seen.pixels)
        return Verdict("nsfw", False, seen.nsfw) if seen.nsfw >= self.preset.nsfw["threshold"] else None

    def _hold(self, sha256: str, seen: Seen) -> None:
        if sha256 not in self.held:
            self.held_bytes += seen.pixels.nbytes
        self.held[sha256] = seen
        while self.held_bytes > HELD_BYTES and len(self.held) > 1:
            self.held_bytes -= self.held.popitem(last=False)[1].pixels.nbytes


def region(ref: ImageRef, preset: Preset) -> Verdict:
    if ref.region == "ad":
        return Verdict("advert", False, "its place on the page")
    return Verdict("region", not ref.region or ref.region in preset.picture["keep_regions"], ref.region)


def advert(ref: ImageRef, page_url: str, preset: Preset) -> Verdict:
    """Decides by hosts and paths of adverts, what the page says of its links, stated sizes, and a tracker's size."""
    for address in (*ref.sources, ref.link):
        host = _host(address)
        if host and (AD_HOSTS.search(host) or AD_HOST_NAMES.search(host) or in_list(host, preset.advert["hosts"])):
            return Verdict("advert", False, host)
        if AD_PATHS.search(_path(address)):
            return Verdict("advert", False, _path(address)[:100])
    if ref.paid:
        return Verdict("advert", False, "rel=sponsored")
    if (ref.width, ref.height) in AD_SIZES and leads_away(ref, page_url):
        return Verdict("advert", False, f"{ref.width}x{ref.height} leads to {_host(ref.link)}")
    stated = [value for value in (ref.width, ref.height) if value is not None]
    if stated and min(stated) <= preset.picture["tracker_side"]:
        return Verdict("advert", False, "tracker")
    return Verdict("advert", True)


def advert_size(ref: ImageRef, facts: dict[str, Any], page_url: str) -> Verdict:
    """Decides by the trade's sizes too, where the page does not state them."""
    width, height = facts["width"], facts["height"]
    keep = (width, height) not in AD_SIZES or not leads_away(ref, page_url)
    return Verdict("advert", keep, f"{width}x{height} leads to {_host(ref.link)}")


def leads_away(ref: ImageRef, page_url: str) -> bool:
    """Whether a click on the picture leads to another site."""
    return bool(_host(ref.link)) and _host(ref.link) != _host(page_url)


def icon(ref: ImageRef, facts: dict[str, Any], preset: Preset) -> Verdict:
    """Decides by size, real or stated by the page; up to icon_large also by transparency and by name."""
    rules, (width, height) = preset.picture, (facts["width"], facts["height"])
    shorter, longer = min(width, height), max(width, height)
    if longer <= rules["icon_side"]:
        return Verdict("icon", False, longer)
    if ref.width is not None and ref.height is not None and max(ref.width, ref.height) <= rules["icon_side"]:
        return Verdict("icon", False, max(ref.width, ref.height))
    if longer <= rules["icon_large"] and longer <= 1.5 * shorter:
        if facts.get("transparent", 0.0) >= rules["icon_transparent"]:
            return Verdict("icon", False, f"{facts['transparent']:.2f} transparent")
        if any(found := [ICON_NAMES.search(_path(source)) for source in ref.sources]):
            return Verdict("icon", False, next(each.group().strip("/_.-") for each in found if each))
    return Verdict("icon", True, longer)


def small(facts: dict[str, Any], preset: Preset) -> Verdict:
    """Refuses what is smaller than any class allows."""
    least = min(preset.picture["min_width"].values()), min(preset.picture["min_height"].values())
    keep = facts["width"] >= least[0] and facts["height"] >= least[1]
    return Verdict("small", keep, f"{facts['width']}x{facts['height']}")


def blank(seen: Seen, preset: Preset) -> Verdict:
    return Verdict("blank", seen.one_colour < preset.picture["blank_share"], round(seen.one_colour, 4))


def code(seen: Seen, preset: Preset) -> Verdict:
    share, kind = seen.code
    return Verdict("code", share < preset.picture["code_share"], f"{share:g} {kind}".strip())


def shape(seen: Seen, preset: Preset) -> Iterator[Verdict]:
    """Decides by size and aspect, by class: a toolbar is long, a photograph is not."""
    (width, height), (kind, _) = seen.size, seen.kind
    aspect = round(max(width, height) / min(width, height), 2)
    yield Verdict("narrow", width >= preset.picture["min_width"][kind], width)
    yield Verdict("low", height >= preset.picture["min_height"][kind], height)
    yield Verdict("aspect", aspect <= preset.picture["max_aspect"][kind], aspect)


def before_loading(ref: ImageRef, page_url: str, preset: Preset) -> Verdict | None:
    """Returns the first rule that refuses a picture by what the page says of it."""
    if ref.kind == "svg":
        return Verdict("svg", False, "inline")
    return next((v for v in (region(ref, preset), advert(ref, page_url, preset)) if not v.keep), None)


def by_facts(ref: ImageRef, facts: dict[str, Any], page_url: str, preset: Preset) -> Verdict | None:
    verdicts = (advert_size(ref, facts, page_url), icon(ref, facts, preset), small(facts, preset))
    return next((verdict for verdict in verdicts if not verdict.keep), None)


def by_pixels(seen: Seen, preset: Preset) -> Verdict | None:
    def verdicts() -> Iterator[Verdict]:
        yield blank(seen, preset)
        yield code(seen, preset)
        yield from shape(seen, preset)

    return next((verdict for verdict in verdicts() if not verdict.keep), None)


def _host(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def _path(address: str) -> str:
    try:
        return "" if address[:5].lower() == "data:" else urlsplit(address).path
    except ValueError:
        return ""


def in_list(host: str, file: str) -> bool:
    """Tells whether the host, or one that it belongs to, is in the file; False where no file is named."""
    if not file:
        return False
    hosts, labels = read_hosts(file), host.split(".")
    return any(".".join(labels[start:]) in hosts for start in range(len(labels) - 1))


@lru_cache(maxsize=4)
def read_hosts(file: str) -> frozenset[str]:
    try:
        lines = Path(file).read_text("utf-8", "replace").lower().splitlines()
    except OSError as error:
        raise DuoGenError(f"advert.hosts={file} cannot be read: {error.strerror or error}.") from None
    found = (FILTER.match(line.strip()) or HOSTS_LINE.match(line.strip()) for line in lines)
    hosts = frozenset(match.group(1) for match in found if match)
    if not hosts:
        raise DuoGenError(f"advert.hosts={file} holds no host; expected a hosts file, or entries such as ||host^.")
    return hosts
