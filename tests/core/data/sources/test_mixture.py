"""Specs, orders that can be entered anywhere, mixtures by weight, exact resume, and the list of bad samples."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from duogen_core.data.sources import (
    KINDS,
    Bad,
    BadLog,
    Mixture,
    Source,
    open_mixture,
    open_source,
    parse_spec,
)
from duogen_core.data.sources import mixture as mixture_module
from duogen_core.data.sources.base import shuffled_index, weighted_choices
from duogen_core.data.sources.mixture import Told
from duogen_core.document import Document
from duogen_core.errors import DuoGenError
from duogen_core.sketchbook.tasks import WEIGHTS
from tests.core.sample_sets import ANSWER, COUNT, USER, guide, numbers, write_documents, write_jsonl

# ---------------------------------------------------------------- Sketchbook


def test_sketchbook_is_endless_and_every_case_has_a_number():
    source = open_source("sketchbook")
    assert source.endless
    first = [sample.document for sample in islice(source.epoch(0, 0), 6)]
    assert [sample.document for sample in islice(source.epoch(0, 0).skip(3), 3)] == first[3:]
    assert [sample.document for sample in islice(source.epoch(1, 0), 6)] != first
    assert source.read(7).document == source.read(7).document != source.read(8).document


def test_sketchbook_families():
    source = open_source({"source": "sketchbook", "families": {"describe": 1}})
    assert all(not sample.document.turns[-1].pictures for sample in islice(source.epoch(0, 0), 5))
    assert source.identity()["families"] == {"describe": 1}
    assert open_source("sketchbook").identity()["families"] == WEIGHTS
    for families, match in (
        ({"giude": 1}, "'giude' is not known; did you mean 'guide'"),
        ({"guide": -1}, "the weight of guide is -1"),
        ({"guide": 0}, "every family has the weight 0"),
    ):
        with pytest.raises(DuoGenError, match=match):
            open_source({"source": "sketchbook", "families": families})


# ---------------------------------------------------------------- specs


def test_a_spec_says_kind_path_weight_and_options(tmp_path):
    spec = parse_spec(" 2.5 * jsonl:C:/a*b.jsonl")
    assert (spec.kind, spec.path, spec.weight) == ("jsonl", "C:/a*b.jsonl", 2.5) and str(spec) == "jsonl:C:/a*b.jsonl"
    spec = parse_spec({"source": "sketchbook", "weight": 3, "families": {"plan": 1}})
    assert (spec.weight, spec.options) == (3.0, {"families": {"plan": 1}}) and str(spec) == "sketchbook"
    assert parse_spec('{"source": "sketchbook", "weight": 3, "families": {"plan": 1}}') == spec
    write_jsonl(tmp_path / "set" / "a.jsonl", [guide(0)])
    assert len(open_source("jsonl:set/a.jsonl", base=tmp_path)) == 1


@pytest.mark.parametrize(
    "spec, match",
    [
        ("jsonnl:a", "the kind of source 'jsonnl' is not known; did you mean 'jsonl'"),
        (
            "folder",
            "folder: there is no such folder or file, and no kind of source of that name (documents, jsonl",
        ),
        ("jsonl", "jsonl needs a path"),
        ("sketchbook:here", "sketchbook has no path"),
        ("-1*sketchbook", "the weight is '-1'"),
        ({"source": "sketchbook", "weight": "much"}, "the weight is 'much'"),
        ({"source": "2*sketchbook", "weight": 1}, "given twice"),
        ({"source": "sketchbook", "wieght": 1}, "the option 'wieght' is not known; did you mean 'weight'"),
        ({"source": "sketchbook", "familys": {}}, "did you mean 'families'"),
        ({"path": "a"}, "has no 'source'"),
        (7, "A source is 7"),
        ('{"source": "sketchbook"', "not valid JSON"),
        ("documents:/nowhere", "The folder /nowhere does not exist"),
        ("jsonl:/nowhere.jsonl", "/nowhere.jsonl does not exist"),
        ("webdataset:/nowhere/*.tar", "does not exist; check the path"),
    ],
)
def test_specs_that_cannot_be_opened(spec, match):
    with pytest.raises(DuoGenError) as caught:
        open_source(spec)
    assert match in str(caught.value)


def test_empty_places(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    for spec, match in (
        (f"documents:{tmp_path}", "holds no document"),
        (f"jsonl:{tmp_path}/a.jsonl", "is empty"),
        (f"webdataset:{tmp_path}", "no file that ends in .tar"),
    ):
        with pytest.raises(DuoGenError, match=match):
            open_source(spec)


# ---------------------------------------------------------------- orders and mixtures


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000])
def test_a_shuffle_moves_everything_somewhere(size):
    for key in range(3):
        assert sorted(shuffled_index(k, size, key) for k in range(size)) == list(range(size))
    with pytest.raises(IndexError):
        shuffled_index(size, size, 0)


def test_a_shuffle_favours_no_place():
    firsts = Counter(shuffled_index(0, 6, key) for key in range(6000))
    assert set(firsts) == set(range(6)) and max(abs(n - 1000) for n in firsts.values()) < 150
    order = [shuffled_index(k, 1000, 1) for k in range(1000)]
    assert sum(b - a == 1 for a, b in pairwise(order)) < 10


def test_weights_are_kept_and_zero_is_never():
    chosen = weighted_choices(np.array([0.2, 0.0, 0.8, 0.0]), 20_000, 5)
    counts = np.bincount(chosen, minlength=4)
    assert counts[1] == counts[3] == 0 and abs(counts[0] / 20_000 - 0.2) < 0.01


def test_orders_are_the_same_everywhere():
    """Saved runs depend on these numbers: they may never change."""
    assert [shuffled_index(k, 10, 0) for k in range(10)] == [9, 7, 4, 3, 5, 2, 8, 0, 1, 6]
    assert weighted_choices(np.array([1.0, 2.0, 1.0]), 12, 7).tolist() == [2, 1, 1, 1, 0, 1, 1, 1, 0, 2, 2, 1]


class Numbers(Source):
    """Documents that say their number; some are bad."""

    def __init__(self, name, size, bad=()):
        super().__init__(name)
        self.size, self.bad, self.reads = size, set(bad), Counter()

    def __len__(self):
        return self.size

    def load(self, index):
        self.reads[index] += 1
        if index in self.bad:
            raise DuoGenError(f"{self.label(index)} is bad.")
        return Document((USER, ANSWER), meta={"number": index})

    def label(self, index):
        return f"{self.name} {index}"

    def identity(self):
        return {"kind": self.name, "samples": self.size}


def mixture(seed=0, bad=(), **settings):
    return Mixture([Numbers("a", 10), Numbers("b", 7, bad)], [3, 1], seed, **settings)


def drawn(sample):
    return sample.source, sample.index


def test_a_draw_depends_on_seed_and_number_alone(monkeypatch):
    monkeypatch.setattr("duogen_core.data.sources.mixture.BLOCK", 16)
    in_order = [drawn(sample) for sample in islice(mixture(), 100)]
    assert [drawn(mixture()[k]) for k in (99, 3, 50)] == [in_order[k] for k in (99, 3, 50)]
    backwards = mixture()
    assert [drawn(backwards.draw(k)) for k in reversed(range(100))] == in_order[::-1]
    assert [drawn(sample) for sample in islice(mixture(seed=1), 100)] != in_order


def test_a_mixture_goes_through_its_sources_by_weight():
    draws = [drawn(sample) for sample in islice(mixture(), 4000)]
    counts = Counter(source for source, _ in draws)
    assert abs(counts["a"] / 4000 - 0.75) < 0.03
    for name, size in (("a", 10), ("b", 7)):
        own = [index for source, index in draws if source == name]
        epochs = [own[at : at + size] for at in range(0, len(own) - size, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs) and len(set(map(tuple, epochs))) > 10
    done = mixture().epochs(4000)
    assert done == [counts["a"] / 10, counts["b"] / 7]


def test_ranks_share_the_draws():
    whole = [drawn(sample) for sample in islice(mixture(), 12)]
    for world in (2, 3):
        parts = [[drawn(s) for s in islice(mixture(rank=rank, world=world), 12 // world)] for rank in range(world)]
        assert [each for step in zip(*parts) for each in step] == whole


def test_a_mixture_resumes_exactly_with_other_ranks():
    whole = [drawn(sample) for sample in islice(mixture(), 30)]
    first = mixture(rank=1, world=2)
    list(islice(first, 5))
    state = json.loads(json.dumps(first.state_dict()))
    again = mixture()
    again.load_state_dict(state)
    assert state["position"] == 10 and [drawn(sample) for sample in islice(again, 20)] == whole[10:]


def test_bad_samples_are_replaced_named_once_and_keep_the_ranks_in_step():
    seen = []
    mixed = mixture(bad=(0, 3), on_bad=seen.append)
    draws = list(islice(mixed, 200))
    good = [drawn(sample) for sample in islice(mixture(), 200)]
    assert mixed.position == 200 and sorted(bad.index for bad in seen) == [0, 3]
    assert seen[0].sentence == f"b {seen[0].index} is bad." and seen[0].source == "b"
    for found, without in zip(draws, good):
        if without in (("b", 0), ("b", 3)):
            assert found.skipped[0].index == without[1] and found.source == "b" and found.index not in (0, 3)
        else:
            assert drawn(found) == without and not found.skipped
    assert mixed.sources[1].reads[0] == mixed.sources[1].reads[3] == 1  # known ones are not read again
    k = next(k for k, sample in enumerate(draws) if sample.skipped)
    assert drawn(mixture(bad=(0, 3)).draw(k)) == drawn(draws[k])  # the replacement too is a function of (seed, k)


def test_a_source_without_a_good_sample_stops_with_a_sentence():
    with pytest.raises(DuoGenError, match="b: 1000 samples in a row cannot be used"):
        list(islice(mixture(bad=range(7)), 200))


def test_a_source_that_is_nearly_all_bad_goes_on():
    mixed = Mixture([Numbers("a", 500, range(5, 500))], [1], 0)
    draws = list(islice(mixed, 30))
    assert {sample.index for sample in draws} <= set(range(5)) and any(len(sample.skipped) > 50 for sample in draws)
    assert all(len(sample.skipped) == len(set(sample.skipped)) for sample in draws)
    assert max(mixed.sources[0].reads[k] for k in range(5, 500)) == 1


def test_a_resume_says_what_changed():
    state = mixture().state_dict()
    for changed, match in (
        (mixture(seed=1), "the seed was 0 and is 1"),
        (Mixture([Numbers("a", 10)], [1], 0), "there were 2 sources and are 1"),
        (Mixture([Numbers("a", 11), Numbers("b", 7)], [3, 1], 0), "samples of source 1 \\(a\\): was 10, is 11"),
        (Mixture([Numbers("a", 10), Numbers("b", 7)], [1, 1], 0), "weight of source 1 \\(a\\): was 0.75, is 0.5"),
    ):
        with pytest.raises(DuoGenError, match=match):
            changed.load_state_dict(state)
    mixture().load_state_dict(state)


def test_mixtures_that_make_no_sense():
    with pytest.raises(DuoGenError, match="nothing to draw from"):
        Mixture([Numbers("a", 3)], [0], 0)
    with pytest.raises(DuoGenError, match="1 sources and 2 weights"):
        Mixture([Numbers("a", 3)], [1, 1], 0)
    with pytest.raises(DuoGenError, match="rank 2 does not exist among 2"):
        mixture(rank=2, world=2)


def test_a_mixture_of_files_and_sketchbook(tmp_path):
    write_jsonl(tmp_path / "set" / "a.jsonl", [guide(i) for i in range(3)], tail=b"{\n")
    log = BadLog(tmp_path / "bad.jsonl")
    specs = ["2*jsonl:set/a.jsonl", {"source": "sketchbook", "weight": 1, "families": {"describe": 1}}]
    mixed = open_mixture(specs, 5, base=tmp_path, on_bad=log)
    sources = Counter(sample.source for sample in islice(mixed, 60))
    assert 25 < sources[f"jsonl:{tmp_path}/set/a.jsonl"] < 55 and len(log) == 1
    entry = json.loads((tmp_path / "bad.jsonl").read_text())
    assert entry["label"].endswith("line 4") and "not valid JSON" in entry["sentence"]
    assert len(open_mixture("sketchbook", 0).sources) == 1


def test_worker_processes_give_the_same_draws(tmp_path):
    torch = pytest.importorskip("torch")
    mixed = open_mixture(f"documents:{write_documents(tmp_path / 'set', [guide(i) for i in range(COUNT)])}", 0)
    batches = [list(range(at, at + 4)) for at in range(0, 20, 4)]
    loader = torch.utils.data.DataLoader(mixed, batch_sampler=batches, collate_fn=numbers, num_workers=2)
    assert [number for batch in loader for number in batch] == numbers(mixed[k] for k in range(20))


# ---------------------------------------------------------------- the list of bad samples


def test_the_list_of_bad_samples_survives_a_kill(tmp_path):
    bad = [Bad("s", i, f"line {i}", f"line {i} is broken…") for i in range(3)]
    log = BadLog(tmp_path / "bad.jsonl")
    assert [log(each) for each in (bad[0], bad[1], bad[0])] == [True, True, False] and len(log) == 2
    with (tmp_path / "bad.jsonl").open("a") as file:
        file.write('{"source": "s", "ind')
    again = BadLog(tmp_path / "bad.jsonl")
    assert len(again) == 2 and not again(bad[1]) and again(bad[2])
    assert len(BadLog(tmp_path / "bad.jsonl")) == 3


def test_a_list_that_cannot_be_written_stops_nothing(tmp_path):
    log = BadLog(tmp_path / "nowhere" / "bad.jsonl")
    assert log(Bad("s", 0, "x", "x is bad")) and log(Bad("s", 1, "y", "y is bad")) and len(log) == 2


def test_an_endless_row_of_bad_samples_takes_no_more_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(mixture_module, "LISTED", 3)
    log = BadLog(tmp_path / "bad.jsonl")
    told = [log(Bad("s", i, "x", "x is bad", excluded=i % 2 == 1)) for i in range(20)]
    assert sum(told) == 6 and told[:6] == [True] * 6 and not log(Bad("s", 0, "x", "x is bad"))
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 6
    assert (len(log.bad.keys), len(log.unwanted.keys), len(log), log.excluded) == (3, 3, 20, 10)
    assert not BadLog(tmp_path / "bad.jsonl")(Bad("s", 18, "x", "x is bad")), "a full list stays full"

    one, two = Told(2), Told(2)
    assert [one.add(k) for k in "abcc"] == [True, True, False, False] and [two.add(k) for k in "bd"] == [True, True]
    assert Told.together([one, two]) == 5 and len(one) == 4  # a, b, d, and c twice


def test_a_mixture_forgets_bad_samples_of_long_ago_and_draws_the_same(monkeypatch):
    def drawn(known: int):
        monkeypatch.setattr(mixture_module, "KNOWN", known)
        mixed = Mixture([Numbers("a", 1000, range(0, 1000, 2))], [1], 0)
        found = [
            (sample.index, [bad.index for bad in sample.skipped]) for sample in (mixed.draw(k) for k in range(600))
        ]
        return found, len(mixed._bad)

    (every, all_known), (some, few_known) = drawn(10**6), drawn(4)
    assert some == every and few_known == 4 < 100 < all_known


# ---------------------------------------------------------------- the page about data

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "data.md").read_text("utf-8")


def example_of(language: str, holding: str) -> str:
    (example,) = (text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holding in text)
    return example


def test_the_example_line_of_the_page_can_be_learnt_from(tmp_path):
    example = example_of("json", "globe-1.png")
    (tmp_path / "pictures").mkdir()
    for k in (1, 2):
        (tmp_path / "pictures" / f"globe-{k}.png").write_bytes(guide(k).pictures[0].to_png())
    (tmp_path / "a.jsonl").write_text(example.replace("\n", " "))
    assert len(open_source(f"jsonl:{tmp_path / 'a.jsonl'}").read(0).document.pictures) == 2


def test_the_page_names_every_kind_and_its_config_is_right():
    assert set(KINDS) == {re.match(r"\w+", name)[0] for name in re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)}
    example = example_of("yaml", "families:")
    assert [parse_spec(entry).weight for entry in yaml.safe_load(example)] == [2, 1, 0.5]
