"""The settings of stage 2, and what it learns from: documents, read by the frozen VAE and MLLM, and batches of them.

    batches = batches_of(run, config, vae, mllm, documents)     CachedBatches | OnlineBatches
    feed = Feed(batches.steps(run, config), …)                  step -> a process's share of its batch (feeding.py)
    prepared = batches.read(part.documents)                     of one pass: latents and states (prepared.py)

A batch is a function of (seed, step) alone, the same on every process; each takes its share of it, in passes of a
bounded number of tokens, and reads nothing else. VAE and MLLM do not train, so what they make of a document never
changes. states=cached: each document is read before the first step and kept, in shards in <out>/documents
(prepared_shards.py). states=online: read anew whenever a step wants it, pass by pass, on the device; for data that
would fill the disk. Alignment data is used here; documents in which the assistant draws nothing are passed over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

import torch

from duogen_core.data.sources import Limits
from duogen_core.data.sources.base import Excluded, stable_hash
from duogen_core.data.sources.mixture import Told
from duogen_core.document import Document
from duogen_core.mllm.base import Mllm
from duogen_core.training.configuration import ConfigError, RunConfig, check_betas, check_numbers, check_share
from duogen_core.training.data import (
    Example,
    FromExamples,
    Samples,
    StepExamples,
    TokenCounter,
    check_families,
    checksum,
    compare_settings,
    without_held_out,
    world,
)
from duogen_core.training.feeding import known_to, own_share, passes
from duogen_core.training.lora import LoraSettings
from duogen_core.training.prepared import Counted, DocumentInputs, Prepared, Reader, ReadInputs, targets_of
from duogen_core.training.prepared_shards import StoredDocument, prepare
from duogen_core.training.run import Run, rng_for
from duogen_core.vae import PictureVae

SHARD = 256  # documents


# -- settings


@dataclass(kw_only=True)
class Stage2Config(RunConfig):
    command: ClassVar[str] = "stage2"
    out: Path = Path("runs/stage2")
    vae: Path = Path("runs/vae/export")  # a diffusers folder or one file
    mllm: Path = Path("runs/stage1/export")
    init: Path | None = (
        None  # start from this checkpoint's dit/ and connector/, or a published base: Cosmos-Predict2.5, Wan
    )
    lora: LoraSettings | None = None  # of the DiT, learn small matrices beside the frozen ones: lora.rank=16
    dit: Literal["cosmos", "wan"] | None = None  # family of a new DiT, None: cosmos; one of `init` keeps its own
    layers: int = 6  # of a new DiT, as the three below; one that goes on from `init` keeps its own
    heads: int = 6
    patch: int = 2  # cells of the latent across a token of the DiT; 1 makes four times as many as `tokens` counts
    cross_width: int = 192  # of the text condition
    attention: Literal["frame_causal", "full"] = "frame_causal"  # between pictures; full: the paper's and Cosmos' own
    references: bool = True  # false: a picture is drawn without looking at earlier ones
    connector_layers: Literal["all", "last"] = "all"  # of the MLLM
    drop: Literal["last_segment", "all_text"] = "last_segment"  # what guidance's negative branch does not see
    data: list[Any] = field(default_factory=list)  # sources, as of `data check`; empty: Sketchbook's own cases
    eval_data: list[Any] = field(default_factory=list)  # sources that are not learnt from, for the validation loss
    eval_share: float = 0.0  # of the documents in `data`, chosen by their words: not learnt from, but scored on
    eval_cases: int = 4  # a family of Sketchbook, or a source; 0: no validation loss
    eval_minutes: float = 10.0
    eval_steps: int | None = None  # in the place of eval_minutes
    max_side: int = 160  # pixels of an image as the DiT sees and draws it; larger ones are made smaller, and counted
    states: Literal["cached", "online"] = "cached"  # when the MLLM reads a document: once, or whenever it comes up
    shards: int = 65  # of 256 documents each, cached
    documents: Path | None = None  # where the cached ones lie; None: <out>/documents
    precision: Literal["float16", "float32"] = "float16"  # of what is cached
    batch: int = 16  # documents a step, online
    packing: bool | None = None  # batches of documents of any sizes and counts; None: where there is `data`
    tokens: int = 5000  # of images and text: about those of a batch of cached documents, at most those of a pass online
    workers: int | None = None  # processes that read ahead; None: as many as a GPU leaves cores for, on a CPU none
    gradient_checkpointing: bool = False  # keep no states inside the blocks: less memory, a third more time
    compile: bool = False  # torch.compile of what the DiT's blocks repeat: a minute at the start, then faster steps
    single_image_weight: float = 6.0  # how much more often documents of a single image come up
    lr: float = 3e-3
    connector_lr: float | None = None  # None: a third of `lr`; each token of a step goes through all of the connector
    optimizer: Literal["muon", "adamw"] = "muon"  # for the DiT's matrices; AdamW has the rest, and all under FSDP
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW
    weight_decay: float = 0.01  # of matrices; norms and biases do not decay
    shift: float = 6.0  # twice that of sampling: Sketchbook's texts tell all of an image, so noise teaches the most
    unshifted_share: float = 0.35  # of targets, without shift: at high noise alone, outlines are never learnt sharply
    loss: Literal["velocity", "x0"] = "velocity"  # what the squared error is of; x0 makes less of low noise
    edge_weight: float = 0.0  # how much more the error counts where a latent is unlike its neighbours
    decoder_weight: float = 0.0  # of the pixels' error, through the VAE's decoder; a step takes much longer
    drop_text: float = 0.1
    reference_noise: float = 0.0  # the most on earlier pictures; while drawing they are its own, and never exact
    own_references: float = 0.0  # share of documents with its own guesses as earlier pictures, at the end; from 0
    sample_minutes: float = 10.0  # between answers to look at, in <out>/samples; 0: none
    export_steps: int = 500  # between exports, besides the one at the end; 0: only that one
    ema: float = 0.999
    clip: float = 1.0
    families: dict[str, float] = field(default_factory=lambda: dict(world().mixtures["stage2"]))

    def __post_init__(self) -> None:
        super().__post_init__()
        least = dict.fromkeys(("layers", "heads", "patch", "cross_width", "max_side", "shards", "batch", "tokens"), 1)
        least |= {
            "export_steps": 0,
            "reference_noise": 0,
            "eval_cases": 0,
            "eval_minutes": 0,
            "eval_steps": 1,
            "workers": 0,
        }
        check_numbers(self, least=least, above_0=("connector_lr",))
        check_betas(self.betas)
        check_share(self.eval_share)
        if not 0 <= self.own_references <= 1:
            raise ConfigError(f"'own_references' is {self.own_references:g}; expected a share, 0 to 1.")
        if self.own_references and self.attention == "full":
            raise ConfigError(
                "own_references needs attention=frame_causal; with full attention a pass has one target alone."
            )
        check_families("families", self.families, tuple(world().mixtures["stage2"]))  # those that draw
        if self.lora and self.lora.quantise:
            raise ConfigError(
                "'quantise' of lora is for the MLLM, in stage 1; the DiT's frozen weights stay as they are."
            )


# -- documents


@dataclass(frozen=True)
class DrawnLimits(Limits):
    """A sample must have a picture to learn."""

    def check(self, document: Document) -> None:
        super().check(document)
        if not any(turn.pictures for turn in document.turns if turn.role == "assistant"):
            raise Excluded("it has no image in an assistant turn, so stage 2 learns nothing from it.")


@dataclass
class DrawnSteps:
    """Documents that the world draws, `count` at a time; document k is a function of (seed, k)."""

    seed: int
    families: dict[str, float]
    count: int
    controlled: bool = False  # for a ControlNet
    streamed: ClassVar[bool] = False

    def readers(self, step: int, processes: int) -> list[None]:
        return [None] * self.count

    def headers(self, step: int, numbers: Sequence[int]) -> list[Example]:
        return self.read(step, numbers)

    def read(self, step: int, numbers: Sequence[int]) -> list[Example]:
        example = world().controlled_example if self.controlled else world().drawn_example
        places = [step * self.count + number for number in numbers]
        found = [example(rng_for(self.seed, "stage2", k), self.families) for k in places]
        return [each._replace(name=f"{each.name} {k}") for k, each in zip(places, found, strict=True)]


class Documents:
    """What a run learns from, `count` documents at a time: those of a step (online) or of a shard. `steps` reads them
    in any process; here is counted and said what was wrong with some."""

    def __init__(self, run: Run, config: Any, mllm: Mllm, count: int | None = None) -> None:
        """config: Stage2Config, or that of a ControlNet, whose documents are read in the same way."""
        self.run, self.config = run, config
        compare_settings(run)
        self.count = count or (config.batch if config.states == "online" else SHARD)
        self.samples: Samples | None = None
        self.shrunk = Told()  # names of documents with a picture larger than `max_side`
        counter = TokenCounter(mllm.tokenizer, mllm.image_processor)
        self.limits = DrawnLimits(max_tokens=mllm.max_positions, count_tokens=counter)
        self.steps: StepExamples
        if config.data:
            run.folder.mkdir(parents=True, exist_ok=True)
            limits = without_held_out(self.limits, getattr(config, "eval_share", 0.0))  # a ControlNet holds out none
            self.samples = Samples(run, config.data, self.count, limits, shared=config.states == "online")
            self.steps = self.samples.steps
        else:
            self.steps = DrawnSteps(run.seed, config.families, self.count, config.command == "controlnet")

    @property
    def recipe(self) -> dict[str, Any]:
        """What the documents depend on, for shards that outlive a run."""
        if self.samples is None:
            return {"families": self.config.families}
        return {"data": self.samples.mixture.recipe()["sources"]}

    @property
    def shards(self) -> int:
        """How many shards are made: `shards`, or fewer where each sample of `data` has been read once by then."""
        most = self.config.shards
        if self.samples is None or any(source.endless for source in self.samples.mixture.sources):
            return most
        epochs = self.samples.mixture.epochs
        return next((number for number in range(1, most) if min(epochs(number * self.count)) >= 1), most)

    def __call__(self, number: int) -> list[tuple[str, Document]]:
        """Names and documents of step or shard `number`."""
        examples = self.steps.read(number, range(self.count))
        if self.samples is not None:
            self.begin()
            self.samples.note(bad for each in examples for bad in each.skipped)
        return [(each.name, each.document) for each in examples]

    def begin(self) -> None:
        """To be called when the run knows its step."""
        if self.samples is not None and self.samples.log is None:
            self.samples.begin()

    def note(self, inputs: DocumentInputs) -> None:
        """Counts bad samples, and documents whose pictures are scaled down for training; reports the first at once."""
        self.begin()
        if self.samples is not None:
            self.samples.note(inputs.bad)
        for name, (width, height) in inputs.large:
            if not self.shrunk:
                limit = self.config.max_side
                self.run.say(
                    f"{name}: an image of {width}x{height} pixels is made smaller, since max_side is {limit}; so are "
                    "all that are larger. To learn them as they are, give a larger max_side."
                )
            self.shrunk.add(name)

    def some(self) -> dict[str, Document]:
        """A document of each source of `data`, to look at what is answered to it."""
        return {} if self.samples is None else {name: some[0].document for name, some in self.samples.some().items()}

    def summary(self) -> str:
        """What was passed over, and how many documents were made smaller; "" for neither. All processes must ask."""
        shrunk = Told.together(self.run.processes.gather(self.shrunk))
        smaller = (
            f"{shrunk:,} documents have images larger than max_side={self.config.max_side}, which are made smaller."
        )
        held_out = ", or which are held out" if getattr(self.config, "eval_share", 0.0) else ""
        told = self.samples.summary(f"in which the assistant draws nothing{held_out}") if self.samples else ""
        return f"{told} {smaller if shrunk else ''}".strip()


# -- the batches of a run


@dataclass
class Pass:
    """Documents that run together. numbers: theirs in the step; none, where other processes have more passes."""

    numbers: list[int]
    documents: DocumentInputs | list[Prepared]

    def pin_memory(self) -> Pass:
        pinned = self.documents.pin_memory() if isinstance(self.documents, DocumentInputs) else self.documents
        return replace(self, documents=pinned)


@dataclass
class Share:
    """What a process learns from in a step. All processes have equally many passes."""

    passes: list[Pass]
    names: list[str]  # of all documents of the step
    targets: int  # pictures that this process learns
    tokens: int  # of images and text in its passes
    checksum: int  # of what all processes see of the step
    apart: bool = False  # shared out by streams: a process knows its own passes alone, others may have more

    def pin_memory(self) -> Share:
        return replace(self, passes=[each.pin_memory() for each in self.passes])


@dataclass
class Steps:
    """What cached and online have in common: a step's documents are shared out by their tokens, in passes."""

    seed: int
    attention: str
    rank: int
    processes: int

    def token_count(self, step: int, number: int, document: Counted) -> int:
        """Tokens that the DiT has of document `number` of a step."""
        _, targets = targets_of(document.drawn, self.attention, rng_for(self.seed, f"flow/{number}", step))
        return document.pass_tokens(targets)

    def targets(self, documents: Sequence[Counted]) -> int:
        return sum(1 if self.attention == "full" else len(each.drawn) for each in documents)


