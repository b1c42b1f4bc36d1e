"""Writes what is made of other files: the App-mode variants of templates, what their notes say of model files, the view
that a template opens with, and the blueprints in subgraphs/.

In: `python workflow_files.py http://127.0.0.1:8188`, a running ComfyUI with this pack; it knows the sockets of the
blueprints' nodes. Out: workflows/*.json, subgraphs/*.json. Graphs and notes are edited in the templates themselves (in
ComfyUI, or by hand); then this brings the rest up to date, and thumbnails.py draws the cards. test_workflow_files.py
fails when a file is not what this would write.

App mode (front end 1.58, src/stores/appModeStore.ts): `extra.linearMode` opens the workflow as an app,
`extra.linearData` names its inputs, [node, widget, {"description"}], and the nodes whose images it shows. What a widget
is called there is the `label` of its input. Blueprints (src/stores/subgraphStore.ts) are workflows of one node, whose
type is the one subgraph; a widget is promoted by a link from the subgraph's input to it.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from ui_to_api import DYNAMIC, WIDGETS, specifications

PACK = Path(__file__).resolve().parents[2]
WORKFLOWS, SUBGRAPHS = PACK / "workflows", PACK / "subgraphs"
APP = ".app"  # "01 Illustrated guide.app.json": how ComfyUI names a workflow that was saved as an app
NAMESPACE = uuid.UUID("6f0f2d0a-1f0e-4c53-9a53-0d4b7f0a7d11")  # ids of what is made here stay the same

# ------------------------------------------------------------ model files: what a user has to know before a download

APACHE = "Apache-2.0"
# Name -> size, licence. Sizes and licences are those of the pages on huggingface.co that the templates link to.
FILES = {
    "v1-5-pruned-emaonly-fp16.safetensors": ("2.1 GB", "CreativeML OpenRAIL-M"),
    "flux-2-klein-base-4b-fp8.safetensors": ("4.1 GB", APACHE),
    "qwen_3_4b.safetensors": ("8.0 GB", APACHE),
    "flux2-vae.safetensors": ("0.3 GB", APACHE),
    "qwen_image_edit_2511_bf16.safetensors": ("40.9 GB", APACHE),
    "qwen_2.5_vl_7b_fp8_scaled.safetensors": ("9.4 GB", APACHE),
    "qwen_image_vae.safetensors": ("0.3 GB", APACHE),
    "omnigen2_fp16.safetensors": ("7.9 GB", APACHE),
    "qwen_2.5_vl_fp16.safetensors": ("7.5 GB", "Qwen Research License, not for business"),
    "ae.safetensors": ("0.3 GB", APACHE),
    "qwen3vl_8b_fp8_scaled.safetensors": ("about 10 GB", APACHE),
    "qwen_2.5_vl_7b.safetensors": ("16.6 GB", APACHE),
    "cosmos_predict2.5_2b_post-trained.safetensors": ("4.1 GB", "NVIDIA Open Model License, accepted on its page"),
    "wan_2.1_vae.safetensors": ("0.3 GB", APACHE),
}
HEADING = "**Files**, below `ComfyUI/models`; ComfyUI offers those that are missing:"


def models_of(workflow: dict[str, Any]) -> list[dict[str, str]]:
    """The files that a workflow's nodes name, each once, with url and directory."""
    found = {m["name"]: m for node in workflow["nodes"] for m in node["properties"].get("models", [])}
    return list(found.values())


