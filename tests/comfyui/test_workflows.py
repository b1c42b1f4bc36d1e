"""The workflows that come with the pack: sound as files, pleasant to open, and each executed as it is shipped.

They run with random weights, which write fixed words and ask for a picture after each piece; only where the answer's
words matter, with the bundled model. The numbers from 11 on, and 07, have test files of their own; 01 is also run by
test_workflow.py.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import graphs
import numpy as np
import pytest
from answers import assert_same_turns, saved_document
from PIL import Image
from server import LINK, PACK, Result, Server
from ui_to_api import complaints, convert
from workflow_files import node_of

from duogen_core import picture_sampling
from duogen_core.document import Document, Picture
from duogen_core.document.reading import load_document
from duogen_core.sketchbook.checker import read_scene

pytestmark = pytest.mark.every_comfyui

WORKFLOWS = PACK / "workflows"
NAMES = [
    *("01 Illustrated guide", "02 Edit chain", "03 Storyboard", "04 Visual plan", "05 Draft then answer"),
    *("06 Continue a document", "07 Your own plan", "08 Own nodes in the loop", "09 Draw in outlines"),
    "10 Every stage a node",
    *("11 Any painter", "12 FLUX.2 paints", "13 Qwen-Image-Edit paints", "14 OmniGen2 paints"),
    *("15 A server plans, FLUX.2 paints", "16 Qwen3-VL plans and reviews", "17 Story with a cast sheet"),
    *("18 Any writer", "19 Qwen2.5-VL and Cosmos"),
    *("01 Illustrated guide.app", "02 Edit chain.app", "03 Storyboard.app", "11 Any painter.app"),
]
OTHER_CHECKPOINTS = ("19 Qwen2.5-VL and Cosmos", "16 Qwen3-VL plans and reviews")  # they name files of the user's
FILES = ("ckpt_name", "unet_name", "clip_name", "vae_name")
TITLE = 30  # a node's title stands above its position


def read(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def info(server: Server) -> dict[str, Any]:
    example = server.base / "input" / "example.png"  # every new ComfyUI has one, the tests' bare folder does not
    if not example.exists():
        Image.new("RGB", (96, 64), (240, 230, 210)).save(example)
    return server.get("/object_info")


def loaded(name: str, info: dict[str, Any], checkpoint: str = "random") -> tuple[dict[str, Any], dict[str, str]]:
    """The graph to run, with this checkpoint, and its node ids by class (by title where there is one)."""
    workflow = read(name)
    graph = convert(workflow, info)
    for node in graph.values():
        if "checkpoint" in node["inputs"]:
            assert node["inputs"]["checkpoint"] == "duogen-tiny", "the one that every user has"
            node["inputs"]["checkpoint"] = checkpoint
    return graph, {node.get("title") or node["type"]: str(node["id"]) for node in workflow["nodes"]}


def saved(server: Server, result: Result, ids: dict[str, str]) -> Document:
    return saved_document(server, result, ids["DuoGenSaveDocument"])


def example(name: str) -> Document:
    return load_document(WORKFLOWS / "examples" / name)


def roles(document: Document) -> list[str]:
    return [turn.role for turn in document.turns]


# ------------------------------------------------------------ the files


def test_every_workflow_is_offered_as_a_template(server: Server):
    assert {file.stem for file in WORKFLOWS.glob("*.json")} == set(NAMES)
    assert set(server.get("/workflow_templates")[LINK]) == set(NAMES)
    for name in NAMES:
        address = f"/api/workflow_templates/{LINK}/{quote(name)}"
        assert server.get(f"{address}.json") == read(name)
        picture = server.get_bytes(f"{address}.jpg")
        assert picture[:3] == b"\xff\xd8\xff", "no thumbnail"


def test_examples_are_listed_after_the_users_own(server: Server):
    mine = server.base / "output" / "zz mine"
    shutil.copytree(WORKFLOWS / "examples" / "board", mine)
    type_, options = server.get("/object_info/DuoGenLoadDocument")["DuoGenLoadDocument"]["input"]["required"][
        "document"
    ]
    listed = type_ if isinstance(type_, list) else options["options"]
    examples = sorted(f"{folder.name} [example]" for folder in (WORKFLOWS / "examples").iterdir())
    assert len(examples) == 4 and listed[-4:] == examples
    assert listed.index("zz mine [output]") < listed.index(examples[0])
    shutil.rmtree(mine)


@pytest.mark.parametrize("name", NAMES)
def test_file_fits_the_server(name: str, info: dict[str, Any]):
    """No missing node, no loose link, every widget a value that it takes."""
    lists = ("checkpoint",) if name in OTHER_CHECKPOINTS else ()
    assert complaints(read(name), info, ignored=FILES + lists) == []


@pytest.mark.parametrize("name", NAMES)
def test_file_is_laid_out(name: str, info: dict[str, Any]):
    """Nodes do not overlap, each lies in one titled group, and a note says what is shown."""
    workflow = read(name)
    boxes = {}
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        if node["type"].startswith("DuoGen"):  # at least what the canvas makes it, which has gained widgets since
            new = node_of(info[node["type"]], 0, {})
            sockets = sum("widget" not in entry for entry in new["inputs"])
            rows = max(sockets, len(new["outputs"]))
            height = max(height, 20 * rows + 24 * len(new["widgets_values"]) + 14)
        boxes[node["id"]] = (x, y - TITLE, x + width, y + height)
    for one, a in boxes.items():
        for other, b in boxes.items():
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert one >= other or apart, f"nodes {one} and {other} overlap"
    groups = [group["bounding"] for group in workflow["groups"]]
    assert all(group["title"] for group in workflow["groups"])
    for node in workflow["nodes"]:
        a = boxes[node["id"]]
        around = [1 for x, y, w, h in groups if x <= a[0] and y <= a[1] and a[2] <= x + w and a[3] <= y + h]
        assert len(around) == (node["type"] != "MarkdownNote"), f"{node['type']} {node['id']}"
    notes = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert notes and notes[0].startswith("## ")
    assert any(node["type"] == "DuoGenPreview" for node in workflow["nodes"])


def test_the_checker_complains(info: dict[str, Any]):
    """What test_file_fits_the_server would say of a workflow that does not fit."""
    workflow = read("03 Storyboard")
    nodes = {node["type"]: node for node in workflow["nodes"]}
    nodes["ImageScaleBy"]["widgets_values"] = ["smooth", 4.0]
    nodes["ImageGrid"]["widgets_values"][0] = 0
    nodes["SaveImage"]["widgets_values"] = []
    nodes["DuoGenFormat"]["inputs"][0]["link"] = None
    found = "\n".join(complaints(workflow, info))
    for words in ("'smooth' is not one of", "columns: 0 is not", "nothing for filename_prefix", "nothing for context"):
        assert words in found
    nodes["SaveImage"]["type"] = "SavePicture"
    assert complaints(workflow, info) == ["no node SavePicture"]


# ------------------------------------------------------------ the runs


@pytest.mark.slow
def test_illustrated_guide_shows_its_answer(server: Server, info: dict[str, Any]):
    graph, ids = loaded("01 Illustrated guide", info)
    graph[ids["DuoGenInterleave"]]["inputs"]["max_images"] = 2
    result = server.run(graph)
    (shown,) = result.outputs[ids["The answer"]]["duogen_document"]
    assert [part["type"] for part in shown["turns"][0]["parts"][:4]] == ["text", "image", "text", "image"]
    assert shown["generation"] == dict(saved(server, result, ids).generation)


@pytest.mark.slow
def test_staged_graph(server: Server, info: dict[str, Any]):
    """The stages one by one give what DuoGen Interleave gives, and a new seed for picture 2 leaves picture 1."""
    graph, ids = loaded("10 Every stage a node", info)
    first = server.run(graph)
    ours = saved(server, first, ids)
    assert len(ours.pictures) == 2 and first.outputs[ids["Is another image due?"]]["text"] == ["True"]
    one_node = graphs.answer("random", graph[ids["DuoGenPrompt"]]["inputs"]["text"], prefix="flows/one", max_images=2)
    assert_same_turns(ours, saved_document(server, server.run(one_node)))

    server.run(graph)  # the classic cache holds the last prompt only
    graph[ids["Seed of image 2"]]["inputs"]["value"] = 99
    again = server.run(graph)
    kept = {ids[name] for name in ("KSampler draws image 1", "Image 1 joins the context", "Write up to image 2")}
    assert kept <= set(again.cached) and ids["KSampler draws image 2"] in again.ran
    redone = saved(server, again, ids)
    assert redone.pictures[0] == ours.pictures[0] and redone.pictures[1] != ours.pictures[1]
    assert redone.pictures[1].meta["seed"] == 99


@pytest.mark.slow
def test_storyboard_upscaled(server: Server, info: dict[str, Any]):
    graph, ids = loaded("03 Storyboard", info)
    graph[ids["DuoGenInterleave"]]["inputs"]["max_images"] = 3
    result = server.run(graph)
    (shown,) = result.outputs[ids["The story as it was drawn"]]["duogen_document"]
    drawn = [part for part in shown["turns"][0]["parts"] if part["type"] == "image"]
    assert [(part["width"], part["height"]) for part in drawn] == [(160, 96)] * 3
    frames, sheet = (pictures(server, result, ids[name]) for name in ("The frames", "The sheet"))
    assert [frame.size for frame in frames] == [(640, 384)] * 3
    assert [image.size for image in sheet] == [(2 * 640 + 12, 2 * 384 + 12)]
    for frame, part in zip(frames, drawn, strict=True):
        with Image.open(server.base / "temp" / part["subfolder"] / part["filename"]) as image:
            small = np.asarray(image.convert("RGB"), float)
        again = np.asarray(frame.resize((160, 96), Image.Resampling.BOX), float)
        assert np.abs(small - again).mean() < 8, "not the picture it was made from"
    corner = np.asarray(sheet[0].crop((0, 0, 640, 384)), float)
    assert np.abs(corner - np.asarray(frames[0], float)).mean() < 1, "the sheet begins with the first frame"


def pictures(server: Server, result: Result, node: str) -> list[Image.Image]:
    """What SaveImage saved."""
    assert result.error is None, result.error
    files = [
        server.base / view["type"] / view["subfolder"] / view["filename"] for view in result.outputs[node]["images"]
    ]
    return [Image.open(file).convert("RGB") for file in files]


@pytest.mark.slow
def test_edit_chain(server: Server, info: dict[str, Any]):
    """Three turns of one conversation, each with its picture, of the size of the user's picture."""
    graph, ids = loaded("02 Edit chain", info)
    document = saved(server, server.run(graph), ids)
    assert roles(document) == ["user", "assistant"] * 3
    requests = [turn.text for turn in document.turns if turn.role == "user"]
    assert requests == [graph[ids[f"Edit {k}"]]["inputs"]["text"] for k in (1, 2, 3)]
    assert document.pictures[0] == example("shapes").pictures[0]
    assert [len(turn.pictures) for turn in document.turns] == [1, 1, 0, 1, 0, 1]
    assert {picture.size for picture in document.pictures} == {(128, 128)}

    own = np.random.default_rng(5).integers(0, 256, (64, 160, 3), dtype=np.uint8)
    Image.fromarray(own).save(server.base / "input" / "my own.png")
    graph[ids["Or your own image"]]["inputs"]["image"] = "my own.png"
    graph[ids["Edit 1"]]["inputs"]["images.image1"] = [ids["Or your own image"], 0]
    document = saved(server, server.run(graph), ids)
    assert np.array_equal(document.pictures[0].pixels, own)
    assert {picture.size for picture in document.pictures} == {(160, 64)}


