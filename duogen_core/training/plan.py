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
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.errors import DuoGenError, unknown
from duogen_core.training.configuration import RECIPES, ConfigError, load_config, recipes_of
from duogen_core.training.flops import DitFlops, Flops, MllmFlops, SequenceShape, sizes
from duogen_core.training.throughput import GB

SHAPES = Path(__file__).parent / "shapes"
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


# -- the modules, without memory


def shape_of(place: Path) -> dict[str, Any]:
    """The configuration of a model that a recipe names: that of its folder, or the published one of that name."""
    for file in (place / "config.json", place / "dit" / "config.json", place / "transformer" / "config.json"):
        if file.is_file():
            return as_published(json.loads(file.read_text("utf-8")))
    # What an earlier run writes is of the model that run begins with: runs/qwen2.5-vl-7b/export.
    for recipe in sorted((RECIPES / "stage1").glob("*.yaml")):
        from duogen_core.training.stage1 import Stage1Config

        earlier = load_config(Stage1Config, recipe)
        if place.parent == earlier.out:
            return shape_of(earlier.init)
    known = {}
    for file in sorted(SHAPES.glob("*.json")):
        shape = json.loads(file.read_text("utf-8"))
        known |= dict.fromkeys([file.stem, *shape["names"]], shape)
    if place.name not in known:
        raise DuoGenError(
            unknown(
                "The plan knows the sizes of published models and of folders that exist: the model", place.name, known
            )
        )
    return {key: value for key, value in known[place.name].items() if key not in ("names", "source")}


def as_published(shape: dict[str, Any]) -> dict[str, Any]:
    """With a `text_config` and a `vision_config` of an MLLM, as transformers writes it."""
    if "model_type" not in shape:
        return shape
    from transformers import AutoConfig

    config = AutoConfig.for_model(**shape)
    parts = {name: getattr(config, name).to_dict() for name in ("text_config", "vision_config")}
    return {**shape, **parts}


def build_mllm(shape: Mapping[str, Any], layers: int | None = None) -> nn.Module:
    """layers: so many of the language model alone, and next to no vision tower, for what needs no more."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    values = {key: value for key, value in shape.items() if key not in ("model_type", "architectures")}
    if layers is not None:
        values["text_config"] = {**values["text_config"], "num_hidden_layers": layers}
        values["text_config"].pop("layer_types", None)  # one for each layer
        values["vision_config"] = {**values["vision_config"], "depth": 1, "num_hidden_layers": 1}
    config = AutoConfig.for_model(shape["model_type"], **values)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def build_dit(shape: Mapping[str, Any], **changes: Any) -> nn.Module:
    from duogen_core.dit.loading import _family

    family = _family(dict(shape), "the recipe's DiT")
    values = {key: value for key, value in shape.items() if not key.startswith("_")}
    with torch.device("meta"):
        return family.from_config({**values, **changes})


def numel(module: nn.Module, learn: bool | None = None) -> int:
    weights = module.parameters()
    return sum(weight.numel() for weight in weights if learn is None or weight.requires_grad == learn)


# -- what a pass keeps until its backward


class Fused(torch.autograd.Function):
    """What fused attention saves: its inputs, its output and a number for each row. The meta device has none."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


@contextmanager
def fused_attention(enabled: bool) -> Iterator[None]:
    before = F.scaled_dot_product_attention
    if enabled:
        F.scaled_dot_product_attention = lambda q, k, v, *_, **__: Fused.apply(q, k, v)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def saved_by(compute: Callable[[], object], weights: Sequence[Tensor], fused: bool = True) -> int:
    """Bytes that autograd keeps of `compute`, each storage once, the weights left out."""
    seen: dict[int, int] = {}
    own = {weight.untyped_storage()._cdata for weight in weights}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in seen:
            seen[storage._cdata] = storage.nbytes()
            alive.append(storage)  # or the next one might get its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), fused_attention(fused):
        alive.append(compute())
    return sum(seen.values())


@dataclass(frozen=True)
class Kept:
    """Bytes a pass keeps: what goes into a block, what a block saves inside, and what is saved before and after."""

    entry: float
    inside: float
    ends: float

    def peak(self, blocks: int, checkpointed: bool) -> float:
        """With gradient checkpointing the blocks' inputs, and more than these either at the end or in one block."""
        if checkpointed:
            return blocks * self.entry + max(self.inside, self.ends)
        return blocks * self.inside + self.ends


def difference(measure: Callable[[int], int], entry: float) -> Kept:
    one, two = measure(1), measure(2)
    return Kept(entry, two - one, max(0, 2 * one - two))


