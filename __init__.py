"""The door ComfyUI knocks at: the nodes (V3 API) and the folder with the help pages. Importing it costs nothing."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import DuoGenExtension

    return DuoGenExtension()
