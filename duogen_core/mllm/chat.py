"""Document -> token ids and image patches, and token ids -> text: the one chat layout of inference and training.

    per turn         <|im_start|>{role}\\n … <|im_end|>\\n          (no system prompt is ever added)
    text part        its text, verbatim; control tokens spelled out in it stay plain text
    user picture     <|vision_start|> <|image_pad|>*n <|vision_end|>
    drawn picture    <BOV> <|vision_start|> <|image_pad|>*n <|vision_end|>     (<BOV> as text: see prompted.py)
    LLaVA-OneVision  <image>*n \\n in place of what stands around <|image_pad|>

Every part is tokenised by itself, so `layout` is a pure function of the Document and a longer Document never changes
the tokens of the parts it already had. n is the image processor's to say (image_processor.py).
`TextStream` is the way back: the bytes of one token after another -> whole characters.
Layout as in the chat templates of Qwen2.5-VL and LLaVA-OneVision, which are one but for the pictures; which of the two
follows from the tokenizer. `<BOV>` as in DuoGen (arXiv 2602.00508).
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import torch

from duogen_core.document import Document, Picture, Text
from duogen_core.errors import DuoGenError
from duogen_core.mllm.image_processor import ImageProcessor

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
VISION_START, VISION_END, IMAGE_PAD = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
BOV = "<BOV>"
CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, BOV)
IMAGE = "<image>"  # LLaVA's
LLAVA_TOKENS = (END_OF_TEXT, IM_START, IM_END, IMAGE, BOV)
IGNORED = -100  # label of a token without a loss (torch's cross_entropy default)


@dataclass(frozen=True)
class ControlIds:
    end_of_text: int
    im_start: int
    im_end: int
    image_pad: int  # stands where a picture's features go
    bov: int
    vision_start: int | None = None  # around them, of Qwen-VL; of LLaVA a line ends behind them
    vision_end: int | None = None


NO_TOKEN = -1  # the id of <BOV> where it is spelled out as text


def has_bov(tokenizer: Any) -> bool:
    return BOV in tokenizer.get_vocab()


@lru_cache(maxsize=8)
def control_ids(tokenizer: Any, *, need_bov: bool = True) -> ControlIds:
    """The ids of the control tokens; all of them must be there."""
    vocab = tokenizer.get_vocab()
    if not need_bov:
        vocab = {BOV: NO_TOKEN} | vocab
    llava = IMAGE in vocab and IMAGE_PAD not in vocab
    missing = [token for token in (LLAVA_TOKENS if llava else CONTROL_TOKENS) if token not in vocab]
    if missing:
        raise DuoGenError(
            f"The tokenizer lacks {', '.join(missing)}; expected one of the Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision "
            f"families with {BOV} added."
        )
    always = (vocab[token] for token in (END_OF_TEXT, IM_START, IM_END, IMAGE if llava else IMAGE_PAD, BOV))
    return ControlIds(*always) if llava else ControlIds(*always, vocab[VISION_START], vocab[VISION_END])


def control_set(tokenizer: Any) -> frozenset[int]:
    """The ids that no text may become and no model may write but where the layout puts them.

    Besides CONTROL_TOKENS all tokens that are marked special, and added ones that look like <|this|>: published
    tokenizers mark some of those as special and some not, and a converted one may have lost all the marks.
    """
    return _control_set(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _control_set(tokenizer: Any, _size: int) -> frozenset[int]:  # the size: a tokenizer may still be added to
    vocab = tokenizer.get_vocab()
    found = {vocab[token] for token in (*CONTROL_TOKENS, IMAGE) if token in vocab} | set(tokenizer.all_special_ids)
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special or (token.content.startswith("<|") and token.content.endswith("|>")):
            found.add(number)
    return frozenset(found)


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Plain text -> ids. Whatever the text spells, no control token comes out of it."""
    if not text:
        return []
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    control = control_set(tokenizer)
    if control.isdisjoint(ids):
        return ids
    # split_special_tokens splits only tokens that are marked special. What it left is cut behind its first letter,
    # and the pieces are encoded by themselves: the same text, without the token.
    done = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    pairs = zip(done["input_ids"], done["offset_mapping"], strict=True)
    spans = [span for token, span in pairs if token in control]
    if any(end - start < 2 for start, end in spans):
        raise DuoGenError(
            f"The tokenizer makes a control token of the text {text[spans[0][0] : spans[0][1]]!r}; a control token "
            "must be spelled with two letters or more, so take the tokenizer that belongs to the model."
        )
    cuts = [0, *(start + 1 for start, _ in spans), len(text)]
    return [token for start, end in pairwise(cuts) for token in encode_text(tokenizer, text[start:end])]


