"""Sampling in ComfyUI: prepared once a picture, shared by both branches, found again by the next picture of a loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def found(comfyui: Path) -> dict[str, Any]:
    """What probe_steps.py saw; ComfyUI needs a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("probe_steps.py")), str(comfyui)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(params=["full", "frame_causal"])
def run(found: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    return found[request.param] | {"attention": request.param}


def test_images_are_the_cores(run: dict[str, Any]):
    assert max(run["away"]) <= 1e-4


def test_both_branches_are_one_batch_prepared_once_an_image(run: dict[str, Any]):
    causal = run["attention"] == "frame_causal"
    # each branch finds what the image before has left, and the second one what the first has computed
    frames = [(0, 0), (0 + 1, 1), (1 + 2, 1), (2 + 3, 1)] if causal else [(0, 0)] * 4
    assert [tuple(each) for each in run["prepared"]] == [(2, *each) for each in frames]
    assert run["runs after the run"] == 0
    assert len(run["a batch of two"]) == 1


def test_what_changes_from_step_to_step_is_prepared_anew(run: dict[str, Any]):
    assert run["prepared when the text changes"] == 3
    assert run["prepared when a wrapper changes the text"] == 3


def test_branches_may_look_at_unlike_images(run: dict[str, Any]):
    assert run["other images in the negative"] <= 1e-4


def test_keys_and_values_belong_to_the_weights(run: dict[str, Any]):
    assert run["other weights draw another picture"]
    if run["attention"] == "frame_causal":
        assert run["found by other weights"] == 3  # its own, by the second branch
    bypassed, without = run["a LoRA in bypass mode"]
    assert run["another layer in its place"] <= 1e-4
    assert max(bypassed, without) <= 1e-4, "drawn after each other, but not with each other's keys and values"


def test_refreshing_now_and_then_is_the_cores(run: dict[str, Any]):
    exact, second = run["refreshed"]
    assert second <= 1e-4
    assert (exact <= 1e-4) == (run["attention"] == "frame_causal"), "full attention changes, frame_causal does not"


def test_a_node_that_trains_gets_gradients(run: dict[str, Any]):
    away, slope = run["with gradients"]
    assert away <= 1e-4
    assert slope == pytest.approx(1, abs=0.02)


def test_what_outlives_a_run_is_counted_and_goes_with_the_model(run: dict[str, Any]):
    causal = run["attention"] == "frame_causal"
    assert (run["held after the run"] > 0) == causal
    assert run["held after unloading"] == 0
    held, fresh = run["asked for"]
    assert (held < fresh) == causal
    text = 1000 * 3 * 2 * 48 * 4  # tokens, blocks, keys and values, width, bytes
    assert fresh - run["asked for without text"] == pytest.approx(text)
