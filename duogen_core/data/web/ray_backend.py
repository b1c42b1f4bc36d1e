"""Does the shards of a run with Ray Data: on this machine, or on the cluster that RAY_ADDRESS names.

    for result in work_with_ray(run, workers=2): ...

Each worker is an actor with one Engine. A row of the data set says where the line of a shard stands in the plan, and
comes back as what the shard found; pages, pictures and documents never go through Ray. So the inputs and the run's
folder must lie where every machine sees them, under the same name. A shard that Ray does twice ends as the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duogen_core.data.web.engine import Engine
from duogen_core.data.web.plan import Run, open_run
from duogen_core.data.web.shards import do_shard
from duogen_core.errors import DuoGenError, MissingPackage

STORE_BYTES = 80 * 2**20  # for Ray's own objects, which are small here
MOST_BLOCKS = 10_000  # of the data set; more only cost Ray time


class ShardStage:
    """What a Ray worker holds: the run, its inputs and an Engine."""

    def __init__(self, folder: str) -> None:
        self.run = open_run(Path(folder))
        self.inputs, self.engine = self.run.inputs(), Engine(self.run.preset)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            found = do_shard(self.run, self.run.shard_at(int(row["place"])), self.engine, self.inputs)
        except DuoGenError as error:  # as a value: Ray would wrap it in pages of its own
            return {"found": "", "error": str(error)}
        return {"found": json.dumps(found), "error": ""}


def work_with_ray(run: Run, places: list[int], workers: int) -> Iterator[dict[str, Any]]:
    """What each shard found, as they are finished. places: where their lines stand in the plan."""
    ray = _ray()
    if not places:
        return
    with _started(ray, workers):
        rows = ray.data.from_items(
            [{"place": place} for place in places], override_num_blocks=min(len(places), MOST_BLOCKS)
        )
        stage = {"fn_constructor_kwargs": {"folder": str(run.folder.absolute())}, "num_cpus": 1}
        actors = ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(places)))
        results = rows.map(ShardStage, compute=actors, **stage)
        try:
            for row in results.iter_rows():
                if row["error"]:
                    raise DuoGenError(row["error"])
                yield json.loads(row["found"])
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
    if ray.is_initialized():
        yield
        return
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
        ray.shutdown()
