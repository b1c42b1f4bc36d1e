"""DuoGen Review Image: a critic looks at an image before it becomes part of the answer, and has a bad one drawn again.

    Loop Open -> (context, text, seed) -> whatever draws an image -> Review Image -> Loop Close

The nodes that draw are copied for each redraw (steps/review.py). DuoGenReviewNext is put in at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..host import secrets
from . import sockets

if TYPE_CHECKING:
    from duogen_core.document import Document

OWN, ENDPOINT, SKETCHBOOK = "mllm", "endpoint", "sketchbook"
MAX_REDRAWS = 20


def _inputs(*more: io.Input) -> list[io.Input]:
    return [
        io.Image.Input("image", tooltip="The image that was drawn."),
        sockets.Context.Input(
            "context", tooltip="The answer up to this image, straight from DuoGen Loop Open or the node that wrote it."
        ),
        io.Combo.Input(
            "critic",
            options=[OWN, ENDPOINT, SKETCHBOOK],
            default=OWN,
            tooltip="Who looks. mllm: the connected language model, which must see, such as a Qwen-VL. endpoint: a "
            "model on a server. sketchbook: the exact checker of the bundled model's world, for its drawings only.",
        ),
        io.Int.Input(
            "redraws",
            default=2,
            min=0,
            max=MAX_REDRAWS,
            tooltip="How often an image that the critic refuses is drawn again, with another seed and the critic's "
            "better prompt. The best one is kept. 0: the critic only says what it thinks.",
        ),
        io.String.Input(
            "address",
            default="http://127.0.0.1:11434/v1",
            advanced=True,
            tooltip="For endpoint: where the server is. The request and the images are sent there, also if that is "
            "another machine.",
        ),
        io.String.Input(
            "model",
            default="",
            advanced=True,
            tooltip="For endpoint: the model's name, as the server calls it; it must see. Empty: the only one it has.",
        ),
        io.String.Input(
            "key",
            default="",
            advanced=True,
            tooltip="For endpoint: the name of an environment variable that holds the server's key, never the key "
            "itself. Empty: what ComfyUI's settings have for this address, if anything.",
        ),
        *more,
        io.Int.Input(
            "seed",
            optional=True,
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            force_input=True,
            tooltip="The seed that the image is drawn with, from DuoGen Loop Open: redraws get others that are derived "
            "from it. Not connected: the seeds in the widgets of the nodes that draw are changed.",
        ),
        sockets.Mllm.Input("mllm", optional=True, tooltip="For mllm: the language model that looks."),
        io.Int.Input(
            "seconds",
            default=300,
            min=1,
            max=86400,
            optional=True,
            advanced=True,
            tooltip="For endpoint: the longest that the server may take for one review.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output("image", tooltip="The best of the tries."),
        io.String.Output("review", tooltip="What the critic says of it."),
        io.Boolean.Output("good", tooltip="Whether the critic is content with it."),
    ]


class DuoGenReviewImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenReviewImage",
            display_name="DuoGen Review Image",
            category="DuoGen/loop",
            description="A critic looks at an image: does it show what the text says, and does everybody look as "
            "before? An image that it refuses is drawn again by copies of the nodes that drew it. Put it between them "
            "and DuoGen Loop Close.",
            search_aliases=["critic", "judge", "check image", "redraw", "retry", "quality", "vlm"],
            inputs=_inputs(),
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            enable_expand=True,
        )

    @classmethod
    def validate_inputs(
        cls, address: str | None = None, model: str | None = None, key: str | None = None
    ) -> bool | str:
        """Before the workflow is queued, and so before it stands in a history or an image. None: from a link."""
        from duogen_core.errors import DuoGenError

        widgets = {"address": address, "model": model, "key": key}
        try:
            secrets.refuse_keys(**{name: text for name, text in widgets.items() if text})
        except DuoGenError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, image: Any, context: Document, redraws: int, **given: Any) -> io.NodeOutput:
        from ..steps.review import Tries

        return _look(cls, cls.hidden.unique_id, image, context, redraws, Tries(), **given)


class DuoGenReviewNext(io.ComfyNode):
    """DuoGen Review Image behind the copies of a redraw."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenReviewNext",
            display_name="DuoGen Review Next",
            category="DuoGen/internal",
            description="DuoGen Review Image puts this node in while it runs. It is not meant to be used by hand.",
            inputs=_inputs(
                sockets.Tries.Input("tries", tooltip="What was drawn before."),
                io.String.Input("duogen_review", tooltip="The DuoGen Review Image that it stands for."),
            ),
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            enable_expand=True,
            is_dev_only=True,
        )

    @classmethod
    def execute(
        cls, image: Any, context: Document, redraws: int, tries: Any, duogen_review: str, **given: Any
    ) -> io.NodeOutput:
        return _look(cls, duogen_review, image, context, redraws, tries, **given)


def _look(
    cls: Any,
    origin: str,
    image: Any,
    context: Document,
    redraws: int,
    tries: Any,
    *,
    critic: str,
    address: str,
    model: str,
    key: str,
    seed: int | None = None,
    mllm: Any = None,
    seconds: int = 300,
) -> io.NodeOutput:
    from ..steps import review

    secrets.refuse_keys(address=address, model=model, key=key)
    looks = review.open_critic(critic, mllm, address, model, key, seconds)
    given = {
        "critic": critic, "redraws": redraws, "address": address, "model": model, "key": key, "mllm": mllm,
        "seconds": seconds,
    }  # fmt: skip
    return review.look(cls.hidden, origin, looks, image, context, redraws, seed, tries, given)
