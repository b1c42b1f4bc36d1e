"""One Document of `data web` through all steps: Engine(rules, writer).document(document) -> Outcome.

With recorded answers the same at any time and on any machine. A model or an endpoint that fails costs this document,
under the name of the rule, and never the run; ENDPOINT is the rule where the fault was not the document's.

A run's folder, and the loop over its shards, which goes on where the last one stopped.

OUT/answers.jsonl     every answer, under the hash of its request (unless --record names another file)

The rest of the folder is as `run_folder` says. A killed run loses the answers it was waiting for and no other. Shards
with documents that failed at the endpoint are done again by the same command; their other answers are there already.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from duogen_core.data.dialogues.converse import compose, converse, plain, validate
from duogen_core.data.dialogues.describe import describe
from duogen_core.data.dialogues.draft import Draft, read_draft
from duogen_core.data.dialogues.placement import RULE, Placement, clue_of, copies, place, place_by_model
from duogen_core.data.dialogues.rewrite import rewrite
from duogen_core.data.dialogues.rules import Refused, Values, prompts_digest
from duogen_core.data.llm.answers import Answer, AnswerError
from duogen_core.data.llm.client import Client, Endpoint
from duogen_core.data.net.endpoint import EndpointError
from duogen_core.data.runs.folder import (
    FOLDERS,
    RunFolder,
    begin_run,
    check_unused,
    make_folders,
)
from duogen_core.data.runs.in_order import in_order
from duogen_core.data.runs.log import json_lines
from duogen_core.data.runs.presets import preset_values
from duogen_core.data.runs.shards import new_shard, photos_as_jpeg
from duogen_core.data.sources import Bad, Source, open_source
from duogen_core.document import Document
from duogen_core.errors import DuoGenError, is_system_failure, system_failure

PLACERS = ("words", "model", "none")
NOBODY = "http://localhost/no-model"  # stands where an endpoint's address is asked for; nothing is sent there
ENDPOINT = "endpoint"  # the rule of documents that failed for the endpoint's sake


@dataclass
class Outcome:
    """What became of a document. rule and value: what refused it, or nothing; then there is a document."""

    document: Document | None = None
    rule: str = ""
    value: Any = None
    stage: str = "draft"  # the step that was begun last
    facts: dict[str, Any] = field(default_factory=dict)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    values: Values = field(default_factory=Values)
    tokens: Counter[str] = field(default_factory=Counter)

    def log(self) -> dict[str, Any]:
        """The line of the run's log: nothing in it depends on the machine."""
        refused = {"rule": self.rule, "value": self.value} if self.rule else {}
        measured = {"values": self.values.found, "tokens": dict(sorted(self.tokens.items()))}
        return {"kept": self.document is not None, **refused, **self.facts, **measured, "pictures": self.pictures}


