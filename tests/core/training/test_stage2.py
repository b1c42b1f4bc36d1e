"""Stage 2: prepared documents hold what inference would see, batches mask what they must, runs resume exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file

from duogen_core.checkpoint import CheckpointConfig, load_checkpoint
from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.dit.wan import PackedWan
from duogen_core.document import Document
from duogen_core.errors import DuoGenError
from duogen_core.sketchbook.source import SketchbookWorld, drawn_case
from duogen_core.sketchbook.tasks import FAMILIES
from duogen_core.training import stage2
from duogen_core.training.assemble import assemble
from duogen_core.training.prepared import Prepared, Reader
from duogen_core.training.prepared_shards import load_shard, prepare_shard
from duogen_core.training.run import Run, rng_for
from duogen_core.training.stage2_data import CachedBatches, Documents
from duogen_core.weights.wan_keys import to_official
from tests.core.runs import losses, stopped_in
from tests.core.tiny import random_components

CONFIG = stage2.Stage2Config(
    out=Path("."), vae=Path("."), mllm=Path("."), layers=2, heads=2, cross_width=32, shards=1, tokens=800, steps=4,
    log_every=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def components():
    return random_components(layers=2)


@pytest.fixture(scope="module")
def shard(components, tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    documents = Documents(Run.of(replace(CONFIG, out=folder)), CONFIG, components.mllm, 12)
    return prepare_shard(folder, 0, documents, Reader(components.vae, components.mllm), documents.recipe)


def test_prepared_documents_hold_the_states_and_places_that_inference_sees(components, shard):
    connector = Connector(components.connector.config)
    for number, prepared in enumerate(load_shard(shard)):
        document = drawn_case(rng_for(0, "stage2", number), CONFIG.families).document
        assert len(prepared.latents) == len(document.pictures)
        *earlier, turn = document.turns
        last = max(k for k, part in enumerate(turn.parts) if part in document.pictures)
        until = Document((*earlier, type(turn)(turn.role, turn.parts[:last])))
        with torch.inference_mode():
            seen = components.mllm.encode(until, connector)
            states = torch.nn.functional.gelu(connector.proj(prepared.states.float()))
        roles = [turn.role for turn in document.turns for _ in turn.pictures]
        assert prepared.drawn == tuple(k for k, role in enumerate(roles) if role == "assistant")
        assert prepared.ends[-1] == len(seen.states) == len(states)
        assert prepared.ends[:-1] == tuple(seen.frame_ends)
        assert tuple(prepared.segments[-1]) == tuple(seen.last_segment)
        assert (states - seen.states).abs().max() < 5e-3  # kept in half precision


def test_batches_are_of_one_shape_and_about_the_asked_tokens(shard):
    corpus = CachedBatches(load_shard(shard), tokens=900)
    for seed in range(20):
        batch = corpus.batch(0, Random(seed))
        assert all(document.shape == batch[0].shape for document in batch)
        like = next(each for each in corpus.shapes if each[0].shape == batch[0].shape)
        assert len(batch) == max(1, round(900 * len(like) / sum(each.tokens() for each in like)))


def test_packed_batches_are_of_any_shape_and_within_the_tokens(shard):
    corpus = CachedBatches(load_shard(shard), tokens=2000, packing=True)
    batches = [corpus.batch(0, Random(seed)) for seed in range(20)]
    assert all(sum(document.tokens() for document in batch) <= 2000 for batch in batches)
    assert sum(len({document.shape for document in batch}) > 1 for batch in batches) > 10


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("pictures", [(6,), (3,), (1, 2, 6)])
def test_full_and_frame_causal_attention_get_as_many_tokens_a_step(tmp_path, pictures, packing):
    """Those that a step computes with, as the loss gets them; the first picture is the user's."""
    documents = [
        Prepared(
            latents=(torch.zeros(16, 8, 4),) * count,
            states=torch.zeros(3 * count, 2),
            ends=tuple(range(3, 3 * count + 1, 3)),
            segments=tuple((k, k + 1) for k in range(count)),
            drawn=tuple(range(1, count)) or (0,),
        )
        for count in pictures
    ]
    found = {}
    for attention in ("frame_causal", "full"):
        config = replace(CONFIG, attention=attention, out=tmp_path, steps=1)
        run = Run.of(config)
        corpus = CachedBatches(documents, tokens=600, packing=packing, attention=attention)
        steps = [stage2.samples(run, k, enumerate(corpus.batch(k, run.rng(k))), config) for k in range(100)]
        found[attention] = sum(8 * each.frames + len(each.states) for step in steps for each in step) / len(steps)
    assert all(500 < tokens < 650 for tokens in found.values()), found
    assert 0.9 < found["full"] / found["frame_causal"] < 1.1, found


def test_family_weights_name_families_that_exist_and_draw():
    assert set(SketchbookWorld.mixtures["stage2"]) < set(FAMILIES)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"families": {"drw": 1.0}}, "'families': the task family 'drw' is not known; did you mean 'draw'"),
        ({"families": {"describe": 1.0}}, "'families': the task family 'describe' is not known"),
        ({"tokens": 0}, "'tokens' is 0; expected at least 1"),
        ({"steps": -1}, "'steps' is -1; expected at least 1"),
        ({"minutes": -1.0}, "'minutes' is -1.0; expected a number above 0"),
        ({"log_every": 0}, "'log_every' is 0; expected at least 1"),
    ],
)
def test_what_would_train_nothing_or_without_end_is_said(settings, said):
    with pytest.raises(DuoGenError, match=said):
        replace(CONFIG, **settings)


