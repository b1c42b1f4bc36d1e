"""Stage 2: connector and DiT learn to draw; VAE and MLLM stay as they are (paper section 3.3).

    python -m duogen_core train stage2 vae=runs/vae/export mllm=runs/stage1/export out=runs/stage2 minutes=90

In: documents as latents and states (stage2_data.py). Out: <out>/export/{dit,connector}, averaged weights, whose configs
keep what sampling must know: the kind of attention, whether earlier pictures are shown, which layers the connector
reads, what guidance drops; with LoRA also <out>/adapter.

In the order in which it happens (the settings stand with the data, stage2_data.py): the models to begin with; the
steps (`learn`), whose samples and loss are flow.py's; scores and samples to look at (`validate`, `show`); what is
written (`export`); the command (`train`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from duogen_core.checkpoint import CheckpointConfig, Components, PictureSize, check_fit
from duogen_core.compiling import Compiled, pieces_of_dit
from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.dit.base import PackedDit
from duogen_core.dit.loading import family_in, new_dit, open_published
from duogen_core.errors import DuoGenError
from duogen_core.mllm.loading import load_mllm
from duogen_core.training.checkpoints import evaluation_mode, replaced
from duogen_core.training.command import add_arguments_for, run_command
from duogen_core.training.copies import on_device, whole_copy
from duogen_core.training.data import held_out, world
from duogen_core.training.feeding import Feed, workers_for
from duogen_core.training.flops import DitFlops
from duogen_core.training.flow import (
    Decode,
    FlowLoss,
    FlowSample,
    FlowSettings,
    LossSettings,
    sample_of,
    silent_sample,
)
from duogen_core.training.lora import (
    DIT_TARGETS,
    TrainableOnly,
    add_lora,
    save_dit,
    save_dit_adapter,
)
from duogen_core.training.metrics import mean_loss
from duogen_core.training.optimizers import adamw, muon_and_adamw
from duogen_core.training.precision import recomputing
from duogen_core.training.prepared import Prepared, Reader
from duogen_core.training.run import Every, Run
from duogen_core.training.samples import write_samples
from duogen_core.training.stage2_data import (
    CachedBatches,
    Documents,
    OnlineBatches,
    Pass,
    Stage2Config,
    batches_of,
)
from duogen_core.training.validation import Validation
from duogen_core.vae import PictureVae, decode_frame, latents_mean, latents_std
from duogen_core.weights.headers import Entry, check_tensors, shapes_of

# -- the models to begin with


def new_models(config: Stage2Config, layers: int, hidden: int, mllm: str = "") -> tuple[PackedDit, Connector]:
    """DiT and connector to begin with, for an MLLM of so many layers, so wide, of this family: new ones, or those of
    `init`."""
    if config.init and not (config.init / "dit").is_dir():
        dit, connector = start_from(config.init, config, layers, hidden)
        connector.config = replace(connector.config, mllm=mllm, dit=dit.family)
        return dit, connector
    if config.init:
        family = family_in(config.init / "dit")
        check_family(config, family)
        dit = family.from_pretrained(config.init / "dit", attention=config.attention, references=config.references)
        width = dit.config.text_embed_dim
        shape = ConnectorConfig(layers, hidden, width, config.connector_layers, config.drop, mllm=mllm, dit=dit.family)
        return dit, earlier_connector(config.init / "connector", Connector(shape))
    dit = new_dit(
        config.dit or "cosmos",
        num_layers=config.layers,
        num_attention_heads=config.heads,
        patch_size=(1, config.patch, config.patch),
        text_embed_dim=config.cross_width,
        attention=config.attention,
        references=config.references,
    )
    shape = ConnectorConfig(
        layers, hidden, config.cross_width, config.connector_layers, config.drop, mllm=mllm, dit=dit.family
    )
    return dit, Connector(shape)


def check_family(config: Stage2Config, family: type[PackedDit]) -> None:
    if config.dit is not None and config.dit != family.family:
        raise DuoGenError(
            f"dit is {config.dit}, but {config.init} holds a DiT of the family {family.family}, which goes on from its "
            "own weights; leave out dit, or init."
        )


def start_from(base: Path, config: Stage2Config, layers: int, hidden: int) -> tuple[PackedDit, Connector]:
    """layers, hidden: of the MLLM. A connector that reads the last layer alone begins anew, and so does that of a Wan,
    which has none as published."""
    file = open_published(base)
    dit = file.load_dit().train()
    check_family(config, type(dit))
    if config.attention == "frame_causal" and dit.config.clean_timestep < 0:
        raise DuoGenError(
            f"{base} is a pre-trained Cosmos, whose finished images share the target's timestep; frame_causal needs "
            "one of their own. Take the post-trained one, or attention=full."
        )
    dit.register_to_config(attention=config.attention, references=config.references)
    width = dit.config.text_embed_dim
    connector = Connector(ConnectorConfig(layers, hidden, width, config.connector_layers, config.drop))
    if config.connector_layers == "all" and dit.family == "cosmos":
        connector.load_state_dict(file.load_connector((layers, hidden), torch.float32).state_dict())
    return dit, connector


def earlier_connector(folder: Path, connector: Connector) -> Connector:
    """The connector with the weights in `folder`; a base DiT brings none."""
    if folder.is_dir():
        earlier = Connector.from_pretrained(folder)
        earlier.config.check_pair(connector.config.mllm, connector.config.dit, f"The connector in {folder}")
        found = {name: Entry("F32", shape) for name, shape in shapes_of(earlier).items()}
        check_tensors(found, shapes_of(connector), folder, "connector to start from")
        connector.load_state_dict(earlier.state_dict())
    return connector


# -- the steps

Sample = Callable[[nn.Module, nn.Module], object]  # draws with this DiT and this connector


Settings = TypeVar("Settings", FlowSettings, LossSettings)


def settings_of(kind: type[Settings], config: Stage2Config) -> Settings:
    return kind(**{each.name: getattr(config, each.name) for each in fields(kind)})


def flow_settings(config: Stage2Config) -> FlowSettings:
    return settings_of(FlowSettings, config)


def decoder_of(vae: PictureVae) -> Decode:
    """The frozen VAE's decoder of normalised latents, with gradients to them and none to its weights."""
    vae.model.requires_grad_(False)

    def decode(latents: Tensor) -> Tensor:
        raw = latents * latents_std(vae.model) + latents_mean(vae.model)
        return decode_frame(vae.model, raw.to(vae.model.dtype), clamp=False).float()

    return decode


