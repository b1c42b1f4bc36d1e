"""A cancel while the language model reads a conversation or a prompt ends the run at the next layer or chunk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import graphs
import pytest
from server import Server
from test_stock_nodes import node

LAYERS = 2  # of the random model's MLLM


@contextmanager
def cancelled_at(server: Server, layer: int) -> Iterator[list[int]]:
    """Gets, at its end, how many layers' states the connector was given."""
    seen: list[int] = []
    server.post("/duogen_test/interrupt", {"layer": layer})
    try:
        yield seen
    finally:
        seen.append(server.get("/duogen_test/interrupt"))


@pytest.mark.slow
def test_while_a_conversation_is_read(server: Server, random_model: Path):
    """DuoGen Write Text ran without the connector, so that Encode Context has to read everything itself."""
    graph = graphs.first_picture(random_model.name, "Draw a red star. " * 400)
    del graph["write0"]["inputs"]["connector"]
    graph["shown"] = node("PreviewImage", images=["p.decode", 0])
    server.run({**graph, "shown": node("PreviewAny", source=["write0", 1])})  # written before the layers are counted
    with cancelled_at(server, 1) as seen:
        result = server.run(graph)
    assert result.interrupted and result.error is None
    assert seen[0] <= LAYERS, "one chunk of several, or less: ComfyUI's own layers look too"
    with cancelled_at(server, 0) as seen:
        again = server.run(graph)
    assert again.error is None and not again.interrupted and again.outputs["shown"]["images"]
    assert seen[0] > LAYERS, "there was more to read"


@pytest.mark.slow
def test_while_a_prompt_is_read(server: Server, random_model: Path):
    prompt: dict[str, Any] = {"mllm": ["1", 0], "connector": ["1", 1], "prompt": "A red star.", "tokens": 0}
    graph = {
        "1": node("DuoGenLoadCheckpoint", checkpoint=random_model.name),
        "2": node("DuoGenEncodePrompt", **prompt, negative_prompt="blurry"),
        "3": node("PreviewAny", source=["2", 0]),
    }
    with cancelled_at(server, 1) as seen:
        result = server.run(graph)
    assert result.interrupted and result.error is None and seen == [1]
    with cancelled_at(server, 0) as seen:
        again = server.run(graph)
    assert again.error is None and not again.interrupted and seen == [2 * LAYERS], "the prompt and the negative one"
