"""What a client is told when an answer fails: a status, a message, when to try again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from culturemanager.errors import (
    AdapterError,
    CultureManagerError,
    ModelError,
    OverloadedError,
    RequestError,
    StorageError,
)

FAILURES = (RayError, RayServeException, CultureManagerError)
"""What asking another deployment may raise. A full queue of our own handle is no `RayError`."""


@dataclass(frozen=True)
class Failure:
    """An error as the endpoint answers it."""

    status: int
    message: str
    kind: str
    headers: dict[str, str] = field(default_factory=dict)


def cause(error: Exception) -> BaseException:
    """What a remote call raised, without Ray's wrapping."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception) and error.cause is not error:
        error = error.cause
    return error


def failure(error: Exception) -> Failure:
    """The answer to an error; only messages of our own are passed on."""
    told = cause(error)
    if isinstance(told, (BackPressureError, OverloadedError)):
        wait = max(1, math.ceil(told.retry_after_s or 1))
        return Failure(429, f"Too many requests are waiting. Try again in {wait} s.", "rate_limit_error",
                       {"Retry-After": str(wait)})
    if isinstance(told, (RequestError, ModelError)):
        return Failure(400, str(told), "invalid_request_error")
    if isinstance(told, (AdapterError, StorageError)):
        return Failure(503, str(told), "api_error", {"Retry-After": "60"})
    if isinstance(told, CultureManagerError):
        return Failure(503, str(told), "api_error", {"Retry-After": "5"})
    return Failure(503, "The model could not answer. Try again.", "api_error", {"Retry-After": "5"})
