"""The tokenizer that a GGUF file carries in its metadata -> a transformers fast tokenizer, with its chat template.

Qwen's byte-level BPE by the rules of tokenizer.py; others as transformers' own GGUF support converts them. Every token
that the file calls a control token or the user's own is then made whole, as llama.cpp reads them (transformers 4 does
so for three of Qwen's).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError, first_line, is_out_of_memory
from duogen_core.mllm.tokenizer import qwen2_rules
from duogen_core.weights.gguf import LongArray
from duogen_core.weights.gguf_layers import trim

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # of llama.cpp's token types
# Ends of a turn, by whichever name; llama.cpp knows them in the same way.
ENDS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<end_of_turn>", "<|end|>",
)  # fmt: skip
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def gguf_tokenizer(notes: Mapping[str, Any], path: Path) -> Any:
    """notes: a GGUF header's. Pads on the left."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokens = note(notes, "tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise DuoGenError(f"{path} holds no tokenizer (tokenizer.ggml.tokens); give a whole file of a language model.")
    try:
        backend, kwargs = _convert(notes)
        kinds = note(notes, "tokenizer.ggml.token_type") or []
        vocabulary = backend.get_vocab()
        for kind in (CONTROL, USER_DEFINED):
            own = [token for token, its in zip(tokens, kinds) if its == kind and token in vocabulary]
            added = [AddedToken(token, special=kind == CONTROL, normalized=False) for token in own]
            backend.add_special_tokens(added) if kind == CONTROL else backend.add_tokens(added)
        for name, theirs in SPECIAL.items():
            number = notes.get(f"tokenizer.ggml.{theirs}_token_id")
            if type(number) is int and number < len(tokens):
                kwargs[name] = tokens[number]
        template = notes.get("tokenizer.chat_template")
        if isinstance(template, str):
            kwargs["chat_template"] = template
        kwargs.setdefault("pad_token", kwargs.get("eos_token"))
        kwargs |= {"padding_side": "left", "clean_up_tokenization_spaces": False}
        kwargs["model_input_names"] = ["input_ids", "attention_mask"]
        found = PreTrainedTokenizerFast(tokenizer_object=backend, **kwargs)
    except Exception as error:  # whatever a broken vocabulary raises
        if is_out_of_memory(error):
            raise
        raise DuoGenError(f"{path} holds no tokenizer this pack can read: {first_line(error)}.") from error
    if max(found.get_vocab().values()) >= len(tokens):
        raise DuoGenError(f"{path} holds a tokenizer with tokens that it does not list; give another file.")
    del tokens
    trim()  # the vocabulary's lists, 100 MB of Qwen's
    return found


def _convert(notes: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    try:
        from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer
    except ImportError:  # transformers 4
        from transformers.integrations.ggml import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer
    if notes.get("tokenizer.ggml.model") == "gpt2" and notes.get("tokenizer.ggml.pre") == "qwen2":
        return _qwen2(notes), {}
    values = {
        name: note(notes, f"tokenizer.{key}")
        for key, name in GGUF_TOKENIZER_MAPPING["tokenizer"].items()
        if f"tokenizer.{key}" in notes
    }
    values.setdefault("bos_token_id", values.get("eos_token_id", 0))  # transformers 4 wants one; it is not kept
    architecture = str(notes.get("general.architecture"))
    names = {"gemma3": "gemma3_text", "qwen2vl": "qwen2", "qwen3vl": "qwen3"}  # as transformers 4 calls them
    backend, kwargs = convert_gguf_tokenizer(names.get(architecture, architecture), values)
    return backend, {key: value for key, value in kwargs.items() if value is not None and key not in SPECIAL}


def _qwen2(notes: Mapping[str, Any]) -> Any:
    """By Qwen2's own rules, without the rows that are nobody's (llama.cpp fills a vocabulary up to the embedding)."""
    from tokenizers.models import BPE

    tokens, merges = note(notes, "tokenizer.ggml.tokens"), note(notes, "tokenizer.ggml.merges") or []
    kinds = note(notes, "tokenizer.ggml.token_type") or [1] * len(tokens)
    vocabulary = {token: number for number, (token, kind) in enumerate(zip(tokens, kinds)) if kind != UNUSED}
    return qwen2_rules(BPE(vocab=vocabulary, merges=[tuple(merge.split(" ", 1)) for merge in merges]))


def note(notes: Mapping[str, Any], key: str) -> Any:
    """A note, with a long array read."""
    value = notes.get(key)
    return value.read() if isinstance(value, LongArray) else value


def stop_ids(tokenizer: Any, notes: Mapping[str, Any]) -> list[int]:
    """Returns the tokens that end a reply: what the file says, and every end of a turn that its vocabulary has."""
    said = [notes.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    control = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    known = [control[name] for name in ENDS if name in control]
    return list(dict.fromkeys([number for number in said if type(number) is int] + known))
