"""Uni-MMMU's requests: what its folder data/ holds -> an `Item` for each problem, and what a model is told of it.

    data, tasks = tasks_in(file)           the folder data/ and the tasks that are asked for
    requests_of(task, data)                the items of one, in their order
    picture_of(item.record, name)          an image of a request, for a judge; text_file reads a text in the same way

The folder data/, or one of the files in it (FILES), for that task alone:
    math     {big: {small: {"type", "problem_text_en", "choices_en", "original_image", "auxiliary_image",
             "auxiliary_text_en", "solution_en"}}}, names from math_data/
    jigsaw   {"items": [{"id", "label": 0|1, "ref_panel": {"ref_image_path"}, "candidate_paths": [2],
             "gt_completed_2x2_path", "gt_wrong_2x2_path"}]}
    science  [{"level_1_category", "samples": [{"input_prompt", "input_image_file_path_list",
             "output_prompt"}]}]; case numbers count every sample, as the scorer does
    code     {"samples": [{"id", "svg", "png", "difficulty"}]}, names from svg/
    maze     maze_6x6_NNNNN_steps/maze_step_NNNN.png and maze_6x6_steps_NNNNN.json {"steps_long": [move]};
             00015 is the example that every prompt shows, so it is no request
    sliding  {"items": [{"steps_dir", "steps_words_json"}]}: PREFIX_3x3_NNNNN_steps/demo_step_NNNN.png and
             PREFIX_3x3_steps_words_NNNNN.json {"steps_words": [move]}; 00001 is the example
    Other names are from the folder above data/ ("./data/jigsaw…/ref.png") or from the task's own.
Of a record: "moves" and "first" (the image that a puzzle begins with), "after" (the images after each move), "wholes"
(a jigsaw with candidate 0 and with 1), "problem", "solution", "lines", "figure", "overlay" (of a geometry problem).
The prompts are in words of ours: the official ones are in code without a licence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from duogen_core.document import Document, Part, Picture, Text, is_text
from duogen_core.document.reading import inside
from duogen_core.errors import DuoGenError, shown
from duogen_core.evaluation.benchmarks import Item
from duogen_core.evaluation.benchmarks import unimmmu_puzzles as puzzles
from duogen_core.evaluation.benchmarks.reading import field_of, id_of, list_of, picture_beside, text_of
from duogen_core.files import read_json, read_limited

FILES = {
    "math": "math_data/filtered.json",
    "jigsaw": "jigsaw_dataset_2x2ref/metadata.json",
    "science": "science/dim_all.json",
    "code": "svg/metadata.json",
    "maze": "maze",
    "sliding": "sliding/summary_steps_le_8.json",
}
LIMIT = 64 << 20
TEXT_LIMIT = 4 << 20
FIRST = "0000"  # in the name of the image that a puzzle begins with
MAZE_EXAMPLE, SLIDING_EXAMPLE = "00015", "demo_3x3_00001_steps"
_PLAIN = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,120}")
_MAZE = re.compile(r"maze_6x6_(\d{5})_steps")
_SLIDING = re.compile(r"(.*?_3x3)_(\d{5})_steps")

MATH = """The image shows the figure of a geometry problem.

Problem: {problem}
Choices: {choices}

1. Draw the figure again with these lines added to it, and nothing of it moved, removed or relabelled: {lines}
2. Then solve the problem with the help of these lines, in at most 150 words. Name points by their labels. End with {ending}"""  # noqa: E501
JIGSAW = """The first image is a 2x2 picture whose bottom right quarter is missing. The two images after it are candidates for this quarter: candidate 0, then candidate 1.

1. Draw the whole picture with candidate 0 in the bottom right quarter; the other three quarters stay exactly as they are.
2. Draw the whole picture with candidate 1 there, likewise.
3. Compare both: do edges, colours and shapes go on across the seams?
4. End with your decision on one line of this form, where choice is 0 or 1:
<FINAL_ANSWER_JSON>{"choice": 0, "rationale": "what decides, in at most 30 words"}</FINAL_ANSWER_JSON>"""  # noqa: E501
SCIENCE = """The image shows how things are at first. Then this happens: {condition}

1. Work out from what you know of the world what must follow, and explain it in at most 120 words; end with an exact description of how it looks in the end.
2. Draw one image of that end. Whatever the event does not change stays as it was."""  # noqa: E501
CODE = """Picture what this SVG code draws, without any tool:

{svg}

