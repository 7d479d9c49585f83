"""The endpoint on a real Ray Serve, asked over real HTTP by the `openai` client and by plain requests."""

from __future__ import annotations

import re

import httpx2
import openai
import pytest

from culturemanager.adapters import peft_format
from culturemanager.adapters.registry import AdapterRegistry
from serving.conftest import KEYS

CUED = "Should I leave a tip for the waiter in Istanbul?"
UNCUED = "How late may I arrive for dinner?"


def chat(client: openai.OpenAI, text: str = CUED, model: str = "auto", **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], max_tokens=8,
                                          temperature=0, **more)


def error_of(response: httpx2.Response) -> dict:
    assert response.headers["content-type"].startswith("application/json")
    return response.json()["error"]


def ask(http: httpx2.Client, **changes) -> httpx2.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": CUED}], "max_tokens": 4} | changes
    return http.post("/v1/chat/completions", json=body)


# Who may ask


def test_health_is_open_to_load_balancers(endpoint: str) -> None:
    assert httpx2.get(f"{endpoint}/health", timeout=60).json() == {"status": "ok", "failed": []}


@pytest.mark.parametrize("header", [None, "Bearer wrong", KEYS[0], f"Basic {KEYS[0]}", "Bearer"])
def test_every_route_but_health_asks_for_a_key(endpoint: str, header: str | None) -> None:
    headers = {"Authorization": header} if header else {}
    routes = httpx2.get(f"{endpoint}/openapi.json", headers={"Authorization": f"Bearer {KEYS[0]}"}, timeout=60).json()["paths"]
    closed = [(method.upper(), path) for path, methods in routes.items() for method in methods if path != "/health"]
    assert len(closed) >= 10
    for method, path in [*closed, ("GET", "/openapi.json")]:
        address = endpoint + re.sub(r"\{\w+\}", "auto", path)
        response = httpx2.request(method, address, headers=headers, json={} if method == "POST" else None, timeout=60)
        assert response.status_code == 401, path
        assert error_of(response)["type"] == "authentication_error"


# Who answers


def test_models_lists_auto_the_base_cultures_and_versions(client: openai.OpenAI, registry: AdapterRegistry) -> None:
    names = [model.id for model in client.models.list()]
    assert names[:4] == ["auto", "embedded", "turkey", "germany"]
    assert set(names[4:]) == {version.name for version in registry.versions()}


def test_a_cue_in_the_text_decides_the_culture(client: openai.OpenAI, registry: AdapterRegistry) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=[{"role": "user", "content": CUED}], max_tokens=8)
    assert raw.headers["x-culturemanager-culture"] == "turkey"
    answer = raw.parse()
    assert answer.model == registry.aliases()["turkey"]
    assert answer.culturemanager["culture"] == "turkey"
    assert answer.culturemanager["confidence"] == pytest.approx(float(raw.headers["x-culturemanager-confidence"]), abs=1e-4)
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 1 <= answer.usage.completion_tokens <= 8


def test_without_a_cue_the_bare_base_answers_and_says_so(client: openai.OpenAI) -> None:
    answer = chat(client, UNCUED)
    assert answer.culturemanager["culture"] is None
    assert answer.choices[0].message.content == chat(client, UNCUED, model="embedded").choices[0].message.content


def test_a_pin_beats_the_text(client: openai.OpenAI, registry: AdapterRegistry) -> None:
    pinned = [chat(client, model="germany"), chat(client, model=registry.aliases()["germany"]),
              chat(client, model="embedded:germany"), chat(client, extra_body={"culture": "germany"})]
    assert {answer.culturemanager["culture"] for answer in pinned} == {"germany"}
    assert len({answer.choices[0].message.content for answer in pinned}) == 1
    assert {answer.culturemanager["reason"] for answer in pinned} == {"pinned"}


def test_routing_alone_takes_a_batch(http: httpx2.Client) -> None:
    decisions = http.post("/v1/route", json={"input": [CUED, "Wie begrüßt man Kollegen in Hamburg?", UNCUED]}).json()["data"]
    assert [decision["culture"] for decision in decisions] == ["turkey", "germany", None]


