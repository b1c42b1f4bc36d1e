"""Does one shard of a run: its pages through the engine, into the shard's files.

A shard is a pure function of its line in the plan, so one that was begun twice, or interrupted and begun again, ends as
the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from duogen_core.data.runs.shards import new_shard, photos_as_jpeg
from duogen_core.data.web.engine import Engine
from duogen_core.data.web.page import Input
from duogen_core.data.web.plan import Run, Shard


def do_shard(run: Run, shard: Shard, engine: Engine, inputs: Sequence[Input]) -> dict[str, Any]:
    """Writes the shard's files; what it found, in figures."""
    kept = pictures = 0
    encode = photos_as_jpeg(engine.preset.picture["photo_quality"])
    with new_shard(run, shard.number, "pages") as new:
        for number, name in enumerate(shard.pages, shard.first):
            outcome = engine.page(inputs[shard.input], name)
            new.log({"number": number, **outcome.log()})
            begun = time.perf_counter()
            if outcome.document is not None:
                new.add(f"{number:08d}", outcome.document, encode)
                kept, pictures = kept + 1, pictures + len(outcome.document.pictures)
            new.seconds.update(outcome.seconds)
            new.seconds["write"] += time.perf_counter() - begun
    return {"shard": shard.number, "pages": len(shard.pages), "kept": kept, "pictures": pictures}
