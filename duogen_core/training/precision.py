"""In what precision a training computes: bfloat16 in the products, and the attention that is fast there.

with mixed_precision(device): loss = model(...)
with bf16_products(): train(config)                             around a whole run on a CPU
checkpoint(block, x, context_fn=recomputing(device))            on the way back as on the way there
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def mixed_precision(device: torch.device, enabled: bool = True) -> Iterator[None]:
    """Autocast to bfloat16. On CPUs with AVX512-BF16 matrix products are 6.5 times as fast as in float32 (measured,
    Zen 5), and the fused attention is slow backwards: with plain products a stage-2 step is 1.07 to 1.13 times as fast
    (bundled size, two cores, alternating), in float32 up to 1.37."""
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), attention_backends(device):
        yield


@contextmanager
def bf16_products(enabled: bool = True) -> Iterator[None]:
    """Lets a CPU compute float32 matrix products in bfloat16, as Muon's iteration can do with.

    The setting is torch's own, for the whole process: on a CPU with AMX everything else would change in the third digit
    from then on, so it is put back.
    """
    before = torch.get_float32_matmul_precision()
    if enabled:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def attention_backends(device: torch.device) -> AbstractContextManager[None]:
    """Leaves the choice to torch on a card, which knows the best one there (cuDNN, flash); on a CPU, plain products."""
    return sdpa_kernel([SDPBackend.MATH]) if device.type == "cpu" else nullcontext()


def recomputing(device: torch.device) -> Callable[[], tuple[AbstractContextManager, AbstractContextManager]]:
    """`context_fn` of torch.utils.checkpoint, for what is computed inside `mixed_precision`: on the way back, outside
    of it, attention must be computed as it was."""
    return lambda: (nullcontext(), attention_backends(device))
