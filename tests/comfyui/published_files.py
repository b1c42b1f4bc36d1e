"""Tiny models of the published classes, in the layouts people have on their disks, below a folder of model folders.

    text_encoders/tiny_vl.safetensors         Qwen2.5-VL as ComfyUI keeps it: weights alone, flat names
    text_encoders/Tiny-VL-Instruct/           the same as a Hugging Face folder, in shards
    diffusion_models/tiny_cosmos.safetensors  Cosmos-Predict2.5 under its official names, crossattn_proj within
    diffusion_models/tiny-cosmos/             the same as a diffusers folder
    vae/tiny_wan.safetensors                  Wan 2.1

Weights are random, words are arranged (random_checkpoint): the model has no <BOV> and writes the marker it is taught.
In: the folder. Out: the files.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

FIRST, NEXT, CAPTION = "First a wall", " Now the roof", " grey house"
LAYERS, WIDTH, CROSS = 2, 128, 24


def write(folder: Path, tokenizer: Path) -> Path:
    """tokenizer: ComfyUI's own for Qwen's models."""
    import torch
    from safetensors.torch import save_file

    from duogen_core.vae import PictureVae, new_vae
    from duogen_core.weights.cosmos_keys import to_official

    for name in ("text_encoders", "diffusion_models", "vae"):
        (folder / name).mkdir(parents=True)
    torch.manual_seed(7)
    mllm = language_model(tokenizer)
    hub = folder / "text_encoders" / "Tiny-VL-Instruct"
    mllm.model.save_pretrained(hub, max_shard_size="50MB")
    mllm.tokenizer.save_pretrained(hub)
    mllm.image_processor.save_pretrained(hub)
    save_file(flat(mllm.model), folder / "text_encoders" / "tiny_vl.safetensors")
    dit = transformer()
    dit.save_pretrained(folder / "diffusion_models" / "tiny-cosmos" / "transformer")
    official = {to_official(name): tensor.contiguous() for name, tensor in dit.state_dict().items()}
    save_file(official, folder / "diffusion_models" / "tiny_cosmos.safetensors")
    save_file(PictureVae(new_vae(4)).to_single_file(), folder / "vae" / "tiny_wan.safetensors")
    return folder


def transformer(**config: Any) -> Any:
    import torch
    from diffusers import CosmosTransformer3DModel

    model = CosmosTransformer3DModel(**{
        "in_channels": 17, "out_channels": 16, "num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2,
        "mlp_ratio": 2.0, "text_embed_dim": CROSS, "adaln_lora_dim": 8, "rope_scale": (1.0, 3.0, 3.0),
        "extra_pos_embed_type": None, "use_crossattn_projection": True, "crossattn_proj_in_channels": LAYERS * WIDTH,
        "encoder_hidden_states_channels": CROSS, **config,
    }).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.15 + (parameter.ndim == 1)
    return model


def language_model(tokenizer: Path, layers: int = LAYERS, marker: str = f"<BOV:{CAPTION}>") -> Any:
    """Qwen2.5-VL with the head sizes of the published ones, and no <BOV>. marker: what it writes for an image."""
    from duogen_core.mllm.image_processor import image_processor_of
    from duogen_core.mllm.qwen2_5_vl import Qwen25VL
    from duogen_core.mllm.tokenizer import load_tokenizer

    words = load_tokenizer(tokenizer)
    rows = -(-len(words) // 64) * 64
    shapes = {
        "model.language_model.embed_tokens.weight": (rows, WIDTH), "lm_head.weight": (rows, WIDTH),
        "model.visual.patch_embed.proj.weight": (256, 3, 2, 14, 14),
        "model.visual.blocks.0.mlp.gate_proj.weight": (64, 256),
        "model.language_model.layers.0.self_attn.k_proj.bias": (128,),
        "model.language_model.layers.0.mlp.gate_proj.weight": (64, WIDTH),
        "model.language_model.layers.0.self_attn.q_proj.weight": (128, WIDTH),
        "model.language_model.layers.0.self_attn.k_proj.weight": (128, WIDTH),
        **{f"model.language_model.layers.{n}.x": (1,) for n in range(layers)},
    }  # fmt: skip
    module = Qwen25VL.build(Qwen25VL.guess_config(shapes)).eval()
    images = image_processor_of(Qwen25VL.picture_settings, Path("preprocessor_config.json"))
    mllm = Qwen25VL(module, words, images)
    _lead(mllm, marker)
    return mllm


def llava(tokenizer: Path, marker: str = f"<BOV:{CAPTION}>") -> Any:
    """LLaVA-OneVision with squares of the published size and its two tokens in Qwen2's vocabulary. After a picture it
    writes FIRST again: in its layout a line ends there, as before an answer."""
    from tokenizers import AddedToken, Tokenizer

    from duogen_core.mllm.image_processor import image_processor_of
    from duogen_core.mllm.llava_onevision import IMAGE_TOKEN, VIDEO_TOKEN, LlavaOneVision
    from duogen_core.mllm.tokenizer import load_tokenizer, wrap_tokenizer

    words = load_tokenizer(tokenizer)
    made = json.loads(words.backend_tokenizer.to_str())
    made["added_tokens"] = [token for token in made["added_tokens"] if token["id"] < IMAGE_TOKEN]  # Qwen2's three
    words = wrap_tokenizer(Tokenizer.from_str(json.dumps(made)))
    words.add_tokens([AddedToken(name, special=True, normalized=False) for name in ("<image>", "<video>")])
    assert words.get_vocab()["<image>"] == IMAGE_TOKEN
    config = {
        "model_type": "llava_onevision", "image_token_index": IMAGE_TOKEN, "video_token_index": VIDEO_TOKEN,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen2", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 1,
            "num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": 152000, "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 16,
            "intermediate_size": 64, "image_size": 384, "patch_size": 14, "vision_use_head": False,
        },
    }  # fmt: skip
    images = image_processor_of(LlavaOneVision.picture_settings, Path("preprocessor_config.json"))
    mllm = LlavaOneVision(LlavaOneVision.build(config).eval(), words, images)
    _lead(mllm, marker)
    return mllm


def _lead(mllm: Any, marker: str) -> None:
    """Each token of these sentences is followed by the next one."""
    import torch

    model, tokenizer, control = mllm.model, mllm.tokenizer, mllm.control
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    ending = encode(marker)
    chains = [(encode("assistant\n")[-1], *encode(FIRST), *ending)]
    if control.vision_end is not None:
        chains.append((control.vision_end, *encode(NEXT), *ending))
    pairs = {pair for words in chains for pair in pairwise(words)}
    assert len({before for before, _ in pairs}) == len(pairs), "a token that is followed by two others"
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding.copy_(torch.nn.functional.normalize(torch.randn_like(embedding), dim=-1) * 8)
        rows = torch.zeros_like(embedding)
        for before, after in pairs:
            rows[after] += embedding[before]
        model.lm_head.weight.copy_(rows)


def flat(module: Any) -> dict[str, Any]:
    """The names that ComfyUI's files have."""
    return {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor.clone()
        for name, tensor in module.state_dict().items()
    }
