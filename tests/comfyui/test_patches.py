"""Patches inside our MODEL: what they compute is the core's own arithmetic, and nothing of them stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLOSE = 1e-4  # of a latent, after four steps


@pytest.fixture(scope="module")
def found(comfyui: Path) -> dict[str, Any]:
    """What probe_patches.py saw."""
    return probe(comfyui)


def probe(comfyui: Path, *flags: str) -> Any:
    """ComfyUI needs a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("probe_patches.py")), str(comfyui), *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(
    params=[f"{family} {kind}" for family in ("PackedCosmos", "PackedWan") for kind in ("full", "frame_causal")]
)
def run(found: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    return found[request.param]


def test_skipped_layers_are_a_model_without_them(run: dict[str, Any]):
    """Also for the earlier images, also in some of the steps, also in the negative alone."""
    assert max(run["skip layer"], run["skip layer in some steps"], run["skip layer of the negative"]) <= CLOSE
    assert min(run["that is another image"]) > 0.1


def test_perturbed_attention_is_values_alone(run: dict[str, Any]):
    assert max(run["perturbed attention"]) <= CLOSE
    assert run["normalized attention guidance"] > 0.1


def test_comfyuis_attention_functions_compute_the_same(run: dict[str, Any]):
    """As a node's override and as a flag sets them; the masks of frame_causal are kept by what is handed over."""
    for override, flag, blocks in run["attention"].values():
        assert max(override, flag) <= 1e-5
        assert blocks == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("flag", "function"),
    [("--use-split-cross-attention", "attention_split"), ("--use-quad-cross-attention", "attention_sub_quad")],
)
def test_comfyuis_flags_choose_the_function(comfyui: Path, flag: str, function: str):
    assert probe(comfyui, flag) == function


def test_without_a_flag_a_cpu_takes_the_cores_own(comfyui: Path):
    assert probe(comfyui, "--disable-metadata") == "plain_attention"


def test_another_attention_leaves_nothing_behind(run: dict[str, Any]):
    assert run["another attention"] > 0.1
    assert run["without it again"]


def test_patches_get_what_stock_transformers_give(run: dict[str, Any]):
    away, shapes = run["added after each block"]
    assert away <= CLOSE
    assert shapes == [[block, 24 + 40, 48, 30, 20] for block in range(4)]
    assert max(run["around every block"], run["patches that change nothing"]) <= CLOSE
    assert min(run["a block twice"], *run["patches that change something"].values()) > 0.1


def test_a_wrapper_may_write_into_its_input(run: dict[str, Any]):
    assert run["a wrapper that writes into its input"] == 0


def test_after_all_patches_the_plain_image_comes_again_bit_for_bit(run: dict[str, Any]):
    assert run["at the end, nothing between"]


def test_what_has_no_place_is_refused(run: dict[str, Any]):
    said = run["refused"]
    assert all(each.startswith("DuoGenError: ") for each in said.values()), said
    assert "patches attention (attn1_patch) as a U-Net or ComfyUI's own Wan has it" in said["hypernetwork"]
    assert "patches a place (middle_patch)" in said["gligen"]
    assert "SkipLayerGuidanceDiT (nodes_slg)" in said["blocks"] and "double_block 0 to 3" in said["blocks"]
    assert "(single_block 1)" in said["single"] and "(input 4)" in said["unet block"]
    assert "makes [2, 63, 48] of tokens of the shape [2, 64, 48]" in said["shape"]
    assert "failed in block 0" in said["crash"]
    assert "made for another model's layers" in said["control"]


def test_training_refuses_patches_and_takes_pytorchs_attention(run: dict[str, Any]):
    assert "cannot be trained so" in run["refused"]["training"]
    assert run["training with a chosen attention"] == 0
