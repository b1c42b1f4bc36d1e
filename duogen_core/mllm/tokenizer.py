"""A small byte-level BPE tokenizer with Qwen's control tokens and <BOV>. (Picture settings: image_processor.py.)

In: text to learn the merges from. Out: a transformers fast tokenizer of `vocab_size` entries (control tokens last).
Pre-tokenisation is Qwen2's own (GPT-4-like, digits one by one), every byte is in the alphabet, nothing is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from duogen_core.errors import DuoGenError, first_line, is_out_of_memory
from duogen_core.files import read_json
from duogen_core.mllm.chat import CONTROL_TOKENS, END_OF_TEXT, IM_END
from duogen_core.mllm.image_processor import load_image_processor, small_image_processor

__all__ = [
    "QWEN2_SPLIT",
    "load_image_processor",
    "load_tokenizer",
    "small_image_processor",
    "train_tokenizer",
    "wrap_tokenizer",
]

MAX_ID = 1 << 24  # far more than any vocabulary has
OLDER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> Any:
    """Learn the merges; the last ids are the control tokens of the chat layout."""
    from tokenizers import AddedToken, models, pre_tokenizers, trainers

    if vocab_size < 256 + len(CONTROL_TOKENS):
        raise DuoGenError(f"A vocabulary of {vocab_size} is too small: 256 bytes and {len(CONTROL_TOKENS)} controls.")
    bpe = _qwen2_rules(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    headers = "system\nuser\nassistant\n"  # every turn opens with one of these: each should become one token
    bpe.train_from_iterator((piece for text in texts for piece in (text, headers)), trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    return wrap_tokenizer(bpe)


def _qwen2_rules(model: Any) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    bpe = Tokenizer(model)
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    return bpe


def wrap_tokenizer(tokenizer: Any) -> Any:
    """A `tokenizers.Tokenizer` -> the transformers fast tokenizer that the rest of the house uses."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a folder has the files that `load_tokenizer` reads, in either form."""
    folder = Path(folder)
    return (folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in OLDER_FILES)


def load_tokenizer(folder: str | Path) -> Any:
    """Read tokenizer.json exactly as it is (AutoTokenizer may rebuild the rules of a known family), or the older form:
    vocab.json, merges.txt and tokenizer_config.json, as ComfyUI ships it."""
    from tokenizers import Tokenizer

    folder = Path(folder)
    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            found = Tokenizer.from_file(str(file))
            _check_ids(found)
            return wrap_tokenizer(found)
        if has_tokenizer(folder):
            return _load_older(folder)
    except Exception as error:  # the tokenizers library raises bare Exception
        if is_out_of_memory(error):
            raise
        raise DuoGenError(f"{folder} holds no tokenizer this pack can read: {first_line(error)}.") from error
    raise DuoGenError(f"The folder {folder} has no tokenizer.json, nor {', '.join(OLDER_FILES)}.")


def _check_ids(tokenizer: Any) -> None:
    """transformers writes a tokenizer out, for which the library lists every id that is missing below the largest: one
    of 2^31 ends the process."""
    name, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", 0))
    if largest >= MAX_ID:
        raise ValueError(f"the token {name[:40]!r} has the id {largest}; expected one below {MAX_ID}")


def _load_older(folder: Path) -> Any:
    from tokenizers import AddedToken, models

    vocabulary, merges, config = (folder / name for name in OLDER_FILES)
    bpe = _qwen2_rules(models.BPE.from_file(str(vocabulary), str(merges)))
    value = read_json(config, "tokenizer's configuration")
    added = value.get("added_tokens_decoder") if isinstance(value, dict) else None
    if not isinstance(added, dict):
        raise ValueError(
            f"{config.name} lists no control tokens (added_tokens_decoder), and {vocabulary.name} has none; "
            "take both, or tokenizer.json, from the published model"
        )
    for number, token in sorted(added.items(), key=lambda item: int(item[0])):
        new = AddedToken(token["content"], normalized=False, special=token["special"])
        bpe.add_special_tokens([new]) if token["special"] else bpe.add_tokens([new])
        if bpe.token_to_id(token["content"]) != int(number):
            raise ValueError(f"{token['content']} would get another id than {number}, which {config.name} gives it")
    _check_ids(bpe)
    return wrap_tokenizer(bpe)
