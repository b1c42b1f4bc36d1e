"""Caches the results of an answer's steps for the next run, beside ComfyUI's own cache.

ComfyUI's default cache (since about 0.23, on every machine with less than 128 GB of memory) drops after each node
whatever the running prompt has not asked for yet. The nodes of a finished step are asked for only when the step before
them has run; by then they are gone, and a new seed for image 5 would draw the first four again. So this is a cache
provider, ComfyUI's public interface for this (comfy_api.latest Caching), which is asked where ComfyUI's cache has
nothing. It uses ComfyUI's own key of a node and its inputs, answers only for nodes that DuoGen Interleave or the loop
put in (the user's own nodes in the loop among them), and stores plain values, never a model.

In: `watch(owner, nodes)` at every expansion. The results of the last two runs stay, so that going back to the seed
before is free as well. They go with the language model that wrote the answer (or the first round of any other writer,
or the request that a plan is for): when that leaves ComfyUI's cache, by /free or another workflow, they leave too.
LIMIT bounds their size.
The classic cache and --cache-none never ask a provider.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import comfy.model_management as mm
import numpy as np
import torch
from comfy_api.latest import Caching

LIMIT = min(2**30, mm.total_ram * 2**20 / 16)  # bytes for one language model
# These output models, or cost less to run than to store.
NOT_CACHED = {"DuoGenGiven", "DuoGenListEntry", "DuoGenInterleaveStep", "DuoGenLoopRound", "DuoGenLoopNext"}


class ResultCache:
    """Results by ComfyUI's key that this run or the one before used. When it is full, those of the one before go."""

    def __init__(self, limit: float = LIMIT, documents: bool = True) -> None:
        """documents: whether results with documents in them are kept, too."""
        self.limit, self.run, self.documents = limit, 0, documents
        self.results: dict[str, Caching.CacheValue] = {}
        self.runs: dict[str, int] = {}  # which run used it last
        self.sizes: dict[str, int] = {}

    def add(self, key: str, value: Caching.CacheValue) -> None:
        size = plain_bytes(value.outputs, set())
        if size is None or not (self.documents or without_documents(value.outputs)):
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


class ResultCacheProvider(Caching.CacheProvider):
    def __init__(self) -> None:
        self.caches: weakref.WeakKeyDictionary[Any, ResultCache] = weakref.WeakKeyDictionary()
        self.watched: dict[str, ResultCache] = {}
        self.when_prompt_ends: list[Callable[[str], None]] = []  # each gets the id of the prompt

    def watch(self, owner: Any, nodes: Iterable[str], by: str | None = None) -> None:
        """Caches results of these nodes, which were just put into the running graph.

        owner: the `mllm` that writes the answer, the first round of any other writer, or `owner_for` a request. by: the
        node that put them in; where it is watched itself, they share its cache.
        """
        # A document holds the request that owns these results, and would keep it, and so itself, for ever.
        documents = not isinstance(owner, Owner)
        cache = self.watched.get(by) or self.caches.setdefault(owner, ResultCache(documents=documents))
        self.watched.update(dict.fromkeys(nodes, cache))

    def should_cache(self, context: Caching.CacheContext, value: Caching.CacheValue | None = None) -> bool:
        cache = self.watched.get(context.node_id)
        if cache is None or context.class_type in NOT_CACHED:
            return False
        if value is None:
            return True
        # Stored at once: on_store runs as a task, and a prompt whose nodes never wait ends before its turn comes.
        cache.add(context.cache_key_hash, value)
        return False

    async def on_lookup(self, context: Caching.CacheContext) -> Caching.CacheValue | None:
        return self.watched[context.node_id].get(context.cache_key_hash)

    async def on_store(self, context: Caching.CacheContext, value: Caching.CacheValue) -> None:
        """Never called: see should_cache."""

    def on_prompt_end(self, prompt_id: str) -> None:
        for cache in {id(cache): cache for cache in self.watched.values()}.values():
            cache.end_run()
        self.watched.clear()
        for call in self.when_prompt_ends:
            call(prompt_id)


PROVIDER = ResultCacheProvider()


class Owner:
    """Owns results as long as another object lives."""


_owners: dict[int, Owner] = {}


def owner_for(value: Any) -> Owner:
    """Returns the owner that lives as long as this very object, which may equal others or have no hash."""
    if id(value) not in _owners:
        _owners[id(value)] = Owner()
        weakref.finalize(value, _owners.pop, id(value), None)
    return _owners[id(value)]


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


def without_documents(outputs: Iterable[Any]) -> bool:
    from duogen_core.document import Document

    values = (value for output in outputs for value in (output if isinstance(output, (list, tuple)) else (output,)))
    return not any(isinstance(value, Document) for value in values)


def _once(key: int, size: int, seen: set[int]) -> int:
    if key in seen:
        return 0
    seen.add(key)
    return size
