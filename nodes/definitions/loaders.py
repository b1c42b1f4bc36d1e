"""The nodes that load models: a whole DuoGen checkpoint, its parts one by one, a ControlNet, a LoRA of the language
model.

A part may come from a DuoGen checkpoint or be a published model, a file or a folder in ComfyUI's own folders. Loading
itself is in host/loading.py. The MODEL takes ComfyUI's own LoRA loaders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..host import loading
from . import sockets

CATEGORY = "DuoGen/advanced/loaders"
BY_FILE = "auto"
CONVENTIONS = [BY_FILE, "post-trained", "pre-trained"]
LORAS = "loras"


class DuoGenLoadCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadCheckpoint",
            display_name="DuoGen Load Checkpoint",
            category="DuoGen",
            description="Loads a DuoGen model: the language model that writes, the connector, the diffusion "
            "transformer that draws, and its VAE. duogen-tiny comes with this pack and needs no download.",
            search_aliases=["interleaved", "duogen-tiny", "load duogen"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list(loading.checkpoints()),
                    tooltip="The DuoGen model to load. Listed are the one that comes with this pack and every folder "
                    "in ComfyUI's models/duogen.",
                ),
            ],
            outputs=[
                sockets.Mllm.Output(
                    "mllm", tooltip="The language model: it writes, decides when to draw, and looks at images."
                ),
                sockets.Connector.Output(
                    "connector", tooltip="Turns the language model's hidden states into the text input of the MODEL."
                ),
                io.Model.Output(
                    "model", tooltip="The diffusion transformer, for KSampler and every node that takes a MODEL."
                ),
                io.Vae.Output("vae", tooltip="The VAE (Wan family) of this model."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str) -> str:
        return loading.checkpoint_fingerprint(checkpoint)

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        return io.NodeOutput(*loading.load_checkpoint(checkpoint))


class DuoGenLoadMLLM(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadMLLM",
            display_name="DuoGen Load Language Model",
            category=CATEGORY,
            description="Loads the language model alone: it writes, decides when to draw, and looks at images. From "
            "a DuoGen checkpoint, or Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision as published.",
            search_aliases=["load llm", "language model", "qwen2.5-vl", "qwen3-vl", "llava", "text encoder"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=loading.names(loading.MLLM),
                    tooltip="The DuoGen model to take the part from: the one that comes with this pack, or a folder in "
                    "ComfyUI's models/duogen. Or a published Qwen-VL or LLaVA-OneVision: a file or a Hugging Face "
                    "folder in models/text_encoders.",
                ),
                io.Combo.Input(
                    "tokenizer",
                    options=[loading.OWN_TOKENIZER, *loading.names(loading.TOKENIZER, files=False)],
                    default=loading.OWN_TOKENIZER,
                    optional=True,
                    advanced=True,
                    tooltip="The folder with the tokenizer, for a single file, which does not hold one. auto: "
                    "ComfyUI's own tokenizer for Qwen's models. Folders and checkpoints have their own.",
                ),
            ],
            outputs=[sockets.Mllm.Output("mllm", tooltip="The language model.")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, tokenizer: str = loading.OWN_TOKENIZER) -> str:
        from duogen_core.errors import DuoGenError

        try:
            folder = loading.tokenizer_folder(tokenizer)
        except DuoGenError as error:
            return str(error)
        return loading.fingerprint(checkpoint, loading.MLLM, "mllm", beside=folder)

    @classmethod
    def execute(cls, checkpoint: str, tokenizer: str = loading.OWN_TOKENIZER) -> io.NodeOutput:
        return io.NodeOutput(loading.load_mllm(checkpoint, tokenizer))


class DuoGenLoadConnector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadConnector",
            display_name="DuoGen Load Connector",
            category=CATEGORY,
            description="Loads the connector alone: that of a DuoGen checkpoint, or the one inside Cosmos-Predict2.5. "
            "A connector fits one language model and one MODEL. A published Wan has none: DuoGen's stage 2 trains it.",
            search_aliases=["connector", "projection", "crossattn_proj"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=loading.names(loading.DIT),
                    tooltip="The DuoGen model to take the part from: the one that comes with this pack, or a folder in "
                    "ComfyUI's models/duogen. Or the file or folder of Cosmos-Predict2.5, as in DuoGen Load Diffusion "
                    "Model.",
                ),
                sockets.Mllm.Input(
                    "mllm",
                    optional=True,
                    tooltip="The language model whose states it will read. Optional: when connected, this node checks "
                    "that the two fit.",
                ),
            ],
            outputs=[
                sockets.Connector.Output(
                    "connector", tooltip="Turns the language model's hidden states into the text input of the MODEL."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, mllm: Any = None) -> str:
        return loading.fingerprint(checkpoint, loading.DIT, "connector")

    @classmethod
    def execute(cls, checkpoint: str, mllm: Any = None) -> io.NodeOutput:
        return io.NodeOutput(loading.load_connector(checkpoint, mllm))


class DuoGenLoadDiT(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadDiT",
            display_name="DuoGen Load Diffusion Model",
            category=CATEGORY,
            description="Loads the diffusion transformer alone, as a MODEL like any other: that of a DuoGen "
            "checkpoint, or Cosmos-Predict2.5 or Wan 2.1 as published.",
            search_aliases=["load diffusion model", "unet", "cosmos", "cosmos-predict2.5", "wan", "wan2.1"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=loading.names(loading.DIT),
                    tooltip="The DuoGen model to take the part from: the one that comes with this pack, or a folder in "
                    "ComfyUI's models/duogen. Or Cosmos-Predict2.5 or Wan 2.1 text-to-video: a file or a diffusers "
                    "folder in models/diffusion_models. A published Wan reads umT5's text alone, until DuoGen's stage "
                    "2 has taught it a language model's states.",
                ),
                io.Combo.Input(
                    "convention",
                    options=CONVENTIONS,
                    default=BY_FILE,
                    optional=True,
                    advanced=True,
                    tooltip="How a published Cosmos-Predict2.5 was trained, which its weights do not show. auto: as "
                    "the file or its name says, else post-trained. Ignored for a DuoGen checkpoint, which records it, "
                    "and for Wan.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="For KSampler, LoRA loaders and every node that takes a MODEL.")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, convention: str = BY_FILE) -> str:
        # The MODEL holds what its VAE's latents look like.
        return loading.fingerprint(checkpoint, loading.DIT, "dit", "vae")

    @classmethod
    def execute(cls, checkpoint: str, convention: str = BY_FILE) -> io.NodeOutput:
        return io.NodeOutput(loading.load_dit(checkpoint, None if convention == BY_FILE else convention))


class DuoGenLoadControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadControlNet",
            display_name="DuoGen Load ControlNet",
            category=CATEGORY,
            description="Loads a ControlNet for DuoGen's diffusion transformer: it draws in the outlines of an image, "
            "white lines on black. Use it with ComfyUI's own Apply ControlNet, between Condition Next Image and the "
            "sampler, with the VAE connected.",
            search_aliases=["controlnet", "outlines", "edges", "canny", "lineart", "transfer2.5"],
            inputs=[
                io.Combo.Input(
                    "controlnet",
                    options=loading.controlnets(),
                    tooltip="The ControlNet of a DuoGen checkpoint, such as duogen-tiny, for the MODEL of the same "
                    "checkpoint. Or a folder in models/controlnet, as 'train controlnet' writes it.",
                ),
            ],
            outputs=[
                io.ControlNet.Output(
                    "control_net",
                    tooltip="For Apply ControlNet. Outlines come from Canny, or from any image of white lines on "
                    "black. Several in a row add up.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, controlnet: str) -> str:
        from duogen_core.errors import DuoGenError

        try:
            return loading.fingerprint_of(loading.controlnet_folder(controlnet))
        except DuoGenError as error:
            return str(error)

    @classmethod
    def execute(cls, controlnet: str) -> io.NodeOutput:
        return io.NodeOutput(loading.load_controlnet(controlnet))


class DuoGenLoadMLLMLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadMLLMLoRA",
            display_name="DuoGen Load LoRA (Language Model)",
            category=CATEGORY,
            description="Applies a LoRA to the language model, for example one from DuoGen's stage 1 training. For a "
            "LoRA of the MODEL, use ComfyUI's own Load LoRA.",
            search_aliases=["lora", "adapter", "peft", "language model lora"],
            inputs=[
                sockets.Mllm.Input("mllm", tooltip="The language model that the LoRA was trained on."),
                io.Combo.Input(
                    "lora_name",
                    options=[name for name in folder_paths.get_filename_list(LORAS) if name.endswith(".safetensors")],
                    tooltip="A LoRA in ComfyUI's models/loras. If it is a PEFT adapter, put its whole folder there and "
                    "choose the adapter_model.safetensors inside.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="How strongly the LoRA changes the model. 0: not at all, 1: as it was trained.",
                ),
            ],
            outputs=[sockets.Mllm.Output("mllm", tooltip="The language model with the LoRA.")],
        )

    @classmethod
    def fingerprint_inputs(cls, mllm: Any, lora_name: str, strength: float) -> str:
        """Changes when the file or its configuration does, so that it is read again."""
        from duogen_core.mllm.adapter import CONFIG

        path = folder_paths.get_full_path(LORAS, lora_name)
        return loading.fingerprint_of(Path(path), Path(path).with_name(CONFIG)) if path else ""

    @classmethod
    def execute(cls, mllm: Any, lora_name: str, strength: float) -> io.NodeOutput:
        from duogen_core.mllm.adapter import read_adapter

        from ..host.lora import mllm_with_lora

        if strength == 0:
            return io.NodeOutput(mllm)
        adapter = read_adapter(folder_paths.get_full_path_or_raise(LORAS, lora_name), mllm.core)
        return io.NodeOutput(mllm_with_lora(mllm, adapter, strength))
