"""The templates that plan first: 07, 14, 15 and 16.

They run as they are shipped, with small random models of the core's own classes (small_models.py), a small Qwen3-VL of
ours, and a scripted server in the place of Ollama. The bundled model draws the thumbnail of 07.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import saved_document
from server import Server
from test_planning import PLAN, SHOWS, TEXTS, rounds, whole
from test_workflow_edit_painters import CLASSES, SIDE, SMALL, workflow
from ui_to_api import convert

from duogen_core.document import Document
from duogen_core.planning.as_document import plan_of
from duogen_core.planning.markdown import plan_from_markdown
from tests.core.endpoint_server import endpoint_server

LOOK = "The images that the plan looks at"


def loaded(server: Server, name: str, small: dict[str, str], **more: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The shipped graph with small models, small images and few steps; its node ids by title or class."""
    graph = convert(workflow(name), server.get("/object_info"))
    ids = {node.get("title") or node["type"]: str(node["id"]) for node in workflow(name)["nodes"]}
    values = {"checkpoint": "random", "steps": 2, **{key: f"{file}.safetensors" for key, file in small.items()}, **more}
    for node in graph.values():
        fixed = node["class_type"] == "DuoGenPictureSize"
        sizes = {"width": SIDE, "height": SIDE} if fixed else {}
        inputs = node["inputs"]
        inputs |= {key: value for key, value in (values | sizes).items() if key in inputs and inputs[key] is not None}
    graph["reads"] = {"class_type": "PreviewAny", "inputs": {"source": [ids.get("DuoGenLoopOpen", "2"), 2]}}
    if "DuoGenLoopOpen" not in ids:
        del graph["reads"]
    return graph, ids


def run(server: Server, graph: dict[str, Any], ids: dict[str, str]) -> tuple[Document, Any]:
    result = server.run(graph)
    return saved_document(server, result, ids["DuoGenSaveDocument"]), result


def differ(one: Document, other: Document) -> list[bool]:
    return [not np.array_equal(a.pixels, b.pixels) for a, b in zip(one.pictures, other.pictures, strict=True)]


@pytest.mark.slow
def test_planned_guide(server: Server):
    graph, ids = loaded(server, "07 Your own plan", {})
    document, result = run(server, graph, ids)
    plan = plan_from_markdown(graph[ids["The plan"]]["inputs"]["markdown"])
    assert len(document.pictures) == 4 == len(plan.pictures)
    assert document.turns[-1].text == "".join(part.text for part in plan.parts)
    assert document.pictures[1].meta["text"] == plan.parts[1].text, "what DuoGen's own model draws"
    (shown,) = result.outputs[ids["The answer"]]["duogen_document"]
    assert sum(part["type"] == "image" for part in shown["turns"][0]["parts"]) == 4

    # One word of the third step: the images before it stay.
    inputs = graph[ids["The plan"]]["inputs"]
    inputs["markdown"] = inputs["markdown"].replace("Add a red door", "Add a green door")
    again, second = run(server, graph, ids)
    assert differ(document, again) == [False, False, True, True]
    drew = [node for node in second.ran if node.endswith(".sample")]
    assert len(drew) == 2, "drawn anew although nothing before it changed"


@pytest.mark.slow
def test_endpoint_flux2(server: Server, small_models: None):
    with endpoint_server(whole()) as writer:
        graph, ids = loaded(server, "15 A server plans, FLUX.2 paints", SMALL["12 FLUX.2 paints"], address=writer.url)
        first, result = run(server, graph, ids)
        assert first.turns[-1].text == "".join(TEXTS)
        read = rounds(result, "reads")
        assert [shows in text for shows, text in zip(SHOWS, read, strict=True)] == [True] * 3
        assert all(text.endswith("Simple flat vector illustration, plain background.") for text in read)
        assert all(picture.size == (SIDE, SIDE) and picture.pixels.std() > 1 for picture in first.pictures)
        assert CLASSES["12 FLUX.2 paints"] <= set(server.memory()["loaded"])
        assert "DuoGenMllm" not in server.memory()["loaded"], "a language model that nobody needs"
        graph[ids[LOOK]]["inputs"]["which"] = "none"
        alone, _ = run(server, graph, ids)
        assert differ(first, alone) == [False, True, True], "the earlier images did not reach the painter"
        assert len(writer.asked) == 1, "the plan is asked for once"


