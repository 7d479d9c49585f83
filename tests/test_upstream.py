"""The engine that is somewhere else: against a server on loopback that does what a test says, and against our own endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import pickle
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from culturemanager import artifacts, config
from culturemanager.errors import AdapterError, ConfigError, ModelError, OverloadedError, RequestError, ServingError
from culturemanager.sections.model import UpstreamConfig
from serve_app.upstream import TokenCounter, Upstream, read_key
from serve_app.upstream_wire import message_of

KEY = "sk-upstream-51d7a9e2"
CHAT = {"messages": [{"role": "user", "content": "May I tip?"}], "adapter": "turkey-v0001", "max_new_tokens": 8,
        "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": None, "stop": [], "logprobs": None, "echo": False,
        "guided_choice": None, "model": "auto", "culture": None, "allowed_cultures": None}
PLAIN = {**CHAT, "messages": None, "prompt": "Tipping is"}


# A server that does what a test says

Behaviour = Callable[["Handler", int], None]
"""The handler, whose `asked` is the request, and the request's number from 0."""


class Handler(BaseHTTPRequestHandler):
    """What a behaviour answers with."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    running: Running
    asked: dict[str, Any]

    def do_POST(self) -> None:
        self.asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.running.lock:
            number = len(self.running.asked)
            self.running.asked.append(self.asked)
            self.running.paths.append(self.path)
            self.running.keys.append(self.headers.get("authorization"))
        with contextlib.suppress(ConnectionError):
            self.running.behaviour(self, number)

    def do_GET(self) -> None:
        self.whole(200 if self.path == "/v1/models" else 404, json.dumps({"data": [{"id": "b", "max_model_len": 2048}]}))

    def whole(self, status: int, body: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content_type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def send(self, data: str) -> None:
        raw = data.encode()
        self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        self.close_connection = True

    def wait_until_client_leaves(self) -> None:
        self.connection.settimeout(30)
        try:
            left = self.connection.recv(1) == b""
        except ConnectionError:
            left = True
        if left:
            self.running.left.set()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Running:
    """A running server, and every request it got."""

    behaviour: Behaviour
    base_url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a client went away from an answer that was not over."""
    lock: Any = field(default_factory=threading.Lock)


@contextlib.contextmanager
def server(behaviour: Behaviour, port: int = 0) -> Iterator[Running]:
    """Serve until the block is left."""
    running = Running(behaviour)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    listening = Server(("127.0.0.1", port), type("Bound", (Handler,), {"running": running}))
    running.base_url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield running
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def event(body: Any) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def says(text: str, reason: str | None = None, **more: Any) -> str:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason, "logprobs": None} | more]})


def continues(text: str, reason: str | None = None, **more: Any) -> str:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": reason, "logprobs": None} | more]})


ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
USAGE = event({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}})
DONE = "data: [DONE]\n\n"
HELLO = (ROLE, says("Hel"), says("lo"), says("", "stop"), USAGE, DONE)


def streams(*events: str) -> Behaviour:
    def behave(handler: Handler, _: int) -> None:
        handler.begin()
        for one in events:
            handler.send(one)
        handler.end()

    return behave


def breaks_off_after(*events: str) -> Behaviour:
    def behave(handler: Handler, _: int) -> None:
        handler.begin()
        for one in events:
            handler.send(one)
        handler.break_off()

    return behave


def stays_silent_after(*events: str) -> Behaviour:
    def behave(handler: Handler, _: int) -> None:
        handler.begin()
        for one in events:
            handler.send(one)
        handler.wait_until_client_leaves()

    return behave


def refuses(status: int, message: str = "no", **headers: str) -> Behaviour:
    return lambda handler, _: handler.whole(status, json.dumps({"error": {"message": message, "code": status}}), **headers)


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """The given ones, the last for ever."""
    return lambda handler, number: behaviours[min(number, len(behaviours) - 1)](handler, number)


# Asking


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


async def uncounted(request: Any, answer: str) -> tuple[int, int]:
    raise AssertionError("the server tells the counts")


