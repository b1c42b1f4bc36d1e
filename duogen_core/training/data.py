"""What training learns from: documents of the sources that `data` of a configuration lists, or else of a world.

A step's examples are a function of (seed, step) alone: of sources, sample k = step * batch + i of a mixture. They come
in two ways (`StepExamples`): all of a step with the sizes of their pictures alone, by which every process finds its
share, and those of its share whole. That half can be sent to worker processes (feeding.py). Bad samples are replaced,
counted and named in <run folder>/bad_samples.jsonl; <run folder>/data.json tells a resumed run whether the data is
still the same. A world (`World`) is a procedural source that knows more than documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from platform import node
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from duogen_core.data.sources import (
    Bad,
    BadLog,
    Limits,
    Mixture,
    Sample,
    Source,
    open_mixture,
    open_source,
    parse_specs,
)
from duogen_core.data.sources.base import stable_hash
from duogen_core.data.sources.mixture import Fetched, Told, differences
from duogen_core.data.sources.spec import source_class
from duogen_core.document import Document
from duogen_core.errors import DuoGenError, unknown
from duogen_core.mllm.chat import image_token_counts, layout
from duogen_core.training.checkpoints import write_text
from duogen_core.training.configuration import ConfigError, TrainingError
from duogen_core.training.metrics import changes, sentence
from duogen_core.training.run import Run, rng_for
from duogen_core.training.trackers import without_secrets

if TYPE_CHECKING:
    from torch import Tensor

LOOKED_AT = 16  # samples of each source, before the first step
TRIES = 1000
TOLD = 3  # bad samples that the terminal names; the file has all

Specs = Sequence[Any]


def check_families(setting: str, weights: Mapping[str, float], known: Sequence[str]) -> None:
    """A ConfigError for a family of tasks that the world lacks, or for weights that choose none."""
    for name, weight in weights.items():
        if name not in known:
            raise ConfigError(unknown(f"'{setting}': the task family", name, known))
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"'{setting}.{name}' is {weight}; expected a number from 0 on.")
    if not any(weights.values()):
        raise ConfigError(f"'{setting}' has no task family with a weight above 0; it can have {', '.join(known)}.")


class Example(NamedTuple):
    name: str
    document: Document
    drawn_teach: bool = True  # whether the vision tower learns from pictures of the assistant, too
    shown: bool = True  # whether its request is answered in <out>/samples, if it is one of those to be scored on
    skipped: tuple[Bad, ...] = ()  # bad samples in whose place it stands


class World(Protocol):
    """What a procedural source offers beyond documents: families of tasks to mix, fixed cases to score on, and probes.

    Where a configuration names no `data`, training learns from the world of the small model, which is found by the
    kind of its source (`world`). Training itself knows no scene and no task.
    """

    families: tuple[str, ...]
    mixtures: Mapping[str, Mapping[str, float]]  # {"stage1": how often each family comes up, "stage2": …, "replay": …}
    vision_families: tuple[str, ...]  # whose drawn pictures teach the vision tower, too
    probe_weight: float  # of the probes' loss in stage 1

    def examples(
        self, rng: Random, weights: Mapping[str, float], count: int, vision_families: Sequence[str]
    ) -> list[Example]: ...

    def evaluation_examples(self, count: int, vision_families: Sequence[str] = ()) -> dict[str, list[Example]]:
        """Fixed cases of every family that no training seed draws."""

    def drawn_example(self, rng: Random, weights: Mapping[str, float]) -> Example:
        """For stage 2: pictures of one size, the assistant's after the user's."""

    def controlled_example(self, rng: Random, weights: Mapping[str, float]) -> Example:
        """For a ControlNet: the same, where the outlines of the assistant's pictures say what its words do not."""

    def ideals(self) -> dict[str, Document]:
        """Ideal conversations whose requests stage 2 answers in <out>/samples."""

    def probes(self, tokenizer: Any, layers: int, hidden: int) -> Probes: ...


class Probes(Protocol):
    """A module of linear probes that reads out of hidden states what tokens stand for; thrown away after training."""

    def labels(self, ids: Sequence[int]) -> list[list[int]]:
        """What each probe should say at each token; -1: nothing."""

    def __call__(self, states: Sequence[Tensor], labels: Tensor) -> Tensor:
        """States of all layers, [B, N, hidden] each, and labels [B, N, probes] -> mean cross-entropy."""


