# ruff: noqa: E501  (commands stand as they are written)
"""Every command of README.md and docs/*.md runs as written, with small settings; one that nobody tried is a fault.

`COMMANDS` says for each what is done with it:

- `Runs`: it runs, in a scratch folder that holds the files its page speaks of; settings are appended, or put in place
  of others, so that it takes seconds. The commands of a page follow each other, so the later ones read what the
  earlier ones wrote.
- `Parses`: it cannot run here, for the reason given; its arguments are read and its settings checked.
- `Left`: not even that, for the reason given.

`PROGRAMS` says the same of the blocks of Python. Every --option and name=value that a page names anywhere must be one
that its commands have (`unknown_options`, `unknown_settings`), so one that is renamed is found even where no command
uses it. Scripts of tests/bench answer to --help from any folder.
"""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hardening import docs_commands
from tests.hardening.zygote import ROOT, Ended, Zygote, shared

ENDPOINT, PAINTER = "http://127.0.0.1:8000/v1", "{painter}"


@dataclass(frozen=True)
class Runs:
    more: tuple[str, ...] = ()
    instead: Mapping[str, str] = field(default_factory=dict)  # words of the command, and what stands for them
    codes: tuple[int, ...] = (0,)
    makes: tuple[str, ...] = ()  # files that must be there then
    fresh: tuple[str, ...] = ()  # files of earlier commands that must not


@dataclass(frozen=True)
class Parses:
    why: str
    instead: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Left:
    why: str


Entry = Runs | Parses | Left
QUICK = ("--steps", "1", "--max-tokens", "40")
SHORT = ("steps=1", "log_every=1", "threads=1")
PIP = Left("installs packages; dev.py does it with the same extras")
CLONE = Left("asks the host of this repository")
HOURS = "takes an hour or more; tests/core/sketchbook/test_ablation.py runs the same in small"

