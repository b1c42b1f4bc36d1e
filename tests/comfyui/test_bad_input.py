"""What users connect and type that cannot work, end to end: one sentence that says what was wrong and what to do.

More of it: test_trouble.py (checkpoints, limits, cancelling) and test_stage_trouble.py (stages put together wrongly).
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import painter_checkpoint
import pytest
import random_checkpoint
from answers import saved_document
from conftest import BUNDLED
from PIL import Image
from server import Server
from test_trouble import sentence

from duogen_core import picture_sampling

pytestmark = pytest.mark.slow
FIRST = "First a wall."


@pytest.fixture(scope="module")
def foreign(server: Server):
    """A checkpoint of another family in ComfyUI's models folder, of random weights."""
    folder = server.base / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    file = painter_checkpoint.write(folder / "foreign.safetensors")
    yield {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": file.name}}
    server.post("/free", {"unload_models": True, "free_memory": True})
    file.unlink()


@contextmanager
def installed(server: Server, folder: Path) -> Iterator[str]:
    """A checkpoint in ComfyUI's models/duogen, for a while."""
    link = server.base / "models" / "duogen" / folder.name
    link.symlink_to(folder, target_is_directory=True)
    yield folder.name
    link.unlink()


@pytest.fixture(scope="module")
def other_sizes(server: Server, tmp_path_factory: pytest.TempPathFactory):
    """A whole DuoGen checkpoint of other widths than the one the tests use."""
    folder = random_checkpoint.write(tmp_path_factory.mktemp("checkpoints") / "other-sizes", hidden=96, width=40)
    with installed(server, folder) as name:
        yield name


@pytest.fixture
def graph(random_model: Path) -> dict[str, Any]:
    return graphs.answer(random_model.name, prefix="bad", max_images=1)


# ---------------------------------------------------------------- models that do not belong there


def test_a_foreign_model_in_interleave(server: Server, graph: dict[str, Any], foreign: dict[str, Any]):
    graph["foreign"] = foreign
    graph["3"]["inputs"]["model"] = ["foreign", 0]
    message = sentence(server.run(graph))
    assert "BaseModel" in message and "DuoGen checkpoint" in message


def test_a_foreign_model_in_the_sampler(server: Server, random_model: Path, foreign: dict[str, Any]):
    graph = graphs.staged(random_model.name, prefix="bad/staged", pictures=1)
    graph["foreign"] = foreign
    graph["p0.sample"]["class_type"] = "DuoGenSampler"
    graph["p0.sample"]["inputs"]["model"] = ["foreign", 0]
    assert "cannot read the text states" in sentence(server.run(graph))


def test_a_foreign_vae(server: Server, graph: dict[str, Any], foreign: dict[str, Any]):
    graph["foreign"] = foreign
    graph["3"]["inputs"]["vae"] = ["foreign", 2]
    message = sentence(server.run(graph))
    assert "4 channels" in message and "draws in 16" in message


def test_references_of_a_foreign_vae(server: Server, random_model: Path, foreign: dict[str, Any]):
    graph = graphs.staged(random_model.name, prefix="bad/staged", pictures=2)
    graph["foreign"] = foreign
    graph["p1.refer"]["inputs"]["vae"] = ["foreign", 2]
    message = sentence(server.run(graph))
    assert "4 channels" in message and "draws in 16" in message


@pytest.fixture
def flux_vae(server: Server, small_models: None) -> dict[str, Any]:
    """16 channels, as the VAE of the checkpoint has, but for still images."""
    return {"class_type": "VAELoader", "inputs": {"vae_name": "small_flux.safetensors"}}


def test_a_vae_for_still_images(server: Server, graph: dict[str, Any], flux_vae: dict[str, Any]):
    graph["foreign"] = flux_vae
    graph["3"]["inputs"]["vae"] = ["foreign", 0]
    assert "for still images, such as those of FLUX.1" in sentence(server.run(graph))


@pytest.mark.parametrize("place", ["first", "refer", "reference", "start"])
def test_a_vae_for_still_images_in_the_stages(server: Server, random_model: Path, flux_vae: dict[str, Any], place: str):
    """In our own node, before the first picture too, in a stock node that adds a reference, and for the latent to
    start from."""
    graph = graphs.staged(random_model.name, prefix="bad/staged", pictures=2)
    graph["foreign"] = flux_vae
    graph["drawn"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["p0.decode", 0], "vae": ["foreign", 0]}}
    sample = graph["p1.sample"]
    if place in ("first", "refer"):
        graph[f"p{int(place == 'refer')}.refer"]["inputs"]["vae"] = ["foreign", 0]
    elif place == "reference":
        inputs = {"conditioning": sample["inputs"]["positive"], "latent": ["drawn", 0]}
        graph["more"] = {"class_type": "ReferenceLatent", "inputs": inputs}
        sample["inputs"]["positive"] = ["more", 0]
    else:
        sample["class_type"] = "DuoGenSampler"
        sample["inputs"] |= {"latent_image": ["drawn", 0], "denoise": 0.5}
    result = server.run(graph)
    assert "for still images, such as those of FLUX.1" in sentence(result)
    assert place != "first" or "p0.sample" not in result.ran


