"""Dirtied pages -> the training documents of each arm, and what is left in them of the dirt.

ideal    the documents the pages were made from
raw      the pages as they come: everything that the walker sees, in source order, no rule and no region left out
rules    the pages through `data web`
engine   the same through `data dialogues` too: pictures put to their paragraphs by words; no language model is asked,
         so nothing is described, rewritten or turned into several exchanges
written  the same with pictures described and the text written again by a stand-in for a model (dirtied_writer.py)
In every arm the page's title is the request and the rest the answer, and a picture is as large as Sketchbook's.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from dirtied_writer import StandIn
from PIL import Image

from duogen_core.cli import main as command
from duogen_core.data.dialogues import engine as dialogues
from duogen_core.data.dialogues.engine import DialogueEngine
from duogen_core.data.pictures.decoding import Decoder
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.runs.shards import add_document, as_png
from duogen_core.data.sources import open_source
from duogen_core.data.web.compose import compose
from duogen_core.data.web.encodings import decode_page
from duogen_core.data.web.inputs import open_inputs
from duogen_core.data.web.page import Block, Walk
from duogen_core.data.web.pictures import Judged, Seen
from duogen_core.data.web.walker import walk
from duogen_core.document import Document, Picture, Turn
from duogen_core.llm.client import Client, Endpoint
from duogen_core.sketchbook.tasks.common import Case

SIDE = 128
NO_MODEL = ("describe.ask=false", "rewrite.ask=false", "dialogue.ask=false")


def ideal(cases: Sequence[Case]) -> Iterator[Document]:
    for number, case in enumerate(cases):
        answer = case.document.last_turn
        names = (f"step-{k}.png" for k in range(1, len(answer.pictures) + 1))
        named = [replace(p, meta={"url": next(names)}) if isinstance(p, Picture) else p for p in answer.parts]
        turns = (*case.prompt.turns, Turn("assistant", tuple(named)))
        yield Document(turns, meta={"page": f"{number:05d}/index.html"})


def raw(site: Path) -> Iterator[Document]:
    preset, (pages,) = load_preset("web"), open_inputs([str(site)])
    with Decoder({**preset.load, "stored_side": preset.picture["stored_side"]}) as decoder:
        for name in pages.names():
            page = pages.page(name, preset.page["max_bytes"])
            seen = walk(decode_page(page.body, page.content_type))
            shown = {}
            for index, item in enumerate(seen.items):
                if isinstance(item, Block):
                    continue
                found = pages.picture(page, seen, item.sources[0], preset.load["max_bytes"])
                facts, pixels = decoder.decode(found.data)
                if pixels is not None:
                    shown[index] = Judged(item, None, found.url, seen=Seen(facts, pixels))
            items = tuple(replace(item, region="") for item in seen.items)
            yield compose(page, Walk(items, seen.title), shown, {"language": ""}, preset)[0]


def rules(site: Path, out: Path) -> Iterator[Document]:
    done(["data", "web", str(site), "--out", str(out), "--workers", "1"])
    yield from documents(out)


def engine(web: Path, out: Path) -> Iterator[Document]:
    answers = out.with_suffix(".jsonl")
    answers.touch()  # of which none is asked for
    settings = [f"--set={setting}" for setting in NO_MODEL]
    asked = ["--llm", "none", "--replay", "--record", str(answers), *settings]
    done(["data", "dialogues", str(web), "--out", str(out), *asked])
    yield from documents(out)


def written(web: Path, out: Path, cases: Sequence[Case]) -> Iterator[Document]:
    client = Client(Endpoint("http://localhost/stand-in", "stand-in"), transport=StandIn(cases))
    steps, source = (
        DialogueEngine(load_preset("dialogues", settings=NO_MODEL[2:]), lambda: (client, client)),
        dialogues.open_input(str(web)),
    )
    for outcome in dialogues.work(dialogues.begin(out, source, steps), source, steps):
        if outcome.document is None:
            print(f"refused: {outcome.rule} {outcome.value}", flush=True)
    yield from documents(out)


def documents(run: Path) -> Iterator[Document]:
    source = open_source(f"webdataset:{run / 'shards'}")
    yield from (source.load(index) for index in range(len(source)))


def done(arguments: list[str]) -> None:
    if code := command(arguments):
        raise SystemExit(f"`{' '.join(arguments[:2])}` ended with {code}.")


def write(folder: Path, made: Iterable[Document]) -> None:
    """One tar; pictures as large as Sketchbook's, of the page's words about them nothing but their file's name."""
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / "00000.tar.new"
    with tarfile.open(new, "w") as archive:
        for number, document in enumerate(made):
            turns = tuple(replace(turn, parts=tuple(map(_as_large, turn.parts))) for turn in document.turns)
            shown = Document(turns, meta={"page": document.meta["page"]})
            add_document(archive, f"{number:08d}", shown, lambda picture: as_png(picture.pixels))
    new.rename(folder / "00000.tar")


def _as_large(part):
    if not isinstance(part, Picture):
        return part
    image = Image.fromarray(part.pixels)
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return Picture(np.asarray(image), {"url": Path(str(part.meta["url"])).name})


def survey(folder: Path, cases: Sequence[Case]) -> dict[str, int | float]:
    """What an arm learns from. placed: step pictures whose text just before is their own step and nothing later."""
    found: Counter[str] = Counter()
    source = open_source(f"webdataset:{folder}")
    for index in range(len(source)):
        document = source.load(index)
        case = cases[int(str(document.meta["page"]).partition("/")[0])]
        own = {text for part in case.document.last_turn.parts for text in paragraphs(part)}
        before, steps = "", set()
        for part in document.last_turn.parts:
            for text in paragraphs(part):
                before = text
                found["foreign paragraphs"] += text not in own
            if isinstance(part, Picture):
                kind, _, rest = str(part.meta["url"]).partition("-")
                step = rest.partition(".")[0]
                new = kind in ("step", "copy") and step not in steps
                steps |= {step} if new else set()
                found["steps" if new else "copies" if kind in ("step", "copy") else "noise"] += 1
                found["placed"] += new and before.startswith(f"Step {step}:")
        found["documents"] += 1
        found["right as a whole"] += same(document, case.document)
    return {name: found[name] for name in SURVEYED}


SURVEYED = ("documents", "steps", "placed", "copies", "noise", "foreign paragraphs", "right as a whole")


def paragraphs(part) -> list[str]:
    return [] if isinstance(part, Picture) else [text for text in part.text.split("\n\n") if text.strip()]


def same(document: Document, ideal_: Document) -> bool:
    """Whether its answer has the paragraphs and the steps' pictures of the ideal, in its order."""
    marks, k = [], 0
    for part in ideal_.last_turn.parts:
        k += isinstance(part, Picture)
        marks += [f"step {k}"] if isinstance(part, Picture) else paragraphs(part)
    found = []
    for part in document.last_turn.parts:
        name = str(part.meta["url"]) if isinstance(part, Picture) else ""
        mark = name.partition(".")[0].replace("copy", "step").replace("-", " ")
        found += [mark] if name else paragraphs(part)
    return found == marks
