"""The commands that campaigns kill, starve and run twice: each with small inputs of its own, and what it may not lose.

    with subjects(folder) as all_of_them:          # servers on loopback run meanwhile
        for subject in all_of_them: subject.commands(out)

A whole run of each takes about a second and writes several of its things (pictures, checkpoints, shards), so that a
random moment falls between any two of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.hardening import whole
from tests.hardening.zygote import ROOT

Command = list[object]
Renames = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Subject:
    name: str
    commands: Callable[[Path], list[Command]]  # of an output folder; given one after the other
    finished: tuple[str, ...] = ()  # below the output: what is never written again once it has its name
    lost: Callable[[Path, Renames], str] = lambda out, renames: ""  # a sentence if something finished is not there
    fresh: Callable[[Path], None] = lambda out: None  # what stands there before
    volatile: tuple[str, ...] = ()  # below the output: differs between two runs for good reasons
    refuses: str = ""  # what it says, with exit code 2, of an output that is there already and whole
    share: int = 1  # of the kills, as against the others
    module: str = ""  # "module:function" in place of the command line
    momentary: bool = False  # writes a file in a moment: only a shortage can meet it, no kill and no second run

    result: Callable[[Path], object] = lambda out: None  # what must be alike where files differ for good reasons

    def differences(self, one: Path, other: Path) -> list[str]:
        """What two outputs of it do not have alike, a line each."""
        found = whole.differences(one, other, self.volatile)
        if not found and self.result(one) != self.result(other):
            found.append("its documents are others")
        return found

    def options(self) -> dict[str, str]:
        """Of Zygote.start."""
        return {"module": self.module} if self.module else {}


SHARDS = ("shards/*.tar", "logs/*.jsonl")


@contextlib.contextmanager
def subjects(folder: Path, names: Sequence[str] = (), momentary: bool = False) -> Iterator[list[Subject]]:
    """All, or those whose name holds one of `names`; the momentary ones too, or not. Inputs are written to `folder`."""
    with contextlib.ExitStack() as stack:
        found = []
        for name, maker in MAKERS.items():
            if not names or any(each in name for each in names):
                inputs = folder / maker.__name__
                inputs.mkdir(parents=True)
                found.append(maker(name, inputs, stack))
        yield [subject for subject in found if momentary or not subject.momentary]


# ---------------------------------------------------------------- generate


def model(folder: Path) -> Path:
    """A whole DuoGen model of random weights that writes and draws as long as it may; in one process made once."""
    from tests.comfyui import random_checkpoint

    path = folder.parent / "model"
    if not path.exists():
        random_checkpoint.write(path)
    return path


def lost_pictures(out: Path, renames: Renames) -> str:
    """Pictures that were finished, that is named by a document.json that had its name, and cannot be read now."""
    from duogen_core.document.reading import load_document
    from duogen_core.errors import DuoGenError

    pictures = named = 0
    for _, target in renames:
        path = Path(target)
        if path == out:
            named = max(named, 0)
        elif path.parent == out / "images":
            pictures += 1
        elif path == out / "document.json":
            named = pictures
    if not renames:
        return ""
    try:
        found = len(load_document(out).pictures)
    except DuoGenError as error:
        return f"{named} pictures were finished, and the document cannot be read: {error}"
    return f"{named} pictures were finished, {found} can be read" if found < named else ""


def generating(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Six pictures."""
    options = ["--model", model(inputs), "--max-images", 6, "--max-tokens", 60, "--size", "96x96", "--seed", 3]
    return Subject(
        name, lambda out: [["generate", "Draw a red star.", "--out", out, *options]],
        ("images/*.png",), lost_pictures, share=3,
    )  # fmt: skip


