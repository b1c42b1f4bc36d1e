"""DuoGen Review Image: a critic looks at an image; a refused one is drawn again by copies of the user's nodes.

Copied is what lies between the node's context and its image: the nodes that draw. Each copy gets another seed, and the
critic's better prompt in the place of the text that DuoGen Loop Open gave; behind it stands DuoGenReviewNext, which
looks again. So every try is a node of the running graph: cached, previewed, and ended by a cancel. Tries go from one
node to the next as `Tries`. Of all of them the best image comes out (`duogen_core.review.best`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
from comfy_api.latest import io
from comfy_execution.graph_utils import is_link

from duogen_core import picture_sampling
from duogen_core.document import pending
from duogen_core.errors import DuoGenError
from duogen_core.review import (
    Asked,
    Critic,
    Review,
    Try,
    best,
    redraw_seed,
    reviewed,
)

from ..host import display
from ..host.caches import owner_for
from ..host.expansion import add_values, entry_of, expand, new_graph, takes_lists
from ..host.images import image_from_picture, pictures_from_image
from ..host.model_management import ModelHandle, interrupted_as_comfyui, load_models, memory_of_tokens
from . import planning
from .graph import downstream, upstream
from .loop import request_of
from .stages import check_answering
from .tries import remember, thumbnails

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duogen_core.document import Document

ENDPOINT, SKETCHBOOK = "endpoint", "sketchbook"  # kinds of critics; the third is the mllm on the socket
ROUNDS = {"DuoGenLoopOpen", "DuoGenLoopRound", "DuoGenReadWriter", "DuoGenReadWriterNext"}
CONTEXT, TEXT = 1, 2  # outputs of these
CONDITIONING = {"DuoGenEncodeContext", "DuoGenConditionNextImage"}  # read the conversation for a DuoGen model
SEEDS = ("seed", "noise_seed")  # widgets of nodes that draw
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Tries:
    """DUOGEN_TRIES: what was drawn for one place of an answer, and what the critic said of it."""

    tries: tuple[Try, ...] = ()

    @property
    def value_name(self) -> str:
        """Equal names mean equal tries, for ComfyUI's cache."""
        said = [[one.picture.digest, one.seed, one.prompt, repr(one.review)] for one in self.tries]
        return f"tries {hashlib.sha256(json.dumps(said).encode()).hexdigest()}"


# ------------------------------------------------------------ critics


def open_critic(kind: str, mllm: ModelHandle | None, address: str, model: str, key: str, seconds: float) -> Critic:
    """Checked before anything is drawn again; a server that is not there is told when it is asked."""
    from duogen_core.planning.critic import critic_of

    if kind == SKETCHBOOK:
        from duogen_core.sketchbook.critic import SketchbookCritic

        return SketchbookCritic()
    if kind == ENDPOINT:
        return critic_of(planning.endpoint_writer(address, model, key, True, seconds), mm.processing_interrupted)
    if mllm is None:
        raise DuoGenError("The critic is the mllm, but none is connected; connect one that sees, or choose endpoint.")
    return OwnCritic(mllm)


class OwnCritic:
    """The language model on the socket; ComfyUI keeps its weights."""

    def __init__(self, mllm: ModelHandle) -> None:
        from duogen_core.planning.critic import critic_of

        self.mllm, self.critic = mllm, critic_of(planning.own_writer(mllm), mm.processing_interrupted)

    def review(self, asked: Asked) -> Review:
        from duogen_core.planning.critic import EARLIER_SIDE, MAX_TOKENS, MOST_EARLIER, SIDE

        images = [(SIDE, SIDE), *[(EARLIER_SIDE, EARLIER_SIDE)] * MOST_EARLIER]
        needed = memory_of_tokens(self.mllm, planning.INSTRUCTIONS + MAX_TOKENS, images)
        load_models(self.mllm, memory_required=needed)
        return self.critic.review(asked)


# ------------------------------------------------------------ one look


