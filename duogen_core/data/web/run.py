"""Does the shards of a run that are not done yet, here, in worker processes, or with Ray (`ray_backend`).

    for result in work(run, workers=2): ...   # a mapping a shard, as they are finished

Workers are started afresh (spawn), hold one Engine each, and end when the run stops or when its process is gone. A
shard ends as the same bytes wherever it is done, so a run begun one way may be finished another.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from duogen_core.data.web.engine import Engine
from duogen_core.data.web.plan import Run, Shard
from duogen_core.data.web.shards import do_shard
from duogen_core.errors import DuoGenError

AHEAD = 2  # shards that wait for each worker


def work(run: Run, workers: int = 1, backend: str = "local") -> Iterator[dict[str, Any]]:
    """Yields what each finished shard found. Leaving the loop stops the workers."""
    run.sweep()
    if backend == "ray":
        from duogen_core.data.web.ray_backend import work_with_ray

        yield from work_with_ray(run, [place for place, each in run.places() if not run.is_done(each.number)], workers)
        return
    todo = (shard for shard in run.plan() if not run.is_done(shard.number))
    if workers <= 1:
        with Engine(run.preset) as engine:
            inputs = run.inputs()
            for shard in todo:
                yield do_shard(run, shard, engine, inputs)
        return
    yield from _in_processes(run, todo, workers)


def _in_processes(run: Run, todo: Iterator[Shard], workers: int) -> Iterator[dict[str, Any]]:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # the workers are the threads
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(run, stop, os.getpid()))
    waiting = set()
    try:
        while True:
            while len(waiting) < workers * AHEAD and (shard := next(todo, None)) is not None:
                waiting.add(pool.submit(_do, shard))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise DuoGenError(
            "A worker process was ended from outside, most often for want of memory. Finished shards are whole; run "
            "the same command again to go on, with fewer --workers."
        ) from None
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[Run, Engine, list] | None = None


def _start(run: Run, stop: Any, parent: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that was started
    threading.Thread(target=_leave_with, args=(stop, parent), daemon=True).start()
    _worker = run, Engine(run.preset), run.inputs()


def _leave_with(stop: Any, parent: int) -> None:
    while not stop.wait(1.0) and os.getppid() == parent:
        time.sleep(0)
    os._exit(1)


def _do(shard: Shard) -> dict[str, Any]:
    run, engine, inputs = _worker
    return do_shard(run, shard, engine, inputs)
