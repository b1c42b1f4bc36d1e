"""Who found which of two answers better: files of ratings by people and by judges, and what they come to.

    {"format": "duogen-ratings", "version": 1, "benchmark": "howto", "rater": "…", "page": "" or the page's id,
     "ratings": [{"item", "left", "right", "metric", "verdict": "left" | "right" | "tie"}, …]}

left and right are models. A person's file says "pair": number in place of item, left and right: which models those were
stands in the page's key alone, so that nobody who rates can know.

    {"format": "duogen-rating-key", "version": 1, "benchmark", "page", "metrics": [name], "pairs": [{"item", "left",
     "right"}, …]}

`summary` makes win rates and Elo of all of them, for each metric, and says how far raters agree who saw the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen_core.document import is_text
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.statistics import Comparison, Interval, Rating, elo, kappa, win_rate, wins_of
from duogen_core.files import read_json, write_atomically

FORMAT, KEY_FORMAT, VERSION = "duogen-ratings", "duogen-rating-key", 1
VERDICTS = ("left", "right", "tie")
MAX_BYTES = 256 << 20
MAX_NAME = 2000


@dataclass(frozen=True)
class Rated:
    """left, right: models. rater: a person or a judge."""

    item: str
    left: str
    right: str
    metric: str
    verdict: str
    rater: str = ""

    @property
    def comparison(self) -> Comparison:
        return Comparison(self.item, self.left, self.right, {"left": 1.0, "right": 0.0, "tie": 0.5}[self.verdict])

    @property
    def said(self) -> int:
        """0: neither is better; 1 or 2: of the two models the one whose name comes first or second."""
        winner = {"left": self.left, "right": self.right, "tie": ""}[self.verdict]
        return ("", *sorted((self.left, self.right))).index(winner)


@dataclass(frozen=True)
class Standing:
    """What all ratings say of one metric. pairs: (one, other) -> share of wins of the first, interval, how many."""

    metric: str
    ratings: Mapping[str, Rating]
    pairs: Mapping[tuple[str, str], tuple[float, Interval | None, int]]
    ties: float


def summary(ratings: Iterable[Rated], resamples: int = 2000) -> list[Standing]:
    """One `Standing` for each metric, in the order in which they come."""
    of_metric: dict[str, list[Rated]] = {}
    for one in ratings:
        of_metric.setdefault(one.metric, []).append(one)
    found = []
    for metric, rated in of_metric.items():
        comparisons = [one.comparison for one in rated]
        pairs = {
            pair: (*win_rate(outcomes, resamples=resamples), sum(map(len, outcomes.values())))
            for pair, outcomes in wins_of(comparisons).items()
        }
        ties = sum(one.verdict == "tie" for one in rated) / len(rated)
        found.append(Standing(metric, elo(comparisons, resamples=resamples), pairs, ties))
    return found


def agreement(ratings: Iterable[Rated]) -> dict[tuple[str, str], tuple[float | None, int]]:
    """For every two raters who judged the same pairs: Cohen's kappa, and how many pairs.

    Kappa is of which of a pair's two models was named, not of the models' names: of many models few would be the same
    by chance, and raters who toss a coin for every pair would seem to agree."""
    said: dict[str, dict[tuple, int]] = {}
    for one in ratings:
        key = (one.metric, one.item, *sorted((one.left, one.right)))
        said.setdefault(one.rater, {})[key] = one.said
    found = {}
    for one, other in itertools.combinations(sorted(said), 2):
        both = sorted(said[one].keys() & said[other].keys())
        if both:
            found[one, other] = kappa([said[one][key] for key in both], [said[other][key] for key in both]), len(both)
    return found


# ------------------------------------------------------------ files


def ratings_json(benchmark: str, rater: str, ratings: Iterable[Rated], **about: Any) -> dict[str, Any]:
    names = ("item", "left", "right", "metric", "verdict")
    entries = [{name: getattr(one, name) for name in names} for one in ratings]
    head = {"format": FORMAT, "version": VERSION, "benchmark": benchmark, "rater": rater, "page": ""}
    return {**head, **about, "ratings": entries}


def write_ratings(file: Path, value: Mapping[str, Any]) -> None:
    write_atomically(file, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def read_ratings(files: Sequence[Path]) -> list[Rated]:
    """Reads files of ratings, and the keys of the pages that people rated on, in any order."""
    keys: dict[str, tuple[str, list[dict[str, str]]]] = {}
    sheets: list[tuple[Path, dict[str, Any]]] = []
    for file in files:
        value = read_json(file, "file of ratings", limit=MAX_BYTES)
        kind = value.get("format") if isinstance(value, dict) else None
        if kind not in (FORMAT, KEY_FORMAT):
            raise DuoGenError(
                f"{file} holds no ratings (its format is {_short(kind)}); expected what a page of `evaluate rate` "
                "saved, what `evaluate compare` wrote, or the key.json beside a page."
            )
        if value.get("version") != VERSION or isinstance(value.get("version"), bool):
            raise DuoGenError(f"{file} is of version {_short(value.get('version'))}; this DuoGen reads {VERSION}.")
        if kind == KEY_FORMAT:
            page, pairs = _text(value, "page", str(file)), _list(value, "pairs", str(file))
            where = f"{file}, pair"
            keys[page] = (
                str(file),
                [
                    {name: _text(pair, name, f"{where} {number}") for name in ("item", "left", "right")}
                    for number, pair in enumerate(pairs, 1)
                ],
            )
        else:
            sheets.append((file, value))
    if not sheets:
        raise DuoGenError("There is a key, and no ratings; give the files that the raters saved as well.")
    found: list[Rated] = []
    seen: dict[tuple, str] = {}
    benchmarks = {str(value.get("benchmark") or "") for _, value in sheets} - {""}
    if len(benchmarks) > 1:
        raise DuoGenError(f"The ratings are of different benchmarks ({shown(', '.join(sorted(benchmarks)))}).")
    for file, value in sheets:
        for one in _of_sheet(file, value, keys):
            key = (one.rater, one.metric, one.item, *sorted((one.left, one.right)))
            if key in seen:
                raise DuoGenError(
                    f"{file} and {seen[key]} both have the rating of {_short(one.item)} by {_short(one.rater)}; leave "
                    "one of them out, or give raters different names."
                )
            seen[key] = str(file)
            found.append(one)
    return found


def _of_sheet(
    file: Path, value: Mapping[str, Any], keys: Mapping[str, tuple[str, list[dict[str, str]]]]
) -> list[Rated]:
    rater = _text(value, "rater", str(file), empty=True) or file.stem
    page = _text({"page": "", **value}, "page", str(file), empty=True)
    pairs: list[dict[str, str]] = []
    if page:
        if page not in keys:
            raise DuoGenError(
                f"{file} was saved by the page {_short(page)}, and its key is not among these files; give the key.json "
                "beside that page as well."
            )
        pairs = keys[page][1]
    found = []
    for number, entry in enumerate(_list(value, "ratings", str(file)), 1):
        where = f"{file}, rating {number}"
        metric, verdict = _text(entry, "metric", where), _text(entry, "verdict", where)
        if verdict not in VERDICTS:
            raise DuoGenError(f"{where}: the verdict is {_short(verdict)}; expected {', '.join(VERDICTS)}.")
        if page:
            place = entry.get("pair")
            if isinstance(place, bool) or not isinstance(place, int) or not 1 <= place <= len(pairs):
                raise DuoGenError(f"{where}: pair is {_short(place)}; the page has pairs 1 to {len(pairs)}.")
            named = pairs[place - 1]
        else:
            named = {name: _text(entry, name, where) for name in ("item", "left", "right")}
        if named["left"] == named["right"]:
            raise DuoGenError(f"{where} compares {_short(named['left'])} with itself.")
        found.append(Rated(**named, metric=metric, verdict=verdict, rater=rater))
    return found


def _text(value: Any, name: str, where: str, *, empty: bool = False) -> str:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, str) or not is_text(found) or len(found) > MAX_NAME or not (found.strip() or empty):
        raise DuoGenError(f"{where}: {name} is {_short(found)}; expected a text.")
    return found


def _list(value: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    found = value.get(name)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DuoGenError(f"{where}: {name} is {_short(found)}; expected a list of objects.")
    return found


def _short(value: Any) -> str:
    return shown(repr(value)[:80])
