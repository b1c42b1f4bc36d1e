"""The settings of stage 2, and what it learns from: documents, read once by the frozen VAE and MLLM, and batches.

    batches_of(run, config, vae, mllm, documents)  -> CachedBatches | OnlineBatches, whose batch is a function of
                                                      (seed, step) alone, the same on every process

Of a document: a latent [16, h, w] of every picture, states [tokens, layers * width] already normalised as the connector
does it, and the places that guidance and frame-causal attention need (chat.PictureContext). VAE and MLLM do not train,
so these never change. states=cached: each document is read before the first step and kept, in shards of safetensors in
<out>/documents, made again only where missing; a shard made of other documents or models is refused. states=online:
read anew whenever a step wants it, for data that would fill the disk. Alignment data is used here; documents in which
the assistant draws nothing are passed over.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from duogen_core.checkpoint import CheckpointConfig, PictureSize
from duogen_core.connector import normalise
from duogen_core.data.sources import Limits
from duogen_core.data.sources.base import Excluded
from duogen_core.data.sources.mixture import differences
from duogen_core.document import Document, Picture
from duogen_core.files import atomic_path
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import Layout, build_inputs
from duogen_core.mllm.decoder import hidden_states_for
from duogen_core.picture_sampling import reference_pixels
from duogen_core.training.configuration import (
    ConfigError,
    RunConfig,
    TrainingError,
    check_betas,
    check_numbers,
    check_share,
)
from duogen_core.training.data import Samples, TokenCounter, check_families, without_held_out, world
from duogen_core.training.lora import LoraSettings
from duogen_core.training.metrics import changes, sentence
from duogen_core.training.run import Run, rng_for
from duogen_core.vae import PictureVae, pixels_to_tensor

SHARD = 256  # documents
SEGMENT = "user"  # the rule that is trained (ConnectorConfig.segment); shards of before it was recorded have "none"
CHUNK = 16  # pictures, or documents, that run together

Named = Callable[[int], Sequence[tuple[str, Document]]]  # number -> names and documents


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
    layers: int = 6  # of a new DiT, as the two below; one that goes on from `init` keeps its own
    heads: int = 6
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
    frames: int = 48  # of a batch of cached documents (`full`: on average), and at most of a pass online
    gradient_checkpointing: bool = False  # keep no states inside the blocks: less memory, a third more time
    single_image_weight: float = 6.0  # how much more often documents of a single image come up
    lr: float = 3e-3
    connector_lr: float | None = None  # None: a third of `lr`; each token of a step goes through all of the connector
    optimizer: Literal["muon", "adamw"] = "muon"  # for the DiT's matrices; AdamW has the rest, and all under FSDP
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW
    weight_decay: float = 0.01  # of matrices; norms and biases do not decay
    shift: float = 6.0  # twice that of sampling: Sketchbook's texts tell all of an image, so noise teaches the most
    unshifted_share: float = 0.35  # of targets, without shift: at high noise alone, outlines are never learnt sharply
    drop_text: float = 0.1
    sample_minutes: float = 10.0  # between answers to look at, in <out>/samples; 0: none
    export_steps: int = 500  # between exports, besides the one at the end; 0: only that one
    ema: float = 0.999
    clip: float = 1.0
    families: dict[str, float] = field(default_factory=lambda: dict(world().mixtures["stage2"]))

    def __post_init__(self) -> None:
        super().__post_init__()
        least = dict.fromkeys(("layers", "heads", "cross_width", "max_side", "shards", "batch", "frames"), 1)
        least |= {"export_steps": 0, "eval_cases": 0, "eval_minutes": 0, "eval_steps": 1}
        check_numbers(self, least=least, above_0=("connector_lr",))
        check_betas(self.betas)
        check_share(self.eval_share)
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


class Documents:
    """number of a step (online) or of a shard -> names and documents: `count` at a time, one after the other."""

    def __init__(self, run: Run, config: Any, mllm: Mllm, count: int | None = None) -> None:
        """config: Stage2Config, or that of a ControlNet, whose documents are read in the same way."""
        self.run, self.config = run, config
        self.count = count or (config.batch if config.states == "online" else SHARD)
        self.samples: Samples | None = None
        self.shrunk: set[str] = set()  # names of documents with a picture larger than `max_side`
        counter = TokenCounter(mllm.tokenizer, mllm.image_processor)
        self.limits = DrawnLimits(max_tokens=mllm.max_positions, count_tokens=counter)
        if config.data:
            run.folder.mkdir(parents=True, exist_ok=True)
            limits = without_held_out(self.limits, getattr(config, "eval_share", 0.0))  # a ControlNet holds out none
            self.samples = Samples(run, config.data, self.count, limits)

    @property
    def recipe(self) -> dict[str, Any]:
        """What the documents depend on, for shards that outlive a run."""
        if self.samples is None:
            return {"families": self.config.families}
        return {"data": self.samples.mixture.recipe()["sources"]}

    def __call__(self, number: int) -> list[tuple[str, Document]]:
        if self.samples is not None:
            if self.samples.log is None:
                self.samples.begin()
            examples = self.samples.steps.read(number, range(self.count))
            for example in examples:
                self.samples.note(example.skipped)
            found = [(example.name, example.document) for example in examples]
        else:
            found = self._drawn(number)
        for name, document in found:
            self._note_shrunk(name, document)
        return found

    def _drawn(self, number: int) -> list[tuple[str, Document]]:
        numbers = range(number * self.count, (number + 1) * self.count)
        example = world().controlled_example if self.config.command == "controlnet" else world().drawn_example
        found = [example(rng_for(self.run.seed, "stage2", k), self.config.families) for k in numbers]
        return [(f"{each.name} {k}", each.document) for k, each in zip(numbers, found, strict=True)]

    def _note_shrunk(self, name: str, document: Document) -> None:
        """Counts documents whose pictures are scaled down for training; reports the first one at once."""
        limit = self.config.max_side
        large = [picture.size for picture in document.pictures if max(picture.size) > limit]
        if large and not self.shrunk:
            width, height = large[0]
            self.run.say(
                f"{name}: an image of {width}x{height} pixels is made smaller, since max_side is {limit}; so are all "
                "that are larger. To learn them as they are, give a larger max_side."
            )
        if large:
            self.shrunk.add(name)

    def some(self) -> dict[str, Document]:
        """A document of each source of `data`, to look at what is answered to it."""
        return {} if self.samples is None else {name: some[0].document for name, some in self.samples.some().items()}

    def summary(self) -> str:
        """What was passed over, and how many documents were made smaller; "" for neither."""
        smaller = f"{len(self.shrunk):,} documents have images larger than max_side={self.config.max_side}, which are "
        smaller = f"{smaller}made smaller." if self.shrunk else ""
        log = self.samples and self.samples.log
        if not log:
            return smaller
        bad, silent = len(log) - log.excluded, log.excluded
        parts = [f"{bad:,} bad samples"] if bad else []
        held_out = ", or which are held out" if getattr(self.config, "eval_share", 0.0) else ""
        parts += [f"{silent:,} in which the assistant draws nothing{held_out}"] if silent else []
        return f"{' and '.join(parts)} passed over, named in {self.samples.file}. {smaller}".rstrip()


# -- read by VAE and MLLM


@dataclass(frozen=True)
class Prepared:
    """One document. ends, segments: of each picture, in order (segments: what guidance drops; empty for the user's)."""

    latents: tuple[Tensor, ...]  # [16, h, w] each
    states: Tensor  # [tokens before the last <BOV>, layers * width], normalised
    ends: tuple[int, ...]
    segments: tuple[tuple[int, int], ...]
    drawn: tuple[int, ...]  # the assistant's pictures: what can be learnt
    name: str = ""  # for errors
    controls: tuple[Tensor, ...] = ()  # for a ControlNet, [16, h, w] of each drawn picture's outlines

    @property
    def shape(self) -> tuple:
        """Documents of one shape make a batch in which every operation is one."""
        return tuple(tuple(latent.shape[-2:]) for latent in self.latents), self.drawn

    def frames(self, attention: str = "frame_causal") -> float:
        """Clean and noisy frames of one pass over this document; under `full`, the mean over its possible targets.

        Earlier pictures count where `references` is off too, so that such a run has as many targets.
        """
        if attention == "full":  # one random target, and every picture before it
            return 1 + sum(self.drawn) / len(self.drawn)
        return self.drawn[-1] + len(self.drawn)  # a noisy frame for every picture drawn


def prepared_of(latents: Iterable[Tensor], states: Tensor, spots: Mapping[str, Any], name: str) -> Prepared:
    segments = tuple((a, b) for a, b in spots["segments"])
    return Prepared(tuple(latents), states, tuple(spots["ends"]), segments, tuple(spots["drawn"]), name)


def places(layout: Layout, segment: Literal["user", "none"] = SEGMENT) -> dict[str, Any]:
    """Token places of the pictures up to the last drawn one: {"ends": [n], "segments": [[a, b]], "drawn": [k]}.

    segments: what guidance drops, by the rule of the connector's config (`Layout.context_of`); empty for pictures that
    are not drawn.
    """
    drawn = [k for k, span in enumerate(layout.pictures) if span.drawn]
    contexts = [layout.context_of(k, segment=segment) for k in range(drawn[-1] + 1)]
    segments = [
        context.last_segment if k in drawn else (context.end, context.end) for k, context in enumerate(contexts)
    ]
    return {"ends": [context.end for context in contexts], "segments": segments, "drawn": drawn}


class Reader:
    """Documents -> what training reads of them. dtype: in which latents and states are kept."""

    def __init__(self, vae: PictureVae, mllm: Mllm, max_side: int = 160, dtype: torch.dtype = torch.float16) -> None:
        """max_side: of a picture as the DiT sees and draws it; larger ones are made smaller."""
        self.vae, self.mllm, self.dtype = vae, mllm, dtype
        self.config = CheckpointConfig(picture=PictureSize(max_side=max_side, step=vae.size_step))
        self.on_progress: Callable[[float], object] = lambda share: None  # told how much of a call is done, 0 to 1

    def __call__(self, documents: Sequence[Document], names: Sequence[str] = ()) -> list[Prepared]:
        states, spots = self.states(documents)
        # pictures after the last drawn one are not learnt from
        pictures = [document.pictures[: len(each["ends"])] for document, each in zip(documents, spots, strict=True)]
        latents = self.latents(pictures)
        names = names or [""] * len(documents)
        return [prepared_of(*each) for each in zip(latents, states, spots, names, strict=True)]

    @torch.inference_mode()
    def latents(self, pictures: Sequence[Sequence[Picture]]) -> list[tuple[Tensor, ...]]:
        """Per document a latent [16, h, w] of every picture; those of one size are encoded processes."""
        by_size = defaultdict(list)
        for row, own in enumerate(pictures):
            for k, picture in enumerate(own):
                pixels = reference_pixels(picture, self.config)
                by_size[pixels.shape].append((row, k, pixels))
        found: dict[tuple[int, int], Tensor] = {}
        for entries in by_size.values():
            for at in range(0, len(entries), CHUNK):
                chunk = entries[at : at + CHUNK]
                batch = torch.cat([pixels_to_tensor(pixels.copy()) for _, _, pixels in chunk])
                latents = self.vae.encode(batch.to(self.vae.device)).to("cpu", self.dtype)
                found |= {(row, k): latent for (row, k, _), latent in zip(chunk, latents, strict=True)}
                self.on_progress(0.5 + 0.5 * len(found) / sum(map(len, pictures)))  # the other half: the MLLM, before
        return [tuple(found[row, k] for k in range(len(own))) for row, own in enumerate(pictures)]

    @torch.inference_mode()
    def states(self, documents: Sequence[Document]) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """Per document the normalised states of all layers [tokens, L * H], and the pictures' places."""
        mllm = self.mllm
        states, found = [], []
        by_length = sorted(range(len(documents)), key=lambda k: len(documents[k].pictures))
        order: list[int] = []
        for at in range(0, len(by_length), CHUNK):
            rows = by_length[at : at + CHUNK]
            batch = build_inputs([documents[k] for k in rows], mllm.tokenizer, mllm.image_processor)
            moved = {k: v.to(mllm.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            layers = hidden_states_for(mllm.model, moved)  # [B, L, N, H]
            for each, layout in zip(layers, batch["layouts"], strict=True):
                spots = places(layout)
                flat = normalise(each[:, : spots["ends"][-1]]).transpose(0, 1).flatten(1)
                states.append(flat.to("cpu", self.dtype))
                found.append(spots)
            order += rows
            self.on_progress(0.5 * len(order) / len(documents))
        back = sorted(range(len(order)), key=order.__getitem__)
        return [states[k] for k in back], [found[k] for k in back]


def fingerprint(module: nn.Module) -> str:
    """Changes with the weights: a few numbers of every tensor."""
    digest = blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.flatten()[:8].float().tolist()}".encode())
    return digest.hexdigest()


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.safetensors"


def prepare_shard(folder: Path, number: int, named: Named, reader: Reader, recipe: Mapping[str, Any]) -> Path:
    """Writes shard `number` unless it is there; returns its file.

    named(number): names and documents of the shard. recipe: what they, and the states, depend on.
    """
    path = shard_path(folder, number)
    recipe = {
        **recipe,
        "segment": SEGMENT,
        "vae": fingerprint(reader.vae.model),
        "mllm": fingerprint(reader.mllm.model),
    }
    if path.exists():
        check_recipe(path, recipe)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    names, documents = zip(*named(number), strict=True)
    prepared = reader(documents, names)
    tensors = {f"{k}.latents.{i}": latent for k, each in enumerate(prepared) for i, latent in enumerate(each.latents)}
    tensors |= {
        f"{k}.controls.{i}": latent for k, each in enumerate(prepared) for i, latent in enumerate(each.controls)
    }
    tensors |= {f"{k}.states": each.states.contiguous() for k, each in enumerate(prepared)}
    spots = [{"ends": p.ends, "segments": p.segments, "drawn": p.drawn, "name": p.name} for p in prepared]
    # One entry: safetensors writes several in an order of chance, and the same documents must give the same file.
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"prepared": json.dumps({"places": spots, "recipe": recipe})})
    return path


