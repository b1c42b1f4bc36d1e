"""Document -> one HTML file that needs nothing else: pictures inside, no script, no network.

What a model or a user wrote is hostile until shown otherwise. Three walls: Markdown is read with HTML switched off and
only http, https and mailto links; the template escapes all else; a Content-Security-Policy lets a browser load nothing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from duogen_core.document import (
    Document,
    Picture,
    Text,
    Turn,
)
from duogen_core.document.pending import CAPTION, is_pending
from duogen_core.render.parsing import (
    Stop,
    has_links,
    link_is_safe,
    parser,
    stop_if,
)

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

SPEAKERS = {"system": "Instructions", "user": "You", "assistant": "DuoGen"}
ENDINGS = {
    "interrupted": "The answer was interrupted here. What was finished is above.",
    "max_images": "The answer ends here because it reached the largest number of images that was allowed.",
    "max_tokens": "The answer ends here because it reached the largest length that was allowed.",
}
FACTS = ("model", "seed", "steps", "guidance")


@dataclass
class Block:
    """Text and the pictures that follow it: one step of an answer."""

    texts: list[Markup | str] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)


def render_html(document: Document, data: Mapping[str, Any] | None = None, cancelled: Stop = None) -> str:
    """The whole document as one HTML page; `data` is plain JSON that is stored in it and shown nowhere.

    Raises Cancelled as soon as `cancelled()` says so."""
    turns, shown = [], 0
    for turn in document.turns:
        turns.append(
            {
                "role": turn.role,
                "speaker": SPEAKERS.get(turn.role, turn.role),
                "blocks": _blocks(turn, shown, cancelled),
            }
        )
        shown += len(turn.pictures)
    return _template().render(
        title=document_title(document),
        turns=turns,
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")) if data else None,
        ending=ENDINGS.get(str(document.generation.get("stop_reason"))),
        facts=[(name, document.generation[name]) for name in FACTS if name in document.generation],
    )


def document_title(document: Document) -> str:
    """The first request, shortened to a line."""
    asked = next((turn.text for turn in document.turns if turn.role == "user" and turn.text.strip()), "")
    words = " ".join(asked.split())
    return (words[:77] + "…" if len(words) > 78 else words) or "An illustrated answer"


def _blocks(turn: Turn, shown: int, cancelled: Stop) -> list[Block]:
    blocks = [Block()]
    for part in turn.parts:
        stop_if(cancelled)
        if isinstance(part, Picture):
            shown += 1
            if is_pending(part):
                if blocks[-1].pictures:
                    blocks.append(Block())
                blocks[-1].texts.append(pending_words(part, shown))
            else:
                blocks[-1].pictures.append(_picture(part, shown))
        elif part.text.strip():
            if blocks[-1].pictures:
                blocks.append(Block())
            blocks[-1].texts.append(_text(part, turn, cancelled))
    return [block for block in blocks if block.texts or block.pictures]


def pending_words(picture: Picture, number: int) -> str:
    """Returns what stands in the place of an image that is planned and not drawn yet."""
    shows = " ".join(str(picture.meta.get(CAPTION) or "").split())
    return f"[Image {number}, not drawn yet{': ' if shows else ''}{shows}]"


def _text(part: Text, turn: Turn, cancelled: Stop) -> Markup | str:
    # A person's words are shown as they were typed; only a model writes Markdown.
    if turn.role != "assistant":
        return part.text.strip()
    return Markup(markdown_parser(part.text).render(part.text, {"cancelled": cancelled}))


def _picture(picture: Picture, number: int) -> dict[str, Any]:
    caption = str(picture.meta.get("text", "")).strip()
    return {
        "source": "data:image/png;base64," + base64.b64encode(picture.to_png()).decode("ascii"),
        "alt": f"Image {number}" + (f": {caption}" if caption else ""),
        "width": picture.size[0],
        "height": picture.size[1],
        "wide": picture.size[0] >= 640,
    }


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(Path(__file__).with_name("document.html").read_text(encoding="utf-8"))


def markdown_parser(text: str) -> MarkdownIt:
    """The parser, which is also the renderer, for this text of a model; the PDF is made of its tokens."""
    return _page_parser(has_links(text))


@lru_cache(maxsize=2)
def _page_parser(links: bool) -> MarkdownIt:
    made = parser(links, breaks=True)
    made.add_render_rule("image", _image_as_text)
    made.add_render_rule("link_open", _link_open)
    return made


def _image_as_text(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Mapping[str, Any]) -> str:
    """An image that the text points at is not fetched: reading an answer tells nobody that it is read."""
    return str(Markup.escape(renderer.renderInlineAsText(tokens[index].children or [], options, env)))


def _link_open(renderer: Any, tokens: Sequence[Token], index: int, options: Any, env: Mapping[str, Any]) -> str:
    tokens[index].attrSet("rel", "noopener noreferrer")
    if not link_is_safe(str(tokens[index].attrGet("href"))):  # [text]() never went through validateLink
        tokens[index].attrs.pop("href")
    return renderer.renderToken(tokens, index, options, env)
