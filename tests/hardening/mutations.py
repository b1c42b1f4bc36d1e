"""Seeded generators of hostile values: JSON, bytes, PNG files, names. The same Random gives the same values."""

from __future__ import annotations

import copy
import json
import random
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SCRIPT = "<script>alert(1)</script>"
NAMES = (  # of files and members
    "..", "../../outside.png", "/etc/passwd", "a/../../b.png", "C:\\outside.png", "\\\\host\\share\\a.png",
    "a\x00b.png",
    "a\nb.png", "\x1b[31mred\x1b[0m.png", "\u202egnp.exe", "a\u2066b\u2069.png", "\ufeffa.png", " .png", ".", "",
    "-rf",
    "--out", "con.png", "nul", "a" * 250 + ".png", "a" * 5000, "ü" * 120 + ".png", "%2e%2e%2fa.png", "~root",
    "$(id).png",
    "`id`.png", "*.png", "a?.png", "a;b.png", "'\".png", "<img src=x onerror=alert(1)>.png", "\u2028.png", "ａ.png",
    "é.png",
    "e\u0301.png", "😀.png", "a.png/", "/", "//", "images//000.png", "./images/000.png", "images/./000.png",
    "\ud800.png",
)  # fmt: skip
TEXTS = (
    "", " ", "\x00", "\x1b]0;title\x07\x1b[2J", "\u202eevil\u202c", "\u2028\u2029", "\ud800", "a" * 100_000, SCRIPT,
    "[x](javascript:alert(1))", "![](http://127.0.0.1:9/a.png)", "<img src=x onerror=alert(1)>", "<BOV>", "<|im_end|>",
    "<|vision_start|><|image_pad|><|vision_end|>", "{{7*7}}", "%s%n%d", "1e999", "nan", "١٢٣", "1_000", "0x10", "true",
    "&lt;b&gt;", "]]>", "<!--", "```\n# x", "\r\n\r\n", "|a|b|\n|-|-|\n|" + SCRIPT + "|x|", "a\u0301" * 3000,
    "[a][" * 3000,
    "> " * 300 + "x", "* " * 300 + "x", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "file:///etc/passwd",
    "data:text/html,x",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 255, 256, 2**31 - 1, 2**31, -(2**31), 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0,
    1e308,
    -1e308, 5e-324, float("inf"), float("-inf"), float("nan"), 1000000000, 12345678901234567890,
)  # fmt: skip


@contextmanager
def deep_values() -> Iterator[None]:
    """Values of several hundred levels, put into one another, can be copied and written as JSON inside."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def deep(depth: int, kind: str = "list") -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def depth(value: Any) -> int:
    """How many lists and objects stand in one another, along the first of each."""
    found = 0
    while isinstance(value, (list, dict)) and value:
        value, found = next(iter(value.values() if isinstance(value, dict) else value)), found + 1
    return found


def value(rng: random.Random) -> Any:
    """Something that is hardly ever expected."""
    return rng.choice(
        (
            lambda: None,
            lambda: rng.random() < 0.5,
            lambda: rng.choice(NUMBERS),
            lambda: rng.choice(NUMBERS),
            lambda: rng.choice(TEXTS),
            lambda: rng.choice(TEXTS),
            lambda: rng.choice(NAMES),
            lambda: rng.choice(([], {}, [[]], [None], [{}], {"": ""}, {"a": 1}, [0] * 10_000, [1, "1", None])),
            lambda: deep(rng.choice((30, 300, 900)), rng.choice(("list", "dict"))),
        )
    )()


def places(whole: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path to every value in it."""
    if path:
        yield path
    for key, each in whole.items() if isinstance(whole, dict) else enumerate(whole) if isinstance(whole, list) else ():
        yield from places(each, (*path, key))


def mutated(whole: Any, rng: random.Random, times: int = 1) -> Any:
    """A copy in which a value has become another one, is missing, stands twice or under another name."""
    whole = copy.deepcopy(whole)
    for _ in range(times):
        found = list(places(whole))
        if not found:
            return value(rng)
        *path, key = rng.choice(found)
        parent = whole
        for each in path:
            parent = parent[each]
        how = rng.random()
        if how < 0.6:
            parent[key] = value(rng)
        elif how < 0.72:
            del parent[key]
        elif how < 0.8:
            parent[key] = [parent[key]]
        elif how < 0.88 and isinstance(parent, dict):
            parent[rng.choice(TEXTS + NAMES)] = parent.pop(key)
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[rng.choice(("extra", "__class__", "", "a" * 3000))] = value(rng)
    return whole