1. Describe the drawing in at most 60 words: which shapes, of which colours, where, and what covers what, between <RENDER_SUMMARY> and </RENDER_SUMMARY>.
2. Draw it as one image, with the size and the background that the code gives it."""  # noqa: E501
SOLVED_MAZE = "The first images show another maze, as it was and then after each move. "
SOLVED_SLIDING = "The first images show another puzzle: as it was, as it had to become, and after each move between. "
MAZE = """{example}Solve the maze in the last image. Dark cells are walls, light cells are free. The blue dot is where you are, the cell with the green frame is where you go. A move takes the dot one cell up, down, left or right, never into a wall.

Draw one image for each move, which shows the whole maze after it: only the dot changes its place. After the images, write the list of all moves on one line of this form:
<ANSWER_JSON>["right", "down"]</ANSWER_JSON>"""  # noqa: E501
SLIDING = """{example}The last two images show a sliding puzzle of 3x3 places, as it is now and as it must become. The red place is empty. {naming}

Draw one image for each move, which shows the whole puzzle after it. After the images, write the list of all moves on one line of this form:
<ANSWER_JSON>["down", "right"]</ANSWER_JSON>"""  # noqa: E501
BY_TILE = (
    "A move takes a tile beside the empty place into it, and is named by where this tile goes: up, down, left or right."
)
BY_EMPTY = "A move swaps the empty place with the tile beside it, and is named by where the empty place goes: up, down, left or right."  # noqa: E501


def tasks_in(file: Path) -> tuple[Path, list[str]]:
    """The folder data/ and the tasks that are asked for."""
    if not file.exists():
        raise DuoGenError(f"The file of requests {file} does not exist; check the path.")
    place = file.resolve()
    for task, name in FILES.items():
        data = place.parents[min(name.count("/"), len(place.parents) - 1)]
        if data / name == place:
            return data, [task]
    if not file.is_dir():
        raise DuoGenError(
            f"{file} is none of Uni-MMMU's files of requests; expected its folder data, or in it one of "
            f"{', '.join(FILES.values())}."
        )
    data = file / "data" if (file / "data").is_dir() else file
    tasks = [task for task, name in FILES.items() if (data / name).exists()]
    if not tasks:
        raise DuoGenError(f"{file} has none of {', '.join(FILES.values())}; expected Uni-MMMU's folder data.")
    return data.resolve(), tasks


def requests_of(task: str, data: Path) -> Iterator[Item]:
    return READERS[task](data, data / FILES[task])


def _math(data: Path, file: Path) -> Iterator[Item]:
    groups = read_json(file, "file of requests", limit=LIMIT)
    if not isinstance(groups, dict) or not groups:
        raise DuoGenError(f"{file} has no groups of problems; expected Uni-MMMU's filtered.json.")
    for big, group in groups.items():
        if not isinstance(group, dict):
            raise DuoGenError(f"{file}: {shown(big[:80])} is no group of problems; expected a JSON object.")
        for small, entry in group.items():
            where = f"{file}, {shown(big[:80])}, {shown(small[:80])}"
            record = _record(entry, where, data, file)
            figure = text_of(record, "original_image", where)
            overlay = text_of(record, "auxiliary_image", where)
            kind = text_of(record, "type", where, default="").lower()
            is_calculation = kind.startswith("calc")
            choices = record.get("choices_en") or []
            problem, solution = (_either(record, name, where) for name in ("problem_text", "solution"))
            if not problem.strip():
                raise DuoGenError(f"{where}: problem_text_en is missing; expected the text of the problem.")
            lines = text_of(record, "auxiliary_text_en", where, default="").strip() or "(none)"
            prompt = MATH.format(
                problem=problem,
                choices="; ".join(map(str, choices)) if isinstance(choices, list) and choices else "none",
                lines=lines,
                ending='"Final answer: …".' if is_calculation else '"Conclusion: …".',
            )
            record |= {"overlay": overlay, "figure": figure, "is_calculation": is_calculation}
            record |= {"problem": problem, "solution": solution, "lines": lines}
            picture_of(record, overlay)  # a judge needs it later: better told now
            id = f"math/{_case_name(big)}__{_case_name(small)}"
            yield _item(id, [picture_of(record, figure), Text(prompt)], record, 1)


def _jigsaw(data: Path, file: Path) -> Iterator[Item]:
    for where, entry in _entries(file, "items"):
        record = _record(entry, where, data, file)
        id = _plain(id_of(record, "id", where), where)
        panel = field_of(record, "ref_panel", dict, where, "an object with ref_image_path")
        names = [text_of(panel, "ref_image_path", where)]
        names += list_of(record, "candidate_paths", str, where, "the names of two images")
        if len(names) != 3 or record.get("label") not in (0, 1):
            raise DuoGenError(f"{where}: expected two candidate_paths and a label 0 or 1.")
        wholes = [text_of(record, f"gt_{name}_2x2_path", where) for name in ("completed", "wrong")]
        record["wholes"] = wholes if record["label"] == 0 else wholes[::-1]
        for name in wholes:
            picture_of(record, name)
        yield _item(f"jigsaw/{id}", [*(picture_of(record, name) for name in names), Text(JIGSAW)], record, 2)


def _science(data: Path, file: Path) -> Iterator[Item]:
    blocks = read_json(file, "file of requests", limit=LIMIT)
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise DuoGenError(f"{file} is no list of blocks with samples; expected Uni-MMMU's dim_all.json.")
    samples = [
        sample
        for number, block in enumerate(blocks, 1)
        for sample in list_of({"samples": [], **block}, "samples", dict, f"{file}, block {number}", "JSON objects")
    ]
    for number, entry in enumerate(samples, 1):
        where = f"{file}, sample {number}"
        record = _record(entry, where, data, file)
        text_of(record, "output_prompt", where, default="")
        images, condition = record.get("input_image_file_path_list"), record.get("input_prompt")
        if not images or not condition:
            continue  # nothing can be asked of it; the scorer counts it as wrong, and its number too
        record["image"] = list_of(record, "input_image_file_path_list", str, where, "names of images")[0]
        prompt = SCIENCE.format(condition=text_of(record, "input_prompt", where).strip())
        parts = [picture_of(record, record["image"]), Text(prompt)]
        yield _item(f"science/case_{number:02d}", parts, record, 1)


def _code(data: Path, file: Path) -> Iterator[Item]:
    for number, (where, entry) in enumerate(_entries(file, "samples"), 1):
        record = _record(entry, where, data, file)
        id = _plain(id_of(record, "id", where), where)
        code = text_file(file.parent, text_of(record, "svg", where), where)
        if text_of(record, "png", where, default=""):
            picture_of(record, record["png"])
        prompt = CODE.replace("{svg}", code)
        yield _item(f"code/case_{number:02d}_{id}", [Text(prompt)], record, 1)


def _maze(data: Path, folder: Path) -> Iterator[Item]:
    found = sorted(place for place in folder.glob("maze_*") if _MAZE.fullmatch(place.name))
    if not found:
        raise DuoGenError(f"{folder} has no maze_6x6_NNNNN_steps; expected the mazes of Uni-MMMU (6x6 cells).")
    example = f"maze_6x6_{MAZE_EXAMPLE}_steps"
    shown_first = []
    if (folder / example).is_dir():
        moves = _moves(data, f"maze/maze_6x6_steps_{MAZE_EXAMPLE}.json", "steps_long")
        shown_first = _example(data, f"maze/{example}/maze_step_{{:04d}}.png", (0, 1, 2), moves)
    for place in found:
        if place.name == example:
            continue
        number = _MAZE.fullmatch(place.name)[1]
        first = f"maze/{place.name}/maze_step_0000.png"
        picture = picture_beside(data, first, f"{folder}, maze {number}")
        moves = _moves(data, f"maze/maze_6x6_steps_{number}.json", "steps_long")
        if puzzles.read_maze(picture.pixels).start is None:
            raise DuoGenError(f"{folder}, maze {number}: no blue dot is seen in {first}; expected a maze.")
        record = {"data": str(data), "first": first, "moves": moves}
        prompt = MAZE.format(example=SOLVED_MAZE if shown_first else "")
        yield _item(f"maze/case_{number}", [*shown_first, picture, Text(prompt)], record, len(moves))


def _sliding(data: Path, file: Path) -> Iterator[Item]:
    place = f"sliding/{SLIDING_EXAMPLE}"
    shown_first = []
    if (data / place).is_dir():
        moves = _moves(data, "sliding/demo_3x3_steps_words_00001.json", "steps_words")
        shown_first = _example(data, f"{place}/demo_step_{{:04d}}.png", (0, 3, 1, 2), moves)
    for where, entry in _entries(file, "items"):
        folder = Path(text_of(entry, "steps_dir", where)).name
        parts = _SLIDING.fullmatch(folder)
        if not parts:
            raise DuoGenError(f"{where}: steps_dir is {shown(folder[:80])!r}; expected NAME_3x3_NNNNN_steps.")
        steps = sorted(file.name for file in (data / "sliding" / folder).glob("*.png"))
        after = [f"sliding/{folder}/{name}" for name in steps if FIRST not in name]
        if len(steps) < 2 or len(after) + 1 != len(steps):
            raise DuoGenError(f"{where}: sliding/{folder} has no images of the steps; unpack the data again.")
        moves = _moves(data, f"sliding/{parts[1]}_steps_words_{parts[2]}.json", "steps_words")
        first = next(f"sliding/{folder}/{name}" for name in steps if FIRST in name)
        images = [picture_beside(data, name, where) for name in (first, after[-1])]
        states = [puzzles.read_sliding(image.pixels) for image in images]
        naming = BY_TILE if puzzles.slide(states[0], moves, True) == states[1] else BY_EMPTY
        record = {"data": str(data), "first": first, "after": after, "moves": moves}
        prompt = SLIDING.format(example=SOLVED_SLIDING if shown_first else "", naming=naming)
        yield _item(f"sliding/case_{folder}", [*shown_first, *images, Text(prompt)], record, len(moves))


READERS: Mapping[str, Callable[[Path, Path], Iterator[Item]]] = {
    "math": _math, "jigsaw": _jigsaw, "science": _science, "code": _code, "maze": _maze, "sliding": _sliding,
}  # fmt: skip


# ------------------------------------------------------------ what they read


def _entries(file: Path, name: str) -> list[tuple[str, dict[str, Any]]]:
    value = read_json(file, "file of requests", limit=LIMIT)
    if not isinstance(value, dict):
        raise DuoGenError(f"{file} is no JSON object with {name}; expected Uni-MMMU's file.")
    entries = list_of(value, name, dict, str(file), "JSON objects")
    return [(f"{file}, {name} {number}", entry) for number, entry in enumerate(entries, 1)]


def _record(entry: Any, where: str, data: Path, file: Path) -> dict[str, Any]:
    """The entry, and where its images are: data, and folder, the task's own."""
    if not isinstance(entry, dict):
        raise DuoGenError(f"{where} is {shown(repr(entry)[:60])}; expected a JSON object.")
    return {**entry, "data": str(data), "folder": file.parent.name, "where": where}


