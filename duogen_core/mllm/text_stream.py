"""Token ids -> text, a token at a time, never splitting a character.

Byte-level BPE tokens are runs of bytes and may end in the middle of a UTF-8 character; what is incomplete waits for
the next token. What is still incomplete when the text ends is dropped; invalid bytes inside become U+FFFD.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """GPT-2's table: every byte has a printable character that stands for it in the vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes one token stands for; added tokens are plain strings, not byte characters."""
    piece = tokenizer.convert_ids_to_tokens(token)
    table = _byte_of()
    try:
        return bytes(table[char] for char in piece)
    except KeyError:
        return piece.encode("utf-8")


class TextStream:
    """put(bytes) hands whole characters to on_text; finish() returns everything that was handed out."""

    def __init__(self, on_text: Callable[[str], None] | None = None) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._on_text = on_text
        self._pieces: list[str] = []

    def put(self, data: bytes) -> None:
        text = self._decoder.decode(data)
        if text:
            self._pieces.append(text)
            if self._on_text:
                self._on_text(text)

    def end(self) -> None:
        """The turn has ended; here nothing waits for that."""

    def finish(self) -> str:
        return "".join(self._pieces)
