"""Two and four processes, started by accelerate's own command, torchrun or --launch, learn what one does: DDP and FSDP,
whole and with LoRA, stages 1 and 2, on CPUs; and a run goes on with another number of processes."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import duogen_core.training
from duogen_core.cli import main
from duogen_core.document import Document, Text, Turn
from duogen_core.mllm.image_processor import small_image_processor
from duogen_core.mllm.qwen2_5_vl import Qwen25VL, new_model
from duogen_core.sketchbook.pretrain import sketchbook_tokenizer
from duogen_core.sketchbook.source import example_of
from duogen_core.training import stage2_data
from duogen_core.training.command import LAUNCHED
from duogen_core.training.configuration import TrainingError
from duogen_core.training.data import Example
from duogen_core.training.distributed import Processes, ensure_gradients, shard
from duogen_core.training.metrics import scalars
from duogen_core.training.next_token import (
    Batcher,
    NextTokenLoss,
    NextTokenSteps,
    StepTotals,
)
from duogen_core.vae import PictureVae, new_vae
from tests.core.sample_sets import guide, members, write_jsonl, write_tar
from tests.core.sketchbook.test_pretrain import SIZES, cases
from tests.core.test_folder_lock import holder
from tests.core.two_processes import run_all

ROOT = Path(__file__).parents[3]
LAUNCH = Path(duogen_core.training.__file__).parent / "launch"
SHARED = ["steps=4", "warmup=1", "log_every=1", "bf16=false", "lr=1e-3"]
STAGE1 = ["stage1", *SHARED, "init=mllm", "batch=5", "tokens=400", "eval_cases=1", "muon_lr=1e-3"]
STAGE2 = ["stage2", *SHARED, "vae=vae", "mllm=mllm", "layers=2", "heads=2", "cross_width=32", "shards=2", "tokens=800",
          "sample_minutes=0", "eval_cases=1", "eval_steps=3"]  # fmt: skip


DRAWN = ["sample_minutes=60"]  # at the end alone
LORA = ["lora.rank=2", "optimizer=adamw"]
QLORA = [*LORA, "lora.quantise=nf4"]
ACCUMULATE = ["optimizer=adamw", "accumulate=true"]


ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
Commands = tuple[list[str], "int | str | None"]


def ended(command: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
    """As subprocess.run; a launcher that takes too long is asked to end, so that it ends its processes too."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings) as launcher:
        try:
            out, err = launcher.communicate(timeout=500)
        except BaseException:
            launcher.terminate()
            with suppress(subprocess.TimeoutExpired):
                launcher.communicate(timeout=60)
            launcher.kill()
            raise
        return subprocess.CompletedProcess(command, launcher.returncode, out, err)


def started_by(
    launcher: list[str], commands: tuple[Commands, ...], folders: tuple[Path, ...] = ()
) -> subprocess.CompletedProcess[str]:
    program = [str(ROOT / "tests/core/two_processes.py"), json.dumps(commands), *map(str, folders)]
    return ended([sys.executable, "-m", *launcher, *program], env={**os.environ, **ENVIRONMENT})


