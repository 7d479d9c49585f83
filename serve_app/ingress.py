"""The HTTP side: OpenAI's routes, API keys, errors in OpenAI's shape.

Annotations stay objects here (no `from __future__ import annotations`): FastAPI reads them.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from ray import serve
from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator
from starlette.exceptions import HTTPException as StarletteHTTPException

from serve_app import playground
from serve_app.exposition import CONTENT_TYPE, Exposition
from serve_app.failures import FAILURES, failure
from serve_app.keys import ApiKey, ApiKeys
from serve_app.limits import LimitBody
from serve_app.merging import merged
from serve_app.openai_api import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    RouteRequest,
    TokenizeRequest,
)
from serve_app.replica_status import ReplicaStatus
from serve_app.request_log import RequestRecord
from serve_app.responses import ResponseShape, decision, error_body, event, usage

api = FastAPI(title="CultureManager", description="One language model, every culture: an OpenAI-compatible endpoint.",
              docs_url=None, redoc_url=None, openapi_url=None)
api.add_middleware(LimitBody)
api.include_router(playground.router)

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 405: "invalid_request_error",
         429: "rate_limit_error", 503: "api_error"}


async def caller(request: Request) -> ApiKey:
    """The key a request came with; refuses one without a valid key, and one beyond its key's rate."""
    keys: ApiKeys = request.app.state.keys
    key = keys.identify(request.headers.get("authorization"))
    if key is None:
        raise HTTPException(401, "Missing or wrong API key. Send `Authorization: Bearer <key>`.")
    refusal = keys.take(key) if request.method == "POST" else None
    if refusal:
        raise HTTPException(refusal.status, refusal.message, {"Retry-After": str(refusal.retry_after_s)})
    return key


Caller = Annotated[ApiKey, Depends(caller)]


@api.exception_handler(StarletteHTTPException)
async def http_error(_: Request, error: StarletteHTTPException) -> JSONResponse:
    body = error_body(str(error.detail), KINDS.get(error.status_code, "api_error"))
    return JSONResponse(body, error.status_code, headers=error.headers)


@api.exception_handler(RequestValidationError)
async def invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
    place = error.errors()[0]["loc"][:2]
    # Of a field's forms the one that the value comes nearest to says what is wrong.
    first = max((one for one in error.errors() if one["loc"][:2] == place), key=lambda one: len(one["loc"]))
    # Of a field that may have several forms the place is told, and not which form was tried.
    field = ".".join(str(part) for part in first["loc"] if part != "body" and not _names_a_form(part)) or "body"
    return JSONResponse(error_body(f"{field}: {first['msg'].removeprefix('Value error, ')}", "invalid_request_error", field), 400)


def _names_a_form(part: object) -> bool:
    return (isinstance(part, str) and any(sign in part for sign in "[(-")) or part in ("str", "ContentPart", "Message")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "culturemanager"}


def _answer_failure(error: Exception, record: RequestRecord | None = None) -> JSONResponse:
    told = failure(error)
    if record:
        record.finish(told.status)
    return JSONResponse(error_body(told.message, told.kind), told.status,
                        headers=(record.headers() if record else {}) | told.headers)


@contextlib.contextmanager
def _together(calls: Sequence[DeploymentResponse | DeploymentResponseGenerator]) -> Iterator[None]:
    """If one of a request's answers fails, no replica works on the others for nobody."""
    try:
        yield
    except BaseException:
        _cancel(calls)
        raise


def _cancel(calls: Iterable[DeploymentResponse | DeploymentResponseGenerator]) -> None:
    for call in calls:
        with contextlib.suppress(*FAILURES):  # one that found the queue full
            call.cancel()


