"""Fine-tunes a DuoGen model on documents of your own: both stages, then one checkpoint.

    python -m duogen_core train finetune data=my-documents model=duogen-tiny out=runs/mine

Stage 1 teaches the MLLM the words and where a picture is due; stage 2 teaches connector and DiT the pictures, from the
states of the MLLM as stage 1 left it. In both, `share` of what is seen is `replay`, data of the kind the model was
trained on, so that it keeps what it could. The vision tower, the tokenizer and the VAE stay as they are.
Out: <out>/model, a checkpoint like the one it began with; <out>/stage1 and <out>/stage2, the run folders. Each stage
can be stopped; the same command continues.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from duogen_core.checkpoint import (
    DEFAULT_MODEL,
    check_checkpoint,
    load_checkpoint,
    read_config,
    resolve_model,
    save_checkpoint,
    vae_path,
)
from duogen_core.connector import Connector
from duogen_core.data.sources import (
    Sample,
    Spec,
    open_source,
    parse_specs,
)
from duogen_core.dit.loading import load_dit
from duogen_core.errors import DuoGenError
from duogen_core.mllm.loading import load_mllm
from duogen_core.training import stage1, stage2
from duogen_core.training.assemble import RECORD
from duogen_core.training.checkpoints import reason, write_text
from duogen_core.training.command import add_arguments_for, output_folder
from duogen_core.training.configuration import (
    ConfigError,
    TrainingError,
    by_todays_names,
    find_config,
    load_config,
    plain,
    to_yaml,
)
from duogen_core.training.data import world
from duogen_core.training.distributed import started
from duogen_core.training.precision import bf16_products
from duogen_core.training.run import Run

RECIPE = "finetune.json"
LOOKED_AT = 2000  # documents, before anything is trained
# Settings of stage 2, and what the configs of a checkpoint's parts call them.
DIT = {"attention": "attention", "references": "references"}
CONNECTOR = {"connector_layers": "layers", "drop": "drop"}


@dataclass(kw_only=True)
class Stage1Settings(stage1.Stage1Config):
    fixed: ClassVar[Mapping[str, str]] = {
        "out": "<out>/stage1; give out",
        "init": "the MLLM of the model; give model",
        "data": "put together from data and replay; give those",
        "seed": "that of the whole; give seed",
        "threads": "that of the whole; give threads",
        "weights": "for Sketchbook without `data`; here give replay as a source with families",
        "vision_families": "for a vision tower that learns from Sketchbook, and here it stays as it is",
    }
    steps: int | None = 240
    warmup: int = 20
    lr: float = 3e-4
    muon_lr: float = 5e-4
    eval_cases: int = 0
    sample_minutes: float = 3.0


@dataclass(kw_only=True)
class Stage2Settings(stage2.Stage2Config):
    fixed: ClassVar[Mapping[str, str]] = {
        "out": "<out>/stage2; give out",
        "init": "the DiT and connector of the model; give model",
        "vae": "the VAE of the model; give model",
        "mllm": "what stage 1 makes",
        "data": "put together from data and replay; give those",
        "seed": "that of the whole; give seed",
        "threads": "that of the whole; give threads",
        "families": "for Sketchbook without `data`; here give replay as a source with families",
        **dict.fromkeys(
            ("dit", "layers", "heads", "patch", "cross_width", "attention", "references", "connector_layers", "drop"),
            "a property of the model's weights, which fine-tuning keeps; train stage2 makes new ones",
        ),
    }
    max_side: int | None = None  # None: the model's own
    steps: int | None = 400
    warmup: int = 20
    lr: float = 1e-3
    ema: float = 0.99
    single_image_weight: float = 1.0  # as often as it stands in the mixture, or `share` would not be kept
    eval_cases: int = 0
    shards: int = 3
    shift: float | None = None  # None: as the checkpoint's own stage 2, or else as it is sampled
    unshifted_share: float | None = None  # None: as the checkpoint's own stage 2, or else 0
    sample_minutes: float = 3.0


@dataclass(kw_only=True)
class FinetuneConfig:
    command: ClassVar[str] = "finetune"
    data: Any = None  # your documents: a folder of them, or sources as of `data check`
    model: str = DEFAULT_MODEL  # the checkpoint to start from, by name or path
    out: Path = Path("runs/finetune")
    replay: Any = "sketchbook"  # what the model was trained on, as sources; for other checkpoints give their own
    share: float = 0.5  # of replay in what is seen, from 0 to below 1
    seed: int = 0
    threads: int | None = None  # CPU threads; None: torch's own choice
    stage1: Stage1Settings = field(default_factory=Stage1Settings)
    stage2: Stage2Settings = field(default_factory=Stage2Settings)

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"'share' is {self.share}; expected a share of replay from 0 to below 1.")
        for name in ("stage1", "stage2"):
            if (lora := getattr(self, name).lora) and not lora.merge:
                raise ConfigError(f"The checkpoint holds whole models; leave {name}.lora.merge at true.")


# ---------------------------------------------------------------- what is learnt from


def sources_of(value: Any, name: str) -> list[Spec]:
    """Sources as `data check` takes them; a folder or a file alone is one too."""
    if value is None or value == "" or value == []:
        raise ConfigError(f"No documents are given; expected {name}=DIR, a folder of document folders.")
    given = value if isinstance(value, list) else [value]
    return parse_specs([source_text(each) for each in given])


def source_text(value: Any) -> Any:
    if not isinstance(value, str) or not Path(value).expanduser().exists():
        return value
    kind = {".jsonl": "jsonl", ".tar": "webdataset"}.get(Path(value).suffix, "documents")
    return f"{kind}:{value}"


def mixed(own: Sequence[Spec], replay: Sequence[Spec], share: float, families: Mapping[str, float]) -> list[dict]:
    """Both as one list of sources: `share` of the draws are replay. Sketchbook comes with the families of the stage."""
    if share == 0:
        return [entry(spec, spec.weight, families) for spec in own]
    parts = ((own, 1 - share), (replay, share))
    return [
        entry(spec, part * spec.weight / sum(each.weight for each in specs), families)
        for specs, part in parts
        for spec in specs
    ]


def entry(spec: Spec, weight: float, families: Mapping[str, float]) -> dict[str, Any]:
    options = dict(spec.options) | ({"alignment": True} if spec.alignment else {})
    if spec.kind == "sketchbook":
        options.setdefault("families", dict(families))
    return {"source": str(spec), "weight": round(weight, 6), **options}


def look_over(own: Sequence[Spec], say: Callable[[str], None], max_side: int) -> str:
    """Reads the documents before anything is trained; a DuoGenError if they cannot teach a picture. Returns the first
    request. max_side: pixels; what is larger will be made smaller, which is said."""
    good, drawn, bad, request, large = 0, 0, [], "", 0
    for source in map(open_source, own):
        for found in source.look(LOOKED_AT) or map(source.read, range(LOOKED_AT)):
            if not isinstance(found, Sample):
                bad.append(found.sentence)
                continue
            good += 1
            large += any(max(picture.size) > max_side for picture in found.document.pictures)
            turns = found.document.turns
            drawn += sum(len(turn.pictures) for turn in turns if turn.role == "assistant")
            request = request or next((t.text.strip() for t in turns if t.role == "user" and not t.pictures), "")
    if not good:
        raise DuoGenError(f"None of the {len(bad)} documents can be used; the first one: {bad[0]}")
    if not drawn:
        raise DuoGenError(
            f"None of the {good} documents has an image in an assistant turn, so there is nothing to learn to draw; "
            "for words alone use train stage1."
        )
    say(f"{good:,} documents with {drawn:,} images to draw.")
    if large:
        say(
            f"{large:,} of them have images larger than {max_side} pixels, which are made smaller for stage 2; to "
            "learn them as they are, give a larger stage2.max_side."
        )
    if bad:
        say(f"{len(bad)} of {good + len(bad)} documents cannot be used and are passed over; the first one: {bad[0]}")
        say("`data check` names all of them.")
    return request


# ---------------------------------------------------------------- the run


def train(config: FinetuneConfig) -> Run:
    say = partial(print, flush=True)  # also into a pipe or a file, before the first stage has anything to print
    base = resolve_model(config.model)
    check_checkpoint(base)
    own = sources_of(config.data, "data")
    replay = sources_of(config.replay, "replay") if config.share else []
    check_out(config, base)
    config = settled(config, base)
    say(f"Fine-tuning {config.model}, {config.share:.0%} of it replay of {', '.join(map(str, replay)) or 'nothing'}.")
    request = look_over(own, say, config.stage2.max_side)
    write_recipe(config, base)

    words = replace(
        config.stage1,
        out=config.out / "stage1",
        init=base / "mllm",
        seed=config.seed,
        data=mixed(own, replay, config.share, world().mixtures["replay"]),
    )
    say(f"\nStage 1 of 2: the MLLM learns the words ({words.out}).")
    done = stage1.train(words)
    if done.interrupted:
        return done
    drawn = {name: world().mixtures["replay"][name] for name in world().mixtures["stage2"]}
    pictures = replace(
        config.stage2,
        out=config.out / "stage2",
        init=base,
        vae=vae_path(base),
        mllm=words.out / "export",
        seed=config.seed,
        data=mixed(own, replay, config.share, drawn),
        **kind_of(base),
    )
    say(f"\nStage 2 of 2: connector and DiT learn the images ({pictures.out}).")
    done = stage2.train(pictures)
    if done.interrupted:
        return done
    model = put_together(config, base)
    say(f"\nThe fine-tuned model: {model}")
    say(f"Try it: python -m duogen_core generate {json.dumps(request or 'Hello!')} --model {model} --out answer")
    return done


def check_out(config: FinetuneConfig, base: Path) -> None:
    """The folder is new, or of a fine-tuning of the same model on the same data: stages already done are kept."""
    out = config.out
    if out.exists() and not out.is_dir():
        raise DuoGenError(f"{out} is a file; give another out=DIR.")
    if base.resolve().is_relative_to(out.resolve()):
        raise DuoGenError(f"The model {base} lies in {out}, the folder to write; give another out=DIR.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        before = json.loads((out / RECIPE).read_text("utf-8"))
    except (OSError, ValueError):
        raise DuoGenError(f"{out} has other things in it than a fine-tuning; give another out=DIR.") from None
    now = recipe(config, base)
    changed = [f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in now if before.get(name) != now[name]]
    if changed:
        raise DuoGenError(f"{out} is another fine-tuning: {'; '.join(changed)}. Give another out=DIR.")


def recipe(config: FinetuneConfig, base: Path) -> dict[str, Any]:
    """What must not change between two sessions of one fine-tuning."""
    values = plain(config)
    return {"model": str(base.resolve())} | {name: values[name] for name in ("data", "replay", "share", "seed")}


def write_recipe(config: FinetuneConfig, base: Path) -> None:
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        write_text(config.out / RECIPE, json.dumps(recipe(config, base), indent=2) + "\n")
    except OSError as error:
        raise DuoGenError(f"The folder {config.out} cannot be written to: {reason(error)}.") from None


def put_together(config: FinetuneConfig, base: Path) -> Path:
    """The checkpoint it began with, with the parts that were trained, named like the folder of the run."""
    trained = config.out / "stage2" / "export"
    start = load_checkpoint(base)
    picture = start.config.picture
    max_side = max(picture.max_side, config.stage2.max_side or 0)
    components = replace(
        start,
        mllm=load_mllm(config.out / "stage1" / "export"),
        connector=Connector.from_pretrained(trained / "connector"),
        dit=load_dit(trained / "dit"),
        # drawn as large as it was trained for; what the model was trained for before stays
        config=replace(start.config, name=config.out.resolve().name, picture=replace(picture, max_side=max_side)),
    )
    model = save_checkpoint(components, config.out / "model")
    for part in ("stage1", "stage2"):
        record = model / "training" / part
        record.mkdir(parents=True, exist_ok=True)
        for name in RECORD:
            if (config.out / part / name).is_file():
                shutil.copyfile(config.out / part / name, record / name)
    shutil.copyfile(config.out / RECIPE, model / "training" / RECIPE)
    return model


def kind_of(base: Path) -> dict[str, Any]:
    """Settings of stage 2 that must be those of the checkpoint it goes on from."""
    dit, connector = (json.loads((base / part / "config.json").read_text("utf-8")) for part in ("dit", "connector"))
    found = {name: dit[theirs] for name, theirs in DIT.items() if theirs in dit}
    return found | {name: connector[theirs] for name, theirs in CONNECTOR.items() if theirs in connector}


def settled(config: FinetuneConfig, base: Path) -> FinetuneConfig:
    """The settings with those of the model where none are given: what will be used."""
    max_side = config.stage2.max_side or read_config(base).picture.max_side
    return replace(
        config,
        stage1=replace(config.stage1, probe_weight=config.stage1.probe_weight or 0.0),
        stage2=replace(config.stage2, max_side=max_side, **times_of(base, config.stage2)),
    )


def times_of(base: Path, config: Stage2Settings) -> dict[str, float]:
    """Which times stage 2 learns at: as set, or as the checkpoint's last stage 2 did, or as it is sampled."""
    given = {name: value for name in ("shift", "unshifted_share") if (value := getattr(config, name)) is not None}
    found = {"shift": read_config(base).sampling.shift, "unshifted_share": 0.0}
    for record in sorted((base / "training").glob("*stage2/config.json"))[-1:]:
        try:
            before = by_todays_names(json.loads(record.read_text("utf-8"))["config"])
            found |= {name: float(before[name]) for name in found if name in before}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise DuoGenError(f"{record} is not the record of a training; repair or delete it.") from None
    return found | given


# ---------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments_for(parser, FinetuneConfig)


def run(args: argparse.Namespace) -> int:
    file = find_config(args.config, "finetune") if args.config else None
    config = load_config(FinetuneConfig, file, args.settings)
    if args.print_config:
        print(to_yaml(settled(config, resolve_model(config.model))), end="")
        return 0
    if started() > 1:
        raise TrainingError("train finetune runs in one process; start it without a launcher.")
    if config.threads:
        torch.set_num_threads(config.threads)
    with output_folder(config.out), bf16_products():
        done = train(config)
    if done.interrupted:
        print(f"Stopped at step {done.step} of {done.folder.name}. The same command continues from there.")
        return 130
    return 0
