"""One endpoint for every test of this folder: the small run on a real Ray Serve, asked over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
import yaml

from culturemanager import artifacts, config
from culturemanager.adapters.registry import AdapterRegistry
from serve_app.keys import key_sum

KEYS = ("a-key-for-tests", "another-key-for-tests")
TURKISH_KEY = "a-key-for-turkey-only"
SLOW_KEY = "a-key-for-two-requests-a-minute"
URL = "http://127.0.0.1:8431"


@pytest.fixture(scope="package")
def endpoint(small_run: Path) -> Iterator[str]:
    """The small run's endpoint, with API keys; its URL."""
    from ray import serve

    from serve_app.app import build

    file = small_run.parent / "keys.yaml"
    file.write_text(yaml.safe_dump({"keys": [
        {"name": "turkish", "sha256": key_sum(TURKISH_KEY), "cultures": ["turkey"]},
        {"name": "slow", "sha256": key_sum(SLOW_KEY), "requests_per_minute": 2},
    ]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CULTUREMANAGER_API_KEYS", ", ".join(KEYS))
        application = build({"project": str(small_run), "set": [f"serving.keys_file={file}", "serving.max_body_kb=512"]})
    serve.start(http_options={"host": "127.0.0.1", "port": 8431})
    serve.run(application, name="culturemanager")
    yield URL
    serve.shutdown()


@pytest.fixture(scope="package")
def client(endpoint: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{endpoint}/v1", api_key=KEYS[0], max_retries=0, timeout=300) as opened:
        yield opened


@pytest.fixture(scope="package")
def http(endpoint: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=endpoint, headers={"Authorization": f"Bearer {KEYS[1]}"}, timeout=300) as opened:
        yield opened


@pytest.fixture(scope="package")
def registry(small_run: Path) -> AdapterRegistry:
    return artifacts.registry(config.load(small_run))