def test_the_vae_of_another_checkpoint(server: Server, graph: dict[str, Any]):
    """Wan 2.1's architecture with other weights: as wide as it is told apart by."""
    if not (BUNDLED / "model_index.json").is_file():
        pytest.skip("The bundled model models/duogen-tiny is not here.")
    graph["other"] = {"class_type": "DuoGenLoadCheckpoint", "inputs": {"checkpoint": BUNDLED.name}}
    graph["3"]["inputs"]["vae"] = ["other", 3]
    assert "the one whose latents the MODEL was trained on" in sentence(server.run(graph))


def test_a_foreign_clip_is_not_a_language_model(server: Server, graph: dict[str, Any], foreign: dict[str, Any]):
    """ComfyUI itself refuses the link; the socket's own type is what makes it."""
    graph["foreign"] = foreign
    graph["3"]["inputs"]["mllm"] = ["foreign", 1]
    with pytest.raises(RuntimeError, match=r"CLIP.*mismatch.*DUOGEN_MLLM|mismatch.*CLIP.*DUOGEN_MLLM"):
        server.run(graph)


def test_the_conditioning_of_a_foreign_clip(server: Server, random_model: Path, foreign: dict[str, Any]):
    graph = graphs.staged(random_model.name, prefix="bad/staged", pictures=1)
    graph["foreign"] = foreign
    graph["words"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["foreign", 1], "text": "a house"}}
    graph["p0.sample"]["inputs"] |= {"positive": ["words", 0], "negative": ["words", 0]}
    message = sentence(server.run(graph))
    assert "48 numbers a token" in message and "width 768" in message


@pytest.mark.parametrize("node", ["DuoGenInterleave", "DuoGenEncodeContext", "DuoGenWrite"])
def test_a_connector_of_another_language_model(server: Server, random_model: Path, other_sizes: str, node: str):
    if node == "DuoGenInterleave":
        graph = graphs.answer(random_model.name, prefix="bad", max_images=1)
    else:
        graph = graphs.staged(random_model.name, prefix="bad/staged", pictures=1)
    graph["other"] = {"class_type": "DuoGenLoadCheckpoint", "inputs": {"checkpoint": other_sizes}}
    for entry in graph.values():
        if entry["class_type"] == node:
            entry["inputs"]["connector"] = ["other", 1]
    message = sentence(server.run(graph))
    assert "width 96" in message and "width 64" in message and "same checkpoint" in message


def test_a_connector_of_another_width(server: Server, graph: dict[str, Any], other_sizes: str):
    """Language model and connector belong together, the MODEL does not."""
    graph["other"] = {"class_type": "DuoGenLoadCheckpoint", "inputs": {"checkpoint": other_sizes}}
    graph["3"]["inputs"]["model"] = ["other", 2]
    message = sentence(server.run(graph))
    assert "gives 48 numbers" in message and "reads 40" in message


