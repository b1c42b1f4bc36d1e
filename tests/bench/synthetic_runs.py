"""The synthetic engine at the size of the paper's set, and under kills; servers on loopback stand in for the models.

    python tests/bench/synthetic_runs.py scale [--count 100]      151 subcategories, as many requests each
    python tests/bench/synthetic_runs.py kills [--kills 20]       plan and draw with kill -9 at random moments

scale: processor time of everything but the model (near-duplicates, rules, files), and the memory of it. A part of what
the stand-in writes is planted: every tenth request is an earlier one with a word changed. kills: `plan` and `draw` are
killed in turn until each has had its share, finished, and compared with an undisturbed run, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from duogen_core.data.runs.presets import load_preset  # noqa: E402
from duogen_core.data.synthetic import balance  # noqa: E402
from duogen_core.data.synthetic.expand import Expansion  # noqa: E402
from duogen_core.data.synthetic.requests import load_taxonomy  # noqa: E402
from duogen_core.data.text import word_pairs  # noqa: E402
from tests.core.comfyui_server import comfyui_server, drawn  # noqa: E402
from tests.core.synthetic_writer import client_of, writer, writing_server  # noqa: E402

NODES = {
    "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "${prompt}"}},
    "2": {"class_type": "KSampler", "inputs": {"seed": "${seed}"}},
    "3": {"class_type": "PreviewImage", "inputs": {}},
}
EDIT = {**NODES, "4": {"class_type": "LoadImage", "inputs": {"image": "${earlier_1}"}}}


def scale(count: int, folder: Path) -> dict[str, object]:
    taxonomy = load_taxonomy()
    words = sorted({word for seed in taxonomy.seeds for word in seed.strip(".").split()})
    rng, earlier, planted, lock = random.Random(0), [], set(), threading.Lock()

    def write(body) -> str:
        with lock:
            texts = []
            for _ in range(20):
                if earlier and rng.random() < 0.1:
                    text = rng.choice(earlier).split()
                    text[rng.randrange(len(text))] = rng.choice(words)
                    planted.add(" ".join(text))
                else:
                    text = ["Show", *rng.sample(words, rng.randint(12, 24))]
                    earlier.append(" ".join(text))
                texts.append(" ".join(text))
            return json.dumps({"requests": texts})

    preset = load_preset("synthetic", settings=["request.max_same_subject=1.0"])  # random words have no subject
    expansion = Expansion(
        folder, taxonomy, preset, lambda: client_of(write, folder / "answers.jsonl"), count, threads=1
    )
    started, cpu = time.perf_counter(), time.process_time()
    for _ in expansion.run():
        pass
    spent = time.process_time() - cpu, time.perf_counter() - started
    found = balance.survey(expansion.requests, taxonomy)
    return {
        "requests": found.total,
        "planted_and_judged": sum(each["text"] in planted for each in expansion.log),
        "planted_and_kept": sum(each.text in planted for each in expansion.requests),
        "near_duplicates_left": left_over([each.text for each in expansion.requests], preset),
        "refused": expansion.refused,
        "evenness": found.to_json()["evenness_subcategories"],
        "processor_seconds": round(spent[0], 1),
        "seconds": round(spent[1], 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def left_over(texts: list[str], preset) -> int:
    """Pairs that are near after all, found another way: every two texts that share a rare word are compared."""
    grams = [word_pairs(text) for text in texts]
    places: dict[object, list[int]] = {}
    for index, gram in enumerate(grams):
        for pair in gram:
            places.setdefault(pair, []).append(index)
    pairs = {both for found in places.values() if len(found) < 100 for both in combinations(found, 2)}
    near = preset.request["max_same_wording"]
    return sum(len(grams[a] & grams[b]) >= near * len(grams[a] | grams[b]) for a, b in pairs)


def results(folder: Path) -> dict[str, bytes]:
    files = [
        folder / "plans.jsonl",
        *(path for name in ("shards", "logs") for path in (folder / "draw" / name).iterdir()),
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kills(count: int, folder: Path, requests: int) -> dict[str, object]:
    def slowly(function):
        def slow(value):
            time.sleep(random.uniform(0.02, 0.1))
            return function(value)

        return slow

    for name, nodes in (("text", NODES), ("edit", EDIT)):
        (folder / f"{name}.json").write_text(json.dumps(nodes))
    workflows = [f"--workflow={folder / name}.json" for name in ("text", "edit")]
    done, whole, parts = 0, folder / "whole", folder / "parts"
    with writing_server(slowly(writer)) as llm, comfyui_server(slowly(drawn)) as painter:

        def commands(out: Path) -> list[list[str]]:
            start = [sys.executable, "-m", "duogen_core", "data", "synthetic"]
            plan = [
                *start,
                "plan",
                str(out),
                "--endpoint",
                llm.url,
                "--llm",
                "tiny",
                "--limit",
                str(requests),
                "--quiet",
            ]
            draw = [
                *start,
                "draw",
                str(out),
                "--painter",
                "comfyui",
                "--server",
                painter.url,
                "--shard",
                "4",
                *workflows,
            ]
            return [plan, [*draw, "--quiet"]]

        for command in commands(whole):
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        asked, painted = len(llm.asked), len(painter.queued)
        for index, command in enumerate(commands(parts)):
            server = (llm.asked, painter.queued)[index]
            while done < count * (index + 1) // 2:
                child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
                before = len(server)
                while child.poll() is None and len(server) == before:  # it works now; its start is not what is tested
                    time.sleep(0.01)
                time.sleep(random.uniform(0, 0.4))
                if child.poll() is not None:
                    break  # it was finished before the kill
                child.kill()
                child.wait()
                done += 1
                print(
                    f"{done} kills, {len(llm.asked) - asked} asked, {len(painter.queued) - painted} painted", flush=True
                )
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    left = [path.name for path in parts.rglob("*duogen-tmp")]
    return {
        "kills": done,
        "same_bytes": results(whole) == results(parts),
        "files": len(results(whole)),
        "left_behind": left,
        "answers": {"undisturbed": asked, "killed": len(llm.asked) - asked},
        "pictures": {"undisturbed": painted, "killed": len(painter.queued) - painted},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("scale", "kills"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--requests", type=int, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = scale(args.count, folder) if args.what == "scale" else kills(args.kills, folder, args.requests)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