def world(kind: str = "sketchbook") -> World:
    return source_class(kind).world()


class StepExamples(Protocol):
    """The examples of any step, for whoever may have to read them: it can be sent to another process."""

    streamed: bool  # whether some lie in lanes of streams, which not every process should read

    def readers(self, step: int, processes: int) -> Sequence[int | None]:
        """Which of so many processes should read each sample of the step; None: any, at the same cost."""

    def headers(self, step: int, numbers: Sequence[int]) -> Sequence[Example]:
        """Those of these numbers in the step, cheaply and the same on every process: pictures may have their sizes
        alone."""

    def read(self, step: int, numbers: Sequence[int]) -> list[Example]:
        """Those of these numbers in the step, whole. One that is found bad only now is replaced by another."""


class FromExamples:
    """What a process's steps (feeding.py) hand on to the examples that they are made of, which may be streams."""

    examples: StepExamples
    rank: int
    processes: int

    @property
    def streamed(self) -> bool:
        return self.examples.streamed

    def fetch(self, step: int) -> dict[int, Any]:
        return self.examples.fetch(step, self.rank, self.processes)

    def give(self, fetched: dict[int, Any]) -> None:
        self.examples.give(fetched)


@dataclass
class WorldSteps:
    """Examples that the world draws, families by their weights: a step's all at once, since one goes on from another's
    random numbers. So every process draws all of them, which costs little."""

    seed: int
    weights: Mapping[str, float]
    batch: int
    vision_families: Sequence[str]
    streamed: ClassVar[bool] = False
    _drawn: tuple[int, Sequence[Example]] = (-1, ())  # of the last step that was asked for

    def readers(self, step: int, processes: int) -> list[None]:
        return [None] * self.batch

    def headers(self, step: int, numbers: Sequence[int]) -> list[Example]:
        if self._drawn[0] != step:
            rng = rng_for(self.seed, "data", step)
            self._drawn = step, world().examples(rng, self.weights, self.batch, self.vision_families)
        return [self._drawn[1][number] for number in numbers]

    read = headers


@dataclass
class MixtureSteps:
    """Examples `batch` at a time, in the order of a mixture's draws."""

    mixture: Mixture
    batch: int

    @property
    def streamed(self) -> bool:
        return self.mixture.streamed

    def readers(self, step: int, processes: int) -> list[int | None]:
        return [self.mixture.reader(step * self.batch + k, processes) for k in range(self.batch)]

    def headers(self, step: int, numbers: Sequence[int]) -> list[Example]:
        return [_example(self.mixture.header(step * self.batch + k)) for k in numbers]

    def read(self, step: int, numbers: Sequence[int]) -> list[Example]:
        return [_example(self.mixture.draw(step * self.batch + k)) for k in numbers]

    def fetch(self, step: int, rank: int, processes: int) -> dict[int, Fetched]:
        """What a process of the run has in its lanes, read by its one reader for the workers that decode."""
        readers = enumerate(self.readers(step, processes), step * self.batch)
        return {k: self.mixture.fetch(k) for k, reader in readers if reader == rank}

    def give(self, fetched: Mapping[int, Fetched]) -> None:
        self.mixture.give(fetched)


def _example(sample: Sample) -> Example:
    return Example(sample.label, sample.document, skipped=sample.skipped)


class WorldExamples:
    """What a run learns from the world."""

    def __init__(self, run: Run, config: Any) -> None:
        self.config = config
        self.steps = WorldSteps(run.seed, config.weights, config.batch, config.vision_families)

    def begin(self) -> None:
        """The run folder is there."""

    def note(self, bad: Iterable[Bad]) -> None:
        """A world has no bad samples."""

    def some(self) -> dict[str, list[Example]]:
        return world().evaluation_examples(1, self.config.vision_families)

    def summary(self) -> str:
        return ""


