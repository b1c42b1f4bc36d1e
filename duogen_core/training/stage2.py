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
from typing import Literal

import torch

from duogen_core.checkpoint import CheckpointConfig, Components
from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.dit.cosmos import PackedCosmos, init_weights
from duogen_core.mllm import family_of
from duogen_core.mllm.base import Mllm
from duogen_core.training.command import RunConfig, add_arguments_for, run_command
from duogen_core.training.flow import Chance, FlowLoss, Sample, draw
from duogen_core.training.loop import Run
from duogen_core.training.muon import muon_and_adamw
from duogen_core.training.samples import write_samples
from duogen_core.training.stage2_data import Corpus, Prepared, load_shard, prepare_shard, shard_path
from duogen_core.vae import PictureVae
from duogen_core.weights import check_tensors, shapes_of

FAMILY_WEIGHTS = {"guide": 0.26, "draw": 0.34, "edit": 0.16, "continue": 0.06, "plan": 0.08, "draft": 0.10}


@dataclass(kw_only=True)
class Stage2Config(RunConfig):
    out: Path = Path("runs/stage2")
    vae: Path = Path("runs/vae/export")  # a diffusers folder or one file
    mllm: Path = Path("runs/stage1/export")
    init: Path | None = None  # start from the dit/ and connector/ of this checkpoint
    layers: int = 6
    heads: int = 6
    cross_width: int = 192
    attention: Literal["frame_causal", "full"] = "frame_causal"  # between pictures; full: the paper's and Cosmos' own
    references: bool = True  # false: a picture is drawn without looking at earlier ones
    connector_layers: Literal["all", "last"] = "all"  # of the MLLM
    drop: Literal["last_segment", "all_text"] = "last_segment"  # what guidance's negative branch does not see
    shards: int = 65  # of 256 documents each, prepared ahead
    documents: Path | None = None  # where they lie; None: <out>/documents
    frames: int = 48  # of a batch
    alone: float = 6.0  # how much more often documents of a single picture come up
    lr: float = 3e-3
    optimizer: Literal["muon", "adamw"] = "muon"  # for the DiT's matrices; AdamW has the rest, and all under FSDP
    weight_decay: float = 0.01
    shift: float = 6.0  # twice that of sampling: Sketchbook's texts tell all of a picture, so noise teaches the most
    drop_text: float = 0.1
    sample_minutes: float = 10.0  # between answers to look at, in <out>/samples; 0: none
    ema: float = 0.999
    clip: float = 1.0
    families: dict[str, float] = field(default_factory=lambda: dict(FAMILY_WEIGHTS))


def is_end(name: str) -> bool:
    return any(part in name for part in ("patch_embed", "proj_out", "time_embed", "norm_out", "linear_1", "linear_2"))


def new_models(config: Stage2Config, layers: int, hidden: int) -> tuple[PackedCosmos, Connector]:
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
    return Chance(config.attention, config.references, config.drop, config.drop_text, config.shift)


def samples(run: Run, step: int, documents: Iterable[tuple[int, Prepared]], config: Stage2Config) -> list[Sample]:
    """What is learnt in a step from documents and their numbers in it; each has a random generator of its own."""
    return [draw(document, run.rng(step, f"flow/{i}"), chance(config)) for i, document in documents]


def optimizers_of(dit: PackedCosmos, connector: Connector, config: Stage2Config) -> dict[str, torch.optim.Optimizer]:
    settings = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "muon":
        found = muon_and_adamw(dit, is_end, **settings)
    else:
        found = {
            "adamw": torch.optim.AdamW([p for p in dit.parameters() if p.requires_grad], betas=(0.9, 0.99), **settings)
        }
    return found | {"connector": torch.optim.AdamW(connector.parameters(), lr=config.lr / 3, betas=(0.9, 0.99))}


