"""A model replica: the base, its bank of adapters, and one engine that serves all cultures together."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from culturemanager import artifacts, config, metrics
from culturemanager.chat import chat_ids
from culturemanager.errors import AdapterError, RequestError
from culturemanager.inference.engine import Generation, GenerationRequest, Sampling, ScoreRequest, TokenLogprob
from culturemanager.inference.scoring import Passes
from serve_app.adapters import ServedAdapters
from serve_app.engine_loop import EngineLoop
from serve_app.responses import Piece

log = logging.getLogger("ray.serve")
"""Serve's own logger, so that a damaged version lands in the logs that the dashboard shows."""
DEFAULT_NEW_TOKENS = 256
"""For a chat request that does not say how long its answer may be."""


def cores_of_the_node() -> int:
    """As Ray counts them, which in a container heeds the limit of the container."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return int(next(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == here))


class Replica:
    """Answers requests with the adapter each one names.

    A request is a dict: ``messages`` or ``prompt`` (a text or token ids), ``adapter`` (a version's name, or empty for
    the bare base), ``max_new_tokens``, ``temperature``, ``top_p``, ``top_k``, ``seed``, ``stop``, ``logprobs``, ``echo``,
    ``guided_choice`` and ``asked_at`` (seconds since the epoch: the order in which waiting requests are let in). What comes
    back is a piece as `serve_app.responses` describes it.

    Args:
        path: the project file.
        overrides: as for `culturemanager --set`.
    """

    def __init__(self, path: str, overrides: Sequence[str] = ()) -> None:
        import torch

        project = config.load(path, overrides)
        threads = project.serving.threads_per_replica or (cores_of_the_node() - 1) // project.serving.replicas
        torch.set_num_threads(max(1, threads))  # Ray would leave it as many as it reserved CPUs, at least one
        registry = artifacts.registry(project)
        aliases = registry.aliases()
        promoted = [aliases[adapter] for adapter in artifacts.served_adapters(project) if adapter in aliases]
        # One culture's damaged version is no reason to answer none: its first request tries again, and lets the router know.
        load = artifacts.version_loader(project)
        engine, self._tokenizer, bank = artifacts.open_serving(
            project, promoted, project.serving.spare_adapters,
            on_damage=lambda name, error: log.warning("%s is not loaded: %s", name, error), load=load)
        self._loop = EngineLoop(engine)
        self._adapters = ServedAdapters(load, bank, engine)

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[Piece]:
        """Stream an answer in pieces, the last with a finish reason.

        Raises:
            RequestError: the request is too long, or empty.
            AdapterError, CorruptFileError: the adapter cannot be used.
        """
        asked, prepare = await self._asked(request)
        told = 0
        async for events in self._loop.generate(asked, prepare):
            self._check_finite(asked.adapter, events[-1].finish_reason)
            piece = {"text": "".join(event.text_delta for event in events), "finish_reason": events[-1].finish_reason,
                     "prompt_tokens": len(asked.prompt_ids), "logprobs": None}
            if events[-1].generation:
                piece["cached_tokens"] = events[-1].generation.reused_tokens
            if asked.logprobs is not None:
                told_tokens = [event.logprob for event in events if event.logprob]
                piece["logprobs"] = self._tokens(told_tokens, events[-1].generation, request)
            if request["echo"] and not told:
                piece["prompt"] = self._prompt(request, asked, events[0].prompt_logprobs)
            told += sum(event.token_id is not None for event in events)
            yield piece | {"completion_tokens": told}

    async def complete(self, request: dict[str, Any]) -> Piece:
        """A whole answer in one piece; ``since_first_token_s`` says how long its first token has been there.

        Raises:
            RequestError, AdapterError, CorruptFileError: as `generate`.
        """
        if request["guided_choice"]:
            return await self._choose(request)
        asked, prepare = await self._asked(request)
        answer, seconds = await self._loop.complete(asked, prepare)
        self._check_finite(asked.adapter, answer.finish_reason)
        piece = {"text": answer.text, "finish_reason": answer.finish_reason, "prompt_tokens": answer.prompt_tokens,
                 "cached_tokens": answer.reused_tokens, "completion_tokens": len(answer.token_ids), "logprobs": None,
                 "since_first_token_s": seconds}
        if asked.logprobs is not None:
            piece["logprobs"] = self._tokens(answer.logprobs, answer, request)
        if request["echo"]:
            piece["prompt"] = self._prompt(request, asked, answer.prompt_logprobs)
        return piece

    async def _choose(self, request: dict[str, Any]) -> Piece:
        """The likeliest of the given answers, by mean log-probability per token, as evaluation picks labels."""
        options = tuple(request["guided_choice"])
        ids = tuple(self._prompt_ids(request))
        adapter = request["adapter"]
        asked = [ScoreRequest(ids, options, adapter)]
        load = await self._loader(adapter)

        def begin() -> Passes:
            load()
            return self._loop.engine.score_in_passes(asked)

        (scores,) = await self._loop.in_turns(begin)
        text = options[scores.index(max(scores))]
        tokens = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return {"text": text, "finish_reason": "stop", "prompt_tokens": len(ids), "completion_tokens": tokens,
                "logprobs": None}

    def status(self) -> dict[str, Any]:
        """What the engine is busy with, the tokens a request may have, and which process this is."""
        engine = self._loop.engine
        return {"pid": os.getpid(), "running": engine.running, "waiting": engine.waiting, "cache_bytes": engine.cache_bytes,
                "context": engine.context}

    def check_health(self) -> None:
        """Ray Serve asks every few seconds, and restarts the replica when this raises."""
        if not self._loop.alive:
            raise RuntimeError("the engine's thread has ended, or every step of it fails")
        for figure in ("running", "waiting", "cache_bytes"):
            metrics.gauge("culturemanager_engine", self.status()[figure], figure=figure)

    async def _asked(self, request: dict[str, Any]) -> tuple[GenerationRequest, Callable[[], None]]:
        """The engine's request, and what the engine's thread has to do right before it is submitted."""
        ids = self._prompt_ids(request)
        most = request["max_new_tokens"]
        if most is None:
            most = max(1, min(self._loop.engine.context - len(ids), DEFAULT_NEW_TOKENS))
        sampling = Sampling(request["temperature"], request["top_p"], request["top_k"], request["seed"])
        asked = GenerationRequest(
            tuple(ids), request["adapter"], most, sampling, tuple(request["stop"]), logprobs=request["logprobs"],
            prompt_logprobs=request["echo"] and request["logprobs"] is not None, asked_at=request["asked_at"])
        return asked, await self._loader(asked.adapter)

    async def _loader(self, adapter: str) -> Callable[[], None]:
        """Reads the version's files, if need be, while the engine goes on; what is returned puts it into the bank."""
        weights = await asyncio.to_thread(self._adapters.read, adapter)
        return lambda: self._adapters.require(adapter, weights)

    def _prompt_ids(self, request: dict[str, Any]) -> list[int]:
        if request.get("messages"):
            return chat_ids(self._tokenizer, request["messages"])
        if isinstance(request["prompt"], str):
            return self._tokenizer(request["prompt"])["input_ids"]
        beyond = [token for token in request["prompt"] if token >= len(self._tokenizer)]
        if beyond:
            raise RequestError(f"prompt: token {beyond[0]} is beyond the vocabulary of {len(self._tokenizer)}.")
        return request["prompt"]

    def _prompt(self, request: dict[str, Any], asked: GenerationRequest,
                logprobs: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        """The echoed prompt: its text, and the log-probability of every token (none for the first)."""
        given = request["prompt"]
        text = given if isinstance(given, str) else self._tokenizer.decode(given)
        tokens = [self._token(told) if told else self._unpredicted(token)
                  for token, told in zip(asked.prompt_ids, logprobs, strict=True)] if logprobs else []
        return {"text": text, "logprobs": tokens}

    def _tokens(self, told: Sequence[TokenLogprob], ended: Generation | None, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The tokens' log-probabilities; of a plain completion the end token's, too.

        Whoever scores texts asks for one new token and cuts it off, so one has to be there.
        """
        end = [ended.end_logprob] if ended and ended.end_logprob and not request.get("messages") else []
        return [self._token(one) for one in (*told, *end)]

    def _token(self, told: TokenLogprob) -> dict[str, Any]:
        return {"token": self._spelled(told.token_id), "token_id": told.token_id, "logprob": told.logprob,
                "top": [[self._spelled(token), token, logprob] for token, logprob in told.top]}

    def _unpredicted(self, token: int) -> dict[str, Any]:
        return {"token": self._spelled(token), "token_id": token, "logprob": None, "top": []}

    def _spelled(self, token: int) -> str:
        return self._tokenizer.decode([token])

    @staticmethod
    def _check_finite(adapter: str, reason: str | None) -> None:
        if reason == "error":
            raise AdapterError(f"{adapter or 'the base model'} gives scores that are not finite numbers. Roll back to an older "
                               "version, or train again.")


