"""One Document of `data web` through all steps: DialogueEngine.document(document) -> DialogueResult.

With recorded answers the same at any time and on any machine. A model or an endpoint that fails costs this document,
under the name of the rule, and never the run; ENDPOINT is the rule where the fault was not the document's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from duogen_core.data.dialogues.converse import compose, converse, plain, validate
from duogen_core.data.dialogues.describe import describe
from duogen_core.data.dialogues.draft import Draft, read_draft
from duogen_core.data.dialogues.placement import RULE, Placement, clue_of, copies, place, place_by_model
from duogen_core.data.dialogues.rewrite import rewrite
from duogen_core.data.dialogues.rules import RefusedAnswer, Values, prompts_digest
from duogen_core.data.runs import Engine, Outcome
from duogen_core.data.runs.shards import photos_as_jpeg
from duogen_core.data.sources import Bad, Source, open_source
from duogen_core.document import Document, Picture
from duogen_core.errors import DuoGenError, is_system_failure, system_failure
from duogen_core.llm.answers import Answer, AnswerError
from duogen_core.llm.client import Client, Endpoint
from duogen_core.net.client import EndpointError

PLACERS = ("words", "model", "none")
NOBODY = "http://localhost/no-model"  # stands where an endpoint's address is asked for; nothing is sent there
PHOTO_QUALITY = 95
ENDPOINT = "endpoint"  # the rule of documents that failed for the endpoint's sake


@dataclass
class DialogueResult:
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


def no_models() -> tuple[Client, Client]:
    """The models of an engine whose preset asks none; what is made says so with an empty name."""
    client = Client(Endpoint(NOBODY, "", attempts=1), transport=_refuse)
    return client, client


def _refuse(_: Mapping[str, Any]) -> Answer:
    raise DuoGenError("There is no language model, though a step asks one; name one, or leave the step out.")


class DialogueEngine(Engine):
    """Items are numbers of the input's Documents.

    connect: opens the language models: one that rewrites, places and converses, and one that describes pictures (the
    same, often). OUT/answers.jsonl has every answer under the hash of its request, unless --record names another file.
    A killed run loses the answers it was waiting for and no other.
    """

    kind, size_name = "dialogues", "shard_documents"
    tried_again = (ENDPOINT,)  # the same command does these shards again; their other answers are there already

    def __init__(
        self,
        preset: Mapping[str, Mapping[str, Any]],
        connect: Callable[[], tuple[Client, Client]],
        source: str = "",
        uses_gpu: bool = False,
    ) -> None:
        if preset["place"]["by"] not in PLACERS:
            raise DuoGenError(f"place.by is {preset['place']['by']!r}; expected one of: {', '.join(PLACERS)}.")
        self.preset, self.connect, self.spec, self.uses_gpu = preset, connect, source, uses_gpu
        self.prompts = prompts_digest()

    @cached_property
    def models(self) -> tuple[Client, Client]:
        writer, describer = self.connect()
        if self.preset["describe"]["ask"] and not describer.sees:
            raise DuoGenError(
                f"The model {describer.endpoint.model} cannot look at images; name one that can for describing them "
                "(--describer-base-url, --describer-model), or leave that step out (--set describe.ask=false)."
            )
        return writer, describer

    @cached_property
    def source(self) -> Source:
        return open_input(self.spec)

    @property
    def writer(self) -> Client:
        return self.models[0]

    @property
    def describer(self) -> Client:
        """The model that looks at images; the writer itself unless another was named."""
        return self.models[1]

    def clients(self) -> dict[str, Client]:
        return {"writer": self.writer} | ({"describer": self.describer} if self.describer is not self.writer else {})

    def identity(self) -> dict[str, Any]:
        return {
            "input": self.source.identity(),
            "preset": self.preset,
            "writer": self.writer.endpoint.model,
            "eyes": self.describer.endpoint.model,  # so named in run.json: a run begun earlier goes on
            "prompts": self.prompts,
        }

    def items(self) -> range:
        return range(len(self.source))

    def encode(self, picture: Picture) -> tuple[bytes, str]:
        return photos_as_jpeg(PHOTO_QUALITY)(picture)

    def do(self, number: int) -> Outcome:
        sample = self.source.read(number)
        if isinstance(sample, Bad):
            return Outcome(
                {"input": sample.label, **DialogueResult(rule="unreadable", value=sample.sentence[:300]).log()}
            )
        meta = sample.document.meta
        named = {"page": str(meta.get("page", "")), "url": str(meta.get("url", "")), "input": self.source.name}
        title = sample.document.turns[0].text if sample.document.turns else ""
        found = self.document(sample.document)
        entry = {**named, "title": title[:300], **found.log()}
        documents = [("", found.document)] if found.document is not None else []
        return Outcome(entry, documents, failed=str(found.value) if found.rule == ENDPOINT else "")

    def document(self, document: Document) -> DialogueResult:
        outcome = DialogueResult()

        def count_tokens(answer: Answer) -> None:
            outcome.tokens.update(
                answers=1,
                prompt=answer.prompt_tokens,
                completion=answer.completion_tokens,
                uncounted=int(not answer.counted),
            )

        try:
            self._through(
                document, outcome, self.writer.with_callback(count_tokens), self.describer.with_callback(count_tokens)
            )
        except EndpointError as error:
            outcome.rule, outcome.value = ENDPOINT, str(error)[:300]
        except AnswerError as error:
            refused = error if isinstance(error, RefusedAnswer) else error.__cause__
            if isinstance(refused, RefusedAnswer):
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

    def _through(self, document: Document, outcome: DialogueResult, writer: Client, describer: Client) -> None:
        preset, values = self.preset, outcome.values
        draft = read_draft(document)
        if not draft.passages:
            raise RefusedAnswer("draft.no_text", 0, "The page has no text.")
        outcome.stage = "describe"
        if preset["describe"]["ask"]:
            draft = replace(
                draft, pictures=tuple(self._described(picture, draft, describer) for picture in draft.pictures)
            )
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

    def _described(self, picture: Any, draft: Draft, describer: Client) -> Any:
        try:
            return describe(picture, draft.title, self.preset["describe"], describer)
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
            "eyes": self.describer.endpoint.model if self.preset["describe"]["ask"] else "",
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


def open_input(text: str) -> Source:
    """The folder of a run of `data web`, or any source such as webdataset:FILES."""
    folder = Path(text)
    if folder.is_dir():
        if not (folder / "shards").is_dir():
            raise DuoGenError(f"{text} holds no shards; give the --out of `data web`, or a source like documents:DIR.")
        text = f"webdataset:{folder / 'shards'}"
    source = open_source(text)
    if source.endless:
        raise DuoGenError(f"{text} is endless; give documents that were written before.")
    return source