def test_stage_2_starts_from_a_published_wan_with_a_new_connector(tmp_path):
    """Its own sizes and text projection; the connector learns to what that reads."""
    torch.manual_seed(0)
    base = PackedWan(num_attention_heads=1, attention_head_dim=128, num_layers=2, ffn_dim=64, text_dim=20, freq_dim=16)
    file = tmp_path / "wan2.1_t2v.safetensors"
    save_file({to_official(name): tensor for name, tensor in base.state_dict().items()}, file)
    config = replace(CONFIG, init=file, attention="full")
    dit, connector = stage2.new_models(config, 3, 16)
    assert torch.equal(dit.proj_out.weight, base.proj_out.weight) and dit.config.attention == "full"
    assert connector.config == ConnectorConfig(3, 16, 20, dit="wan")
    with pytest.raises(DuoGenError, match="dit is cosmos, but .* holds a DiT of the family wan"):
        stage2.new_models(replace(config, dit="cosmos"), 3, 16)


def test_a_connector_to_start_from_is_taken_whole_or_refused(tmp_path):
    earlier = Connector(ConnectorConfig(num_layers=2, hidden_size=16, cross_width=8))
    earlier.save_pretrained(tmp_path / "connector")
    found = stage2.earlier_connector(tmp_path / "connector", Connector(earlier.config))
    assert torch.equal(found.proj.weight, earlier.proj.weight)
    with pytest.raises(DuoGenError, match="connector to start from"):
        stage2.earlier_connector(tmp_path / "connector", Connector(replace(earlier.config, cross_width=12)))


def test_own_references_come_in_as_the_run_goes_on(shard, tmp_path):
    several = next(document for document in load_shard(shard) if len(document.drawn) > 1)
    config = replace(CONFIG, out=tmp_path, own_references=0.5, drop_text=0.0, steps=10)
    run = Run.of(config)
    shares = []
    for run.step in (0, 5, 10):
        drawn = stage2.samples(run, 0, enumerate([several] * 200), config)
        shares.append(sum(bool(sample.own) for sample in drawn) / 200)
    assert shares == [0, pytest.approx(0.25, abs=0.1), pytest.approx(0.5, abs=0.1)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cosmos", "wan"])
def test_resume_is_exact_and_the_parts_assemble(components, shard, tmp_path, kind):
    documents, config = load_shard(shard), replace(CONFIG, dit=kind)

    def train(folder):
        run = Run.of(replace(config, out=folder))
        torch.manual_seed(1)
        dit, connector = stage2.new_models(config, 2, 64)
        stage2.learn(run, config, CachedBatches(documents, config.tokens), dit, connector)
        return losses(folder)

    whole = train(tmp_path / "whole")
    with stopped_in(1):
        train(tmp_path / "broken")
    assert train(tmp_path / "broken") == whole and len(whole) == 4

    components.mllm.save_pretrained(tmp_path / "mllm")  # a folder of its own, not of a run
    components.vae.save_pretrained(tmp_path / "vae" / "export")
    out = assemble(
        tmp_path / "vae", tmp_path / "mllm", tmp_path / "whole", tmp_path / "model", CheckpointConfig("model")
    )
    loaded = load_checkpoint(out)
    assert loaded.dit.family == kind and loaded.dit.config.attention == "frame_causal"
    assert (out / "training" / "stage2" / "metrics.jsonl").is_file() and not (out / "training" / "stage1").exists()

    half = assemble(
        tmp_path / "vae", tmp_path / "mllm", tmp_path / "whole", tmp_path / "half", CheckpointConfig("half"),
        half=("dit", "vae"),
    )  # fmt: skip
    stored, smaller = ((each / "vae" / "wan_vae.safetensors").stat().st_size for each in (out, half))
    assert smaller < 0.52 * stored
    small = load_checkpoint(half).modules
    for part in ("dit", "vae"):
        read, rounded = small[part].state_dict(), loaded.modules[part].half().state_dict()
        assert all(torch.equal(read[name], weight.float()) for name, weight in rounded.items())
        assert all(weight.dtype == torch.float32 for weight in read.values())
    loaded = load_checkpoint(out)

    dit, connector = stage2.new_models(replace(CONFIG, init=out, heads=5), 2, 64)  # its own heads, not the config's
    assert torch.equal(dit.proj_out.weight, loaded.dit.proj_out.weight)
    assert torch.equal(connector.proj.weight, loaded.connector.proj.weight)
    other = {"cosmos": "wan", "wan": "cosmos"}[kind]
    with pytest.raises(DuoGenError, match=f"dit is {other}, but .* holds a DiT of the family {kind}"):
        stage2.new_models(replace(config, init=out, dit=other), 2, 64)
    with pytest.raises(DuoGenError, match="another shape"):
        stage2.new_models(replace(CONFIG, init=out, connector_layers="last"), 2, 64)
