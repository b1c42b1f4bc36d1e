"""A custom node file for test servers: small random models of the very classes that ComfyUI samples and writes with.

POST /duogen_test/small_models writes them into the server's model folders: Qwen-Image-Edit, FLUX.2 klein, OmniGen2 and
Wan 2.1, each with its text encoder and VAE, and a Qwen3-VL that writes CHAIN. Their keys are those of the published
files, so ComfyUI's own loaders find out what they are.

ComfyUI reads few sizes from such files and has the others in its code (a Qwen2.5-VL of 7B is 3584 wide). So while one
of the small files is loaded, and only then, those numbers are replaced: by small_config, VISION and TRANSFORMERS.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.ldm.flux.model
import comfy.ldm.models.autoencoder
import comfy.ldm.omnigen.omnigen2
import comfy.ldm.qwen_image.model
import comfy.ldm.wan.model
import comfy.model_detection
import comfy.ops
import comfy.sd
import comfy.text_encoders.llama as llama
import comfy.text_encoders.qwen3vl as qwen3vl
import comfy.text_encoders.qwen_vl as qwen_vl
import comfy.text_encoders.t5
import comfy.text_encoders.wan as wan
import folder_paths
import torch
from aiohttp import web
from safetensors.torch import save_file
from server import PromptServer

NODE_CLASS_MAPPINGS: dict = {}
HIDDEN = 64  # of every text encoder: by it a small one is known
CONFIGS = ("Qwen25_7BVLI_Config", "Qwen25_3BConfig", "Qwen3_4BConfig", "Qwen3VL_8BConfig")
LAYERS = {"Qwen3_4BConfig": 28}  # FLUX.2 takes what layers 9, 18 and 27 say
HEADS = {"Qwen25_7BVLI_Config": 4, "Qwen25_3BConfig": 2}  # of 128 each: the width of k_proj tells 7B and 3B apart
VISION = {"hidden_size": 128, "intermediate_size": 64, "depth": 1, "deepstack_visual_indexes": [0]}
TRANSFORMERS = {
    "qwen_image": {"num_attention_heads": 1, "joint_attention_dim": HIDDEN},
    "omnigen2": {
        "hidden_size": 120, "num_attention_heads": 1, "num_kv_heads": 1, "num_layers": 1, "num_refiner_layers": 1,
        "text_feat_dim": HIDDEN, "multiple_of": 32,
    },
    "wan2.1": {"text_dim": HIDDEN},
}  # fmt: skip
FLUX2 = {
    "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 3 * HIDDEN, "hidden_size": 128,
    "mlp_ratio": 3.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "axes_dim": [32, 32, 32, 32],
    "theta": 2000, "patch_size": 1, "qkv_bias": False, "guidance_embed": False, "txt_ids_dims": [3],
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
}  # fmt: skip
WAN = {"dim": 128, "ffn_dim": 96, "num_heads": 1, "num_layers": 2, "text_dim": HIDDEN}  # ComfyUI: heads of 128
UMT5 = {
    "d_ff": 64, "d_kv": 64, "d_model": HIDDEN, "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True,
    "layer_norm_epsilon": 1e-06, "model_type": "umt5", "num_heads": 1, "num_layers": 2, "vocab_size": 400,
}  # fmt: skip
VAE = {
    "double_z": True, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2,
    "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip

# What Qwen3-VL writes, by the token it has just read: the "\n" of the assistant's header, the end of a picture, and the
# "\n\n" that ends Generate Text's own template. Each word leads to the next, so none may stand in it twice.
MARKER = " <BOV: red bricks, daylight> and so on"
CHAIN = (("\n", "First a wall." + MARKER), ("<|vision_end|>", " Now the roof" + MARKER), ("\n\n", "Nothing to draw!"))


def small_config(name: str) -> Any:
    heads = HEADS.get(name, 1)
    return partial(
        getattr(llama, name), hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=LAYERS.get(name, 2),
        num_attention_heads=heads, num_key_value_heads=heads,
    )  # fmt: skip


@contextlib.contextmanager
def small_sizes() -> Iterator[None]:
    configs = {name: small_config(name) for name in CONFIGS}
    vision = partial(qwen_vl.Qwen2VLVisionTransformer, intermediate_size=64, num_heads=4, num_layers=1)
    tower = lambda hidden_size, **rest: vision(hidden_size=VISION["hidden_size"], **rest)  # noqa: E731
    with contextlib.ExitStack() as stack:
        for name, config in configs.items():
            stack.enter_context(patch.object(llama, name, config))
        stack.enter_context(patch.dict(qwen3vl.QWEN3VL_CONFIGS, qwen3vl_8b=configs["Qwen3VL_8BConfig"]))
        stack.enter_context(patch.dict(qwen3vl.QWEN3VL_VISION, qwen3vl_8b=VISION))
        stack.enter_context(patch.object(qwen_vl, "Qwen2VLVisionTransformer", tower))
        stack.enter_context(patch.object(wan, "UMT5XXlModel", SmallUmt5))
        yield


class SmallUmt5(comfy.sd1_clip.SDClipModel):
    """Wan's text encoder; the real one reads its sizes from a file of ComfyUI's."""

    def __init__(self, device: str = "cpu", dtype: Any = None, model_options: Any = None, **_: Any) -> None:
        super().__init__(
            device=device, dtype=dtype, textmodel_json_config=dict(UMT5), special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5, enable_attention_masks=True, zero_out_masked=True,
            model_options=model_options or {},
        )  # fmt: skip


load_encoders, detect_encoder = comfy.sd.load_text_encoder_state_dicts, comfy.sd.detect_te_model
detect_transformer = comfy.model_detection.detect_unet_config


def load_small_encoders(state_dicts: list[dict], *rest: Any, **options: Any) -> Any:
    ends = ("embed_tokens.weight", "shared.weight")
    embeddings = [sd[name] for sd in state_dicts for name in sd if name.endswith(ends)]
    if not any(weight.shape[1] == HIDDEN for weight in embeddings):
        return load_encoders(state_dicts, *rest, **options)
    with small_sizes(), patch.object(comfy.sd, "detect_te_model", detect_small_encoder):
        return load_encoders(state_dicts, *rest, **options)


def detect_small_encoder(weights: dict) -> Any:
    """As ComfyUI does, but for Qwen3 4B, which it knows by its width alone, and umT5, known by its number of layers."""
    if "spiece_model" in weights:
        return comfy.sd.TEModel.T5_XXL
    if "model.layers.0.self_attn.q_norm.weight" in weights:
        return comfy.sd.TEModel.QWEN3_4B
    return detect_encoder(weights)


def detect_small_transformer(weights: dict, prefix: str, *rest: Any, **options: Any) -> Any:
    config = detect_transformer(weights, prefix, *rest, **options)
    names = ("img_in.weight", "x_embedder.weight", "patch_embedding.weight")
    first = next((weights[prefix + name] for name in names if prefix + name in weights), None)
    if config is not None and first is not None and first.shape[0] <= 128:
        config |= TRANSFORMERS.get(config["image_model"], {})
    return config


comfy.sd.load_text_encoder_state_dicts = load_small_encoders
comfy.model_detection.detect_unet_config = detect_small_transformer


# ------------------------------------------------------------ the files


def fill(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Its state dict with random weights: norms as they are, matrices that keep the size of what goes through them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, old in module.state_dict().items():
        if not old.is_floating_point() or "running" in name:
            weights[name] = torch.ones_like(old) if name.endswith("var") else torch.zeros_like(old)
        elif old.ndim < 2:
            weights[name] = torch.zeros_like(old) if name.endswith("bias") else torch.ones_like(old)
        else:
            new = torch.randn(old.shape, generator=generator)
            weights[name] = (new / max(1, new[0].numel()) ** 0.5).to(old.dtype)
    return weights


def build(kind: Any, *values: Any, **options: Any) -> torch.nn.Module:
    return kind(*values, device="cpu", operations=comfy.ops.disable_weight_init, **options)


def encoder(kind: Any, seed: int) -> dict[str, torch.Tensor]:
    return fill(kind({}, torch.float16, "cpu", comfy.ops.disable_weight_init), seed)


def writer() -> dict[str, torch.Tensor]:
    """Qwen3-VL 8B, under the names of its published file. Its layers add nothing to a word: what comes next hangs on
    the last word alone."""
    from comfy.text_encoders.qwen3vl import tokenizer

    weights = encoder(type("Small", (qwen3vl.Qwen3VL,), {"model_type": "qwen3vl_8b"}), 5)
    for name in weights:
        if name.startswith("model.layers.") and name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = torch.zeros_like(weights[name])
    words = tokenizer("qwen3vl_8b")().qwen3vl_8b.tokenizer
    head = torch.zeros_like(weights["model.lm_head.weight"])
    end = words.convert_tokens_to_ids("<|im_end|>")
    led: dict[int, int] = {}
    for before, text in CHAIN:
        ids = [*words.encode(before), *words.encode(text), end]
        for one, following in pairwise(ids):
            if led.setdefault(one, following) != following:
                raise ValueError(f"{words.decode([one])!r} leads to two words")
    embedding = weights["model.embed_tokens.weight"]
    for one, following in led.items():
        head[following] += embedding[one]
    weights["model.lm_head.weight"] = head
    published = {"model.lm_head.": "lm_head.", "model.": "model.language_model.", "visual.": "model.visual."}
    prefixes = lambda name: next(old for old in published if name.startswith(old))  # noqa: E731
    return {published[prefixes(name)] + name[len(prefixes(name)) :]: weight for name, weight in weights.items()}


def umt5() -> dict[str, torch.Tensor]:
    """Wan's text encoder with its tokenizer in the same file, as Comfy-Org publishes it."""
    import sentencepiece

    text, model = "a wall with a roof, red bricks, blue house, daylight, small flat drawing, first, now", io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text] * 20), model_writer=model, vocab_size=60, model_type="bpe", pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, byte_fallback=False, minloglevel=2,
    )  # fmt: skip
    encoder = comfy.text_encoders.t5.T5(UMT5, torch.float16, "cpu", comfy.ops.disable_weight_init)
    spiece = torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)
    return {**fill(encoder, 4), "spiece_model": spiece}


