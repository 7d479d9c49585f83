"""A model replica: the base, its bank of adapters, and one engine that serves all cultures together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from culturemanager import artifacts, config
from culturemanager.chat import chat_ids
from culturemanager.inference.engine import GenerationRequest, Sampling
from serve_app.adapters import ServedAdapters
from serve_app.engine_loop import EngineLoop

SPARE_SLOTS = 4
"""Adapter versions held beside the promoted one of every culture, for callers that pin a version."""


class Replica:
    """Answers requests with the adapter each one names.

    Args:
        path: the project file.
        overrides: as for `culturemanager --set`.
    """

    def __init__(self, path: str, overrides: Sequence[str] = ()) -> None:
        project = config.load(path, overrides)
        registry = artifacts.registry(project)
        cultures = {culture.id for culture in artifacts.cultures(project)}
        promoted = {culture: version for culture, version in registry.aliases().items() if culture in cultures}
        engine, tokenizer, bank = artifacts.open_serving(project, promoted.values(), SPARE_SLOTS)
        self._tokenizer = tokenizer
        self._loop = EngineLoop(engine)
        self._adapters = ServedAdapters(registry, bank, engine)

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Stream an answer.

        Args:
            request: ``messages`` or ``prompt``, ``adapter`` (a version's name, or empty for the bare base),
                ``max_new_tokens``, ``temperature``, ``top_p``, ``seed``, ``stop``.

        Yields:
            ``{"text", "finish_reason", "prompt_tokens", "completion_tokens"}``, the last with a finish reason.
        """
        ids = self._prompt_ids(request)
        adapter = request["adapter"]
        if adapter:
            await self._loop.call(lambda: self._adapters.require(adapter))
        room = self._loop.engine.context - len(ids)
        asked = request["max_new_tokens"] or max(1, min(room, 256))
        sampling = Sampling(request["temperature"], request["top_p"], 0, request["seed"])
        tokens = 0
        async for event in self._loop.generate(GenerationRequest(tuple(ids), adapter, asked, sampling, tuple(request["stop"]))):
            tokens += event.token_id is not None
            yield {"text": event.text_delta, "finish_reason": event.finish_reason, "prompt_tokens": len(ids),
                   "completion_tokens": tokens}

    def _prompt_ids(self, request: dict[str, Any]) -> list[int]:
        if request.get("messages"):
            return chat_ids(self._tokenizer, request["messages"])
        return self._tokenizer(request["prompt"])["input_ids"]

    def check_health(self) -> None:
        """Ray Serve restarts the replica when this raises."""
        if not self._loop.alive:
            raise RuntimeError("the engine's thread has ended")
