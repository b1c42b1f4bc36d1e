"""Published models on a running ComfyUI, found through extra_model_paths.yaml: listed, run, refused in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import published_files
import pytest
from answers import assert_same_turns, command_line, saved_document
from conftest import running
from safetensors.torch import load_file, save_file
from server import PACK, Result, Server
from test_stale import changed
from test_trouble import sentence
from ui_to_api import complaints, convert

pytestmark = pytest.mark.slow
TEXT_FILE, TEXT_FOLDER = "tiny_vl.safetensors", "Tiny-VL-Instruct"
DIT_FILE, DIT_FOLDER = "tiny_cosmos.safetensors", "tiny-cosmos"
VAE_FILE = "tiny_wan.safetensors"
PATHS = """elsewhere:
  base_path: {0}
  text_encoders: text_encoders
  diffusion_models: diffusion_models
  vae: vae
  duogen: duogen
"""


@pytest.fixture(scope="module")
def folder(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders outside of ComfyUI's own."""
    tokenizer = comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer"
    written = published_files.write(tmp_path_factory.mktemp("elsewhere") / "models", tokenizer)
    (written / "duogen").mkdir()
    return written


@pytest.fixture(scope="module")
def server(comfyui: Path, random_model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory):
    base = tmp_path_factory.mktemp("published")
    (base / "paths.yaml").write_text(PATHS.format(folder))
    yield from running(comfyui, random_model, base, "--extra-model-paths-config", str(base / "paths.yaml"))


def graph(
    mllm: str = TEXT_FILE, dit: str = DIT_FILE, *, prefix: str = "published", **interleave: Any
) -> dict[str, Any]:
    """Load MLLM (1), Connector (c), DiT (d), the stock VAELoader (v), Prompt (2), Interleave (3) … Save (5)."""
    nodes = graphs.answer(
        "unused", prefix=prefix, **{"max_images": 2, "width": 48, "height": 32, "steps": 2, **interleave}
    )
    nodes["1"] = {"class_type": "DuoGenLoadMLLM", "inputs": {"checkpoint": mllm}}
    nodes["c"] = {"class_type": "DuoGenLoadConnector", "inputs": {"checkpoint": dit, "mllm": ["1", 0]}}
    nodes["d"] = {"class_type": "DuoGenLoadDiT", "inputs": {"checkpoint": dit}}
    nodes["v"] = {"class_type": "VAELoader", "inputs": {"vae_name": VAE_FILE}}
    nodes["3"]["inputs"].update(connector=["c", 0], model=["d", 0], vae=["v", 0])
    return nodes


def options(server: Server, node: str, name: str = "checkpoint") -> list[str]:
    inputs = server.get(f"/object_info/{node}")[node]["input"]
    found = {**inputs["required"], **inputs.get("optional", {})}[name]
    return found[0] if isinstance(found[0], list) else found[1]["options"]


@contextmanager
def there(path: Path, write: Any) -> Iterator[Path]:
    """A file or folder for a while."""
    write(path)
    yield path
    shutil.rmtree(path) if path.is_dir() else path.unlink()


# ---------------------------------------------------------------- lists


def test_models_are_listed_once_and_shards_are_not(server: Server):
    texts, dits = options(server, "DuoGenLoadMLLM"), options(server, "DuoGenLoadDiT")
    assert [name for name in texts if "iny" in name.lower()][-2:] == [TEXT_FOLDER, TEXT_FILE]
    assert not [name for name in texts + dits if "00001" in name or "diffusion_pytorch_model" in name]
    assert {DIT_FILE, DIT_FOLDER, "random"} <= set(dits) == set(options(server, "DuoGenLoadConnector"))
    assert len(set(texts)) == len(texts) and len(set(dits)) == len(dits)
    assert {"auto", "random", TEXT_FOLDER} <= set(options(server, "DuoGenLoadMLLM", "tokenizer"))


def test_a_list_opens_no_file(server: Server, folder: Path):
    """What is no model is listed for its name; loading it says what it is."""
    with there(folder / "text_encoders" / "empty.safetensors", lambda path: path.write_bytes(b"")):
        assert "empty.safetensors" in options(server, "DuoGenLoadMLLM")
        assert "empty.safetensors is cut off" in sentence(server.run(graph("empty.safetensors")))


# ---------------------------------------------------------------- answers


@pytest.fixture(scope="module")
def answered(server: Server) -> Result:
    return server.run(graph(sampler_name="as trained", scheduler="as trained"))


