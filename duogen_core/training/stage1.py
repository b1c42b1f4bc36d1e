"""Stage 1: the MLLM learns to answer, and when to draw (paper section 3.3).

    python -m duogen_core train stage1 init=runs/pretrain/export out=runs/stage1 minutes=42

Next-token loss on assistant turns only, <BOV> and <|im_end|> counted; user and system turns and pictures are read, not
learnt. Alignment data is left out: it would blunt what the MLLM learnt after its pre-training.
In: an exported or a published MLLM; Sketchbook, or your own documents with data=[...]. Out: <out>/export, whole; with
lora also <out>/adapter.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from duogen_core.mllm.base import Mllm
from duogen_core.mllm.bov import load_start
from duogen_core.mllm.qwen2_5_vl import Qwen25VL
from duogen_core.training.command import add_arguments_for, run_command
from duogen_core.training.config import ConfigError
from duogen_core.training.loop import Run
from duogen_core.training.lora import MLLM_TARGETS, LoraSettings, add_lora
from duogen_core.training.mllm import MllmConfig, Trainer


@dataclass(kw_only=True)
class Stage1Config(MllmConfig):
    out: Path = Path("runs/stage1")
    init: Path = Path("runs/pretrain/export")  # the MLLM to train, a Hugging Face folder
    lr: float = 1.5e-3
    muon_lr: float = 4e-3
    lora: LoraSettings | None = None  # learn small matrices beside the frozen ones: lora.rank=16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora and self.tower_lr > 0:
            raise ConfigError("'tower_lr' trains the vision tower, which 'lora' leaves as it is; give one of them.")


def train(config: Stage1Config) -> Run:
    torch.manual_seed(config.seed)
    mllm, started = load_start(config.init)
    if mllm.model_type != Qwen25VL.model_type:
        raise ConfigError(f"{config.init} is a {mllm.model_type} model; stage 1 trains those of {Qwen25VL.model_type}.")
    if started:
        print(f"<BOV> was never learnt by {config.init}: its rows start anew ({' and '.join(started)}).", flush=True)
    if config.lora is None:
        mllm.model.float()  # bfloat16 has too few digits for small steps
    else:
        adapt(mllm, config.lora)
    mllm.model.train()
    return Trainer(mllm, config, config.lora).run()


def adapt(mllm: Mllm, lora: LoraSettings) -> None:
    """LoRA on the language model's layers; the rows of <BOV> are learnt whole."""
    model, rows = mllm.model, [mllm.control.bov]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tokens = {"embed_tokens": rows} if tied else {"embed_tokens": rows, "lm_head": rows}
    add_lora(model, lora, within="model.language_model.layers", usual=MLLM_TARGETS, tokens=tokens)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments_for(parser, Stage1Config, parallel=True)


def run(args: argparse.Namespace) -> int:
    return run_command(args, Stage1Config, train, parallel=True)
