"""The ends of the graph: DuoGen Prompt makes a context, DuoGen Format takes an answer apart, DuoGen Save keeps it.

A context is a Document (`duogen_core.document`). What is saved is the document folder of the command line, with the
HTML and Markdown beside it, a PDF and a .zip if wanted, and this workflow inside each of them and inside every PNG.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
from comfy_api.latest import io

from ..host.metadata import with_workflow, workflow_of
from ..host.png_text import add_text
from . import sockets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from duogen_core.document import Document, Picture

CATEGORY = "DuoGen"


class DuoGenPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenPrompt",
            display_name="DuoGen Prompt",
            category=CATEGORY,
            description="A request in words, with pictures if you like: to edit one, to continue one, or to ask about "
            "one. With an earlier context it is the next request of the same conversation.",
            search_aliases=["request", "question", "chat", "interleaved prompt"],
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="How do I draw a house with a red roof?",
                    tooltip="What you want to know or to have drawn, in your own words. <image1> stands for the first "
                    "picture below; pictures without such a marker come before the text.",
                ),
                io.Autogrow.Input(
                    "images",
                    optional=True,
                    tooltip="Pictures the request is about, in order; another input appears as you connect one.",
                    template=io.Autogrow.TemplateNames(
                        io.Image.Input(
                            "image",
                            optional=True,
                            tooltip="A picture the request is about. A batch counts as several pictures.",
                        ),
                        names=[f"image{number}" for number in range(1, 17)],
                        min=0,
                    ),
                ),
                io.String.Input(
                    "system",
                    multiline=True,
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Instructions for the whole conversation. The bundled model was trained without any: leave "
                    "this empty for it.",
                ),
                sockets.Context.Input(
                    "context", optional=True, tooltip="An earlier conversation that this request goes on with."
                ),
            ],
            outputs=[sockets.Context.Output("context", tooltip="The conversation, ready to be answered.")],
        )

    @classmethod
    def execute(
        cls, text: str, images: dict[str, Any] | None = None, system: str = "", context: Document | None = None
    ) -> io.NodeOutput:
        from duogen_core.document import Document
        from duogen_core.errors import DuoGenError

        pictures = {
            name: sockets.pictures_from_image(image) for name, image in (images or {}).items() if image is not None
        }
        parts = request_parts(text, pictures)
        if not text.strip() and not pictures:
            raise DuoGenError("The request is empty; write in DuoGen Prompt what the answer should be about.")
        if context is not None and system.strip():
            raise DuoGenError("The system text belongs to the beginning of a conversation; clear it, or the context.")
        document = context if context is not None else Document()
        if system.strip():
            from duogen_core.document import Text

            document = document.begin_turn("system", [Text(system)])
        return io.NodeOutput(document.begin_turn("user", parts))


def request_parts(text: str, pictures: Mapping[str, Sequence[Picture]]) -> list[Any]:
    """Text and pictures in the order of the markers; {"image1": pictures}. Pictures without a marker come first."""
    from duogen_core.document import Text
    from duogen_core.errors import DuoGenError

    left = dict(pictures)
    pieces: list[Any] = []
    for index, piece in enumerate(re.split(r"<(image\d+)>", text)):
        if index % 2 == 0:
            pieces += [Text(piece)] if piece else []
        elif piece not in pictures:
            there = ", ".join(sorted(pictures)) or "none"
            raise DuoGenError(
                f"The request speaks of <{piece}>, but no picture is connected there; connected: {there}."
            )
        else:
            left.pop(piece, None)
            pieces += pictures[piece]
    return [picture for batch in left.values() for picture in batch] + pieces


class DuoGenFormat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenFormat",
            display_name="DuoGen Format",
            category=CATEGORY,
            description="Takes an answer apart into what other nodes understand: Markdown, its pictures as a list "
            "of images in their own sizes, and the text that belongs to each of them.",
            search_aliases=["markdown", "split answer", "document to images", "captions", "paragraphs"],
            inputs=[
                sockets.Context.Input("context", tooltip="An answered conversation."),
                io.Combo.Input(
                    "part",
                    options=["answer", "conversation"],
                    default="answer",
                    tooltip="The last answer alone, or the whole conversation with the requests and their pictures.",
                ),
            ],
            outputs=[
                io.String.Output("markdown", tooltip="Text and pictures in order, these named images/000.png, …"),
                io.Image.Output("images", is_output_list=True, tooltip="The pictures in order, each in its own size."),
                io.Int.Output("count", tooltip="How many pictures there are."),
                io.String.Output(
                    "paragraphs",
                    is_output_list=True,
                    tooltip="The texts in order: number k leads to picture k, and is empty where two pictures follow "
                    "each other. What is written after the last picture is one more.",
                ),
            ],
        )

    @classmethod
    def execute(cls, context: Document, part: str) -> io.NodeOutput:
        document = sockets.last_answer(context) if part == "answer" else context
        with interruptible():
            markdown = markdown_of(document)
        pictures = document.pictures
        images, texts = sockets.image_list(pictures), paragraphs(document)
        return io.NodeOutput(markdown, images, len(pictures), texts, ui={"text": (markdown,)})


class DuoGenSaveDocument(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DuoGenSaveDocument",
            display_name="DuoGen Save Document",
            category=CATEGORY,
            description="Saves the conversation in ComfyUI's output folder: one folder with the pictures, a web page "
            "that needs no other file, Markdown, and document.json to go on from; a PDF and a .zip if you like. Drop "
            "any of them on ComfyUI, or a picture, to get this workflow back; the Markdown alone does not hold it.",
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
                    tooltip="Also write document.pdf, for printing or sending: pages with text and pictures in order.",
                ),
                io.Boolean.Input(
                    "zip",
                    default=False,
                    optional=True,
                    tooltip="Also put the whole folder into one .zip beside it. Copied into ComfyUI's input folder, it "
                    "can be opened by DuoGen Load Document.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Refuses a name that no file can have. None: it comes from another node, and is looked at when it is there."""
        from duogen_core.errors import DuoGenError

        from ..host import file_prefix

        try:
            file_prefix.check_template(filename_prefix or "")
        except DuoGenError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, context: Document, filename_prefix: str, pdf: bool = False, zip: bool = False) -> io.NodeOutput:
        from duogen_core.document.store import image_name

        from ..host import file_prefix
        from ..steps import unfinished
        from .preview import document_ui

        size = next((picture.size for picture in context.last_turn.pictures), (0, 0)) if context.turns else (0, 0)
        workflow = (cls.hidden.extra_pnginfo or {}).get("workflow")
        folder, subfolder = file_prefix.new_folder(filename_prefix, cls.hidden.prompt or {}, workflow, size)
        with interruptible():
            files = save(context, folder, workflow_of(cls.hidden), pdf=pdf, zipped=zip)
            markdown = markdown_of(context)
        unfinished.saved(context)
        inside = os.path.join(subfolder, folder.name)
        names = [Path(image_name(index)) for index in range(len(context.pictures))]
        places = [{"filename": file.name, "subfolder": os.path.join(inside, file.parent)} for file in names]
        return io.NodeOutput(
            ui={
                "images": [{**place, "type": "output"} for place in places],
                "text": (markdown,),
                "document": [{"folder": inside, **files}],
                "duogen_document": [document_ui(context, [{**place, "folder": "output"} for place in places])],
            }
        )


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """What is given up inside because the user interrupted the prompt ends it the way ComfyUI expects."""
    from duogen_core.errors import Cancelled

    try:
        yield
    except Cancelled:
        mm.throw_exception_if_processing_interrupted()
        raise


