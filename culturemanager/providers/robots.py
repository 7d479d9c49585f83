"""What a site's robots.txt permits (RFC 9309), read once per origin."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import anyio
import httpx2
from protego import Protego

from culturemanager.errors import FetchError

MAX_ROBOTS_BYTES = 500 * 1024
"""RFC 9309 asks for at least this much to be read; the rest is ignored."""
MAX_CRAWL_DELAY_S = 30.0
NOBODY = "User-agent: *\nDisallow: /"

Get = Callable[[httpx2.URL, int, Callable[[], None]], Awaitable[tuple[int, bytes]]]
"""Follows redirects; (url, bytes wanted, called once a server is reached) -> status and the body's beginning. Raises
FetchError and httpx2 errors."""


class Robots:
    """The rules of every origin met so far, for one crawler.

    4xx means everything is allowed; 5xx, a timeout or a broken answer that nothing is.

    Args:
        user_agent: its product token, `CultureManager` in `CultureManager/0.1 (...)`, is what rules match.
        timeout_s: for one robots.txt.
    """

    def __init__(self, user_agent: str, timeout_s: float) -> None:
        self._token = user_agent.partition("/")[0].strip()
        self._timeout_s = timeout_s
        self._rules: dict[str, Protego] = {}
        self._free_at: dict[str, float] = {}

    async def wait_turn(self, url: httpx2.URL) -> None:
        """Sleep until the origin's Crawl-delay since the last visit is over; 30 s at most."""
        await anyio.sleep(max(0.0, self._free_at.get(_origin(url), 0.0) - time.monotonic()))

    async def require_allowed(self, url: httpx2.URL, get: Get) -> None:
        """Raise `FetchError` (`robots`) if the site does not want this page read.

        Raises:
            FetchError: not allowed; or (`address`) robots.txt leads to a refused address.
            httpx2.ConnectError, httpx2.ConnectTimeout: nobody was reached, which says nothing about the rules.
        """
        origin = _origin(url)
        rules = self._rules.get(origin)
        if rules is None:
            rules = self._rules[origin] = Protego.parse(await self._read(url.join("/robots.txt"), get))
        if not rules.can_fetch(str(url), self._token):
            raise FetchError(f"{url} is closed to {self._token!r} by {origin}/robots.txt.", reason="robots")
        if delay := rules.crawl_delay(self._token):
            self._free_at[origin] = time.monotonic() + min(delay, MAX_CRAWL_DELAY_S)

    async def _read(self, url: httpx2.URL, get: Get) -> str:
        reached = anyio.Event()
        try:
            with anyio.fail_after(self._timeout_s):
                status, body = await get(url, MAX_ROBOTS_BYTES, reached.set)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            raise
        except FetchError as error:
            if error.reason in ("address", "network"):
                raise
            return NOBODY
        except TimeoutError:
            if not reached.is_set():  # no name server answered, or none of the host's addresses
                raise httpx2.ConnectTimeout("") from None
            return NOBODY
        except (httpx2.HTTPError, httpx2.InvalidURL):
            return NOBODY
        if status == 200:
            return body.decode("utf-8", "replace")
        return "" if 400 <= status < 500 else NOBODY


def _origin(url: httpx2.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode('ascii')}"
