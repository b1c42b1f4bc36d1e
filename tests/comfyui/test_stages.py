"""Every stage a node: the staged graph, the one-node answer and the command line agree, and one stage can be redone."""

from __future__ import annotations

from pathlib import Path

import graphs
import numpy as np
import pytest
from answers import assert_same_turns, command_line, saved_document
from server import Result, Server

from duogen_core import picture_sampling

pytestmark = pytest.mark.every_comfyui


@pytest.fixture(scope="module")
def staged(server: Server, random_model: Path) -> Result:
    return server.run(graphs.staged(random_model.name, prefix="stages/all"))


@pytest.mark.slow
def test_staged_graph_is_interleave_is_the_command_line(
    server: Server, random_model: Path, staged: Result, tmp_path: Path
):
    ours = saved_document(server, staged)
    assert len(ours.pictures) == 2
    assert_same_turns(ours, command_line(tmp_path / "answer", random_model, "--max-images", "2"))
    one_node = server.run(graphs.answer(random_model.name, prefix="stages/one", max_images=2))
    assert_same_turns(ours, saved_document(server, one_node))


@pytest.mark.slow
def test_tokens_are_chosen_as_on_the_command_line(server: Server, random_model: Path, tmp_path: Path):
    """Filters of an answer reach every text it writes, the one after an image too."""
    graph = graphs.answer(random_model.name, prefix="stages/chosen", max_images=1, seed=5)
    chosen = {"temperature": 10.0, "top_p": 0.95, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.3}
    graph["3"]["inputs"] |= {"temperature": 10.0, "max_tokens": 30}
    plain = saved_document(server, server.run(graph))
    graph["3"]["inputs"] |= chosen
    ours = saved_document(server, server.run(graph))
    options = [word for name, value in chosen.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    theirs = command_line(
        tmp_path / "answer", random_model, "--max-images", "1", "--max-tokens", "30", "--seed", "5", *options
    )
    assert_same_turns(ours, theirs)
    assert ours.text != plain.text


@pytest.mark.slow
def test_a_stage_that_changed_is_the_first_to_run(server: Server, random_model: Path, staged: Result):
    """A new seed for picture 2 of the staged graph, as the server's own execution_cached tells it."""
    server.run(graphs.staged(random_model.name, prefix="stages/all"))  # the cache holds the last prompt only
    again = server.run(graphs.staged(random_model.name, prefix="stages/all", seeds={1: 991}))
    before = {"1", "2", "write0", "p0.encode", "p0.connect", "p0.refer", "p0.size", "p0.sample", "p0.decode", "append0"}
    assert before | {"write1", "p1.encode", "p1.refer", "p1.size"} <= set(again.cached)
    assert not {"p1.sample", "p1.decode", "append1", "write2", "5"} & set(again.cached)
    first, second = saved_document(server, staged), saved_document(server, again)
    assert first.pictures[0] == second.pictures[0] and first.pictures[1] != second.pictures[1]


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 3])
def test_reroll_of_one_picture_leaves_those_before_it(server: Server, random_model: Path, k: int):
    """DuoGen Interleave with a seed of its own for picture k: what runs are the stages from there on, no other."""
    # A request of its own: the server keeps what earlier tests drew, and would take it from there.
    graph = graphs.answer(
        random_model.name, f"Draw it again, {k}.", prefix=f"stages/reroll{k}", seed=40 + k, max_images=4
    )
    first = server.run(graph)
    graph["3"]["inputs"]["seeds"] = f"{k}: 1234"
    again = server.run(graph)
    assert {"1", "2"} <= set(again.cached) and "3" not in again.cached
    drawn = [node for node in again.ran if node.endswith(".sample")]
    assert len([node for node in first.ran if node.endswith(".sample")]) == 4
    assert len(drawn) == 5 - k
    # Nothing but a sampler comes first, beside what hands on: the paragraph was not written or encoded again.
    stages = [
        node for node in again.ran if node.startswith("3.") and not node.endswith((".step", ".context", ".values"))
    ]
    assert stages[0].endswith(".sample")
    old, new = saved_document(server, first).pictures, saved_document(server, again).pictures
    assert list(old[: k - 1]) == list(new[: k - 1])
    assert all(a != b for a, b in zip(old[k - 1 :], new[k - 1 :], strict=True))
    assert new[k - 1].meta["seed"] == 1234 and (
        k == 4 or new[k].meta["seed"] == picture_sampling.picture_seed(40 + k, k)
    )


