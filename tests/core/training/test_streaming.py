"""Both stages learn from a stream of shards: stopped and continued, read ahead by workers, shared out to processes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from duogen_core.cli import main
from duogen_core.data.sources import open_mixture
from duogen_core.data.sources.stream import Stream
from duogen_core.mllm.loading import load_mllm
from duogen_core.training import run as run_module
from duogen_core.training import stage1, stage2
from duogen_core.training.data import MixtureSteps
from duogen_core.training.feeding import known_to, own_share
from duogen_core.training.next_token import Batcher, NextTokenSteps
from duogen_core.training.run import Run
from duogen_core.training.stage1 import Stage1Config
from duogen_core.training.stage2_data import Documents, Stage2Config
from tests.core.data.sources.test_stream import serve  # noqa: F401 (a fixture)
from tests.core.runs import losses, stopped_in
from tests.core.sample_sets import guide, members, write_documents, write_tar
from tests.core.tiny import random_components

SHARED = {"steps": 4, "warmup": 1, "log_every": 1, "bf16": False, "tensorboard": False, "sample_minutes": 0.0}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    components = random_components(layers=2)
    components.mllm.save_pretrained(root / "mllm")
    components.vae.model.save_pretrained(root / "vae")
    (root / "shards").mkdir()
    for shard in range(3):
        documents = [guide(shard * 5 + k, (32, 32)) for k in range(5)]
        write_tar(root / "shards" / f"{shard}.tar", [members(f"{d.meta['number']:03d}", d) for d in documents])
    return root


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(run_module, "plot_metrics", lambda folder: None)


def trainer(stage: str, inputs: Path, place: str, out: Path):
    data = [{"source": f"stream:{place}", "shuffle": 6, "lanes": 2}]
    if stage == "stage1":
        return stage1.train, Stage1Config(
            out=out, init=inputs / "mllm", data=data, batch=3, eval_cases=0, **SHARED
        )  # fmt: skip
    return stage2.train, Stage2Config(
        out=out, mllm=inputs / "mllm", vae=inputs / "vae", data=data, layers=2, heads=2, cross_width=32, max_side=32,
        states="online", batch=3, tokens=600, precision="float32", eval_cases=0, **SHARED,
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_stopped_run_goes_on_exactly_at_an_address(stage, inputs, tmp_path, serve):  # noqa: F811
    train, config = trainer(stage, inputs, str(inputs / "shards"), tmp_path / "local")
    assert train(config).finished
    address, handler = serve(inputs / "shards")
    place = f"{address}/{{0..2}}.tar"
    train, config = trainer(stage, inputs, place, tmp_path / "served")
    for step in (0, 2):
        with stopped_in(step):
            assert train(config).interrupted
    handler.failing = 2  # a server that does not answer at once
    assert train(config).finished
    assert losses(config.out) == losses(tmp_path / "local") and len(set(losses(config.out))) == 4
    assert list((config.out / "stream").glob("*.jsonl"))


def test_workers_that_read_ahead_see_the_same(inputs, tmp_path):
    train, config = trainer("stage1", inputs, str(inputs / "shards"), tmp_path / "one")
    train(config)
    train(replace(config, out=tmp_path / "ahead", workers=2))
    assert losses(tmp_path / "ahead") == losses(tmp_path / "one")


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_one_reader_reads_the_shards_for_all_workers(stage, inputs, tmp_path, serve):  # noqa: F811
    """Workers that each read whole steps out of the streams would ask for every block of every shard."""
    asked = {}
    for workers in (0, 3):
        address, handler = serve(inputs / "shards")
        train, config = trainer(stage, inputs, f"{address}/{{0..2}}.tar", tmp_path / f"{workers}")
        train(replace(config, workers=workers))
        asked[workers] = len(handler.seen)
    assert losses(tmp_path / "3") == losses(tmp_path / "0") and len(set(losses(tmp_path / "0"))) == 4
    # Each shard's size is asked for again, and steps that the end does not come to are read ahead.
    assert asked[3] <= asked[0] + 8


class Processes:
    """Those of a run of several, one after the other: `gather` gives what all of them said."""

    def __init__(self, count: int, said: list) -> None:
        self.count, self.said = count, said

    def gather(self, value) -> list:
        return self.said


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_processes_share_a_stream_by_lanes_and_read_disjoint_shards(inputs, tmp_path, ranks):
    """In stage 1, with documents that any process can read among the draws; more processes than lanes, too."""
    write_documents(tmp_path / "own", [guide(100 + k, (32, 32)) for k in range(4)])
    data = [
        {"source": f"stream:{inputs / 'shards'}", "shuffle": 6, "lanes": 3, "weight": 2},
        f"documents:{tmp_path / 'own'}",
    ]
    mllm = load_mllm(inputs / "mllm")
    batcher = Batcher(mllm.tokenizer, mllm.image_processor, tokens=300)
    opened, learnt = [], {}
    for rank in range(ranks):
        mixture = open_mixture(data, seed=3)
        steps = NextTokenSteps(MixtureSteps(mixture, 6), batcher, rank, ranks)
        for step in range(2):
            share = steps(step)
            learnt.setdefault(step, []).append(share)
        opened.append(set(mixture.sources[0]._opened))
    whole = [open_mixture(data, seed=3).draw(k) for k in range(12)]
    for step, shares in learnt.items():
        batches = [batch for share in shares for batch in share.batches]
        rows = [ids[:n].tolist() for batch in batches for ids, n in zip(batch.ids, batch.lengths, strict=True)]
        wanted = [batcher([sample.document])[0][0].ids[0].tolist() for sample in whole[6 * step : 6 * step + 6]]
        assert sorted(rows) == sorted(wanted), "each sample once, and the same ones whatever the number of processes"
        assert len({share.checksum for share in shares}) == 1 and all(share.apart for share in shares)
        said = [(len(share.batches), share.tokens, share.count) for share in shares]
        for share in shares:
            steps.even(share, Processes(ranks, said))
        assert len({(len(share.batches), share.tokens, share.count) for share in shares}) == 1
        assert sum(batch.target_weight > 0 for share in shares for batch in share.batches) == shares[0].count
    if ranks <= 3:  # lanes
        assert sum(map(len, opened)) == 3 == len(set().union(*opened))
    else:
        assert all(len(shards) == 1 for shards in opened)


def test_anybodys_samples_fill_up_what_streams_leave_uneven():
    readers = [0, 0, 0, 0, None, None, None, None, None, 1]
    tokens = dict.fromkeys(range(4, 9), 10)
    shares = [own_share(tokens | dict.fromkeys(known_to(rank, readers), 10), rank, 2, readers) for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == list(range(10)) and [len(share) for share in shares] == [5, 5]
    assert known_to(1, readers) == [4, 5, 6, 7, 8, 9]


def test_workers_of_stage_2_note_what_they_find_in_a_stream(inputs, tmp_path, monkeypatch):
    """They get a copy of the source, which must know the folder by then."""
    sent = []

    class Feed(stage2.Feed):
        def __init__(self, make, **more):
            sent.append(pickle.loads(pickle.dumps(make)).examples.mixture.sources[0].notes.file)
            super().__init__(make, **more)

    monkeypatch.setattr(stage2, "Feed", Feed)
    train, config = trainer("stage2", inputs, str(inputs / "shards"), tmp_path / "run")
    train(replace(config, steps=1))
    assert [file.parent for file in sent] == [config.out / "stream"]


def test_no_password_of_an_address_is_in_the_name_of_its_source():
    source = Stream("https://reader:hunter2@example.com/{0..1}.tar?sig=hunter2")
    assert source.name == "stream:https://***@example.com/{0..1}.tar"
    assert str(source.shards[1]) == "https://***@example.com/1.tar" and "hunter2" in source.shards[1].address


def test_what_cannot_be_used_is_said_before_the_first_step(inputs, tmp_path, capsys):
    memory = fsspec.filesystem("memory")
    memory.pipe("/empty/a.tar", b"not a tar" * 100)
    for place, words in (
        ("memory://empty/*.tar", "none of 1 samples looked at can be used"),
        ("memory://nowhere/{0..2}.tar", "nowhere/0.tar is not there"),
        (str(tmp_path / "none"), "does not exist"),
    ):
        settings = [
            f"init={inputs / 'mllm'}",
            f"data=[{{source: 'stream:{place}'}}]",
            f"out={tmp_path / 'run'}",
            "steps=1",
        ]
        assert main(["train", "stage1", *settings]) == 2
        assert words in capsys.readouterr().err
    memory.store.clear()


def test_uneven_lanes_are_told_where_the_processes_share_them_out(inputs, tmp_path, monkeypatch):
    """Cached documents are shared out by their tokens, whoever read them."""
    mllm, said = load_mllm(inputs / "mllm"), {}
    for states in ("online", "cached"):
        _, config = trainer("stage2", inputs, str(inputs / "shards"), tmp_path / states)
        run = Run.of(replace(config, states=states))
        run.processes.count = 3
        monkeypatch.setattr(run.processes, "gather", lambda value: [value] * 3)
        told = said.setdefault(states, [])
        monkeypatch.setattr(run, "say", told.append)
        Documents(run, replace(config, states=states), mllm)
    (line,) = said["online"]
    assert "is read in 2 lanes by 3 processes" in line and said["cached"] == []
