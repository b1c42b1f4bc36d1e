"""Small files in Uni-MMMU's own layout: all of it is drawn and written here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

TILES = ("#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#ffff33", "#a65628", "#f781bf", "#999999")
# S start, G goal; the solutions are the only shortest ones.
MAZES = {
    "00001": (["S..#..", "##.#..", "...#..", ".###..", "....G.", "######"], "r r d d l l d d r r r r"),
    "00002": (["G.....", "#####.", "......", ".#####", "......", "#####S"], "u l l l l l u u r r r r r u u l l l l l"),
    "00015": (["......", ".####.", ".#G.#.", ".##S#.", ".####.", "......"], "u l"),
}  # fmt: skip
# The empty place is top left at first; a move is named by where the tile goes.
SLIDES = {"00001": "u l d", "00007": "l u u r", "00012": "l l u"}
WORDS = {"u": "up", "d": "down", "l": "left", "r": "right"}
STEP = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def draw_maze(rows: Sequence[str], at: tuple[int, int], size: int = 24, border: int = 5) -> Image.Image:
    image = Image.new("RGB", (6 * size + 2 * border,) * 2, "white")
    draw = ImageDraw.Draw(image)
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            x, y = border + c * size, border + r * size
            draw.rectangle((x, y, x + size - 1, y + size - 1), fill="#1f2937" if cell == "#" else "#f4efe6")
            if cell == "G":
                draw.rectangle((x + 1, y + 1, x + size - 2, y + size - 2), outline="#22c55e", width=5)
            if (r, c) == at:
                draw.ellipse((x + 5, y + 5, x + size - 6, y + size - 6), fill="#2563eb")
    return image


def draw_sliding(board: Sequence[Sequence[int]], size: int = 30, border: int = 6) -> Image.Image:
    image = Image.new("RGB", (3 * size + 2 * border,) * 2, "white")
    draw = ImageDraw.Draw(image)
    for r, row in enumerate(board):
        for c, tile in enumerate(row):
            x, y = border + c * size, border + r * size
            draw.rectangle((x, y, x + size - 1, y + size - 1), fill=TILES[tile - 1], outline="white")
    return image


def moves(short: str) -> list[str]:
    return [WORDS[letter] for letter in short.split()]


def maze_images(number: str) -> list[Image.Image]:
    """The maze at first and after each move of its solution."""
    rows, short = MAZES[number]
    at = next((r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell == "S")
    images = [draw_maze(rows, at)]
    for move in moves(short):
        at = at[0] + STEP[move][0], at[1] + STEP[move][1]
        assert rows[at[0]][at[1]] != "#", (number, move)
        images.append(draw_maze(rows, at))
    assert rows[at[0]][at[1]] == "G", number
    return images


def sliding_images(number: str) -> list[Image.Image]:
    """The puzzle at first and after each move of its solution."""
    board = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    images = [draw_sliding(board)]
    empty = (0, 0)
    for move in moves(SLIDES[number]):
        tile = empty[0] - STEP[move][0], empty[1] - STEP[move][1]
        board[empty[0]][empty[1]], board[tile[0]][tile[1]] = board[tile[0]][tile[1]], 1
        empty = tile
        images.append(draw_sliding(board))
    return images


def write_requests(folder: Path) -> Path:
    data = folder / "data"
    for name in ("math_data", "jigsaw_dataset_2x2ref", "science", "svg", "maze", "sliding"):
        (data / name).mkdir(parents=True)
    for n, name in enumerate(("a1.png", "a1_aux.png", "b2.png", "b2_aux.png")):
        save(data / "math_data/images" / name, n)
    write(data / "math_data/filtered.json", {
        "geo 1": {
            "1": {
                "type": "calculation", "problem_text_en": "In △ABC, ∠A = 60° and\n\"AB\" = AC = 2. Find BC.",
                "choices_en": ["A. 1", "B. 2"], "original_image": "images/a1.png",
                "auxiliary_image": "images/a1_aux.png",
                "auxiliary_text_en": "Draw AD perpendicular to BC.", "solution_en": "ABC has equal sides: BC = 2.",
            },
            "1/b": {
                "type": "proving", "problem_text": "证明 {AB} = AC.", "original_image": "./images/b2.png",
                "auxiliary_image": "images/b2_aux.png", "auxiliary_text_en": "Connect BC.", "solution": "略",
            },
        },
    })  # fmt: skip
    items = []
    for n, id in enumerate(("ex_00000", "ex_00001")):
        names = {name: f"{id}/{name}.png" for name in ("ref_2x2", "cand0", "cand1", "gt_ok", "gt_bad")}
        for k, name in enumerate(names.values()):
            save(data / "jigsaw_dataset_2x2ref" / name, 10 + 10 * n + k, 48)
        named = {key: f"./data/jigsaw_dataset_2x2ref/{name}" for key, name in names.items()}
        items.append({
            "id": id, "label": n, "ref_panel": {"ref_image_path": named["ref_2x2"]},
            "candidate_paths": [named["cand0"], named["cand1"]],
            "gt_completed_2x2_path": named["gt_ok"], "gt_wrong_2x2_path": named["gt_bad"],
        })  # fmt: skip
    write(data / "jigsaw_dataset_2x2ref/metadata.json", {"items": items})
    for n in range(2):
        save(data / f"science/images/{n}.png", 40 + n)
    science = [{"input_prompt": "nothing can be asked of this one", "input_image_file_path_list": []}]
    science += [
        {"input_prompt": f"The ice {{cube}} is heated.\nCase {n}", "output_prompt": "A puddle of water.",
         "input_image_file_path_list": [f"data/science/images/{n}.png"]} for n in range(2)
    ]  # fmt: skip
    write(data / "science/dim_all.json", [{"level_1_category": "physics", "samples": science}])
    samples = []
    for n in range(2):
        save(data / f"svg/png/s{n}.png", 50 + n)
        code = f'<svg width="64" height="64"><circle cx="{20 + n}" cy="20" r="9" fill="#E74C3C"/></svg>'
        write(data / f"svg/code/s{n}.svg", code)
        samples.append({"id": f"s{n}", "svg": f"code/s{n}.svg", "png": f"png/s{n}.png", "difficulty": "A"})
    write(data / "svg/metadata.json", {"samples": samples})
    for number, (_, short) in MAZES.items():
        for n, image in enumerate(maze_images(number)):
            save(data / f"maze/maze_6x6_{number}_steps/maze_step_{n:04d}.png", image)
        write(data / f"maze/maze_6x6_steps_{number}.json", {"steps_long": moves(short)})
    listed = []
    for number, short in SLIDES.items():
        for n, image in enumerate(sliding_images(number)):
            save(data / f"sliding/demo_3x3_{number}_steps/demo_step_{n:04d}.png", image)
        words = f"data/sliding/demo_3x3_steps_words_{number}.json"
        write(folder / words, {"steps_words": moves(short)})
        listed.append({"steps_dir": f"data/sliding/demo_3x3_{number}_steps", "steps_words_json": words})
    write(data / "sliding/summary_steps_le_8.json", {"items": listed[1:]})
    return data


def save(file: Path, image: Image.Image | int, side: int = 32) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, int):
        image = Image.fromarray(np.random.default_rng(image).integers(0, 255, (side, side, 3), np.uint8))
    image.save(file)


def write(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")


def write_results(folder: Path, ids: Sequence[str]) -> Path:
    """As `eval_ummmu.py` writes them: nothing right, except for what comes first."""
    place = folder / "eval/duogen-tiny"
    cases = {task: [id.split("/")[1] for id in ids if id.startswith(f"{task}/")] for task in
             ("math", "jigsaw", "science", "code", "maze", "sliding")}  # fmt: skip
    write(place / "math/eval_details.json", [
        {"id": id, "type": "calculation", "status": "ok", "overlay_ok": int(n == 0), "overlay_reason": "All there.",
         "text_ok": int(n == 0), "text_reason": "No rationale."} for n, id in enumerate(cases["math"])
    ])  # fmt: skip
    write(place / "science/eval_details.json", [
        {"case_id": id, "text_eval": {"reasoning_correct": 1, "result_correct": 0},
         "image_eval": {"image_correct": 0, "error": "none"}} for id in cases["science"]
    ])  # fmt: skip
    write(place / "code/eval_details.json", [
        {"case_dir": f"x/outputs/duogen-tiny/code/{id}", "text_eval": {"text_semantic_match": 1, "explanation": "ok"},
         "image_evals": [{"shape_color_accuracy": 4, "position_accuracy": 2, "verdict": "partial"}]}
        for id in cases["code"]
    ])  # fmt: skip
    rows = [f"{id},0,ok,0,1,ok,0.25,0.25,0.25" for id in cases["jigsaw"]]
    head = "id,label,text_status,choice,text_correct,image_status,d0,d1,d_mean"
    write(place / "jigsaw/per_item.csv", "\n".join([head, *rows]))
    head = "case_id,cand_idx,text_exact,text_frame_acc,img_exact,img_frame_acc"
    write(place / "sliding/manifest_eval.csv", "\n".join([head, *(f"{id},1,0,0.5,0,0.25" for id in cases["sliding"])]))
    head += ",parse_frame_success,parse_all_ok"
    rows = [f"{id},{n},0,0.5,{n - 1},0.25,1.0,1" for id in cases["maze"] for n in (1, 2)]
    write(place / "maze/manifest_eval.csv", "\n".join([head, *rows]))
    return place