def launched(config: str, *commands: Commands, folders: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    options = ["--config_file", str(LAUNCH / config), "--num_processes", "2", "--mixed_precision", "no"]
    return started_by(["accelerate.commands.launch", *options, "--main_process_port", "0"], commands, folders)


def launch(config: str, *commands: Commands) -> None:
    done = launched(config, *commands)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny MLLM and VAE to start from, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("parallel")
    before = Path.cwd()
    os.chdir(folder)
    torch.manual_seed(0)
    tokenizer = sketchbook_tokenizer(0, 60, 500)
    Qwen25VL(new_model(tokenizer, **SIZES), tokenizer, small_image_processor()).save_pretrained(Path("mllm"))
    PictureVae(new_vae(base_dim=4)).save_pretrained(Path("vae"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage2_data, "SHARD", 6)
        run_all([
            ([*STAGE1, "out=one/stage1"], None),
            ([*STAGE1, "out=one/stage1-adamw", "optimizer=adamw"], None),
            ([*STAGE2, "out=one/stage2"], None),
            ([*STAGE2, "out=one/stage2-adamw", "optimizer=adamw", *DRAWN], None),
            ([*STAGE1, "out=one/stage1-lora", *LORA], None),
            ([*STAGE1, "out=one/stage1-qlora", *QLORA], None),
            ([*STAGE2, "out=one/stage2-lora", *LORA], None),
            # to be continued by others
            ([*STAGE1, "out=parts/stage1", *ACCUMULATE], 0),
            ([*STAGE2, "out=parts/stage2", *LORA], 0),
        ])  # fmt: skip
    yield folder
    os.chdir(before)


def figures(run: Path) -> list[dict[str, float]]:
    """Loss, norm of the gradients and so on, of every step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    steps = [{k: v for k, v in line.items() if k not in ("seconds", "speed")} for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4] and all("norm" in line for line in steps)
    return steps


def scores(run: Path) -> dict[str, float]:
    """{"3/draw/loss": ...} of what is held out."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    return {
        f"{line['step']}/{name}": value for line in lines if "eval" in line for name, value in scalars(line["eval"])
    }


def checkpoint_of(run: Path) -> dict[str, torch.Tensor]:
    """{file/name: whole tensor}, put together from what each process wrote by the offsets in the files' headers."""
    pieces: dict[str, list[tuple[list[int], torch.Tensor]]] = {}
    for path in sorted((run / "checkpoint").glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            sharded = (file.metadata() or {}).get("DCP_SHARDING_INFO")
            for key in file.keys():  # noqa: SIM118
                name = key if sharded else f"{path.stem}/{key}"
                offsets = json.loads(sharded)[key]["saved_offsets"] if sharded else []
                pieces.setdefault(name, []).append((offsets, file.get_tensor(key)))
    assert {path.suffix for path in (run / "checkpoint").iterdir()} == {".safetensors", ".json"}
    whole = {}
    for name, found in pieces.items():
        parts = [tensor for _, tensor in sorted(found, key=lambda piece: piece[0])]
        whole[name] = torch.cat(parts) if parts[0].ndim else parts[0]
    return whole


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], where: object) -> None:
    assert wanted.keys() == found.keys(), where
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, atol=1e-4, rtol=0, msg=f"{where}: {key}")


