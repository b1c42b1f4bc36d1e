"""What pretrain.py and stage1.py share: settings, optimizers, the training loop, held-out scores and the export.

A step = `batch` conversations, a pure function of (seed, step). Out: <out>/export, a Hugging Face folder (float32
safetensors).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from duogen_core.data.sketchbook.cases import Case
from duogen_core.data.sketchbook.tasks import FAMILIES, evaluation_case, training_case
from duogen_core.mllm.qwen2_5_vl import Qwen25VL
from duogen_core.training.command import RunConfig
from duogen_core.training.config import ConfigError
from duogen_core.training.loop import Run, rng_for
from duogen_core.training.next_token import Batcher, NextTokenLoss, Whole, hidden_states, part_of, predict, see
from duogen_core.training.recall import Recall

WEIGHTS = {
    "guide": 0.2,
    "draw": 0.17,
    "edit": 0.18,
    "continue": 0.08,
    "plan": 0.11,
    "draft": 0.1,
    "undrafted": 0.03,
    "describe": 0.16,
}


@dataclass(kw_only=True)
class MllmConfig(RunConfig):
    warmup: int = 60
    batch: int = 16  # conversations a step
    lr: float = 2e-3  # of AdamW
    muon_lr: float = 5e-3
    tower_lr: float = 0.0  # 0: frozen; at 1e-3 the gradients of an untrained language model undid the warm-up
    optimizer: Literal["muon", "adamw"] = "muon"  # for the matrices of the decoder layers; AdamW has the rest
    weight_decay: float = 0.03
    recall_weight: float = 0.5  # of the read-outs of recall.py
    micro_tokens: int = 1536  # padded tokens of a micro-batch, at most (one conversation at least)
    data: list[Any] = field(default_factory=list)  # sources, as of `data check`; empty: Sketchbook's own cases
    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))  # of Sketchbook's task families
    vision_families: tuple[str, ...] = ("plan", "draft", "undrafted", "edit", "continue")
    eval_cases: int = 16  # a family
    eval_minutes: float = 3.0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(FAMILIES))
        if unknown:
            raise ConfigError(f"Sketchbook has no task family '{unknown[0]}'; it has {', '.join(FAMILIES)}.")


@torch.no_grad()
def evaluate(model: nn.Module, batcher: Batcher, cases: Mapping[str, Sequence[Case]]) -> dict[str, dict[str, float]]:
    """Teacher-forced, per family: `token`, share of learnt tokens foreseen; `when`, share of conversations in which the
    model would draw and stop exactly where the ideal answer does."""
    control = batcher.control
    stops = torch.tensor([control.bov, control.im_end])
    scores = {}
    for family, some in cases.items():
        right = tokens = in_time = 0
        for case in some:  # one by one: a conversation is judged as a whole
            batches, pixels = batcher([case], 0.0)
            states = hidden_states(model, batches[0], see(model.model.visual, pixels))
            logits, targets, _ = predict(model, batches[0], states[-1])
            guess = logits.argmax(-1)
            right += int((guess == targets).sum())
            tokens += len(targets)
            decides = torch.isin(guess, stops) | torch.isin(targets, stops)
            in_time += bool((guess == targets)[decides].all())
        scores[family] = {"token": round(right / tokens, 4), "when": round(in_time / len(some), 4)}
    return scores


def evaluation_cases(count: int, families: Sequence[str] = tuple(FAMILIES)) -> dict[str, list[Case]]:
    """Fixed cases that no training seed draws."""
    return {f: [evaluation_case(f, rng_for(0, "mllm evaluation", f, k)) for k in range(count)] for f in families}


def optimizers_of(
    model: nn.Module, config: MllmConfig, recall: Recall | None = None
) -> dict[str, torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices of the decoder layers and AdamW for the rest. Norms, biases and the
    embedding do not decay; the tower, already warm, learns more slowly."""
    muon, decayed, rest, tower = [], [], [], []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and "embed_tokens" not in name
        if "visual" in name:
            parameter.requires_grad_(config.tower_lr > 0)
            tower += [parameter] if config.tower_lr > 0 else []
        elif matrix and config.optimizer == "muon":
            muon.append(parameter)
        else:
            (decayed if matrix else rest).append(parameter)
    rest += [] if recall is None else list(recall.parameters())
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
        {"params": tower, "weight_decay": 0.0, "lr": config.tower_lr},
    ]
    found = {"adamw": torch.optim.AdamW([g for g in groups if g["params"]], config.lr, betas=(0.9, 0.98))}
    if muon:
        found["muon"] = torch.optim.Muon(
            muon, config.muon_lr, config.weight_decay, ns_steps=4, adjust_lr_fn="match_rms_adamw"
        )
    return found


def export(model: nn.Module, tokenizer: Any, processor: Any, folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    Qwen25VL(model, tokenizer, processor).save_pretrained(new)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new, folder)


@dataclass
class Trainer:
    model: nn.Module
    tokenizer: Any
    processor: Any
    config: MllmConfig

    def run(self, user_weight: float = 0.0) -> Run:
        """Train to the end; a finished run is only read. Evaluates and exports every few minutes."""
        config = self.config
        batcher = Batcher(
            self.tokenizer,
            self.processor,
            micro_tokens=config.micro_tokens,
            vision_families=config.vision_families,
        )
        run = config.run()
        text_config = self.model.config.text_config
        recall = Recall(text_config.num_hidden_layers, text_config.hidden_size)
        optimizers = optimizers_of(self.model, config, recall)
        together = run.processes
        loss_of = together.prepare(NextTokenLoss(self.model, recall, bf16=config.bf16), optimizers)
        run.attach({"model": self.model, "recall": recall}, optimizers)
        finished = run.finished
        due = run.elapsed + 60 * config.eval_minutes
        for step in run:
            rng = run.rng(step)
            cases = [training_case(rng, config.weights) for _ in range(config.batch)]
            batches, pixels = batcher(cases, user_weight)
            mine = part_of(batches, pixels, together.rank, together.count)
            loss, recalled = loss_of(*mine, Whole.of(batches))
            norm = run.update(
                loss + config.recall_weight * recalled,
                clip=1.0,
                clipped=self.model.parameters(),
                samples=[f"{case.family} ({k})" for k, case in enumerate(cases)],
            )
            run.report(
                loss=together.total(loss),
                recall=together.total(recalled),
                norm=norm,
                tokens=sum(batch.ids.numel() for batch in batches),
            )
            if run.elapsed >= due:
                self.check(run, batcher)
                due = run.elapsed + 60 * config.eval_minutes
        if run.finished and not finished:
            self.check(run, batcher)
        return run

    def check(self, run: Run, batcher: Batcher) -> None:
        """Scores and export, by the main process; under FSDP, where none has the whole model, the export alone."""
        if run.main and not run.processes.sharded:
            scores = evaluate(self.model, batcher, evaluation_cases(self.config.eval_cases))
            run.record(eval=scores)
            run.say("held-out " + "  ".join(f"{f} {s['token']:.3f}/{s['when']:.2f}" for f, s in scores.items()))
        with run.processes.gathered(self.model):
            if run.main:
                export(self.model, self.tokenizer, self.processor, run.folder / "export")
