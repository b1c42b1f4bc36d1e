"""What the steps of an answer gave out, kept for the next run beside ComfyUI's own cache.

ComfyUI's default cache drops, after each node, whatever the running prompt has not asked for yet, on every machine with
less than 128 GB of memory. The nodes of a finished step are asked for only when the step before them has run, so
they are gone by then, and a reroll of picture 5 would draw the first four again. This is a cache provider, ComfyUI's
own way in (comfy_api.latest Caching): it is asked where the cache has nothing. It goes by ComfyUI's key of the node and
its inputs, answers for nothing but nodes that DuoGen Interleave or the loop put in (the user's own in the loop among
them), and keeps plain values only, never a model.

In: `watch(owner, nodes)` at every expansion. Kept is what the last two runs used, so that going back to the seed before
is free as well, and as long as the language model it was written with (or the first round of any other writer) stays in
ComfyUI's cache: /free, or a workflow that pushes it out, takes it along. LIMIT bounds its size.
The classic cache and --cache-none never ask.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import comfy.model_management as mm
import numpy as np
import torch
from comfy_api.latest import Caching

from ..definitions import given
from ..steps import unfinished

LIMIT = min(2**30, mm.total_ram * 2**20 / 16)  # bytes for one language model
# These give out models, or cost less to run than to keep.
NEVER = {"DuoGenGiven", "DuoGenListEntry", "DuoGenInterleaveStep", "DuoGenLoopRound", "DuoGenLoopNext"}


class Kept:
    """Results by ComfyUI's key: those that this run and the one before used. Full: those of the one before go first."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.limit, self.run = limit, 0
        self.results: dict[str, Caching.CacheValue] = {}
        self.runs: dict[str, int] = {}  # which run used it last
        self.sizes: dict[str, int] = {}

    def add(self, key: str, value: Caching.CacheValue) -> None:
        size = plain_bytes(value.outputs, set())
        if size is None:
            return
        self.drop([key])
        for old in [key for key in self.results if self.runs[key] < self.run]:
            if sum(self.sizes.values()) + size <= self.limit:
                break
            self.drop([old])
        if sum(self.sizes.values()) + size <= self.limit:
            self.results[key], self.runs[key], self.sizes[key] = value, self.run, size

    def get(self, key: str) -> Caching.CacheValue | None:
        if key in self.results:
            self.runs[key] = self.run
        return self.results.get(key)

    def end_run(self) -> None:
        self.drop([key for key, run in self.runs.items() if run < self.run - 1])
        self.run += 1

    def drop(self, keys: Iterable[str]) -> None:
        for entries in (self.results, self.runs, self.sizes):
            for key in keys:
                entries.pop(key, None)


class KeptResults(Caching.CacheProvider):
    def __init__(self) -> None:
        self.kept: weakref.WeakKeyDictionary[Any, Kept] = weakref.WeakKeyDictionary()
        self.watched: dict[str, Kept] = {}

    def watch(self, owner: Any, nodes: Iterable[str], by: str | None = None) -> None:
        """The nodes that were just put into the running graph. owner: the `mllm` that writes the answer; any other
        writer's first round. by: the node that put them in; what it was put in for itself goes on with them."""
        kept = self.watched.get(by) or self.kept.setdefault(owner, Kept())
        self.watched.update(dict.fromkeys(nodes, kept))

    def should_cache(self, context: Caching.CacheContext, value: Caching.CacheValue | None = None) -> bool:
        kept = self.watched.get(context.node_id)
        if kept is None or context.class_type in NEVER:
            return False
        if value is None:
            return True
        # Kept here and now: on_store is a task, and a prompt of nodes that never wait ends before it gets its turn.
        kept.add(context.cache_key_hash, value)
        return False

    async def on_lookup(self, context: Caching.CacheContext) -> Caching.CacheValue | None:
        return self.watched[context.node_id].get(context.cache_key_hash)

    async def on_store(self, context: Caching.CacheContext, value: Caching.CacheValue) -> None:
        """Never asked for: see should_cache."""

    def on_prompt_end(self, prompt_id: str) -> None:
        for kept in {id(kept): kept for kept in self.watched.values()}.values():
            kept.end_run()
        self.watched.clear()
        given.forget()
        unfinished.end_run(prompt_id)


PROVIDER = KeptResults()


def plain_bytes(value: Any, seen: set[int]) -> int | None:
    """Bytes of a value that is made of tensors, arrays, texts, numbers and dataclasses of these, each thing counted
    once; None when there is anything else in it."""
    if value is None or isinstance(value, (bool, int, float)):
        return 0
    if isinstance(value, str):
        return len(value)
    if isinstance(value, torch.Tensor):
        return _once(value.untyped_storage().data_ptr(), value.untyped_storage().nbytes(), seen)
    if isinstance(value, np.ndarray):
        return _once(id(value), value.nbytes, seen)
    if isinstance(value, Mapping):
        parts: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        return None
    sizes = [plain_bytes(part, seen) for part in parts]
    return None if None in sizes else sum(sizes)


def _once(key: int, size: int, seen: set[int]) -> int:
    if key in seen:
        return 0
    seen.add(key)
    return size
