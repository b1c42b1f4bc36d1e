"""generate's options for answers that are planned first, and for other painters.

    --writer MODEL            any model plans the answer (commands/plan.py), then it is drawn
    --plan FILE               a plan that is there: written by `plan`, or by hand
    --painter comfyui:FILE    a ComfyUI server draws with this workflow, in the place of the DiT

In: the parsed options. Out: `planned_request`, the conversation with pending images; `open_painter`, what draws them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.commands.plan import add_writer_options, load_plan, open_writer, write
from duogen_core.commands.progress import Progress
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.checkpoint import Components
    from duogen_core.data.synthetic.comfyui_painter import WorkflowPainter
    from duogen_core.document import Document
    from duogen_core.pipeline import Replan

SERVER = "http://127.0.0.1:8188"
COMFYUI = "comfyui:"


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--plan", metavar="FILE", help="draw the plan in this file (.json or .md, from the command plan or by hand)")
    add_writer_options(parser)
    add(
        "--painter",
        action="append",
        default=[],
        metavar="comfyui:FILE",
        help="draw with a ComfyUI workflow in API format, with ${prompt} in it, and perhaps ${seen_1}, ${seen_2} in "
        "LoadImage nodes for the earlier images that the plan wants seen; once more for workflows that see more",
    )
    add("--server", default=SERVER, metavar="URL", help="with --painter: the ComfyUI server; default: %(default)s")


def is_planned(args: argparse.Namespace) -> bool:
    return bool(args.plan or args.writer)


def check_plan_options(args: argparse.Namespace) -> None:
    if args.plan and args.writer:
        raise DuoGenError("--plan is a plan that is there, and --writer would write another; leave one of them out.")
    if args.requests is not None and (is_planned(args) or args.painter):
        raise DuoGenError("--requests answers with a DuoGen model; leave out --writer, --plan and --painter.")
    if args.style and not is_planned(args):
        raise DuoGenError("--style is for answers that are planned first; give --writer or --plan as well.")
    if args.server != SERVER and not args.painter:
        raise DuoGenError("--server is for --painter; give a workflow with --painter comfyui:FILE.")


def open_painter(args: argparse.Namespace, size: tuple[int, int] | None) -> WorkflowPainter | None:
    """Returns the painter of --painter; None for the model's own DiT."""
    if not args.painter:
        return None
    from duogen_core.data.runs.presets import load_preset
    from duogen_core.data.synthetic.comfyui import Server
    from duogen_core.data.synthetic.comfyui_painter import ComfyPainter, WorkflowPainter, load_workflow

    for name in args.painter:
        if not name.startswith(COMFYUI) or not name.removeprefix(COMFYUI).strip():
            raise DuoGenError(
                f"--painter is {name!r}; write comfyui: and an API-format workflow, such as comfyui:workflow.json."
            )
    workflows = [load_workflow(Path(name.removeprefix(COMFYUI))) for name in args.painter]
    return WorkflowPainter(ComfyPainter(Server(args.server), workflows, load_preset("synthetic"), size))


def planned_request(
    args: argparse.Namespace,
    document: Document,
    painter: WorkflowPainter | None,
    size: tuple[int, int] | None,
    progress: Progress,
) -> tuple[Document, bool]:
    """Returns the conversation with its planned answer, and whether planning was stopped."""
    from duogen_core.planning.as_document import is_planned as has_plan
    from duogen_core.planning.as_document import planned, with_plan
    from duogen_core.planning.painters import CONVERSATION

    how: dict[str, Any] = {"painter": _kind(args, painter), **({"size": size} if size else {})}
    if painter is not None:
        how["most"] = painter.most_seen
    if args.writer:
        plan, stopped = write(open_writer(args, progress), document, args, progress)
        return planned(document, plan, **how), stopped
    plan, asked = load_plan(Path(args.plan))
    plan = plan.with_style(args.style)
    wanted = max((len(picture.looks_at or ()) for picture in plan.pictures), default=0)
    if painter is not None and wanted > painter.most_seen:
        progress.line(f"The plan wants up to {wanted} earlier images seen; the workflows see {painter.most_seen}.")
    if not plan.pictures:
        mark = "a line that begins with “Image:”" if Path(args.plan).suffix.lower() != ".json" else "a picture"
        progress.line(f"The plan {args.plan} has no image to draw: no part of it has {mark}.")
    elif how["painter"] == CONVERSATION:
        progress.line("A DuoGen model draws what the texts say; descriptions of images, style and cast are for others.")
    answered = has_plan(document) or (document.turns and document.last_turn.role == "user")
    if args.image and answered and not (args.prompt or "").strip():
        raise DuoGenError(
            f"--image belongs to a request, and {args.document} has one already; write another beside it."
        )
    if has_plan(document):
        return with_plan(document, plan, **how), False
    if not document.turns or document.last_turn.role != "user":
        from duogen_core.document import Picture, Text

        pictures = [Picture.from_file(path) for path in args.image]
        document = document.begin_turn("user", [*pictures, Text(asked or plan.title or "Draw this plan.")])
    return planned(document, plan, **how), False


def replan(args: argparse.Namespace, components: Components | None, progress: Progress) -> Replan | None:
    """Returns what plans an answer in the place of a prompted model's own markers, where those are no good."""
    if components is None or components.mllm.prompted is None:
        return None

    def plan_first(document: Document) -> Document:
        from duogen_core.llm.client import Client, Endpoint
        from duogen_core.llm.local_model import HERE
        from duogen_core.llm.own_mllm import OwnModel
        from duogen_core.planning.as_document import planned
        from duogen_core.planning.painters import TEXT

        endpoint = Endpoint(HERE, components.name, attempts=1, answers=2, here=True)
        client = Client(endpoint, transport=OwnModel(components.mllm))
        return planned(document, write(client, document, args, progress)[0], TEXT)

    return plan_first


def _kind(args: argparse.Namespace, painter: WorkflowPainter | None) -> str:
    """What the painter reads: DuoGen's own models the conversation, published Cosmos weights words alone, a workflow
    that sees earlier images an edit of them."""
    from duogen_core.planning.painters import CONVERSATION, EDIT, TEXT

    if painter is None:
        return TEXT if args.mllm else CONVERSATION
    return EDIT if painter.most_seen else TEXT
