"""A DuoGen checkpoint: one folder that holds everything an answer needs, read strictly and written whole.

    model_index.json   {"format": "duogen-checkpoint", "version": 1, "name": …,
                        "sampling": {"steps", "guidance", "shift"}, "picture": {"width", "height", "max_side"}};
                        of which family a part is, its own config.json says
    mllm/              a transformers folder: config.json, model.safetensors (or shards), tokenizer.json, …
    connector/         config.json, model.safetensors
    dit/               a diffusers folder: config.json, diffusion_pytorch_model.safetensors
    vae/               wan_vae.safetensors in the original Wan 2.1 key names, which ComfyUI's stock VAELoader reads as
                       well; a diffusers folder is read too

In: a name (a folder of `models/` beside the package) or a path. Out: Components, ready to run on the CPU.
Every file is looked at before anything is loaded (`duogen_core.weights.headers`): what is missing, cut off or foreign
is named with what was expected. Safetensors only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from duogen_core.errors import DuoGenError, first_line, is_out_of_memory
from duogen_core.files import TEMPORARY, discard, lock_folder, read_json, replace_file, swap_folders, write_errors
from duogen_core.sampling import Sampling, checked_numbers
from duogen_core.weights.headers import refuse_pickle

if TYPE_CHECKING:
    import torch
    from torch import nn

    from duogen_core.compiling import Compiled
    from duogen_core.connector import Connector
    from duogen_core.devices import Turns
    from duogen_core.mllm.base import Mllm
    from duogen_core.vae import PictureVae

FORMAT = "duogen-checkpoint"
VERSION = 1
INDEX = "model_index.json"
DEFAULT_MODEL = "duogen-tiny"
VAE_FILE = "wan_vae.safetensors"
DIFFUSERS_STEM = "diffusion_pytorch_model"
HUGGING_FACE_FILES = ("config.json", "tokenizer.json", "vocab.json")  # one of them makes a folder a model's
MLLM_FILES = ("config.json", "preprocessor_config.json")


class CheckpointError(DuoGenError):
    """A checkpoint, or a file of it, cannot be used."""


@dataclass(frozen=True)
class PictureSize:
    """The size of a picture when nobody names one, and the longest side it was trained for. step: sides are multiples
    of it, which is the VAE's `size_step`."""

    width: int = 128
    height: int = 128
    max_side: int = 160
    step: int = 16


PUBLISHED_PICTURE = PictureSize(1280, 704, 1280)  # what Cosmos-Predict2.5's own pipeline draws


@dataclass(frozen=True)
class CheckpointConfig:
    name: str = DEFAULT_MODEL
    sampling: Sampling = field(default_factory=Sampling)
    picture: PictureSize = PictureSize()


