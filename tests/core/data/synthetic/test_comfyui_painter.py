"""The painter that works on a ComfyUI server: workflows with places, the wire, and a server that fails in every way."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from duogen_core.data.runs.presets import load_preset
from duogen_core.data.synthetic.comfyui import Server
from duogen_core.data.synthetic.comfyui_painter import ComfyPainter, Workflow, WorkflowPainter, load_workflow
from duogen_core.data.synthetic.painter import PainterError, Wanted
from duogen_core.document import Document, Picture, Text
from duogen_core.document.picture_file import decode_picture
from duogen_core.errors import DuoGenError
from duogen_core.net.client import Limits
from duogen_core.pipeline import Callbacks, generate
from duogen_core.planning.as_document import planned
from duogen_core.planning.plan import Member, Part, Plan, PlannedPicture
from duogen_core.settings import Settings
from tests.core.comfyui_server import MARK, comfyui_server, drawn, history_of, png

PATIENT = Limits(connect=60, read=60, total=120, max_bytes=4_000_000)  # for a machine with other work to do
RNG = np.random.default_rng(0)


def node(kind: str, title: str = "", **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs, **({"_meta": {"title": title}} if title else {})}


TEXT = {
    "1": node("CheckpointLoaderSimple", ckpt_name="painter-xl.safetensors"),
    "2": node("CLIPTextEncode", text="a drawing: ${prompt}, clean lines", clip=["1", 1]),
    "3": node("KSampler", seed="${seed}", steps=4, positive=["2", 0]),
    "9": node("PreviewImage", images=["3", 0]),
}
EDIT = {**TEXT, "5": node("LoadImage", image="${earlier_1}"), "6": node("LoadImage", image="${first}")}
SIZED = {**TEXT, "7": node("EmptyLatentImage", width="${width}", height="${height}")}


def picture(size: tuple[int, int] = (96, 64)) -> Picture:
    return Picture(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8), {"prompt": "before"})


def painter(server, *nodes, seconds: float = 300, size=None, settings=(), limits=PATIENT) -> ComfyPainter:
    workflows = [Workflow(f"{number}.json", each) for number, each in enumerate(nodes or (TEXT,))]
    service = Server(server.url, seconds, limits, sleep=lambda pause: time.sleep(min(pause, 0.01)))
    return ComfyPainter(service, workflows, load_preset("synthetic", settings=settings), size)


def paint(server, *nodes, earlier=(), prompt="A knot in a rope", **options):
    with painter(server, *nodes, **options) as found:
        return found.paint(Wanted("Show a knot.", prompt, 7, tuple(earlier)))


def test_a_picture_comes_back_as_pixels():
    with comfyui_server() as server:
        pixels = paint(server)
        (nodes,) = server.queued.values()
        body = next(json.loads(body) for path, body in server.asked if path == "/prompt")
    assert nodes["2"]["inputs"]["text"] == "a drawing: A knot in a rope, clean lines"
    assert nodes["3"]["inputs"] == {"seed": 7, "steps": 4, "positive": ["2", 0]}
    assert pixels.shape == (64, 96, 3) and np.array_equal(pixels, decode_picture(drawn(nodes), "it"))
    assert MARK in drawn(nodes) and MARK not in Picture(pixels).to_png()
    assert len(body["client_id"]) == 32


def test_earlier_pictures_are_uploaded_once_and_named():
    first, last = picture(), picture()
    with comfyui_server() as server, painter(server, EDIT, TEXT) as found:
        found.paint(Wanted("Show.", "one", 1))
        found.paint(Wanted("Show.", "two", 2, (first,)))
        found.paint(Wanted("Show.", "three", 3, (first, last)))
        queued, uploads = list(server.queued.values()), server.uploads
        sent = [path for path, _ in server.asked if path == "/upload/image"]
    assert ["5" in nodes for nodes in queued] == [False, True, True]
    names = [f"duogen/{each.digest[:24]}.png" for each in (first, last)]
    assert [queued[1][key]["inputs"]["image"] for key in "56"] == [names[0], names[0]]
    assert [queued[2][key]["inputs"]["image"] for key in "56"] == [names[1], names[0]]
    assert sorted(uploads) == sorted(names) and len(sent) == 2
    assert np.array_equal(decode_picture(uploads[names[1]], "it"), last.pixels)


def test_sizes_and_seeds_without_a_place():
    counted = {**SIZED, "3": node("KSampler", seed=11, noise_seed=["4", 0], steps=4)}
    with comfyui_server() as server:
        paint(server, counted, size=(320, 200))
        (nodes,) = server.queued.values()
    assert nodes["7"]["inputs"] == {"width": 320, "height": 200}
    assert nodes["3"]["inputs"] == {"seed": 7, "noise_seed": ["4", 0], "steps": 4}
    assert counted["3"]["inputs"]["seed"] == 11


def test_a_prompt_stays_the_text_of_its_input():
    evil = 'x", "seed": 1}, "8": {"class_type": "Evil"} ${seed} ${first} \\" \n </s>'
    with comfyui_server() as server:
        paint(server, prompt=evil)
        (nodes,) = server.queued.values()
    assert nodes["2"]["inputs"]["text"] == f"a drawing: {evil}, clean lines" and set(nodes) == set(TEXT)


def test_of_several_outputs_the_titled_one_counts():
    two = {**TEXT, "8": node("PreviewImage", images=["1", 0])}
    with comfyui_server() as server:
        with pytest.raises(PainterError, match=r"gave 2 images, by PreviewImage \(node 9\), PreviewImage \(node 8\)"):
            paint(server, two)
        assert paint(server, {**two, "9": node("PreviewImage", "Picture", images=["3", 0])}).shape == (64, 96, 3)


def test_identity_names_models_and_changes_with_the_workflow():
    with comfyui_server() as server:
        found = [painter(server, nodes).identity() for nodes in (TEXT, {**TEXT, "1": node("Other")})]
    assert found[0]["models"] == ["painter-xl.safetensors"] and found[0]["painter"] == "comfyui"
    assert found[0]["workflows"] != found[1]["workflows"]


@pytest.mark.parametrize(
    ("nodes", "size", "words"),
    [
        ((EDIT,), None, "has no earlier one"),
        ((TEXT, SIZED), (64, 64), "look at the same number of earlier images"),
        ((SIZED,), None, "give --size"),
        ((), None, "has no earlier one"),
    ],
)
def test_sets_of_workflows_that_cannot_work(nodes, size, words):
    workflows = [Workflow(f"{number}.json", each) for number, each in enumerate(nodes)]
    with pytest.raises(DuoGenError, match=words):
        ComfyPainter(Server("http://127.0.0.1:1"), workflows, load_preset("synthetic"), size)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("prose", r"is not valid JSON.* exported with Workflow > Export \(API\)"),
        ('{"1": {"class_type": "A", "inputs": {"x": NaN}}}', "NaN is not a JSON number"),
        ({"nodes": [], "links": []}, "saved for the editor"),
        ({"1": {"class_type": "A"}}, "not an API-format workflow"),
        ([], "not an API-format workflow"),
        ('{"1": ' + '{"a": ' * 900 + "1" + "}" * 900 + "}", "nested too deeply"),
        ('{"1": ' + "[" * 100_000, "nested too deeply"),
        ({"1": node("A", text="fixed", seed=1)}, r"has no \$\{prompt\}"),
        ({"1": node("A", text="${prompt}")}, r"has no \$\{seed\}"),
        ({"1": node("A", text="${prompt} ${negative}", seed=1)}, r"has the placeholder \$\{negative\}"),
    ],
)
def test_files_that_are_no_workflow(value, words, tmp_path):
    file = tmp_path / "w.json"
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(DuoGenError, match=words):
        load_workflow(file)


def test_a_workflow_on_disk(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps(EDIT))
    found = load_workflow(tmp_path / "w.json")
    assert (found.name, found.pictures, found.places) == ("w.json", 1, {"prompt", "seed", "first", "earlier_1"})
    with pytest.raises(DuoGenError, match="does not exist"):
        load_workflow(tmp_path / "gone.json")


MISSING = {"type": "missing_node_type", "message": "Node 'Fancy' not found. The custom node may not be installed.",
           "details": "Node ID '#4'"}  # fmt: skip
BAD_VALUE = {
    "3": {"class_type": "KSampler", "errors": [{"message": "Value not in list", "details": "sampler_name: 'x'"}]}
}
CRASH = [
    "execution_error",
    {"node_id": "3", "node_type": "KSampler", "exception_message": "CUDA out of memory.\nTried"},
]
IMAGES = {"9": {"images": [{"filename": "a.png", "subfolder": "", "type": "temp"}]}}
# what the server says: (its answers, the words of the sentence, whether nothing else can work either)
TROUBLE = {
    "missing node": ({"prompt": lambda h: (400, {"error": MISSING, "node_errors": {}})}, "'Fancy' not found", True),
    "bad value": ({"prompt": lambda h: (400, {"error": {"message": "failed"}, "node_errors": BAD_VALUE})},
                  r"KSampler \(node 3\): Value not in list sampler_name: 'x'", True),
    "partly bad": ({"prompt": lambda h: (200, {"prompt_id": "a-1", "node_errors": BAD_VALUE})},
                   "refused a part of the workflow: KSampler", True),
    "no id": ({"prompt": lambda h: (200, {"prompt_id": "../../etc", "node_errors": {}})}, "without a prompt_id", True),
    "not comfyui": ({"prompt": lambda h: (200, b"<html>hello</html>")}, "is not a JSON object; is it ComfyUI", True),
    "no such page": ({"prompt": lambda h: (404, b"")}, "answered /prompt with status 404", True),
    "broken": ({"history": lambda h: (500, b"")}, "with status 500", True),
    "list": ({"history": lambda h: (200, [])}, "not a JSON object", True),
    "crash": ({"history": lambda h: history_of(h, {}, [CRASH], "error")},
              r"KSampler \(node 3\) failed: CUDA out of memory\. Tried\.", False),
    "stopped": ({"history": lambda h: history_of(h, {}, [["execution_interrupted", {}]])}, "told to stop", False),
    "no reason": ({"history": lambda h: history_of(h, {}, [], "error")}, "and not why", False),
    "nothing": ({"history": lambda h: history_of(h, {})}, "gave no image", True),
    "text": ({"history": lambda h: history_of(h, {"9": {"text": ["hi"]}})}, "gave no image", True),
    "lists": ({"history": lambda h: history_of(h, {"9": {"images": "a.png"}, "8": 3})}, "gave no image", True),
    "no name": ({"history": lambda h: history_of(h, {"9": {"images": [{"type": "a"}]}})}, "without a file", False),
    "gone": ({"history": lambda h: history_of(h, IMAGES), "view": lambda h: (404, b"")}, "/view with status 4", False),
    "lost": ({"history": lambda h: (200, {}), "queue": lambda h: (200, {})}, "no longer knows the prompt", True),
    "hang": ({"prompt": lambda h: None}, "sent nothing for 0.6 seconds", True),
    "flood": ({"history": lambda h: (200, b" " * 5_000_000)}, "sent more than 4,000,000 bytes", False),
    "upload": ({"upload_image": lambda h: (200, {"name": 3})}, "did not say under which name", True),
}  # fmt: skip


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_is_one_sentence(name):
    answers, words, stop = TROUBLE[name]
    with comfyui_server(**answers) as server, pytest.raises(PainterError, match=words) as caught:
        limits = replace(PATIENT, read=0.6) if name == "hang" else PATIENT
        paint(server, TEXT, EDIT, earlier=[picture()] if name == "upload" else [], limits=limits)
    assert caught.value.stop is stop
    assert "\n" not in str(caught.value) and str(caught.value)[-1] in ".?" and len(str(caught.value)) < 600


def test_a_picture_that_takes_too_long_is_taken_back_from_the_queue():
    with comfyui_server(history=lambda h: (200, {})) as server:
        with pytest.raises(PainterError, match="had not finished an image after 0.3 seconds") as caught:
            paint(server, seconds=0.3)
        (id_,) = server.queued
        said = {path: json.loads(body) for path, body in server.asked if path in ("/queue", "/interrupt") and body}
    assert said == {"/queue": {"delete": [id_]}, "/interrupt": {"prompt_id": id_}} and not caught.value.stop


def test_ctrl_c_frees_the_server():
    with comfyui_server() as server, painter(server) as found:
        found.server._wait = lambda id_: (_ for _ in ()).throw(KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            found.paint(Wanted("Show.", "one", 1))
        assert [path for path, body in server.asked if path == "/interrupt"] == ["/interrupt"]


def test_a_server_that_fails_once_is_asked_again():
    failures = iter([(500, b""), (503, b"")])
    with comfyui_server() as server:
        kept = server.RequestHandlerClass.history
        server.answers["/history"] = lambda handler: next(failures, None) or kept(handler)
        assert paint(server).shape == (64, 96, 3)


def test_no_server_at_all():
    with comfyui_server() as server:
        pass
    with pytest.raises(PainterError, match="The ComfyUI server http://127.0.0.1:.* cannot be reached") as caught:
        paint(server)
    assert caught.value.stop


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "unknown format"),
        (b"%PDF-1.7", "unknown format"),
        (SVG, "svg"),
        (png(np.zeros((64, 64, 3), np.uint8))[:60], "broken"),
        (png(np.zeros((64, 3, 3), np.uint8)), "small"),
        (png(np.zeros((10_000, 16, 3), np.uint8)), "16x10000 pixels"),
        (png(np.zeros((5_000, 5_000, 3), np.uint8)), "5000x5000 pixels"),
    ],
)
def test_what_is_no_usable_picture(data, words):
    with comfyui_server(lambda nodes: data) as server, pytest.raises(PainterError, match=words) as caught:
        paint(server)
    assert not caught.value.stop and "expected a still image (PNG" in str(caught.value)


# ------------------------------------------------------------ the painter of a plan

SEES = {**TEXT, "5": node("LoadImage", image="${seen_1}"), "6": node("LoadImage", image="${seen_2}")}
SEES_ONE = {**SIZED, "5": node("LoadImage", image="${seen_1}")}


def plan_to_draw():
    parts = [Part("A", PlannedPicture("A fox.")), Part("B", PlannedPicture("The sea.", size=(640, 480))),
             Part("C", PlannedPicture("A fox at the sea."))]  # fmt: skip
    asked = Document().begin_turn("user", [Text("A story.")])
    return planned(asked, Plan("", tuple(parts), (Member("fox", "red"),)), "edit")


def test_a_plan_is_drawn_with_the_pictures_that_it_wants_seen():
    with comfyui_server() as server, painter(server, SIZED, SEES_ONE, SEES, size=(96, 64)) as found:
        answer = generate(None, plan_to_draw(), Settings(seed=7), painter=WorkflowPainter(found))
        prompts = list(server.queued.values())
    assert len(answer.pictures) == 3 and answer.generation["model"] == "0.json, 1.json, 2.json"
    assert "A fox. fox: red." in prompts[0]["2"]["inputs"]["text"]
    assert "Continue from image 1: The sea." in prompts[1]["2"]["inputs"]["text"]
    assert prompts[1]["7"]["inputs"] == {"width": 640, "height": 480}
    assert "Continue from image 2: A fox at the sea. Keep fox as in image 1." in prompts[2]["2"]["inputs"]["text"]
    seen = [prompts[2][id_]["inputs"]["image"] for id_ in "56"]
    assert seen == [f"duogen/{picture.digest[:24]}.png" for picture in answer.pictures[:2]]
    assert prompts[1]["5"]["inputs"]["image"] == seen[0]


def test_a_stopped_plan_takes_its_prompt_back_and_keeps_what_is_finished():
    with comfyui_server() as server, painter(server, TEXT, SEES_ONE, size=(96, 64)) as found:
        server.answers["/history"] = lambda handler: (200, {}) if len(server.queued) == 2 else handler.history()
        drawn = []
        answer = generate(
            None, plan_to_draw(), Settings(), Callbacks(on_picture=lambda k, _: drawn.append(k)),
            cancelled=lambda: bool(drawn) and len(server.queued) == 2, painter=WorkflowPainter(found),
        )  # fmt: skip
        assert [path for path, _ in server.asked][-2:] == ["/queue", "/interrupt"]
    assert drawn == [0] and answer.generation["stop_reason"] == "interrupted" and len(answer.pictures) == 3
