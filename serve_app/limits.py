"""A bound on request bodies, before anything parses them."""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.responses import error_body


class LimitBody:
    """ASGI middleware: a body beyond the limit is answered with 413 and read no further.

    The limit is the application's `state.most_bytes`, which is known when a replica starts.

    Args:
        app: what answers requests within the limit (Starlette passes it by this name).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._application = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        most_bytes = scope["app"].state.most_bytes
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > most_bytes:
            await self._refuse(send, most_bytes)
            return
        # A body without a declared length is read here, at most to the limit, and then handed on.
        held: list[Message] = []
        size = 0
        while not held or held[-1].get("more_body"):
            message = await receive()
            held.append(message)
            size += len(message.get("body", b""))
            if size > most_bytes:
                await self._refuse(send, most_bytes)
                return

        async def replay() -> Message:
            return held.pop(0) if held else await receive()

        await self._application(scope, replay, send)

    async def _refuse(self, send: Send, most_bytes: int) -> None:
        message = f"The body is larger than {most_bytes} bytes. Send fewer or shorter texts."
        body = json.dumps(error_body(message, "invalid_request_error")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                   (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})
