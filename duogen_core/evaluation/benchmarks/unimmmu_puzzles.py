"""Mazes and sliding puzzles of Uni-MMMU without a judge: what an image shows, what moves do, whether they solve it.

    maze = read_maze(pixels)           maze.grid rows of "#", " ", "S", "G", "SG" (both there) or "?" (cannot be told)
    board = read_sliding(pixels)       3 x 3 numbers of the nine colours, "1" (red) is the empty place; "?" as above
    moves_in(text)                     the list in the last <ANSWER_JSON>["up", …]</ANSWER_JSON>, [] without one
    solves_maze(maze, moves)           goes from S to G, one cell a move, never into a wall
    solves_sliding(start, end, …)      turns one board into the other
    maze_scores(…), sliding_scores(…)  every figure of an answer by its name, 0 to 1

An image (uint8 RGB [H, W, 3]) is read by the same rules as by the benchmark's `eval_ummmu.py`, to the same cells also
where these rules are odd (an image that is not square), since a figure of ours has to be the official figure. The
board is found as the square around all that has its colours, cut into cells, and a cell is what most of it shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
MAZE_CELLS = 6
SLIDING_CELLS = 3
EMPTY = "1"

FLOOR, WALL, START, GOAL, PATH = "#f4efe6", "#1f2937", "#2563eb", "#22c55e", "#ef4444"
TILES = ("#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#ffff33", "#a65628", "#f781bf", "#999999")
# Shares of a cell: a wall, floor or tile fills it, a dot and a frame do not; the second ones are for the best cell of
# all where none reaches the first.
FILLED, DOT, FRAME, BEST_DOT, BEST_FRAME = 0.75, 0.1875, 0.5625, 0.08, 0.25
TILE_FILLED = 0.8
MARGIN = 2  # pixels around what was found

Cell = tuple[int, int]
Grid = tuple[tuple[str, ...], ...]
_ANSWER = re.compile(r"<ANSWER_JSON>\s*(\[.*?\])\s*</ANSWER_JSON>", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Maze:
    grid: Grid
    start: Cell | None
    goal: Cell | None

    @property
    def walls(self) -> frozenset[Cell]:
        return frozenset((r, c) for r, row in enumerate(self.grid) for c, cell in enumerate(row) if cell == "#")


def read_maze(pixels: np.ndarray) -> Maze:
    image = _unit(pixels)
    content = _distance(image, WALL, START, GOAL, PATH).min(-1) + 0.01 < _distance(image, "#ffffff", FLOOR).min(-1)
    height, width = content.shape
    board = _board(image, content, share=0.003, bottom=width, right=height)  # so it stands there, the other way round
    grid = [["?"] * MAZE_CELLS for _ in range(MAZE_CELLS)]
    shares = np.zeros((MAZE_CELLS, MAZE_CELLS, 4), np.float32)  # of floor, wall, start, goal
    start = goal = None
    for row, column, tile in _tiles(board, MAZE_CELLS):
        shares[row, column] = _shares(_distance(tile, FLOOR, WALL, START, GOAL))
        floor, wall, dot, frame = shares[row, column]
        name = "?"
        if dot >= DOT:
            start, name = (row, column), "S"
        if frame >= FRAME:
            goal, name = (row, column), "SG" if name == "S" else "G"
        if name == "?" and max(wall, floor) >= FILLED:
            name = "#" if wall >= FILLED else " "
        grid[row][column] = name
    if start is None and (best := _largest(shares[:, :, 2], BEST_DOT)):
        start = best
        grid[start[0]][start[1]] = "S"
    if goal is None and (best := _largest(shares[:, :, 3], BEST_FRAME)):
        goal = best
        grid[goal[0]][goal[1]] = "SG" if grid[goal[0]][goal[1]] == "S" else "G"
    if start is not None and start == goal:
        grid[start[0]][start[1]] = "SG"
    return Maze(tuple(map(tuple, grid)), start, goal)


def read_sliding(pixels: np.ndarray) -> Grid:
    image = _unit(pixels)
    white = np.linalg.norm(image - np.ones(3), axis=-1)
    content = _distance(image, *TILES).min(-1) + 0.01 < white
    board = _board(image, content, share=0.002, bottom=content.shape[0], right=content.shape[1])
    grid = [["?"] * SLIDING_CELLS for _ in range(SLIDING_CELLS)]
    for row, column, tile in _tiles(board, SLIDING_CELLS):
        shares = _shares(_distance(tile, *TILES))
        if float(shares.max()) >= TILE_FILLED:
            grid[row][column] = str(int(shares.argmax()) + 1)
    return tuple(map(tuple, grid))


def _unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / 255.0


def _distance(image: np.ndarray, *colours: str) -> np.ndarray:
    """How far every pixel is from each colour, [..., colours]."""
    found = np.empty((*image.shape[:2], len(colours)), np.float32)
    for k, colour in enumerate(colours):
        red, green, blue = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255.0
        # A channel at a time: four times as fast as a norm over three numbers, and rounded like it.
        squares = (image[..., 0] - red) ** 2 + (image[..., 1] - green) ** 2 + (image[..., 2] - blue) ** 2
        found[..., k] = np.sqrt(squares)
    return found


def _shares(distances: np.ndarray) -> np.ndarray:
    """The share of pixels that each colour is nearest to."""
    nearest = distances.argmin(-1)
    return np.array([(nearest == k).mean() for k in range(distances.shape[-1])], np.float32)


def _board(image: np.ndarray, content: np.ndarray, share: float, bottom: int, right: int) -> np.ndarray:
    """The square around all rows and columns with content. bottom, right: what its far sides may not pass."""
    (top, low), (left, far) = (_range(content.mean(axis=axis) > share) for axis in (1, 0))
    side = max(low - top, far - left) + 1
    sides = []
    for first, last, limit in ((top, low, bottom), (left, far, right)):
        end = min(limit, max(0, (first + last) // 2 - side // 2) + side)
        sides.append(slice(end - side, end))  # a start below 0 counts from the end, and mostly leaves nothing
    return image[sides[0], sides[1]]


def _range(has: np.ndarray) -> tuple[int, int]:
    found = np.flatnonzero(has)
    first, last = (int(found[0]), int(found[-1])) if len(found) else (0, len(has) - 1)
    return max(0, first - MARGIN), min(len(has) - 1, last + MARGIN)


def _tiles(board: np.ndarray, count: int) -> Iterable[tuple[int, int, np.ndarray]]:
    """The cells that have pixels."""
    rows, columns = ([round(k * (length / count)) for k in range(count + 1)] for length in board.shape[:2])
    for row in range(count):
        for column in range(count):
            tile = board[rows[row] : rows[row + 1], columns[column] : columns[column + 1]]
            if tile.size:
                yield row, column, tile


def _largest(shares: np.ndarray, least: float) -> Cell | None:
    row, column = np.unravel_index(shares.argmax(), shares.shape)
    return (int(row), int(column)) if shares[row, column] >= least else None


def moves_in(text: str) -> list[str]:
    found = _ANSWER.findall(text)
    try:
        moves = json.loads(found[-1]) if found else []
    except (ValueError, RecursionError):
        return []
    return [str(move).strip().lower() for move in moves]


def walk(maze: Maze, moves: Sequence[str]) -> list[Cell]:
    """Where the dot is after each move; one that a wall or the edge stops, or that is none, stays where it is."""
    at = maze.start
    cells: list[Cell] = []
    for move in moves if at else ():
        step = DIRECTIONS.get(move, (0, 0))
        to = at[0] + step[0], at[1] + step[1]
        if 0 <= to[0] < MAZE_CELLS and 0 <= to[1] < MAZE_CELLS and to not in maze.walls:
            at = to
        cells.append(at)
    return cells


def drawn(maze: Maze, at: Cell) -> Grid:
    """What an image of this maze must show with the dot in this cell."""
    walls = maze.walls
    grid = [["#" if (r, c) in walls else " " for c in range(MAZE_CELLS)] for r in range(MAZE_CELLS)]
    if maze.goal:
        grid[maze.goal[0]][maze.goal[1]] = "G"
    grid[at[0]][at[1]] = "SG" if at == maze.goal else "S"
    return tuple(map(tuple, grid))


def is_readable(grid: Grid, maze: Maze) -> bool:
    """Whether every cell can be told, the walls stand where they stood, and there is one dot and one goal."""
    cells = [cell for row in grid for cell in row]
    walls = frozenset((r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell == "#")
    dots, goals, both = (cells.count(name) for name in ("S", "G", "SG"))
    return "?" not in cells and walls == maze.walls and (dots, goals, both) in ((0, 0, 1), (1, 1, 0))


def solves_maze(maze: Maze, moves: Sequence[str]) -> bool:
    cells = walk(maze, moves)
    before = [maze.start, *cells[:-1]]
    return bool(cells) and cells[-1] == maze.goal and all(one != other for one, other in zip(before, cells))


def slide(board: Grid, moves: Sequence[str], by_tile: bool) -> Grid | None:
    """The board after the moves, None if one is impossible. by_tile: a move is named by where the tile goes, otherwise
    by where the empty place goes."""
    tiles = {(r, c): cell for r, row in enumerate(board) for c, cell in enumerate(row)}
    places = [place for place, cell in tiles.items() if cell == EMPTY]
    if len(places) != 1:
        return None
    empty = places[0]
    for move in moves:
        down, right = DIRECTIONS.get(move, (9, 9))
        sign = -1 if by_tile else 1
        to = empty[0] + sign * down, empty[1] + sign * right
        if to not in tiles:
            return None
        tiles[empty], tiles[to] = tiles[to], tiles[empty]
        empty = to
    return tuple(tuple(tiles[r, c] for c in range(SLIDING_CELLS)) for r in range(SLIDING_CELLS))


def solves_sliding(start: Grid, end: Grid, moves: Sequence[str], solution: Sequence[str]) -> bool | None:
    """Whether the moves turn one board into the other. What a move is called, by its tile or by the empty place, is
    taken from the benchmark's own solution; None where that solves nothing either way."""
    for by_tile in (True, False):
        if solution and slide(start, solution, by_tile) == end:
            return slide(start, moves, by_tile) == end
    return None