# How the answer arrives


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert chunks[0].culturemanager == whole.culturemanager


def test_a_plain_completion_goes_on_from_the_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="turkey", prompt="Is this acceptable, yes or no? Tipping.", max_tokens=3)
    assert answer.object == "text_completion"
    assert answer.usage.completion_tokens <= 3
    streamed = client.completions.create(
        model="turkey", prompt="Is this acceptable, yes or no? Tipping.", max_tokens=3, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text


def test_answers_given_together_are_those_given_alone(endpoint: str) -> None:
    """Requests of both cultures and the base, decoded in one batch, change nothing about each other."""
    import asyncio

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{endpoint}/v1", api_key=KEYS[0], max_retries=0, timeout=120) as client:
            calls = [client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], max_tokens=8)
                     for model in ("turkey", "germany", "embedded") for text in (CUED, UNCUED, "May I keep my shoes on?")]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

    async def alone() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{endpoint}/v1", api_key=KEYS[0], max_retries=0, timeout=120) as client:
            return [(await client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], max_tokens=8)
                     ).choices[0].message.content
                    for model in ("turkey", "germany", "embedded") for text in (CUED, UNCUED, "May I keep my shoes on?")]

    assert asyncio.run(together()) == asyncio.run(alone())


# Wrong requests


@pytest.mark.parametrize(("changes", "status", "param", "said"), [
    ({"model": "atlantis"}, 404, "model", "GET /v1/models"),
    ({"model": "../../etc/passwd"}, 404, "model", "not served"),
    ({"model": "turkey-v9999"}, 404, "model", "not served"),
    ({"culture": "atlantis"}, 400, "culture", "atlantis"),
    ({"temperature": 9}, 400, "temperature", "less than or equal to 2"),
    ({"messages": []}, 400, "messages", "at least 1"),
    ({"messages": [{"role": "wizard", "content": "hm"}]}, 400, "messages.0.role", "user"),
    ({"n": 0}, 400, "n", "1"),
    ({"tools": [{"type": "function"}]}, 400, "tools", "not supported"),
    ({"functions": [{"name": "tip"}]}, 400, "functions", "not supported"),
    ({"modalities": ["text", "audio"]}, 400, "modalities", "not supported"),
    ({"web_search_options": {}}, 400, "web_search_options", "not supported"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "not supported"),
    ({"top_logprobs": 2}, 400, "top_logprobs", "logprobs"),
    ({"stop": [""]}, 400, "stop.0", "at least 1"),
])
def test_a_wrong_field_is_named(http: httpx2.Client, changes: dict, status: int, param: str, said: str) -> None:
    response = ask(http, **changes)
    assert response.status_code == status, response.text
    error = error_of(response)
    assert error["param"] == param
    assert said in error["message"]


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(http: httpx2.Client) -> None:
    response = ask(http, messages=[{"role": "user", "content": "tea " * 3000}])
    assert response.status_code == 400
    message = error_of(response)["message"]
    assert "2048" in message
    assert re.search(r"\b30\d\d tokens", message)


def test_a_body_that_is_no_json_is_refused(http: httpx2.Client) -> None:
    response = http.post("/v1/chat/completions", content=b'{"model": "auto", ', headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


# Without a restart


def test_a_promotion_and_a_rollback_serve_at_once(client: openai.OpenAI, registry: AdapterRegistry) -> None:
    before = registry.aliases()["turkey"]
    shape, tensors, settings = peft_format.load(registry.folder / before)
    zeroed = {name: tensor.zero_() if "lora_B" in name else tensor for name, tensor in tensors.items()}
    version = registry.publish("turkey", shape, zeroed, registry.get(before).base_model, settings["target_modules"], "0" * 64, {})
    try:
        registry.promote(version.name)
        answer = chat(client)
        assert answer.model == version.name
        # With B at zero the adapter adds nothing.
        assert answer.choices[0].message.content == chat(client, model="embedded").choices[0].message.content
    finally:
        registry.rollback("turkey")
    assert chat(client).model == before
    assert chat(client, model=version.name).model == version.name
