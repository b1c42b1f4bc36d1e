"""What stage 1 learns from: Sketchbook's own cases, or the sources that `data` of a configuration lists.

A step's examples are a function of (seed, step) alone: of sources, sample k = step * batch + i of a mixture. Bad
samples are replaced, counted and named in <run folder>/bad_samples.jsonl; <run folder>/data.json tells a resumed run
whether the data is still the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from duogen_core.data.sources import (
    Bad,
    BadLog,
    Limits,
    Sample,
    Source,
    open_mixture,
    open_source,
    parse_specs,
)
from duogen_core.data.sources.mixture import differences
from duogen_core.document import Document
from duogen_core.errors import DuoGenError, unknown
from duogen_core.mllm.chat import image_token_counts, layout
from duogen_core.sketchbook.cases import Case
from duogen_core.sketchbook.tasks import FAMILIES, evaluation_case, training_case
from duogen_core.training.checkpoints import write_text
from duogen_core.training.configuration import ConfigError
from duogen_core.training.run import Run, rng_for

LOOKED_AT = 16  # samples of each source, before the first step
TRIES = 1000
TOLD = 3  # bad samples that the terminal names; the file has all

Specs = Sequence[Any]


def check_families(setting: str, weights: Mapping[str, float], known: Sequence[str] = tuple(FAMILIES)) -> None:
    """A ConfigError for a family that Sketchbook lacks, or for weights that choose none."""
    for name, weight in weights.items():
        if name not in known:
            raise ConfigError(unknown(f"'{setting}': the task family", name, known))
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"'{setting}.{name}' is {weight}; expected a number from 0 on.")
    if not any(weights.values()):
        raise ConfigError(f"'{setting}' has no task family with a weight above 0; it can have {', '.join(known)}.")


class Example(NamedTuple):
    name: str
    content: Document | Case


class SketchbookCases:
    """Training cases of the task families, by their weights."""

    def __init__(self, run: Run, weights: Mapping[str, float], batch: int) -> None:
        self.run, self.weights, self.batch = run, weights, batch

    def __call__(self, step: int) -> list[Example]:
        rng = self.run.rng(step)
        cases = [training_case(rng, self.weights) for _ in range(self.batch)]
        return [Example(f"{case.family} ({k})", case) for k, case in enumerate(cases)]

    def some(self) -> dict[str, list[Document | Case]]:
        return dict(evaluation_cases(1))

    def summary(self) -> str:
        return ""


class Samples:
    """Documents of a mixture of sources."""

    def __init__(self, run: Run, data: Specs, batch: int, limits: Limits) -> None:
        self.run, self.batch = run, batch
        name = "bad_samples.jsonl" if run.main else f"bad_samples.{run.processes.rank}.jsonl"
        self.file = run.folder / name
        self.mixture = open_mixture(data, run.seed, limits=limits, on_bad=self._on_bad)
        left_out = [str(spec) for spec in parse_specs(data) if spec.alignment and not limits.alignment]
        if left_out:
            run.say(f"Left out as alignment data: {', '.join(left_out)}.")
        for source in self.mixture.sources:
            look_over(source, run.say)
        self.log: BadLog | None = None

    def __call__(self, step: int) -> list[Example]:
        if self.log is None:  # only now is the run folder there
            self.log = BadLog(self.file)
            self._compare()
        samples = [self.mixture.draw(step * self.batch + k) for k in range(self.batch)]
        return [Example(sample.label, sample.document) for sample in samples]

    def _on_bad(self, bad: Bad) -> None:
        if self.log is not None and self.log(bad) and len(self.log) <= TOLD and not bad.excluded:
            self.run.say(f"Bad sample, passed over: {bad.sentence}")

    def _compare(self) -> None:
        """Says what is other than in the session before."""
        file, recipe = self.run.folder / "data.json", self.mixture.recipe()
        if not self.run.main:
            return
        if self.run.step and file.exists():
            changed = differences(json.loads(file.read_text("utf-8")), recipe)
            if changed:
                self.run.say(f"The data is not that of the session before: {'; '.join(changed)}.")
                self.run.record(changed_data=changed)
        write_text(file, json.dumps(recipe, indent=2) + "\n")

    def some(self) -> dict[str, list[Document | Case]]:
        """A document of each source."""
        found = {source.name: first_of(source) for source in self.mixture.sources}
        return {name: [document] for name, document in found.items() if document is not None}

    def summary(self) -> str:
        if not self.log:
            return ""
        bad, excluded = len(self.log) - self.log.excluded, self.log.excluded
        parts = [f"{bad:,} bad samples"] if bad else []
        parts += [f"{excluded:,} of alignment data"] if excluded else []
        return f"{' and '.join(parts)} passed over, named in {self.file}."


def look_over(source: Source, say: Callable[[str], None]) -> None:
    """Reads some samples; a DuoGenError if none of them is good, a sentence if some are not."""
    if source.endless:
        return
    count = min(LOOKED_AT, len(source))
    found = [source.read(k * len(source) // count) for k in range(count)]
    bad = [each for each in found if isinstance(each, Bad)]
    if len(bad) == count:
        raise DuoGenError(
            f"{source.name}: none of {count} samples looked at can be used; the first one: {bad[0].sentence} "
            "`data check` names what is wrong with each."
        )
    wrong = [each for each in bad if not each.excluded]
    if wrong:
        say(f"{source.name}: {len(wrong)} of {count} samples looked at cannot be used, such as: {wrong[0].sentence}")


def token_counter(tokenizer: Any, processor: Any) -> Callable[[Document], int]:
    return lambda document: len(layout(document, tokenizer, image_token_counts(document, processor)).ids)


def open_data(run: Run, config: Any, limits: Limits) -> SketchbookCases | Samples:
    if config.data:
        return Samples(run, config.data, config.batch, limits)
    return SketchbookCases(run, config.weights, config.batch)


def first_of(source: Source) -> Document | None:
    """A document that can be used, if there is one among the first thousand."""
    tries = range(TRIES if source.endless else min(TRIES, len(source)))
    samples = (source.read(source.index_at(0, 0, position)) for position in tries)
    return next((sample.document for sample in samples if isinstance(sample, Sample)), None)


def uses_sketchbook(data: Specs) -> bool:
    return not data or any(spec.kind == "sketchbook" for spec in parse_specs(data))


def held_out(config: Any, limits: Limits) -> dict[str, list[Document | Case]]:
    """{name: what the model is scored on}: the first samples of `eval_data`, and cases of every Sketchbook family where
    training learns from Sketchbook."""
    found: dict[str, list[Document | Case]] = {}
    if config.eval_cases:
        if uses_sketchbook(config.data):
            found |= evaluation_cases(config.eval_cases)
        for source in (open_source(spec, limits=limits) for spec in parse_specs(config.eval_data)):
            samples = [sample.document for sample in islice(source.epoch(0, 0), config.eval_cases)]
            if not samples:
                raise DuoGenError(f"{source.name}, of eval_data, has no usable sample; run `data check` on it.")
            found[source.name] = samples
    return found


def evaluation_cases(count: int, families: Sequence[str] = tuple(FAMILIES)) -> dict[str, list[Case]]:
    """Fixed cases that no training seed draws."""
    return {f: [evaluation_case(f, rng_for(0, "mllm evaluation", f, k)) for k in range(count)] for f in families}
