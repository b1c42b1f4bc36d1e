"""Shows on a node what is going on: text while it is written, the image while it is sampled.

Nodes that DuoGen Interleave and the loop put in at run time have no place on the user's canvas; their messages appear
on the node they stand for (`DynamicPrompt.get_display_node_id`).

What is going on is sent twice: as data, the websocket event `duogen_progress`, to the client that queued the prompt
(our viewer puts its words together in its own language; programs read it), and as text for ComfyUI's own line on the
node, in the language of whoever runs the workflow (language.py). The event:

    {"prompt_id": "…", "node": "3.0.0.5", "display_node": "3", "phase": "planning" | "planned" | "writing" | "drawing" |
     "reviewing" | "reviewed" | "notice" | "end",
     "image": 2, "of": 5, "step": 3, "steps": 8, "seconds": 40, "try": 1, "tries": 3, "part": 1, "parts": 6,
     "images": 4, "text": "…", "notice": "…"}

Only prompt_id, node, display_node, phase and text are always there. image counts from 1, as do step, try and part; of
and tries are limits. seconds: about how long this image still takes. text: what was written, or the paragraph that is
illustrated; plain text of a model. notice: a sentence of this pack for the user.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from . import settings
from .language import running_extra_data, translated

if TYPE_CHECKING:
    import torch


# Seconds between two messages. A fast model makes more of them than a page can show, above all one with Nodes 2.0, and
# a page that falls behind shows a finished image only when the next ones are finished too.
TEXT_INTERVAL, STEP_INTERVAL = 0.05, 0.1


def say(hidden: Any, *paragraphs: str, phase: str = "notice", text: str = "", **data: Any) -> None:
    """Shows these paragraphs on the node, empty ones left out; phase, text and data are the same as `duogen_progress`.

    Of data, None and "" are left out. A call without a phase is a sentence for the user.
    """
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    server, context = PromptServer.instance, get_executing_context()
    if server is None:
        return
    paragraphs = tuple(p if p and p in text else translated(p) for p in paragraphs if p)  # a model's words stay
    words = "\n\n".join(paragraphs)
    node = hidden.dynprompt.get_display_node_id(hidden.unique_id) if hidden.dynprompt else hidden.unique_id
    if server.client_id is not None:
        if phase == "notice":
            data.setdefault("notice", words)
        elif data.get("notice"):
            data["notice"] = translated(data["notice"])
        event = {"prompt_id": context.prompt_id if context else "", "node": hidden.unique_id, "display_node": node}
        known = {key: value for key, value in data.items() if value not in (None, "")}
        server.send_sync("duogen_progress", {**event, "phase": phase, "text": text, **known}, server.client_id)
    server.send_progress_text(words, node)


def image_title(image: int | None = None, of: int | None = None) -> str:
    """Says which image of how many in English; None: that is not known."""
    return "Image" + (f" {image}" if image else "") + (f" of at most {of}" if of else "")


class TextStream:
    """Shows one paragraph while it is written: its `on_token` takes each new piece."""

    def __init__(self, hidden: Any) -> None:
        self.hidden, self.text, self.last_sent = hidden, "", 0.0
        self.live = settings.live_preview()

    def on_token(self, piece: str) -> None:
        if not self.live:
            return
        self.text += piece
        moment = time.monotonic()
        if moment - self.last_sent >= TEXT_INTERVAL:
            self.last_sent = moment
            say(self.hidden, self.text.strip(), phase="writing", text=self.text.strip())


class SamplingPreview:
    """Shows an image while it is sampled: `on_step` is the sampler's callback.

    numbers: which image of how many (`answer.picture_numbers`). paragraph: the text it illustrates.
    """

    def __init__(self, hidden: Any, model: Any, numbers: dict[str, int], paragraph: str = "") -> None:
        import comfy.utils
        import latent_preview

        self.hidden, self.numbers, self.paragraph = hidden, numbers, paragraph
        self.progress: Any = None
        self.last_sent = self.first_step = 0.0
        self.new_progress = comfy.utils.ProgressBar
        latents = model.model.latent_format
        # ComfyUI's default method is none. Then colours straight from the latent are shown, which cost next to nothing,
        # unless the user chose none.
        live = settings.live_preview()
        self.previewer = latent_preview.get_previewer(model.load_device, latents) if live else None
        if live and self.previewer is None and latents.latent_rgb_factors is not None and not previews_unwanted():
            self.previewer = latent_preview.Latent2RGBPreviewer(
                latents.latent_rgb_factors, latents.latent_rgb_factors_bias
            )
        say(hidden, image_title(**numbers), paragraph, phase="drawing", text=paragraph, **numbers)

    def on_step(self, step: int, denoised: torch.Tensor, noisy: torch.Tensor, steps: int) -> None:
        moment = time.monotonic()
        if step == 0:
            self.first_step = moment  # what comes before it, such as loading, does not repeat
        if 0 < step < steps - 1 and moment - self.last_sent < STEP_INTERVAL:
            return
        self.last_sent = moment
        seconds = round((moment - self.first_step) / step * (steps - 1 - step)) if step else None
        say(
            self.hidden, image_title(**self.numbers) + f", step {step + 1} of {steps}", self.paragraph, phase="drawing",
            text=self.paragraph, **self.numbers, step=step + 1, steps=steps, seconds=seconds,
        )  # fmt: skip
        if self.progress is None:
            self.progress = self.new_progress(steps)
        preview = self.previewer.decode_latent_to_preview_image("JPEG", denoised) if self.previewer else None
        self.progress.update_absolute(step + 1, steps, preview)


def previews_unwanted() -> bool:
    """Whether the user chose "none", in ComfyUI's settings (which come with each prompt) or as --preview-method.

    "none" is also ComfyUI's default, so the method in force does not tell whether somebody chose it; ComfyUI has no
    public way to ask. Hence the look at the prompt and a second reading of the command line.
    """
    from argparse import Namespace

    import comfy.options
    from comfy.cli_args import parser

    chosen = running_extra_data().get("preview_method", "default")
    if chosen != "default":
        return chosen == "none"
    # argparse gives no default to what is set already, so this stays None unless the option is on the command line.
    words = None if comfy.options.args_parsing else []
    options, _ = parser.parse_known_args(words, Namespace(preview_method=None))
    return options.preview_method is not None and options.preview_method.value == "none"