@contextlib.asynccontextmanager
async def upstream(running: Running | str, count: Any = uncounted, key: str = KEY, **settings: Any) -> AsyncIterator[Upstream]:
    base_url = running if isinstance(running, str) else running.base_url
    opened = Upstream(UpstreamConfig(base_url=base_url, **settings), "the-base", key, count, backoff_s=0.01)
    try:
        yield opened
    finally:
        await opened.close()


def pieces(running: Running | str, request: dict[str, Any] = CHAT, **settings: Any) -> list[dict[str, Any]]:
    async def ask() -> list[dict[str, Any]]:
        async with upstream(running, **settings) as opened:
            return [piece async for piece in opened.generate(request)]

    return asyncio.run(ask())


def whole(running: Running | str, request: dict[str, Any] = CHAT, **settings: Any) -> dict[str, Any]:
    async def ask() -> dict[str, Any]:
        async with upstream(running, **settings) as opened:
            return await opened.complete(request)

    return asyncio.run(ask())


def failure(kind: type[Exception], behaviour: Behaviour, request: dict[str, Any] = CHAT, **settings: Any) -> Any:
    """The error a request ends in; it names the server, stays on one line and never shows the key."""
    with server(behaviour) as running, pytest.raises(kind) as caught:
        pieces(running, request, **settings)
    assert type(caught.value) is kind
    assert "The server at 127.0.0.1:" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    return caught.value


# What is asked


def test_a_chat_is_asked_by_the_adapters_name_and_streamed_with_usage() -> None:
    with server(streams(*HELLO)) as running:
        pieces(running)
    assert running.paths == ["/v1/chat/completions"]
    assert running.keys == [f"Bearer {KEY}"]
    assert running.asked == [{
        "model": "turkey-v0001", "messages": CHAT["messages"], "stream": True, "stream_options": {"include_usage": True},
        "n": 1, "temperature": 0.0, "top_p": 1.0, "max_tokens": 8}]


