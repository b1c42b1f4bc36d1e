"""Plan first: the whole answer as texts and descriptions of images, before anything is drawn.

    Prompt -> Plan Answer | Plan with Endpoint | (Plan Prompt -> any node that writes -> Plan from Text)
           -> Edit Plan -> Interleave, or Loop Open -> whatever draws an image -> Loop Close

What a painter reads for each image is composed for its kind (`duogen_core.planning.painters`), and stands in `text` of
DuoGen Loop Open; which earlier images it looks at is `planned` in Get Earlier Images and Add Reference Latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..host import display, secrets
from ..host.images import one_batch
from . import sockets

if TYPE_CHECKING:
    from duogen_core.document import Document

CATEGORY = "DuoGen/planning"
EDIT, TEXT, CONVERSATION = "edit", "text", "conversation"  # duogen_core.planning.painters, imported when a node runs
AS_PLANNED = "as planned"
ADDRESS = "http://127.0.0.1:11434/v1"  # of Ollama on this machine


def _painter(*more: str, **options: Any) -> io.Combo.Input:
    return io.Combo.Input(
        "painter",
        options=[*more, EDIT, TEXT, CONVERSATION],
        default=more[0] if more else EDIT,
        tooltip="Which kind of model draws, and so what it reads. edit: models that look at earlier images, such as "
        "Qwen-Image-Edit, FLUX.2 and OmniGen2. text: models that know words alone, such as Stable Diffusion and "
        "ComfyUI's own Wan. conversation: DuoGen's own, which read the whole answer.",
        **options,
    )


def _style() -> io.String.Input:
    return io.String.Input(
        "style",
        default="",
        tooltip="How every image looks, such as: flat drawing, plain background. It goes to the painter, not to the "
        "writer.",
    )


def _sizes() -> list[io.Input]:
    tooltip = "{} of every image in pixels. 0: as large as the nodes that draw make it."
    return [
        io.Int.Input(side.lower(), default=0, min=0, max=16384, step=16, advanced=True, tooltip=tooltip.format(side))
        for side in ("Width", "Height")
    ]


def _outputs() -> list[io.Output]:
    return [
        sockets.Context.Output(
            "context", tooltip="The conversation with its planned answer, for DuoGen Interleave or DuoGen Loop Open."
        ),
        io.String.Output("plan", tooltip="The plan as Markdown, as DuoGen Edit Plan takes it."),
        io.Int.Output("count", tooltip="How many images are planned."),
    ]


class DuoGenPlanAnswer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenPlanAnswer",
            display_name="DuoGen Plan Answer",
            category=CATEGORY,
            description="Lets the language model plan the whole answer: the text of each part, and what its image "
            "shows. Works with any Qwen-VL, trained for images or not. Nothing is drawn yet.",
            search_aliases=["plan first", "storyboard", "outline", "planner", "write prompts"],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that plans."),
                sockets.Context.Input("context", tooltip="The request, from DuoGen Prompt."),
                _style(),
                _painter(),
                *_sizes(),
                sockets.seed("The seed of the random choice of words; at temperature 0 it has no effect."),
                sockets.temperature(advanced=True),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        mllm: Any,
        context: Document,
        style: str,
        painter: str,
        width: int,
        height: int,
        seed: int,
        temperature: float,
    ) -> io.NodeOutput:
        from ..steps import planning

        plan, notice = planning.write(
            cls.hidden, planning.own_writer(mllm), context, style=style, seed=seed, temperature=temperature, own=mllm
        )
        planned = planning.planned_context(context, plan, painter, width=width, height=height)
        return planning.result(cls.hidden, planned, notice)


class DuoGenPlanEndpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenPlanEndpoint",
            display_name="DuoGen Plan with Endpoint",
            category=CATEGORY,
            description="Lets a language model behind an OpenAI-compatible server plan the whole answer: Ollama, LM "
            "Studio, llama.cpp, vLLM, or a service. Asks the address you write, and no other.",
            search_aliases=["ollama", "lm studio", "llama.cpp", "vllm", "openai", "llm api", "plan first"],
            inputs=[
                sockets.Context.Input("context", tooltip="The request, from DuoGen Prompt."),
                io.String.Input(
                    "address",
                    default=ADDRESS,
                    tooltip="Where the server is. The default is Ollama on this machine; LM Studio has port 1234, "
                    "llama.cpp 8080, vLLM 8000. The request and its images are sent there, also if that is another "
                    "machine.",
                ),
                io.String.Input(
                    "model",
                    default="",
                    tooltip="The model's name, as the server calls it. Empty: the only one it has.",
                ),
                io.String.Input(
                    "key",
                    default="",
                    tooltip="The name of an environment variable that holds the server's key, never the key itself. "
                    "Empty: what ComfyUI's settings have for this address, if anything.",
                ),
                _style(),
                _painter(),
                *_sizes(),
                io.Boolean.Input(
                    "send_images",
                    default=True,
                    advanced=True,
                    tooltip="Send the images of the conversation along. Switch this off for a model that only reads "
                    "text: it is told their captions.",
                ),
                sockets.seed("The seed of the random choice of words; at temperature 0 it has no effect."),
                sockets.temperature(advanced=True),
                io.Int.Input(
                    "seconds",
                    default=600,
                    min=1,
                    max=86400,
                    advanced=True,
                    tooltip="The longest that the server may take for an answer. A cancel ends it at once.",
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(
        cls, address: str | None = None, model: str | None = None, key: str | None = None, style: str | None = None
    ) -> bool | str:
        """Before the workflow is queued, and so before it stands in a history or an image. None: from a link."""
        from duogen_core.errors import DuoGenError

        widgets = {"address": address, "model": model, "key": key, "style": style}
        try:
            secrets.refuse_keys(**{name: text for name, text in widgets.items() if text})
        except DuoGenError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        context: Document,
        address: str,
        model: str,
        key: str,
        style: str,
        painter: str,
        width: int,
        height: int,
        send_images: bool,
        seed: int,
        temperature: float,
        seconds: int,
    ) -> io.NodeOutput:
        from ..steps import planning

        secrets.refuse_keys(address=address, model=model, key=key, style=style)
        client = planning.endpoint_writer(address, model, key, send_images, seconds)
        plan, notice = planning.write(cls.hidden, client, context, style=style, seed=seed, temperature=temperature)
        planned = planning.planned_context(context, plan, painter, width=width, height=height)
        return planning.result(cls.hidden, planned, notice)


class DuoGenPlanPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenPlanPrompt",
            display_name="DuoGen Plan Prompt",
            category=CATEGORY,
            description="Turns the request into a prompt that asks any model for a plan: ComfyUI's Generate Text, or "
            "a node of another pack. Connect the text it writes to DuoGen Plan from Text.",
            search_aliases=["llm prompt", "generate text", "any writer", "plan first"],
            inputs=[sockets.Context.Input("context", tooltip="The request, from DuoGen Prompt.")],
            outputs=_prompt_outputs(),
        )

    @classmethod
    def execute(cls, context: Document) -> io.NodeOutput:
        from ..steps import planning

        return io.NodeOutput(planning.prompt_for(context), one_batch(context.pictures))


def _prompt_outputs() -> list[io.Output]:
    return [
        io.String.Output("prompt", tooltip="The prompt, for the node that writes."),
        io.Image.Output(
            "images",
            tooltip="The images of the conversation, as one batch, for a writer that sees. Empty where there are none.",
        ),
    ]


class DuoGenPlanPromptAgain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenPlanPromptAgain",
            display_name="DuoGen Plan Prompt Again",
            category="DuoGen/internal",
            description="DuoGen Plan from Text puts this node in while it runs. It is not meant to be used by hand.",
            inputs=[
                sockets.Context.Input("context", tooltip="The request."),
                io.String.Input("fault", tooltip="What was wrong with the answer before."),
            ],
            outputs=_prompt_outputs(),
            is_dev_only=True,
        )

    @classmethod
    def execute(cls, context: Document, fault: str) -> io.NodeOutput:
        from ..steps import planning

        return io.NodeOutput(planning.prompt_for(context, fault), one_batch(context.pictures))


class DuoGenPlanFromText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _from_text_schema(
            node_id="DuoGenPlanFromText",
            display_name="DuoGen Plan from Text",
            category=CATEGORY,
            description="Reads a plan out of a text: what any model answered to DuoGen Plan Prompt, or JSON or "
            "Markdown of your own. Where a model wrote no plan, it is asked once more and told why.",
            search_aliases=["parse plan", "json to plan", "markdown to plan", "any writer"],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return _from_text(cls.hidden, first=True, **values)


class DuoGenPlanFromTextAgain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _from_text_schema(
            node_id="DuoGenPlanFromTextAgain",
            display_name="DuoGen Plan from Text Again",
            category="DuoGen/internal",
            description="DuoGen Plan from Text puts this node in while it runs. It is not meant to be used by hand.",
            is_dev_only=True,
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return _from_text(cls.hidden, first=False, **values)


def _from_text_schema(**kwargs: Any) -> io.Schema:
    return io.Schema(
        inputs=[
            sockets.Context.Input("context", tooltip="The request, from DuoGen Prompt."),
            io.String.Input(
                "text",
                multiline=True,
                default="",
                tooltip="The plan: what a model wrote, or your own JSON or Markdown.",
            ),
            _style(),
            _painter(),
            *_sizes(),
        ],
        outputs=_outputs(),
        hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        enable_expand=True,
        **kwargs,
    )


def _from_text(
    hidden: Any, context: Document, text: str, style: str, painter: str, width: int, height: int, first: bool
) -> io.NodeOutput:
    from duogen_core import pipeline
    from duogen_core.errors import DuoGenError

    from ..steps import planning

    pipeline.check_request(context)
    try:
        plan, notice = planning.read(text)
    except DuoGenError as error:
        again = planning.ask_again(hidden, str(error)) if first else None
        if again is None:
            twice = "" if first else "The writer was asked twice. "
            raise DuoGenError(f"{twice}The text is no plan that can be drawn. {error}") from None
        display.say(hidden, "That was no plan; the writer is asked once more.", str(error))
        return again
    planned = planning.planned_context(context, plan, painter, style=style, width=width, height=height)
    return planning.result(hidden, planned, notice)


class DuoGenEditPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenEditPlan",
            display_name="DuoGen Edit Plan",
            category=CATEGORY,
            description="Takes your changes to a plan, as Markdown. Images that were drawn and did not change stay, up "
            "to the first that did. Also turns a plan of your own into an answer to be drawn.",
            search_aliases=["change plan", "edit prompts", "edit outline", "markdown"],
            inputs=[
                sockets.Context.Input(
                    "context", tooltip="A planned answer, drawn or not; or a request, for a plan of your own."
                ),
                io.String.Input(
                    "markdown",
                    multiline=True,
                    default="",
                    tooltip="The plan: a line of --- between two parts, each with its text and, after it, Image: and "
                    "what it shows. Empty: the plan as it comes. The button fills in the plan that ran last.",
                ),
                _painter(AS_PLANNED),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, context: Document, markdown: str, painter: str) -> io.NodeOutput:
        from ..steps import planning

        if markdown.strip() or painter != AS_PLANNED:
            context = planning.edited(context, markdown, None if painter == AS_PLANNED else painter)
        return planning.result(cls.hidden, context)
