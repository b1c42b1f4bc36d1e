"""Operations that a training step needs, by formula: two for each weight and token it meets, and those of attention.

    MllmFlops(model).of(rows, length, learnt, pictures)     -> Flops, of a micro-batch of stage 1
    DitFlops(dit, connector).of(sequences)                  -> Flops, of a pass of stage 2

A product of [m, k] and [k, n] counts 2 m k n. Backward, each product has one more of that size for its input and one
for its weight, where that learns: 3 times the forward when all weights do, 2 times when they are frozen (LoRA).
Attention counts whole, also where a causal mask hides half of it, as in PaLM's appendix B and torch's FlopCounterMode,
against which these numbers are tested. Norms, activations and the like are left out there and here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

TEXT = re.compile(r"attn2\.(to_k|to_v)(\.|$)|text_embedder|crossattn_proj")  # what goes over tokens of the text
FRAME = re.compile(r"norm\w*\.linear|time_|norm_out|timesteps")  # what goes over frames: modulations


@dataclass(frozen=True)
class Flops:
    forward: float = 0.0
    backward: float = 0.0
    repeated: float = 0.0  # by gradient checkpointing, a second time; not part of what the model needs

    @property
    def needed(self) -> float:
        return self.forward + self.backward

    @property
    def done(self) -> float:
        return self.needed + self.repeated

    def __add__(self, other: Flops) -> Flops:
        forward, backward = self.forward + other.forward, self.backward + other.backward
        return Flops(forward, backward, self.repeated + other.repeated)

    def __mul__(self, times: float) -> Flops:
        return Flops(times * self.forward, times * self.backward, times * self.repeated)


def sizes(modules: Iterable[nn.Module]) -> tuple[int, int]:
    """(weights of all layers that multiply, those of them that learn). By what layers say of themselves, since FSDP
    splits their weights and quantisation packs them."""
    every = learn = 0
    for module in modules:
        if isinstance(module, nn.Linear):
            size = module.in_features * module.out_features
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
            size = module.out_channels * (module.in_channels // module.groups) * _product(module.kernel_size)
        else:
            continue
        every += size
        learn += size * bool(module.weight.requires_grad)
    return every, learn


def _product(numbers: Sequence[int]) -> int:
    return int(torch.Size(numbers).numel())


def passed(every: int, learn: int, times: float, inner: bool = True) -> Flops:
    """`times` tokens through layers of so many weights. inner: their input learns, too."""
    forward = 2.0 * every * times
    return Flops(forward, (forward if inner else 0.0) + 2.0 * learn * times)


class MllmFlops:
    """Of a model with `model.language_model.layers` and `lm_head`, and a vision tower beside them."""

    def __init__(self, model: nn.Module, checkpointed: bool = False) -> None:
        text, self.checkpointed = model.config.text_config, checkpointed
        heads = text.num_attention_heads
        self.head_width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
        self.layers = len(model.model.language_model.layers)
        self.decoder = sizes(model.model.language_model.layers.modules())
        self.output = sizes([model.get_output_embeddings()])
        visual = getattr(model.model, "visual", None)
        tower = visual if visual is not None else getattr(model.model, "vision_tower", None)
        named = [] if tower is None else list(tower.named_modules())
        self.mergers = sizes(module for name, module in named if "merger" in name)
        self.tower = sizes(module for name, module in named if "merger" not in name)
        vision = model.config.vision_config
        self.merged = getattr(vision, "spatial_merge_size", 1) ** 2
        self.depth = getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", 0)
        self.vision_width, self.patch = vision.hidden_size, vision.patch_size
        # Qwen2.5-VL's blocks look through windows, but for a few.
        whole = getattr(vision, "fullatt_block_indexes", None)
        self.whole_blocks = self.depth if whole is None else len(whole)
        self.window = (getattr(vision, "window_size", 0) // vision.patch_size) ** 2
        if tile := getattr(vision, "image_size", 0):  # LLaVA-OneVision's looks at the tiles of a picture one by one
            self.whole_blocks, self.window = 0, (tile // vision.patch_size) ** 2

    def of(self, rows: int, length: int, learnt: int, pictures: Sequence[tuple[int, int]] = ()) -> Flops:
        """rows x length padded tokens, `learnt` of which have a loss; pictures: (width, height) as the tower sees
        them."""
        tokens = rows * length
        linear = passed(*self.decoder, tokens)
        attention = 4.0 * self.layers * self.head_width * rows * length**2
        decoder = linear + Flops(attention, 2 * attention)
        if self.checkpointed:
            decoder += Flops(repeated=decoder.forward)
        return decoder + passed(*self.output, learnt) + self.of_pictures(pictures)

    def of_share(self, batches: Sequence[Any], patches: Iterable[int]) -> float:
        """What is needed of micro-batches (next_token.py), and of the patches of the distinct pictures they show."""
        learnt = (int((batch.weight[:, 1:] > 0).sum()) for batch in batches)
        decoder = sum((self.of(*batch.ids.shape, own) for batch, own in zip(batches, learnt, strict=True)), Flops())
        return (decoder + self.of_patches(patches)).needed

    def of_pictures(self, pictures: Iterable[tuple[int, int]]) -> Flops:
        """pictures: (width, height) as the tower sees them."""
        return self.of_patches((width // self.patch) * (height // self.patch) for width, height in pictures)

    def of_patches(self, pictures: Iterable[int]) -> Flops:
        """What the vision tower does with pictures of so many patches; backward only where it learns."""
        total = Flops()
        for patches in pictures:
            seen = min(patches, self.window or patches)  # by a patch in a block that looks through windows
            seen = self.whole_blocks * patches + (self.depth - self.whole_blocks) * seen
            attention = 4.0 * self.vision_width * patches * seen
            forward = 2.0 * (self.tower[0] * patches + self.mergers[0] * patches // self.merged) + attention
            total += Flops(forward, 2 * forward if self.tower[1] else 0.0)
        return total


@dataclass(frozen=True)
class SequenceShape:
    """A document in a pass: tokens of its clean and noisy frames, its frames' places, tokens of its text."""

    clean: tuple[int, ...]
    noisy: tuple[int, ...]
    places: tuple[int, ...]
    text: int

    @property
    def tokens(self) -> int:
        return sum(self.clean) + sum(self.noisy)

    def seen(self, attention: str) -> int:
        """Pairs of tokens that attention between frames multiplies (packing.Group.attend)."""
        sizes = (*self.clean, *self.noisy)
        if attention == "full" or len(sizes) == 1:
            return self.tokens**2
        pairs, count = 0, len(self.clean)
        for i, (size, place) in enumerate(zip(sizes, self.places, strict=True)):
            if i < count:
                pairs += size * sum(self.clean[: i + 1])
            else:
                pairs += size * (sum(self.clean[: sum(other < place for other in self.places[:count])]) + size)
        return pairs


