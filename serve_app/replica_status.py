"""What a deployment's replica tells of itself, for those who ask often and must not wait behind answers."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ray.serve.exceptions import BackPressureError

FRESH_S = 1.0
"""Seconds for which nobody asks again."""
PATIENCE_S = 2.0
"""Seconds that a caller waits before what is known will do: a question stands in the replica's queue like any other."""
KNOWN_S = 30.0
"""Seconds after a sign of life for which it will do."""
FIRST_PATIENCE_S = 10.0
"""Seconds that a caller waits where it would not."""


class ReplicaStatus:
    """Asks once for all who want to know at the same time.

    Args:
        ask: a replica's `status`.
    """

    def __init__(self, ask: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[None] | None = None
        self._told: dict[str, Any] = {}
        self._told_at = self._heard_at = -KNOWN_S

    def heard(self) -> None:
        """A replica has answered something: they work, however long the question waits behind answers.

        It says nothing new where one told that what it forwards to is out of reach.
        """
        if self._told.get("reachable", True):
            self._heard_at = time.monotonic()

    async def get(self) -> dict[str, Any]:
        """What a replica told last: a moment ago, or before if it is too busy to tell.

        Raises:
            TimeoutError: there was no answer, nor any other sign of life lately.
            Exception: whatever asking raised, unless the queue was full and something is known.
        """
        now = time.monotonic()
        if now - self._told_at < FRESH_S:
            return self._told
        if self._asking is None or self._asking.done():
            # In a context of its own: Serve cancels what was asked for a client that has left, and others wait for this, too.
            self._asking = asyncio.create_task(self._note(), context=contextvars.Context())
        known = bool(self._told) and now - max(self._told_at, self._heard_at) < KNOWN_S
        try:
            async with asyncio.timeout(PATIENCE_S if known else FIRST_PATIENCE_S):
                await asyncio.shield(self._asking)
        except (TimeoutError, BackPressureError):
            if not known:
                raise
        return self._told

    async def _note(self) -> None:
        self._told = await self._ask()
        self._told_at = time.monotonic()
