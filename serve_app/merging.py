"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

Stream = AsyncIterator[dict[str, Any]]


async def merged(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """What the streams yield, as it comes, with each stream's number. The first error of one ends all.

    Raises:
        Exception: whatever a stream raised.
    """
    if len(streams) == 1:
        async for piece in streams[0]:
            yield 0, piece
        return
    waiting = {asyncio.ensure_future(anext(stream)): number for number, stream in enumerate(streams)}
    try:
        while waiting:
            ready, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in sorted(ready, key=waiting.__getitem__):
                number = waiting.pop(future)
                try:
                    piece = future.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(streams[number]))] = number
                yield number, piece
    finally:
        for future in waiting:
            future.cancel()