def same(folder: Path, one: str, two: str, processes: int = 2) -> None:
    """Figures of every step, scores, weights, averages, moments, exports and adapters to 1e-4."""
    one, two = folder / one, folder / two
    assert json.loads((two / "config.json").read_text())["processes"] == processes
    for wanted, found in zip(figures(one), figures(two), strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    # Stage 2 by all processes, stage 1 by the main one, of a copy where the weights are split.
    wanted, found = ({name: each for name, each in scores(run).items() if "loss" in name} for run in (one, two))
    # Of QLoRA the copy is what is exported: the weights before they were quantised, and the adapter.
    assert found == pytest.approx(wanted, abs=0.02 if "qlora" in two.name else 5e-4) and len(found) > 8
    trained = [json.loads((run / "checkpoint" / "state.json").read_text("utf-8"))["model"] for run in (one, two)]
    assert trained[0] == trained[1] and "qwen2_5_vl" in trained[0]
    assert ("a PackedCosmos of 2 blocks" in trained[0]) == ("stage2" in two.name)
    wanted = checkpoint_of(one)
    assert any(".exp_avg_sq" in key for key in wanted) and len(wanted) > 20
    close(checkpoint_of(two), wanted, two)
    left_out = ("documents", "checkpoint")
    files = [file.relative_to(one) for file in one.rglob("*.safetensors") if not {*left_out} & {*file.parts}]
    assert files
    for file in files:
        close(load_file(two / file), load_file(one / file), two / file)


@pytest.mark.slow
def test_ddp_learns_what_one_process_does_also_after_a_stop(folder):
    launch(
        "ddp.yaml",
        ([*STAGE1, "out=two/stage1"], 1),
        ([*STAGE1, "out=two/stage1"], None),
        ([*STAGE2, "out=two/stage2"], 1),
        ([*STAGE2, "out=two/stage2"], None),
    )
    same(folder, "one/stage1", "two/stage1")
    same(folder, "one/stage2", "two/stage2")


@pytest.mark.slow
def test_fsdp_learns_what_one_process_does_also_after_a_stop(folder):
    adamw = "optimizer=adamw"
    launch(
        "fsdp.yaml",
        ([*STAGE1, adamw, "out=split/stage1"], 1),
        ([*STAGE1, adamw, "out=split/stage1"], None),
        ([*STAGE2, adamw, *DRAWN, "out=split/stage2"], 1),
        ([*STAGE2, adamw, *DRAWN, "out=split/stage2"], None),
        ([*STAGE1, *LORA, "accumulate=true", "out=split/stage1-lora"], 1),
        ([*STAGE1, *LORA, "accumulate=true", "out=split/stage1-lora"], None),
        ([*STAGE1, *QLORA, "out=split/stage1-qlora"], None),
        ([*STAGE2, *LORA, "out=split/stage2-lora"], None),
        ([*STAGE1, *ACCUMULATE, "out=parts/stage1"], 1),
        ([*STAGE2, *LORA, "out=parts/stage2"], 1),
    )
    same(folder, "one/stage1-qlora", "split/stage1-qlora")
    for stage in ("stage1", "stage2"):
        same(folder, f"one/{stage}-adamw", f"split/{stage}")
        same(folder, f"one/{stage}-lora", f"split/{stage}-lora")
    same_pictures(folder / "one/stage2-adamw", folder / "split/stage2")
    for stage in ("stage1", "stage2"):
        assert len(list((folder / "parts" / stage / "checkpoint").glob("shard-0000[12]-*"))) == 2
    # The runs that one process began and two went on with: four take them over, and one ends them. Four also begin one
    # of their own, and another in which a process is killed while it writes the third checkpoint.
    fsdp = ["--launch", "fsdp"]
    done = started_by(
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "4"],
        (
            ([*STAGE1, *ACCUMULATE, "out=parts/stage1", *fsdp], 2),
            ([*STAGE2, *LORA, "out=parts/stage2", *fsdp], 2),
            ([*STAGE1, adamw, "out=four/stage1", *fsdp], None),
            ([*STAGE1, adamw, "out=killed/stage1", "checkpoint_minutes=0", *fsdp], "killed in save 3"),
        ),
    )
    assert done.returncode != 0 and "exitcode  : 9" in done.stderr, done.stderr[-6000:]
    same(folder, "one/stage1-adamw", "four/stage1", 4)
    killed = folder / "killed" / "stage1"
    assert json.loads((killed / "checkpoint" / "state.json").read_text("utf-8"))["step"] == 2
    assert not (killed / "export").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage2_data, "SHARD", 6)
        run_all([
            ([*STAGE1, *ACCUMULATE, "out=parts/stage1"], None),
            ([*STAGE2, *LORA, "out=parts/stage2"], None),
            ([*STAGE1, adamw, "out=killed/stage1"], None),
        ])  # fmt: skip
    same(folder, "one/stage1-adamw", "parts/stage1", 1)
    same(folder, "one/stage2-lora", "parts/stage2", 1)
    same(folder, "one/stage1-adamw", "killed/stage1", 1)
    assert not (killed / "checkpoint.new").exists()


