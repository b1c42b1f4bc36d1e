"""A whole copy of a module that FSDP splits, on the main process alone: to draw samples and to score.

    with processes.gathered(model):                         # all processes
        copy = whole_copy(model) if main else None          # in the host's memory
    if main: sample(copy.to(device))                        # the others go on to the next step and wait there

The other way, all processes running the split module in step, has each of them read, write and draw the same answer,
and would stop for ever where one of them, by a last digit, wrote one word more or drew one picture less than the
others. A copy costs the main process the memory of the weights while it draws, in bfloat16 half of that.
"""

from __future__ import annotations

import torch
from torch import nn

from duogen_core.connector import Connector
from duogen_core.training.lora import merged_state
from duogen_core.weights.module import build_empty


@torch.no_grad()
def whole_copy(module: nn.Module) -> nn.Module:
    """A module of the same configuration, in eval mode, on the CPU; what LoRA learnt is added in, to the weights before
    they were quantised, as in the export. The module itself stays as it is: only its `state_dict()` is asked, which
    must be whole."""
    kind = type(module)

    def make() -> nn.Module:
        if isinstance(module, Connector):
            return Connector(module.config)
        return kind.from_config(module.config) if hasattr(kind, "from_config") else kind(module.config)

    # Buffers for real: an MLLM's rotary tables are in no state.
    copy = build_empty(make, "this run", f"a {kind.__name__}", real_buffers=True)
    state = merged_state(module) if getattr(module, "peft_config", None) else module.state_dict()
    copy.load_state_dict(state, assign=True)
    if hasattr(copy, "get_output_embeddings"):
        read, written = copy.get_input_embeddings(), copy.get_output_embeddings()
        if read.weight.data_ptr() == written.weight.data_ptr():  # tied: one on the device, too
            written.weight = read.weight
    return copy.requires_grad_(False).eval()


def on_device(module: nn.Module, device: torch.device, bf16: bool) -> nn.Module:
    """bf16: whether the run computes in it; on a CPU the copy keeps its precision."""
    return module.to(device, torch.bfloat16 if bf16 and device.type != "cpu" else None)
