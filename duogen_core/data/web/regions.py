"""Which parts of a page are no content: navigation, headers and footers, adverts; and what a visitor cannot see.

`region_of(element)` goes by the tag, the role and the names in class and id: whole names (GIMP's "guimenu" is no menu),
and for adverts the words that names are made of, since every site has names of its own ("sideBarAd-2", "ad_box300").
`is_hidden(element)` goes by attributes and the style in the element; style sheets are not read.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

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
    """The name of the region that this element begins, or nothing."""
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
    """The region that a name in class or id stands for. "no-ads" and "ad-free" are said of pages, not of adverts."""
    if name.lower() in REGIONS:
        return REGIONS[name.lower()]
    words = {word.lower() for word in WORDS.findall(name[:200])}
    return "ad" if words & AD_WORDS and not words & NO_AD else ""


def is_hidden(element: Any) -> bool:
    """Whether a browser shows nothing of this element, as far as the element itself says."""
    if element.get("hidden") is not None and (element.get("hidden") or "").lower() != "until-found":
        return True
    style = element.get("style")
    return bool(style) and INVISIBLE.search(style) is not None