class Samples:
    """Documents of a mixture of sources, and what was wrong with some."""

    def __init__(self, run: Run, data: Specs, batch: int, limits: Limits, shared: bool = True) -> None:
        """shared: whether the processes share out what they read of a step, and do not only read it before the run."""
        self.run = run
        name = "bad_samples.jsonl" if run.main else f"bad_samples.{run.processes.rank}.jsonl"
        self.file = run.folder / name
        self.mixture = open_mixture(data, run.seed, limits=limits)
        self.steps = MixtureSteps(self.mixture, batch)
        left_out = [str(spec) for spec in parse_specs(data) if spec.alignment and not limits.alignment]
        if left_out:
            run.say(f"Left out as alignment data: {', '.join(left_out)}.")
        count = run.processes.count
        for source in self.mixture.sources if count > 1 and shared else ():
            if source.lanes is not None and source.lanes % count:
                run.say(
                    f"{source.name} is read in {source.lanes} lanes by {count} processes, so in a step some learn more "
                    f"than others, who wait. Set lanes to a multiple of {count}, with as many shards at least."
                )
        contents = [look_over(source, run.say) for source in self.mixture.sources]
        compare_data(run, self.mixture, contents)
        self.log: BadLog | None = None

    def begin(self) -> None:
        """Opens the list of bad samples and the notes of streams, now that the run folder is there, and compares the
        data with that of the session before."""
        self.log = BadLog(self.file)
        self.mixture.keep(self.run.folder / "stream")
        self._compare()

    def note(self, bad: Iterable[Bad]) -> None:
        """Counts bad samples that this process met, and names the first ones."""
        for each in bad:
            self._on_bad(each)

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

    def some(self) -> dict[str, list[Example]]:
        """An example of each source."""
        found = {source.name: first_of(source) for source in self.mixture.sources}
        return {name: [Example(name, document)] for name, document in found.items() if document is not None}

    def summary(self, excluded: str = "of alignment data") -> str:
        """What all processes passed over; all of them must ask. excluded: what was not asked for is."""
        bad, unwanted = self.passed_over()
        parts = [f"{bad:,} bad {'sample' if bad == 1 else 'samples'}"] if bad else []
        parts += [f"{unwanted:,} {excluded}"] if unwanted else []
        return f"{' and '.join(parts)} passed over, named in {self.file}." if parts else ""

    def passed_over(self) -> tuple[int, int]:
        """Bad samples, and those that were not asked for: each once, whichever processes met it."""
        logs = self.run.processes.gather((self.log.bad, self.log.unwanted) if self.log else (Told(), Told()))
        return tuple(Told.together(each) for each in zip(*logs, strict=True))


def look_over(source: Source, say: Callable[[str], None]) -> dict[str, str]:
    """Reads some samples; a DuoGenError if none of them is good, a sentence if some are not. Returns a digest of each
    one's text and pixels, by its number."""
    found = source.look(LOOKED_AT)
    count = len(found)
    bad = [each for each in found if isinstance(each, Bad)]
    if count and len(bad) == count:
        raise DuoGenError(
            f"{source.name}: none of {count} samples looked at can be used; the first one: {bad[0].sentence} "
            "`data check` names what is wrong with each."
        )
    wrong = [each for each in bad if not each.excluded]
    if wrong:
        say(f"{source.name}: {len(wrong)} of {count} samples looked at cannot be used, such as: {wrong[0].sentence}")
    return {str(each.index): "bad" if isinstance(each, Bad) else contents_of(each.document) for each in found}


def checksum(examples: Iterable[Example]) -> int:
    """Of the words and the sizes of pictures, by which processes find out that they see different data."""
    return stable_hash(*(
        ([(turn.role, turn.text) for turn in each.document.turns], [p.size for p in each.document.pictures])
        for each in examples
    ))  # fmt: skip


def contents_of(document: Document) -> str:
    words = [(turn.role, turn.text) for turn in document.turns]
    return f"{stable_hash(words, [picture.digest for picture in document.pictures]):016x}"


def compare_settings(run: Run) -> None:
    """A TrainingError if some process of the run has other settings: on each machine its own file is read."""
    own = ("device", "out", "threads", "workers")  # what a machine may have of its own
    mine = {name: value for name, value in run.config.items() if name not in own}
    first, *others = run.processes.gather(mine)
    for rank, each in enumerate(others, start=1):
        if each != first:
            raise TrainingError(
                f"Process {rank} has other settings than process 0 "
                f"({sentence(without_secrets(changes(first, each)))}); give every machine the same configuration."
            )