def test_an_untaught_model_answers_with_captions_as_the_command_line_does(
    server: Server, folder: Path, answered: Result, tmp_path: Path
):
    ours = saved_document(server, answered)
    assert ours.turns[-1].text == published_files.FIRST + published_files.NEXT * 2
    assert [picture.meta["caption"] for picture in ours.pictures] == [published_files.CAPTION.strip()] * 2
    assert ours.generation["model"] == "tiny_vl" and ours.generation["guidance"] == 8.0
    texts, dits = folder / "text_encoders", folder / "diffusion_models"
    theirs = command_line(
        tmp_path / "answer", None, "--mllm", str(texts / TEXT_FOLDER), "--dit", str(dits / DIT_FILE), "--vae",
        str(folder / "vae" / VAE_FILE), "--steps", "2", "--size", "48x32", "--max-images", "2",
    )  # fmt: skip
    assert_same_turns(ours, theirs)


def test_a_model_whose_markers_are_empty_is_made_to_plan_here_and_on_the_command_line(
    server: Server, folder: Path, comfyui: Path, tmp_path: Path
):
    """It copies the marker of its instructions word for word; its plan is noise, but a whole one."""
    tokenizer = comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer"
    write = published_files.language_model(tokenizer, marker="<BOV: caption>").save_pretrained
    texts, dits = folder / "text_encoders", folder / "diffusion_models"
    with there(texts / "Copies-VL", write):
        result = server.run(graph("Copies-VL", sampler_name="as trained", scheduler="as trained"))
        ours = saved_document(server, result)
        theirs = command_line(
            tmp_path / "answer", None, "--mllm", str(texts / "Copies-VL"), "--dit", str(dits / DIT_FILE), "--vae",
            str(folder / "vae" / VAE_FILE), "--steps", "2", "--size", "48x32", "--max-images", "2",
        )  # fmt: skip
    assert len(ours.last_turn.meta["plan"]["parts"]) >= 3 and ours.generation["stop_reason"] == "max_images"
    assert [len(ours.pictures), len(theirs.pictures)] == [2, 2] and published_files.FIRST not in ours.text
    assert ours.last_turn.meta["plan"] == theirs.last_turn.meta["plan"]
    assert_same_turns(ours, theirs)
    assert any("asks for an image without saying what it shows. The answer is planned" in t for t in result.texts)


def test_llava_onevision_answers_as_the_command_line_does(server: Server, folder: Path, comfyui: Path, tmp_path: Path):
    """The third family: its folder, its tiles, the images it drew in its context, the estimate of its memory."""
    tokenizer = comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer"
    texts, dits = folder / "text_encoders", folder / "diffusion_models"
    with there(texts / "Tiny-LLaVA", published_files.llava(tokenizer).save_pretrained):
        assert "Tiny-LLaVA" in options(server, "DuoGenLoadMLLM")
        ours = saved_document(
            server, server.run(graph("Tiny-LLaVA", sampler_name="as trained", scheduler="as trained"))
        )
        theirs = command_line(
            tmp_path / "answer", None, "--mllm", str(texts / "Tiny-LLaVA"), "--dit", str(dits / DIT_FILE), "--vae",
            str(folder / "vae" / VAE_FILE), "--steps", "2", "--size", "48x32", "--max-images", "2",
        )  # fmt: skip
    assert len(ours.pictures) == 2 and ours.turns[-1].text.startswith(published_files.FIRST * 2)
    assert [picture.meta["caption"] for picture in ours.pictures] == [published_files.CAPTION.strip()] * 2
    assert ours.generation["model"] == "Tiny-LLaVA"
    assert_same_turns(ours, theirs)


def test_a_file_of_llava_onevision_needs_its_own_tokenizer(server: Server, folder: Path, comfyui: Path):
    """ComfyUI's, for Qwen2.5, has another token where LLaVA's <image> is."""
    tokenizer = comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer"
    state = {name: tensor.clone() for name, tensor in published_files.llava(tokenizer).model.state_dict().items()}
    with there(folder / "text_encoders" / "tiny_llava.safetensors", lambda path: save_file(state, path)):
        message = sentence(server.run(graph("tiny_llava.safetensors")))
    assert "images of llava_onevision stand at <image>" in message and "give the one of this model" in message


def test_folders_give_what_files_give(server: Server, answered: Result):
    again = server.run(graph(TEXT_FOLDER, DIT_FOLDER, sampler_name="as trained", scheduler="as trained"))
    assert_same_turns(saved_document(server, again), saved_document(server, answered))


