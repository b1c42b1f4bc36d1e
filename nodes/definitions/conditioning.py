"""What the sampler needs for the next image: CONDITIONING from the context and the earlier images, and its size.

DuoGen Condition Next Image is Encode Context -> States to Conditioning -> Add Reference Latents in one; those three are
there for graphs that change something in between. The connector's projection is summed layer by layer while the
language model runs (`duogen_core.connector`), so the connector goes into Encode Context, and the states that come out
hold one row of the width of the DiT's text input for each token, never all layers.

For image models that look at images through their own text encoder: Get Earlier Images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..host.images import image_from_picture
from ..steps import FIXED, LIKE_LAST, LIKE_NUMBER
from . import sockets

if TYPE_CHECKING:
    from duogen_core.document import Document

CATEGORY = "DuoGen/advanced/stages"
LOOP = "DuoGen/loop"
CHOICE = (
    "all, none, last 2, planned (those that the plan names for this image; without a plan, the first and the last "
    "two), or numbers such as 1, 3-4; also together: 1, last 2"
)
# What saved workflows have for LIKE_LAST and LIKE_NUMBER.
OLD_SIZES = {"like the last picture": LIKE_LAST, "like picture n": LIKE_NUMBER}
EARLIER = 3  # images that TextEncodeQwenImageEditPlus takes


def _which() -> io.String.Input:
    tooltip = (
        f"Which earlier images to look at: {CHOICE}. Images of the whole conversation count from 1, yours included."
    )
    return io.String.Input("which", default="all", tooltip=tooltip)


def _megapixels() -> io.Float.Input:
    return io.Float.Input(
        "megapixels",
        default=0.0,
        min=0.0,
        max=64.0,
        step=0.01,
        optional=True,
        advanced=True,
        tooltip="Larger images are scaled down to this size for the model that draws; about 1 suits most image models. "
        "0: as large as they are, or as the checkpoint was trained on.",
    )


def _with_references(
    conditionings: tuple[list, list], vae: Any, context: Document, which: str, megapixels: float
) -> list[list]:
    from duogen_core.document import pending

    from ..steps import answer, stages

    pictures = pending.before_next_picture(context).pictures
    return stages.refer(conditionings, vae, pictures, answer.chosen(which, context), megapixels)


class DuoGenConditionNextImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenConditionNextImage",
            display_name="DuoGen Condition Next Image",
            category=CATEGORY,
            description="Prepares the next image for KSampler: positive is the whole context as the language model "
            "reads it, negative leaves out the paragraph to draw, and both hold the earlier images as reference "
            "latents. Encode Context, States to Conditioning and Add Reference Latents in one node.",
            search_aliases=["conditioning", "encode context", "connector", "reference latent", "text encode"],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that wrote the context."),
                sockets.Connector.Input(
                    "connector", tooltip="The connector between this language model and the MODEL that draws."
                ),
                io.Vae.Input("vae", tooltip="The VAE of the MODEL that draws."),
                sockets.Context.Input("context", tooltip="The answer up to the place where an image is due."),
                _which(),
                _megapixels(),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The whole context, with the earlier images."),
                io.Conditioning.Output(
                    "negative", tooltip="The context without the paragraph to draw, with the same earlier images."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, mllm: Any, connector: Any, vae: Any, context: Document, which: str, megapixels: float = 0.0
    ) -> io.NodeOutput:
        from ..steps import stages

        conditionings = stages.condition(stages.encode(mllm, connector, context))
        return io.NodeOutput(*_with_references(conditionings, vae, context, which, megapixels))


class DuoGenEncodeContext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenEncodeContext",
            display_name="DuoGen Encode Context",
            category=CATEGORY,
            description="Reads the context with the language model and returns the hidden states of all its layers, "
            "projected by the connector: what the next image should show. After DuoGen Write Text with the same "
            "connector this costs nothing.",
            search_aliases=["hidden states", "encode prompt", "text encode"],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that wrote the context."),
                sockets.Connector.Input(
                    "connector", tooltip="The connector between this language model and the MODEL that draws."
                ),
                sockets.Context.Input("context", tooltip="The answer up to the place where an image is due."),
            ],
            outputs=[
                sockets.States.Output(
                    "states", tooltip="What the image should show, for DuoGen States to Conditioning."
                )
            ],
        )

    @classmethod
    def execute(cls, mllm: Any, connector: Any, context: Document) -> io.NodeOutput:
        from ..steps import stages

        return io.NodeOutput(stages.encode(mllm, connector, context))


class DuoGenConnector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenConnector",
            display_name="DuoGen States to Conditioning",
            category=CATEGORY,
            description="Turns hidden states into CONDITIONING for KSampler: positive is the whole context, negative "
            "leaves out the paragraph to draw, so that cfg strengthens that paragraph and nothing else.",
            search_aliases=["conditioning", "positive", "negative"],
            inputs=[sockets.States.Input("states", tooltip="From DuoGen Encode Context.")],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The whole context."),
                io.Conditioning.Output("negative", tooltip="The context without the paragraph to draw."),
            ],
        )

    @classmethod
    def execute(cls, states: Any) -> io.NodeOutput:
        from ..steps import stages

        return io.NodeOutput(*stages.condition(states))


class DuoGenReferenceImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenReferenceImages",
            display_name="DuoGen Add Reference Latents",
            category=CATEGORY,
            description="Adds earlier images of the conversation to the CONDITIONING as reference latents, each at its "
            "own size: all of them, the last ones, or those you name. Works with every MODEL that takes reference "
            "latents; ComfyUI's own Wan takes none.",
            search_aliases=["reference latent", "consistency", "image context"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="From DuoGen States to Conditioning, or any other node."),
                io.Conditioning.Input("negative", tooltip="The negative CONDITIONING of the same node."),
                io.Vae.Input("vae", tooltip="The VAE of the MODEL that draws."),
                sockets.Context.Input("context", tooltip="The context that went into DuoGen Encode Context."),
                _which(),
                _megapixels(),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="With the earlier images."),
                io.Conditioning.Output("negative", tooltip="With the same earlier images."),
            ],
        )

    @classmethod
    def execute(
        cls, positive: list, negative: list, vae: Any, context: Document, which: str, megapixels: float = 0.0
    ) -> io.NodeOutput:
        return io.NodeOutput(*_with_references((positive, negative), vae, context, which, megapixels))


class DuoGenEarlierImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenEarlierImages",
            display_name="DuoGen Get Earlier Images",
            category=LOOP,
            description="Outputs up to three earlier images of the conversation, for an image model that looks at "
            "images through its own text encoder, such as Qwen-Image-Edit. Outputs without an image are empty, which "
            "optional inputs treat as not connected.",
            search_aliases=["image1 image2 image3", "reference image", "qwen image edit plus", "last image"],
            inputs=[
                sockets.Context.Input("context", tooltip="The context in which the image is due."),
                io.String.Input(
                    "which",
                    default="last 3",
                    tooltip=f"Which earlier images: {CHOICE}. Images of the whole conversation count from 1, yours "
                    "included; of more than three, the last three are output.",
                ),
            ],
            outputs=[
                *(
                    io.Image.Output(f"image{k}", tooltip=f"Number {k} of the chosen images, in its own size.")
                    for k in range(1, EARLIER + 1)
                ),
                io.Int.Output("count", tooltip="How many images there are."),
            ],
        )

    @classmethod
    def execute(cls, context: Document, which: str) -> io.NodeOutput:
        from duogen_core.document import pending

        from ..steps import answer

        pictures = pending.before_next_picture(context).pictures
        chosen = answer.chosen(which, context)[-EARLIER:]
        shown = [image_from_picture(pictures[index]) for index in chosen]
        return io.NodeOutput(*shown, *[None] * (EARLIER - len(shown)), len(shown))


class DuoGenPictureSize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenPictureSize",
            display_name="DuoGen Next Image Size",
            category=LOOP,
            description="Outputs the empty latent for the next image: of a fixed size, or as large as an earlier image "
            "of the conversation. A size that the plan names for this image comes first.",
            search_aliases=["empty latent", "resolution", "width height"],
            inputs=[
                sockets.Context.Input("context", tooltip="The context in which the image is due."),
                io.Combo.Input(
                    "size",
                    options=[LIKE_LAST, LIKE_NUMBER, FIXED],
                    default=LIKE_LAST,
                    tooltip="Where the size comes from. Without any earlier image, the checkpoint's own size is used.",
                ),
                io.Int.Input("picture", default=1, min=1, max=1000, tooltip="The n of like image n, counted from 1."),
                io.Int.Input("width", default=1024, min=16, max=16384, step=16, tooltip="Width for a fixed size."),
                io.Int.Input("height", default=1024, min=16, max=16384, step=16, tooltip="Height for a fixed size."),
                sockets.Mllm.Input(
                    "mllm", optional=True, tooltip="Its checkpoint says which sizes it was trained for."
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="An empty latent, for KSampler."),
                io.Int.Output("width", tooltip="Width of the next image in pixels."),
                io.Int.Output("height", tooltip="Height of the next image in pixels."),
            ],
        )

    @classmethod
    def validate_inputs(cls, size: str | None = None) -> bool | str:
        """In the place of ComfyUI's own check of the choice, which would refuse the old names. None: from a link."""
        known = [LIKE_LAST, LIKE_NUMBER, FIXED, *OLD_SIZES]
        return size is None or size in known or f"The size is {size!r}; choose one of {', '.join(known[:3])}."

    @classmethod
    def execute(
        cls, context: Document, size: str, picture: int, width: int, height: int, mllm: Any = None
    ) -> io.NodeOutput:
        from duogen_core.document import pending

        from ..steps import stages

        size = OLD_SIZES.get(size, size)
        due = pending.pending_picture(context)
        planned = due.meta.get(pending.SIZE) if due is not None else None
        width, height = stages.size_of_next(
            pending.before_next_picture(context),
            mllm.config if mllm is not None else None,
            size=tuple(planned) if planned else (width, height) if size == FIXED else None,
            like=picture if size == LIKE_NUMBER else 0,
        )
        return io.NodeOutput(stages.empty_latent(width, height), width, height)