SEES = Parses("needs a model that sees, or its server; tests/core/commands/test_review.py has a scripted one")
COMMANDS: dict[str, Entry] = {
    # README.md
    'python3 dev.py answer "How do I draw a house with a red roof?"': Left("makes an environment; tests/test_dev.py runs it"),
    "python3 dev.py test": Left("runs all tests, and this one with them"),
    "git clone ADDRESS_OF_THIS_REPOSITORY ComfyUI-DuoGen": CLONE,
    "pip install -r ComfyUI-DuoGen/requirements.txt": PIP,
    "python -m duogen_core train finetune data=my-guides out=runs/mine": Parses("finetuning.md's command runs"),
    "python -m duogen_core data web saved-pages/ --out run/": Parses("data-web.md's command runs"),
    **dict.fromkeys((f"python -m duogen_core {name} --help" for name in ("train", "data", "generate", "plan", "evaluate run")), Runs()),
    # install.md
    r"git clone ADDRESS_OF_THIS_REPOSITORY ComfyUI\custom_nodes\ComfyUI-DuoGen": CLONE,
    "git clone ADDRESS_OF_THIS_REPOSITORY custom_nodes/ComfyUI-DuoGen": CLONE,
    "pip install -r custom_nodes/ComfyUI-DuoGen/requirements.txt": PIP,
    "python3 dev.py test --quick": Left("runs all tests of the core, and this one with them"),
    # own-models.md
    "python -m duogen_core inspect FILE_OR_FOLDER --memory 12": Runs(instead={"FILE_OR_FOLDER": "models/duogen-tiny"}),
    "python -m duogen_core convert model.pt model.safetensors --quantise fp8": Runs(
        fresh=("model.safetensors",), makes=("model.safetensors",)
    ),
    # planning.md
    'python -m duogen_core plan "How do I fold a paper boat?" --writer qwen2.5-7b-instruct-q4_k_m.gguf --out plan.md': (
        Parses("needs a language model; tests/core/commands/test_plan.py runs it with a scripted one")
    ),
    "python -m duogen_core generate --plan plan.md --out boat": Parses("needs the plan of the command before"),
    'python -m duogen_core generate "How do I fold a paper boat?" --writer http://127.0.0.1:8080/v1 --writer-model '
    "qwen3 --out boat": Parses("needs a server; tests/core/commands/test_plan.py runs it with a scripted one"),
    "python -m duogen_core generate --plan plan.md --painter comfyui:text.json --painter comfyui:edit.json --out boat": (
        Parses("needs ComfyUI; tests/core/commands/test_plan.py runs it with a scripted one")
    ),
    # command-line.md
    'python3 dev.py answer "…"': Left("makes an environment; tests/test_dev.py runs it"),
    'python -m duogen_core generate "How do I draw a house with a red roof?" --out answer --seed 7': Runs(
        QUICK, makes=("answer/document.json", "answer/document.html", "answer/document.md", "answer/images/000.png")
    ),
    'python -m duogen_core generate "Draw a red star and a blue circle." --control drawing.png --control-trace --out '
    "outlined": Runs(makes=("outlined/document.html",)),
    'python -m duogen_core generate "Make the circle blue." --image drawing.png --out edited': Runs(
        QUICK, makes=("edited/images/000.png", "edited/images/001.png")
    ),
    'python -m duogen_core generate "Draw a large red circle in the centre and a small yellow star at the top." --out '
    "shapes": Runs(QUICK, makes=("shapes/images/000.png",)),
    'python -m duogen_core generate "Now make the circle blue." --document shapes --out shapes2': Runs(
        QUICK, makes=("shapes2/document.json",)
    ),
    'python -m duogen_core generate "How do I fold a paper boat?" --out boat --mllm QWEN --dit COSMOS --vae VAE': Runs(
        (*QUICK, "--max-images", "1", "--size", "64x64"),
        {"QWEN": "Qwen2.5-VL-7B-Instruct", "COSMOS": "cosmos-predict2.5-2b.safetensors", "VAE": "wan_2.1_vae.safetensors"},
        makes=("boat/document.json",),
    ),
    # critic.md
    'python -m duogen_core generate "Draw a small red star on the left." --out drawn --critic sketchbook --redraws 3': Runs(
        QUICK, makes=("drawn/images/000.png",)
    ),
    'python -m duogen_core generate "…" --out drawn --critic /models/Qwen3-VL-8B-Instruct --redraws 3': SEES,
    'python -m duogen_core generate "…" --out drawn --critic http://127.0.0.1:8000/v1 --critic-model qwen3-vl:8b '
    "--redraws 3": SEES,
    "python -m duogen_core review drawn --critic sketchbook": Runs(),
    "python -m duogen_core review drawn --critic sketchbook --redraws 3 --out better": Runs(
        makes=("better/images/000.png",)
    ),
    # speed.md
    **dict.fromkeys(
        (f"python -m duogen_core bench {name}" for name in ("loop", "dit", "mllm", "connector")),
        Parses("takes minutes; tests/core/commands/test_bench.py runs each with a tiny model"),
    ),
    # measured.md
    "python -m duogen_core evaluate sketchbook --out report.json --samples 500": Runs(
        instead={"500": "1"}, makes=("report.json",)
    ),
    "python -m duogen_core evaluate plan --writer qwen3-4b-instruct.gguf --out plans --count 36": Parses(
        "needs a language model; tests/core/commands/test_evaluate_plan.py runs it with a scripted one"
    ),
    # evaluation.md
    "python -m duogen_core evaluate run ueval --requests ueval.json --out runs/ueval": Runs(
        more=("--limit", "1"), makes=("runs/ueval/submission/submission.json",)
    ),
    "python -m duogen_core evaluate judge ueval runs/ueval --requests ueval.json --official results.json": Runs(
        makes=("runs/ueval/results-official.json",)
    ),
    "python -m duogen_core evaluate judge ueval runs/ueval --requests ueval.json --endpoint http://127.0.0.1:8000/v1 "
    "--llm qwen3-vl": Parses("needs a judge; tests/core/commands/test_evaluate_benchmarks.py has a scripted one"),
    "python -m duogen_core evaluate judge ueval runs/ueval --requests ueval.json --mllm /models/Qwen3-VL-8B-Instruct": (
        Parses("needs a judge of many GB")
    ),
    "python -m duogen_core evaluate judge geneval runs/geneval --requests evaluation_metadata.jsonl --detector "
    "/models/mask2former-swin-small-coco-instance --colours /models/clip-vit-large-patch14": Parses(
        "needs a detector; tests/core/commands/test_evaluate_detector.py has a tiny one"
    ),
    "python -m duogen_core evaluate check ueval runs/ueval --requests ueval.json --likeness": Runs(
        makes=("runs/ueval/results-checks.json",)
    ),
    "python -m duogen_core evaluate report runs/ueval runs/theirs/results-official.json --out report.html": Runs(
        instead={"runs/theirs/results-official.json": "--quiet"}, makes=("report.html",)
    ),
    "python -m duogen_core evaluate compare runs/mine runs/theirs --out compared --endpoint http://127.0.0.1:8000/v1 "
    "--llm qwen3-vl": Parses("needs a judge; tests/core/evaluation/test_pairwise.py has scripted ones"),
    "python -m duogen_core evaluate ratings compared/ratings.json": Parses("needs the file of the command before"),
    "python -m duogen_core evaluate rate runs/mine runs/theirs --out rating --count 50": Parses(
        "needs two runs; tests/core/evaluation/test_rating_page.py makes pages and rates on them"
    ),
    "python -m duogen_core evaluate ratings ratings-Ann.json ratings-Ben.json rating/key.json": Parses("needs raters"),
    "python -m duogen_core evaluate export ueval runs/ueval --requests ueval.json --out submission --name my-model": (
        Runs(makes=("submission/submission.json",))
    ),
    "python -m duogen_core evaluate import ueval submission --requests ueval.json --out runs/imported --name my-model": (
        Runs(makes=("runs/imported/shards/00000.tar",))
    ),
    "python -m duogen_core evaluate run howto --out runs/howto": Runs(
        more=("--limit", "2"), makes=("runs/howto/submission/index.json",)
    ),
    # models/duogen-tiny/README.md
    "python -m duogen_core train vae minutes=45": Runs(
        ("threads=1", "batch=2"), {"minutes=45": "minutes=0.02"}, makes=("runs/vae/export",)
    ),
    "python -m duogen_core train pretrain minutes=30 vision.minutes=17": Runs(
        ("threads=1", "eval_cases=0", "batch=2", "vision.batch=2", "tokenizer_cases=100"),
        {"minutes=30": "minutes=0.02", "vision.minutes=17": "vision.minutes=0.02"},
        makes=("runs/pretrain/export",),
    ),
    "python -m duogen_core train stage1 minutes=350": Runs(
        ("threads=1", "eval_cases=0", "batch=2", "sample_minutes=0"), {"minutes=350": "minutes=0.02"},
        makes=("runs/stage1/export",),
    ),
    "python -m duogen_core train stage2 minutes=480": Runs(
        ("threads=1", "shards=1", "layers=1", "heads=1", "tokens=400", "data=[jsonl:train.jsonl]"),
        {"minutes=480": "minutes=0.02"},
        makes=("runs/stage2/export",),
    ),
    "python -m duogen_core train assemble --out models/my-model --steps 16 --guidance 2.0": Runs(
        makes=("models/my-model/model_index.json",)
    ),
    # ablation.md
    "python -m duogen_core ablation out=runs/ablation steps=1200": Parses(HOURS),
    "python -m duogen_core ablation out=runs/ablation steps=1200 start=2.33 only=[references,guidance,connector]": Parses(HOURS),
    "python -m duogen_core ablation out=runs/ablation-attention steps=800 start=1.5 shards=8 only=[attention]": Parses(HOURS),
    "python -m duogen_core ablation out=runs/ablation-own start=0 minutes=4 lr=1e-3 tokens=4000 cases=24 own=8 "
    "only=[times,loss,data,steps]": Parses(HOURS),
    "python -m duogen_core ablation out=runs/ablation-words steps=300 warmup=30 only=[alignment,draft]": Parses(HOURS),
    # the data engines
    'pip install -e ".[data]"': PIP,
    'pip install -e ".[video]"': PIP,
    'pip install -e ".[hf]"': PIP,
    "python -m duogen_core data web crawl.warc.gz saved-pages/ --out run/": Runs(
        ("--workers", "1"), makes=("run/run.json", "run/shards/00000.tar")
    ),
    "python -m duogen_core data stats run/ --plot yield.png": Runs(makes=("yield.png",)),
    "python -m duogen_core data stats run/": Runs(),
    "python -m duogen_core data view run/": Runs(makes=("run/report.html",)),
    "python -m duogen_core data check webdataset:run/shards": Runs(),
    "python -m duogen_core data web pages.txt saved-pages/ --out run/ --fetch --set fetch.contact=https://example.org/bot":
        Parses("asks hosts of the internet; tests/core/data/web/test_fetch.py does it with hosts on loopback"),
    "python -m duogen_core data dedup run/ --out clean/": Runs(
        ("--workers", "1"), makes=("clean/run.json", "clean/shards/00000.tar")
    ),
    "python -m duogen_core data stats clean/": Runs(),
    "python -m duogen_core data view clean/": Runs(makes=("clean/report.html",)),
    "python -m duogen_core data check webdataset:clean/shards": Runs(),
    f"python -m duogen_core data dialogues run/ --out dialogues/ --base-url {ENDPOINT} --model Qwen3-VL-32B": Runs(
        makes=("dialogues/run.json", "dialogues/shards/00000.tar")
    ),
    "python -m duogen_core data stats dialogues/": Runs(),
    "python -m duogen_core data view dialogues/": Runs(makes=("dialogues/report.html",)),
    "python -m duogen_core data check webdataset:dialogues/shards": Runs(),
    f"python -m duogen_core data synthetic expand run/ --endpoint {ENDPOINT} --llm Qwen3-32B --count 100": Runs(
        ("--taxonomy", "taxonomy"), {"100": "3"}, makes=("run/requests.jsonl",)
    ),
    "python -m duogen_core data synthetic balance run/ --plot balance.png": Runs(
        ("--taxonomy", "taxonomy"), makes=("balance.png",)
    ),
    f"python -m duogen_core data synthetic plan run/ --endpoint {ENDPOINT} --llm Qwen3-32B": Runs(
        ("--taxonomy", "taxonomy", "--limit", "3"), makes=("run/plans.jsonl",)
    ),
    "python -m duogen_core data synthetic draw run/ --painter comfyui --workflow text.json --workflow edit.json": Runs(
        ("--server", PAINTER), makes=("run/draw/shards/00000.tar",)
    ),
    "python -m duogen_core data check webdataset:run/draw/shards": Runs(),
    f"python -m duogen_core data video films/ clip.mp4 --out run/ --endpoint {ENDPOINT} --llm Qwen3-VL-8B": Runs(
        ("--workers", "1"), makes=("run/shards/00000.tar",)
    ),
    "python -m duogen_core data editing magicbrush MagicBrush/ --split train --out edits/": Runs(
        ("--workers", "1"), makes=("edits/shards/00000.tar",)
    ),
    "python -m duogen_core data check webdataset:run/shards webdataset:edits/shards": Runs(),
    # data.md
    "python -m duogen_core data export SPEC --out DIR --to parquet": Runs(
        instead={"SPEC": "jsonl:train.jsonl", "DIR": "exported"}, makes=("exported/00000.parquet",)
    ),
    'python -m duogen_core data check jsonl:train.jsonl "webdataset:shards/*.tar" --json report.json': Runs(
        makes=("report.json",)
    ),
    "python -m duogen_core train stage1 init=Qwen2.5-VL-7B-Instruct data=[jsonl:train.jsonl] eval_data=[jsonl:held-out.jsonl] steps=2000":
        Runs((*SHORT, "batch=2", "eval_cases=1", "bf16=false"), {"steps=2000": "steps=1"}, makes=("runs/stage1/export",)),
    "python -m duogen_core data make sketchbook --out DIR": Runs(("--count", "3"), {"DIR": "made"}, makes=("made/000002",)),
    # finetuning.md
    'python -m duogen_core data make sketchbook --thing "snow globe" --count 200 --out my-guides': Runs(
        instead={"200": "3"}, fresh=("my-guides",), makes=("my-guides/000002/document.json",)
    ),
    "python -m duogen_core train finetune data=my-guides model=duogen-tiny out=runs/snow-globe": Runs(
        ("stage1.steps=1", "stage2.steps=1", "stage1.batch=2", "stage2.tokens=400", "stage2.shards=1", "share=0", "threads=1",
         "stage1.eval_cases=0", "stage1.sample_minutes=0", "stage2.sample_minutes=0"),
        makes=("runs/snow-globe/model/model_index.json",),
    ),
    "python -m duogen_core data check documents:my-guides": Runs(),
    "python -m duogen_core train finetune --help": Runs(),
    'python -m duogen_core generate "How do I draw a snow globe?" --model runs/snow-globe/model --out answer': Runs(
        (*QUICK, "--max-images", "1"), makes=("answer/document.json",)
    ),
    # models.md and convert.md
    "python -m duogen_core convert model.pt model.safetensors": Runs(
        fresh=("model.safetensors",), makes=("model.safetensors",)
    ),
    'python -m duogen_core generate "How do I fold a paper boat?" --out boat --mllm Qwen2.5-VL-7B-Instruct --dit cosmos-predict2.5-2b.safetensors --vae wan_2.1_vae.safetensors':
        Runs((*QUICK, "--max-images", "1", "--size", "64x64"), makes=("boat/document.json",)),
    "python -m duogen_core inspect FILE_OR_FOLDER [FILE_OR_FOLDER …] [--memory 12] [--size 1024x1024] [--references 2] [--tokens 4096] [--json]": Runs(
        instead={"FILE_OR_FOLDER": "models/duogen-tiny", "[FILE_OR_FOLDER": "cosmos-predict2.5-2b.safetensors", "…]": "",
                 "[--memory": "--memory", "12]": "12", "[--size": "--size", "1024x1024]": "1024x1024",
                 "[--references": "--references", "2]": "2", "[--tokens": "--tokens", "4096]": "4096", "[--json]": "--json"},
    ),
    # lora.md
    "python -m duogen_core convert FOLDER lora.safetensors": Runs(
        instead={"FOLDER": "adapter"}, fresh=("lora.safetensors",), makes=("lora.safetensors",)
    ),
    "python -m duogen_core convert model.safetensors folder": Runs(makes=("folder/config.json",)),
    "python -m duogen_core convert folder model.safetensors": Runs(
        fresh=("model.safetensors",), makes=("model.safetensors",)
    ),
    "python -m duogen_core convert tokenizer.pth wan_2.1_vae.safetensors": Runs(
        fresh=("wan_2.1_vae.safetensors",), makes=("wan_2.1_vae.safetensors",)
    ),
    "python -m duogen_core convert Qwen2.5-VL-7B-Instruct qwen.safetensors": Runs(makes=("qwen.safetensors",)),
    "python -m duogen_core convert adapter lora.safetensors": Runs(
        fresh=("lora.safetensors",), makes=("lora.safetensors",)
    ),
    "python -m duogen_core convert Qwen2.5-VL-7B-Instruct qwen.safetensors --quantise fp8": Runs(
        fresh=("qwen.safetensors",), makes=("qwen.safetensors",)
    ),
    "python -m duogen_core convert models/duogen-tiny tiny-int8 --quantise int8": Runs(makes=("tiny-int8/model_index.json",)),
    "python tests/bench/picture_limits.py": Runs(("--cases", "1", "--only", "draw")),
    "python tests/bench/quantised_pictures.py": Runs(("--steps", "1", "--kinds", "int8")),
    # training.md
    "python -m duogen_core train vae|pretrain|stage1|stage2|controlnet [--config FILE|NAME] [name=value ...]": Runs(
        ("--print-config",),
        {"vae|pretrain|stage1|stage2|controlnet": "stage1", "[--config": "--config", "FILE|NAME]": "tiny-stage1",
         "[name=value": "steps=3", "...]": ""},
    ),
    "python -m duogen_core train bundled --out runs/bundled": Parses("15 hours; tests/core/sketchbook/test_bundled.py"),
    "python -m duogen_core train assemble --out models/my-model": Parses("the commands of models/duogen-tiny/README.md run it"),
    "accelerate launch --config_file duogen_core/training/launch/ddp.yaml --num_processes 4 -m duogen_core train stage2 --config my.yaml":
        Parses("several processes; tests/core/training/test_parallel.py runs two"),
    "python -m duogen_core train stage2 --launch ddp --config my.yaml":
        Parses("several processes; tests/core/training/test_parallel.py runs two"),
    "python -m duogen_core train stage1 --launch fsdp --processes 8 --config qwen2.5-vl-7b":
        Parses("8 GPUs; tests/core/training/test_parallel.py runs two processes of the CPU"),
    "torchrun --nproc-per-node 8 -m duogen_core train stage1 --launch fsdp --config qwen2.5-vl-7b":
        Parses("8 GPUs; tests/core/training/test_parallel.py runs four processes of the CPU"),
    "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint NODE:29500 -m duogen_core train stage1 "
    "--launch fsdp --config qwen2.5-vl-7b": Parses("two machines; tests/core/training/test_parallel.py runs one"),
    "sbatch duogen_core/training/launch/slurm.sbatch stage1 --config qwen2.5-vl-7b data=documents:DATA out=SHARED/run":
        Parses("a Slurm cluster; tests/core/training/test_parallel.py runs the file with an srun of its own"),
    "python -m duogen_core train plan cosmos-predict2.5-2b --gpus 1 8 64 --memory 80": Runs(),
    **dict.fromkeys(
        (f"python -m duogen_core train plan {name}{kind}"
         for name in ("qwen2.5-vl-7b", "cosmos-predict2.5-2b", "qwen3-vl-8b", "wan2.1-1.3b") for kind in ("", "-lora")),
        Parses("tests/core/training/test_plan.py compares what it prints with the page"),
    ),
    "python -m duogen_core train stage1 init=MLLM data=[SOURCE, ...] out=runs/stage1 steps=2000": Runs(
        (*SHORT, "batch=2", "eval_cases=0", "bf16=false"),
        {"init=MLLM": "init=Qwen2.5-VL-7B-Instruct", "data=[SOURCE,": "data=[jsonl:train.jsonl,jsonl:held-out.jsonl]",
         "...]": "", "steps=2000": "steps=1"},
        makes=("runs/stage1/export",),
    ),
    "python -m duogen_core train stage1 --help": Runs(),
    "python -m duogen_core train stage2 vae=VAE mllm=MLLM data=[SOURCE, ...] out=runs/stage2 steps=2000": Runs(
        (*SHORT, "shards=1", "layers=1", "heads=1", "tokens=400"),
        {"vae=VAE": "vae=wan_2.1_vae.safetensors", "mllm=MLLM": "mllm=runs/stage1/export",
         "data=[SOURCE,": "data=[jsonl:train.jsonl,jsonl:held-out.jsonl]", "...]": "", "steps=2000": "steps=1"},
        makes=("runs/stage2/export",),
    ),
    "python -m duogen_core train stage2 --help": Runs(),
    "python -m duogen_core train controlnet checkpoint=MODEL data=[SOURCE, ...] out=runs/controlnet steps=2000": Runs(
        ("threads=1", "shards=1", "blocks=1", "tokens=400"),
        {"checkpoint=MODEL": "checkpoint=models/duogen-tiny", "data=[SOURCE,": "data=[jsonl:train.jsonl]", "...]": "",
         "steps=2000": "steps=1"},
        makes=("runs/controlnet/export",),
    ),
    "python -m duogen_core evaluate outlines --controlnet runs/controlnet/export --out outlines.json": Runs(
        ("--samples", "1"), makes=("outlines.json",)
    ),
    # reliability.md
    **dict.fromkeys(
        (
            "python tests/hardening/run.py --json report.json",
            "python tests/hardening/run.py kills --number 200",
            "python tests/hardening/run.py hostile --number 800",
            "python tests/hardening/run.py hostile --only safetensors --case 31 --keep kept/",
            "python tests/hardening/run.py disk --number 3",
            "python tests/hardening/run.py twice --number 3",
            "python tests/hardening/run.py comfyui --number 50",
            "python tests/hardening/run.py docs",
        ),
        Parses("these campaigns; test_campaigns.py runs a share of each"),
    ),
    "python tests/hardening/report.py report.json": Runs(),
    # models/duogen-tiny/README.md
    "python -m duogen_core evaluate sketchbook --out models/duogen-tiny/scores.json --samples 500 --jobs 2": Runs(
        instead={"500": "1", "2": "1", "models/duogen-tiny/scores.json": "scores.json"}, makes=("scores.json",)
    ),
    "python -m duogen_core train controlnet --config tiny-controlnet": Runs(
        ("threads=1", "shards=1", "blocks=1", "tokens=400", "steps=1", "data=[jsonl:train.jsonl]"),
        makes=("runs/controlnet/export",),
    ),
    "python -m duogen_core evaluate outlines --out models/duogen-tiny/controlnet/scores.json": Runs(
        ("--samples", "1"), {"models/duogen-tiny/controlnet/scores.json": "outlines.json"}, makes=("outlines.json",)
    ),
    # the nodes' help
    "python -m duogen_core generate … --seed N": Runs(
        (*QUICK, "--max-images", "1", "--out", "answer"), {"…": "Draw a red star.", "N": "3"}, makes=("answer/document.json",)
    ),
    "python -m duogen_core generate --document FOLDER": Runs(
        (*QUICK, "--max-images", "1", "--out", "answer"), {"FOLDER": "unfinished"}, makes=("answer/document.json",)
    ),
}  # fmt: skip

