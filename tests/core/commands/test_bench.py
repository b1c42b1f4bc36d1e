"""bench: each benchmark runs on a tiny model and says the same on both sides, or fails; what it counts is right."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import CosmosTransformer3DModel
from diffusers.models.transformers.transformer_cosmos import CosmosTransformerBlock

from duogen_core import cli, interrupt, linear
from duogen_core.bench import loop, measure, models, parts, reference
from duogen_core.connector import ConnectorConfig

TINY = models.Sizes(
    hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96, vision_hidden=32, vision_layers=1, vocabulary=700,
    dit_heads=2, dit_head_width=32, dit_layers=2, text_width=32, vae_width=4, picture=64,
)  # fmt: skip
COMMANDS = {
    "loop": ["loop", "--images", "3", "--steps", "2", "--size", "64x64"],
    "loop full": ["loop", "--images", "3", "--steps", "2", "--size", "64x64", "--attention", "full"],
    "dit": ["dit", "--references", "0", "2", "--steps", "2", "--size", "64x48", "--repeat", "2"],
    "dit causal": ["dit", "--references", "0", "2", "--steps", "2", "--size", "64x48", "--attention", "frame_causal"],
    "mllm": ["mllm", "--context", "40", "--tokens", "12", "--repeat", "2"],
    "connector": ["connector", "--tokens", "50", "--repeat", "2"],
    "connector by the processor": ["connector", "--tokens", "50", "--clock", "processor"],
}
REPORT = {"format", "version", "benchmark", "reference", "settings", "machine", "rows", "totals", "stopped"}
ROW = {"case", "ours", "reference", "times_faster", "times_faster_range", "difference", "allowed", "extra"}
SIDE = {"seconds", "runs", "peak_bytes", "resident_bytes"}
MACHINE = {"device", "device_name", "dtype", "threads", "clock", "python", "torch", "transformers", "diffusers"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # other tests go on with theirs
    monkeypatch.setattr(measure.Clock, "kind", "wall")
    monkeypatch.setattr(models, "MIDDLE", TINY)
    monkeypatch.setattr(models, "WRITING", TINY)
    monkeypatch.setattr(models, "PAPER_CONNECTOR", ConnectorConfig(5, 48, 16))


def bench(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["bench", *arguments, "--device", "cpu"])
    out, error = capsys.readouterr()
    return code, out, error


@pytest.mark.parametrize("name", COMMANDS)
def test_each_benchmark_compares_both_sides_and_its_json_is_stable(capsys, name):
    code, out, error = bench(capsys, *COMMANDS[name], "--json", "--quiet")
    assert code == 0, error
    value = json.loads(out)
    assert value.keys() == REPORT and value["machine"].keys() == MACHINE and not value["stopped"]
    assert (value["format"], value["version"], value["benchmark"]) == ("duogen-bench", 1, name.split()[0])
    repeat = value["settings"]["repeat"]
    assert value["machine"]["clock"] == ("processor" if "processor" in name else "wall")
    assert len(value["rows"]) == {"loop": 3, "dit": 2, "mllm": 3, "connector": 1}[value["benchmark"]]
    for row in value["rows"]:
        assert row.keys() == ROW and row["ours"].keys() == row["reference"].keys() == SIDE
        assert len(row["ours"]["runs"]) == len(row["reference"]["runs"]) == repeat and row["times_faster"] > 0
        if "equally likely" not in row["case"]:  # there two random generators write two texts
            assert 0 <= row["difference"] <= row["allowed"] <= 1e-4
        if value["benchmark"] != "mllm":
            assert row["ours"]["peak_bytes"] > 0 and row["reference"]["peak_bytes"] > 0
    if value["benchmark"] == "loop":
        assert value["totals"]["times_faster"] > 0
    if value["benchmark"] == "dit":
        grown = value["totals"]["ours_last_over_first_counted"], value["totals"]["reference_last_over_first_counted"]
        assert grown[1] > 1.5 and (1 < grown[0] < 1.5 if "causal" in name else grown[0] > 1.5)


def test_the_table_and_the_files(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, error = bench(capsys, *COMMANDS["loop full"], "--out", str(tmp_path / "new"))
    assert code == 0 and "times faster" in out and "image 3" in out, error
    kept = json.loads((tmp_path / "new" / "bench_loop.json").read_text("utf-8"))
    assert kept["settings"]["attention"] == "full"
    assert (tmp_path / "new" / "bench_loop.png").read_bytes()[:4] == b"\x89PNG"


# ---------------------------------------------------------------- the two sides


def wrong_velocity(monkeypatch):
    right = reference.Stock.velocity
    monkeypatch.setattr(reference.Stock, "velocity", lambda *a: right(*a) * 1.05)


def wrong_cache(monkeypatch):
    right = reference.Uncached.velocity
    monkeypatch.setattr(reference.Uncached, "velocity", lambda *a: right(*a) * 1.05)


def wrong_states(monkeypatch):
    right = reference.project
    for module in (reference, parts):
        monkeypatch.setattr(module, "project", lambda *a: right(*a) * 1.001)


@pytest.mark.parametrize(
    "name, wrong, where",
    [
        ("loop full", wrong_velocity, "image 1"),
        ("loop", wrong_cache, "image 1"),
        ("dit", wrong_velocity, "0 earlier images"),
        ("dit causal", wrong_cache, "0 earlier images"),
        ("mllm", wrong_states, "greedy"),
        ("connector", wrong_states, "50 tokens"),
    ],
)
def test_sides_that_disagree_are_an_error_and_no_figure(capsys, monkeypatch, name, wrong, where):
    wrong(monkeypatch)
    code, out, error = bench(capsys, *COMMANDS[name], "--quiet")
    assert code == 2 and not out and f"The two sides disagree at {where}" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["loop", "mllm"])
def test_another_text_is_an_error(capsys, monkeypatch, name):
    right = reference.write

    def changed(*args, **how):
        found = right(*args, **how)
        return reference.Written("Something else", found.ids, found.states)

    for module in (reference, parts):
        monkeypatch.setattr(module, "write", changed)
    code, out, error = bench(capsys, *COMMANDS[name], "--quiet")
    assert code == 2 and not out and "The two sides disagree at" in error


def test_the_stock_transformer_is_diffusers_own_on_the_same_memory():
    dit = models.random_dit(TINY, "full")
    stock = reference.stock_transformer(dit)
    assert type(stock) is CosmosTransformer3DModel
    assert {type(block) for block in stock.transformer_blocks} == {CosmosTransformerBlock}
    ours = dict(dit.named_parameters())
    assert {name: p.data_ptr() for name, p in stock.named_parameters()} == {n: p.data_ptr() for n, p in ours.items()}


def test_the_random_model_writes_its_sentence_and_every_word_is_a_token():
    mllm = models.random_mllm(TINY)
    assert len(mllm.tokenizer.encode(models.SENTENCE)) == 20 and len(mllm.tokenizer) == TINY.vocabulary
    answer = mllm.continue_(parts.long_document(mllm, 60), max_new_tokens=50)
    assert (answer.text, answer.stop, answer.tokens) == (models.SENTENCE, "picture", 20)


def test_pictures_are_compared_by_their_mean_and_by_what_rounding_can_do():
    a = np.full((100, 100, 3), 100, np.uint8)
    one_level, two_levels = a.copy(), a.copy()
    one_level[0, 0, 0], two_levels[0, 0, 0] = 101, 102
    assert loop.picture_difference(a, a) == 0
    assert 0 < loop.picture_difference(a, one_level) < 1e-6
    assert loop.picture_difference(a, two_levels) == pytest.approx(2 / 255)
    assert loop.picture_difference(a, a + 1) > loop.ALLOWED
    assert loop.picture_difference(a, a[1:]) == float("inf")


def test_a_model_that_draws_nothing_is_named(capsys, monkeypatch):
    made = models.random_components
    monkeypatch.setattr(models, "random_components", lambda *a: made(*a, draws=False))
    monkeypatch.setattr(loop, "MOST_TOKENS", 30)
    code, out, error = bench(capsys, *COMMANDS["loop"], "--quiet")
    assert code == 2 and not out and "drew no image for this request" in error


# ---------------------------------------------------------------- what is counted


def test_memory_counts_what_lives_at_once_and_nothing_that_was_there():
    weight = torch.randn(64, 64)

    def call():
        a = weight + 1  # 16 KiB
        b = a.t() * 2  # 32 KiB together
        del a
        return b[0] + weight[0]  # 256 bytes more

    side = measure.Side()
    measure.measure_memory(side, call, torch.device("cpu"))
    assert side.peak_bytes == 2 * 64 * 64 * 4 and side.resident_bytes > side.peak_bytes
    with measure.PeakMemory(torch.device("cpu")) as memory:
        kept = weight * 2
        with memory.paused():
            other = weight * 3
        memory.restart()
        assert memory.bytes == kept.numel() * 4
        del kept, other
        memory.restart()
        assert memory.bytes == 0


def test_sides_take_turns_in_beginning():
    order, row = [], measure.Comparison("case")
    for number in range(3):
        found = measure.alternate(
            row, lambda: order.append("ours") or 1, lambda: order.append("reference") or 2, number, torch.device("cpu")
        )
        assert found == (1, 2)
    assert order == ["ours", "reference", "reference", "ours", "ours", "reference"]
    row.ours.seconds, row.reference.seconds = [1.0, 2.0, 4.0], [2.0, 8.0, 12.0]
    assert row.times_faster == 3.0 and row.ours.median == 2.0  # of the ratios, round by round


def test_operations_are_counted_whatever_kernel_does_them(monkeypatch):
    q, k = torch.randn(1, 2, 8, 16), torch.randn(1, 2, 24, 16)
    with torch.inference_mode():
        assert parts.counted(lambda: F.linear(torch.randn(8, 16), torch.randn(4, 16))) == 2 * 8 * 16 * 4
        monkeypatch.setattr(linear, "onednn_is_faster", lambda: hasattr(torch.ops.mkldnn, "_linear_pointwise"))
        assert parts.counted(lambda: linear.linear(torch.randn(2, 32, 16), torch.randn(4, 16))) == 2 * 64 * 16 * 4
        assert parts.counted(lambda: F.scaled_dot_product_attention(q, k, k)) == 2 * 2 * 2 * 8 * 24 * 16


# ---------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["loop", "--images", "0"], "--images is 0; expected 1 to 100"),
        (["loop", "--size", "100x100"], "--size is '100x100'"),
        (["dit", "--references", "-1"], "--references"),
        (["dit", "--steps", "0"], "--steps is 0"),
        (["mllm", "--temperature", "0"], "--temperature is 0"),
        (["mllm", "--tokens", "1"], "--tokens is 1"),
        (["connector", "--repeat", "0"], "--repeat is 0"),
        (["connector", "--out", " "], "--out has no name"),
        (["loop", "--model", "nowhere"], "There is no model 'nowhere'"),
        (["dit", "--model", "duogen-tiny", "--attention", "full"], "--attention is for the random model"),
        (["drit"], "invalid choice"),
    ],
)
def test_bad_input_gets_a_sentence(capsys, arguments, match):
    code = cli.main(["bench", *arguments])
    assert code == 2 and match in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_a_device_that_is_not_there_gets_a_sentence(capsys):
    assert cli.main(["bench", "connector", "--device", "cuda:77"]) == 2
    assert "There is no device cuda:77 here" in capsys.readouterr().err


def test_without_matplotlib_a_plot_is_refused_before_anything_is_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, error = bench(capsys, *COMMANDS["connector"], "--out", str(tmp_path / "x"))
    assert code == 2 and not out and "pip install -e '.[train]'" in error and not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["loop full", "dit", "mllm", "connector"])
def test_ctrl_c_keeps_what_was_measured(capsys, monkeypatch, name):
    """Asked to stop as soon as one row has its first figure."""
    seen = []

    class Watched(list):
        def append(self, seconds):
            super().append(seconds)
            seen.append(seconds)

    monkeypatch.setattr(interrupt, "requested", lambda: bool(seen))
    watched = measure.Comparison.__init__

    def begin(row, *arguments, **more):
        watched(row, *arguments, **more)
        if sys._getframe(1).f_code.co_name != "_write_case":  # there a throw-away row takes the reading
            row.reference.seconds = Watched()

    monkeypatch.setattr(measure.Comparison, "__init__", begin)
    code, out, error = bench(capsys, *COMMANDS[name], "--json", "--quiet")
    value = json.loads(out)
    assert code == interrupt.EXIT_CODE and value["stopped"], error
    assert [len(row["ours"]["runs"]) for row in value["rows"]] == [1] and value["rows"][0]["times_faster"] > 0
