"""Two models' answers to small requests, and stand-in judges, for the tests of comparisons and reports."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from duogen_core.data.runs.shards import add_document
from duogen_core.document import Document, Picture, Text
from duogen_core.evaluation.benchmarks import Metric
from duogen_core.evaluation.results import Case, Results

HOSTILE = "</script><script>bad()</script><img src=x onerror=bad()>\u2028“ü”"
METRICS = {"image quality": Metric(0, 5, "how well made"), "ended": Metric(0, 1, "it ends", "check")}
CATEGORIES = ("Cooking", "Crafts", HOSTILE)


def picture(number: int, size: tuple[int, int] = (24, 32)) -> Picture:
    return Picture(np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8))


def answer(id: str, words: str, pictures: int = 2, seed: int = 0) -> Document:
    parts = []
    for number in range(pictures):
        parts += [Text(f"{words} step {number + 1} of {id}. "), picture(seed * 100 + number)]
    parts.append(Text(f"The end. {words}"))
    asked = Document().begin_turn("user", [Text(f"How do I make {id}? {HOSTILE}"), picture(7)])
    return asked.begin_turn("assistant", parts)


def write_answers(
    folder: Path, model: str, ids: list[str], value: Callable[[int], dict], *, judge: str = "judge", pictures: int = 2,
    seed: int = 0, metrics=METRICS, summary: dict | None = None,
) -> Path:  # fmt: skip
    """A file of results with its answers in a tar, as `evaluate judge` writes them. value: the scores of answer k."""
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "shards" / "00000.tar", "w") as archive:
        for number, id in enumerate(ids):
            document = answer(id, model, pictures, seed + number)
            add_document(archive, f"{number:08d}", document, lambda one: (one.to_png(), "png"))
    cases = tuple(
        Case(id, CATEGORIES[number % 3], value(number), {"image quality": f"Because {HOSTILE}"}, {},
             f"shards/00000.tar#{number:08d}")
        for number, id in enumerate(ids)
    )  # fmt: skip
    file = folder / f"results-{judge}.json"
    means = {
        name: float(np.mean([case.values[name] for case in cases if case.values.get(name) is not None]))
        for name in metrics
    }
    Results("howto", model, judge, means if summary is None else summary, cases, metrics).write(file)
    return file


def reply(body: dict, choose: Callable[[str, str, str], str]) -> str:
    """What a judge says that chooses by (metric, first answer, second answer)."""
    text = json.dumps(body["messages"], ensure_ascii=False)
    sides = [re.search(rf'<data name=\\"{name}\\".*?</data', text, re.DOTALL)[0] for name in ("first", "second")]
    names = body["response_format"]["json_schema"]["schema"]["required"]
    return json.dumps({name: {"reason": HOSTILE, "better": choose(name, *sides)} for name in names})


def likes(word: str) -> Callable[[str, str, str], str]:
    """A fair judge: whichever answer has the word."""
    return lambda metric, first, second: "first" if word in first else "second" if word in second else "tie"


def likes_the_first(metric: str, first: str, second: str) -> str:
    return "first"
