"""A ControlNet learns to draw in given outlines; MLLM, connector, DiT and VAE stay as they are.

    python -m duogen_core train controlnet checkpoint=models/duogen-tiny out=runs/controlnet minutes=60

In: a checkpoint, and documents as latents and states (stage2_data.py), with the outlines of every image that the
assistant drew, taken from it by code (outlines.py) and encoded by the same VAE. So any source of `data` will do.
Out: <out>/export, averaged weights (dit/controlnet.py), to be put into the checkpoint's folder as `controlnet`.

The loss is stage 2's, through the frozen DiT: its velocity with the residuals of the ControlNet. Data, times, text
dropout, checkpoints and resume are those of stage 2.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from duogen_core.checkpoint import load_checkpoint
from duogen_core.dit.controlnet import PackedControlNet
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.document import Document, Picture
from duogen_core.outlines import outlines
from duogen_core.picture_sampling import reference_pixels
from duogen_core.training.checkpoints import replaced
from duogen_core.training.command import add_arguments_for, run_command
from duogen_core.training.configuration import RunConfig, check_numbers
from duogen_core.training.data import check_families, world
from duogen_core.training.flow import FlowSample, FlowSettings, noised, sample_of
from duogen_core.training.optimizers import muon_and_adamw
from duogen_core.training.precision import mixed_precision
from duogen_core.training.prepared import DocumentInputs, Reader, ReadInputs
from duogen_core.training.prepared_shards import prepare
from duogen_core.training.run import Run
from duogen_core.training.stage2_data import CachedBatches, Documents


@dataclass(kw_only=True)
class ControlNetConfig(RunConfig):
    command: ClassVar[str] = "controlnet"
    states: ClassVar[str] = "cached"
    out: Path = Path("runs/controlnet")
    checkpoint: Path = Path("models/duogen-tiny")  # what the ControlNet is for: a folder with model_index.json
    init: Path | None = None  # go on from this ControlNet; None: a new one, of copies of the DiT's first blocks
    blocks: int = 3
    data: list[Any] = field(default_factory=list)  # sources, as of `data check`; empty: Sketchbook's own cases
    max_side: int = 160  # pixels of an image as the DiT sees and draws it
    shards: int = 24  # of 256 documents each, read once by VAE and MLLM
    documents: Path | None = None  # where they lie; None: <out>/documents
    precision: Literal["float16", "float32"] = "float16"
    tokens: int = 4800  # of images and text, of a batch
    workers: int | None = None  # processes that read ahead; None: as many as a GPU leaves cores for, on a CPU none
    single_image_weight: float = 2.0  # how much more often documents of a single image come up
    lr: float = 2e-3
    weight_decay: float = 0.01
    shift: float = 6.0
    unshifted_share: float = 0.25
    drop_text: float = 0.1
    ema: float = 0.998
    clip: float = 1.0
    families: dict[str, float] = field(default_factory=lambda: dict(world().mixtures["controlnet"]))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, least=dict.fromkeys(("blocks", "max_side", "shards", "tokens"), 1) | {"workers": 0})
        check_families("families", self.families, tuple(world().mixtures["controlnet"]))


class OutlineInputs(ReadInputs):
    """As stage 2 reads documents, and the outlines of what the assistant drew."""

    def __call__(self, documents: Sequence[Document], names: Sequence[str] = ()) -> DocumentInputs:
        found = super().__call__(documents, names)
        drawn = [
            [Picture(outlines(reference_pixels(document.pictures[k], self.config))) for k in spots["drawn"]]
            for document, spots in zip(documents, found.places, strict=True)
        ]
        return replace(found, controls=self.pixels(drawn))


class OutlineReader(Reader):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inputs = OutlineInputs(**vars(self.inputs))


class ControlLoss(nn.Module):
    """Mean squared error of the velocity, as `flow.FlowLoss`, with what the ControlNet adds. Texts are projected
    already, since the connector does not learn."""

    def __init__(self, dit: PackedCosmos, net: PackedControlNet, bf16: bool = False) -> None:
        super().__init__()
        self.frozen, self.net, self.bf16 = [dit], net, bf16  # in a list: none of this module's weights

    def forward(self, samples: Sequence[FlowSample]) -> Tensor:
        dit, device = self.frozen[0], next(self.net.parameters()).device
        samples = [sample.to(device) for sample in samples]
        sequences = [noised(sample, sample.states) for sample in samples]
        controls = [sample.controls for sample in samples]
        with mixed_precision(device, self.bf16):
            residuals = self.net.residuals_train(sequences, controls, dit.config.num_layers)
            found = dit.forward_train(sequences, residuals)
        errors = [
            (v.float() - (noise - x0)).square().mean()
            for sample, velocities in zip(samples, found, strict=True)
            for v, noise, x0 in zip(velocities, sample.noise, sample.targets, strict=True)
        ]
        return torch.stack(errors).mean()


def is_outer(name: str) -> bool:
    """Whether AdamW trains a weight: what stands at either end, and what starts at zero."""
    return any(part in name for part in ("patch_embed", "before_proj", "after_proj", "linear_1", "linear_2"))


def flow_settings(config: ControlNetConfig, dit: Any, connector: Any) -> FlowSettings:
    """Attention, references and what guidance drops are those of the checkpoint."""
    return FlowSettings(
        dit.config.attention, dit.config.references, connector.config.drop, config.drop_text, config.shift,
        config.unshifted_share,
    )  # fmt: skip


def train(config: ControlNetConfig) -> Run:
    run = Run.of(config)
    device = run.processes.device
    parts = load_checkpoint(config.checkpoint)
    dit, connector = parts.dit.to(device), parts.connector.to(device)
    for module in (dit, connector, parts.vae.model.to(device), parts.mllm.model.to(device)):
        module.requires_grad_(False)
    torch.manual_seed(run.seed)
    if config.init:
        net = PackedControlNet.from_pretrained(config.init)
        net.check_fits(dit)
    else:
        net = PackedControlNet.of_dit(dit, config.blocks)
    documents = Documents(run, config, parts.mllm)
    reader = OutlineReader(parts.vae, parts.mllm, config.max_side, getattr(torch, config.precision))
    prepared = prepare(run, config, documents, reader)
    if told := documents.summary():
        run.say(told)
    loaded = (each.load() for each in prepared)
    with torch.no_grad():
        projected = [replace(each, states=connector.project(each.states.to(device)).cpu()) for each in loaded]
    batches = CachedBatches(
        projected, config.tokens, config.single_image_weight, bool(config.data), dit.config.attention
    )
    del prepared
    torch.manual_seed(run.seed)
    net.to(device).train()
    for copied in (net.patch_embed_base, net.time_embed):  # the DiT's own, as in Transfer2.5
        copied.requires_grad_(False)
    learn(run, config, batches, ControlLoss(dit, net, config.bf16), flow_settings(config, dit, connector))
    return run


def learn(
    run: Run, config: ControlNetConfig, batches: CachedBatches, loss_of: ControlLoss, settings: FlowSettings
) -> None:
    net = loss_of.net
    optimizers = muon_and_adamw(net, is_outer, lr=config.lr, weight_decay=config.weight_decay)
    run.attach({"controlnet": net}, optimizers, config.ema)
    for step in run:
        some = batches.batch(step, run.rng(step))
        samples = [sample_of(each, run.rng(step, f"flow/{i}"), settings) for i, each in enumerate(some)]
        loss = loss_of(samples)
        norm = run.update(loss, config.clip, samples=[each.name for each in some])
        run.report(loss=loss, norm=norm)
        if step % 250 == 249:
            export(run, net)
    if run.complete(run.folder / "export"):
        return
    export(run, net)
    if run.finished:
        run.mark_complete()


def export(run: Run, net: PackedControlNet) -> None:
    with run.emas["controlnet"].applied(), replaced(run.folder / "export") as new:
        net.save_pretrained(new)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments_for(parser, ControlNetConfig)


def run(args: argparse.Namespace) -> int:
    return run_command(args, ControlNetConfig, train)
