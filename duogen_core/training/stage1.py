"""Stage 1: the MLLM learns to answer, and when to draw (paper section 3.3).

    python -m duogen_core train stage1 init=runs/pretrain/export out=runs/stage1 minutes=42

Next-token loss (next_token.py) on assistant turns only, <BOV> and <|im_end|> counted; user and system turns and
pictures are read, not learnt. Alignment data is left out: it would blunt what the MLLM learnt after its pre-training.
In: an exported or a published MLLM; a step is `batch` conversations, a pure function of (seed, step), of the sources
in `data` or, without any, of the world (data.py). Out: <out>/export, a Hugging Face folder; with LoRA also
<out>/adapter, in PEFT's layout; answers to look at in <out>/samples.

`MllmConfig` and `Trainer` also serve the small model's pre-training, which stands with its world.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from duogen_core.compiling import Compiled, layers_of_mllm
from duogen_core.data.sources import Limits
from duogen_core.mllm import family_of_module
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.loading import load_with_bov
from duogen_core.training.checkpoints import evaluation_mode, replaced
from duogen_core.training.command import add_arguments_for, run_command
from duogen_core.training.configuration import ConfigError, RunConfig, check_betas, check_numbers, check_share
from duogen_core.training.copies import on_device, whole_copy
from duogen_core.training.data import (
    Example,
    Probes,
    TokenCounter,
    check_families,
    held_out,
    open_data,
    without_held_out,
    world,
)
from duogen_core.training.feeding import Feed, workers_for
from duogen_core.training.flops import MllmFlops
from duogen_core.training.lora import (
    MLLM_TARGETS,
    LoraSettings,
    TrainableOnly,
    add_lora,
    merged_state,
    save_adapter,
    trainable,
)
from duogen_core.training.metrics import mean_loss
from duogen_core.training.next_token import (
    Batcher,
    NextTokenLoss,
    NextTokenShare,
    NextTokenSteps,
    PictureKey,
    StepTotals,
    encode_pictures,
    hidden_states,
    labelled,
    predict,
    with_pictures,
)
from duogen_core.training.optimizers import new_muon
from duogen_core.training.precision import recomputing
from duogen_core.training.quantise import quantise
from duogen_core.training.run import Every, Run
from duogen_core.training.samples import ideal_answers, write_answers


@dataclass(kw_only=True)
class MllmConfig(RunConfig):
    warmup: int = 60
    batch: int = 16  # conversations a step
    lr: float = 2e-3  # of AdamW
    muon_lr: float = 5e-3
    tower_lr: float = 0.0  # 0: frozen; at 1e-3 the gradients of an untrained language model undid the warm-up
    optimizer: Literal["muon", "adamw"] = "muon"  # for the matrices of the decoder layers; AdamW has the rest
    betas: tuple[float, float] = (0.9, 0.98)  # of AdamW
    weight_decay: float = 0.03
    probe_weight: float | None = None  # of the loss of the world's probes; None: the world's own without `data`, else 0
    tokens: int = 1536  # of a micro-batch, padding included, at most (one conversation at least)
    workers: int | None = None  # processes that read ahead; None: as many as a GPU leaves cores for, on a CPU none
    accumulate: bool = False  # gradients of one micro-batch after the other: the memory of one, more time
    gradient_checkpointing: bool = False  # keep no states inside the layers: less memory, more time
    compile: bool = False  # torch.compile of the decoder layers: a minute at the start, then faster steps
    data: list[Any] = field(default_factory=list)  # sources, as of `data check`; empty: Sketchbook's own cases
    eval_data: list[Any] = field(default_factory=list)  # sources that are not learnt from, to score the model on
    eval_share: float = 0.0  # of the documents in `data`, chosen by their words: not learnt from, but scored on
    include_alignment: bool = False  # learn from alignment data too, which the paper keeps for stage 2
    max_side: int = 8192  # pixels of a picture in `data`
    max_tokens: int | None = None  # of a sample in `data`; None: as many as the model can look back on
    weights: Mapping[str, float] = field(default_factory=lambda: dict(world().mixtures["stage1"]))  # of task families
    vision_families: tuple[str, ...] = field(default_factory=lambda: world().vision_families)
    eval_cases: int = 16  # a family of Sketchbook, or a source of `eval_data`; 0: no scores
    eval_minutes: float = 3.0  # between scores, each with an export
    eval_steps: int | None = None  # in the place of eval_minutes
    sample_minutes: float = 10.0  # between answers to look at, in <out>/samples; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"batch": 1, "tokens": 1, "workers": 0, "max_side": 1, "max_tokens": 1, "eval_cases": 0}
        least |= {"eval_minutes": 0, "eval_steps": 1}
        check_numbers(self, least=least)
        check_betas(self.betas)
        check_share(self.eval_share)
        check_families("weights", self.weights, world().families)


@torch.no_grad()
def evaluate(model: nn.Module, batcher: Batcher, cases: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, float]]:
    """Teacher-forced, per family or source: `loss`, as it is learnt, in float32; `token`, share of trained tokens
    predicted; `when`, share of conversations in which the model would draw and stop exactly where the ideal answer
    does."""
    control, device = batcher.control, model.get_input_embeddings().weight.device
    stops = torch.tensor([control.bov, control.im_end], device=device)
    scores = {}
    for family, some in cases.items():
        right = tokens = in_time = 0
        loss = 0.0
        for case in some:  # one by one: a conversation is judged as a whole
            batches, pixels = batcher([case])
            batch = batches[0].to(device)
            states = hidden_states(model, batch, encode_pictures(model, pixels))
            logits, targets, _ = predict(model, batch, states[-1])
            loss += float(F.cross_entropy(logits.float(), targets, reduction="sum"))
            guess = logits.argmax(-1)
            right += int((guess == targets).sum())
            tokens += len(targets)
            decides = torch.isin(guess, stops) | torch.isin(targets, stops)
            in_time += bool((guess == targets)[decides].all())
        scores[family] = {
            "loss": float(f"{loss / tokens:.6g}"),
            "token": round(right / tokens, 4),
            "when": round(in_time / len(some), 4),
        }
    return scores


def optimizers_of(
    model: nn.Module, config: MllmConfig, probes: Probes | None = None
) -> dict[str, torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices of the decoder layers and AdamW for the rest. Norms, biases and the
    embedding do not decay; the tower, already warm, learns more slowly."""
    muon, decayed, rest, tower = [], [], [], []
    sees = family_of_module(model).sees
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and "embed_tokens" not in name
        if sees(name):
            parameter.requires_grad_(config.tower_lr > 0)
            tower += [parameter] if config.tower_lr > 0 else []
        elif matrix and config.optimizer == "muon":
            muon.append(parameter)
        else:
            (decayed if matrix else rest).append(parameter)
    rest += [] if probes is None else list(probes.parameters())
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
        {"params": tower, "weight_decay": 0.0, "lr": config.tower_lr},
    ]
    found = {"adamw": torch.optim.AdamW([g for g in groups if g["params"]], config.lr, betas=config.betas)}
    if muon:
        found["muon"] = new_muon(muon, config.muon_lr, config.weight_decay, ns_steps=4)
    return found


