"""The playground: one page at `/` that asks this endpoint, and the files it is made of.

    page.html     what is there before anything was asked
    style.css     light and dark, from 320 pixels up
    main.js       what happens: asking, stopping, comparing, keys
    endpoint.js   the requests: keys, server-sent events, errors in words
    view.js       the elements: decisions, bars, answers, sources

The files are open to everyone; what they ask for needs a key like any other request.
"""

from functools import cache
from importlib import resources

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

PAGE = "page.html"
FILES = {
    "style.css": "text/css; charset=utf-8",
    "main.js": "text/javascript; charset=utf-8",
    "endpoint.js": "text/javascript; charset=utf-8",
    "view.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""Every file there is; no name from a request reaches the disk."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                               "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # an upgraded endpoint must not meet the page of the one before
}

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def page() -> Response:
    """The page."""
    return Response(_read(PAGE), media_type="text/html; charset=utf-8", headers=HEADERS)


@router.api_route("/playground/{name}", methods=["GET", "HEAD"])
async def file(name: str) -> Response:
    """One of the files that the page names."""
    if name not in FILES:
        raise HTTPException(404, "The playground has no such file.")
    return Response(_read(name), media_type=FILES[name], headers=HEADERS)


@cache
def _read(name: str) -> bytes:
    return resources.files(__name__).joinpath(name).read_bytes()
