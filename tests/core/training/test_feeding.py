"""What a process reads of a step, and how: shares by token counts, decoding once, worker processes, errors, resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from duogen_core.data.sources import Limits, open_mixture
from duogen_core.document import Picture, PictureHeader
from duogen_core.document.picture_file import decode_picture, picture_size
from duogen_core.document.reading import headers_only, load_document
from duogen_core.errors import DuoGenError
from duogen_core.training import stage1
from duogen_core.training.configuration import TrainingError
from duogen_core.training.data import MixtureSteps, TokenCounter
from duogen_core.training.feeding import Feed, passes, workers_for
from duogen_core.training.next_token import Batcher, NextTokenSteps
from duogen_core.training.run import Run
from duogen_core.training.stage1 import Stage1Config
from tests.core.runs import losses, stopped_in
from tests.core.sample_sets import guide, write_documents, write_jsonl
from tests.core.tiny import random_components

# ---------------------------------------------------------------- counted before anything is decoded


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("turned", [None, 6])
def test_the_header_says_the_size_that_decoding_gives(tmp_path, kind, turned):
    exif = Image.Exif()
    if turned:
        exif[0x0112] = turned
    more = {"exif": exif} if turned and kind in ("png", "jpg", "webp", "tiff") else {}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8))
    image.save(tmp_path / f"it.{kind}", **more)
    data = (tmp_path / f"it.{kind}").read_bytes()
    pixels = decode_picture(data, "it")
    assert picture_size(data, "it") == pixels.shape[1::-1] == ((30, 50) if more else (50, 30))


def test_headers_of_documents_have_sizes_and_no_pixels(tmp_path, monkeypatch):
    folder = write_documents(tmp_path / "set", [guide(0, (40, 24)), guide(1)])
    whole = [load_document(each) for each in sorted(folder.iterdir())]
    monkeypatch.setattr("duogen_core.document.document.decode_picture", lambda *_: pytest.fail("decoded"))
    with headers_only():
        headers = [load_document(each) for each in sorted(folder.iterdir())]
    for header, document in zip(headers, whole, strict=True):
        assert [each.size for each in header.pictures] == [each.size for each in document.pictures]
        assert all(isinstance(each, PictureHeader) and isinstance(each, Picture) for each in header.pictures)
        assert [turn.text for turn in header.turns] == [turn.text for turn in document.turns]
        with pytest.raises(RuntimeError, match="only the header"):
            header.pictures[0].digest  # noqa: B018


def test_a_size_that_stands_far_behind_the_beginning_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("duogen_core.document.reading.HEADER_BYTES", 64)
    image, exif = Image.fromarray(np.zeros((30, 50, 3), np.uint8)), Image.Exif()
    exif[0x010E] = "x" * 3000  # a description, before the frame header
    folder = write_documents(tmp_path / "set", [guide(0)])
    file = next((folder / "00" / "images").iterdir())
    image.save(file, "JPEG", exif=exif)
    with headers_only():
        assert load_document(folder / "00").pictures[0].size == (50, 30)


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("most", [100, 250, float("inf")])
def test_passes_hold_every_sample_once_within_the_bound_and_are_as_many_on_every_process(processes, most):
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 40):
        tokens = rng.integers(1, 130, count).tolist()
        shares = passes(tokens, most, processes)
        assert len(shares) == processes and len({len(share) for share in shares}) == 1
        packs = [pack for share in shares for pack in share]
        assert sorted(k for pack in packs for k in pack) == list(range(count))
        assert all(sum(tokens[k] for k in pack) <= most or len(pack) == 1 for pack in packs)
        assert all(pack == sorted(pack) for pack in packs)
        if most == float("inf"):
            assert len(shares[0]) == 1  # one pass where nothing bounds it
        if count == 40:  # nobody waits long: no process has a longest sample more than another
            loads = [sum(tokens[k] for pack in share for k in pack) for share in shares]
            assert max(loads) - min(loads) <= max(tokens)


def mixture_of(folder: Path, documents, **limits):
    write_documents(folder, documents)
    return open_mixture([f"documents:{folder}"], 0, limits=Limits(**limits))


def steps_of(mixture, batch: int, rank: int = 0, processes: int = 1, tokens: int = 120) -> NextTokenSteps:
    mllm = random_components().mllm
    return NextTokenSteps(
        MixtureSteps(mixture, batch), Batcher(mllm.tokenizer, mllm.image_processor, tokens=tokens), rank, processes
    )


def test_each_picture_of_a_step_is_decoded_once_whatever_the_number_of_processes(tmp_path, monkeypatch):
    mixture = mixture_of(tmp_path / "set", [guide(k, (40 + 16 * k, 64)) for k in range(8)])
    decoded = []

    def counted(data, name):
        decoded.append(name)
        return decode_picture(data, name)

    monkeypatch.setattr("duogen_core.document.document.decode_picture", counted)
    found = {}
    for processes in (1, 2, 3):
        decoded.clear()
        shares = [steps_of(mixture, 8, rank, processes)(0) for rank in range(processes)]
        assert len(decoded) == 16  # two a document
        assert len({share.tokens for share in shares}) == 1
        rows = [batch.ids[k, :n].tolist() for s in shares for batch in s.batches for k, n in enumerate(batch.lengths)]
        found[processes] = sorted(row for row in rows if len(row) > 2)  # without what fills up
        assert all(sum(n) for share in shares for batch in share.batches for n in [batch.lengths])
    assert found[1] == found[2] == found[3] and len(found[1]) == 8


def test_a_picture_that_is_damaged_behind_its_header_costs_its_sample_and_no_plan(tmp_path):
    documents = [guide(k, (40, 64)) for k in range(8)]
    mixture = mixture_of(tmp_path / "set", documents)
    for file in (tmp_path / "set" / "02" / "images").iterdir():
        file.write_bytes(file.read_bytes()[:-20])
    one = steps_of(mixture, 8)(0)
    (bad,) = one.bad
    assert "02" in bad.label and "damaged or cut off" in bad.sentence
    two = [steps_of(mixture, 8, rank, 2)(0) for rank in range(2)]
    assert [bad.label for share in two for bad in share.bad] == [bad.label]
    weights = [sum(batch.target_weight for batch in share.batches) for share in (one, *two)]
    assert weights[0] == weights[1] + weights[2] > 0
    # Who has read it plans the next steps as who has not.
    fresh = open_mixture([f"documents:{tmp_path / 'set'}"], 0)
    assert [mixture.header(k).label for k in range(24)] == [fresh.header(k).label for k in range(24)]


def test_token_counts_of_headers_are_those_of_documents(tmp_path):
    mllm = random_components().mllm
    count = TokenCounter(mllm.tokenizer, mllm.image_processor)
    mixture = mixture_of(tmp_path / "set", [guide(k, (40 + 16 * k, 64)) for k in range(4)])
    assert [count(mixture.header(k).document) for k in range(8)] == [count(mixture.draw(k).document) for k in range(8)]


# ---------------------------------------------------------------- workers


@dataclass
class Squares:
    """A stand-in for what makes a share."""

    wrong: int = -1

    def __call__(self, step: int) -> dict:
        if step == self.wrong:
            raise DuoGenError(f"a.jsonl, line {step}: it is gone.")
        return {"step": step, "process": os.getpid(), "tensor": torch.full((3,), float(step)) ** 2}


def run_of(folder: Path, steps: int | None = None, **values) -> Run:
    run = Run(folder, {}, steps=steps, minutes=None if steps else 60.0, **values)
    run.attach({}, {})
    return run


def test_workers_give_the_same_in_order_and_end_with_the_run(tmp_path):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    seen = []
    for step, share in Feed(Squares(), workers=2).each(run_of(tmp_path, 7)):
        assert share["step"] == step and share["tensor"].tolist() == [float(step**2)] * 3
        seen.append(share["process"])
    assert len(set(seen)) == 2 and os.getpid() not in seen
    assert len(seen) == 7
    deadline = time.time() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in set(seen)) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in set(seen))
    torch.manual_seed(3)
    assert torch.equal(state, torch.get_rng_state())


@dataclass
class Streamed(Squares):
    """With samples in streams, whose reader notes down how far it is."""

    folder: Path = Path()
    streamed: bool = True

    def fetch(self, step: int) -> int:
        (self.folder / str(step)).touch()
        return step

    def give(self, fetched: int) -> None:
        self.given = fetched

    def __call__(self, step: int) -> dict:
        return {**super().__call__(step), "given": self.given}


def test_the_reader_of_streams_is_as_far_ahead_of_the_workers_as_they_are_of_the_training(tmp_path):
    """All lanes come to their next blocks at about the same time; the shares that are ready must last for it."""
    (tmp_path / "read").mkdir()
    feed = Feed(Streamed(folder=tmp_path / "read"), workers=2)
    for step, share in feed.each(run_of(tmp_path / "run", 20)):
        assert share["given"] == share["step"] == step
        if step == 0:  # 2 x 2 with the workers, one more for the share that was given out, 2 x 2 beside the reader
            deadline = time.time() + 60
            while len(list((tmp_path / "read").iterdir())) < 9 and time.time() < deadline:
                time.sleep(0.05)
            time.sleep(0.2)
            assert len(list((tmp_path / "read").iterdir())) == 9


@pytest.mark.parametrize("workers", [0, 1])
def test_what_goes_wrong_in_a_worker_is_its_sentence_alone(tmp_path, workers):
    taken = []
    with pytest.raises(DuoGenError) as error:
        for step, _ in Feed(Squares(wrong=2), workers=workers).each(run_of(tmp_path)):
            taken.append(step)
    assert str(error.value) == "a.jsonl, line 2: it is gone." and taken == [0, 1]


@dataclass
class Broken:
    def __call__(self, step: int) -> int:
        raise RuntimeError("a bug")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_in_a_worker_is_not_taken_for_its_end(tmp_path, workers):
    with pytest.raises(RuntimeError, match="a bug"):
        next(Feed(Broken(), workers=workers).each(run_of(tmp_path)))


def test_a_worker_that_is_killed_ends_the_run_in_a_sentence_and_a_stopped_run_takes_its_step(tmp_path):
    with pytest.raises(TrainingError, match="reads documents ahead was ended .*Set fewer `workers`"):
        for _, share in Feed(Squares(), workers=1).each(run_of(tmp_path / "one")):
            os.kill(share["process"], signal.SIGKILL)
    # Ctrl-C under Slurm, for example, goes to the workers as well: the step that the run is in is then read here.
    run, feed = run_of(tmp_path / "two"), Feed(Squares(), workers=1)
    first = feed._next(run, 0)
    os.kill(first["process"], signal.SIGKILL)
    run.interrupted = True
    for step in range(1, 20):  # some are there already
        share = feed._next(run, step)
        assert share["step"] == step
        if share["process"] == os.getpid():
            break
    assert share["process"] == os.getpid()


KILLED = """
import itertools, os, signal, torch
from duogen_core.training.feeding import loader
shares = iter(loader(abs, itertools.count(), 1, torch.device("cpu")))
next(shares)
print(shares._workers[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for the process in /proc")
def test_workers_end_with_a_training_that_is_killed():
    training = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    worker = int(training.stdout.readline())
    try:
        assert training.wait(60) == -signal.SIGKILL
        deadline = time.time() + 20
        while Path(f"/proc/{worker}").exists() and time.time() < deadline:
            time.sleep(0.1)
        assert not Path(f"/proc/{worker}").exists()
    finally:
        training.stdout.close()
        if Path(f"/proc/{worker}").exists():
            os.kill(worker, signal.SIGKILL)


def test_how_many_workers_there_are_unasked(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert workers_for(None, torch.device("cpu")) == 0
    assert workers_for(None, torch.device("cuda")) == 3
    assert workers_for(5, torch.device("cpu")) == 5
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert workers_for(None, torch.device("cuda")) == 8


# ---------------------------------------------------------------- stage 1


@pytest.fixture
def config(tmp_path) -> Stage1Config:
    random_components().mllm.save_pretrained(tmp_path / "init")
    data = [f"jsonl:{write_jsonl(tmp_path / 'set' / 'train.jsonl', [guide(k) for k in range(7)])}"]
    return Stage1Config(
        out=tmp_path / "run", init=tmp_path / "init", data=data, batch=3, steps=4, warmup=2, log_every=1, eval_cases=0,
        sample_minutes=0.0, bf16=False, tokens=80,
    )  # fmt: skip


def test_a_run_that_reads_ahead_is_the_run_that_does_not_also_after_a_stop(config):
    stage1.train(config)
    ahead = replace(config, out=config.out.parent / "ahead", workers=1)
    with stopped_in(1):
        stage1.train(ahead)
    stage1.train(ahead)
    assert losses(ahead.out) == losses(config.out)


def test_bad_samples_that_a_worker_meets_are_listed(config, tmp_path, capsys):
    next((tmp_path / "set" / "pictures").glob("3-1.png")).write_bytes(b"\x89PNG\r\n\x1a\n")
    stage1.train(replace(config, workers=1, steps=3))
    listed = [json.loads(line) for line in (config.out / "bad_samples.jsonl").read_text("utf-8").splitlines()]
    assert [each["label"].rpartition("/")[2] for each in listed] == ["train.jsonl, line 4"]
    assert "1 bad sample passed over" in capsys.readouterr().out