# Of each block of Python, by its last line: what is put in place of others, so that it takes seconds.
PROGRAMS: dict[str, Mapping[str, str] | Left] = {
    '                copy.write(get("/view", **file))': Left("needs ComfyUI; tests/comfyui/test_outputs.py runs it"),
    "    print(part)": {},
    'mllm = load_mllm("text_encoders/qwen_2.5_vl_7b.safetensors", tokenizer="comfy/text_encoders/qwen25_tokenizer")': {},
    'pixels = draw_prompt(model, "A red house under a large blue star.", Settings(seed=1))': {
        "seed=1": "seed=1, steps=1, size=(64, 64)"
    },
}

# Options and settings of other programs, and words that only look like one.
OTHERS = {
    "tests/hardening": ("--json", "--number", "--only", "--case", "--keep"),
    "accelerate": ("--config_file", "--num_processes"),
    "torchrun": ("--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint"),
    "ray": ("--head", "--address", "--num-cpus"),
    "dev.py": ("--quick", "--exhaustive"),
    "ComfyUI": (
        "--cache-classic",
        "--cache-lru",
        "--cache-none",
        "--preview-method",
        "--disable-metadata",
        "--use-sage-attention",
        "--use-flash-attention",
        "--use-pytorch-cross-attention",
        "--use-split-cross-attention",
        "--use-quad-cross-attention",
        "--max-upload-size",
        "--multi-user",
    ),
    "official scorers of benchmarks": (
        "--output_dir",
        "--input_file",
        "--root",
        "--end",
        "--predict_results_path",
        "--model_type",
        "--task_type",
        "--ground_truth_path",
        "--input_dir",
        "--mode",
        "--model_name",
        "--save_path",
        "--image_filepath_data",
        "--method",
        "--result_img_folder",
        "--basic_edit",
        "--edit_json",
    ),
}
NO_SETTINGS = {
    "name=value": "stands for any",
    "stage2.layers=4": "of a part of train bundled; tests/core/sketchbook/test_bundled.py",
    "rel=sponsored": "of HTML",
    "include_alignment=true": "of a mixture",
    "api.openai.com=OPENAI_API_KEY": "of ComfyUI's settings",
}


