"""Our ControlNet behind ComfyUI's Apply ControlNet: the core's images, strength, steps, chains, refusals; per image in
the loop; and shapes drawn exactly in their outlines by the bundled one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
from answers import saved_document
from conftest import BUNDLED
from PIL import Image
from server import Server
from test_stock_nodes import node

from duogen_core.outlines import outlines
from duogen_core.sketchbook.checker import read
from duogen_core.sketchbook.controlled import outlined_case


@pytest.fixture(scope="module")
def found(comfyui: Path) -> dict[str, Any]:
    """What probe_controlnet.py saw; ComfyUI needs a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("probe_controlnet.py")), str(comfyui)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_images_are_the_cores_at_any_strength_and_in_any_batch(found: dict[str, Any]):
    assert max(*found["as the core"], found["a batch of two"], found["one branch after the other"]) <= 1e-4
    assert found["changes"] > 0.1


def test_an_untrained_one_strength_0_and_no_steps_change_nothing_bit_for_bit(found: dict[str, Any]):
    assert found["a new one"] and found["strength 0"] and found["in no step"] and found["without it again"]


def test_start_and_end_percent_are_obeyed(found: dict[str, Any]):
    assert min(found["late, early"]) > 0.01


def test_several_in_a_row_add_up(found: dict[str, Any]):
    assert found["two halves"] <= 1e-4 and found["a new one behind it"] <= 1e-4


def test_a_text_that_changes_from_step_to_step_is_read_anew_and_one_that_stays_is_not(found: dict[str, Any]):
    assert found["text changes"] == 0 and found["prepared when the text stays"] == 1


def test_memory_is_comfyuis(found: dict[str, Any]):
    assert found["models"] == ["DuoGenControlNet"] * 2 and found["held after a run"] == 0


def test_what_cannot_apply_is_refused_in_a_sentence(found: dict[str, Any]):
    for case in ("foreign", "foreign behind ours"):
        assert found[case].startswith("A ControlNet in front of this MODEL (ControlNet) was made for another model's")
    assert found["foreign model"].startswith("This ControlNet is DuoGen's and works with a DuoGen MODEL alone")
    assert "connect the VAE of the checkpoint to the vae input of Apply ControlNet" in found["no vae"]
    assert "it has channels 72, the model 48" in found["of another checkpoint"]


# ------------------------------------------------------------ in a running ComfyUI


def upload(server: Server, name: str, pixels: np.ndarray) -> str:
    file = server.base / "input" / name
    file.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    file.write_bytes(buffer.getvalue())
    return name


def apply(graph: dict[str, Any], image: list, controlnet: str) -> None:
    """Puts Apply ControlNet between the references and the KSampler of the image p."""
    graph["net"] = node("DuoGenLoadControlNet", controlnet=controlnet)
    graph["apply"] = node(
        "ControlNetApplyAdvanced", positive=["p.refer", 0], negative=["p.refer", 1], control_net=["net", 0],
        image=image, strength=1.0, start_percent=0.0, end_percent=1.0, vae=["1", 3],
    )  # fmt: skip
    graph["p.sample"]["inputs"] |= {"positive": ["apply", 0], "negative": ["apply", 1]}


needs_bundled = pytest.mark.skipif(
    not (BUNDLED / "controlnet" / "config.json").is_file(), reason="The bundled model has no ControlNet here."
)


@needs_bundled
def test_shapes_are_drawn_exactly_in_their_outlines(server: Server):
    """A few cases of tests/bench/outlines.py, which has the figure of 50."""
    right = 0
    for number in range(4):
        case, scene, lines = outlined_case(0, number)
        name = upload(server, f"outlines-{number}.png", lines)
        graph = graphs.first_picture("duogen-tiny", case.prompt.last_turn.text, steps=16)
        graph["lines"] = node("LoadImage", image=name)
        apply(graph, ["lines", 0], "duogen-tiny")
        graph["kept"] = node("SaveImage", images=["p.decode", 0], filename_prefix="controlnet/case")
        result = server.run(graph)
        assert result.error is None, result.error
        (file,) = result.outputs["kept"]["images"]
        pixels = np.asarray(Image.open(server.base / "output" / file["subfolder"] / file["filename"]).convert("RGB"))
        right += read(pixels).shows(scene)
    assert right >= 3, f"{right} of 4"