def with_files(workflow: dict[str, Any]) -> dict[str, Any]:
    """The list of files in the first note, after its paragraph that begins with **Files**."""
    models = models_of(workflow)
    note = next(node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    text = re.sub(r"\n\n\*\*Files\*\*.*?(?=\n\n\*\*|$)", "", note["widgets_values"][0], flags=re.DOTALL)
    if models:
        lines = [f"- `{m['directory']}/{m['name']}` ({', '.join(FILES[m['name']])})" for m in models]
        before, mark, after = text.partition("\n\n**Next:**")
        text = "\n\n".join([before, HEADING + "\n\n" + "\n".join(lines)]) + mark + after
    note["widgets_values"][0] = text
    return workflow


# ------------------------------------------------------------ the view

WINDOW, LEFT, TOP, RIGHT, BOTTOM = (1280, 720), 76, 100, 20, 60  # clear of side bar, tabs, run button and zoom buttons
TITLE = 30  # a node's title stands above its position


def with_view(workflow: dict[str, Any]) -> dict[str, Any]:
    """Every group and note in a small window. (A template opened in the dialog is fitted by the front end itself.)"""
    boxes = [group["bounding"] for group in workflow["groups"]]
    boxes += [[n["pos"][0], n["pos"][1] - TITLE, n["size"][0], n["size"][1] + TITLE] for n in workflow["nodes"]]
    left, top = (min(box[k] for box in boxes) for k in (0, 1))
    width, height = (max(box[k] + box[k + 2] for box in boxes) - (left, top)[k] for k in (0, 1))
    scale = min((WINDOW[0] - LEFT - RIGHT) / width, (WINDOW[1] - TOP - BOTTOM) / height, 1)
    offset = [round(LEFT / scale - left), round(TOP / scale - top)]
    workflow["extra"]["ds"] = {"scale": int(scale * 1000) / 1000, "offset": offset}
    return workflow


# ------------------------------------------------------------ apps

TINY = "Flat drawings: house, boat, car"  # App mode shows some thirty letters
# Template -> inputs (node by title or class, widget, its label, a line below it), and the nodes whose images and text
# files are shown: of DuoGen Preview Document, the answer's images and answer.md.
Inputs = list[tuple[str, str, str, str]]
APPS: dict[str, tuple[Inputs, list[str]]] = {
    "01 Illustrated guide": (
        [
            ("DuoGenPrompt", "text", "Your request", TINY),
            ("DuoGenInterleave", "max_images", "Images at most", ""),
            ("DuoGenInterleave", "seed", "Seed", "Another number, other drawings"),
        ],
        ["The answer"],
    ),
    "02 Edit chain": (
        [
            ("An image to begin with", "document", "Begin with", "An example, or a saved answer"),
            ("Edit 1", "text", "First change", ""),
            ("Edit 2", "text", "Then", ""),
            ("Edit 3", "text", "And then", ""),
        ],
        ["The conversation"],
    ),
    "03 Storyboard": (
        [
            ("DuoGenPrompt", "text", "Your request", TINY),
            ("DuoGenInterleave", "max_images", "Frames at most", ""),
            ("Four times larger", "scale_by", "Enlarge by", ""),
            ("All on one sheet", "columns", "Frames side by side", ""),
            ("DuoGenInterleave", "seed", "Seed", "Another number, other drawings"),
        ],
        ["The frames", "The sheet"],
    ),
    "11 Any painter": (
        [
            ("DuoGenPrompt", "text", "Your request", TINY),
            ("The writer: duogen-tiny, or your own", "checkpoint", "Who writes", "A Qwen-VL knows more"),
            ("The painter", "ckpt_name", "Who paints", "Any checkpoint"),
            ("The paragraph, and a style", "string_b", "Style", "Of every image"),
            ("DuoGenLoopClose", "max_images", "Images at most", ""),
            ("DuoGenLoopOpen", "seed", "Seed", "Another number, other images"),
        ],
        ["The answer"],
    ),
}


def nodes_by_name(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node.get("title") or node["type"]: node for node in workflow["nodes"]}


def app_of(name: str, workflow: dict[str, Any]) -> dict[str, Any]:
    """The same graph, opened in App mode: its newcomer's inputs, and the images of its result."""
    inputs, outputs = APPS[name]
    app = copy.deepcopy(workflow)
    app["id"] = str(uuid.uuid5(NAMESPACE, name + APP))
    nodes = nodes_by_name(app)
    chosen = []
    for node, widget, label, description in inputs:
        (entry,) = [entry for entry in nodes[node]["inputs"] if entry["name"] == widget]
        entry["label"] = label
        chosen.append([nodes[node]["id"], widget, *([{"description": description}] if description else [])])
    app["extra"] |= {"linearMode": True, "linearData": {"inputs": chosen, "outputs": [nodes[n]["id"] for n in outputs]}}
    return app


# ------------------------------------------------------------ blueprints

# A blueprint: what it says of itself; its nodes, key -> (class, column, widgets that are not as the node has them); the
# links inside, "key.output" -> "key.input"; its inputs, name -> (label, "key.input" …), widgets after sockets in the
# order in which they are shown; its outputs, name -> "key.output".
Blueprint = dict[str, Any]
REQUEST = "How do I draw a house with a red roof?"
OWN_IMAGE = {"image": ("image", "ask.images.image1"), "conversation": ("conversation", "ask.context")}
BLUEPRINTS: dict[str, Blueprint] = {
    "Answer with images (DuoGen)": {
        "description": "Answers a request with text and images in turn. Runs as it is: duogen-tiny comes with the pack "
        "and knows flat drawings. Connect context to DuoGen Preview Document to see the answer, to DuoGen Save "
        "Document to keep it. An image to ask about, or a conversation to continue, may be connected.",
        "nodes": {
            "load": ("DuoGenLoadCheckpoint", 0, {"checkpoint": "duogen-tiny"}),
            "ask": ("DuoGenPrompt", 0, {"text": REQUEST}),
            "answer": ("DuoGenInterleave", 1, {"seed": 7}),
        },
        "links": {
            "load.mllm": ["answer.mllm"],
            "load.connector": ["answer.connector"],
            "load.model": ["answer.model"],
            "load.vae": ["answer.vae"],
            "ask.context": ["answer.context"],
        },
        "inputs": OWN_IMAGE
        | {
            "text": ("request", "ask.text"),
            "checkpoint": ("model", "load.checkpoint"),
            "max_images": ("images at most", "answer.max_images"),
            "seed": ("seed", "answer.seed"),
        },
        "outputs": {"context": "answer.context", "text": "answer.text", "images": "answer.images"},
    },
    "One image of an answer (DuoGen)": {
        "description": "Writes on until an image is due and draws it, while it looks at every earlier one. Put several "
        "in a row, context into context, with nodes of yours between; DuoGen Write Text ends the answer. Its sockets "
        "are those of DuoGen Load Checkpoint.",
        "nodes": {
            "seed": ("PrimitiveInt", 0, {"value": 7}),
            "write": ("DuoGenWrite", 0, {"seed": 7}),
            "condition": ("DuoGenConditionNextImage", 1, {}),
            "size": ("DuoGenPictureSize", 1, {}),
            "sample": ("DuoGenSampler", 2, {}),
            "decode": ("VAEDecode", 3, {}),
            "append": ("DuoGenAppendImage", 3, {}),
        },
        "links": {
            "write.context": ["condition.context", "size.context", "append.context"],
            "condition.positive": ["sample.positive"],
            "condition.negative": ["sample.negative"],
            "size.latent": ["sample.latent_image"],
            "seed.INT": ["sample.seed", "append.seed"],
            "sample.latent": ["decode.samples"],
            "decode.IMAGE": ["append.image"],
        },
        "inputs": {
            "mllm": ("mllm", "write.mllm", "condition.mllm", "size.mllm"),
            "connector": ("connector", "write.connector", "condition.connector"),
            "model": ("model", "sample.model"),
            "vae": ("vae", "condition.vae", "decode.vae"),
            "context": ("context", "write.context"),
            "seed": ("seed", "seed.value"),
            "steps": ("steps", "sample.steps"),
            "cfg": ("cfg", "sample.cfg"),
            "which": ("looks at", "condition.which"),
        },
        "outputs": {
            "context": "append.context",
            "image": "decode.IMAGE",
            "text": "write.text",
            "wants_image": "write.wants_image",
        },
    },
    "Plan and draw (DuoGen)": {
        "description": "A language model plans the whole answer, then any image model draws it. Connect DuoGen Load "
        "Language Model with a Qwen-VL of yours, and the model, text encoder and VAE of Load Checkpoint or of the "
        "loaders that the painter has. painter: edit for a model that looks at earlier images, text for one that does "
        "not.",
        "nodes": {
            "ask": ("DuoGenPrompt", 0, {"text": "How do I fold a paper boat?"}),
            "plan": ("DuoGenPlanAnswer", 0, {"style": "Simple flat vector illustration, plain background."}),
            "open": ("DuoGenLoopOpen", 1, {"seed": 7}),
            "words": ("CLIPTextEncode", 2, {}),
            "not": ("CLIPTextEncode", 2, {"text": "text, watermark, blurry"}),
            "look": ("DuoGenReferenceImages", 2, {"which": "planned"}),
            "size": ("DuoGenPictureSize", 1, {"size": "fixed", "width": 1024, "height": 1024}),
            "empty": ("EmptyLatentImage", 2, {}),
            "sample": ("KSampler", 3, {"seed": 7, "cfg": 5.0}),
            "decode": ("VAEDecode", 3, {}),
            "close": ("DuoGenLoopClose", 4, {"max_images": 12}),
        },
        "links": {
            "ask.context": ["plan.context"],
            "plan.context": ["open.context"],
            "open.loop": ["close.loop"],
            "open.context": ["look.context", "size.context"],
            "open.text": ["words.text"],
            "open.seed": ["sample.seed"],
            "words.CONDITIONING": ["look.positive"],
            "not.CONDITIONING": ["look.negative"],
            "look.positive": ["sample.positive"],
            "look.negative": ["sample.negative"],
            "size.width": ["empty.width"],
            "size.height": ["empty.height"],
            "empty.LATENT": ["sample.latent_image"],
            "sample.LATENT": ["decode.samples"],
            "decode.IMAGE": ["close.image"],
        },
        "inputs": {
            "mllm": ("mllm", "plan.mllm"),
            "model": ("model", "sample.model"),
            "clip": ("clip", "words.clip", "not.clip"),
            "vae": ("vae", "look.vae", "decode.vae"),
            **OWN_IMAGE,
            "text": ("request", "ask.text"),
            "style": ("style", "plan.style"),
            "painter": ("painter", "plan.painter"),
            "width": ("width", "size.width"),
            "height": ("height", "size.height"),
            "steps": ("steps", "sample.steps"),
            "cfg": ("cfg", "sample.cfg"),
            "sampler_name": ("sampler_name", "sample.sampler_name"),
            "scheduler": ("scheduler", "sample.scheduler"),
            "max_images": ("images at most", "close.max_images"),
            "seed": ("seed", "open.seed"),
        },
        "outputs": {"context": "close.context", "text": "close.text", "images": "close.images"},
    },
    "Answer with a critic (DuoGen)": {
        "description": "Answers with text and images, and a critic looks at each image before it counts: one that does "
        "not show its text is drawn again. Runs as it is, with duogen-tiny and the exact checker of its world "
        "(sketchbook); with a Qwen-VL as the model, choose the critic mllm.",
        "nodes": {
            "load": ("DuoGenLoadCheckpoint", 0, {"checkpoint": "duogen-tiny"}),
            "ask": ("DuoGenPrompt", 0, {"text": REQUEST}),
            "open": ("DuoGenLoopOpen", 1, {"seed": 7}),
            "size": ("DuoGenPictureSize", 1, {}),
            "condition": ("DuoGenConditionNextImage", 2, {}),
            "sample": ("DuoGenSampler", 2, {}),
            "decode": ("VAEDecode", 3, {}),
            "review": ("DuoGenReviewImage", 3, {"critic": "sketchbook"}),
            "close": ("DuoGenLoopClose", 4, {}),
        },
        "links": {
            "load.mllm": ["open.mllm", "condition.mllm", "size.mllm", "review.mllm"],
            "load.connector": ["open.connector", "condition.connector"],
            "load.model": ["sample.model"],
            "load.vae": ["condition.vae", "decode.vae"],
            "ask.context": ["open.context"],
            "open.loop": ["close.loop"],
            "open.context": ["condition.context", "size.context", "review.context"],
            "open.seed": ["sample.seed", "review.seed"],
            "condition.positive": ["sample.positive"],
            "condition.negative": ["sample.negative"],
            "size.latent": ["sample.latent_image"],
            "sample.latent": ["decode.samples"],
            "decode.IMAGE": ["review.image"],
            "review.image": ["close.image"],
        },
        "inputs": OWN_IMAGE
        | {
            "text": ("request", "ask.text"),
            "checkpoint": ("model", "load.checkpoint"),
            "critic": ("critic", "review.critic"),
            "redraws": ("redraws at most", "review.redraws"),
            "max_images": ("images at most", "close.max_images"),
            "seed": ("seed", "open.seed"),
        },
        "outputs": {"context": "close.context", "text": "close.text", "images": "close.images"},
    },
}
ROW, COLUMN, GAP = 22, 420, 80  # height of a socket or widget, width of a column of nodes, space between two nodes
INPUT, OUTPUT = -10, -20  # the two ends of a subgraph, as nodes of its links


def blueprint(name: str, object_info: dict[str, Any]) -> dict[str, Any]:
    """The workflow of one node that ComfyUI offers as a blueprint."""
    spec = BLUEPRINTS[name]
    numbers = {key: k for k, key in enumerate(spec["nodes"], 1)}
    nodes, below = {}, {}
    for key, (type_, column, values) in spec["nodes"].items():
        node = node_of(object_info[type_], numbers[key], values)
        node["pos"] = [column * COLUMN, below.get(column, 0)]
        below[column] = node["pos"][1] + node["size"][1] + GAP
        nodes[key] = node

    links: list[dict[str, Any]] = []

    def join(origin: int, slot: int, target: int, entry: int, type_: str) -> int:
        ends = {"origin_id": origin, "origin_slot": slot, "target_id": target, "target_slot": entry, "type": type_}
        links.append({"id": len(links) + 1} | ends)
        return len(links)

    def entry_of(end: str) -> tuple[dict[str, Any], int]:
        key, _, field = end.partition(".")
        return nodes[key], [entry["name"] for entry in nodes[key]["inputs"]].index(field)

    def output_of(end: str) -> tuple[dict[str, Any], int]:
        key, _, field = end.partition(".")
        return nodes[key], [output["name"] for output in nodes[key]["outputs"]].index(field)

    for source, targets in spec["links"].items():
        origin, slot = output_of(source)
        for end in targets:
            target, entry = entry_of(end)
            number = join(origin["id"], slot, target["id"], entry, origin["outputs"][slot]["type"])
            target["inputs"][entry]["link"] = number
            origin["outputs"][slot]["links"].append(number)
    inputs, outer, promoted = [], [], []
    for position, (field, (label, *ends)) in enumerate(spec["inputs"].items()):
        numbers_of = []
        for end in ends:
            target, entry = entry_of(end)
            socket = target["inputs"][entry]
            socket["link"] = join(INPUT, position, target["id"], entry, socket["type"])
            numbers_of.append(socket["link"])
        widget = {"widget": {"name": field}} if "widget" in socket else {}
        if widget:
            promoted.append([str(target["id"]), socket["name"]])
        about = {"name": field, "type": socket["type"]} | ({"label": label} if label != field else {})
        place = {"id": str(uuid.uuid5(NAMESPACE, f"{name}/{field}")), "linkIds": numbers_of}
        inputs.append(place | about | {"pos": [-200, 20 * (position + 1)]})
        outer.append(about | widget | {"link": None})
    outputs = []
    for position, (field, end) in enumerate(spec["outputs"].items()):
        origin, slot = output_of(end)
        made = origin["outputs"][slot]
        made["links"].append(join(origin["id"], slot, OUTPUT, position, made["type"]))
        place = {"id": str(uuid.uuid5(NAMESPACE, f"{name}//{field}")), "linkIds": [len(links)]}
        right = (max(column for _, column, _ in spec["nodes"].values()) + 1) * COLUMN
        outputs.append(place | {"name": field, "type": made["type"], "pos": [right + 20, 20 * (position + 1)]})
    identity = str(uuid.uuid5(NAMESPACE, name))
    height = ROW * len(inputs) + 40
    subgraph = {
        "id": identity,
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": INPUT, "bounding": [-320, 0, 140, height]},
        "outputNode": {"id": OUTPUT, "bounding": [right, 0, 140, ROW * len(outputs) + 40]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": [],
        "links": links,
        "extra": {},
        "category": "DuoGen",
        "description": spec["description"],
    }
    node = {
        "id": len(nodes) + 1,
        "type": identity,
        "pos": [0, 0],
        "size": [360, height + 120],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": outer,
        "outputs": [{"name": output["name"], "type": output["type"], "links": []} for output in outputs],
        "properties": {"proxyWidgets": promoted, "cnr_id": "duogen"},
        "widgets_values": [],
        "title": name,
    }
    extra = {"BlueprintDescription": spec["description"], "BlueprintSearchAliases": ["interleaved", "text and images"]}
    whole = {"revision": 0, "last_node_id": node["id"], "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4}
    return whole | {"definitions": {"subgraphs": [subgraph]}, "extra": extra}


def node_of(info: dict[str, Any], number: int, values: dict[str, Any]) -> dict[str, Any]:
    """A node as the front end saves a new one: sockets, then widgets, each with its default or the given value."""
    sockets, widgets, written = [], [], []
    for name, type_, options in specifications(info):
        optional = {"shape": 7} if name in info["input"].get("optional", {}) else {}
        if type_ == "COMFY_AUTOGROW_V3":
            template = options["template"]
            ((kind, _),) = [each for part in template["input"].values() for each in part.values()]
            sockets.append({"name": f"{name}.{template['names'][0]}", "type": kind, "shape": 7, "link": None})
        elif (isinstance(type_, list) or type_ in WIDGETS - {DYNAMIC}) and not options.get("forceInput"):
            choices = type_ if isinstance(type_, list) else options.get("options")
            kind = "COMBO" if choices else type_
            widgets.append({"name": name} | optional | {"type": kind, "widget": {"name": name}, "link": None})
            start = {"INT": 0, "FLOAT": 0, "STRING": "", "BOOLEAN": False, "COMBO": (choices or [None])[0]}[kind]
            written.append(values.get(name, options.get("default", start)))
            written += ["fixed"] if options.get("control_after_generate") else []
        else:
            sockets.append({"name": name} | optional | {"type": type_, "link": None})
    outputs = [
        {"name": name, "type": type_, "links": []} | ({"shape": 6} if many else {})
        for name, type_, many in zip(info["output_name"], info["output"], info["output_is_list"], strict=True)
    ]
    texts = sum(options.get("multiline", False) for _, _, options in specifications(info))
    rows = max(len(sockets), len(outputs)) + len(widgets)
    return {
        "id": number,
        "type": info["name"],
        "pos": [0, 0],
        "size": [340, ROW * rows + 80 * texts + 30],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": sockets + widgets,
        "outputs": outputs,
        "properties": {"Node name for S&R": info["name"]}
        | {"cnr_id": "duogen" if info["name"].startswith("DuoGen") else "comfy-core"},
        "widgets_values": written,
    }


# ------------------------------------------------------------ all of it


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def templates() -> dict[str, dict[str, Any]]:
    """Name -> workflow, of those that are edited by hand."""
    files = sorted(file for file in WORKFLOWS.glob("*.json") if not file.stem.endswith(APP))
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


def made_of(workflows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """File name -> text, of all templates and their App-mode variants."""
    made = {name: with_view(with_files(copy.deepcopy(workflow))) for name, workflow in workflows.items()}
    made |= {name + APP: app_of(name, made[name]) for name in APPS}
    return {f"{name}.json": dumps(workflow) for name, workflow in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="where ComfyUI runs, such as http://127.0.0.1:8188")
    with urllib.request.urlopen(parser.parse_args().address.rstrip("/") + "/object_info", timeout=60) as answer:
        object_info = json.load(answer)
    for name, text in made_of(templates()).items():
        (WORKFLOWS / name).write_text(text, "utf-8")
    SUBGRAPHS.mkdir(exist_ok=True)
    for name in BLUEPRINTS:
        (SUBGRAPHS / f"{name}.json").write_text(dumps(blueprint(name, object_info)), "utf-8")


if __name__ == "__main__":
    main()
