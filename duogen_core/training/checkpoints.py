"""The checkpoint of a run: written whole or not at all, and read back exactly.

<run folder>/checkpoint/: <name>.safetensors, <name>.ema.safetensors, <name>.optimizer.safetensors and state.json (step,
seconds, RNG states). No pickle. A checkpoint is written beside the old one, as checkpoint.new, and swapped in by two
renames; a kill at any moment leaves a whole one. Exports are written in the same way. Tensors that FSDP shards are
gathered, so a run can go on with another number of processes.

Not torch.distributed.checkpoint: its index is a pickle, and nothing here reads one. Its safetensors writer has none:
94 million sharded parameters on two processes it took 2.3 s and 370 MB more memory, gathering 3.4 s and 400 MB.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from duogen_core.errors import first_line
from duogen_core.files import replace_file
from duogen_core.training.configuration import TrainingError
from duogen_core.training.distributed import gathered_state, sharded_like

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Modules = Mapping[str, nn.Module]
Optimizers = Mapping[str, torch.optim.Optimizer]


class Average(Protocol):
    """What a checkpoint keeps of an average of weights (run.Ema)."""

    shadow: dict[str, torch.Tensor]
    updates: int


def checkpoint_folder(run_folder: Path) -> Path:
    folder, old = run_folder / "checkpoint", run_folder / "checkpoint.old"
    return old if not folder.exists() and old.exists() else folder  # a kill between the two renames leaves the old one


def has_checkpoint(run_folder: Path) -> bool:
    return (checkpoint_folder(run_folder) / "state.json").exists()


# -- folders written whole --------------------------------------------------------------------------------------------


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, <folder>.new; it takes the place of `folder`, if any, when the block ends well."""
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    swap(new, folder)


def swap(new: Path, folder: Path) -> None:
    """Puts `new` in the place of `folder`; a kill between the two renames leaves <folder>.old."""
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():  # else `old`, if there, is all there is
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def finish_swap(folder: Path) -> None:
    """After a kill: what is half written goes, and what was to be replaced has its name again."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(folder.with_name(f"{folder.name}.new"), ignore_errors=True)
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)


# -- writing ----------------------------------------------------------------------------------------------------------


def write_checkpoint(
    run_folder: Path,
    state: Mapping[str, Any],
    modules: Modules,
    emas: Mapping[str, Average],
    optimizers: Optimizers,
    *,
    main: bool = True,
) -> None:
    """All processes must come (FSDP's tensors are gathered); only the main one writes."""
    new = run_folder / "checkpoint.new"
    state = {"format": "duogen-checkpoint", "version": 1, **state, "ema": {}, "optimizers": {}}
    state["ema"] = {name: ema.updates for name, ema in emas.items()}
    try:
        if main:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
        for name, tensors in _files(modules, emas, optimizers, state["optimizers"]):
            gathered = gathered_state(tensors, keep=main)
            if main:
                save_tensors(gathered, new / f"{name}.safetensors")
        if main:
            write_text(new / "state.json", json.dumps(state))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        kept = "The last one stays as it was" if has_checkpoint(run_folder) else "There is none before it"
        raise TrainingError(
            f"The checkpoint of step {state['step']} cannot be written to {run_folder}: {reason(error)}. {kept}; free "
            "some space (twice the size of a checkpoint is needed) and give the same command again to go on from there."
        ) from error
    if main:
        swap(new, run_folder / "checkpoint")


def amend_state(run_folder: Path, **values: Any) -> None:
    """Writes `values` into the checkpoint's state.json, beside what stands there."""
    path = checkpoint_folder(run_folder) / "state.json"
    write_text(path, json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}))