@dataclass
class Components:
    """The four parts of one model and its configuration."""

    mllm: Mllm
    connector: Connector
    dit: nn.Module
    vae: PictureVae
    config: CheckpointConfig = CheckpointConfig()
    offload: Literal["off", "model", "layers"] = "off"
    turns: Turns | None = field(default=None, repr=False)  # with "model": who is on the device
    compiled: Compiled | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The parts' weights, by name, in the order in which an image needs them."""
        return {"mllm": self.mllm.model, "connector": self.connector, "dit": self.dit, "vae": self.vae.model}

    def to(self, device: str | torch.device = "auto", dtype: str = "auto") -> Components:
        """Brings all parts to one device, in a dtype each that suits it: "auto", "bf16", "fp16" or "fp32".

        The connector keeps its dtype (its sums are float32 in any case), and so do quantised weights; but layers in
        GGUF's blocks are made whole in a dtype that is asked for. The VAE has no
        fp16: it computes in fp32 there.
        """
        from duogen_core.devices import choose_device, move
        from duogen_core.weights.gguf_layers import unpack_layers

        device = choose_device(device)
        for part, module in self.modules.items():
            kept = part_dtype(part, module, device, dtype)
            if dtype != "auto" and kept is not None:
                unpack_layers(module, kept)
            move(module, device, kept)
        self._now_on(device, "off")
        return self

    def take_turns(self, device: torch.device) -> None:
        """From now on the MLLM, the DiT and the VAE are on the device one at a time."""
        from duogen_core.devices import Turns

        parts = {name: module.to("cpu") for name, module in self.modules.items() if name != "connector"}
        self.connector.to(device)  # it is small, and needed while the MLLM runs
        self._now_on(device, "model")
        self.turns = Turns(parts, device)

    def come_by_layer(self, device: torch.device, stay: int = 0) -> int:
        """From now on the layers of DiT and MLLM come to the device when they run, but for the first `stay` bytes of
        them; returns the bytes that do. The DiT's, which run at every step, are the first to stay."""
        from duogen_core.devices import offload_layers, size_of

        if self.turns is not None:
            self.turns.end()
        if self.compiled is not None:  # a compiled function reads its weights at once, and does not wait for them
            self.compiled.stop()
        self._now_on(device, "layers")
        come = 0
        for part in (self.dit, self.mllm.model):
            moving = offload_layers(part.to("cpu"), device, stay=stay)
            stay, come = max(0, stay - (size_of(part) - moving)), come + moving
        self.connector.to(device)
        self.vae.to(device)
        return come

    def compile(self, say: Callable[[str], None], backend: Any = "inductor") -> None:
        """From now on what DiT and MLLM repeat is compiled at its first use; `say` gets what becomes of that."""
        from duogen_core.compiling import Compiled, pieces_of_dit, pieces_of_mllm

        if self.offload == "layers":
            say("Nothing is compiled, since the layers come to the card one by one.")
            return
        pieces = [*pieces_of_dit(self.dit), *pieces_of_mllm(self.mllm.model)]
        self.compiled = Compiled(pieces, say, backend)

    def _now_on(self, device: torch.device, offload: str) -> None:
        self.mllm.device, self.offload, self.turns = device, offload, None
        self.mllm.clear_cache()

    def use(self, part: str) -> None:
        """Called before a part runs: brings it to its device where the parts take turns."""
        if self.turns is not None:
            self.turns.use(part)

    def go_leaner(self) -> str:
        """When memory ran out: frees what is cached, and has less of the model on the device. Returns what was done."""
        import torch

        from duogen_core.devices import empty_caches

        device = self.mllm.device
        on_one = len({weight.device for module in self.modules.values() for weight in module.parameters()}) == 1
        self.mllm.clear_cache()
        empty_caches(device)
        if device.type == "cpu" or self.offload == "layers" or (self.offload == "off" and not on_one):
            done = "with nothing kept from before"
        elif self.offload == "off":
            with torch.inference_mode(False):  # this may be in the middle of an answer
                self.take_turns(device)
            done = f"with one part of the model at a time on {device}"
        else:
            with torch.inference_mode(False):
                self.come_by_layer(device)
            done = f"with one layer of the model at a time on {device}, which is slow"
        empty_caches(device)
        return f"Memory ran out; trying once more {done}."


def part_dtype(part: str, module: nn.Module, device: torch.device, asked: str) -> torch.dtype | None:
    """Returns the dtype of one part, or None where it stays as it is."""
    from duogen_core.devices import choose_dtype, stored_dtype

    if part == "connector":
        return None
    dtype = choose_dtype(asked, device, *stored_dtype(module))
    # A VAE's activations grow too large for fp16, and it is small.
    return choose_dtype("fp32", device, *stored_dtype(module)) if part == "vae" and asked == "fp16" else dtype


# ---------------------------------------------------------------- finding


def models_folder() -> Path:
    """Returns `models/` beside the package, which holds the bundled model."""
    return Path(__file__).resolve().parent.parent / "models"


