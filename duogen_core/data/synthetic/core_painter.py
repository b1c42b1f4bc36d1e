"""Painters out of this project's own models: a whole DuoGen model, or published parts.

ConversationPainter draws as in an answer: the request, the earlier prompts and pictures, and the prompt are the
conversation, and the DiT looks at every earlier picture. PromptPainter gives the prompt alone to weights that were
trained for text-to-picture (Cosmos-Predict2.5), as they were published.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from duogen_core.data.synthetic.painter import Painter, PainterError, Wanted
from duogen_core.document import Document, Text
from duogen_core.errors import Cancelled, DuoGenError

if TYPE_CHECKING:
    from duogen_core.checkpoint import Components
    from duogen_core.pipeline import Settings


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

        from duogen_core.pipeline import Draughtsman

        document = Document().begin_turn("user", [Text(wanted.request)]).begin_turn("assistant")
        for picture in wanted.earlier:
            document = document.append(Text(str(picture.meta.get("prompt", "")))).append(picture)
        self.components.mllm.clear_cache()  # a warm one gives the same picture up to rounding only
        with torch.inference_mode():
            draughtsman = Draughtsman(self.components, settings)
            return draughtsman.draw(document.append(Text(wanted.prompt)), wanted.seed)


class PromptPainter(CorePainter):
    name = "text-to-picture"

    def _paint(self, wanted: Wanted, settings: Settings) -> np.ndarray:
        from duogen_core.mllm.prompt_states import PADDED
        from duogen_core.text_to_picture import draw_prompt

        has_pad = self.components.mllm.tokenizer.pad_token_id is not None
        return draw_prompt(self.components, wanted.prompt, settings, pad_to=PADDED if has_pad else None)