def test_a_plain_completion_carries_every_setting_that_is_not_the_default() -> None:
    with server(streams(continues("x", "stop"), USAGE, DONE)) as running:
        pieces(running, {**PLAIN, "prompt": [5, 6], "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 3, "stop": ["\n"]})
    assert running.paths == ["/v1/completions"]
    assert running.asked == [{
        "model": "turkey-v0001", "prompt": [5, 6], "stream": True, "stream_options": {"include_usage": True}, "n": 1,
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 3, "stop": ["\n"], "max_tokens": 8}]


def test_without_a_key_none_is_sent() -> None:
    with server(streams(*HELLO)) as running:
        pieces(running, key="")
    assert running.keys == [None]


@pytest.mark.parametrize(("adapter", "model_format", "model"), [
    ("", "{base}:{adapter}", "the-base"),
    ("turkey-v0001", "{base}:{adapter}", "the-base:turkey-v0001"),
    ("turkey-v0001", "/adapters/{adapter}", "/adapters/turkey-v0001"),
])
def test_models_are_named_as_the_server_names_them(adapter: str, model_format: str, model: str) -> None:
    with server(streams(*HELLO)) as running:
        pieces(running, {**CHAT, "adapter": adapter}, model_format=model_format)
    assert running.asked[0]["model"] == model


@pytest.mark.parametrize(("field", "value"), [("echo", True), ("guided_choice", ["yes", "no"])])
def test_what_servers_do_not_do_alike_is_refused_before_asking(field: str, value: Any) -> None:
    with server(streams(*HELLO)) as running, pytest.raises(RequestError, match=field):
        pieces(running, {**PLAIN, field: value})
    assert running.asked == []


# What comes back


def test_pieces_come_as_sent_and_the_last_has_reason_and_true_counts() -> None:
    with server(streams(*HELLO)) as running:
        assert pieces(running) == [
            {"text": "Hel", "finish_reason": None, "prompt_tokens": 0, "completion_tokens": 1, "logprobs": None},
            {"text": "lo", "finish_reason": None, "prompt_tokens": 0, "completion_tokens": 2, "logprobs": None},
            {"text": "", "finish_reason": "stop", "prompt_tokens": 11, "completion_tokens": 2, "logprobs": None}]


def test_a_whole_answer_is_the_stream_put_together() -> None:
    with server(streams(*HELLO)) as running:
        piece = whole(running)
    assert piece.pop("since_first_token_s") > 0
    assert piece == {"text": "Hello", "finish_reason": "stop", "prompt_tokens": 11, "completion_tokens": 2, "logprobs": None}


def test_each_piece_arrives_before_the_next_is_made() -> None:
    second = threading.Event()

    def behave(handler: Handler, _: int) -> None:
        handler.begin()
        handler.send(says("one"))
        assert second.wait(20)
        handler.send(says("two", "length") + USAGE + DONE)
        handler.end()

    async def ask(running: Running) -> list[str]:
        async with upstream(running) as opened:
            texts = []
            async for piece in opened.generate(CHAT):
                texts.append(piece["text"])
                second.set()
            return texts

    with server(behave) as running:
        assert asyncio.run(ask(running)) == ["one", "two", ""]


def test_text_that_looks_like_a_line_end_and_a_stream_cut_anywhere_stay_whole() -> None:
    text = "a\u2028b\x85c\u00e9\U0001f642"
    raw = (says(text, "stop") + ": a comment\n\n" + USAGE.replace("\n\n", "\r\n\r\n") + DONE).encode()

    def behave(handler: Handler, _: int) -> None:
        handler.begin()
        for place in range(len(raw)):
            handler.wfile.write(b"1\r\n" + raw[place:place + 1] + b"\r\n")
        handler.end()

    with server(behave) as running:
        assert whole(running)["text"] == text


def test_usage_may_come_with_any_event_and_done_may_be_missing() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    last = event({"choices": [{"delta": {"content": "x"}, "finish_reason": "length"}], "usage": usage})
    with server(streams(last, ROLE)) as running:
        piece = whole(running)
    assert (piece["text"], piece["finish_reason"], piece["prompt_tokens"], piece["completion_tokens"]) == ("x", "length", 5, 1)


def test_an_answer_whose_tokens_nobody_can_count_is_an_answer(caplog: pytest.LogCaptureFixture,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    async def count(request: Any, answer: str) -> tuple[int, int]:
        raise ModelError("no tokenizer here")

    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    with server(streams(says("Hel"), says("lo", "stop"), DONE)) as running:
        piece = whole(running, count=count)
    assert (piece["text"], piece["finish_reason"], piece["prompt_tokens"], piece["completion_tokens"]) == ("Hello", "stop", 0, 2)
    assert "no tokenizer here" in caplog.text


def test_tokens_are_counted_here_where_the_server_does_not_tell() -> None:
    async def count(request: Any, answer: str) -> tuple[int, int]:
        return len(request["messages"]), len(answer)

    with server(streams(says("Hello", "stop"), DONE)) as running:
        piece = whole(running, count=count)
    assert (piece["prompt_tokens"], piece["completion_tokens"]) == (1, 5)


def test_log_probabilities_of_a_chat() -> None:
    told = {"content": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105],
                         "top_logprobs": [{"token": "Hi", "logprob": -0.5}, {"token": "Yo", "logprob": -1.5}]}]}
    with server(streams(says("Hi", logprobs=told), says("", "stop"), USAGE, DONE)) as running:
        piece = whole(running, {**CHAT, "logprobs": 2})
    assert (running.asked[0]["logprobs"], running.asked[0]["top_logprobs"]) == (True, 2)
    assert piece["logprobs"] == [
        {"token": "Hi", "token_id": None, "logprob": -0.5, "top": [["Hi", None, -0.5], ["Yo", None, -1.5]]}]


def test_log_probabilities_of_a_plain_completion() -> None:
    told = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0], "text_offset": [0, 1],
            "top_logprobs": [{"a": -1.0}, {"c": -0.1, "b": -2.0}]}
    with server(streams(continues("ab", "length", logprobs=told), USAGE, DONE)) as running:
        piece = whole(running, {**PLAIN, "logprobs": 1})
    assert running.asked[0]["logprobs"] == 1
    assert piece["logprobs"] == [
        {"token": "a", "token_id": None, "logprob": -1.0, "top": [["a", None, -1.0]]},
        {"token": "b", "token_id": None, "logprob": -2.0, "top": [["c", None, -0.1], ["b", None, -2.0]]}]


def test_a_server_without_log_probabilities_is_said_to_be_one() -> None:
    assert "`logprobs`" in str(failure(RequestError, streams(*HELLO), {**CHAT, "logprobs": 0}))