# ---------------------------------------------------------------- pictures


def test_a_picture_with_transparency_is_laid_on_white(server: Server, graph: dict[str, Any]):
    graph["3"]["inputs"]["max_images"] = 0
    graph |= {
        "black": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 0}},
        "clear": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 32, "height": 32}},
        "cut": {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["black", 0], "alpha": ["clear", 0]}},
    }
    graph["2"]["inputs"]["images.image1"] = ["cut", 0]
    (picture,) = saved_document(server, server.run(graph)).pictures
    assert (picture.pixels == 255).all(), "a transparent picture is white, not black"


def test_a_batch_is_several_pictures_of_the_user(server: Server, graph: dict[str, Any]):
    graph["3"]["inputs"]["max_images"] = 0
    graph["batch"] = {
        "class_type": "EmptyImage", "inputs": {"width": 32, "height": 48, "batch_size": 3, "color": 255},
    }  # fmt: skip
    graph["2"]["inputs"]["images.image1"] = ["batch", 0]
    assert [picture.size for picture in saved_document(server, server.run(graph)).pictures] == [(32, 48)] * 3


def test_a_batch_where_an_answer_gets_one_other_picture(server: Server, graph: dict[str, Any]):
    graph["batch"] = {
        "class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 0},
    }  # fmt: skip
    graph["edit"] = {
        "class_type": "DuoGenEditContext",
        "inputs": {
            "context": ["3", 0], "part": 2, "action": "replace it, keep what follows", "text": "",
            "image": ["batch", 0],
        },
    }  # fmt: skip
    graph["5"]["inputs"]["context"] = ["edit", 0]
    assert "batch of 2" in sentence(server.run(graph))


def test_a_size_that_is_no_multiple_of_16(server: Server, graph: dict[str, Any]):
    """The widgets step by 16; a script may ask for anything, and gets the nearest size that can be drawn."""
    graph["3"]["inputs"] |= {"width": 100, "height": 70}
    (picture,) = saved_document(server, server.run(graph)).pictures
    assert picture.size == (96, 64)


def test_a_picture_of_the_user_of_any_size(server: Server, graph: dict[str, Any]):
    Image.fromarray(np.full((33, 47, 3), 90, np.uint8)).save(server.base / "input" / "odd.png")
    graph["picture"] = {"class_type": "LoadImage", "inputs": {"image": "odd.png"}}
    graph["2"]["inputs"]["images.image1"] = ["picture", 0]
    users, drawn = saved_document(server, server.run(graph)).pictures
    assert users.size == (47, 33) and all(side % 16 == 0 for side in drawn.size)


# ---------------------------------------------------------------- contexts


@pytest.mark.parametrize("node", ["DuoGenPreview", "DuoGenEditContext"])
def test_a_context_without_an_answer(server: Server, random_model: Path, node: str):
    inputs: dict[str, Any] = {"context": ["2", 0]}
    inputs |= {"part": "answer"} if node == "DuoGenPreview" else {"part": 1, "action": "cut from it on", "text": ""}
    graph = {
        "2": {"class_type": "DuoGenPrompt", "inputs": {"text": "A house."}},
        "x": {"class_type": node, "inputs": inputs},
    }
    graph["y"] = {"class_type": "DuoGenPreview", "inputs": {"context": ["x", 0], "part": "answer"}}
    assert "no answer yet" in sentence(server.run(graph))


def test_a_marker_without_its_picture(server: Server, random_model: Path):
    assert "<image2>" in sentence(server.run(graphs.answer(random_model.name, "Remove the star from <image2>.")))


# ---------------------------------------------------------------- models that do not stop


def test_a_model_that_never_draws_and_never_ends(server: Server, tmp_path: Path):
    with installed(server, random_checkpoint.write(tmp_path / "endless", draws=False)) as name:
        document = saved_document(server, server.run(graphs.answer(name, prefix="bad/endless", max_tokens=30)))
    assert document.generation["stop_reason"] == "max_tokens"
    assert not document.pictures and document.text.startswith(FIRST)


