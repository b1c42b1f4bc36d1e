"""Prompted mode: the marker is found however it is tokenised, nothing of it leaks, and captions come back."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from duogen_core.document import Document, Text, Turn
from duogen_core.mllm.base import Continuation
from duogen_core.mllm.chat import BOV, CONTROL_TOKENS, LLAVA_TOKENS, NO_TOKEN, _byte_of, encode_text
from duogen_core.mllm.prompted import (
    MAX_CAPTION,
    MarkedStream,
    Prompted,
    clean_caption,
    lesson,
)
from duogen_core.mllm.tokenizer import train_tokenizer, wrap_tokenizer
from duogen_core.pipeline import generate
from duogen_core.settings import Settings
from tests.core.mllm.test_loop import Scripted, ask
from tests.core.mllm_families import CREATE, TEXTS, another, interleaved, lively, picture
from tests.core.tiny import random_components, request


def without_bov(texts=TEXTS, size: int = 600, family: str = "qwen2_5_vl"):
    """As published: the control tokens of the family, but no <BOV>."""
    control = LLAVA_TOKENS if family == "llava_onevision" else CONTROL_TOKENS
    made = json.loads(train_tokenizer(texts, size, control).backend_tokenizer.to_str())
    made["added_tokens"] = [token for token in made["added_tokens"] if token["content"] != BOV]
    return wrap_tokenizer(Tokenizer.from_str(json.dumps(made)))


@pytest.fixture(scope="module")
def tokenizer():
    """Merges across the marker's edges: "<BO", "V:", "e>\\n", ".<" are tokens here."""
    return without_bov([*TEXTS, *["A cat.<BOV: a cat>\n A dog.<BOV>\n\n"] * 20])


def pieces_of(tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([i]) for i in encode_text(tokenizer, text)]


def bytes_of(tokenizer, text: str) -> list[int]:
    """The text with a token for every byte."""
    char, vocabulary = {byte: char for char, byte in _byte_of().items()}, tokenizer.get_vocab()
    return [vocabulary[char[byte]] for byte in text.encode()]