def shares_equal(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    """The share of what was wanted that stands at its place."""
    return sum(one == other for one, other in zip(found, wanted)) / len(wanted) if wanted else 0.0


def maze_scores(
    first: np.ndarray, images: Sequence[np.ndarray], moves: Sequence[str], solution: Sequence[str]
) -> dict[str, float | None]:
    """Scores the images and moves of an answer. first: the image of the maze as it is given."""
    maze = read_maze(first)
    found = [read_maze(pixels).grid for pixels in images]
    readable = [is_readable(grid, maze) for grid in found]
    return {
        **_compared(moves, solution, found, [drawn(maze, at) for at in walk(maze, solution)]),
        "readable": sum(readable) / len(readable) if readable else 0.0,
        "solved": float(solves_maze(maze, moves)),
    }


def sliding_scores(
    first: np.ndarray, after: Sequence[np.ndarray], images: Sequence[np.ndarray], moves: Sequence[str],
    solution: Sequence[str],
) -> dict[str, float | None]:  # fmt: skip
    """Scores the images and moves of an answer. first, after: the image of the puzzle as it is given, and those of the
    solution after each move."""
    wanted = [read_sliding(pixels) for pixels in after]
    solved = solves_sliding(read_sliding(first), wanted[-1], moves, solution)
    return {
        **_compared(moves, solution, [read_sliding(pixels) for pixels in images], wanted),
        "solved": None if solved is None else float(solved),
    }


def _compared(
    moves: Sequence[str], solution: Sequence[str], found: Sequence[Grid], wanted: Sequence[Grid]
) -> dict[str, float]:
    return {
        "text": shares_equal(moves, solution),
        "text exact": float(list(moves) == list(solution)),
        "image": shares_equal(found, wanted),
        "image exact": float(list(found) == list(wanted)),
    }
