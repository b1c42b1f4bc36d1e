"""What this pack adds to ComfyUI: its model folder and its nodes."""

from __future__ import annotations

from comfy_api.latest import Caching, ComfyExtension, io

from .definitions.conditioning import (
    DuoGenConnector,
    DuoGenEarlierImages,
    DuoGenEncodeContext,
    DuoGenPictureSize,
    DuoGenReferenceImages,
)
from .definitions.documents import DuoGenFormat, DuoGenPrompt, DuoGenSaveDocument
from .definitions.given import DuoGenGiven
from .definitions.interleave import DuoGenInterleave, DuoGenInterleaveStep
from .definitions.load_checkpoint import DuoGenLoadCheckpoint, register_model_folder
from .definitions.load_document import DuoGenLoadDocument
from .definitions.load_lora import DuoGenLoadMLLMLoRA
from .definitions.load_parts import DuoGenLoadConnector, DuoGenLoadDiT, DuoGenLoadMLLM
from .definitions.loop import (
    DuoGenLoopClose,
    DuoGenLoopNext,
    DuoGenLoopOpen,
    DuoGenLoopRound,
)
from .definitions.preview import DuoGenPreview
from .definitions.prompt import DuoGenEncodePrompt
from .definitions.sampling import DuoGenSampler, DuoGenSigmas
from .definitions.sockets import refuse_plain_values
from .definitions.writers import DuoGenAskWriter, DuoGenReadWriter, DuoGenReadWriterNext
from .definitions.writing import DuoGenAppendImage, DuoGenEditContext, DuoGenWrite
from .host.expansion import DuoGenListEntry
from .host.step_cache import PROVIDER

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
