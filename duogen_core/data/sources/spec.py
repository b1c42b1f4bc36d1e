"""A source in writing: `documents:PATH`, `3*jsonl:PATH`, or {"source": "hf:NAME", "weight": 3, "split": "test"}.

The weight is the share of draws in a mixture, 1 if not given. `alignment: true` says that all of a source is alignment
data (a picture and its description), which stage 1 leaves out. A table may also be the text of a JSON object.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from duogen_core.data.sources.base import Limits, OnBad, Source
from duogen_core.data.sources.mixture import Mixture
from duogen_core.errors import DuoGenError, unknown
from duogen_core.files import parse_json

# kind: where its Source is, as "module:class". Named and not imported: formats bring optional packages, and Sketchbook
# stands above this package. A class without a `path` parameter takes none.
KINDS = {
    "documents": "duogen_core.data.sources.documents:DocumentFolders",
    "jsonl": "duogen_core.data.sources.documents:JsonLines",
    "webdataset": "duogen_core.data.sources.tars:WebDataset",
    "parquet": "duogen_core.data.sources.parquet:InterleavedParquet",
    "stream": "duogen_core.data.sources.stream:Stream",
    "hf": "duogen_core.data.sources.huggingface:HuggingFace",
    "sketchbook": "duogen_core.sketchbook.source:Sketchbook",
}


@dataclass(frozen=True)
class Spec:
    kind: str
    path: str = ""
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    alignment: bool = False

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" if self.path else self.kind


SpecLike = str | Mapping[str, Any] | Spec


def parse_spec(value: SpecLike) -> Spec:
    """Checks the words of a spec; nothing is opened yet."""
    if isinstance(value, Spec):
        return value
    if isinstance(value, str):
        value = parse_json(value.encode(), value) if value.lstrip().startswith("{") else {"source": value}
    if not isinstance(value, Mapping):
        raise DuoGenError(f"A source is {value!r}; expected text such as 'documents:PATH', or a table with 'source'.")
    fields = dict(value)
    text = fields.pop("source", None)
    if not isinstance(text, str) or not text.strip():
        raise DuoGenError(
            f"A source has no 'source'; expected for example {{'source': 'documents:PATH'}}, not {value}."
        )
    factor = re.match(r"\s*([0-9.eE+-]+)\s*\*\s*(?=[A-Za-z])", text)
    if factor and "weight" in fields:
        raise DuoGenError(f"{text}: the weight is given twice; keep one of them.")
    weight = _weight(factor[1] if factor else fields.pop("weight", 1.0), text)
    kind, _, path = text[factor.end() if factor else 0 :].strip().partition(":")
    if kind not in KINDS:
        raise DuoGenError(_not_a_kind(text, kind))
    alignment = fields.pop("alignment", False)
    if not isinstance(alignment, bool):
        raise DuoGenError(f"{text}: alignment is {alignment!r}; expected true or false.")
    parameters = _parameters(kind)
    if ("path" in parameters) != bool(path):
        raise DuoGenError(f"{text}: {kind} needs a path, {kind}:PATH." if not path else f"{text}: {kind} has no path.")
    for name in fields:
        known = [each for each in parameters if each != "path"]
        if name not in known:
            raise DuoGenError(unknown(f"{text}: the option", name, ["source", "weight", "alignment", *known]))
    return Spec(kind, path, weight, fields, alignment)


def parse_specs(specs: SpecLike | Sequence[SpecLike]) -> list[Spec]:
    """Checks all specs, so that every spelling mistake is found before anything is opened."""
    return [parse_spec(spec) for spec in ([specs] if isinstance(specs, (str, Mapping, Spec)) else specs)]


def _not_a_kind(text: str, kind: str) -> str:
    """Says what is wrong: a path without a kind, whether it exists or not, or a kind that was misspelt."""
    path = Path(text).expanduser()
    if path.exists():
        written = {".jsonl": "jsonl", ".tar": "webdataset", ".parquet": "parquet"}.get(path.suffix, "documents")
        return f"{text}: the kind of source is missing; write {written}:{text}."
    alone = ":" not in text or len(kind) == 1  # C:/guides
    misspelt = get_close_matches(kind.lower(), KINDS, n=1, cutoff=0.5) and not (path.suffix or path.name != text)
    if alone and not misspelt:
        return f"{text}: there is no such folder or file, and no kind of source of that name ({', '.join(KINDS)})."
    return unknown(f"{text}: the kind of source", kind, KINDS)


def _weight(value: Any, text: str) -> float:
    try:
        weight = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = float("nan")
    if not 0 <= weight < float("inf"):
        raise DuoGenError(f"{text}: the weight is {value!r}; expected a number from 0 on.")
    return weight


def source_class(kind: str) -> type[Source]:
    """The class of a kind of source; only now is its module imported."""
    module, _, name = KINDS[kind].partition(":")
    return getattr(import_module(module), name)


def _parameters(kind: str) -> list[str]:
    return [name for name in inspect.signature(source_class(kind)).parameters if name != "limits"]


def open_source(spec: SpecLike, base: str | Path | None = None, limits: Limits | None = None) -> Source:
    """Finds the samples; none is read yet. base: the folder that relative paths start from (None: the current one)."""
    spec = parse_spec(spec)
    if not spec.path:
        return source_class(spec.kind)(limits=limits, **spec.options)
    if "://" in spec.path:
        return source_class(spec.kind)(spec.path, limits=limits, **spec.options)
    path = Path(spec.path).expanduser()
    place = Path(base, path) if base is not None else path
    # A name on the hub looks like a path, so it is taken for one only when something stands there.
    name = spec.path if spec.kind == "hf" and not place.exists() else str(place)
    return source_class(spec.kind)(name, limits=limits, **spec.options)


def open_mixture(
    specs: SpecLike | Sequence[SpecLike],
    seed: int,
    *,
    base: str | Path | None = None,
    limits: Limits | None = None,
    rank: int = 0,
    world: int = 1,
    on_bad: OnBad | None = None,
) -> Mixture:
    """Mixes all sources of a config by their weights; without those of alignment data if `limits` says so."""
    parsed = parse_specs(specs)
    if limits is not None and not limits.alignment:
        wanted = [spec for spec in parsed if not spec.alignment]
        if parsed and not wanted:
            raise DuoGenError(f"All sources are alignment data, which is left out here: {', '.join(map(str, parsed))}.")
        parsed = wanted
    sources = [open_source(spec, base, limits) for spec in parsed]
    return Mixture(sources, [spec.weight for spec in parsed], seed, rank=rank, world=world, on_bad=on_bad)