@pytest.mark.slow
def test_slurm_starts_the_processes_and_takes_a_stopped_run_back_into_the_queue(folder):
    """With an srun and an scontrol of our own."""
    tools = folder / "slurm"
    tools.mkdir()
    each = 'while [[ "$1" == --* ]]; do shift; done\nfor k in 0 1; do SLURM_PROCID=$k SLURM_LOCALID=$k "$@" & done\n'
    for name, text in {
        "srun": each + "wait -n && wait -n",
        "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi',
        "python": f'exec {sys.executable} "$@"',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n", "utf-8")
        (tools / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node", "KIND": "ddp", "MASTER_PORT": port}
    slurm |= {**os.environ, **ENVIRONMENT, "PATH": f"{tools}:{os.environ['PATH']}"}

    def submitted() -> subprocess.CompletedProcess[str]:
        command = ["bash", str(LAUNCH / "slurm.sbatch"), *STAGE1, "out=slurm-run"]
        return ended(command, env=slurm, cwd=folder)

    done = submitted()
    assert done.returncode == 0, done.stderr[-6000:]
    same(folder, "one/stage1", "slurm-run")
    assert not (folder / "requeued").exists()
    (tools / "srun").write_text("#!/bin/bash\nexit 130\n", "utf-8")
    assert submitted().returncode == 130
    assert (folder / "requeued").read_text("utf-8") == "requeue 7\n"


def same_pictures(one: Path, two: Path) -> None:
    """The samples, which the main process draws, of a copy where the weights are split."""
    wanted, found = (pictures_of(run / "samples" / "000004") for run in (one, two))
    assert wanted.keys() == found.keys() and len(wanted) > 3 and all(wanted.values()), "each answer has its image"
    for name, images in wanted.items():
        assert [each.shape for each in found[name]] == [each.shape for each in images]
        for a, b in zip(found[name], images, strict=True):
            assert np.abs(a.astype(float) - b).mean() < 1, name


def pictures_of(folder: Path) -> dict[str, list[np.ndarray]]:
    """{page: the images on it}"""
    found = {}
    for page in folder.glob("*.html"):
        images = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page.read_text("utf-8"))
        found[page.name] = [np.array(Image.open(io.BytesIO(base64.b64decode(image)))) for image in images]
    return found


@pytest.mark.slow
def test_states_online_and_worker_processes_learn_what_one_process_does(folder):
    for name, count in (("few", 5), ("one", 1), ("two", 2)):
        write_jsonl(folder / name / "train.jsonl", [guide(k, (64 + 16 * k, 64)) for k in range(count)])
    online = ["states=online", "data=[jsonl:few/train.jsonl]", "batch=3", "tokens=200", "precision=float32"]
    online += ["eval_data=[jsonl:one/train.jsonl, jsonl:two/train.jsonl]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_all([([*STAGE2, *online, "out=one/stage2-online"], None)])
        launch(
            "ddp.yaml",
            ([*STAGE2, *online, "out=two/stage2-online", "workers=1"], 1),
            ([*STAGE2, *online, "out=two/stage2-online"], None),
        )
    same(folder, "one/stage2-online", "two/stage2-online")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "config"),
    [
        ("stage1", "fsdp.yaml"),
        ("stage2", "ddp.yaml"),
        pytest.param("stage1", "ddp.yaml", marks=pytest.mark.exhaustive),
        pytest.param("stage2", "fsdp.yaml", marks=pytest.mark.exhaustive),
    ],
)
def test_a_stream_is_shared_out_by_lanes_and_is_learnt_as_by_one_process(folder, config, stage):
    """Three lanes for two processes, which have unequal passes; stopped, and gone on with by one process."""
    (folder / "shards").mkdir(exist_ok=True)
    for number in range(3):
        some = [guide(10 * number + k, (64, 48 + 16 * k)) for k in range(4)]
        write_tar(folder / "shards" / f"{number}.tar", [members(f"{d.meta['number']:03d}", d) for d in some])
    data = [
        'data=[{"source": "stream:shards", "shuffle": 6, "lanes": 3}]',
        "batch=5",
        "eval_cases=0",
        "sample_minutes=0",
    ]
    own = ["accumulate=true"] if stage == "stage1" else ["states=online", "tokens=200", "precision=float32"]
    command = [*(STAGE1 if stage == "stage1" else STAGE2), *data, "optimizer=adamw", *own]
    one, two, kind = f"one/{stage}-stream", f"two/{stage}-{config[:4]}", [] if stage == "stage1" else ["export_steps=0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if not (folder / one).exists():
            run_all([([*command, *kind, f"out={one}"], None)])
        launch(config, ([*command, *kind, f"out={two}", "workers=1"], 1))
        assert len(list((folder / two / "stream").glob("*.jsonl"))) == 2, "one reader for each process"
        run_all([([*command, *kind, f"out={two}"], None)])
    wanted, found = (checkpoint_of(folder / run) for run in (one, two))
    close(found, wanted, two)
    for a, b in zip(figures(folder / one), figures(folder / two), strict=True):
        assert {**b, "tokens": 0} == pytest.approx({**a, "tokens": 0}, abs=1e-4)  # padding is another


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", [STAGE1, pytest.param([*STAGE2, "states=online"], marks=pytest.mark.exhaustive)], ids=["stage1", "stage2"]
)
def test_processes_that_see_different_data_are_told_before_the_first_step(folder, tmp_path, stage):
    machines = [tmp_path / name for name in ("a", "b")]
    for k, machine in enumerate(machines):  # the same names, sizes and numbers of samples; one letter is another,
        machine.mkdir()
        documents = [guide(n) for n in range(40)]
        documents[8] = Document((Turn("user", (Text(f"Say {'ab'[k]}."),)), *documents[8].turns[1:]))
        write_jsonl(machine / "train.jsonl", documents)  # and of a sample that is not looked at beforehand
    models = [f"init={folder / 'mllm'}"] if stage is STAGE1 else [f"mllm={folder / 'mllm'}", f"vae={folder / 'vae'}"]
    command = [*stage, *models, "data=[jsonl:train.jsonl]", "batch=40", "eval_cases=0", "out=run"]
    done = launched("ddp.yaml", (command, None), folders=tuple(machines))
    assert done.returncode != 0
    assert "Process 1 sees other data than process 0 in step 0" in done.stderr
    assert not (machines[0] / "run" / "checkpoint").exists()
    lines = (machines[1] / "train.jsonl").read_text("utf-8")  # now one that is
    (machines[1] / "train.jsonl").write_text(lines.replace("Request 7", "Request 9"), "utf-8")
    done = launched("ddp.yaml", (command, None), folders=tuple(machines))
    assert "sees other data than process 0: sample 8 of jsonl:train.jsonl" not in done.stderr
    assert "sees other data than process 0: sample 7 of jsonl:train.jsonl is another" in done.stderr
    (machines[1] / "train.jsonl").write_text((machines[1] / "train.jsonl").read_text("utf-8")[:-300] + "\n", "utf-8")
    done = launched("ddp.yaml", (command, None), folders=tuple(machines))
    assert "sees other data than process 0: files of source 1 (jsonl)" in done.stderr
    assert not (machines[0] / "run" / "checkpoint").exists()


