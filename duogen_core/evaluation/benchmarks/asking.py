"""What benchmarks ask a judge: the schema of its reply, and how an answer is shown to it.

reply_schema({"score": whole(0, 6)})     a reason in words, then a whole number: both, and nothing else
text, pictures = marked(parts)           [Image 1] in the places of images, and these, each after its line
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from duogen_core.document import Part, Picture

YES_OR_NO = {"enum": ["yes", "no"]}


def whole(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


def words(most: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": most}


def object_schema(fields: Mapping[str, Any]) -> dict[str, Any]:
    """An object with all of these fields and no others."""
    return {"type": "object", "properties": dict(fields), "required": [*fields], "additionalProperties": False}


def reply_schema(fields: Mapping[str, Any], most: int = 500) -> dict[str, Any]:
    """An object with a reason of so many characters, and these fields. The reason comes first: after a score, it would
    only defend that."""
    return object_schema({"reason": words(most), **fields})


def marked(parts: Iterable[Part], first: int = 1) -> tuple[str, list[tuple[str, Picture]]]:
    """Returns what a judge reads of parts, [Image 1] and so on in the places of pictures, and what it then sees: each
    of these pictures after the line that says which one it is. first: the number of the first one."""
    texts: list[str] = []
    seen: list[tuple[str, Picture]] = []
    for part in parts:
        if isinstance(part, Picture):
            texts.append(f"[Image {first + len(seen)}]")
            seen.append((f"Image {first + len(seen)}:", part))
        elif part.text.strip():
            texts.append(part.text.strip())
    return "\n".join(texts) or "(nothing)", seen