def notes(file: Any) -> dict[str, Any]:
    """What an open shard says of itself: {"places": …, "recipe": …}."""
    metadata = file.metadata()
    if "prepared" in metadata:
        return json.loads(metadata["prepared"])
    return {name: json.loads(metadata.get(name, "{}")) for name in ("places", "recipe")}  # as it was once written


def check_recipe(path: Path, recipe: Mapping[str, Any]) -> None:
    with safe_open(path, "pt") as file:
        before = {"segment": "none", **notes(file)["recipe"]}
    now = json.loads(json.dumps(recipe))
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        what = " and another ".join(f"{name}{difference(name, before[name], now[name])}" for name in changed)
        raise TrainingError(
            f"The documents in {path.parent} were prepared with another {what}; delete that folder, or give "
            "documents=FOLDER for a new one."
        )


def difference(name: str, was: Any, now: Any) -> str:
    """ " (families.guide: 1.0 -> 2.0)"; nothing for VAE and MLLM, of which only fingerprints are known."""
    if name in ("vae", "mllm"):
        return ""
    if name == "data":
        told = differences({"seed": None, "sources": was}, {"seed": None, "sources": now})
    else:
        told = [sentence(changes({name: was}, {name: now}))]
    return f" ({'; '.join(told)})"


def load_shard(path: Path) -> list[Prepared]:
    with safe_open(path, "pt") as file:
        return [_prepared(file, k, each, f"{path.name}[{k}]") for k, each in enumerate(notes(file)["places"])]


