"""Stage 1: the MLLM learns to answer, and when to draw (paper section 3.3).

    python -m duogen_core train stage1 init=runs/pretrain/export out=runs/stage1 minutes=42

Next-token loss on assistant turns only, <BOV> and <|im_end|> counted; user turns and pictures are read, not learnt.
In: an exported MLLM. Out: <out>/export.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from duogen_core.mllm.qwen2_5_vl import Qwen25VL
from duogen_core.training.command import add_arguments_for, run_command
from duogen_core.training.loop import Run
from duogen_core.training.mllm import MllmConfig, Trainer


@dataclass(kw_only=True)
class Stage1Config(MllmConfig):
    out: Path = Path("runs/stage1")
    init: Path = Path("runs/pretrain/export")  # the MLLM to train, a Hugging Face folder
    lr: float = 1.5e-3
    muon_lr: float = 4e-3


def train(config: Stage1Config) -> Run:
    torch.manual_seed(config.seed)
    start = Qwen25VL.from_pretrained(config.init)
    return Trainer(start.model.train(), start.tokenizer, start.image_processor, config).run()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments_for(parser, Stage1Config)


def run(args: argparse.Namespace) -> int:
    return run_command(args, Stage1Config, train)
