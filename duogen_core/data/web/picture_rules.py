"""Rules for pictures: each says by what value it decides. `judge` asks them in order; the first that says no counts.

Before the pixels are known: `region` (navigation, adverts' places), `advert` (addresses, stated sizes), links and files
(see `pictures`). After: `icon`, `small`, `blank`, `code`, then by class `narrow`, `low`, `aspect`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from duogen_core.data.pictures.classing import class_of
from duogen_core.data.pictures.codes import code_share
from duogen_core.data.pictures.duplicates import Look, looks_of
from duogen_core.data.web.ad_hosts import in_list
from duogen_core.data.web.page import ImageRef, Verdict
from duogen_core.data.web.preset import Preset

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


@dataclass
class Seen:
    """A decoded picture and what is measured of it, each thing when it is first asked for."""

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
    def looks(self) -> tuple[Look, ...]:
        return looks_of(self.pixels)

    def forget_looks(self) -> None:
        """They are only compared within a page, and are larger than many a picture."""
        self.__dict__.pop("looks", None)

    @cached_property
    def one_colour(self) -> float:
        """The share of the picture that is its most frequent colour, in steps of 8."""
        codes = (self.pixels[::2, ::2] >> 3).astype(np.int32)
        counts = np.bincount((codes[..., 0] << 10 | codes[..., 1] << 5 | codes[..., 2]).ravel())
        return float(counts.max() / counts.sum())


def region(ref: ImageRef, preset: Preset) -> Verdict:
    if ref.region == "ad":
        return Verdict("advert", False, "its place on the page")
    return Verdict("region", not ref.region or ref.region in preset.picture["keep_regions"], ref.region)


def advert(ref: ImageRef, page_url: str, preset: Preset) -> Verdict:
    """By the hosts and paths of adverts, by what the page says of its links, by stated sizes, by a tracker's size."""
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
    """By the trade's sizes too, where the page does not state them."""
    width, height = facts["width"], facts["height"]
    keep = (width, height) not in AD_SIZES or not leads_away(ref, page_url)
    return Verdict("advert", keep, f"{width}x{height} leads to {_host(ref.link)}")


def leads_away(ref: ImageRef, page_url: str) -> bool:
    """Whether a click on the picture leads to another site."""
    return bool(_host(ref.link)) and _host(ref.link) != _host(page_url)


def icon(ref: ImageRef, facts: dict[str, Any], preset: Preset) -> Verdict:
    """By size, as it is or as the page states it; up to icon_large also by transparency and by name."""
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
    """Smaller than any class allows."""
    least = min(preset.picture["min_width"].values()), min(preset.picture["min_height"].values())
    keep = facts["width"] >= least[0] and facts["height"] >= least[1]
    return Verdict("small", keep, f"{facts['width']}x{facts['height']}")


def blank(seen: Seen, preset: Preset) -> Verdict:
    return Verdict("blank", seen.one_colour < preset.picture["blank_share"], round(seen.one_colour, 4))


def code(seen: Seen, preset: Preset) -> Verdict:
    share, kind = seen.code
    return Verdict("code", share < preset.picture["code_share"], f"{share:g} {kind}".strip())


def shape(seen: Seen, preset: Preset) -> Iterator[Verdict]:
    """Size and aspect by class: a toolbar is long, a photograph is not."""
    (width, height), (kind, _) = seen.size, seen.kind
    aspect = round(max(width, height) / min(width, height), 2)
    yield Verdict("narrow", width >= preset.picture["min_width"][kind], width)
    yield Verdict("low", height >= preset.picture["min_height"][kind], height)
    yield Verdict("aspect", aspect <= preset.picture["max_aspect"][kind], aspect)


def before_loading(ref: ImageRef, page_url: str, preset: Preset) -> Verdict | None:
    """The first rule that refuses a picture by what the page says of it."""
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
