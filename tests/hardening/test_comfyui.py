"""A small share of the campaign against a real ComfyUI, and that it notices: the fifty runs are in tests/comfyui."""

from __future__ import annotations

import random
import sys

import pytest

from tests.hardening import comfyui, mutations

sys.path.append(str(comfyui.ROOT / "tests" / "comfyui"))
from server import find_comfyui

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_comfyui() is None, reason="no ComfyUI here; set COMFYUI_PATH to one"),
]


@pytest.mark.parametrize(("part", "number"), [("kills", 7), ("values", 6)])
def test_a_share(part, number):
    (score,) = comfyui.campaign(number, seed=1, names=[part])
    assert score.figures[{"kills": "kills", "values": "cases"}[part]] >= 2
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


def test_the_depth_of_a_value():
    assert mutations.depth(mutations.deep(30)) == 30 == mutations.depth(mutations.deep(30, "dict"))
    assert mutations.depth("a") == 0 == mutations.depth([])
