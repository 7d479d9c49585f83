"""An engine that is somewhere else: forwards to any OpenAI-compatible multi-LoRA server, by model name.

    UpstreamReplica    the deployment in place of `Replica`; reads the project and the key
    └── Upstream       the client of one server
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import random
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx2

from culturemanager import config, metrics
from culturemanager.errors import AdapterError, CultureManagerError, ModelError, OverloadedError, RequestError, ServingError
from culturemanager.providers.llm_wire import MAX_RETRY_AFTER_S, retry_after_s
from culturemanager.sections.model import UpstreamConfig
from serve_app.responses import Piece
from serve_app.upstream_wire import Chunk, body_of, error_of, message_of, path_of, read_chunk

MAX_BACKOFF_S = 10.0
MAX_ERROR_BYTES = 65_536
PROBE_S = 3.0
"""Seconds that a question about health waits for the server."""
SGLANG_UNKNOWN = "LoRA adapters are not loaded"
"""In place of status 404."""
CONNECTING = (httpx2.ConnectError, httpx2.ConnectTimeout)
UNREACHED = (*CONNECTING, httpx2.NetworkError, httpx2.RemoteProtocolError)

CountTokens = Callable[[Mapping[str, Any], str], Awaitable[tuple[int, int]]]
"""A request and its answer's text to the tokens of both."""

log = logging.getLogger("ray.serve")
"""Serve's own logger, so that an outage lands in the logs that the dashboard shows."""


class UnreachedError(Exception):
    """The server cannot be reached, is not ready, or closed the connection. Its text goes on after "The server at ..."."""


