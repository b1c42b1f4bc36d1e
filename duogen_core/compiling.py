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
So does a training whose gradients are others compiled: torch 2.13's compiler for CPUs silently lost those of a whole
VAE at one size of batch, so each function's first call with gradients is taken both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.experimental._config
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from duogen_core.errors import first_line, is_out_of_memory

GRAPHS = 32  # of one method: torch's own limit is 8, which a conversation with batches of all kinds may reach

Piece = tuple[nn.Module, str]  # a module and its method's name


class Compiled:
    def __init__(
        self, pieces: Iterable[Piece], say: Callable[[str], None], backend: Any = "inductor", *, gradients: bool = True
    ) -> None:
        """gradients: whether they are compared; not where they are computed again on the way back (checkpointing) or
        left to chance (dropout)."""
        config, self.say, self.gradients = torch._dynamo.config, say, gradients
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        setattr(config, limit, max(getattr(config, limit), GRAPHS))
        # Or a count of tokens that happens to equal a width would be taken for it, and another count compile anew.
        torch.fx.experimental._config.use_duck_shape = False
        functions: dict[Callable, Callable] = {}
        self.compared: set[Callable] = set()
        self.pieces = list(pieces)
        for module, name in self.pieces:
            plain = getattr(type(module), name)
            if plain not in functions:
                functions[plain] = torch.compile(plain, dynamic=True, backend=backend)
            setattr(module, name, self._trying(module, plain, functions[plain]))

    def _trying(self, module: nn.Module, plain: Callable, compiled: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                if self._compares(plain, args, kwargs) and not same_gradients(module, plain, compiled, args, kwargs):
                    self.stop()
                    self.say(f"Compiled, {plain.__qualname__} has other gradients; going on without compiling.")
                    return plain(module, *args, **kwargs)
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

    def _compares(self, plain: Callable, args: Any, kwargs: Any) -> bool:
        """Once a function: at its first call with gradients."""
        if not self.gradients or plain in self.compared or not torch.is_grad_enabled():
            return False
        if not any(isinstance(each, Tensor) and each.requires_grad for each in tree_leaves((args, kwargs))):
            return False
        self.compared.add(plain)
        return True

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


LIKE = 0.9  # cosine of the angle between gradients that are the same but for rounding; bfloat16 has 0.96 and more


def same_gradients(module: nn.Module, plain: Callable, compiled: Callable, args: Any, kwargs: Any) -> bool:
    """Whether both ways have the same gradients, to the inputs and the weights, of one random sum of what comes out."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    found = []
    for function in (plain, compiled):
        given = tree_map(_leaf, (args, kwargs))
        inputs = [each for each in tree_leaves(given) if isinstance(each, Tensor) and each.requires_grad]
        outs = [each for each in tree_leaves(function(module, *given[0], **given[1])) if isinstance(each, Tensor)]
        outs = [each for each in outs if each.requires_grad]
        random = torch.Generator(outs[0].device).manual_seed(0)
        sums = [torch.randn(each.shape, generator=random, device=each.device, dtype=torch.float32) for each in outs]
        sums = [each.to(out.dtype) for each, out in zip(sums, outs, strict=True)]
        found.append(torch.autograd.grad(outs, [*inputs, *weights], sums, allow_unused=True))
    return all(_alike(one, other) for one, other in zip(*found, strict=True))


def _leaf(each: Any) -> Any:
    """A tensor apart from the graph that it came from."""
    return each.detach().requires_grad_(each.requires_grad) if isinstance(each, Tensor) else each


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    one, other = one.flatten().double(), other.flatten().double()
    length = one.norm() * other.norm()
    return bool(one @ other >= LIKE * length) if length > 0 else bool(one.norm() == other.norm())


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
