"""Where the work of an engine is done: in threads here, in processes here, or in the actors of Ray Data.

    for item, result in in_threads(ask, items, threads=8): ...              results in the order of the items
    for result in in_workers(make, values, workers=4, backend="ray"): ...  make() -> the function, once in each worker

With Ray (on this machine, or on the cluster that RAY_ADDRESS names) pages, pictures and documents never go through its
store: a worker writes its shards itself. So the inputs and the run's folder must lie where every machine sees them,
under the same name. What Ray does twice ends as the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from duogen_core.errors import DuoGenError, MissingPackage
from duogen_core.processes import in_processes

if TYPE_CHECKING:
    from duogen_core.llm.client import Client

Item, Result = TypeVar("Item"), TypeVar("Result")
AHEAD = 4  # inputs for each thread that are begun before their turn
STORE_BYTES = 80 * 2**20  # for Ray's own objects, which are small here
MOST_BLOCKS = 10_000  # of a data set; more only cost Ray time
PART = ".part"  # how the name of a worker's own recording ends


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[tuple[Item, Result]]:
    """A function over many items in threads; results come in the order of the items, so that a run repeats exactly.

    The threads are daemons: Ctrl-C does not wait for an answer that may never come. An error comes out at its place.
    """
    if threads <= 1:
        for item in items:
            yield item, function(item)
        return
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        while (job := todo.get()) is not None:
            item, answer = job
            if stopped.is_set():
                return
            try:
                answer.put((function(item), None))
            except BaseException as error:  # whatever it is, it belongs to whoever waits for the answer
                answer.put((None, error))

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    waiting: deque[tuple[Item, queue.SimpleQueue[Any]]] = deque()
    source = iter(items)
    try:
        while True:
            for item in source:
                answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
                waiting.append((item, answer))
                todo.put((item, answer))
                if len(waiting) >= threads * AHEAD:
                    break
            if not waiting:
                return
            item, answer = waiting.popleft()
            result, error = _patiently(answer)
            if error is not None:
                raise error
            yield item, result
    finally:
        stopped.set()
        for _ in range(threads):
            todo.put(None)


def _patiently(answer: queue.SimpleQueue[Any]) -> Any:
    """Waits in short pieces: on Windows Ctrl-C is not seen while a thread waits without end."""
    while True:
        try:
            return answer.get(timeout=0.5)
        except queue.Empty:
            continue


# ------------------------------------------------------------ other processes, other machines


def in_workers(
    make: Callable[[], Callable[[Any], Any]],
    values: Iterable[Any],
    workers: int,
    backend: str = "local",
    ordered: bool = False,
    gpu: bool = False,
) -> Iterator[Any]:
    """Yields make()(value) of every value, as they are finished or in order. make is called once in each worker.

    make can be pickled, values and results can be JSON. backend: processes here ("local"), or "ray".
    """
    if backend == "ray":
        yield from _in_ray(make, list(values), workers, ordered, gpu)
    else:
        yield from in_processes(_do, values, workers, start=_start, arguments=(make,), in_order=ordered)


_function: Callable[[Any], Any] | None = None


def _start(make: Callable[[], Callable[[Any], Any]]) -> None:
    global _function
    _function = make()


def _do(value: Any) -> Any:
    return _function(value)


class RayWorker:
    """What an actor of Ray Data holds. A row is a value as JSON, and comes back as the result."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self.function = make()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"result": json.dumps(self.function(json.loads(row["value"]))), "error": ""}
        except DuoGenError as error:  # as a value: Ray would wrap it in pages of its own
            return {"result": "", "error": str(error)}


def _in_ray(
    make: Callable[[], Callable[[Any], Any]], values: list[Any], workers: int, ordered: bool, gpu: bool
) -> Iterator[Any]:
    ray = _ray()
    if not values:
        return
    with _started(ray, workers):
        ray.data.DataContext.get_current().execution_options.preserve_order = ordered
        blocks = min(len(values), MOST_BLOCKS)
        rows = ray.data.from_items([{"value": json.dumps(value)} for value in values], override_num_blocks=blocks)
        # An actor that asks for no GPU is shown none, even where there is one.
        gpus = 1 if gpu and ray.cluster_resources().get("GPU") else None
        actors = ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(values)))
        results = rows.map(
            RayWorker, compute=actors, fn_constructor_kwargs={"make": make}, num_cpus=1, num_gpus=gpus
        )  # fmt: skip
        try:
            for row in results.iter_rows():
                if row["error"]:
                    raise DuoGenError(row["error"])
                yield json.loads(row["result"])
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[-300:]
            raise DuoGenError(
                f"A Ray worker failed: {reason} Finished shards are whole; run the same command again to go on."
            ) from None


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent that nobody asked for
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the local workers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it complains of Ray Data's own ways
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingPackage("--backend ray", "Ray Data", "ray") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


@contextlib.contextmanager
def _started(ray: Any, workers: int) -> Iterator[None]:
    """Ray, if it does not run yet; what was started here is stopped here."""
    started = not ray.is_initialized()
    if started:
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        here = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        try:
            ray.init(**quiet, **({} if os.environ.get("RAY_ADDRESS") else here))
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise DuoGenError(f"Ray cannot be started or reached: {error}.") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield
    finally:
        if started:
            ray.shutdown()


# ------------------------------------------------------------ language models in several processes


def share(clients: Iterable[Client], workers: int) -> None:
    """Prepares the clients of one of several workers: its share of the rate limit, and a file of its own for answers.

    Only one process may write a recording; `gather_answers` puts the files together.
    """
    own = secrets.token_hex(4)
    for client in clients:
        for name in ("requests", "tokens"):
            if most := getattr(client.rate_limit, name):
                setattr(client.rate_limit, name, max(most // workers, 1))
        recording = client.recording
        if recording is not None and recording.mode == "record" and not recording.file.name.endswith(PART):
            recording.file = recording.file.with_name(f".{recording.file.name}.{own}{PART}")


def gather_answers(clients: Iterable[Client]) -> None:
    """Moves what workers have recorded, those of a run that was killed too, into the clients' recordings."""
    for recording in {id(client.recording): client.recording for client in clients}.values():
        if recording is None or recording.mode != "record":
            continue
        parts = sorted(recording.file.parent.glob(f".{recording.file.name}.*{PART}"))
        for part in parts:
            data = part.read_bytes()
            with recording.file.open("ab") as file:
                file.write(data[: data.rfind(b"\n") + 1])
            part.unlink()
        if parts:
            recording.answers.update(type(recording)(recording.file, "replay").answers)
