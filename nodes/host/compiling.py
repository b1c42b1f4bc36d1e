"""ComfyUI's torch.compile on our MODEL: the pieces between two attentions, as on the command line.

In: a patcher on which a node such as TorchCompileModel has set `set_torch_compile_wrapper`. Out: for the length of a
sampling run, the blocks' methods that are functions of tensors alone run compiled, once for all blocks and any size.

That wrapper compiles the whole model, Python and all: what is prepared once an image, which frames are known already,
every block on its own. So the model as a whole is kept from the compiler, and its pieces are given to it instead.
Measured with 2 blocks over seven images, with another in view and without: 14 functions compiled anew as a whole, 7 in
pieces; these do not grow with the number of blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrappersMP

from duogen_core.errors import DuoGenError

from .lora import report

if TYPE_CHECKING:
    import comfy.model_patcher

COMPILE_KEY, COMPILE_KWARGS = "torch.compile", "torch_compile_kwargs"  # comfy_api/torch_helpers/torch_compile.py
BACKENDS = ("inductor", "eager", "aot_eager")


def begin_compiled(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Before a sampling run: compiles what this patcher's torch.compile node wants compiled, if there is one."""
    end_compiled(patcher)
    if not patcher.get_wrappers(WrappersMP.APPLY_MODEL, COMPILE_KEY):
        return
    wanted: dict[str, Any] = patcher.model_options.get(COMPILE_KWARGS) or {}
    backend = wanted.get("backend") or "inductor"
    if isinstance(backend, str) and backend not in BACKENDS:
        raise DuoGenError(
            f"This MODEL cannot be compiled with the backend {backend!r}, which records calls of one size, while each "
            "image that is in view changes the sizes here; choose inductor in Torch Compile Model."
        )
    import torch

    from duogen_core.compiling import Compiled, pieces_of_dit

    dit = patcher.model.diffusion_model
    dit.compiled = Compiled(pieces_of_dit(dit), report, backend)
    dit.forward = torch.compiler.disable(dit.forward)


def end_compiled(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """After the run. What was compiled stays known to torch, for the next one."""
    dit = patcher.model.diffusion_model
    if dit.compiled is not None:
        dit.compiled.stop()
        dit.compiled = None
        del dit.forward
