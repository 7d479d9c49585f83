"""A killed model replica costs nothing but the streams that it had begun, a killed ingress nothing but what it held."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator

import httpx2
import openai
import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from culturemanager.errors import CorruptFileError
from culturemanager.records import Route
from serve_app.app import FULL
from serve_app.failures import failure
from serve_app.ingress import Ingress, _together
from serving.conftest import KEYS, URL
from tests.ray_processes import worker_processes

STAND_IN = f"{URL}/stand-in"
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


# A router that is broken, or has no room


@pytest.fixture(scope="module")
def stand_in(ray_cluster) -> Iterator[httpx2.Client]:
    """The ingress before a router that answers one request at a time, lets two wait, and can do nothing else."""
    from ray import serve

    little = {"num_cpus": 0.1}

    @serve.deployment(max_ongoing_requests=1, max_queued_requests=2, backpressure_config=FULL, ray_actor_options=little)
    class Router:
        async def answer(self, job: dict) -> dict:
            await asyncio.sleep(1)
            return {"route": Route("", 1.0, "pinned"), "adapter": "", "text": "Yes.", "finish_reason": "stop", "prompt_tokens": 1,
                    "completion_tokens": 1, "logprobs": None}

        async def stream(self, job: dict) -> AsyncIterator[dict]:
            told = await self.answer(job)
            yield {"route": told["route"], "adapter": ""}
            yield told

        async def detokenize(self, tokens: list[int]) -> str:
            await asyncio.sleep(1)
            return "Yes."

        def status(self) -> None:
            raise CorruptFileError("/home/somebody/aliases.json is damaged.")

        models = route = tokenizer_info = sources = tokenize = health = context = lambda self, *_: self.status()

    serve.start(http_options={"host": "127.0.0.1", "port": 8431})
    ingress = Ingress.options(max_ongoing_requests=100, ray_actor_options=little)
    serve.run(ingress.bind(Router.bind(), [], 2**20, False), name="stand-in", route_prefix="/stand-in")
    with httpx2.Client(base_url=STAND_IN, timeout=60) as opened:
        yield opened
    serve.delete("stand-in")


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/status", None), ("/v1/models", None), ("/v1/models/turkey", None), ("/tokenizer_info", None),
    ("/v1/cultures/turkey/sources?query=tips", None), ("/v1/route", {"input": CUED}), ("/tokenize", {"prompt": CUED}),
])
def test_every_route_says_in_openais_shape_what_is_wrong_behind_it(stand_in: httpx2.Client, path: str, body: dict | None) -> None:
    response = stand_in.request("POST" if body else "GET", path, json=body)
    assert response.status_code == 503 and response.headers["retry-after"] == "60"
    assert response.json()["error"] == {"message": "/home/somebody/aliases.json is damaged.", "type": "api_error", "param": None,
                                        "code": None}


def test_health_which_is_open_tells_no_path(stand_in: httpx2.Client) -> None:
    response = stand_in.get("/health")
    assert response.status_code == 503 and "somebody" not in response.text
    assert response.json()["error"]["message"].startswith("The model is not ready.")


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/chat/completions", {"model": "auto", "messages": [{"role": "user", "content": CUED}]}),
    ("/v1/chat/completions", {"model": "auto", "messages": [{"role": "user", "content": CUED}], "stream": True}),
    ("/v1/completions", {"model": "auto", "prompt": CUED}), ("/detokenize", {"tokens": [5]}),
])
def test_a_full_queue_is_told_in_openais_shape_with_when_to_come_back(stand_in: httpx2.Client, path: str, body: dict) -> None:
    async def together() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(base_url=STAND_IN, timeout=60) as client:
            return await asyncio.gather(*(client.post(path, json=body) for _ in range(8)))

    answers = asyncio.run(together())
    assert {answer.status_code for answer in answers} == {200, 429}
    for refused in (answer for answer in answers if answer.status_code == 429):
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"] == {"message": "Too many requests are waiting. Try again in 1 s.",
                                           "type": "rate_limit_error", "param": None, "code": None}


def test_a_choice_that_found_no_room_keeps_no_other_from_being_cancelled() -> None:
    class Call:
        """A call of the router whose request was never taken, or was."""

        def __init__(self, error: Exception | None) -> None:
            self.error, self.cancelled = error, False

        def cancel(self) -> None:
            if self.error:
                raise self.error
            self.cancelled = True

    calls = [Call(None), Call(BackPressureError(1, 1)), Call(None)]
    with pytest.raises(CorruptFileError), _together(calls):
        raise CorruptFileError("one of them failed")
    assert [call.cancelled for call in calls] == [True, False, True]


def test_the_first_token_is_that_of_the_choice_that_came_first(stand_in: httpx2.Client) -> None:
    def seconds() -> tuple[float, float]:
        lines = [line.split() for line in stand_in.get("/metrics").text.splitlines() if "_seconds_sum" in line]
        return tuple(sum(float(value) for name, value in lines if name.startswith(f"culturemanager_{figure}_seconds_sum"))
                     for figure in ("first_token", "request"))

    before = seconds()
    assert stand_in.post("/v1/completions", json={"model": "auto", "prompt": [CUED, CUED]}).status_code == 200
    first, whole = (after - earlier for after, earlier in zip(seconds(), before, strict=True))
    assert 2 <= whole and 1 <= first < whole - 0.8  # this router takes a second for each, one after the other


@pytest.mark.parametrize(("wait", "told"), [(None, "1"), (0.2, "1"), (2.5, "3")])
def test_the_time_to_come_back_is_a_whole_number_of_seconds(wait: float | None, told: str) -> None:
    full = BackPressureError(5, 4, retry_after_s=wait)
    for error in (full, RayTaskError("answer", "...", full).as_instanceof_cause()):  # our own handle's queue, and the router's
        answer = failure(error)
        assert (answer.status, answer.headers) == (429, {"Retry-After": told}) and f"in {told} s." in answer.message
