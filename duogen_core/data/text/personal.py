"""Personal data in text: e-mail addresses, phone numbers and IP addresses become [email], [phone] and [ip].

Phone numbers are what is written like one: with a + and a country, with brackets round the area, or in the groups of
three, three and four digits. Dates, versions, prices and long numbers stay. Only public IP addresses go: 192.168.0.1 in
a guide to a router is the guide's content; and four small numbers go only where the words before them are of networks,
since sections and versions are written like that too.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence

EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64}(?:@|\s?[\[(]\s?at\s?[\])]\s?)[\w-]{1,63}(?:\.[\w-]{1,63}){0,4}"
    r"(?:\.|\s?[\[(]\s?dot\s?[\])]\s?)[A-Za-z]{2,24}\b",
    re.IGNORECASE,
)
PHONE = re.compile(
    r"(?<![\w.+/-])(?:"
    r"\+\d{1,3}(?:[ .()/-]{0,2}\d){7,12}"
    r"|(?:1[ .-])?\(\d{2,5}\) ?\d{2,4}[ .-]?\d{3,4}(?:[ .-]?\d{2,4})?"
    r"|(?:1[ .-])?\d{3}([ .-])\d{3}\1\d{4}"
    r"|(?:0|00)\d{1,4}[ /-]\d{3,4}[ -]?\d{3,5}"
    r")(?![\w/-]|\.\d)"
)
IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){3,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE)

VERSION = re.compile(r"(?:version|release|v\.?|ver\.?)\s*$", re.IGNORECASE)
NETWORK = re.compile(r"\b(?:ip|address|addresses|host|server|dns|ping|ssh|from|gateway|proxy)\b|://", re.IGNORECASE)


def remove_personal(text: str, kinds: Sequence[str]) -> tuple[str, Counter[str]]:
    """Returns the text without personal data of these kinds, and how many of each were taken out."""
    found: Counter[str] = Counter()

    def put(kind: str):
        def replace(match: re.Match[str]) -> str:
            if kind == "ip" and not _is_address(match):
                return match.group()
            found[kind] += 1
            return f"[{kind}]"

        return replace

    if "email" in kinds and ("@" in text or "at" in text):
        text = EMAIL.sub(put("email"), text)
    if "ip" in kinds:  # before phone numbers, whose groups of digits an address could be taken for
        text = IPV6.sub(put("ip"), IPV4.sub(put("ip"), text))
    if "phone" in kinds:
        text = PHONE.sub(put("phone"), text)
    return text, found


def _is_address(match: re.Match[str]) -> bool:
    """Tells a public address from the number of a version or a section (### 3.12.1.1.)."""
    text, before = match.group(), match.string[max(match.start() - 40, 0) : match.start()]
    try:
        if not ipaddress.ip_address(text).is_global:
            return False
    except ValueError:
        return False
    if ":" in text:
        return True
    return not VERSION.search(before) and (max(map(int, text.split("."))) >= 100 or bool(NETWORK.search(before)))
