"""Measures writers of plans: requests, what their plans are scored by, the report and the page of the worst.

In: 100 requests of ours (plan_requests.yaml) or a file of others, and for each the plan that a writer made, or why
there is none. Out: a report {"figures": score -> mean in [0, 1], "counts", "intervals" (95%), "extra", "cases": […]}
and an HTML page. All scores are rules (`duogen_core.planning.faults`): they see that a caption is copied, repeated or
names nothing of its step, and not whether it is true.

Of each request:
  whole       there is a plan, and no text in it stops in the middle
  pictured    (guides and stories) every part has a picture; at least 3 of them where no number was asked for
  count       as many pictures as asked for; parts, where no pictures are due
  plain       no picture where none is due
  language    the texts are in the language of the request; mixed, less is better: words of it in another script
Of each caption: complete, named (and names something of its part), cast (it names whoever of the cast its text names);
and, less is better, repeated (as an earlier one), copied (from the instructions), same_words (as its text), instruction
(says what to do, and not what is seen).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation import report as reports
from duogen_core.files import parse_json, read_limited
from duogen_core.planning.faults import Fault, faults_of
from duogen_core.planning.plan import Plan, appears
from duogen_core.planning.requests import MOST_COUNTED, Wish, wish_of

OURS = Path(__file__).with_name("plan_requests.yaml")
KINDS = ("howto", "story", "plain", "unsure")
MAX_BYTES = 64 << 20
MAX_REQUEST = 20_000  # characters
OF_REQUESTS = ("whole", "pictured", "count", "plain", "language", "mixed")
OF_CAPTIONS = ("complete", "named", "cast", "repeated", "copied", "same_words", "instruction")
LOWER_IS_BETTER = ("mixed", "repeated", "copied", "same_words", "instruction")


@dataclass(frozen=True)
class Request:
    """wish: what a right answer has, as a person says; what code finds in the text may differ."""

    text: str
    wish: Wish


@dataclass(frozen=True)
class Written:
    """What a writer made of a request: a plan, or the sentence that says why there is none."""

    request: Request
    plan: Plan | None
    error: str = ""
    seconds: float | None = None


# ------------------------------------------------------------ requests


def our_requests() -> list[Request]:
    import yaml

    found = []
    for kind, entries in yaml.safe_load(OURS.read_text("utf-8")).items():
        for entry in entries:
            language = entry.get("language", "en")
            wish = Wish(kind, entry.get("count"), wish_of(entry["text"]).pictures, language)
            found.append(Request(entry["text"], wish))
    return found


def read_requests(file: Path) -> list[Request]:
    """Reads requests, one a line: the words alone, or JSON with "request" and perhaps "kind",
    "count", "least", "most", "language", "pictures"."""
    found = []
    for where, line in _lines(file, "file of requests"):
        value = parse_json(line, where) if line.startswith("{") else {"request": line}
        found.append(_request(value, where))
    return found


def chosen(requests: Sequence[Request], count: int | None, seed: int) -> list[Request]:
    """Returns `count` of the requests in an order by chance, the kinds taking turns: any first part is spread."""
    groups = []
    for kind in KINDS:
        group = [one for one in requests if one.wish.kind == kind]
        Random(f"plans-{seed}-{kind}").shuffle(group)
        if group:
            groups.append(group)
    turns = []
    for turn in range(max(map(len, groups), default=0)):
        turns += [group[turn] for group in groups if turn < len(group)]
    return turns[:count]


def _request(value: Any, where: str) -> Request:
    if not isinstance(value, Mapping) or not isinstance(text := value.get("request"), str) or not text.strip():
        raise DuoGenError(f"{where} has no request; expected JSON with a text under request.")
    if len(text) > MAX_REQUEST:
        raise DuoGenError(f"{where}: the request has {len(text):,} characters; expected at most {MAX_REQUEST:,}.")
    wish = wish_of(text)
    for name, right, expected in (
        ("kind", lambda one: one in KINDS, f"one of {', '.join(KINDS)}"),
        ("count", _is_count, f"a number from 1 to {MOST_COUNTED}, or null"),
        ("least", _is_count, f"a number from 1 to {MOST_COUNTED}, or null"),
        ("most", _is_count, f"a number from 1 to {MOST_COUNTED}, or null"),
        ("language", lambda one: isinstance(one, str) and len(one) <= 12, "a code such as en"),
        ("pictures", lambda one: one is None or isinstance(one, bool), "true, false or null"),
    ):
        if name in value:
            if not right(value[name]):
                raise DuoGenError(f"{where}: {name} is {shown(repr(value[name])[:60])}; expected {expected}.")
            limits = {"least": None, "most": None} if name == "count" else {}
            wish = replace(wish, **{name: value[name]}, **limits)
    return Request(text, wish)


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 1 <= value <= MOST_COUNTED)


def _lines(file: Path, what: str) -> Iterator[tuple[str, str]]:
    data = read_limited(file, MAX_BYTES, str(file), what)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DuoGenError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    found = [(f"{file}, line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DuoGenError(f"{file} is empty; expected one request on each line.")
    yield from found


# ------------------------------------------------------------ plans on the disk


def line_of(written: Written, writer: str, seed: int, temperature: float = 0.0) -> bytes:
    """Returns a line of plans.jsonl."""
    wish, plan = written.request.wish, written.plan
    value = {
        "request": written.request.text,
        "kind": wish.kind,
        "count": wish.count,
        "least": wish.least,
        "most": wish.most,
        "pictures": wish.pictures,
        "language": wish.language,
        "writer": writer,
        "seed": seed,
        "temperature": temperature,
        "plan": None if plan is None else plan.to_json(),
        **({"error": written.error} if written.error else {}),
        **({} if written.seconds is None else {"seconds": round(written.seconds, 2)}),
    }
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def read_plans(file: Path) -> list[Written]:
    """Reads plans that are there already: JSON lines {"request", "plan"}, and what is known of each request."""
    found = []
    for where, line in _lines(file, "file of plans"):
        value = parse_json(line, where)
        request = _request(value, where)
        if "plan" not in value:
            raise DuoGenError(f"{where} has no plan; expected one, or null where the writer failed.")
        plan = None
        if value["plan"] is not None:
            try:
                plan = Plan.from_json(value["plan"])
            except DuoGenError as error:
                raise DuoGenError(f"{where}: {error}") from None
        seconds = value.get("seconds")
        known = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        found.append(Written(request, plan, str(value.get("error", ""))[:2000], float(seconds) if known else None))
    return found


def kept(file: Path, writer: str, seed: int, temperature: float = 0.0) -> dict[str, Written]:
    """Returns the plans of a run that was stopped, by the text of their requests; what was cut off by a kill goes."""
    if not file.exists():
        return {}
    data = read_limited(file, MAX_BYTES, str(file), "file of plans")
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with file.open("r+b") as opened:
            opened.truncate(whole)
    if not whole:
        return {}
    for where, line in _lines(file, "file of plans"):
        value = parse_json(line, where)
        known = value if isinstance(value, Mapping) else {}
        made = (known.get("writer"), known.get("seed"), known.get("temperature", temperature))
        if made != (writer, seed, temperature):
            raise DuoGenError(
                f"{where} is of another writer, seed or temperature ({shown(str(made)[:120])}); choose another --out "
                "for this one."
            )
    return {one.request.text: one for one in read_plans(file)}


# ------------------------------------------------------------ scores


def score(written: Written, instructions: Sequence[str] = ()) -> tuple[list[Fault], dict[str, float], list[dict]]:
    """Returns the faults of a plan, the checks of its request, and those of each of its captions."""
    request, wish, plan = written.request, written.request.wish, written.plan
    drawn_kind = wish.kind in ("howto", "story") and wish.pictured
    asked = (wish.count, wish.least, wish.most) != (None, None, None)
    faults = [] if plan is None else faults_of(plan, wish, request.text, instructions)
    rules = {fault.rule for fault in faults}
    there = plan is not None
    checks: dict[str, float] = {"whole": float(there and "cut_off" not in rules)}
    if drawn_kind:
        checks["pictured"] = float(there and not rules & {"unpictured", "few_pictures"})
    if asked and wish.kind != "unsure":
        checks["count"] = float(there and "count" not in rules)
    if wish.kind == "plain" and wish.pictured is False:
        checks["plain"] = float(there and "pictured" not in rules)
    if there and wish.language:
        checks["language"] = float("language" not in rules)
        checks["mixed"] = float("mixed" in rules)
    captions = []
    for number, part in enumerate(plan.parts if there else (), 1):
        if part.picture is None:
            continue
        wrong = {fault.rule for fault in faults if fault.part == number}
        one = {name: float(name in wrong) for name in OF_CAPTIONS if name in LOWER_IS_BETTER}
        one |= {"complete": float("incomplete" not in wrong), "named": float(not wrong & {"unnamed", "incomplete"})}
        if any(appears(member, part.text) for member in plan.cast):
            one["cast"] = float("cast" not in wrong)
        captions.append(one)
    return faults, checks, captions


def evaluate(plans: Iterable[Written], instructions: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the report without its header: scores of all, then of each kind (howto.whole, …)."""
    checks, records, measures = [], [], []
    kinds = set()
    for written in plans:
        faults, of_request, of_captions = score(written, instructions)
        wish, plan, found = written.request.wish, written.plan, wish_of(written.request.text)
        kinds.add(wish.kind)
        for one in (of_request, *of_captions):
            checks += [one, {f"{wish.kind}.{name}": value for name, value in one.items()}]
        parts = {} if plan is None else {"parts": float(len(plan.parts)), "pictures": float(len(plan.pictures))}
        measures.append(parts | ({} if written.seconds is None else {"seconds": written.seconds}))
        records.append(
            {
                "request": written.request.text,
                "kind": wish.kind,
                "count": wish.count,
                "language": wish.language,
                "found": {"kind": found.kind, "count": found.count, "language": found.language},
                "plan": None if plan is None else plan.to_json(),
                "error": written.error,
                "checks": of_request,
                "faults": [{"rule": one.rule, "part": one.part, "sentence": one.sentence} for one in faults],
            }
        )
    scores = (*OF_REQUESTS, *OF_CAPTIONS)
    names = [*scores, *(f"{kind}.{name}" for kind in KINDS if kind in kinds for name in scores)]
    agreed = [float(one["found"]["kind"] in (one["kind"], "unsure")) for one in records]
    told = [float((one["found"]["kind"], one["found"]["count"]) == (one["kind"], one["count"])) for one in records]
    extra = reports.means(measures)
    if records:
        extra |= {"kind and count found by code": round(sum(told) / len(told), 3)}
        extra |= {"kind found by code is no other": round(sum(agreed) / len(agreed), 3)}
    return {
        **reports.figures(checks, names),
        "extra": extra,
        "lower_is_better": list(LOWER_IS_BETTER),
        "cases": records,
    }


