"""Stage 2 on one's own documents: pictures of unlike sizes, states ahead or on the fly, LoRA, exact resume."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from duogen_core.compiling import Compiled
from duogen_core.connector import Connector
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.dit.loading import load_dit
from duogen_core.document import Document, Picture, Text
from duogen_core.document.store import save_document
from duogen_core.picture_sampling import fit_area
from duogen_core.training import prepared_shards, stage2, stage2_data
from duogen_core.training.configuration import TrainingError
from duogen_core.training.flow import FlowLoss
from duogen_core.training.lora import LoraSettings
from duogen_core.training.prepared import Reader
from duogen_core.training.prepared_shards import load_shard, prepare_shard
from duogen_core.training.run import Run
from duogen_core.training.samples import asked
from duogen_core.training.stage2_data import Documents, batches_of
from tests.core.runs import losses, stopped_in
from tests.core.tiny import random_components

SIZES = ((48, 32), (32, 32), (32, 64), (64, 48), (96, 64))  # width and height; the last one is made smaller


def document(number: int) -> Document:
    rng = np.random.default_rng(number)

    def picture():
        width, height = SIZES[rng.integers(len(SIZES))]
        return Picture(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    mine = [picture()] if number % 2 else []
    found = Document(meta={"alignment": True} if number == 3 else {}).begin_turn("user", [Text("Draw it."), *mine])
    found = found.begin_turn("assistant")
    for step in range(1 + number % 3):
        found = found.append(Text(f"Step {step}.")).append(picture())
    return found.append(Text("Done."))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where everything lies: documents (one of them draws nothing), the VAE and the MLLM."""
    root = tmp_path_factory.mktemp("stage2")
    for number in range(7):
        save_document(document(number), root / "documents" / f"{number}")
    words = Document().begin_turn("user", [Text("Hello.")]).begin_turn("assistant", [Text("Hello!")])
    save_document(words, root / "documents" / "words")
    components = random_components()
    components.mllm.save_pretrained(root / "mllm")
    components.vae.model.save_pretrained(root / "vae")
    return root


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(stage2_data, "SHARD", 7)


def settings(folder: Path, out: Path, **changes) -> stage2.Stage2Config:
    values = {
        "out": out, "vae": folder / "vae", "mllm": folder / "mllm", "data": [f"documents:{folder / 'documents'}"],
        "layers": 2, "heads": 2, "cross_width": 32, "shards": 1, "batch": 3, "tokens": 120, "max_side": 64, "steps": 3,
        "log_every": 1, "warmup": 1, "sample_minutes": 0.0, "bf16": False, "precision": "float32",
    }  # fmt: skip
    return stage2.Stage2Config(**{**values, **changes})


def trained(config: stage2.Stage2Config) -> list[float]:
    stage2.train(config)
    return losses(config.out)


@pytest.mark.parametrize("attention", ["frame_causal", "full"])
@pytest.mark.parametrize("states", ["cached", "online"])
def test_documents_of_mixed_sizes_train_and_resume_exactly(folder, tmp_path, states, attention):
    config = settings(folder, tmp_path / "whole", states=states, attention=attention)
    whole = trained(config)
    assert len(whole) == 3 and all(np.isfinite(whole))
    broken = replace(config, out=tmp_path / "broken")
    with stopped_in(1):
        trained(broken)
    assert trained(broken) == whole
    passed_over = [json.loads(line) for line in (config.out / "bad_samples.jsonl").read_text("utf-8").splitlines()]
    assert all("no image in an assistant turn" in each["sentence"] for each in passed_over)
    assert load_dit(config.out / "export" / "dit").config.attention == attention


def test_alignment_data_is_learnt_from_and_documents_without_a_drawn_picture_are_not(folder, tmp_path):
    config = settings(folder, tmp_path)
    documents = Documents(Run.of(config), config, random_components().mllm, 32)
    drawn = [document for _, document in documents(0)]
    assert any(document.meta.get("alignment") is True for document in drawn)
    assert all(document.last_turn.pictures for document in drawn)
    assert documents.summary().startswith("1 in which the assistant draws nothing passed over")


