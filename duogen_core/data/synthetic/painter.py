"""Who draws the pictures of synthetic documents: the interface `Painter`, what it is given (`Wanted`), and own models.

    class MyPainter(Painter):
        def identity(self): return {"painter": "mine", "model": "…"}
        def paint(self, wanted): return pixels          # uint8 RGB [H, W, 3], or raise PainterError

ConversationPainter draws as in an answer: the request, the earlier prompts and pictures, and the prompt are the
conversation, and the DiT looks at every earlier picture. PromptPainter gives the prompt alone to weights that were
trained for text-to-picture (Cosmos-Predict2.5), as they were published. `comfyui_painter` asks a ComfyUI server.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from duogen_core.document import Document, Picture, Text
from duogen_core.errors import Cancelled, DuoGenError

if TYPE_CHECKING:
    from duogen_core.checkpoint import Components
    from duogen_core.settings import Settings


MOST_SEEN = 3


class PainterError(DuoGenError):
    """A picture could not be had. `stop`: nor could any other, so the run is to end and wait for help."""

    def __init__(self, message: str, stop: bool = False) -> None:
        super().__init__(message)
        self.stop = stop


@dataclass(frozen=True)
class Wanted:
    """A picture that is due. earlier: the answer's pictures before it; each has its prompt in meta["prompt"].

    seen: the pictures that a plan wants the painter to look at. size: (width, height) that a plan asks for.
    """

    request: str
    prompt: str
    seed: int
    earlier: Sequence[Picture] = ()
    seen: Sequence[Picture] | None = None
    size: tuple[int, int] | None = None

    @property
    def looked_at(self) -> Sequence[Picture]:
        """What a plan wants seen; where there is no plan, the last MOST_SEEN."""
        return self.earlier[-MOST_SEEN:] if self.seen is None else self.seen


class Painter(ABC):
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain JSON that changes when the same wish would give another picture; kept in every document's meta."""

    @abstractmethod
    def paint(self, wanted: Wanted) -> np.ndarray:
        """uint8 RGB [H, W, 3]. Raises PainterError and nothing else for what can go wrong with one picture."""

    def close(self) -> None:  # noqa: B027 (most painters hold nothing)
        """Lets go of processes and files."""

    def __enter__(self) -> Painter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ------------------------------------------------------------ painters of this project's own models


class CorePainter(Painter):
    name = ""

    def __init__(self, components: Components, settings: Settings, model: str) -> None:
        """model: what the user called it; its folders' names and sizes are no part of a document."""
        self.components, self.model = components, model
        self.settings = settings.resolved(components.config)

    def identity(self) -> dict[str, Any]:
        settings = asdict(self.settings)
        used = {name: settings[name] for name in ("steps", "guidance", "shift", "size")}
        return {"painter": self.name, "model": self.model, **used}

    def paint(self, wanted: Wanted) -> np.ndarray:
        try:
            return self._paint(wanted, replace(self.settings, seed=wanted.seed))
        except (PainterError, Cancelled):
            raise
        except DuoGenError as error:
            raise PainterError(str(error)) from None

    @abstractmethod
    def _paint(self, wanted: Wanted, settings: Settings) -> np.ndarray:
        """One picture, drawn with the wish's own seed."""


class ConversationPainter(CorePainter):
    name = "duogen"

    def _paint(self, wanted: Wanted, settings: Settings) -> np.ndarray:
        import torch

        from duogen_core.picture_sampling import PictureSampler

        document = Document().begin_turn("user", [Text(wanted.request)]).begin_turn("assistant")
        for picture in wanted.earlier:
            document = document.append(Text(str(picture.meta.get("prompt", "")))).append(picture)
        self.components.mllm.clear_cache()  # a warm one gives the same picture up to rounding only
        with torch.inference_mode():
            sampler = PictureSampler(self.components, settings)
            return sampler.draw(document.append(Text(wanted.prompt)), wanted.seed)


class PromptPainter(CorePainter):
    name = "text-to-picture"

    def _paint(self, wanted: Wanted, settings: Settings) -> np.ndarray:
        from duogen_core.mllm.prompt_states import PADDED
        from duogen_core.text_to_picture import draw_prompt

        has_pad = self.components.mllm.tokenizer.pad_token_id is not None
        return draw_prompt(self.components, wanted.prompt, settings, pad_to=PADDED if has_pad else None)
