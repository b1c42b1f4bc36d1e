"""Plans of requests for tests of the synthetic engine, in memory and in a folder as `plan` leaves them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from duogen_core.data.synthetic.planning import Entry, plan_from, read_plans
from duogen_core.data.synthetic.requests import Request, request_lines
from tests.core.synthetic_writer import new_request, plan_for


def entries(count: int = 5) -> list[Entry]:
    requests = [Request("Knots", "Loops", new_request(k), "tiny") for k in range(count)]
    return [Entry(k, each, plan_from(plan_for(each.text)), 100 * k, "tiny", "ab12") for k, each in enumerate(requests)]


def write_plans(folder: Path, plans: Sequence[Entry] = ()) -> Path:
    plans = plans or entries()
    folder.mkdir(exist_ok=True, parents=True)
    lines = [
        {"number": each.number, "request": vars(each.request), "seed": each.seed, "model": "tiny", "prompt": "ab12",
         "kept": True, "plan": each.plan.to_json()}
        for each in plans
    ]  # fmt: skip
    (folder / "plans.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "requests.jsonl").write_bytes(request_lines(each.request for each in plans))
    assert list(read_plans(folder / "plans.jsonl")) == list(plans)
    return folder
