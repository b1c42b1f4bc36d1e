"""A page on which people say which of two answers is better, without knowing whose they are.

In: the answers of two or more models to the same requests. Out, in a folder: rate.html, which needs nothing else (send
it to whoever rates; it works from the disk and keeps what was rated in the browser until it is saved as a file), and
key.json, which alone says which model each answer is of, and stays here.

    make_page([mine, theirs], Path("rating"), count=50, seed=0)

Pairs come in an order by chance, and by chance each model's answer is on the left or on the right. `ratings` reads what
the page saves. What models wrote is data of the page, as JSON in which nothing can end it, shown as text alone; a
Content-Security-Policy lets only the page's own script run (by its hash) and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from duogen_core.document import Picture, Turn
from duogen_core.errors import DuoGenError, unknown
from duogen_core.evaluation.answer_sets import AnswerSet, Pair, pair_of, shared_ids
from duogen_core.evaluation.benchmark_report import thumbnail
from duogen_core.evaluation.pairwise import METRICS, pair_digest
from duogen_core.evaluation.ratings import KEY_FORMAT, VERSION
from duogen_core.files import write_atomically

PAGE, KEY = "rate.html", "key.json"
OVERALL = "overall"
QUESTIONS = {OVERALL: "Which answer would you rather have?"} | {
    name: f"{name.capitalize()}: {says}?" for name, says in METRICS.items()
}
SIDE = 640  # pixels of the longer side of an image on the page
MOST_BYTES = 400 << 20  # of a page: a browser must hold it
HERE = Path(__file__).parent


def pairs_by_chance(sets: Sequence[AnswerSet], count: int | None, seed: int) -> list[tuple[str, AnswerSet, AnswerSet]]:
    """Returns (id, left, right), in an order by chance; of `count` pairs every two models have as many, or one more."""
    random = Random(f"rating-{seed}")
    queues = []
    for one, other in itertools.combinations(sets, 2):
        ids = shared_ids(one, other)
        random.shuffle(ids)
        queues.append([(id, *random.sample((one, other), 2)) for id in ids])
    turns = [pair for turn in itertools.zip_longest(*queues) for pair in turn if pair is not None]
    chosen = turns[:count]
    random.shuffle(chosen)
    return chosen


def make_page(
    sets: Sequence[AnswerSet],
    out: Path,
    *,
    count: int | None = None,
    metrics: Sequence[str] = (OVERALL,),
    seed: int = 0,
) -> tuple[Path, Path, int]:
    """Writes page and key into `out`. Returns both paths, and how many pairs there are.

    Pairs whose answers are the same are left out: nobody could tell them apart."""
    names = [one.name for one in sets]
    if len(set(names)) < len(names):
        raise DuoGenError(f"Two of the models have the same name ({', '.join(names)[:200]}); name them with --names.")
    for name in metrics:
        if name not in QUESTIONS:
            raise DuoGenError(unknown("The metric", name, QUESTIONS))
    shown: list[dict[str, Any]] = []
    key: list[dict[str, str]] = []
    digests: list[str] = []
    size = 0
    for id, left, right in pairs_by_chance(sets, count, seed):
        pair = pair_of(left, right, id)
        if pair.same:
            continue
        digests.append(pair_digest(pair))
        shown.append(shown_pair(pair))
        key.append({"item": id, "left": left.name, "right": right.name})
        size += len(json.dumps(shown[-1]))
        if size > MOST_BYTES:
            raise DuoGenError(f"The page would be larger than {MOST_BYTES >> 20} MB; ask for fewer pairs with --count.")
    if not shown:
        raise DuoGenError("All pairs are the same answer twice; there is nothing to rate.")
    benchmark = next((one.benchmark for one in sets if one.benchmark), "")
    made = {"benchmark": benchmark, "metrics": list(metrics), "pairs": key}
    page = hashlib.sha256(json.dumps([made, digests], sort_keys=True).encode()).hexdigest()[:16]
    data = {
        "page": page,
        "benchmark": benchmark,
        "metrics": [{"name": name, "question": QUESTIONS[name]} for name in metrics],
        "pairs": shown,
    }
    value = {"format": KEY_FORMAT, "version": VERSION, "page": page, **made}
    lines = (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
    if (out / KEY).exists() and (out / KEY).read_bytes() != lines:
        raise DuoGenError(f"{out} has the key of another page, which its ratings need; choose another --out.")
    # The key first: a page without its key would waste the time of whoever rates on it.
    write_atomically(out / KEY, lines)
    write_atomically(out / PAGE, render(data).encode())
    return out / PAGE, out / KEY, len(shown)


def shown_pair(pair: Pair) -> dict[str, Any]:
    return {"request": _parts(pair.request), "left": _parts(pair.first), "right": _parts(pair.second)}


def _parts(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Texts and images in their order; between two turns of one side, who speaks."""
    found: list[dict[str, str]] = []
    for number, turn in enumerate(turns):
        if number or turn.role == "system":
            found.append({"speaker": {"user": "The user", "assistant": "The answer"}.get(turn.role, "Instructions")})
        for part in turn.parts:
            if isinstance(part, Picture):
                found.append({"image": thumbnail(part, SIDE)})
            elif part.text.strip():
                found.append({"text": part.text.strip()})
    return found


def render(data: dict[str, Any]) -> str:
    import jinja2
    from markupsafe import Markup

    script = (HERE / "rating_page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (HERE / "rating_page.html").read_text("utf-8")
    )
    inside = json.dumps(data)  # ASCII alone
    for sign in "<>&":
        inside = inside.replace(sign, f"\\u{ord(sign):04x}")
    return template.render(data=Markup(inside), script=Markup(script), digest=digest)