def test_a_caption_is_drawn_by_the_published_pipeline_in_the_loop(server: Server):
    """Loop Open -> Encode Prompt -> Sigmas and SamplerCustom -> VAEDecode -> Loop Close."""
    nodes = graph(prefix="published/loop")
    models = {name: nodes["3"]["inputs"][name] for name in ("mllm", "context")}
    nodes["open"] = {
        "class_type": "DuoGenLoopOpen",
        "inputs": {**models, "seed": 7, "max_tokens": 64, "mode": "as it goes", "temperature": 0.0},
    }
    nodes["prompt"] = {
        "class_type": "DuoGenEncodePrompt",
        "inputs": {
            "mllm": ["1", 0], "connector": ["c", 0], "prompt": ["open", 2], "negative_prompt": "blurry", "tokens": 512,
        },
    }  # fmt: skip
    nodes["sigmas"] = {"class_type": "DuoGenSigmas", "inputs": {"model": ["d", 0], "steps": 2}}
    nodes["empty"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 48, "height": 32, "batch_size": 1}}
    nodes["draw"] = {
        "class_type": "SamplerCustom",
        "inputs": {
            "model": ["d", 0], "add_noise": True, "noise_seed": ["open", 3], "cfg": 8.0, "positive": ["prompt", 0],
            "negative": ["prompt", 1], "sampler": ["sigmas", 3], "sigmas": ["sigmas", 0], "latent_image": ["empty", 0],
        },
    }  # fmt: skip
    nodes["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": ["draw", 1], "vae": ["v", 0]}}
    nodes["3"] = {
        "class_type": "DuoGenLoopClose",
        "inputs": {"loop": ["open", 0], "image": ["decode", 0], "max_images": 2, "seeds": ""},
    }
    document = saved_document(server, server.run(nodes))
    first, second = (picture.pixels.astype(int) for picture in document.pictures)
    assert first.shape == (32, 48, 3) and first.std() > 1
    assert np.abs(first - second).mean() > 1  # one caption, two seeds


def test_a_file_that_changes_is_loaded_again(server: Server, folder: Path):
    name = "changing.safetensors"
    source = folder / "diffusion_models" / DIT_FILE

    def change(path: Path) -> None:
        state = load_file(source)
        state["net.final_layer.linear.weight"] *= -1
        save_file(state, path)

    with there(folder / "diffusion_models" / name, lambda path: shutil.copyfile(source, path)) as path:
        nodes = graph(dit=name, max_images=1, prefix="published/changing")
        before = saved_document(server, server.run(nodes))
        assert "d" in server.run(nodes).cached
        path.unlink()
        change(path)
        again = server.run(nodes)
        assert not {"d", "c"} & set(again.cached) and "1" in again.cached
        assert saved_document(server, again).pictures[0] != before.pictures[0]


def test_the_shipped_workflow(server: Server, folder: Path):
    """As it is shipped, with small models under the names of the files that it asks the front end for."""
    workflow = json.loads((PACK / "workflows" / "19 Qwen2.5-VL and Cosmos.json").read_text("utf-8"))
    named = [model for node in workflow["nodes"] for model in node["properties"].get("models", ())]
    assert {model["directory"] for model in named} == {"text_encoders", "diffusion_models", "vae"}
    tiny = {"text_encoders": TEXT_FILE, "diffusion_models": DIT_FILE, "vae": VAE_FILE}
    for node in workflow["nodes"]:
        for model in node["properties"].get("models", ()):
            assert node["widgets_values"][0] == model["name"] and model["url"].startswith("https://")
            file = folder / model["directory"] / model["name"]
            if not file.exists():
                file.symlink_to(folder / model["directory"] / tiny[model["directory"]])
    info = server.get("/object_info")
    assert complaints(workflow, info) == []
    nodes = convert(workflow, info)
    ids = {node.get("title") or node["type"]: str(node["id"]) for node in workflow["nodes"]}
    nodes[ids["EmptyLatentImage"]]["inputs"].update(width=48, height=32)
    nodes[ids["DuoGenSampler"]]["inputs"]["steps"] = 2
    nodes[ids["DuoGenLoopClose"]]["inputs"]["max_images"] = 1
    document = saved_document(server, server.run(nodes), ids["DuoGenSaveDocument"])
    assert document.turns[-1].text.startswith(published_files.FIRST)
    (picture,) = document.pictures
    assert picture.size == (48, 32) and picture.meta["caption"] == published_files.CAPTION.strip()


# ---------------------------------------------------------------- what cannot work


