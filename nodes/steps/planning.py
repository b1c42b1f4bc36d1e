"""Plans in a graph: a model behind a Client writes one, any text is read as one, a person edits one.

    own_writer(mllm)                                  a Client of the language model on the socket
    endpoint_writer(address, model, key, …)           a Client of a server that the user named
    write(hidden, client, context, …)                 asks it, and shows the parts on the node as they come
    read(text)                                        what any writer, or a person, wrote, and what was lost of it
    ask_again(hidden, fault)                          asks once more the nodes that a text came from

Out: a context whose answer has its texts and a place for each image (`duogen_core.planning.as_document`), which DuoGen
Interleave and the loop draw. A plan is text of a model or of a person and stays text everywhere.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
from comfy_api.latest import io
from comfy_execution.graph_utils import is_link

from duogen_core import pipeline
from duogen_core.document import pending
from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.planning.as_document import SQUARE, plan_of, planned
from duogen_core.planning.markdown import plan_from_markdown, plan_to_markdown
from duogen_core.planning.painters import TEXT
from duogen_core.planning.plan import MAX_PARTS, Part, Plan

from ..host import display
from ..host.expansion import entry_of, new_graph, takes_lists
from ..host.model_management import (
    ModelHandle,
    interrupted_as_comfyui,
    load_models,
    memory_of_tokens,
    retry_out_of_memory,
)
from . import unfinished
from .graph import downstream, upstream
from .stages import Written

if TYPE_CHECKING:
    from duogen_core.document import Document
    from duogen_core.llm.client import Client

INSTRUCTIONS = 1500  # tokens of what a writer is told beside the conversation, for the estimate of memory
ADVICE = "leave out early turns, use smaller images, or start ComfyUI with --lowvram"
CANCELLED = "Cancelled. Planned so far:"
ASKED = "DuoGenPlanPrompt"
logger = logging.getLogger(__name__)


# ------------------------------------------------------------ writers


def own_writer(mllm: ModelHandle) -> Client:
    """A client of the language model on the socket; ComfyUI keeps its weights."""
    from duogen_core.llm.client import Client, Endpoint
    from duogen_core.llm.local_model import HERE
    from duogen_core.llm.own_mllm import OwnModel

    return Client(Endpoint(HERE, mllm.config.name, attempts=1, answers=2, here=True), transport=OwnModel(mllm.core))


def endpoint_writer(address: str, model: str, key: str, sees: bool, seconds: float) -> Client:
    """A client of an OpenAI-compatible server. key: as in host/secrets.py. seconds: for the whole answer."""
    from duogen_core.llm.client import Client, Endpoint
    from duogen_core.llm.endpoint import Server, listed
    from duogen_core.net.client import Limits, check_address

    from ..host.secrets import key_for

    address, model = address.strip(), model.strip()
    check_address(address)
    limits = Limits(connect=5, read=seconds, total=seconds)
    endpoint = Endpoint(address, model, attempts=2, answers=2, waits=False, sees=sees, limits=limits)
    secret = key_for(address, key)
    server = Server(endpoint, secret)
    if not model:
        names = server.models()
        if len(names) != 1:
            known = f"it has {listed(names)}" if names else "it does not list the models it has"
            raise DuoGenError(f"Write into model which one of {address} is to answer; {known}.")
        endpoint = replace(endpoint, model=names[0])
        server = Server(endpoint, secret)
    client = Client(endpoint, transport=server)
    server.count = client.usage.add
    return client


def write(
    hidden: Any,
    client: Client,
    context: Document,
    *,
    style: str,
    seed: int,
    temperature: float,
    own: ModelHandle | None = None,
    notice: str = "",
) -> tuple[Plan, str]:
    """Asks for a plan; returns it with what the user should know of it. Its parts are shown on the node as they come;
    a cancel leaves those that were there."""
    from duogen_core.planning.requests import wish_of
    from duogen_core.planning.writing import write_plan

    pipeline.check_request(context)
    shown = _Shown(hidden, notice)

    def asked(factor: float = 1.0) -> Plan:
        if own is not None:
            load_models(own, memory_required=needed * factor)
        return write_plan(
            client, context, style=style, seed=seed, temperature=temperature, on_part=shown.on_part,
            on_notice=shown.on_notice, cancelled=mm.processing_interrupted,
        )  # fmt: skip

    if own is not None:
        needed = _memory(own, context, wish_of(context))
    shown.say()
    with interrupted_as_comfyui():
        try:
            if own is None:
                return asked(), shown.notice
            return retry_out_of_memory(asked, what="planning the answer", advice=ADVICE), shown.notice
        except (Cancelled, mm.InterruptProcessingException):  # layers of ComfyUI's look for themselves
            shown.say(CANCELLED)
            raise


def _memory(mllm: ModelHandle, context: Document, wish: Any) -> float:
    from duogen_core.document import Picture
    from duogen_core.planning.plan import token_budget

    texts = sum(len(part.text) for turn in context.turns for part in turn.parts if not isinstance(part, Picture))
    images = [picture.size for picture in context.pictures]
    return memory_of_tokens(mllm, texts + INSTRUCTIONS + token_budget(wish), images)


class _Shown:
    """The parts of a plan on its node, while they come."""

    def __init__(self, hidden: Any, notice: str = "") -> None:
        self.hidden, self.parts, self.notice = hidden, [], notice

    def on_part(self, index: int, part: Part) -> None:
        self.parts[index:] = [part]  # a plan that begins anew takes the place of the one before
        self.say()

    def on_notice(self, sentence: str) -> None:
        self.notice = f"{self.notice} {sentence}".strip()
        self.say()

    def say(self, title: str = "") -> None:
        part = None if title else len(self.parts) + 1
        lines = [_lines(k, one) for k, one in enumerate(self.parts, 1)]
        title = title or f"Planning part {part}"
        said = " ".join(filter(None, (self.notice, "" if part else title)))
        display.say(
            self.hidden, self.notice, title, *lines, phase="planning", text="\n\n".join(lines), part=part, notice=said
        )


def _lines(number: int, part: Part) -> str:
    shows = f"[{part.picture.shows}]" if part.picture else ""
    return "\n".join(filter(None, (f"{number}. {part.text}".strip(), shows)))


def plan_instead(hidden: Any, mllm: ModelHandle, context: Document, written: Written, seed: int) -> Written:
    """Plans the answer of a prompted model whose markers are no good (`pipeline.bad_marker`), and says so."""
    if not pipeline.may_plan_anew(context):
        logger.warning("DuoGen: %s %s", written.trouble, pipeline.PLAN_INSTEAD)
        return written
    request = context
    if context.last_turn.role == "assistant":
        request = replace(context, turns=context.turns[:-1])
    shown = f"{written.trouble} The answer is planned first."
    plan, _ = write(hidden, own_writer(mllm), request, style="", seed=seed, temperature=0.0, own=mllm, notice=shown)
    context = planned(request, plan, TEXT)
    stop = "end" if pending.pending_index(context) is None else "picture"
    return Written(context, context.text, stop, written.tokens)


# ------------------------------------------------------------ plans into the graph


def planned_context(
    context: Document, plan: Plan, painter: str, *, style: str = "", width: int = 0, height: int = 0
) -> Document:
    """Returns the context with the planned answer. width and height: of images that have no size of their own; 0: that
    is left to what draws them."""
    if bool(width) != bool(height):
        raise DuoGenError(
            f"The size is {width} x {height}: set both sides, or both to 0 to leave it to what draws the images."
        )
    plan = plan.with_style(style)
    if width:
        parts = (
            replace(part, picture=replace(part.picture, size=part.picture.size or (width, height)))
            if part.picture
            else part
            for part in plan.parts
        )
        plan = replace(plan, parts=tuple(parts))
    return planned(context, plan, painter)


def result(hidden: Any, context: Document, notice: str = "") -> io.NodeOutput:
    """The outputs of every node that plans: the context, the plan as Markdown, how many images it has.

    notice: a sentence that the user should know of."""
    plan = plan_of(context)
    markdown = plan_to_markdown(plan)
    numbers = {"parts": len(plan.parts), "images": len(plan.pictures)}
    counts = f"Parts: {numbers['parts']}. Images: {numbers['images']}."
    display.say(hidden, notice, plan.title, counts, phase="planned", text=plan.title, notice=notice, **numbers)
    shown = {**(unfinished.show_plan(context) or {}), "text": (markdown,), "duogen_plan": [markdown]}
    return io.NodeOutput(context, markdown, len(plan.pictures), ui=shown)


def edited(context: Document, markdown: str, painter: str | None) -> Document:
    """Returns the context with the plan that a person wrote ("" for its own); what was drawn and did not change stays.

    painter: None for the kind it was planned for.
    """
    from duogen_core.planning.as_document import with_plan

    plan = plan_from_markdown(markdown) if markdown.strip() else plan_of(context)
    waiting = (part for part in context.last_turn.parts if pending.is_pending(part)) if context.turns else ()
    size = next((part.size for part in waiting if pending.SIZE not in part.meta), SQUARE)
    return with_plan(context, plan, painter, size=size)


def read(text: str) -> tuple[Plan, str]:
    """Reads a plan that any writer, or a person, wrote: JSON or Markdown; returns it with what was lost of it. Raises a
    DuoGenError that says what is wrong.

    JSON of our own form is read strictly, so that nothing of it is lost; what models make of it, with patience.
    """
    from duogen_core.planning.markdown import LABEL, LINE
    from duogen_core.planning.reading import PlanError, PlanReader

    value = _json(text)
    if isinstance(value, dict) and isinstance(value.get("parts"), list):
        try:
            # A file of the command line has the request beside it.
            return Plan.from_json({name: each for name, each in value.items() if name != "request"}), ""
        except DuoGenError:
            if len(value["parts"]) > MAX_PARTS or _says_more(value["parts"]):
                raise
    reader = PlanReader()
    try:
        reader.put(text)
        plan = reader.plan()
    except PlanError:
        lines = text.splitlines()
        if value is None and any(LINE.fullmatch(line) or LABEL.fullmatch(line) for line in lines):
            plan_from_markdown(text)  # it was meant as that, and says which line is wrong
        raise
    return plan, f"The text ends too early; kept are its whole parts: {len(plan.parts)}." if reader.cut else ""


def _says_more(parts: list[Any]) -> bool:
    """Whether an image of these says more than what it shows, which reading with patience would leave out."""
    pictures = [part.get("picture") for part in parts if isinstance(part, dict)]
    return any(isinstance(one, dict) and "shows" in one and {"looks_at", "size"} & set(one) for one in pictures)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# ------------------------------------------------------------ asking any writer once more


def prompt_for(context: Document, fault: str = "") -> str:
    """What DuoGen Plan Prompt says. fault: what was wrong with the answer before."""
    from duogen_core.llm.client import PROMPTS, load_prompt
    from duogen_core.planning.writing import plan_prompt

    prompt = plan_prompt(context)
    if fault:
        prompt = f"{prompt}\n\nYour last answer was no plan: {fault} {load_prompt(PROMPTS / 'again.txt')}"
    return prompt


def ask_again(hidden: Any, fault: str) -> io.NodeOutput | None:
    """Puts in a copy of the nodes that made the text, from DuoGen Plan Prompt on, which is told what was wrong.

    None: the text does not come from a Plan Prompt. Nodes beside these, such as previews of the text, are not copied.
    """
    nodes, here = hidden.dynprompt, hidden.unique_id
    before = upstream(nodes, here)
    asking = [node for node in sorted(before) if nodes.get_node(node)["class_type"] == ASKED]
    # Of several, the one nearest to the text: none of the others comes after it.
    asked = next((one for one in asking if not set(asking) & downstream(nodes, list(before), one)), None)
    if asked is None:
        return None
    graph = new_graph(hidden)
    between = sorted(downstream(nodes, list(before), asked))
    names = {asked: "ask", here: "read"} | {node: f"again.{node}" for node in between}
    kinds = {asked: "DuoGenPlanPromptAgain", here: "DuoGenPlanFromTextAgain"}
    copies = {
        node: graph.node(kinds.get(node, nodes.get_node(node)["class_type"]), name) for node, name in names.items()
    }
    for node, copied in copies.items():
        copied.set_override_display_id(nodes.get_display_node_id(node))
        kind = nodes.get_node(node)["class_type"]
        for name, value in nodes.get_node(node)["inputs"].items():
            if is_link(value) and value[0] in copies:
                value = copies[value[0]].out(value[1])
            elif is_link(value) and not takes_lists(kind):
                value = entry_of(graph, nodes, value)
            copied.set_input(name, value)
    copies[asked].set_input("fault", fault)
    return io.NodeOutput(*(copies[here].out(i) for i in range(3)), expand=graph.finalize())
