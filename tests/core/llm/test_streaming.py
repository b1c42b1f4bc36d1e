"""Answers that come while they are written: whole, broken off, hostile, stopped; and several questions at once."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import pytest

from duogen_core.errors import Cancelled
from duogen_core.llm.answers import Answer, AnswerError, Recording
from duogen_core.llm.client import Client, Endpoint, Question
from duogen_core.net.client import EndpointError
from tests.core.endpoint_server import (
    DONE,
    HASTY,
    QUICK,
    USAGE,
    Clock,
    chunk,
    completion,
    endpoint_server,
    hanging,
    raw,
    refusing,
    streaming,
)

ASK = [{"role": "user", "content": "Two words."}]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
WORDS = {"type": "object", "properties": {"words": {"type": "array", "items": {"type": "string"}}}}
SOON = 2.0  # seconds; the bar is one, and tests share a machine


def client(server, recording=None, **more):
    endpoint = replace(Endpoint(server.url, "tiny", limits=QUICK, attempts=1), **more)
    return Client(endpoint, recording, sleep=Clock().sleep)


def test_pieces_come_as_they_are_written_and_make_the_answer():
    heard: list[tuple[float, str]] = []
    pieces = [
        b": keep-alive\n\n",
        chunk("", role="assistant"),
        chunk("Grü"),
        chunk("ße"),
        chunk("!", "stop"),
        USAGE,
        DONE,
    ]
    with endpoint_server(streaming(*pieces, pause=0.3, hold=True)) as server:
        answer = client(server).ask(ASK, on_text=lambda piece: heard.append((time.monotonic(), piece)))
        sent = server.asked[0][2]
    assert answer == Answer("Grüße!", "stop", 7, 3, True)
    assert [piece for _, piece in heard] == ["Grü", "ße", "!"] and heard[-1][0] - heard[0][0] > 0.4
    assert sent["stream"] is True and sent["stream_options"] == {"include_usage": True}


def test_events_may_be_cut_anywhere():
    data = chunk("naïve ") + chunk("日本", "stop") + USAGE + DONE
    for size in (1, 7, len(data)):
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        with endpoint_server(streaming(*pieces)) as server:
            assert client(server).ask(ASK, on_text=lambda _: None) == Answer("naïve 日本", "stop", 7, 3, True)
    with endpoint_server(raw(HEAD + data.replace(b"\n", b"\r\n").removesuffix(b"\r\n\r\n"))) as server:
        assert client(server).ask(ASK, on_text=lambda _: None).text == "naïve 日本"


def test_a_server_that_knows_no_streaming_is_as_good():
    heard = []
    with endpoint_server(completion("Hello there")) as server:
        assert client(server).ask(ASK, on_text=heard.append).text == "Hello there"
    assert heard == ["Hello there"]


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (streaming(chunk("half")), "broke off before its answer had ended"),
        (raw(HEAD + chunk("half") + b'data: {"choi'), "not a chat completion"),
        (raw(HEAD + b"data: <html>\n\n"), "not a chat completion"),
        (raw(HEAD + b"data: [1]\n\n"), "not a chat completion"),
        (raw(HEAD + b'data: {"choices": 5}\n\n'), "not a chat completion"),
        (raw(HEAD + b'data: {"choices": {"a": 1}}\n\n'), "not a chat completion"),
        (raw(HEAD + b'data: {"choices": ["x"]}\n\n'), "not a chat completion"),
        (raw(HEAD + b"data: " + b"[" * 20_000 + b"\n\n"), "not a chat completion"),
        (raw(HEAD + b'data: {"x": "\xff"}\n\n'), "not a chat completion"),
        (
            raw(HEAD + b'data: {"error": {"message": "out of\\nmemory"}}\n\n'),
            "in the middle of its answer .out of memory.",
        ),
        (raw(HEAD + b"hello\n\n"), "not JSON"),
        (raw(HEAD + b"a" * 60_000), "more than 50,000 bytes"),
        (raw(HEAD + chunk("a") * 1000), "more than 50,000 bytes"),
        (streaming(chunk("", "stop"), DONE), "without text"),
        (streaming(chunk("\ud800", "stop"), DONE), "not valid Unicode"),
        (
            streaming(chunk(reasoning="Hm, "), chunk(reasoning="so."), chunk(None, "length"), DONE),
            "thoughts until .* .7 char",
        ),
    ],
)
def test_streams_that_are_no_answer(reply, sentence):
    with endpoint_server(reply) as server, pytest.raises(EndpointError, match=sentence) as caught:
        client(server).ask(ASK, on_text=lambda _: None)
    assert str(caught.value).endswith(".") and ". " not in str(caught.value)


def test_a_key_that_the_server_says_is_not_repeated(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    failed = raw(HEAD + b'data: {"error": {"message": "no credit on sk-secret"}}\n\n')
    for reply in (failed, refusing(402, "no credit on sk-secret")):
        with endpoint_server(reply) as server, pytest.raises(EndpointError, match=r"no credit on \*\*\*") as caught:
            client(server, api_key_variable="MY_KEY").ask(ASK, on_text=lambda _: None)
        assert "sk-secret" not in str(caught.value)


def test_half_a_character_is_told_nobody():
    heard = []
    with (
        endpoint_server(streaming(chunk("a"), chunk("\ud83d"), hold=True)) as server,
        pytest.raises(EndpointError, match="not valid Unicode"),
    ):
        client(server).ask(ASK, on_text=heard.append)
    assert heard == ["a"]


def test_a_stream_that_stalls_ends_by_the_limits():
    with (
        endpoint_server(streaming(chunk("half"), hold=True)) as server,
        pytest.raises(EndpointError, match="sent nothing for 0.5 seconds"),
    ):
        client(server, limits=HASTY).ask(ASK, on_text=lambda _: None)


def test_text_that_begins_anew_is_told():
    heard = []
    good = streaming(chunk('{"words": ["a"]}', "stop"), DONE)
    with endpoint_server(streaming(chunk("half")), streaming(chunk("prose", "stop"), DONE), good) as server:
        answer = client(server, attempts=2, answers=2).ask(ASK, WORDS, on_text=heard.append)
    assert answer.value == {"words": ["a"]} and heard == ["half", "", "prose", "", '{"words": ["a"]}']


def test_what_was_recorded_streamed_is_replayed_in_one_piece(tmp_path):
    with endpoint_server(streaming(chunk("Hel"), chunk("lo", "stop"), USAGE, DONE)) as server:
        first = client(server, Recording(tmp_path / "a.jsonl")).ask(ASK, on_text=lambda _: None)
    offline = Client(Endpoint("http://127.0.0.1:1/v1", "tiny"), Recording(tmp_path / "a.jsonl", "replay"))
    heard = []
    assert offline.ask(ASK, on_text=heard.append) == first == offline.ask(ASK) and heard == ["Hello"]


def test_what_the_listener_raises_ends_the_request():
    """Ctrl-C, a closed page: the server must not write on, and be paid, for nobody."""
    for error in (KeyboardInterrupt, BrokenPipeError):
        left = threading.Event()

        def reply(handler, left=left):
            try:
                streaming(*[chunk("a ")] * 200, pause=0.05)(handler)
            except OSError:
                left.set()

        def listener(_piece, error=error):
            raise error

        with endpoint_server(reply) as server:
            with pytest.raises(error):
                client(server).ask(ASK, on_text=listener)
            assert left.wait(5)


@pytest.mark.parametrize("reply", [hanging, streaming(chunk("half"), hold=True)])
def test_cancelled_while_the_server_is_silent(reply):
    for on_text in (None, lambda _: None):
        with endpoint_server(reply) as server:
            due = time.monotonic() + 0.3
            with pytest.raises(Cancelled):
                client(server).ask(ASK, on_text=on_text, cancelled=lambda due=due: time.monotonic() > due)
            assert time.monotonic() - due < SOON


def test_a_stopped_request_is_cut_so_that_the_server_stops_too():
    left = threading.Event()

    def write_on(handler):
        try:
            handler.wfile.write(HEAD)
            while not handler.server.leaving.wait(0.02):
                handler.wfile.write(chunk("more "))
        except OSError:
            left.set()

    heard = []
    with endpoint_server(write_on) as server:
        with pytest.raises(Cancelled):
            client(server).ask(ASK, on_text=heard.append, cancelled=lambda: len(heard) > 3)
        assert left.wait(20)


def test_cancelled_in_the_pause_before_another_attempt():
    slept = []
    with endpoint_server(refusing(429, Retry_After="50")) as server:
        asking = Client(Endpoint(server.url, "tiny", limits=QUICK), sleep=slept.append)
        with pytest.raises(Cancelled):
            asking.ask(ASK, cancelled=lambda: len(slept) >= 3)
        assert slept == [0.2] * 3 and len(server.asked) == 1
        with pytest.raises(Cancelled):
            asking.ask(ASK, cancelled=lambda: True)
        assert len(server.asked) == 1


def test_what_on_text_raises_comes_through():
    def full(_: str) -> None:
        raise KeyError("full")

    with endpoint_server(streaming(chunk("half"), chunk("whole", "stop"), DONE)) as server, pytest.raises(KeyError):
        client(server).ask(ASK, on_text=full)


# ---------------------------------------------------------------- a reader of one's own


def test_a_reader_takes_what_is_complete_of_an_answer_that_was_cut_off():
    def finished(text: str) -> list[str]:
        try:
            return json.loads(text)["words"]
        except ValueError:
            whole = text.count('",')
            if not whole:
                raise AnswerError("Nothing in it is complete.") from None
            return text.split('"')[3 : 3 + 2 * whole : 2]

    cut = completion('{"words": ["one", "two", "thr', finish_reason="length")
    with endpoint_server(cut) as server:
        assert client(server).ask(ASK, WORDS, read=finished).value == ["one", "two"]
    with endpoint_server(completion('{"wor', finish_reason="length"), cut) as server:
        asking = client(server)
        assert asking.ask(ASK, read=finished, max_tokens=5).value == ["one", "two"]
        assert "cut off after 5 tokens" in server.asked[1][2]["messages"][-1]["content"]


def test_a_reader_needs_no_jsonschema(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with endpoint_server(completion("[1]")) as server:
        assert client(server).ask(ASK, {"type": "array"}, read=json.loads).value == [1]


def test_the_schema_may_be_left_out_of_the_text():
    with endpoint_server(completion("[1]")) as server:
        client(server).ask(ASK, {"type": "array"}, rule="")
        client(server).ask(ASK, {"type": "array"}, rule="Numbers.")
        client(server, structured="none").ask(ASK, {"type": "array"}, rule="")
        bare, told, none = (body for _, _, body in server.asked)
    assert bare["messages"] == ASK and bare["response_format"]
    assert told["messages"][0] == {"role": "system", "content": "Numbers."}
    assert "JSON Schema" in none["messages"][0]["content"]


# ---------------------------------------------------------------- several at once


def questions(count: int) -> list[Question]:
    return [Question([{"role": "user", "content": f"Question {k}"}], WORDS, max_tokens=20) for k in range(count)]


def test_many_questions_to_a_server_are_sent_side_by_side():
    together = []

    def slow(handler):
        together.append(1)
        deadline = time.monotonic() + 20
        while len(together) < 2 and time.monotonic() < deadline:  # only answered when two are here
            time.sleep(0.01)
        text = handler.body["messages"][-1]["content"]
        body = completion("prose" if text == "Question 1" else json.dumps({"words": [text]}))
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with endpoint_server(slow) as server:
        asking = client(server, answers=1)
        first, second, third = asking.ask_many(questions(3), parallel=2)
    assert (first.value, third.value) == ({"words": ["Question 0"]}, {"words": ["Question 2"]})
    assert isinstance(second, AnswerError)


class Batches:
    """A transport that is a model run here."""

    sees = False

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, body, on_text=None, cancelled=None):
        (answer,) = self.many([body], on_text=on_text and (lambda _, piece: on_text(piece)), cancelled=cancelled)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def many(self, bodies, on_text=None, cancelled=None):
        if cancelled is not None and cancelled():
            raise Cancelled("stopped")
        said = [body["messages"][-1]["content"] for body in bodies]
        self.batches.append([text[:12] for text in said])
        answers = []
        for row, text in enumerate(said):
            if text.startswith("Question 3"):
                answers.append(EndpointError("The model cannot answer: too long.", again=False))
                continue
            text = "prose" if text.startswith("Question 1") else json.dumps({"words": [text[:10]]})
            if on_text:
                on_text(row, text)
            answers.append(Answer(text, "stop", 5, 2, True))
        return answers


def test_many_questions_to_a_model_run_here_are_batches(tmp_path):
    model, heard = Batches(), []
    asking = Client(Endpoint("http://localhost/x", "x"), Recording(tmp_path / "a.jsonl"), transport=model)
    assert not asking.sees
    answers = asking.ask_many(questions(4), parallel=2, on_text=lambda index, piece: heard.append((index, piece)))
    assert [answer.value["words"] for answer in answers[:3]] == [["Question 0"], ["The answer"], ["Question 2"]]
    assert isinstance(answers[3], EndpointError)
    assert model.batches == [["Question 0", "Question 1"], ["Question 2", "Question 3"], ["The answer i"]]
    assert heard[1:] == [(1, "prose"), (2, '{"words": ["Question 2"]}'), (1, ""), (1, '{"words": ["The answer"]}')]
    assert (asking.usage.requests, asking.usage.refused_answers, asking.usage.prompt_tokens) == (5, 1, 20)
    again = Client(Endpoint("http://localhost/x", "x"), Recording(tmp_path / "a.jsonl", "replay"), transport=model)
    assert again.ask_many(questions(3)) == answers[:3] and len(model.batches) == 3
    with pytest.raises(Cancelled):
        Client(Endpoint("http://localhost/x", "x"), transport=model).ask_many(questions(1), cancelled=lambda: True)