# Trouble before the first token


@pytest.mark.parametrize("trouble", [
    refuses(503), refuses(502), lambda handler, _: handler.break_off(), breaks_off_after(ROLE),
    streams(event({"error": {"message": "warming up", "code": 503}})),
], ids=["503", "502", "closed", "broken off", "503 in the stream"])
def test_another_try_is_made_before_the_first_token(trouble: Behaviour) -> None:
    with server(in_turn(trouble, trouble, streams(*HELLO))) as running:
        assert whole(running)["text"] == "Hello"
    assert len(running.asked) == 3
    assert running.asked[0] == running.asked[2]


def test_a_server_that_comes_up_late_is_reached() -> None:
    with server(streams(*HELLO)) as running:
        address = running.base_url
    port = int(address.rpartition(":")[2].removesuffix("/v1"))

    async def ask() -> str:
        async with upstream(address, retries=50) as opened:
            answer = asyncio.create_task(opened.complete(CHAT))
            await asyncio.sleep(0.1)
            with server(streams(*HELLO), port):
                return (await answer)["text"]

    assert asyncio.run(ask()) == "Hello"


def test_tries_come_to_an_end() -> None:
    with server(refuses(503, "warming up")) as running:
        with pytest.raises(ServingError, match=r"answered 503 \(warming up\)"):
            pieces(running, retries=1)
        assert len(running.asked) == 2
        with pytest.raises(ServingError):
            pieces(running, retries=0)
        assert len(running.asked) == 3
    with pytest.raises(ServingError, match="cannot be reached"):
        pieces(running)


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 504, 302])
def test_other_refusals_are_final(status: int) -> None:
    with server(refuses(status)) as running, pytest.raises((RequestError, AdapterError, ServingError)):
        pieces(running)
    assert len(running.asked) == 1


# Trouble after it


@pytest.mark.parametrize("trouble", [
    breaks_off_after(ROLE, says("Hel")), streams(ROLE, says("Hel")),
    streams(ROLE, says("Hel"), event({"error": {"message": "out of memory", "code": 503}})),
], ids=["broken off", "ended early", "an error"])
def test_no_other_try_is_made_after_the_first_token(trouble: Behaviour) -> None:
    async def ask(running: Running) -> list[str]:
        texts = []
        async with upstream(running) as opened:
            with pytest.raises(ServingError):
                async for piece in opened.generate(CHAT):
                    texts.append(piece["text"])
        return texts

    with server(in_turn(trouble, streams(*HELLO))) as running:
        assert asyncio.run(ask(running)) == ["Hel"]
    assert len(running.asked) == 1


@pytest.mark.parametrize("events", [(), (ROLE, says("Hel"))], ids=["before the first token", "between tokens"])
def test_silence_ends_in_an_error_and_closes_the_connection(events: tuple[str, ...]) -> None:
    with server(stays_silent_after(*events)) as running:
        with pytest.raises(ServingError, match=r"nothing for 0\.3 s"):
            pieces(running, timeout_s=0.3)
        assert running.left.wait(10)
    assert len(running.asked) == 1


def test_comments_are_no_sign_of_life_and_a_slow_answer_is_no_silence() -> None:
    def comments(handler: Handler, _: int) -> None:
        handler.begin()
        while True:
            handler.send(": still here\n\n")
            threading.Event().wait(0.05)

    def slowly(handler: Handler, _: int) -> None:
        handler.begin()
        for one in (says("a"), says("b"), says("c"), says("", "stop"), USAGE, DONE):
            threading.Event().wait(0.5)
            handler.send(one)
        handler.end()

    with server(comments) as running, pytest.raises(ServingError, match="sent nothing"):
        pieces(running, timeout_s=0.5)
    with server(slowly) as running:
        assert whole(running, timeout_s=2.5)["text"] == "abc"