class Upstream:
    """Has one server answer, in the form that `Replica` answers in.

    Args:
        settings: address, names and limits.
        base_model: what the server calls the bare base.
        key: the server's API key; empty: none is sent.
        count_tokens: for servers that do not tell the usage of a stream, as LoRAX.
        backoff_s: first wait before another try, in seconds; doubled each time, up to 10.
    """

    def __init__(self, settings: UpstreamConfig, base_model: str, key: str, count_tokens: CountTokens, *,
                 backoff_s: float = 0.5) -> None:
        self._settings, self._base_model, self._key = settings, base_model, key
        self._count_tokens, self._backoff_s = count_tokens, backoff_s
        self._name = f"The server at {urllib.parse.urlsplit(settings.base_url).netloc}"
        self._running = 0
        self._was_reachable = True
        self._context: int | None = None
        # The time from token to token is kept here, since blank lines and comments of a stream would pass as progress
        # there. Serve bounds the requests of a replica, so the pool does not.
        self._client = httpx2.AsyncClient(
            base_url=settings.base_url, headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(None, connect=settings.connect_timeout_s), limits=httpx2.Limits(max_connections=None))

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    # ---- answers

    async def generate(self, request: Mapping[str, Any]) -> AsyncIterator[Piece]:
        """Stream an answer in pieces. Leaving early closes the connection, and so ends the server's work.

        The last piece has the finish reason and the true counts. Until then ``prompt_tokens`` is 0, and
        ``completion_tokens`` counts the pieces. Without ``max_new_tokens`` the server's own limit holds.

        Raises:
            RequestError: the server refuses the request, or cannot be asked this way.
            AdapterError: it does not know the adapter.
            OverloadedError: it has no room now.
            ServingError: it cannot be reached, is silent for too long, fails, or sends what nobody can read.
        """
        body = body_of(request, self._model(request["adapter"]))
        self._running += 1
        try:
            for attempt in range(1 + self._settings.retries):
                begun = False
                try:
                    async with contextlib.aclosing(self._pieces(request, body)) as pieces:
                        async for piece in pieces:
                            begun = True
                            yield piece
                    return
                except UnreachedError as error:
                    if begun or attempt == self._settings.retries:
                        raise ServingError(f"{self._name} {error}. Check that it runs, and `serving.upstream`.") from None
                await asyncio.sleep(min(self._backoff_s * 2**attempt, MAX_BACKOFF_S) * random.uniform(0.5, 1.5))
        finally:
            self._running -= 1

    async def complete(self, request: Mapping[str, Any]) -> Piece:
        """A whole answer in one piece; ``since_first_token_s`` says how long its first token has been there.

        Raises:
            RequestError, AdapterError, OverloadedError, ServingError: as `generate`.
        """
        text, logprobs, first = "", [], None
        async for piece in self.generate(request):
            first = first or time.monotonic()
            text += piece["text"]
            logprobs += piece["logprobs"] or []
        wanted = request.get("logprobs") is not None
        return piece | {"text": text, "logprobs": logprobs if wanted else None,
                        "since_first_token_s": time.monotonic() - first}

    def _model(self, adapter: str) -> str:
        if not adapter:
            return self._base_model
        return self._settings.model_format.replace("{adapter}", adapter).replace("{base}", self._base_model)

    async def _pieces(self, request: Mapping[str, Any], body: Mapping[str, Any]) -> AsyncIterator[Piece]:
        """One try. The end is told once the usage is known, which comes after the finish reason."""
        wants_logprobs = request.get("logprobs") is not None
        text, told, reason, usage = "", 0, None, None
        async with contextlib.aclosing(self._chunks(request, body)) as chunks:
            async for chunk in chunks:
                usage, reason = chunk.usage or usage, chunk.finish_reason or reason
                if not chunk.text and not chunk.logprobs:
                    continue
                if wants_logprobs and chunk.logprobs is None and not told:
                    raise RequestError(f"{self._name} sends no log-probabilities; leave out `logprobs`.")
                text, told = text + chunk.text, told + 1
                yield {"text": chunk.text, "finish_reason": None, "prompt_tokens": 0, "completion_tokens": told,
                       "logprobs": (chunk.logprobs or []) if wants_logprobs else None}
        if reason is None:
            raise ServingError(f"{self._name} {'broke off' if told else 'ended without'} the answer. See its log.")
        try:
            prompt_tokens, completion_tokens = usage or await self._count_tokens(request, text)
        except ModelError as error:  # the answer is good all the same
            log.warning("%s does not tell a request's tokens, and they cannot be counted here: %s", self._name, error)
            prompt_tokens, completion_tokens = 0, told
        yield {"text": "", "finish_reason": reason, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
               "logprobs": [] if wants_logprobs else None}

    async def _chunks(self, request: Mapping[str, Any], body: Mapping[str, Any]) -> AsyncIterator[Chunk]:
        """The events of the server's stream; every way to fail becomes an error of ours, without the key in it."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(self._settings.timeout_s):
                    sent = self._client.build_request("POST", path_of(request), json=body)
                    response = await self._client.send(sent, stream=True)
                    stack.push_async_callback(response.aclose)
                    if response.status_code != 200:
                        said = await _beginning(response)
                        raise self._refusal(response.status_code, said, request["adapter"], response.headers)
                events = aiter(httpx2.EventSource(response))
                while True:
                    async with asyncio.timeout(self._settings.timeout_s):
                        event = await anext(events, None)
                    if event is None or event.data.strip() == "[DONE]":
                        return
                    yield self._chunk(event.data, request["adapter"])
        except TimeoutError:
            failure: Exception = ServingError(f"{self._name} sent nothing for {self._settings.timeout_s:g} s "
                                              "(`serving.upstream.timeout_s`). Try again.")
        except UNREACHED as error:
            what = "cannot be reached" if isinstance(error, CONNECTING) else "closed the connection"
            failure = UnreachedError(f"{what} ({self._scrubbed(str(error)) or type(error).__name__})")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            failure = ServingError(f"{self._name} sent no answer that can be read ({self._scrubbed(str(error))}). Check "
                                   "`serving.upstream.base_url`.")
        # Raised out here, so that no traceback shows what the server sent.
        raise failure

    def _chunk(self, data: str, adapter: str) -> Chunk:
        try:
            event = json.loads(data)
            error = error_of(event)
            chunk = read_chunk(event) if error is None else None
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            failure: Exception = ServingError(f"{self._name} sent an event that is no part of an answer: "
                                              f"{self._scrubbed(data)[:120]!r}. Check `serving.upstream.base_url`.")
        else:
            if chunk is not None:
                return chunk
            message, status = error
            failure = self._refusal(status, message, adapter, {})
        raise failure

    def _refusal(self, status: int, body: str, adapter: str, headers: Mapping[str, str]) -> Exception:
        """What an HTTP error status means: whose fault it is, and what to do."""
        said = self._scrubbed(message_of(body))
        answered = f"answered {status or 'with an error'} ({said})"
        if status in (502, 503):
            return UnreachedError(answered)
        if status == 429:
            wait = min(retry_after_s(headers) or 1, MAX_RETRY_AFTER_S)
            return OverloadedError(f"{self._name} {answered}.", max(1, math.ceil(wait)))
        if status in (401, 403):
            where = f"the environment variable {self._settings.api_key_env}" if self._settings.api_key_env else "`api_key_env`"
            return ServingError(f"{self._name} {answered}. Check the API key: `serving.upstream` takes it from {where}.")
        if status == 404 or SGLANG_UNKNOWN in said:
            return self._unknown(adapter, said)
        if 400 <= status < 500 and status not in (405, 408):
            return RequestError(f"{self._name} refuses the request: {said}")
        return ServingError(f"{self._name} {answered}. See its log.")

    def _unknown(self, adapter: str, said: str) -> CultureManagerError:
        model = self._model(adapter)
        if not adapter:
            return ServingError(f"{self._name} does not know the base model {model!r} ({said}). Check "
                                "`serving.upstream.base_model` and `base_url`.")
        return AdapterError(
            f"{self._name} does not know the adapter {model!r} ({said}). Load `adapters/{adapter}` of the workspace there "
            "under that name: vLLM and SGLang take `POST /v1/load_lora_adapter` (SGLang without /v1) with lora_name and "
            "lora_path, vLLM also `--lora-modules` at its start.")

    def _scrubbed(self, text: str) -> str:
        """`text` without the API key, should the server send it back."""
        return text.replace(self._key, "[API key]") if self._key else text

    # ---- health

    async def status(self) -> dict[str, Any]:
        """Whether the server answers, the requests it has from this replica, and the tokens a request may have, if told."""
        return {"upstream": self._settings.base_url, "reachable": await self._probe(), "running": self._running,
                "context": self._context}

    async def check_health(self) -> None:
        """Serve restarts a replica when this raises.

        A server that is down is logged and not raised: a new replica could not reach it either, and Serve would
        restart replicas for ever in place of answering 503 until the server is back.

        Raises:
            RuntimeError: the client is closed, and no request can be sent.
        """
        if self._client.is_closed:
            raise RuntimeError("the client of the upstream server is closed")
        reachable = await self._probe()
        if reachable != self._was_reachable:
            log.warning("%s %s", self._name, "answers again." if reachable else "cannot be reached; requests fail until it is.")
        self._was_reachable = reachable
        metrics.gauge("culturemanager_engine", self._running, figure="running")

    async def _probe(self) -> bool:
        try:
            response = await self._client.get("models", timeout=PROBE_S)
        except httpx2.HTTPError:
            return False
        with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, AttributeError):
            # vLLM tells it here; others do not.
            self._context = int(response.json()["data"][0]["max_model_len"])
        return response.status_code < 500


class TokenCounter:
    """Counts as the server would, with the base model's own tokenizer; it is loaded when first asked for.

    Args:
        base_path: as `base_model.load_tokenizer` takes it.
    """

    def __init__(self, base_path: str) -> None:
        self._base_path = base_path
        self._tokenizer: Any = None

    async def __call__(self, request: Mapping[str, Any], answer: str) -> tuple[int, int]:
        """Tokens of a request's prompt and of its answer.

        Raises:
            ModelError: the tokenizer cannot be read, or has no template for a chat.
        """
        return await asyncio.to_thread(self._count, request, answer)

    def _count(self, request: Mapping[str, Any], answer: str) -> tuple[int, int]:
        from culturemanager.base_model import load_tokenizer
        from culturemanager.chat import chat_ids

        self._tokenizer = self._tokenizer or load_tokenizer(self._base_path)
        prompt = request.get("messages") or request["prompt"]
        if request.get("messages"):
            prompt = chat_ids(self._tokenizer, prompt)
        elif isinstance(prompt, str):
            prompt = self._tokenizer(prompt)["input_ids"]
        return len(prompt), len(self._tokenizer(answer, add_special_tokens=False)["input_ids"])


class UpstreamReplica:
    """Answers requests by having a server answer them; takes the place of `Replica`, and loads no model.

    Args:
        path: the project file.
        overrides: as for `culturemanager --set`.

    Raises:
        ServingError: the environment variable with the server's API key is not set.
    """

    def __init__(self, path: str, overrides: Sequence[str] = ()) -> None:
        project = config.load(path, overrides)
        settings = project.serving.upstream
        base_model = settings.base_model or project.base.path
        self._upstream = Upstream(settings, base_model, read_key(settings), TokenCounter(project.base_path))

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[Piece]:
        """See `Upstream.generate`."""
        async with contextlib.aclosing(self._upstream.generate(request)) as pieces:
            async for piece in pieces:
                yield piece

    async def complete(self, request: dict[str, Any]) -> Piece:
        """See `Upstream.complete`."""
        return await self._upstream.complete(request)

    async def status(self) -> dict[str, Any]:
        """See `Upstream.status`."""
        return await self._upstream.status()

    async def check_health(self) -> None:
        """See `Upstream.check_health`."""
        await self._upstream.check_health()

    async def __del__(self) -> None:
        """Serve awaits this when it stops the replica."""
        await self._upstream.close()


async def _beginning(response: httpx2.Response) -> str:
    """The text of an error's body, or as much of it as anybody wants."""
    body = b""
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_ERROR_BYTES:
            break
    return body.decode("utf-8", "replace")


def read_key(settings: UpstreamConfig) -> str:
    """The server's API key from the environment; empty if none is named.

    Raises:
        ServingError: the variable is not set, or holds what cannot be a key.
    """
    if settings.api_key_env is None:
        return ""
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        problem = "holds characters that no API key has" if key else "is not set where the replica runs"
        raise ServingError(f"The environment variable {settings.api_key_env} {problem}; `serving.upstream.api_key_env` names "
                           "it. Set it on every node before Ray starts, or leave the field out.")
    return key
