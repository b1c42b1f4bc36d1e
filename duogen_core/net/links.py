"""Addresses as pages write them: made absolute, and refused when no page on the web may lead there.

Refused: every scheme but http, https and data; user names in addresses; hosts that are private, local or reserved, as
numbers in any notation, or by name. A name is not looked up here, since nothing is fetched.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

LOCAL_NAMES = ("localhost", "local", "localdomain", "internal", "intranet", "lan", "home", "corp", "home.arpa")
MAX_CHARACTERS = 4000  # of an address that is not data:
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address stands in its last part
SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")


def absolute(address: str, base: str) -> str:
    """Returns the address as seen from the page at `base`, without a fragment; '' where there is none."""
    address = re.sub(r"[\t\r\n]", "", address.strip())
    if address[:5].lower() == "data:":
        return address
    try:
        parts = urlsplit(urljoin(base, address.replace("\\", "/")))
        return urlunsplit(parts._replace(fragment="", path=quote(parts.path, safe="/%:@!$&'()*+,;=~-._")))
    except ValueError:
        return ""


def refusal(address: str) -> str:
    """Says why this absolute address is not followed, or nothing."""
    if len(address) > MAX_CHARACTERS:
        return "too long"
    try:
        parts = urlsplit(address)
        host, user, _ = parts.hostname or "", parts.username, parts.port
    except ValueError:
        return "not an address"
    if parts.scheme not in ("http", "https"):
        return f"{parts.scheme[:20] or 'no'} scheme"
    if user is not None:
        return "user name"
    return "private host" if is_private(host) else ""


def is_private(host: str) -> bool:
    """Tells whether a host is not one of the public internet, as far as its name says."""
    host = unquote(host).rstrip(".").lower()
    if (address := _ip_address(host)) is not None:
        inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
        if address.version == 6 and address in NAT64:
            inner = ipaddress.ip_address(int(address) & 0xFFFFFFFF)
        return not (address.is_global and inner.is_global) or address.is_multicast
    labels = host.split(".")
    return len(labels) < 2 or labels[-1] in LOCAL_NAMES or host.endswith(".home.arpa")


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        pass
    if re.fullmatch(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+)){0,3}", host):
        try:  # 2130706433, 0x7f.1 and 0177.0.0.1 are all 127.0.0.1 to a browser
            return ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, ValueError):
            return ipaddress.ip_address(0)  # a number that is no address: private
    return None


def scheme_of(address: str) -> str:
    """Returns the scheme of an address as written in a page, or '' for one that is relative."""
    match = SCHEME.match(address.strip())
    return match.group(1).lower() if match else ""