def test_a_caller_that_leaves_closes_the_connection() -> None:
    async def leave_after_one(running: Running) -> None:
        async with upstream(running) as opened:
            answer = opened.generate(CHAT)
            assert (await anext(answer))["text"] == "Hel"
            await answer.aclose()
            assert await asyncio.to_thread(running.left.wait, 10)
            assert (await opened.status())["running"] == 0

    async def cancelled_while_waiting(running: Running) -> None:
        async with upstream(running) as opened:
            answer = asyncio.create_task(opened.complete(CHAT))
            while not running.asked:
                await asyncio.sleep(0.01)
            answer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await answer
            assert await asyncio.to_thread(running.left.wait, 10)

    with server(stays_silent_after(ROLE, says("Hel"))) as running:
        asyncio.run(leave_after_one(running))
    with server(stays_silent_after()) as running:
        asyncio.run(cancelled_while_waiting(running))


# What a refusal means


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_wrong_request_is_told_in_the_servers_words(status: int) -> None:
    assert "context length is 2048" in str(failure(RequestError, refuses(status, "the context length is 2048")))


@pytest.mark.parametrize("behaviour", [
    refuses(404, "The model `turkey-v0001` does not exist."),
    streams(event({"error": {"message": "The following requested LoRA adapters are not loaded: turkey-v0001", "code": 400}})),
], ids=["vLLM", "SGLang"])
def test_an_unknown_adapter_is_named_with_the_way_to_load_it(behaviour: Behaviour) -> None:
    error = failure(AdapterError, behaviour)
    for part in ("turkey-v0001", "/v1/load_lora_adapter", "adapters/turkey-v0001"):
        assert part in str(error)


def test_an_unknown_base_points_to_the_setting() -> None:
    error = failure(ServingError, refuses(404), {**CHAT, "adapter": ""})
    assert "'the-base'" in str(error) and "serving.upstream.base_model" in str(error)


@pytest.mark.parametrize(("headers", "wait"), [({}, 1), ({"retry_after": "7"}, 7), ({"retry_after": "0.2"}, 1),
                                               ({"retry_after": "86400"}, 300), ({"retry_after": "soon"}, 1)])
def test_an_overloaded_server_says_when_to_come_again(headers: dict[str, str], wait: int) -> None:
    error = failure(OverloadedError, refuses(429, "slow down", **headers))
    assert error.retry_after_s == wait
    assert pickle.loads(pickle.dumps(error)).retry_after_s == wait


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_the_operators_matter_and_is_not_shown(status: int) -> None:
    error = failure(ServingError, refuses(status, f"Incorrect API key provided: {KEY}."), api_key_env="VLLM_KEY")
    assert "VLLM_KEY" in str(error)
    assert "[API key]" in str(error)


@pytest.mark.parametrize("behaviour", [
    streams(f"data: {KEY}\n\n"), streams(event([])), streams(event({"choices": "none"})), streams(event({"choices": [{}]})),
    streams(event({"choices": [{"delta": {"content": 7}}]})), streams(DONE), streams(),
    streams('data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n'),
    streams(event({"choices": [], "usage": {"prompt_tokens": "many", "completion_tokens": 1}})),
    streams("data: " + "[" * 100_000 + "\n\n"), streams(f"data: {'x' * 2_000_000}\n\n"),
    lambda handler, _: handler.whole(200, "<html>Welcome</html>", content_type="text/html"),
    lambda handler, _: handler.whole(200, json.dumps({"choices": [{"message": {"content": "not streamed"}}]})),
    refuses(500, KEY), refuses(302, location="https://elsewhere.example.org/"),
])
def test_rubbish_is_an_error_that_names_the_server(behaviour: Behaviour) -> None:
    failure(ServingError, behaviour)


def test_a_server_that_speaks_no_http_is_named() -> None:
    def behave(handler: Handler, _: int) -> None:
        handler.wfile.write(b"220 mail.example.org ESMTP\r\n")
        handler.break_off()

    failure(ServingError, behave)


@pytest.mark.parametrize(("body", "said"), [
    ('{"error": {"message": "a\\nb"}}', "a b"), ('{"error": "a", "error_type": "x"}', "a"),
    ('{"object": "error", "message": "a"}', "a"), ('{"detail": "Not Found"}', "Not Found"), ("plain", "plain"), ("", ""),
    ("[" * 100_000, "[" * 300), ("x" * 999, "x" * 300),
])
def test_every_form_of_an_error_body_is_read(body: str, said: str) -> None:
    assert message_of(body) == said