@dataclass
class Score:
    page: str
    ran: int = 0
    parsed: int = 0
    left: int = 0
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def unknown() -> list[str]:
    """Commands of the pages that the table does not have, and the other way round."""
    found = []
    for kind, table in ((docs_commands.commands(), COMMANDS), (docs_commands.programs(), PROGRAMS)):
        written = {key_of(each.text): f"{each.page}:{each.line}" for each in kind}
        found += [f"{where}: nothing says how to try: {key}" for key, where in written.items() if key not in table]
        found += [f"stands on no page any more: {key}" for key in table if key not in written]
    return found


def key_of(text: str) -> str:
    """Of a command the whole, of a block its last line."""
    return text.rstrip("\n").rpartition("\n")[2]


def command_options() -> dict[tuple[str, ...], set[str]]:
    """The options of every command of the command line."""
    from duogen_core.cli import COMMANDS as TREE
    from duogen_core.cli import build_parser

    def names(commands: Mapping[str, tuple], path: tuple[str, ...]) -> Any:
        for name, (_, target, *_) in commands.items():
            yield from names(target, (*path, name)) if isinstance(target, dict) else [(*path, name)]

    found = {}
    for path in names(TREE, ()):
        parser: Any = build_parser(path)
        for name in path:
            parser = next(action for action in parser._actions if isinstance(action.choices, dict)).choices[name]
        found[path] = {option for action in parser._actions for option in action.option_strings}
    return found


