"""The taxonomy: everyday domains, their subcategories, and seed prompts that ask for text and pictures in turn.

In: taxonomy/*.yaml, one file a domain. Out: a Taxonomy, checked. The paper (DuoGen, arXiv 2602.00508) names 8 domains,
151 subcategories and about ten seeds each, but its list is not public: these domains, subcategories and seeds are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from duogen_core.config_text import ConfigTextError, read_yaml
from duogen_core.data.text import word_pairs
from duogen_core.errors import DuoGenError

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