@pytest.mark.slow
def test_all_processes_end_where_another_run_has_the_folder(folder):
    process = holder(folder / "taken")
    done = launched("ddp.yaml", ([*STAGE1, "out=taken"], None))
    process.communicate("\n")
    assert done.returncode != 0
    assert f"Error: taken is in use by another run of DuoGen (process {process.pid}, -c)" in done.stderr
    assert not (folder / "taken").exists()


def with_launch(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    launch = ["--launch", "ddp", "--processes", "2"]
    command = [sys.executable, "-m", "duogen_core", "train", *command, *launch]
    return ended(command, env={**os.environ, **ENVIRONMENT}, cwd=folder)


@pytest.mark.slow
def test_launch_starts_processes_that_learn_what_one_does(folder):
    done = with_launch(folder, *STAGE1, "out=launched/stage1")
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.count("Finished: launched/stage1/export") == 1
    assert json.loads((folder / "launched/stage1/config.json").read_text("utf-8"))["processes"] == 2
    same(folder, "one/stage1", "launched/stage1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["init=nowhere"], "expected the file nowhere"),  # which every process finds
        (["data=[documents:nowhere]"], "nowhere"),
    ],
)
def test_what_is_wrong_under_launch_is_said_once(folder, settings, sentence):
    done = with_launch(folder, *STAGE1, *settings, "out=wrong")
    assert done.returncode == 2 and sentence in done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1, done.stderr


