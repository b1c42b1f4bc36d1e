"""Opens a model that answers, whatever it is: an address, a folder, a file, or the name of a model of this pack.

    open_model("models/Qwen3-4B-Instruct")                                   a Hugging Face folder of transformers
    open_model("qwen2.5-7b-instruct-q4_k_m.gguf")                            a GGUF file
    open_model("http://127.0.0.1:11434/v1", model_name="qwen3:4b")           an OpenAI-compatible server
    open_model("duogen-tiny")                                                the MLLM of a DuoGen model

Out: a Client, for which somebody waits: a server that is not there is an error at once. Nothing is ever sent to an
address that the user did not type: what is no address is looked for on this machine only, and never downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from duogen_core.device_options import DEFAULT, Placement
from duogen_core.errors import DuoGenError
from duogen_core.files import read_json
from duogen_core.llm.answers import Recording
from duogen_core.llm.client import Client
from duogen_core.llm.endpoint import Endpoint, Server, listed, read_key
from duogen_core.net.client import Limits, check_address

ADDRESS = re.compile(r"https?:", re.IGNORECASE)
# host:port, with or without a path: what people type who leave out the scheme
BARE_ADDRESS = re.compile(
    r"(//)?(localhost|\d{1,3}(\.\d{1,3}){3}|\[[0-9a-f:]+\]|[\w-]+(\.[\w-]+)+):\d{1,5}(/\S*)?", re.IGNORECASE
)
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
PATIENCE = Limits(connect=5, read=300, total=3600)  # a model of billions on a CPU reads a long prompt for minutes


def open_model(
    spec: str,
    *,
    model_name: str = "",
    tokenizer: str | Path | None = None,
    placement: Placement = DEFAULT,
    key_variable: str = "",
    options: Mapping[str, Any] | None = None,
    limits: Limits = PATIENCE,
    answers: int = 3,
    recording: Recording | None = None,
    sees: bool = True,
) -> Client:
    """model_name: on a server; may be left out where it has one. tokenizer: the folder of it, for single files.

    key_variable: the environment variable with the server's key. options: further fields of every request to a server.
    sees: whether a server's model looks at pictures; of a model that runs here that is known.
    """
    spec = str(spec).strip()
    if not spec:
        raise DuoGenError(
            "The model has no name; give a folder, a file, or an address such as http://127.0.0.1:8000/v1."
        )
    if is_address(spec):
        endpoint = Endpoint(
            _whole(spec), model_name, key_variable, limits=limits, attempts=3, answers=answers,
            options=dict(options or {}), waits=False, sees=sees,
        )  # fmt: skip
        if not model_name:
            endpoint = replace(endpoint, model=_only_model(endpoint))
        return Client(endpoint, recording)
    if model_name:
        raise DuoGenError(f"A model's name ({model_name}) is for a server; {spec[:200]} is run here and needs none.")
    if key_variable:
        raise DuoGenError(f"A key ({key_variable}) is for a server; {spec[:200]} is run here and needs none.")
    from duogen_core.llm.local_model import HERE

    transport, name = _run_here(spec, tokenizer, placement)
    return Client(Endpoint(HERE, name, attempts=1, answers=answers, here=True), recording, transport=transport)


def is_address(spec: str) -> bool:
    """Whether this is the address of a server; a DuoGenError says how to write what looks like one."""
    if ADDRESS.match(spec):
        check_address(spec)
        return True
    if BARE_ADDRESS.fullmatch(spec) and not Path(spec).exists():
        address = spec.lstrip("/")
        raise DuoGenError(
            f"{spec[:200]} looks like an address; write it as http://{address[:200]}, with /v1 at its end."
        )
    return False


def _whole(address: str) -> str:
    """With /v1 where the address is a host alone, as servers print it."""
    return address.rstrip("/") + ("" if urlsplit(address).path.strip("/") else "/v1")


def _only_model(endpoint: Endpoint) -> str:
    names = Server(endpoint, read_key(endpoint.api_key_variable)).models()
    if len(names) == 1:
        return names[0]
    if not names:
        raise DuoGenError(f"The endpoint {endpoint.base_url} does not list its models; name the one to ask.")
    raise DuoGenError(f"The endpoint {endpoint.base_url} has several models; name one of them: {listed(names)}.")


def _run_here(spec: str, tokenizer: str | Path | None, placement: Placement) -> tuple[Any, str]:
    """Returns the transport, and what the model is called."""
    from duogen_core.checkpoint import models_folder
    from duogen_core.devices import choose_device

    choose_device(placement.device)  # one that is not there is told before minutes of loading
    path = Path(spec).expanduser()
    named = models_folder() / spec
    if not path.exists() and not (Path(spec).name == spec and named.is_dir()):
        if REPOSITORY.fullmatch(spec):
            raise DuoGenError(
                f"There is no folder {spec} here, and nothing is downloaded by itself; if that is a model on the "
                "Hugging Face Hub, download it and give its folder."
            )
        raise DuoGenError(
            f"There is no model {spec[:300]!r}; give a folder, a .gguf or .safetensors file, the name of a model of "
            "this pack, or an address such as http://127.0.0.1:8000/v1."
        )
    if _is_own(path if path.exists() else named):
        from duogen_core.checkpoint import resolve_mllm
        from duogen_core.llm.own_mllm import OwnModel
        from duogen_core.mllm.loading import load_mllm
        from duogen_core.placement import place_mllm

        mllm = load_mllm(resolve_mllm(spec), tokenizer=tokenizer)
        return OwnModel(place_mllm(mllm, placement)), path.resolve().name
    from duogen_core.llm.transformers_model import load_transformers_model

    return load_transformers_model(path, placement), path.resolve().name


def _is_own(path: Path) -> bool:
    """Whether the core's own MLLM families read it; all else is left to transformers."""
    from duogen_core.mllm import FAMILIES
    from duogen_core.mllm.gguf import KNOWN
    from duogen_core.weights.gguf import is_gguf, read_gguf_header

    if path.is_file():
        # A GGUF of a Qwen-VL, whose vision lies beside it; of others transformers knows more.
        return not is_gguf(path) or read_gguf_header(path).architecture in KNOWN
    if (path / "model_index.json").is_file() or not (path / "config.json").is_file():
        return True  # or is named as what it is not
    value = read_json(path / "config.json", "configuration of a language model")
    return isinstance(value, dict) and value.get("model_type") in FAMILIES
