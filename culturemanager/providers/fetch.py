"""Urls to pages: out of a folder, or over HTTP with every limit a stranger's server calls for.

    PageFetcher (protocol)
    ├── FolderFetcher   `folder:` urls, never outside the folder
    └── HttpFetcher     http(s) urls: limits on time, bytes, types, redirects and addresses; robots.txt
"""

from __future__ import annotations

import datetime
import hashlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio
import httpx2

from culturemanager.config import Project
from culturemanager.errors import FetchError
from culturemanager.providers.document import decode
from culturemanager.providers.folder import CONTENT_TYPES, folder_path, locate, read_document, require_folder
from culturemanager.providers.network import (
    CONNECT_TIMEOUT_S,
    Approval,
    PinnedTransport,
    Resolver,
    anything,
    only_public,
    resolve,
    too_large,
)
from culturemanager.providers.robots import Robots
from culturemanager.sections.synthesis import FetchConfig, FolderSearch, SearchConfig

PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml", "text/plain", "text/markdown", "text/x-markdown"})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
ROBOTS_REDIRECTS = 5
ENCODINGS = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})
"""Content encodings whose decompression is bounded step by step."""


@dataclass(frozen=True)
class FetchedPage:
    """A page as it came."""

    url: str
    final_url: str
    """After redirects."""
    content_type: str
    """The media type alone: ``text/html``."""
    body: bytes
    """Decompressed, not decoded."""
    text: str
    """`body` decoded; what could not be decoded is U+FFFD."""
    fetched_at: str
    """ISO 8601, UTC, whole seconds. For a file, when it was last changed."""
    sha256: str
    """Of `body`."""

    @classmethod
    def of(cls, url: str, final_url: str, content_type: str, body: bytes, fetched_at: datetime.datetime) -> FetchedPage:
        """Decode and sum up a body; `content_type` is the whole header."""
        return cls(url=url, final_url=final_url, content_type=media_type(content_type), body=body,
                   text=decode(body, content_type), fetched_at=fetched_at.isoformat(timespec="seconds"),
                   sha256=hashlib.sha256(body).hexdigest())


def media_type(content_type: str) -> str:
    """``text/html`` out of ``Text/HTML; charset=utf-8``."""
    return content_type.partition(";")[0].strip().lower()


class PageFetcher(Protocol):
    """Fetches one page. Safe to call from several threads."""

    def fetch(self, url: str) -> FetchedPage:
        """The page.

        Raises:
            FetchError: with `reason` one of timeout, too_large, type, robots, address, redirect, status,
                decode, network.
        """
        ...


class FolderFetcher:
    """Reads documents below a folder by their `folder:` url.

    Raises:
        SearchError: there is no such folder.
    """

    def __init__(self, folder: Path, max_bytes: int = FetchConfig().max_bytes) -> None:
        self._folder = require_folder(folder)
        self._max_bytes = max_bytes

    def fetch(self, url: str) -> FetchedPage:
        """The document; `status` if there is none, `address` if the url would leave the folder."""
        path = locate(self._folder, url)
        body = read_document(path, self._max_bytes)
        changed = datetime.datetime.fromtimestamp(int(path.stat().st_mtime), datetime.UTC)
        return FetchedPage.of(url, url, CONTENT_TYPES[path.suffix.lower()], body, changed)