def compare_data(run: Run, mixture: Mixture, contents: Sequence[Mapping[str, str]]) -> None:
    """A TrainingError if some process sees other sources: on each machine its own files are read."""
    found = run.processes.gather((mixture.recipe(), list(contents), node()))
    recipe, first, _ = found[0]
    for rank, (other, its, machine) in enumerate(found[1:], start=1):
        told = differences(recipe, other)
        for source, a, b in zip(mixture.sources, first, its, strict=False):
            told += [f"sample {index} of {source.name} is another" for index in a if a[index] != b.get(index)][:1]
        if told:
            raise TrainingError(
                f"Process {rank}, on {machine}, sees other data than process 0: {'; '.join(told)}. Copy the same files "
                "to every machine, or put them where all can read them."
            )


@dataclass
class TokenCounter:
    """The tokens of a document as the MLLM reads it; it may have the sizes of its pictures alone."""

    tokenizer: Any
    processor: Any

    def __call__(self, document: Document) -> int:
        return len(layout(document, self.tokenizer, image_token_counts(document, self.processor)).ids)


def open_data(run: Run, config: Any, limits: Limits) -> WorldExamples | Samples:
    compare_settings(run)
    if config.data:
        return Samples(run, config.data, config.batch, limits)
    return WorldExamples(run, config)


def first_of(source: Source) -> Document | None:
    """A document that can be used, if there is one among those looked at, or the first thousand."""
    for found in source.look(LOOKED_AT) if source.endless else ():
        if isinstance(found, Sample):
            return found.document
    tries = range(TRIES if source.endless else min(TRIES, len(source)))
    samples = (source.read(source.index_at(0, 0, position)) for position in tries)
    return next((sample.document for sample in samples if isinstance(sample, Sample)), None)


def is_held_out(document: Document, share: float, wanted: bool = True) -> bool:
    """Whether a document belongs to the share that is not learnt from (or, with wanted=False, does not).

    Decided by its words alone: the same on every machine and wherever the document stands, and copies of one document
    are on one side, also with images of another size.
    """
    words = [(turn.role, turn.text) for turn in document.turns]
    return (stable_hash("held out", words) < share * 2**64) == wanted


def without_held_out(limits: Limits, share: float) -> Limits:
    """Limits of what is learnt from."""
    return replace(limits, wanted=partial(is_held_out, share=share, wanted=False)) if share else limits


def held_out(config: Any, limits: Limits) -> dict[str, list[Example]]:
    """{name: what the model is scored on}: the first samples of `eval_data`, the share `eval_share` of `data`, and
    cases of every family of the world where training learns from it. limits: without those of the share."""
    found: dict[str, list[Example]] = {}
    if not config.eval_cases:
        return found
    if not config.data or any(spec.kind == "sketchbook" for spec in parse_specs(config.data)):
        cases = world().evaluation_examples(config.eval_cases, getattr(config, "vision_families", ()))
        found |= {name: good for name, some in cases.items() if (good := [e for e in some if fits(e, limits)])}
    for source in (open_source(spec, limits=limits) for spec in parse_specs(config.eval_data)):
        samples = some_of(source, config.eval_cases, TRIES)
        if not samples:
            raise DuoGenError(f"{source.name}, of eval_data, has no usable sample; run `data check` on it.")
        found[source.name] = samples
    if config.eval_share:
        share = replace(limits, wanted=partial(is_held_out, share=config.eval_share))
        for source in (open_source(spec, limits=share) for spec in parse_specs(config.data)):
            if source.drawn:
                continue
            samples = some_of(source, config.eval_cases, TRIES + round(4 * config.eval_cases / config.eval_share))
            if not samples:
                raise DuoGenError(
                    f"{source.name}: eval_share={config.eval_share:g} holds out none of the samples looked at; give "
                    "a larger share, or documents of their own as eval_data."
                )
            found[f"{source.name} held out"] = samples
    return found


def fits(example: Example, limits: Limits) -> bool:
    try:
        limits.check(example.document)
    except DuoGenError:
        return False
    return True


def some_of(source: Source, count: int, tries: int) -> list[Example]:
    """The first usable samples of a source, looking at `tries` places at most."""
    found: list[Example] = []
    for position in range(tries if source.endless else min(tries, len(source))):
        sample = source.read(source.index_at(0, 0, position))
        if isinstance(sample, Sample):
            found.append(Example(sample.label, sample.document))
        if len(found) == count:
            break
    return found
