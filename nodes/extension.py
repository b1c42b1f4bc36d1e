"""What this pack adds to ComfyUI: its model folder and its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .document_nodes import DuoGenFormat, DuoGenPrompt, DuoGenSaveDocument
from .interleave import DuoGenInterleave
from .load import DuoGenLoadCheckpoint, register_model_folder
from .preview import DuoGenPreview


class DuoGenExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_model_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [DuoGenLoadCheckpoint, DuoGenPrompt, DuoGenInterleave, DuoGenFormat, DuoGenPreview, DuoGenSaveDocument]