class HttpFetcher:
    """Fetches public web pages.

    Time counts from the first byte sent to the last received, look-ups, robots.txt and redirects
    included; a wait that a site's Crawl-delay asks for does not count. Each redirect is checked like a
    url of its own. Proxies named in the environment are not used: a proxy would resolve names itself.

    Args:
        limits: the project's `pages.fetch`.
        ssl_context: for certificate checks; by default the system's authorities.
        resolver: (host, port) to addresses; by default the system's.
        approval: which addresses may be connected to; by default what `limits.allow_private_addresses` says.
    """

    def __init__(self, limits: FetchConfig, *, ssl_context: ssl.SSLContext | None = None,
                 resolver: Resolver = resolve, approval: Approval | None = None) -> None:
        self._limits, self._resolver = limits, resolver
        self._approval = approval or (anything if limits.allow_private_addresses else only_public)
        self._ssl_context = ssl_context or httpx2.create_ssl_context()
        # Half of the time, so that a site whose robots.txt hangs is told from a page that hangs.
        self._robots = Robots(limits.user_agent, limits.timeout_s / 2)

    def fetch(self, url: str) -> FetchedPage:
        """The page behind `url`, redirects followed. See `PageFetcher.fetch`."""
        return anyio.run(self._fetch, url)

    async def _fetch(self, url: str) -> FetchedPage:
        limits = self._limits
        try:
            start = _checked(url)
            await self._robots.wait_turn(start)
            with anyio.fail_after(limits.timeout_s):
                async with self._client() as client:
                    return await self._follow(client, start, url)
        except (httpx2.TimeoutException, TimeoutError):
            raise FetchError(f"{url} took longer than {limits.timeout_s:g} s (`pages.fetch.timeout_s`).",
                             reason="timeout") from None
        except httpx2.DecodingError as error:
            raise FetchError(f"{url} sent a body that cannot be decompressed ({error}).", reason="decode") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise FetchError(f"{url} cannot be fetched ({error or type(error).__name__}).", reason="network") from error

    def _client(self) -> httpx2.AsyncClient:
        limits = self._limits
        transport = PinnedTransport(max_bytes=limits.max_bytes, ssl_context=self._ssl_context, resolver=self._resolver,
                                    approval=self._approval)
        return httpx2.AsyncClient(
            transport=transport, trust_env=False, follow_redirects=False,
            timeout=httpx2.Timeout(limits.timeout_s, connect=min(CONNECT_TIMEOUT_S, limits.timeout_s)),
            headers={"User-Agent": limits.user_agent, "Accept-Encoding": "gzip, deflate",
                     "Accept": "text/html,application/xhtml+xml,text/markdown,text/plain;q=0.9"})

    async def _follow(self, client: httpx2.AsyncClient, url: httpx2.URL, asked: str) -> FetchedPage:
        async def get(robots_url: httpx2.URL, wanted: int, reached: Callable[[], None]) -> tuple[int, bytes]:
            return await _get_start(client, robots_url, wanted, reached)

        for _ in range(self._limits.max_redirects + 1):
            await self._robots.require_allowed(url, get)
            async with client.stream("GET", url) as response:
                if response.status_code not in REDIRECTS:
                    return await self._read(response, url, asked)
                url = _redirect_target(response, url)
        raise FetchError(f"{asked} redirects more than {self._limits.max_redirects} times (`pages.fetch.max_redirects`).",
                         reason="redirect")

    async def _read(self, response: httpx2.Response, url: httpx2.URL, asked: str) -> FetchedPage:
        if response.status_code != 200:
            raise FetchError(f"{url} answered {response.status_code}.", reason="status")
        content_type = response.headers.get("Content-Type", "")
        if media_type(content_type) not in PAGE_TYPES:
            raise FetchError(f"{url} is {media_type(content_type) or 'of no declared type'}, not a page. Expected one of "
                             f"{', '.join(sorted(PAGE_TYPES))}.", reason="type")
        body = await _read_body(response, self._limits.max_bytes, url)
        return FetchedPage.of(asked, str(url), content_type, body, datetime.datetime.now(datetime.UTC))


async def _read_body(response: httpx2.Response, max_bytes: int, url: httpx2.URL) -> bytes:
    """The decompressed body; `PinnedTransport` counts the compressed bytes."""
    for encoding in response.headers.get("Content-Encoding", "").lower().split(","):
        if encoding.strip() not in ENCODINGS:
            raise FetchError(f"{url} is compressed as {encoding.strip()!r}, which was not asked for.", reason="decode")
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > max_bytes:
            raise too_large(str(url), max_bytes)
    return bytes(body)


async def _get_start(client: httpx2.AsyncClient, url: httpx2.URL, wanted: int,
                     reached: Callable[[], None]) -> tuple[int, bytes]:
    """Status and the first `wanted` bytes of what `url` leads to; `reached` is called once a connection stands."""
    async def trace(event: str, _: Any) -> None:
        if event == "connection.connect_tcp.complete":
            reached()

    for _ in range(ROBOTS_REDIRECTS + 1):
        async with client.stream("GET", url, extensions={"trace": trace}) as response:
            if response.status_code in REDIRECTS:
                url = _redirect_target(response, url)
                continue
            body = bytearray()
            try:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) >= wanted:
                        break
            except FetchError as error:
                if error.reason != "too_large":
                    raise
            return response.status_code, bytes(body[:wanted])
    raise FetchError(f"{url} is one redirect too many.", reason="redirect")


def _checked(url: str | httpx2.URL) -> httpx2.URL:
    """A url that may be asked for.

    Raises:
        FetchError: not http(s), no host, or with a user name or password in it.
    """
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError, TypeError) as error:
        raise FetchError(f"{url!r} is no url ({error}).", reason="address") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise FetchError(f"{str(url)!r} is no web address. Expected http:// or https:// and a host.", reason="address")
    if parsed.userinfo:
        raise FetchError(f"The url of a page at {parsed.host} carries a user name or password; it is not used.",
                         reason="address")
    return parsed


def _redirect_target(response: httpx2.Response, url: httpx2.URL) -> httpx2.URL:
    location = response.headers.get("Location", "")
    if not location:
        raise FetchError(f"{url} answered {response.status_code} without a Location.", reason="redirect")
    return _checked(url.join(location).copy_with(fragment=None))


def build_fetcher(search: SearchConfig, limits: FetchConfig, project: Project) -> PageFetcher:
    """The fetcher that goes with a project's search provider.

    Raises:
        SearchError: the searched folder is missing.
    """
    if isinstance(search, FolderSearch):
        return FolderFetcher(folder_path(search, project), limits.max_bytes)
    return HttpFetcher(limits)