@pytest.mark.slow
def test_visual_plan(server: Server, info: dict[str, Any]):
    graph, ids = loaded("04 Visual plan", info)
    graph[ids["DuoGenInterleave"]]["inputs"]["max_images"] = 2
    result = server.run(graph)
    document = saved(server, result, ids)
    assert document.pictures[0] == example("board").pictures[0]
    assert document.turns[0].text == graph[ids["DuoGenPrompt"]]["inputs"]["text"]
    assert [picture.size for picture in document.turns[1].pictures] == [(128, 128)] * 2
    (shown,) = result.outputs[ids["The answer"]]["duogen_document"]
    assert [turn["role"] for turn in shown["turns"]] == ["user", "assistant"]
    assert sum(part["type"] == "image" for turn in shown["turns"] for part in turn["parts"]) == 3


@pytest.mark.slow
def test_draft_then_answer(server: Server, info: dict[str, Any], checkpoint: Path):
    """The number that comes out of the stock node is the one in the answer's text, after a picture of the draft."""
    graph, ids = loaded("05 Draft then answer", info, checkpoint.name)
    graph[ids["DuoGenInterleave"]]["inputs"]["max_images"] = 2
    if checkpoint.name == "random":
        graph[ids["The number"]]["inputs"]["regex_pattern"] = r"(wall)"
    result = server.run(graph)
    document = saved(server, result, ids)
    assert document.pictures[0] == example("count").pictures[0]
    number = result.outputs[ids["The answer as a number"]]["text"][0]
    if checkpoint.name == "random":
        assert number == "wall"
        return
    draft, *rest = [part for part in document.turns[1].parts if isinstance(part, Picture)]
    assert draft.size == (128, 128) and not rest
    assert number.isdigit() and document.text.rstrip().endswith(f"Answer: {number}.")


