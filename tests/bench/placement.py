"""Placement, measured: pictures taken away from their paragraphs on purpose, and how many are put back.

    python -m duogen_core data web FOLDER_OF_PAGES --out RUN          (folders: see web_material.py)
    python tests/bench/placement.py RUN… [--ocr FILE] [--half 0|1] [--seeds N]

Truth is where the page has a picture: just after one of the two passages it stands between (under a heading: the one
that follows). A clue is a word of the picture (alt text, captions, with --ocr what tesseract reads in it) that stands
in the passages beside its true place and nowhere else on the page. "two clues": two such words or more; "named": one of
its alt text, or of its caption's first sentence where it has none; "word": any word it shares with them, wherever else
it stands. Pages with fewer than five passages are left out.
--ocr: a file of what was read, by the pictures' SHA-256; what is missing in it is read and written down.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import checkout  # noqa: F401
from PIL import Image

from duogen_core.data.dialogues.draft import Draft, leads, read_draft
from duogen_core.data.dialogues.engine import open_input
from duogen_core.data.dialogues.placement import Clue, clue_of, place
from duogen_core.data.runs.presets import load_preset
from duogen_core.data.text import words_of
from duogen_core.document import Document, Picture, Turn

FEWEST = 5  # passages
SCENES = ("order lost", "order kept", "untouched")
KINDS = ("clue", "two clues", "named", "word", "all")
METHODS = ("as shuffled", "spread in source order", "words", "words, places never trusted")


@dataclass(frozen=True)
class Case:
    draft: Draft
    clues: list[Clue]
    truth: list[set[int]]  # of each picture, the places that are right
    kinds: list[list[str]]  # and what is known of it, of KINDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--ocr", type=Path)
    parser.add_argument("--half", type=int, choices=(0, 1))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    read = Reader(args.ocr) if args.ocr else None
    for run in args.runs:
        source = open_input(run)
        numbers = [k for k in range(len(source)) if args.half is None or k % 2 == args.half]
        cases = [case for k in numbers if (case := case_of(source.load(k), read))]
        print(f"{run}: {len(cases)} pages, {sum(len(case.clues) for case in cases):,} pictures")
        for scene in SCENES:
            report(scene, measured(cases, scene, args.seeds if scene != "untouched" else 1))


def case_of(document: Document, read: Reader | None) -> Case | None:
    draft = read_draft(document)
    if read is not None:
        pictures = [replace(each, meta={**each.meta, "visible_text": read(each)}) for each in draft.pictures]
        draft = replace(draft, pictures=tuple(pictures))
    if len(draft.passages) < FEWEST or not draft.pictures:
        return None
    clues = [clue_of(picture) for picture in draft.pictures]
    truth = [
        {max(at, 1)} if led else {max(at, 1), min(at + 1, len(draft.passages))}
        for at, led in zip(draft.places, under_headings(document))
    ]
    bags = [set(words_of(passage)) for passage in draft.passages]
    spread = Counter(word for bag in bags for word in bag)
    kinds = []
    for clue, right in zip(clues, truth):
        beside = Counter(word for k in right for word in bags[k - 1])
        shared = {word for text in (clue.core, clue.rest, clue.seen) for word in words_of(text)} & beside.keys()
        own = {word for word in shared if spread[word] == beside[word]}
        named = own & set(words_of(clue.core))
        known = {"clue": own, "two clues": len(own) > 1, "named": named, "word": shared, "all": True}
        kinds.append([kind for kind in KINDS if known[kind]])
    return Case(draft, clues, truth, kinds)


def under_headings(document: Document) -> list[bool]:
    """Whether each picture stands between a heading and the text it heads."""
    parts = document.turns[-1].parts
    found = []
    for number, part in enumerate(parts):
        if isinstance(part, Picture):
            before = read_draft(Document((document.turns[0], Turn("assistant", parts[: number + 1])))).passages
            found.append(bool(before) and leads(before[-1].rsplit("\n\n", 1)[-1]))
    return found


def measured(cases: list[Case], scene: str, seeds: int) -> Counter:
    preset = load_preset("dialogues")["place"]
    counts: Counter = Counter()
    for number, case in enumerate(cases):
        length = len(case.draft.passages)
        for seed in range(seeds):
            rng = random.Random(f"{number} {seed}")
            shuffled = [rng.randint(0, length) for _ in case.clues]
            places = {"order lost": shuffled, "order kept": sorted(shuffled), "untouched": list(case.draft.places)}
            draft = replace(case.draft, places=tuple(places[scene]))
            spread = [round((k + 1) / (len(case.clues) + 1) * length) for k in range(len(case.clues))]
            found = {
                "as shuffled": draft.places,
                "spread in source order": spread,
                "words": place(draft, case.clues, preset).places,
                "words, places never trusted": place(draft, case.clues, {**preset, "trust": 2.0}).places,
            }
            for k, kinds in enumerate(case.kinds):
                for kind in kinds:
                    counts[kind] += 1
                    counts.update((kind, method) for method in METHODS if found[method][k] in case.truth[k])
    return counts


def report(scene: str, counts: Counter) -> None:
    print(f"  {scene:28}" + "".join(f"{kind} ({counts[kind]:,})".rjust(16) for kind in KINDS))
    for method in METHODS:
        shares = [counts[kind, method] / max(counts[kind], 1) for kind in KINDS]
        print(f"    {method:26}" + "".join(f"{share:.3f}".rjust(16) for share in shares))


class Reader:
    """What tesseract reads in a picture; photographs are not read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = map(json.loads, file.open()) if file.exists() else []
        self.known = {line["sha"]: line["text"] for line in lines}

    def __call__(self, picture: Picture) -> str:
        name = picture.meta["sha256"]
        if picture.meta["class"] == "photo":
            return ""
        if name not in self.known:
            image, buffer = Image.fromarray(picture.pixels).convert("L"), io.BytesIO()
            if max(image.size) < 1000:
                image = image.resize((image.width * 2, image.height * 2), Image.Resampling.LANCZOS)
            image.save(buffer, "PNG", compress_level=1)
            command = ["tesseract", "-", "-", "--psm", "11"]
            done = subprocess.run(command, input=buffer.getvalue(), capture_output=True, check=True, timeout=300)
            self.known[name] = " ".join(done.stdout.decode("utf-8", "replace").split())
            with self.file.open("a") as lines:
                lines.write(json.dumps({"sha": name, "text": self.known[name]}) + "\n")
        return self.known[name]


if __name__ == "__main__":
    main()
