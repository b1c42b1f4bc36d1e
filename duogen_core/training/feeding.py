"""Feeds a run: what a process learns from in a step is read ahead by other processes (torch's DataLoader).

    feed = Feed(make, workers=4, device=device)
    for step, share in feed.each(run): ...      # share = make(step), made while the steps before were computed

make(step) is a pure function of the step, of numbers and files alone. So a resumed run begins where it stopped, and
what is read ahead in vain is lost and nothing else. It is sent to the workers: it holds no open file, no model and
nothing that lies on a device. Tensors come back in shared memory and, for a CUDA device, in pinned memory.

A step's samples are shared out before they are read: every process knows the tokens of all of them, from the headers of
their pictures, and decodes its own alone (`passes`). So the work of decoding is that of one process, however many there
are. Samples of a stream cannot be known without reading its shards, so these are shared out as whole lanes of it
(`own_share`): a process of the run reads its own lanes and knows nothing of the others. Where it has workers, one more
process reads the lanes, once, and hands each step's samples, as they are stored, to the worker that decodes them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_all_start_methods, parent_process
from threading import Thread
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from duogen_core.errors import DuoGenError, first_line
from duogen_core.training.configuration import TrainingError
from duogen_core.training.run import Run

T = TypeVar("T")
MOST_WORKERS = 8  # that are started unasked
AHEAD = 2  # steps that each worker has ready


def workers_for(asked: int | None, device: torch.device) -> int:
    """Worker processes of a training process. Unasked: beside a GPU the cores that its process leaves, at most
    MOST_WORKERS; on a CPU none, since the training itself keeps all cores busy."""
    if asked is not None:
        return asked
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


@dataclass
class Failure:
    """What went wrong in a worker: a sentence, without the traceback that a DataLoader would put around it."""

    sentence: str


class Streams(Protocol):
    """What make has besides, where some samples lie in streams (`streamed`): one process reads these, others decode."""

    streamed: bool

    def fetch(self, step: int) -> Any:
        """Reads what this process of the run has in a step out of its streams."""

    def give(self, fetched: Any) -> None:
        """Before make(step): takes what was fetched of it."""


@dataclass
class Fetch:
    """Runs in the one reader of a training process."""

    make: Any

    def __call__(self, step: int) -> Any:
        return self.make.fetch(step)


@dataclass
class Decode:
    """Runs in its workers. (step, what the reader fetched of it) -> make(step)"""

    make: Any

    def __call__(self, item: tuple[int, Any]) -> Any:
        step, fetched = item
        if isinstance(fetched, Failure):  # told when its step comes, not when it was fetched
            raise DuoGenError(fetched.sentence)
        self.make.give(fetched)
        return self.make(step)


class Made(Dataset):
    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.make(item)
        except DuoGenError as error:
            return Failure(str(error))


class InOrder(Sampler):
    """Items one after another; there may be no end, as of the steps of a run in minutes."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def as_it_is(share: T) -> T:
    return share


def begin_worker(_number: int) -> None:
    # Ctrl-C goes to all processes of a terminal; the run decides when it ends, and first takes the step it is in.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Where the training is killed, nothing ends its workers: torch's own watch is for the fork server to go, which in
    # turn goes when its last worker has.
    Thread(target=end_with, args=(parent_process(),), daemon=True).start()


def end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def loader(
    make: Callable[[Any], T], items: Iterable[Any], workers: int, device: torch.device, ahead: int = AHEAD
) -> DataLoader:
    """Gives make(item) of all items, in order. ahead: items that each worker has ready."""
    more: dict[str, Any] = {}
    if workers:
        # Not by fork: the training process has threads (autograd's, gloo's, tokenizers'), and a copy of a process has
        # the locks that they held and not the threads. A fork server is a process that never had any.
        method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
        context = torch.multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload([type(getattr(make, "make", make)).__module__])  # once, for all workers
        more = {"multiprocessing_context": context, "prefetch_factor": ahead, "worker_init_fn": begin_worker}
    return DataLoader(
        Made(make),
        batch_size=None,  # a share is a whole already
        sampler=InOrder(items),
        num_workers=workers,
        collate_fn=as_it_is,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # torch's own random numbers are the training's
        **more,
    )


def taken(shares: Iterator[T | Failure]) -> T:
    """The next one; a DuoGenError for what went wrong with it."""
    found = arrived(shares)
    if isinstance(found, Failure):
        raise DuoGenError(found.sentence)
    return found


def arrived(shares: Iterator[T | Failure]) -> T | Failure:
    try:
        return next(shares)
    except (RuntimeError, ConnectionError, EOFError) as error:
        # The second and third: a tensor in shared memory is fetched from the worker that put it there. Of a worker that
        # has gone torch tells the pid; what says "Caught RuntimeError in DataLoader worker process" is a bug in make.
        if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
            raise
        raise WorkerEnded(
            f"A process that reads documents ahead was ended ({first_line(error)}), as happens when the machine has no "
            "memory left, or a container too little shared memory (/dev/shm). Set fewer `workers` (0: none), and give "
            "the same command again to go on from the last checkpoint."
        ) from None


class WorkerEnded(TrainingError):
    """A worker process is gone."""


def read_ahead(make: Callable[[Any], T], items: Iterable[Any], workers: int, device: torch.device) -> Iterator[T]:
    """make(item) of some items, in order."""
    shares = iter(loader(make, items, workers, device))
    while True:
        try:
            yield taken(shares)
        except StopIteration:
            return


