"""The router deployment: decides the culture, then has a replica answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from ray.exceptions import RayActorError

from culturemanager import artifacts, config, metrics
from culturemanager.errors import AdapterError, UnknownCultureError
from culturemanager.records import Route

AUTO = "auto"
ATTEMPTS = 3
"""Replicas tried for a request whose replica dies before the first token."""


class CultureRouter:
    """Decides which culture's adapter answers a request.

    Args:
        path: the project file.
        overrides: as for `culturemanager --set`.
        replica: handle of the model replicas.
    """

    def __init__(self, path: str, overrides: Sequence[str], replica: Any) -> None:
        project = config.load(path, overrides)
        self._base = project.base.path
        self._router = artifacts.open_router(project, artifacts.open_embedder(project))
        self._registry = artifacts.registry(project)
        self._cultures = [culture.id for culture in artifacts.cultures(project)]
        self._replica = replica.options(stream=True)

    def models(self) -> list[str]:
        """Names a request may use: `auto`, the base, cultures with an adapter, and every version."""
        aliases = self._registry.aliases()
        served = [culture for culture in self._cultures if culture in aliases]
        versions = [version.name for version in self._registry.versions() if version.culture in self._cultures]
        return [AUTO, self._base, *served, *versions]

    def route(self, texts: list[str]) -> list[Route]:
        """The decision alone, for several texts."""
        return self._router.route_many(texts)

    def choose(self, model: str, culture: str | None, text: str | list[dict[str, str]]) -> tuple[str, Route]:
        """The adapter version that answers (empty: the bare base), and why.

        Raises:
            UnknownCultureError: `culture` is none of the project's.
            AdapterError: `model` is not served.
        """
        name = model.removeprefix(f"{self._base}:")
        if name == self._base:
            return "", Route("", 1.0, "pinned")
        if name != AUTO and name not in self._cultures:
            return self._pinned_version(name)
        route = self._router.route(text, pinned=culture if name == AUTO else name)
        return (self._registry.aliases().get(route.culture, "") if route.culture else ""), route

    def _pinned_version(self, name: str) -> tuple[str, Route]:
        known = {version.name: version.culture for version in self._registry.versions()}
        if known.get(name) not in self._cultures:
            raise AdapterError(f"model {name!r} is not served. Expected `{AUTO}`, `{self._base}`, a culture "
                               f"({', '.join(self._cultures)}) or one of its versions; GET /v1/models lists them.")
        return name, Route(known[name], 1.0, "pinned", {known[name]: 1.0})

    async def answer(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Route, then stream the answer.

        Yields:
            First ``{"route": Route, "adapter": name}``, then what `Replica.generate` yields; or only
            ``{"refused": message, "code": ...}``.
        """
        try:
            adapter, route = self.choose(request["model"], request["culture"], request.get("messages") or request["prompt"])
        except UnknownCultureError as error:
            yield {"refused": str(error), "code": "unknown_culture", "param": "culture"}
            return
        except AdapterError as error:
            yield {"refused": str(error), "code": "model_not_found", "param": "model"}
            return
        metrics.count("culturemanager_routes", 1, culture=route.culture or "none", reason=route.reason)
        yield {"route": route, "adapter": adapter}
        async for event in self._generate({**request, "adapter": adapter}):
            yield event

    async def _generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Have a replica answer; one that dies before the first token is replaced by another."""
        for attempt in range(1, ATTEMPTS + 1):
            begun = False
            try:
                async for event in self._replica.generate.remote(request):
                    begun = True
                    yield event
                return
            except RayActorError:
                if begun or attempt == ATTEMPTS:
                    raise
