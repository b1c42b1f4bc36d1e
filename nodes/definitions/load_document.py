"""DuoGen Load Document: a saved conversation, to show it again or to go on with it.

Listed are document folders (those DuoGen Save Document writes, and those of the command line) in ComfyUI's output and
input folders, .zip files of such folders in the input folder, and the examples of this pack, which its workflows use.
"""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from .. import PACK
from . import sockets
from .load_checkpoint import fingerprint_of

DEPTH = 4  # folders below output and input that are looked through
INDEX = "document.json"
EXAMPLES = PACK / "workflows" / "examples"


def saved_documents() -> dict[str, Path]:
    """Name as listed -> where it lies; the newest first, the examples last."""
    found: dict[str, tuple[float, Path]] = {}
    for kind, root in (("output", folder_paths.get_output_directory()), ("input", folder_paths.get_input_directory())):
        base = Path(root)
        for level in range(1, DEPTH + 1):
            for file in base.glob("/".join(["*"] * level + [INDEX])):
                if any(part.startswith(".") for part in file.parent.relative_to(base).parts):
                    continue  # a folder that is being written, or that a killed process left half written
                name = f"{file.parent.relative_to(base).as_posix()} [{kind}]"
                found[name] = (file.stat().st_mtime, file.parent)
        if kind == "input":
            for file in base.glob("*.zip"):
                found[f"{file.name} [{kind}]"] = (file.stat().st_mtime, file)
    listed = {name: path for name, (_, path) in sorted(found.items(), key=lambda item: -item[1][0])}
    return listed | {f"{file.parent.name} [example]": file.parent for file in sorted(EXAMPLES.glob(f"*/{INDEX}"))}


class DuoGenLoadDocument(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadDocument",
            display_name="DuoGen Load Document",
            category="DuoGen",
            description="Opens a saved conversation with its pictures: to look at, to change, or to go on with by "
            "another DuoGen Prompt.",
            search_aliases=["open document", "continue answer", "reload conversation"],
            inputs=[
                io.Combo.Input(
                    "document",
                    options=list(saved_documents()),
                    tooltip="A saved conversation in ComfyUI's output or input folder, the newest first, or one of "
                    "this pack's examples. Copy a document folder, or a .zip of one, into the input folder to have it "
                    "listed.",
                ),
            ],
            outputs=[sockets.Context.Output("context", tooltip="The conversation as it was saved.")],
        )

    @classmethod
    def fingerprint_inputs(cls, document: str) -> str:
        path = saved_documents().get(document)
        return fingerprint_of(path) if path else ""

    @classmethod
    def execute(cls, document: str) -> io.NodeOutput:
        from duogen_core.document.store import load_document
        from duogen_core.errors import DuoGenError

        from ..steps import unfinished

        path = saved_documents().get(document)
        if path is None:
            raise DuoGenError(f"The document {document!r} is no longer in ComfyUI's output or input folder.")
        unfinished.opened(path)
        return io.NodeOutput(load_document(path))
