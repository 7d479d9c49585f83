"""The router deployment: decides the culture and the adapter version, then has a replica answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from culturemanager import artifacts, config
from culturemanager.errors import AdapterError, CultureManagerError, RequestError, StorageError, UnknownCultureError
from culturemanager.records import Route
from serve_app.failures import failure
from serve_app.passages import PassagePrompts
from serve_app.replica_status import ReplicaStatus
from serve_app.sources import TrainingSources
from serve_app.versions import ServingVersions

AUTO = "auto"
ATTEMPTS = 10
"""Replicas tried for a request whose replica dies before the first token. Long requests may meet several deaths; the number is
bounded, since a request may be what replicas die of."""


@dataclass(frozen=True)
class Decision:
    """Who answers, what is asked, and what is told of it."""

    versions: Sequence[str]
    """Adapter versions that may answer, the first choice first; empty: the bare base."""
    request: Mapping[str, Any]
    """For a replica, but for the adapter."""
    told: Mapping[str, Any]
    """For the ingress: ``route`` and, where the served system reads them, the ``passages`` put into the prompt."""


class CultureRouter:
    """Decides which culture's adapter answers a request.

    Args:
        path: the project file.
        overrides: as for `culturemanager --set`.
        replica: handle of the model replicas.
    """

    def __init__(self, path: str, overrides: Sequence[str], replica: Any) -> None:
        self._project = config.load(path, overrides)
        self._base = self._project.base.path
        embedder = artifacts.open_embedder(self._project)
        self._router = artifacts.open_router(self._project, embedder)
        self._registry = artifacts.registry(self._project)
        self._versions = ServingVersions(self._registry)
        self._served = artifacts.served_adapters(self._project)
        self._cultures = list(self._served.values())
        self._system = artifacts.open_served_system(self._project, embedder)
        self._prompts: PassagePrompts | None = None
        self._sources = TrainingSources(self._project)
        self._replica = replica
        self._replica_status = ReplicaStatus(lambda: self._replica.status.remote())

    # ---- what is there

    def models(self) -> dict[str, str]:
        """Names a request may use, and the culture each is pinned to: `auto`, the base, cultures with an adapter, versions."""
        aliases = self._registry.aliases()
        served = {culture: culture for adapter, culture in self._served.items() if adapter in aliases}
        versions = {version.name: self._served[version.culture] for version in self._registry.readable()
                    if version.culture in self._served}
        return {AUTO: "", self._base: ""} | served | versions

    async def status(self) -> dict[str, Any]:
        """Whether a replica answers, what each culture is served by, versions on trial, and versions that failed."""
        engine = await self._replica.status.remote()
        trials = {culture: {"version": name, "share": share} for culture, (name, share) in self._registry.canaries().items()}
        return {"engine": engine, "serving": self._registry.aliases(), "trials": trials, "failed": self._versions.condemned}

    async def health(self) -> dict[str, Any]:
        """Whether a replica answers, and its server, if it has one; versions that failed. Never waits long behind answers."""
        engine = await self._replica_status.get()
        return {"reachable": engine.get("reachable", True), "failed": sorted(self._versions.condemned)}

    async def context(self) -> int | None:
        """Tokens a request may have; None: its server does not tell."""
        return (await self._replica_status.get())["context"]

    def route(self, texts: list[str]) -> list[Route]:
        """The decision alone, for several texts."""
        return self._router.route_many(texts)

    async def sources(self, culture: str, question: str, limit: int) -> dict[str, Any] | None:
        """What `TrainingSources.nearest` finds; None: the project has no such culture."""
        if culture not in self._cultures:
            return None
        return await asyncio.to_thread(self._sources.nearest, culture, question, limit)

    # ---- tokens

    @functools.cached_property
    def _tokenizer(self) -> Any:
        """Loaded when first asked for: answering needs none here, unless passages have to fit into prompts."""
        from culturemanager.base_model import load_tokenizer

        return load_tokenizer(self._project.base_path)

    def tokenize(self, prompt: str | None, messages: list[dict[str, str]] | None, special: bool) -> list[int]:
        """Token ids of a text, or of a conversation ready for the assistant's turn.

        Raises:
            ModelError: the model's chat template refuses the messages.
        """
        from culturemanager.chat import chat_ids

        if messages is not None:
            return chat_ids(self._tokenizer, messages)
        return self._tokenizer(prompt, add_special_tokens=special)["input_ids"]

    def detokenize(self, tokens: list[int]) -> str:
        """The text of token ids.

        Raises:
            RequestError: an id is beyond the vocabulary.
        """
        wrong = [token for token in tokens if token >= len(self._tokenizer)]
        if wrong:
            raise RequestError(f"token {wrong[0]} is beyond the vocabulary of {len(self._tokenizer)}.")
        return self._tokenizer.decode(tokens)

    def tokenizer_info(self) -> dict[str, Any]:
        """What clients that count tokens themselves want to know."""
        tokenizer = self._tokenizer
        return {"tokenizer_class": type(tokenizer).__name__, "vocab_size": len(tokenizer),
                "chat_template": tokenizer.chat_template, "bos_token": tokenizer.bos_token,
                "eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token, "unk_token": tokenizer.unk_token}

    # ---- answers

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Route, and return the whole answer: `Decision.told`, ``adapter`` and what `Replica.complete` gives; or a refusal.

        A replica that dies is replaced by another, since nothing has been told yet. There the request waits by the time it
        was asked, before others that came meanwhile.
        """
        try:
            decision = await self._decide(request)
        except CultureManagerError as error:
            return _refusal(error)
        for adapter in decision.versions or [""]:
            job = decision.request | {"adapter": adapter}
            try:
                piece = await self._again_if_it_dies(lambda job=job: self._replica.complete.remote(job))
                self._replica_status.heard()
                return decision.told | {"adapter": adapter, **piece}
            except RayTaskError as error:
                if not self._passes_over(error, adapter, decision.versions):
                    raise

    async def stream(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Route, then stream the answer.

        Yields:
            First `Decision.told` and ``adapter``, then what `Replica.generate` yields; or only a refusal.
        """
        try:
            decision = await self._decide(request)
        except CultureManagerError as error:
            yield _refusal(error)
            return
        for adapter in decision.versions or [""]:
            job = decision.request | {"adapter": adapter}
            try:
                pieces, first = await self._again_if_it_dies(lambda job=job: self._begin(job))
            except RayTaskError as error:
                if self._passes_over(error, adapter, decision.versions):
                    continue
                raise
            yield decision.told | {"adapter": adapter}
            yield first
            async for piece in pieces:
                self._replica_status.heard()
                yield piece
            return

    async def _begin(self, job: dict[str, Any]) -> tuple[AsyncIterator[dict[str, Any]], dict[str, Any]]:
        """A replica's stream and its first piece: until that has come, the request may be given to another replica."""
        pieces = self._replica.options(stream=True).generate.remote(job)
        return pieces, await anext(pieces)

    @staticmethod
    async def _again_if_it_dies(ask: Any) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await ask()
            except RayActorError:
                if attempt == ATTEMPTS:
                    raise

    def _passes_over(self, error: RayTaskError, adapter: str, versions: Sequence[str]) -> bool:
        """Whether the adapter is to blame and another version can take over."""
        if not adapter or not isinstance(error.cause, (AdapterError, StorageError)):
            return False
        self._versions.condemn(adapter, str(error.cause))
        return adapter != versions[-1]

    async def _decide(self, request: dict[str, Any]) -> Decision:
        """Who answers, and what is asked.

        Raises:
            UnknownCultureError: the request's culture is none of the project's.
            AdapterError: its model is not served.
            ForbiddenError: its key may not ask for the culture.
        """
        versions, route = self._choose(request)
        asks_the_base = not route.culture and route.reason == "pinned"
        if not self._system.reads_passages or asks_the_base or not request.get("messages"):
            return Decision(versions, request, {"route": route})
        if not route.culture and request.get("allowed_cultures") is not None:
            # Passages of any culture are not for a key of some.
            return Decision(versions, request, {"route": route, "passages": []})
        asked, passages = (await self._passage_prompts()).put(request, route.culture)
        return Decision(versions, asked, {"route": route, "passages": passages})

    async def _passage_prompts(self) -> PassagePrompts:
        if self._prompts is None:
            status = await self._again_if_it_dies(lambda: self._replica.status.remote())
            # Not every server behind a replica tells its context.
            prompts = PassagePrompts(self._system, self._tokenizer, status["context"] or self._tokenizer.model_max_length)
            if not status.get("reachable", True):  # and one that is still starting will
                return prompts
            self._prompts = prompts
        return self._prompts

    def _choose(self, request: dict[str, Any]) -> tuple[list[str], Route]:
        """Versions that may answer, the first choice first, and why; raises as `_decide`."""
        model = request["model"]
        name = model.removeprefix(f"{self._base}:")
        if name == self._base:
            return [], Route("", 1.0, "pinned")
        if name != AUTO and name not in self._cultures:
            culture = self._culture_of_version(name, request)
            return [name], Route(culture, 1.0, "pinned", {culture: 1.0})
        asked = self._text(request)
        route = self._router.route(asked, pinned=request["culture"] if name == AUTO else name)
        if not route.culture:
            return [], route
        self._check_allowed(route.culture, request)
        return self._versions.candidates(self._system.adapter(route.culture), _conversation(asked)), route

    def _text(self, request: dict[str, Any]) -> str | list[dict[str, str]]:
        """What the router reads: a conversation, a text, or the text of token ids."""
        if request.get("messages"):
            return request["messages"]
        prompt = request["prompt"]
        return prompt if isinstance(prompt, str) else self.detokenize(prompt)

    def _culture_of_version(self, name: str, request: dict[str, Any]) -> str:
        """Raises as `_decide`, or `CorruptFileError`: the version is damaged. Others that are do not matter."""
        culture = self._served.get(name.rpartition("-v")[0])
        if culture:
            self._check_allowed(culture, request)
            with contextlib.suppress(AdapterError):  # told below, with the names there are
                self._registry.get(name)
                return culture
        raise AdapterError(f"model {name!r} is not served. Expected `{AUTO}`, `{self._base}`, a culture "
                           f"({', '.join(self._cultures)}) or one of its versions; GET /v1/models lists them.")

    @staticmethod
    def _check_allowed(culture: str, request: dict[str, Any]) -> None:
        allowed = request.get("allowed_cultures")
        if allowed is not None and culture not in allowed:
            raise ForbiddenError(f"This key may ask for {', '.join(allowed) or 'no culture'}, and the request is for {culture}.")


def _conversation(asked: str | list[dict[str, str]]) -> str:
    """What stays the same while a conversation goes on, and differs from others: a system message is every user's."""
    if isinstance(asked, str):
        return asked
    return next((message["content"] for message in asked if message["role"] == "user"), asked[0]["content"])


class ForbiddenError(RequestError):
    """A key asked for a culture that is not among its own."""


def _refusal(error: CultureManagerError) -> dict[str, Any]:
    """A request that no replica is asked about, as the ingress answers it."""
    told = failure(error)
    status, code, param = {
        UnknownCultureError: (400, "unknown_culture", "culture"), AdapterError: (404, "model_not_found", "model"),
        ForbiddenError: (403, "culture_not_allowed", "model"),
    }.get(type(error), (told.status, None, None))
    headers = told.headers if status == told.status else {}
    return {"refused": told.message, "status": status, "code": code, "param": param, "headers": headers}