def _item(id: str, parts: Sequence[Part], record: Mapping[str, Any], images: int) -> Item:
    return Item(id, Document().begin_turn("user", parts), record, id.split("/")[0], images)


def picture_of(record: Mapping[str, Any], name: str) -> Picture:
    """An image by its name: data/… is from the folder above, anything else from the task's own folder."""
    name = name.removeprefix("./")
    inside = name.removeprefix("data/") if name.startswith("data/") else f"{record['folder']}/{name}"
    return picture_beside(Path(record["data"]), inside, record["where"])


def text_file(folder: Path, name: str, where: str) -> str:
    """Reads a text with this relative name from the folder and from nowhere else."""
    name = name.removeprefix("./")
    data = read_limited(
        inside(folder, name, where, "its folder"), TEXT_LIMIT, f"{name} (named by {where})", "text file"
    )
    text = data.decode("utf-8", "replace")
    if not is_text(text):
        raise DuoGenError(f"{where}: {name} is not valid Unicode.")
    return text


def _moves(data: Path, name: str, key: str) -> list[str]:
    file = data / name
    value = read_json(file, "solution of a puzzle")
    moves = [move.lower() for move in list_of(value if isinstance(value, dict) else {}, key, str, str(file), "moves")]
    if not moves or not set(moves) <= set(puzzles.DIRECTIONS):
        raise DuoGenError(f"{file}: {key} has {shown(repr(moves)[:80])}; expected up, down, left and right.")
    return moves


def _example(data: Path, pattern: str, numbers: Sequence[int], moves: list[str]) -> list[Part]:
    pictures = [picture_beside(data, pattern.format(number), "the example of a puzzle") for number in numbers]
    said = f"An example, with its solution after its images: <ANSWER_JSON>{json.dumps(moves)}</ANSWER_JSON>\n"
    return [*pictures, Text(said)]


def _either(record: Mapping[str, Any], name: str, where: str) -> str:
    """The English text, else the other one, else nothing."""
    return text_of(record, f"{name}_en", where, default="") or text_of(record, name, where, default="")


def _case_name(key: str) -> str:
    """The scorer's own rule for the names of folders."""
    return re.sub(r"[^\w.-]+", "_", key.strip(), flags=re.ASCII)[:120] or "item"


def _plain(id: str, where: str) -> str:
    if not _PLAIN.fullmatch(id):
        raise DuoGenError(f"{where}: the id {id[:80]!r} cannot be the name of a folder, which the scorer needs it for.")
    return id