def samples(run: Run, step: int, documents: Iterable[tuple[int, Prepared]], config: Stage2Config) -> list[FlowSample]:
    """Returns the samples of a step, from documents and their numbers in it; each has a random generator of its own.
    Guesses are worth looking at once the model draws, so own references come in as the run goes on."""
    settings = replace(flow_settings(config), own_references=config.own_references * run.progress)
    return [sample_of(document, run.rng(step, f"flow/{i}"), settings) for i, document in documents]


def optimizers_of(dit: PackedDit, connector: Connector, config: Stage2Config) -> dict[str, torch.optim.Optimizer]:
    """Muon for the DiT's inner matrices and AdamW for the rest, or AdamW for all; the connector has one of its own."""
    settings = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "muon" and not config.lora:  # LoRA's factors are no matrices to make orthogonal
        found = muon_and_adamw(dit, dit.is_outer, betas=config.betas, **settings)
    else:
        found = {"adamw": adamw(dit, betas=config.betas, **settings)}
    # A third of the rate: the connector projects all layers at once, and every token of every step goes through it.
    lr = config.lr / 3 if config.connector_lr is None else config.connector_lr
    return found | {"connector": adamw(connector, lr=lr, betas=config.betas, weight_decay=0.01)}


def kind_of(dit: PackedDit) -> str:
    """In words: "a PackedCosmos of 28 blocks, 1,956,216,320 weights"."""
    weights = sum(parameter.numel() for parameter in dit.parameters())
    return f"a {type(dit).__name__} of {len(dit.transformer_blocks)} blocks, {weights:,} weights,"


def checkpoint_blocks(dit: PackedDit, compiled: bool = False) -> None:
    """Computes blocks again in the backward pass, with the same attention as before."""

    def recomputed(block: torch.nn.Module, x: Tensor, *args: Any) -> Tensor:
        # Stopping early is an exception when the last wanted tensor is there, which compiled code cannot bear.
        with set_checkpoint_early_stop(not compiled):
            return checkpoint(block, x, *args, use_reentrant=False, context_fn=recomputing(x.device))

    dit.enable_gradient_checkpointing(recomputed)


