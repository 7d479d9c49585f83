"""The endpoint under load: many clients, replicas killed, memory watched.

    python -m benchmarks.endurance examples/etiquette.yaml --json benchmarks/results/endurance.json

Serves a finished project on this machine, asks it from many clients at once for some minutes (whole answers and streams,
cultures mixed), and kills a model replica with SIGKILL so many times meanwhile. Counted are answers by status, requests that
failed before anything was streamed (there should be none), streams that broke off after they had begun (a killed replica
takes those with it), and a replica's memory at the start, after each tenth of the time and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import psutil
from rich.console import Console

from benchmarks.circumstances import circumstances
from culturemanager import artifacts, cluster, config
from culturemanager.storage import write_json

PORT = 8438
TIMEOUT_S = 180.0
MEMORY_SAMPLES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", help="project file of a finished run")
    parser.add_argument("--clients", type=int, default=64, help="asking at the same time (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=300, help="how long they ask (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="model replicas killed meanwhile (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=1, help="model replicas (default: %(default)s)")
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    arguments = parser.parse_args()
    with cluster.connect():
        from ray import serve

        from serve_app.app import build

        project = config.load(arguments.project)
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(build({"project": str(Path(arguments.project).resolve()), "set": [f"serving.replicas={arguments.replicas}"],
                         "without_keys": True}), name="culturemanager")
        questions = [item.inputs for item in artifacts.items(project).items]
        texts = [str(next(iter(inputs.values()))) for inputs in questions]
        figures = asyncio.run(endure(texts, arguments.clients, arguments.seconds, arguments.kills))
        serve.shutdown()
    figures["measured"] = circumstances()
    write_json(arguments.json, figures)
    Console().print_json(data=figures)


async def endure(texts: list[str], clients: int, seconds: float, kills: int) -> dict[str, Any]:
    """Ask for so long and kill so often; the counts."""
    end = time.monotonic() + seconds
    statuses: Counter[str] = Counter()
    seconds_taken: list[float] = []
    limits = httpx2.Limits(max_connections=clients + 4)
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", timeout=TIMEOUT_S, limits=limits) as http:
        memory = [await replica_memory_mb(http)]
        watching = asyncio.create_task(watch_memory(http, seconds, memory))
        asking = [asyncio.create_task(one_client(http, texts, random.Random(number), end, statuses, seconds_taken))
                  for number in range(clients)]
        killed = 0
        while killed < kills and time.monotonic() < end:
            await asyncio.sleep(seconds / (kills + 1))
            os.kill((await status(http))["pid"], signal.SIGKILL)
            killed += 1
        await asyncio.gather(*asking, watching)
        memory.append(await replica_memory_mb(http))
    taken = sorted(seconds_taken)
    return {"clients": clients, "seconds": seconds, "killed": killed, "answers": dict(statuses),
            "failed_before_streaming": sum(n for told, n in statuses.items() if told not in ("200", "429", "broke off")),
            "p50_s": round(taken[len(taken) // 2], 2), "p99_s": round(taken[int(len(taken) * 0.99)], 2),
            "replica_memory_mb": memory}


async def watch_memory(http: httpx2.AsyncClient, seconds: float, memory: list[int]) -> None:
    """Append what a replica takes after each part of the time."""
    for _ in range(MEMORY_SAMPLES):
        await asyncio.sleep(seconds / MEMORY_SAMPLES)
        memory.append(await replica_memory_mb(http))


async def replica_memory_mb(http: httpx2.AsyncClient) -> int:
    """Resident memory of a replica that lives."""
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):  # killed since it told its number
            return round(psutil.Process((await status(http))["pid"]).memory_info().rss / 2**20)


async def status(http: httpx2.AsyncClient) -> dict[str, Any]:
    """A replica's own figures; waits while none answers."""
    while True:
        response = await http.get("/v1/status")
        if response.status_code == 200:
            return response.json()["engine"]
        await asyncio.sleep(0.5)


async def one_client(http: httpx2.AsyncClient, texts: list[str], draw: random.Random, end: float, statuses: Counter[str],
                     seconds_taken: list[float]) -> None:
    while time.monotonic() < end:
        body = {"model": "auto", "messages": [{"role": "user", "content": draw.choice(texts)}], "max_tokens": draw.randint(4, 24)}
        begun = time.monotonic()
        told = await (streamed(http, body) if draw.random() < 0.3 else whole(http, body))
        statuses[told] += 1
        if told == "200":
            seconds_taken.append(time.monotonic() - begun)
        if told == "429":
            await asyncio.sleep(1)


async def whole(http: httpx2.AsyncClient, body: dict[str, Any]) -> str:
    try:
        return str((await http.post("/v1/chat/completions", json=body)).status_code)
    except httpx2.HTTPError as error:
        return type(error).__name__


async def streamed(http: httpx2.AsyncClient, body: dict[str, Any]) -> str:
    begun = False
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
            async for line in response.aiter_lines():
                begun = begun or line.startswith("data:")
                if line.startswith("data: {\"error\""):
                    return "broke off"
                if line == "data: [DONE]":
                    return "200"
            return str(response.status_code) if response.status_code != 200 else "broke off"
    except httpx2.HTTPError as error:
        return "broke off" if begun else type(error).__name__


if __name__ == "__main__":
    main()
