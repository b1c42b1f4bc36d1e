"""The checkpoint of a run: written whole or not at all, and read back exactly.

<run folder>/checkpoint/: state.json (step, seconds, RNG states, what was trained) and tensors in safetensors files; no
pickle. One process writes <name>.safetensors, <name>.ema.safetensors and <name>.optimizer.safetensors. Several write
shard-0000k-model-00001-of-00001.safetensors, each what it holds, by torch.distributed.checkpoint: copied to the host's
memory, then written by a thread while the training goes on. Either form is read by any number of processes, each
reading the rows that are its own.

A checkpoint is written beside the old one, as checkpoint.new, and swapped in by two renames when all processes have
written; a kill at any moment leaves a whole one. Exports are written in the same way.

torch.distributed.checkpoint has two kinds of storage. The usual one keeps its index in a pickle (`.metadata`), which
nothing here reads. The one for Hugging Face's files keeps what it must know (which rows a file holds) in the headers of
the safetensors files, which is the one used here.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import random
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from duogen_core.errors import first_line
from duogen_core.files import replace_file
from duogen_core.training.configuration import TrainingError
from duogen_core.training.distributed import Processes, aliases_of, gathered_state, is_sharded

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Modules = Mapping[str, nn.Module]
Optimizers = Mapping[str, torch.optim.Optimizer]


class Average(Protocol):
    """What a checkpoint keeps of an average of weights (average.Ema)."""

    shadow: dict[str, torch.Tensor]
    updates: int
    pending: float


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


class CheckpointWriter:
    """Writes the checkpoints of a run, one after another; those of several processes in the background.

    All processes must call `save` and `wait` together; `poll` is free.
    """

    def __init__(self, run_folder: Path, processes: Processes) -> None:
        self.run_folder, self.processes = run_folder, processes
        self._running: Any = None  # the future of what is being written
        self._state: dict[str, Any] = {}  # and its state.json

    def save(
        self, state: Mapping[str, Any], modules: Modules, emas: Mapping[str, Average], optimizers: Optimizers
    ) -> None:
        """Returns when one process has written; of several, when the tensors are copied and may change again."""
        self.wait()
        main, new, sharded = self.processes.main, self.run_folder / "checkpoint.new", self.processes.count > 1
        self._state = {"format": "duogen-checkpoint", "version": 1, **state, "ema": {}, "optimizers": {}}
        self._state["ema"] = {name: ema.updates for name, ema in emas.items()}
        self._state["ema_pending"] = {name: ema.pending for name, ema in emas.items()}
        storage = hf_storage() if sharded else None
        try:
            if main:
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
            self.processes.wait()
            files = _files(modules, emas, optimizers, self._state["optimizers"])
            if storage is None:
                for name, tensors in files:
                    whole = gathered_state(tensors, keep=main)
                    if main:
                        save_tensors(whole, new / f"{name}.safetensors")
            else:
                from torch.distributed import checkpoint as dcp

                self._state["sharded"] = True
                tensors = {f"{file}/{name}": tensor for file, found in files for name, tensor in found.items()}
                writer = storage.HuggingFaceStorageWriter(str(new), save_distributed=True)
                group = self.processes.background_group
                self._running = dcp.async_save(tensors, storage_writer=writer, process_group=group)
        except (OSError, SafetensorError) as error:
            self._failed(error)
        if storage is None:
            self._swap_in()

    def poll(self) -> None:
        """Swaps in what is written by now."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Until what is being written is written."""
        running, self._running = self._running, None
        if running is None:
            return
        from torch.distributed.checkpoint.api import CheckpointException  # which is no Exception

        try:
            running.result()
        except (Exception, CheckpointException) as error:  # of whichever process failed first; all get it
            failures = getattr(error, "failures", {})
            self._failed(next((cause for cause, _ in failures.values()), error))
        self._swap_in()

    def _swap_in(self) -> None:
        if self.processes.main:
            new = self.run_folder / "checkpoint.new"
            try:
                write_text(new / "state.json", json.dumps(self._state))
            except OSError as error:
                self._failed(error)
            swap(new, self.run_folder / "checkpoint")

    def _failed(self, error: BaseException) -> NoReturn:
        if self.processes.main:
            shutil.rmtree(self.run_folder / "checkpoint.new", ignore_errors=True)
        kept = "The last one stays as it was" if has_checkpoint(self.run_folder) else "There is none before it"
        raise TrainingError(
            f"The checkpoint of step {self._state['step']} cannot be written to {self.run_folder}: {reason(error)}. "
            f"{kept}; free some space (twice the size of a checkpoint is needed) and give the same command again to go "
            "on from there."
        ) from error


def hf_storage() -> Any:
    """torch's storage of distributed checkpoints in safetensors files; None where torch has none, or cannot read what
    several processes wrote: then the main process gathers and writes whole tensors."""
    try:
        from torch.distributed.checkpoint import hf_storage
    except ImportError:
        return None
    return hf_storage if "save_distributed" in signature(hf_storage.HuggingFaceStorageWriter).parameters else None


