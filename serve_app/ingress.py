"""The HTTP side: OpenAI's routes, API keys, errors in OpenAI's shape.

Annotations stay objects here (no `from __future__ import annotations`): FastAPI reads them.
"""

import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException as StarletteHTTPException

from culturemanager import metrics
from culturemanager.errors import AdapterError, CultureManagerError, ModelError, RequestError
from culturemanager.records import Route
from serve_app.openai_api import (
    ChatRequest,
    CompletionRequest,
    GenerationFields,
    ResponseShape,
    RouteRequest,
    decision,
    error_body,
    event,
    usage,
)

api = FastAPI(title="CultureManager", description="One language model, every culture: an OpenAI-compatible endpoint.",
              docs_url=None, redoc_url=None)


def key_sums(text: str) -> list[str]:
    """SHA-256 sums of comma-separated API keys: what deployments are given instead of the keys."""
    return [hashlib.sha256(key.strip().encode()).hexdigest() for key in text.split(",") if key.strip()]


class ApiKeys:
    """The keys that open the endpoint, known by their sums only (`key_sums`)."""

    def __init__(self, sums: Sequence[str]) -> None:
        self._sums = list(sums)

    def admits(self, authorization: str | None) -> bool:
        """Whether an `Authorization` header carries a key; without any key set, everyone is admitted."""
        if not self._sums:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).hexdigest()
        matches = [hmac.compare_digest(given, known) for known in self._sums]
        return scheme.lower() == "bearer" and any(matches)


async def require_key(request: Request) -> None:
    """Refuse a request without a valid key."""
    if not request.app.state.keys.admits(request.headers.get("authorization")):
        raise HTTPException(401, "Missing or wrong API key. Send `Authorization: Bearer <key>`.")


