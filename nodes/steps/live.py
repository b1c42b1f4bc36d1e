"""What a running answer shows on its node: the text while it is written, the picture while it is sampled.

Nodes that DuoGen Interleave and the loop put in at run time have no place on the user's canvas; what they have to say
appears on the node they stand for (`DynamicPrompt.get_display_node_id`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from duogen_core.document import Document

# Seconds between two messages. A fast model makes more of them than a page can show, above all one with Nodes 2.0, and
# a page that falls behind shows a finished picture only when the next ones are finished too.
TEXT_INTERVAL, STEP_INTERVAL = 0.05, 0.1
LIMITS = {"max_images": "Stopped at the limit of pictures.", "max_tokens": "Stopped at the limit of tokens."}


def say(hidden: Any, *paragraphs: str) -> None:
    """Show this text on the node; an empty paragraph is left out."""
    from server import PromptServer

    if PromptServer.instance is not None:
        node = hidden.dynprompt.get_display_node_id(hidden.unique_id) if hidden.dynprompt else hidden.unique_id
        PromptServer.instance.send_progress_text("\n\n".join(p for p in paragraphs if p), node)


class LiveText:
    """The `on_token` of one paragraph."""

    def __init__(self, hidden: Any) -> None:
        self.hidden, self.text, self.last_sent = hidden, "", 0.0

    def on_token(self, piece: str) -> None:
        self.text += piece
        moment = time.monotonic()
        if moment - self.last_sent >= TEXT_INTERVAL:
            self.last_sent = moment
            say(self.hidden, self.text.strip())


class LivePicture:
    """The sampler's callback: step, preview, and which picture of how many it is, where somebody counts."""

    def __init__(self, hidden: Any, model: Any, paragraph: str = "") -> None:
        import comfy.utils
        import latent_preview

        self.hidden, self.paragraph, self.title = hidden, paragraph, picture_title(hidden)
        self.progress: Any = None
        self.last_sent = 0.0
        self.new_progress = comfy.utils.ProgressBar
        latents = model.model.latent_format
        # The user's preview method; who chose none gets colours straight from the latent, which cost next to nothing.
        self.previewer = latent_preview.get_previewer(model.load_device, latents)
        if self.previewer is None and latents.latent_rgb_factors is not None and not previews_unwanted():
            self.previewer = latent_preview.Latent2RGBPreviewer(
                latents.latent_rgb_factors, latents.latent_rgb_factors_bias
            )
        say(hidden, self.title, paragraph)

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
    """Whether the user chose "none": in ComfyUI's settings, which come with each prompt, or as --preview-method.

    "none" is also ComfyUI's default, so the method in force does not tell whether somebody wants it.
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
    given, _ = parser.parse_known_args(words, Namespace(preview_method=None))
    return given.preview_method is not None and given.preview_method.value == "none"


def picture_title(hidden: Any) -> str:
    """The step that put this node in knows the number of its picture. It is looked up rather than given as an input:
    inputs are what ComfyUI's cache goes by, and a changed limit must not draw a finished picture again."""
    parent = hidden.dynprompt and hidden.dynprompt.get_parent_node_id(hidden.unique_id)
    inputs = hidden.dynprompt.get_node(parent)["inputs"] if parent else {}
    if "duogen_step" not in inputs:
        return "Picture"
    from .answer import Step

    step = Step.from_text(inputs["duogen_step"])
    return f"Picture {step.drawn + 1} of at most {step.max_images}"


def whole_answer(context: Document) -> str:
    """The last turn in a few plain lines."""
    from duogen_core.document import Picture

    pieces, count = [], 0
    for part in context.last_turn.parts:
        if isinstance(part, Picture):
            count += 1
            pieces.append(f"\n\n[picture {count}]\n\n")
        else:
            pieces.append(part.text)
    return "".join(pieces).strip()
