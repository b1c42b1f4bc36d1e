"""Stage 2: connector and DiT learn to draw; VAE and MLLM stay as they are.

    python -m duogen_core train stage2 vae=runs/vae/export mllm=runs/stage1/export out=runs/stage2 minutes=90

The loss is in flow.py. Out: <out>/export/{dit,connector}, averaged weights, whose configs keep what sampling must know:
the kind of attention, whether earlier pictures are shown, which layers the connector reads, what guidance drops.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from duogen_core.checkpoint import CheckpointConfig, Components, PictureSize
from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.dit.cosmos import PackedCosmos, init_weights
from duogen_core.errors import DuoGenError, first_line
from duogen_core.mllm import family_of
from duogen_core.mllm.base import Mllm
from duogen_core.training import stage2_data
from duogen_core.training.checkpoints import evaluation_mode, replaced
from duogen_core.training.command import RunConfig, add_arguments_for, run_command
from duogen_core.training.config import check_numbers
from duogen_core.training.fast import recomputing
from duogen_core.training.flow import (
    Chance,
    FlowLoss,
    Sample,
    draw,
)
from duogen_core.training.loop import Run
from duogen_core.training.lora import DIT_TARGETS, LoraSettings, Trainable, add_lora, save_dit, save_dit_adapter
from duogen_core.training.mllm_data import check_families
from duogen_core.training.muon import muon_and_adamw
from duogen_core.training.published import start_from
from duogen_core.training.samples import sketchbook_ideals, write_samples
from duogen_core.training.stage2_corpus import (
    Corpus,
    Documents,
    Stream,
    packs,
)
from duogen_core.training.stage2_data import (
    Prepared,
    Reader,
    load_shard,
    prepare_shard,
    shard_path,
)
from duogen_core.vae import PictureVae
from duogen_core.weights.headers import Entry, check_tensors, shapes_of

FAMILY_WEIGHTS = {
    "guide": 0.16,
    "draw": 0.21,
    "edit": 0.2,
    "edit_chain": 0.06,
    "continue": 0.09,
    "plan": 0.09,
    "draft": 0.19,
}


@dataclass(kw_only=True)
class Stage2Config(RunConfig):
    out: Path = Path("runs/stage2")
    vae: Path = Path("runs/vae/export")  # a diffusers folder or one file
    mllm: Path = Path("runs/stage1/export")
    init: Path | None = None  # start from this checkpoint's dit/ and connector/, or from a published Cosmos-Predict2.5
    lora: LoraSettings | None = None  # of the DiT, learn small matrices beside the frozen ones: lora.rank=16
    layers: int = 6  # of a new DiT; one that goes on from `init` keeps its own
    heads: int = 6
    cross_width: int = 192
    attention: Literal["frame_causal", "full"] = "frame_causal"  # between pictures; full: the paper's and Cosmos' own
    references: bool = True  # false: a picture is drawn without looking at earlier ones
    connector_layers: Literal["all", "last"] = "all"  # of the MLLM
    drop: Literal["last_segment", "all_text"] = "last_segment"  # what guidance's negative branch does not see
    data: list[Any] = field(default_factory=list)  # sources, as of `data check`; empty: Sketchbook's own cases
    max_side: int = 160  # pixels of a picture as the DiT sees and draws it; larger ones are made smaller, and counted
    states: Literal["ahead", "on_the_fly"] = "ahead"  # when the MLLM reads a document: once, or whenever it comes up
    shards: int = 65  # of 256 documents each, prepared ahead
    documents: Path | None = None  # where they lie; None: <out>/documents
    precision: Literal["float16", "float32"] = "float16"  # of what is prepared
    batch: int = 16  # documents a step, on the fly
    packing: bool | None = None  # batches of documents of any sizes and counts; None: where there is `data`
    frames: int = 48  # of a batch of documents prepared ahead (`full`: on average), and at most of a pass on the fly
    gradient_checkpointing: bool = False  # keep no states inside the blocks: less memory, a third more time
    alone: float = 6.0  # how much more often documents of a single picture come up
    lr: float = 3e-3
    optimizer: Literal["muon", "adamw"] = "muon"  # for the DiT's matrices; AdamW has the rest, and all under FSDP
    weight_decay: float = 0.01
    shift: float = 6.0  # twice that of sampling: Sketchbook's texts tell all of a picture, so noise teaches the most
    unshifted: float = 0.35  # share of targets with no shift: at high noise alone, outlines are never learnt sharply
    drop_text: float = 0.1
    sample_minutes: float = 10.0  # between answers to look at, in <out>/samples; 0: none
    ema: float = 0.999
    clip: float = 1.0
    families: dict[str, float] = field(default_factory=lambda: dict(FAMILY_WEIGHTS))

    def __post_init__(self) -> None:
        super().__post_init__()
        least = dict.fromkeys(("layers", "heads", "cross_width", "max_side", "shards", "batch", "frames"), 1)
        check_numbers(self, least=least)
        check_families("families", self.families, tuple(FAMILY_WEIGHTS))  # a family without a drawing teaches nothing


def is_end(name: str) -> bool:
    return any(part in name for part in ("patch_embed", "proj_out", "time_embed", "norm_out", "linear_1", "linear_2"))


def new_models(config: Stage2Config, layers: int, hidden: int) -> tuple[PackedCosmos, Connector]:
    """DiT and connector to begin with, for an MLLM of so many layers, so wide: new ones, or those of `init`."""
    if config.init and not (config.init / "dit").is_dir():
        return start_from(config.init, config, layers, hidden)
    if config.init:
        dit = PackedCosmos.from_pretrained(
            config.init / "dit", attention=config.attention, references=config.references
        )
        width = dit.config.text_embed_dim
        shape = ConnectorConfig(layers, hidden, width, config.connector_layers, config.drop)
        return dit, earlier_connector(config.init / "connector", Connector(shape))
    dit = PackedCosmos(
        num_layers=config.layers,
        num_attention_heads=config.heads,
        text_embed_dim=config.cross_width,
        attention=config.attention,
        references=config.references,
    )
    shape = ConnectorConfig(layers, hidden, config.cross_width, config.connector_layers, config.drop)
    return init_weights(dit), Connector(shape)


def chance(config: Stage2Config) -> Chance:
    return Chance(config.attention, config.references, config.drop, config.drop_text, config.shift, config.unshifted)


def samples(run: Run, step: int, documents: Iterable[tuple[int, Prepared]], config: Stage2Config) -> list[Sample]:
    """What is learnt in a step from documents and their numbers in it; each has a random generator of its own."""
    return [draw(document, run.rng(step, f"flow/{i}"), chance(config)) for i, document in documents]


def optimizers_of(dit: PackedCosmos, connector: Connector, config: Stage2Config) -> dict[str, torch.optim.Optimizer]:
    settings = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "muon" and not config.lora:
        found = muon_and_adamw(dit, is_end, **settings)
    else:
        found = {
            "adamw": torch.optim.AdamW([p for p in dit.parameters() if p.requires_grad], betas=(0.9, 0.99), **settings)
        }
    return found | {"connector": torch.optim.AdamW(connector.parameters(), lr=config.lr / 3, betas=(0.9, 0.99))}


def earlier_connector(folder: Path, connector: Connector) -> Connector:
    """The connector with the weights in `folder`; a base DiT brings none."""
    if folder.is_dir():
        earlier = Connector.from_pretrained(folder)
        found = {name: Entry("F32", shape) for name, shape in shapes_of(earlier).items()}
        check_tensors(found, shapes_of(connector), folder, "connector to start from")
        connector.load_state_dict(earlier.state_dict())
    return connector


def checkpoint_blocks(dit: PackedCosmos) -> None:
    """Blocks compute again on the way back, with the same attention as before."""

    def again(block: torch.nn.Module, x: Tensor, *args: Any) -> Tensor:
        return checkpoint(block, x, *args, use_reentrant=False, context_fn=recomputing(x.device))

    dit.enable_gradient_checkpointing(again)


def learn(
    run: Run,
    config: Stage2Config,
    corpus: Corpus | Stream,
    dit: PackedCosmos,
    connector: Connector,
    sample: Callable[[], object] = lambda: None,
) -> None:
    """sample(): draws with the averaged weights, called every `sample_minutes` and at the end."""
    if config.lora:
        add_lora(dit, config.lora, within="transformer_blocks", usual=DIT_TARGETS)
        dit.train()  # LoRA's dropout
    if config.gradient_checkpointing:
        checkpoint_blocks(dit)
    optimizers, together = optimizers_of(dit, connector, config), run.processes
    flow_loss = together.prepare(FlowLoss(dit, connector, config.bf16), optimizers)
    modules = {"dit": Trainable(dit) if config.lora else dit, "connector": connector}
    run.attach(modules, optimizers, ema_decay=config.ema)
    due = run.elapsed + 60 * config.sample_minutes
    for step in run:
        documents = corpus.batch(step, run.rng(step))
        mine, counts = together.share(list(enumerate(documents)))
        numbers, own = zip(*mine, strict=True)
        batch = samples(run, step, zip(numbers, corpus.read(own), strict=True), config)
        targets = int(together.total(counts * sum(len(each.targets) for each in batch)))
        passes = packs(batch, config.frames) if isinstance(corpus, Stream) else [batch]
        losses: list[Tensor] = []

        def parts(passes=passes, counts=counts, targets=targets, losses=losses) -> Iterator[Tensor]:
            for number in range(together.most(len(passes))):
                again = number >= len(passes)  # others have more: compute with them, and count nothing
                loss = (0 if again else counts) * flow_loss(passes[0 if again else number], targets)
                losses.append(loss.detach())
                yield loss

        norm = run.update(parts(), config.clip, samples=[document.name for document in documents])
        run.report(loss=together.total(sum(losses)), norm=norm, targets=targets)
        if step % 500 == 499:
            export(run, config, dit, connector)
        if config.sample_minutes and run.elapsed >= due:
            show(run, sample)
            due = run.elapsed + 60 * config.sample_minutes
    if run.complete(*outputs(run, config)):
        return
    export(run, config, dit, connector)
    if run.finished:
        if config.sample_minutes:
            show(run, sample)
        run.mark_complete()


def show(run: Run, sample: Callable[[], object]) -> None:
    """Answers of the averaged weights, by the main process; not under FSDP. Whatever fails here, the run goes on."""
    if run.main and not run.processes.sharded:
        try:
            with evaluation_mode(run.modules["dit"]), averaged(run):
                sample()
        except (RuntimeError, DuoGenError) as error:  # no memory left on a GPU, for example
            run.say(f"The samples of step {run.step} cannot be drawn: {first_line(error)}.")


@contextmanager
def averaged(run: Run) -> Iterator[None]:
    with run.emas["dit"].applied(), run.emas["connector"].applied():
        yield


def outputs(run: Run, config: Stage2Config) -> list[Path]:
    """What the run leaves: what a checkpoint is put together from, and LoRA's own weights."""
    return [run.folder / "export", *([run.folder / "adapter"] if config.lora else [])]


