"""What the user may choose of an answer: `Settings`, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from duogen_core.checkpoint import CheckpointConfig
from duogen_core.errors import DuoGenError

MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Settings:
    """What the user may choose. None: the model's own value (model_index.json)."""

    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    # An approximation for weights with full attention: earlier images are computed anew in every so many steps.
    refresh: int = 1
    size: tuple[int, int] | None = None  # (width, height); None: as the last picture, else the model's own
    max_images: int = 8
    max_new_tokens: int = 1024  # of text, in the whole answer
    temperature: float | None = 0.0  # this and the next four: None is what the model's generation_config.json says
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        _between("The seed", self.seed, 0, MAX_SEED)
        if self.steps is not None:
            _between("The number of steps", self.steps, 1, 1000)
        if self.guidance is not None:
            _between("The guidance", self.guidance, 0.0, 100.0)
        if self.shift is not None:
            _between("The shift", self.shift, 0.01, 100.0)
        _between("refresh", self.refresh, 1, 1000)
        _between("The limit of images", self.max_images, 0, 1000)
        _between("The limit of tokens", self.max_new_tokens, 1, 1_000_000)
        for what, value, low, high in (
            ("The temperature", self.temperature, 0.0, 10.0),
            ("top_p", self.top_p, 0.001, 1.0),
            ("top_k", self.top_k, 0, 1_000_000),
            ("min_p", self.min_p, 0.0, 1.0),
            ("The repetition penalty", self.repetition_penalty, 0.1, 10.0),
        ):
            if value is not None:
                _between(what, value, low, high)
        for side in self.size or ():
            _between("A side of the image", side, 16, 16384)

    def token_sampling(self) -> dict[str, float | None]:
        """Returns what `Mllm.continue_` takes of it."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        return {name: getattr(self, name) for name in names}

    def resolved(self, config: CheckpointConfig) -> Settings:
        """With the model's own values where the user chose none."""
        own = config.sampling
        return replace(
            self,
            steps=own.steps if self.steps is None else self.steps,
            guidance=own.guidance if self.guidance is None else self.guidance,
            shift=own.shift if self.shift is None else self.shift,
        )


def _between(what: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise DuoGenError(f"{what} must be between {low:g} and {high:g}, not {value}.")
    if isinstance(low, int) and not isinstance(value, int):
        raise DuoGenError(f"{what} must be a whole number, not {value}.")