def save(
    document: Document, folder: Path, workflow: dict[str, Any], *, pdf: bool = False, zipped: bool = False
) -> dict[str, str]:
    """Write the folder, with the workflow in everything that can hold one; returns kind -> name inside the folder, for
    the .zip beside it."""
    from duogen_core.document.store import image_name, save_document, write_atomically
    from duogen_core.render import render_pdf, write_rendered

    save_document(with_workflow(document, workflow), folder)
    stop = mm.processing_interrupted  # a document of many megabytes takes a while
    write_rendered(document, folder, workflow, stop)
    files = {"html": "document.html", "markdown": "document.md"}
    texts = {key: json.dumps(value) for key, value in workflow.items()}
    for index in range(len(document.pictures) if texts else 0):
        add_text(folder / image_name(index), texts)
    if pdf:
        files["pdf"] = "document.pdf"
        write_atomically(folder / files["pdf"], render_pdf(document, workflow, stop))
    if zipped:
        files["zip"] = f"{folder.name}.zip"
        write_atomically(folder.with_name(files["zip"]), zip_of(folder))
    return files


def zip_of(folder: Path) -> bytes:
    """Every file of a folder, document.json first; pictures are packed already."""
    data = BytesIO()
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    with zipfile.ZipFile(data, "w") as archive:
        for file in sorted(files, key=lambda file: (file.suffix != ".json", file.as_posix())):
            packed = zipfile.ZIP_STORED if file.suffix in (".png", ".pdf") else zipfile.ZIP_DEFLATED
            archive.write(file, file.relative_to(folder).as_posix(), packed)
    return data.getvalue()


def paragraphs(document: Document) -> list[str]:
    """The text before each picture, and what follows the last one; [""] for a document without any."""
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
