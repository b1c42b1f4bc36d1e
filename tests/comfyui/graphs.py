"""Graphs in API format, built for the tests."""

from __future__ import annotations

from typing import Any

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