@pytest.mark.slow
def test_continue_saved_document(server: Server, info: dict[str, Any]):
    """The example goes on by a turn; so does, after it, the conversation that this saved."""
    graph, ids = loaded("06 Continue a document", info)
    graph[ids["DuoGenInterleave"]]["inputs"]["max_images"] = 1
    result = server.run(graph)
    document = saved(server, result, ids)
    before = example("conversation")
    assert document.turns[:2] == before.turns and roles(document) == ["user", "assistant"] * 2
    assert document.turns[2].text == graph[ids["The next request"]]["inputs"]["text"]
    for title, turns in (("As it was saved", 2), ("And how it goes on", 4)):
        assert len(result.outputs[ids[title]]["duogen_document"][0]["turns"]) == turns

    folder = result.outputs[ids["DuoGenSaveDocument"]]["document"][0]["folder"]
    graph[ids["A saved conversation"]]["inputs"]["document"] = f"{folder} [output]"
    result = server.run(graph)
    longer = saved(server, result, ids)
    assert longer.turns[:4] == document.turns and len(longer.turns) == 6
    assert load_document(server.base / "output" / folder).turns == document.turns, "the old one stays as it was"


@pytest.mark.slow
def test_own_nodes_in_loop(server: Server, info: dict[str, Any]):
    """Every picture of the answer has been through the user's node, and is shown as it is made."""
    graph, ids = loaded("08 Own nodes in the loop", info)
    graph[ids["DuoGenLoopClose"]]["inputs"]["max_images"] = 3
    result = server.run(graph)
    document = saved(server, result, ids)
    assert len(document.pictures) == 3
    for picture in document.pictures:
        assert len(np.unique(picture.pixels.reshape(-1, 3), axis=0)) <= 24
    shown = [node for node in result.outputs if node.split(".")[-1] == ids["Each image, as it is made"]]
    assert len(shown) == 3
    assert document.pictures[2].meta["seed"] == picture_sampling.picture_seed(7, 2)


@pytest.mark.slow
def test_draw_in_outlines(server: Server, info: dict[str, Any]):
    """What the request asks for, where and how large the example has it; with the one ControlNet that there is."""
    graph, ids = loaded("09 Draw in outlines", info, "duogen-tiny")
    document = saved(server, server.run(graph), ids)
    given = read_scene(example("shapes").pictures[0].pixels)
    colours = {"star": "yellow", "square": "green"}
    wanted = replace(given, shapes=tuple(replace(s, colour=colours[s.kind]) for s in given.shapes))
    assert [roles(document), len(document.pictures)] == [["user", "assistant"], 1]
    assert read_scene(document.pictures[0].pixels) == wanted
