"""A chat endpoint on loopback that speaks OpenAI's wire format and does what a test tells it to."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[dict[str, Any], int], "Answer"]
"""The request's JSON and its number from 0 to what is sent back."""


@dataclass
class Answer:
    """One HTTP response."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: Callable[[], object] = lambda: None
    """Runs before anything is sent."""
    promised: int = 0
    """More bytes than the body has are announced before the connection is closed."""
    between_bytes: Callable[[], object] | None = None
    """Runs before each single byte of the body."""


def says(text: str | None, *, finish_reason: str = "stop", prompt_tokens: int = 11, completion_tokens: int = 7,
         wait: Callable[[], object] = lambda: None) -> Answer:
    """A chat completion."""
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
                      "total_tokens": prompt_tokens + completion_tokens}}
    return Answer(json.dumps(body).encode(), wait=wait)


def fails(status: int, message: str = "no", *, code: str | None = None, **headers: str) -> Answer:
    """An error as OpenAI words it."""
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return Answer(json.dumps(body).encode(), status, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class ChatServer:
    """A running endpoint: its address, and every request it got."""

    base_url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def prompt(self, number: int) -> str:
        """The content of the last message of a request."""
        return self.requests[number]["messages"][-1]["content"]


@contextlib.contextmanager
def chat_server(behaviour: Behaviour) -> Iterator[ChatServer]:
    """Serve until the block is left."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # One write a response, or Nagle's algorithm and delayed acknowledgement add 40 ms to each.
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                number = len(state.requests)
                state.requests.append(request)
                state.headers.append({name.lower(): value for name, value in self.headers.items()})
            answer = behaviour(request, number) if self.path == "/v1/chat/completions" else fails(404, f"no {self.path}")
            answer.wait()
            # A client that gave up waiting has closed its end.
            with contextlib.suppress(ConnectionError):
                self.send_response(answer.status)
                for name, value in {"content-type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answer.body) + answer.promised))
                self.end_headers()
                for piece in [answer.body] if answer.between_bytes is None else (bytes([b]) for b in answer.body):
                    if answer.between_bytes:
                        answer.between_bytes()
                    self.wfile.write(piece)
                    self.wfile.flush()
            self.close_connection = self.close_connection or bool(answer.promised)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = ChatServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
