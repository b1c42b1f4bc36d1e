"""The sockets of our own, where ComfyUI's core has none, what their values hold, and IMAGE <-> Picture at the border.

DUOGEN_CONTEXT is a `duogen_core.document.Document`, DUOGEN_MLLM and DUOGEN_CONNECTOR are the managed models of
`managed.py`, DUOGEN_STATES is `stages.States`, DUOGEN_LOOP is `loop.Round`.
IMAGE is ComfyUI's float [B, H, W, C] in 0..1, a Picture is uint8 RGB [H, W, 3].
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from duogen_core.document import Document, Picture

Mllm = io.Custom("DUOGEN_MLLM")
Connector = io.Custom("DUOGEN_CONNECTOR")
Context = io.Custom("DUOGEN_CONTEXT")
States = io.Custom("DUOGEN_STATES")
Loop = io.Custom("DUOGEN_LOOP")
# What JSON can hold, and no socket of these types does; the others are our nodes' widgets.
_OBJECTS = ("MODEL", "VAE", "IMAGE", *(each.io_type for each in (Mllm, Connector, Context, States, Loop)))
PLAIN = {
    **dict.fromkeys(_OBJECTS, (str, int, float, list, dict)),
    "CONDITIONING": (str, int, float, dict),  # a list
    "LATENT": (str, int, float, list),  # a dict
}


def refuse_plain_values(node: type[io.ComfyNode]) -> None:
    """Lets a node refuse text, numbers and lists where a link belongs, in a sentence.

    ComfyUI checks what is linked to a socket, but not a value that a hand-written workflow puts in place of a link.
    """
    run = node.__dict__["execute"].__func__

    @wraps(run)
    def execute(cls: type[io.ComfyNode], *args: Any, **values: Any) -> io.NodeOutput:
        from duogen_core.errors import DuoGenError, shown

        for each in cls.SCHEMA.inputs:
            value = values.get(each.id)
            missing = value is None and each.id in values and not (each.optional or each.lazy)
            kind = each.get_io_type()
            if kind in PLAIN and (missing or isinstance(value, PLAIN[kind])):
                text = shown(repr(value)[:80])
                raise DuoGenError(f"The input {each.id} is {text}, which is no {kind}; connect a node's output to it.")
        return run(cls, *args, **values)

    node.execute = classmethod(execute)


def pictures_from_image(image: torch.Tensor) -> list[Picture]:
    """IMAGE [B, H, W, 1|3|4] -> one Picture an entry of the batch; transparency is laid on white."""
    import torch

    from duogen_core.document import Picture
    from duogen_core.errors import DuoGenError

    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise DuoGenError(f"An IMAGE must be [batch, height, width, channels]; this one is {list(image.shape)}.")
    image = image.float().cpu().clamp(0, 1)
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] + (1 - image[..., 3:])
    if image.shape[-1] == 1:
        image = image.expand(-1, -1, -1, 3)
    return [Picture(one.numpy()) for one in (image * 255).round().to(torch.uint8)]


def image_from_picture(picture: Picture) -> torch.Tensor:
    """Picture -> IMAGE [1, H, W, 3] on the device and in the dtype ComfyUI keeps its images in."""
    import comfy.model_management as mm
    import numpy as np
    import torch

    image = torch.from_numpy(np.array(picture.pixels))[None].float() / 255
    return image.to(device=mm.intermediate_device(), dtype=mm.intermediate_dtype())


def image_list(pictures: Sequence[Picture]) -> list[Any]:
    """For an output that is a list. Without pictures, what hangs on it is skipped; an empty list would crash it."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return [image_from_picture(picture) for picture in pictures] or [ExecutionBlocker(None)]


def one_batch(pictures: Sequence[Picture]) -> torch.Tensor | None:
    """IMAGE [n, H, W, 3] of several pictures, for a node that takes them all at once; None where there are none.

    An IMAGE has one size. Pictures of another one are scaled to fit into the largest sides there are, on white.
    """
    import torch

    if not pictures:
        return None
    size = tuple(max(picture.size[side] for picture in pictures) for side in (0, 1))
    return torch.cat([image_from_picture(on_canvas(picture, size)) for picture in pictures])


def on_canvas(picture: Picture, size: tuple[int, int]) -> Picture:
    """The picture as large as it fits into (width, height), in the middle of white."""
    if picture.size == size:
        return picture
    import numpy as np
    from PIL import Image, ImageOps

    from duogen_core.document import Picture

    image = ImageOps.pad(Image.fromarray(picture.pixels), size, Image.Resampling.LANCZOS, color=(255, 255, 255))
    return Picture(np.asarray(image))


def last_answer(document: Document) -> Document:
    """The last turn alone, when it is an answer."""
    from dataclasses import replace

    from duogen_core.errors import DuoGenError

    if not document.turns or document.last_turn.role != "assistant":
        raise DuoGenError("The context holds no answer yet; connect the context that comes out of DuoGen Interleave.")
    return replace(document, turns=document.turns[-1:])
