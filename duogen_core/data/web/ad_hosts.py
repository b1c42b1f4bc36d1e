"""Advertisers' hosts in a file of the user's (preset advert.hosts): a hosts file, or a filter list such as EasyList.

    in_list("img.ads.example.com", "easylist.txt")

Of a filter list only entries that stand for a whole host count: ||host^ with at most the options third-party, popup and
image. No list comes with this project.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from duogen_core.errors import DuoGenError

HOST = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)+"
FILTER = re.compile(rf"\|\|({HOST})\^(?:\$(?:third-party|popup|image|all|doc|document|,)+)?$")
HOSTS_LINE = re.compile(rf"(?:(?:0\.0\.0\.0|127\.0\.0\.1)\s+)?({HOST})\s*(?:#.*)?$")


def in_list(host: str, file: str) -> bool:
    """Whether the host, or one that it belongs to, stands in the file; never where no file is named."""
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
