"""The language of a text, by py3langid: its model is in the package, nothing is fetched and nothing is random."""

from __future__ import annotations

from functools import cache
from typing import Any

from duogen_core.errors import MissingPackage

CHARACTERS = 3000  # of the text that are looked at


def language_of(text: str) -> tuple[str, float]:
    """The ISO 639-1 code and its probability."""
    code, probability = _identifier().classify(text[:CHARACTERS])
    return str(code), round(float(probability), 4)


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise MissingPackage("Telling languages", "py3langid", "data") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
