"""The Qwen2.5-VL family on a tiny random model: cached = from scratch, streamed = second pass, ours = transformers'."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.document import Document, Picture, Text, Turn
from duogen_core.errors import DuoGenError
from duogen_core.mllm.base import Mllm
from duogen_core.mllm.chat import build_inputs, control_ids, model_inputs, picture_patches
from duogen_core.mllm.qwen2_5_vl import Qwen25VL, create_tiny, hidden_states_for, mrope_positions, new_model
from duogen_core.mllm.tokenizer import train_tokenizer

TEXTS = ["Draw a small red circle at the top left, then a large blue square in the centre."] * 8
SIZES = {
    "hidden_size": 64, "layers": 3, "heads": 2, "kv_heads": 1, "intermediate_size": 96, "vision_hidden_size": 32,
    "vision_layers": 2, "vision_heads": 2, "vision_intermediate_size": 48,
}  # fmt: skip


def picture(width: int, height: int, seed: int = 0) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


def lively(tokenizer, seed: int = 0) -> Qwen25VL:
    """A random model whose answers depend on its whole context (a fresh one repeats its last token)."""
    torch.manual_seed(seed)
    mllm = create_tiny(tokenizer, **SIZES)
    for name, weight in mllm.model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5 if "embed_tokens" in name else 1.5 * weight[0].numel() ** -0.5)
    return mllm


@pytest.fixture(scope="module")
def mllm(tokenizer) -> Qwen25VL:
    return lively(tokenizer)


@pytest.fixture(scope="module")
def connector() -> Connector:
    torch.manual_seed(1)
    return Connector(ConnectorConfig(SIZES["layers"], SIZES["hidden_size"], 24)).eval()


CONTEXTS = {
    "text only": Document((Turn("user", (Text("Draw a circle."),)),)),
    "system and user picture": Document(
        (Turn("system", (Text("Be brief."),)), Turn("user", (picture(64, 32), Text("Describe."))))
    ),
    "drawn pictures, then text": Document(
        (
            Turn("user", (Text("How?"),)),
            Turn("assistant", (Text("First"), picture(64, 64, 1), Text(" then"), picture(96, 32, 2), Text(" now"))),
        )
    ),
    "ends with a picture": Document(
        (Turn("user", (picture(32, 96), Text("Go on."))), Turn("assistant", (Text("a"), picture(64, 96, 3))))
    ),
    "two drawn pictures and no text": Document(
        (Turn("user", (Text("Two."),)), Turn("assistant", (picture(32, 32, 4), picture(64, 32, 5))))
    ),
    "several turns, sizes that are scaled": Document(
        (
            Turn("user", (Text("One"), picture(50, 70), Text("or"), picture(33, 31, 6), Text("?"))),
            Turn("assistant", (Text("That"), picture(64, 32, 7))),
            Turn("user", (Text("And <|im_end|> now <BOV>?"), picture(128, 128, 8))),
        )
    ),
}


def for_generate(batch: dict) -> dict:
    """transformers 4 finds the pictures by their token and refuses mm_token_type_ids."""
    batch = model_inputs(batch, labels=False)
    if int(transformers.__version__.split(".")[0]) < 5:
        del batch["mm_token_type_ids"]
    return batch


def written(mllm: Mllm, context: Document, **kwargs) -> list[int]:
    """The ids that a continuation wrote."""
    before = len(mllm._layout(context).ids)
    out = mllm.continue_(context, **kwargs)
    ids = mllm._cache.keys[before:]
    assert len(ids) == out.tokens
    return ids


@pytest.mark.parametrize("name", CONTEXTS)
def test_greedy_is_what_transformers_generates(mllm, name) -> None:
    inputs = build_inputs([CONTEXTS[name]], mllm.tokenizer, mllm.image_processor, open_turn=True)
    control = mllm.control
    banned = mllm._banned_ids(mllm.model.config.text_config.vocab_size).nonzero().flatten().tolist()
    ends = [control.bov, control.im_end, control.end_of_text]
    theirs = mllm.model.generate(
        **for_generate(inputs),
        max_new_tokens=24,
        do_sample=False,
        suppress_tokens=banned,
        eos_token_id=ends,
        pad_token_id=control.end_of_text,
    )[0, inputs["input_ids"].shape[1] :].tolist()
    ended = theirs[-1] in ends
    ours = written(mllm, CONTEXTS[name], max_new_tokens=24)
    assert ours == (theirs[:-1] if ended else theirs)
    assert len(ours) < 4 or len(set(ours)) > 3  # a model that says one thing only would prove nothing


def test_positions_are_those_of_transformers(mllm) -> None:
    for context in CONTEXTS.values():
        if not context.pictures:
            continue
        batch = build_inputs([context], mllm.tokenizer, mllm.image_processor)
        kwargs = {k: v for k, v in for_generate(batch).items() if k not in ("pixel_values", "attention_mask")}
        theirs, _ = mllm.model.model.get_rope_index(**kwargs)
        grids = batch["image_grid_thw"].tolist()
        ours = mrope_positions(batch["input_ids"][0].tolist(), grids, control_ids(mllm.tokenizer).image_pad, 2)
        assert torch.equal(ours, theirs[:, 0])


def second_pass(mllm: Mllm, connector: Connector, document: Document) -> torch.Tensor:
    batch = build_inputs([document], mllm.tokenizer, mllm.image_processor, open_turn=True)
    with torch.no_grad():
        return connector(hidden_states_for(mllm.model, batch)[0].transpose(0, 1))


@pytest.mark.parametrize("name", CONTEXTS)
def test_states_equal_a_second_pass(mllm, connector, name) -> None:
    states = mllm.encode(CONTEXTS[name], connector)
    torch.testing.assert_close(states.states, second_pass(mllm, connector, CONTEXTS[name]), atol=1e-5, rtol=1e-5)
    assert len(states.frame_ends) == len(CONTEXTS[name].pictures)


def test_all_states_are_those_transformers_reports(mllm) -> None:
    batch = build_inputs(list(CONTEXTS.values()), mllm.tokenizer, mllm.image_processor)
    with torch.no_grad():
        ours = hidden_states_for(mllm.model, batch)
        theirs = mllm.model(**model_inputs(batch), output_hidden_states=True).hidden_states[1:]
    assert ours.shape == (len(CONTEXTS), 3, batch["input_ids"].shape[1], 64)
    torch.testing.assert_close(ours, torch.stack(theirs, dim=1))
    # A row of a padded batch has the states it has alone.
    alone = build_inputs([CONTEXTS["ends with a picture"]], mllm.tokenizer, mllm.image_processor)
    with torch.no_grad():
        one = hidden_states_for(mllm.model, alone)[0]
    torch.testing.assert_close(ours[3, :, : one.shape[1]], one, atol=1e-5, rtol=1e-5)


def test_training_reaches_every_weight(tokenizer) -> None:
    mllm = lively(tokenizer)
    batch = build_inputs(list(CONTEXTS.values()), tokenizer, mllm.image_processor)
    mllm.model.train()(**model_inputs(batch)).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mllm.model.parameters())


class Counting(Qwen25VL):
    """Counts the tokens and patches that really run."""

    tokens = patches = 0

    def run_layers(self, embeds, positions, cache, on_layer):
        self.tokens += embeds.shape[1]
        return super().run_layers(embeds, positions, cache, on_layer)

    def embed(self, ids, patches, grids):
        self.patches += 0 if patches is None else len(patches)
        return super().embed(ids, patches, grids)


def fresh(mllm: Mllm) -> Counting:
    return Counting(mllm.model, mllm.tokenizer, mllm.image_processor)


def test_cached_equals_from_scratch_through_a_whole_answer(mllm, connector) -> None:
    cached = fresh(mllm)
    document = Document((Turn("user", (picture(64, 32), Text("How do I draw it?"))),))
    answers = []
    for k, size in enumerate([(64, 64), (96, 32), (32, 64), (50, 40)]):
        options = {"max_new_tokens": 12, "temperature": 0.7 * (k % 2), "seed": k}
        out = cached.continue_(document, connector=connector, **options)
        scratch = fresh(mllm)
        assert scratch.continue_(document, **options) == out and scratch._cache.keys == cached._cache.keys
        answers.append(out.text)
        document = document.append(Text(out.text)) if k else document.begin_turn("assistant", [Text(out.text)])
        states, expected = cached.encode(document, connector), fresh(mllm).encode(document, connector)
        torch.testing.assert_close(states.states, expected.states, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states.states, second_pass(mllm, connector, document), atol=1e-5, rtol=1e-5)
        assert (states.last_segment, states.frame_ends) == (expected.last_segment, expected.frame_ends)
        document = document.append(picture(*size, seed=k))
    assert len(set(answers)) > 2
    seen = document.pictures[:-1]  # each was looked at once; the last one was never asked about
    assert cached.patches == len(picture_patches(seen, mllm.image_processor)[0])


def test_a_new_turn_and_a_rerolled_picture_keep_what_came_before(mllm, connector) -> None:
    cached = fresh(mllm)
    first = Document((Turn("user", (Text("How?"),)),)).begin_turn("assistant", [Text("One"), picture(64, 64, 1)])
    whole = first.append(Text(" two")).append(picture(96, 64, 2)).append(Text(" three"))
    cached.encode(whole, connector)
    before = cached._layout(first.append(Text(" two"))).ids

    rerolled = first.append(Text(" two")).append(picture(96, 64, 3)).append(Text(" three"))
    cached.tokens = cached.patches = 0
    states = cached.encode(rerolled, connector)
    torch.testing.assert_close(states.states, second_pass(mllm, connector, rerolled), atol=1e-5, rtol=1e-5)
    assert cached.patches == 6 * 4  # only the new picture is looked at
    assert cached.tokens <= len(states.states) - len(before)

    shorter = first  # going back crops
    cached.tokens = cached.patches = 0
    assert cached.continue_(shorter, max_new_tokens=6) == fresh(mllm).continue_(shorter, max_new_tokens=6)
    assert cached.patches == 0 and cached.tokens <= 1 + 6

    back = cached.encode(whole, connector)
    torch.testing.assert_close(back.states, second_pass(mllm, connector, whole), atol=1e-5, rtol=1e-5)

    smaller = Document((Turn("user", (Text("How?"),)),)).begin_turn("assistant", [Text("One"), picture(32, 32, 1)])
    states = cached.encode(smaller, connector)
    torch.testing.assert_close(states.states, second_pass(mllm, connector, smaller), atol=1e-5, rtol=1e-5)

    again = whole.begin_turn("user", [Text("And then?")])
    assert cached.continue_(again, max_new_tokens=6) == fresh(mllm).continue_(again, max_new_tokens=6)


def test_chunked_prefill_is_the_same(mllm, connector, monkeypatch) -> None:
    monkeypatch.setattr("duogen_core.mllm.base.CHUNK", 7)
    for context in CONTEXTS.values():
        states = fresh(mllm).encode(context, connector).states
        torch.testing.assert_close(states, second_pass(mllm, connector, context), atol=1e-5, rtol=1e-5)


def test_the_negative_drops_the_last_text_only(mllm, connector) -> None:
    context = CONTEXTS["drawn pictures, then text"]
    states = mllm.encode(context, connector)
    start, end = states.last_segment
    ids = mllm._layout(context).ids
    assert mllm.tokenizer.decode(ids[start:end]) == " now" and end == len(ids)
    assert torch.equal(states.negative(), states.positive()[:start]) and len(states.positive()) == end
    picture_first = mllm.encode(CONTEXTS["two drawn pictures and no text"], connector)
    assert torch.equal(picture_first.negative(), picture_first.positive())


def test_other_layer_classes_and_a_named_device(tokenizer, connector) -> None:
    """As ComfyUI does it: the weights lie elsewhere and are fetched when a layer runs."""
    mllm = lively(tokenizer)
    context = CONTEXTS["drawn pictures, then text"]
    expected, states = written(mllm, context, max_new_tokens=8), mllm.encode(context, connector).states

    class Linear(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x, self.away[0], self.away[1])

    class Embedding(torch.nn.Embedding):
        def forward(self, ids):
            return torch.nn.functional.embedding(ids, self.away[0])

    for module in mllm.model.modules():
        swap = {torch.nn.Linear: Linear, torch.nn.Embedding: Embedding}.get(type(module))
        if swap:
            module.away = (module.weight.data, None if getattr(module, "bias", None) is None else module.bias.data)
            module.__class__ = swap
    for module in mllm.model.modules():
        if hasattr(module, "away"):
            module.to("meta")
    other = Qwen25VL(mllm.model, tokenizer, mllm.image_processor)
    other.device = "cpu"
    assert written(other, context, max_new_tokens=8) == expected
    assert torch.equal(other.encode(context, connector).states, states)


def test_save_and_load(mllm, connector, tmp_path) -> None:
    mllm.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    prepared = []
    back = Mllm.from_pretrained(tmp_path, prepare=lambda model: prepared.extend(p.is_meta for p in model.parameters()))
    assert isinstance(back, Qwen25VL) and not back.model.training and prepared and all(prepared)
    assert back.model.lm_head.weight is back.model.get_input_embeddings().weight
    assert Mllm.from_pretrained(tmp_path, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    context = CONTEXTS["ends with a picture"]
    assert written(back, context, max_new_tokens=8) == written(mllm, context, max_new_tokens=8)
    assert torch.equal(back.encode(context, connector).states, fresh(mllm).encode(context, connector).states)


def test_several_weight_files(mllm, tmp_path) -> None:
    mllm.model.save_pretrained(tmp_path, max_shard_size="100KB")
    mllm.tokenizer.save_pretrained(tmp_path)
    mllm.image_processor.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    state = Mllm.from_pretrained(tmp_path).model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in mllm.model.state_dict().items())


def test_wrong_folders_are_named(mllm, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(DuoGenError, match=r"no config\.json"):
        Mllm.from_pretrained(tmp_path)
    mllm.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = {k: v.clone() for k, v in load_file(weights).items()}  # not mapped: the file is overwritten
    save_file({k: v for k, v in whole.items() if "layers.1.mlp.up_proj" not in k}, weights, metadata={"format": "pt"})
    with pytest.raises(DuoGenError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        Mllm.from_pretrained(tmp_path)
    save_file(whole | {"visual.extra": torch.zeros(2)}, weights, metadata={"format": "pt"})
    with pytest.raises(DuoGenError, match=r"visual\.extra"):
        Mllm.from_pretrained(tmp_path)
    weights.unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DuoGenError, match=r"pickle"):
        Mllm.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "wide", "text_config": 3}))
    with pytest.raises(DuoGenError, match="does not describe"):
        Mllm.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(DuoGenError, match="'llama'"):
        Mllm.from_pretrained(tmp_path)
    with pytest.raises(DuoGenError, match="mrope_section"):
        new_model(mllm.tokenizer, hidden_size=100)


def test_the_bundled_size(tokenizer) -> None:
    with torch.device("meta"):
        model = new_model(tokenizer)
    text = model.config.text_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (192, 5, 6)
    assert sum(p.numel() for p in model.parameters()) < 6_000_000
