"""Balance: how evenly requests are spread over domains and subcategories, as a table, a plot and figures.

    found = survey(requests);  text(found);  plot(found, file);  found.to_json()

Evenness is the entropy of the shares over the highest possible one: 1 when all subcategories have as many requests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core.data.synthetic.requests import SEED, Request, Taxonomy
from duogen_core.data.text import WORD
from duogen_core.errors import MissingPackage

NAMED = 5  # subcategories and openings that the table names


@dataclass(frozen=True)
class Balance:
    counts: dict[tuple[str, str], int]  # (domain, subcategory) -> requests, in the taxonomy's order
    openings: Counter[str]  # first two words
    origins: Counter[str]
    characters: int

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def domains(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for (domain, _), count in self.counts.items():
            found[domain] += count
        return dict(found)

    @property
    def mean(self) -> float:
        return self.total / len(self.counts)

    def uneven(self, most: int = NAMED) -> list[tuple[str, str, int, float]]:
        """(domain, subcategory, requests, share of the mean) of those that are farthest from the mean, as a factor."""

        def distance(count: int) -> float:
            return abs(math.log(max(count, 0.5) / self.mean))

        ranked = sorted(self.counts.items(), key=lambda entry: -distance(entry[1]))
        return [(*name, count, round(count / self.mean, 3)) for name, count in ranked[:most] if count != self.mean]

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": self.total,
            "evenness_subcategories": evenness(self.counts.values()),
            "evenness_domains": evenness(self.domains.values()),
            "fewest": min(self.counts.values()),
            "most": max(self.counts.values()),
            "domains": self.domains,
            "subcategories": [
                {"domain": domain, "subcategory": name, "requests": count}
                for (domain, name), count in self.counts.items()
            ],
            "most_uneven": [
                dict(zip(("domain", "subcategory", "requests", "of_the_mean"), each)) for each in self.uneven()
            ],
            "openings": dict(self.openings.most_common(NAMED)),
            "origins": dict(self.origins.most_common()),
            "mean_characters": round(self.characters / max(self.total, 1), 1),
        }


def survey(requests: Sequence[Request], taxonomy: Taxonomy) -> Balance:
    """Subcategories without any request count too."""
    counts = {(one.domain, one.name): 0 for one in taxonomy.subcategories}
    for each in requests:
        counts[each.domain, each.subcategory] = counts.get((each.domain, each.subcategory), 0) + 1
    openings = Counter(" ".join(WORD.findall(each.text.casefold())[:2]) for each in requests)
    origins = Counter(each.origin for each in requests)
    return Balance(counts, openings, origins, sum(len(each.text) for each in requests))


def evenness(counts: Any) -> float:
    counts = list(counts)
    total = sum(counts)
    if len(counts) < 2 or not total:
        return 1.0
    shares = [count / total for count in counts if count]
    return round(-sum(share * math.log(share) for share in shares) / math.log(len(counts)), 4)


def text(found: Balance) -> str:
    rows = [("", "subcategories", "requests", "share", "fewest", "most")]
    for domain, count in found.domains.items():
        inside = [each for (name, _), each in found.counts.items() if name == domain]
        rows.append((domain, *_cells(inside, count, found.total)))
    rows.append(("all", *_cells(list(found.counts.values()), found.total, found.total)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.append(f"evenness: {evenness(found.counts.values()):.3f} of subcategories, "
                 f"{evenness(found.domains.values()):.3f} of domains (1 is even)")  # fmt: skip
    if uneven := found.uneven():
        named = "; ".join(
            f"{name} ({domain}) {count:,}, {factor:.2f} of the mean" for domain, name, count, factor in uneven
        )
        lines.append(f"most uneven: {named}")
    common = ", ".join(f'"{name}" {count / found.total:.1%}' for name, count in found.openings.most_common(NAMED))
    lines.append(f"commonest openings: {common}")
    by = ", ".join(f"{count:,} by {'people' if name == SEED else name}" for name, count in found.origins.most_common())
    lines.append(f"written: {by}; {found.characters / max(found.total, 1):.0f} characters on average")
    return "\n".join(lines)


def _cells(inside: list[int], count: int, total: int) -> tuple[str, ...]:
    share = f"{count / total:.1%}" if total else "-"
    return f"{len(inside)}", f"{count:,}", share, f"{min(inside):,}", f"{max(inside):,}"


def plot(found: Balance, file: Path) -> None:
    """A bar for every subcategory, a panel for every domain, the mean as a line."""
    try:
        import matplotlib
    except ImportError:
        raise MissingPackage("The plot", "matplotlib", "train") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    domains = list(found.domains)
    columns = min(4, len(domains))
    rows = math.ceil(len(domains) / columns)
    tallest = max(sum(name == domain for name, _ in found.counts) for domain in domains)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, rows * (0.8 + 0.24 * tallest)), layout="constrained", squeeze=False
    )
    most = max(found.counts.values()) or 1
    for axis, domain in zip(axes.flat, domains):
        inside = [(name, count) for (each, name), count in found.counts.items() if each == domain]
        axis.barh(range(len(inside)), [count for _, count in inside], color="#3b6ea5")
        axis.set_yticks(range(len(inside)), [name for name, _ in inside], fontsize=8)
        axis.bar_label(axis.containers[0], [f"{count:,}" for _, count in inside], padding=2, fontsize=7)
        axis.axvline(found.mean, color="#c0504d", linewidth=1)
        axis.invert_yaxis()
        axis.set_xlim(0, most * 1.15)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(f"{domain}: {found.domains[domain]:,}", fontsize=10, loc="right")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(domains) :]:
        axis.set_visible(False)
    figure.suptitle(f"{found.total:,} requests; the line is the mean of a subcategory, {found.mean:.1f}")
    figure.savefig(file, dpi=100)
    plt.close(figure)
