"""What a recipe takes in memory and time on so many GPUs, before anything is downloaded or started.

    python -m duogen_core train plan cosmos-predict2.5-2b --gpus 1 8 64 --memory 80

The modules of the recipe are built without memory for weights (torch's meta device): from the folders that it names,
where they are there, else from the published configurations in shapes/. What this code allocates is counted on them:
weights, gradients, AdamW's moments, averages, what FSDP gathers; and what a pass keeps until its backward, by running
the real layers on the meta device and looking at what autograd saves. Operations are those of flops.py, a vision
tower's and a VAE's reading included.

Counted, not measured: the shares of a GPU that CUDA's context, fragments and NCCL's buffers take (2 to 5 GB) come on
top. Time is operations over peak times the share of it that a run reaches (`--share`); a run tells its own share in
metrics.jsonl (`peak_share`). An average document is as `--text`, `--images` and `--side` say.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from duogen_core.errors import unknown
from duogen_core.training.configuration import RECIPES, ConfigError, load_config, recipes_of
from duogen_core.training.flops import DitFlops, Flops, MllmFlops, SequenceShape, sizes
from duogen_core.training.meta_models import (
    build_dit,
    build_mllm,
    fused_attention,
    kept_by_dit,
    kept_by_mllm,
    numel,
    seen_by,
    shape_of,
)
from duogen_core.training.throughput import GB

PEAK = 989.0  # teraflops of an H100 or H200
NODE = 8  # GPUs of a machine


@dataclass(frozen=True)
class Average:
    """An average document. text: tokens; images: how many, all but the first drawn; side: pixels of their sides."""

    text: int = 400
    images: int = 4
    side: int = 512


@dataclass(frozen=True)
class Machine:
    gpus: int = 1
    memory: float = 80.0  # GB of each
    tflops: float = PEAK
    share: float = 0.4  # of the peak that is reached
    launch: str | None = None  # ddp or fsdp; None: fsdp where all weights learn, ddp with LoRA

    def sharded(self, lora: bool) -> bool:
        return self.gpus > 1 and (self.launch == "fsdp" or (self.launch is None and not lora))


@dataclass(frozen=True)
class Needs:
    """Bytes on each GPU, by what they are for; bytes of a machine and of the disk; seconds and passes of a step."""

    gpu: Mapping[str, float]
    host: float
    checkpoint: float
    seconds: float
    passes: int  # of each process in a step
    work: Flops  # of a step, all processes together

    @property
    def total(self) -> float:
        return sum(self.gpu.values())


# -- the two stages


def trained(
    weights: float,
    learn: float,
    layer: float,
    outside: float,
    outside_learn: float,
    machine: Machine,
    *,
    lora: bool,
    frozen_bytes: int,
    bf16: bool,
) -> dict[str, float]:
    """Bytes on a GPU of what learns, weights and all that comes with them. weights, learn: numbers of all weights and
    of those that learn; layer: of one block; outside: of what is not in blocks."""
    sharded = machine.sharded(lora)
    parts = machine.gpus if sharded else 1
    found = {
        "weights": ((weights - learn) * frozen_bytes + 4 * learn) / parts,
        "gradients": 4 * learn / parts,
        "AdamW": 8 * learn / parts,
    }
    if sharded:
        # Three blocks at a time (the one that computes, the next one, a gradient); the rest stays from forward to
        # backward, with the gradients of what learns of it.
        found["gathered"] = 2 * (3 * layer + outside + outside_learn)
    elif bf16:
        found["bfloat16 copies"] = 2.0 * learn  # autocast keeps one of each weight that learns, through the forward
    return found


def stage1_needs(config: Any, machine: Machine, average: Average) -> Needs:
    from duogen_core.training.lora import MLLM_TARGETS, add_lora

    shape = shape_of(config.init)
    model = build_mllm(shape)
    in_layers = sizes(model.model.language_model.layers.modules())[0]
    tower = getattr(model.model, "visual", None) or getattr(model.model, "vision_tower", nn.Module())
    if config.lora:
        add_lora(model, config.lora, within="model.language_model.layers", usual=MLLM_TARGETS)
    else:
        tower.requires_grad_(config.tower_lr > 0)
    layers = model.model.language_model.layers
    whole, learn, inside = numel(model), numel(model, True), numel(layers)
    frozen_bytes = 2 if config.lora else 4
    of_image, patches = seen_by(model, average.side)
    document = average.text + average.images * of_image
    passes, together = shared_out(config.batch, config.tokens // document, machine.gpus)
    # Half of the text is the assistant's, which is what is learnt, and <BOV> for every image.
    learnt = together * (average.text // 2 + average.images)
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    kept = kept_by_mllm(shape, together, document, learnt, dtype)
    gpu = trained(
        whole, learn, inside / len(layers), whole - inside, learn - numel(layers, True), machine,
        lora=bool(config.lora), frozen_bytes=frozen_bytes, bf16=config.bf16,
    )  # fmt: skip
    if config.lora and config.lora.quantise:  # nf4: four bits, and a scale in eight for every 64
        gpu["weights"] -= (2 - 0.516) * in_layers / (machine.gpus if machine.sharded(True) else 1)
    each = kept.peak(len(layers), config.gradient_checkpointing)
    gpu["activations"] = each * (1 if config.accumulate or passes == 1 else passes)
    flops = MllmFlops(model, config.gradient_checkpointing)
    work = flops.of(config.batch, document, config.batch * (average.text // 2 + average.images))
    work += flops.of_patches([patches] * (average.images * config.batch))
    checkpoint = 4.0 * (learn if config.lora else whole) + 8.0 * learn
    return Needs(
        gpu=gpu,
        host=host_bytes(2.0 * whole, 0.0, checkpoint, machine),
        checkpoint=checkpoint,
        seconds=seconds_of(work, machine, config.batch),
        passes=passes,
        work=work,
    )


def stage2_needs(config: Any, machine: Machine, average: Average) -> Needs:
    from duogen_core.connector import Connector, ConnectorConfig
    from duogen_core.training.lora import add_lora
    from duogen_core.training.stage2 import DIT_TARGETS

    mllm_shape = shape_of(config.mllm)
    mllm = build_mllm(mllm_shape)
    text_config = mllm.config.text_config
    settings = {"attention": config.attention, "references": config.references}
    shape = shape_of(config.init) if config.init else new_shape(config)
    dit = build_dit(shape, **settings)
    with torch.device("meta"):
        connector = Connector(
            ConnectorConfig(
                text_config.num_hidden_layers, text_config.hidden_size, dit.config.text_embed_dim,
                config.connector_layers,
            )
        )  # fmt: skip
    if config.lora:
        add_lora(dit, config.lora, within=dit.lora_within, usual=DIT_TARGETS)
    blocks = dit.transformer_blocks
    learn, whole = numel(dit, True) + numel(connector), numel(dit) + numel(connector)
    inside = numel(blocks)
    sharded = machine.sharded(bool(config.lora))
    gpu = trained(
        whole, learn, inside / len(blocks), whole - inside, learn - numel(blocks, True), machine,
        lora=bool(config.lora), frozen_bytes=2 if config.lora else 4, bf16=config.bf16,
    )  # fmt: skip
    averages = 4.0 * ((numel(dit, True) if config.lora else numel(dit)) + numel(connector))
    gpu["averages"] = averages / machine.gpus if sharded else 0.0  # else in the host's memory
    gpu["MLLM and VAE"] = 2.0 * numel(mllm) + 4.0 * numel(wan_vae())

    checkpoint = 4.0 * (learn if config.lora else whole) + 8.0 * learn + averages

    # A document: all images but the first are drawn; under `full` one of them at a time, with the earlier ones clean.
    side = min(average.side, config.max_side) // 16 * 16
    latent = side // 8
    _, ph, pw = dit.config.patch_size
    frame = (latent // ph) * (latent // pw)
    images = max(1, average.images)
    clean = (images - 1) if config.references else 0
    of_image, patches = seen_by(mllm, average.side)
    text = average.text + (images - 1) * of_image
    if config.attention == "full":
        clean = clean // 2 + clean % 2
        sequence = SequenceShape((frame,) * clean, (frame,), tuple(range(clean + 1)), text)
    else:
        drawn = tuple(range(images > 1, images))
        sequence = SequenceShape((frame,) * clean, (frame,) * len(drawn), (*range(clean), *drawn), text)
    per_pass = max(1, int(config.tokens // (sequence.tokens + sequence.text)))
    documents = config.batch if config.states == "online" else per_pass
    passes, here = shared_out(documents, per_pass, machine.gpus)
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    kept = kept_by_dit(shape, [sequence] * here, (latent, latent), dtype, **settings)
    states = 4.0 * here * text * numel(connector) / dit.config.text_embed_dim
    gpu["activations"] = kept.peak(len(blocks), config.gradient_checkpointing) + states
    work = DitFlops(dit, connector, config.gradient_checkpointing).of([sequence] * documents)
    if config.states == "online":
        reading = MllmFlops(mllm)
        read = reading.of(documents, text, 0) + reading.of_patches([patches] * (images - 1) * documents)
        work += Flops(forward=read.forward) + Flops(forward=vae_flops(side) * images * documents)
    return Needs(
        gpu=gpu,
        host=host_bytes(2.0 * (whole + numel(mllm)), 0.0 if sharded else averages, checkpoint, machine),
        checkpoint=checkpoint,
        seconds=seconds_of(work, machine, documents),
        passes=passes,
        work=work,
    )  # fmt: skip


def new_shape(config: Any) -> dict[str, Any]:
    names = {"cosmos": "PackedCosmos", "wan": "PackedWan"}
    return {
        "_class_name": names[getattr(config, "dit", None) or "cosmos"], "num_layers": config.layers,
        "num_attention_heads": config.heads, "text_embed_dim": config.cross_width,
    }  # fmt: skip


def wan_vae() -> nn.Module:
    from duogen_core.vae import new_vae

    with torch.device("meta"):
        return new_vae(base_dim=96)


def vae_flops(side: int) -> float:
    """Of encoding one image; convolutions take as many for each pixel, whatever the size."""
    from torch.utils.flop_counter import FlopCounterMode

    vae = wan_vae()
    with torch.no_grad(), fused_attention(False), FlopCounterMode(display=False) as counter:
        vae.encode(torch.empty(1, 3, 1, 64, 64, device="meta"))
    return counter.get_total_flops() * (side / 64) ** 2


PROCESS = 3 * GB  # Python, libraries, CUDA's part of them; a guess


def host_bytes(files: float, averages: float, checkpoint: float, machine: Machine) -> float:
    """Of one machine: its processes; the pages of the models' files, which are mapped and shared, and are read at the
    beginning alone; averages that do not lie on the GPUs, a copy for each process; a checkpoint on its way to the disk,
    held twice where several processes write it."""
    here = min(machine.gpus, NODE)
    saved = 2 * checkpoint * here / machine.gpus if machine.gpus > 1 else 0.0
    return here * (PROCESS + averages) + max(files, saved)


def shared_out(documents: int, at_most: int, gpus: int) -> tuple[int, int]:
    """(passes of the GPU that has most, documents of such a pass)."""
    own = math.ceil(documents / gpus)
    passes = math.ceil(own / max(1, at_most))
    return passes, math.ceil(own / passes)


def seconds_of(work: Flops, machine: Machine, documents: int) -> float:
    """As long as the GPU takes that has most documents."""
    most = math.ceil(documents / machine.gpus) / documents
    return work.done * most / (machine.tflops * 1e12 * machine.share)


# -- the table


def plan_table(name: str, config: Any, machines: Sequence[Machine], average: Average) -> str:
    needs = [(stage1_needs if config.command == "stage1" else stage2_needs)(config, each, average) for each in machines]
    lora = bool(config.lora)
    heads = [
        f"{m.gpus} GPU" if m.gpus == 1 else f"{m.gpus} GPUs, {'FSDP' if m.sharded(lora) else 'DDP'}" for m in machines
    ]
    rows: list[tuple[str, list[str]]] = []
    parts = list(dict.fromkeys(part for each in needs for part in each.gpu))
    for part in sorted(parts, key=ORDER.index):
        rows.append((part, [gigabytes(each.gpu[part]) if each.gpu.get(part) else "" for each in needs]))
    rows.append(("**sum on each GPU**", [f"**{gigabytes(each.total)}**" for each in needs]))
    rows.append((f"fits {machines[0].memory:g} GB", [fits(each, m) for each, m in zip(needs, machines, strict=True)]))
    rows.append(("host memory of a machine", [gigabytes(each.host) for each in needs]))
    rows.append(("checkpoint (twice that while saving)", [gigabytes(each.checkpoint) for each in needs]))
    rows.append(("passes of a GPU in a step", [str(each.passes) for each in needs]))
    rows.append(("petaflops of a step, repeated ones included", [f"{each.work.done / 1e15:,.1f}" for each in needs]))
    rows.append(("seconds of a step", [f"{each.seconds:,.1f}" for each in needs]))
    if config.steps:
        hours = [each.seconds * config.steps / 3600 for each in needs]
        rows.append(
            (f"hours of {config.steps:,} steps", [f"{each:,.0f}" if each >= 10 else f"{each:.1f}" for each in hours])
        )
    lines = [f"| `{name}`, GB | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    return "\n".join([*lines, *(f"| {label} | {' | '.join(cells)} |" for label, cells in rows)])


ORDER = [
    "weights", "gradients", "AdamW", "averages", "MLLM and VAE", "gathered", "bfloat16 copies", "activations",
]  # fmt: skip
SLACK = 4 * GB  # CUDA's context, fragments, NCCL's buffers


def gigabytes(value: float) -> str:
    return f"{value / GB:.1f}"


def fits(needs: Needs, machine: Machine) -> str:
    free = machine.memory * GB - SLACK - needs.total
    return "yes" if free >= 0 else f"no, {gigabytes(-free)} too much"


# -- the command


class Gpus(argparse.Action):
    """Whole numbers; a name=value behind them is a setting, and not one of them."""

    def __call__(self, parser: Any, found: Any, values: Any, option: str | None = None) -> None:
        numbers = [value for value in values if "=" not in value]
        if wrong := next((value for value in numbers if not value.isdecimal()), None):
            parser.error(f"argument {option}: {wrong!r} is no whole number")
        if not numbers:
            parser.error(f"argument {option}: expected at least one number")
        found.gpus = [int(value) for value in numbers]
        # A list of its own: `settings` is set anew when the recipe comes after this option.
        found.behind_gpus = [value for value in values if "=" in value]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe of stage 1 or 2 by name, or a configuration file of yours")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings that override the recipe's")
    parser.add_argument("--stage", choices=("stage1", "stage2"), help="which stage a file of yours is for")
    parser.add_argument(
        "--gpus", action=Gpus, nargs="+", default=[1, 8, 64], metavar="N", help="a column for each; default: 1 8 64"
    )
    parser.set_defaults(behind_gpus=[])
    parser.add_argument("--memory", type=float, default=80.0, metavar="GB", help="of each GPU; default: 80")
    parser.add_argument("--tflops", type=float, default=PEAK, help="peak of each GPU in bfloat16; default: %(default)g")
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that is reached; default: %(default)g")
    parser.add_argument(
        "--launch", choices=("ddp", "fsdp"), help="how the GPUs share; default: fsdp for whole models, ddp with LoRA"
    )
    parser.add_argument("--text", type=int, default=400, metavar="N", help="tokens of a document's text; default: 400")
    parser.add_argument("--images", type=int, default=4, metavar="N", help="of an average document; default: 4")
    parser.add_argument("--side", type=int, default=512, metavar="PIXELS", help="of an average image; default: 512")


def run(args: argparse.Namespace) -> int:
    name, config = read_recipe(args.recipe, args.stage, [*args.settings, *args.behind_gpus])
    for option, value in (
        ("gpus", min(args.gpus)),
        ("memory", args.memory),
        ("tflops", args.tflops),
        ("text", args.text),
        ("images", args.images),
    ):
        if value <= 0:
            raise ConfigError(f"--{option} is {value:g}; expected more than 0.")
    if not 0 < args.share <= 1:
        raise ConfigError(f"--share is {args.share:g}; expected a share of the peak, above 0 and at most 1.")
    if args.side < 64:
        raise ConfigError(f"--side is {args.side}; expected at least 64 pixels.")
    machine = Machine(1, args.memory, args.tflops, args.share, args.launch)
    machines = [replace(machine, gpus=gpus) for gpus in args.gpus]
    print(plan_table(name, config, machines, Average(args.text, args.images, args.side)))
    return 0


def read_recipe(given: str, stage: str | None, settings: Sequence[str]) -> tuple[str, Any]:
    from duogen_core.training.stage1 import Stage1Config
    from duogen_core.training.stage2_data import Stage2Config

    kinds = {"stage1": Stage1Config, "stage2": Stage2Config}
    for command, kind in kinds.items():
        if given in recipes_of(command):
            return given, load_config(kind, RECIPES / command / f"{given}.yaml", settings)
    if not Path(given).is_file():
        known = [name for command in kinds for name in recipes_of(command)]
        raise ConfigError(unknown("There is no such file, and the recipe", given, known))
    if stage is None:
        raise ConfigError(f"Which stage is {given} for? Add --stage stage1 or --stage stage2.")
    return Path(given).stem, load_config(kinds[stage], Path(given), settings)
