"""What is recorded of a request: figures for Prometheus, one JSON line for the log, headers for the client."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from culturemanager import metrics
from culturemanager.records import Route

LOGGER = logging.getLogger("ray.serve")
"""Serve's own logger of a replica, so that lines land in the logs that the dashboard shows."""


class RequestRecord:
    """One request from its arrival to its end. Texts are recorded only where the operator wants them.

    Args:
        number: identifies the request, for the client (`x-request-id`) and in the log.
        key: the name of the API key it came with.
        model: as asked for.
        streamed: whether the answer is a stream.
    """

    def __init__(self, number: str, key: str, model: str, streamed: bool) -> None:
        self._started = time.monotonic()
        self._told: dict[str, Any] = {"request": number, "key": key, "model": model, "streamed": streamed}
        self._route: Route | None = None
        self._first: float | None = None

    def routed(self, route: Route, adapter: str) -> None:
        """The router has decided."""
        self._route = route
        self._told |= {"culture": route.culture or None, "reason": route.reason, "confidence": round(route.confidence, 4),
                       "adapter": adapter or None}
        metrics.count("culturemanager_routes", 1, culture=route.culture or "none", reason=route.reason)
        metrics.observe("culturemanager_router_confidence", route.confidence, culture=route.culture or "none")

    def first_token(self, ago: float = 0.0) -> None:
        """The first token is there, for so many seconds by now."""
        if self._first is None:
            self._first = time.monotonic() - self._started - ago

    def finish(self, status: int, tokens: dict[str, Any] | None = None, texts: dict[str, Any] | None = None) -> None:
        """The answer is out, or will not come."""
        culture = (self._route.culture if self._route else "") or "none"
        seconds = time.monotonic() - self._started
        metrics.count("culturemanager_requests", 1, culture=culture, status=status)
        if tokens:
            metrics.observe("culturemanager_request_seconds", seconds, culture=culture)
            metrics.count("culturemanager_served_tokens", tokens["prompt_tokens"], culture=culture, kind="prompt")
            metrics.count("culturemanager_served_tokens", tokens["completion_tokens"], culture=culture, kind="completion")
            cached = tokens["prompt_tokens_details"]["cached_tokens"]
            metrics.count("culturemanager_served_tokens", cached, culture=culture, kind="cached")
        if self._first is not None:
            metrics.observe("culturemanager_first_token_seconds", self._first, culture=culture)
            self._told["first_token_seconds"] = round(self._first, 4)
        record = self._told | {"status": status, "seconds": round(seconds, 4)} | (tokens or {}) | (texts or {})
        LOGGER.info("request %s", json.dumps(record, ensure_ascii=False))

    def headers(self) -> dict[str, str]:
        """What the client is told beside the body."""
        headers = {"x-request-id": self._told["request"]}
        if self._route:
            headers |= {"x-culturemanager-culture": self._route.culture or "none", "x-culturemanager-reason": self._route.reason,
                        "x-culturemanager-confidence": f"{self._route.confidence:.4f}"}
        return headers