@pytest.mark.slow
def test_a_higher_limit_draws_only_what_is_new(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name, "One more.", prefix="stages/limit", seed=60, max_images=1)
    server.run(graph)
    graph["3"]["inputs"]["max_images"] = 2
    again = server.run(graph)
    assert len([node for node in again.ran if node.endswith(".sample")]) == 1
    assert len(saved_document(server, again).pictures) == 2


@pytest.mark.slow
def test_markers_put_pictures_where_the_text_names_them(server: Server, random_model: Path):
    graph = graphs.answer(random_model.name, "Put <image2> beside it.", prefix="stages/markers", max_images=0)
    for number, colour in ((1, 0xFF0000), (2, 0x00FF00)):
        graph[f"9{number}"] = {
            "class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": colour},
        }  # fmt: skip
        graph["2"]["inputs"][f"images.image{number}"] = [f"9{number}", 0]
    red, before, green, after = saved_document(server, server.run(graph)).turns[0].parts
    assert tuple(red.pixels[0, 0]) == (255, 0, 0) and tuple(green.pixels[0, 0]) == (0, 255, 0)
    assert (before.text, after.text) == ("Put ", " beside it.")
    graph["2"]["inputs"]["text"] = "Like <image3>"
    assert "<image3>" in server.run(graph).error["exception_message"]


@pytest.mark.slow
def test_fewer_references_change_the_picture(server: Server, random_model: Path):
    """Which pictures are looked at is seen by the DiT: none, the first, or both give three different third pictures."""
    pictures = []
    for which in ("all", "none", "1"):
        graph = graphs.staged(random_model.name, prefix="stages/which", pictures=3)
        graph["p2.refer"]["inputs"]["which"] = which
        pictures.append(saved_document(server, server.run(graph)).pictures)
    assert pictures[0][:2] == pictures[1][:2] == pictures[2][:2]
    a, b, c = (p[2].pixels.astype(int) for p in pictures)
    assert np.abs(a - b).max() > 0 and np.abs(a - c).max() > 0 and np.abs(b - c).max() > 0


@pytest.mark.slow
def test_condition_next_image_is_the_chain_of_three(server: Server, random_model: Path):
    """One node in the place of three: the same images, byte for byte, whichever earlier ones are looked at."""
    for which, megapixels in (("all", 0.0), ("1", 0.002)):
        settings = {"which": which, "megapixels": megapixels}
        chain = graphs.staged(random_model.name, prefix="stages/chain", pictures=3)
        one = graphs.staged(random_model.name, prefix="stages/one", pictures=3)
        for k in range(3):
            chain[f"p{k}.refer"]["inputs"] |= settings
            del one[f"p{k}.connect"], one[f"p{k}.refer"]
            one[f"p{k}.encode"]["class_type"] = "DuoGenConditionNextImage"
            one[f"p{k}.encode"]["inputs"] |= settings | {"vae": ["1", 3]}
            sampler = one[f"p{k}.sample"]["inputs"]
            sampler["positive"], sampler["negative"] = [f"p{k}.encode", 0], [f"p{k}.encode", 1]
        documents = [saved_document(server, server.run(graph)) for graph in (chain, one)]
        assert documents[0].turns == documents[1].turns and len(documents[0].pictures) == 3


@pytest.mark.slow
def test_parts_loaded_one_by_one_are_the_checkpoint(server: Server, random_model: Path, staged: Result):
    graph = graphs.staged(random_model.name, prefix="stages/parts")
    for node, kind in (("11", "MLLM"), ("12", "Connector"), ("13", "DiT")):
        graph[node] = {"class_type": f"DuoGenLoad{kind}", "inputs": {"checkpoint": random_model.name}}
    links = {("1", 0): ["11", 0], ("1", 1): ["12", 0], ("1", 2): ["13", 0]}
    for node in graph.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][key] = links.get(tuple(value), value)
    assert_same_turns(saved_document(server, server.run(graph)), saved_document(server, staged))