def unknown_options() -> list[str]:
    """Options that a page names, and that neither its commands nor the scripts it names have."""
    of_commands = command_options()
    others = {option for options in OTHERS.values() for option in options}
    found = []
    for name, text in docs_commands.pages().items():
        known = set(others)
        for path, options in of_commands.items():
            if name == "README.md" or name.startswith("web/") or " ".join(path) in text:
                known |= options
        for script in scripts():
            if script.name in text:
                known |= set(re.findall(r"""["'](--[a-z][a-z0-9-]+)["']""", script.read_text("utf-8")))
        found += [
            f"{each.page}:{each.line}: no command of this page has {each.text}"
            for each in docs_commands.options()
            if each.page == name and each.text not in known
        ]
    return found


NO_CONFIG = {"assemble", "plan", "bundled"}  # of the `train` commands, those without --print-config


def unknown_settings(zygote: Zygote) -> list[str]:
    """Settings that a page names, and that neither a training nor a preset has."""
    from duogen_core.config_text import read_yaml

    rules: dict[str, Any] = {}
    for preset in sorted((ROOT / "duogen_core").rglob("presets/*.yaml")):
        for section, values in read_yaml(preset.read_text("utf-8")).items():
            rules |= {f"{section}.{name}": value for name, value in values.items()}
    trainings = [path for path in command_options() if path[0] in ("train", "ablation") and path[-1] not in NO_CONFIG]
    answers: dict[str, bool] = {}

    def known(text: str) -> bool:
        name = text.partition("=")[0]
        if text in NO_SETTINGS or any(rule == name or rule.endswith(f".{name}") for rule in rules):
            return True
        return any(zygote.run([*path, text, "--print-config"]).code == 0 for path in trainings)

    found = []
    for each in docs_commands.settings():
        if each.text not in answers:
            answers[each.text] = known(each.text)
        if not answers[each.text]:
            found.append(f"{each.page}:{each.line}: neither a training nor a preset has {each.text}")
    return found


