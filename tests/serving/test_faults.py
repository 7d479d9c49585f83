"""A killed model replica costs nothing but the streams that it had begun, a killed ingress nothing but what it held."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import httpx2
import openai

from serving.conftest import KEYS
from tests.ray_processes import worker_processes

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


def test_a_killed_ingress_fails_only_what_it_held(endpoint: str, http: httpx2.Client) -> None:
    body = {"model": "turkey", "messages": [{"role": "user", "content": CUED}], "max_tokens": 6}
    end = time.monotonic() + 25

    async def one(client: httpx2.AsyncClient) -> list[tuple[float, bool]]:
        """When each request began, and whether it went well."""
        told = []
        while time.monotonic() < end:
            begun = time.monotonic()
            try:
                told.append((begun, (await client.post("/v1/chat/completions", json=body)).status_code == 200))
            except httpx2.HTTPError:
                told.append((begun, False))
        return told

    async def load() -> tuple[float, list[list[tuple[float, bool]]]]:
        headers = {"Authorization": f"Bearer {KEYS[0]}"}
        async with httpx2.AsyncClient(base_url=endpoint, headers=headers, timeout=180) as client:
            asking = [asyncio.create_task(one(client)) for _ in range(4)]
            await asyncio.sleep(5)
            (ingress,) = worker_processes("ray::ServeReplica:culturemanager:Ingress")
            os.kill(ingress, signal.SIGKILL)
            return time.monotonic(), await asyncio.gather(*asking)

    killed, told = asyncio.run(load())
    assert [begun for client in told for begun, well in client if not well and begun > killed] == []
    assert all([well for _, well in client].count(False) <= 1 for client in told)
    assert all(begun > killed and well for begun, well in (client[-1] for client in told))
    assert http.get("/health", timeout=120).json()["status"] == "ok"
