"""The nodes for finished conversations: show one, split it for other nodes, save it, open a saved one.

In: a context (`duogen_core.document.Document`). What is saved is the document folder of the command line, with the
HTML and Markdown beside it, a PDF and a .zip if wanted, and this workflow inside each of them and inside every PNG.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management as mm
import folder_paths
from comfy_api.latest import io

from .. import PACK
from ..host.images import image_list
from ..host.loading import fingerprint_of
from ..host.metadata import check_template, new_folder, workflow_of
from ..steps import downloads, outputs, unfinished
from . import sockets

if TYPE_CHECKING:
    from duogen_core.document import Document

CATEGORY = "DuoGen"
DEPTH = 4  # folders below output and input that are looked through
INDEX = "document.json"
EXAMPLES = PACK / "workflows" / "examples"


class DuoGenPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenPreview",
            display_name="DuoGen Preview Document",
            category="DuoGen",
            description="Shows an answer inside the node: text and images in order, each image in its own size. Saves "
            "nothing.",
            search_aliases=["show answer", "view document", "viewer"],
            inputs=[
                sockets.Context.Input("context", tooltip="The conversation to show."),
                io.Combo.Input(
                    "part",
                    options=["answer", "conversation"],
                    default="answer",
                    tooltip="The last answer alone, or the whole conversation with the requests and their images.",
                ),
            ],
            outputs=[sockets.Context.Output("context", tooltip="The same conversation.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, context: Document, part: str) -> io.NodeOutput:
        from ..steps import answer

        document = answer.last_answer(context) if part == "answer" else context
        source = downloads.keep_source(document, workflow_of(cls.hidden))
        ui = outputs.outputs(document, outputs.views_of(document), source=source)
        return io.NodeOutput(context, ui={**ui, "files": outputs.text_file(*ui["text"])})


class DuoGenFormat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenFormat",
            display_name="DuoGen Split Document",
            category=CATEGORY,
            description="Splits an answer into what other nodes take: Markdown, the images as a list, each in its own "
            "size, and the text that belongs to each image.",
            search_aliases=["markdown", "split answer", "document to images", "captions", "paragraphs"],
            inputs=[
                sockets.Context.Input("context", tooltip="An answered conversation."),
                io.Combo.Input(
                    "part",
                    options=["answer", "conversation"],
                    default="answer",
                    tooltip="The last answer alone, or the whole conversation with the requests and their images.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "markdown", tooltip="Text and images in order; the images are named images/000.png, …"
                ),
                io.Image.Output("images", is_output_list=True, tooltip="The images in order, each in its own size."),
                io.Int.Output("count", tooltip="How many images there are."),
                io.String.Output(
                    "paragraphs",
                    is_output_list=True,
                    tooltip="The texts in order: text k stands before image k, and is empty where two images follow "
                    "each other. The text after the last image is one more.",
                ),
            ],
        )

    @classmethod
    def execute(cls, context: Document, part: str) -> io.NodeOutput:
        from ..host.model_management import interrupted_as_comfyui
        from ..steps import answer

        document = answer.last_answer(context) if part == "answer" else context
        with interrupted_as_comfyui():
            markdown = markdown_of(document)
        pictures = document.pictures
        images, texts = image_list(pictures), paragraphs(document)
        return io.NodeOutput(markdown, images, len(pictures), texts, ui={"text": (markdown,)})


class DuoGenLoadDocument(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenLoadDocument",
            display_name="DuoGen Load Document",
            category="DuoGen",
            description="Opens a saved conversation with its images: to look at, to edit, or to continue with another "
            "DuoGen Prompt.",
            search_aliases=["open document", "continue answer", "reload conversation"],
            inputs=[
                io.Combo.Input(
                    "document",
                    options=list(saved_documents()),
                    tooltip="A saved conversation in ComfyUI's output or input folder, the newest first, or one of "
                    "this pack's examples. The buttons upload a .zip or a document folder; dropping one on the node "
                    "does, too.",
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
        from duogen_core.document.reading import load_document
        from duogen_core.errors import DuoGenError

        path = saved_documents().get(document)
        if path is None:
            raise DuoGenError(f"The document {document!r} is no longer in ComfyUI's output or input folder.")
        unfinished.opened(path)
        return io.NodeOutput(load_document(path))


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


class DuoGenSaveDocument(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenSaveDocument",
            display_name="DuoGen Save Document",
            category=CATEGORY,
            description="Saves the conversation in ComfyUI's output folder: one folder with the images, a web page "
            "in one file, Markdown, and document.json to continue from; a PDF and a .zip if you like. Drop "
            "any of them on ComfyUI to get this workflow back (the Markdown alone does not hold it).",
            search_aliases=["save answer", "save html", "save markdown", "save pdf", "zip", "export"],
            inputs=[
                sockets.Context.Input("context", tooltip="The conversation to save."),
                io.String.Input(
                    "filename_prefix",
                    default="duogen/answer",
                    tooltip="Name of the new folder inside ComfyUI's output folder; a number is added. Filled in are "
                    "%date:yyyy-MM-dd%, %width%, and values of other nodes, such as %DuoGen Interleave.seed%.",
                ),
                io.Boolean.Input(
                    "pdf",
                    default=False,
                    optional=True,
                    tooltip="Also write document.pdf: pages with text and images in order, for printing or sending.",
                ),
                io.Boolean.Input(
                    "zip",
                    default=False,
                    optional=True,
                    tooltip="Also pack the whole folder into one .zip beside it. DuoGen Load Document opens it from "
                    "ComfyUI's input folder.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Refuses a name that no file can have. None: it comes from another node, and is checked when that has run."""
        from duogen_core.errors import DuoGenError

        try:
            check_template(filename_prefix or "")
        except DuoGenError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, context: Document, filename_prefix: str, pdf: bool = False, zip: bool = False) -> io.NodeOutput:
        from duogen_core.document.store import image_name

        from ..host.model_management import interrupted_as_comfyui

        size = next((picture.size for picture in context.last_turn.pictures), (0, 0)) if context.turns else (0, 0)
        workflow = (cls.hidden.extra_pnginfo or {}).get("workflow")
        folder, subfolder = new_folder(filename_prefix, cls.hidden.prompt or {}, workflow, size)
        with interrupted_as_comfyui():
            names = downloads.save(context, folder, workflow_of(cls.hidden), pdf=pdf, zipped=zip)
        unfinished.saved(context)
        inside = os.path.join(subfolder, folder.name)

        def place(name: str) -> dict[str, str]:
            at = subfolder if name.endswith(".zip") else os.path.join(inside, os.path.dirname(name))
            return {"filename": os.path.basename(name), "subfolder": at, "folder": "output"}

        files = {kind: place(name) for kind, name in names.items()}
        ui = outputs.outputs(context, [place(image_name(k)) for k in range(len(context.pictures))], files=files)
        saved = {"files": [outputs.item(file) for file in files.values()], "document": [{"folder": inside, **names}]}
        return io.NodeOutput(ui={**ui, **saved})


def paragraphs(document: Document) -> list[str]:
    """The text before each image, and what follows the last one; [""] for a document without any."""
    from duogen_core.document import Picture

    texts: list[str] = [""]
    for turn in document.turns:
        for part in turn.parts:
            if isinstance(part, Picture):
                texts.append("")
            elif part.text.strip():
                texts[-1] = "\n\n".join(filter(None, (texts[-1], part.text.strip())))
    return texts if texts[-1] or len(texts) == 1 else texts[:-1]


def markdown_of(document: Document) -> str:
    from duogen_core.document.store import image_name
    from duogen_core.render import render_markdown

    names = [image_name(index) for index in range(len(document.pictures))]
    return render_markdown(document, names, mm.processing_interrupted)
