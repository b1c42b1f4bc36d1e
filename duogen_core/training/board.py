"""The figures of a run for TensorBoard, beside metrics.jsonl: `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duogen_core.training.curve import MissingExtra, scalars


class Board:
    """Writes to <run folder>/tensorboard; what an earlier session wrote from `step` on is not shown any more."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra(
                "There will be no figures for TensorBoard, which is not installed: pip install -e '.[train]', or set "
                "tensorboard=false."
            ) from error
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in scalars(values):
            self.writer.add_scalar(name, value, step)
        self.writer.flush()