def vae(channels: int, batch_norm: bool, seed: int) -> dict[str, torch.Tensor]:
    """The VAE of FLUX (16 channels) or FLUX.2 (32, normalised and packed in fours); its encoder has one width only."""
    config = {**VAE, "z_channels": channels, "ch": 128}
    narrow = {**config, "ch": 32}
    if batch_norm:
        kind = comfy.ldm.models.autoencoder.AutoencoderKL
        return fill(
            kind(ddconfig={**config, "batch_norm_latent": True}, embed_dim=channels, decoder_ddconfig=narrow), seed
        )
    module = "comfy.ldm.modules.diffusionmodules.model."
    engine = comfy.ldm.models.autoencoder.AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": module + "Encoder", "params": config},
        decoder_config={"target": module + "Decoder", "params": narrow},
    )
    return fill(engine, seed)


def files() -> Iterator[tuple[str, str, dict[str, torch.Tensor]]]:
    """(folder, name, weights) of each model."""
    qwen = comfy.ldm.qwen_image.model.QwenImageTransformer2DModel
    omnigen2 = comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel
    options = {**TRANSFORMERS["qwen_image"], "num_layers": 1, "default_ref_method": "index_timestep_zero"}
    yield "diffusion_models", "qwen", fill(build(qwen, dtype=torch.float32, **options), 1)
    options = {**TRANSFORMERS["omnigen2"], "axes_dim_rope": (40, 40, 40)}
    yield (
        "diffusion_models",
        "omnigen2",
        fill(build(omnigen2, dtype=torch.float32, **options), 2),
    )
    yield "diffusion_models", "wan", fill(build(comfy.ldm.wan.model.WanModel, dtype=torch.float32, **WAN), 8)
    yield "diffusion_models", "flux2", fill(build(comfy.ldm.flux.model.Flux, dtype=torch.float32, **FLUX2), 3)
    with small_sizes():
        for name, kind in (("qwen", llama.Qwen25_7BVLI), ("omnigen2", llama.Qwen25_3B), ("flux2", llama.Qwen3_4B)):
            yield "text_encoders", name, encoder(kind, 4)
        yield "text_encoders", "writer", writer()
    yield "text_encoders", "wan", umt5()
    for name, channels, packed in (("flux", 16, False), ("flux2", 32, True)):
        yield "vae", name, {key: weight.half() for key, weight in vae(channels, packed, 6).items()}


@PromptServer.instance.routes.post("/duogen_test/small_models")
async def write_small_models(request: web.Request) -> web.Response:
    written = []
    with torch.no_grad():
        for folder, name, weights in files():
            place = Path(folder_paths.models_dir) / folder
            place.mkdir(parents=True, exist_ok=True)
            file = place / f"small_{name}.safetensors"
            save_file({key: value.contiguous() for key, value in weights.items()}, file)
            written.append(str(file))
    return web.json_response(written)