def look(
    hidden: Any,
    origin: str,
    critic: Critic,
    image: Any,
    context: Document,
    redraws: int,
    seed: int | None,
    earlier: Tries,
    given: Mapping[str, Any],
) -> io.NodeOutput:
    """Asks the critic. The image that is kept, or the graph of the next try.

    origin: the user's Review Image, whose nodes are copied. given: what the next node gets as it is.
    """
    pictures = pictures_from_image(image)
    if len(pictures) != 1:
        raise DuoGenError(
            f"One image is to be reviewed, but the IMAGE is a batch of {len(pictures)}; choose one of them first, for "
            "example with ImageFromBatch."
        )
    check_answering(context)
    before, number = pending.before_next_picture(context), len(earlier.tries)
    prompt = next_prompt(earlier.tries)
    looks_at = pending.looks_at(pending.pending_picture(context))
    asked = picture_sampling.asked_of(before, pictures[0], prompt, looks_at=looks_at)
    numbers = {"image": picture_sampling.drawn_before(before) + 1, "try": number + 1, "tries": redraws + 1}
    title = f"Image {numbers['image']}, try {numbers['try']} of at most {numbers['tries']}"
    display.say(hidden, title, "A critic looks at it …", phase="reviewing", **numbers)
    notices: list[str] = []
    with interrupted_as_comfyui():
        review = reviewed(critic, asked, notices.append)
    mm.throw_exception_if_processing_interrupted()
    for notice in notices:
        logger.warning("DuoGen: %s", notice)
    own = None if seed is None else redraw_seed(seed, number)
    tries = (*earlier.tries, Try(pictures[0], own or 0, prompt, review))
    wrong = review.wrong if review and not review.good else ""  # the words of a model
    notice = " ".join(notices) or ("" if wrong else "The critic is content.")
    display.say(hidden, title, notice or wrong, phase="reviewed", text=wrong, notice=notice, **numbers)
    ui = {"images": thumbnails([one.picture for one in tries])}
    if review is not None and not review.good and number < redraws:
        return draw_again(hidden, origin, context, seed, Tries(tries), given, ui)
    kept = best(tries)
    remember(before, tries, seed is not None)
    out = image if kept == number else image_from_picture(tries[kept].picture)
    chosen = tries[kept].review
    good = chosen is not None and chosen.good
    return io.NodeOutput(out, (notice or wrong) if kept == number else words(chosen), good, ui=ui)


def words(review: Review | None) -> str:
    return "" if review is None else review.wrong


def next_prompt(tries: Sequence[Try]) -> str:
    """The better prompt that the next try is drawn from: the last one that the critic gave; "" for the image's own."""
    return next((one.review.prompt for one in reversed(tries) if one.review and one.review.prompt), "")


# ------------------------------------------------------------ drawing again


def draw_again(
    hidden: Any,
    origin: str,
    context: Document,
    seed: int | None,
    tries: Tries,
    given: Mapping[str, Any],
    ui: dict[str, Any],
) -> io.NodeOutput:
    """Puts in copies of the nodes that draw, and the node that looks at what they draw."""
    nodes, graph = hidden.dynprompt, new_graph(hidden)
    inputs = nodes.get_node(origin)["inputs"]
    number, prompt = len(tries.tries), next_prompt(tries.tries)
    body, varied = drawing_nodes(nodes, origin)
    values = add_values(graph, "values", mllm=given.get("mllm"), context=context, tries=tries)
    classes = {nodes.get_node(node)["class_type"] for node in body}
    asked = painted(context, prompt, classes)
    painter = values["context"] if asked is context else add_values(graph, "painter", context=asked)["context"]

    source = inputs["context"]
    if not is_link(source):
        raise DuoGenError("The input context must come straight from the node that gives it, such as DuoGen Loop Open.")
    instead: dict[tuple[str, int], Any] = {tuple(source): painter}
    if nodes.get_node(source[0])["class_type"] in ROUNDS:
        instead[source[0], CONTEXT] = painter
        if prompt:
            instead[source[0], TEXT] = prompt
    if not varied:  # else the nodes' own seed widgets change
        instead[tuple(inputs["seed"])] = redraw_seed(seed, number)
    copies = {node: graph.node(nodes.get_node(node)["class_type"], f"try.{node}") for node in sorted(body)}

    def moved(value: Any, whole_lists: bool = False) -> Any:
        if not is_link(value):
            return value
        if tuple(value) in instead:
            return instead[tuple(value)]
        if value[0] in copies:
            return copies[value[0]].out(value[1])
        return value if whole_lists else entry_of(graph, nodes, value)

    for node, copied in copies.items():
        copied.set_override_display_id(nodes.get_display_node_id(node))
        kind = nodes.get_node(node)["class_type"]
        for name, value in nodes.get_node(node)["inputs"].items():
            if node in varied and name in SEEDS and not is_link(value):
                value = redraw_seed(value, number)
            copied.set_input(name, moved(value, takes_lists(kind)))
    again = graph.node(
        "DuoGenReviewNext", "again", image=moved(inputs["image"]), context=values["context"], tries=values["tries"],
        duogen_review=origin, **{name: value for name, value in given.items() if name != "mllm"},
    )  # fmt: skip
    if "mllm" in values:
        again.set_input("mllm", values["mllm"])
    if seed is not None:
        again.set_input("seed", seed)
    again.set_override_display_id(nodes.get_display_node_id(origin))
    output = expand(graph, given.get("mllm") or owner_for(request_of(context)), again, hidden.unique_id)
    return io.NodeOutput(*output.args, expand=output.expand, ui=ui)


