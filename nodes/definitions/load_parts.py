"""The parts of a model one by one, so that they can come from different places: MLLM, connector, DiT.

A part is named by the DuoGen checkpoint it lies in (the list of DuoGen Load Checkpoint), or it is a published model: a
file or a folder in ComfyUI's own folders (`model_files`, `load_published`).
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host import model_files
from . import sockets
from .load_checkpoint import checkpoint_folder, load_vae

CATEGORY = "DuoGen/loaders"
BY_FILE = "auto"
CONVENTIONS = [BY_FILE, "post-trained", "pre-trained"]


def _model_input(options: list[str], tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("checkpoint", options=options, tooltip=tooltip)


class DuoGenLoadMLLM(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadMLLM",
            display_name="DuoGen Load MLLM",
            category=CATEGORY,
            description="Loads the language model alone: it writes, decides when to draw, and looks at pictures. From "
            "a DuoGen checkpoint, or Qwen2.5-VL or Qwen3-VL as published.",
            search_aliases=["load llm", "language model", "qwen2.5-vl", "qwen3-vl", "text encoder"],
            inputs=[
                _model_input(
                    model_files.names(model_files.MLLM),
                    "The DuoGen model whose part to load: the one that comes with this pack, or a folder in ComfyUI's "
                    "models/duogen. Or a published Qwen-VL: a file or a Hugging Face folder in models/text_encoders.",
                ),
                io.Combo.Input(
                    "tokenizer",
                    options=[model_files.OWN_TOKENIZER, *model_files.names(model_files.TOKENIZER, files=False)],
                    default=model_files.OWN_TOKENIZER,
                    optional=True,
                    advanced=True,
                    tooltip="For a single file, which has no tokenizer in it: the folder that has one. auto: the one "
                    "that ComfyUI brings for Qwen's models. Folders and checkpoints have their own.",
                ),
            ],
            outputs=[sockets.Mllm.Output("mllm", tooltip="The language model.")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, tokenizer: str = model_files.OWN_TOKENIZER) -> str:
        from duogen_core.errors import DuoGenError

        try:
            folder = model_files.tokenizer_folder(tokenizer)
        except DuoGenError as error:
            return str(error)
        return model_files.fingerprint(checkpoint, model_files.MLLM, "mllm", beside=folder)

    @classmethod
    def execute(cls, checkpoint: str, tokenizer: str = model_files.OWN_TOKENIZER) -> io.NodeOutput:
        from duogen_core.checkpoint import check_checkpoint

        from ..host import checkpoint_parts
        from ..host import published as load_published
        from ..host.model_management import manage_mllm

        if not model_files.is_checkpoint(checkpoint):
            path = model_files.path_of(checkpoint, model_files.MLLM)
            return io.NodeOutput(load_published.load_mllm(path, model_files.tokenizer_folder(tokenizer)))
        folder = checkpoint_folder(checkpoint)
        config = check_checkpoint(folder)
        mllm = manage_mllm(*checkpoint_parts.load_part("mllm", folder))
        mllm.config = config
        return io.NodeOutput(mllm)


class DuoGenLoadConnector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadConnector",
            display_name="DuoGen Load Connector",
            category=CATEGORY,
            description="Loads the connector alone: that of a DuoGen checkpoint, or the one that Cosmos-Predict2.5 has "
            "within it. It fits one language model and one MODEL.",
            search_aliases=["connector", "projection", "crossattn_proj"],
            inputs=[
                _model_input(
                    model_files.names(model_files.DIT),
                    "The DuoGen model whose part to load: the one that comes with this pack, or a folder in ComfyUI's "
                    "models/duogen. Or the file or folder of Cosmos-Predict2.5, as in DuoGen Load DiT.",
                ),
                sockets.Mllm.Input(
                    "mllm",
                    optional=True,
                    tooltip="The language model it will read: whether the two fit is then said here. Not needed.",
                ),
            ],
            outputs=[sockets.Connector.Output("connector", tooltip="Carries the language model's states to the DiT.")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, mllm: Any = None) -> str:
        return model_files.fingerprint(checkpoint, model_files.DIT, "connector")

    @classmethod
    def execute(cls, checkpoint: str, mllm: Any = None) -> io.NodeOutput:
        from duogen_core.checkpoint import check_checkpoint
        from duogen_core.connector import Connector

        from ..host import part_check as fit
        from ..host import published as load_published
        from ..host.model_management import manage_connector

        if not model_files.is_checkpoint(checkpoint):
            path = model_files.path_of(checkpoint, model_files.DIT)
            return io.NodeOutput(load_published.load_connector(path, mllm))
        folder = checkpoint_folder(checkpoint)
        check_checkpoint(folder)
        connector = manage_connector(Connector.from_pretrained(folder / "connector"))
        if mllm is not None:
            fit.check_connector(mllm, connector)
        return io.NodeOutput(connector)


class DuoGenLoadDiT(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadDiT",
            display_name="DuoGen Load DiT",
            category=CATEGORY,
            description="Loads the diffusion transformer alone, as a MODEL like any other: that of a DuoGen "
            "checkpoint, or Cosmos-Predict2.5 as published.",
            search_aliases=["load diffusion model", "unet", "cosmos", "cosmos-predict2.5"],
            inputs=[
                _model_input(
                    model_files.names(model_files.DIT),
                    "The DuoGen model whose part to load: the one that comes with this pack, or a folder in ComfyUI's "
                    "models/duogen. Or Cosmos-Predict2.5: a file or a diffusers folder in models/diffusion_models.",
                ),
                io.Combo.Input(
                    "convention",
                    options=CONVENTIONS,
                    default=BY_FILE,
                    optional=True,
                    advanced=True,
                    tooltip="How a published Cosmos-Predict2.5 was trained, which its weights do not show. auto: as "
                    "the file or its name says, else post-trained. A DuoGen checkpoint knows.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="For KSampler, LoRA loaders and every node that takes a MODEL.")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, convention: str = BY_FILE) -> str:
        # The MODEL holds what its VAE's latents look like.
        return model_files.fingerprint(checkpoint, model_files.DIT, "dit", "vae")

    @classmethod
    def execute(cls, checkpoint: str, convention: str = BY_FILE) -> io.NodeOutput:
        from duogen_core.checkpoint import check_checkpoint, vae_path
        from duogen_core.vae import PictureVae

        from ..host import checkpoint_parts
        from ..host import published as load_published
        from ..host.diffusion_model import make_model

        if not model_files.is_checkpoint(checkpoint):
            path = model_files.path_of(checkpoint, model_files.DIT)
            return io.NodeOutput(load_published.load_dit(path, None if convention == BY_FILE else convention))
        folder = checkpoint_folder(checkpoint)
        sampling = check_checkpoint(folder).sampling
        # What its latents look like, the VAE knows that they were made with; the VAE itself is not kept.
        latents: Any = load_vae(PictureVae.from_pretrained(vae_path(folder)), latents_only=True)[1]
        dit, precision = checkpoint_parts.load_part("dit", folder)
        return io.NodeOutput(
            make_model(dit.eval(), shift=sampling.shift, latent_format=latents, sampling=sampling, precision=precision)
        )
