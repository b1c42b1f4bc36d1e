"""Graphs in API format, built for the tests."""

from __future__ import annotations

from typing import Any

from duogen_core import picture_sampling

REQUEST = "How do I draw a house with a red roof?"


def answer(checkpoint: str, text: str = REQUEST, *, prefix: str = "test/answer", **inputs: Any) -> dict[str, Any]:
    """Load, ask, answer, take apart, save. `inputs` go to DuoGen Interleave. Nodes: 1 load … 5 save, 6 preview."""
    interleave = {
        "seed": 7, "steps": 0, "cfg": 0.0, "sampler_name": "euler", "scheduler": "simple", "max_images": 8,
        "max_tokens": 1024, "width": 0, "height": 0,
    }  # fmt: skip
    return {
        "1": {"class_type": "DuoGenLoadCheckpoint", "inputs": {"checkpoint": checkpoint}},
        "2": {"class_type": "DuoGenPrompt", "inputs": {"text": text}},
        "3": {
            "class_type": "DuoGenInterleave",
            "inputs": {
                **{"mllm": ["1", 0], "connector": ["1", 1], "model": ["1", 2], "vae": ["1", 3], "context": ["2", 0]},
                **interleave,
                **inputs,
            },
        },
        "4": {"class_type": "DuoGenFormat", "inputs": {"context": ["3", 0], "part": "answer"}},
        "5": {"class_type": "DuoGenSaveDocument", "inputs": {"context": ["3", 0], "filename_prefix": prefix}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["4", 1]}},
    }


def _loaded(checkpoint: str, text: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "DuoGenLoadCheckpoint", "inputs": {"checkpoint": checkpoint}},
        "2": {"class_type": "DuoGenPrompt", "inputs": {"text": text}},
    }


def _write(context: list, seed: int = 7) -> dict[str, Any]:
    inputs = {
        "mllm": ["1", 0], "context": context, "connector": ["1", 1], "max_tokens": 1024, "seed": seed,
        "temperature": 0.0, "top_p": 1.0,
    }  # fmt: skip
    return {"class_type": "DuoGenWrite", "inputs": inputs}


def draw(
    name: str, context: list, seed: Any, *, steps: int = 4, cfg: float = 2.0, which: str = "all"
) -> dict[str, Any]:
    """The stages of one picture with the stock KSampler; the picture comes out of node `{name}.decode`."""
    nodes = {
        "encode": ("DuoGenEncodeContext", {"mllm": ["1", 0], "connector": ["1", 1], "context": context}),
        "connect": ("DuoGenConnector", {"states": [f"{name}.encode", 0]}),
        "refer": (
            "DuoGenReferenceImages",
            {
                "positive": [f"{name}.connect", 0], "negative": [f"{name}.connect", 1], "vae": ["1", 3],
                "context": context, "which": which,
            },
        ),
        "size": (
            "DuoGenPictureSize",
            {
                "context": context, "size": "like the last image", "picture": 1, "width": 64, "height": 64,
                "mllm": ["1", 0],
            },
        ),
        "sample": (
            "KSampler",
            {
                "model": ["1", 2], "positive": [f"{name}.refer", 0], "negative": [f"{name}.refer", 1],
                "latent_image": [f"{name}.size", 0], "seed": seed, "steps": steps, "cfg": cfg,
                "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            },
        ),
        "decode": ("VAEDecode", {"samples": [f"{name}.sample", 0], "vae": ["1", 3]}),
    }  # fmt: skip
    return {f"{name}.{key}": {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def first_picture(checkpoint: str, text: str = REQUEST, *, steps: int = 4) -> dict[str, Any]:
    """Load, ask, write0, and the stages of the first picture, which comes out of node p.decode."""
    return _loaded(checkpoint, text) | {"write0": _write(["2", 0])} | draw("p", ["write0", 0], 7, steps=steps)


def staged(
    checkpoint: str, text: str = REQUEST, *, pictures: int = 2, seeds: dict[int, int] | None = None, prefix: str
) -> dict[str, Any]:
    """Every stage of an answer as a node: write0, p0.encode … p0.decode, append0, write1, …; saved by node 5."""
    graph, context = _loaded(checkpoint, text), ["2", 0]
    for k in range(pictures):
        seed = (seeds or {}).get(k, picture_sampling.picture_seed(7, k))
        graph[f"write{k}"] = _write(context)
        graph |= draw(f"p{k}", [f"write{k}", 0], seed)
        graph[f"append{k}"] = {
            "class_type": "DuoGenAppendImage",
            "inputs": {"context": [f"write{k}", 0], "image": [f"p{k}.decode", 0], "seed": seed},
        }
        context = [f"append{k}", 0]
    graph[f"write{pictures}"] = _write(context)
    context = [f"write{pictures}", 0]
    graph["4"] = {"class_type": "DuoGenFormat", "inputs": {"context": context, "part": "answer"}}
    graph["5"] = {"class_type": "DuoGenSaveDocument", "inputs": {"context": context, "filename_prefix": prefix}}
    return graph


def loop(
    checkpoint: str, text: str = REQUEST, *, prefix: str, mode: str = "as it goes", max_images: int = 2,
    max_tokens: int = 1024,
    seeds: str = "", between: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Loop Open (3), the stages with the stock KSampler, Loop Close (9). between: a node of the user's before Close."""
    graph = _loaded(checkpoint, text)
    graph["3"] = {
        "class_type": "DuoGenLoopOpen",
        "inputs": {
            "mllm": ["1", 0], "context": ["2", 0], "connector": ["1", 1], "seed": 7, "max_tokens": max_tokens,
            "mode": mode, "temperature": 0.0,
        },
    }  # fmt: skip
    graph |= draw("p", ["3", 1], ["3", 3])
    image = ["p.decode", 0]
    if between:
        graph["own"] = {"class_type": "ImageInvert", "inputs": {"image": image}}
        image = ["own", 0]
    graph["shown"] = {"class_type": "PreviewImage", "inputs": {"images": image}}
    graph["9"] = {
        "class_type": "DuoGenLoopClose",
        "inputs": {"loop": ["3", 0], "image": image, "max_images": max_images, "seeds": seeds},
    }
    graph["4"] = {"class_type": "DuoGenFormat", "inputs": {"context": ["9", 0], "part": "answer"}}
    graph["5"] = {"class_type": "DuoGenSaveDocument", "inputs": {"context": ["9", 0], "filename_prefix": prefix}}
    graph["6"] = {"class_type": "PreviewImage", "inputs": {"images": ["9", 2]}}
    return graph
