"""A fetcher for tests: allowed to reach loopback, or one port of it."""

from __future__ import annotations

import pytest

from culturemanager.errors import FetchError
from culturemanager.providers.fetch import HttpFetcher
from culturemanager.providers.network import only_public
from culturemanager.sections.synthesis import FetchConfig
from tests.loopback import Site

PAGE = "<html><title>Tea</title><p>Use both hands.</p></html>"


def fetcher(**limits: object) -> HttpFetcher:
    return HttpFetcher(FetchConfig(**{"allow_private_addresses": True, "timeout_s": 120, **limits}))


def reason(url: str, **limits: object) -> str:
    """Why a url cannot be fetched."""
    with pytest.raises(FetchError) as caught:
        fetcher(**limits).fetch(url)
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", ")"))
    return caught.value.reason


def with_a_public_door(web: Site, **arguments: object) -> HttpFetcher:
    """Takes one site's port for the public internet; everything else is judged as always."""
    return HttpFetcher(FetchConfig(), approval=lambda address, port: port == web.port or only_public(address, port),
                       **arguments)
