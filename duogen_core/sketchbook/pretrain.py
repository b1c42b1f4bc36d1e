"""Trains the small MLLM from nothing, first the language, then the vision tower: where a large one would be downloaded.

    python -m duogen_core train pretrain out=runs/pretrain minutes=30 vision.minutes=12

0. <out>/tokenizer: byte-level BPE on the text of random training conversations, user's and assistant's alike, with
   Qwen's control tokens and <BOV>. So Sketchbook's words come out whole.
1. <out>: next-token loss on assistant turns and, with a smaller weight, on the user's text, so that the language itself
   is learned too; the vision tower is not trained.
2. <out>/vision: the tower learns to be the language model's words for what it sees (vision.py).
Out: <out>/export, where stage1.py begins.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch

from duogen_core.document import Text
from duogen_core.errors import unknown
from duogen_core.mllm.decoder import Sizes
from duogen_core.mllm.image_processor import small_image_processor
from duogen_core.mllm.qwen2_5_vl import Qwen25VL, new_model
from duogen_core.mllm.tokenizer import load_tokenizer, train_tokenizer
from duogen_core.sketchbook.source import SketchbookWorld
from duogen_core.sketchbook.tasks import training_case
from duogen_core.sketchbook.vision import VisionConfig, warm_up
from duogen_core.training.command import add_arguments_for, run_command
from duogen_core.training.configuration import ConfigError
from duogen_core.training.run import Run, rng_for
from duogen_core.training.samples import ideal_answers, write_answers
from duogen_core.training.stage1 import MllmConfig, Trainer, export


def sketchbook_texts(seed: int, cases: int) -> Iterator[str]:
    for k in range(cases):
        for turn in training_case(rng_for(seed, "tokenizer", k)).document.turns:
            yield f"{turn.role}\n"
            yield from (part.text for part in turn.parts if isinstance(part, Text))


def sketchbook_tokenizer(seed: int = 0, cases: int = 4000, vocab_size: int = 1024) -> Any:
    return train_tokenizer(sketchbook_texts(seed, cases), vocab_size)


@dataclass(kw_only=True)
class PretrainConfig(MllmConfig):
    command: ClassVar[str] = "pretrain"
    out: Path = Path("runs/pretrain")
    user_weight: float = 0.3  # of the user's text
    vocab_size: int = 1024
    tokenizer_cases: int = 4000
    sizes: Mapping[str, Any] = field(default_factory=dict)  # of new_model
    vision: VisionConfig = field(default_factory=VisionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [*(each.name for each in fields(Sizes)), "mrope_section"]
        for name in self.sizes:
            if name not in known:
                raise ConfigError(unknown("'sizes': the setting", name, known))


def train(config: PretrainConfig) -> Run:
    """Both phases; returns the last run, whose `interrupted` tells whether it got to its end."""
    torch.manual_seed(config.seed)
    folder = config.out / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        sketchbook_tokenizer(config.seed, config.tokenizer_cases, config.vocab_size).save_pretrained(folder)
    tokenizer, processor = load_tokenizer(folder), small_image_processor(config.sizes.get("patch_size", 16))
    model = new_model(tokenizer, **config.sizes)
    mllm = Qwen25VL(model, tokenizer, processor)
    run = Trainer(mllm, config).run(config.user_weight)
    if run.interrupted:  # by Ctrl-C: the second phase needs a finished language model
        return run
    ideals = ideal_answers(SketchbookWorld().evaluation_examples(1))
    run = warm_up(
        model,
        tokenizer,
        config.out / "vision",
        config.vision,
        seed=config.seed,
        bf16=config.bf16,
        show=lambda run: write_answers(mllm, ideals, run.folder, run.step),
        show_minutes=config.sample_minutes,
        device=config.device,
        log_every=config.log_every,
        checkpoint_minutes=config.checkpoint_minutes,
        tensorboard=config.tensorboard,
    )
    export(model, tokenizer, processor, config.out / "export")
    return run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments_for(parser, PretrainConfig)


def run(args: argparse.Namespace) -> int:
    return run_command(args, PretrainConfig, train)
