"""DuoGen Interleave: the whole loop in one node. It writes, draws, looks at what it drew, and writes on.

The stages are the functions of `stages.py`; this file is the loop around them and what the user sees while it runs:
the text as it is written, each picture while it is sampled, "picture 2 of at most 5".
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import comfy.samplers
from comfy_api.latest import io

from . import sockets

if TYPE_CHECKING:
    import torch

    from duogen_core.document import Document

TEXT_INTERVAL = 0.05  # seconds between two messages with text, so that a fast model does not flood the browser


class DuoGenInterleave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenInterleave",
            display_name="DuoGen Interleave",
            category="DuoGen",
            description="Answers a request with text and pictures in turn. The language model writes; where it wants a "
            "picture, the diffusion transformer draws it while looking at every earlier picture; the picture joins the "
            "context and the writing goes on, until the answer ends.",
            search_aliases=[
                "interleaved generation",
                "illustrated answer",
                "text and images",
                "storyboard",
                "how-to guide",
            ],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that writes, from DuoGen Load Checkpoint."),
                sockets.Connector.Input("connector", tooltip="The connector of the same checkpoint."),
                io.Model.Input("model", tooltip="The diffusion transformer that draws; LoRAs and model patches apply."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                sockets.Context.Input(
                    "context", tooltip="The request, from DuoGen Prompt, or an answer to go on with."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The seed of the first picture; the next one takes seed + 1, and so on. The same seed "
                    "gives the same answer.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Sampling steps for each picture. 0: as many as the checkpoint was made for.",
                ),
                io.Float.Input(
                    "cfg",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How closely a picture follows the paragraph before it. 1 is off and twice as fast. 0: the "
                    "value the checkpoint was made for.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="euler",
                    tooltip="The sampling algorithm, as in KSampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="simple",
                    tooltip="How the noise levels are spaced, as in KSampler.",
                ),
                io.Int.Input(
                    "max_images",
                    default=8,
                    min=0,
                    max=100,
                    tooltip="The answer ends when it asks for a picture beyond this number.",
                ),
                io.Int.Input(
                    "max_tokens",
                    default=1024,
                    min=1,
                    max=32768,
                    tooltip="The answer ends when it has written this many tokens.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=16384,
                    step=16,
                    tooltip="Width of every picture in pixels. 0: like the last picture of the context, or the "
                    "checkpoint's own size when there is none.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=16384,
                    step=16,
                    tooltip="Height of every picture in pixels. 0: see width.",
                ),
            ],
            outputs=[
                sockets.Context.Output("context", tooltip="The conversation with the answer at its end."),
                io.String.Output("text", tooltip="The text of the answer, without its pictures."),
                io.Image.Output(
                    "images", is_output_list=True, tooltip="The pictures of the answer, each in its own size."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        mllm: Any,
        connector: Any,
        model: Any,
        vae: Any,
        context: Document,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        max_images: int,
        max_tokens: int,
        width: int,
        height: int,
    ) -> io.NodeOutput:
        from duogen_core import pipeline
        from duogen_core.errors import DuoGenError

        from . import stages

        if (width == 0) != (height == 0):
            raise DuoGenError(
                f"The size is {width} x {height}: set both sides, or both to 0 to let the context decide."
            )
        config = mllm.config
        settings = pipeline.Settings(
            seed=seed,
            steps=steps or None,
            guidance=cfg or None,
            size=(width, height) if width else None,
            max_images=max_images,
            max_new_tokens=max_tokens,
        ).resolved(config)
        pipeline.check_request(context)
        watcher = Watcher(str(cls.hidden.unique_id), model, max_images, settings.steps)
        references: dict[str, torch.Tensor] = {}
        first_picture = len(context.pictures)
        text, drawn, tokens_left, stop = "", 0, max_tokens, None
        while stop is None:
            picture_seed = pipeline.picture_seed(seed, drawn)
            context, written = stages.write(
                mllm, connector, context, max_new_tokens=tokens_left, seed=picture_seed, on_token=watcher.on_token
            )  # fmt: skip
            text += written.text
            tokens_left -= written.tokens
            if written.stop != "picture":
                stop = written.stop
            elif drawn >= max_images:
                stop = "max_images"
            else:
                watcher.begin_picture(drawn)
                states = stages.encode(mllm, connector, context)
                for picture in context.pictures:
                    if picture.digest not in references:
                        references[picture.digest] = stages.reference_latent(vae, picture, config)
                positive, negative = stages.connect(states, [references[p.digest] for p in context.pictures])
                latent = stages.draw(
                    model,
                    positive,
                    negative,
                    size=pipeline.picture_size(context, config, settings.size),
                    seed=picture_seed,
                    steps=settings.steps,
                    cfg=settings.guidance,
                    sampler_name=sampler_name,
                    scheduler=scheduler,
                    on_step=watcher.on_step,
                )
                context = stages.append(context, stages.decode(vae, latent), picture_seed)
                drawn += 1
                watcher.end_picture()
                if tokens_left <= 0:
                    stop = "max_tokens"
        context = context.replace_generation(**pipeline.generation_record(config.name, settings, stop))
        watcher.end(stop)
        return io.NodeOutput(context, text, sockets.image_list(context.pictures[first_picture:]))


class Watcher:
    """Shows a running answer on its node: streamed text, previews, which picture of how many.

    The front end gives running text a few lines, so these hold the paragraph at work; at the end they hold the answer.
    """

    def __init__(self, node_id: str, model: Any, max_images: int, steps: int) -> None:
        import comfy.utils
        import latent_preview

        self.node_id, self.max_images, self.steps = node_id, max_images, steps
        self.text, self.paragraph, self.status, self.drawn, self.last_sent = "", "", "", 0, 0.0
        self.progress = comfy.utils.ProgressBar(max(1, max_images) * steps, node_id=node_id)
        latents = model.model.latent_format
        # The user's preview method; where none is set, colours straight from the latent, which cost next to nothing.
        self.previewer = latent_preview.get_previewer(model.load_device, latents)
        if self.previewer is None and latents.latent_rgb_factors is not None:
            self.previewer = latent_preview.Latent2RGBPreviewer(
                latents.latent_rgb_factors, latents.latent_rgb_factors_bias
            )

    def on_token(self, piece: str) -> None:
        self.text += piece
        self.paragraph += piece
        self._send()

    def begin_picture(self, k: int) -> None:
        self.drawn = k
        self._say(f"Picture {k + 1} of at most {self.max_images}")

    def on_step(self, step: int, denoised: torch.Tensor, noisy: torch.Tensor, steps: int) -> None:
        self._say(f"Picture {self.drawn + 1} of at most {self.max_images}, step {step + 1} of {steps}")
        preview = self.previewer.decode_latent_to_preview_image("JPEG", denoised) if self.previewer else None
        self.progress.update_absolute(self.drawn * self.steps + step + 1, preview=preview)

    def end_picture(self) -> None:
        self.text += f"\n\n[picture {self.drawn + 1}]\n\n"
        self.paragraph, self.status = "", ""

    def end(self, stop: str) -> None:
        limits = {"max_images": "Stopped at the limit of pictures.", "max_tokens": "Stopped at the limit of tokens."}
        self.progress.update_absolute(self.progress.total)
        self.paragraph = self.text
        self._say(limits.get(stop, ""))

    def _say(self, status: str) -> None:
        self.status = status
        self._send(now=True)

    def _send(self, now: bool = False) -> None:
        from server import PromptServer

        moment = time.monotonic()
        if PromptServer.instance is None or (not now and moment - self.last_sent < TEXT_INTERVAL):
            return
        self.last_sent = moment
        text = "\n\n".join(piece for piece in (self.status, self.paragraph.strip()) if piece)
        PromptServer.instance.send_progress_text(text, self.node_id)
