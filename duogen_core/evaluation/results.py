"""Results of a benchmark: one JSON file that every judge here writes and every report reads.

    {"format": "duogen-benchmark", "version": 1, "benchmark": "ueval", "model": "duogen-tiny", "judge": "…",
     "metrics": {metric: {"low": 0, "high": 1, "says": "…", "by": "judge", "lower": false}},
     "summary": {figure: number},
     "cases": [{"id", "category", "values": {metric: number or null}, "reasons": {metric: text}, "detail": {…},
                "document": relative path or null}],
     …anything else about the run, as plain JSON}

model and judge are names for people; without a judge it is "". summary has the official figures, values the scores of
each answer on the official scale, null where a metric does not apply. document is where the answer lies, from the
file's own folder: a document's folder, its document.json or .zip, or a sample of a tar ("shards/00000.tar#00000012",
the key after the #). Files are hostile: they are read strictly, and no path leaves their folder.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from duogen_core.document import Document, is_text
from duogen_core.document.reading import check_relative, inside, load_document
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Benchmark, Metric, Score
from duogen_core.files import read_json, write_atomically

FORMAT, VERSION = "duogen-benchmark", 1
MAX_BYTES = 512 << 20
MAX_ID = 2000
MAX_NAME = 200  # characters of a name of a benchmark, model, metric, category
MOST = 1e12  # of any number: sums and squares of more have no meaning, and soon no value
REQUIRED = ("format", "version", "benchmark", "model", "judge", "summary", "cases")
OF_A_CASE = ("id", "category", "values", "reasons", "detail", "document")


@dataclass(frozen=True)
class Case:
    """One answer and its scores: a `Score`, and where the answer lies."""

    id: str
    category: str
    values: Mapping[str, float | None]
    reasons: Mapping[str, str] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)
    document: str | None = None

    @property
    def score(self) -> Score:
        return Score(self.id, self.category, self.values, self.reasons, self.detail)


@dataclass(frozen=True)
class Results:
    """about: all else that the file says of the run. folder: where the file lies, which documents are named from."""

    benchmark: str
    model: str
    judge: str
    summary: Mapping[str, float]
    cases: tuple[Case, ...]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def of(
        cls,
        benchmark: Benchmark,
        scores: Iterable[Score],
        *,
        model: str,
        judge: str = "",
        documents: Mapping[str, str] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> Results:
        """The results of these scores, with the official summary. documents: where answers lie, by their id."""
        scores, places = list(scores), documents or {}
        cases = [Case(**vars(score), document=places.get(score.id)) for score in scores]
        summary = benchmark.summary(scores)
        return cls(benchmark.name, model, judge, summary, tuple(cases), benchmark.metrics, about or {})

    def to_json(self) -> dict[str, Any]:
        names = {"benchmark": self.benchmark, "model": self.model, "judge": self.judge}
        return {
            "format": FORMAT,
            "version": VERSION,
            **names,
            **{name: value for name, value in self.about.items() if name not in (*REQUIRED, "metrics")},
            "metrics": {name: asdict(metric) for name, metric in self.metrics.items()},
            "summary": dict(self.summary),
            "cases": [{name: getattr(case, name) for name in OF_A_CASE} for case in self.cases],
        }

    def write(self, file: Path) -> None:
        """Writes the file whole or not at all; what could not be read back is refused."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, default=dict)
        results_of(json.loads(text), str(file))
        write_atomically(file, (text + "\n").encode())

    def document(self, case: Case) -> Document:
        """Reads the answer of a case, from the folder of the results and from nowhere else."""
        where = f"case {case.id[:80]!r} of {self.benchmark}"
        if case.document is None or self.folder is None:
            raise DuoGenError(f"The results do not say where the answer of {where} lies.")
        name, _, key = case.document.partition("#")
        place = inside(self.folder, name, where, "the folder of the results")
        if not key:
            return load_document(place)
        try:
            about = place.stat()
        except OSError:
            raise DuoGenError(f"{where}: the tar {name} does not exist; check the path.") from None
        source, keys = _tar(place, about.st_size, about.st_mtime_ns)
        if key not in keys:
            raise DuoGenError(f"{where}: the tar {name} has no sample {key[:80]!r}.")
        return source.load(keys[key])


@lru_cache(maxsize=64)
def _tar(file: Path, size: int, changed: int) -> tuple[Any, dict[str, int]]:
    """A tar, and the number of each of its samples by key; another one when the file has changed."""
    from duogen_core.data.sources.tars import TAR_ERRORS, Capped, WebDataset, sample_key

    source = WebDataset(str(file))
    keys: dict[str, int] = {}
    try:
        with file.open("rb") as stream, tarfile.TarFile(fileobj=Capped(stream)) as archive:
            for member in archive:
                if not member.isdir():
                    keys.setdefault(sample_key(member.name), len(keys))
    except (*TAR_ERRORS, OSError):  # cut off: what stands before can be read
        pass
    return source, keys


# ------------------------------------------------------------ reading


def read_results(file: Path) -> Results:
    return results_of(read_json(file, "file of results", limit=MAX_BYTES), str(file), file.parent)


