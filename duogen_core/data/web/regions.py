"""Which parts of a page are no content: navigation, headers and footers, adverts; and what a visitor cannot see.

`region_of(element)` goes by the tag, the role and the names in class and id (whole names only: GIMP's "guimenu" is no
menu). `is_hidden(element)` goes by attributes and the style in the element; style sheets are not read.
"""

from __future__ import annotations

import re
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
    "ad": "ad ads adv advert adverts advertisement advertising adsbygoogle ad-slot ad-banner banner-ad ad-container "
    "sponsor sponsored sponsors promo dfp taboola outbrain",
}
REGIONS = {name: region for region, names in NAMES.items() for name in names.split()}
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
            if name.lower() in REGIONS:
                return REGIONS[name.lower()]
    return ""


def is_hidden(element: Any) -> bool:
    """Whether a browser shows nothing of this element, as far as the element itself says."""
    if element.get("hidden") is not None and (element.get("hidden") or "").lower() != "until-found":
        return True
    style = element.get("style")
    return bool(style) and INVISIBLE.search(style) is not None
