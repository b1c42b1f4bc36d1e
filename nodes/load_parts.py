"""The parts of a checkpoint one by one, so that they can come from different ones: MLLM, connector, DiT.

A part is named by the checkpoint folder it lies in; the lists are those of DuoGen Load Checkpoint.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import sockets
from .load import checkpoint_fingerprint, checkpoint_folder, checkpoints, load_vae

CATEGORY = "DuoGen/loaders"


def _checkpoint_input() -> io.Combo.Input:
    return io.Combo.Input(
        "checkpoint",
        options=list(checkpoints()),
        tooltip="The DuoGen model whose part to load: the one that comes with this pack, or a folder in ComfyUI's "
        "models/duogen.",
    )


class DuoGenLoadMLLM(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadMLLM",
            display_name="DuoGen Load MLLM",
            category=CATEGORY,
            description="Loads the language model of a DuoGen checkpoint alone: it writes, decides when to draw, and "
            "looks at pictures.",
            search_aliases=["load llm", "language model"],
            inputs=[_checkpoint_input()],
            outputs=[sockets.Mllm.Output("mllm", tooltip="The language model.")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str) -> str:
        return checkpoint_fingerprint(checkpoint, "mllm")

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        from duogen_core.checkpoint import check_checkpoint
        from duogen_core.mllm.base import Mllm

        from .managed import manage_mllm

        folder = checkpoint_folder(checkpoint)
        config = check_checkpoint(folder)
        mllm = manage_mllm(Mllm.from_pretrained(folder / "mllm"))
        mllm.config = config
        return io.NodeOutput(mllm)


class DuoGenLoadConnector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadConnector",
            display_name="DuoGen Load Connector",
            category=CATEGORY,
            description="Loads the connector of a DuoGen checkpoint alone. It fits one language model and one MODEL.",
            search_aliases=["connector", "projection"],
            inputs=[_checkpoint_input()],
            outputs=[sockets.Connector.Output("connector", tooltip="Carries the language model's states to the DiT.")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str) -> str:
        return checkpoint_fingerprint(checkpoint, "connector")

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        from duogen_core.checkpoint import check_checkpoint
        from duogen_core.connector import Connector

        from .managed import manage_connector

        folder = checkpoint_folder(checkpoint)
        check_checkpoint(folder)
        return io.NodeOutput(manage_connector(Connector.from_pretrained(folder / "connector")))


class DuoGenLoadDiT(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadDiT",
            display_name="DuoGen Load DiT",
            category=CATEGORY,
            description="Loads the diffusion transformer of a DuoGen checkpoint alone, as a MODEL like any other.",
            search_aliases=["load diffusion model", "unet", "cosmos"],
            inputs=[_checkpoint_input()],
            outputs=[io.Model.Output("model", tooltip="For KSampler, LoRA loaders and every node that takes a MODEL.")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str) -> str:
        return checkpoint_fingerprint(checkpoint, "dit")

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        from duogen_core.checkpoint import check_checkpoint, vae_path
        from duogen_core.dit import load_dit
        from duogen_core.vae import PictureVae

        from .dit_model import make_model

        folder = checkpoint_folder(checkpoint)
        sampling = check_checkpoint(folder).sampling
        # What its latents look like, the VAE knows that they were made with; the VAE itself is not kept.
        latents: Any = load_vae(PictureVae.from_pretrained(vae_path(folder)), latents_only=True)[1]
        return io.NodeOutput(
            make_model(load_dit(folder / "dit").eval(), shift=sampling.shift, latent_format=latents, sampling=sampling)
        )