@dataclass(frozen=True)
class PartSpan:
    """Tokens [start, end) of part `part` of turn `turn`. A drawn picture starts at its <BOV>."""

    turn: int
    part: int
    kind: Literal["text", "picture"]
    start: int
    end: int
    role: str

    @property
    def drawn(self) -> bool:
        return self.kind == "picture" and self.role == "assistant"


@dataclass(frozen=True)
class PictureContext:
    """What the picture to be drawn may look at: the tokens [0, end) before its <BOV>.

    last_segment: token range of the text that the picture illustrates; guidance drops it. Empty where there is none.
    frame_ends: for every picture already there, in order, the number of tokens before its own block.
    """

    end: int
    last_segment: tuple[int, int]
    frame_ends: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    ids: list[int]
    learn: list[bool]  # assistant text, <BOV> and <|im_end|>
    parts: list[PartSpan]
    open_turn: int | None = None  # index of the assistant turn left open, if any

    @property
    def pictures(self) -> list[PartSpan]:
        return [span for span in self.parts if span.kind == "picture"]

    def context_of(self, picture: int | None = None, *, segment: Literal["user", "none"] = "user") -> PictureContext:
        """The context of the k-th picture of the document (all turns counted); None: of the one drawn next.

        The last segment is the assistant's text since its last picture. Where it wrote none, the connector's config
        says what counts (`segment`): "user", the last text of the user (all tokens, if the user wrote none either), or
        "none", nothing.
        """
        pictures = self.pictures
        if picture is None:
            end, before, turn = len(self.ids), self.parts, self.open_turn
            known = pictures
        else:
            target = pictures[picture]
            end, before, turn = target.start, self.parts[: self.parts.index(target)], target.turn
            known = pictures[:picture]
        since = known[-1].end if known else 0
        texts = [span for span in before if span.kind == "text" and span.end > span.start]
        own = [span for span in texts if span.turn == turn and span.start >= since]
        if not own and segment == "user":
            asked = [span for span in texts if span.role == "user"]
            own = [span for span in asked if span.turn == asked[-1].turn]
        last = (0, end) if segment == "user" else (end, end)  # nobody wrote a word: all that was read is the request
        if own:
            first = own[-1]
            for span in reversed(own[:-1]):  # texts without a picture between them are one segment
                if span.end != first.start:
                    break
                first = span
            last = (first.start, own[-1].end)
        return PictureContext(end, last, tuple(span.start for span in known))


def layout(
    document: Document,
    tokenizer: Any,
    image_token_counts: Sequence[int],
    *,
    open_turn: bool = False,
    marker: Callable[[Picture], str] | None = None,
) -> Layout:
    """Token ids of a document. image_token_counts: n of every picture, in order.

    open_turn: leave the assistant turn open to be continued; after a user turn, begin one.
    marker: the text that stands for <BOV> before a drawn picture, for models without the token.
    """
    ids, learn, parts = [], [], []
    control = control_ids(tokenizer, need_bov=marker is None)
    newline = encode_text(tokenizer, "\n")
    around = [control.vision_start], [control.vision_end]
    counts = iter(image_token_counts)

    def add(tokens: Sequence[int], trained: bool = False) -> None:
        ids.extend(tokens)
        learn.extend([trained] * len(tokens))

    open_index = _open_index(document) if open_turn else None
    for t, turn in enumerate(document.turns):
        answer = turn.role == "assistant"
        add([control.im_start, *encode_text(tokenizer, turn.role + "\n")])
        for p, part in enumerate(turn.parts):
            start = len(ids)
            if isinstance(part, Text):
                add(encode_text(tokenizer, part.text), answer)
                kind = "text"
            else:
                if answer:
                    add([control.bov] if marker is None else encode_text(tokenizer, marker(part)), True)
                before, after = ([], newline) if control.vision_start is None else around
                add([*before, *[control.image_pad] * next(counts), *after])
                kind = "picture"
            parts.append(PartSpan(t, p, kind, start, len(ids), turn.role))
        if t != open_index:
            add([control.im_end], answer)
            add(newline)
    if open_index == len(document.turns):
        add([control.im_start, *encode_text(tokenizer, "assistant\n")])
    return Layout(ids, learn, parts, open_index)


