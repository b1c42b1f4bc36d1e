"""The exact checker as a critic: it knows what a Sketchbook request asks for, and reads what was drawn.

It sees what any critic sees (`duogen_core.review.Asked`): the user's words, the answer's words, the images. From the
words it takes what should be there, by the grammar that the tasks write their requests with; of the image before, it
reads what was there; both together give the scene that is due. What a case knows besides (`Case.truth`) is never used:
where a request leaves something open, such as the size of a shape, any size will do, or the one that the answer says.

Requests it can read: draw, edit (also one of several in a conversation), and a move on a board. Of anything else it
says that it cannot tell.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from duogen_core.errors import DuoGenError
from duogen_core.review import Asked, Review
from duogen_core.sketchbook.boards import draw_board, read_board
from duogen_core.sketchbook.checker import Reading, changed, read, share_kept
from duogen_core.sketchbook.drawing import draw_scene
from duogen_core.sketchbook.scene import CELLS, COLOURS, KINDS, SIZES, Scene, Shape
from duogen_core.sketchbook.scores import blank, described, meets, shows_board, step_agreement
from duogen_core.sketchbook.tasks.common import PLACES, a_shape, join, shape_words, with_background
from duogen_core.sketchbook.tasks.plan import parse_move
from duogen_core.sketchbook.tasks.scenes import DONE, DRAW_REQUESTS, EDIT_REQUESTS, NEXT

# ---------------------------------------------------------------- the words of requests

SAME_WORDS = {"gray": "grey", "little": "small", "big": "large", "middle": "centre", "center": "centre"}
_CELL = "|".join([*sorted(CELLS, key=len, reverse=True), "middle", "center"])
_COLOUR, _KIND, _SIZE = "|".join([*COLOURS, "gray"]), "|".join(KINDS), "|".join([*SIZES, "little", "big"])
# "in the top left", "in the top left corner", "at the top", "on the left side"
_PLACE = rf"(?:in|at|on) the (?P<cell>{_CELL})(?: corner| side)?"
_SHAPE = re.compile(rf"an? (?:(?P<size>{_SIZE}) )?(?:(?P<colour>{_COLOUR}) )?(?P<kind>{_KIND})(?: {_PLACE})?")
_REFERENCE = re.compile(rf"the (?:(?P<colour>{_COLOUR}) )?(?:(?P<kind>{_KIND})|shape)(?: {_PLACE})?")
_TARGETS = {"recolour": _COLOUR, "background": _COLOUR, "move": rf"to the (?:{_CELL})"}
_BACKGROUND = re.compile(rf"(?P<shapes>.*?),? on an? (?P<background>{_COLOUR}) background")


def one_word(word: str | None) -> str | None:
    return SAME_WORDS.get(word, word) if word else None


def wish(found: re.Match) -> dict[str, str | None]:
    """What words state of a shape; None where they leave it open."""
    return {name: one_word(value) for name, value in found.groupdict().items()}


def filled(wordings: tuple[str, ...], *places: str) -> Iterator[re.Pattern]:
    """Patterns of requests: each wording with these patterns in its places."""
    for wording in dict.fromkeys(wordings):
        yield re.compile(re.escape(wording).replace(r"\{\}", "{}").format(*places))


def asked_shapes(request: str) -> tuple[list[dict[str, str | None]], str] | None:
    """Shapes to be drawn and the background: "Draw a small red star and a circle, on a blue background."; else None."""
    for pattern in filled(DRAW_REQUESTS, "(?P<wanted>.*)"):
        if not (asked := pattern.fullmatch(request)):
            continue
        text, background = asked["wanted"], "cream"
        if ground := _BACKGROUND.fullmatch(text):
            text, background = ground["shapes"], one_word(ground["background"]) or ""
        shapes = [_SHAPE.fullmatch(phrase) for phrase in re.split(r", | and ", text)]
        if all(shapes):
            return [wish(shape) for shape in shapes if shape], background
    return None


def edits(request: str, before: Scene) -> dict[Scene, str]:
    """The scenes that an edit of `before` may lead to, each with the sentence that an answer says of it.

    One, or several where the request leaves something open; none where the request is no edit of this scene.
    """
    for word in NEXT:  # "Now make the star red."
        if word and request.startswith(word):
            request = request[len(word) :]
            request = request[:1].upper() + request[1:]
    found: dict[Scene, str] = {}
    for operation, wordings in EDIT_REQUESTS.items():
        what = {"add": [_SHAPE], "background": []}.get(operation, [_REFERENCE])
        places = [f"(?P<what>{_unnamed(pattern)})" for pattern in what]
        places += [f"(?P<to>{_TARGETS[operation]})"] if operation in _TARGETS else []
        for pattern in filled(wordings, *places):
            if asked := pattern.fullmatch(request):
                for scene, sentence in _edited(operation, asked.groupdict(), before):
                    found.setdefault(scene, sentence)
    return found


def _unnamed(pattern: re.Pattern) -> str:
    return re.sub(r"\?P<\w+>", "?:", pattern.pattern)


def _edited(operation: str, asked: dict[str, str], before: Scene) -> Iterator[tuple[Scene, str]]:
    """Only scenes that can be drawn: no two shapes in a cell, none in the colour of the background."""
    to = one_word((asked.get("to") or "").removeprefix("to the ")) or ""
    if operation == "background":
        with contextlib.suppress(ValueError):
            yield replace(before, background=to), DONE[operation].format(to)
    elif operation == "add":
        wanted = wish(_SHAPE.fullmatch(asked["what"]))
        free = {"cell": before.free_cells, "kind": KINDS, "colour": COLOURS, "size": SIZES}
        for values in product(*([wanted[name]] if wanted[name] else free[name] for name in free)):
            with contextlib.suppress(ValueError):
                yield before.add(Shape(*values)), DONE[operation].format(shape_words(Shape(*values)))
    else:
        wanted = wish(_REFERENCE.fullmatch(asked["what"]))
        for shape in (shape for shape in before.shapes if meets(shape, wanted)):
            rest, words = before.remove(shape), shape_words(shape)
            with contextlib.suppress(ValueError):
                if operation == "remove":
                    yield rest, DONE[operation].format(words)
                elif operation == "recolour":
                    yield rest.add(replace(shape, colour=to)), DONE[operation].format(words, to)
                else:
                    yield rest.add(replace(shape, cell=to)), DONE[operation].format(words, PLACES[to])


# ---------------------------------------------------------------- the critic


class SketchbookCritic:
    """A `duogen_core.review.Critic`. Exact, where the request is Sketchbook's and the image before it is readable."""

    def review(self, asked: Asked) -> Review:
        pixels = asked.picture.pixels
        before = asked.earlier[-1].pixels if asked.earlier else None
        if move := parse_move(asked.text):
            return self._move(pixels, before, move[1])
        if before is not None:
            allowed = edits(asked.request.strip(), read(before).scene)
            if not allowed:
                raise DuoGenError("the request is no change of the last image that the checker of Sketchbook can read.")
            return self._edited(pixels, before, allowed, asked.text, asked.tried)
        wanted = asked_shapes(asked.request.strip())
        if wanted is None:
            raise DuoGenError("the request is none that the checker of Sketchbook can read.")
        return self._drawn(pixels, *wanted, asked.text)

    def _edited(
        self, pixels: np.ndarray, before: np.ndarray, allowed: dict[Scene, str], text: str, tried: str
    ) -> Review:
        """Where the request leaves something open, what the answer says of it is due."""
        as_said = {scene: sentence for scene, sentence in allowed.items() if sentence in text}
        reading = read(pixels)
        if pixels.shape == before.shape and any(reading.shows(scene) for scene in as_said or allowed):
            return Review(shows=True)
        scored = {scene: likeness(pixels, before, draw_scene(scene)) for scene in list(as_said or allowed)[:8]}
        due = max(scored, key=scored.__getitem__)
        prompt = next_prompt(allowed[due], due, tried)
        return Review(False, wrong=difference(reading, due), prompt=prompt, score=scored[due])

    def _drawn(self, pixels: np.ndarray, wishes: list[dict], background: str, text: str) -> Review:
        """The answer's sentence states what the request left open; where it fits the request, it is what is due."""
        said = described(text)
        reading = read(pixels)
        if said and fits(said, wishes):
            scene = Scene(said, background, (pixels.shape[1], pixels.shape[0]))
            if reading.shows(scene):
                return Review(shows=True)
            ideal = draw_scene(scene)
            return Review(False, wrong=difference(reading, scene), score=likeness(pixels, blank(ideal), ideal))
        right = reading.clean and reading.scene.background == background and fits(reading.scene.shapes, wishes)
        wrong = "; ".join(reading.problems) or f"it shows {scene_words(reading.scene)}"
        return Review(True) if right else Review(False, wrong=f"{wrong[:1].upper()}{wrong[1:]}.", score=0.0)

    def _move(self, pixels: np.ndarray, before: np.ndarray | None, name: str) -> Review:
        board = None if before is None else read_board(before)
        after = board and board.move(name)
        if after is None:
            raise DuoGenError("the move that the text tells cannot be made on the board in the last image.")
        ideal = draw_board(after)
        if pixels.shape == ideal.shape and shows_board(pixels, ideal):
            return Review(shows=True)
        return Review(False, wrong=f"The board is not what it is after the move {name}.",
                      score=likeness(pixels, before, ideal))  # fmt: skip