def compare(run: Run, step: int, share: Any) -> None:
    """A TrainingError, on all processes, if they see different data: files on one machine are not those on another."""
    first, *others = run.processes.gather(getattr(share, "checksum", 0))
    for rank, each in enumerate(others, start=1):
        if each != first:
            raise TrainingError(
                f"Process {rank} sees other data than process 0 in step {step}: the texts of its samples, or the sizes "
                "of their images, are others. Copy the same files to every machine, or put them where all can read "
                "them."
            )


class Feed(Generic[T]):
    """The shares of a process, in order."""

    def __init__(self, make: Callable[[int], T], *, workers: int = 0, device: torch.device | None = None) -> None:
        self.make, self.workers, self.device = make, workers, device or torch.device("cpu")
        self._shares: Iterator[T | Failure] | None = None

    def each(self, run: Run) -> Iterator[tuple[int, T]]:
        """The steps of a run, each with its share."""
        first = run.step
        try:
            for step in run:
                with run.meter.waiting():
                    share = self._next(run, step)
                if step == first or step % run.log_every == 0:
                    compare(run, step, share)
                yield step, share
        finally:
            self._shares = None  # ends the workers

    def _next(self, run: Run, step: int) -> T:
        if self._shares is None:
            self._shares = self._read_ahead(step, run.steps)
        try:
            return taken(self._shares)
        except WorkerEnded:
            if not run.interrupted:
                raise
            return self.make(step)  # who stopped the run stopped its workers too; this last step needs none

    def _read_ahead(self, step: int, end: int | None) -> Iterator[T | Failure]:
        def steps() -> Iterable[int]:
            return count(step) if end is None else range(step, end)

        if not self.workers or not getattr(self.make, "streamed", False):
            return iter(loader(self.make, steps(), self.workers, self.device))
        # Workers that each took whole steps out of the streams would each read all of them, and hold a shuffle buffer.
        # The reader is as far ahead of them as they are of the training: the lanes come to their next blocks within a
        # few steps of each other, and a share is given out only when the reader has one more for the workers.
        ahead = AHEAD * self.workers
        fetched = iter(loader(Fetch(self.make), steps(), 1, torch.device("cpu"), ahead))
        items = ((each, arrived(fetched)) for each in steps())
        return iter(loader(Decode(self.make), items, self.workers, self.device))


# -- sharing out


def known_to(rank: int, readers: Sequence[int | None]) -> list[int]:
    """Numbers of a step's samples whose headers a process reads: those that any can read, which are shared out by the
    tokens of all of them, and its own of streams. readers: which process reads each, None for any."""
    return [number for number, reader in enumerate(readers) if reader in (None, rank)]


def own_share(tokens: Mapping[int, int], rank: int, processes: int, readers: Sequence[int | None]) -> list[int]:
    """Numbers of what a process learns from of a step that has samples of streams: its own of these, whatever tokens
    they have, which the others do not know, and of the others so many that all have about as much to do (a streamed
    sample counts as one of the mean). tokens: of `known_to`."""
    anybodys = [number for number, reader in enumerate(readers) if reader is None]
    mean = sum(tokens[number] for number in anybodys) / max(1, len(anybodys))
    loads = [mean * sum(reader == process for reader in readers) for process in range(processes)]
    mine = [number for number, reader in enumerate(readers) if reader == rank]
    for number in sorted(anybodys, key=lambda k: (-tokens[k], k)):
        emptiest = min(range(processes), key=loads.__getitem__)
        loads[emptiest] += tokens[number]
        mine += [number] if emptiest == rank else []
    return sorted(mine)


def by_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Samples of these numbers of tokens -> which go into one padded batch, short ones first: at most `most` tokens
    with the padding, or one sample."""
    groups: list[list[int]] = [[]]
    for k in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups[-1] and (len(groups[-1]) + 1) * lengths[k] > most:
            groups.append([])
        groups[-1].append(k)
    return groups


def passes(tokens: Sequence[int], most: float, processes: int = 1) -> list[list[list[int]]]:
    """Shares out samples of so many tokens: of every process its passes, of every pass the samples' numbers.

    A pass has at most `most` tokens, or one sample. All processes have equally many passes, as few as will do, some of
    which may be empty: DDP and FSDP wait for each other in each. Longest first, each into the emptiest pass (LPT,
    Graham 1969), so that no process waits long for another.
    """
    longest_first = sorted(range(len(tokens)), key=lambda k: (-tokens[k], k))
    each = max(1, -(-sum(min(n, most) for n in tokens) // (most * processes)) if most < float("inf") else 1)
    while (found := _packed(tokens, longest_first, most, int(each) * processes)) is None:
        each += 1
    loads = [sum(tokens[k] for k in pack) for pack in found]
    shares: list[list[list[int]]] = [[] for _ in range(processes)]
    for number in sorted(range(len(found)), key=lambda k: (-loads[k], k)):
        share = min(
            (share for share in shares if len(share) < each), key=lambda s: sum(tokens[k] for pack in s for k in pack)
        )
        share.append(sorted(found[number]))
    return shares


def _packed(tokens: Sequence[int], order: Sequence[int], most: float, count: int) -> list[list[int]] | None:
    """`count` packs of at most `most` tokens; None if some sample finds no room."""
    packs: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for k in order:
        emptiest = min(range(count), key=loads.__getitem__)
        if packs[emptiest] and loads[emptiest] + tokens[k] > most:
            return None
        packs[emptiest].append(k)
        loads[emptiest] += tokens[k]
    return packs
