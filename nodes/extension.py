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
from .definitions.interleave import DuoGenInterleave, DuoGenInterleaveStep
from .definitions.loaders import (
    DuoGenLoadCheckpoint,
    DuoGenLoadConnector,
    DuoGenLoadControlNet,
    DuoGenLoadDiT,
    DuoGenLoadMLLM,
    DuoGenLoadMLLMLoRA,
)
from .definitions.loop import (
    DuoGenGiven,
    DuoGenListEntry,
    DuoGenLoopClose,
    DuoGenLoopNext,
    DuoGenLoopOpen,
    DuoGenLoopRound,
)
from .definitions.planning import (
    DuoGenEditPlan,
    DuoGenPlanAnswer,
    DuoGenPlanEndpoint,
    DuoGenPlanFromText,
    DuoGenPlanFromTextAgain,
    DuoGenPlanPrompt,
    DuoGenPlanPromptAgain,
)
from .definitions.prompt import DuoGenEncodePrompt, DuoGenPrompt
from .definitions.review import DuoGenReviewImage, DuoGenReviewNext
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
from .host import language
from .host.caches import PROVIDER
from .host.expansion import forget_values
from .host.loading import register_model_folder
from .host.routes import add_routes
from .steps import downloads, unfinished

# In the order of the node library: what a newcomer needs stands in the category DuoGen itself, the rest in its folders.
# No essentials_category: the front end (1.58) would list the node among ComfyUI's own, away from the rest of this pack,
# and its tab Essentials holds a fixed list.
NODES: list[type[io.ComfyNode]] = [
    DuoGenLoadCheckpoint,
    DuoGenPrompt,
    DuoGenInterleave,
    DuoGenPreview,
    DuoGenSaveDocument,
    DuoGenLoadDocument,
    DuoGenFormat,
    DuoGenPlanAnswer,
    DuoGenPlanEndpoint,
    DuoGenPlanPrompt,
    DuoGenPlanPromptAgain,
    DuoGenPlanFromText,
    DuoGenPlanFromTextAgain,
    DuoGenEditPlan,
    DuoGenInterleaveStep,
    DuoGenGiven,
    DuoGenListEntry,
    DuoGenLoopOpen,
    DuoGenLoopClose,
    DuoGenLoopRound,
    DuoGenLoopNext,
    DuoGenReviewImage,
    DuoGenReviewNext,
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
    DuoGenLoadMLLM,
    DuoGenLoadConnector,
    DuoGenLoadDiT,
    DuoGenLoadMLLMLoRA,
    DuoGenLoadControlNet,
]
for _node in NODES:
    refuse_plain_values(_node)
    language.speaks(_node)


class DuoGenExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_model_folder()
        add_routes()
        language.register()
        downloads.add_route()
        PROVIDER.when_prompt_ends += [forget_values, unfinished.end_run]
        await Caching().register_provider(PROVIDER)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