# Health, and the key


def test_an_outage_is_logged_once_and_is_no_reason_to_restart(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        with server(streams(*HELLO)) as running:
            async with upstream(running) as opened:
                await opened.check_health()
                assert await opened.status() == {"upstream": running.base_url, "reachable": True, "running": 0, "context": 2048}
        async with upstream(running) as opened:
            await opened.check_health()
            await opened.check_health()
            assert (await opened.status())["reachable"] is False
        with pytest.raises(RuntimeError):
            await opened.check_health()

    # Where Serve has run before, its logger passes nothing on to the others.
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    try:
        asyncio.run(check())
    finally:
        logger.removeHandler(caplog.handler)
    assert len({id(record) for record in caplog.records if "cannot be reached" in record.getMessage()}) == 1


def test_the_key_comes_from_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = UpstreamConfig(base_url="http://host/v1", api_key_env="UPSTREAM_KEY")
    monkeypatch.setenv("UPSTREAM_KEY", f" {KEY}\n")
    assert read_key(settings) == KEY
    assert read_key(UpstreamConfig(base_url="http://host/v1")) == ""
    for wrong in ("", "k\u00e9y", "a\nb"):
        monkeypatch.setenv("UPSTREAM_KEY", wrong)
        with pytest.raises(ServingError, match="UPSTREAM_KEY") as caught:
            read_key(settings)
        assert not wrong or wrong not in str(caught.value)


@pytest.mark.parametrize("address", ["host:8000/v1", "ftp://host/v1", "http://", "http://user:secret@host/v1",
                                     "http://host:port/v1", "http://host/v1?key=secret"])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(tmp_path: Path, address: str) -> None:
    path = tmp_path / "project.yaml"
    path.write_text("name: T\nworkspace: w\ncultures: [turkey]\ntasks: [t.yaml]\n"
                    f"serving: {{upstream: {{base_url: '{address}'}}}}\n")
    with pytest.raises(ConfigError, match=r"serving\.upstream\.base_url: expected `http://host:8000/v1`") as caught:
        config.load(path)
    assert "secret" not in str(caught.value)


# Our own endpoint behind our own router


URL = "http://127.0.0.1:8435"
TEXTS = ("Should I leave a tip for the waiter in Istanbul?", "How late may I arrive for dinner?", "May I keep my shoes on?")


@dataclass
class Endpoints:
    """The same project twice: with our own engine, and with that endpoint as its upstream server."""

    own: openai.OpenAI
    front: openai.OpenAI
    between: Running
    """Stands between the two: passes requests on, unless a text says otherwise."""


def relays(handler: Handler, _: int) -> None:
    text = json.dumps(handler.asked)
    if "wait for ever" in text:
        stays_silent_after(ROLE, says("Well"))(handler, 0)
    elif "slow down" in text:
        refuses(429, "slow down", retry_after="7")(handler, 0)
    elif "the cable is cut" in text:
        breaks_off_after(ROLE, says("Well"))(handler, 0)
    else:
        with httpx2.stream("POST", f"{URL}{handler.path}", json=handler.asked, timeout=60) as response:
            if response.status_code != 200:
                handler.whole(response.status_code, response.read().decode())
                return
            handler.begin()
            for part in response.iter_text():
                handler.send(part)
            handler.end()


@pytest.fixture(scope="module")
def endpoints(small_run: Path):
    from ray import serve

    from serve_app.app import build

    with pytest.MonkeyPatch.context() as patch, server(relays) as between:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.delenv("CULTUREMANAGER_API_KEYS", raising=False)
        serve.start(http_options={"host": "127.0.0.1", "port": 8435})
        serve.run(build({"project": str(small_run), "without_keys": True}), name="own", route_prefix="/")
        upstream = f"serving.upstream={{base_url: '{between.base_url}', retries: 1}}"
        front_application = build({"project": str(small_run), "set": [upstream], "without_keys": True})
        serve.run(front_application, name="front", route_prefix="/front")
        with (openai.OpenAI(base_url=f"{URL}/v1", api_key="any", max_retries=0, timeout=300) as own,
              openai.OpenAI(base_url=f"{URL}/front/v1", api_key="any", max_retries=0, timeout=300) as front):
            yield Endpoints(own, front, between)
        serve.shutdown()


def ask(client: openai.OpenAI, text: str, model: str, **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], max_tokens=8, **more)


