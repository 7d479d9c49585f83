"""Language models behind any OpenAI-compatible endpoint: tried again, validated, paid for once.

    LanguageModel (protocol)
    └── OpenAIModel     the `openai` SDK for the wire, tenacity for retries, a cache on disk

The SDK is imported with the first call, so that importing this file stays cheap.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tenacity

from culturemanager import metrics, prompts
from culturemanager.errors import LanguageModelError, UnusableAnswerError
from culturemanager.providers.llm_cache import AnswerCache, Completion
from culturemanager.providers.llm_wire import SHOWN_CHARACTERS, CallFailedError, Reply, status_failure, usable_text
from culturemanager.sections.synthesis import OpenAIGenerator
from culturemanager.storage import fingerprint

BAD_ANSWER_RETRIES = 2
MAX_BODY_BYTES = 16_000_000
MAX_BACKOFF_S = 30.0

Messages = Sequence[Mapping[str, str]]
log = logging.getLogger(__name__)


class LanguageModel(Protocol):
    """Answers chat messages. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """The model's name, kept with what it wrote."""
        ...

    def complete(self, messages: Messages, *, schema: Mapping[str, Any] | None = None,
                 max_tokens: int | None = None) -> Completion:
        """The model's answer; with `schema`, a JSON document that fits that JSON schema.

        Raises:
            UnusableAnswerError: this one answer was no use, also after asking again.
            LanguageModelError: the endpoint could not answer.
        """
        ...

    def cancel(self) -> None:
        """Wait no longer: calls in flight may end, and none is tried again."""
        ...