def scripts() -> list[Path]:
    """The programs in tests/bench, which the pages name as where their figures come from."""
    return [path for path in sorted((ROOT / "tests" / "bench").glob("*.py")) if "__main__" in path.read_text("utf-8")]


def scripts_answer() -> list[str]:
    """What is wrong with any of them."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return [said for said in threads.map(script_answers, scripts()) if said]


def script_answers(script: Path) -> str:
    """Why `python SCRIPT --help` is no help, from another folder and without the package installed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PATH")}
    with tempfile.TemporaryDirectory() as folder:  # an empty PATH: a script that began to work would find nothing
        done = subprocess.run(
            [sys.executable, script, "--help"], cwd=folder, env={**environment, "PATH": folder, "HOME": folder},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        if done.returncode or "usage:" not in done.stdout:
            return f"{script.name} --help: exit code {done.returncode}, {done.stderr[-200:]!r}"
        return f"{script.name} --help made {os.listdir(folder)}" if os.listdir(folder) else ""


def campaign(names: Sequence[str] = (), zygote: Zygote | None = None, show: Any = lambda _: None) -> list[Score]:
    scores: dict[str, Score] = {}
    with shared(zygote) as forks:
        for each in (*docs_commands.commands(), *docs_commands.programs()):
            scores.setdefault(each.page, Score(each.page))
        for page, score in scores.items():
            if not names or page in names or any(name in page for name in names if name not in scores):
                page_runs(page, score, forks)
                show(score)
        scores["all"] = Score("all", faults=unknown())
        if not names or "settings" in names:
            scores["all"].faults += unknown_options() + unknown_settings(forks)
    if not names or "scripts" in names:
        scores["all"].ran += len(scripts())
        scores["all"].faults += scripts_answer()
    show(scores["all"])
    return [score for score in scores.values() if score.ran + score.parsed + score.left or score.faults]


def page_runs(page: str, score: Score, zygote: Zygote) -> None:
    with tempfile.TemporaryDirectory(prefix="duogen-docs-") as folder, ExitStack() as stack:
        urls = prepare(Path(folder), page, stack)
        done = set()
        written = [each for each in (*docs_commands.commands(), *docs_commands.programs()) if each.page == page]
        for each in sorted(written, key=lambda each: each.line):
            if each.text in done:
                continue
            done.add(each.text)
            if (said := follow(each.text, Path(folder), urls, score, zygote)) is not None and said:
                score.faults.append(f"{page}:{each.line}: {key_of(each.text)}: {said}")


def follow(text: str, folder: Path, urls: Mapping[str, str], score: Score, zygote: Zygote) -> str:
    """Does what the table says; what went wrong."""
    if "\n" in text:
        changes = PROGRAMS.get(key_of(text), {})
        if isinstance(changes, Left):
            score.left += 1
            return ""
        score.ran += 1
        for given, real in changes.items():
            text = text.replace(given, real)
        ended = zygote.run([text], cwd=folder, module="tests.hardening.docs:run_program")
        return f"exit code {ended.code}, {ended.stderr.strip()[-400:]!r}" if ended.code else ""
    entry = COMMANDS.get(text)
    if entry is None:
        return ""  # `unknown` tells
    if isinstance(entry, Left):
        score.left += 1
        return ""
    words = [entry.instead.get(word, word) for word in shlex.split(text)]
    if isinstance(entry, Parses):
        score.parsed += 1
        return parsed(words, folder, zygote)
    score.ran += 1
    for name in entry.fresh:
        place = folder / name
        shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
    words = [word for word in [*words, *(entry.instead.get(word, word) for word in entry.more)] if word]
    for given, real in urls.items():
        words = [word.replace(given, real) for word in words]
    if words[1] == "-m":
        ended = zygote.run(words[3:], cwd=folder, seconds=600)
    else:
        run = subprocess.run([sys.executable, *words[1:]], cwd=folder, capture_output=True, text=True, timeout=600)
        ended = Ended(run.returncode, 0, 0, run.stdout, run.stderr, (), ())
    if ended.code not in entry.codes or "Traceback" in ended.stderr:
        return f"exit code {ended.code}, {ended.stderr.strip()[-400:]!r}"
    missing = [name for name in entry.makes if not (folder / name).exists()]
    return f"{', '.join(missing)} is not there afterwards" if missing else ""


def parsed(words: list[str], folder: Path, zygote: Zygote) -> str:
    if words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        own, words = words[2 : words.index("-m")], words[words.index("-m") - 1 :]
        if not (ROOT / own[own.index("--config_file") + 1]).is_file():
            return f"{own} names no file"
        launch_command_parser().parse_args([*own, "x"])
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        own, words = words[1 : words.index("-m")], words[words.index("-m") - 1 :]
        get_args_parser().parse_args([*own, "x"])
    if words[0] == "sbatch":
        if not (ROOT / words[1]).is_file():
            return f"{words[1]} is not there"
        words = ["python", "-m", "duogen_core", "train", *words[2:]]
    if words[1] == "tests/hardening/run.py":
        ended = zygote.run(words[2:], cwd=folder, module="tests.hardening.docs:parse_campaign")
    elif words[3] in ("train", "ablation") and not NO_CONFIG & set(words):
        ended = zygote.run([*words[3:], "--print-config"], cwd=folder)
    else:
        ended = zygote.run(words[3:], cwd=folder, module="tests.hardening.docs:parse_only")
    return "" if ended.code == 0 else f"exit code {ended.code}, {ended.stderr.strip()[-400:]!r}"


def run_program(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "the_block.py")
        program.write_text(arguments[0], "utf-8")
        runpy.run_path(str(program), run_name="__main__")
    return 0


def parse_campaign(arguments: list[str]) -> int:
    from tests.hardening import run

    run.build_parser().parse_args(arguments)
    return 0


def parse_only(arguments: list[str]) -> int:
    from duogen_core.cli import build_parser
    from duogen_core.errors import DuoGenError

    try:
        build_parser(arguments).parse_args(arguments)
    except DuoGenError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


# ---------------------------------------------------------------- what the pages speak of


def prepare(folder: Path, page: str, stack: ExitStack) -> dict[str, str]:
    """The files of a page in its scratch folder; addresses that stand for those on the page."""
    (folder / "models").mkdir()
    (folder / "models" / "duogen-tiny").symlink_to(ROOT / "models" / "duogen-tiny")
    for name in ("duogen_core", "tests"):
        (folder / name).symlink_to(ROOT / name)
    from duogen_core.document import Document
    from duogen_core.document.store import save_document
    from tests.core.sample_sets import guide, members, write_jsonl, write_tar

    for name in ("train.jsonl", "held-out.jsonl"):
        write_jsonl(folder / name, [guide(k, (32, 32)) for k in range(4)])
    (folder / "my.yaml").write_text("steps: 3\n")
    urls: dict[str, str] = {}
    if page == "documents.md":
        save_document(Document(guide(1, (32, 32)).turns), folder / "answer")
    if page == "command-line.md":
        circle(folder / "drawing.png")
    if page == "data.md":
        (folder / "shards").mkdir()
        write_tar(folder / "shards" / "a.tar", [members("x", guide(7))])
    if page in ("command-line.md", "own-models.md", "convert.md", "lora.md", "models.md", "data.md", "training.md"):
        models(folder)
    if page == "models.md":
        one_file(folder)
    if page == "reliability.md":
        found = [{"name": "generate", "kills": 3, "finished_files": 5, "faults": []}]
        report = {"kills": {"commit": "abc", "cores": 2, "minutes": 1.0, "found": found}}
        (folder / "report.json").write_text(json.dumps(report))
    if page.startswith("web/docs/"):
        save_document(Document(guide(1, (32, 32)).turns[:1]), folder / "unfinished")
    if page in ("data-web.md", "data-dialogues.md"):
        web(folder)
    if page == "data-dedup.md":
        planted(folder)
    if page == "data-dialogues.md":
        urls[ENDPOINT] = dialogues(folder, stack)
    if page == "data-synthetic.md":
        urls |= synthetic(folder, stack)
    if page == "evaluation.md":
        from tests.core.evaluation.benchmarks.layout_ueval import REQUESTS, write_requests, write_results

        write_requests(folder)
        write_results(folder, [entry[0] for entry in REQUESTS])
    if page == "data-pairs.md":
        urls[ENDPOINT] = videos(folder, stack)
    return urls


def circle(path: Path) -> None:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (128, 128), (238, 228, 206))
    ImageDraw.Draw(image).ellipse((44, 44, 84, 84), fill=(220, 50, 47))
    image.save(path)