@pytest.mark.parametrize("model", ["auto", "germany", "embedded"])
def test_both_engines_say_the_same(endpoints: Endpoints, model: str) -> None:
    for text in TEXTS:
        own, front = (ask(client, text, model) for client in (endpoints.own, endpoints.front))
        assert front.choices[0].message.content == own.choices[0].message.content
        assert front.choices[0].finish_reason == own.choices[0].finish_reason
        assert front.usage == own.usage
        assert front.model == own.model
        assert front.culturemanager == own.culturemanager


def test_both_engines_stream_the_same(endpoints: Endpoints) -> None:
    for text in TEXTS:
        heard = []
        for client in (endpoints.own, endpoints.front):
            chunks = list(ask(client, text, "turkey", stream=True, stream_options={"include_usage": True}))
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            heard.append((said, chunks[-1].usage, [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1]))
        assert heard[0] == heard[1]
        assert heard[1][0] == ask(endpoints.own, text, "turkey").choices[0].message.content


def test_both_engines_sample_and_complete_the_same(endpoints: Endpoints) -> None:
    settings = {"prompt": "Tipping in Izmir is", "max_tokens": 6, "temperature": 0.8, "seed": 5, "stop": ["."], "logprobs": 2,
                "extra_body": {"top_k": 20}}
    own, front = (client.completions.create(model="turkey", **settings) for client in (endpoints.own, endpoints.front))
    assert front.choices[0].text == own.choices[0].text
    assert front.choices[0].logprobs.tokens == own.choices[0].logprobs.tokens
    assert front.choices[0].logprobs.token_logprobs == pytest.approx(own.choices[0].logprobs.token_logprobs, abs=1e-4)
    assert endpoints.between.asked[-1]["top_k"] == 20


def test_the_adapter_is_asked_for_by_its_directorys_name(endpoints: Endpoints, small_run: Path) -> None:
    ask(endpoints.front, TEXTS[0], "auto")
    assert endpoints.between.asked[-1]["model"] == artifacts.registry(config.load(small_run)).aliases()["turkey"]
    ask(endpoints.front, TEXTS[0], "embedded")
    assert endpoints.between.asked[-1]["model"] == "embedded"


def test_a_prompt_too_long_for_the_server_is_refused_in_its_words(endpoints: Endpoints) -> None:
    with pytest.raises(openai.BadRequestError, match="2048"):
        ask(endpoints.front, "tea " * 3000, "turkey")


def test_an_overloaded_server_is_told_on(endpoints: Endpoints) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        ask(endpoints.front, "slow down", "turkey")
    assert caught.value.response.headers["retry-after"] == "7"


def test_a_stream_that_breaks_ends_in_an_error_and_the_next_is_answered(endpoints: Endpoints) -> None:
    with pytest.raises(openai.APIError, match=r"broke off: The server at 127\.0\.0\.1:.* closed the connection"):
        list(ask(endpoints.front, "the cable is cut", "turkey", stream=True))
    assert ask(endpoints.front, TEXTS[0], "turkey").choices[0].message.content


def test_a_client_that_leaves_ends_the_servers_work(endpoints: Endpoints) -> None:
    stream = ask(endpoints.front, "wait for ever", "turkey", stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in [next(stream)]) == "Well"
    assert not endpoints.between.left.is_set()
    stream.close()
    assert endpoints.between.left.wait(20)


def test_tokens_are_counted_as_our_own_engine_counts_them(endpoints: Endpoints, small_run: Path) -> None:
    count = TokenCounter(config.load(small_run).base_path)
    chat = {"messages": [{"role": "user", "content": TEXTS[0]}]}
    own = ask(endpoints.own, TEXTS[0], "turkey")
    assert asyncio.run(count(chat, own.choices[0].message.content))[0] == own.usage.prompt_tokens
    own = endpoints.own.completions.create(model="turkey", prompt=TEXTS[1], max_tokens=2)
    assert asyncio.run(count({"prompt": TEXTS[1]}, own.choices[0].text))[0] == own.usage.prompt_tokens
