"""JSON over HTTP from a service that may be busy: tried again, then explained in one line."""

from __future__ import annotations

import functools
import ssl
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import httpx2
import tenacity

from culturemanager.errors import SearchError
from culturemanager.providers.llm_wire import retry_after_s as read_retry_after

ATTEMPTS = 4
MAX_WAIT_S = 30.0
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class _CallFailed(SearchError):
    """One call that failed, with what decides whether to try again."""

    def __init__(self, message: str, transient: bool, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.transient, self.retry_after_s = transient, retry_after_s


def get_json(url: str, parameters: Mapping[str, str], *, timeout_s: float, user_agent: str,
             explain: Callable[[int], str], backoff_s: float = 0.5, attempts: int = ATTEMPTS) -> dict[str, Any]:
    """GET a JSON object.

    429, some 5xx, timeouts and broken connections are tried again, with exponential backoff and jitter, or
    after what Retry-After asks for; longer than 30 s is not waited for.

    Args:
        explain: the next step to name for a status that is no success.
        backoff_s: the first wait.
        attempts: tries in all.

    Raises:
        SearchError: no answer, a status other than 200, or no JSON object.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_worth_waiting), stop=tenacity.stop_after_attempt(attempts),
        wait=lambda state: _wait_s(state, backoff_s), reraise=True)
    try:
        return retrying(_get_once, url, parameters, timeout_s, user_agent, explain)
    except _CallFailed as error:
        failure = str(error)
    raise SearchError(failure)


def shown(url: str) -> str:
    """An address as messages name it: without user name, password and query, where people put keys."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "the address"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _get_once(url: str, parameters: Mapping[str, str], timeout_s: float, user_agent: str,
              explain: Callable[[int], str]) -> dict[str, Any]:
    address = shown(url)
    try:
        response = httpx2.get(url, params=parameters, timeout=timeout_s, follow_redirects=True, verify=_ssl_context(),
                              headers={"User-Agent": user_agent, "Accept": "application/json"})
    except httpx2.TimeoutException:
        raise _CallFailed(f"{address} did not answer within {timeout_s:g} s (`pages.search.timeout_s`).",
                          transient=True) from None
    except httpx2.TransportError as error:
        transient = not isinstance(error, httpx2.UnsupportedProtocol)
        raise _CallFailed(f"{address} cannot be reached ({str(error).replace(url, address)}). Check `pages.search.url` and "
                          "that the service runs.", transient) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _CallFailed(f"{address} cannot be used ({type(error).__name__}). Check `pages.search.url`.",
                          transient=False) from None
    if response.status_code != 200:
        wait_s = read_retry_after(response.headers)
        later = f" It asks to wait {wait_s:.0f} s." if wait_s else ""
        raise _CallFailed(f"{address} answered {response.status_code}.{later} {explain(response.status_code)}",
                          response.status_code in TRANSIENT_STATUS, wait_s)
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise _CallFailed(f"{address} answered something else than a JSON object. {explain(200)}", transient=False)
    return answer


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Reading the system's authorities takes longer than a request; once is enough."""
    return httpx2.create_ssl_context()


def _worth_waiting(error: BaseException) -> bool:
    return isinstance(error, _CallFailed) and error.transient and (error.retry_after_s or 0) <= MAX_WAIT_S


def _wait_s(state: tenacity.RetryCallState, backoff_s: float) -> float:
    asked = state.outcome.exception().retry_after_s
    if asked is not None:
        return asked
    return tenacity.wait_exponential_jitter(multiplier=backoff_s, max=MAX_WAIT_S, jitter=backoff_s)(state)