@api.exception_handler(StarletteHTTPException)
async def http_error(_: Request, error: StarletteHTTPException) -> JSONResponse:
    kind = {401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error"}.get(error.status_code, "api_error")
    return JSONResponse(error_body(str(error.detail), kind), error.status_code)


@api.exception_handler(RequestValidationError)
async def invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return JSONResponse(error_body(f"{field}: {first['msg']}", "invalid_request_error", field), 400)


# `serve.ingress` copies the application with what this module holds at that moment: what routes call stands above.


def _tell(route: Route, last: dict[str, Any], started: float) -> None:
    """Count a finished answer."""
    culture = route.culture or "none"
    metrics.count("culturemanager_requests", 1, culture=culture, status=200)
    metrics.observe("culturemanager_request_seconds", time.monotonic() - started, culture=culture)
    metrics.count("culturemanager_tokens", last["prompt_tokens"], kind="prompt")
    metrics.count("culturemanager_tokens", last["completion_tokens"], kind="completion")


def _overloaded() -> JSONResponse:
    metrics.count("culturemanager_requests", 1, culture="none", status=429)
    return JSONResponse(error_body("Too many requests are waiting. Try again in a second.", "rate_limit_error"), 429,
                        headers={"Retry-After": "1"})


def _failed(error: Exception) -> JSONResponse:
    cause = _cause(error)
    wrong_request = isinstance(cause, (RequestError, ModelError))
    status = 400 if wrong_request else 503 if isinstance(cause, AdapterError) else 500
    metrics.count("culturemanager_requests", 1, culture="none", status=status)
    message = str(cause) if isinstance(cause, CultureManagerError) else "the model could not answer; try again."
    return JSONResponse(error_body(message, "invalid_request_error" if wrong_request else "api_error"), status)


def _cause(error: Exception) -> BaseException:
    """What a remote call raised, without Ray's wrapping."""
    return error.cause if isinstance(error, RayTaskError) and error.cause is not None else error


@serve.deployment(name="Ingress")
@serve.ingress(api)
class Ingress:
    """OpenAI's routes over the router deployment.

    Args:
        router: handle of `CultureRouter`.
        sums: of the API keys that open the endpoint; with none, everyone is admitted.
    """

    def __init__(self, router: Any, sums: Sequence[str]) -> None:
        self._router = router
        api.state.keys = ApiKeys(sums)

    @api.get("/health")
    async def health(self) -> dict[str, str]:
        """Whether the router answers; open to load balancers."""
        try:
            await self._router.models.remote()
        except RayError as error:
            raise HTTPException(503, "not ready") from error
        return {"status": "ok"}

    @api.get("/v1/models", dependencies=[Depends(require_key)])
    async def models(self) -> dict[str, Any]:
        """Every name that `model` may hold."""
        names = await self._router.models.remote()
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": 0, "owned_by": "culturemanager"} for name in names],
        }

    @api.post("/v1/route", dependencies=[Depends(require_key)])
    async def route(self, body: RouteRequest) -> dict[str, Any]:
        """The router's decision for a text or several, without an answer."""
        texts = [body.input] if isinstance(body.input, str) else body.input
        routes = await self._router.route.remote(texts)
        return {"object": "list", "data": [decision(route) for route in routes]}

    @api.post("/v1/chat/completions", dependencies=[Depends(require_key)])
    async def chat(self, body: ChatRequest) -> Response:
        """A chat completion, streamed or whole."""
        asked = {"messages": [message.plain() for message in body.messages],
                 "max_new_tokens": body.max_completion_tokens or body.max_tokens}
        return await self._respond(body, asked, chat=True)

    @api.post("/v1/completions", dependencies=[Depends(require_key)])
    async def complete(self, body: CompletionRequest) -> Response:
        """A plain completion, streamed or whole."""
        return await self._respond(body, {"prompt": body.prompt, "max_new_tokens": body.max_tokens}, chat=False)

    async def _respond(self, body: GenerationFields, asked: dict[str, Any], chat: bool) -> Response:
        started = time.monotonic()
        request = {"model": body.model, "culture": body.culture, "temperature": body.temperature, "top_p": body.top_p,
                   "seed": body.seed, "stop": body.stops(), **asked}
        events = self._router.options(stream=True).answer.remote(request)
        try:
            first = await anext(events)
            if "refused" in first:
                status = 404 if first["code"] == "model_not_found" else 400
                return JSONResponse(error_body(first["refused"], "invalid_request_error", first["param"], first["code"]), status)
            route: Route = first["route"]
            begun = await anext(events)
        except BackPressureError:
            return _overloaded()
        except (RayError, CultureManagerError) as error:
            return _failed(error)
        shape = ResponseShape(chat, first["adapter"] or body.model, route)
        headers = {"x-culturemanager-culture": route.culture or "none", "x-culturemanager-reason": route.reason,
                   "x-culturemanager-confidence": f"{route.confidence:.4f}"}
        if body.stream:
            wants_usage = bool(body.stream_options and body.stream_options.include_usage)
            return StreamingResponse(self._stream(events, begun, shape, route, wants_usage, started), headers=headers,
                                     media_type="text/event-stream")
        try:
            return JSONResponse(await self._whole(events, begun, shape, route, started), headers=headers)
        except (RayError, CultureManagerError) as error:
            return _failed(error)

    async def _whole(
        self, events: Any, begun: dict[str, Any], shape: ResponseShape, route: Route, started: float
    ) -> dict[str, Any]:
        text, last = begun["text"], begun
        if not last["finish_reason"]:
            async for last in events:
                text += last["text"]
        _tell(route, last, started)
        return shape.whole(text, last["finish_reason"], usage(last["prompt_tokens"], last["completion_tokens"]))

    async def _stream(self, events: Any, begun: dict[str, Any], shape: ResponseShape, route: Route, wants_usage: bool,
                      started: float) -> AsyncIterator[str]:
        last = begun
        yield shape.chunk(begun["text"], begun["finish_reason"], first=True)
        try:
            if not begun["finish_reason"]:
                async for last in events:
                    yield shape.chunk(last["text"], last["finish_reason"], first=False)
        except (RayError, CultureManagerError) as error:
            yield event(error_body(f"the answer broke off: {_cause(error)}", "api_error"))
            return
        _tell(route, last, started)
        if wants_usage:
            yield shape.usage_chunk(usage(last["prompt_tokens"], last["completion_tokens"]))
        yield "data: [DONE]\n\n"