@pytest.mark.slow
def test_our_sampler_and_sigmas_know_the_trained_schedule(server: Server, random_model: Path, staged: Result):
    """DuoGenSampler with 0 and 0, and SamplerCustomAdvanced with DuoGenSigmas, draw what KSampler draws with the
    checkpoint's own numbers."""
    graph = graphs.staged(random_model.name, prefix="stages/sampler")
    inputs = graph["p0.sample"]["inputs"]
    graph["p0.sample"] = {"class_type": "DuoGenSampler", "inputs": {**inputs, "steps": 0, "cfg": 0.0}}
    inputs = graph["p1.sample"]["inputs"]
    graph |= {
        "sigmas": {"class_type": "DuoGenSigmas", "inputs": {"model": ["1", 2], "steps": 0}},
        "guider": {
            "class_type": "CFGGuider",
            "inputs": {key: inputs[key] for key in ("model", "positive", "negative")} | {"cfg": ["sigmas", 2]},
        },
        "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": inputs["seed"]}},
        "euler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "p1.sample": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["euler", 0], "sigmas": ["sigmas", 0],
                "latent_image": inputs["latent_image"],
            },
        },
    }  # fmt: skip
    result = server.run(graph)
    assert_same_turns(saved_document(server, result), saved_document(server, staged))
    assert 2 <= result.previews <= 4, "DuoGenSampler shows its steps; the stock sampler does as the user set it"


@pytest.mark.slow
def test_edit_save_open_and_go_on(server: Server, random_model: Path, staged: Result):
    """Another text for the second paragraph, what follows cut; then picture 2 alone is drawn anew. And reopened."""
    graph = graphs.staged(random_model.name, prefix="stages/all")
    server.run(graph)  # the cache holds the last prompt only
    graph |= {
        "edit": {
            "class_type": "DuoGenEditContext",
            "inputs": {
                "context": ["write2", 0], "part": 3, "action": "replace it, cut what follows", "text": " A red door.",
            },
        },
        **graphs.draw("again", ["edit", 0], 8),
        "joined": {
            "class_type": "DuoGenAppendImage",
            "inputs": {"context": ["edit", 0], "image": ["again.decode", 0], "seed": 8},
        },
        "kept": {
            "class_type": "DuoGenSaveDocument",
            "inputs": {"context": ["joined", 0], "filename_prefix": "stages/edited"},
        },
    }  # fmt: skip
    result = server.run(graph)
    assert {"write0", "append0", "write1", "append1", "write2"} <= set(result.cached)
    before, edited = saved_document(server, staged), saved_document(server, result, "kept")
    assert edited.text == "First a wall. A red door."
    # What other graphs have left in the language model's cache may change the last bit of a state, and a pixel by one.
    first, same = edited.pictures[0], before.pictures[0]
    assert first.meta == same.meta and np.abs(first.pixels.astype(int) - same.pixels).max() <= 1
    assert np.abs(edited.pictures[1].pixels.astype(int) - before.pictures[1].pixels).max() > 1
    assert edited.pictures[1].meta == {"seed": 8, "text": "A red door."}

    folder = result.outputs["kept"]["document"][0]["folder"]
    opened = server.run(
        {
            "1": {"class_type": "DuoGenLoadDocument", "inputs": {"document": f"{folder} [output]"}},
            "2": {"class_type": "DuoGenPreview", "inputs": {"context": ["1", 0], "part": "answer"}},
        }
    )
    (shown,) = opened.outputs["2"]["duogen_document"]
    parts = shown["turns"][0]["parts"]
    assert [part["type"] for part in parts] == ["text", "image", "text", "image"]
    picture = parts[3]
    assert (picture["width"], picture["height"], picture["seed"]) == (96, 64, 8)
    view = {"filename": picture["filename"], "subfolder": picture["subfolder"], "type": picture["folder"]}
    assert server.get_bytes("/view", **view)[:8] == b"\x89PNG\r\n\x1a\n"