def lora_optimizers(model: nn.Module, config: MllmConfig, probes: Probes | None) -> dict[str, torch.optim.Optimizer]:
    """AdamW for the trainable weights, without decay: what LoRA adds is small as it is."""
    parameters = [*trainable(model).values(), *([] if probes is None else probes.parameters())]
    return {"adamw": torch.optim.AdamW(parameters, config.lr, betas=config.betas, weight_decay=0.0)}


def export(model: nn.Module, tokenizer: Any, processor: Any, folder: Path) -> None:
    """As a Hugging Face folder, what LoRA learnt added in."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    state = merged_state(model) if getattr(model, "peft_config", None) else model.state_dict()
    with replaced(folder) as new:
        model.save_pretrained(new, state_dict=state)
        tokenizer.save_pretrained(new)
        processor.save_pretrained(new)


@dataclass
class Trainer:
    mllm: Mllm
    config: MllmConfig
    lora: LoraSettings | None = None
    compiled: Compiled | None = None

    def run(self, user_weight: float = 0.0) -> Run:
        """Trains to the end; loads a finished run instead. Evaluates, exports and writes samples every few minutes."""
        if self.config.probe_weight is None:
            self.config = replace(self.config, probe_weight=0.0 if self.config.data else world().probe_weight)
        config, model = self.config, self.mllm.model
        run = Run.of(config)
        run.made_of(mllm=self.mllm.model_type)
        limits = self.limits()
        self.examples = examples = open_data(run, config, without_held_out(limits, config.eval_share))
        self.cases = held_out(config, limits)
        probes = None
        if config.probe_weight:
            probes = world().probes(self.mllm.tokenizer, self.mllm.num_layers, self.mllm.hidden_size)
        tokenizer, processor = self.mllm.tokenizer, self.mllm.image_processor
        self.batcher = Batcher(tokenizer, processor)  # of what is scored
        learnt = Batcher(tokenizer, processor, tokens=config.tokens, user_weight=user_weight)
        modules: dict[str, nn.Module] = {"model": TrainableOnly(model) if self.lora else model}
        modules |= {"recall": probes} if probes else {}  # the name of their file in a checkpoint
        optimizers = (lora_optimizers if self.lora else optimizers_of)(model, config, probes)
        if config.gradient_checkpointing:
            checkpoint_layers(model, run.processes.device)
        if config.compile:
            chance = self.lora is not None and self.lora.dropout > 0  # then no two calls have the same gradients
            comparable = not (config.gradient_checkpointing or chance)
            self.compiled = Compiled(layers_of_mllm(model), run.say, gradients=comparable)
        together, flops = run.processes, MllmFlops(model)

        def seen(pictures: Iterable[PictureKey]) -> list[int]:
            """Patches of each that the tower sees."""
            return [self.mllm.image_processor.seen(key.grid) for key in pictures]

        # bfloat16 has too few digits for small steps; what LoRA freezes may stay as it is.
        single = None if self.lora else torch.float32
        loss_of = together.prepare(NextTokenLoss(model, probes, bf16=config.bf16), optimizers, single)
        mllm = self.mllm
        family = f"an MLLM of the family {mllm.model_type}, {mllm.num_layers} layers of {mllm.hidden_size}"
        run.attach(modules, optimizers, model=family)
        scores_due = Every(run, config.eval_minutes, config.eval_steps)
        self.samples_due = Every(run, config.sample_minutes)
        examples.begin()
        steps = NextTokenSteps(examples.steps, learnt, together.rank, together.count)
        feed = Feed(steps, workers=workers_for(config.workers, together.device), device=together.device)
        for _, share in feed.each(run):
            if scores_due():
                with run.meter.aside():
                    self.check(run)
            examples.note(share.bad)
            steps.even(share, together)
            run.meter.count(
                tokens=sum(batch.ids.numel() for batch in share.batches),
                pictures=len(share.pixels),
                flops=flops.of_share(share.batches, seen(share.pixels)) if run.meter.peak else 0.0,
            )
            if probes:  # here: they are a module, which stays in this process
                share.batches = [labelled(batch, probes) for batch in share.batches]
            figures = {"loss": 0.0, "probes": 0.0} if probes else {"loss": 0.0}
            weight = sum(batch.target_weight for batch in share.batches)
            totals = StepTotals(together.total(weight) if together.count > 1 else weight, share.count)
            norm = run.update(
                self.losses(loss_of, share, totals, figures),
                clip=1.0,
                clipped=trainable(model).values(),
                samples=share.names,
                parts=len(share.batches) if config.accumulate else 1,
            )
            run.report(
                **{name: together.total(value) for name, value in figures.items()}, norm=norm, tokens=share.tokens
            )
        if self.compiled:
            self.compiled.stop()  # who goes on with the model may let it answer
        if run.finished and not run.complete(*self.outputs(run)):
            self.check(run, last=True)
            if told := examples.summary():
                run.say(told)
            run.mark_complete()
        return run

    def losses(
        self, loss_of: nn.Module, share: NextTokenShare, totals: StepTotals, figures: dict[str, Any]
    ) -> Iterator[Tensor]:
        """What to go backward from, in one part or one for each micro-batch; adds up the figures."""
        whole = [(share.batches, share.pixels)]
        parts = (with_pictures(batch, share.pixels) for batch in share.batches)
        for part in parts if self.config.accumulate else whole:
            # Stopping early is an exception when the last wanted tensor is there, which compiled code cannot bear.
            with set_checkpoint_early_stop(not self.config.compile):
                loss, probed = loss_of(*part, totals)
            figures["loss"] += loss.detach()
            if "probes" in figures:
                figures["probes"] += probed.detach()
                loss = loss + self.config.probe_weight * probed
            yield loss

    def limits(self) -> Limits:
        """What a sample of `data` may be."""
        mllm, config = self.mllm, self.config
        return Limits(
            max_side=config.max_side,
            max_tokens=config.max_tokens or mllm.max_positions,
            count_tokens=TokenCounter(mllm.tokenizer, mllm.image_processor),
            alignment=config.include_alignment,
        )

    def outputs(self, run: Run) -> list[Path]:
        """What the run leaves: the whole model, an adapter, or both."""
        found = [run.folder / "adapter"] if self.lora else []
        return found + ([run.folder / "export"] if self.lora is None or self.lora.merge else [])

    def check(self, run: Run, last: bool = False) -> None:
        """Scores, samples and export, by the main process, under FSDP of a copy (copies.py). All must come."""
        model = self.mllm.model
        samples = bool(self.config.sample_minutes) and (self.samples_due() or last)
        answering = self.compiled.paused() if self.compiled else nullcontext()  # with a cache that grows
        with run.processes.gathered(model), answering:
            if not run.main:
                return
            if self.cases or samples:
                self.look_at(run, samples)
            if self.lora:
                with replaced(run.folder / "adapter") as new:
                    save_adapter(model, new)
            if self.lora is None or self.lora.merge:
                export(model, self.mllm.tokenizer, self.mllm.image_processor, run.folder / "export")

    def look_at(self, run: Run, samples: bool) -> None:
        """What the model makes of what it does not learn from."""
        mllm, processes, scores = self.mllm, run.processes, None
        if processes.sharded:
            mllm = copy(self.mllm)
            with run.looking("Scores and samples"):
                mllm.model = on_device(whole_copy(self.mllm.model), processes.device, self.config.bf16)
            if mllm.model is self.mllm.model:
                return
        if self.cases:
            with run.looking("The scores"), evaluation_mode(mllm.model):
                scores = evaluate(mllm.model, self.batcher, self.cases)
        if scores is not None:
            run.record(eval=scores)
            run.line.held_out = f"held-out {mean_loss(scores):.4g}"
            shown = (f"{family} {score['token']:.3f}/{score['when']:.2f}" for family, score in scores.items())
            run.say(f"held-out token/when: {'  '.join(shown)}")
        if samples:
            with run.looking("The samples"):
                write_answers(mllm, ideal_answers(self.cases or self.examples.some()), run.folder, run.step)


def checkpoint_layers(model: nn.Module, device: torch.device) -> None:
    """Decoder layers compute their inner states again in the backward pass. device: where they will do so."""
    # transformers 5.23 changed the name
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": recomputing(device)})


@dataclass(kw_only=True)
class Stage1Config(MllmConfig):
    command: ClassVar[str] = "stage1"
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
    mllm, started = load_with_bov(config.init)
    for name in ("image_mean", "image_std"):  # training normalises colours on the device, by the family's own numbers
        if list(getattr(mllm.image_processor, name)) != type(mllm).picture_settings[name]:
            raise ConfigError(
                f"{config.init} has another {name} than the {mllm.model_type} models: "
                f"{list(getattr(mllm.image_processor, name))} instead of {type(mllm).picture_settings[name]}."
            )
    if started:
        print(f"<BOV> was never learnt by {config.init}: its rows start anew ({' and '.join(started)}).", flush=True)
    if config.lora:
        adapt(mllm, config.lora, config.bf16)
    mllm.model.train()
    return Trainer(mllm, config, config.lora).run()


def adapt(mllm: Mllm, lora: LoraSettings, bf16: bool = True) -> None:
    """LoRA on the language model's layers; the rows of <BOV> are trained in full. bf16: what quantised layers compute
    in."""
    model, rows = mllm.model, [mllm.control.bov]
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tokens = {"embed_tokens": rows} if tied else {"embed_tokens": rows, "lm_head": rows}
    layers = "model.language_model.layers"
    if lora.quantise:
        quantise(model, within=layers, computes=torch.bfloat16 if bf16 else torch.float32)
    add_lora(model, lora, within=layers, usual=MLLM_TARGETS, tokens=tokens)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments_for(parser, Stage1Config, parallel=True)


def run(args: argparse.Namespace) -> int:
    return run_command(args, Stage1Config, train, parallel=True)