def _prepared(file: Any, k: int, spots: dict[str, Any], place: str) -> Prepared:
    pictures = len(spots["ends"])
    if "drawn" in spots:
        latents, drawn = [file.get_tensor(f"{k}.latents.{i}") for i in range(pictures)], spots["drawn"]
    else:  # shards of pictures of one size, the drawn ones last, as they were once written
        latents, drawn = file.get_tensor(f"{k}.latents"), range(pictures - spots["targets"], pictures)
    states, name = file.get_tensor(f"{k}.states"), spots.get("name") or place
    found = prepared_of(latents, states, {**spots, "drawn": drawn}, name)
    if f"{k}.controls.0" not in file.keys():  # noqa: SIM118 (an open file of safetensors, not a dictionary)
        return found
    return replace(found, controls=tuple(file.get_tensor(f"{k}.controls.{i}") for i in range(len(drawn))))


def prepare(run: Run, config: Any, documents: Documents, reader: Reader) -> list[Prepared]:
    """All documents as what training reads of them; shards that are not there yet are made, with a bar of their own.
    config: as of `Documents`."""
    folder, processes = config.documents or run.folder / "documents", run.processes
    numbers = range(processes.rank, config.shards, processes.count)
    missing = [number for number in numbers if not shard_path(folder, number).exists()]
    if missing:
        run.say(
            f"Before the first step VAE and MLLM read the documents, once: {len(missing)} shards of {documents.count}, "
            f"kept in {folder}. `minutes` counts from the first step on."
        )
        run.line.begin(0.0)
    for number in numbers:
        if number in missing:
            done = missing.index(number)

            def tell(share: float, done: int = done) -> None:
                total = (done + share) / len(missing)
                run.line.task(f"documents prepared, shard {done + 1} of {len(missing)}", total)

            reader.on_progress = tell
        recipe = {**documents.recipe, "max_side": config.max_side}
        prepare_shard(folder, number, documents, reader, recipe)
    processes.wait()
    paths = [shard_path(folder, number) for number in range(config.shards)]
    return [document for path in paths for document in load_shard(path)]


