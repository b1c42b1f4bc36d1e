"""The table of the ablation (which questions are asked, which arms answer them) and the trainings that the arms need.

The first arm of a question is DuoGen's own way; the others differ from it in the one thing that is asked about. All
trainings have the same budget.
Stage 2: a DiT that has so far learned single images from words (`start`: there attention between images, references
and guidance's negative make no difference, so it favours no arm), and a new connector. VAE, language model and prepared
documents are the same for all. An arm whose DiT has another shape has a start of its own, of the same budget. With
start=0 every arm goes on from the model's own DiT and connector: what is worth changing at the end of a training.
Stage 1: the model's own language model trained on, with Sketchbook's tasks and, in one arm, wordless edits.
In: the settings of the ablation. Out: run folders <out>/seed-0/<name>, with export/; a finished one is only read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from duogen_core.checkpoint import Components, resolve_model, vae_path
from duogen_core.connector import Connector
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.dit.loading import load_dit
from duogen_core.document import Document
from duogen_core.document.store import save_document
from duogen_core.files import atomic_path
from duogen_core.mllm.loading import load_mllm
from duogen_core.sketchbook.tasks import training_case
from duogen_core.training import stage1, stage2
from duogen_core.training.checkpoints import write_text
from duogen_core.training.configuration import ConfigError, RunConfig
from duogen_core.training.metrics import read_lines
from duogen_core.training.run import Run, rng_for
from duogen_core.training.stage1 import Stage1Config
from duogen_core.training.stage2_data import Stage2Config


@dataclass(frozen=True)
class Training:
    """One model to train: DuoGen's recipe with these settings changed (of Stage2Config or Stage1Config)."""

    stage: Literal["stage1", "stage2"]
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """What is measured: a training, answering in this way."""

    name: str
    training: str
    guidance: float | None = None  # None: the model's own
    steps: int | None = None  # of sampling; None: those of the settings
    pictures: Literal["ideal", "own"] = "ideal"  # of an answer in words: put in, or drawn
    figures: tuple[tuple[str, str], ...] = ()  # (name in the table, name measured) where they differ


@dataclass(frozen=True)
class Question:
    title: str
    claim: str  # what the paper has, and why
    kind: Literal["pictures", "words"]
    figures: tuple[str, ...]  # shown in the table, the telling one first
    arms: tuple[Arm, ...]
    groups: tuple[str, ...] = ("guide", "draw", "edit")  # of the images that are drawn
    own: bool = False  # about the recipe of the bundled model, and not about the paper: asked by its name alone


DRAWN = ("edit.kept", "guide.kept", "guide.right", "edit.right", "draw.right", "psnr", "loss")
SHARP = (
    "psnr",
    "own guide.psnr",
    "draw.right",
    "edit.right",
    "edit_chain.right",
    "guide.right",
    "own guide.kept",
    "loss",
)
CHAINED = ("guide", "draw", "edit", "edit_chain")
GUIDED = ("guide.right", "draw.right", "edit.right", "edit.kept", "guide.kept", "psnr")

TRAININGS: dict[str, Training] = {
    "duogen": Training("stage2"),
    "no-references": Training("stage2", {"references": False}),
    "drop-all-text": Training("stage2", {"drop": "all_text"}),
    "last-layer": Training("stage2", {"connector_layers": "last"}),
    "full": Training("stage2", {"attention": "full"}),
    "wider": Training("stage2", {"heads": 6}),
    "deeper": Training("stage2", {"layers": 8}),
    "small-patches": Training("stage2", {"patch": 1}),
    "all-shifted": Training("stage2", {"unshifted_share": 0.0}),
    "none-shifted": Training("stage2", {"unshifted_share": 1.0}),
    "less-shifted": Training("stage2", {"shift": 3.0}),
    "x0": Training("stage2", {"loss": "x0"}),
    "edges": Training("stage2", {"edge_weight": 2.0}),
    "decoder": Training("stage2", {"decoder_weight": 0.5}),
    "noisy-references": Training("stage2", {"reference_noise": 0.25}),
    "own-references": Training("stage2", {"own_references": 0.5}),
    "chains": Training("stage2", {"families": {"guide": 0.3, "edit": 0.2, "draw": 0.2, "edit_chain": 0.3}}),
    "kept-out": Training("stage1"),
    "mixed-in": Training("stage1", {"include_alignment": True}),
}