def continue_from(checkpoint: Path, dit: PackedCosmos, connector: Connector) -> None:
    """Weights of an earlier checkpoint as the start of a new run, for example of models/duogen-tiny."""
    for module, earlier in (
        (dit, PackedCosmos.from_pretrained(checkpoint / "dit")),
        (connector, Connector.from_pretrained(checkpoint / "connector")),
    ):
        check_tensors(earlier.state_dict(), shapes_of(module), checkpoint, "checkpoint to start from")
        module.load_state_dict(earlier.state_dict())


def learn(
    run: Run,
    config: Stage2Config,
    corpus: Corpus,
    dit: PackedCosmos,
    connector: Connector,
    sample: Callable[[], object] = lambda: None,
) -> None:
    """sample(): draws with the averaged weights, called every `sample_minutes` and at the end."""
    optimizers, together = optimizers_of(dit, connector, config), run.processes
    flow_loss = together.prepare(FlowLoss(dit, connector, config.bf16), optimizers)
    run.attach({"dit": dit, "connector": connector}, optimizers, ema_decay=config.ema)
    due = run.elapsed + 60 * config.sample_minutes
    for step in run:
        documents = corpus.batch(run.rng(step))
        mine, counts = together.share(list(enumerate(documents)))
        batch = samples(run, step, mine, config)
        targets = int(together.total(counts * sum(len(each.targets) for each in batch)))
        loss = counts * flow_loss(batch, targets)
        norm = run.update(loss, config.clip, samples=[document.name for document in documents])
        run.report(loss=together.total(loss), norm=norm, targets=targets)
        if step % 500 == 499:
            export(run)
        if config.sample_minutes and run.elapsed >= due:
            show(run, sample)
            due = run.elapsed + 60 * config.sample_minutes
    export(run)
    if config.sample_minutes and run.finished:
        show(run, sample)


def show(run: Run, sample: Callable[[], object]) -> None:
    """Answers of the averaged weights, by the main process; not under FSDP, where none has the whole model."""
    if run.main and not run.processes.sharded:
        with averaged(run):
            sample()


@contextmanager
def averaged(run: Run) -> Iterator[None]:
    with run.emas["dit"].applied(), run.emas["connector"].applied():
        yield


def export(run: Run) -> None:
    """The averaged weights, in the folders that a checkpoint is put together from."""
    dit, connector = run.modules["dit"], run.modules["connector"]
    with averaged(run), run.processes.gathered(dit, connector):
        if run.main:
            dit.save_pretrained(run.folder / "export" / "dit")
            connector.save_pretrained(run.folder / "export" / "connector")


def prepare(run: Run, config: Stage2Config, vae: PictureVae, mllm: Mllm) -> list[Prepared]:
    folder, together = config.documents or run.folder / "documents", run.processes
    for number in range(together.rank, config.shards, together.count):
        prepare_shard(folder, number, run.seed, config.families, vae, mllm)
        run.say(f"documents prepared: shard {number + 1} of {config.shards}")
    together.wait()
    paths = [shard_path(folder, number) for number in range(config.shards)]
    return [document for path in paths for document in load_shard(path)]


def train(config: Stage2Config) -> Run:
    run = config.run()
    vae, mllm = PictureVae.from_pretrained(config.vae), family_of(config.mllm).from_pretrained(config.mllm)
    documents = prepare(run, config, vae, mllm)
    torch.manual_seed(run.seed)
    text_config = mllm.model.config.text_config
    dit, connector = new_models(config, text_config.num_hidden_layers, text_config.hidden_size)
    if config.init:
        continue_from(config.init, dit, connector)
    components = Components(mllm, connector, dit, vae, CheckpointConfig("in training"))
    corpus = Corpus(documents, config.frames, config.alone)
    learn(run, config, corpus, dit, connector, lambda: write_samples(components, run.folder, run.step))
    return run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments_for(parser, Stage2Config)


def run(args: argparse.Namespace) -> int:
    return run_command(args, Stage2Config, train, parallel=True)