def prompted(tokenizer, ids: list[int], document: Document | None = None, captions: bool = True) -> Scripted:
    mllm = Scripted(tokenizer, [], 0)
    mllm.max_positions = 4000
    mllm.prompted = Prompted(captions)
    mllm.start = len(mllm._layout(document or ask()).ids)
    mllm.script = [*ids, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    return mllm


def test_a_tokenizer_without_the_token_is_prompted(tokenizer) -> None:
    mllm = Scripted(tokenizer, [], 0)
    assert mllm.prompted == Prompted() and mllm.control.bov == NO_TOKEN
    assert Scripted(train_tokenizer(TEXTS, 400), [], 0).prompted is None


SPELLINGS = {
    "plain": ("A cat.\n<BOV>\n more", "A cat.\n", ""),
    "caption": ("A cat.<BOV: a grey cat, asleep> more", "A cat.", "a grey cat, asleep"),
    "attribute": ('A cat. <BOV caption="a grey cat"/>', "A cat. ", "a grey cat"),
    "lower case, two lines": ("Cat\n<bov:a cat\n on a mat>\n", "Cat\n", "a cat on a mat"),
    "the placeholder itself": ("A cat.<BOV: caption>", "A cat.", ""),
    "after a false start": ("a < b <BO <BOVINE> <BOV>", "a < b <BO <BOVINE> ", ""),
    "accents and emoji": ("Été 🎨<BOV: l'été 🎨 日本>", "Été 🎨", "l'été 🎨 日本"),
    "at once": ("<BOV: a cat>", "", "a cat"),
}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("cut", ["merged", "bytes"])
def test_the_marker_is_found_however_it_is_tokenised(tokenizer, name, cut) -> None:
    said, text, caption = SPELLINGS[name]
    ids = encode_text(tokenizer, said) if cut == "merged" else bytes_of(tokenizer, said)
    seen: list[str] = []
    out = prompted(tokenizer, ids).continue_(ask(), on_token=seen.append)
    assert (out.text, out.stop, out.caption) == (text, "picture", caption)
    assert "".join(seen) == text and 0 < out.tokens <= len(ids)


def test_the_fixture_has_tokens_across_the_edges_of_the_marker(tokenizer) -> None:
    """Or the test above would say little."""
    pieces = pieces_of(tokenizer, "A cat.<BOV: a cat>\n A dog.<BOV>\n\n")
    assert any("<" in p and p != "<" for p in pieces) and any(">" in p and p != ">" for p in pieces)


def test_no_beginning_of_a_marker_is_ever_streamed() -> None:
    """Every way to cut the text in two and three."""
    said = "One < two. <BO <BOV: a <small cat> rest"
    for a in range(len(said) + 1):
        for b in range(a, len(said) + 1, 3):
            seen: list[str] = []
            stream = MarkedStream(seen.append)
            for piece in (said[:a], said[a:b], said[b:]):
                assert stream.put(piece.encode()) is None
            assert stream.end() is None and "".join(seen) == stream.finish() == said
    said = "A cat.\n<BOV: a grey cat>\nAnd"
    for a in range(len(said) + 1):
        for b in range(a, len(said) + 1):
            seen = []
            stream = MarkedStream(seen.append)
            found = [stream.put(piece.encode()) for piece in (said[:a], said[a:b], said[b:])]
            assert found[-1] == "a grey cat" and "".join(seen) == stream.finish() == "A cat.\n"


def test_what_may_become_a_marker_is_not_kept_when_the_tokens_run_out(tokenizer) -> None:
    said = "A cat.<BOV: a grey cat>"
    ids = encode_text(tokenizer, said)
    for n in range(len(ids)):
        out = prompted(tokenizer, ids).continue_(ask(), max_new_tokens=n)
        assert out.stop == "max_tokens" and out.tokens == n
        assert "A cat.".startswith(out.text)
        document = ask().begin_turn("assistant", [Text(out.text)])
        again = prompted(tokenizer, encode_text(tokenizer, said[len(out.text) :]), document).continue_(document)
        assert (out.text + again.text, again.stop, again.caption) == ("A cat.", "picture", "a grey cat")


@pytest.mark.parametrize(
    "said, text, stop, caption",
    [
        ("A cat. <BOV: a grey cat", "A cat. ", "picture", "a grey cat"),  # the model forgot to close it
        ("A cat. <BOV", "A cat. ", "picture", ""),
        ("a < b and c <", "a < b and c <", "end", ""),
        ("See <BO", "See <BO", "end", ""),
        ("<BOV: " + "long " * (MAX_CAPTION // 5) + "> x", None, "end", ""),
    ],
)
def test_how_a_turn_may_end(tokenizer, said, text, stop, caption) -> None:
    out = prompted(tokenizer, encode_text(tokenizer, said)).continue_(ask(), max_new_tokens=3000)
    assert (out.text, out.stop, out.caption) == (said if text is None else text, stop, caption)


def test_the_lesson_stands_in_the_system_text(tokenizer) -> None:
    own = Document((Turn("system", (Text("Be brief."),)), Turn("user", (Text("Draw."),))))
    mllm = prompted(tokenizer, [])
    for document, before in ((own, "Be brief.\n\n"), (ask(), "")):
        for captions in (True, False):
            mllm.prompted = Prompted(captions)
            text = tokenizer.decode(mllm._layout(document).ids)
            assert text.startswith(f"<|im_start|>system\n{before}{lesson(captions)}<|im_end|>\n<|im_start|>user\nDraw")
    assert "<BOV: caption>" in lesson(True) and "<BOV>" in lesson(False) and "caption" not in lesson(False)


def test_drawn_pictures_stand_after_their_marker(tokenizer) -> None:
    document = ask().begin_turn(
        "assistant", [Text("One"), picture(32, 32, caption="a <red> cat"), Text("Two"), picture(32, 32, 1)]
    )
    mllm = prompted(tokenizer, [])
    context = mllm._layout(document)
    text = tokenizer.decode(context.ids)
    block = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text.endswith(f"assistant\nOne<BOV: a red cat>{block}Two<BOV>{block}")
    assert [tokenizer.decode(context.ids[s.start : s.start + 1])[0] for s in context.pictures] == ["<", "<"]
    mllm.prompted = Prompted(captions=False)
    assert tokenizer.decode(mllm._layout(document).ids).endswith(f"One<BOV>{block}Two<BOV>{block}")


def test_a_marker_as_it_is_written_stays_in_the_cache(tokenizer) -> None:
    ids = [*encode_text(tokenizer, "A cat.\n"), *encode_text(tokenizer, "<BOV: a cat>")]
    mllm = prompted(tokenizer, ids)
    out = mllm.continue_(ask())
    cached = mllm.cache_tokens()
    assert cached == mllm.start + len(ids) - 1  # the ">" was never run
    document = ask().begin_turn("assistant", [Text(out.text), picture(32, 32, caption=out.caption)])
    mllm.ran.clear()
    mllm.continue_(document)
    assert mllm.ran[0] == len(mllm._layout(document).ids) - cached


def test_captions_are_cleaned() -> None:
    for raw, clean in {
        ": a house": "a house",
        ' caption = "a house" /': "a house",
        ":\n a\n  house ": "a house",
        " : caption": "",
        "": "",
        ": captions of a house": "captions of a house",
        ": 'tis a house": "'tis a house",
    }.items():
        assert clean_caption(raw) == clean, raw


@pytest.mark.parametrize("family", CREATE)
def test_a_real_family_is_prompted(family) -> None:
    """Lesson, cache and pictures together."""
    mllm = lively(family, words=without_bov(family=family), max_positions=6000)
    assert mllm.prompted is not None
    for document in interleaved(3)[:4]:
        out = mllm.continue_(document, max_new_tokens=4)
        assert another(mllm).continue_(document, max_new_tokens=4) == out


def test_a_caption_stays_with_its_picture() -> None:
    """The loop keeps it, and the context that follows shows the marker as it was written."""
    components = random_components()
    said = [Continuation("A cat.", "picture", 2, "a grey cat"), Continuation(" Done.", "end", 1)]
    components.mllm.continue_ = lambda document, **_: said[len(document.pictures)]
    answer = generate(components, request("Draw a cat."), Settings(steps=1))
    assert answer.pictures[0].meta["caption"] == "a grey cat" and answer.text == "A cat. Done."
    assert Prompted().marker(answer.pictures[0]) == "<BOV: a grey cat>"
