"""The decode loop on a mock family whose logits are written down: every token is known in advance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.document import (
    Document,
    Picture,
    Text,
    Turn,
)
from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import TextStream, control_ids, encode_text
from duogen_core.mllm.image_processor import small_image_processor
from duogen_core.mllm.prompt_states import prompt_states
from duogen_core.mllm.tokenizer import train_tokenizer

TEXTS = ["Draw a small red circle at the top left, then a large blue square in the centre."] * 8


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


class Scripted(Mllm):
    """After the k-th token of the context `script[k - start]` follows; `odds` adds other logits to every step."""

    num_layers, hidden_size, max_positions = 2, 4, 400

    def __init__(self, tokenizer, script: list[int], start: int, odds: dict[int, float] | None = None) -> None:
        model = nn.Module()
        model.table = nn.Embedding(len(tokenizer) + 8, 1)  # eight rows more than the tokenizer knows
        model.get_input_embeddings = lambda: model.table
        super().__init__(model, tokenizer, small_image_processor())
        self.script, self.start, self.odds, self.ran = script, start, odds or {}, []

    def positions(self, ids, grids):
        return torch.arange(len(ids))[None]

    def embed(self, ids, patches, grids):
        return ids[..., None].float()

    def new_cache(self):
        return []

    def crop_cache(self, cache, remove):
        del cache[len(cache) - remove :]

    def run_layers(self, embeds, positions, cache, on_layer):
        assert positions[0, 0].tolist() == list(range(len(cache), len(cache) + embeds.shape[1]))
        cache.extend(embeds[0, :, 0].tolist())
        self.ran.append(embeds.shape[1])
        if on_layer:
            for layer in range(2):
                on_layer(layer, embeds * torch.tensor([1.0, -2.0, 0.5, layer]))
        return torch.full_like(embeds, len(cache))

    def logits(self, hidden):
        out = torch.zeros(len(hidden), self.model.table.num_embeddings)
        for token, value in self.odds.items():
            out[:, token] = value
        for row, state in zip(out, hidden):
            step = int(state[0]) - self.start
            if step < len(self.script):
                row[self.script[step]] = 50
        return out


def ask(text: str = "Draw.") -> Document:
    return Document((Turn("user", (Text(text),)),))


def scripted(tokenizer, text: str, end: str = "<BOV>", document: Document | None = None, **kwargs) -> Scripted:
    mllm = Scripted(tokenizer, [], 0, **kwargs)
    mllm.start = len(mllm._layout(document or ask()).ids)
    mllm.script = [*encode_text(tokenizer, text), tokenizer.convert_tokens_to_ids(end)]
    return mllm


@pytest.mark.parametrize("end, stop", [("<BOV>", "picture"), ("<|im_end|>", "end"), ("<|endoftext|>", "end")])
def test_text_and_stop(tokenizer, end, stop) -> None:
    mllm = scripted(tokenizer, "A red circle.", end)
    out = mllm.continue_(ask())
    assert (out.text, out.stop, out.tokens) == ("A red circle.", stop, len(mllm.script) - 1)
    assert mllm.continue_(ask()) == out


def test_a_picture_at_once(tokenizer) -> None:
    out = scripted(tokenizer, "").continue_(ask())
    assert (out.text, out.stop, out.tokens) == ("", "picture", 0)


def test_max_tokens(tokenizer) -> None:
    mllm = scripted(tokenizer, "A red circle and more and more.")
    n = len(mllm.script) - 1
    assert mllm.continue_(ask(), max_new_tokens=n).stop == "picture"  # exactly as long as allowed
    out = mllm.continue_(ask(), max_new_tokens=n - 1)
    assert (out.stop, out.tokens) == ("max_tokens", n - 1)
    assert mllm.continue_(ask(), max_new_tokens=0).stop == "max_tokens"
    assert scripted(tokenizer, "").continue_(ask(), max_new_tokens=0).stop == "picture"
    with pytest.raises(DuoGenError, match="max_new_tokens"):
        mllm.continue_(ask(), max_new_tokens=-1)


def test_a_cut_answer_goes_on_where_it_stopped(tokenizer) -> None:
    mllm = scripted(tokenizer, "A red circle.")
    first = mllm.continue_(ask(), max_new_tokens=3)
    document = ask().begin_turn("assistant", [Text(first.text)])
    mllm.ran.clear()
    rest = mllm.continue_(document)
    assert first.text + rest.text == "A red circle." and rest.stop == "picture"
    assert mllm.ran == [1] * rest.tokens  # nothing that ran before runs again


def test_encode_after_continue_runs_nothing(tokenizer) -> None:
    mllm = scripted(tokenizer, "A small red circle")
    connector = Connector(ConnectorConfig(2, 4, 6))
    out = mllm.continue_(ask(), connector=connector)
    mllm.ran.clear()
    states = mllm.encode(ask().begin_turn("assistant", [Text(out.text)]), connector)
    assert mllm.ran == []
    ids = torch.tensor(mllm._cache.kv)[:, None]
    expected = connector(torch.stack([ids * torch.tensor([1.0, -2.0, 0.5, layer]) for layer in range(2)], dim=1))
    torch.testing.assert_close(states.states, expected)
    start, end = states.last_segment
    assert end == len(states.states) and end - start == out.tokens
    assert states.negative() == (states.states, (start, end))
    assert not states.states.is_inference()


def test_a_cancelled_encode_ends_between_two_chunks_and_goes_on_there(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("duogen_core.mllm.base.CHUNK", 8)
    connector, mllm = Connector(ConnectorConfig(2, 4, 6)), scripted(tokenizer, "")
    document = ask("Draw a small red circle at the top left, then a large blue square.").begin_turn("assistant")
    with pytest.raises(Cancelled):
        mllm.encode(document, connector, lambda: len(mllm.ran) == 2)
    assert mllm.ran == [8, 8]
    states = mllm.encode(document, connector, lambda: False).states
    assert sum(mllm.ran) == len(states) > 16, "nothing that ran before runs again"
    torch.testing.assert_close(states, scripted(tokenizer, "").encode(document, connector).states)


def test_a_cancelled_prompt_ends_between_two_layers(tokenizer) -> None:
    connector, mllm = Connector(ConnectorConfig(2, 4, 6)), scripted(tokenizer, "")
    looks = []
    with pytest.raises(Cancelled):
        prompt_states(mllm, connector, "A red star.", None, cancelled=lambda: looks.append(1) or len(looks) == 2)
    assert len(looks) == 2
    assert len(prompt_states(mllm, connector, "A red star.", None, cancelled=lambda: False)) == mllm.ran[-1]


def test_states_that_were_not_collected_are_made_up_for(tokenizer) -> None:
    connector, other = (Connector(ConnectorConfig(2, 4, 6)) for _ in range(2))
    document = ask().begin_turn("assistant", [Text("A red circle")])
    mllm = scripted(tokenizer, "A red circle")
    mllm.continue_(ask())  # without a connector
    states = mllm.encode(document, connector).states
    fresh = scripted(tokenizer, "").encode(document, connector).states
    torch.testing.assert_close(states, fresh)
    assert not torch.allclose(mllm.encode(document, other).states, fresh)  # another connector, other states
    torch.testing.assert_close(mllm.encode(document, connector).states, fresh)
    with torch.no_grad():
        connector.proj.weight.mul_(2)  # as training does
    torch.testing.assert_close(
        mllm.encode(document, connector).states, scripted(tokenizer, "").encode(document, connector).states
    )


def test_changed_weights_empty_the_cache(tokenizer) -> None:
    mllm = scripted(tokenizer, "A red circle")
    mllm.continue_(ask())
    mllm.ran.clear()
    with torch.no_grad():
        mllm.model.table.weight.add_(1)
    mllm.continue_(ask())
    assert mllm.ran[0] == mllm.start


def test_long_prompts_are_cancelled_between_chunks_and_leave_a_good_cache(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("duogen_core.mllm.base.CHUNK", 10)
    one = Picture(np.zeros((96, 160, 3), dtype=np.uint8))
    document = Document((Turn("user", (Text("a"), one, Text("b"))),))
    mllm = scripted(tokenizer, "ok", document=document)
    looks = iter([False, False, True])
    out = mllm.continue_(document, cancelled=lambda: next(looks))
    assert (out.text, out.stop, out.tokens) == ("", "interrupted", 0)
    assert mllm.cache_tokens() == 10  # inside the picture
    mllm.ran.clear()
    assert mllm.continue_(document).text == "ok"
    before_the_pads = len(mllm._layout(Document((Turn("user", (Text("a"),)),))).ids)
    assert sum(mllm.ran[:-2]) > mllm.start - before_the_pads  # the picture ran again as a whole


def test_cancel_within_one_token(tokenizer) -> None:
    mllm = scripted(tokenizer, "A red circle and a blue square")
    seen: list[str] = []
    out = mllm.continue_(ask(), on_token=seen.append, cancelled=lambda: len(seen) >= 3)
    assert (out.stop, out.tokens) == ("interrupted", 3) and out.text == "".join(seen)
    assert mllm.continue_(ask()).text == "A red circle and a blue square"


def test_an_error_in_the_middle_leaves_no_half_cache(tokenizer) -> None:
    mllm = scripted(tokenizer, "A red circle")

    def fail(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mllm.continue_(ask(), on_token=fail)
    assert mllm.continue_(ask()).text == "A red circle"
    run, mllm.run_layers = mllm.run_layers, lambda *a: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError):
        mllm.continue_(ask("Another."))
    assert mllm.cache_tokens() == 0
    mllm.run_layers = run
    assert mllm.continue_(ask()).text == "A red circle"


WRITTEN = ["日本の家 🎨", "naïve é e", "👩‍👩‍👧 family", "<BOV> is spelled out", "\ufffd is a character"]


@pytest.mark.parametrize("text", WRITTEN)
def test_streamed_pieces_are_whole_characters(tokenizer, text) -> None:
    seen: list[str] = []
    mllm = scripted(tokenizer, text)
    out = mllm.continue_(ask(), on_token=seen.append)
    assert "".join(seen) == out.text == text and out.stop == "picture"
    assert all(seen) and len(seen) <= out.tokens


def test_broken_bytes_do_not_break_the_text(tokenizer) -> None:
    stream = TextStream()
    for data in (b"a\xf0\x9f", b"b", b"\xff", b"\xe6\x97", b"\xa5", b"\xe6"):
        stream.put(data)
    assert stream.finish() == "a\ufffdb\ufffd\u65e5"  # an unfinished character at the end is dropped


def test_control_tokens_are_never_written(tokenizer) -> None:
    control = control_ids(tokenizer)
    unwanted = {control.image_pad: 90.0, control.im_start: 90.0, control.vision_start: 90.0, len(tokenizer) + 3: 95.0}
    out = scripted(tokenizer, "A red circle", odds=unwanted).continue_(ask())
    assert (out.text, out.stop) == ("A red circle", "picture")
    out = scripted(tokenizer, "A red circle", odds=unwanted).continue_(ask(), temperature=1.0)
    assert out.text == "A red circle"


def test_sampling_follows_the_odds_and_the_seed(tokenizer) -> None:
    a, b, c = (encode_text(tokenizer, x)[0] for x in "abc")
    odds = {a: 20.0, b: 20.0 + float(np.log(2)), c: 20.0 + float(np.log(5))}
    mllm = Scripted(tokenizer, [], 0, odds)
    draw = lambda **kw: mllm.continue_(ask(), max_new_tokens=320, temperature=1.0, **kw).text  # noqa: E731
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    count = Counter(draw(seed=1) + draw(seed=2) + draw(seed=3))
    assert set(count) == {"a", "b", "c"}
    shares = [count[x] / count.total() for x in "abc"]
    np.testing.assert_allclose(shares, [1 / 8, 2 / 8, 5 / 8], atol=0.05)
    assert set(draw(seed=1, top_p=0.7)) == {"b", "c"} and set(draw(seed=1, top_p=0.5)) == {"c"}
    assert set(mllm.continue_(ask(), max_new_tokens=9, temperature=1e-3).text) == {"c"}
    # Cut in two, the same draws: the number belongs to the place, not to the call.
    cut = mllm.continue_(ask(), max_new_tokens=5, temperature=1.0, seed=1).text
    assert draw(seed=1).startswith(cut)
    rest = mllm.continue_(ask().begin_turn("assistant", [Text(cut)]), max_new_tokens=5, temperature=1.0, seed=1).text
    if len(encode_text(tokenizer, cut)) == 5:
        assert draw(seed=1).startswith(cut + rest)
    for bad in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(DuoGenError, match=next(iter(bad))):
            mllm.continue_(ask(), **bad)


def test_the_context_has_an_end(tokenizer) -> None:
    mllm = Scripted(tokenizer, [], 0, {encode_text(tokenizer, "a")[0]: 5.0})
    out = mllm.continue_(ask(), max_new_tokens=10_000)
    assert out.stop == "max_tokens" and mllm.cache_tokens() == mllm.max_positions
    with pytest.raises(DuoGenError, match="takes 400"):
        mllm.continue_(ask("0 1 2 3 4 5 6 7 8 9 " * 40))


def test_the_device_can_be_said(tokenizer) -> None:
    mllm = scripted(tokenizer, "ok")
    assert mllm.device == torch.device("cpu")
    mllm.device = "meta"
    assert mllm.device.type == "meta"
    mllm.device = None
    mllm.model.table.to("meta")  # offloaded: nothing here looks at it …
    mllm.device = "cpu"  # … once the device is said
    assert mllm.continue_(ask()).text == "ok"
