"""plan: a marker finds its way to a goal on a small board -> one move and one picture per step.

truth: {"board": the board as given (`boards.board_from_dict`), "moves": the ideal moves, "shortest": their number}.
"""

from __future__ import annotations

import re
from random import Random

from duogen_core.document import Picture
from duogen_core.sketchbook.boards import (
    Board,
    Place,
    board_to_dict,
    draw_board,
    random_board,
    solve,
)
from duogen_core.sketchbook.tasks.common import Canvas, Case, assistant_turn, conversation, user_colour, user_turn

REQUESTS = (
    "Move the {marker} to the {goal}.",
    "Bring the {marker} to the {goal}.",
    "How does the {marker} get to the {goal}?",
    "Find the way from the {marker} to the {goal}.",
    "Show me the way of the {marker} to the {goal}.",
    "Solve this board.",
    "Solve the board step by step.",
)
CLOSING = "The marker is at the goal."


def place_words(place: Place) -> str:
    return f"column {place[0] + 1}, row {place[1] + 1}"


def move_text(number: int, name: str, board: Board) -> str:
    """Text of a move; `board` is the one after it."""
    return f"Move {number}: {name}, to {place_words(board.marker)}."


def parse_move(text: str) -> tuple[int, str] | None:
    """Number and direction of the last move in a text, or None where there is none."""
    found = re.findall(r"Move (\d+): (right|down|left|up)\b", text)
    return (int(found[-1][0]), found[-1][1]) if found else None


def request(rng: Random, board: Board) -> str:
    marker = rng.choice(("marker", f"{board.marker_colour} marker", f"{board.marker_colour} circle"))
    goal = rng.choice(("goal", f"{user_colour(rng, board.goal_colour)} goal", f"{board.goal_colour} square"))
    return rng.choice(REQUESTS).format(marker=marker, goal=goal)


def sample(rng: Random, *, canvas: Canvas = (128, 128), held_out: bool = False) -> Case:
    """`held_out` changes nothing: boards have no held-out pairs."""
    board = random_board(rng, canvas)
    moves = solve(board) or []
    # Saying first where things are gives the model a place to look before it decides.
    intro = (
        f"The {board.marker_colour} marker is in {place_words(board.marker)}. "
        f"The {board.goal_colour} goal is in {place_words(board.goal)}.\n\n"
    )
    parts: list[str | Picture] = []
    now = board
    for number, name in enumerate(moves, 1):
        now = now.move(name) or now
        parts += [(intro if number == 1 else "") + move_text(number, name, now), Picture(draw_board(now))]
    document = conversation(
        [user_turn(rng, request(rng, board), Picture(draw_board(board))), assistant_turn(*parts, CLOSING)]
    )
    return Case("plan", document, {"board": board_to_dict(board), "moves": moves, "shortest": len(moves)})
