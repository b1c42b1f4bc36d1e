"""What servers refuse: schemas, thinking, renamed fields, model names; each is asked for once more as they want it."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from duogen_core.llm.answers import OnlyThoughts
from duogen_core.llm.client import Client, Endpoint
from duogen_core.net.client import EndpointError, Reply
from tests.core.endpoint_server import QUICK, Clock, completion, endpoint_server, hanging, refusing

ASK = [{"role": "user", "content": "Two steps, please."}]
SCHEMA = {"type": "object", "properties": {"steps": {"type": "array"}}, "required": ["steps"]}
GOOD = completion('{"steps": []}')
NO_SCHEMA = refusing(400, "'response_format.type' must be 'text'")
NO_OBJECT = refusing(422, "response_format json_object is not supported")
OFF = {"reasoning_effort": "none", "think": False, "chat_template_kwargs": {"enable_thinking": False}}


def client(server, **more):
    return Client(replace(Endpoint(server.url, "tiny", limits=QUICK, attempts=1), **more), sleep=Clock().sleep)


def test_a_server_that_refuses_schemas_is_told_in_the_text():
    with endpoint_server(NO_SCHEMA, NO_OBJECT, GOOD, GOOD) as server:
        asking = client(server)
        assert asking.ask(ASK, SCHEMA, rule="").value == {"steps": []}
        assert asking.ask(ASK, SCHEMA, rule="", seed=2).value == {"steps": []}
        schema, any_object, none, later = (body for _, _, body in server.asked)
    assert schema["response_format"]["type"] == "json_schema" and schema["messages"] == ASK
    assert any_object["response_format"] == {"type": "json_object"}
    assert "response_format" not in none and "response_format" not in later, "what it refused is remembered"
    for body in (any_object, none, later):
        system, user = body["messages"]
        assert json.dumps(SCHEMA) in system["content"] and user == ASK[0]
    assert (asking.usage.requests, asking.usage.retries) == (4, 2)


def test_the_schema_stands_in_the_text_once_and_json_object_may_do():
    with endpoint_server(NO_SCHEMA, GOOD) as server:
        assert client(server).ask(ASK, SCHEMA).value == {"steps": []}
        (system, _), second = server.asked[1][2]["messages"], server.asked[1][2]
    assert system["content"].count(json.dumps(SCHEMA)) == 1 and second["response_format"] == {"type": "json_object"}
    with endpoint_server(refusing(400, "failed to parse grammar"), completion("[]")) as server:
        client(server).ask(ASK, {"type": "array"})
        assert "response_format" not in server.asked[1][2], "no object is asked for where an array is due"


def test_a_server_that_ignores_the_schema_is_told_at_the_second_attempt():
    with endpoint_server(completion("Sure! First, cut."), completion("[]"), GOOD) as server:
        assert client(server).ask(ASK, SCHEMA, rule="").value == {"steps": []}
        first, second, third = (body["messages"] for _, _, body in server.asked)
    assert first == ASK
    for later in (second, third):
        assert later[0]["content"].count(json.dumps(SCHEMA)) == 1 and later[1] == ASK[0] and len(later) == 4


def test_a_refusal_of_something_else_is_final():
    for refusal in (refusing(400, "context length exceeded"), refusing(401, "response_format")):
        with endpoint_server(refusal) as server:
            with pytest.raises(EndpointError, match="refused with status 40[01]"):
                client(server).ask(ASK, SCHEMA)
            assert len(server.asked) == 1


THOUGHTS = completion("", message={"role": "assistant", "content": "", "reasoning": "Hm."})


def test_a_model_that_only_thinks_is_asked_not_to():
    with endpoint_server(THOUGHTS, completion("Hello"), completion("Again")) as server:
        asking = client(server)
        assert asking.ask(ASK).text == "Hello" and asking.ask(ASK, seed=1).text == "Again"
        bodies = [body for _, _, body in server.asked]
    assert not set(OFF) & set(bodies[0]) and bodies[1] == {**bodies[0], **OFF} and OFF.items() <= bodies[2].items()


def test_only_as_much_of_it_as_the_server_knows():
    with endpoint_server(
        THOUGHTS, refusing(400, "Unrecognized request argument: think"), completion("Hello")
    ) as server:
        assert client(server).ask(ASK).text == "Hello"
        body = server.asked[2][2]
    assert "think" not in body and body["reasoning_effort"] == "none"
    with endpoint_server(THOUGHTS, refusing(400, "no"), THOUGHTS) as server:
        asking = client(server)
        for _ in range(2):
            with pytest.raises(EndpointError, match="only the model's thoughts"):
                asking.ask(ASK)
    with endpoint_server(THOUGHTS) as server:
        with pytest.raises(EndpointError, match="only the model's thoughts"):
            client(server, options={"think": True}).ask(ASK)
        assert len(server.asked) == 1, "the user chose"


def test_threads_that_learn_the_same_at_once_learn_it_once():
    """Each is refused what was sent before the other knew better."""
    from duogen_core.llm.endpoint import Server

    server, body = Server(Endpoint("http://127.0.0.1:1/v1", "tiny")), {"messages": ASK, "max_tokens": 9}
    schema = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    asked = [server._fitted({**body, "response_format": schema}, False) for _ in range(2)]
    reply = Reply(400, {}, b"response_format is not supported")
    assert all(server._gives_way(reply, sent, {**body, "response_format": schema}) for sent in asked)
    assert server._fitted({**body, "response_format": schema}, False)["response_format"] == {"type": "json_object"}
    server._added = dict(OFF)
    asked = [server._fitted(body, False) for _ in range(2)]
    assert all(server._gives_way(Reply(400, {}, b"unknown: think"), sent, body) for sent in asked)
    assert set(server._added) == set(OFF) - {"think"}

    def learnt_meanwhile(sent, *_):
        if "think" in sent:
            return Reply(200, {}, b""), "answer"
        server._added = dict(OFF)  # by another thread
        raise OnlyThoughts("thoughts")

    server._added, server._send = {}, learnt_meanwhile
    assert server(body) == "answer"


def test_an_answer_that_would_end_the_same_is_not_paid_for_again():
    for finish, count in (("length", 1), ("content_filter", 1), ("stop", 3)):
        with endpoint_server(completion("", finish_reason=finish)) as server:
            with pytest.raises(EndpointError, match="without text"):
                client(server, attempts=3).ask(ASK)
            assert len(server.asked) == count


@pytest.mark.parametrize("limits", [replace(QUICK, total=0.5, read=0.5), replace(QUICK, read=0.5)])
def test_a_server_that_took_all_its_time_is_asked_again_by_long_runs_alone(limits):
    for waits, count in ((False, 1), (True, 2)):
        with endpoint_server(hanging) as server:
            with pytest.raises(EndpointError, match="after 0.5 seconds|for 0.5 seconds"):
                client(server, attempts=2, waits=waits, limits=limits).ask(ASK)
            assert len(server.asked) == count


def test_fields_with_a_new_name_or_none():
    renamed = refusing(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    fixed = refusing(400, "Unsupported value: 'temperature' does not support 0; only the default is supported.")
    with endpoint_server(renamed, fixed, completion("Hello")) as server:
        assert client(server).ask(ASK, max_tokens=9).text == "Hello"
        body = server.asked[2][2]
    assert body["max_completion_tokens"] == 9 and "max_tokens" not in body and "temperature" not in body


def test_no_temperature_and_no_penalty_of_ours_is_sent():
    with endpoint_server(completion("Hello")) as server:
        client(server).ask(ASK, temperature=None, reply_penalty=1.1)
        assert set(server.asked[0][2]) == {"model", "messages", "max_tokens", "seed"}


@pytest.mark.parametrize("status", [404, 400])
def test_a_model_that_is_not_there_is_named_with_those_that_are(status):
    names = [f"model-{k}" for k in range(15)]
    with endpoint_server(refusing(status, "The model `tiny` does not exist"), names=names) as server:
        with pytest.raises(
            EndpointError, match=r"has no model 'tiny'; it has model-0, .*, model-11 and 3 more\.$"
        ) as caught:
            client(server, attempts=3).ask(ASK)
        assert not caught.value.again and len(server.asked) == 1
    for others in ([], ["tiny"]):
        with (
            endpoint_server(refusing(404), names=others) as server,
            pytest.raises(EndpointError, match="check base_url"),
        ):
            client(server).ask(ASK)


def test_nobody_there_is_said_at_once_where_somebody_waits():
    with endpoint_server(GOOD) as server:
        pass
    slept = Clock()
    asking = Client(Endpoint(server.url, "tiny", limits=QUICK, waits=False), sleep=slept.sleep)
    start = time.monotonic()
    with pytest.raises(EndpointError, match="cannot be reached .*; start it or check its address"):
        asking.ask(ASK)
    assert not slept.slept and time.monotonic() - start < 5 and asking.usage.requests == 1
    patient = Client(Endpoint(server.url, "tiny", limits=QUICK, attempts=2), sleep=slept.sleep)
    with pytest.raises(EndpointError):
        patient.ask(ASK)
    assert len(slept.slept) == 1


def test_a_date_of_when_to_come_back():
    from email.utils import formatdate

    clock = Clock()
    with endpoint_server(
        refusing(429, Retry_After=formatdate(time.time() + 20, usegmt=True)), completion("a")
    ) as server:
        Client(Endpoint(server.url, "tiny", limits=QUICK), sleep=clock.sleep).ask(ASK)
    assert 15 < clock.slept[0] <= 20
