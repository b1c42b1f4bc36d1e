"""Published files under ComfyUI's management: the pipeline's own numbers, fp8, too little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import published_files
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What probe_published.py saw; ComfyUI needs a process of its own."""
    tokenizer = comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer"
    folder = published_files.write(tmp_path_factory.mktemp("published"), tokenizer)
    probe = Path(__file__).with_name("probe_published.py")
    done = subprocess.run(
        [sys.executable, str(probe), str(comfyui), str(folder)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("guidance", ["1.0", "8.0"])
def test_a_prompt_gives_the_latent_of_diffusers_pipeline(found: dict[str, Any], guidance: str):
    """Encode Prompt, our sigmas and solver, ComfyUI's sampling and guidance: against Cosmos2_5_PredictBasePipeline."""
    assert found[f"pipeline {guidance}"] < 1e-4


def test_the_stock_scheduler_comes_close(found: dict[str, Any]):
    assert found["simple against published"] < 0.01
    assert 1e-3 < found["stock scheduler"] < 0.3


def test_fp8_layers_stay_fp8_and_compute_what_they_hold(found: dict[str, Any]):
    fp8 = found["fp8"]
    assert fp8["quantised"] == [17, 8] and fp8["kept in"] == ["torch.bfloat16"]
    assert fp8["whole"] < 5e-3 and fp8["partly loaded"] < 5e-3


def test_out_of_memory_is_tried_once_more_with_more_room(found: dict[str, Any]):
    short = found["short of memory"]
    assert short["same"] < 1e-6
    assert short["room"] == [1.0, 4.0] and short["room afterwards"] == 1.0
    assert short["sentence"].startswith("Memory ran out twice while drawing an image of 48 x 32 pixels; draw smaller")
    assert short["streamed"] == "Once upon a time"


def test_a_text_that_is_written_again_goes_out_once(found: dict[str, Any]):
    writing = found["writing"]
    assert writing["text"] == writing["streamed"] == published_files.FIRST and writing["calls"] > 4


def test_a_picture_too_large_for_the_vae_goes_through_it_in_tiles(found: dict[str, Any]):
    tiles = found["tiles"]
    assert tiles["refused"] >= 2
    assert 0 < tiles["decoded"] < 0.05 and 0 < tiles["encoded"] < 0.5


def test_earlier_pictures_are_in_the_estimates(found: dict[str, Any]):
    guessed = found["estimates"]
    none, one, two = guessed["drawing"]
    assert two - one == pytest.approx(one - none) and one == pytest.approx(2 * none)
    assert guessed["kept of pictures"] == [n * 256 * 8 * 2 * 192 * 4 for n in range(3)]
    none, one, two = guessed["writing"]
    assert two - one == pytest.approx(one - none, rel=0.5) and one > none  # a chunk of a prefill is counted once
