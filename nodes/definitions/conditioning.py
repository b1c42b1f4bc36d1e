"""From the language model to the sampler: Encode Context -> Connector -> Reference Images, and the picture's size.
For image models that read words and pictures themselves: Earlier Images.

The connector's projection is summed layer by layer while the language model runs (`duogen_core.connector`), so DuoGen
Encode Context is where the connector goes in, and what it gives out holds the width of the DiT's text input for each
token, never all layers. DuoGen Connector lays the result out as positive and negative CONDITIONING.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..host.images import image_from_picture
from ..steps import FIXED, LIKE_LAST, LIKE_NUMBER
from . import sockets

if TYPE_CHECKING:
    from duogen_core.document import Document

CATEGORY = "DuoGen/stages"
CHOICE = "all, none, last 2, or numbers such as 1, 3-4; also together: 1, last 2"
EARLIER = 3  # images that TextEncodeQwenImageEditPlus takes


class DuoGenEncodeContext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenEncodeContext",
            display_name="DuoGen Encode Context",
            category=CATEGORY,
            description="What the language model has in mind for the picture that is due: the states of all its "
            "layers, projected by the connector while it runs. After DuoGen Write with the same connector this costs "
            "nothing.",
            search_aliases=["hidden states", "encode prompt", "text encode"],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that wrote the context."),
                sockets.Connector.Input(
                    "connector", tooltip="The connector between this language model and the MODEL that draws."
                ),
                sockets.Context.Input("context", tooltip="The answer up to the place where a picture is due."),
            ],
            outputs=[sockets.States.Output("states", tooltip="What the picture shall show, for DuoGen Connector.")],
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
            display_name="DuoGen Connector",
            category=CATEGORY,
            description="Makes of the states what KSampler takes: positive is the whole context, negative lacks the "
            "paragraph that the picture shows, so that cfg strengthens that paragraph and nothing else.",
            search_aliases=["conditioning", "positive", "negative"],
            inputs=[sockets.States.Input("states", tooltip="From DuoGen Encode Context.")],
            outputs=[
                io.Conditioning.Output("positive", tooltip="All of the context."),
                io.Conditioning.Output("negative", tooltip="The context without the last paragraph."),
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
            display_name="DuoGen Reference Images",
            category=CATEGORY,
            description="Lets the model that draws look at earlier pictures of the conversation, each at its own size: "
            "all of them, the last ones, or those you name. Works with every MODEL that takes reference latents.",
            search_aliases=["reference latent", "consistency", "image context"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="From DuoGen Connector, or any other."),
                io.Conditioning.Input("negative", tooltip="The same for the negative side."),
                io.Vae.Input("vae", tooltip="The VAE of the MODEL that draws."),
                sockets.Context.Input("context", tooltip="The context that went into DuoGen Encode Context."),
                io.String.Input(
                    "which",
                    default="all",
                    tooltip=f"Which earlier pictures to look at: {CHOICE}. Pictures of the whole conversation count "
                    "from 1, yours included.",
                ),
                io.Float.Input(
                    "megapixels",
                    default=0.0,
                    min=0.0,
                    max=64.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Larger pictures are scaled down to this for the model that draws, about 1 for most image "
                    "models. 0: as large as they are, or as the checkpoint takes them.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="With the pictures."),
                io.Conditioning.Output("negative", tooltip="With the same pictures."),
            ],
        )

    @classmethod
    def execute(
        cls, positive: list, negative: list, vae: Any, context: Document, which: str, megapixels: float = 0.0
    ) -> io.NodeOutput:
        from ..steps import answer, stages

        pictures = answer.before_next_picture(context).pictures
        chosen = answer.choose(which, len(pictures))
        return io.NodeOutput(*stages.refer([positive, negative], vae, pictures, chosen, megapixels))


class DuoGenEarlierImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenEarlierImages",
            display_name="DuoGen Earlier Images",
            category=CATEGORY,
            description="Up to three earlier pictures of the conversation, for an image model that looks at pictures "
            "through its own text encoder, such as Qwen-Image-Edit. Where there are fewer, the other outputs are "
            "empty, which optional inputs take for not connected.",
            search_aliases=["image1 image2 image3", "reference image", "qwen image edit plus", "last picture"],
            inputs=[
                sockets.Context.Input("context", tooltip="The context in which the picture is due."),
                io.String.Input(
                    "which",
                    default="last 3",
                    tooltip=f"Which earlier pictures: {CHOICE}. Pictures of the whole conversation count from 1, yours "
                    "included; of more than three, the last three are given.",
                ),
            ],
            outputs=[
                *(
                    io.Image.Output(f"image{k}", tooltip=f"Number {k} of the chosen pictures, in its own size.")
                    for k in range(1, EARLIER + 1)
                ),
                io.Int.Output("count", tooltip="How many are given."),
            ],
        )

    @classmethod
    def execute(cls, context: Document, which: str) -> io.NodeOutput:
        from ..steps import answer

        pictures = answer.before_next_picture(context).pictures
        chosen = answer.choose(which, len(pictures))[-EARLIER:]
        shown = [image_from_picture(pictures[index]) for index in chosen]
        return io.NodeOutput(*shown, *[None] * (EARLIER - len(shown)), len(shown))


class DuoGenPictureSize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenPictureSize",
            display_name="DuoGen Picture Size",
            category=CATEGORY,
            description="The empty latent for the next picture: of a fixed size, or as large as an earlier picture of "
            "the conversation.",
            search_aliases=["empty latent", "resolution", "width height"],
            inputs=[
                sockets.Context.Input("context", tooltip="The context in which the picture is due."),
                io.Combo.Input(
                    "size",
                    options=[LIKE_LAST, LIKE_NUMBER, FIXED],
                    default=LIKE_LAST,
                    tooltip="Where the size comes from. Without any picture, the checkpoint's own size is taken.",
                ),
                io.Int.Input("picture", default=1, min=1, max=1000, tooltip="The n of like picture n, counted from 1."),
                io.Int.Input("width", default=1024, min=16, max=16384, step=16, tooltip="Width for a fixed size."),
                io.Int.Input("height", default=1024, min=16, max=16384, step=16, tooltip="Height for a fixed size."),
                sockets.Mllm.Input(
                    "mllm", optional=True, tooltip="Tells the sizes that its checkpoint was trained for."
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="An empty latent, for KSampler."),
                io.Int.Output("width", tooltip="Width of the next picture in pixels."),
                io.Int.Output("height", tooltip="Height of the next picture in pixels."),
            ],
        )

    @classmethod
    def execute(
        cls, context: Document, size: str, picture: int, width: int, height: int, mllm: Any = None
    ) -> io.NodeOutput:
        from ..steps import answer, stages

        width, height = stages.size_of_next(
            answer.before_next_picture(context),
            mllm.config if mllm is not None else None,
            size=(width, height) if size == FIXED else None,
            like=picture if size == LIKE_NUMBER else 0,
        )
        return io.NodeOutput(stages.empty_latent(width, height), width, height)