class FailureRoute(APIRoute):
    """Answers what a route's calls of the router raise.

    A handler of the application would not do: Serve puts one of its own in the place of that for a full queue.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except FAILURES as error:
                return _answer_failure(error)

        return answer


api.router.route_class = FailureRoute


# `serve.ingress` copies the application with what this module holds at that moment: what routes call stands above.


@serve.deployment(name="Ingress")
@serve.ingress(api)
class Ingress:
    """OpenAI's routes over the router deployment.

    Args:
        router: handle of `CultureRouter`.
        keys: API keys that open the endpoint; with none, everyone is admitted.
        most_bytes: of a request's body.
        log_texts: whether the request log holds what was asked and answered.
    """

    def __init__(self, router: Any, keys: Sequence[ApiKey], most_bytes: int, log_texts: bool) -> None:
        self._router = router
        self._health = ReplicaStatus(lambda: self._router.health.remote())
        self._log_texts = log_texts
        self._exposition = Exposition()
        api.state.keys = ApiKeys(keys)
        api.state.most_bytes = most_bytes

    # ---- what is there

    @api.get("/health")
    async def health(self) -> dict[str, Any]:
        """Whether the model answers; open to load balancers. Versions that failed are named; `/v1/status` tells why."""
        try:
            told = await self._health.get()
        except (TimeoutError, *FAILURES) as error:
            if failure(error).status == 429:  # it is busy answering
                return {"status": "busy", "failed": []}
            raise HTTPException(503, "The model is not ready. Try again in a few seconds.", {"Retry-After": "5"}) from error
        if not told["reachable"]:
            raise HTTPException(503, "The server behind the endpoint does not answer.", {"Retry-After": "5"})
        return {"status": "degraded" if told["failed"] else "ok", "failed": told["failed"]}

    @api.get("/openapi.json", include_in_schema=False, dependencies=[Depends(caller)])
    async def schema(self, request: Request) -> dict[str, Any]:
        """The routes and their fields."""
        return request.app.openapi()

    @api.get("/metrics", dependencies=[Depends(caller)])
    async def metrics(self) -> Response:
        """This ingress's figures in Prometheus' text format."""
        return Response(self._exposition.text(), media_type=CONTENT_TYPE)

    @api.get("/v1/models")
    async def models(self, key: Caller) -> dict[str, Any]:
        """Every name that `model` may hold."""
        return {"object": "list", "data": [_model(name) for name in await self._names(key)]}

    @api.get("/v1/models/{name:path}")
    async def model(self, name: str, key: Caller) -> dict[str, Any]:
        """One of them."""
        if name not in await self._names(key):
            raise HTTPException(404, f"The model {name!r} is not served; GET /v1/models lists those that are.")
        return _model(name)

    @api.get("/v1/status", dependencies=[Depends(caller)])
    async def status(self) -> dict[str, Any]:
        """Which versions serve, which are on trial, which failed and why, and how busy a replica is."""
        return await self._router.status.remote()

    # ---- parts of answering

    @api.get("/v1/cultures/{culture}/sources")
    async def sources(self, culture: str, key: Caller, query: Annotated[str, Query(min_length=1, max_length=2000)],
                      limit: Annotated[int, Query(ge=1, le=20)] = 5) -> Response:
        """The sentences behind a culture's training rows, those nearest to the question first."""
        if key.cultures is not None and culture not in key.cultures:
            raise HTTPException(403, f"This key may not see the culture {culture!r}.")
        found = await self._router.sources.remote(culture, query, limit)
        if found is None:
            raise HTTPException(404, f"The culture {culture!r} is none of the project's; GET /v1/models lists the served ones.")
        return JSONResponse({"object": "list", "culture": culture, **found})

    @api.post("/v1/route", dependencies=[Depends(caller)])
    async def route(self, body: RouteRequest) -> dict[str, Any]:
        """The router's decision for a text or several, without an answer."""
        texts = [body.input] if isinstance(body.input, str) else body.input
        routes = await self._router.route.remote(texts)
        return {"object": "list", "data": [decision(route) for route in routes]}

    @api.post("/tokenize", dependencies=[Depends(caller)])
    async def tokenize(self, body: TokenizeRequest) -> Response:
        """Token ids of a text or a conversation, and the tokens a request may have."""
        messages = [message.plain() for message in body.messages] if body.messages else None
        tokens, context = await asyncio.gather(
            self._router.tokenize.remote(body.prompt, messages, body.add_special_tokens), self._router.context.remote())
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": context})

    @api.post("/detokenize", dependencies=[Depends(caller)])
    async def detokenize(self, body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        return JSONResponse({"prompt": await self._router.detokenize.remote(body.tokens)})

    @api.get("/tokenizer_info", dependencies=[Depends(caller)])
    async def tokenizer_info(self) -> dict[str, Any]:
        """The tokenizer's special tokens and chat template."""
        return await self._router.tokenizer_info.remote()

    # ---- answers

    @api.post("/v1/chat/completions")
    async def chat(self, body: ChatRequest, key: Caller) -> Response:
        """A chat completion, streamed or whole."""
        return await self._respond(body, key, chat=True)

    @api.post("/v1/completions")
    async def complete(self, body: CompletionRequest, key: Caller) -> Response:
        """A plain completion, streamed or whole."""
        return await self._respond(body, key, chat=False)

    async def _names(self, key: ApiKey) -> list[str]:
        models = await self._router.models.remote()
        return [name for name, culture in models.items() if not culture or key.cultures is None or culture in key.cultures]

    async def _respond(self, body: ChatRequest | CompletionRequest, key: ApiKey, chat: bool) -> Response:
        record = RequestRecord(uuid.uuid4().hex, key.name, body.model, body.stream)
        shared = {"allowed_cultures": key.cultures, "asked_at": time.time()}
        jobs = [job | shared for job in body.choices()]
        try:
            begin = self._begin_streams if body.stream else self._answers
            answers = await begin(jobs)
        except FAILURES as error:
            return _answer_failure(error, record)
        refused = next((answer for answer in answers if "refused" in answer), None)
        if refused:
            _cancel(answer["stream"] for answer in answers if "stream" in answer)
            record.finish(refused["status"])
            kind = KINDS.get(refused["status"], "invalid_request_error")
            return JSONResponse(error_body(refused["refused"], kind, refused["param"], refused["code"]), refused["status"],
                                headers=record.headers() | refused["headers"])
        record.routed(answers[0]["route"], answers[0]["adapter"])
        shape = ResponseShape(chat, answers[0]["adapter"] or body.model, [answer["route"] for answer in answers],
                              answers[0].get("passages"))
        if body.stream:
            wants_usage = bool(body.stream_options and body.stream_options.include_usage)
            streams = [answer["stream"] for answer in answers]
            return StreamingResponse(self._events(streams, shape, wants_usage, record, jobs), headers=record.headers(),
                                     media_type="text/event-stream")
        whole = shape.whole(answers)
        record.first_token(max(answer["first_token_ago_s"] for answer in answers))
        record.finish(200, whole["usage"], self._texts(jobs, [answer["text"] for answer in answers]))
        return JSONResponse(whole, headers=record.headers())

    async def _answers(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Every choice's whole answer."""
        calls = [self._router.answer.remote(job) for job in jobs]
        with _together(calls):
            answers = await asyncio.gather(*map(self._ended, calls))
        now = time.monotonic()
        return [answer | {"first_token_ago_s": now - ended + answer.get("since_first_token_s", 0.0)} for answer, ended in answers]

    async def _ended(self, call: DeploymentResponse) -> tuple[dict[str, Any], float]:
        """A choice's answer, and when it came."""
        answer = await call
        if "refused" not in answer:  # the router's own word, no replica's
            self._health.heard()
        return answer, time.monotonic()

    async def _begin_streams(self, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Every choice's decision, with the stream that follows it."""
        streams = [self._router.options(stream=True).stream.remote(job) for job in jobs]
        with _together(streams):
            heads = await asyncio.gather(*(anext(stream) for stream in streams))
        return [head | {"stream": stream} for head, stream in zip(heads, streams, strict=True)]

    async def _events(self, streams: Sequence[DeploymentResponseGenerator], shape: ResponseShape, wants_usage: bool,
                      record: RequestRecord, jobs: Sequence[dict[str, Any]]) -> AsyncIterator[str]:
        texts, newest = [""] * len(streams), {}
        begun: set[int] = set()
        status = 499  # unless the end is reached, the client went away
        try:
            async for number, piece in merged(streams):
                self._health.heard()
                record.first_token()
                yield shape.chunk(number, piece, first=number not in begun)
                begun.add(number)
                texts[number] += piece["text"]
                newest[number] = piece
            if wants_usage:
                yield shape.usage_chunk(usage(newest.values()))
            status = 200
            yield "data: [DONE]\n\n"
        except FAILURES as error:
            status = failure(error).status
            yield event(error_body(f"the answer broke off: {failure(error).message}", "api_error"))
        finally:
            if status != 200:
                _cancel(streams)
            record.finish(status, usage(newest.values()), self._texts(jobs, texts))

    def _texts(self, jobs: Sequence[dict[str, Any]], answers: Sequence[str]) -> dict[str, Any] | None:
        if not self._log_texts:
            return None
        return {"asked": [job.get("messages") or job["prompt"] for job in jobs], "answered": list(answers)}