def table(report: Mapping[str, Any]) -> str:
    """Returns the scores of all requests with their intervals, and under them those of each kind side by side."""
    overall = {name: value for name, value in report["figures"].items() if "." not in name}
    kinds = [kind for kind in KINDS if any(name.startswith(f"{kind}.") for name in report["figures"])]
    lines = [reports.table({**report, "figures": overall}), ""]
    lines.append(" ".join([f"{'by kind':<12}", *(f"{kind:>16}" for kind in kinds)]))
    for name in overall:
        cells = []
        for kind in kinds:
            value = report["figures"].get(f"{kind}.{name}")
            cells.append("" if value is None else f"{value:.3f} (n {report['counts'][f'{kind}.{name}']})")
        less = " (less is better)" if name in report["lower_is_better"] else ""
        lines.append(" ".join([f"{name:<12}", *(f"{cell:>16}" for cell in cells)]) + less)
    return "\n".join(lines)


# ------------------------------------------------------------ the page of the worst


def page(report: Mapping[str, Any], most: int = 50) -> str:
    """Returns an HTML page: the scores, and the plans with the most faults first; all text of writers is escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("plans.html").read_text("utf-8"))

    def badness(case: Mapping[str, Any]) -> tuple:
        good = (value if name not in LOWER_IS_BETTER else 1 - value for name, value in case["checks"].items())
        return (case["plan"] is not None, sum(good) - len(case["checks"]), -len(case["faults"]))

    cases = sorted(report["cases"], key=badness)
    faulty = [case for case in cases if case["plan"] is None or case["faults"]]
    rows = []
    for case in faulty[:most]:
        plan = case["plan"] or {"title": "", "cast": [], "parts": []}
        parts = []
        for number, part in enumerate(plan["parts"], 1):
            picture = part["picture"]
            caption = picture["shows"] if isinstance(picture, Mapping) else picture
            faults = [fault for fault in case["faults"] if fault["part"] == number]
            parts.append({"text": part["text"], "caption": caption, "faults": faults})
        rows.append({**case, "plan": plan, "parts": parts, "of_plan": [f for f in case["faults"] if f["part"] is None]})
    figures = [
        (name, value, report["counts"][name], report["intervals"][name], name in report["lower_is_better"])
        for name, value in report["figures"].items()
        if "." not in name
    ]
    writer = str(report.get("writer", ""))
    return template.render(
        writer=writer if "://" in writer else Path(writer).name,
        figures=figures,
        rows=rows,
        faulty=len(faulty),
        all=len(cases),
    )