class CachedBatches:
    """Prepared documents. A batch is about `tokens` tokens, of documents of one shape or, packed, of any.

    Documents without any earlier picture come up `single_weight` times as often: there everything has to come from the
    words, and that is learnt last.
    """

    def __init__(
        self,
        documents: Sequence[Prepared | StoredDocument],
        tokens: int,
        single_weight: float = 1.0,
        packing: bool = False,
        attention: str = "frame_causal",
    ) -> None:
        """tokens: of clean and noisy frames and of text, as `attention` has them in a pass over a document."""
        self.tokens, self.packing, self.attention = tokens, packing, attention
        shapes: dict[tuple, list[Prepared | StoredDocument]] = defaultdict(list)
        for document in documents:
            shapes[document.shape].append(document)
        self.shapes = list(shapes.values())
        # As many documents of a shape as hold so many tokens on average, however long the texts of these are.
        means = (sum(each.tokens(attention) for each in like) / len(like) for like in self.shapes)
        self.counts = [max(1, round(tokens / mean)) for mean in means]
        self.weights = [len(each) * (single_weight if each[0].drawn[-1] == 0 else 1.0) for each in self.shapes]
        self.edges = list(accumulate(self.weights))

    def batch(self, step: int, rng: Random) -> list[Prepared | StoredDocument]:
        """rng: of this step."""
        number = self._shape(rng)
        like = self.shapes[number]
        if not self.packing:
            return [rng.choice(like) for _ in range(self.counts[number])]
        found = [rng.choice(like)]
        tokens = found[0].tokens(self.attention)
        while True:
            another = rng.choice(self.shapes[self._shape(rng)])
            tokens += another.tokens(self.attention)
            if tokens > self.tokens:
                return found
            found.append(another)

    def _shape(self, rng: Random) -> int:
        return rng.choices(range(len(self.shapes)), cum_weights=self.edges)[0]

    def steps(self, run: Run, config: Stage2Config) -> CachedSteps:
        return CachedSteps(run.seed, config.attention, run.processes.rank, run.processes.count, self)

    def read(self, documents: list[Prepared]) -> list[Prepared]:
        return documents

    def begin(self) -> None:
        """The documents are there."""

    def note(self, share: Share) -> None:
        """What was wrong with documents was said when they were read."""


