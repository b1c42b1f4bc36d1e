"""A small share of the campaign against a real ComfyUI, and that it notices: the fifty runs are in tests/comfyui."""

from __future__ import annotations

import random
import sys

import pytest

from tests.hardening import comfyui, disk, mutations

sys.path.append(str(comfyui.ROOT / "tests" / "comfyui"))
from server import find_comfyui

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_comfyui() is None, reason="no ComfyUI here; set COMFYUI_PATH to one"),
]


@pytest.mark.parametrize(("part", "figure", "number"), [("kills", "kills", 4), ("values", "cases", 4)])
def test_a_share(part, figure, number):
    (score,) = comfyui.campaign(number, seed=1, names=[part])
    assert score.figures[figure] >= 1
    assert score.faults == []


@pytest.mark.skipif(not disk.can_mount(), reason="only root mounts a tmpfs")
def test_an_output_folder_without_room():
    (score,) = comfyui.campaign(4, seed=1, names=["disks"])
    assert score.figures["failed"] >= 1
    assert score.faults == []


def test_hostile_values_go_into_widgets_of_our_nodes():
    import graphs

    changed = set()
    for k in range(60):
        before, graph = (graphs.answer("random", "Draw.") for _ in range(2))
        comfyui.hostile(graph, random.Random(k), k)
        (key,) = [key for key in graph if graph[key] != before[key]] or [None]
        changed.add(key)
    assert changed >= {"2", "3", "4", "5"}


def test_sockets_of_our_nodes_are_rewired():
    import graphs

    said = set()
    for k in range(60):
        before, graph = (graphs.answer("random", "Draw.") for _ in range(2))
        said.add(comfyui.rewired(graph, random.Random(k)).partition(".")[0])
        assert graph != before
    assert said == {"DuoGenInterleave", "DuoGenFormat", "DuoGenSaveDocument"}


def test_the_depth_of_a_value():
    assert mutations.depth(mutations.deep(30)) == 30 == mutations.depth(mutations.deep(30, "dict"))
    assert mutations.depth("a") == 0 == mutations.depth([])
