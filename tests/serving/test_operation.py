"""What an operator counts on: keys with their limits, trials of a version, a failing version passed over, bounded bodies."""

from __future__ import annotations

import asyncio
import json
import random
import time

import httpx2
import openai
import pytest

from culturemanager.adapters import peft_format
from culturemanager.adapters.registry import VERSION_FILE, AdapterRegistry
from serve_app.versions import place
from serving.conftest import KEYS, SLOW_KEY, TURKISH_KEY

CUED = "Should I leave a tip for the waiter in Istanbul?"


def ask(http: httpx2.Client, text: str = CUED, key: str | None = None, **changes) -> httpx2.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 2} | changes
    return http.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"} if key else {})


def publish(registry: AdapterRegistry, change) -> str:
    """A new version of Turkey's serving adapter with changed weights; its name."""
    serving = registry.aliases()["turkey"]
    shape, tensors, settings = peft_format.load(registry.folder / serving)
    changed = {name: change(name, tensor.clone()) for name, tensor in tensors.items()}
    return registry.publish("turkey", shape, changed, registry.get(serving).base_model, settings["target_modules"], "0" * 64,
                            {}).name


# Keys


def test_a_key_of_one_culture_reaches_no_other(http: httpx2.Client) -> None:
    assert ask(http, key=TURKISH_KEY).status_code == 200
    assert ask(http, key=TURKISH_KEY, model="embedded").status_code == 200
    for changes in ({"model": "germany"}, {"culture": "germany"}, {"text": "Do people tip in Hamburg?"}):
        response = ask(http, key=TURKISH_KEY, **changes)
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "culture_not_allowed"
    listed = http.get("/v1/models", headers={"Authorization": f"Bearer {TURKISH_KEY}"}).json()["data"]
    assert [model["id"] for model in listed][:3] == ["auto", "embedded", "turkey"]
    assert not [model["id"] for model in listed if model["id"].startswith("germany")]
    assert http.get("/v1/models/germany", headers={"Authorization": f"Bearer {TURKISH_KEY}"}).status_code == 404


def test_a_key_beyond_its_rate_is_told_when_to_come_back(http: httpx2.Client) -> None:
    answers = [ask(http, key=SLOW_KEY) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 30
    assert answers[-1].json()["error"]["type"] == "rate_limit_error"
    assert ask(http).status_code == 200


# Versions


def test_one_model_is_described(client: openai.OpenAI) -> None:
    assert client.models.retrieve("turkey").id == "turkey"
    with pytest.raises(openai.NotFoundError, match="atlantis"):
        client.models.retrieve("atlantis")


def test_a_trial_gets_its_share_and_keeps_its_conversations(http: httpx2.Client, registry: AdapterRegistry) -> None:
    serving = registry.aliases()["turkey"]
    trial = publish(registry, lambda name, tensor: tensor.zero_() if "lora_B" in name else tensor)
    texts = [f"May {number} guests come to a home in Istanbul?" for number in range(24)]
    registry.try_out(trial, 0.4)
    try:
        assert http.get("/v1/status").json()["trials"] == {"turkey": {"version": trial, "share": 0.4}}
        models = [ask(http, text).json()["model"] for text in texts]
        assert models == [trial if place("turkey", text) < 0.4 else serving for text in texts]
        assert 3 < models.count(trial) < 18
        begun = [{"role": "system", "content": "You are polite."}]
        grown = [{"role": "assistant", "content": "Two."}, {"role": "user", "content": "And in Ankara?"}]
        asked = [[*begun, {"role": "user", "content": text}, *grown] for text in texts]
        assert [ask(http, messages=messages).json()["model"] for messages in asked] == models
    finally:
        assert registry.rollback("turkey") == serving
    assert {ask(http, text).json()["model"] for text in texts[:6]} == {serving}


@pytest.mark.parametrize("damage", ["weights beyond measure", "a flipped bit"])
def test_a_bad_version_is_named_and_the_old_one_goes_on_serving(http: httpx2.Client, registry: AdapterRegistry,
                                                                damage: str) -> None:
    serving = registry.aliases()["turkey"]
    bad = publish(registry, lambda _, tensor: tensor.fill_(1e30) if damage == "weights beyond measure" else tensor)
    registry.promote(bad)
    try:
        if damage == "a flipped bit":
            weights = registry.folder / bad / "adapter_model.safetensors"
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
        for stream in (False, True):
            response = ask(http, stream=stream)
            assert response.status_code == 200
            assert serving in response.text and bad not in response.text
        until = time.monotonic() + 60
        while bad not in (health := http.get("/health").json())["failed"] and time.monotonic() < until:
            time.sleep(0.2)  # what is told may be a moment old
        assert health["status"] == "degraded" and bad in health["failed"] and isinstance(health["failed"], list)
        assert bad in http.get("/v1/status").json()["failed"][bad]
        assert ask(http, model=bad).status_code == 503
    finally:
        assert registry.rollback("turkey") == serving


def test_a_version_without_its_manifest_is_refused_and_takes_no_other_with_it(http: httpx2.Client,
                                                                              registry: AdapterRegistry) -> None:
    damaged = publish(registry, lambda _, tensor: tensor)
    manifest = registry.folder / damaged / VERSION_FILE
    content = manifest.read_bytes()
    manifest.write_bytes(content[:-20])
    try:
        listed = [model["id"] for model in http.get("/v1/models").json()["data"]]
        assert damaged not in listed
        for whole in registry.aliases().values():
            assert whole in listed and ask(http, model=whole).json()["model"] == whole
        refusal = ask(http, model=damaged)
        assert refusal.status_code == 503 and refusal.headers["retry-after"] == "60"
        assert refusal.json()["error"]["type"] == "api_error" and VERSION_FILE in refusal.json()["error"]["message"]
        assert ask(http, key=TURKISH_KEY, model="germany-v0099").status_code == 403
        assert ask(http, model="turkey-v0099").status_code == 404
    finally:
        manifest.write_bytes(content)


def test_promotions_under_load_fail_nothing_and_mix_nothing(endpoint: str, registry: AdapterRegistry) -> None:
    """Two versions take turns ten times or more while clients ask; every answer is wholly one version's."""
    serving = registry.aliases()["turkey"]
    other = publish(registry, lambda name, tensor: tensor.zero_() if "lora_B" in name else tensor)
    told: list[tuple[str, str]] = []
    ended = False

    async def one(client: openai.AsyncOpenAI) -> None:
        while not ended:
            answer = await client.chat.completions.create(
                model="turkey", messages=[{"role": "user", "content": CUED}], max_tokens=8)
            told.append((answer.model, answer.choices[0].message.content))

    async def load() -> None:
        nonlocal ended
        async with openai.AsyncOpenAI(base_url=f"{endpoint}/v1", api_key=KEYS[0], max_retries=0, timeout=120) as client:
            asking = [asyncio.create_task(one(client)) for _ in range(6)]
            pauses, until, turns = random.Random(0), time.monotonic() + 300, 0
            # Answers that take as long as the turns may show the clients one version only for a while.
            while turns < 10 or (len({model for model, _ in told}) < 2 and time.monotonic() < until):
                registry.promote(other)
                await asyncio.sleep(pauses.uniform(0.1, 0.8))
                registry.rollback("turkey")
                await asyncio.sleep(pauses.uniform(0.1, 0.8))
                turns += 1
            ended = True
            await asyncio.gather(*asking)

    asyncio.run(load())
    assert {model for model, _ in told} == {serving, other}
    assert len(set(told)) == 2  # each version has one answer to the question


# Clients that go away, and bodies that do not fit


def test_a_client_that_goes_away_frees_its_row(http: httpx2.Client) -> None:
    body = {"model": "turkey", "prompt": "Once upon a time", "max_tokens": 1500, "temperature": 1.9, "seed": 3}
    with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        next(response.iter_lines())
        assert http.get("/v1/status").json()["engine"]["running"] == 1
    with pytest.raises(httpx2.TimeoutException):
        http.post("/v1/completions", json=body, timeout=1.5)
    for _ in range(40):
        if http.get("/v1/status").json()["engine"]["running"] == 0:
            break
        time.sleep(0.25)
    else:
        raise AssertionError(http.get("/v1/status").json())


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_beyond_the_limit_is_refused(http: httpx2.Client, declared: bool) -> None:
    big = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "tea " * 200_000}]}).encode()
    content = big if declared else (big[start:start + 65536] for start in range(0, len(big), 65536))
    response = http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert "524288 bytes" in response.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"[" * 50_000, b'{"a":' * 20_000, b"\xff\xfe{}", b'{"model": "\xc3\x28"}', b"", b"null", b"[]"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/route", "/tokenize", "/detokenize"])
