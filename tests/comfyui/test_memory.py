"""Our models under ComfyUI's memory management: moved, partly loaded, in half precision, they compute the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module", params=["Cosmos", "Wan"])
def found(
    comfyui: Path, random_model: Path, random_wans: dict[str, Path], request: pytest.FixtureRequest
) -> dict[str, Any]:
    """What probe_memory.py saw of a checkpoint with a DiT of either family; ComfyUI needs a process of its own."""
    probe = Path(__file__).with_name("probe_memory.py")
    model = random_model if request.param == "Cosmos" else random_wans["frame_causal"]
    done = subprocess.run(
        [sys.executable, str(probe), str(comfyui), str(model)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_weight_can_be_cast_on_use(found: dict[str, Any]):
    """But for Wan's tables of modulations, which are no layer's: ComfyUI moves those whole, as its own Wan's."""
    assert [name for name in found["unmanaged"] if not name.endswith("scale_shift_table")] == []


@pytest.mark.slow
def test_the_faster_product_of_the_cpu_stays_on_the_cpu(found: dict[str, Any]):
    """On a card the layers get ComfyUI's own class, as every other Linear."""
    assert found["linear layers"] == [[False, True], [True, False]]


@pytest.mark.slow
@pytest.mark.parametrize("state", ["loaded", "partly loaded", "half precision"])
def test_same_numbers_as_plain_modules(found: dict[str, Any], state: str):
    assert found[state] is not False, f"{state}: ComfyUI did not do it"
    assert found[state] <= 1e-5


@pytest.mark.slow
def test_half_precision_is_storage_only(found: dict[str, Any]):
    assert found["computed in"] == ["torch.float32", "torch.float32"]


@pytest.mark.slow
def test_unloading_gives_the_prefix_cache_back(found: dict[str, Any]):
    assert found["cache after unloading"] == 0


@pytest.mark.slow
def test_the_prefix_cache_lasts_from_node_to_node(found: dict[str, Any]):
    """ComfyUI detaches a model before every use, without taking its weights away."""
    assert found["cache at the next use"] > 0


@pytest.mark.slow
def test_weights_keep_the_names_that_lora_files_use(found: dict[str, Any]):
    assert found["lora key"].removeprefix("diffusion_model.") in (
        "transformer_blocks.0.attn1.to_q.weight",
        "blocks.0.attn1.to_q.weight",
    )


@pytest.mark.slow
def test_results_kept_for_rerolls_are_bounded(found: dict[str, Any]):
    """Full: nothing more of this run, so that the pictures before the bound stay; the next run pushes out the oldest,
    but not what it has used itself. What holds a model is never kept, nor what two runs did not use."""
    assert found["kept"] == {
        "of one run": ["a1", "b1"],
        "of the next run": ["a2", "b1"],
        "never": ["a2", "b1"],
        "two runs later": ["a2"],
        "counted once": 400,
    }
