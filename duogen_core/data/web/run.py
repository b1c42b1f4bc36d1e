"""Does the shards of a run that are not done yet, here, in worker processes, or with Ray (`ray_backend`).

    for result in work(run, workers=2): ...   # a mapping a shard, as they are finished

Workers hold one Engine each. A shard ends as the same bytes wherever it is done, so a run begun one way may be finished
another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from duogen_core.data.web.engine import Engine
from duogen_core.data.web.plan import Run, Shard
from duogen_core.data.web.shards import do_shard
from duogen_core.processes import in_processes


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
    yield from in_processes(_do, todo, workers, start=_start, arguments=(run,))


_worker: tuple[Run, Engine, list] | None = None


def _start(run: Run) -> None:
    global _worker
    _worker = run, Engine(run.preset), run.inputs()


def _do(shard: Shard) -> dict[str, Any]:
    run, engine, inputs = _worker
    return do_shard(run, shard, engine, inputs)