# -- the batches of a run


class CachedBatches:
    """Prepared documents. A batch is about `frames` frames, of one shape or, packed, of any.

    Documents without any earlier picture come up `single_weight` times as often: there everything has to come from the
    words, and that is learnt last.
    """

    def __init__(
        self,
        documents: Sequence[Prepared],
        frames: int,
        single_weight: float = 1.0,
        packing: bool = False,
        attention: str = "frame_causal",
    ) -> None:
        """frames: clean and noisy ones together, as `attention` has them in a pass over a document."""
        self.frames, self.packing, self.attention = frames, packing, attention
        shapes: dict[tuple, list[Prepared]] = defaultdict(list)
        for document in documents:
            shapes[document.shape].append(document)
        self.shapes = list(shapes.values())
        self.weights = [len(each) * (single_weight if each[0].drawn[-1] == 0 else 1.0) for each in self.shapes]
        self.edges = list(accumulate(self.weights))

    def batch(self, step: int, rng: Random) -> list[Prepared]:
        """rng: of this step."""
        like = self._shape(rng)
        if not self.packing:
            return [rng.choice(like) for _ in range(max(1, round(self.frames / like[0].frames(self.attention))))]
        found = [rng.choice(like)]
        frames = found[0].frames(self.attention)
        while True:
            another = rng.choice(self._shape(rng))
            frames += another.frames(self.attention)
            if frames > self.frames:
                return found
            found.append(another)

    def _shape(self, rng: Random) -> list[Prepared]:
        return rng.choices(self.shapes, cum_weights=self.edges)[0]

    def read(self, documents: Sequence[Prepared]) -> list[Prepared]:
        return list(documents)


@dataclass(frozen=True)
class Unread:
    """A document whose latents and states are not known yet."""

    name: str
    document: Document


class OnlineBatches:
    """`documents(step)`, and of them only what this process learns from is read."""

    def __init__(self, documents: Named, reader: Reader) -> None:
        self.documents, self.reader = documents, reader

    def batch(self, step: int, rng: Random) -> list[Unread]:
        return [Unread(*each) for each in self.documents(step)]

    def read(self, documents: Sequence[Unread]) -> list[Prepared]:
        return self.reader([each.document for each in documents], [each.name for each in documents])


def batches_of(
    run: Run, config: Stage2Config, vae: PictureVae, mllm: Mllm, documents: Documents
) -> CachedBatches | OnlineBatches:
    reader = Reader(vae, mllm, config.max_side, getattr(torch, config.precision))
    if config.states == "online":
        return OnlineBatches(documents, reader)
    prepared = prepare(run, config, documents, reader)
    if told := documents.summary():
        run.say(told)
    packing = bool(config.data) if config.packing is None else config.packing
    return CachedBatches(prepared, config.frames, config.single_image_weight, packing, config.attention)
