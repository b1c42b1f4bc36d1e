"""What a run says of its speed: counts over the time of the steps, waiting apart, evaluation left out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from duogen_core.connector import Connector, ConnectorConfig
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.training import stage2, throughput
from duogen_core.training.configuration import ConfigError, load_config
from duogen_core.training.distributed import Processes
from duogen_core.training.run import Run
from duogen_core.training.stage2_data import Stage2Config
from duogen_core.training.throughput import Meter, in_words, peak_of


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA RTX A6000", 154.8),
        ("Radeon RX 7900 XTX", None),
        ("Tesla V100-SXM2-16GB", None),  # no bfloat16
    ],
)
def test_the_peak_follows_from_the_devices_name(name, peak):
    assert peak_of(name) == peak


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


def test_work_is_divided_by_the_time_of_the_steps_alone(clock):
    meter, one = Meter(torch.device("cpu"), peak_tflops=2.0), Processes()
    for _ in range(4):
        with meter.waiting():
            clock[0] += 1
        meter.count(tokens=300, pictures=6, flops=3e12)
        clock[0] += 2
        meter.step_done()
    with meter.aside():
        clock[0] += 50
        with meter.waiting():  # of the evaluation
            clock[0] += 7
    found = meter.figures(one)
    assert found.pop("host_memory") > 0
    assert found == {
        "step_seconds": 3.0, "tokens_per_second": 100.0, "pictures_per_second": 2.0, "waiting": 0.3333,
        "peak_share": 0.5,
    }  # fmt: skip
    assert in_words(found) == "100 tokens/s, 2 images/s, 50% of peak, 33% waiting for data"
    clock[0] += 5
    meter.step_done()
    assert meter.figures(one)["step_seconds"] == 5.0, "each call tells of the time since the one before"


def test_several_processes_are_added_up_and_the_slowest_feed_is_told(clock):
    meter, both = Meter(torch.device("cpu"), peak_tflops=1.0), Processes()
    meter.count(tokens=10, flops=5e12)
    clock[0] += 10
    other = {"tokens": 30.0, "pictures": 0.0, "flops": 5e12, "waiting": 0.5, "peak": 1.0, "host_memory": 2.0}
    both.gather = lambda mine: [{**mine, "host_memory": 1.0}, other]
    assert meter.figures(both) == {
        "step_seconds": 10.0, "tokens_per_second": 4.0, "waiting": 0.5, "peak_share": 0.5, "host_memory": 3.0
    }  # fmt: skip


def test_without_a_known_peak_no_share_is_made_up(clock):
    meter = Meter(torch.device("cpu"))
    meter.count(tokens=10, flops=5e12)
    clock[0] += 1
    assert "peak_share" not in meter.figures(Processes())


def small_run(folder, **settings):
    model = torch.nn.Linear(3, 1)
    run = Run(folder, {}, steps=6, log_every=3, print_seconds=1e9, warmup=1, **settings)
    run.attach({"model": model}, {"adamw": torch.optim.AdamW(model.parameters(), lr=0.1)})
    return run, model


def test_figures_are_read_from_the_device_only_when_a_line_is_written(tmp_path, monkeypatch):
    run, model = small_run(tmp_path)
    reads, read = [], Run._read_reported
    monkeypatch.setattr(Run, "_read_reported", lambda self: (reads.append(self.step), read(self)))
    given = []
    for step in run:
        loss = model(torch.ones(2, 3) * step).square().mean()
        norm = run.update(loss, clip=1.0)
        run.report(loss=loss, norm=norm, tokens=7)
        given.append(loss.item())
    assert set(reads) == {3, 6}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx([sum(given[:3]) / 3, sum(given[3:]) / 3])
    assert all(line["tokens"] == 7 and line["speed"]["step_seconds"] > 0 for line in lines)
    assert "host_memory" in lines[0]["speed"] and lines[0]["speed"]["left"] >= 0
    assert "left" in (tmp_path / "STATUS").read_text()


def test_the_floor_of_the_cosine_is_a_setting(tmp_path):
    factors = {}
    for floor in (0.02, 0.5):
        run, _ = small_run(tmp_path / str(floor), floor=floor)
        for _ in run:
            run.report(loss=1.0)
        factors[floor] = run.lr_factor
    assert factors == {0.02: pytest.approx(0.02), 0.5: pytest.approx(0.5)}


def parts():
    torch.manual_seed(0)
    return PackedCosmos(num_layers=1, num_attention_heads=1, text_embed_dim=8), Connector(ConnectorConfig(2, 4, 8))


def test_rates_and_betas_of_dit_and_connector_are_settings():
    usual = stage2.optimizers_of(*parts(), Stage2Config(lr=3e-3, optimizer="adamw"))
    assert usual["connector"].defaults["lr"] == 1e-3 and usual["adamw"].defaults["betas"] == (0.9, 0.99)
    for kind in ("adamw", "muon"):
        config = Stage2Config(lr=3e-3, connector_lr=5e-4, betas=(0.8, 0.95), optimizer=kind)
        found = stage2.optimizers_of(*parts(), config)
        assert found["connector"].defaults["lr"] == 5e-4
        assert {found[name].defaults["betas"] for name in ("adamw", "connector")} == {(0.8, 0.95)}


def test_matrices_decay_and_gains_do_not():
    dit, connector = parts()
    before = {name: weight.detach().clone() for name, weight in dit.named_parameters()}
    optimizer = stage2.optimizers_of(dit, connector, Stage2Config(lr=0.1, weight_decay=0.5, optimizer="adamw"))["adamw"]
    for weight in dit.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in dit.named_parameters():
        wanted = before[name] * 0.95 if weight.ndim >= 2 else before[name]
        torch.testing.assert_close(weight.detach(), wanted, msg=name)
    assert sum(weight.ndim < 2 for weight in dit.parameters()) >= 4


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("betas=[0.9]", "'betas' in the settings given on the command line is .*; expected a list of 2"),
        ("betas=[0.9, 1.0]", "'betas' are .*; expected two numbers from 0 to below 1"),
        ("connector_lr=0", "'connector_lr' is 0.0; expected a number above 0"),
        ("export_steps=-1", "'export_steps' is -1; expected at least 0"),
        ("lr_floor=2", "'lr_floor' is 2.0; expected a share"),
        ("peak_tflops=0", "'peak_tflops' is 0.0; expected a number above 0"),
    ],
)
def test_settings_out_of_range_are_named(setting, said):
    with pytest.raises(ConfigError, match=said):
        load_config(Stage2Config, None, [setting])
    assert replace(Stage2Config(), export_steps=0).export_steps == 0
