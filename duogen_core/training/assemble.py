"""Puts the trained parts together as one checkpoint, with the record of how each was trained beside the weights.

    python -m duogen_core train assemble --vae runs/vae --stage1 runs/stage1 --stage2 runs/stage2 --out models/my-model

In:  the run folders of vae.py, stage1.py and stage2.py (their export/ folders hold the weights), or in place of the
     first two the folder of a VAE or an MLLM itself, such as models/duogen-tiny/vae.
Out: the checkpoint folder, plus the record in training/<part>: settings, metrics, plots; of the pre-training's run too,
where it is found.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from duogen_core.checkpoint import (
    CheckpointConfig,
    Components,
    PictureSize,
    save_checkpoint,
)
from duogen_core.connector import Connector
from duogen_core.dit.loading import load_dit
from duogen_core.errors import DuoGenError
from duogen_core.mllm.loading import load_mllm
from duogen_core.sampling import Sampling
from duogen_core.vae import PictureVae

RECORD = ("config.json", "metrics.jsonl", "loss.png", "scores.png")


def assemble(
    vae: Path,
    stage1: Path,
    stage2: Path,
    out: Path,
    config: CheckpointConfig,
    pretrain: Path | None = None,
    half: Sequence[str] = (),
) -> Path:
    """Returns `out`. half: parts ("dit", "vae") whose weights are stored in fp16; they are read into float32."""
    trained = {}
    for run_folder in (vae, stage1, stage2):
        trained[run_folder] = run_folder / "export"
        if not trained[run_folder].is_dir() and run_folder != stage2 and any(run_folder.glob("*.safetensors")):
            trained[run_folder] = run_folder
        if not trained[run_folder].is_dir():
            raise DuoGenError(f"{run_folder} has no export/ folder: train that part to its end first.")
    decoder = PictureVae.from_pretrained(trained[vae])
    config = replace(config, picture=replace(config.picture, step=decoder.size_step))
    components = Components(
        mllm=load_mllm(trained[stage1]),
        connector=Connector.from_pretrained(trained[stage2] / "connector"),
        dit=load_dit(trained[stage2] / "dit"),
        vae=decoder,
        config=config,
    )
    for part in half:
        components.modules[part].half()
    save_checkpoint(components, out)
    runs = {"vae": vae, "stage1": stage1, "stage2": stage2}
    runs = {part: folder for part, folder in runs.items() if trained[folder] != folder}
    if pretrain is not None and pretrain.is_dir():
        runs |= {"pretrain": pretrain, "pretrain/vision": pretrain / "vision"}
    for part, run_folder in runs.items():
        record = out / "training" / part
        record.mkdir(parents=True, exist_ok=True)
        for name in RECORD:
            if (run_folder / name).is_file():
                shutil.copyfile(run_folder / name, record / name)
    return out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    record = "the pre-training, whose record is kept if it is there"
    for name, what in (("vae", "the VAE"), ("pretrain", record), ("stage1", "stage 1"), ("stage2", "stage 2")):
        itself = {"vae": ", or the folder of a VAE", "stage1": ", or the folder of an MLLM"}.get(name, "")
        about = f"run folder of {what}{itself}; default: %(default)s"
        add(f"--{name}", type=Path, default=Path(f"runs/{name}"), metavar="DIR", help=about)
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the model to write")
    about = "sampling steps an image where nothing else is asked for; default: %(default)s"
    add("--steps", type=int, default=Sampling.steps, metavar="N", help=about)
    add(
        "--guidance",
        type=float,
        default=Sampling.guidance,
        metavar="G",
        help="guidance, likewise; default: %(default)s",
    )
    about = "shift of the sampling schedule, likewise; default: %(default)s"
    add("--shift", type=float, default=3.0, metavar="S", help=about)
    about = "parts whose weights are stored in half precision, which halves their files; default: none"
    add("--half", nargs="+", choices=("dit", "vae"), default=(), metavar="PART", help=about)
    parser.set_defaults(locks=lambda args: [args.out])


def run(args: argparse.Namespace) -> int:
    sampling = Sampling(steps=args.steps, guidance=args.guidance, shift=args.shift)
    config = CheckpointConfig(args.out.name, sampling, PictureSize())
    print(assemble(args.vae, args.stage1, args.stage2, args.out, config, args.pretrain, args.half))
    return 0
