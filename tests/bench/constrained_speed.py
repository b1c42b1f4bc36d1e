"""Seconds a token, constrained against free, the two alternating in one process: the schema of a plan, one model.

    python tests/bench/constrained_speed.py MODEL [--tokens 48] [--rounds 5] [--dtype bf16]

MODEL: whatever `duogen_core.llm.opening.open_model` runs here. Both write the same number of tokens after the same
request at temperature 0: the free one with its ends forbidden, the constrained one inside a schema whose strings it
cannot finish sooner. The first token (reading the request) is left out of both: seconds of a run of all tokens, less
those of a run of one. Bar: the median of the ratios at most 1.10.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from duogen_core.device_options import Placement  # noqa: E402
from duogen_core.llm.client import Client  # noqa: E402
from duogen_core.llm.opening import open_model  # noqa: E402

SENTENCE = r"^[A-Z][^.!?\n]*[.!?]$"
PART = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 240, "pattern": SENTENCE} for name in ("text", "picture")},
    "required": ["text", "picture"],
    "additionalProperties": False,
}
PLAN = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 80},
        "parts": {"type": "array", "items": PART, "minItems": 12, "maxItems": 12},
    },
    "required": ["title", "parts"],
    "additionalProperties": False,
}
ASK = [
    {
        "role": "system",
        "content": "You plan illustrated guides. Each part has a text and a picture, one sentence each.",
    },
    {"role": "user", "content": "How do I fold a paper boat, in twelve steps, with a picture for each?"},
]


def seconds(client: Client, tokens: int, schema: dict | None) -> float:
    started = time.perf_counter()
    answer = client.ask(ASK, schema, tokens, read=str, rule="")
    if answer.completion_tokens != tokens:
        raise SystemExit(f"It wrote {answer.completion_tokens} tokens in place of {tokens}; ask for fewer.")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    client = open_model(args.model, placement=Placement(dtype=args.dtype))
    model = client.transport
    seconds(client, 2, PLAN), seconds(client, 2, None)  # the tokenizer's structure, the first use of every kernel
    ratios = []
    for turn in range(args.rounds):
        found = {}
        for schema in ((None, PLAN), (PLAN, None))[turn % 2]:
            if hasattr(model, "ends"):
                ends, model.ends = model.ends, model.ends if schema else [model.tokenizer.pad_token_id]
            one, all_ = seconds(client, 1, schema), seconds(client, args.tokens, schema)
            if hasattr(model, "ends"):
                model.ends = ends
            found[schema is not None] = (all_ - one) / (args.tokens - 1)
        ratios.append(found[True] / found[False])
        print(
            f"free {found[False] * 1e3:.1f} ms a token, constrained {found[True] * 1e3:.1f}: {ratios[-1]:.3f}",
            flush=True,
        )
    print(f"median {statistics.median(ratios):.3f} of {args.rounds}")


if __name__ == "__main__":
    main()
