"""Requests: what a synthetic document answers. In memory a Request; on disk a line of requests.jsonl each.

Without a file the taxonomy's own seeds are the requests, so that every later step can be tried at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from duogen_core.data.synthetic.taxonomy import Taxonomy
from duogen_core.errors import DuoGenError

SEED = "seed"  # the origin of requests that people wrote


@dataclass(frozen=True)
class Request:
    """origin: "seed", or the name of the language model that wrote it."""

    domain: str
    subcategory: str
    text: str
    origin: str = SEED

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join((self.domain, self.subcategory, self.text)).encode()).hexdigest()[:16]

    def drawn_seed(self, seed: int) -> int:
        """The random seed of this request in a run with this seed; the place in the file does not matter."""
        return int(hashlib.sha256(f"{seed} {self.digest}".encode()).hexdigest()[:12], 16) % 2**32


def seed_requests(taxonomy: Taxonomy) -> list[Request]:
    return [Request(one.domain, one.name, text) for one in taxonomy.subcategories for text in one.seeds]


def read_requests(file: Path) -> list[Request]:
    """All lines of the file; a DuoGenError names the first that is none."""
    found: list[Request] = []
    try:
        lines = file.read_text("utf-8").split(
            "\n"
        )  # str.splitlines also splits at U+2028, which JSON may hold as it is
    except (OSError, UnicodeDecodeError) as error:
        raise DuoGenError(f"The requests {file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append(request_from(line, f"Line {number} of {file}"))
    if not found:
        raise DuoGenError(f"{file} holds no request; run `data synthetic expand` again, or remove it to use the seeds.")
    return found


def request_from(line: str, where: str) -> Request:
    try:
        value = json.loads(line)
        fields = [value[name] for name in ("domain", "subcategory", "text", "origin")]
        if not all(isinstance(field, str) and field.strip() for field in fields) or len(value) > len(fields):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DuoGenError(
            f"{where} is no request; expected a JSON object of the texts domain, subcategory, text and origin."
        ) from None
    return Request(*fields)


def request_lines(requests: Iterable[Request]) -> bytes:
    return "".join(f"{json.dumps(asdict(each), ensure_ascii=False)}\n" for each in requests).encode("utf-8", "replace")


def requests_of(folder: Path, taxonomy: Taxonomy) -> tuple[Sequence[Request], bool]:
    """The requests of a folder, and whether they are the taxonomy's seeds because none were expanded there."""
    file = folder / "requests.jsonl"
    return (read_requests(file), False) if file.exists() else (seed_requests(taxonomy), True)


def spread(requests: Sequence[Request], most: int | None) -> Sequence[Request]:
    """At most this many, at equal distances, so that every domain keeps its share."""
    if most is None or most >= len(requests):
        return requests
    return [requests[index * len(requests) // most] for index in range(most)]
