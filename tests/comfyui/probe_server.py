"""A custom node file for test servers: GET /duogen_test/memory says what lies in the server's memory.

POST /duogen_test/fail {"drawing": k} makes the drawing of the k-th picture from now on fail, once.
POST /duogen_test/interrupt {"layer": k} cancels the run when the connector gets the k-th layer's states from now on;
GET says how many it got since.
POST /duogen_test/hold {"text": …} holds the run where it says this on its node, until another text is posted ("" for
none) or the run is cancelled.
GET /duogen_test/steps says how many steps the diffusion transformers have taken since it was first asked.
GET /duogen_test/compiled tells how many graphs the node CompileAndCount has had compiled.
GET /duogen_test/replaced lists ComfyUI's functions and methods in whose place one of this pack stands.
POST /duogen_test/wrap_lora_names {"wrap": true} does what another pack may do: it stands before ComfyUI's function for
the names in LoRA files; with false it goes away and answers how often it was asked.

Out: {"rss": bytes, "descriptors": number of open descriptors (Windows: handles), "files": open files of ours,
"tensors": bytes of all tensors, "loaded": class names of the models under ComfyUI's memory management,
"alive": {class name: number of objects}} after a garbage collection. What the C library holds back for later use is
returned to the system first: it is nobody's.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
import time
from pathlib import Path

import comfy.lora
import comfy.model_management as mm
import comfy.sample
import folder_paths
import psutil
import torch
from aiohttp import web
from server import PromptServer

compiled_graphs = 0


class CompileAndCount:
    """As ComfyUI's Torch Compile Model, with a backend that compiles nothing, which costs no minutes, and counts."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "compile", "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",)}}

    def compile(self, model) -> tuple:
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        model = model.clone(disable_dynamic=True)
        set_torch_compile_wrapper(model=model, backend=counting)
        return (model,)


def counting(graph, inputs):
    global compiled_graphs
    compiled_graphs += 1
    return graph.forward


@PromptServer.instance.routes.get("/duogen_test/compiled")
async def compiled(request: web.Request) -> web.Response:
    return web.json_response(compiled_graphs)


NODE_CLASS_MAPPINGS: dict = {"CompileAndCount": CompileAndCount}
WATCHED = {
    "ModelHandle",
    "DuoGenModel",
    "DuoGenMllm",
    "DuoGenConnector",
    "VAE",
    "ResultCache",
    "Document",
    "PrefixCache",
}
COMFYUI, PACK = Path(folder_paths.__file__).parent, Path(__file__).resolve().parents[2]
ENDINGS = (".safetensors", ".json", ".png", ".zip", ".html", ".md", ".tmp")


def trim_heap() -> None:
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _pad: 0)  # glibc has it, musl has not
        trim(0)


def bytes_of_tensors() -> int:
    storages = {}
    for thing in gc.get_objects():
        if not issubclass(type(thing), torch.Tensor) or isinstance(thing, torch._subclasses.FakeTensor):
            continue  # torch.compile leaves fake ones, which have no memory
        if thing.device.type != "meta" and thing.layout == torch.strided:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


STEPS: list[None] = []


@PromptServer.instance.routes.get("/duogen_test/steps")
async def steps(request: web.Request) -> web.Response:
    from duogen_core.dit.prepared import Prepared

    if not hasattr(Prepared.velocity, "counts"):
        step = Prepared.velocity

        @functools.wraps(step)
        def counted(*args, **kwargs):
            STEPS.append(None)
            return step(*args, **kwargs)

        counted.counts = True
        Prepared.velocity = counted
    return web.json_response(len(STEPS))


