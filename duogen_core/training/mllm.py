"""Training of the small MLLM on Sketchbook: from nothing to an answerer that knows when to draw.

    python -m duogen_core train mllm --out runs/mllm --language-minutes 25 --vision-minutes 12 --minutes 45

Three phases in one run folder, each its own run with checkpoints:
1. <out>/language, "from scratch": next-token loss on assistant turns and, with a smaller weight, on the user's text,
   so that the language itself is learnt too; left out when training starts from an exported model (--init);
2. <out>/vision: the vision tower learns to be the language model's words for what it sees (vision.py);
3. <out>, "stage 1", exactly the paper's: next-token loss on assistant turns only, <BOV> and <|im_end|> counted.

A step = `batch` conversations, a pure function of (seed, step); sorted by length into micro-batches so that little is
padded; logits only where something is learnt. Pictures run through the tower once per step, equal ones once. Gradients
reach the tower through the user's pictures and those of `vision_families`; the other drawn pictures repeat what their
text says, and seeing them is learnt from the rest. Out: <out>/export, a Hugging Face folder (float32 safetensors).
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duogen_core.data.sketchbook.cases import Case
from duogen_core.data.sketchbook.tasks import FAMILIES, evaluation_case, training_case
from duogen_core.errors import DuoGenError
from duogen_core.mllm.chat import control_ids, image_token_counts, layout, picture_grid
from duogen_core.mllm.qwen2_5_vl import Qwen25VL, layer_outputs, mrope_positions, new_model
from duogen_core.mllm.tokenizer import load_tokenizer, small_image_processor
from duogen_core.training.fast import quick_bf16, tower_features
from duogen_core.training.loop import Run, rng_for
from duogen_core.training.recall import ATTRIBUTES, Recall, Vocabulary
from duogen_core.training.tokenizer import sketchbook_tokenizer
from duogen_core.training.vision import warm_up

WEIGHTS = {
    "guide": 0.2,
    "draw": 0.17,
    "edit": 0.18,
    "continue": 0.08,
    "plan": 0.11,
    "draft": 0.1,
    "describe": 0.16,
}


@dataclass(frozen=True)
class Config:
    batch: int = 16  # conversations a step
    lr: float = 2e-3
    tower_lr: float = 0.0  # 0: frozen; at 1e-3 the gradients of an untrained language model undid the warm-up
    optimizer: str = "muon"  # for the matrices of the decoder layers; or "adamw" for all
    muon_lr: float = 5e-3
    weight_decay: float = 0.03
    warmup: int = 60
    user_weight: float = 0.3  # of the user's text in phase 1
    recall_weight: float = 0.5  # of the read-outs of recall.py
    micro_tokens: int = 1536  # padded tokens of a micro-batch, at most (one conversation at least)
    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    vision_families: tuple[str, ...] = ("plan", "draft", "edit", "continue")
    vocab_size: int = 1024
    tokenizer_cases: int = 4000
    sizes: Mapping[str, Any] = field(default_factory=dict)  # of new_model
    eval_cases: int = 16  # a family
    eval_minutes: float = 3.0
    bf16: bool = True


@dataclass
class MicroBatch:
    """ids [B, N] right-padded, weight float [B, N] of every token as a target, positions [3, B, N], pictures by key."""

    ids: Tensor
    weight: Tensor
    positions: Tensor
    pictures: list[tuple[bytes, bool]]
    named: Tensor  # int [B, N, 4], what recall.py reads out


class Batcher:
    """Cases -> micro-batches and the distinct pictures they show."""

    def __init__(self, tokenizer: Any, processor: Any, config: Config) -> None:
        self.tokenizer, self.processor, self.config = tokenizer, processor, config
        self.control = control_ids(tokenizer)
        self.vocabulary = Vocabulary(tokenizer)

    def __call__(self, cases: Sequence[Case], user_weight: float) -> tuple[list[MicroBatch], dict[Any, Tensor]]:
        pixels: dict[Any, Tensor] = {}
        rows = []
        for case in cases:
            document = case.document
            spans = layout(document, self.tokenizer, image_token_counts(document, self.processor))
            weight = torch.tensor(spans.learn, dtype=torch.float32)
            for span in spans.parts:
                if span.kind == "text" and span.role == "user":
                    weight[span.start : span.end] = user_weight
            keys = []
            for span, picture in zip(spans.pictures, document.pictures, strict=True):
                key = (picture.pixels.tobytes(), not span.drawn or case.family in self.config.vision_families)
                pixels.setdefault((*key, picture.size), torch.from_numpy(picture.pixels.copy()))
                keys.append((*key, picture.size))
            grids = [picture_grid(picture, self.processor) for picture in document.pictures]
            positions = mrope_positions(spans.ids, grids, self.control.image_pad, self.processor.merge_size)
            rows.append((spans.ids, weight, positions, keys))
        rows.sort(key=lambda row: len(row[0]))
        batches, group = [], []
        for row in rows:
            if group and (len(group) + 1) * len(row[0]) > self.config.micro_tokens:
                batches.append(self._stack(group))
                group = []
            group.append(row)
        return [*batches, self._stack(group)], pixels

    def _stack(self, rows: Sequence[tuple]) -> MicroBatch:
        length = max(len(ids) for ids, *_ in rows)
        batch = MicroBatch(
            torch.full((len(rows), length), self.control.end_of_text),
            torch.zeros(len(rows), length),
            torch.zeros(3, len(rows), length, dtype=torch.long),
            [key for *_, keys in rows for key in keys],
            torch.full((len(rows), length, len(ATTRIBUTES)), -1),
        )
        for k, (ids, weight, positions, _) in enumerate(rows):
            batch.ids[k, : len(ids)] = torch.tensor(ids)
            batch.weight[k, : len(ids)] = weight
            batch.positions[:, k, : len(ids)] = positions
            batch.named[k, : len(ids)] = torch.tensor(self.vocabulary.last_named(ids))
        return batch


def see(tower: nn.Module, pixels: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
    """Features of every distinct picture [tokens, hidden]; pictures of one size run together."""
    features, trains = {}, next(tower.parameters()).requires_grad
    for learnt in (True, False):
        for size in {key[-1] for key in pixels}:
            keys = [key for key in pixels if key[1] == learnt and key[-1] == size]
            if keys:
                with torch.set_grad_enabled(learnt and trains and torch.is_grad_enabled()):
                    features |= zip(
                        keys, tower_features(tower, torch.stack([pixels[key] for key in keys])), strict=True
                    )
    return features


def hidden_states(model: nn.Module, batch: MicroBatch, features: Mapping[Any, Tensor]) -> list[Tensor]:
    """Outputs of the decoder layers, the last one after the final norm, each [B, N, hidden]."""
    embeds = model.get_input_embeddings()(batch.ids)
    if batch.pictures:
        seen = torch.cat([features[key] for key in batch.pictures])
        embeds = embeds.masked_scatter((batch.ids == model.config.image_token_id).unsqueeze(-1), seen.to(embeds))
    states: list[Tensor] = []
    with layer_outputs(model, lambda _layer, h: states.append(h)):
        model.model.language_model(inputs_embeds=embeds, position_ids=batch.positions, use_cache=False)
    return states


def predict(model: nn.Module, batch: MicroBatch, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Last states [B, N, hidden] -> logits [K, vocabulary], targets [K] and weights [K] of the tokens that count."""
    weight = batch.weight[:, 1:]
    counts = weight > 0
    return model.lm_head(hidden[:, :-1][counts]), batch.ids[:, 1:][counts], weight[counts]