def test_the_limit_of_tokens_counts_over_all_pictures(server: Server, random_model: Path):
    """The random model goes on for ever: text, picture, text, picture."""
    result = server.run(graphs.answer(random_model.name, prefix="bad/tokens", max_images=100, max_tokens=40, steps=1))
    document = saved_document(server, result)
    assert document.generation["stop_reason"] == "max_tokens" and 1 <= len(document.pictures) <= 20


# ---------------------------------------------------------------- several at once, and old ones


def test_two_queues_at_once(server: Server, random_model: Path):
    """Two clients: each gets its own answer, and hears of no other."""
    other = copy.copy(server)
    other.client_id = uuid.uuid4().hex
    requests = ["Two: a house?", "Two: a boat?"]
    built = [graphs.answer(random_model.name, text, prefix="bad/two", seed=50 + k, max_images=2)
             for k, text in enumerate(requests)]  # fmt: skip
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda pair: pair[0].run(pair[1]), zip((server, other), built)))
    for k, result in enumerate(results):
        document = saved_document(server, result)
        assert document.turns[0].text == requests[k] and len(document.pictures) == 2
        assert [picture.meta["seed"] for picture in document.pictures] == [
            50 + k,
            picture_sampling.picture_seed(50 + k, 1),
        ]
        alone = saved_document(server, server.run({**built[k], "5": {**built[k]["5"], "inputs": {
            **built[k]["5"]["inputs"], "filename_prefix": "bad/alone"}}}))  # fmt: skip
        assert alone.turns == document.turns


def test_a_graph_of_an_older_version(server: Server, random_model: Path):
    """Inputs that came later take their defaults, those that are gone are passed over."""
    new = graphs.answer(random_model.name, prefix="bad/new", seed=60, max_images=1)
    new["3"]["inputs"] |= {"seeds": "", "mode": "as it goes", "references": "all", "size_like": 0, "temperature": 0.0}
    new["5"]["inputs"] |= {"pdf": False, "zip": False}
    old = graphs.answer(random_model.name, prefix="bad/old", seed=60, max_images=1)
    old["3"]["inputs"]["keep_pictures"] = True
    documents = [saved_document(server, server.run(graph)) for graph in (new, old)]
    assert documents[0].turns == documents[1].turns


@pytest.mark.parametrize(("node", "name"), [("3", "model"), ("3", "vae"), ("3", "context"), ("5", "context")])
@pytest.mark.parametrize("value", ["a", 7, True, {"a": 1}, None])
def test_a_value_in_place_of_a_link(server: Server, random_model: Path, node: str, name: str, value: Any) -> None:
    """ComfyUI queues such a workflow, which only a hand can write."""
    graph = graphs.answer(random_model.name, max_images=1, steps=1, max_tokens=20)
    graph[node]["inputs"][name] = value
    assert f"The input {name} is {value!r}, which is not of type " in sentence(server.run(graph))


@pytest.mark.parametrize(("node", "name"), [("p.refer", "negative"), ("p.refer", "vae"), ("p.size", "context")])
def test_a_value_in_place_of_a_link_between_stages(server: Server, random_model: Path, node: str, name: str) -> None:
    graph = graphs.loop(random_model.name, prefix="bad_input/value", max_images=1, max_tokens=20)
    graph[node]["inputs"][name] = {"a": 1}
    assert f"The input {name} is {{'a': 1}}, which is not of type " in sentence(server.run(graph))


def test_a_link_to_an_output_that_is_not_there(server: Server, random_model: Path) -> None:
    """ComfyUI leaves the node out of the run; the loop does not put it in again."""
    graph = graphs.loop(random_model.name, "Draw.", prefix="bad_input/link", max_images=1, max_tokens=20)
    graph["5"]["inputs"]["context"] = ["p.size", 3]
    result = server.run(graph)
    assert result.error is None and "5" not in result.outputs
    assert any(node.endswith("p.decode") for node in result.ran)
