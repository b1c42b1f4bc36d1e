"""Loads the pack as ComfyUI does, in a fork for each argument, and prints a line of JSON for each: how many nodes there
are, and what the log says.

In: `probe_import.py COMFYUI PACK ARGUMENT…`; an argument is a module that is not installed, or a ComfyUI that is old
("ComfyUI 0.27"), lacks a name ("without Caching"), or both.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import sys
from pathlib import Path


def main(comfyui: str, pack: str, *arguments: str) -> None:
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [comfyui, *(p for p in sys.path if p and str(Path(p).resolve()) != here)]
    sys.path.append(here)
    import standins

    standins.install()
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy_api.latest  # noqa: F401
    import execution  # noqa: F401
    import latent_preview  # noqa: F401

    import nodes  # noqa: F401

    for argument in arguments:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, json.dumps(load(pack, argument)).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            print(pipe.read().decode(), flush=True)
        os.waitpid(child, 0)


def load(pack: str, argument: str) -> dict[str, object]:
    import comfy_api.latest
    import comfyui_version
    from blocked_imports import hide

    lines: list[str] = []
    logger = logging.getLogger()
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    if argument.startswith("ComfyUI 0.27"):
        comfyui_version.__version__ = "0.27.1"
    if argument.endswith("without Caching"):
        del comfy_api.latest.Caching
    if argument.isidentifier() and argument != "nothing":
        hide(lambda: {argument})
    spec = importlib.util.spec_from_file_location("pack", f"{pack}/__init__.py", submodule_search_locations=[pack])
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = module
    spec.loader.exec_module(module)

    async def count() -> int:
        extension = await module.comfy_entrypoint()
        await extension.on_load()
        return len(await extension.get_node_list())

    try:
        return {"nodes": asyncio.run(count()), "log": lines}
    except ImportError as error:
        return {"error": str(error), "log": lines}


if __name__ == "__main__":
    main(*sys.argv[1:])
