"""Tokenizers: reading one, training a small byte-level BPE with Qwen's control tokens, and giving one a <BOV>.

In: a folder, or text to learn the merges from. Out: a transformers fast tokenizer.
A trained one has `vocab_size` entries, control tokens last. Its pre-tokenisation is Qwen2's own (GPT-4-like, digits one
by one), every byte is in the alphabet, nothing is unknown.
A published Qwen2.5-VL ends its vocabulary at 151664 and has rows for 152064 (7B) or 151936 (3B) ids, LLaVA-OneVision
ends it at 151647 and has 152128 (7B) or 152000 (0.5B). <BOV> takes one of the spare ones; rows are neither added nor
taken away (`add_bov`), but start from others instead of the noise that spare rows hold (`start_bov`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.errors import DuoGenError, first_line, is_out_of_memory
from duogen_core.files import read_json
from duogen_core.mllm.chat import BOV, CONTROL_TOKENS, END_OF_TEXT, IM_END, IMAGE, VISION_START

MAX_ID = 1 << 24  # far more than any vocabulary has
OLDER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024, control: Sequence[str] = CONTROL_TOKENS) -> Any:
    """Learn the merges; the last ids are the control tokens of the chat layout."""
    from tokenizers import AddedToken, models, pre_tokenizers, trainers

    if vocab_size < 256 + len(control):
        raise DuoGenError(f"A vocabulary of {vocab_size} is too small: 256 bytes and {len(control)} controls.")
    bpe = qwen2_rules(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(control),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    headers = "system\nuser\nassistant\n"  # every turn opens with one of these: each should become one token
    bpe.train_from_iterator((piece for text in texts for piece in (text, headers)), trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return wrap_tokenizer(bpe)


def qwen2_rules(model: Any) -> Any:
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
    """A `tokenizers.Tokenizer` -> the transformers fast tokenizer that the rest of the core uses."""
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
    """Reads tokenizer.json exactly as it is (AutoTokenizer may rebuild the rules of a known family), or the older form:
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
    bpe = qwen2_rules(models.BPE.from_file(str(vocabulary), str(merges)))
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


# ---------------------------------------------------------------- <BOV> for models that have none

# In a vocabulary as large as Qwen's: Qwen3 and tools that share its tokenizer give ids up to 151668 other meanings.
FIRST_ID = 151669
LIKE = (" picture", " image", " drawing")  # words that <BOV> is read like
UNTRAINED = 0.25  # of the median length of a row: rows shorter than that were never trained


def add_bov(tokenizer: Any, rows: int) -> None:
    """Gives the tokenizer <BOV>, unless it has it. rows: how many ids the model's embedding has."""
    from tokenizers import AddedToken

    if BOV in tokenizer.get_vocab():
        return
    size = len(tokenizer)
    first = max(size, FIRST_ID) if size > FIRST_ID - 1000 else size
    if first >= rows:
        raise DuoGenError(
            f"The model has no spare row for {BOV}: its vocabulary has {size} entries and its embedding {rows} rows. "
            "Add a row to the model first."
        )
    names = [f"<|reserved_{k}|>" for k in range(size, first)] + [BOV]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)


@torch.no_grad()
def start_bov(model: nn.Module, tokenizer: Any) -> list[str]:
    """Sets the rows of <BOV> that were never trained; returns which ones: "embedding", "lm_head".

    The output's becomes that of the end of a turn: a picture comes where a sentence is over, so that is where the
    states that foresee it lie. The embedding's becomes the mean of words that mean a picture; where both are one, the
    output counts. (Measured on the bundled model, its row taken away: loss on <BOV> 8.3 with a row of zeros, 8.7 with
    those words, 2.5 with the end of a turn; after ten steps 6.7, 4.9, 0.7.)
    """
    vocabulary = tokenizer.get_vocab()
    bov, end = vocabulary[BOV], vocabulary[IM_END]
    words = [ids[0] for ids in (tokenizer.encode(word, add_special_tokens=False) for word in LIKE) if len(ids) == 1]
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tied = output is embedding
    started = []
    if is_untrained(embedding, bov):
        rows = [end] if tied else words or [vocabulary[VISION_START if VISION_START in vocabulary else IMAGE]]
        embedding[bov] = embedding[rows].float().mean(0).to(embedding.dtype)
        started.append("embedding")
    if not tied and is_untrained(output, bov):
        output[bov] = output[end]
        started.append("lm_head")
    return started


def is_untrained(weight: Tensor, row: int) -> bool:
    """Far shorter than rows usually are."""
    lengths = weight.float().norm(dim=-1)
    return bool(lengths[row] < UNTRAINED * lengths.median())
