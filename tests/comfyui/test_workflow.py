"""The whole loop over HTTP: the answer of ComfyUI is the answer of the command line (invariant 4 of design.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
import random_checkpoint
from answers import assert_same_answer, command_line, saved_document
from PIL import Image
from server import PACK, Server
from ui_to_api import convert

pytestmark = pytest.mark.every_comfyui

LIMIT = 3  # pictures: as telling as the whole answer, for half the time


@pytest.mark.slow
def test_answer_equals_the_command_line(server: Server, checkpoint: Path, tmp_path: Path):
    result = server.run(graphs.answer(checkpoint.name, prefix=f"cli/{checkpoint.name}", max_images=LIMIT))
    ours = saved_document(server, result)
    assert ours.pictures, "the answer has no picture, so nothing was compared"
    assert_same_answer(ours, command_line(tmp_path / "answer", checkpoint, "--max-images", str(LIMIT)))


def bring_pictures(server: Server, graph: dict[str, Any]) -> list[str]:
    """Two pictures of unlike, odd sizes into the graph's prompt; returns the same for the command line."""
    noise = np.random.default_rng(1)
    options = []
    for index, (width, height) in enumerate(((96, 64), (150, 71))):
        pixels = noise.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        name = f"user{index}.png"
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        image.save(server.base / "input" / name)
        options += ["--image", str(server.base / "input" / name)]
        graph[f"9{index}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        graph["2"]["inputs"][f"images.image{index + 1}"] = [f"9{index}", 0]
    return options


@pytest.mark.slow
def test_with_pictures_of_the_user(server: Server, random_model: Path, tmp_path: Path):
    """Two of unlike, odd sizes; one of them has to be fitted to the grid of the DiT."""
    graph = graphs.answer(random_model.name, "Remove the star.", prefix="cli/pictures", max_images=2)
    options = bring_pictures(server, graph)
    ours = saved_document(server, server.run(graph))
    assert [picture.size for picture in ours.pictures[:2]] == [(96, 64), (150, 71)]
    theirs = command_line(tmp_path / "answer", random_model, "--max-images", "2", *options, prompt="Remove the star.")
    assert_same_answer(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["frame_causal", "full"])
def test_edits_without_a_word_are_guided(server: Server, tmp_path: Path, attention: str):
    """The assistant writes nothing: the negative side hides the request, which stands before the earlier pictures."""
    model = random_checkpoint.write(tmp_path / f"wordless-{attention}", attention=attention, words=False)
    (server.base / "models" / "duogen" / model.name).symlink_to(model, target_is_directory=True)
    drawn = {}
    for cfg in (1.0, 7.0):
        how = {"prefix": f"cli/{model.name}-{cfg:g}", "max_images": 2, "cfg": cfg}
        graph = graphs.answer(model.name, "Remove the star.", **how)
        options = [*bring_pictures(server, graph), "--max-images", "2", "--guidance", f"{cfg:g}"]
        drawn[cfg] = saved_document(server, server.run(graph))
        theirs = command_line(tmp_path / f"answer{cfg:g}", model, *options, prompt="Remove the star.")
        assert_same_answer(drawn[cfg], theirs)
        assert drawn[cfg].last_turn.text == "" and len(drawn[cfg].last_turn.pictures) == 2
    for plain, guided in zip(*(document.last_turn.pictures for document in drawn.values()), strict=True):
        assert np.abs(plain.pixels.astype(int) - guided.pixels.astype(int)).mean() > 1.0, "guidance did nothing"


@pytest.mark.slow
def test_streams_and_previews(server: Server, random_model: Path):
    # A request of its own: a text that another test had written would come from the cache, in one piece.
    graph = graphs.answer(random_model.name, "What is live?", prefix="live", seed=11, max_images=2)
    result = server.run(graph)
    answer = result.outputs["4"]["text"][0]
    assert any("Image 2 of at most 2, step 1 of" in text for text in result.texts)
    assert "First a wall.\n\n[image 1]\n\n Now the roof\n\n[image 2]" in result.texts[-1], "the whole answer at the end"
    beginnings = [text for text in result.texts if text and "First a wall.".startswith(text)]
    assert beginnings and beginnings[0] != "First a wall.", "the text came in one piece"
    assert result.previews >= 2 * 2, "of the first and of the last step of 2 pictures"
    assert "images/001.png" in answer and "First a wall." in answer
    assert len(result.outputs["6"]["images"]) == 2
    # Nothing changed: nothing runs again but what has to be written anew.
    again = server.run(graph)
    assert {"1", "2", "3"} <= set(again.cached)


@pytest.mark.slow
def test_steps_do_not_flood_the_page(server: Server, random_model: Path):
    """150 steps of some milliseconds: ten messages a second at most, and each picture's first and last step."""
    graph = graphs.answer(random_model.name, "What is a flood?", prefix="flood", seed=12, steps=150, max_images=2)
    result = server.run(graph)
    told = [text for text in result.texts if ", step " in text]
    times = {
        kind: data["timestamp"]
        for kind, data in server.get(f"/history/{result.prompt_id}")[result.prompt_id]["status"]["messages"]
    }
    seconds = (times["execution_success"] - times["execution_start"]) / 1000
    assert len(told) == result.previews <= 10 * seconds + 2 * 2
    assert result.steps == 2 * 150, "first and last are told"


@pytest.mark.slow
def test_answer_without_pictures(server: Server, random_model: Path):
    """What hangs on the list of pictures is skipped; the rest of the graph runs."""
    result = server.run(graphs.answer(random_model.name, prefix="bare", max_images=0))
    document = saved_document(server, result)
    assert not document.pictures
    assert document.generation["stop_reason"] == "max_images"
    assert "6" not in result.outputs
    assert result.outputs["4"]["text"][0].startswith("First a wall.")


@pytest.mark.slow
def test_saved_folder(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name, prefix="kept/%year%/answer", seed=3, max_images=1)
    result = server.run(graph, extra={"extra_pnginfo": {"workflow": {"nodes": [], "note": "Grüße"}}})
    folder = server.base / "output" / result.outputs["5"]["document"][0]["folder"]
    assert {"document.json", "document.html", "document.md", "images"} <= {entry.name for entry in folder.iterdir()}
    with Image.open(folder / "images" / "000.png") as image:
        image.load()
        assert json.loads(image.text["workflow"])["note"] == "Grüße"
        assert json.loads(image.text["prompt"])["3"]["class_type"] == "DuoGenInterleave"
        assert image.text["seed"] == "3"
    shown = result.outputs["5"]["images"][0]
    assert server.get_bytes("/view", **shown)[:8] == b"\x89PNG\r\n\x1a\n"
    assert "First a wall." in (folder / "document.html").read_text("utf-8")


def bundled_workflow(server: Server) -> dict[str, Any]:
    workflow = json.loads((PACK / "workflows" / "01 Illustrated guide.json").read_text("utf-8"))
    return convert(workflow, server.get("/object_info"))


def test_workflow_file_is_sound(server: Server):
    """Every node exists, every link joins two sockets that are there, every input of the server's is covered."""
    workflow = json.loads((PACK / "workflows" / "01 Illustrated guide.json").read_text("utf-8"))
    info = server.get("/object_info")
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, slot, target, entry, type_ in workflow["links"]:
        output, input_ = nodes[source]["outputs"][slot], nodes[target]["inputs"][entry]
        assert number in output["links"] and input_["link"] == number
        assert output["type"] == type_ and input_["type"] in (type_, "*")
        assert info[nodes[source]["type"]]["output"][slot] == type_
    graph = convert(workflow, info)
    for node in graph.values():
        required = info[node["class_type"]]["input"].get("required", {})
        assert set(required) <= set(node["inputs"]), node
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    assert workflow["last_node_id"] == max(nodes)


@pytest.mark.slow
def test_workflow_runs(server: Server, checkpoint: Path, tmp_path: Path):
    """The template as it is shipped; with random weights where there are no others."""
    graph = bundled_workflow(server)
    assert graph["1"]["inputs"]["checkpoint"] == "duogen-tiny"
    graph["1"]["inputs"]["checkpoint"] = checkpoint.name
    if checkpoint.name == "random":
        graph["3"]["inputs"]["max_images"] = LIMIT
    result = server.run(graph)
    ours = saved_document(server, result)
    assert len(ours.pictures) >= 3
    assert result.outputs["5"]["text"][0], "the Markdown, for who asks over HTTP"
    assert len(result.outputs["5"]["images"]) == len(ours.pictures)
    if checkpoint.name != "random":
        assert_same_answer(ours, command_line(tmp_path / "answer", checkpoint))
