"""Fixtures: a running ComfyUI (one for the whole session), and the checkpoint the tests use.

The bundled model when it is there, else a random one of the same shape. Without a ComfyUI the folder is skipped, with
one line that says how to get it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.append(str(HERE))  # server, random_checkpoint, graphs: plain modules beside the tests

import random_checkpoint  # noqa: E402
from features import PROOFS  # noqa: E402
from server import PACK, Server, find_comfyui  # noqa: E402

from duogen_core.checkpoint import VAE_FILE  # noqa: E402

BUNDLED = PACK / "models" / "duogen-tiny"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """With a ComfyUI at hand, no test that a row of docs/features.md rests on may be skipped: that is a failure. Those
    in browser/ need Playwright at hand, too."""
    report = yield
    file = item.path.relative_to(HERE).as_posix() if item.path.is_relative_to(HERE) else item.path.name
    name = f"{file}::{getattr(item, 'originalname', None) or item.name}"
    at_hand = find_comfyui() and ("/" not in file or importlib.util.find_spec("playwright"))
    if report.skipped and at_hand and name in {proof for row in PROOFS.values() for proof in row}:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, but docs/features.md rests on it (tests/comfyui/features.py)."
    return report


@pytest.fixture(scope="session")
def comfyui() -> Path:
    found = find_comfyui()
    if found is None:
        pytest.skip(
            "No ComfyUI here: clone https://github.com/comfyanonymous/ComfyUI to ~/ComfyUI, or set COMFYUI_PATH to one."
        )
    if importlib.util.find_spec("comfy_kitchen") is None or importlib.util.find_spec("aiohttp") is None:
        pytest.skip("What ComfyUI needs is not installed: pip install -r requirements-comfyui-test.txt.")
    return found


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with random weights."""
    return random_checkpoint.write(tmp_path_factory.mktemp("checkpoints") / "random")


@pytest.fixture(scope="session")
def random_wans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{kind of attention: a checkpoint folder with random weights whose DiT is a Wan}."""
    folder = tmp_path_factory.mktemp("wans")
    return {
        kind: random_checkpoint.write(folder / f"random-wan-{kind}", family="PackedWan", attention=kind)
        for kind in ("full", "frame_causal")
    }


def running(comfyui: Path, model: Path, base: Path, *arguments: str):
    """A server that has this checkpoint, for a fixture to `yield from`."""
    (base / "models" / "duogen").mkdir(parents=True)
    (base / "models" / "duogen" / model.name).symlink_to(model, target_is_directory=True)
    started = Server(comfyui, base, *arguments)
    try:
        yield started.wait()
    finally:
        started.stop()


@pytest.fixture(scope="session")
def server(comfyui: Path, random_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """With ComfyUI's default cache."""
    yield from running(comfyui, random_model, tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def classic_cache(comfyui: Path, random_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """What a prompt has used stays for the next one."""
    yield from running(comfyui, random_model, tmp_path_factory.mktemp("classic"), "--cache-classic")


@pytest.fixture(scope="session")
def no_cache(comfyui: Path, random_model: Path, tmp_path_factory: pytest.TempPathFactory):
    arguments = ("--cache-none", "--disable-dynamic-vram")
    yield from running(comfyui, random_model, tmp_path_factory.mktemp("none"), *arguments)


@pytest.fixture(scope="session")
def small_model_files(server: Server, random_model: Path):
    """The files of small_models.py, and a small Wan VAE, in the server's model folders."""
    wan = server.base / "models" / "vae" / "small_wan.safetensors"
    wan.symlink_to(random_model / "vae" / VAE_FILE)
    files = [wan, *map(Path, server.post("/duogen_test/small_models", {}))]
    yield files
    for file in files:
        file.unlink()


@pytest.fixture(scope="module")
def small_models(server: Server, small_model_files: list[Path]):
    yield
    server.post("/free", {"unload_models": True, "free_memory": True})


@pytest.fixture(scope="session", params=["random", "duogen-tiny"])
def checkpoint(request: pytest.FixtureRequest, random_model: Path) -> Path:
    """Both kinds of model, where both are there."""
    if request.param == "random":
        return random_model
    if not (BUNDLED / "model_index.json").is_file():
        pytest.skip("The bundled model models/duogen-tiny is not here.")
    return BUNDLED


@pytest.fixture
def small_qwen3(server: Server):
    """A small Qwen3-VL as a Hugging Face folder in text_encoders."""
    import shutil

    import torch

    from tests.core.mllm_families import lively

    folder = server.base / "models" / "text_encoders" / "Tiny-Qwen3-VL"
    folder.mkdir(parents=True)
    mllm = lively("qwen3_vl")
    head, words = mllm.model.lm_head.weight, mllm.tokenizer
    with torch.no_grad():  # it comes to an end soon, or its plan would fill the token budget with one part
        head[words.convert_tokens_to_ids(".")] *= 3
        head[words.convert_tokens_to_ids('"')] *= 10
    mllm.save_pretrained(folder)
    yield folder.name
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def painter(server: Server):
    """A checkpoint of random weights that Load Checkpoint takes for Stable Diffusion 1.5."""
    import painter_checkpoint

    folder = server.base / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    file = painter_checkpoint.write(folder / "stand-in.safetensors")
    yield file.name
    server.post("/free", {"unload_models": True, "free_memory": True})
    file.unlink()
