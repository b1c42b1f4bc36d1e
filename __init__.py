"""Where ComfyUI enters the pack: the nodes (V3 API) and the folder with the help pages. Importing it costs nothing."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python has one `duogen_core`. A second copy of the pack would run the first one's, whatever version that is, and its
# front end would be there twice: so the second copy stays out.
OTHER = Path(sys.modules["duogen_core"].__path__[0]).resolve().parent if "duogen_core" in sys.modules else HERE

WEB_DIRECTORY = "./web" if OTHER == HERE else None


async def comfy_entrypoint():
    if OTHER != HERE:
        raise ImportError(
            f"DuoGen is there twice, and the one in {HERE} is not loaded, because the one in {OTHER} is; remove one of "
            "the two folders and start ComfyUI again."
        )
    from .nodes import DuoGenExtension

    return DuoGenExtension()
