"""A LoRA for the MLLM, read from PEFT's layout and from single files: the numbers of the merged model, or a refusal."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from duogen_core import cli
from duogen_core.errors import DuoGenError
from duogen_core.mllm.adapter import (
    CONFIG,
    FILE,
    read_adapter,
    with_marker,
)
from duogen_core.mllm.chat import BOV
from tests.core.tiny import random_components

peft = pytest.importorskip("peft")
LAYERS = "model.language_model.layers"


def untie(model) -> None:
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone().roll(1, 0))


def written(folder, *, tied: bool = True, rows: bool = True, **settings):
    """An adapter that is not zero, in `folder` -> (the model's state before, its state with the adapter merged)."""
    from duogen_core.training.lora import MLLM_TARGETS, LoraSettings, add_lora, merged_state, save_adapter, trainable

    mllm = random_components().mllm
    if not tied:
        untie(mllm.model)
    before = {name: tensor.clone() for name, tensor in mllm.model.state_dict().items()}
    tokens = {"embed_tokens": [mllm.control.bov]} | ({} if tied else {"lm_head": [mllm.control.bov]})
    settings = LoraSettings(**{"rank": 3, **settings})
    add_lora(mllm.model, settings, within=LAYERS, usual=MLLM_TARGETS, tokens=tokens if rows else None)
    for parameter in trainable(mllm.model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_adapter(mllm.model, folder)
    return before, merged_state(mllm.model)


def applied(before, adapter, strength: float = 1.0):
    state = {name: tensor.clone() for name, tensor in before.items()}
    for name, change in adapter.layers.items():
        state[f"{name}.weight"] = change.merged(state[f"{name}.weight"], strength)
    for name, rows in adapter.rows.items():
        for token, row in rows.items():
            state[f"{name}.weight"][token] = row
    return state


def plain(tied: bool = True):
    mllm = random_components().mllm
    if not tied:
        untie(mllm.model)
    return mllm


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_read_is_what_peft_merges(tied, tmp_path):
    before, merged = written(tmp_path / "a", tied=tied)
    for path in (tmp_path / "a", tmp_path / "a" / FILE):
        adapter = read_adapter(path, plain(tied))
        assert set(adapter.rows) == {"model.language_model.embed_tokens", "lm_head"}
        after = applied(before, adapter)
        assert after.keys() == merged.keys()
        for name, tensor in merged.items():
            torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=1e-6)
    changed = [name for name in before if not torch.equal(before[name], merged[name])]
    assert len(changed) == 2 * 7 + 2


@pytest.mark.parametrize("naming", ["published", "kohya", "scaled"])
def test_single_files_of_other_namings(naming, tmp_path):
    before, merged = written(tmp_path / "a", rows=False, alpha=6.0)
    tensors = {}
    for name, tensor in load_file(tmp_path / "a" / FILE).items():
        layer, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        if naming == "published":  # as the files of Qwen2.5-VL call them, the scale in lora_B
            tensors[layer.replace("model.language_model.", "model.") + f".lora_{part}"] = (
                tensor * 2 if part.startswith("B") else tensor
            )
        elif naming == "kohya":
            layer = "lora_te_" + layer.removeprefix("model.language_model.").replace(".", "_")
            tensors[f"{layer}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = tensor
            tensors[f"{layer}.alpha"] = torch.tensor(6.0)
        else:
            tensors[f"{layer}.lora_{part}"] = tensor
            tensors[f"{layer}.alpha"] = torch.tensor(6.0)
    save_file(tensors, tmp_path / "one.safetensors")
    after = applied(before, read_adapter(tmp_path / "one.safetensors", plain()))
    for name, tensor in merged.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "change, scale",
    [({"use_rslora": True}, 6 / 3**0.5), ({"alpha_pattern": {"q_proj": 9}}, 3.0), ({"lora_alpha": 12}, 4.0)],
)
def test_the_scale_is_pefts(change, scale, tmp_path):
    written(tmp_path, rows=False, alpha=6.0)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | change))
    adapter = read_adapter(tmp_path, plain())
    assert adapter.layers[f"{LAYERS}.0.self_attn.q_proj"].scale == pytest.approx(scale)
    peft_model = peft.PeftModel.from_pretrained(plain().model, tmp_path)
    theirs = peft_model.base_model.model.get_submodule(f"{LAYERS}.0.self_attn.q_proj").scaling["default"]
    assert theirs == pytest.approx(scale)


