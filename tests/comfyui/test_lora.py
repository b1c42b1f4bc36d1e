"""LoRAs in a real ComfyUI give the numbers of the merged weights: on MODEL by its stock loader, on our MLLM by ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphs
import pytest
from server import Result, Server
from test_stock_nodes import node

peft = pytest.importorskip("peft")
RANK, ALPHA = 3, 6.0
PROJECTIONS = {"attn1.to_q": "self_attn.q_proj", "attn2.to_v": "cross_attn.v_proj", "ff.net.0.proj": "mlp.layer1",
               "attn1.to_out.0": "self_attn.output_proj"}  # fmt: skip
NAMINGS = {
    "diffusers": ("transformer.transformer_blocks.{block}.{ours}", "lora_A", "lora_B", "."),
    "comfyui": ("diffusion_model.blocks.{block}.{official}", "lora_A", "lora_B", "."),
    "official": ("net.blocks.{block}.{official}", "lora_A", "lora_B", "."),
    "kohya": ("lora_unet_blocks.{block}.{official}", "lora_down", "lora_up", "_"),
    "kohya of diffusers": ("lora_unet_transformer_blocks.{block}.{ours}", "lora_down", "lora_up", "_"),
    "onetrainer": ("lora_transformer_transformer_blocks.{block}.{ours}", "lora_down", "lora_up", "_"),
    "lycoris": ("lycoris_transformer_blocks.{block}.{ours}", "lora_down", "lora_up", "_"),
}


def sampled(server: Server, checkpoint: str, nodes: dict[str, Any] | None = None, **links: list) -> Any:
    """The latent of the first picture, as float numbers. links: inputs that other nodes give ("mllm", "model")."""
    from safetensors.torch import load_file

    result = run(server, checkpoint, nodes, **links)
    assert result.error is None, result.error
    (file,) = result.outputs["kept"]["latents"]
    return load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


def run(server: Server, checkpoint: str, nodes: dict[str, Any] | None = None, **links: list) -> Result:
    graph = graphs.first_picture(checkpoint, steps=2)
    for one in graph.values():
        one["inputs"].update({name: link for name, link in links.items() if name in one["inputs"]})
    graph |= nodes or {}
    graph["kept"] = node("SaveLatent", samples=["p.sample", 0], filename_prefix="lora/latent")
    return server.run(graph)


def difference(a: Any, b: Any) -> float:
    return float((a - b).abs().max())


@pytest.fixture(scope="module")
def loras(server: Server) -> Path:
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    return folder


def copied(server: Server, checkpoint: Path, name: str) -> Path:
    folder = server.base / "models" / "duogen" / name
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(checkpoint, folder))


# ------------------------------------------------------------ on the MODEL


@pytest.fixture(scope="module")
def matrices(random_model: Path) -> dict[tuple[int, str], Any]:
    """{(block, layer): (down, up)}, of four layers of every block."""
    import torch
    from safetensors.torch import load_file

    dit = load_file(random_model / "dit" / "diffusion_pytorch_model.safetensors")
    noise, found = torch.Generator().manual_seed(5), {}
    blocks = json.loads((random_model / "dit" / "config.json").read_text("utf-8"))["num_layers"]
    for block in range(blocks):
        for layer in PROJECTIONS:
            outputs, inputs = dit[f"transformer_blocks.{block}.{layer}.weight"].shape
            found[block, layer] = (
                torch.randn(RANK, inputs, generator=noise) * 0.2, torch.randn(outputs, RANK, generator=noise) * 0.2
            )  # fmt: skip
    return found


def write_dit_lora(path: Path, matrices: dict[tuple[int, str], Any], naming: str) -> None:
    import torch
    from safetensors.torch import save_file

    pattern, down, up, dot = NAMINGS[naming]
    tensors = {}
    for (block, layer), (a, b) in matrices.items():
        name = pattern.format(block=block, ours=layer, official=PROJECTIONS[layer]).replace(".", dot)
        tensors |= {f"{name}.{down}.weight": a, f"{name}.{up}.weight": b, f"{name}.alpha": torch.tensor(ALPHA)}
    save_file(tensors, path)


def stock(name: str, strength: float = 1.0) -> dict[str, Any]:
    return {"lora": node("LoraLoaderModelOnly", model=["1", 2], lora_name=name, strength_model=strength)}


@pytest.fixture(scope="module")
def merged_dit(server: Server, random_model: Path, matrices: dict[tuple[int, str], Any]) -> str:
    from safetensors.torch import load_file, save_file

    folder = copied(server, random_model, "merged-dit")
    file = folder / "dit" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for (block, layer), (down, up) in matrices.items():
        tensors[f"transformer_blocks.{block}.{layer}.weight"] += ALPHA / RANK * (up @ down)
    save_file(tensors, file)
    return folder.name


@pytest.mark.slow
@pytest.mark.parametrize("naming", NAMINGS)
def test_the_stock_loader_gives_the_numbers_of_the_merged_weights(
    server: Server, random_model: Path, loras: Path, matrices: dict, merged_dit: str, naming: str
):
    write_dit_lora(loras / f"dit {naming}.safetensors", matrices, naming)
    plain, merged = sampled(server, random_model.name), sampled(server, merged_dit)
    told = len(server.log)
    found = sampled(server, random_model.name, stock(f"dit {naming}.safetensors"), model=["lora", 0])
    assert difference(merged, plain) > 0.1
    assert difference(found, merged) < 1e-4
    none = sampled(server, random_model.name, stock(f"dit {naming}.safetensors", 0.0), model=["lora", 0])
    assert difference(none, plain) == 0
    assert "lora key not loaded" not in server.log[told:] and "NOT LOADED" not in server.log[told:]


@pytest.mark.slow
def test_what_stage_2_trains_loads_as_it_is_written(server: Server, random_model: Path, loras: Path):
    import torch

    from duogen_core import cli
    from duogen_core.dit.loading import load_dit
    from duogen_core.training.lora import (
        DIFFUSERS_FILE,
        DIT_TARGETS,
        LoraSettings,
        add_lora,
        save_dit,
        save_dit_adapter,
        trainable,
    )

    dit = load_dit(random_model / "dit")
    add_lora(dit, LoraSettings(rank=RANK, alpha=ALPHA), within="transformer_blocks", usual=DIT_TARGETS)
    torch.manual_seed(3)
    for parameter in trainable(dit).values():
        parameter.data = torch.randn_like(parameter) * 0.2
    save_dit_adapter(dit, loras / "stage2")
    folder = copied(server, random_model, "merged-stage2")
    save_dit(dit, folder / "dit")
    merged = sampled(server, folder.name)
    found = sampled(server, random_model.name, stock(f"stage2/{DIFFUSERS_FILE}"), model=["lora", 0])
    assert difference(found, merged) < 1e-4 < difference(merged, sampled(server, random_model.name))
    pefts = run(server, random_model.name, stock("stage2/adapter_model.safetensors"), model=["lora", 0])
    assert "convert FOLDER NAME.safetensors makes one file of both" in "".join(pefts.texts)
    assert cli.main(["convert", str(loras / "stage2"), str(loras / "stage2.safetensors"), "--quiet"]) == 0
    found = sampled(server, random_model.name, stock("stage2.safetensors"), model=["lora", 0])
    assert difference(found, merged) < 1e-4


@pytest.mark.slow
def test_a_lora_for_another_size_is_refused_in_a_sentence(
    server: Server, random_model: Path, loras: Path, matrices: dict
):
    import torch

    wide = {key: (torch.zeros(RANK, down.shape[1] + 8), up) for key, (down, up) in matrices.items()}
    write_dit_lora(loras / "wide.safetensors", wide, "comfyui")
    error = run(server, random_model.name, stock("wide.safetensors"), model=["lora", 0]).error
    assert (
        "for another size of model: transformer_blocks.0.attn1.to_q is for 64x72, the MODEL's is 64x64"
        in (error["exception_message"])
    )
    more = tuple(matrix.clone() for matrix in matrices[0, "attn1.to_q"])
    write_dit_lora(loras / "more.safetensors", matrices | {(99, "attn1.to_q"): more}, "comfyui")
    assert run(server, random_model.name, stock("more.safetensors"), model=["lora", 0]).error is None
    assert "lora key not loaded: diffusion_model.blocks.99.self_attn.q_proj.lora_A.weight" in server.log


@pytest.mark.slow
def test_a_lora_with_nothing_for_the_model_passes_and_is_told(server: Server, random_model: Path, loras: Path):
    """As it passes with any other MODEL: a file may be for the CLIP alone. But the node says so."""
    import torch
    from safetensors.torch import save_file

    plain = sampled(server, random_model.name)
    for name, layer in {
        "another model": "diffusion_model.double_blocks.0.img_attn.qkv",
        "clip alone": "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    }.items():
        save_file({f"{layer}.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}, loras / f"{name}.safetensors")
        result = run(server, random_model.name, stock(f"{name}.safetensors"), model=["lora", 0])
        assert result.error is None, result.error
        assert any("This LoRA changes nothing here: none of its layers" in text for text in result.texts)
        again = sampled(server, random_model.name, stock(f"{name}.safetensors"), model=["lora", 0])
        assert difference(again, plain) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("small_models")
def test_a_lora_for_the_clip_beside_our_model_changes_the_clip(server: Server, random_model: Path, loras: Path):
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    layer = "model.layers.0.self_attn.q_proj"
    with safe_open(server.base / "models" / "text_encoders" / "small_flux2.safetensors", "pt") as file:
        rows, columns = file.get_slice(f"{layer}.weight").get_shape()
    name = f"text_encoders.transformer.{layer}"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, columns), f"{name}.lora_B.weight": torch.ones(rows, 2)}
    save_file(tensors, loras / "clip.safetensors")
    clip = node("CLIPLoader", clip_name="small_flux2.safetensors", type="flux2")
    both = node("LoraLoader", model=["1", 2], clip=["clip", 0], lora_name="clip.safetensors", strength_model=1.0,
                strength_clip=1.0)  # fmt: skip
    told = len(server.log)
    found = sampled(server, random_model.name, {"clip": clip, "lora": both}, model=["lora", 0])
    assert difference(found, sampled(server, random_model.name)) == 0
    assert "key not loaded" not in server.log[told:] and "NOT LOADED" not in server.log[told:]


@pytest.mark.slow
def test_nothing_of_comfyuis_is_replaced(
    server: Server, random_model: Path, loras: Path, matrices: dict, merged_dit: str
):
    """Other models' LoRAs go through ComfyUI's own code, and through that of a pack which stands before it."""
    write_dit_lora(loras / "beside.safetensors", matrices, "comfyui")
    merged = sampled(server, merged_dit)
    sampled(server, random_model.name, stock("beside.safetensors", 0.5), model=["lora", 0])
    assert server.get("/duogen_test/replaced") == []
    server.post("/duogen_test/wrap_lora_names", {"wrap": True})
    found = sampled(server, random_model.name, stock("beside.safetensors"), model=["lora", 0])
    assert server.post("/duogen_test/wrap_lora_names", {"wrap": False}) == 1
    assert difference(found, merged) < 1e-4


@pytest.mark.slow
def test_a_hook_gives_the_numbers_of_the_merged_weights(
    server: Server, random_model: Path, loras: Path, matrices: dict, merged_dit: str
):
    write_dit_lora(loras / "hook.safetensors", matrices, "comfyui")
    hook = node("CreateHookLoraModelOnly", lora_name="hook.safetensors", strength_model=1.0)
    hooked = node("PairConditioningSetProperties", positive_NEW=["p.connect", 0], negative_NEW=["p.connect", 1],
                  hooks=["hook", 0], strength=1.0, set_cond_area="default")  # fmt: skip
    links = {"positive": ["hooked", 0], "negative": ["hooked", 1]}
    graph = {"hook": hook, "hooked": hooked}
    found = sampled(server, random_model.name, graph, **links)
    assert difference(found, sampled(server, random_model.name)) > 0.1
    assert difference(found, sampled(server, merged_dit)) < 1e-4


# ------------------------------------------------------------ on the MLLM


def ours(name: str, strength: float = 1.0) -> dict[str, Any]:
    return {"adapter": node("DuoGenLoadMLLMLoRA", mllm=["1", 0], lora_name=name, strength=strength)}


@pytest.fixture(scope="module")
def adapter(server: Server, loras: Path) -> Callable[[Path], str]:
    """adapter(checkpoint) -> the name of the merged checkpoint, with the adapter as PEFT writes it in loras/NAME."""

    def write(checkpoint: Path) -> str:
        import torch

        from duogen_core.mllm.loading import load_mllm
        from duogen_core.training.lora import (
            MLLM_TARGETS,
            LoraSettings,
            add_lora,
            merged_state,
            save_adapter,
            trainable,
        )

        name = f"merged-mllm-{checkpoint.name}"
        folder = server.base / "models" / "duogen" / name
        if folder.exists():
            return name
        mllm = load_mllm(checkpoint / "mllm", torch.float32)
        rows = [mllm.control.bov]
        tied = mllm.model.config.tie_word_embeddings
        tokens = {"embed_tokens": rows} if tied else {"embed_tokens": rows, "lm_head": rows}
        settings = LoraSettings(rank=RANK, alpha=ALPHA)
        add_lora(mllm.model, settings, within="model.language_model.layers", usual=MLLM_TARGETS, tokens=tokens)
        torch.manual_seed(4)
        for parameter in trainable(mllm.model).values():
            parameter.data += torch.randn_like(parameter) * 0.06
        save_adapter(mllm.model, loras / checkpoint.name)
        state = merged_state(mllm.model)
        fresh = load_mllm(checkpoint / "mllm", torch.float32)
        fresh.model.load_state_dict(state)
        copied(server, checkpoint, name)
        fresh.save_pretrained(folder / "mllm")
        return name

    return write


@pytest.mark.slow
def test_our_loader_gives_the_answer_of_the_merged_mllm(
    server: Server, checkpoint: Path, adapter: Callable, loras: Path
):
    from safetensors.torch import load_file, save_file

    merged_name = adapter(checkpoint)
    plain, merged = sampled(server, checkpoint.name), sampled(server, merged_name)
    file = f"{checkpoint.name}/adapter_model.safetensors"
    found = sampled(server, checkpoint.name, ours(file), mllm=["adapter", 0])
    assert difference(merged, plain) > 2e-3 and difference(found, merged) < 1e-4
    assert difference(sampled(server, checkpoint.name, ours(file, 0.0), mllm=["adapter", 0]), plain) == 0
    assert difference(sampled(server, checkpoint.name), plain) < 1e-4, "the shared weights are as they were"
    path = loras / file
    whole = path.read_bytes()
    half = {name: tensor / 2 if "lora_B" in name else tensor for name, tensor in load_file(path).items()}
    save_file(half, path)
    weaker = sampled(server, checkpoint.name, ours(file), mllm=["adapter", 0])
    assert difference(weaker, found) > 5e-4, "the file changed, so it is read again"
    assert difference(sampled(server, checkpoint.name, ours(file, 2.0), mllm=["adapter", 0]), merged) < 1e-4
    path.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DoRA", "LoHa", "LoKr"])
def test_other_kinds_of_adapters_give_the_answer_of_the_merged_mllm(
    server: Server, random_model: Path, loras: Path, kind: str
):
    import peft
    import torch

    from duogen_core.mllm.loading import load_mllm

    mllm = load_mllm(random_model / "mllm", torch.float32)
    before = {name: tensor.clone() for name, tensor in mllm.model.state_dict().items()}
    target = r".*language_model\.layers.*_proj"
    if kind == "DoRA":
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=True, target_modules=target)
    else:
        config = getattr(peft, f"{kind}Config")(r=RANK, alpha=ALPHA, target_modules=target)
    model = peft.get_peft_model(mllm.model, config)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.06 * torch.randn_like(parameter)
    model.save_pretrained(loras / kind)
    fresh = load_mllm(random_model / "mllm", torch.float32)
    fresh.model.load_state_dict(model.merge_and_unload().state_dict())
    assert any(not torch.equal(before[name], tensor) for name, tensor in fresh.model.state_dict().items())
    merged_name = f"merged-{kind}"
    copied(server, random_model, merged_name)
    fresh.save_pretrained(server.base / "models" / "duogen" / merged_name / "mllm")
    plain, merged = sampled(server, random_model.name), sampled(server, merged_name)
    file = f"{kind}/adapter_model.safetensors"
    found = sampled(server, random_model.name, ours(file), mllm=["adapter", 0])
    effect = difference(merged, plain)  # of random weights, which transformers 4 and 5 draw differently
    assert effect > 5e-4 and difference(found, merged) < effect / 10
    assert difference(sampled(server, random_model.name), plain) < 1e-4, "the shared weights are as they were"


@pytest.mark.slow
def test_an_adapter_for_another_mllm_is_refused_in_a_sentence(
    server: Server, random_model: Path, adapter: Callable, loras: Path, matrices: dict
):
    import torch
    from safetensors.torch import load_file, save_file

    adapter(random_model)
    file = "adapter_model.safetensors"
    shutil.copytree(loras / random_model.name, loras / "wrong", dirs_exist_ok=True)
    tensors = load_file(loras / "wrong" / file)
    name = next(name for name in tensors if name.endswith("q_proj.lora_A.weight"))
    save_file({**tensors, name: torch.zeros(RANK, 8)}, loras / "wrong" / file)
    error = run(server, random_model.name, ours(f"wrong/{file}"), mllm=["adapter", 0]).error
    assert "is a LoRA for another size of model" in error["exception_message"]
    data = (loras / "wrong" / file).read_bytes()
    (loras / "wrong" / file).write_bytes(data[: len(data) // 2])
    error = run(server, random_model.name, ours(f"wrong/{file}"), mllm=["adapter", 0]).error
    assert "is cut off" in error["exception_message"]
    write_dit_lora(loras / "painter.safetensors", matrices, "diffusers")
    error = run(server, random_model.name, ours("painter.safetensors"), mllm=["adapter", 0]).error
    assert "is a LoRA for a diffusion transformer, not for an MLLM" in error["exception_message"]
    assert run(server, random_model.name, ours(f"{random_model.name}/{file}"), mllm=["adapter", 0]).error is None