@dataclass(frozen=True)
class Usage:
    """What a model's calls came to in this process."""

    calls: int = 0
    """Calls the endpoint answered, answers of no use among them."""
    cached: int = 0
    """Answers from the cache; they cost nothing and add no tokens."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    """Calls made again: after 429, 5xx, timeouts and broken connections, and for answers of no use."""


def endpoint_host(base_url: str) -> str:
    """The host of a checked endpoint address.

    Raises:
        LanguageModelError: it is no http(s) address, or carries a user name or password.
    """
    expected = "Expected `https://host/v1` in `examples.generator.base_url`"
    try:
        url = urllib.parse.urlsplit(base_url)
        host, _ = url.hostname, url.port
    except ValueError:
        host = None
    if not host or url.scheme not in ("http", "https"):
        raise LanguageModelError(f"{base_url!r} is not the address of a language model. {expected}.")
    if "@" in url.netloc:
        raise LanguageModelError(f"The address of the language model at {host} carries a user name or password. "
                                 f"{expected}, and put the key into the environment variable that `api_key_env` names.")
    return host


def read_key(config: OpenAIGenerator) -> str:
    """The API key from the environment; empty if an endpoint on this machine has none.

    Raises:
        LanguageModelError: the variable is not set, or holds what cannot be a key.
    """
    host = endpoint_host(config.base_url)
    key = os.environ.get(config.api_key_env, "").strip()
    if not key and not _is_loopback(host):
        raise LanguageModelError(f"The environment variable {config.api_key_env} is not set, and the language model at "
                                 f"{host} needs its API key there. Run: export {config.api_key_env}=... (any word will do "
                                 "for an endpoint that asks for none)")
    if not key.isascii() or not key.isprintable():
        raise LanguageModelError(f"The environment variable {config.api_key_env} holds characters that no API key has. "
                                 "Set it again, without line breaks or quotes.")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class OpenAIModel:
    """A model at an OpenAI-compatible chat endpoint.

    429 (its Retry-After obeyed), 5xx, timeouts and broken connections are tried again with
    exponential backoff and jitter. Structured output is asked for by `response_format`; an endpoint
    that refuses it is asked in the prompt, and every answer is validated here either way. Pickles
    without its client: Ray carries it to an actor, which reads the key from its own environment.

    Args:
        config: endpoint, model and limits.
        cache_folder: where answers are kept by content; `None` keeps none.
        backoff_s: first wait before a call is tried again, in seconds; doubled each time, up to 30.

    Raises:
        LanguageModelError: `config.base_url` is no address.
    """

    def __init__(self, config: OpenAIGenerator, cache_folder: Path | None, *, backoff_s: float = 0.5) -> None:
        self.config = config
        self._host = endpoint_host(config.base_url)
        self._cache = AnswerCache(cache_folder) if cache_folder is not None else None
        self._backoff_s = backoff_s
        self._usage = Usage()
        self._refused_schemas: set[str] = set()
        self._limit_field = "max_tokens"
        self._make_process_state()

    def _make_process_state(self) -> None:
        self._client: Any = None
        self._lock = threading.Lock()
        self._cancelled = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_client", "_lock", "_cancelled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_process_state()

    @property
    def name(self) -> str:
        return self.config.model

    @property
    def usage(self) -> Usage:
        """What was asked, answered from the cache and paid for so far."""
        return self._usage

    def _count(self, **more: int) -> None:
        with self._lock:
            self._usage = dataclasses.replace(self._usage, **{k: getattr(self._usage, k) + v for k, v in more.items()})

    def cancel(self) -> None:
        """Calls in flight may end; none is begun or tried again, by this object in this process."""
        self._cancelled.set()

    def complete(self, messages: Messages, *, schema: Mapping[str, Any] | None = None,
                 max_tokens: int | None = None) -> Completion:
        """See `LanguageModel.complete`. An answer in the cache costs no call and needs no key."""
        limit = max_tokens or self.config.max_tokens
        key = fingerprint(self.config.base_url, self.config.model, [dict(m) for m in messages], schema,
                          self.config.temperature, limit)
        if self._cache and (kept := self._cache.get(key)) and _fits(kept.text, schema):
            self._count(cached=1)
            return kept
        try:
            completion = self._ask_until_usable(messages, schema, limit)
        except CallFailedError as error:
            failure = error
        else:
            if self._cache:
                self._cache.put(key, completion)
            return completion
        # Raised out here, so that no traceback shows the SDK's own exception and what the endpoint sent back.
        kind = UnusableAnswerError if failure.one_call_only else LanguageModelError
        raise kind(f"The language model {self.name!r} at {self._host} {' '.join(str(failure).split())}")

    def _ask_until_usable(self, messages: Messages, schema: Mapping[str, Any] | None, limit: int) -> Completion:
        problem = ""
        for attempt in range(1 + BAD_ANSWER_RETRIES):
            if attempt:
                self._count(retries=1)
            reply = self._ask(_with_note(messages, prompts.mend_answer(problem)) if problem else messages, schema, limit)
            try:
                text = usable_text(reply.text, reply.finish_reason, schema)
            except ValueError as error:
                problem, step = str(error), ""
                if reply.finish_reason == "length":
                    problem, step = f"it was cut off at {limit} tokens", " Raise `examples.generator.max_tokens`."
                if self._cancelled.is_set():
                    break
                continue
            return Completion(text, reply.prompt_tokens, reply.completion_tokens)
        raise CallFailedError(f"gave no usable answer when asked {attempt + 1} times: {problem}. "
                              f"The last began {self._scrub(reply.raw)[:SHOWN_CHARACTERS]!r}.{step}", one_call_only=True)

    def _ask(self, messages: Messages, schema: Mapping[str, Any] | None, limit: int) -> Reply:
        """One answer, by `response_format` where the endpoint takes this schema, else by a note in the prompt."""
        if schema is None:
            return self._call({"messages": messages}, limit)
        mark = fingerprint(schema)
        if mark not in self._refused_schemas:
            form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
            try:
                return self._call({"messages": messages, "response_format": form}, limit)
            except CallFailedError as error:
                # An endpoint that does not know the field, or not this kind of schema, answers 400 (some 422).
                if error.status not in (400, 422) or error.one_call_only:
                    raise
        reply = self._call({"messages": _with_note(messages, prompts.answer_with_json(schema))}, limit)
        if mark not in self._refused_schemas:
            log.warning("The language model at %s takes no response_format: it is asked for JSON in the prompt.", self._host)
            self._refused_schemas.add(mark)
        return reply

    def _call(self, request: Mapping[str, Any], limit: int) -> Reply:
        """Send until the endpoint answers, or fails for good."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, CallFailedError) and error.transient),
            stop=tenacity.stop_after_attempt(self.config.max_attempts), wait=self._wait_s, sleep=self._sleep, reraise=True)
        field = self._limit_field
        try:
            return retrying(self._send, request, field, limit)
        except CallFailedError as error:
            # Newer models of OpenAI's refuse the old name of the limit, and name the new one.
            if error.status != 400 or field != "max_tokens" or "max_completion_tokens" not in str(error):
                raise
        self._limit_field = "max_completion_tokens"
        return retrying(self._send, request, self._limit_field, limit)

    def _sleep(self, seconds: float) -> None:
        if self._cancelled.wait(seconds):
            raise CallFailedError("was not asked again: interrupted. Run the same command again.")
        self._count(retries=1)

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        failure = state.outcome.exception()
        if failure.retry_after_s is not None:
            return failure.retry_after_s + random.uniform(0, self._backoff_s)
        growing = tenacity.wait_exponential(self._backoff_s, max=MAX_BACKOFF_S) + tenacity.wait_random(0, self._backoff_s)
        return growing(state)

    def _send(self, request: Mapping[str, Any], limit_field: str, limit: int) -> Reply:
        """One HTTP request. Every way to fail becomes a `CallFailedError` without the key in it."""
        import httpx2
        import openai

        if self._cancelled.is_set():
            raise CallFailedError("was not asked: interrupted. Run the same command again.")
        config = self.config
        again = "Run the same command again later" + ("; answers so far are kept" if self._cache else "")
        try:
            create = self._connected().chat.completions.with_streaming_response.create
            deadline = time.monotonic() + config.timeout_s
            body = bytearray()
            with create(model=config.model, temperature=config.temperature, **{limit_field: limit}, **request) as response:
                # The SDK's timeout is for one read; an endpoint that sends a blank now and then would hold us for ever.
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > deadline:
                        raise httpx2.ReadTimeout("")
                    if len(body) > MAX_BODY_BYTES:
                        raise CallFailedError(f"sent more than {MAX_BODY_BYTES} bytes. Check `base_url`.")
        except openai.APIStatusError as error:
            failure = status_failure(error, self._scrub(str(error)), config.api_key_env, again)
        except (openai.APITimeoutError, httpx2.TimeoutException):
            failure = CallFailedError(f"did not answer within {config.timeout_s:g} s (`examples.generator.timeout_s`). "
                                      f"{again}.", transient=True)
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            reason = self._scrub(str(error.__cause__ or error))[:SHOWN_CHARACTERS]
            failure = CallFailedError(f"cannot be reached ({reason}). Check `examples.generator.base_url`. {again}.",
                                      transient=True)
        else:
            reply = Reply.from_body(self._scrub(body.decode("utf-8", "replace"), shortest=16))
            self._count(calls=1, prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens)
            metrics.count("culturemanager_tokens", reply.prompt_tokens, kind="prompt")
            metrics.count("culturemanager_tokens", reply.completion_tokens, kind="completion")
            return reply
        raise failure

    def _connected(self) -> Any:
        """The SDK's client, made with the first call of this process."""
        import openai

        with self._lock:
            if self._client is None:
                # The SDK wants some key; an endpoint on this machine that asks for none ignores it.
                key = read_key(self.config) or "none"
                self._client = openai.OpenAI(base_url=self.config.base_url, api_key=key, timeout=self.config.timeout_s,
                                             max_retries=0)
            return self._client

    def _scrub(self, text: str, shortest: int = 4) -> str:
        """`text` without the API key, should an endpoint send it back.

        Keys under `shortest` characters stay: where an endpoint asks for none, people set a plain word,
        and answers may well hold that word.
        """
        key = os.environ.get(self.config.api_key_env, "").strip()
        return text.replace(key, "[API key]") if len(key) >= shortest else text


def _fits(text: str, schema: Mapping[str, Any] | None) -> bool:
    try:
        return bool(usable_text(text, "", schema))
    except ValueError:
        return False


def _with_note(messages: Messages, note: str) -> list[dict[str, str]]:
    """The messages with a note under the last one: many chat templates refuse two user messages in a row."""
    *rest, last = (dict(message) for message in messages)
    return [*rest, {**last, "content": f"{last['content']}\n\n{note}"}]
