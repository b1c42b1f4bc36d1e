"""Adds the options of commands that ask a language model, at an OpenAI-compatible endpoint or a local one.

    add_endpoint_options(parser); client_of(args, recording)       of the data engines, which ask thousands of times
    add_model_options(parser, "writer"); model_of(args, "writer")  of commands that ask while somebody waits

In: the parsed options, and the file of recorded answers. Out: a Client; `spent` says what it cost.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.device_options import DTYPES, Placement, add_device_options, placement_of
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.llm.client import Client, Usage


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("language model").add_argument
    add(
        "--endpoint",
        "--base-url",
        metavar="URL",
        help="address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1",
    )
    add("--llm", "--model", metavar="NAME", help="the name of the model on that server")
    add(
        "--mllm",
        metavar="PATH",
        help="instead of an endpoint: a model run here, such as a DuoGen model, Qwen-VL, any instruction model of "
        "transformers (a folder), or a GGUF file",
    )
    add("--tokenizer", metavar="DIR", help="with an --mllm that is a .safetensors file: the folder of its tokenizer")
    add("--api-key-variable", default="", metavar="VAR", help="the environment variable that holds the API key")
    add("--no-schema", action="store_true", help="do not send the JSON schema, for servers that refuse it")
    add(
        "--reasoning-effort",
        metavar="LEVEL",
        help="how long a reasoning model may think, such as none, low or high; sent as reasoning_effort",
    )
    add(
        "--think",
        choices=("true", "false"),
        help="whether the model thinks first; sent as think and as chat_template_kwargs.enable_thinking",
    )
    add("--replay", action="store_true", help="take every answer from the recording of an earlier run; send nothing")
    add(
        "--parallel",
        type=int,
        default=4,
        metavar="N",
        help="requests sent at the same time, or answered as one batch by a model run here; default: 4",
    )
    add(
        "--answers",
        type=int,
        default=3,
        metavar="N",
        help="how many answers to a request are tried until one is valid; default: 3",
    )
    add("--requests-per-minute", type=int, metavar="N", help="maximum number of requests per minute; default: no limit")
    add(
        "--tokens-per-minute",
        type=int,
        metavar="N",
        help="maximum number of tokens per minute, prompts and answers together; default: no limit",
    )
    add("--timeout", type=float, default=600.0, metavar="SECONDS", help="how long to wait for one answer; default: 600")
    add(
        "--price",
        metavar="IN,OUT",
        help="price of a million tokens of prompts and of answers, such as 0.15,0.6; adds up the cost",
    )
    add_device_options(parser)


def client_of(args: argparse.Namespace, recording: Path) -> Client:
    if args.mllm:
        return _run_here(args, recording)
    if args.tokenizer:
        raise DuoGenError("--tokenizer belongs to an --mllm that is a single file; an endpoint has its own.")
    if not args.llm:
        raise DuoGenError("--llm is missing; give the name of the model at the endpoint, or --mllm.")
    if not args.endpoint and not args.replay:
        raise DuoGenError("--endpoint is missing; give the address of an OpenAI-compatible server, or --replay.")
    for name in ("parallel", "answers", "requests_per_minute", "tokens_per_minute", "timeout"):
        value = getattr(args, name)
        if value is not None and not value >= 1:
            raise DuoGenError(f"--{name.replace('_', '-')} is {value}; expected at least 1.")
    from duogen_core.llm.answers import Recording
    from duogen_core.llm.client import Client, Endpoint
    from duogen_core.net.client import Limits

    endpoint = Endpoint(
        args.endpoint or "http://127.0.0.1/v1",
        args.llm,
        api_key_variable=args.api_key_variable,
        structured="none" if args.no_schema else "schema",
        limits=Limits(read=args.timeout, total=args.timeout),
        answers=args.answers,
        requests_per_minute=args.requests_per_minute,
        tokens_per_minute=args.tokens_per_minute,
        price=_price(args.price),
        options=_options(args),
    )
    return Client(endpoint, Recording(recording, "replay" if args.replay else "record"))


def _run_here(args: argparse.Namespace, recording: Path) -> Client:
    from duogen_core.llm.answers import Recording
    from duogen_core.llm.client import Client, Endpoint
    from duogen_core.llm.gathering import Gathering
    from duogen_core.llm.local_model import HERE
    from duogen_core.llm.opening import is_address, open_model

    if args.replay:  # the model need not even be there
        endpoint = Endpoint(HERE, Path(args.mllm).resolve().name, attempts=1, answers=args.answers, here=True)
        return Client(endpoint, Recording(recording, "replay"))
    if is_address(args.mllm):
        raise DuoGenError("--mllm is a model run here; give the address of a server as --endpoint, its model as --llm.")
    client = open_model(
        args.mllm, tokenizer=args.tokenizer, placement=placement_of(args), answers=args.answers,
        recording=Recording(recording),
    )  # fmt: skip
    client.transport = Gathering(client.transport, args.parallel)  # requests of threads are one batch
    return client


# ------------------------------------------------------------ a model for one answer


def add_model_options(
    parser: argparse.ArgumentParser, prefix: str = "writer", does: str = "plans the answer", required: bool = False
) -> None:
    """Adds --PREFIX and what belongs to it. does: what the model does, in the words of the help."""
    add = parser.add_argument_group(prefix).add_argument
    add(
        f"--{prefix}",
        required=required,
        metavar="MODEL",
        help=f"the model that {does}: a folder or a .gguf file, run here, or the address of a server, such as "
        "http://127.0.0.1:8080/v1",
    )
    add(
        f"--{prefix}-model",
        default="",
        metavar="NAME",
        help=f"the name of the {prefix} on its server; may be left out where the server has only one model",
    )
    add(
        f"--{prefix}-key-variable",
        default="",
        metavar="VAR",
        help=f"the environment variable that holds the key of the {prefix}'s server",
    )
    add(f"--{prefix}-tokenizer", metavar="DIR", help=f"the folder of the tokenizer of a {prefix} in .safetensors")
    add(
        f"--{prefix}-dtype",
        default="auto",
        choices=DTYPES,
        help=f"precision of a {prefix} run here; default: auto, that of its files",
    )


def model_of(args: argparse.Namespace, prefix: str = "writer") -> Client:
    """Opens the model that the options name; where the command has --device, it runs there."""
    from duogen_core.llm.opening import open_model

    def value(name: str) -> Any:
        return getattr(args, f"{prefix}{name}")

    if not value(""):
        given = next((name for name in ("_model", "_key_variable", "_tokenizer") if value(name)), None)
        about = (
            f"--{prefix}{given.replace('_', '-')} is about a {prefix}; name it with" if given else "Name a model with"
        )
        raise DuoGenError(
            f"{about} --{prefix}: a folder, a .gguf file, or an address such as http://127.0.0.1:8080/v1."
        )
    dtype = value("_dtype")
    placement = placement_of(args) if hasattr(args, "device") else Placement()
    if dtype != "auto":
        placement = replace(placement, dtype=dtype)
    return open_model(
        value(""), model_name=value("_model"), key_variable=value("_key_variable"), tokenizer=value("_tokenizer"),
        placement=replace(placement, compile=False),
    )  # fmt: skip


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the extra fields: Ollama reads `think`; vLLM, SGLang and llama.cpp the template's; OpenAI the effort."""
    options: dict[str, Any] = {}
    if args.reasoning_effort:
        options["reasoning_effort"] = args.reasoning_effort
    if args.think:
        thinks = args.think == "true"
        options |= {"think": thinks, "chat_template_kwargs": {"enable_thinking": thinks}}
    return options


def spent(usage: Usage) -> str:
    """Returns what was asked and what it cost, in one line; recorded answers cost nothing."""
    line = f"{usage.requests:,} requests, {usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens"
    if usage.cost:
        line += f", cost {usage.cost:,.2f}"
    for count, what in (
        (usage.recorded, "answers from the recording"),
        (usage.refused_answers, "answers refused"),
        (usage.retries, "tried again"),
        (usage.uncounted, "whose tokens the endpoint did not count"),
    ):
        line += f", {count:,} {what}" if count else ""
    return line


def _price(text: str | None):
    from duogen_core.llm.client import Price

    if text is None:
        return Price()
    try:
        prompt, completion = map(float, text.split(","))
        if not (0 <= prompt < 1e6 and 0 <= completion < 1e6):
            raise ValueError
    except ValueError:
        raise DuoGenError(
            f"--price is {text!r}; expected two numbers with a comma between, such as 0.15,0.6."
        ) from None
    return Price(prompt, completion)
