"""What a page says about itself: title, language, licence, wishes to robots, base and canonical address."""

from __future__ import annotations

from typing import Any

MOST = 500  # characters of any of them
RIGHTS = ("dc.rights", "dcterms.rights", "dcterms.license", "copyright", "rights", "license")
ROBOTS = ("robots", "googlebot")


def statements(root: Any) -> dict[str, str]:
    """The fields of Walk that are about the whole page."""
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
