"""GGUF files in a running ComfyUI: listed, kept in their blocks, drawn with by the stock KSampler, changed by a LoRA.

The reference is a safetensors file of the same numbers, made whole by the gguf package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import published_files
import pytest
from conftest import running
from server import Result, Server
from test_published import PATHS, VAE_FILE, graph, options
from test_stock_nodes import node
from test_trouble import sentence

pytestmark = pytest.mark.slow
DIT, DIT_WHOLE = "tiny-cosmos-Q8_0.gguf", "tiny_cosmos_whole.safetensors"
MLLM, MLLM_WHOLE = "tiny-vl-Q8_0.gguf", "tiny_vl_whole.safetensors"
LAYER = "blocks.{}.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import gguf
    import torch
    from safetensors.torch import save_file

    from duogen_core.mllm.loading import load_mllm
    from duogen_core.vae import PictureVae, new_vae
    from duogen_core.weights.cosmos_keys import to_official
    from tests.core.gguf_files import Types, write_gguf, write_pair

    folder = tmp_path_factory.mktemp("gguf") / "models"
    for name in ("text_encoders", "diffusion_models", "vae", "duogen"):
        (folder / name).mkdir(parents=True)
    torch.manual_seed(7)
    save_file(PictureVae(new_vae(4)).to_single_file(), folder / "vae" / VAE_FILE)
    tensors, whole = {}, {}
    for name, tensor in published_files.transformer(attention_head_dim=32, adaln_lora_dim=32).state_dict().items():
        name, value = to_official(name).removeprefix("net."), tensor.numpy()
        if value.ndim == 2 and value.shape[1] % 32 == 0:
            tensors[name] = gguf.quantize(value, Types["Q8_0"]), "Q8_0"
            value = gguf.dequantize(*tensors[name][:1], Types["Q8_0"])
        else:
            tensors[name] = value
        whole[f"net.{name}"] = torch.from_numpy(np.ascontiguousarray(value))
    write_gguf(folder / "diffusion_models" / DIT, "cosmos", tensors)
    save_file(whole, folder / "diffusion_models" / DIT_WHOLE)
    mllm = published_files.language_model(comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer")
    path = write_pair(folder / "text_encoders", mllm, MLLM)
    read = load_mllm(path, torch.float32)
    save_file(published_files.flat(read.model), folder / "text_encoders" / MLLM_WHOLE)
    noise, lora = torch.Generator().manual_seed(5), {}
    for block in range(2):
        up, down = torch.randn(64, 4, generator=noise) * 0.2, torch.randn(4, 64, generator=noise) * 0.2
        layer = f"diffusion_model.{LAYER.format(block)}"
        lora |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    (folder / "loras").mkdir()
    save_file(lora, folder / "loras" / "change.safetensors")
    save_file({k: v[:, :32].contiguous() if "_A" in k else v for k, v in lora.items()},
              folder / "loras" / "narrow.safetensors")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def server(comfyui: Path, random_model: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory):
    base = tmp_path_factory.mktemp("gguf server")
    (base / "paths.yaml").write_text(PATHS.format(folder) + "  loras: loras\n")
    yield from running(comfyui, random_model, base, "--extra-model-paths-config", str(base / "paths.yaml"))


def run(server: Server, mllm: str, dit: str, lora: str = "") -> Result:
    nodes: dict[str, Any] = graph(mllm, dit, prefix=f"gguf/{mllm}-{dit}-{lora}", cfg=2.0)
    if lora:
        nodes["lora"] = node("LoraLoaderModelOnly", model=["d", 0], lora_name=lora, strength_model=1.0)
        nodes["3"]["inputs"]["model"] = ["lora", 0]
    return server.run(nodes)


def images(server: Server, *which: str) -> np.ndarray:
    import io

    from PIL import Image

    result = run(server, *which)
    assert result.error is None, result.error
    found = [server.get_bytes("/view", **file) for file in result.outputs["6"]["images"]]
    assert len(found) == 2
    return np.stack([np.asarray(Image.open(io.BytesIO(each)).convert("RGB"), dtype=float) for each in found])


def test_files_are_listed_here_and_the_lists_of_stock_nodes_stay_as_they_are(server: Server):
    assert MLLM in options(server, "DuoGenLoadMLLM") and DIT in options(server, "DuoGenLoadDiT")
    assert DIT in options(server, "DuoGenLoadConnector")
    assert not any("mmproj" in name for name in options(server, "DuoGenLoadMLLM"))
    assert not any(name.endswith(".gguf") for name in options(server, "UNETLoader", "unet_name"))
    assert not any(name.endswith(".gguf") for name in options(server, "CLIPLoader", "clip_name"))


def test_an_answer_is_that_of_the_same_weights_whole(server: Server):
    blocks, whole = images(server, MLLM, DIT), images(server, MLLM_WHOLE, DIT_WHOLE)
    assert np.abs(blocks - whole).mean() < 1.0 and whole.std() > 10
    assert np.abs(images(server, MLLM, DIT_WHOLE) - whole).mean() < 1.0


def test_a_lora_changes_layers_in_blocks_and_leaves_them_as_they_were(server: Server):
    plain = images(server, MLLM_WHOLE, DIT)
    changed, wanted = (images(server, MLLM_WHOLE, dit, "change.safetensors") for dit in (DIT, DIT_WHOLE))
    assert np.abs(changed - wanted).mean() < 1.0 < np.abs(wanted - plain).mean()
    assert np.array_equal(images(server, MLLM_WHOLE, DIT), plain)


def test_a_lora_of_another_size_is_refused(server: Server):
    assert "is for 64x32, the MODEL's is 64x64" in sentence(run(server, MLLM_WHOLE, DIT, "narrow.safetensors"))


def test_what_is_no_model_says_so(server: Server, folder: Path):
    (folder / "text_encoders" / "broken.gguf").write_bytes(b"GGUF")
    (folder / "diffusion_models" / "other.gguf").write_bytes((folder / "text_encoders" / MLLM).read_bytes())
    assert "is cut off: it has 4 bytes" in sentence(run(server, "broken.gguf", DIT))
    assert "holds no Cosmos-Predict2.5 transformer" in sentence(run(server, MLLM_WHOLE, "other.gguf"))
    (folder / "text_encoders" / "alone").mkdir()
    (folder / "text_encoders" / "alone" / "x.gguf").write_bytes((folder / "text_encoders" / MLLM).read_bytes())
    assert "no mmproj of it lies beside it" in sentence(run(server, "alone/x.gguf", DIT))


def test_blocks_merge_as_the_whole_and_are_not_saved(server: Server, folder: Path):
    """Into a MODEL in blocks, and out of one; Save Diffusion Model, which would write bytes for weights, is refused."""

    def merged(one: str, two: str) -> np.ndarray:
        import io

        from PIL import Image

        nodes: dict[str, Any] = graph(MLLM_WHOLE, one, prefix=f"gguf/merged-{one}-{two}", cfg=2.0)
        nodes["two"] = node("DuoGenLoadDiT", checkpoint=two, convention="auto")
        nodes["lora"] = node(
            "LoraLoaderModelOnly", model=["two", 0], lora_name="change.safetensors", strength_model=1.0
        )
        nodes["both"] = node("ModelMergeSimple", model1=["d", 0], model2=["lora", 0], ratio=0.5)
        nodes["3"]["inputs"]["model"] = ["both", 0]
        result = server.run(nodes)
        assert result.error is None, result.error
        found = [server.get_bytes("/view", **file) for file in result.outputs["6"]["images"]]
        return np.stack([np.asarray(Image.open(io.BytesIO(each)).convert("RGB"), dtype=float) for each in found])

    whole = merged(DIT_WHOLE, DIT_WHOLE)
    assert np.abs(whole - images(server, MLLM_WHOLE, DIT_WHOLE)).mean() > 1.0
    assert np.abs(merged(DIT, DIT_WHOLE) - whole).mean() < 1.0
    assert np.abs(merged(DIT_WHOLE, DIT) - whole).mean() < 1.0
    nodes = {"d": node("DuoGenLoadDiT", checkpoint=DIT, convention="auto")}
    nodes["save"] = node("ModelSave", model=["d", 0], filename_prefix="saved/blocks")
    assert "loaded from a GGUF file, whose blocks ComfyUI cannot save" in sentence(server.run(nodes))
