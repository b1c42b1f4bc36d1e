"""convert: writes a published model file in another layout, tensor by tensor. Official .pt files are read only here.

In: Cosmos-Predict2.5 (.pt, a single .safetensors, or a diffusers folder), a Wan 2.1 VAE (.pth or diffusers folder), a
Qwen-VL model (Hugging Face folder or file), a PEFT adapter of a DiT; a DuoGen checkpoint, only to quantise it.
Out: NAME.safetensors in the official names, a diffusers folder, or a DuoGen checkpoint; complete or not at all.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.errors import DuoGenError
from duogen_core.weights.headers import PICKLE_SUFFIXES, check_tensors, shapes_of

if TYPE_CHECKING:
    from duogen_core.dit.loading import CosmosFile
    from duogen_core.weights.writing import Piece

STEM = "diffusion_pytorch_model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from duogen_core.dit.loading import CONVENTIONS
    from duogen_core.weights.quantised import FORMATS

    add = parser.add_argument
    add("file", metavar="FILE", help="what to convert: a .pt, .pth or .safetensors file, or a folder")
    add(
        "out", metavar="OUT", help="what to write: NAME.safetensors for one file, any other name for a diffusers folder"
    )
    add(
        "--convention",
        choices=list(CONVENTIONS),
        help="how a Cosmos model was trained; default: read from the file or its name",
    )
    add("--quantise", choices=list(FORMATS), help="write the blocks' matrices in 8 bits; int8 is for ComfyUI only")
    add("--quiet", action="store_true", help="show no progress on stderr")
    parser.set_defaults(locks=lambda args: [args.out])


def run(args: argparse.Namespace) -> int:
    source, target = Path(args.file), Path(args.out)
    if not source.exists():
        raise DuoGenError(f"There is no file or folder {source}.")
    progress = Progress(args.quiet)
    if (source / "model_index.json").is_file() and not (source / "transformer").is_dir():
        said = _convert_checkpoint(source, target, args.quantise, progress)
        progress.end()
        print(said)
        print(target)
        return 0
    if (source / "adapter_config.json").is_file():
        print(_convert_adapter(source, target, progress))
        print(target)
        return 0
    if source.is_file() and source.suffix.lower() in PICKLE_SUFFIXES:
        from duogen_core.weights.pickled import PickledWeights

        weights: Any = PickledWeights(source)
    else:
        from duogen_core.weights.gguf import is_gguf
        from duogen_core.weights.reading import find_weights

        if is_gguf(source):
            raise DuoGenError(
                f"{source} is a GGUF file, whose blocks no safetensors file can hold; it is loaded as it is, or give "
                f"convert the model in bf16 or fp16."
            )
        weights = find_weights(source / "transformer" if (source / "transformer").is_dir() else source)
    if "decoder.head.0.gamma" in weights.entries or "decoder.conv_in.weight" in weights.entries:
        if args.quantise:
            raise DuoGenError(f"{source} is a VAE, which is not quantised; leave out --quantise.")
        said = _convert_vae(weights, source, target, progress)
    elif any(name.endswith("embed_tokens.weight") for name in weights.entries):
        said = _convert_mllm(weights, source, target, args.quantise, progress)
    else:
        said = _convert_cosmos(weights, source, target, args, progress)
    progress.end()
    print(said)
    print(target)
    return 0


def _convert_cosmos(
    weights: Any, source: Path, target: Path, args: argparse.Namespace, progress: Progress
) -> str:  # fmt: skip
    from duogen_core.dit.loading import NOTE, match_cosmos
    from duogen_core.weights import wan_keys
    from duogen_core.weights.cosmos_keys import to_official
    from duogen_core.weights.quantised import quantised_pieces

    if wan_keys.layout_of(weights.entries) is not None:
        raise DuoGenError(
            f"{source} is a Wan transformer, which convert does not write; every layout of it in safetensors is loaded "
            "as it is."
        )
    found = match_cosmos(weights, source, args.convention)
    one_file = target.suffix.lower() == ".safetensors"
    name_of = to_official if one_file else str
    names = {name_of(ours): name for name, ours in found.names.items()}
    pieces = [weights.piece(name, written) for written, name in names.items()]
    if args.quantise:
        if not one_file:
            raise DuoGenError(f"--quantise writes one file; give {target}.safetensors as the output.")
        pieces = quantised_pieces(pieces, args.quantise, lambda written: weights.tensor(names[written]), str(source))
    if one_file:
        metadata = {NOTE: found.convention}
        if "_quantization_metadata" in weights.metadata:
            notes = json.loads(weights.metadata["_quantization_metadata"])
            layers = notes["layers"]
            notes["layers"] = {to_official(found.names[f"{n}.weight"])[: -len(".weight")]: layers[n] for n in layers}
            metadata["_quantization_metadata"] = json.dumps(notes)
        _write_one(target, pieces, metadata, progress)
    else:
        _write_folder(target, pieces, _diffusers_config(found), progress)
    said = f"{found.name}, {found.convention} ({found.convention_from}), {len(pieces)} tensors"
    left_out = [*found.left_out, *getattr(weights, "left_out", [])]
    return f"{said}; left out, no weights: {', '.join(left_out)}" if left_out else said


def _diffusers_config(found: CosmosFile) -> dict[str, Any]:
    """What diffusers' own class reads; clean_timestep is ours, and says the convention."""
    return {"_class_name": "CosmosTransformer3DModel", "extra_pos_embed_type": None, **found.config}


