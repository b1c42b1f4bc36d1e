"""What loading an MLLM takes at its peak, against the size of its file; in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from duogen_core.mllm.qwen2_5_vl import new_model
from tests.core.mllm_families import lively, tokenizer

PROGRAM = """
import gc, json, sys
from pathlib import Path
import torch
from duogen_core.mllm.loading import build, detect_family, load_mllm

folder = Path(sys.argv[1])
build(*detect_family(folder), folder)  # whatever has to be imported is
torch.zeros(1).sum()


def status(field):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])


def peak(dtype):
    # Bytes more than before, after every weight has been read.
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = status("VmRSS")
    mllm = load_mllm(folder, dtype)
    assert all(float(parameter.flatten()[-1]) == 1 and parameter.sum() > 0 for parameter in mllm.model.parameters())
    return status("VmHWM") - before


print(json.dumps([peak(None), peak(torch.float32)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_little_more_than_the_file(tmp_path) -> None:
    with torch.device("meta"):
        model = new_model(
            tokenizer(), hidden_size=1024, layers=8, heads=32, kv_heads=8, intermediate_size=4096,
            vision_hidden_size=512, vision_layers=4, vision_heads=16, vision_intermediate_size=2048,
        )  # fmt: skip
    small = lively("qwen2_5_vl")
    small.tokenizer.save_pretrained(tmp_path)
    small.image_processor.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    state = {
        name: torch.ones(tensor.shape, dtype=torch.bfloat16)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    size = file.stat().st_size
    assert size > 250e6
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True,
    )  # fmt: skip
    as_stored, doubled = json.loads(run.stdout.splitlines()[-1])
    assert as_stored < 1.25 * size, f"{as_stored / size:.2f} times the file"
    assert doubled > 1.9 * size  # the measure sees what is there: float32 takes twice the file's bfloat16