@PromptServer.instance.routes.get("/duogen_test/memory")
async def memory(request: web.Request) -> web.Response:
    gc.collect()
    trim_heap()
    process, alive = psutil.Process(), dict.fromkeys(sorted(WATCHED), 0)
    for thing in gc.get_objects():
        name = type(thing).__name__
        if name in WATCHED:
            alive[name] += 1
    patchers = [entry.model for entry in list(mm.current_loaded_models)]  # weak: another thread may be unloading
    return web.json_response(
        {
            "rss": process.memory_info().rss,
            "descriptors": process.num_handles() if sys.platform == "win32" else process.num_fds(),
            "files": [file.path for file in process.open_files() if file.path.endswith(ENDINGS)],
            "tensors": bytes_of_tensors(),
            "loaded": sorted(type(patcher.model).__name__ for patcher in patchers if patcher is not None),
            "alive": alive,
        }
    )


@PromptServer.instance.routes.post("/duogen_test/fail")
async def fail(request: web.Request) -> web.Response:
    left, sample = (await request.json())["drawing"], comfy.sample.sample

    def counted(*args, **kwargs):
        nonlocal left
        left -= 1
        if left:
            return sample(*args, **kwargs)
        comfy.sample.sample = sample
        raise RuntimeError("The drawing failed, as the test wanted.")

    comfy.sample.sample = counted
    return web.json_response(left)


held_at = ""
send_progress_text = PromptServer.send_progress_text


@PromptServer.instance.routes.post("/duogen_test/hold")
async def hold(request: web.Request) -> web.Response:
    global held_at
    held_at = (await request.json())["text"]
    return web.json_response(held_at)


def send_and_hold(self, text, *args, **kwargs):
    send_progress_text(self, text, *args, **kwargs)
    here = held_at
    while here and held_at == here and here in text and not mm.processing_interrupted():
        time.sleep(0.02)


PromptServer.send_progress_text = send_and_hold


def packs_own(value) -> bool:
    """Whether a function was written in this pack.

    Only the pack's own sources count: the tests have their stand-ins, and a virtual environment may lie in the clone.
    """
    code = getattr(getattr(value, "__func__", value), "__code__", None)
    file = Path(code.co_filename).resolve() if code is not None else Path("/")
    return any(file.is_relative_to(PACK / part) for part in ("__init__.py", "nodes", "duogen_core"))


@PromptServer.instance.routes.get("/duogen_test/replaced")
async def replaced(request: web.Request) -> web.Response:
    found = []
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(COMFYUI) and not name.startswith("/"):
            for key, value in list(vars(module).items()):
                if isinstance(value, type) and value.__module__ == name:
                    found += [f"{name}.{key}.{method}" for method, each in list(vars(value).items()) if packs_own(each)]
                elif packs_own(value):
                    found.append(f"{name}.{key}")
    return web.json_response(found)


lora_names_asked, lora_names = 0, comfy.lora.model_lora_keys_unet


@PromptServer.instance.routes.post("/duogen_test/wrap_lora_names")
async def wrap_lora_names(request: web.Request) -> web.Response:
    global lora_names_asked
    asked = lora_names_asked

    @functools.wraps(lora_names)
    def wrapper(*args, **kwargs):
        global lora_names_asked
        lora_names_asked += 1
        return lora_names(*args, **kwargs)

    lora_names_asked = 0
    comfy.lora.model_lora_keys_unet = wrapper if (await request.json())["wrap"] else lora_names
    return web.json_response(asked)


layers_seen = 0


@PromptServer.instance.routes.post("/duogen_test/interrupt")
async def interrupt(request: web.Request) -> web.Response:
    from duogen_core.connector import Connector

    global layers_seen
    layers_seen, at, project = 0, (await request.json())["layer"], Connector.project_layer

    def counted(*args, **kwargs):
        global layers_seen
        layers_seen += 1
        if layers_seen == at:
            mm.interrupt_current_processing()  # as POST /interrupt does
        return project(*args, **kwargs)

    Connector.project_layer = counted
    Connector.project_layer_before = staticmethod(project)
    return web.json_response(at)


@PromptServer.instance.routes.get("/duogen_test/interrupt")
async def layers(request: web.Request) -> web.Response:
    from duogen_core.connector import Connector

    Connector.project_layer = Connector.project_layer_before
    del Connector.project_layer_before
    return web.json_response(layers_seen)
