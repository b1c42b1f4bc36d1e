"""Cosmos-Predict2.5's own text-to-picture: our path against diffusers' pipeline, on small random models."""

from __future__ import annotations

import types
from dataclasses import replace

import pytest
import torch
from diffusers import Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel, UniPCMultistepScheduler
from diffusers.models.transformers import transformer_cosmos
from safetensors.torch import save_file

from duogen_core.checkpoint import (
    CheckpointConfig,
    Components,
    PictureSize,
    load_checkpoint,
    load_parts,
)
from duogen_core.dit.loading import CONVENTIONS, open_published
from duogen_core.document import Document, Text, pending
from duogen_core.errors import DuoGenError
from duogen_core.mllm.base import Continuation
from duogen_core.mllm.prompt_states import SYSTEM, prompt_states
from duogen_core.mllm.prompted import Prompted
from duogen_core.mllm.qwen2_5_vl import create_tiny
from duogen_core.pipeline import Callbacks, generate
from duogen_core.sampling import initial_noise, sigmas
from duogen_core.settings import Settings
from duogen_core.text_to_picture import draw_prompt, prompt_latent
from duogen_core.vae import PictureVae, new_vae
from duogen_core.weights.cosmos_keys import to_official
from tests.core.tiny import tokenizer

LAYERS, HIDDEN, CROSS = 28, 32, 24
PROMPT, NEGATIVE = "A red house under a large blue star.", "blurry, dark"
TEMPLATE = (  # Qwen2.5-VL's own, for texts
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{{ c.text }}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
)


class NoGuardrail:
    """diffusers' pipeline insists on one."""

    def to(self, device):
        return self

    def check_text_safety(self, text):
        return True


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    mllm = create_tiny(
        tokenizer(), hidden_size=HIDDEN, layers=LAYERS, heads=1, kv_heads=1, intermediate_size=24,
        vision_hidden_size=32, vision_layers=1, vision_heads=2, vision_intermediate_size=48,
    )  # fmt: skip
    dit = CosmosTransformer3DModel(
        in_channels=17, out_channels=16, num_attention_heads=2, attention_head_dim=24, num_layers=2, mlp_ratio=2.0,
        text_embed_dim=CROSS, adaln_lora_dim=8, rope_scale=(1.0, 3.0, 3.0), extra_pos_embed_type=None,
        use_crossattn_projection=True, crossattn_proj_in_channels=LAYERS * HIDDEN, encoder_hidden_states_channels=CROSS,
    ).eval()  # fmt: skip
    for parameter in (*mllm.model.parameters(), *dit.parameters()):
        parameter.data = torch.randn_like(parameter) * 0.15 + (parameter.ndim == 1)
    words = tokenizer()
    words.chat_template = TEMPLATE
    scheduler = UniPCMultistepScheduler(
        use_karras_sigmas=True, use_flow_sigmas=True, prediction_type="flow_prediction", sigma_max=200.0, sigma_min=0.01
    )
    pipe = Cosmos2_5_PredictBasePipeline(mllm.model, words, dit, new_vae(base_dim=4).eval(), scheduler, NoGuardrail())
    pipe.set_progress_bar_config(disable=True)
    pipe.mllm = mllm
    return pipe


@pytest.fixture(scope="module")
def components(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("dit") / "cosmos.safetensors"
    save_file({to_official(name): tensor for name, tensor in pipe.transformer.state_dict().items()}, path)
    file = open_published(path)
    config = CheckpointConfig("tiny", file.sampling, PictureSize(48, 32, 64))
    connector = file.load_connector((LAYERS, HIDDEN))
    return Components(pipe.mllm, connector, file.load_dit(), PictureVae(pipe.vae), config)


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch):
    """diffusers resizes the padding mask with it; the mask is all zeros."""
    functional = types.SimpleNamespace(resize=lambda mask, size, interpolation=None: mask.new_zeros(1, 1, *size))
    fake = types.SimpleNamespace(functional=functional, InterpolationMode=types.SimpleNamespace(NEAREST=None))
    monkeypatch.setattr(transformer_cosmos, "transforms", fake, raising=False)


def theirs(pipe, length: int) -> torch.Tensor:
    """The pipeline's prompt embedding through the projection of its transformer."""
    with torch.no_grad():
        embeds = pipe._get_prompt_embeds(PROMPT, max_sequence_length=length)
        return pipe.transformer.crossattn_proj(embeds)[0]


def test_states_equal_the_pipelines_padded_to_512_and_without_padding(pipe, components):
    plain = prompt_states(components.mllm, components.connector, PROMPT, None)
    assert 20 < len(plain) < 200 and plain.shape[1] == CROSS
    assert torch.allclose(plain, theirs(pipe, len(plain)), atol=1e-4)
    padded = prompt_states(components.mllm, components.connector, PROMPT)
    assert padded.shape[0] == 512
    assert torch.allclose(padded, theirs(pipe, 512), atol=1e-4)
    assert torch.allclose(padded[: len(plain)], plain, atol=1e-5)
    assert not torch.allclose(padded[len(plain)], padded[-1], atol=1e-3)  # pads differ: each has its position
    assert torch.allclose(prompt_states(components.mllm, components.connector, PROMPT, 16), plain[:16], atol=1e-4)


def test_streamed_states_of_a_conversation_begin_with_the_pipelines(pipe, components):
    chat = Document().begin_turn("system", [Text(SYSTEM)]).begin_turn("user", [Text(PROMPT)])
    states = components.mllm.encode(chat.begin_turn("assistant"), components.connector).positive()
    length = len(prompt_states(components.mllm, components.connector, PROMPT, None))
    assert torch.allclose(states[:length], theirs(pipe, length), atol=1e-4) and len(states) > length