@pytest.mark.parametrize("states", ["cached", "online"])
def test_pictures_made_smaller_are_told_and_counted(folder, tmp_path, capsys, states):
    large = sum(any(max(p.size) > 64 for p in document(number).pictures) for number in range(7))
    assert 1 < large < 7
    config = settings(folder, tmp_path / "small", states=states, max_side=64, batch=7, steps=2)
    trained(config)
    said = capsys.readouterr().out
    (first,) = [line for line in said.splitlines() if "is made smaller" in line]
    assert "since max_side is 64" in first and "documents" in first
    counted = int(re.search(r"(\d+) documents have images larger than max_side=64", said)[1])
    assert 0 < counted <= large and (counted == large or states == "online")
    trained(replace(config, out=tmp_path / "whole", max_side=96))
    assert "made smaller" not in capsys.readouterr().out


def test_preparing_documents_is_announced_and_has_a_bar(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("duogen_core.training.metrics.Progress.due", lambda self: True)
    monkeypatch.setattr(prepared_shards, "PART", 2)
    config = settings(folder, tmp_path, shards=2, steps=1)
    trained(config)
    lines = capsys.readouterr().out.splitlines()
    at = next(k for k, line in enumerate(lines) if "VAE and MLLM read the documents, once: 2 shards of 7" in line)
    bars = [line for line in lines[at:] if "documents prepared, shard" in line]
    shares = [int(re.search(r"(\d+)%", line)[1]) for line in bars]
    assert len(bars) >= 8 and shares == sorted(shares) and shares[-1] == 100 and 0 < shares[0] < 30
    assert "shard 1 of 2" in bars[0] and "shard 2 of 2" in bars[-1] and all(line.endswith("left") for line in bars)
    assert lines.index(bars[-1]) < next(k for k, line in enumerate(lines) if "step 1/1" in line)
    trained(replace(config, out=tmp_path / "again", documents=tmp_path / "documents"))  # all there: nothing to tell
    assert "prepared" not in capsys.readouterr().out


def test_no_more_shards_are_made_than_the_data_fill(folder, tmp_path):
    """65 shards are the default; each document of a small set would be read again and again before the first step."""
    config = settings(folder, tmp_path / "set", shards=65, steps=1)
    documents = Documents(Run.of(config), config, random_components().mllm)
    seen = {name for number in range(documents.shards) for name, _ in documents(number)}
    before = {name for number in range(documents.shards - 1) for name, _ in documents(number)}
    assert documents.shards < 65 and before < seen == {name for number in range(30) for name, _ in documents(number)}
    trained(config)
    assert len(list((config.out / "documents").glob("*.safetensors"))) == documents.shards
    endless = replace(config, data=[*config.data, "sketchbook"])
    assert Documents(Run.of(replace(endless, out=tmp_path / "two")), endless, random_components().mllm).shards == 65


@pytest.mark.parametrize("precision,close", [("float32", 1e-5), ("float16", 1e-3)])
def test_ahead_and_on_the_fly_give_the_same_loss(folder, tmp_path, precision, close):
    config = settings(folder, tmp_path, precision=precision)
    run, parts = Run.of(config), random_components()
    fly = replace(config, states="online", precision="float32")
    ahead, stream = (
        batches_of(run, each, parts.vae, parts.mllm, Documents(run, each, parts.mllm)) for each in (config, fly)
    )
    prepared = {each.name: each.load() for shape in ahead.shapes for each in shape}
    share = stream.steps(run, fly)(1)
    read = [each for some in share.passes for each in stream.read(some.documents)]
    kept = [prepared[each.name] for each in read]
    assert share.names == [name for name, _ in Documents(run, fly, parts.mllm)(1)] and len(read) == 3
    torch.manual_seed(0)
    dit, connector = stage2.new_models(config, 2, 64)
    for parameter in dit.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    loss = FlowLoss(dit, connector)
    with torch.no_grad():
        one, other = (loss(stage2.samples(run, 1, enumerate(some), config)) for some in (read, kept))
    assert abs(float(one - other)) < close
    for mine, theirs in zip(read, kept, strict=True):
        assert [latent.shape for latent in mine.latents] == [latent.shape for latent in theirs.latents]
        assert max(max(latent.shape[-2:]) for latent in mine.latents) <= 64 // 8


def test_samples_answer_the_documents_own_requests_in_their_size(folder, tmp_path):
    config = settings(folder, tmp_path, steps=1, sample_minutes=10.0)
    trained(config)
    (sample,) = (tmp_path / "samples" / "000001").glob("documents*.html")
    assert "Draw it." in sample.read_text("utf-8")
    parts, ideal = random_components(), document(1)
    request, how = asked(ideal, parts)
    assert request.turns == ideal.turns[:1]
    assert how.size == fit_area(*ideal.turns[1].pictures[0].size, parts.config)


def test_samples_that_cannot_be_drawn_stop_no_training(folder, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("CUDA out of memory.\nMore of it")

    monkeypatch.setattr(stage2, "write_samples", fails)
    assert len(trained(settings(folder, tmp_path, sample_minutes=10.0))) == 3
    assert "The samples of step 3 are left out: CUDA out of memory. The training goes on.\n" in capsys.readouterr().out
    assert load_dit(tmp_path / "export" / "dit")


def test_a_step_in_passes_is_the_step_in_one(folder, tmp_path):
    one = trained(settings(folder, tmp_path / "one", states="online", tokens=10_000, steps=2))
    several = trained(settings(folder, tmp_path / "several", states="online", tokens=60, steps=2))
    assert several == pytest.approx(one, abs=1e-5)


def test_documents_prepared_from_others_are_refused(folder, tmp_path):
    config = settings(folder, tmp_path, steps=1)
    trained(config)
    again = replace(config, out=tmp_path / "again", documents=tmp_path / "documents")
    trained(again)  # the same: taken as they are
    assert not (again.out / "documents").exists()
    with pytest.raises(TrainingError, match=r"prepared with another data \(.*source 1.*was documents, is sketchbook"):
        stage2.train(replace(again, data=["sketchbook"]))
    with pytest.raises(TrainingError, match=r"prepared with another max_side \(max_side: 64 -> 32\);"):
        stage2.train(replace(again, max_side=32))
    other = random_components(seed=1)
    other.mllm.save_pretrained(tmp_path / "mllm")
    with pytest.raises(TrainingError, match="another mllm"):
        stage2.train(replace(again, mllm=tmp_path / "mllm"))


def test_the_same_documents_give_the_same_file(tmp_path):
    parts = random_components()
    reader, some = Reader(parts.vae, parts.mllm), [("one", document(1))]
    files = [prepare_shard(tmp_path / str(k), 0, lambda _: some, reader, {"max_side": 160}) for k in range(16)]
    assert len({file.read_bytes() for file in files}) == 1


def test_shards_with_an_entry_for_each_note_are_still_read(tmp_path):
    parts = random_components()
    reader, some = Reader(parts.vae, parts.mllm), [("one", document(1))]
    file = prepare_shard(tmp_path, 0, lambda _: some, reader, {"max_side": 160})
    (new,) = load_shard(file)
    with safe_open(file, "pt") as opened:
        (kept,) = opened.metadata().values()
    save_file(load_file(file), file, {name: json.dumps(value) for name, value in json.loads(kept).items()})
    (old,) = load_shard(file)
    assert torch.equal(old.states, new.states) and old.name == new.name == "one" and old.shape == new.shape
    assert (old.ends, old.segments, old.drawn) == (new.ends, new.segments, new.drawn)
    prepare_shard(tmp_path, 0, lambda _: some, reader, {"max_side": 160})
    with pytest.raises(TrainingError, match="another max_side"):
        prepare_shard(tmp_path, 0, lambda _: some, reader, {"max_side": 32})


@pytest.mark.parametrize("attention", ["frame_causal", "full"])
def test_gradient_checkpointing_learns_the_same(folder, tmp_path, attention):
    plain = trained(settings(folder, tmp_path / "plain", attention=attention))
    saving = trained(settings(folder, tmp_path / "saving", attention=attention, gradient_checkpointing=True))
    assert saving == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param({}, marks=pytest.mark.exhaustive),
        {"gradient_checkpointing": True},
        pytest.param({"lora": LoraSettings(rank=2)}, marks=pytest.mark.exhaustive),
    ],
)
def test_compiled_blocks_learn_the_same(folder, tmp_path, monkeypatch, extra):
    used = []

    def compiled(pieces, say, **how):
        used.append(Compiled(pieces, pytest.fail, backend="eager", **how))

    monkeypatch.setattr(stage2, "Compiled", compiled)
    plain = trained(settings(folder, tmp_path / "plain", **extra))
    assert trained(settings(folder, tmp_path / "compiled", compile=True, **extra)) == pytest.approx(plain, abs=1e-5)
    assert len(used) == 1 and len(used[0].pieces) == 4 * 2