@pytest.mark.slow
def test_story_cast_sheet(server: Server, small_models: None):
    """Every image but the second's own past looks at the sheet: another sheet changes all of them."""
    graph, ids = loaded(server, "17 Story with a cast sheet", SMALL["12 FLUX.2 paints"])
    story = graph[ids["The story"]]["inputs"]["markdown"]
    plan = plan_from_markdown(story)
    assert [[one.picture for one in picture.looks_at or ()] for picture in plan.pictures] == [
        [], [1], [1, 2], [1], [1, 4],
    ]  # fmt: skip
    graph[ids["The story"]]["inputs"]["markdown"] = story.replace("1280x768", "160x96")
    first, result = run(server, graph, ids)
    assert [picture.size for picture in first.pictures] == [(160, 96), *[(SIDE, SIDE)] * 4]
    read = rounds(result, "reads")
    assert "a small red fox" in read[0] and "Keep Fox as in image 1" in read[1], "looks are told once, then shown"
    assert all("watercolour" in text for text in read)
    assert plan_of(first).cast == plan.cast
    graph[ids["DuoGenLoopOpen"]]["inputs"]["seed"] = 8
    other, _ = run(server, graph, ids)
    assert differ(first, other) == [True] * 5


def checkpoint_named(server: Server, name: str) -> str:
    kind, *options = server.get("/object_info/DuoGenLoadMLLM")["DuoGenLoadMLLM"]["input"]["required"]["checkpoint"]
    choices = kind if isinstance(kind, list) else options[0]["options"]
    return next(choice for choice in choices if Path(choice.replace("\\", "/")).name.startswith(name))


@pytest.mark.slow
def test_qwen3vl_qwen_image_edit(server: Server, small_models: None, small_qwen3: str):
    """A random Qwen3-VL writes nonsense, but a whole plan: it can write nothing else."""
    small = SMALL["13 Qwen-Image-Edit paints"]
    name = checkpoint_named(server, small_qwen3)
    graph, ids = loaded(server, "16 Qwen3-VL plans and reviews", small, checkpoint=name)
    graph[ids["DuoGenPrompt"]]["inputs"]["text"] = "How do I draw a circle? Show 3 steps."
    graph[ids["DuoGenPlanAnswer"]]["inputs"] |= {"temperature": 1.0, "seed": 2}
    graph[ids["The critic"]]["inputs"]["redraws"] = 1
    first, result = run(server, graph, ids)
    plan = plan_of(first)
    assert 2 <= len(plan.parts) == len(first.pictures) <= 3 and plan.cast
    assert json.dumps(plan.to_json())  # half a character pair would not do
    read = rounds(result, "reads")
    assert all(" ".join(one.shows.split()) in text for one, text in zip(plan.pictures, read, strict=True))
    assert all(len(picture.meta["tries"]) in (1, 2) for picture in first.pictures), "nobody reviewed it"
    assert any(text.startswith("Planning part 2\n") for text in result.texts), "its parts are shown as they come"
    assert CLASSES["13 Qwen-Image-Edit paints"] | {"DuoGenMllm"} <= set(server.memory()["loaded"])
    graph[ids[LOOK]]["inputs"]["which"] = "none"
    alone, _ = run(server, graph, ids)
    assert differ(first, alone)[1:] == [True] * (len(plan.parts) - 1), "the earlier images did not reach the painter"

    # The same handle still writes as it goes: planning left nothing behind in it.
    graph[ids["DuoGenLoopOpen"]]["inputs"] |= {"context": [ids["DuoGenPrompt"], 0], "mllm": [ids["The planner"], 0]}
    assert server.run(graph).error is None


@pytest.mark.slow
def test_a_cancel_while_our_own_model_plans(server: Server, random_model: Path):
    """Within a token: the run ends while the second part is being written."""
    plan = {"style": "", "painter": "edit", "width": 0, "height": 0, "seed": 3, "temperature": 1.0}
    graph = {
        "1": {"class_type": "DuoGenLoadCheckpoint", "inputs": {"checkpoint": random_model.name}},
        "2": {"class_type": "DuoGenPrompt", "inputs": {"text": "How do I draw a circle? Show 9 steps."}},
        "3": {"class_type": "DuoGenPlanAnswer", "inputs": {"mllm": ["1", 0], "context": ["2", 0], **plan}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
    }
    stopped: list[str] = []

    def watch(kind: str, data: Any, result: Any) -> None:
        if kind == "text" and data.startswith("Planning part 2") and not stopped:
            stopped.append(data)
            server.post("/interrupt", {})

    result = server.run(graph, watch=watch)
    assert result.interrupted and stopped
    assert result.texts[-1].startswith("Cancelled. Planned so far:\n\n1. ")
    assert PLAN["title"] not in result.texts[-1] and "\n\n9. " not in result.texts[-1]