def next_prompt(sentence: str, scene: Scene, tried: str) -> str:
    """Returns what to try next: the sentence of an answer that has understood the request, and the whole scene told as
    a drawing is; then each by itself. Another seed alone mostly repeats what a small model gets wrong."""
    if not scene.shapes:
        return sentence
    whole = f"Here is {with_background(join([a_shape(shape) for shape in scene.shapes]), scene.background)}."
    order = [f"{sentence} {whole}", sentence, whole]
    return order[(order.index(tried) + 1) % len(order)] if tried in order else order[0]


def fits(shapes: tuple[Shape, ...], wishes: list[dict]) -> bool:
    """Whether the shapes can be paired with the wishes, each meeting its own."""
    if len(shapes) != len(wishes):
        return False
    if not wishes:
        return True
    return any(
        meets(shape, wishes[0]) and fits((*shapes[:number], *shapes[number + 1 :]), wishes[1:])
        for number, shape in enumerate(shapes)
    )


def likeness(pixels: np.ndarray, before: np.ndarray, ideal: np.ndarray) -> float:
    """0 … 0.99: how near an image that is not right comes: what was to change shows it, and the rest was kept."""
    if pixels.shape != ideal.shape or before.shape != ideal.shape:
        return 0.0
    step = step_agreement(before, pixels, before, ideal)
    return 0.99 * (0.75 * step + 0.25 * share_kept(before, pixels, changed(before, ideal)))


def difference(reading: Reading, scene: Scene) -> str:
    """What an image shows that it should not, and what it lacks, in a sentence."""
    seen = reading.scene
    missing = [shape_words(shape) for shape in scene.shapes if shape not in seen.shapes]
    extra = [shape_words(shape) for shape in seen.shapes if shape not in scene.shapes]
    parts = [f"missing: {', '.join(missing)}"] if missing else []
    parts += [f"not asked for: {', '.join(extra)}"] if extra else []
    if seen.background != scene.background:
        parts.append(f"the background is {seen.background}, not {scene.background}")
    if seen.canvas != scene.canvas:
        parts.append(f"the size is {seen.canvas[0]}x{seen.canvas[1]}, not {scene.canvas[0]}x{scene.canvas[1]}")
    sentence = "; ".join(parts + list(reading.problems)) or "it is not drawn exactly"
    return f"{sentence[:1].upper()}{sentence[1:]}."


def scene_words(scene: Scene) -> str:
    shapes = ", ".join(shape_words(shape) for shape in scene.shapes) or "nothing"
    return f"{shapes}, on {scene.background}"