def refused(server: Server, nodes: dict[str, Any], kind: str) -> str:
    """The sentence; and nothing of this kind of model stays in memory. (That of the run before goes first: where a
    loader fails, ComfyUI's cache has not yet dropped it.)"""
    server.post("/free", {"unload_models": True, "free_memory": True})
    end = time.monotonic() + 120  # the server frees when its worker next looks
    while server.memory()["alive"][kind] and time.monotonic() < end:
        time.sleep(0.2)
    message = sentence(server.run(nodes))
    assert server.memory()["alive"][kind] == 0
    return message


def test_a_text_encoder_without_a_vision_tower(server: Server, folder: Path):
    state = load_file(folder / "text_encoders" / TEXT_FILE)
    blind = {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}
    with there(folder / "text_encoders" / "blind.safetensors", lambda path: save_file(blind, path)):
        assert "without a vision tower cannot look at images" in refused(
            server, graph("blind.safetensors"), "DuoGenMllm"
        )


def test_a_connector_for_another_language_model(server: Server, folder: Path):
    other = published_files.transformer(crossattn_proj_in_channels=3 * published_files.WIDTH)
    with there(folder / "diffusion_models" / "other", lambda path: other.save_pretrained(path / "transformer")):
        message = refused(server, graph(dit="other"), "DuoGenConnector")
        assert "reads 384 numbers a token, but this MLLM has 2 layers of width 128" in message


def test_a_corrupted_shard(server: Server, folder: Path):
    broken = folder / "text_encoders" / "Broken"
    with there(broken, lambda path: shutil.copytree(folder / "text_encoders" / TEXT_FOLDER, path)):
        shard = sorted(broken.glob("model-*.safetensors"))[1]
        os.truncate(shard, shard.stat().st_size - 8)
        assert f"{shard.name} is cut off" in refused(server, graph("Broken"), "DuoGenMllm")


def test_a_folder_with_two_models(server: Server, folder: Path):
    both = folder / "diffusion_models" / "both"
    with there(both, lambda path: shutil.copytree(folder / "diffusion_models" / DIT_FOLDER, path)):
        shutil.copyfile(folder / "diffusion_models" / DIT_FILE, both / "transformer" / "second.safetensors")
        message = refused(server, graph(dit="both"), "DuoGenModel")
        assert "more than one set of weights" in message and "second.safetensors" in message


def test_the_tokenizer_of_another_model(server: Server, folder: Path):
    """Larger than the model's vocabulary: it would give numbers that the model has no rows for."""
    state = load_file(folder / "text_encoders" / TEXT_FILE)
    rows = {name: state[name][:1024].clone() for name in ("model.embed_tokens.weight", "lm_head.weight")}
    with there(folder / "text_encoders" / "few.safetensors", lambda path: save_file({**state, **rows}, path)):
        message = refused(server, graph("few.safetensors"), "DuoGenMllm")
        assert "last token has the id 151668" in message and "knows 1024 tokens" in message


def test_nothing_half_loaded_stays(server: Server, folder: Path):
    """A DiT that is refused after the language model was loaded: the model stays usable, the DiT leaves nothing."""
    state = load_file(folder / "diffusion_models" / DIT_FILE)
    missing = {name: tensor for name, tensor in state.items() if "blocks.1.mlp.layer2" not in name}
    with there(folder / "diffusion_models" / "half.safetensors", lambda path: save_file(missing, path)):
        message = refused(server, graph(dit="half.safetensors"), "DuoGenModel")
        assert "transformer_blocks.1.ff.net.2.weight" in message
        memory = server.memory()
        assert memory["alive"]["DuoGenModel"] == 0 and not [
            f for f in memory["files"] if f.endswith("half.safetensors")
        ]
    assert server.run(graph(prefix="published/after")).error is None


def test_a_tokenizer_that_changed(server: Server, folder: Path):
    """The folder that a single file of weights gets its tokenizer from, changed between two runs."""
    nodes = {
        "1": {"class_type": "DuoGenLoadMLLM", "inputs": {"checkpoint": TEXT_FILE, "tokenizer": TEXT_FOLDER}},
        "2": {"class_type": "DuoGenPrompt", "inputs": {"text": "How large?"}},
        "size": {
            "class_type": "DuoGenPictureSize",
            "inputs": {
                "context": ["2", 0], "mllm": ["1", 0], "size": "like the last image", "picture": 1, "width": 64,
                "height": 64,
            },
        },
        "shown": {"class_type": "PreviewAny", "inputs": {"source": ["size", 1]}},
    }  # fmt: skip
    assert "1" in server.run(nodes).ran and "1" not in server.run(nodes).ran
    changed(folder / "text_encoders" / TEXT_FOLDER / "tokenizer.json")
    assert "1" in server.run(nodes).ran