def results_of(value: Any, where: str, folder: Path | None = None) -> Results:
    """Checks the JSON value of a file of results. Errors name `where` and the case."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else value
        raise DuoGenError(
            f"{where} is no file of results (its format is {_short(found)}); expected what `evaluate run` or "
            "`evaluate judge` writes."
        )
    if value.get("version") != VERSION or isinstance(value.get("version"), bool):
        raise DuoGenError(
            f"{where}: the version is {_short(value.get('version'))}; this DuoGen reads version {VERSION}. "
            "A newer DuoGen may have written it: update this one."
        )
    for name in REQUIRED:
        if name not in value:
            raise DuoGenError(f"{where}: {name} is missing.")
    metrics = {name: _metric(one, f"{where}, metric {_short(name)}") for name, one in _pairs(value, "metrics", where)}
    summary = {name: _number(one, f"{where}, summary, {_short(name)}") for name, one in _pairs(value, "summary", where)}
    if not isinstance(value["cases"], list):
        raise DuoGenError(f"{where}: cases is {_short(value['cases'])}; expected a list.")
    cases = tuple(_case(one, metrics, f"{where}, case {number}") for number, one in enumerate(value["cases"], 1))
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise DuoGenError(f"{where} has two cases with the id {_short(case.id)}; every id must be there once.")
        seen.add(case.id)
    benchmark, model = (_name(value[name], f"{where}: {name}") for name in ("benchmark", "model"))
    judge = _name(value["judge"], f"{where}: judge", empty=True)
    about = {name: one for name, one in value.items() if name not in (*REQUIRED, "metrics")}
    return Results(benchmark, model, judge, summary, cases, metrics, about, folder)


def _case(value: Any, metrics: Mapping[str, Metric], where: str) -> Case:
    if not isinstance(value, dict):
        raise DuoGenError(f"{where} is {_short(value)}; expected an object.")
    if unknown := [name for name in value if name not in OF_A_CASE]:
        raise DuoGenError(f"{where}: {_short(unknown[0])} is not known here; expected {', '.join(OF_A_CASE)}.")
    id = _name(value.get("id"), f"{where}: id", most=MAX_ID)
    where = f"{where} ({_short(id)})"
    values: dict[str, float | None] = {}
    for name, one in _pairs(value, "values", where):
        values[name] = None if one is None else _number(one, f"{where}, {_short(name)}")
        scale = metrics.get(name)
        if one is not None and scale is not None and not scale.low <= one <= scale.high:
            raise DuoGenError(
                f"{where}: {_short(name)} is {one}; expected a number from {scale.low:g} to {scale.high:g}."
            )
        if metrics and scale is None:
            raise DuoGenError(f"{where}: the file has no metric {_short(name)}; it has {', '.join(metrics)}.")
    reasons = {}
    for name, one in _pairs(value, "reasons", where):
        if not isinstance(one, str) or not is_text(one):
            raise DuoGenError(f"{where}: the reason of {_short(name)} is {_short(one)}; expected a text.")
        reasons[name] = one
    document = value.get("document")
    if document is not None:
        if not isinstance(document, str):
            raise DuoGenError(f"{where}: document is {_short(document)}; expected a relative path, or null.")
        check_relative(document.partition("#")[0], where)
    detail = value.get("detail") or {}
    if not isinstance(detail, dict):
        raise DuoGenError(f"{where}: detail is {_short(detail)}; expected an object.")
    category = _name(value.get("category", ""), f"{where}: category", empty=True)
    return Case(id, category, values, reasons, detail, document)


def _metric(value: Any, where: str) -> Metric:
    if not isinstance(value, dict):
        raise DuoGenError(f"{where} is {_short(value)}; expected an object.")
    low, high = (_number(value.get(name), f"{where}, {name}") for name in ("low", "high"))
    says, by, lower = value.get("says", ""), value.get("by", "judge"), value.get("lower", False)
    if not low < high or not isinstance(says, str) or by not in ("judge", "check") or not isinstance(lower, bool):
        raise DuoGenError(
            f"{where} is {_short(value)}; expected low and high (numbers, low below high), says (a text), by (judge or "
            "check) and lower (true or false)."
        )
    return Metric(low, high, says, by, lower)


def _pairs(value: Mapping[str, Any], name: str, where: str) -> list[tuple[str, Any]]:
    found = value.get(name, {})
    if not isinstance(found, dict):
        raise DuoGenError(f"{where}: {name} is {_short(found)}; expected an object.")
    return [(_name(key, f"{where}: a name in {name}"), one) for key, one in found.items()]


def _name(value: Any, where: str, *, empty: bool = False, most: int = MAX_NAME) -> str:
    if not isinstance(value, str) or not is_text(value) or len(value) > most or not (value.strip() or empty):
        raise DuoGenError(f"{where} is {_short(value)}; expected a text of at most {most} characters.")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MOST:
        raise DuoGenError(f"{where} is {_short(value)}; expected a number up to {MOST:g}.")
    return value


def _short(value: Any) -> str:
    return shown(repr(value)[:80])