def loss_of(
    model: nn.Module,
    batches: Sequence[MicroBatch],
    pixels: Mapping[Any, Tensor],
    *,
    bf16: bool = False,
    recall: Recall | None = None,
) -> tuple[Tensor, Tensor]:
    """(weighted next-token loss, loss of the read-outs, 0 without any)."""
    total = sum(float(batch.weight[:, 1:].sum()) for batch in batches)
    loss, recalled = torch.zeros(()), torch.zeros(())
    with quick_bf16(model.device, bf16):
        features = see(model.model.visual, pixels)
        for batch in batches:
            states = hidden_states(model, batch, features)
            logits, targets, weight = predict(model, batch, states[-1])
            loss = loss + (F.cross_entropy(logits.float(), targets, reduction="none") * weight).sum() / total
            if recall is not None:
                recalled = recalled + recall(states, batch.named) / len(batches)
    return loss, recalled


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


def optimizers_of(model: nn.Module, config: Config, recall: Recall | None = None) -> dict[str, torch.optim.Optimizer]:
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


def train(
    out: str | Path,
    config: Config,
    *,
    seed: int = 0,
    steps: int | None = None,
    minutes: float | None = None,
    language: Mapping[str, float] | None = None,
    vision: Mapping[str, float] | None = None,
    init: str | Path | None = None,
) -> Run:
    """All phases. `language` and `vision` are the lengths of phases 1 and 2, {"minutes": m} or {"steps": n}; None
    leaves them out. init: an export to take tokenizer and model from. Returns the last run; its `interrupted` tells."""
    out = Path(out)
    torch.manual_seed(seed)
    if (out / "tokenizer" / "tokenizer.json").exists():
        tokenizer = load_tokenizer(out / "tokenizer")
    elif init:
        tokenizer = load_tokenizer(init)
    else:
        tokenizer = sketchbook_tokenizer(seed, config.tokenizer_cases, config.vocab_size)
    tokenizer.save_pretrained(out / "tokenizer")
    processor = small_image_processor(config.sizes.get("patch_size", 16))
    model = Qwen25VL.load_model(Path(init)).train() if init else new_model(tokenizer, **config.sizes)
    trainer = Trainer(model, tokenizer, processor, config, seed)
    if language:
        run = trainer.run(out / "language", config.user_weight, **language)
        if run.interrupted:
            return run
    if vision:
        run = warm_up(model, tokenizer, out / "vision", seed=seed, bf16=config.bf16, **vision)
        if run.interrupted:
            return run
    return trainer.run(out, 0.0, steps=steps, minutes=minutes)