PEFT_KINDS = {
    "rslora": peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True),
    "dora": peft.LoraConfig(r=3, lora_alpha=5, use_dora=True),
    "dora, rslora": peft.LoraConfig(r=4, lora_alpha=5, use_dora=True, use_rslora=True),
    "loha": peft.LoHaConfig(r=3, alpha=5),
    "loha by pattern": peft.LoHaConfig(r=3, alpha=5, alpha_pattern={"q_proj": 7}, rank_pattern={"v_proj": 2}),
    "lokr": peft.LoKrConfig(r=2, alpha=5),
    "lokr of whole matrices": peft.LoKrConfig(r=64, alpha=5, rank_pattern={"q_proj": 50}),
    "lokr, both decomposed": peft.LoKrConfig(r=1, alpha=5, decompose_both=True),
}


@pytest.mark.parametrize("kind", PEFT_KINDS)
def test_every_kind_is_what_peft_merges(kind, tmp_path, capsys):
    config, mllm = copy.deepcopy(PEFT_KINDS[kind]), plain()
    config.target_modules = r".*language_model\.layers.*_proj"
    before = {name: tensor.clone() for name, tensor in mllm.model.state_dict().items()}
    torch.manual_seed(3)
    model = peft.get_peft_model(mllm.model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    merged = model.merge_and_unload().state_dict()
    adapter = read_adapter(tmp_path, plain())
    assert len(adapter.layers) == 2 * 7
    after = applied(before, adapter)
    for name, tensor in merged.items():
        torch.testing.assert_close(after[name], tensor, atol=2e-6, rtol=2e-6)
    assert sum(not torch.equal(before[name], merged[name]) for name in before) == 2 * 7
    half, name = applied(before, adapter, 0.5), f"{LAYERS}.1.mlp.down_proj.weight"
    torch.testing.assert_close(half[name], (before[name] + merged[name]) / 2, atol=2e-6, rtol=2e-6)
    assert cli.main(["inspect", str(tmp_path)]) == 0
    said, names = capsys.readouterr().out, {"rslora": "rsLoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}
    assert all(names[part] in said for part in re.split(r"\W+", kind) if part in names) and "for an MLLM" in said


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "LoKr of whole matrices", "DoRA by rows", "DoRA by columns"])
def test_single_files_as_lycoris_writes_them(kind, tmp_path):
    """Against the arithmetic as its authors write it, with the scale in `alpha`."""
    torch.manual_seed(4)
    layer, mllm = "self_attn.q_proj", plain()
    weight = mllm.model.get_submodule(f"{LAYERS}.1.{layer}").weight.detach().clone()
    draw = lambda *shape: torch.randn(shape) / 4  # noqa: E731
    alpha, lengths = torch.tensor(3.0), None
    if kind == "LoHa":
        parts = {f"hada_w{n}_{half}": draw(*((64, 2) if half == "a" else (2, 64))) for n in (1, 2) for half in "ab"}
        a, b, c, d = parts.values()
        delta = (a @ b) * (c @ d) * alpha / 2
    elif kind.startswith("LoKr"):
        parts = {"lokr_w1": draw(4, 8), "lokr_w2_a": draw(16, 2), "lokr_w2_b": draw(2, 8)}
        delta = torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"]) * alpha / 2
        if "whole" in kind:
            parts = {"lokr_w1": parts["lokr_w1"], "lokr_w2": parts["lokr_w2_a"] @ parts["lokr_w2_b"]}
            delta = torch.kron(*parts.values())
    else:
        parts = {"lora_down.weight": draw(2, 64), "lora_up.weight": draw(64, 2)}
        delta = parts["lora_up.weight"] @ parts["lora_down.weight"] * alpha / 2
        lengths = parts["dora_scale"] = torch.rand((64, 1) if "rows" in kind else (1, 64)) + 0.5
    parts["alpha"] = alpha
    save_file(
        {f"lycoris_layers_1_self_attn_q_proj.{name}": tensor for name, tensor in parts.items()},
        tmp_path / "l.safetensors",
    )
    expected = weight + delta
    if lengths is not None:
        expected = lengths * expected / expected.norm(dim=1 if "rows" in kind else 0, keepdim=True)
    (change,) = read_adapter(tmp_path / "l.safetensors", mllm).layers.values()
    torch.testing.assert_close(change.merged(weight), expected, atol=1e-6, rtol=1e-6)


