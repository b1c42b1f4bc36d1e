"""What a synthetic document answers: requests, and the taxonomy of everyday domains whose seed prompts they grow from.

In: taxonomy/*.yaml, one file a domain. Out: a Taxonomy, checked. The paper (DuoGen, arXiv 2602.00508) names 8
domains, 151 subcategories and about ten seeds each, but its list is not public: these domains, subcategories and
seeds are ours.

In memory a request is a Request; on disk a line of requests.jsonl. Without a file the taxonomy's own seeds are the
requests, so that every later step can be tried at once. What all steps share stands here too: the Verdict of a rule,
and how a prompt is filled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from string import Template
from typing import Any

from duogen_core.config_text import ConfigTextError, read_yaml
from duogen_core.data.text import word_pairs
from duogen_core.errors import DuoGenError
from duogen_core.llm.messages import Message, load_prompt, messages

FOLDER = Path(__file__).with_name("taxonomy")
SEED_LENGTH = (30, 400)  # characters
NEAR = 0.6  # shared word pairs of two seeds, of all they have: at this and above they count as the same


@dataclass(frozen=True)
class Subcategory:
    domain: str
    name: str
    seeds: tuple[str, ...]


@dataclass(frozen=True)
class Taxonomy:
    subcategories: tuple[Subcategory, ...]

    @property
    def domains(self) -> dict[str, tuple[Subcategory, ...]]:
        names = dict.fromkeys(one.domain for one in self.subcategories)
        return {name: tuple(one for one in self.subcategories if one.domain == name) for name in names}

    @property
    def seeds(self) -> tuple[str, ...]:
        return tuple(seed for one in self.subcategories for seed in one.seeds)


def load_taxonomy(folder: Path = FOLDER) -> Taxonomy:
    """Every domain file of a folder, in the order of the file names."""
    files = sorted(Path(folder).glob("*.yaml"))
    if not files:
        raise DuoGenError(f"The folder {folder} holds no taxonomy; expected a YAML file for each domain.")
    taxonomy = Taxonomy(tuple(one for file in files for one in _read(file)))
    names = [(one.domain, one.name) for one in taxonomy.subcategories]
    for name in names:
        if names.count(name) > 1:
            raise DuoGenError(f"The taxonomy has the subcategory {name[1]} of {name[0]} twice; rename one.")
    alike = near_duplicates(taxonomy.seeds)
    if alike:
        raise DuoGenError(f'Two seeds of the taxonomy are too much alike: "{alike[0][0]}" and "{alike[0][1]}".')
    return taxonomy


def _read(file: Path) -> list[Subcategory]:
    try:
        value = read_yaml(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ConfigTextError) as error:
        raise DuoGenError(f"The taxonomy {file} cannot be read: {error}.") from None
    if not isinstance(value, dict) or set(value) != {"domain", "subcategories"}:
        raise DuoGenError(f"The taxonomy {file} must hold domain and subcategories, and nothing else.")
    domain, subcategories = value["domain"], value["subcategories"]
    if not isinstance(domain, str) or not isinstance(subcategories, dict) or not subcategories:
        raise DuoGenError(f"The taxonomy {file} needs a name as domain and a list of seeds for each subcategory.")
    return [_checked(file, domain, name, seeds) for name, seeds in subcategories.items()]


def _checked(file: Path, domain: str, name: object, seeds: object) -> Subcategory:
    if not isinstance(name, str) or not isinstance(seeds, list) or not seeds:
        raise DuoGenError(f"The subcategory {name} in {file} needs a list of seeds.")
    low, high = SEED_LENGTH
    for seed in seeds:
        if not isinstance(seed, str) or not low <= len(seed) <= high or seed != " ".join(seed.split()):
            raise DuoGenError(
                f"A seed of {name} in {file} is not one line of {low} to {high} characters: {seed!r:.80}."
            )
    return Subcategory(domain, name, tuple(seeds))


def near_duplicates(texts: tuple[str, ...] | list[str], near: float = NEAR) -> list[tuple[str, str]]:
    """Pairs of texts that share at least `near` of their word pairs (Jaccard)."""
    grams = [word_pairs(text) for text in texts]
    places: dict[tuple[str, str], list[int]] = {}
    shared: dict[tuple[int, int], int] = {}
    for index, gram in enumerate(grams):
        for pair in gram:
            places.setdefault(pair, []).append(index)
    for found in places.values():
        for both in combinations(found, 2):
            shared[both] = shared.get(both, 0) + 1
    close = [both for both, count in shared.items() if count >= near * len(grams[both[0]] | grams[both[1]])]
    return [(texts[first], texts[second]) for first, second in sorted(close)]


# ------------------------------------------------------------ requests


@dataclass(frozen=True)
class Verdict:
    """What became of a request, an answer or a picture: the first rule that refused it ("": kept), and its value."""

    rule: str = ""
    value: Any = None

    @property
    def kept(self) -> bool:
        return not self.rule

    def log(self) -> dict[str, Any]:
        return {"kept": True} if self.kept else {"kept": False, "rule": self.rule, "value": self.value}


KEPT = Verdict()


PROMPTS = Path(__file__).with_name("prompts")


class Asking:
    """A prompt file: what is put into it as part of the instruction, and what as data of strangers.

        asking = Asking("answer.txt");  asking.messages({"least": "2"}, {"request": text});  asking.digest

    Names of the taxonomy and numbers of the preset are the user's own and stand in the text as they are. Everything
    that a language model or a page may have written is delimited data (`duogen_core.llm.messages`).
    """

    def __init__(self, name: str) -> None:
        self.prompt = load_prompt(PROMPTS / name)
        self.digest = hashlib.sha256(self.prompt.encode()).hexdigest()[:16]

    def messages(self, values: Mapping[str, str], data: Mapping[str, str]) -> list[Message]:
        plain = {name: value.replace("$", "$$") for name, value in values.items()}
        return messages(Template(self.prompt).safe_substitute(plain), data)


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
            f"{where} is not a request; expected a JSON object of the texts domain, subcategory, text and origin."
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
