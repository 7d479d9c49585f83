"""A killed model replica costs nothing but the streams that it had begun."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import httpx2
import openai

from serving.conftest import KEYS

CUED = "Should I leave a tip for the waiter in Istanbul?"


def test_requests_outlive_killed_replicas(endpoint: str, http: httpx2.Client) -> None:
    async def one(client: openai.AsyncOpenAI, end: float) -> list[str]:
        told = []
        while time.monotonic() < end:
            answer = await client.chat.completions.create(
                model="turkey", messages=[{"role": "user", "content": CUED}], max_tokens=6)
            told.append(answer.choices[0].message.content)
        return told

    async def load() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{endpoint}/v1", api_key=KEYS[0], max_retries=0, timeout=180) as client:
            end = time.monotonic() + 20
            asking = [asyncio.create_task(one(client, end)) for _ in range(4)]
            for _ in range(2):
                await asyncio.sleep(3)
                pid = await asyncio.to_thread(lambda: http.get("/v1/status", timeout=120).json()["engine"]["pid"])
                os.kill(pid, signal.SIGKILL)
            return [text for some in await asyncio.gather(*asking) for text in some]

    told = asyncio.run(load())
    assert len(told) >= 4
    assert len(set(told)) == 1
    assert http.get("/health", timeout=120).json()["status"] == "ok"