def without_bov(mllm):
    """The same model as published ones are: its tokenizer ends before <BOV>."""
    from tokenizers import Tokenizer

    from duogen_core.mllm.tokenizer import wrap_tokenizer

    made = json.loads(mllm.tokenizer.backend_tokenizer.to_str())
    made["added_tokens"] = [token for token in made["added_tokens"] if token["content"] != BOV]
    made["model"]["vocab"].pop(BOV, None)
    return type(mllm)(mllm.model, wrap_tokenizer(Tokenizer.from_str(json.dumps(made))), mllm.image_processor)


def test_a_model_without_bov_gets_the_one_that_was_taught(tmp_path):
    written(tmp_path)
    taught, mllm = plain(), without_bov(plain())
    assert mllm.prompted is not None
    changed = with_marker(mllm, read_adapter(tmp_path, mllm))
    assert changed.prompted is None and changed.control == taught.control and changed.model is mllm.model
    assert mllm.prompted is not None and BOV not in mllm.tokenizer.get_vocab()


def test_a_marker_that_was_taught_as_another_token_is_refused(tmp_path):
    written(tmp_path)
    mllm = plain()
    adapter = read_adapter(tmp_path, mllm)
    changed = with_marker(mllm, adapter)
    assert changed is not mllm and changed.model is mllm.model and changed.control == mllm.control
    adapter.rows.clear()
    assert with_marker(mllm, adapter).tokenizer is mllm.tokenizer
    adapter.rows["lm_head"] = {mllm.control.bov + 1: torch.zeros(64)}
    with pytest.raises(DuoGenError, match=rf"teaches the token \d+, but {BOV} is token {mllm.control.bov} here"):
        with_marker(mllm, adapter)


def edit(folder, tensors: dict | None = None, config: dict | None = None) -> None:
    if tensors is not None:
        found = load_file(folder / FILE)
        found = {name: tensor for name, tensor in {**found, **tensors}.items() if tensor is not None}
        save_file(found, folder / FILE)
    if config is not None:
        (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | config))


