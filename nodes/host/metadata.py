"""Puts the workflow into saved files, and names those files as ComfyUI's own save nodes do.

Workflow. In: a running node's hidden values. Out: {"workflow": …, "prompt": …} as plain JSON, {} with
--disable-metadata. In a document it lies in `meta` under KEY; in a PNG in text chunks before the image data, where
ComfyUI's front end finds it when the file is dropped on the canvas.

Names. In: a `filename_prefix` and the running prompt. Out: a numbered folder for one document that does not exist yet.
The front end fills in %date:…% and %Node.widget% for a fixed list of core nodes only, so for ours it is done here, by
the same rules (applyTextReplacements in its utils). %width%, %year% and their like are filled in by ComfyUI's server,
in folder_paths.get_save_image_path.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths

from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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


# ------------------------------------------------------------ text in a PNG

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_END = len(SIGNATURE) + 4 + 4 + 13 + 4  # IHDR is always first and 13 bytes long


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _text_chunk(key: str, text: str) -> bytes:
    name = key.encode("latin-1", "replace")[:79]
    if text.isascii():
        return _chunk(b"tEXt", name + b"\0" + text.encode("ascii"))
    return _chunk(b"iTXt", name + b"\0\0\0\0\0" + text.encode("utf-8"))


def add_text(file: Path, texts: Mapping[str, str]) -> None:
    from duogen_core.files import replace_file

    data = file.read_bytes()
    if not data.startswith(SIGNATURE):
        raise ValueError(f"{file.name} is not a PNG file.")
    chunks = b"".join(_text_chunk(key, text) for key, text in texts.items())
    replace_file(file, data[:HEADER_END] + chunks + data[HEADER_END:])


# ------------------------------------------------------------ names of files

PLACEHOLDER = re.compile(r"%([^%]+)%")
DATE_TOKENS = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
SERVERS = {"width", "height", "year", "month", "day", "hour", "minute", "second"}
NOT_IN_A_NAME = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')  # what the front end replaces in the value of a widget
NOT_ON_WINDOWS = re.compile(r'[<>:"|?*]')
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)\s*(\..*)?$", re.IGNORECASE)
MAX_NAME = 200  # bytes; file systems take 255, and a number, an ending and a temporary name are added
NAME = "answer"  # where the prefix has none


def new_folder(prefix: str, prompt: Mapping[str, Any], workflow: Any, size: tuple[int, int]) -> tuple[Path, str]:
    """(folder for one document, the subfolder of ComfyUI's output folder it lies in). size: what %width% and %height%
    stand for."""
    filled = with_name(PLACEHOLDER.sub(lambda found: _value(found[1], prompt, workflow), prefix))
    check(filled)
    parent, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        filled, folder_paths.get_output_directory(), *size
    )
    # ComfyUI counts what is there by a rule of its own, which some names escape.
    while any(
        (path := Path(parent, f"{name}_{counter:05}_{end}")).exists() or path.is_symlink() for end in ("", ".zip")
    ):
        counter += 1
    return Path(parent, f"{name}_{counter:05}_"), subfolder


def check_template(prefix: str) -> None:
    """What can be said of a prefix before anything runs: a DuoGenError if no file can be saved under it."""

    def sample(found: re.Match) -> str:
        return "0" if found[1] in SERVERS else _value(found[1], {}, None)

    check(with_name(PLACEHOLDER.sub(sample, prefix)))


def with_name(prefix: str) -> str:
    """A prefix that names a folder and no file gets a file name; "." and "" name ComfyUI's output folder itself."""
    last = re.split(r"[/\\]" if os.name == "nt" else "/", prefix)[-1]
    return os.path.join(prefix, NAME) if last in ("", ".") else prefix


def check(prefix: str, windows: bool = os.name == "nt") -> None:
    """Raises a DuoGenError where the system has no file of this name, or it lies outside of the output folder."""
    start = f"The filename_prefix {prefix!r} of DuoGen Save Document"
    if found := re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", prefix):
        raise DuoGenError(f"{start} has the character {found[0]!r}, which no file name has; take it out.")
    output = os.path.abspath(folder_paths.get_output_directory())
    path = os.path.abspath(os.path.join(output, prefix))
    if os.path.commonpath([output, path]) != output or path == output:
        raise DuoGenError(f"{start} leads out of ComfyUI's output folder; name a place inside of it.")
    if windows and (found := NOT_ON_WINDOWS.search(prefix)):
        raise DuoGenError(f"{start} has the character {found[0]}, which Windows allows in no file name; take it out.")
    *folders, name = re.split(r"[/\\]" if windows else "/", os.path.relpath(path, output))
    for part in (*folders, name):
        if len(part.encode()) > MAX_NAME:
            raise DuoGenError(f"{start} has a name of {len(part.encode())} bytes; {MAX_NAME} is the most.")
    for part in folders if windows else ():  # the last one gets a number, so it is none of these
        if RESERVED.match(part) or part[-1] in ". ":
            raise DuoGenError(f"{start} has the folder {part!r}, which Windows does not allow; choose another name.")


def format_date(pattern: str, moment: datetime | None = None) -> str:
    """The front end's dates: d, M, h (0 to 23), m, s, each also with two digits, yy and yyyy."""
    now = moment or datetime.now()
    values = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def fill(found: re.Match) -> str:
        token = found[0]
        if token[0] == "y":
            return {"yy": f"{now.year:04}"[-2:], "yyyy": str(now.year)}.get(token, token)
        return str(values[token[0]]).zfill(len(token))

    return DATE_TOKENS.sub(fill, pattern)


def _value(name: str, prompt: Mapping[str, Any], workflow: Any) -> str:
    """What a placeholder stands for; itself, where it stands for nothing, as in ComfyUI's own save nodes."""
    if name.startswith("date:"):
        return format_date(name.removeprefix("date:"))
    node, dot, widget = name.partition(".")
    if dot and "." not in widget:
        for inputs in _nodes_named(node, prompt, workflow):
            if widget in inputs and not isinstance(inputs[widget], (list, dict)):
                return NOT_IN_A_NAME.sub("_", _as_text(inputs[widget]))
            break  # the first node of that name, and no other
    return f"%{name}%"


def _as_text(value: Any) -> str:
    """As the front end shows it: true, 1 for 1.0, nothing for nothing."""
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _nodes_named(name: str, prompt: Mapping[str, Any], workflow: Any) -> Iterator[dict[str, Any]]:
    """The inputs of the nodes of a name: by "Node name for S&R" (a property of nodes on the canvas), title, kind."""
    named = {str(node.get("id")) for node in _canvas_nodes(workflow) if _property(node) == name}
    # A node inside a subgraph has the ids of the subgraphs around it before its own: "12:3".
    yield from (node["inputs"] for id_, node in prompt.items() if id_.rpartition(":")[2] in named)
    yield from (node["inputs"] for node in prompt.values() if node.get("_meta", {}).get("title") == name)
    yield from (node["inputs"] for node in prompt.values() if node["class_type"] == name)


def _canvas_nodes(workflow: Any) -> Iterator[dict[str, Any]]:
    graphs = [workflow] if isinstance(workflow, dict) else []
    definitions = graphs[0].get("definitions") if graphs else None
    graphs += (definitions.get("subgraphs") or []) if isinstance(definitions, dict) else []
    for graph in graphs:
        yield from (node for node in graph.get("nodes") or [] if isinstance(node, dict))


def _property(node: Mapping[str, Any]) -> Any:
    properties = node.get("properties")
    return properties.get("Node name for S&R") if isinstance(properties, dict) else None