def asks_a_model(preset: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether any step asks one: with all of them left out, documents go through the rules alone."""
    return any(preset[step]["ask"] for step in ("describe", "rewrite", "dialogue")) or preset["place"]["by"] == "model"


def no_model() -> Client:
    """The writer of an engine whose preset asks none; what is made says so with an empty name."""

    def refuse(_: Mapping[str, Any]) -> Answer:
        raise DuoGenError("There is no language model, though a step asks one; name one, or leave the step out.")

    return Client(Endpoint(NOBODY, "", attempts=1), transport=refuse)


class Engine:
    """writer: rewrites, places and converses; eyes: describes pictures, the same one unless given."""

    def __init__(self, preset: Mapping[str, Mapping[str, Any]], writer: Client, eyes: Client | None = None) -> None:
        if preset["place"]["by"] not in PLACERS:
            raise DuoGenError(f"place.by is {preset['place']['by']!r}; expected one of: {', '.join(PLACERS)}.")
        self.preset, self.writer, self.eyes = preset, writer, eyes or writer
        self.prompts = prompts_digest()

    def document(self, document: Document) -> Outcome:
        outcome = Outcome()

        def heard(answer: Answer) -> None:
            outcome.tokens.update(
                answers=1,
                prompt=answer.prompt_tokens,
                completion=answer.completion_tokens,
                uncounted=int(not answer.counted),
            )

        try:
            self._through(document, outcome, self.writer.with_callback(heard), self.eyes.with_callback(heard))
        except EndpointError as error:
            outcome.rule, outcome.value = ENDPOINT, str(error)[:300]
        except AnswerError as error:
            refused = error if isinstance(error, Refused) else error.__cause__
            if isinstance(refused, Refused):
                outcome.rule, outcome.value = refused.rule, refused.value
            else:
                outcome.rule, outcome.value = f"{outcome.stage}.answer", str(error)[:300]
        except DuoGenError:
            raise
        except Exception as error:  # one page in a million must not end the run; the log says which and what
            if is_system_failure(error):
                raise system_failure(error, f"a document, in the step {outcome.stage}") from None
            outcome.rule, outcome.value = "failed", f"{type(error).__name__}: {error}"[:300]
        outcome.document = None if outcome.rule else outcome.document
        return outcome

    def _through(self, document: Document, outcome: Outcome, writer: Client, eyes: Client) -> None:
        preset, values = self.preset, outcome.values
        draft = read_draft(document)
        if not draft.passages:
            raise Refused("draft.no_text", 0, "The page has no text.")
        outcome.stage = "describe"
        if preset["describe"]["ask"]:
            draft = replace(draft, pictures=tuple(self._described(picture, draft, eyes) for picture in draft.pictures))
        outcome.stage = "place"
        placed, placement = self._placed(draft, writer)
        outcome.facts |= {"trusted": placement.trusted, "in_order": placement.in_order}
        dropped = copies(placed, placement.scores, preset["duplicate"])
        draft = _without(placed, dropped)
        outcome.stage = "rewrite"
        rewritten = rewrite(draft, preset["rewrite"], writer, values) if preset["rewrite"]["ask"] else draft
        outcome.stage = "dialogue"
        brings = self.brings(document, draft)
        asks = preset["dialogue"]["ask"]
        exchanges = converse(rewritten, preset["dialogue"], writer, values, brings) if asks else plain(rewritten)
        outcome.stage = "document"
        outcome.document = compose(rewritten, exchanges, self._meta(document, placement))
        outcome.pictures = _picture_lines(placed, dropped, placement, read_draft(document), outcome.document)
        dropped_pictures = [placed.pictures[index] for index in dropped]
        validate(outcome.document, document, preset["document"], values, dropped_pictures)
        outcome.facts |= {
            "words": sum(len(turn.text.split()) for turn in outcome.document.turns),
            "exchanges": len(exchanges),
            "user_picture": any(exchange.pictures for exchange in exchanges),
            "removed": {},
        }

    def _described(self, picture: Any, draft: Draft, eyes: Client) -> Any:
        try:
            return describe(picture, draft.title, self.preset["describe"], eyes)
        except AnswerError:  # its alt text and caption must do; the log says so
            return picture

    def _placed(self, draft: Draft, writer: Client) -> tuple[Draft, Placement]:
        rules = self.preset["place"]
        clues = [clue_of(picture) for picture in draft.pictures]
        if rules["by"] == "none":
            found = Placement(draft.places, (0.0,) * len(clues), True, True)
        elif rules["by"] == "model":
            found = place_by_model(draft, clues, rules, writer)
        else:
            found = place(draft, clues, rules)
        return replace(draft, places=found.places), found

    def brings(self, document: Document, draft: Draft) -> bool:
        """Whether the user is to bring a picture: a fixed share of the pages that have two, by their hash."""
        name = f"{document.meta.get('url', '')}\0{draft.title}\0{draft.text}"
        drawn = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "big")
        rules = self.preset["dialogue"]
        return bool(rules["ask"]) and len(draft.pictures) > 1 and drawn < rules["user_picture"] * 2**64

    def _meta(self, document: Document, placement: Placement) -> dict[str, Any]:
        made = {
            "writer": self.writer.endpoint.model,
            "eyes": self.eyes.endpoint.model if self.preset["describe"]["ask"] else "",
            "prompts": self.prompts,
            "in_order": placement.in_order,
        }
        return {**document.meta, "dialogue": made}


def _without(draft: Draft, dropped: Mapping[int, float]) -> Draft:
    kept = [index for index in range(len(draft.pictures)) if index not in dropped]
    pictures, places = ([of[index] for index in kept] for of in (draft.pictures, draft.places))
    return replace(draft, pictures=tuple(pictures), places=tuple(places))


def _picture_lines(
    draft: Draft, dropped: Mapping[int, float], placement: Placement, before: Draft, document: Document
) -> list[dict[str, Any]]:
    brought = {picture.digest for turn in document.turns if turn.role == "user" for picture in turn.pictures}
    return [
        {
            "class": str(picture.meta.get("seen_as") or picture.meta.get("class") or "unknown"),
            "described": "description" in picture.meta,
            "from": was,
            "to": now,
            "score": score,
            "brought": picture.digest in brought and index not in dropped,
            **({"rule": RULE, "value": dropped[index]} if index in dropped else {}),
        }
        for index, (picture, was, now, score) in enumerate(
            zip(draft.pictures, before.places, placement.places, placement.scores)
        )
    ]


def unread(sentence: str) -> Outcome:
    """A sample that could not be read."""
    return Outcome(rule="unreadable", value=sentence[:300])


# ------------------------------------------------------------ run

PRESETS = Path(__file__).with_name("presets")
SHARD_DOCUMENTS = 64
PHOTO_QUALITY = 95


def load_preset(name: str = "howto", settings: tuple[str, ...] | list[str] = ()) -> dict[str, dict[str, Any]]:
    return preset_values(PRESETS, "howto", name, settings)


def open_input(text: str) -> Source:
    """The folder of a run of `data web`, or any source such as webdataset:FILES."""
    folder = Path(text)
    if folder.is_dir():
        if not (folder / "shards").is_dir():
            raise DuoGenError(f"{text} holds no shards; give the --out of `data web`, or a source like documents:DIR.")
        text = f"webdataset:{folder / 'shards'}"
    source = open_source(text)
    if source.endless:
        raise DuoGenError(f"{text} has no end; give documents that were made.")
    return source


@dataclass(frozen=True)
class Run(RunFolder):
    documents: int
    size: int

    @property
    def shards(self) -> int:
        return -(-self.documents // self.size)

    def numbers(self, shard: int) -> range:
        return range(shard * self.size, min((shard + 1) * self.size, self.documents))

    def is_done(self, shard: int) -> bool:
        """Whether it was written and nothing in it failed for the endpoint's sake, which is worth another attempt."""
        if not super().is_done(shard):
            return False
        try:
            return all(entry.get("rule") != ENDPOINT for entry in json_lines(self.log(shard)))
        except DuoGenError:  # a line that is no entry
            return False


def begin(folder: Path, source: Source, engine: Engine, size: int = SHARD_DOCUMENTS) -> Run:
    """The run in this folder: gone on with if it is there with the same input, preset, models and prompts."""
    if size < 1:
        raise DuoGenError(f"A shard has {size} documents; expected at least 1.")
    identity = {
        "input": source.identity(),
        "preset": engine.preset,
        "writer": engine.writer.endpoint.model,
        "eyes": engine.eyes.endpoint.model,
        "prompts": engine.prompts,
        "shard_documents": size,
    }
    if not (folder / "run.json").exists():
        check_unused(folder, ("answers.jsonl",))
    begin_run(folder, "dialogues", identity, {"items": len(source)})
    make_folders(folder, FOLDERS)
    run = Run(folder, len(source), size)
    run.sweep()
    return run


def work(run: Run, source: Source, engine: Engine, threads: int = 1, give_up: int = 8) -> Iterator[Outcome]:
    """Does what is not done yet; yields what became of each document.

    give_up: how many documents in a row may fail because of the endpoint before the run stops with its sentence.
    """
    todo = [shard for shard in range(run.shards) if not run.is_done(shard)]
    numbers = (number for shard in todo for number in run.numbers(shard))
    results = in_order(lambda number: _one(source, engine, number), numbers, threads)
    failed, encode = 0, photos_as_jpeg(PHOTO_QUALITY)
    for shard in todo:
        started = time.perf_counter()
        with new_shard(run, shard, "documents") as new:
            for number, (named, outcome) in itertools.islice(results, len(run.numbers(shard))):
                failed = failed + 1 if outcome.rule == ENDPOINT else 0
                if failed >= give_up:
                    raise DuoGenError(
                        f"{failed} documents in a row failed at the endpoint, the last with: {outcome.value} Shards "
                        "that are done are whole; the same command goes on."
                    )
                if outcome.document is not None:
                    new.add(f"{number:08d}", outcome.document, encode)
                new.log({"number": number, **named, **outcome.log()})
                yield outcome
            new.seconds["all"] = time.perf_counter() - started


def _one(source: Source, engine: Engine, number: int) -> tuple[dict[str, Any], Outcome]:
    """What the log says of the document first, and what became of it."""
    sample = source.read(number)
    if isinstance(sample, Bad):
        return {"input": sample.label}, unread(sample.sentence)
    meta = sample.document.meta
    named = {"page": str(meta.get("page", "")), "url": str(meta.get("url", "")), "input": source.name}
    title = sample.document.turns[0].text if sample.document.turns else ""
    return {**named, "title": title[:300]}, engine.document(sample.document)