MODULES = [
    *(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
]  # fmt: skip
FIRST = f"base_model.model.{LAYERS}.0.self_attn.q_proj"
BAD = {
    "another model": (
        {FIRST.replace(".0.", ".40.") + f".lora_{half}.weight": torch.zeros(shape) for half, shape in
         (("A", (3, 64)), ("B", (64, 3)))}, None,
        "is a LoRA for another model: 1 of its 15 layers are not in this qwen2_5_vl, for example .*layers.40",
    ),
    "another size": (
        {f"{FIRST}.lora_A.weight": torch.zeros(3, 96)}, None,
        "is a LoRA for another size of model: .*q_proj is for 64x96, the model's is 64x64",
    ),
    "half of a pair": ({f"{FIRST}.lora_B.weight": None}, None, "q_proj has one of its two matrices"),
    "two ranks": ({f"{FIRST}.lora_B.weight": torch.zeros(64, 5)}, None, "have the ranks 3 and 5"),
    "a foreign tensor": ({"base_model.model.lm_head.weight": torch.zeros(4)}, None, "lm_head.weight is not part of"),
    "dora": ({f"{FIRST}.dora_scale": torch.zeros(64)}, None, "1 of 14 layers have .* says use_dora False"),
    "dora said": ({}, {"use_dora": True}, "0 of 14 layers have the lengths of one, but .* says use_dora True"),
    "dora of another size": (
        {f"base_model.model.{LAYERS}.{n}.{name}.lora_magnitude_vector": torch.zeros(7)
         for n in range(2) for name in MODULES}, {"use_dora": True}, r"are \[7\]; expected \d+ numbers, one a row",
    ),
    "another kind": ({}, {"peft_type": "IA3"}, "describes an adapter with IA3; expected a plain LoRA, LoHa or LoKr"),
    "said to be another": ({}, {"peft_type": "LOKR", "alpha": 4}, "_proj is a LoRA, but its .* says LoKr"),
    "two kinds": ({f"{FIRST}.lokr_w{n}": torch.zeros(8, 8) for n in (1, 2)}, None, "a LoRA and a LoKr of .*q_proj"),
    "half a LoHa": ({f"{FIRST}.hada_w1_a": torch.zeros(8, 8)}, None, "is not a LoHa of a matrix"),
    "another beginning": ({}, {"init_lora_weights": "pissa_niter_4"}, "with init_lora_weights pissa_niter_4"),
    "activated by tokens": ({}, {"alora_invocation_tokens": [1]}, "an adapter with alora_invocation_tokens"),
    "no pattern": ({}, {"alpha_pattern": {"(": 3}}, "is not a regular expression"),
    "a pattern of words": ({}, {"alpha_pattern": {"q_proj": "3"}}, "alpha_pattern must be an object of numbers"),
    "bottomless": ({}, {"x": json.loads("[" * 300 + "]" * 300)}, "nested too deeply"),
    "twice": (
        {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight": torch.zeros(shape) for half, shape in
         (("A", (3, 64)), ("B", (64, 3)))}, None, "holds model.language_model.layers.0.self_attn.q_proj twice",
    ),
    "no rank": ({}, {"r": None}, "does not describe a PEFT LoRA"),
    "rows of nobody": ({}, {"trainable_token_indices": None}, "does not say of which tokens"),
    "rows too many": ({}, {"trainable_token_indices": {"embed_tokens": [5, 6]}}, "does not say of which tokens"),
    "rows beyond": ({}, {"trainable_token_indices": {"embed_tokens": [10**6]}}, "its new rows of .* do not fit"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_in_a_sentence(case, tmp_path):
    written(tmp_path)
    tensors, config, match = BAD[case]
    edit(tmp_path, tensors, config)
    with pytest.raises(DuoGenError, match=match) as caught:
        read_adapter(tmp_path, plain())
    assert "\n" not in str(caught.value)


def test_files_that_are_no_adapter_of_an_mllm(tmp_path):
    written(tmp_path / "a")
    mllm = plain()
    (tmp_path / "a" / FILE).rename(tmp_path / "lone.safetensors")
    with pytest.raises(DuoGenError, match=f"without its {CONFIG}, which holds its scale"):
        read_adapter(tmp_path / "lone.safetensors", mllm)
    with pytest.raises(DuoGenError, match="The LoRA are missing|expected the file .*adapter_model"):
        read_adapter(tmp_path / "a", mllm)
    data = (tmp_path / "lone.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-50])
    with pytest.raises(DuoGenError, match="cut.safetensors is cut off"):
        read_adapter(tmp_path / "cut.safetensors", mllm)
    name = "transformer.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    save_file({name.format("A"): torch.zeros(2, 8), name.format("B"): torch.zeros(8, 2)}, tmp_path / "dit.safetensors")
    with pytest.raises(DuoGenError, match="is a LoRA for a diffusion transformer, not for an MLLM"):
        read_adapter(tmp_path / "dit.safetensors", mllm)
    (tmp_path / "old.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(DuoGenError, match="pickled weight file"):
        read_adapter(tmp_path / "old.bin", mllm)


def test_inspect_knows_the_adapter_of_stage_1(tmp_path):
    from duogen_core.identify import identify

    written(tmp_path)
    (found,) = identify(tmp_path / FILE)
    assert (found.kind, found.family, found.layout) == ("LoRA", "for an MLLM", "PEFT")


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(feedforward_modules=[]),
        peft.OFTConfig(r=0, oft_block_size=4),
        peft.VeraConfig(r=2),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_other_adapters_of_pefts_are_named_and_not_applied(config, tmp_path, capsys):
    config, mllm = copy.deepcopy(config), plain()
    config.target_modules = r".*language_model\.layers.*q_proj"
    peft.get_peft_model(mllm.model, config).save_pretrained(tmp_path)
    name = config.peft_type.value
    for path in (tmp_path, tmp_path / FILE):
        assert cli.main(["inspect", str(path)]) == 0
        told = capsys.readouterr().out
        assert f"adapter: {name}" in told and "reads LoRA, LoHa and LoKr" in told
    with pytest.raises(DuoGenError, match=f"an adapter with {name}; expected a plain LoRA, LoHa or LoKr"):
        read_adapter(tmp_path, plain())


def test_pefts_adapter_of_a_dit_becomes_one_file(tmp_path, capsys):
    """Its numbers are those of the file that training writes for ComfyUI, which has the scale in lora_B."""
    from duogen_core import cli
    from duogen_core.training.lora import (
        DIFFUSERS_FILE,
        DIT_TARGETS,
        LoraSettings,
        add_lora,
        save_dit_adapter,
        trainable,
    )

    dit = random_components().dit
    add_lora(dit, LoraSettings(rank=3, alpha=6.0), within="transformer_blocks", usual=DIT_TARGETS)
    for parameter in trainable(dit).values():
        parameter.data = torch.randn_like(parameter)
    save_dit_adapter(dit, tmp_path / "a")
    assert cli.main(["convert", str(tmp_path / "a"), str(tmp_path / "one.safetensors"), "--quiet"]) == 0
    ours, theirs = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "a" / DIFFUSERS_FILE)
    assert len(ours) == len(theirs) * 3 // 2
    for name, tensor in theirs.items():
        layer, _, half = name.removeprefix("transformer.").rpartition(".lora_")
        scale = ours[f"diffusion_model.{layer}.alpha"] / 3 if half.startswith("B") else 1
        torch.testing.assert_close(ours[f"diffusion_model.{layer}.lora_{half}"] * scale, tensor)
    written(tmp_path / "mllm")
    for source, match in (
        (tmp_path / "mllm", "is not a LoRA for a DiT"),
        (tmp_path / "a", "give .*folder.safetensors"),
    ):
        capsys.readouterr()
        target = tmp_path / ("two.safetensors" if source.name == "mllm" else "folder")
        assert cli.main(["convert", str(source), str(target), "--quiet"]) == 2 and not target.exists()
        assert re.search(match, capsys.readouterr().err)


@pytest.mark.parametrize("start", ["base_model.model.model.language_model.", "base_model.model.model.", "lora_te_"])
def test_a_lora_of_a_published_mllm_fits_it_and_no_other(start):
    from duogen_core.mllm.qwen2_5_vl import Qwen25VL
    from duogen_core.weights.headers import Entry
    from duogen_core.weights.lora import check_lora, read_lora
    from tests.core.headers import key_list

    def lora(name: str):
        entries = {}
        for key, shape in key_list(name).items():
            if "visual" in key or not key.endswith("_proj.weight"):
                continue
            layer = key[key.index("layers.") :].removesuffix(".weight")
            layer = start + (layer.replace(".", "_") if start == "lora_te_" else layer)
            down, up = ("lora_down", "lora_up") if start == "lora_te_" else ("lora_A", "lora_B")
            entries[f"{layer}.{down}.weight"] = Entry("BF16", (16, shape[1]))
            entries[f"{layer}.{up}.weight"] = Entry("BF16", (shape[0], 16))
        return read_lora(entries, "x.safetensors")

    def shapes(name: str):
        return {Qwen25VL.module_name(key): shape for key, shape in key_list(name).items()}

    sizes = ("mllm-qwen2.5-vl-3b", "mllm-qwen2.5-vl-7b")
    for name, layers in zip(sizes, (36, 28)):
        found = check_lora(lora(name), shapes(name), "x", "the MLLM", Qwen25VL.module_name)
        assert len(found) == len(set(found.values())) == 7 * layers
        assert all(ours.startswith("model.language_model.layers.") for ours in found.values())
    with pytest.raises(DuoGenError, match="is a LoRA for another model: 56 of its 252 layers are not in the 7B"):
        check_lora(lora(sizes[0]), shapes(sizes[1]), "x", "the 7B", Qwen25VL.module_name)
    with pytest.raises(
        DuoGenError, match="is a LoRA for another size of model: .* is for 3584x3584, the model's is 2048"
    ):
        check_lora(lora(sizes[1]), shapes(sizes[0]), "x", "the 3B", Qwen25VL.module_name)
