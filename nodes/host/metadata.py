"""The workflow that made a file, for ComfyUI's front end to find in it.

In: a running node's hidden values. Out: {"workflow": …, "prompt": …} as plain JSON, {} where the user starts ComfyUI
with --disable-metadata. In a document it lies in `meta` under KEY, so that whatever keeps a document keeps it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duogen_core.document import Document

KEY = "comfyui"


def workflow_of(hidden: Any) -> dict[str, Any]:
    from comfy.cli_args import args

    if args.disable_metadata:
        return {}
    data = dict(hidden.extra_pnginfo or {})
    if hidden.prompt is not None:
        data["prompt"] = hidden.prompt
    return strict_json(data)


def strict_json(value: Any) -> Any:
    """What the front end sends may hold NaN and half character pairs; a document takes neither."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")
    return json.loads(text, parse_constant=lambda _: None)


def with_workflow(document: Document, data: dict[str, Any]) -> Document:
    """The document with this workflow and no earlier one."""
    meta = {key: value for key, value in document.meta.items() if key != KEY}
    return replace(document, meta={**meta, KEY: data} if data else meta)