def learn(
    run: Run,
    config: Stage2Config,
    batches: CachedBatches | OnlineBatches,
    dit: PackedDit,
    connector: Connector,
    sample: Sample = lambda dit, connector: None,
    validation: Validation | None = None,
    mllm: str = "an MLLM",
    decode: Decode | None = None,
) -> None:
    """sample(dit, connector): draws with the averaged weights, called every `sample_minutes` and at the end; validation
    scores them. mllm: whose states these are, in words. decode: what `decoder_weight` learns through."""
    shape = connector.config
    pair = f"{kind_of(dit)} for {mllm} of {shape.num_layers} layers of {shape.hidden_size}"
    if config.lora:
        add_lora(dit, config.lora, within=dit.lora_within, usual=DIT_TARGETS)
        dit.train()  # LoRA's dropout
    if config.gradient_checkpointing:
        checkpoint_blocks(dit, config.compile)
    if config.compile:
        chance = config.lora is not None and config.lora.dropout > 0  # then no two calls have the same gradients
        Compiled(pieces_of_dit(dit), run.say, gradients=not (config.gradient_checkpointing or chance))
    optimizers, processes = optimizers_of(dit, connector, config), run.processes
    single = None if config.lora else torch.float32  # what LoRA freezes stays in its file's precision
    loss_module = FlowLoss(dit, connector, config.bf16, settings_of(LossSettings, config), decode)
    flops = DitFlops(dit, connector)
    flow_loss = processes.prepare(loss_module, optimizers, single)
    modules = {"dit": TrainableOnly(dit) if config.lora else dit, "connector": connector}
    run.attach(modules, optimizers, config.ema, model=pair)
    samples_due = Every(run, config.sample_minutes or None)
    scores_due = Every(run, config.eval_minutes, config.eval_steps)
    batches.begin()
    feed = Feed(
        batches.steps(run, config), workers=workers_for(config.workers, processes.device), device=processes.device
    )
    for step, share in feed.each(run):
        batches.note(share)
        if share.apart and processes.count > 1:  # DDP and FSDP wait for each other in every pass
            share.passes += [Pass([], [])] * (processes.most(len(share.passes)) - len(share.passes))
        if validation and scores_due():
            validate(run, validation, loss_module)
        if samples_due():
            show(run, sample, dit, connector, config.bf16)
        if config.export_steps and step and step % config.export_steps == 0:
            export(run, config, dit, connector)
        # The loss is a mean over all targets of the step, whoever computes them: every process must know their number
        # before its first pass, so that the parts add up to the loss, and the gradients to those, of one process.
        targets = processes.total(share.targets) if processes.count > 1 else share.targets
        run.meter.count(tokens=share.tokens, pictures=share.targets)
        losses: list[Tensor] = []

        def parts(step=step, share=share, targets=targets, losses=losses) -> Iterator[Tensor]:
            for some in share.passes:
                # Read only now: online, the states of one pass lie on the device, and of no other.
                documents = zip(some.numbers, batches.read(some.documents), strict=True) if some.numbers else ()
                drawn = samples(run, step, documents, config)
                if run.meter.peak:
                    run.meter.count(flops=flops.of_samples(drawn).needed)
                # DDP and FSDP wait for each other in every pass: who has fewer computes one that counts nothing.
                loss = flow_loss(drawn, targets) if drawn else 0 * flow_loss([silent_sample(dit, connector)], targets)
                losses.append(loss.detach())
                yield loss

        norm = run.update(parts(), config.clip, samples=share.names, parts=len(share.passes))
        run.report(loss=processes.total(sum(losses)), norm=norm, targets=targets)
    outputs = [run.folder / "export", *([run.folder / "adapter"] if config.lora else [])]
    if run.complete(*outputs):
        return
    export(run, config, dit, connector)
    if run.finished:
        if validation:
            validate(run, validation, loss_module)
        if config.sample_minutes:
            show(run, sample, dit, connector, config.bf16)
        run.mark_complete()