def kept_by_mllm(shape: Mapping[str, Any], rows: int, length: int, learnt: int, dtype: torch.dtype) -> Kept:
    """A micro-batch of rows x length tokens, of which `learnt` have a loss."""

    def measure(layers: int) -> int:
        model = build_mllm(shape, layers).to(dtype)
        text = model.model.language_model
        embeds = torch.empty(rows, length, model.config.text_config.hidden_size, dtype=dtype, device="meta")
        positions = torch.zeros(3, rows, length, dtype=torch.long, device="meta")
        targets = torch.zeros(learnt, dtype=torch.long, device="meta")
        rotary = tuple(each.to(dtype) for each in text.rotary_emb(embeds, positions))

        def compute() -> list[Tensor]:
            hidden = embeds.clone().requires_grad_()
            for layer in text.layers:
                hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            logits = model.get_output_embeddings()(text.norm(hidden).flatten(0, 1)[:learnt])
            return [logits, F.cross_entropy(logits.float(), targets, reduction="none")]

        # The bfloat16 logits go, but the loss and its gradient are as large again in float32.
        more = learnt * model.config.text_config.vocab_size * (torch.float32.itemsize + dtype.itemsize)
        return saved_by(compute, list(model.parameters()), fused=dtype != torch.float32) + more

    hidden = shape["text_config"]["hidden_size"]
    return difference(measure, rows * length * hidden * dtype.itemsize)


def kept_by_dit(
    shape: Mapping[str, Any],
    sequences: Sequence[SequenceShape],
    sides: tuple[int, int],
    dtype: torch.dtype,
    **settings: Any,
) -> Kept:
    """sides: of a latent; all frames are of one size."""
    from duogen_core.dit.packing import TrainingSequence

    def measure(layers: int) -> int:
        dit = nn.Module.to(build_dit(shape, num_layers=layers, **settings), dtype).train()
        channels, width = dit.config.out_channels, dit.config.text_embed_dim

        def latents(count: int) -> tuple[Tensor, ...]:
            return tuple(torch.empty(channels, *sides, dtype=dtype, device="meta") for _ in range(count))

        pack = [
            TrainingSequence(
                latents(len(each.clean)), latents(len(each.noisy)), each.places,
                torch.empty(len(each.noisy), device="meta"), torch.empty(each.text, width, dtype=dtype, device="meta"),
                torch.ones(len(each.places), each.text, dtype=torch.bool),
            )
            for each in sequences
        ]  # fmt: skip
        return saved_by(lambda: dit.forward_train(pack), list(dit.parameters()), fused=dtype != torch.float32)

    tokens = sum(each.tokens for each in sequences)
    probe = build_dit(shape, num_layers=1, **settings)
    width = probe.config.num_attention_heads * probe.config.attention_head_dim
    return difference(measure, tokens * width * dtype.itemsize)


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
    patch = model.config.vision_config.patch_size
    step = patch * getattr(model.config.vision_config, "spatial_merge_size", 1)
    side = max(step, average.side // step * step)
    of_image = (side // step) ** 2
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
    work += flops.of_pictures([(side, side)] * (average.images * config.batch))
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
    merged = mllm.config.vision_config.patch_size * getattr(mllm.config.vision_config, "spatial_merge_size", 1)
    text = average.text + (images - 1) * (average.side // merged) ** 2
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
        step = reading.patch * int(reading.merged**0.5)
        seen = (average.side // step * step,) * 2
        read = reading.of(documents, text, 0) + reading.of_pictures([seen] * (images - 1) * documents)
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe of stage 1 or 2 by name, or a configuration file of yours")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings that override the recipe's")
    parser.add_argument("--stage", choices=("stage1", "stage2"), help="which stage a file of yours is for")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="a column for each")
    parser.add_argument("--memory", type=float, default=80.0, metavar="GB", help="of each GPU; default: 80")
    parser.add_argument("--tflops", type=float, default=PEAK, help="peak of each GPU in bfloat16; default: %(default)g")
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that is reached; default: %(default)g")
    parser.add_argument(
        "--launch", choices=("ddp", "fsdp"), help="how the GPUs share; default: fsdp for whole models, ddp with LoRA"
    )
    parser.add_argument("--text", type=int, default=400, metavar="N", help="tokens of an average document's text")
    parser.add_argument("--images", type=int, default=4, metavar="N", help="of an average document")
    parser.add_argument("--side", type=int, default=512, metavar="PIXELS", help="of an average image")


def run(args: argparse.Namespace) -> int:
    name, config = read_recipe(args.recipe, args.stage, args.settings)
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
