"""A web site on loopback: each path answers as a test says, and every request is remembered."""

from __future__ import annotations

import contextlib
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """One HTTP response."""

    body: bytes | str = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/html; charset=utf-8"})
    send: Callable[[BaseHTTPRequestHandler], None] | None = None
    """Writes the whole response itself."""


Route = Reply | list[Reply]
"""A list is gone through request by request; its last entry stays."""


def redirect(to: str, status: int = 302) -> Reply:
    return Reply(status=status, headers={"Location": to})


@dataclass
class Site:
    """A running site."""

    routes: dict[str, Route]
    port: int = 0
    requests: list[str] = field(default_factory=list)
    """Paths asked for, queries included."""
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(urllib.parse.urlsplit(request).path == path for request in self.requests)

    def query(self, number: int) -> dict[str, str]:
        """The query parameters of a request."""
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.requests[number]).query))


@contextlib.contextmanager
def site(routes: dict[str, Route], wrap: Callable[[Any], Any] = lambda sock: sock) -> Iterator[Site]:
    """Serve until the block is left. `/robots.txt` is missing unless it is a route; other paths answer 404."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = urllib.parse.urlsplit(self.path).path
            with lock:
                running.requests.append(self.path)
                running.headers.append({name.lower(): value for name, value in self.headers.items()})
                route = routes.get(path, Reply(b"no such page", 404))
                reply = (route.pop(0) if len(route) > 1 else route[0]) if isinstance(route, list) else route
            # A client that has seen enough closes its end.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if reply.send is not None:
                    reply.send(self)
                    self.close_connection = True
                else:
                    body = reply.body.encode() if isinstance(reply.body, str) else reply.body
                    self.send_response(reply.status)
                    for name, value in {**reply.headers, "Content-Length": str(len(body))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body)
                self.wfile.flush()

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # the client went away

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = wrap(server.socket)
    running = Site(routes, server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