def export(run: Run, config: Stage2Config, dit: PackedCosmos, connector: Connector) -> None:
    """The averaged weights, in the folders that a checkpoint is put together from; LoRA's also in <out>/adapter."""
    with averaged(run), run.processes.gathered(dit, connector):
        if run.main:
            if config.lora:
                with replaced(run.folder / "adapter") as new:
                    save_dit_adapter(dit, new)
            with replaced(run.folder / "export") as new:
                connector.save_pretrained(new / "connector")
                if config.lora is None or config.lora.merge:
                    save_dit(dit, new / "dit")


def prepare(run: Run, config: Stage2Config, documents: Documents, reader: Reader) -> list[Prepared]:
    """All documents as what is learnt from them; shards that are not there yet are made, with a bar of their own."""
    folder, together = config.documents or run.folder / "documents", run.processes
    numbers = range(together.rank, config.shards, together.count)
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
    together.wait()
    paths = [shard_path(folder, number) for number in range(config.shards)]
    return [document for path in paths for document in load_shard(path)]


def documents_of(run: Run, config: Stage2Config, mllm: Mllm) -> Documents:
    """The documents of a step, or of a shard."""
    return Documents(run, config, mllm, config.batch if config.states == "on_the_fly" else stage2_data.SHARD)


def corpus_of(run: Run, config: Stage2Config, vae: PictureVae, mllm: Mllm, documents: Documents) -> Corpus | Stream:
    """Where the run's batches come from."""
    reader = Reader(vae, mllm, config.max_side, getattr(torch, config.precision))
    if config.states == "on_the_fly":
        return Stream(documents, reader)
    prepared = prepare(run, config, documents, reader)
    if told := documents.summary():
        run.say(told)
    packing = bool(config.data) if config.packing is None else config.packing
    return Corpus(prepared, config.frames, config.alone, packing, config.attention)


def train(config: Stage2Config) -> Run:
    run = config.run()
    vae, mllm = PictureVae.from_pretrained(config.vae), family_of(config.mllm).from_pretrained(config.mllm)
    for frozen in (vae.model, mllm.model):
        frozen.to(run.processes.device)
    documents = documents_of(run, config, mllm)
    corpus = corpus_of(run, config, vae, mllm, documents)
    torch.manual_seed(run.seed)
    dit, connector = new_models(config, mllm.num_layers, mllm.hidden_size)
    asked = CheckpointConfig("in training", picture=PictureSize(max_side=config.max_side))
    components = Components(mllm, connector, dit, vae, asked)
    ideals = documents.some() or sketchbook_ideals()
    learn(run, config, corpus, dit, connector, lambda: write_samples(components, run.folder, run.step, ideals))
    if isinstance(corpus, Stream) and (told := documents.summary()):
        run.say(told)
    return run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments_for(parser, Stage2Config, parallel=True)


def run(args: argparse.Namespace) -> int:
    return run_command(args, Stage2Config, train, parallel=True)
