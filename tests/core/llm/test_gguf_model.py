"""Language models without vision from GGUF files, against the same weights in transformers' own module."""

from __future__ import annotations

import pytest
import torch

from duogen_core.errors import DuoGenError
from duogen_core.llm.gguf_model import load_causal
from duogen_core.mllm.tokenizer import train_tokenizer
from duogen_core.weights.gguf_layers import PackedEmbedding, PackedLinear
from tests.core.gguf_files import causal_notes, causal_tensors, write_causal, write_gguf

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
# GGUF's name -> transformers' model type, and what differs from its defaults.
KNOWN = {
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "llama": ("llama", {}),
    "gemma2": ("gemma2", {"head_dim": 32}),
    "gemma3": ("gemma3_text", {"head_dim": 32}),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a boat, a hat and a fox; the fox folds the boat and wears the hat"] * 20, 320)


def tiny(architecture, tokenizer, tied=True):
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, more = KNOWN[architecture]
    config = AutoConfig.for_model(
        model_type, **SIZES | more, vocab_size=len(tokenizer), tie_word_embeddings=tied, eos_token_id=None
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.1) if weight.ndim == 2 else weight.add_(torch.randn_like(weight) * 0.1)
    model.tie_weights()
    return model


@pytest.mark.parametrize("architecture", KNOWN)
@pytest.mark.parametrize("tied", [True, False])
def test_unquantised_weights_give_the_logits_of_the_module_they_were_written_from(
    architecture, tied, tokenizer, tmp_path
):
    if architecture.startswith("gemma") and not tied:
        pytest.skip("Gemma has no output matrix of its own")
    model = tiny(architecture, tokenizer, tied)
    path = write_causal(tmp_path / "model.gguf", model, architecture, tokenizer, kind=None)
    read, _ = load_causal(path, compute=torch.float32)
    ids = torch.randint(0, len(tokenizer), (2, 20))
    with torch.no_grad():
        assert torch.allclose(read(ids).logits, model(ids).logits, atol=1e-4)


@pytest.mark.parametrize("architecture", KNOWN)
def test_quantised_weights_stay_so_and_give_the_logits_of_transformers_own_reading(architecture, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    path = write_causal(tmp_path / "model.gguf", tiny(architecture, tokenizer), architecture, tokenizer)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    read, _ = load_causal(path, compute=torch.float32)
    assert isinstance(read.get_input_embeddings(), PackedEmbedding)
    assert isinstance(read.get_output_embeddings(), PackedLinear)
    assert read.get_output_embeddings().weight is read.get_input_embeddings().weight
    assert sum(isinstance(layer, PackedLinear) for layer in read.modules()) == 2 * 7 + 1
    ids = torch.randint(0, len(tokenizer), (2, 20))
    with torch.no_grad():
        assert torch.allclose(read(ids).logits, reference(ids).logits, atol=1e-5)
        whole, _ = load_causal(path, torch.float32)
        assert not any(isinstance(layer, PackedLinear) for layer in whole.modules())
        assert torch.allclose(whole(ids).logits, reference(ids).logits, atol=1e-5)


def test_half_precision_that_suits_takes_no_memory_of_its_own(tokenizer, tmp_path):
    """An F16 file of 14 GB must not pass through 28 GB of float32."""
    import numpy as np

    from duogen_core.weights.gguf_layers import _MAPS

    model = tiny("qwen2", tokenizer)
    tensors = {name: value.astype(np.float16) for name, value in causal_tensors(model, "qwen2", None).items()}
    notes = causal_notes(model, "qwen2", tokenizer)
    read, _ = load_causal(write_gguf(tmp_path / "a.gguf", "qwen2", tensors, notes), compute=torch.float16)
    weights = [weight for weight in read.parameters() if weight.ndim == 2]
    assert len(weights) == 1 + 2 * 7 and {weight.dtype for weight in weights} == {torch.float16}
    for weight in weights:
        assert any(start <= weight.data_ptr() < start + len(data) for start, data in _MAPS.items())


def test_the_slower_frequencies_of_later_llamas_are_kept(tokenizer, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32}  # fmt: skip
    plain = tiny("llama", tokenizer)
    config = AutoConfig.for_model(
        "llama", **SIZES, vocab_size=len(tokenizer), tie_word_embeddings=True, eos_token_id=None, rope_scaling=scaling,
        rope_theta=10000.0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict(plain.state_dict())
    factors = plain.model.rotary_emb.inv_freq / model.model.rotary_emb.inv_freq
    assert factors.max() > 4
    tensors = causal_tensors(model, "llama", None) | {"rope_freqs.weight": factors.numpy()}
    path = write_gguf(tmp_path / "model.gguf", "llama", tensors, causal_notes(plain, "llama", tokenizer))
    read, _ = load_causal(path, compute=torch.float32)
    ids = torch.randint(0, len(tokenizer), (1, 60))
    with torch.no_grad():
        assert torch.allclose(read(ids).logits, model(ids).logits, atol=1e-4)
        assert not torch.allclose(plain(ids).logits, model(ids).logits, atol=1e-2)
    tensors["rope_freqs.weight"] = factors.numpy()[:3]
    with pytest.raises(DuoGenError, match="expected one factor a frequency"):
        load_causal(write_gguf(tmp_path / "a.gguf", "llama", tensors, causal_notes(plain, "llama", tokenizer)))


@pytest.mark.parametrize(
    ("architecture", "change", "sentence"),
    [
        ("falcon", {}, "architecture 'falcon'; as a writer without vision this pack reads llama, qwen2"),
        ("qwen2", {"drop": "token_embd.weight"}, "token_embd.weight is missing"),
        ("qwen2", {"drop": "blk.1.ffn_up.weight"}, r"1 of \d+ tensors are missing"),
        ("qwen2", {"add": "blk.0.strange.weight"}, "1 tensors that a qwen2 model has no place for"),
        ("qwen2", {"qwen2.block_count": 10**8}, "num_hidden_layers"),
        ("qwen2", {"qwen2.attention.head_count": 0}, "does not describe a qwen2 model"),
        ("qwen2", {"tokenizer.ggml.tokens": ["a"]}, "tokenizer|vocabulary"),
        ("qwen2", {"tokenizer.ggml.tokens": 3}, "holds no tokenizer"),
        ("qwen2", {"tokenizer.ggml.merges": ["x"]}, "no tokenizer this pack can read"),
    ],
)
def test_what_is_no_such_model_gets_a_sentence(architecture, change, sentence, tokenizer, tmp_path):
    model = tiny("qwen2", tokenizer)
    tensors, notes = causal_tensors(model, "qwen2", None), causal_notes(model, "qwen2", tokenizer)
    tensors.pop(change.pop("drop", ""), None)
    if "add" in change:
        tensors[change.pop("add")] = torch.zeros(4).numpy()
    with pytest.raises(DuoGenError, match=sentence) as caught:
        load_causal(write_gguf(tmp_path / "a.gguf", architecture, tensors, notes | change))
    assert "\n" not in str(caught.value)


def test_generates_in_a_batch_padded_on_the_left(tokenizer, tmp_path):
    path = write_causal(tmp_path / "model.gguf", tiny("qwen2", tokenizer), "qwen2", tokenizer)
    model, own = load_causal(path, compute=torch.float32)
    texts = [
        own.apply_chat_template([{"role": "user", "content": words}], add_generation_prompt=True, tokenize=False)
        for words in ("a boat", "the fox wears the hat and folds a boat")
    ]
    assert own(texts[0])["input_ids"] == tokenizer(texts[0])["input_ids"]
    batch = own(texts, padding=True, return_tensors="pt")
    assert batch["attention_mask"][0, 0] == 0
    together = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=None)
    for row, text in enumerate(texts):
        alone = model.generate(**own([text], return_tensors="pt"), max_new_tokens=8, do_sample=False, eos_token_id=None)
        assert together[row, -8:].tolist() == alone[0, -8:].tolist()
    ends = [own.convert_ids_to_tokens(number) for number in model.generation_config.eos_token_id]
    assert ends == ["<|im_end|>", "<|endoftext|>"]


def test_computes_in_bf16_with_its_blocks_as_they_are(tokenizer, tmp_path):
    path = write_causal(tmp_path / "model.gguf", tiny("qwen2", tokenizer), "qwen2", tokenizer)
    model, _ = load_causal(path, compute=torch.float32)
    before = model(torch.tensor([[1, 2, 3]])).logits
    model.to(torch.bfloat16)
    after = model(torch.tensor([[1, 2, 3]])).logits
    assert model.lm_head.weight.dtype == torch.uint8 and after.dtype == torch.bfloat16
    assert torch.allclose(before, after.float(), atol=0.1)
