"""What this pack adds to ComfyUI: its model folder and its nodes."""

from __future__ import annotations

from comfy_api.latest import Caching, ComfyExtension, io

from .definitions.conditioning import (
    DuoGenConditionNextImage,
    DuoGenConnector,
    DuoGenEarlierImages,
    DuoGenEncodeContext,
    DuoGenPictureSize,
    DuoGenReferenceImages,
)
from .definitions.documents import DuoGenFormat, DuoGenLoadDocument, DuoGenPreview, DuoGenSaveDocument
from .definitions.loaders import (
    DuoGenLoadCheckpoint,
    DuoGenLoadConnector,
    DuoGenLoadDiT,
    DuoGenLoadMLLM,
    DuoGenLoadMLLMLoRA,
)
from .definitions.loop import (
    DuoGenGiven,
    DuoGenInterleave,
    DuoGenInterleaveStep,
    DuoGenListEntry,
    DuoGenLoopClose,
    DuoGenLoopNext,
    DuoGenLoopOpen,
    DuoGenLoopRound,
)
from .definitions.prompt import DuoGenEncodePrompt, DuoGenPrompt
from .definitions.sampling import DuoGenRefreshEarlierImages, DuoGenSampler, DuoGenSigmas
from .definitions.sockets import refuse_plain_values
from .definitions.writing import (
    DuoGenAppendImage,
    DuoGenAskWriter,
    DuoGenEditContext,
    DuoGenReadWriter,
    DuoGenReadWriterNext,
    DuoGenWrite,
)
from .host.caches import PROVIDER
from .host.expansion import forget_values
from .host.loading import register_model_folder
from .steps import unfinished

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
    DuoGenConditionNextImage,
    DuoGenEncodeContext,
    DuoGenConnector,
    DuoGenEncodePrompt,
    DuoGenReferenceImages,
    DuoGenEarlierImages,
    DuoGenPictureSize,
    DuoGenSampler,
    DuoGenSigmas,
    DuoGenRefreshEarlierImages,
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
        PROVIDER.when_prompt_ends += [forget_values, unfinished.end_run]
        await Caching().register_provider(PROVIDER)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