def available_models() -> list[str]:
    root = models_folder()
    return sorted(entry.parent.name for entry in root.glob(f"*/{INDEX}")) if root.is_dir() else []


def resolve_model(name_or_path: str | os.PathLike = DEFAULT_MODEL) -> Path:
    """Returns the folder of a checkpoint, from its name or its path."""
    given = os.fspath(name_or_path)
    path = Path(given).expanduser()
    if not given.strip():
        raise CheckpointError(f"The model has no name; available: {_available()}.")
    if path.is_file():
        if path.name == INDEX:
            return path.parent
        refuse_pickle(path)
        raise CheckpointError(f"{path} is a file; a DuoGen model is a folder with {INDEX} in it.")
    if (path / INDEX).is_file():
        return path
    bundled = models_folder() / given
    if Path(given).name == given and (bundled / INDEX).is_file():
        return bundled
    if path.is_dir():
        raise CheckpointError(f"{path} is not a DuoGen model: it has no {INDEX}.")
    refuse_pickle(path)
    raise CheckpointError(f"There is no model {given!r}; give the path of a model folder, or one of: {_available()}.")


def resolve_mllm(name_or_path: str | os.PathLike) -> Path:
    """Returns the path of an MLLM from its name or path: every option that takes one asks here.

    A DuoGen model (its name or folder) has it in mllm/; a folder with a configuration, a tokenizer or weights is a
    Hugging Face folder; a file holds weights alone.
    """
    path = Path(os.fspath(name_or_path)).expanduser()
    if path.is_dir() and not (path / INDEX).is_file():
        if any((path / name).is_file() for name in HUGGING_FACE_FILES) or any(path.glob("*.safetensors")):
            return path
        raise CheckpointError(
            f"{path} is not a model's folder: it has neither {INDEX}, as a DuoGen model has, nor "
            f"{HUGGING_FACE_FILES[0]}, as a Hugging Face folder has."
        )
    if path.is_file() and path.name != INDEX:
        refuse_pickle(path)
        return path
    return resolve_model(name_or_path) / "mllm"


def _available() -> str:
    return ", ".join(available_models()) or "none is bundled here"


# ---------------------------------------------------------------- reading


def read_config(folder: str | os.PathLike) -> CheckpointConfig:
    """Reads model_index.json of a checkpoint folder."""
    path = Path(folder) / INDEX
    value = _read_object(path)
    if value.get("format") != FORMAT:
        raise CheckpointError(f"{path} has the format {value.get('format')!r}; expected {FORMAT!r}.")
    if value.get("version") != VERSION:
        raise CheckpointError(f"{path} has the version {value.get('version')!r}; this DuoGen reads version {VERSION}.")
    for key in ("sampling", "picture"):
        if not isinstance(value.get(key, {}), dict):
            raise CheckpointError(f"{path}: {key} must be an object, not {type(value[key]).__name__}.")
    name = value.get("name", Path(folder).name)
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{path}: name must be a string, not {name!r}.")
    return CheckpointConfig(
        name=name,
        sampling=checked_numbers(Sampling, value.get("sampling", {}), f"{path}: sampling", CheckpointError),
        picture=checked_numbers(PictureSize, value.get("picture", {}), f"{path}: picture", CheckpointError),
    )


