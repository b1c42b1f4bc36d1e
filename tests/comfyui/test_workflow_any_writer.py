"""18 Any writer: ComfyUI's Generate Text writes, FLUX.2 paints; both are small models of the core's own classes.

The writer is Qwen3-VL of small_models.py: it writes fixed words, by what its prompt ends with.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from answers import saved_document
from server import Server
from test_workflow_edit_painters import SMALL, loaded

from duogen_core import picture_sampling

FIRST, NEXT, CAPTION = "First a wall. ", " Now the roof ", "red bricks, daylight"
VISION = "<|vision_start|><|image_pad|><|vision_end|>"


def graph_of(server: Server) -> tuple[dict[str, Any], dict[str, str]]:
    graph, ids = loaded(server, "18 Any writer", SMALL["12 FLUX.2 paints"])
    graph[ids["The writer"]]["inputs"]["clip_name"] = "small_writer.safetensors"
    graph[ids["The writer writes"]]["inputs"]["max_length"] = 40
    graph["asked"] = {"class_type": "PreviewAny", "inputs": {"source": [ids["DuoGenAskWriter"], 1]}}
    return graph, ids


def last_writing(ids: dict[str, str]) -> str:
    """The writer's node after picture 2."""
    return f"{ids['DuoGenLoopClose']}.next.body.{ids['The writer writes']}"


def every_round(outputs: dict[str, Any], node: str) -> list[Any]:
    """What a node of the loop showed, round by round."""
    found = {name: shown for name, shown in outputs.items() if name.split(".")[-1] == node}
    return [found[name] for name in sorted(found, key=len)]


@pytest.mark.slow
def test_any_writer(server: Server, small_models: None):
    graph, ids = graph_of(server)
    first = server.run(graph)
    document = saved_document(server, first, ids["DuoGenSaveDocument"])
    assert document.text == FIRST + NEXT + NEXT and document.generation["stop_reason"] == "max_images"
    assert [picture.meta["caption"] for picture in document.pictures] == [CAPTION] * 2
    assert [picture.meta["seed"] for picture in document.pictures] == [7, picture_sampling.picture_seed(7, 1)]
    assert [picture.meta["text"] for picture in document.pictures] == [FIRST.strip(), NEXT.strip()]
    assert {"Qwen3VLTEModel_", "Flux2"} <= set(server.memory()["loaded"])
    prompts = [shown["text"][0] for shown in every_round(first.outputs, "asked")]
    answers = [prompt.rpartition("assistant\n")[2] for prompt in prompts]
    drawn = f"{FIRST}<BOV: {CAPTION}>{VISION}"
    assert answers == ["", drawn, f"{drawn}{NEXT}<BOV: {CAPTION}>{VISION}"]

    graph[ids["DuoGenLoopClose"]]["inputs"]["seeds"] = "2: 1234"
    again = server.run(graph)
    wrote = [node for node in again.ran if node.split(".")[-1] == ids["The writer writes"]]
    assert wrote == [last_writing(ids)], "only what follows picture 2"
    other = saved_document(server, again, ids["DuoGenSaveDocument"])
    assert other.pictures[0] == document.pictures[0] and other.pictures[1].meta["seed"] == 1234
    assert not np.array_equal(other.pictures[1].pixels, document.pictures[1].pixels)


@pytest.mark.slow
def test_freed_memory_holds_no_rounds(server: Server, small_models: None):
    """What came before the changed picture is neither written nor painted anew, until the user frees the memory."""
    graph, ids = graph_of(server)
    graph[ids["DuoGenPrompt"]]["inputs"]["text"] = "Free it."  # not what a test before has drawn
    first = saved_document(server, server.run(graph), ids["DuoGenSaveDocument"])
    graph[ids["DuoGenLoopClose"]]["inputs"]["seeds"] = "2: 1234"
    again = server.run(graph)
    other = saved_document(server, again, ids["DuoGenSaveDocument"])
    assert other.pictures[0] == first.pictures[0] and other.pictures[1] != first.pictures[1]
    assert [node for node in again.ran if node.split(".")[-1] == ids["The writer writes"]] == [last_writing(ids)]
    assert ids["SamplerCustomAdvanced"] not in again.ran
    server.post("/free", {"unload_models": True, "free_memory": True})
    end = time.monotonic() + 120
    while server.memory()["alive"]["ResultCache"] and time.monotonic() < end:
        time.sleep(0.5)
    assert server.memory()["alive"]["ResultCache"] == 0


@pytest.mark.slow
def test_a_text_without_a_marker_ends_the_answer(server: Server, small_models: None):
    graph, ids = graph_of(server)
    graph[ids["DuoGenAskWriter"]]["inputs"]["format"] = "plain text"
    del graph[ids["Each image, as it is made"]]  # a preview inside would ask for the picture by itself
    result = server.run(graph)
    document = saved_document(server, result, ids["DuoGenSaveDocument"])
    assert document.text == "Nothing to draw!" and not document.pictures
    assert document.generation["stop_reason"] == "end"
    assert not {ids["SamplerCustomAdvanced"], ids["VAEDecode"]} & set(result.ran), "a picture that is not due"
    (shown,) = every_round(result.outputs, "asked")
    assert shown["text"][0].startswith("Instructions:\nYou answer with text and pictures in turn.")


@pytest.mark.slow
def test_the_pictures_go_along_as_one_batch(server: Server, small_models: None):
    """Without the loop: two pictures of unlike sizes, one of them chosen, then both, then none."""
    graph: dict[str, Any] = {
        "a": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 32, "batch_size": 1, "color": 255}},
        "b": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 64, "batch_size": 1, "color": 0}},
        "ask": {
            "class_type": "DuoGenPrompt",
            "inputs": {"text": "<image1> or <image2>?", "images.image1": ["a", 0], "images.image2": ["b", 0]},
        },
    }
    for which in ("last", "all", "none"):
        settings = {"context": ["ask", 0], "format": "Qwen chat", "which": which, "captions": False}
        graph[which] = {"class_type": "DuoGenAskWriter", "inputs": settings}
        graph[f"{which} text"] = {"class_type": "PreviewAny", "inputs": {"source": [which, 1]}}
        graph[f"{which} shown"] = {"class_type": "PreviewAny", "inputs": {"source": [which, 2]}}
        if which != "none":
            graph[f"{which} seen"] = {"class_type": "PreviewImage", "inputs": {"images": [which, 2]}}
    result = server.run(graph)
    assert result.error is None, result.error
    counts = [result.outputs[f"{which} text"]["text"][0].count(VISION) for which in ("last", "all", "none")]
    assert counts == [1, 2, 0] and result.outputs["none shown"]["text"] == ["None"]
    assert len(result.outputs["last seen"]["images"]) == 1 and len(result.outputs["all seen"]["images"]) == 2


@pytest.mark.slow
def test_a_reader_without_its_asker_is_refused_in_a_loop(server: Server, small_models: None):
    graph, ids = graph_of(server)
    graph[ids["DuoGenReadWriter"]]["inputs"]["context"] = [ids["DuoGenPrompt"], 0]
    error = server.run(graph).error
    assert error is not None and error["node_type"] == "DuoGenLoopClose"
    assert "must come straight from DuoGen Any Writer Prompt" in error["exception_message"]
