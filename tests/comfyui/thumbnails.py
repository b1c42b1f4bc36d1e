"""The thumbnails of the workflows, each from a real run: the request, the pictures of the answer, its last words.

In: `python thumbnails.py http://127.0.0.1:8188 [name …]`, a running ComfyUI with this pack. Out: workflows/<name>.jpg,
512 x 512, as ComfyUI's template browser shows them. Where the server lacks a model that the workflow names (Stable
Diffusion in 11 Any painter), there is nothing to run: the thumbnail shows the graph itself. That of an app says so, as
ComfyUI's dialog calls every template of a pack a node graph.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from ui_to_api import complaints, convert

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
SIDE, MARGIN, GAP = 512, 24, 12
PAPER, INK, FAINT = (250, 247, 240), (40, 40, 40), (205, 198, 184)
TITLE = 30  # a node's title stands above its position


class Client:
    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def get(self, path: str, **query: str) -> bytes:
        tail = "?" + urllib.parse.urlencode(query) if query else ""
        with urllib.request.urlopen(self.address + path + tail, timeout=60) as answer:
            return answer.read()

    def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        """Node id -> what it shows, when the graph has run."""
        body = json.dumps({"prompt": graph}).encode()
        request = urllib.request.Request(self.address + "/prompt", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            prompt = json.load(answer)["prompt_id"]
        while True:
            job = json.loads(self.get(f"/history/{prompt}")).get(prompt)
            if job is not None:
                if job["status"]["status_str"] != "success":
                    raise SystemExit(json.dumps(job["status"]["messages"][-1], indent=1))
                return job["outputs"]
            time.sleep(0.5)

    def picture(self, part: dict[str, Any]) -> Image.Image:
        place = {"filename": part["filename"], "subfolder": part["subfolder"], "type": part["folder"]}
        return Image.open(io.BytesIO(self.get("/view", **place))).convert("RGB")


def of_answer(client: Client, graph: dict[str, Any]) -> Image.Image:
    """The longest conversation that a DuoGen Preview Document of the run shows."""
    outputs = client.run(graph)
    shown = [output["duogen_document"][0]["turns"] for output in outputs.values() if "duogen_document" in output]
    turns = max(shown, key=lambda turns: sum(len(turn["parts"]) for turn in turns))
    requests = [part["text"] for turn in turns if turn["role"] == "user" for part in turn["parts"] if "text" in part]
    requests = requests or [node["inputs"]["text"] for node in graph.values() if node["class_type"] == "DuoGenPrompt"]
    last = turns[-1]["parts"][-1]
    pictures = [client.picture(part) for turn in turns for part in turn["parts"] if part["type"] == "image"]
    return compose(" ".join(requests), pictures, last["text"] if last["type"] == "text" else "")


def compose(title: str, pictures: list[Image.Image], ending: str) -> Image.Image:
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = write(pen, title, MARGIN, 25) + GAP
    lines = wrapped(pen, ending, ImageFont.load_default(20))
    bottom = SIDE - MARGIN - 26 * len(lines)
    if lines:
        write(pen, ending, bottom, 20)
        bottom -= GAP
    width, height = max(picture.width for picture in pictures), max(picture.height for picture in pictures)
    scale, columns = max(
        (min((SIDE - 2 * MARGIN - GAP * (k - 1)) / (k * width), (bottom - top + GAP) / rows / height - GAP / height), k)
        for k in range(1, len(pictures) + 1)
        for rows in [-(-len(pictures) // k)]
    )
    cell = (int(width * scale), int(height * scale))
    rows = -(-len(pictures) // columns)
    above = top + (bottom - top - rows * cell[1] - (rows - 1) * GAP) // 2
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        here = min(columns, len(pictures) - row * columns)
        x = (SIDE - here * cell[0] - (here - 1) * GAP) // 2 + column * (cell[0] + GAP)
        y = above + row * (cell[1] + GAP)
        size = (int(picture.width * scale), int(picture.height * scale))
        sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), (x, y))
        pen.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=FAINT)
    return sheet


def write(pen: ImageDraw.ImageDraw, text: str, y: int, size: int) -> int:
    font = ImageFont.load_default(size)
    for line in wrapped(pen, text, font):
        pen.text((SIDE / 2, y), line, INK, font, anchor="ma")
        y += size + 6
    return y


def wrapped(pen: ImageDraw.ImageDraw, text: str, font: Any) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and pen.textlength(longer, font) <= SIDE - 2 * MARGIN:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def of_graph(workflow: dict[str, Any]) -> Image.Image:
    """Its groups, nodes and links, under the headline of its note."""
    note = next(node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    sheet = Image.new("RGB", (SIDE, SIDE), (32, 32, 32))
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(27)
    headline = note["widgets_values"][0].splitlines()[0].lstrip("# ")
    pen.text(
        (SIDE / 2, 64), "\n".join(wrapped(pen, headline, font)), (235, 235, 235), font, anchor="mm", align="center"
    )
    boxes = [group["bounding"] for group in workflow["groups"]]
    left, above = min(box[0] for box in boxes), min(box[1] for box in boxes)
    scale = (SIDE - 2 * MARGIN) / (max(box[0] + box[2] for box in boxes) - left)

    def at(x: float, y: float) -> tuple[float, float]:
        return MARGIN + (x - left) * scale, 120 + (y - above) * 2.2 * scale  # a graph is wide, a thumbnail square

    for group in workflow["groups"]:
        x, y, width, height = group["bounding"]
        colour = Image.new("RGB", (1, 1), group["color"]).getpixel((0, 0))
        pen.rounded_rectangle((*at(x, y), *at(x + width, y + height)), 3, tuple(c // 2 for c in colour), colour)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for _, source, _, target, _, _ in workflow["links"]:
        a, b = nodes[source], nodes[target]
        ends = at(a["pos"][0] + a["size"][0], a["pos"][1] + 14), at(b["pos"][0], b["pos"][1] + 14)
        pen.line(ends, (190, 190, 150), 1)
    for node in nodes.values():
        if node is not note:
            (x, y), (width, height) = node["pos"], node["size"]
            pen.rounded_rectangle((*at(x, y - TITLE), *at(x + width, y + height)), 3, (70, 70, 70), (120, 120, 120))
            pen.rectangle((*at(x, y - TITLE), *at(x + width, y)), (110, 110, 110))
    return sheet


def mark(sheet: Image.Image, word: str) -> None:
    """A word on a plate in the lower right corner."""
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(27)
    left, top, right, bottom = pen.textbbox((SIDE - 20, SIDE - 20), word, font, anchor="rb")
    pen.rounded_rectangle((left - 14, top - 10, right + 10, bottom + 10), 10, (20, 110, 220))
    pen.text((SIDE - 20, SIDE - 20), word, (255, 255, 255), font, anchor="rb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="where ComfyUI runs, such as http://127.0.0.1:8188")
    parser.add_argument("names", nargs="*", help="workflows; all of them where none is named")
    arguments = parser.parse_args()
    client = Client(arguments.address)
    info = json.loads(client.get("/object_info"))
    for file in sorted(WORKFLOWS.glob("*.json")):
        if arguments.names and file.stem not in arguments.names:
            continue
        workflow = json.loads(file.read_text("utf-8"))
        lacking = complaints(workflow, info)
        picture = of_graph(workflow) if lacking else of_answer(client, convert(workflow, info))
        if workflow["extra"].get("linearMode"):
            mark(picture, "App")
        picture.save(file.with_suffix(".jpg"), quality=88, optimize=True)
        print(file.stem, *([f"(not run: {lacking[0]:.100})"] if lacking else []), flush=True)


if __name__ == "__main__":
    main()
