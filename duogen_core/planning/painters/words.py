"""Words that prompts of all kinds are made of: the picture, the cast that appears in it, the style."""

from __future__ import annotations

from duogen_core.planning.plan import Member, Plan, appears


def in_picture(plan: Plan, number: int) -> list[Member]:
    """The cast that the plan's picture `number` (from 1) names."""
    shows = plan.pictures[number - 1].shows
    return [member for member in plan.cast if member.looks and appears(member, shows)]


def looks_of(members: list[Member]) -> str:
    """ "Fox: a small red fox. Hat: green." """
    return " ".join(f"{member.name}: {sentence(member.looks)}" for member in members)


def sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if not text or text[-1] in ".!?…。！？" else f"{text}."


def joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))