def test_a_body_that_is_no_request_is_the_clients_fault(http: httpx2.Client, path: str, body: bytes) -> None:
    refused(http.post(path, content=body, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize("field", ['"content": "\\ud800"', '"content": "a"}], "temperature": NaN, "x": [{"a": 1',
                                   '"content": "a"}], "max_tokens": 1e400, "x": [{"a": 1'])
def test_values_that_are_no_text_and_no_number_are_the_clients_fault(http: httpx2.Client, field: str) -> None:
    body = f'{{"model": "auto", "messages": [{{"role": "user", {field}}}]}}'.encode()
    refused(http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}))


def refused(response: httpx2.Response) -> None:
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["error"]["message"]


# What is recorded


def test_metrics_are_told_by_culture(http: httpx2.Client) -> None:
    assert ask(http).status_code == 200
    text = http.get("/metrics").text
    for name in ("culturemanager_requests_total", "culturemanager_request_seconds_bucket",
                 "culturemanager_first_token_seconds_count", "culturemanager_served_tokens_total",
                 "culturemanager_router_confidence_sum"):
        assert any(line.startswith(name) and 'culture="turkey"' in line for line in text.splitlines()), name


def test_tokens_that_an_earlier_prompt_began_with_are_told(http: httpx2.Client) -> None:
    text = f"{CUED} " + "The evening was long, the tea was hot and everybody at the table was kind to us. " * 4
    first = ask(http, text, model="turkey").json()["usage"]
    again = ask(http, text, model="turkey").json()["usage"]
    elsewhere = ask(http, text, model="germany").json()["usage"]
    assert first["prompt_tokens"] == again["prompt_tokens"] > 64
    assert again["prompt_tokens_details"]["cached_tokens"] >= 64
    assert first["prompt_tokens_details"]["cached_tokens"] == elsewhere["prompt_tokens_details"]["cached_tokens"]
    assert first["prompt_tokens_details"]["cached_tokens"] < 32
    streamed = ask(http, text, model="turkey", stream=True, stream_options={"include_usage": True}).text.split("\n\n")
    assert json.loads(streamed[-3].removeprefix("data: "))["usage"] == again
    counted = [line for line in http.get("/metrics").text.splitlines() if line.startswith("culturemanager_served_tokens_total")]
    (cached,) = [line for line in counted if 'culture="turkey"' in line and 'kind="cached"' in line]
    assert float(cached.rpartition(" ")[2]) >= 128