@dataclass
class CachedSteps(Steps):
    batches: CachedBatches

    def __call__(self, step: int) -> Share:
        documents = self.batches.batch(step, rng_for(self.seed, "data", step))
        tokens = [self.token_count(step, i, document) for i, document in enumerate(documents)]
        (mine,) = passes(tokens, float("inf"), self.processes)[self.rank]  # one: the batch is bounded already
        read = [each.load() if isinstance(each, StoredDocument) else each for each in (documents[k] for k in mine)]
        return Share(
            [Pass(mine, read)],
            names=[each.name for each in documents],
            targets=self.targets(read),
            tokens=sum(tokens[k] for k in mine),
            checksum=stable_hash(*((each.ends, each.drawn, each.sizes) for each in documents)),
        )


class OnlineBatches:
    """`batch` documents a step, read by VAE and MLLM anew."""

    def __init__(self, documents: Documents, reader: Reader) -> None:
        self.documents, self.reader = documents, reader

    def steps(self, run: Run, config: Stage2Config) -> OnlineSteps:
        return OnlineSteps(
            run.seed, config.attention, run.processes.rank, run.processes.count, self.documents.steps,
            self.reader.inputs, config.tokens,
        )  # fmt: skip

    def read(self, documents: DocumentInputs) -> list[Prepared]:
        return self.reader.encode(documents)

    def begin(self) -> None:
        self.documents.begin()  # before workers get their copies of the sources

    def note(self, share: Share) -> None:
        for each in share.passes:
            if each.numbers:
                self.documents.note(each.documents)


