"""What our nodes put into a CONDITIONING, and how the branches of guidance run as one batch.

In:  `reference_latents`, a list of [1, channels, 1, h, w] as the VAE encodes them, each earlier image at its own size;
     `cross_attn` [1, N, W], the connector's states; and the keys below.
Out: for a step, the `BranchOfRun`s of its rows, and the text [R, N, W] of all, each as long as the longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import comfy.conds
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

# In the conditioning, beside ComfyUI's own keys:
FRAME_ENDS = "duogen_frame_ends"  # for each reference latent, the number of text tokens before it
PICTURE_ENDS = "duogen_picture_ends"  # the same for every image of the context, whether referred to or not
PICTURE_LIMIT = "duogen_picture_limit"  # the longest side at which the DiT sees an image
HIDDEN_TEXT = "duogen_hidden_text"  # (start, end) of the text tokens that only the earlier images see
MADE_FOR = "duogen_made_for"  # the family of DiT (families.FAMILIES) whose connector made the text, where known
STEP_TEXT = "duogen_text"  # the paragraph that the image illustrates


@dataclass(frozen=True, eq=False)
class BranchOfRun:
    """One CONDITIONING of one sampling run: itself the name by which its steps find what was prepared for it.

    hidden: (start, end) of the text tokens that the target does not see. references: as the CONDITIONING has them.
    tokens: of its text; what stands behind them is another branch's length.
    """

    hidden: tuple[int, int] | None
    references: tuple[torch.Tensor, ...] = ()
    tokens: int | None = None

    def sees_what(self, other: BranchOfRun) -> bool:
        """Whether both look at the same earlier images."""
        pairs = zip(self.references, other.references)
        return len(self.references) == len(other.references) and all(
            a is b or (a.shape == b.shape and a.device == b.device and torch.equal(a, b)) for a, b in pairs
        )


class BranchCond(comfy.conds.CONDConstant):
    """Lets ComfyUI run both branches of guidance as one batch where memory allows; they arrive as a tuple.

    Not where they look at unlike images: one batch has one list of them, and ComfyUI compares only sizes.
    """

    def can_concat(self, other: Any) -> bool:
        return isinstance(other, BranchCond) and self.cond.sees_what(other.cond)

    def concat(self, others: Sequence[BranchCond]) -> tuple[BranchOfRun, ...]:
        return (self.cond, *(other.cond for other in others))


class TextCond(comfy.conds.CONDRegular):
    """Texts of unlike lengths as one batch: the negative has no last paragraph. `own_text` cuts them again."""

    def can_concat(self, other: Any) -> bool:
        one, two = self.cond, other.cond
        return one.shape[::2] == two.shape[::2] and one.device == two.device and one.dtype == two.dtype

    def concat(self, others: Sequence[TextCond]) -> torch.Tensor:
        texts = [self.cond, *(other.cond for other in others)]
        longest = max(text.shape[1] for text in texts)
        return torch.cat([torch.nn.functional.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts])


def own_text(text: torch.Tensor, branch: BranchOfRun, branches: Sequence[BranchOfRun]) -> torch.Tensor:
    """Rows of one branch [B, N, W] without what made it as long as the others; N in between changed: as it is."""
    lengths = [each.tokens for each in branches]
    return text if None in lengths or text.shape[1] != max(lengths) else text[:, : branch.tokens]
