"""Runs of the data engines: the one interface, and what every engine has from it.

An **engine** turns items (a web page, a document, a video, a row of a data set, a request) into Documents. It is a
subclass of `Engine` and gives

    kind            its name; run.json has the format "duogen-KIND-run"
    identity()      plain JSON: all that its output depends on (what stands in the inputs, preset, models, prompts,
                    seed). A folder that was begun with another identity is refused.
    items()         every item as a plain JSON value, in an order that never changes. `range(n)` where a number says
                    enough; everything else is written to plan.jsonl, so a run that goes on does not look for it again.
    do(item)        one item through all rules -> Outcome. It depends on the item and the identity alone: an item that
                    is done twice, by another process or on another machine, gives the same bytes. It is called from
                    several threads at once. What is wrong with an item is an Outcome with a rule, never an exception;
                    a DuoGenError stops the run.

Whatever it holds open (child processes, models, files, clients) is a `cached_property`: a worker gets the engine
pickled without them and opens its own; `close()` lets go of them. So everything else in it can be pickled.

It gets, from `run` (begin, work) and the modules beside it, whichever engine it is:

    a folder        shards as webdataset, logs, times, run.json (`folder`)
    resume          the same command goes on where the last one stopped, and ends with the same bytes
    workers         threads here, processes, or Ray Data (`workers`): the same bytes from all of them
    data stats      what the logs say (`log`), and data view, a page to look at (`report`)
    presets         thresholds in YAML files (`presets`); inputs known by their contents (`folder`)

Adding an engine: its class, a command that hands it to `commands.data_engines.do_run`, its test in test_ray.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from duogen_core.document import Document, Picture
    from duogen_core.llm.client import Client


class Refused(Exception):
    """A rule that refuses an item, or a part of one: raised where the rule is asked, logged where it is caught."""

    def __init__(self, rule: str, value: Any = None) -> None:
        super().__init__(rule)
        self.rule, self.value = rule, value


@dataclass
class Outcome:
    """What became of an item.

    entry: its line of the log (see `log`), without its number; read after the documents. documents: each with the
    ending of its key ("" if there is one only); made one at a time where that saves memory. failed: the sentence of a
    machine or an endpoint that failed, when the item itself is not at fault. seconds: by stage. files: as documents, of
    samples that are files already: the rest of each member's name, and its bytes.
    """

    entry: dict[str, Any] = field(default_factory=dict)
    documents: Iterable[tuple[str, Document]] = ()
    failed: str = ""
    seconds: Counter[str] = field(default_factory=Counter)
    files: Iterable[tuple[str, Sequence[tuple[str, bytes]]]] = ()


class Engine(ABC):
    kind: ClassVar[str]
    things: ClassVar[str] = "documents"  # what a message calls its items
    size_name: ClassVar[str] = "shard_size"  # what run.json calls the number of items in a shard
    keeps_lock: ClassVar[bool] = False  # whether `do` computes in Python: then several workers are processes
    uses_gpu: bool = False  # whether a worker of Ray asks for one
    tried_again: ClassVar[tuple[str, ...]] = ()  # rules that say nothing of the item: the shard is done again
    notes: Sequence[str] = ()  # what it has to say of its inputs, for run.json

    @abstractmethod
    def identity(self) -> dict[str, Any]: ...

    @abstractmethod
    def items(self) -> Iterable[Any]: ...

    @abstractmethod
    def do(self, item: Any) -> Outcome: ...

    def encode(self, picture: Picture) -> tuple[bytes, str]:
        """The file of a picture and the ending of its name; PNG unless the engine says otherwise."""
        from duogen_core.data.runs.shards import as_png

        return as_png(picture.pixels)

    def details(self) -> dict[str, Any]:
        """What run.json keeps besides the identity, so that a finished run can be looked at again."""
        return {}

    def prepare(self, folder: Path, identity: Mapping[str, Any]) -> None:  # noqa: B027 (most need nothing)
        """Brings what items need into the folder of a new run, before there is a plan."""

    def group(self, item: Any) -> Hashable:
        """A shard holds items of one group only."""
        return None

    def read(self, items: Iterable[Any]) -> Iterator[Any]:
        """What `do` gets for each item; one thread reads, in the order of the items, files that are read through."""
        yield from items

    def shard_done(self, items: Sequence[Any]) -> None:  # noqa: B027 (most keep nothing)
        """Called with the items of a shard when its files are whole."""

    def clients(self) -> dict[str, Client]:
        """The language models that it asks, by name: what they cost is counted over all workers."""
        return {}

    def open(self) -> None:
        """Opens everything now: before threads share it."""
        for name in self._held():
            getattr(self, name)

    def close(self) -> None:
        for name in self._held():
            held = self.__dict__.pop(name, None)
            for each in held if isinstance(held, (list, tuple)) else (held,):
                if hasattr(each, "close"):
                    each.close()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        held = set(self._held())
        return {name: value for name, value in self.__dict__.items() if name not in held}

    def _held(self) -> list[str]:
        return [name for kind in type(self).__mro__ for name, value in vars(kind).items()
                if isinstance(value, cached_property)]  # fmt: skip
