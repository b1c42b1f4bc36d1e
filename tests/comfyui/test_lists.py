"""A list on a socket, as ComfyUI means it: DuoGen Interleave answers every entry, each by itself."""

from __future__ import annotations

from pathlib import Path

import graphs
import pytest
from answers import assert_same_turns, saved_document
from server import Server
from test_stock_nodes import node

REQUESTS = ("Answer the first.", "Answer the second.")


@pytest.mark.slow
def test_a_list_of_requests(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name, REQUESTS[0], prefix="lists/both", max_images=1)
    graph["22"] = node("DuoGenPrompt", text=REQUESTS[1])
    graph["list"] = node("CreateList", **{"inputs.input0": ["2", 0], "inputs.input1": ["22", 0]})
    graph["3"]["inputs"]["context"] = ["list", 0]
    result = server.run(graph)
    assert result.error is None, result.error
    assert sum(name.endswith(".sample") for name in result.ran) == 2
    folders = [saved["folder"] for saved in result.outputs["5"]["document"]]
    assert len(folders) == 2
    for index, request in enumerate(REQUESTS):
        alone = server.run(graphs.answer(random_model.name, request, prefix="lists/alone", max_images=1))
        result.outputs["one"] = {"document": [{"folder": folders[index]}]}
        assert_same_turns(saved_document(server, result, "one"), saved_document(server, alone))
