"""Shows on a node what is going on: text while it is written, the image while it is sampled.

Nodes that DuoGen Interleave and the loop put in at run time have no place on the user's canvas; their messages appear
on the node they stand for (`DynamicPrompt.get_display_node_id`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


# Seconds between two messages. A fast model makes more of them than a page can show, above all one with Nodes 2.0, and
# a page that falls behind shows a finished image only when the next ones are finished too.
TEXT_INTERVAL, STEP_INTERVAL = 0.05, 0.1


def say(hidden: Any, *paragraphs: str) -> None:
    """Shows this text on the node; empty paragraphs are left out."""
    from server import PromptServer

    if PromptServer.instance is not None:
        node = hidden.dynprompt.get_display_node_id(hidden.unique_id) if hidden.dynprompt else hidden.unique_id
        PromptServer.instance.send_progress_text("\n\n".join(p for p in paragraphs if p), node)


class TextStream:
    """Shows one paragraph while it is written: its `on_token` takes each new piece."""

    def __init__(self, hidden: Any) -> None:
        self.hidden, self.text, self.last_sent = hidden, "", 0.0

    def on_token(self, piece: str) -> None:
        self.text += piece
        moment = time.monotonic()
        if moment - self.last_sent >= TEXT_INTERVAL:
            self.last_sent = moment
            say(self.hidden, self.text.strip())


class SamplingPreview:
    """Shows an image while it is sampled: `on_step` is the sampler's callback.

    title: which image of how many. paragraph: the text it illustrates.
    """

    def __init__(self, hidden: Any, model: Any, title: str, paragraph: str = "") -> None:
        import comfy.utils
        import latent_preview

        self.hidden, self.title, self.paragraph = hidden, title, paragraph
        self.progress: Any = None
        self.last_sent = 0.0
        self.new_progress = comfy.utils.ProgressBar
        latents = model.model.latent_format
        # ComfyUI's default method is none. Then colours straight from the latent are shown, which cost next to nothing,
        # unless the user chose none.
        self.previewer = latent_preview.get_previewer(model.load_device, latents)
        if self.previewer is None and latents.latent_rgb_factors is not None and not previews_unwanted():
            self.previewer = latent_preview.Latent2RGBPreviewer(
                latents.latent_rgb_factors, latents.latent_rgb_factors_bias
            )
        say(hidden, title, paragraph)

    def on_step(self, step: int, denoised: torch.Tensor, noisy: torch.Tensor, steps: int) -> None:
        moment = time.monotonic()
        if 0 < step < steps - 1 and moment - self.last_sent < STEP_INTERVAL:
            return
        self.last_sent = moment
        say(self.hidden, f"{self.title}, step {step + 1} of {steps}", self.paragraph)
        if self.progress is None:
            self.progress = self.new_progress(steps)
        preview = self.previewer.decode_latent_to_preview_image("JPEG", denoised) if self.previewer else None
        self.progress.update_absolute(step + 1, steps, preview)


def previews_unwanted() -> bool:
    """Whether the user chose "none", in ComfyUI's settings (which come with each prompt) or as --preview-method.

    "none" is also ComfyUI's default, so the method in force does not tell whether somebody chose it; ComfyUI has no
    public way to ask. Hence the look into the queue and a second reading of the command line.
    """
    from argparse import Namespace

    import comfy.options
    from comfy.cli_args import parser
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context = get_executing_context()
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile() if PromptServer.instance else ((), ())
    for _, prompt_id, _, extra_data, *_ in running:
        if context and prompt_id == context.prompt_id and extra_data.get("preview_method", "default") != "default":
            return extra_data["preview_method"] == "none"
    # argparse gives no default to what is set already, so this stays None unless the option is on the command line.
    words = None if comfy.options.args_parsing else []
    options, _ = parser.parse_known_args(words, Namespace(preview_method=None))
    return options.preview_method is not None and options.preview_method.value == "none"