def check_checkpoint(folder: str | os.PathLike) -> CheckpointConfig:
    """Checks every file without loading a weight, so that a fault shows in a moment, not after minutes of loading."""
    from duogen_core.mllm.tokenizer import has_tokenizer
    from duogen_core.weights.reading import WeightFiles, folder_weights

    folder = Path(folder)
    config = read_config(folder)
    for part in ("mllm", "connector", "dit", "vae"):
        if not (folder / part).is_dir():
            raise CheckpointError(f"The model {config.name} is incomplete: expected the folder {folder / part}.")
    for name in MLLM_FILES:
        _read_object(folder / "mllm" / name)
    if not has_tokenizer(folder / "mllm"):
        raise CheckpointError(f"The model is incomplete: expected the file {folder / 'mllm' / 'tokenizer.json'}.")
    _read_object(folder / "connector" / "config.json")
    _read_object(folder / "dit" / "config.json")
    folder_weights(folder / "mllm", "model", "weights of the MLLM")
    folder_weights(folder / "connector", "model", "weights of the connector")
    folder_weights(folder / "dit", DIFFUSERS_STEM, "weights of the DiT")
    vae = vae_path(folder)
    if vae.is_dir():
        folder_weights(vae, DIFFUSERS_STEM, "weights of the VAE")
    else:
        WeightFiles([vae], "weights of the VAE")
    return config


def vae_path(folder: str | os.PathLike) -> Path:
    """Returns what PictureVae.from_pretrained takes: the folder if it is a diffusers one, else the single file."""
    vae = Path(folder) / "vae"
    return vae if (vae / "config.json").is_file() else vae / VAE_FILE


def load_checkpoint(
    name_or_path: str | os.PathLike = DEFAULT_MODEL,
    *,
    on_part: Callable[[str], None] | None = None,
    loaders: Mapping[str, Callable[[Path], Any]] | None = None,
) -> Components:
    """Loads all four parts, on the CPU, in eval mode. `on_part` is called with each part's name before it is loaded.

    loaders: "mllm" or "dit" -> what loads that folder in place of the usual.
    """
    folder = resolve_model(name_or_path)
    config = check_checkpoint(folder)
    tell = on_part or (lambda part: None)

    tell("mllm")
    from duogen_core.dit.loading import load_dit
    from duogen_core.mllm.loading import load_mllm

    load = {"mllm": load_mllm, "dit": load_dit, **(loaders or {})}
    mllm = _loading(load["mllm"], folder / "mllm", "MLLM")
    tell("connector")
    from duogen_core.connector import Connector

    connector = _loading(Connector.from_pretrained, folder / "connector", "connector")
    tell("dit")
    dit = _loading(load["dit"], folder / "dit", "DiT")
    tell("vae")
    from duogen_core.vae import PictureVae

    vae = _loading(PictureVae.from_pretrained, vae_path(folder), "VAE")
    components = Components(mllm, connector, dit, vae, config)
    check_fit(components)
    return components


def check_fit(components: Components) -> None:
    """Raises a CheckpointError unless the connector reads this MLLM and writes what this DiT reads, and the DiT draws
    what this VAE decodes."""
    mllm, shape = components.mllm, components.connector.config
    try:
        shape.check_pair(mllm.model_type, getattr(components.dit, "family", ""), f"The connector of {components.name}")
    except DuoGenError as error:
        raise CheckpointError(str(error)) from None
    if (shape.num_layers, shape.hidden_size) != (mllm.num_layers, mllm.hidden_size):
        raise CheckpointError(
            f"The connector of {components.name} was made for {shape.num_layers} layers of width {shape.hidden_size}, "
            f"but its MLLM ({mllm.model_type}) has {mllm.num_layers} of width {mllm.hidden_size}; the parts come from "
            "two models."
        )
    width = components.dit.config.text_embed_dim
    if shape.cross_width != width:
        raise CheckpointError(
            f"The connector of {components.name} writes {shape.cross_width} numbers a token, but its DiT reads "
            f"{width}; the parts come from two models."
        )
    drawn, vae, step = components.dit.config.out_channels, components.vae, components.config.picture.step
    if drawn != vae.channels:
        raise CheckpointError(
            f"The DiT of {components.name} draws latents of {drawn} channels, but its VAE has {vae.channels}; give the "
            "VAE of Wan 2.1 with 16, that of Wan 2.2 TI2V-5B with 48."
        )
    if step % vae.size_step:
        raise CheckpointError(
            f"{components.name} has images in steps of {step} pixels (picture.step), but its VAE and DiT take "
            f"multiples of {vae.size_step}."
        )