def _convert_mllm(weights: Any, source: Path, target: Path, kind: str | None, progress: Progress) -> str:
    """The names stay: every loader of these models knows them."""
    from duogen_core.mllm.loading import build, check, detect_family
    from duogen_core.weights.quantised import quantised_pieces

    if target.suffix.lower() != ".safetensors":
        raise DuoGenError(
            f"{source} is an MLLM, which is written as one file; give {target}.safetensors as the output."
        )
    family, config = detect_family(source)
    check(family, build(family, config, source, weights.entries), weights, source)
    pieces = [weights.piece(name, name) for name in weights.entries]
    if kind:
        pieces = quantised_pieces(pieces, kind, weights.tensor, str(source))
    _write_one(target, pieces, {}, progress)
    return f"{family.model_type}, {len(pieces)} tensors"


def _convert_checkpoint(source: Path, target: Path, kind: str | None, progress: Progress) -> str:
    """Everything but the training log; MLLM and DiT in one file each."""
    from duogen_core.checkpoint import DIFFUSERS_STEM, INDEX, check_checkpoint
    from duogen_core.weights.quantised import quantised_pieces
    from duogen_core.weights.reading import find_weights
    from duogen_core.weights.writing import replacing, write_file

    if kind is None:
        raise DuoGenError(
            f"{source} is a DuoGen checkpoint, which needs no other layout; give --quantise to shrink it."
        )
    name = check_checkpoint(source).name
    parts = {}
    for part, stem in (("mllm", "model"), ("dit", DIFFUSERS_STEM)):
        weights = find_weights(source / part)
        pieces = [weights.piece(name, name) for name in weights.entries]
        parts[part] = stem, quantised_pieces(pieces, kind, weights.tensor, str(source / part))
    kept = [source / INDEX, *_small_files(source)]
    total = sum(piece.size for _, pieces in parts.values() for piece in pieces)
    progress.begin(total)
    with replacing(target, total + sum(file.stat().st_size for file in kept)) as temporary:
        for file in kept:
            place = temporary / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        for part, (stem, pieces) in parts.items():
            write_file(temporary / part / f"{stem}.safetensors", pieces, {}, progress.add)
    return f"{name}, {kind}, {sum(len(pieces) for _, pieces in parts.values())} tensors in MLLM and DiT"


def _convert_adapter(source: Path, target: Path, progress: Progress) -> str:
    from duogen_core.mllm.adapter import single_file

    if target.suffix.lower() != ".safetensors":
        raise DuoGenError(f"{source} is a LoRA, which is written as one file; give {target}.safetensors as the output.")
    pieces = single_file(source)
    _write_one(target, pieces, {}, progress)
    return f"LoRA of {len(pieces) // 3} layers"


def _small_files(source: Path) -> list[Path]:
    """Connector and VAE whole; of MLLM and DiT, what is no weights."""
    files = [file for part in ("connector", "vae", "mllm", "dit") for file in sorted((source / part).glob("*"))]
    whole = ("connector", "vae")
    return [f for f in files if f.is_file() and (f.parent.name in whole or ".safetensors" not in f.name)]


def _convert_vae(weights: Any, source: Path, target: Path, progress: Progress) -> str:
    from duogen_core.vae import MARK22, new_vae, original_key, wan22_vae
    from duogen_core.weights.module import build_empty

    if target.suffix.lower() != ".safetensors":
        raise DuoGenError(f"{source} is a VAE, which is written as one file; give {target}.safetensors as the output.")
    original = "decoder.head.0.gamma" in weights.entries
    residual = MARK22 in weights.entries or "encoder.down_blocks.0.resnets.0.norm1.gamma" in weights.entries
    name = f"Wan 2.{2 if residual else 1} VAE"
    norm = weights.entries.get("decoder.head.0.gamma" if original else "decoder.norm_out.gamma")
    if norm is None or not norm.shape:
        raise DuoGenError(f"{source} is a VAE, but not one of Wan, which alone can be converted.")
    width = norm.shape[0]
    first = weights.entries.get("encoder.conv1.weight" if original else "encoder.conv_in.weight")
    base = first.shape[0] if first is not None and first.shape else 160
    shapes = shapes_of(build_empty(lambda: wan22_vae(base, width) if residual else new_vae(width), source, f"a {name}"))
    expected = {(original_key(key, residual) if original else key): shape for key, shape in shapes.items()}
    check_tensors(weights.entries, expected, source, name)
    pieces = [weights.piece(each, each if original else original_key(each, residual)) for each in weights.entries]
    _write_one(target, pieces, {}, progress)
    return f"{name}, {len(pieces)} tensors"


def _write_one(target: Path, pieces: list[Piece], metadata: dict[str, str], progress: Progress) -> None:
    from duogen_core.weights.writing import replacing, write_file

    total = sum(piece.size for piece in pieces)
    progress.begin(total)
    with replacing(target, total) as temporary:
        write_file(temporary, pieces, metadata, progress.add)


def _write_folder(target: Path, pieces: list[Piece], config: dict[str, Any], progress: Progress) -> None:
    from duogen_core.weights.writing import replacing, write_folder

    total = sum(piece.size for piece in pieces)
    progress.begin(total)
    with replacing(target, total) as temporary:
        temporary.mkdir()
        write_folder(temporary, STEM, pieces, progress.add)
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class Progress:
    """Shows on stderr how many bytes are written: a bar on a terminal, elsewhere a line every ten seconds."""

    def __init__(self, quiet: bool) -> None:
        from tqdm import tqdm

        self.bar = tqdm(
            desc="written",
            total=0,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=quiet,
            mininterval=0.1 if sys.stderr.isatty() else 10.0,
            miniters=1,  # pieces are of very different sizes, which misleads its own choice
            delay=0.1,  # shows nothing of what is done at once or refused
        )

    def begin(self, total: int) -> None:
        self.bar.total = total

    def add(self, count: int) -> None:
        self.bar.update(count)

    def end(self) -> None:
        self.bar.close()
