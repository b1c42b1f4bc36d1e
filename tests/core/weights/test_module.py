"""Every loader takes each tensor exactly once: what is missing, left over, doubled or of another kind is refused."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from duogen_core import cli
from duogen_core.checkpoint import VAE_FILE, save_checkpoint
from duogen_core.connector import Connector
from duogen_core.dit.loading import load_dit, open_published
from duogen_core.errors import DuoGenError
from duogen_core.mllm.loading import load_mllm
from duogen_core.mllm.qwen2_5_vl import Qwen25VL
from duogen_core.vae import PictureVae
from duogen_core.weights.cosmos_keys import to_official
from duogen_core.weights.quantised import layer_formats
from duogen_core.weights.reading import WeightFiles
from tests.core.dit.test_cosmos_files import note, official, quantised, tiny
from tests.core.tiny import random_components


def other_mllm_name(name: str) -> str:
    """Files of Qwen2.5-VL name their tensors flatly or as the module does: each of the two from the other."""
    whole = Qwen25VL.module_name(name)
    return whole if whole != name else name.replace("model.language_model.", "model.").replace("model.visual", "visual")


# Which file is changed, what loads it, and the other name that a file may give a tensor.
LOADERS = {
    "MLLM": ("plain/mllm/model.safetensors", lambda file: load_mllm(file.parent).model, other_mllm_name),
    "MLLM in fp8": (
        "fp8/mllm/model.safetensors",
        lambda file: load_mllm(file.parent).model,
        other_mllm_name,
    ),
    "DiT": ("plain/dit/diffusion_pytorch_model.safetensors", lambda file: load_dit(file.parent), to_official),
    "DiT in fp8": ("fp8/dit/diffusion_pytorch_model.safetensors", lambda file: load_dit(file.parent), to_official),
    "connector": ("plain/connector/model.safetensors", lambda file: Connector.from_pretrained(file.parent), None),
    "VAE": (f"plain/vae/{VAE_FILE}", lambda file: PictureVae.from_pretrained(file).model, None),
    "Cosmos": (
        "cosmos.safetensors",
        lambda file: open_published(file).load_dit(),
        lambda name: name.removeprefix("net."),
    ),
    "Cosmos in fp8": (
        "cosmos_fp8.safetensors",
        lambda file: open_published(file).load_dit(),
        lambda name: name.removeprefix("net."),
    ),
}
FP8 = [name for name in LOADERS if "fp8" in name]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_checkpoint(random_components(), folder / "plain")
    assert cli.main(["convert", str(folder / "plain"), str(folder / "fp8"), "--quantise", "fp8", "--quiet"]) == 0
    weights = official(tiny())
    save_file(weights, folder / "cosmos.safetensors")
    tensors, layers = quantised(weights, scaled=True)
    save_file(tensors | {f"{layer}.comfy_quant": note(layer) for layer in layers}, folder / "cosmos_fp8.safetensors")
    return folder


class Case:
    def __init__(self, folder, name: str) -> None:
        file, self._load, self.other_name = LOADERS[name]
        self.file = folder / file
        self.tensors = load_file(self.file)
        self.quantised = sorted(layer_formats(WeightFiles([self.file])))
        self.plain = sorted(
            name
            for name, tensor in self.tensors.items()
            if name.endswith(".weight") and tensor.ndim > 1 and name.removesuffix(".weight") not in self.quantised
        )

    def load(self) -> dict[str, torch.Tensor]:
        save_file(self.tensors, self.file)
        return self._load(self.file).state_dict()

    def refused(self, *names: str) -> None:
        with pytest.raises(DuoGenError) as caught:
            self.load()
        said = str(caught.value)
        assert "\n" not in said and any(name in said for name in names), said


@pytest.fixture
def case(request, made, tmp_path):
    return Case(shutil.copytree(made, tmp_path / "models"), request.param)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].float(), b[name].float()) for name in a)


@pytest.mark.parametrize("case", LOADERS, indirect=True)
def test_each_is_read_as_it_is(case):
    assert case.load() and len(case.plain) > 0


@pytest.mark.parametrize("case", LOADERS, indirect=True)
def test_a_tensor_too_few(case):
    for name in (case.plain[-1], *[f"{layer}.weight" for layer in case.quantised[-1:]]):
        kept = case.tensors.pop(name)
        case.refused(name.removesuffix(".weight").rpartition(".")[2], "missing", "holds no weight of that layer")
        case.tensors[name] = kept


@pytest.mark.parametrize("case", LOADERS, indirect=True)
def test_a_tensor_too_many(case):
    case.tensors["intruder.weight"] = torch.zeros(2, 2)
    case.refused("intruder.weight")


@pytest.mark.parametrize("case", [name for name, (*_, other) in LOADERS.items() if other], indirect=True)
def test_a_tensor_under_two_names(case):
    """Two sets of one model: which of the two is meant cannot be known."""
    for name in (case.plain[0], *[f"{layer}.weight" for layer in case.quantised[:1]]):
        other = case.other_name(name)
        assert other != name
        case.tensors[other] = case.tensors[name].float() + 1
        case.refused(other, name)
        del case.tensors[other]


@pytest.mark.parametrize("case", LOADERS, indirect=True)
def test_whole_numbers_are_no_weights(case):
    """The matrices of a quantised file without its scales."""
    name = case.plain[-1]
    case.tensors[name] = case.tensors[name].to(torch.int8)
    case.refused(name.removesuffix(".weight").rpartition(".")[2])


@pytest.mark.parametrize("case", LOADERS, indirect=True)
def test_a_scale_without_a_quantised_weight(case):
    layer = case.plain[-1].removesuffix(".weight")
    case.tensors[f"{layer}.weight_scale"] = torch.tensor(0.5)
    case.refused(f"{layer}.weight_scale")


@pytest.mark.parametrize("case", FP8, indirect=True)
def test_a_scale_that_is_there_twice(case):
    layer = case.quantised[0]
    case.tensors[f"{layer}.scale_weight"] = case.tensors[f"{layer}.weight_scale"] * 2
    case.refused(f"{layer}.scale_weight")


@pytest.mark.parametrize("case", FP8, indirect=True)
def test_a_note_that_says_something_else_than_the_weight(case):
    layer = case.quantised[0]
    case.tensors[f"{layer}.weight"] = case.tensors[f"{layer}.weight"].bfloat16()
    case.refused("is said to be quantised as float8_e4m3fn, but is stored as BF16")


@pytest.mark.parametrize("case", [name for name, (*_, other) in LOADERS.items() if other], indirect=True)
@pytest.mark.parametrize("apart", ["by layer", "weights", "scales"])
def test_names_of_two_layouts_in_one_file(case, apart):
    """Half of a model named in one way and half in another: the same model, or refused; never half of it."""
    whole = case.load()

    def moved(number: int, name: str) -> bool:
        scale = name.endswith(("weight_scale", "comfy_quant"))
        return {"by layer": number % 2 == 0, "weights": not scale, "scales": scale}[apart]

    layers = sorted({name.rpartition(".")[0] for name in case.tensors})
    case.tensors = {
        case.other_name(name) if moved(layers.index(name.rpartition(".")[0]), name) else name: tensor
        for name, tensor in case.tensors.items()
    }
    try:
        mixed = case.load()
    except DuoGenError as error:
        assert "\n" not in str(error) and not case.file.match("mllm/*")
    else:
        assert same(mixed, whole)


@pytest.mark.parametrize("case", ["MLLM"], indirect=True)
def test_an_output_matrix_that_tying_would_drop(case):
    embedding = next(tensor for name, tensor in case.tensors.items() if name.endswith("embed_tokens.weight"))
    case.tensors["lm_head.weight"] = embedding.clone()
    case.load()
    case.tensors["lm_head.weight"] += 1
    case.refused("lm_head.weight")


@pytest.mark.parametrize("case", ["MLLM", "DiT in fp8"], indirect=True)
def test_norms_and_biases_in_fp8_are_cast_back(case):
    """As files are that were cast whole, norms and biases included."""
    case.tensors = {n: t.to(torch.float8_e4m3fn) if t.is_floating_point() else t for n, t in case.tensors.items()}
    case.tensors = {n: t.float() if n.endswith("weight_scale") else t for n, t in case.tensors.items()}
    assert {t.dtype for n, t in case.load().items() if t.ndim == 1} == {torch.bfloat16}
