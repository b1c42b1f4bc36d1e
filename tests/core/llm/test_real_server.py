"""The client against a real server: `transformers serve` with a small model, where both are at hand.

The model is what tests/bench/llm_server.py leaves in its folder; run that once to have this test run too.
"""

from __future__ import annotations

import pytest

from duogen_core.llm.answers import AnswerError, Recording
from duogen_core.llm.client import Client, Endpoint
from duogen_core.net.client import EndpointError
from tests.bench import llm_server


def there() -> bool:
    try:
        from transformers.utils.import_utils import is_serve_available
    except ImportError:
        return False
    return is_serve_available() and (llm_server.plain_folder() / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not there(), reason="needs transformers[serving] and the model of tests/bench/llm_server.py")
def test_a_real_server(tmp_path):
    ask = [{"role": "user", "content": "Name three colours."}]
    with llm_server.serving(llm_server.plain_folder()) as (url, name):
        endpoint = Endpoint(url, name, structured="none", limits=llm_server.SLOW, attempts=1, answers=2)
        client = Client(endpoint, Recording(tmp_path / "answers.jsonl"))
        answer = client.ask(ask, max_tokens=8)
        assert answer.text.strip() and answer.finish == "length"
        assert answer.counted and answer.completion_tokens == 8 and answer.prompt_tokens > 20
        with pytest.raises(AnswerError, match="gave no usable answer in 2 attempts"):
            client.ask(ask, {"enum": ["no model would write this of itself"]}, max_tokens=4)
        with pytest.raises(EndpointError, match=r"status 404 .*/v1"):
            Client(Endpoint(url.removesuffix("/v1"), name, attempts=1)).ask(ask, max_tokens=1)
    offline = Client(Endpoint("http://127.0.0.1:1/v1", name), Recording(tmp_path / "answers.jsonl", "replay"))
    assert offline.ask(ask, max_tokens=8) == answer
