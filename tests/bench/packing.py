"""What packing gains: a step of stage 2 on the same documents, one by one, batched by shape, and in one pack.

Also `buckets`: batches as large as the pack, each filled with documents of one of its shapes (seconds a frame, the mean
over the pack's frames). That needs many documents of every shape; a batch then holds no other one.

    python tests/bench/packing.py [--frames 48] [--rounds 7] [--threads 1] [--bf16] [--device cuda]

Documents have the sizes, counts and text lengths of Sketchbook (or `mixed`: every picture of another size, as in
documents of photos), and random numbers inside; connector and DiT have the bundled model's sizes. Forward and backward;
the three ways take turns and the quickest round of each counts (process time on a CPU). Their losses must be equal.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from random import Random

import checkout  # noqa: F401
import torch

from duogen_core.sketchbook.source import SketchbookWorld, drawn_case
from duogen_core.training import stage2
from duogen_core.training.flow import FlowLoss, FlowSample, FlowSettings, sample_of
from duogen_core.training.prepared import Prepared

HIDDEN, LAYERS = 192, 5  # of the bundled MLLM
SIDES = (8, 10, 12, 14, 16, 18, 20, 24)  # of latents


def sketchbook_document(rng: Random) -> Prepared:
    """A training case; about a token for every four letters, and 16 for a picture."""
    pictures, ends, segments, drawn, tokens = [], [], [], [], 4
    for turn in drawn_case(rng, SketchbookWorld.mixtures["stage2"]).document.turns:
        start = tokens
        for part in turn.parts:
            if hasattr(part, "text"):
                start, tokens = tokens, tokens + max(1, len(part.text) // 4)
                continue
            mine = turn.role == "assistant"
            drawn += [len(pictures)] if mine else []
            ends.append(tokens)
            segments.append((start, tokens) if mine else (tokens, tokens))
            pictures.append(torch.randn(16, part.size[1] // 8, part.size[0] // 8))
            tokens += 19
        tokens += 5
    keep = drawn[-1] + 1
    states = torch.randn(ends[keep - 1], LAYERS * HIDDEN)
    return Prepared(tuple(pictures[:keep]), states, tuple(ends[:keep]), tuple(segments[:keep]), tuple(drawn))


def mixed_document(rng: Random) -> Prepared:
    count = rng.randint(1, 6)
    pictures = tuple(torch.randn(16, rng.choice(SIDES), rng.choice(SIDES)) for _ in range(count))
    lengths = [rng.randint(15, 60) for _ in pictures]
    ends = tuple(sum(lengths[: k + 1]) + 19 * k for k in range(count))
    segments = tuple((end - length, end) for end, length in zip(ends, lengths))
    return Prepared(pictures, torch.randn(ends[-1], LAYERS * HIDDEN), ends, segments, tuple(range(count)))


def batch(make: Callable[[Random], Prepared], chance: FlowSettings, frames: int, seed: int) -> list[FlowSample]:
    rng, found = Random(seed), []
    while sum(sample.frames for sample in found) < frames:
        found.append(sample_of(make(rng), rng, chance))
    return found


def by_shape(samples: Sequence[FlowSample]) -> list[list[FlowSample]]:
    groups = defaultdict(list)
    for sample in samples:
        groups[sample.frame_indices, tuple(t.shape for t in (*sample.clean, *sample.targets))].append(sample)
    return list(groups.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.device == "cpu" else time.perf_counter

    for attention in ("frame_causal", "full"):
        torch.manual_seed(0)
        dit, connector = stage2.new_models(stage2.Stage2Config(attention=attention), LAYERS, HIDDEN)
        loss = FlowLoss(dit, connector, args.bf16).to(args.device)
        for name, make in (("sketchbook", sketchbook_document), ("mixed", mixed_document)):
            samples = batch(make, FlowSettings(attention=attention), args.frames, seed=1)
            total = sum(len(sample.targets) for sample in samples)
            ways = {
                "one by one": [[sample] for sample in samples],
                "by shape": by_shape(samples),
                "packed": [samples],
            }
            buckets = {
                id(group[0]): (group * args.frames)[: max(1, round(args.frames / group[0].frames))]
                for group in by_shape(samples)
            }
            taken, values = defaultdict(list), {}
            for _ in range(args.rounds):
                for way, passes in ways.items():
                    loss.zero_grad(set_to_none=True)
                    begun, values[way] = clock(), 0.0
                    for each in passes:
                        part = loss(each, total)
                        part.backward()
                        values[way] += float(part.detach())
                    taken[way].append(clock() - begun)
                whole = 0.0
                for group in by_shape(samples):
                    some = buckets[id(group[0])]
                    begun = clock()
                    loss(some, total).backward()
                    frames = sum(sample.frames for sample in some)
                    whole += (clock() - begun) / frames * sum(sample.frames for sample in group)
                taken["buckets"].append(whole)
            assert max(values.values()) - min(values.values()) < (0.02 if args.bf16 else 1e-4), values
            best = {way: min(each) for way, each in taken.items()}
            ratio = {w: [a / b for a, b in zip(each, taken["packed"])] for w, each in taken.items()}
            told = ", ".join(
                f"{way} {seconds:.3f} s (x{seconds / best['packed']:.2f}, median x{statistics.median(ratio[way]):.2f})"
                for way, seconds in best.items()
            )
            shapes = len(buckets)
            frames = sum(sample.frames for sample in samples)
            print(
                f"{attention}, {name}: {len(samples)} documents of {shapes} shapes, {frames} frames: {told}", flush=True
            )


if __name__ == "__main__":
    main()