def _open_index(document: Document) -> int:
    if not document.turns:
        raise DuoGenError("The document is empty; it needs a user turn with a request before it can be answered.")
    role = document.turns[-1].role
    if role == "system":
        raise DuoGenError("The document ends with a system turn; add a user turn with the request.")
    return len(document.turns) - (role == "assistant")


def picture_grid(picture: Picture, image_processor: ImageProcessor) -> tuple[int, ...]:
    """What the family needs to know of a picture's shape, without touching its pixels."""
    return image_processor.grid(picture.size)


def image_token_counts(document: Document, image_processor: ImageProcessor) -> list[int]:
    return [image_processor.tokens(image_processor.grid(picture.size)) for picture in document.pictures]


def picture_patches(pictures: Sequence[Picture], image_processor: ImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures -> pixel values and grids, as `Mllm.embed` takes them."""
    return image_processor.patches(pictures)


def build_inputs(
    documents: Sequence[Document], tokenizer: Any, image_processor: ImageProcessor, *, open_turn: bool = False
) -> dict[str, Any]:
    """Whole documents -> one right-padded batch for the model, for training.

    input_ids, attention_mask, labels (IGNORED where there is no loss) int64 [B, N]; what else the family's own forward
    takes (`ImageProcessor.model_inputs`: pixel_values and more, when there are pictures); layouts: one per document.
    """
    layouts = [
        layout(document, tokenizer, image_token_counts(document, image_processor), open_turn=open_turn)
        for document in documents
    ]
    control = control_ids(tokenizer)
    shape = (len(layouts), max(len(each.ids) for each in layouts))
    input_ids = torch.full(shape, control.end_of_text)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, each in enumerate(layouts):
        n = len(each.ids)
        input_ids[row, :n] = ids = torch.tensor(each.ids)
        attention_mask[row, :n] = 1
        labels[row, :n] = torch.where(torch.tensor(each.learn), ids, IGNORED)
    pictures = [picture for document in documents for picture in document.pictures]
    patches, grids = image_processor.patches(pictures) if pictures else (None, None)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        **image_processor.model_inputs(input_ids, control.image_pad, patches, grids),
        "layouts": layouts,
    }


def model_inputs(batch: dict[str, Any], *, labels: bool = True) -> dict[str, torch.Tensor]:
    """The part of a batch that goes into `model(**…)`."""
    return {k: v for k, v in batch.items() if k != "layouts" and (labels or k != "labels")}


# ---------------------------------------------------------------- token ids -> text, a token at a time


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """GPT-2's table: every byte has a printable character that stands for it in the vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes one token stands for; added tokens are plain strings, not byte characters."""
    piece = tokenizer.convert_ids_to_tokens(token)
    table = _byte_of()
    try:
        return bytes(table[char] for char in piece)
    except KeyError:
        return piece.encode("utf-8")


class TextStream:
    """put(bytes) hands whole characters to on_text; finish() returns everything that was handed out.

    A token may end in the middle of a UTF-8 character: what is incomplete waits for the next one, and is dropped where
    the text ends. Invalid bytes become U+FFFD. Not tokenizers' DecodeStream: it holds back everything while the end is
    invalid and decodes all of that again for each token (4,000 invalid bytes: 2.9 s and no text, here 8 ms; the usual
    token takes 2 us there, 4 us here), and prompted models' text comes as bytes that no tokenizer made.
    """

    def __init__(self, on_text: Callable[[str], None] | None = None) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._on_text = on_text
        self._pieces: list[str] = []

    def put(self, data: bytes) -> None:
        text = self._decoder.decode(data)
        if text:
            self._pieces.append(text)
            if self._on_text:
                self._on_text(text)

    def end(self) -> None:
        """The turn has ended; here nothing waits for that."""

    def finish(self) -> str:
        return "".join(self._pieces)
