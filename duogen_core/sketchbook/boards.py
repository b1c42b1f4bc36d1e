"""Plan boards: a marker, a goal and walls on cells of 32 pixels; pixels of a board, and the board of some pixels.

Columns and rows count from 0 in code, from 1 in texts. 128x128 holds 4x4 cells, 160x96 holds 5x3, 96x160 holds 3x5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

import numpy as np

from duogen_core.sketchbook.drawing import Mark, ellipse, paint, rectangle
from duogen_core.sketchbook.scene import COLOURS, nearest

CELL = 32  # pixels, as a token of the vision tower: a cell is one token
GOAL_HALF, MARKER_RADIUS = 13.0, 9.5
MOVES: dict[str, tuple[int, int]] = {"right": (1, 0), "down": (0, 1), "left": (-1, 0), "up": (0, -1)}
MARKER_COLOURS = ("red", "blue", "purple", "black")
GOAL_COLOURS = ("yellow", "green", "pink", "orange")
WALL_COLOURS = ("grey", "brown")
Place = tuple[int, int]


@dataclass(frozen=True)
class Board:
    """(column, row) of marker, goal and walls; walls are sorted, so that equal boards are equal values."""

    columns: int
    rows: int
    marker: Place
    goal: Place
    walls: tuple[Place, ...] = ()
    marker_colour: str = "red"
    goal_colour: str = "green"
    wall_colour: str = "grey"

    def __post_init__(self) -> None:
        object.__setattr__(self, "walls", tuple(sorted(self.walls)))

    @property
    def canvas(self) -> tuple[int, int]:
        return self.columns * CELL, self.rows * CELL

    @property
    def solved(self) -> bool:
        return self.marker == self.goal

    def move(self, name: str) -> Board | None:
        """The board after a move, or None where a wall or the edge forbids it."""
        column, row = self.marker[0] + MOVES[name][0], self.marker[1] + MOVES[name][1]
        if not (0 <= column < self.columns and 0 <= row < self.rows) or (column, row) in self.walls:
            return None
        return replace(self, marker=(column, row))


def solve(board: Board) -> list[str] | None:
    """Returns a shortest list of moves to the goal, of equal ones always the same; None where no way leads there."""
    queue, seen = deque([(board, [])]), {board.marker}
    while queue:
        here, moves = queue.popleft()
        if here.solved:
            return moves
        for name in MOVES:
            there = here.move(name)
            if there is not None and there.marker not in seen:
                seen.add(there.marker)
                queue.append((there, [*moves, name]))
    return None


def random_board(rng: Random, canvas: tuple[int, int], *, longest: int = 5) -> Board:
    """A board which takes 1 to `longest` moves, lengths about equally often."""
    columns, rows = canvas[0] // CELL, canvas[1] // CELL
    places = [(column, row) for row in range(rows) for column in range(columns)]
    wanted = rng.randint(1, longest)  # first, or short ways, which are far more common, would fill the data
    while True:
        marker, goal, *walls = rng.sample(places, 2 + rng.randint(2, len(places) // 3))
        colours = rng.choice(MARKER_COLOURS), rng.choice(GOAL_COLOURS), rng.choice(WALL_COLOURS)
        board = Board(columns, rows, marker, goal, tuple(walls), *colours)
        moves = solve(board)
        if moves is not None and len(moves) == wanted:
            return board


def draw_board(board: Board) -> np.ndarray:
    """uint8 [height, width, 3]: walls fill their cell, the goal is a square, the marker a disc on top of it."""
    marks = [
        Mark(board.wall_colour, rectangle(c * CELL, r * CELL, (c + 1) * CELL, (r + 1) * CELL)) for c, r in board.walls
    ]
    gx, gy = ((k + 0.5) * CELL for k in board.goal)
    mx, my = ((k + 0.5) * CELL for k in board.marker)
    # The disc is smaller than the square, so that both can be seen when the marker stands on the goal.
    marks.append(Mark(board.goal_colour, rectangle(gx - GOAL_HALF, gy - GOAL_HALF, gx + GOAL_HALF, gy + GOAL_HALF)))
    marks.append(Mark(board.marker_colour, ellipse(mx, my, MARKER_RADIUS)))
    return paint(marks, board.canvas)


def read_board(pixels: np.ndarray) -> Board | None:
    """The board on a picture (uint8 [height, width, 3]); None unless it shows one marker, one goal and plain cells."""
    rows, columns = pixels.shape[0] // CELL, pixels.shape[1] // CELL
    walls: list[Place] = []
    marker: Place | None = None
    goal: Place | None = None
    marker_colour = goal_colour = ""
    wall_colours: set[str] = set()
    for row in range(rows):
        for column in range(columns):
            cell = pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL].astype(np.float32)
            middle = _colour(cell[12:20, 12:20])
            rim = _colour(np.concatenate([cell[1], cell[-2], cell[:, 1], cell[:, -2]]))
            # Between disc and square, near the square's corners.
            corners = _colour(
                np.concatenate([cell[y : y + 3, x : x + 3].reshape(-1, 3) for y in (5, 24) for x in (5, 24)])
            )
            if rim != "cream":
                if not middle == corners == rim or rim not in WALL_COLOURS:
                    return None
                walls.append((column, row))
                wall_colours.add(rim)
                continue
            if corners != "cream":
                if goal is not None or corners not in GOAL_COLOURS:
                    return None
                goal, goal_colour = (column, row), corners
            if middle != corners:
                if marker is not None or middle not in MARKER_COLOURS:
                    return None
                marker, marker_colour = (column, row), middle
    # A marker on the goal has been read as both: the disc in the middle, the square around it.
    if marker is None or goal is None or len(wall_colours) > 1:
        return None
    colours = marker_colour, goal_colour, wall_colours.pop() if wall_colours else "grey"
    return Board(columns, rows, marker, goal, tuple(walls), *colours)


def _colour(pixels: np.ndarray) -> str:
    """Returns the palette colour nearest to the median pixel."""
    return COLOURS[nearest(np.median(pixels.reshape(-1, 3), axis=0))]


def board_to_dict(board: Board) -> dict[str, Any]:
    data = asdict(board)
    return {key: _plain(value) for key, value in data.items()}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def board_from_dict(data: Mapping[str, Any]) -> Board:
    walls = tuple((column, row) for column, row in data["walls"])
    return Board(**{**data, "marker": tuple(data["marker"]), "goal": tuple(data["goal"]), "walls": walls})
