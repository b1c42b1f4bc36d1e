"""One step whose blocks somebody changes: a host's patches, such as those of ComfyUI's nodes.

In:  `Patches`, x [R, c, h, w] at the times t [R], and what was prepared with `together=True`. Out: the velocity, as
     `Prepared.velocity` gives it.
What a patch does in a step cannot be known before it, and a block that is changed changes what all later blocks read,
of the finished frames as well. So nothing of another step is reused here: all tokens go through all blocks in every
step, under frame_causal too, where each frame attends to itself and those before it, and to the text before its place.
Only what comes before the blocks and the text's keys and values are kept. A patched step therefore takes as long as
under `full`, and leaves nothing behind that a step without patches could find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from duogen_core.dit.frames import FrameInputs, PackedBlock
from duogen_core.dit.prepared import Prepared, Residuals

Kind = Literal["frames", "text"]  # attention between frames, and to the text


class Patches:
    """What may be changed; this one changes nothing. Tokens are [R, L, C], finished frames first, then the target."""

    changes_text = False  # whether `attention` wants to see attention to the text
    changes_mlp = False  # whether `mlp` does anything: compiled pieces of a block are compiled anew for it

    def tokens(self, x: Tensor) -> Tensor:
        """What goes into the first block."""
        return x

    def block(self, index: int, x: Tensor, inputs: FrameInputs, run: Callable[[Tensor], Tensor]) -> Tensor:
        return run(x)

    def attention(
        self, index: int, kind: Kind, q: Tensor, k: Tensor, v: Tensor, run: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """q [R, heads, L, D], k and v the same, or of the text's tokens -> as q. `run` keeps to who may see what."""
        return run(q, k, v)

    def mlp(self, index: int, x: Tensor) -> Tensor:
        """What the MLP of a block reads."""
        return x


@torch.no_grad()
def patched_velocity(
    prepared: Prepared, x: Tensor, t: Tensor, patches: Patches, residuals: Residuals | None = None
) -> Tensor:
    """See above. residuals: of a ControlNet for this step, as in `Prepared.velocity`; added behind what patches do."""
    model, branches = prepared.model, prepared.branches
    causal = model.config.attention == "frame_causal"
    frames = [*prepared.sizes, prepared.target]

    def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if not causal or len(frames) == 1:
                return prepared.attention(index, q, k, v)
            spans = pairwise(accumulate(frames, initial=0))
            own = [prepared.attention(index, q[:, :, start:end], k[:, :, :end], v[:, :, :end]) for start, end in spans]
            return torch.cat(own, dim=2)

        return patches.attention(index, "frames", q, k, v, run)

    def attend_text(index: int, block: PackedBlock, q: Tensor) -> Tensor:
        def run(q: Tensor, *changed: Tensor) -> Tensor:
            """changed: keys and values of all rows, where a patch has seen them."""
            parts = [each.chunk(len(branches)) for each in (q, *changed)]
            out = []
            for branch, ends, own, *pair in zip(branches, prepared.ends, *parts, strict=True):
                keys = branch.text
                pair = pair or [each.expand(len(own), -1, -1, -1) for each in keys.of_block(index, block)]
                # Each frame's tokens, and what they see; under `full` all frames see what the target sees.
                seen = [keys.cut(*pair, end) for end in ends] if causal else []
                seen.append([each[:, :, : branch.seen] for each in pair])
                for some, (k, v) in zip(own.split(frames if causal else [own.shape[2]], dim=2), seen, strict=True):
                    out.append(prepared.attention(index, some, k, v) if k.shape[2] else torch.zeros_like(some))
            rows = [torch.cat(out[i : i + len(seen)], dim=2) for i in range(0, len(out), len(seen))]
            return torch.cat(rows)

        if not patches.changes_text:
            return run(q)
        longest = max(branch.text.length for branch in branches)

        def whole(each: Tensor) -> Tensor:
            return pad(each.expand(prepared.batch, -1, -1, -1), (0, 0, 0, longest - each.shape[2]))

        pairs = [branch.text.of_block(index, block) for branch in branches]
        k, v = (torch.cat([whole(each) for each in both]) for both in zip(*pairs))
        return patches.attention(index, "text", q, k, v, run)

    x, inputs = prepared.inputs(x, t, False)
    any_text = any(branch.text.length for branch in branches)
    inputs = replace(inputs, attend=attend, attend_text=attend_text if any_text else None)
    inputs = prepared.controlled(inputs, residuals, range(len(branches)))
    x = patches.tokens(x[:, 0])
    for index, block in enumerate(model.transformer_blocks):
        own = inputs
        if patches.changes_mlp:
            own = replace(inputs, mlp=lambda h, index=index: patches.mlp(index, h[:, 0])[:, None])

        def run(x: Tensor, index: int = index, block=block, own: FrameInputs = own) -> Tensor:
            return block.text_and_mlp(block.frame_attention(x[:, None], own, index), own, index)[:, 0]

        x = patches.block(index, x, own, run)
        if inputs.after is not None:
            x = inputs.after(index, x[:, None].clone())[:, 0]  # a patch may have given back what it was given
    out = model.head(x[:, None, -prepared.target :], inputs.of_target())
    return model.unpatch(out[:, 0], prepared.grid)
