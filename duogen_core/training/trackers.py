"""TensorBoard and Weights & Biases for a run, by Hugging Face accelerate's trackers; both are optional.

    trackers = Trackers(folder, tensorboard=True, wandb="my-project")
    for sentence in trackers.begin(step, settings): say(sentence)       what is amiss with one; the run does without it
    trackers.log(step, {"loss": 0.2, "eval": {"draw": {"loss": 0.3}}})
    trackers.images(step, {"samples/draw/0": pixels})                   uint8 [H, W, 3]

TensorBoard's files lie in <folder>/tensorboard. Weights & Biases gets the run's settings too, with all that could be a
password or a key hidden; of the machine, the command line and the code it is told nothing. With WANDB_MODE=offline its
files stay in <folder>/wandb, for `wandb sync`. Its own key is read by its own library, from the environment or the
user's login, and by nothing here.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from duogen_core.errors import MissingPackage, first_line
from duogen_core.training.checkpoints import write_text

HIDDEN = "***"
SECRET = re.compile(
    r"(^|[._-])((api|access)?key|token|secret|password|passwd|pwd|passphrase|credentials?|signature|sig|auth"
    r"|authorization|cookie|connection_string)$",
    re.IGNORECASE,
)


class Trackers:
    """None, one or both of them; on the main process alone."""

    def __init__(self, folder: Path, tensorboard: bool = False, wandb: str | None = None) -> None:
        """wandb: project at Weights & Biases."""
        self.folder, self.tensorboard, self.wandb = folder, tensorboard, wandb
        self.started: list[Any] = []

    def begin(self, step: int, settings: Mapping[str, Any]) -> Iterator[str]:
        """Starts them, or goes on with the ones of the session before, from `step`. settings: what the run is."""
        if self.tensorboard:
            from accelerate.tracking import TensorBoardTracker

            # purge_step: TensorBoard shows nothing any more that an earlier session wrote from there on.
            yield from self._start(
                lambda: TensorBoardTracker("tensorboard", self.folder, purge_step=step + 1),
                MissingPackage("Figures for TensorBoard", "tensorboard", "train"),
                "for TensorBoard",
            )
        if self.wandb:
            from accelerate.tracking import WandBTracker

            options = {"id": self._wandb_id(), "name": self.folder.name, "resume": "allow", "dir": str(self.folder)}
            options |= {"config": without_secrets(settings), "settings": wandb_settings(), "save_code": False}
            yield from self._start(
                lambda: WandBTracker(self.wandb, **options),
                MissingPackage("Figures at Weights & Biases", "wandb", "wandb"),
                "at Weights & Biases",
            )

    def _start(self, make: Callable[[], Any], missing: MissingPackage, where: str) -> Iterator[str]:
        try:
            tracker = make()
            if hasattr(tracker, "start"):  # accelerate before 1.9 does so in the constructor
                tracker.start()
        except ImportError:
            yield f"{missing} The run goes on without them."
        except Exception as error:  # a service may be out of reach, or want a key: no reason not to train
            yield f"There will be no figures {where}: {first_line(error).rstrip('.')}."
        else:
            self.started.append(tracker)

    def _wandb_id(self) -> str:
        """Of this run folder, so that a session that goes on adds to the same run."""
        path = self.folder / "wandb-id"
        if not path.exists():
            write_text(path, uuid.uuid4().hex)
        return path.read_text("utf-8").strip()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        for tracker in self.started:
            if figures := dict(scalars(values)):
                tracker.log(figures, step=step)

    def images(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        for tracker in self.started:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            for name, pixels in values.items():  # one by one, since they may have unlike sizes
                tracker.log_images({name: pixels[None]}, step=step, **layout)


def wandb_settings() -> Any:
    """Neither the command line nor the machine nor the code goes into the run: a command line may hold an address with
    a password in it. None where the package is missing, which `_start` then says."""
    try:
        from wandb import Settings
    except ImportError:
        return None
    wanted = {"disable_git": True, "disable_code": True, "x_disable_meta": True, "x_disable_machine_info": True}
    known = getattr(Settings, "model_fields", None) or getattr(Settings, "__annotations__", {})
    return Settings(**{name: value for name, value in wanted.items() if name in known})


def without_secrets(value: Any, name: str = "") -> Any:
    """Settings with `***` in the place of passwords and keys: values of settings so called, and parts of addresses."""
    if isinstance(value, Mapping):
        return {str(key): without_secrets(each, str(key)) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(each, name) for each in value]
    if isinstance(value, str):
        if value and SECRET.search(name):
            return HIDDEN
        value = re.sub(r"(\w://)[^/@\s]+@", rf"\1{HIDDEN}@", value)  # s3://user:password@host
        return re.sub(r"([?&]([\w.-]+)=)[^&\s]+", lambda m: f"{m[1]}{HIDDEN}" if SECRET.search(m[2]) else m[0], value)
    return value


def scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """{"eval": {"draw": {"token": 0.5}}} -> ("eval/draw/token", 0.5)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)