QUESTIONS: dict[str, Question] = {
    "references": Question(
        "Does an image have to see the earlier ones?",
        "Every earlier image is a clean frame beside the one being drawn, so that the answer keeps its things.",
        "pictures",
        ("own guide.kept", *DRAWN),
        (Arm("all earlier images", "duogen"), Arm("none", "no-references")),
    ),
    "guidance": Question(
        "What should guidance's negative branch leave out?",
        "The last text segment only; all images and all earlier text stay.",
        "pictures",
        GUIDED,
        (
            Arm("the last segment", "duogen"),
            Arm("all text", "drop-all-text"),
            Arm("no guidance", "duogen", guidance=1.0),
        ),
    ),
    "connector": Question(
        "Which of the language model's layers should the connector read?",
        "The outputs of all decoder layers, concatenated.",
        "pictures",
        ("draw.right", *(name for name in DRAWN if name != "draw.right")),
        (Arm("all layers", "duogen"), Arm("the last layer", "last-layer")),
    ),
    "attention": Question(
        "Should finished images see later ones?",
        "All frames see each other, as in Cosmos. Our own frame_causal lets an image see only what came before "
        "it, so that finished ones are computed once.",
        "pictures",
        ("loss", *(name for name in DRAWN if name != "loss"), "seconds"),
        (Arm("frame_causal", "duogen"), Arm("full", "full")),
    ),
    "shape": Question(
        "Should the DiT be wider, deeper, or have smaller patches?",
        "Ours: 4 blocks of width 128, a token for 2 x 2 cells of the latent. More of anything makes fewer steps.",
        "pictures",
        SHARP,
        (
            Arm("4 of 128", "duogen"),
            Arm("4 of 192", "wider"),
            Arm("8 of 128", "deeper"),
            Arm("patches of one cell", "small-patches"),
        ),
        CHAINED,
        own=True,
    ),
    "times": Question(
        "At which noise should it learn?",
        "Ours: logit-normal times, shifted by 6 but for a share of 0.35.",
        "pictures",
        SHARP,
        (
            Arm("shift 6, 0.35 without", "duogen"),
            Arm("all shifted by 6", "all-shifted"),
            Arm("shift 3, 0.35 without", "less-shifted"),
            Arm("none shifted", "none-shifted"),
        ),
        CHAINED,
        own=True,
    ),
    "loss": Question(
        "What should it learn from?",
        "Ours: the mean squared error of the velocity.",
        "pictures",
        SHARP,
        (
            Arm("velocity", "duogen"),
            Arm("x0", "x0"),
            Arm("edges count more", "edges"),
            Arm("and pixels, by the decoder", "decoder"),
        ),
        CHAINED,
        own=True,
    ),
    "data": Question(
        "What should it see?",
        "Ours: guides, edits and drawings, the earlier images exactly as they were.",
        "pictures",
        SHARP,
        (
            Arm("as it is", "duogen"),
            Arm("noise on earlier images", "noisy-references"),
            Arm("its own guesses as earlier images", "own-references"),
            Arm("chains of edits too", "chains"),
        ),
        CHAINED,
        own=True,
    ),
    "steps": Question(
        "How many steps should it be sampled with?",
        "Ours: 8, guidance 2.",
        "pictures",
        SHARP,
        (
            Arm("8", "duogen"),
            Arm("4", "duogen", steps=4),
            Arm("16", "duogen", steps=16),
            Arm("8, no guidance", "duogen", guidance=1.0),
        ),
        CHAINED,
        own=True,
    ),
    "alignment": Question(
        "Should stage 2's alignment data be in stage 1 too?",
        "It is kept out of stage 1, since it would blunt what the language model has learnt.",
        "words",
        (
            "describe.right",
            "guide.structure",
            "continue.structure",
            "edit.words",
            "draft.answer",
            "describe.no_picture",
        ),
        (Arm("kept out", "kept-out"), Arm("mixed in", "mixed-in")),
    ),
    "draft": Question(
        "Does it help to draw before answering?",
        "Visual drafts: the model draws the changed image first, and reads the answer from it.",
        "words",
        ("draft.answer",),
        (
            Arm("with the right image", "kept-out"),
            Arm("with its own image", "kept-out", pictures="own"),
            Arm("without drawing", "kept-out", figures=(("draft.answer", "undrafted.answer"),)),
        ),
    ),
}


# ---------------------------------------------------------------- alignment data

# As in the paper's stage 2: an image, what to change, and the changed image without a word.


def wordless_edit(seed: int, number: int) -> Document:
    """Returns a document of two images: the user's, and after the instruction the assistant's."""
    rng = rng_for(seed, "alignment", number)
    while True:
        document = training_case(rng, {"edit": 1.0}).document
        *earlier, answer = document.turns
        if len(earlier) == 1 and earlier[0].pictures:
            return Document((*earlier, replace(answer, parts=answer.pictures)))