def drawing_nodes(nodes: Any, origin: str) -> tuple[set[str], set[str]]:
    """Returns the nodes that draw the image, and those of them whose own seed widget has to change from try to try.

    They lie between what the context comes from and the image. Where the seed comes by a link, the same link is the
    seed of Review Image, and no widget is touched. Where a node has its seed in a widget, it may lie beside the way:
    RandomNoise for SamplerCustomAdvanced.
    """
    inputs = nodes.get_node(origin)["inputs"]
    parent = nodes.get_parent_node_id(origin)
    beside = [node for node in nodes.all_node_ids() if nodes.get_parent_node_id(node) == parent]
    before = image_nodes(nodes, inputs["image"])
    body = downstream(nodes, beside, inputs["context"][0]) & before if is_link(inputs.get("context")) else set()
    link = inputs.get("seed")
    if is_link(link) and any(link == value for node in body for value in nodes.get_node(node)["inputs"].values()):
        return body, set()
    source = inputs["context"][0] if is_link(inputs.get("context")) else ""
    writes = {source, *upstream(nodes, source)} if source else set()  # another seed there would change the text
    varied = {
        node
        for node in (before & set(beside)) - writes
        if any(type(nodes.get_node(node)["inputs"].get(name)) is int for name in SEEDS)
    }
    if not varied:
        raise DuoGenError(
            "The image was refused, but there is no seed to draw it again with: connect the seed of DuoGen Loop Open "
            "to the node that draws and to seed of DuoGen Review Image, or set redraws to 0."
        )
    return body | varied | {node for one in varied for node in downstream(nodes, beside, one) & before}, varied


def image_nodes(nodes: Any, image: Any) -> set[str]:
    """The node that an IMAGE comes from, and all before it."""
    return {image[0], *upstream(nodes, image[0])} if is_link(image) else set()


def painted(context: Document, prompt: str, classes: set[str]) -> Document:
    """Returns the context for nodes that draw again: with the better prompt, where there is one.

    A DuoGen model draws from the conversation, and gets a short one (`redraw_request` of the core's picture_sampling);
    a caption takes the place of the image's own.
    """
    if not prompt:
        return context
    before = pending.before_next_picture(context)
    if classes & CONDITIONING and not pending.due_caption(before):
        return picture_sampling.redraw_request(before, prompt, 1, conversation=True)
    index = pending.pending_index(context)
    if index is None:
        return pending.with_caption(context, prompt)
    parts = list(context.last_turn.parts)
    parts[index] = replace(parts[index], meta={**parts[index].meta, pending.CAPTION: prompt})
    return pending.with_last_turn(context, replace(context.last_turn, parts=tuple(parts)))