def _loading(load: Callable[[Path], Any], path: Path, what: str) -> Any:
    """Turns errors of other libraries into one sentence that names the part; ours are sentences already."""
    try:
        return load(path)
    except DuoGenError:
        raise
    except Exception as error:  # a wrong value raises whatever the layer that meets it raises
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"The {what} in {path} cannot be loaded: {first_line(error)}.") from error


def load_parts(
    mllm: str | os.PathLike,
    dit: str | os.PathLike,
    vae: str | os.PathLike,
    *,
    convention: str | None = None,
    tokenizer: str | os.PathLike | None = None,
) -> Components:
    """Loads a model made of published files: an MLLM, Cosmos-Predict2.5 and a Wan VAE, each a folder or a file.

    Nothing of it was tuned together; the connector is the one that ships inside the DiT. On the CPU, in eval mode, in
    the types of the files. tokenizer: a folder, where the MLLM is a single file.
    """
    from duogen_core.dit.loading import open_published
    from duogen_core.mllm.loading import detect_family, load_mllm
    from duogen_core.vae import PictureVae

    # Headers and JSON first: whether the parts belong together shows before any weights are loaded.
    file, mllm = open_published(dit, convention), resolve_mllm(mllm)
    text = detect_family(mllm)[1]
    text = text.get("text_config") or text
    connector = file.load_connector((text["num_hidden_layers"], text["hidden_size"]))
    writer = load_mllm(mllm, tokenizer=tokenizer)
    decoder = PictureVae.from_pretrained(vae)
    config = CheckpointConfig(file.name, file.sampling, replace(PUBLISHED_PICTURE, step=decoder.size_step))
    components = Components(writer, connector, file.load_dit(), decoder, config)
    check_fit(components)
    return components


# ---------------------------------------------------------------- writing


def save_checkpoint(components: Components, folder: str | os.PathLike) -> Path:
    """Writes the whole folder under a temporary name, then renames it; an earlier checkpoint there is replaced.

    Files of the earlier one that are not part of a checkpoint (a log, scores) are kept. What a run that was killed has
    left beside it is put right first: the names of the new and of the old folder are always the same.
    """
    from safetensors.torch import save_file

    check_fit(components)
    folder = Path(folder)
    new, old = (folder.with_name(f".{folder.name}.{kind}{TEMPORARY}") for kind in ("new", "old"))
    with lock_folder(folder), write_errors(folder):
        if old.is_dir() and not folder.exists():
            old.rename(folder)
        elif old.is_dir():
            _keep_others(old, folder)
        discard(new)
        if folder.exists() and not (folder / INDEX).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(
                f"{folder} exists and is not a DuoGen model; choose another place for the checkpoint."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            new.mkdir()
            components.mllm.save_pretrained(new / "mllm")
            components.connector.save_pretrained(new / "connector")
            components.dit.save_pretrained(new / "dit")
            (new / "vae").mkdir()
            save_file(components.vae.to_single_file(), new / "vae" / VAE_FILE)
            write_config(components.config, new)
            replaced = swap_folders(new, folder, old)
        except BaseException:
            discard(new)
            raise
        if replaced:
            _keep_others(old, folder)
    return folder


def _keep_others(old: Path, folder: Path) -> None:
    """Moves what only the old checkpoint has into the new one, and removes the rest of the old one."""
    for entry in old.iterdir():
        if not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
    discard(old)


def write_config(config: CheckpointConfig, folder: str | os.PathLike) -> None:
    """Writes model_index.json, for a checkpoint that is put together part by part."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(config)}, indent=2) + "\n"
    replace_file(Path(folder) / INDEX, text.encode())


# ---------------------------------------------------------------- small readers


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"The model is incomplete: expected the file {path}.")
    value = read_json(path, "file")
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; expected a JSON object.")
    return value
