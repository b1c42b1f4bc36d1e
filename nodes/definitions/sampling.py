"""Sampling: DuoGen Sampler (KSampler that knows the trained steps and cfg), DuoGen Sigmas, Refresh Earlier Images.

The stock KSampler draws the same image with the same numbers; the first two look the numbers up. The third trades
exactness for time.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import sockets

CATEGORY = "DuoGen/advanced/sampling"


class DuoGenSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenSampler",
            display_name="DuoGen Sampler",
            category=CATEGORY,
            description="Samples the image as KSampler does, with the steps and the cfg that the checkpoint was made "
            "for. Shows which image of how many it is, and a preview unless ComfyUI's preview method is set to none.",
            search_aliases=["ksampler", "draw", "sample image"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The diffusion transformer. LoRAs and patches of the whole model (shift, RescaleCFG, "
                    "EasyCache) apply.",
                ),
                io.Conditioning.Input("positive", tooltip="What the image should show."),
                io.Conditioning.Input(
                    "negative", tooltip="The same without the paragraph to draw, or what the image should not show."
                ),
                io.Latent.Input("latent_image", tooltip="An empty latent of the image's size, or one to start from."),
                sockets.seed("The seed of the noise, as in KSampler."),
                sockets.steps(),
                sockets.cfg(),
                sockets.sampler_name(advanced=True),
                sockets.scheduler(advanced=True),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Less than 1 keeps part of the latent that sampling starts from.",
                ),
            ],
            outputs=[io.Latent.Output("latent", tooltip="The image's latent, for VAEDecode.")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: list,
        negative: list,
        latent_image: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float = 1.0,
    ) -> io.NodeOutput:
        from ..host import display, sampling
        from ..host.conditioning import STEP_TEXT
        from ..steps import answer

        steps, cfg = sampling.trained_steps_and_cfg(model, steps, cfg)
        paragraph = positive[0][1].get(STEP_TEXT, "") if positive else ""
        preview = display.SamplingPreview(cls.hidden, model, answer.picture_numbers(cls.hidden), paragraph)
        latent = sampling.draw(
            model, positive, negative, latent_image, seed=seed, steps=steps, cfg=cfg,
            sampler_name=None if sampler_name == sockets.AS_TRAINED else sampler_name,
            scheduler=None if scheduler == sockets.AS_TRAINED else scheduler,
            denoise=denoise, on_step=preview.on_step, say=lambda text: display.say(cls.hidden, text),
        )  # fmt: skip
        return io.NodeOutput(latent)


class DuoGenSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenSigmas",
            display_name="DuoGen Sigmas",
            category=CATEGORY,
            description="The noise levels, number of steps, cfg and solver that the checkpoint was trained for, to "
            "connect to SamplerCustom, SamplerCustomAdvanced and CFGGuider.",
            search_aliases=["scheduler", "schedule", "basic scheduler"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion transformer that will draw."),
                sockets.steps(),
            ],
            outputs=[
                io.Sigmas.Output("sigmas", tooltip="Noise levels from the first one down to 0, spaced as in training."),
                io.Int.Output("steps", tooltip="The number of steps."),
                io.Float.Output("cfg", tooltip="The cfg that the checkpoint was made for."),
                io.Sampler.Output("sampler", tooltip="The solver that the checkpoint was made for."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, steps: int) -> io.NodeOutput:
        from ..host import sampling

        steps, cfg = sampling.trained_steps_and_cfg(model, steps, 0.0)
        return io.NodeOutput(sampling.trained_sigmas(model, steps), steps, cfg, sampling.trained_solver(model))


class DuoGenRefreshEarlierImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenRefreshEarlierImages",
            display_name="DuoGen Refresh Earlier Images (approximate)",
            category=CATEGORY,
            description="An approximation that saves time where earlier images are looked at: their keys and values "
            "are computed anew only in every so many steps, and reused in the steps between. Checkpoints with "
            "frame_causal attention (the bundled one) reuse them exactly already, and stay as they are.",
            search_aliases=["speed", "cache", "teacache", "easycache", "kv cache"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion transformer."),
                io.Int.Input(
                    "every",
                    default=2,
                    min=1,
                    max=100,
                    tooltip="Compute them anew in every so many steps. 1 is exact. The more, the faster and the "
                    "further from the exact image. They take memory beside the weights.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The MODEL for a sampler.")],
            is_experimental=True,
        )

    @classmethod
    def execute(cls, model: Any, every: int) -> io.NodeOutput:
        from ..host.compatibility import check_model
        from ..host.packed_forward import REFRESH

        check_model(model)
        patched = model.clone()
        patched.model_options["transformer_options"] = {
            **patched.model_options.get("transformer_options", {}), REFRESH: every,
        }  # fmt: skip
        return io.NodeOutput(patched)