@dataclass
class Trainer:
    model: nn.Module
    tokenizer: Any
    processor: Any
    config: Config
    seed: int

    def run(self, folder: Path, user_weight: float, **length: float | None) -> Run:
        """One phase of next-token training; a finished one is only read. Evaluates and exports every few minutes."""
        config, batcher = self.config, Batcher(self.tokenizer, self.processor, self.config)
        run = Run(folder, asdict(config) | {"user_weight": user_weight}, seed=self.seed, warmup=config.warmup, **length)
        text_config = self.model.config.text_config
        recall = Recall(text_config.num_hidden_layers, text_config.hidden_size)
        optimizers = optimizers_of(self.model, config, recall)
        run.attach({"model": self.model, "recall": recall}, optimizers)
        finished = run.finished
        due = run.elapsed + 60 * config.eval_minutes
        for step in run:
            rng = run.rng(step)
            batches, pixels = batcher([training_case(rng, config.weights) for _ in range(config.batch)], user_weight)
            loss, recalled = loss_of(self.model, batches, pixels, bf16=config.bf16, recall=recall)
            (loss + config.recall_weight * recalled).backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            run.report(
                loss=loss.detach(),
                recall=recalled.detach(),
                norm=norm,
                tokens=sum(batch.ids.numel() for batch in batches),
            )
            if run.elapsed >= due:
                self.check(run, batcher)
                due = run.elapsed + 60 * config.eval_minutes
        if not finished:
            self.check(run, batcher)
        return run

    def check(self, run: Run, batcher: Batcher) -> None:
        scores = evaluate(self.model, batcher, evaluation_cases(self.config.eval_cases))
        run.record(eval=scores)
        run.say("held-out " + "  ".join(f"{f} {s['token']:.3f}/{s['when']:.2f}" for f, s in scores.items()))
        export(self.model, self.tokenizer, self.processor, run.folder / "export")


def mixture(text: str) -> dict[str, float]:
    """ "guide=0.3,draw=0.3" -> weights; families left out get none."""
    weights = {name: float(number) for name, _, number in (part.partition("=") for part in text.split(","))}
    unknown = sorted(set(weights) - set(FAMILIES))
    if unknown:
        raise DuoGenError(f"Sketchbook has no task family '{unknown[0]}'; it has {', '.join(FAMILIES)}.")
    return weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = Config()
    parser.add_argument("--out", required=True, help="run folder; a run found there is continued")
    parser.add_argument("--minutes", type=float, help="time limit; the learning rate falls to its end by then")
    parser.add_argument("--steps", type=int, help="planned steps; with --minutes whichever comes first")
    parser.add_argument("--language-minutes", type=float, default=0, help="phase 1, for training from nothing")
    parser.add_argument("--vision-minutes", type=float, default=0, help="phase 2, the warm-up of the vision tower")
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default=defaults.optimizer)
    parser.add_argument(
        "--mixture",
        type=mixture,
        default=dict(WEIGHTS),
        help="weights of the task families, for example guide=0.3,draw=0.3,describe=0.2; may change on resume",
    )
    parser.add_argument("--muon-lr", type=float, default=defaults.muon_lr)
    parser.add_argument("--tower-lr", type=float, default=defaults.tower_lr, help="of the vision tower; 0: frozen")
    parser.add_argument("--init", help="start from this exported model instead of from nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")


def run(args: argparse.Namespace) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("medium")  # Muon's matrix products
    config = Config(
        batch=args.batch,
        lr=args.lr,
        muon_lr=args.muon_lr,
        tower_lr=args.tower_lr,
        optimizer=args.optimizer,
        weights=args.mixture,
    )
    done = train(
        args.out,
        config,
        seed=args.seed,
        steps=args.steps,
        minutes=args.minutes,
        language={"minutes": args.language_minutes} if args.language_minutes else None,
        vision={"minutes": args.vision_minutes} if args.vision_minutes else None,
        init=args.init,
    )
    if done.interrupted:
        print(f"Stopped at step {done.step}. The same command continues from there.")
        return 130
    print(f"Finished: {Path(args.out) / 'export'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