def models(folder: Path) -> None:
    """Small ones under the names of the published ones, in their layouts."""
    import torch
    from safetensors.torch import load_file, save_file

    from duogen_core.weights.cosmos_keys import to_official
    from tests.comfyui import random_checkpoint
    from tests.comfyui.published_files import transformer

    whole = random_checkpoint.write(folder / "tiny")
    shutil.copytree(whole / "mllm", folder / "Qwen2.5-VL-7B-Instruct")
    shutil.copy(whole / "vae" / "wan_vae.safetensors", folder / "wan_2.1_vae.safetensors")
    torch.save(load_file(folder / "wan_2.1_vae.safetensors"), folder / "tokenizer.pth")
    dit = transformer(crossattn_proj_in_channels=2 * 64)
    official = {to_official(name): tensor.contiguous() for name, tensor in dit.state_dict().items()}
    torch.save(official, folder / "model.pt")
    save_file(official, folder / "cosmos-predict2.5-2b.safetensors")
    adapter(folder / "adapter", whole)


def one_file(folder: Path) -> None:
    """A language model as ComfyUI has it: one file of weights, in the published shapes, and a tokenizer elsewhere."""
    from safetensors.torch import save_file

    from tests.core.mllm_families import lively

    sizes = {"hidden_size": 256, "vision_hidden_size": 256, "vision_heads": 16, "patch_size": 14}
    mllm = lively("qwen2_5_vl", mrope_section=(16, 24, 24), **sizes)
    (folder / "text_encoders").mkdir()
    weights = {name: tensor.clone() for name, tensor in mllm.model.state_dict().items()}
    save_file(weights, folder / "text_encoders" / "qwen_2.5_vl_7b.safetensors")
    mllm.tokenizer.save_pretrained(folder / "comfy" / "text_encoders" / "qwen25_tokenizer")