def json_text(whole: Any) -> str:
    """json.dumps of values that may be nested deeper than this process usually goes."""
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(usual + 10_000)
    try:
        return json.dumps(whole)
    finally:
        sys.setrecursionlimit(usual)


def json_bytes(whole: Any, rng: random.Random) -> bytes:
    """The text of it; every fifth one is not quite JSON."""
    data = json_text(whole).encode()
    if rng.random() < 0.8:
        return data
    return rng.choice(
        (
            lambda: data[: rng.randrange(len(data))],
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.decode().encode("utf-16"),
            lambda: b"[" * rng.choice((1000, 100_000)) + data,
            lambda: b'{"a":' * 2000 + data,
            lambda: data.replace(b'"', b"'", 2),
            lambda: data + data,
            lambda: data.replace(b"{", b'{"format": 1, "format": 2, ', 1),
            lambda: data.replace(b":", b": NaN, \"x\":", 1),
            lambda: data.replace(b"{", b"{" + b",".join(b'"n%d": 0' % k for k in range(60_000)) + b",", 1),
            lambda: data.replace(b'"', b'"\xff\xfe', 1),
            lambda: b"\0" * 100,
            lambda: b"",
            lambda: b"null",
            lambda: flipped(data, rng),
        )
    )()  # fmt: skip


def flipped(data: bytes, rng: random.Random, most: int = 8) -> bytes:
    """Bytes changed, cut off, put in, repeated."""
    found = bytearray(data)
    for _ in range(rng.randint(1, most)):
        if not found:
            break
        place, how = rng.randrange(len(found)), rng.random()
        if how < 0.5:
            found[place] = rng.randrange(256)
        elif how < 0.6:
            del found[place:]
        elif how < 0.7:
            found[place : place + 4] = struct.pack(
                rng.choice("<>") + "I", rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000))
            )
        elif how < 0.8:
            found[place:place] = rng.randbytes(rng.randint(1, 40))
        elif how < 0.9:
            found[place : place + rng.randint(1, 60)] = b"\0" * rng.randint(0, 60)
        else:
            found[place:place] = found[max(0, place - 200) : place]
    return bytes(found)


# ---------------------------------------------------------------- PNG, with checksums that are right


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 8
    while place + 8 <= len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        found.append((png[place + 4 : place + 8], png[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def png_of(parts: list[tuple[bytes, bytes]]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def png_mutated(png: bytes, rng: random.Random) -> bytes:
    parts = chunks(png)
    index = rng.randrange(len(parts))
    kind, data = parts[index]
    how = rng.randrange(8)
    if how == 0:
        parts[0] = (
            b"IHDR",
            struct.pack(">II", *rng.choice(((2**31 - 1, 1), (0, 0), (100_000, 100_000), (1, 2**30), (4, 4))))
            + parts[0][1][8:],
        )
    elif how == 1:
        parts[index] = (kind, flipped(data, rng, 3))
    elif how == 2:
        parts.insert(1, (b"zTXt", b"parameters\0\0" + zlib.compress(b"\0" * 100_000_000, 9)))
    elif how == 3:
        parts.insert(1, (b"iCCP", b"x\0\0" + zlib.compress(rng.randbytes(100))))
    elif how == 4:
        parts.insert(1, (b"acTL", struct.pack(">II", rng.choice((0, 1, 2, 2**31)), 0)))
    elif how == 5:
        del parts[index]
    elif how == 6:
        parts.insert(rng.randrange(len(parts)), parts[index])
    else:
        parts.insert(
            1,
            (
                rng.choice((b"tEXt", b"iTXt", b"eXIf", b"tRNS", b"PLTE", b"gAMA", b"cHRM", b"abCd")),
                rng.randbytes(rng.randint(0, 60)),
            ),
        )
    return png_of(parts)