class DitFlops:
    """Of a DiT of any family and its connector (None: the text is projected already)."""

    def __init__(self, dit: nn.Module, connector: nn.Module | None = None, checkpointed: bool = False) -> None:
        self.attention, self.checkpointed = dit.config.attention, checkpointed
        self.width = dit.config.num_attention_heads * dit.config.attention_head_dim
        self.blocks, (_, ph, pw) = len(dit.transformer_blocks), dit.config.patch_size
        self.patch = ph, pw
        inside = {id(module) for block in dit.transformer_blocks for module in block.modules()}
        parts: dict[tuple[str, bool], list[nn.Module]] = {}
        for name, module in dit.named_modules():
            kind = "text" if TEXT.search(name) else "frame" if FRAME.search(name) else "token"
            parts.setdefault((kind, id(module) in inside), []).append(module)
        self.parts = {key: sizes(modules) for key, modules in parts.items()}
        self.connector = (0, 0) if connector is None else sizes(connector.modules())

    def of(self, sequences: Sequence[SequenceShape]) -> Flops:
        times = {
            "token": sum(each.tokens for each in sequences),
            "frame": sum(len(each.places) for each in sequences),
            "text": sum(each.text for each in sequences),
        }
        blocks = sum((passed(*size, times[kind]) for (kind, within), size in self.parts.items() if within), Flops())
        pairs = sum(each.seen(self.attention) + each.tokens * each.text for each in sequences)
        attention = 4.0 * self.blocks * self.width * pairs
        blocks += Flops(attention, 2 * attention)
        if self.checkpointed:
            blocks += Flops(repeated=blocks.forward)
        ends = sum((passed(*size, times[kind]) for (kind, within), size in self.parts.items() if not within), Flops())
        return blocks + ends + passed(*self.connector, times["text"], inner=False)

    def of_samples(self, samples: Sequence[Any]) -> Flops:
        """Of FlowSamples, as stage 2 has them."""
        return self.of([self.shape(sample) for sample in samples])

    def shape(self, sample: Any) -> SequenceShape:
        clean, noisy = (tuple(map(self._tokens, frames)) for frames in (sample.clean, sample.targets))
        return SequenceShape(clean, noisy, sample.frame_indices, len(sample.states))

    def _tokens(self, latent: torch.Tensor) -> int:
        height, width = latent.shape[-2:]
        return (height // self.patch[0]) * (width // self.patch[1])
