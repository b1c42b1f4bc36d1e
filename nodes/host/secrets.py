"""Keys of language model servers: never in a workflow, and only to the server that they are for.

A workflow is saved, shared, and written into every image, so a node has no widget for a key. It may name an environment
variable of the machine that runs ComfyUI, or leave that to ComfyUI's settings, where the user writes once

    api.openai.com=OPENAI_API_KEY, 192.168.0.5:8000=a key of its own

(setting DuoGen.Keys, or the environment variable DUOGEN_KEYS where nobody opens the settings). Who wrote a workflow is
not known: it may name any variable beside any address. So a variable goes to this machine, and to another one only
where the settings name both together. And it may write http for https: then a key goes to another machine than those of
the local network only where the settings name the port as well.

In: what the widgets hold. Out: the key, "" for none, or a DuoGenError that never repeats what may be a key.
"""

from __future__ import annotations

import ipaddress
import os
import re
from itertools import pairwise
from urllib.parse import urlsplit

from duogen_core.errors import DuoGenError

SETTING, VARIABLE = "DuoGen.Keys", "DUOGEN_KEYS"
SETTINGS = "ComfyUI's settings, DuoGen, “Keys of language model servers”"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# Keys of the well-known services, and tokens of the form header.payload.signature.
KNOWN = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:sk|gsk|hf|xai|ghp|glpat|nvapi|pplx|r8|csk)[-_](?=[\w-]*\d)[\w-]{16,}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{16,}\.[\w-]+)"
)
LONG = re.compile(r"[A-Za-z0-9]{28,}")
CHANGES = 7  # between letters and digits; in a name of this length there are fewer, in 28 random characters rarely


def looks_like_key(text: str) -> bool:
    """Whether a text holds what is probably a key: one of a known service, or a long random word."""
    if KNOWN.search(text):
        return True
    words = (found[0] for found in LONG.finditer(text))
    return any(sum(a.isdigit() != b.isdigit() for a, b in pairwise(word)) >= CHANGES for word in words)


def refuse_keys(**widgets: str) -> None:
    """Raises a DuoGenError where a widget holds a key. It is found before anything is asked or written."""
    for name, text in widgets.items():
        if looks_like_key(text):
            raise DuoGenError(
                f"The input {name} seems to hold a key. A workflow is no place for one: it is saved with every image "
                f"and shared. Take it out, and write it into {SETTINGS}, or into an environment variable whose name "
                "stands in the input key."
            )


def key_for(address: str, name: str = "") -> str:
    """Returns the key for a server. name: an environment variable; "": whatever the settings have for this address."""
    refuse_keys(address=address, key=name)
    name = name.strip()
    if name and not NAME.fullmatch(name):
        raise DuoGenError(
            "The input key is not the name of an environment variable, such as OPENAI_API_KEY. Leave it empty to use "
            f"{SETTINGS}."
        )
    host, entries = _host(address), _entries()
    known = entries.get(host) or entries.get(host.rpartition(":")[0])
    if known and host not in entries and not (address.strip().lower().startswith("https:") or is_near(address)):
        raise DuoGenError(
            f"The key for {host.rpartition(':')[0]} would be sent without encryption: write https in the address. If "
            f"that server speaks http alone, name its port in {SETTINGS}: {host}=…"
        )
    if not name:
        return _value(known, host) if known else ""
    if not is_here(address) and known != name:
        where = host.rpartition(":")[0] if host.endswith((":443", ":80")) else host
        raise DuoGenError(
            f"The key in {name} may not go to {where} yet, because a workflow names both, and anybody may have written "
            f"it. If that is your server, allow it once in {SETTINGS}: {where}={name}"
        )
    return _sound(os.environ.get(name, ""), host)


def is_here(address: str) -> bool:
    """Whether a server is on this machine."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_near(address: str) -> bool:
    """Whether a server is on this machine or the local network."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return is_here(address) or "." not in host or host.endswith((".local", ".lan", ".internal"))


def _value(entry: str, host: str) -> str:
    """Of an entry, the key: in an environment variable of this name, or the entry itself."""
    is_name = NAME.fullmatch(entry) and (entry in os.environ or entry.isupper()) and not looks_like_key(entry)
    return _sound(os.environ.get(entry, "") if is_name else entry, host)


def _sound(key: str, host: str) -> str:
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise DuoGenError(
            f"The environment variable that holds the key for {host} is not set, or holds no key; set it before "
            "ComfyUI starts."
        )
    return key


def _host(address: str) -> str:
    """ "host:port", as entries name it; the port may be left out there."""
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        return f"{(parts.hostname or '').lower()}:{parts.port or (80 if parts.scheme == 'http' else 443)}"
    except ValueError:
        return ""


def _entries() -> dict[str, str]:
    """What the settings and the environment say: {"host" or "host:port": entry}; the settings first."""
    found: dict[str, str] = {}
    for text in (_setting(), os.environ.get(VARIABLE, "")):
        for entry in re.split(r"[\s,;]+", text):
            host, _, value = entry.partition("=")
            host = re.sub(r"^\w+://", "", host).partition("/")[0].lower()
            if host and value:
                found.setdefault(host, value)
    return found


def _setting() -> str:
    from .settings import setting

    return setting(SETTING, "")