def over_an_earlier_answer(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Another answer in the folder of one that is there, with a file of the user's in it."""
    from duogen_core.document.reading import load_document
    from duogen_core.document.store import save_document
    from tests.core.documents import sample

    def fresh(out: Path) -> None:
        save_document(sample(), out)
        (out / "notes.txt").write_text("mine")

    def lost(out: Path, renames: Renames) -> str:
        from duogen_core.errors import DuoGenError

        try:
            load_document(out)
        except DuoGenError as error:
            return f"neither the earlier nor the new answer can be read: {error}"
        return "" if list(out.parent.rglob("notes.txt")) else "the user's own file is gone"

    options = ["--model", model(inputs), "--max-images", 2, "--max-tokens", 20]
    return Subject(
        name,
        lambda out: [["generate", "Draw a red star.", "--out", out, *options]], (), lost, fresh,
    )  # fmt: skip


# ---------------------------------------------------------------- train


def learning_set(folder: Path, count: int = 8) -> str:
    from tests.core.sample_sets import guide, write_jsonl

    file = folder / "set" / "train.jsonl"
    if not file.exists():
        write_jsonl(file, [guide(k, (32, 32)) for k in range(count)])
    return f"jsonl:{file}"


def lost_steps(below: str, steps: int) -> Callable[[Path, Renames], str]:
    """Steps whose checkpoint had its name; with a checkpoint after every step these are as many as the renames."""

    def lost(out: Path, renames: Renames) -> str:
        from duogen_core.training.checkpoints import checkpoint_folder

        run = out / below
        saved = min(steps, sum(Path(target) == run / "checkpoint" for _, target in renames))
        if not saved:
            return ""
        try:
            step = json.loads((checkpoint_folder(run) / "state.json").read_text())["step"]
        except (OSError, ValueError, KeyError) as error:
            return f"{saved} checkpoints were written, and none can be read: {error}"
        return f"{saved} steps were saved, the checkpoint has {step}" if step < saved else ""

    return lost


OFTEN = ["checkpoint_minutes=0", "log_every=1", "bf16=false"]


def stage1(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Eight steps with a checkpoint after each."""
    data, init = learning_set(inputs), model(inputs) / "mllm"
    settings = [f"init={init}", f"data=[{data}]", "batch=3", "steps=8", "warmup=2", "eval_cases=0", "sample_minutes=0"]
    return Subject(
        name,
        lambda out: [["train", "stage1", f"out={out}", *settings, *OFTEN]], (), lost_steps("", 8),
        volatile=("*.png",), share=2,
    )  # fmt: skip


def stage2(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Documents prepared, then eight steps with a checkpoint after each."""
    whole = model(inputs)
    settings = [
        f"vae={whole / 'vae' / 'wan_vae.safetensors'}",
        f"mllm={whole / 'mllm'}",
        "warmup=2",
        "tensorboard=false",
    ]
    settings += [f"data=[{learning_set(inputs)}]", "steps=8", "tokens=800", "layers=2", "heads=2", "cross_width=32"]
    settings += ["shards=2", "sample_minutes=0", "tensorboard=false"]
    return Subject(
        name,
        lambda out: [["train", "stage2", f"out={out}", *settings, *OFTEN]], (), lost_steps("", 8),
        volatile=("*.png",), share=2,
    )  # fmt: skip


def finetune(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Both stages and the model that comes of them."""
    settings = [f"data={learning_set(inputs).removeprefix('jsonl:')}", f"model={model(inputs)}", "share=0"]
    for stage in ("stage1", "stage2"):
        settings += [f"{stage}.steps=2", *(f"{stage}.{each}" for each in [*OFTEN, "sample_minutes=0"])]
    settings += ["stage1.batch=2", "stage2.tokens=600", "stage2.shards=1"]
    return Subject(
        name, lambda out: [["train", "finetune", f"out={out}", *settings]], (),
        lost_steps("stage1", 2), volatile=("*.png", "*/*.png"),
    )  # fmt: skip


SMALL = ["warmup=2", "steps=4", "sample_minutes=0", "tensorboard=false", *OFTEN]


def vae(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Four steps of the picture VAE."""
    settings = ["base_dim=4", "batch=2", "calibration_crops=32", *SMALL]
    return Subject(name, lambda out: [["train", "vae", f"out={out}", *settings]], (), lost_steps("", 4))


def pretraining(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """A language model from nothing, and its vision tower."""
    sizes = {
        **{"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 32},
        **{"vision_hidden_size": 32, "vision_layers": 1, "vision_heads": 2, "vision_intermediate_size": 32},
    }
    settings = [f"sizes={json.dumps({**sizes, 'mrope_section': [2, 3, 3]})}", "tokenizer_cases=40", "vocab_size=400"]
    settings += ["batch=3", "eval_cases=0", "vision.steps=2", "vision.batch=4", *SMALL]
    return Subject(name, lambda out: [["train", "pretrain", f"out={out}", *settings]], (), lost_steps("", 4))


def assembling(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """A checkpoint of three runs."""
    from duogen_core.checkpoint import load_checkpoint

    whole = model(inputs)
    for part, source in (("stage1", "mllm"), ("stage2/connector", "connector"), ("stage2/dit", "dit")):
        run, _, below = part.partition("/")
        shutil.copytree(whole / source, inputs / run / "export" / below)
    load_checkpoint(whole).vae.model.save_pretrained(inputs / "vae" / "export")
    for run in ("vae", "stage1", "stage2"):
        (inputs / run / "config.json").write_text("{}")
    options = [word for run in ("vae", "stage1", "stage2", "pretrain") for word in (f"--{run}", inputs / run)]
    return Subject(name, lambda out: [["train", "assemble", "--out", out, *options]])


def evaluating(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Two cases, the answers kept."""
    options = ["--model", model(inputs), "--samples", 2, "--steps", 1, "--only", "describe", "--only", "draw"]

    def commands(out: Path) -> list[Command]:
        return [["evaluate", "sketchbook", "--out", out / "report.json", "--documents", out / "answers", *options]]

    return Subject(
        name, commands,
        fresh=lambda out: out.mkdir(), volatile=("report.json",),  # seconds of each case
    )  # fmt: skip


# ---------------------------------------------------------------- convert


def converting(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """A language model of 60 MB in shards into one file."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = inputs / "mllm"
    shutil.copytree(model(inputs) / "mllm", folder)
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    embedding = next(name for name in weights if name.endswith("embed_tokens.weight"))
    wide = 200_000  # rows more, as if the vocabulary were that large: something that takes time to write
    for each in {embedding, "lm_head.weight"} & set(weights):
        weights[each] = torch.cat([weights[each], torch.zeros(wide, weights[each].shape[1])])
    for part in (config, config.get("text_config", {})):
        if "vocab_size" in part:
            part["vocab_size"] += wide
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return Subject(
        name, lambda out: [["convert", folder, out / "qwen.safetensors", "--quiet"]],
        fresh=lambda out: out.mkdir(), refuses="exists already",
    )  # fmt: skip


def quantising(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """The bundled model, all its parts, into a folder."""
    return Subject(
        name,
        lambda out: [["convert", ROOT / "models" / "duogen-tiny", out / "tiny-int8", "--quantise", "int8", "--quiet"]],
        fresh=lambda out: out.mkdir(), refuses="exists already",
    )  # fmt: skip


# ---------------------------------------------------------------- data engines


def making(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Documents of the Sketchbook world."""
    return Subject(
        name,
        lambda out: [["data", "make", "sketchbook", "--count", 12, "--seed", 1, "--out", out]],
        refuses="has something in it",
    )  # fmt: skip


def pages(folder: Path, count: int) -> Path:
    from tests.core.web_pages import file, page, photo, recipe, screenshot, site

    pictures = {f"a{k}.png": file(photo(seed=k)) for k in range(4)} | {"s.png": file(screenshot(seed=2))}
    bodies = {
        f"p{k:02d}.html": recipe(f"a{k % 4}.png", "s.png")
        .replace("Bread", f"Bread {k}")
        .replace("hour", f"hour {k * k}")
        for k in range(count)
    }
    return site(folder, {**bodies, "text.html": page("<p>only text")}, pictures)


def web(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """A folder of pages, by one process."""
    site = pages(inputs / "site", 10)
    return Subject(
        name,
        lambda out: [["data", "web", site, "--out", out, "--workers", 1, "--shard-pages", 2, "--quiet"]], SHARDS,
    )  # fmt: skip


def archives(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """A WARC file, by two workers."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    site = pages(inputs / "site", 10)
    with (inputs / "crawl.warc.gz").open("wb") as stream:
        writer = WARCWriter(stream, gzip=True)
        for path in sorted(site.iterdir()):
            kind = "text/html" if path.suffix == ".html" else "image/png"
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], "HTTP/1.1")
            address = f"https://example.org/{path.name}"
            body = io.BytesIO(path.read_bytes())
            writer.write_record(writer.create_warc_record(address, "response", payload=body, http_headers=headers))
    options = ["--workers", 2, "--shard-pages", 2, "--quiet"]
    return Subject(
        name,
        lambda out: [["data", "web", inputs / "crawl.warc.gz", "--out", out, *options]],
        SHARDS,
    )  # fmt: skip


def deduping(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """A run with near-duplicates, by two workers: killed while shards are read, compared or written."""
    from duogen_core.data.runs.run import begin, work
    from tests.core.dedup_pages import Planted

    engine = Planted(4, 60)
    list(work(begin(inputs / "run", engine, 10), engine))
    options = ["--workers", 2, "--shard-documents", 10, "--quiet"]
    return Subject(name, lambda out: [["data", "dedup", inputs / "run", "--out", out, *options]], SHARDS)


def contents(out: Path) -> list[tuple[str, list[tuple[int, int]]]]:
    """Texts and sizes of pictures of a run's documents, sorted."""
    from duogen_core.data.sources import open_source

    source = open_source(f"webdataset:{out / 'shards'}")
    documents = [source.load(index) for index in range(len(source))]
    return sorted((document.text, [picture.size for picture in document.pictures]) for document in documents)


def fetching(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Listed pages and their pictures from a host on loopback, each asked for once whatever happens."""
    from tests.core.web_hosts import html, image, serving
    from tests.core.web_pages import file, photo, recipe

    web = stack.enter_context(serving())
    addresses = []
    for k in range(8):
        web.pages[f"a.example.com/p{k}"] = html(recipe(f"{k}.png", "s.png").replace("Bread", f"Bread {k}"))
        web.pages[f"a.example.com/{k}.png"] = image(file(photo(seed=k)))
        addresses.append(web.url(f"a.example.com/p{k}"))
    web.pages["a.example.com/s.png"] = image(file(photo(seed=99)))
    (inputs / "pages.txt").write_text("\n".join(addresses) + "\n")
    options = ["--fetch", "--set", "fetch.contact=https://example.org/bot", "--set", "fetch.delay=0.02"]
    options += ["--workers", 1, "--shard-pages", 2, "--quiet"]
    return Subject(
        name,
        lambda out: [["data", "web", inputs / "pages.txt", "--out", out, *options]], SHARDS,
        # They hold when each file was fetched.
        volatile=("fetched/*", "index/*", "shards/*", "logs/*", "plan.jsonl"), result=contents,
        module="tests.hardening.hostile_servers:on_loopback",
    )  # fmt: skip


def dialogues(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """With a model behind an endpoint."""
    from tests.core.dialogue_pages import write_pages
    from tests.core.endpoint_server import endpoint_server
    from tests.core.scripted_writer import Writer

    writer = Writer()
    server = stack.enter_context(endpoint_server(slowly(writer)))
    source = write_pages(inputs / "pages", 8)
    options = ["--endpoint", server.url, "--llm", "scripted", "--shard-documents", 2, "--parallel", 2, "--quiet"]
    return Subject(
        name,
        lambda out: [["data", "dialogues", source, "--out", out, *options]], SHARDS,
        volatile=("answers.jsonl",), share=2,
    )  # fmt: skip


def slowly(answer: Callable) -> Callable:
    """As long as a model might think, in small."""

    def slow(value: object) -> object:
        time.sleep(0.01)
        return answer(value)

    return slow


def synthetic(stack: contextlib.ExitStack, out: Path, step: str, *options: object) -> Command:
    return ["data", "synthetic", step, out, "--quiet", *options]


def expanding(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Requests by a model behind an endpoint."""
    from tests.core.synthetic_writer import write_taxonomy, writer, writing_server

    server = stack.enter_context(writing_server(slowly(writer)))
    taxonomy = write_taxonomy(inputs / "taxonomy")
    options = ["--endpoint", server.url, "--llm", "tiny", "--count", 20, "--taxonomy", taxonomy, "--parallel", 1]
    return Subject(
        name, lambda out: [synthetic(stack, out, "expand", *options)],
        volatile=("*answers.jsonl",),
    )  # fmt: skip


def planning(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Plans by a model behind an endpoint."""
    from tests.core.synthetic_writer import writer, writing_server

    server = stack.enter_context(writing_server(slowly(writer)))
    options = ["--endpoint", server.url, "--llm", "tiny", "--limit", 30, "--parallel", 2]
    return Subject(
        name, lambda out: [synthetic(stack, out, "plan", *options)],
        volatile=("*answers.jsonl",),
    )  # fmt: skip


def drawing(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Pictures by a ComfyUI's API."""
    from tests.core.comfyui_server import comfyui_server, drawn
    from tests.core.data.synthetic.test_draw import EDIT, NODES
    from tests.core.synthetic_plans import write_plans

    server = stack.enter_context(comfyui_server(drawn))
    for kind, nodes in (("text", NODES), ("edit", EDIT)):
        (inputs / f"{kind}.json").write_text(json.dumps(nodes))
    options = ["--painter", "comfyui", "--server", server.url, "--shard", 2]
    options += [f"--workflow={inputs / kind}.json" for kind in ("text", "edit")]
    return Subject(
        name, lambda out: [synthetic(stack, out, "draw", *options)],
        ("draw/shards/*.tar", "draw/logs/*.jsonl"), fresh=lambda out: write_plans(out) and None,
    )  # fmt: skip


def answering(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Documents by a DuoGen model alone."""
    options = ["--model", model(inputs), "--shard", 2, "--limit", 5, "--max-images", 3, "--max-tokens", 40]
    from tests.core.synthetic_plans import write_plans

    return Subject(
        name, lambda out: [synthetic(stack, out, "answer", *options)],
        ("answer/shards/*.tar", "answer/logs/*.jsonl"), fresh=lambda out: write_plans(out) and None,
    )  # fmt: skip


def video(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Pairs of frames of four videos."""
    from tests.core.clips import scene, write_video

    for k in range(4):
        write_video(inputs / "films" / f"{k}.mp4", scene(k, 30))
    return Subject(
        name,
        lambda out: [["data", "video", inputs / "films", "--out", out, "--undescribed", "--workers", 1,
                      "--shard-videos", 1, "--quiet"]],
        SHARDS, share=2,
    )  # fmt: skip


def editing(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Pairs of pictures from Parquet."""
    import pyarrow
    import pyarrow.parquet

    from tests.core.clips import scene

    def png(pixels: np.ndarray) -> dict[str, object]:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": "000.png"}

    rows = []
    for k in range(12):
        before, _, after = scene(k, 3)
        rows.append(
            {
                **{"original_prompt": "a field", "edit_prompt": f"move square {k}", "edited_prompt": "a square"},
                **{"original_image": png(before), "edited_image": png(np.roll(after, 25, axis=1))},
            }
        )
    (inputs / "set").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), inputs / "set" / "a.parquet", row_group_size=4)
    return Subject(
        name,
        lambda out: [["data", "editing", "instructpix2pix", inputs / "set", "--out", out, "--workers", 2,
                      "--shard-samples", 2, "--quiet"]],
        SHARDS, share=2,
    )  # fmt: skip


def exporting(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """Documents into Parquet."""
    data = learning_set(inputs, 12)
    return Subject(
        name,
        lambda out: [["data", "export", data, "--out", out, "--shard-samples", 2, "--quiet"]],
    )  # fmt: skip


def viewing(name: str, inputs: Path, stack: contextlib.ExitStack) -> Subject:
    """The report and the plot of a finished run."""
    from duogen_core.cli import main

    site, run = pages(inputs / "site", 6), inputs / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        if main(["data", "web", str(site), "--out", str(run), "--workers", "1", "--quiet"]):
            raise RuntimeError("The run to look at could not be made.")
    return Subject(
        name,
        lambda out: [["data", "view", out, "--quiet"], ["data", "stats", out, "--plot", out / "yield.png"]],
        fresh=lambda out: shutil.copytree(run, out) and None, volatile=("*.png",), momentary=True,
    )  # fmt: skip


MAKERS: dict[str, Callable[[str, Path, contextlib.ExitStack], Subject]] = {
    "generate": generating,
    "generate over an earlier answer": over_an_earlier_answer,
    "train stage1": stage1,
    "train stage2": stage2,
    "train finetune": finetune,
    "train vae": vae,
    "train pretrain": pretraining,
    "train assemble": assembling,
    "evaluate sketchbook": evaluating,
    "convert to one file": converting,
    "convert to int8": quantising,
    "data make": making,
    "data web, a folder": web,
    "data web, a WARC": archives,
    "data web, fetched": fetching,
    "data dedup": deduping,
    "data dialogues": dialogues,
    "data synthetic expand": expanding,
    "data synthetic plan": planning,
    "data synthetic draw": drawing,
    "data synthetic answer": answering,
    "data video": video,
    "data editing": editing,
    "data export": exporting,
    "data view and stats": viewing,
}
