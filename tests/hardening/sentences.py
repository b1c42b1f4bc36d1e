"""What a command may say when it refuses: one sentence, on the last line of stderr, and exit code 2."""

from __future__ import annotations

import re
from collections.abc import Collection

from tests.hardening.zygote import Ended

LONGEST = 2100  # characters of an error message: a hostile value must not be repeated in full
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
TRACEBACK = ("Traceback (most recent call last)", "Fatal Python error", "Segmentation fault", "terminate called")


def wrong_with(ended: Ended, allowed: Collection[int]) -> str:
    """What is wrong with how a command ended; empty if nothing is. allowed: exit codes that need no sentence but 2."""
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if ended.timed_out:
        return f"ran for {ended.seconds:.0f} s and was killed"
    for mark in TRACEBACK:
        if mark in ended.stderr:
            return f"exit code {ended.code} and a traceback, {last[:300]!r}"
    if ended.code < 0:
        return f"ended by signal {-ended.code}"
    if ended.code not in allowed:
        return f"exit code {ended.code}: {last[:300]!r}"
    if ended.code == 2:
        errors = [line for line in ended.stderr.split("\n") if line.startswith("Error: ")]
        if len(errors) != 1:
            return f"exit code 2 and {len(errors)} sentences, the last line is {last[:300]!r}"
        message = ended.stderr[ended.stderr.index("Error: ") :].rstrip("\n")
        if "\n" in message:
            return f"a message of several lines, {message[:300]!r}"
        if len(message) > LONGEST:
            return f"a message of {len(message)} characters, {message[:200]!r}"
        if message.endswith((":", ": ")) or len(message) < 20:  # the reason is missing
            return f"a message that is no sentence, {message[-300:]!r}"
    if CONTROL.search(ended.stderr.replace("\x1b[K", "").replace("\x1b[0m", "")):
        return f"raw control characters, {ended.stderr[-300:]!r}"
    return ""