@dataclass
class OnlineSteps(FromExamples, Steps):
    examples: StepExamples
    inputs: ReadInputs
    tokens: int

    def __call__(self, step: int) -> Share:
        readers = self.examples.readers(step, self.processes)
        known = known_to(self.rank, readers)
        given = dict(zip(known, self.examples.headers(step, known), strict=True))
        headers = {k: self.inputs.header(each.document, each.name) for k, each in given.items()}
        tokens = {k: self.token_count(step, k, header) for k, header in headers.items()}
        apart = any(reader is not None for reader in readers)
        if apart:
            mine = own_share(tokens, self.rank, self.processes, readers)
            packs = [[mine[k] for k in pack] for pack in passes([tokens[k] for k in mine], self.tokens)[0]]
        else:
            packs = passes(list(tokens.values()), self.tokens, self.processes)[self.rank]
        found, names, targets = [], {k: each.name for k, each in headers.items()}, 0
        for pack in packs:
            if not pack:
                found.append(Pass([], []))
                continue
            examples = self.examples.read(step, pack)
            inputs = self.inputs([each.document for each in examples], [each.name for each in examples])
            inputs.bad = [bad for each in examples for bad in each.skipped]
            for number, each, spots in zip(pack, examples, inputs.places, strict=True):
                names[number] = each.name
                targets += 1 if self.attention == "full" else len(spots["drawn"])
            found.append(Pass(pack, inputs))
        return Share(
            found,
            names=list(names.values()),
            targets=targets,
            tokens=sum(tokens[k] for pack in packs for k in pack),
            checksum=checksum(given[k] for k, reader in enumerate(readers) if reader is None),
            apart=apart,
        )


def batches_of(
    run: Run, config: Stage2Config, vae: PictureVae, mllm: Mllm, documents: Documents
) -> CachedBatches | OnlineBatches:
    dtype = getattr(torch, config.precision)
    if config.states == "online":
        return OnlineBatches(documents, Reader(vae, mllm, config.max_side, dtype, keep=run.processes.device))
    prepared = prepare(run, config, documents, Reader(vae, mllm, config.max_side, dtype))
    if told := documents.summary():
        run.say(told)
    packing = bool(config.data) if config.packing is None else config.packing
    return CachedBatches(prepared, config.tokens, config.single_image_weight, packing, config.attention)
