"""What this pack adds to ComfyUI: its model folder and its nodes."""

from __future__ import annotations

from comfy_api.latest import Caching, ComfyExtension, io

from .bridge_nodes import (
    DuoGenConnector,
    DuoGenEarlierImages,
    DuoGenEncodeContext,
    DuoGenPictureSize,
    DuoGenReferenceImages,
)
from .context_nodes import DuoGenAppendImage, DuoGenEditContext, DuoGenWrite
from .document_nodes import DuoGenFormat, DuoGenPrompt, DuoGenSaveDocument
from .expansion import DuoGenListEntry
from .given import DuoGenGiven
from .interleave import DuoGenInterleave, DuoGenInterleaveStep
from .kept import PROVIDER
from .load import DuoGenLoadCheckpoint, register_model_folder
from .load_document import DuoGenLoadDocument
from .load_parts import DuoGenLoadConnector, DuoGenLoadDiT, DuoGenLoadMLLM
from .loop import DuoGenLoopClose, DuoGenLoopNext, DuoGenLoopOpen, DuoGenLoopRound
from .lora_nodes import DuoGenLoadMLLMLoRA
from .preview import DuoGenPreview
from .prompt_nodes import DuoGenEncodePrompt
from .sampler_nodes import DuoGenSampler, DuoGenSigmas
from .sockets import refuse_plain_values
from .writer_nodes import DuoGenAskWriter, DuoGenReadWriter, DuoGenReadWriterNext

NODES: list[type[io.ComfyNode]] = [
    DuoGenLoadCheckpoint,
    DuoGenLoadMLLM,
    DuoGenLoadConnector,
    DuoGenLoadDiT,
    DuoGenLoadMLLMLoRA,
    DuoGenPrompt,
    DuoGenLoadDocument,
    DuoGenInterleave,
    DuoGenInterleaveStep,
    DuoGenGiven,
    DuoGenListEntry,
    DuoGenLoopOpen,
    DuoGenLoopClose,
    DuoGenLoopRound,
    DuoGenLoopNext,
    DuoGenAskWriter,
    DuoGenReadWriter,
    DuoGenReadWriterNext,
    DuoGenWrite,
    DuoGenEncodeContext,
    DuoGenConnector,
    DuoGenEncodePrompt,
    DuoGenReferenceImages,
    DuoGenEarlierImages,
    DuoGenPictureSize,
    DuoGenSampler,
    DuoGenSigmas,
    DuoGenAppendImage,
    DuoGenEditContext,
    DuoGenFormat,
    DuoGenPreview,
    DuoGenSaveDocument,
]
for _node in NODES:
    refuse_plain_values(_node)


class DuoGenExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_model_folder()
        await Caching().register_provider(PROVIDER)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
