"""HTTP that only reaches addresses it looked up and approved itself.

A url from a search engine may point anywhere: at this machine, at the cloud's metadata service, at a
name whose second look-up answers something else (DNS rebinding). `PinnedTransport` therefore resolves
a request's host once, refuses it if any of its addresses is not public, and connects to one of those
very addresses, while Host header, SNI and certificate check keep the name.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable

import anyio.to_thread
import httpx2

from culturemanager.errors import FetchError

Resolver = Callable[[str, int], list[str]]
"""(host, port) -> numeric addresses. Raises OSError."""
Approval = Callable[[str, int], bool]
"""(numeric address, port) -> whether it may be connected to."""

CONNECT_TIMEOUT_S = 5.0
"""For one address; then the next one is tried."""

# What Python's own tables (they differ between its versions) leave out.
REFUSED_NETWORKS = tuple(ipaddress.ip_network(network) for network in (
    "192.0.0.0/24",      # protocol assignments; clouds put services there
    "192.88.99.0/24",    # 6to4 relays
    "::/96",             # IPv4-compatible IPv6, unspecified, loopback
    "64:ff9b::/96",      # NAT64: an IPv4 address in disguise
    "64:ff9b:1::/48",    # NAT64 for local use
    "2002::/16",         # 6to4
    "2001::/23",         # protocol assignments, Teredo among them
    "3fff::/20",         # documentation
    "5f00::/16",         # segment routing
    "fec0::/10",         # site-local
    "168.63.129.16/32",  # a cloud's own service behind a public-looking address
))


def is_public(address: str) -> bool:
    """Whether an IP address, given as text, belongs to the public internet."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return False
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_private:
        return False
    return not any(ip.version == network.version and ip in network for network in REFUSED_NETWORKS)


def only_public(address: str, port: int) -> bool:
    """The approval for pages from the web."""
    return is_public(address)


def anything(address: str, port: int) -> bool:
    """The approval for an intranet."""
    return True


def resolve(host: str, port: int) -> list[str]:
    """The numeric addresses of a host, in the system resolver's order, each once.

    Raises:
        OSError: the name does not exist, or no name server answers.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


class PinnedTransport(httpx2.AsyncBaseTransport):
    """Connects each request to an approved address of its host.

    Connections are not kept: one made for a host must not serve another host at the same address,
    whose certificate nobody checked.

    Args:
        max_bytes: longest response body on the wire, compressed as it comes.
        ssl_context: for certificate checks.
        resolver: looks up addresses.
        approval: decides which of them may be connected to.
    """

    def __init__(self, *, max_bytes: int, ssl_context: ssl.SSLContext, resolver: Resolver, approval: Approval) -> None:
        self._max_bytes, self._resolver, self._approval = max_bytes, resolver, approval
        self._inner = httpx2.AsyncHTTPTransport(verify=ssl_context, trust_env=False,
                                                limits=httpx2.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request.

        Raises:
            FetchError: the host has no address (`network`), or one that is not public (`address`).
            httpx2.TransportError: no address could be connected to, or the exchange failed.
        """
        host = request.url.raw_host.decode("ascii")
        failure: httpx2.TransportError | None = None
        for address in await self._approved_addresses(host, request.url):
            pinned = httpx2.Request(request.method, request.url.copy_with(host=address), headers=request.headers,
                                    stream=request.stream, extensions={**request.extensions, "sni_hostname": host})
            try:
                response = await self._inner.handle_async_request(pinned)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error
                continue
            response.stream = _Limited(response.stream, self._max_bytes, str(request.url))
            return response
        assert failure is not None  # there was at least one address
        raise failure

    async def _approved_addresses(self, host: str, url: httpx2.URL) -> list[str]:
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            # A look-up cannot be interrupted: leave it behind when time is up.
            addresses = await anyio.to_thread.run_sync(functools.partial(self._resolver, host, port), abandon_on_cancel=True)
        except (OSError, UnicodeError) as error:
            raise FetchError(f"{url}: the host {host!r} cannot be looked up ({error}).", reason="network") from error
        if not addresses:
            raise FetchError(f"{url}: the host {host!r} has no address.", reason="network")
        refused = [address for address in addresses if not self._approval(address, port)]
        if refused:
            raise FetchError(f"{url}: {host!r} has the address {refused[0]}, which is not on the public internet. For an "
                             "intranet set `pages.fetch.allow_private_addresses: true`.", reason="address")
        return addresses

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Limited(httpx2.AsyncByteStream):
    """A response body that ends in `FetchError` when it is longer than allowed."""

    def __init__(self, stream: httpx2.AsyncByteStream, max_bytes: int, url: str) -> None:
        self._stream, self._max_bytes, self._url = stream, max_bytes, url

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        async for chunk in self._stream:
            received += len(chunk)
            if received > self._max_bytes:
                raise too_large(self._url, self._max_bytes)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def too_large(url: str, max_bytes: int) -> FetchError:
    return FetchError(f"{url} has more than {max_bytes} bytes (`pages.fetch.max_bytes`).", reason="too_large")