def amend_state(run_folder: Path, **values: Any) -> None:
    """Writes `values` into the checkpoint's state.json, beside what stands there."""
    path = checkpoint_folder(run_folder) / "state.json"
    write_text(path, json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}))


def own_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's own tensors, to read from and to write to; tied ones once."""
    aliases = aliases_of(module)
    return {name: tensor.detach() for name, tensor in module.state_dict().items() if name not in aliases}


def _files(
    modules: Modules, emas: Mapping[str, Average], optimizers: Optimizers, numbers: dict[str, Any]
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """What goes into each file; what an optimizer keeps besides tensors goes into `numbers`.

    An optimizer's tensors have the names of their parameters, such as dit.proj_out.weight.exp_avg.
    """
    for name, module in modules.items():
        yield name, own_state(module)
    for name, ema in emas.items():
        yield f"{name}.ema", ema.shadow
    names = _parameter_names(modules)
    for name, optimizer in optimizers.items():
        of = {number: names.get(id(parameter), str(number)) for number, parameter in enumerate(_parameters(optimizer))}
        entries = optimizer.state_dict()["state"]
        flat = {f"{of[number]}.{k}": v for number, entry in entries.items() for k, v in entry.items()}
        tensors = {k: v for k, v in flat.items() if isinstance(v, torch.Tensor)}
        numbers[name] = {"numbers": {k: v for k, v in flat.items() if k not in tensors}}
        yield f"{name}.optimizer", tensors


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """By number, as its state_dict counts them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _parameter_names(modules: Modules) -> dict[int, str]:
    return {id(p): f"{name}.{each}" for name, module in modules.items() for each, p in module.named_parameters()}


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
    run_folder: Path,
    modules: Modules,
    emas: Mapping[str, Average],
    optimizers: Optimizers,
    processes: Processes | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """Fills modules, averages and optimizers; returns state.json. What does not fit raises a TrainingError.

    processes: None for one. model: what is trained, in words; a checkpoint of another one is refused with both named.
    """
    folder = checkpoint_folder(run_folder)
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if model and state.get("model", model) != model:
            raise TrainingError(
                f"The checkpoint in {folder} is of {state['model']}, and this run trains {model}. Start it with the "
                "models it was begun with, or give another out= folder to start anew."
            )
        files = _sharded_shapes(folder) if state.get("sharded") else _whole_shapes(folder)
        wanted: dict[str, dict[str, torch.Tensor]] = {name: own_state(module) for name, module in modules.items()}
        wanted |= {f"{name}.ema": dict(ema.shadow) for name, ema in emas.items()}
        aliases = {name: aliases_of(module) for name, module in modules.items()}  # older checkpoints have these, too
        for name, tensors in wanted.items():
            _check_fits(files[name], tensors, aliases[name.removesuffix(".ema")])
        moments = {}
        for name, optimizer in optimizers.items():
            file = f"{name}.optimizer"
            moments[name] = _optimizer_entries(optimizer, files.get(file, {}), modules)
            wanted[file] = {key: tensor for key, (_, _, tensor) in moments[name].items()}
        if state.get("sharded"):
            _read_shards(folder, wanted, processes)
        else:
            for name, tensors in wanted.items():
                _read_rows(folder / f"{name}.safetensors", tensors)
        for name, ema in emas.items():
            ema.updates = state["ema"][name]
            ema.pending = state.get("ema_pending", {}).get(name, 1.0)  # older ones took in every step at once
        for name, optimizer in optimizers.items():
            _fill(optimizer, moments[name].values(), state["optimizers"][name]["numbers"], modules)
    except TrainingError:
        raise
    except (OSError, LookupError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"The checkpoint in {folder} does not fit this run: {first_line(error)}. Resume needs the same "
            "model settings; give another out= folder to start anew."
        ) from error
    return state


Shapes = dict[str, tuple[int, ...]]


def _whole_shapes(folder: Path) -> dict[str, Shapes]:
    """{file: {tensor: shape}}, from the headers."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            found[path.stem] = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def _sharded_shapes(folder: Path) -> dict[str, Shapes]:
    storage = hf_storage()
    if storage is None:
        raise RuntimeError(f"it was written by several processes, which torch {torch.__version__} cannot read.")
    found: dict[str, Shapes] = {}
    metadata = storage.HuggingFaceStorageReader(str(folder)).read_metadata()
    for key, entry in metadata.state_dict_metadata.items():
        file, _, name = key.partition("/")
        found.setdefault(file, {})[name] = tuple(entry.size)
    return found


def _check_fits(found: Shapes, wanted: Mapping[str, torch.Tensor], aliases: Mapping[str, str]) -> None:
    """Names the first tensor that is of another shape, missing or too many."""
    for name, tensor in wanted.items():
        if name not in found:
            raise RuntimeError(f"it has no key {name}, of shape {list(tensor.shape)}.")
        if found[name] != tuple(tensor.shape):
            raise RuntimeError(f"size mismatch for {name}: {list(found[name])} there, {list(tensor.shape)} here.")
    more = next((name for name in found if name not in wanted and name not in aliases), None)
    if more is not None:
        raise RuntimeError(f"it also has the key {more}, of shape {list(found[more])}.")


def _read_rows(path: Path, wanted: Mapping[str, torch.Tensor]) -> None:
    """Fills tensors in place from a file of whole ones; of a sharded tensor, only the rows that are here are read."""
    if not path.exists() and not wanted:
        return
    with torch.no_grad(), safe_open(str(path), framework="pt") as file:
        for name, tensor in wanted.items():
            if not is_sharded(tensor):
                tensor.copy_(file.get_tensor(name))
                continue
            local = tensor.to_local()
            rows = -(-len(tensor) // tensor.device_mesh.size())
            first = min(len(tensor), rows * tensor.device_mesh.get_local_rank())
            local.copy_(file.get_slice(name)[first : first + len(local)])


def _read_shards(folder: Path, wanted: Mapping[str, dict[str, torch.Tensor]], processes: Processes | None) -> None:
    """Fills tensors in place from what any number of processes wrote."""
    from torch.distributed import checkpoint as dcp

    tensors = {f"{file}/{name}": tensor for file, found in wanted.items() for name, tensor in found.items()}
    reader = hf_storage().HuggingFaceStorageReader(str(folder))
    one = processes is None or processes.count == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            dcp.load(
                tensors, storage_reader=reader, process_group=None if one else processes.background_group, no_dist=one
            )
        except dcp.api.CheckpointException as error:
            raise RuntimeError(f"{next(first_line(cause) for cause, _ in error.failures.values())}.") from error


Moment = tuple[int, str, torch.Tensor]  # number of the parameter, name of the moment, what to read it into


def _optimizer_entries(optimizer: torch.optim.Optimizer, found: Shapes, modules: Modules) -> dict[str, Moment]:
    """Where each tensor of an optimizer's file belongs, and memory for it, sharded as its parameter is."""
    parameters = _parameters(optimizer)
    number_of = _numbering(parameters, found, modules)
    moment_shape = getattr(optimizer, "moment_shape", lambda parameter: tuple(parameter.shape))
    entries = {}
    for key, shape in found.items():
        owner, field = key.rsplit(".", 1)
        if owner not in number_of:
            raise RuntimeError(f"it has {key}, which is no parameter of this run's.")
        parameter = parameters[number_of[owner]]
        if shape == tuple(parameter.shape):
            value = torch.zeros_like(parameter.detach())
        elif shape in ((), moment_shape(parameter)):
            value = torch.zeros(shape)
        else:
            raise RuntimeError(f"size mismatch for {key}: {list(shape)} there, {list(parameter.shape)} here.")
        entries[key] = (number_of[owner], field, value)
    return entries


def _numbering(parameters: Sequence[nn.Parameter], found: Shapes, modules: Modules) -> dict[str, int]:
    """{owner as the file names it: number of the parameter}.

    Older files have numbers, either those of today or, where groups have been formed in another way since, those of the
    order in the modules.
    """
    names = _parameter_names(modules)
    if not all(key.split(".", 1)[0].isdigit() for key in found):
        return {names[id(p)]: number for number, p in enumerate(parameters) if id(p) in names}
    place = {each: k for k, each in enumerate(names)}
    as_in_modules = sorted(range(len(parameters)), key=lambda n: place.get(id(parameters[n]), len(place)))
    for order in (list(range(len(parameters))), as_in_modules):
        owners = {str(old): new for old, new in enumerate(order)}
        shapes = {k: parameters[owners[k.split(".", 1)[0]]].shape for k in found if k.split(".", 1)[0] in owners}
        if len(shapes) == len(found) and all(found[k] in ((), tuple(shape)) for k, shape in shapes.items()):
            return owners
    return {str(number): number for number in range(len(parameters))}


def _fill(
    optimizer: torch.optim.Optimizer, moments: Iterable[Moment], numbers: Mapping[str, Any], modules: Modules
) -> None:
    """Moments from the file, settings (learning rates, ...) from the config."""
    entries: dict[int, dict[str, Any]] = {}
    for number, field, value in moments:
        if field == "momentum" and type(optimizer).__module__.startswith("torch."):
            field = "momentum_buffer"  # runs begun with a Muon of our own called torch's that
        entries.setdefault(number, {})[field] = value
    names, parameters = _parameter_names(modules), _parameters(optimizer)
    number_of = {names.get(id(p), str(number)): number for number, p in enumerate(parameters)}
    for key, value in numbers.items():
        owner, field = key.rsplit(".", 1)
        entries.setdefault(int(owner) if owner.isdigit() else number_of[owner], {})[field] = value
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