def adapter(folder: Path, whole: Path) -> None:
    """PEFT's folder of a DiT, as stage 2 with LoRA writes it."""
    from duogen_core.checkpoint import load_checkpoint
    from duogen_core.training.lora import DIT_TARGETS, LoraSettings, add_lora, save_dit_adapter

    dit = load_checkpoint(whole).dit
    add_lora(dit, LoraSettings(rank=2), within="transformer_blocks", usual=DIT_TARGETS)
    save_dit_adapter(dit, folder)


def web(folder: Path) -> None:
    from tests.hardening.subjects import archives

    with ExitStack() as stack:
        archives("", folder, stack)  # crawl.warc.gz and site/
    (folder / "site").rename(folder / "saved-pages")
    (folder / "pages.txt").write_text("https://example.org/a.html\n")


def planted(folder: Path) -> None:
    from duogen_core.data.runs.run import begin, work
    from tests.core.dedup_pages import Planted

    engine = Planted(4, 30)
    list(work(begin(folder / "run", engine, 15), engine))


def dialogues(folder: Path, stack: ExitStack) -> str:
    from tests.core.dialogue_pages import write_pages
    from tests.core.endpoint_server import endpoint_server
    from tests.core.scripted_writer import Writer

    write_pages(folder / "run", 3)
    return stack.enter_context(endpoint_server(Writer())).url


def synthetic(folder: Path, stack: ExitStack) -> dict[str, str]:
    from tests.core.comfyui_server import comfyui_server, drawn
    from tests.core.data.synthetic.test_draw import EDIT, NODES
    from tests.core.synthetic_writer import write_taxonomy, writing_server

    write_taxonomy(folder / "taxonomy")
    for name, nodes in (("text", NODES), ("edit", EDIT)):
        (folder / f"{name}.json").write_text(json.dumps(nodes))
    server, painter = stack.enter_context(writing_server()), stack.enter_context(comfyui_server(drawn))
    return {ENDPOINT: server.url, PAINTER: painter.url}


def videos(folder: Path, stack: ExitStack) -> str:
    import numpy as np
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    from tests.core.clips import scene, write_video
    from tests.core.data.pairs.test_video_run import SAID
    from tests.core.endpoint_server import completion, endpoint_server

    write_video(folder / "films" / "a.mp4", scene(1, 30))
    write_video(folder / "clip.mp4", scene(2, 30))

    def png(pixels: np.ndarray) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": "0.png"}

    before, _, after, *_ = scene(3, 20)
    row = {"img_id": "12", "turn_index": 1, "source_img": png(before), "mask_img": png(before),
           "instruction": "move the square", "target_img": png(np.roll(after, 25, axis=1))}  # fmt: skip
    (folder / "MagicBrush" / "data").mkdir(parents=True)
    table = pyarrow.Table.from_pylist([row])
    pyarrow.parquet.write_table(table, folder / "MagicBrush" / "data" / "train-00000-of-00001.parquet")
    return stack.enter_context(endpoint_server(completion(json.dumps(SAID)))).url