def _files(
    modules: Modules, emas: Mapping[str, Average], optimizers: Optimizers, numbers: dict[str, Any]
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """What goes into each file; what an optimizer keeps besides tensors goes into `numbers`."""
    for name, module in modules.items():
        yield name, module.state_dict()
    for name, ema in emas.items():
        yield f"{name}.ema", ema.shadow
    for name, optimizer in optimizers.items():
        entries = optimizer.state_dict()["state"]
        flat = {f"{i}.{k}": v for i, entry in entries.items() for k, v in entry.items()}
        tensors = {k: v for k, v in flat.items() if isinstance(v, torch.Tensor)}
        numbers[name] = {"numbers": {k: v for k, v in flat.items() if k not in tensors}}
        yield f"{name}.optimizer", tensors


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    found, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory, as tied embeddings do; all others are written without a copy
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    save_file(found, path, metadata={"format": "pt"})


def write_text(path: Path, text: str) -> None:
    replace_file(path, text.encode())


def reason(error: Exception) -> str:
    """What the system said, without numbers: "No space left on device"."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return text.rsplit("error: ", 1)[-1].split(" (os error")[0].rstrip(".")


def is_full(error: Exception) -> bool:
    """No room on the disk, in the quota, or for a file of that size."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return isinstance(error, SafetensorError) and any(f"(os error {number})" in str(error) for number in FULL)


# -- reading ----------------------------------------------------------------------------------------------------------


def read_checkpoint(
    run_folder: Path, modules: Modules, emas: Mapping[str, Average], optimizers: Optimizers
) -> dict[str, Any]:
    """Fills modules, averages and optimizers; returns state.json. What does not fit raises a TrainingError."""
    folder = checkpoint_folder(run_folder)
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        for name, module in modules.items():
            pattern, saved = module.state_dict(), load_file(folder / f"{name}.safetensors")
            module.load_state_dict({k: sharded_like(v, pattern[k]) if k in pattern else v for k, v in saved.items()})
        for name, ema in emas.items():
            saved = load_file(folder / f"{name}.ema.safetensors")
            ema.shadow = {k: sharded_like(saved[k].to(v), v) for k, v in ema.shadow.items()}
            ema.updates = state["ema"][name]
        for name, optimizer in optimizers.items():
            flat: dict[str, Any] = load_file(folder / f"{name}.optimizer.safetensors")
            _fill(optimizer, flat | state["optimizers"][name]["numbers"])
    except (OSError, LookupError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"The checkpoint in {folder} does not fit this run: {_cause(error)} Resume needs the same "
            "model settings; give another out= folder to start anew."
        ) from error
    return state


def _cause(error: Exception) -> str:
    """load_state_dict says what is wrong from its second line on."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if lines[0].startswith("Error(s) in loading") else lines[0]


def _fill(optimizer: torch.optim.Optimizer, flat: Mapping[str, Any]) -> None:
    """Moments from the file, settings (learning rates, ...) from the config."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        number, field = key.split(".", 1)
        if field == "momentum" and type(optimizer).__module__.startswith("torch."):
            field = "momentum_buffer"  # runs begun with a Muon of our own called torch's that
        pattern = parameters[int(number)]
        if isinstance(value, torch.Tensor) and value.shape == pattern.shape:
            value = sharded_like(value, pattern)
        entries.setdefault(int(number), {})[field] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


# -- random generators ------------------------------------------------------------------------------------------------


def rng_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    state = {"python": [version, list(numbers), gauss], "torch": _encode(torch.get_rng_state())}
    if torch.cuda.is_available():
        state["cuda"] = [_encode(s) for s in torch.cuda.get_rng_state_all()]
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(_decode(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_decode(s) for s in state["cuda"]])


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """For scores and samples in the middle of a run: the model in eval mode (LoRA has dropout), random generators that
    nothing in the run draws from. Afterwards both are as before, so a look at the model changes nothing it learns."""
    modes = {module: module.training for module in model.modules()}
    before = rng_state()
    model.eval()
    torch.manual_seed(0)
    random.seed(0)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        set_rng_state(before)


def _encode(tensor: torch.Tensor) -> str:
    return base64.b64encode(bytes(tensor.tolist())).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