def validate(run: Run, validation: Validation, loss_module: FlowLoss) -> None:
    """The averaged weights' loss on what is not learnt from, by all processes."""
    scores = None
    with run.meter.aside(), averaged(run), run.looking("The scores", together=True):
        scores = validation(loss_module)
    if scores is None:
        return
    run.record(eval=scores)
    run.line.held_out = f"held-out {mean_loss(scores):.4g}"
    run.say("held-out loss " + "  ".join(f"{name} {each['loss']:.4g}" for name, each in scores.items()))


def show(run: Run, sample: Sample, dit: PackedDit, connector: Connector, bf16: bool) -> None:
    """Answers of the averaged weights, by the main process, under FSDP of a copy (copies.py). All processes must come.
    Whatever fails on the main process alone, the run goes on."""
    main, sharded, device = run.main, run.processes.sharded, run.processes.device
    with run.meter.aside(), evaluation_mode(run.modules["dit"]), averaged(run):
        parts: list[nn.Module] = [] if sharded else [dit, connector]
        if sharded:
            # A process that failed here and went on would meet the others, still in this gather, in another one.
            with run.looking("The samples", together=True), run.processes.gathered(dit, connector):
                if main:
                    with run.looking("The samples"):
                        parts = [whole_copy(part) for part in (dit, connector)]
        if main and parts:
            with run.looking("The samples"):
                sample(*(on_device(part, device, bf16) if sharded else part for part in parts))


@contextmanager
def averaged(run: Run) -> Iterator[None]:
    with run.emas["dit"].applied(), run.emas["connector"].applied():
        yield


def export(run: Run, config: Stage2Config, dit: PackedDit, connector: Connector) -> None:
    """The averaged weights, in the folders that a checkpoint is put together from; LoRA's also in <out>/adapter."""
    with run.meter.aside(), averaged(run), run.processes.gathered(dit, connector):
        if run.main:
            if config.lora:
                with replaced(run.folder / "adapter") as new:
                    save_dit_adapter(dit, new)
            with replaced(run.folder / "export") as new:
                connector.save_pretrained(new / "connector")
                if config.lora is None or config.lora.merge:
                    save_dit(dit, new / "dit")


def validation_of(run: Run, config: Stage2Config, documents: Documents, read: Reader) -> Validation | None:
    """None where nothing is held out."""
    cases = held_out(config, documents.limits)
    draw = partial(
        sample_of, settings=replace(flow_settings(config), drop_text=0.0, reference_noise=0.0, own_references=0.0)
    )
    return Validation(run, cases, read, draw, keep=config.states == "cached") if cases else None


# -- the command


def train(config: Stage2Config) -> Run:
    run = Run.of(config)
    vae, mllm = PictureVae.from_pretrained(config.vae), load_mllm(config.mllm)
    for frozen in (vae.model, mllm.model):
        frozen.to(run.processes.device)
    run.made_of(mllm=mllm.model_type)
    torch.manual_seed(run.seed)
    dit, connector = new_models(config, mllm.num_layers, mllm.hidden_size, mllm.model_type)
    run.made_of(dit=dit.family)
    picture = PictureSize(max_side=config.max_side, step=vae.size_step)
    components = Components(mllm, connector, dit, vae, CheckpointConfig("in training", picture=picture))
    check_fit(components)
    # Only now, since it may take hours: what does not fit together has been said.
    documents = Documents(run, config, mllm)
    batches = batches_of(run, config, vae, mllm, documents)
    torch.manual_seed(run.seed)  # the same, whether the documents were read now or lay there
    ideals = documents.some() or world().ideals()

    def sample(dit: nn.Module, connector: nn.Module) -> None:
        parts = replace(components, dit=dit, connector=connector)
        write_samples(parts, run.folder, run.step, ideals, run.show_pictures)

    learn(
        run,
        config,
        batches,
        dit,
        connector,
        sample,
        validation_of(run, config, documents, Reader(vae, mllm, config.max_side, getattr(torch, config.precision))),
        f"a {mllm.model_type}",
        decoder_of(vae) if config.decoder_weight else None,
    )
    if isinstance(batches, OnlineBatches) and (told := documents.summary()):
        run.say(told)
    return run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments_for(parser, Stage2Config, parallel=True)


def run(args: argparse.Namespace) -> int:
    return run_command(args, Stage2Config, train, parallel=True)
