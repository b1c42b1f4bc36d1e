"""Errors of training: a run folder or a setting that cannot be used, a run that cannot go on."""

from __future__ import annotations

from duogen_core.errors import DuoGenError


class TrainingError(DuoGenError):
    """A run folder or a training setting that cannot be used, or a step that makes going on pointless."""
