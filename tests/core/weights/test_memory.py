"""Loading takes little more memory than the file has: measured in a process of its own, to the first step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.weights.cosmos_keys import to_official

PROGRAM = """
import sys
from pathlib import Path
import torch
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.dit.loading import open_published

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

PackedCosmos(num_attention_heads=1, attention_head_dim=24, num_layers=1)
torch.ones(8, 8, dtype=torch.bfloat16) @ torch.ones(8, 8, dtype=torch.bfloat16)
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
before = status("VmRSS")
file = open_published(sys.argv[1])
dit, connector = file.load_dit(), file.load_connector((4, 1024))
with torch.inference_mode():
    text = connector.project(torch.randn(1, 2, 4096))
    frames = [torch.randn(1, 16, 4, 4).bfloat16() for _ in range(3)]
    out = dit.forward_packed(frames, torch.tensor([0.5]), text.bfloat16())
assert out.isfinite().all()
print(status("VmHWM") - before, file.weights.bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is Linux's")
def test_loading_and_a_step_take_less_than_a_quarter_more_than_the_file(tmp_path):
    with torch.device("meta"):
        model = PackedCosmos(
            num_attention_heads=8, attention_head_dim=128, num_layers=8, text_embed_dim=1024,
            use_crossattn_projection=True, crossattn_proj_in_channels=4096, encoder_hidden_states_channels=1024,
        )  # fmt: skip
    weights = {
        to_official(name): torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(std=0.02)
        for name, tensor in model.state_dict().items()
    }
    path = tmp_path / "cosmos.safetensors"
    save_file(weights, path)
    del weights
    run = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True)
    taken, size = map(int, run.stdout.split())
    assert size > 200_000_000
    assert 0.9 * size < taken < 1.25 * size, f"{taken / size:.2f} times the file"
