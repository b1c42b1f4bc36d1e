"""torch.compile of what a model repeats: the pieces between two attentions of a DiT's blocks, an MLLM's norms and MLPs;
where an MLLM trains, its whole decoder layers.

In:  modules, and the names of their methods that are functions of tensors alone. Out: the same modules, whose methods
     are compiled at their first call; `stop` gives them back as they were.

Regional: a method is compiled once for all blocks, whose weights are its inputs, and for tensors of any size
(dynamic=True), so that neither 28 blocks nor another image size compile anew. What changes the graph itself does: one
row or several, finished frames or none, the last block (6 graphs a method and less, tests/core/test_compiling.py).
Attention is left out where a model answers: its own kernel is the best there is, and what surrounds it (caches, buffers
that grow) is Python. A training has no cache, so there a decoder layer is one piece.
Where compiling fails (no C++ compiler, no Triton, a bug of a backend), everything goes on uncompiled, and says so once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.experimental._config
from torch import nn

from duogen_core.errors import first_line, is_out_of_memory

GRAPHS = 32  # of one method: torch's own limit is 8, which a conversation with batches of all kinds may reach

Piece = tuple[nn.Module, str]  # a module and its method's name


class Compiled:
    def __init__(self, pieces: Iterable[Piece], say: Callable[[str], None], backend: Any = "inductor") -> None:
        config, self.say = torch._dynamo.config, say
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        setattr(config, limit, max(getattr(config, limit), GRAPHS))
        # Or a count of tokens that happens to equal a width would be taken for it, and another count compile anew.
        torch.fx.experimental._config.use_duck_shape = False
        functions: dict[Callable, Callable] = {}
        self.pieces = list(pieces)
        for module, name in self.pieces:
            plain = getattr(type(module), name)
            if plain not in functions:
                functions[plain] = torch.compile(plain, dynamic=True, backend=backend)
            setattr(module, name, self._trying(module, plain, functions[plain]))

    def _trying(self, module: nn.Module, plain: Callable, compiled: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return compiled(module, *args, **kwargs)
            except Exception as error:  # a backend raises whatever it likes
                if is_out_of_memory(error):
                    raise
                failed = getattr(error, "inner_exception", error)  # torch's own says only that a backend raised
            out = plain(module, *args, **kwargs)  # raises by itself where the fault was not the compiler's
            if self.pieces:
                self.stop()
                self.say(f"Compiling failed ({first_line(failed)[:200]}); going on without it, with the same results.")
            return out

        return call

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While open, everything runs uncompiled: for what would compile too many graphs, such as a growing cache."""
        kept = [(module, name, module.__dict__.pop(name)) for module, name in self.pieces]
        try:
            yield
        finally:
            for module, name, call in kept:
                setattr(module, name, call)

    def stop(self) -> None:
        """From now on everything runs uncompiled."""
        for module, name in self.pieces:
            module.__dict__.pop(name, None)
        self.pieces = []


def pieces_of_dit(dit: nn.Module) -> Iterator[Piece]:
    """Yields the methods that a block's class names in `compilable`."""
    for module in dit.modules():
        for name in getattr(type(module), "compilable", ()):
            yield module, name


def pieces_of_mllm(model: nn.Module) -> Iterator[Piece]:
    """Yields the norms and MLPs of the decoder layers."""
    for name, module in model.get_decoder().named_modules():
        if name.startswith("layers.") and name.rpartition(".")[2].endswith(("norm", "mlp")):
            yield module, "forward"


def layers_of_mllm(model: nn.Module) -> Iterator[Piece]:
    """Yields the decoder layers, for a training: without a cache."""
    for layer in model.get_decoder().layers:
        yield layer, "forward"
