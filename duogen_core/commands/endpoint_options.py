"""Adds the options of commands that ask a language model, at an OpenAI-compatible endpoint or a local one.

In: the parsed options and the file of recorded answers. Out: a Client; `spent` says what it cost.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.device_options import add_device_options, placement_of
from duogen_core.errors import DuoGenError

if TYPE_CHECKING:
    from duogen_core.data.llm.client import Client, Usage


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("language model").add_argument
    add(
        "--endpoint",
        "--base-url",
        metavar="URL",
        help="address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1",
    )
    add("--llm", "--model", metavar="NAME", help="the name of the model on that server")
    add("--mllm", metavar="PATH", help="instead of an endpoint: a DuoGen model or Qwen-VL (folder or file), run here")
    add("--tokenizer", metavar="DIR", help="with an --mllm that is a single file: the folder of its tokenizer")
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
    add("--parallel", type=int, default=4, metavar="N", help="requests sent at the same time; default: 4")
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
        from duogen_core.data.llm.own_mllm import own_client
        from duogen_core.devices import choose_device
        from duogen_core.placement import place_mllm

        placement = placement_of(args)
        choose_device(placement.device)  # one that is not there is told before minutes of loading
        return own_client(
            args.mllm, recording, args.replay, args.answers, args.tokenizer, partial(place_mllm, placement=placement)
        )
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
    from duogen_core.data.llm.answers import Recording
    from duogen_core.data.llm.client import Client, Endpoint
    from duogen_core.data.net.client import Limits

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
    from duogen_core.data.llm.client import Price

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