def make_alignment(folder: Path, count: int, seed: int) -> Path:
    """Returns a folder of `count` documents, made unless it is there; a pure function of seed and count."""
    if not folder.exists():
        with atomic_path(folder) as new:  # appears whole
            for number in range(count):
                save_document(wordless_edit(seed, number), new / f"{number:06d}")
    return folder


# ---------------------------------------------------------------- one training

RECORD = "trained.json"
HEAD = 32  # width of a head of the DiT
RECALL = 0.5  # weight of the read-outs that the bundled language model was trained with
START = "start"
FAMILIES = {"guide": 0.4, "edit": 0.35, "draw": 0.25}
WORDS = {"guide": 0.2, "edit": 0.2, "continue": 0.1, "draft": 0.15, "undrafted": 0.15, "describe": 0.2}


@dataclass(kw_only=True)
class AblationConfig(RunConfig):
    """`minutes` and `steps` are an arm's; on a busy machine equal times are not equal budgets, equal steps are."""

    command: ClassVar[str] = "ablation"

    out: Path = Path("runs/ablation")
    model: str = "duogen-tiny"  # its VAE and language model serve all arms
    seeds: int = 1  # trainings of each arm, with seeds counting up from `seed`
    only: tuple[str, ...] = ()  # questions; none: all that are about the paper
    start: float = 4.0  # budget of the common start of stage 2, in arms; 0: the model's own DiT and connector
    cases: int = 40  # of each task, to measure with
    own: int = 20  # guides that an arm answers with words and pictures of its own; 0: none
    draw_steps: int = 8  # of sampling, to measure with
    layers: int = 4  # of the DiT
    heads: int = 4
    shards: int = 16  # of 256 documents each, prepared once for all arms
    tokens: int = 2250  # of images and text, of a batch
    lr: float = 3e-3
    families: dict[str, float] = field(default_factory=lambda: dict(FAMILIES))  # of stage 2
    words: dict[str, float] = field(default_factory=lambda: dict(WORDS))  # of stage 1
    batch: int = 16  # conversations a step of stage 1
    alignment: int = 1024  # documents of alignment data
    alignment_share: float = 0.5  # of what stage 1 reads, where they are mixed in
    warmup: int = 60

    def __post_init__(self) -> None:
        unknown = sorted(set(self.only) - set(QUESTIONS))
        if unknown:
            raise ConfigError(f"The ablation has no question '{unknown[0]}'; it has {', '.join(QUESTIONS)}.")
        if self.start < 0:
            raise ConfigError(f"'start' is {self.start:g}; expected 0 or more.")
        if not self.start:
            other = [q for q, question in self.asked.items() for arm in question.arms if not fits_model(arm.training)]
            if other:
                raise ConfigError(
                    f"The question '{other[0]}' has arms that the model's weights do not fit: they need a start."
                )
        for name in ("seeds", "cases", "draw_steps", "shards", "alignment"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' is {getattr(self, name)}; expected 1 or more.")
        if not 0 < self.alignment_share < 1:
            raise ConfigError(f"'alignment_share' is {self.alignment_share}; expected a number between 0 and 1.")

    @property
    def asked(self) -> dict[str, Question]:
        wanted = self.only or [name for name, question in QUESTIONS.items() if not question.own]
        return {name: question for name, question in QUESTIONS.items() if name in wanted}

    @property
    def base(self) -> Path:
        return resolve_model(self.model)


def folder_of(config: AblationConfig, name: str, seed: int) -> Path:
    return config.out / f"seed-{seed}" / name


def needed(config: AblationConfig) -> list[str]:
    """Names of the trainings, in the order in which they are due."""
    names = list(dict.fromkeys(arm.training for question in config.asked.values() for arm in question.arms))
    starting = config.start > 0
    with_starts = [
        each for name in names for each in ([start_of(name), name] if starting and drawing(name) else [name])
    ]
    return sorted(dict.fromkeys(with_starts), key=lambda name: name != START)  # the common one first


SHAPE = ("layers", "heads", "patch")  # settings that another DiT's weights do not fit
KEPT = (*SHAPE, "attention", "references", "connector_layers", "drop")  # what a DiT and its connector keep


def fits_model(name: str) -> bool:
    return not set(KEPT) & set(TRAININGS[name].changes)


def drawing(name: str) -> bool:
    return is_start(name) or TRAININGS[name].stage == "stage2"


def is_start(name: str) -> bool:
    return name.partition("-")[0] == START


def start_of(name: str) -> str:
    """The training that one of stage 2 goes on from: the common one, or one of its own shape."""
    return f"{START}-{name}" if set(SHAPE) & set(TRAININGS[name].changes) else START


def changes_of(name: str) -> dict[str, Any]:
    """In what a training differs from DuoGen's own."""
    if not is_start(name):
        return dict(TRAININGS[name].changes)
    shape = TRAININGS[name.partition("-")[2]].changes if name != START else {}
    return {"families": {"draw": 1.0}, **shape}


def trained(config: AblationConfig, name: str, seed: int) -> dict[str, Any] | None:
    """{"steps", "seconds", "loss"} of a finished training, else None."""
    record = folder_of(config, name, seed) / RECORD
    return json.loads(record.read_text("utf-8")) if record.is_file() else None


def train(config: AblationConfig, name: str, seed: int) -> Run:
    """To the end, or until it is stopped; an unfinished one is continued."""
    if drawing(name):
        settings: Any = stage2_config(config, name, seed)
        if not is_start(name):
            settings = replace(settings, init=new_start(config, name, settings, seed) if config.start else config.base)
        run = stage2.train(settings)
    else:
        run = stage1.train(stage1_config(config, name, seed))
    if not run.interrupted:
        losses = [line["loss"] for line in read_lines(run.folder / "metrics.jsonl") if "loss" in line]
        last = losses[-max(1, len(losses) // 10) :]
        record = {"steps": run.step, "seconds": round(run.elapsed, 1), "loss": round(sum(last) / len(last), 4)}
        write_text(run.folder / RECORD, json.dumps(record) + "\n")
    return run


def shared(config: AblationConfig, seed: int, budget: float = 1.0) -> dict[str, Any]:
    """What the settings of all trainings have in common."""
    names = ("threads", "warmup", "checkpoint_minutes", "log_every", "tensorboard", "bf16")
    return {
        **{name: getattr(config, name) for name in names},
        "minutes": config.minutes and config.minutes * budget,
        "steps": config.steps and max(1, round(config.steps * budget)),
        "seed": seed,
    }


def stage2_config(config: AblationConfig, name: str, seed: int) -> Stage2Config:
    first, changes = is_start(name), changes_of(name)
    # Prepared once for all that read the same.
    documents = "documents-start" if first else f"documents-{name}" if "families" in changes else "documents"
    changes |= {"drop_text": 0.0} if first else {}
    values = {
        "out": folder_of(config, name, seed),
        "vae": vae_path(config.base),
        "mllm": config.base / "mllm",
        "documents": config.out / documents,
        "shards": max(1, config.shards // 2) if first else config.shards,
        "families": config.families,
        "layers": config.layers,
        "heads": config.heads,
        "cross_width": HEAD * config.heads,
        "tokens": config.tokens,
        "lr": config.lr,
        "single_image_weight": 1.0,
        "sample_minutes": 0.0,
        "eval_cases": 0,
    }
    return Stage2Config(**{**values, **shared(config, seed, config.start if first else 1.0), **changes})


def new_start(config: AblationConfig, name: str, settings: Stage2Config, seed: int) -> Path:
    """The DiT of the start and a new connector of this arm, as a folder to start from."""
    folder = settings.out / "init"
    shape = json.loads((config.base / "connector" / "config.json").read_text("utf-8"))
    torch.manual_seed(seed)
    _, connector = stage2.new_models(settings, shape["num_layers"], shape["hidden_size"])
    connector.save_pretrained(folder / "connector")
    PackedCosmos.from_pretrained(folder_of(config, start_of(name), seed) / "export" / "dit").save_pretrained(
        folder / "dit"
    )
    return folder


def stage1_config(config: AblationConfig, name: str, seed: int) -> Stage1Config:
    """Both arms are given the same sources; whether alignment data is read is a setting of stage 1."""
    edits = make_alignment(config.out / "alignment", config.alignment, config.seed)
    share = config.alignment_share
    values = {
        "out": folder_of(config, name, seed),
        "init": config.base / "mllm",
        "data": [
            {"source": "sketchbook", "families": dict(config.words), "weight": 1 - share},
            {"source": f"documents:{edits}", "alignment": True, "weight": share},
        ],
        "batch": config.batch,
        "probe_weight": RECALL,
        "eval_cases": 0,
        "sample_minutes": 0.0,
    }
    return Stage1Config(**{**values, **shared(config, seed), **TRAININGS[name].changes})


def components(config: AblationConfig, name: str, seed: int, base: Components) -> Components:
    """The model with what this training has made."""
    export = folder_of(config, name, seed) / "export"
    if TRAININGS[name].stage == "stage1":
        return replace(base, mllm=load_mllm(export))
    return replace(base, connector=Connector.from_pretrained(export / "connector"), dit=load_dit(export / "dit").eval())