def test_a_process_of_several_ends_without_pythons_teardown():
    """In which a thread of gloo that still wants the interpreter aborts the process, now and then."""
    code = (
        "import atexit, sys; from duogen_core.training.distributed import leave\n"
        "class Torn:\n  def __del__(self): print('torn down')\n"
        "torn = Torn(); atexit.register(print, 'at exit'); print('said', end=' '); leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "said at exit\n"), done.stderr


def failed(monkeypatch, **failure: object) -> None:
    """Processes that end so, as torch tells it."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def launch_command(args):
        raise ChildFailedError("duogen_core", {1: ProcessFailure(local_rank=1, pid=1, error_file="", **failure)})

    monkeypatch.setattr("accelerate.commands.launch.launch_command", launch_command)


def test_a_process_that_was_killed_is_a_sentence_and_an_exit_code_is_passed_on(monkeypatch, tmp_path, capsys):
    command = ["train", "stage1", "--launch", "fsdp", "--processes", "3", "steps=1", f"out={tmp_path / 'run'}"]
    failed(monkeypatch, exitcode=-9)
    assert main(command) == 2
    assert "Error: Process 1 was ended by SIGKILL" in capsys.readouterr().err
    failed(monkeypatch, exitcode=130)
    assert main(command) == 130
    assert LAUNCHED not in os.environ and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--launch", "ddp", "lrr=1"], "no setting 'lrr' in the settings given on the command line"),
        (["--launch", "ddp"], "A training run needs an end"),
        (["--launch", "ddp", "--processes", "1", "steps=1"], "--processes is 1; expected at least 2"),
        (["--processes", "2", "steps=1"], "--processes goes with --launch"),
        (["--launch", "dpp", "steps=1"], "invalid choice: 'dpp'"),
    ],
)
def test_wrong_settings_are_said_before_any_process_starts(monkeypatch, tmp_path, capsys, arguments, sentence):
    monkeypatch.setattr("accelerate.commands.launch.launch_command", lambda args: pytest.fail("started"))
    assert main(["train", "stage2", *arguments, f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


class Given:
    """The same examples in every step."""

    streamed = False

    def __init__(self, examples: list[Example]) -> None:
        self.examples, self.read_numbers = examples, []

    def readers(self, step, processes):
        return [None] * len(self.examples)

    def headers(self, step, numbers):
        return [self.examples[number] for number in numbers]

    def read(self, step, numbers):
        self.read_numbers += numbers
        return [self.examples[number] for number in numbers]


def test_the_parts_of_a_step_add_up_to_it():
    torch.manual_seed(0)
    tokenizer = sketchbook_tokenizer(0, 60, 500)
    loss_of = NextTokenLoss(new_model(tokenizer, **SIZES))
    examples = Given([example_of(case, name=str(k)) for k, case in enumerate(cases(5))])
    batcher = Batcher(tokenizer, small_image_processor(), tokens=300)
    batches, pixels = batcher(examples.examples)
    whole, (loss, _) = StepTotals.of(batches), loss_of(batches, pixels)
    for count in (1, 2, 3, len(batches) + 1):
        examples.read_numbers = []
        shares = [NextTokenSteps(examples, batcher, rank, count)(0) for rank in range(count)]
        assert len({len(share.batches) for share in shares}) == 1
        assert sorted(examples.read_numbers) == [0, 1, 2, 3, 4]  # each is read by one process
        assert all(share.count == len(batches) and share.names == list("01234") for share in shares)
        assert shares[0].tokens == sum(batch.ids.numel() for batch in batches)
        weight = sum(batch.target_weight for share in shares for batch in share.batches)
        assert weight == pytest.approx(whole.target_weight)
        found = sum(loss_of(share.batches, share.pixels, StepTotals(weight, len(batches)))[0] for share in shares)
        torch.testing.assert_close(found, loss, atol=1e-5, rtol=0)


def test_every_document_has_one_process_and_none_is_idle():
    processes = Processes()
    for count in (1, 2, 3):
        shares = []
        for processes.rank in range(count):
            processes.count = count
            shares.append(processes.share(["a", "b"]))
        assert sorted(name for mine, counts in shares for name in mine * counts) == ["a", "b"]
        assert all(mine for mine, _ in shares)


def test_a_device_that_is_not_there_is_named():
    for name, expected in (("gpu", "no kind of device 'gpu'"), ("cuda", "finds no CUDA device")):
        if name != "cuda" or not torch.cuda.is_available():
            with pytest.raises(TrainingError, match=expected):
                Processes(name)


def test_what_cannot_be_split_is_said(monkeypatch):
    monkeypatch.setenv("FSDP_VERSION", "2")
    weight = torch.nn.Linear(4, 4)
    muon = {"muon": torch.optim.Muon([weight.weight])}
    with pytest.raises(TrainingError, match="Muon needs whole matrices.*optimizer=adamw"):
        shard(weight, muon, torch.device("cpu"))
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(TrainingError, match="fsdp_version: 2"):
        shard(weight, {}, torch.device("cpu"))


def test_what_a_share_does_not_use_learns_zero():
    """As one process of FSDP, whose sums have a place for every parameter."""
    layers = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 2), "unused": torch.nn.Linear(2, 2)})

    class Picky(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return self.layers["used"](x).sum(), x

    module, x = Picky(), torch.ones(1, 2)
    module(x)[0].backward()
    wanted = {name: p.grad for name, p in module.named_parameters()}
    assert wanted["layers.unused.weight"] is None
    module.zero_grad()
    ensure_gradients(module, list(module.modules()))
    module(x)[0].backward()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter) if wanted[name] is None else wanted[name])
