"""The table of the ablation: which questions are asked, which arms answer them, which trainings the arms need.

The first arm of a question is DuoGen's own way; the others differ from it in the one thing that is asked about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


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
    pictures: Literal["ideal", "own"] = "ideal"  # of an answer in words: put in, or drawn
    figures: tuple[tuple[str, str], ...] = ()  # (name in the table, name measured) where they differ


@dataclass(frozen=True)
class Question:
    title: str
    claim: str  # what the paper has, and why
    kind: Literal["pictures", "words"]
    figures: tuple[str, ...]  # shown in the table, the telling one first
    arms: tuple[Arm, ...]


DRAWN = ("edit.kept", "guide.kept", "guide.right", "edit.right", "draw.right", "psnr", "loss")
GUIDED = ("guide.right", "draw.right", "edit.right", "edit.kept", "guide.kept", "psnr")

TRAININGS: dict[str, Training] = {
    "duogen": Training("stage2"),
    "no-references": Training("stage2", {"references": False}),
    "drop-all-text": Training("stage2", {"drop": "all_text"}),
    "last-layer": Training("stage2", {"connector_layers": "last"}),
    "full": Training("stage2", {"attention": "full"}),
    "kept-out": Training("stage1"),
    "mixed-in": Training("stage1", {"include_alignment": True}),
}

QUESTIONS: dict[str, Question] = {
    "references": Question(
        "Does a picture have to see the earlier ones?",
        "Every earlier picture is a clean frame beside the one being drawn, so that the answer keeps its things.",
        "pictures",
        ("own guide.kept", *DRAWN),
        (Arm("all earlier pictures", "duogen"), Arm("none", "no-references")),
    ),
    "guidance": Question(
        "What should guidance's negative branch leave out?",
        "The last text segment only; all pictures and all earlier text stay.",
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
        "Should finished pictures see later ones?",
        "All frames see each other, as in Cosmos. Our own frame_causal lets a picture see only what came before "
        "it, so that finished ones are computed once.",
        "pictures",
        ("loss", *(name for name in DRAWN if name != "loss"), "seconds"),
        (Arm("frame_causal", "duogen"), Arm("full", "full")),
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
        "Visual drafts: the model draws the changed picture first, and reads the answer from it.",
        "words",
        ("draft.answer",),
        (
            Arm("with the right picture", "kept-out"),
            Arm("with its own picture", "kept-out", pictures="own"),
            Arm("without drawing", "kept-out", figures=(("draft.answer", "undrafted.answer"),)),
        ),
    ),
}