class Writer:
    """Stands for the MLLM in the loop: writes what it is told, with captions; all else is the MLLM's own."""

    def __init__(self, mllm, *script: tuple[str, str, str]) -> None:
        self.mllm, self.prompted, self.script = mllm, Prompted(), iter(script)

    def __getattr__(self, name):
        return getattr(self.mllm, name)

    def continue_(self, document, **_) -> Continuation:
        text, stop, caption = next(self.script)
        return Continuation(text, stop, 1, caption)


def test_a_prompted_models_caption_is_what_is_drawn(components):
    """The first picture of the loop is text to picture of its caption; without one, of the text, or of the request."""
    asked = Document().begin_turn("user", [Text("Paint me a house.")])
    for text, caption, prompt in (
        ("Here it is.", PROMPT, PROMPT),
        ("A yellow house.", "", "A yellow house."),
        ("", "", "Paint me a house."),
    ):
        settings = Settings(seed=3, steps=2, size=(48, 32))
        kept = []
        writer = Writer(components.mllm, (text, "picture", caption), ("Done.", "end", ""))
        callbacks = Callbacks(on_document=kept.append)
        answer = generate(replace(components, mllm=writer), asked, settings, callbacks)
        expected = draw_prompt(components, prompt, settings)
        assert (answer.pictures[0].pixels == expected).all() and expected.std() > 1
        assert answer.pictures[0].meta.get("caption", "") == caption
        assert pending.due_caption(kept[0]) == caption and pending.due_caption(answer) == ""


def test_a_later_picture_is_drawn_with_the_earlier_ones_in_view(components):
    asked = Document().begin_turn("user", [Text("Paint me a house.")])
    settings, drawn = Settings(seed=3, steps=2, size=(48, 32)), []
    for first in (PROMPT, "A black square."):
        script = (("", "picture", first), ("", "picture", "The same at night."), ("", "end", ""))
        drawn.append(generate(replace(components, mllm=Writer(components.mllm, *script)), asked, settings).pictures)
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]


@pytest.mark.parametrize("guidance", [1.0, 8.0])
def test_the_latent_equals_the_pipelines(pipe, components, guidance):
    steps, seed = 5, 3
    noise = initial_noise(seed, (1, 16, 4, 6))
    first = sigmas(steps, schedule="karras")[0]
    expected = pipe(
        prompt=PROMPT, negative_prompt=NEGATIVE, width=48, height=32, num_frames=1, num_inference_steps=steps,
        guidance_scale=guidance - 1, latents=noise[:, :, None] * first, output_type="latent",
    ).frames[:, :, 0]  # fmt: skip
    settings = Settings(seed=seed, steps=steps, guidance=guidance)
    ours = prompt_latent(components, PROMPT, settings, (48, 32), negative_prompt=NEGATIVE)
    assert expected.std() > 0.5
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1)
    assert not torch.allclose(prompt_latent(components, NEGATIVE, settings, (48, 32)), ours, atol=1e-2)


def test_the_default_negative_prompt_and_size_are_the_pipelines(pipe, components):
    settings = Settings(seed=1, steps=2)
    picture = draw_prompt(components, PROMPT, settings)
    assert picture.shape == (32, 48, 3)
    noise = initial_noise(1, (1, 16, 1, 4, 6)) * sigmas(2, schedule="karras")[0]
    frames = pipe(prompt=PROMPT, width=48, height=32, num_frames=1, num_inference_steps=2, latents=noise,
                  output_type="latent").frames  # fmt: skip
    assert abs(components.vae.decode_pixels(frames[:, :, 0]).astype(int) - picture).max() <= 1


# ---------------------------------------------------------------- from files


def save_parts(components: Components, pipe, folder) -> dict:
    components.mllm.save_pretrained(folder / "mllm")
    save_file({to_official(name): t for name, t in pipe.transformer.state_dict().items()}, folder / "dit.safetensors")
    save_file(components.vae.to_single_file(), folder / "vae.safetensors")
    return {"mllm": folder / "mllm", "dit": folder / "dit.safetensors", "vae": folder / "vae.safetensors"}


def test_parts_from_files_draw_the_same(pipe, components, tmp_path):
    loaded = load_parts(**save_parts(components, pipe, tmp_path))
    assert loaded.config.sampling == CONVENTIONS["post-trained"].sampling
    settings = Settings(steps=2, size=(48, 32))
    assert (draw_prompt(loaded, PROMPT, settings) == draw_prompt(components, PROMPT, settings)).all()


def test_an_mllm_of_another_size_is_refused_before_it_is_loaded(pipe, components, tmp_path):
    paths = save_parts(components, pipe, tmp_path)
    other = create_tiny(
        tokenizer(), hidden_size=64, layers=3, heads=2, kv_heads=1, intermediate_size=24, vision_hidden_size=32,
        vision_layers=1, vision_heads=2, vision_intermediate_size=48,
    )  # fmt: skip
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(DuoGenError, match="reads 896 numbers a token, but this MLLM has 3 layers of width 64"):
        load_parts(**{**paths, "mllm": tmp_path / "other"})


def test_a_checkpoint_keeps_its_schedule_and_solver(components, tmp_path):
    from duogen_core.checkpoint import read_config, write_config

    config = replace(components.config, sampling=CONVENTIONS["pre-trained"].sampling)
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config
    text = (tmp_path / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(text.replace('"unipc"', '"magic"'))
    with pytest.raises(DuoGenError, match="sampling.solver is 'magic'; expected euler or unipc"):
        load_checkpoint(tmp_path)