def test_lora_learns_beside_a_frozen_dit_and_is_written_for_every_reader(folder, tmp_path):
    pytest.importorskip("peft")
    start = settings(folder, tmp_path / "start", lr=0.05)  # until the blocks are open
    trained(start)
    config = replace(
        start, out=tmp_path / "lora", init=start.out / "export", steps=4, lr=0.02, lora=LoraSettings(rank=4, alpha=12.0)
    )
    whole = trained(config)
    base, merged = (load_dit(c.out / "export" / "dit") for c in (start, config))
    adapted = {name for name, weight in merged.state_dict().items() if not torch.equal(weight, base.state_dict()[name])}
    assert adapted == {
        f"transformer_blocks.{n}.{attn}.{layer}.weight"
        for n in range(2)
        for attn in ("attn1", "attn2")
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    }
    before, after = (Connector.from_pretrained(c.out / "export" / "connector") for c in (start, config))
    assert not torch.equal(before.proj.weight, after.proj.weight)

    lora = load_file(config.out / "adapter" / "pytorch_lora_weights.safetensors")
    assert {name.rsplit(".lora_", 1)[0] for name in lora} == {
        f"transformer.{name.removesuffix('.weight')}" for name in adapted
    }
    for name in adapted:  # the scale, 3 here, is in the file
        key = f"transformer.{name.removesuffix('.weight')}"
        delta = lora[f"{key}.lora_B.weight"] @ lora[f"{key}.lora_A.weight"]
        torch.testing.assert_close(base.state_dict()[name] + delta, merged.state_dict()[name], atol=1e-6, rtol=1e-5)

    import peft

    with_adapter = peft.PeftModel.from_pretrained(
        PackedCosmos.from_pretrained(start.out / "export" / "dit"), config.out / "adapter"
    )
    frames, text = [torch.randn(1, 16, 4, 6), torch.randn(1, 16, 6, 4)], torch.randn(1, 5, 32)
    with torch.no_grad():
        v, w = (m.forward_packed(frames, torch.tensor([0.4]), text, frame_ends=[2]) for m in (with_adapter, merged))
        plain = base.forward_packed(frames, torch.tensor([0.4]), text, frame_ends=[2])
    torch.testing.assert_close(v, w, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(v, plain, atol=1e-5)

    broken = replace(config, out=tmp_path / "broken")
    with stopped_in(2):
        trained(broken)
    assert sum(t.numel() for t in load_file(broken.out / "checkpoint" / "dit.safetensors").values()) < 30_000
    assert trained(broken) == whole


@pytest.mark.parametrize("states", ["cached", "online"])
def test_lora_with_dropout_resumes_exactly_whenever_samples_are_drawn(folder, tmp_path, states):
    """Samples are due by the clock; what dropout hides must not depend on it."""
    pytest.importorskip("peft")
    lora = LoraSettings(rank=4, dropout=0.5)
    start = settings(folder, tmp_path / "start", steps=2, lr=0.02)
    trained(start)  # a new DiT answers 0, whatever its layers say
    changes = {"steps": 4, "lr": 0.02, "lora": lora, "init": start.out / "export"}
    config = settings(folder, tmp_path / "whole", states=states, **changes)
    whole = trained(config)
    broken = replace(config, out=tmp_path / "broken", sample_minutes=1e-9)
    with stopped_in(1):
        trained(broken)
    assert trained(broken) == whole
    assert len(list((broken.out / "samples").iterdir())) > 2
    undropped = replace(config, out=tmp_path / "undropped", lora=replace(lora, dropout=0.0))
    assert trained(undropped) != whole