@needs_bundled
def test_in_the_loop_each_image_has_outlines_of_its_own(server: Server):
    """A boat whose sail stands to the right, and again in the outlines of its images turned left for right: Loop Open
    gives the number of the image, which chooses one of a batch. The sail comes with the third image alone."""
    request, prefix = "How do I draw a boat with a red sail?", "controlnet/loop"
    graph = graphs.loop("duogen-tiny", request, prefix=prefix, max_images=3)
    graph["p.sample"]["inputs"]["steps"] = 16
    plain = saved_document(server, server.run(graph)).pictures
    turned = [np.ascontiguousarray(picture.pixels[:, ::-1]) for picture in plain]
    last = None
    for k, pixels in enumerate(turned):
        graph[f"lines{k}"] = node("LoadImage", image=upload(server, f"loop-{k}.png", outlines(pixels)))
        link = [f"lines{k}", 0]
        if last is not None:
            graph[f"batch{k}"] = node("ImageBatch", image1=last, image2=link)
            link = [f"batch{k}", 0]
        last = link
    graph["index"] = node("ComfyMathExpression", expression="a - 1", **{"values.a": ["3", 4]})
    graph["which"] = node("ImageFromBatch", image=last, batch_index=["index", 1], length=1)
    apply(graph, ["which", 0], "duogen-tiny")
    drawn = saved_document(server, server.run(graph))
    assert len(drawn.pictures) == 3
    middle = [float(np.nonzero(is_red(picture.pixels))[1].mean()) for picture in (plain[2], drawn.pictures[2])]
    assert middle[0] > 70 and middle[1] < 58, "the sail is where the outlines have it"
    assert not is_red(drawn.pictures[1].pixels).any()


@needs_bundled
def test_interleave_takes_outlines_for_each_of_its_images(server: Server):
    """The images of an answer again, of which the second has other outlines: the first comes from the cache."""
    sail, prefix = "How do I draw a boat with a red sail?", "controlnet/interleave"
    graph = graphs.answer("duogen-tiny", sail, prefix=prefix, max_images=3)
    plain = saved_document(server, server.run(graph)).pictures
    graph["net"] = node("DuoGenLoadControlNet", controlnet="duogen-tiny")
    for k, picture in enumerate(plain):
        lines = outlines(np.ascontiguousarray(picture.pixels[:, ::-1]))
        graph[f"lines{k}"] = node("LoadImage", image=upload(server, f"answer-{k}.png", lines))
    graph["two"] = node("ImageBatch", image1=["lines0", 0], image2=["lines1", 0])
    graph["three"] = node("ImageBatch", image1=["two", 0], image2=["lines2", 0])
    graph["3"]["inputs"] |= {"control_net": ["net", 0], "control_images": ["two", 0]}
    first = server.run(graph)
    two = saved_document(server, first).pictures
    graph["3"]["inputs"]["control_images"] = ["three", 0]
    second = server.run(graph)
    three = saved_document(server, second).pictures
    assert two[:2] == three[:2] and two[2] != three[2]
    assert np.nonzero(is_red(three[2].pixels))[1].mean() < 58 < np.nonzero(is_red(two[2].pixels))[1].mean()
    samplers = [sum(name.endswith("sample") for name in each.ran) for each in (first, second)]
    assert samplers == [3, 1], "the first two have the outlines they had"


def test_interleave_with_half_of_what_outlines_take_is_a_sentence(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name, max_images=1)
    name = upload(server, "half.png", np.zeros((64, 64, 3), np.uint8))
    graph["lines"] = node("LoadImage", image=name)
    graph["3"]["inputs"]["control_images"] = ["lines", 0]
    error = server.run(graph).error
    assert error is not None and "takes control_net and control_images; connect control_net as well" in str(error)


def is_red(pixels: np.ndarray) -> np.ndarray:
    """bool [H, W]: the sail's red."""
    red, green, blue = (pixels[..., k].astype(int) for k in range(3))
    return (red > 180) & (green < 100) & (blue < 100)
