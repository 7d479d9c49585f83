"""Fetching pages: a folder on disk, and real HTTP and HTTPS over loopback."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import pickle
import socket
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import pytest

from culturemanager.errors import FetchError
from culturemanager.providers.fetch import HttpFetcher
from culturemanager.sections.synthesis import FetchConfig
from tests.fetching import PAGE, fetcher, reason
from tests.loopback import Reply, redirect, site


def test_a_page_comes_with_its_text_its_sum_and_its_time() -> None:
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    with site({"/tea": Reply(PAGE)}) as web:
        page = fetcher(user_agent="Tester/1.0 (+x)").fetch(f"{web.url}/tea")
        assert {headers["user-agent"] for headers in web.headers} == {"Tester/1.0 (+x)"}
    assert page.url == page.final_url == f"{web.url}/tea"
    assert (page.content_type, page.text) == ("text/html", PAGE)
    assert page.sha256 == hashlib.sha256(PAGE.encode()).hexdigest() and page.body == PAGE.encode()
    fetched = datetime.datetime.fromisoformat(page.fetched_at)
    assert before <= fetched <= datetime.datetime.now(datetime.UTC) and fetched.utcoffset() == datetime.timedelta(0)


@pytest.mark.parametrize(("content_type", "body", "text"), [
    ("text/html; charset=ISO-8859-1", "“café”".encode("cp1252"), "“café”"),
    ("text/html", '<meta charset="windows-1254">şeker'.encode("cp1254"), '<meta charset="windows-1254">şeker'),
    ("text/html", '<meta http-equiv="Content-Type" content="text/html; charset=Shift_JIS">茶'.encode("shift_jis"),
     '<meta http-equiv="Content-Type" content="text/html; charset=Shift_JIS">茶'),
    ("text/plain; charset=gb2312", "茶".encode("gb18030"), "茶"),
    ("text/html; charset=latin-1", b"\xef\xbb\xbf" + "çay".encode(), "çay"),
    ("text/plain", "çay".encode("utf-16"), "çay"),
    ("text/markdown", b"caf\xe9", "caf\ufffd"),
    ("text/html; charset=no-such-thing", "çay".encode(), "çay"),
    ("text/html; charset=unicode_escape", rb"\ud800 x", r"\ud800 x"),
    ("text/html; charset=rot13", b"tea", "tea"),
    ("application/xhtml+xml", b"a\0b", "a\ufffdb"),
])
def test_the_charset_is_the_marks_or_the_headers_or_the_pages_or_utf8(content_type: str, body: bytes, text: str) -> None:
    with site({"/": Reply(body, headers={"Content-Type": content_type})}) as web:
        page = fetcher().fetch(f"{web.url}/")
    assert page.text == text and page.body == body
    page.text.encode("utf-8")


@pytest.mark.parametrize("content_type", ["application/pdf", "image/png", "application/json", ""])
def test_only_pages_are_read(content_type: str) -> None:
    with site({"/": Reply("x", headers={"Content-Type": content_type} if content_type else {})}) as web:
        assert reason(f"{web.url}/") == "type"


@pytest.mark.parametrize("status", [204, 206, 304, 404, 410, 429, 500, 503])
def test_only_success_is_read(status: int) -> None:
    with site({"/": Reply("", status)}) as web:
        assert reason(f"{web.url}/") == "status"


def test_a_body_is_limited_to_the_byte() -> None:
    with site({"/": Reply("x" * 1000)}) as web:
        assert len(fetcher(max_bytes=1000).fetch(f"{web.url}/").body) == 1000
        assert reason(f"{web.url}/", max_bytes=999) == "too_large"


def endless(handler: BaseHTTPRequestHandler, start: bytes = b"", chunk: bytes = bytes(65536), encoding: bytes = b"") -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: " + encoding + b"\r\n\r\n" + start)
    while True:
        handler.wfile.write(chunk)


def test_an_endless_body_is_left_at_the_limit() -> None:
    with site({"/": Reply(send=endless)}) as web:
        assert reason(f"{web.url}/", max_bytes=1_000_000) == "too_large"


def test_compressed_pages_are_read_and_summed_decompressed() -> None:
    for encoding, body in {"gzip": gzip.compress(PAGE.encode()), "deflate": zlib.compress(PAGE.encode())}.items():
        with site({"/": Reply(body, headers={"Content-Type": "text/html", "Content-Encoding": encoding})}) as web:
            page = fetcher().fetch(f"{web.url}/")
        assert page.text == PAGE and page.sha256 == hashlib.sha256(PAGE.encode()).hexdigest()


def test_a_gzip_bomb_stops_at_the_limit_without_being_unpacked() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(150)) + packer.flush()  # 150 KB that unpack to 150 MB
    assert len(bomb) < 200_000
    for body, encoding in ((bomb, "gzip"), (gzip.compress(bomb), "gzip, gzip")):
        with site({"/": Reply(body, headers={"Content-Type": "text/html", "Content-Encoding": encoding})}) as web:
            tracemalloc.start()
            try:
                assert reason(f"{web.url}/", max_bytes=3_000_000) == "too_large"
                assert tracemalloc.get_traced_memory()[1] < 20_000_000  # bytes at the peak
            finally:
                tracemalloc.stop()


def test_compressed_bytes_count_even_if_nothing_comes_out_of_them() -> None:
    nothing = zlib.compressobj(wbits=31)
    start = nothing.compress(b"") + nothing.flush(zlib.Z_SYNC_FLUSH)
    empty_blocks = b"\x00\x00\x00\xff\xff" * 10_000  # stored blocks of no bytes
    with site({"/": Reply(send=lambda handler: endless(handler, start, empty_blocks, b"gzip"))}) as web:
        assert reason(f"{web.url}/", max_bytes=300_000) == "too_large"


@pytest.mark.parametrize(("encoding", "body"), [
    ("gzip", b"no gzip at all"), ("br", b"x"), ("zstd", b"x"), ("gzip, br", b"x"),
])
def test_what_cannot_be_decompressed_step_by_step_is_refused(encoding: str, body: bytes) -> None:
    with site({"/": Reply(body, headers={"Content-Type": "text/html", "Content-Encoding": encoding})}) as web:
        assert reason(f"{web.url}/") == "decode"


def drip(handler: BaseHTTPRequestHandler, head: bytes, drop: bytes) -> None:
    handler.wfile.write(head)
    for _ in range(2000):
        handler.wfile.write(drop)
        time.sleep(0.05)


@pytest.mark.parametrize(("head", "drop"), [
    (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n", b"x"),
    (b"HTTP/1.1 200 OK\r\n", b"X-Slow: yes\r\n"),
], ids=["body", "headers"])
def test_a_server_that_drips_is_left_when_the_time_is_up(head: bytes, drop: bytes) -> None:
    with site({"/": Reply(send=lambda handler: drip(handler, head, drop))}) as web:
        start = time.monotonic()
        assert reason(f"{web.url}/", timeout_s=3) == "timeout"
        assert time.monotonic() - start < 60  # it would drip for a hundred seconds


def test_the_time_limit_covers_all_redirects_together() -> None:
    def slow(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(1.2)
        handler.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n")

    with site({"/": Reply(send=slow)}) as web:
        assert reason(f"{web.url}/", timeout_s=3, max_redirects=50) == "timeout"
        assert web.asked("/") <= 4


def test_a_look_up_that_hangs_is_left_when_the_time_is_up() -> None:
    release = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        release.wait(30)
        return ["127.0.0.1"]

    start = time.monotonic()
    with pytest.raises(FetchError) as caught:
        HttpFetcher(FetchConfig(timeout_s=0.5), resolver=hang).fetch("http://slow.example/")
    release.set()
    assert caught.value.reason in ("timeout", "robots") and time.monotonic() - start < 10


def test_redirects_are_followed_to_the_final_url() -> None:
    with site({"/a": redirect("b?x=1", 301), "/b": redirect("/c#part", 307), "/c": Reply(PAGE)}) as web:
        page = fetcher().fetch(f"{web.url}/a")
    assert (page.url, page.final_url, page.text) == (f"{web.url}/a", f"{web.url}/c", PAGE)


def test_redirects_are_few() -> None:
    with site({"/0": redirect("/1"), "/1": redirect("/2"), "/2": Reply(PAGE), "/ring": redirect("/ring")}) as web:
        assert fetcher(max_redirects=2).fetch(f"{web.url}/0").text == PAGE
        assert reason(f"{web.url}/0", max_redirects=1) == "redirect"
        assert reason(f"{web.url}/ring", max_redirects=4) == "redirect"
        assert web.asked("/ring") == 5


@pytest.mark.parametrize(("location", "expected"), [
    ("file:///etc/passwd", "address"), ("gopher://x/", "address"), ("http://user:word@example.com/", "address"),
    ("", "redirect"), ("http://[x/", "network"),
])
def test_every_redirect_is_checked_like_a_url_of_its_own(location: str, expected: str) -> None:
    with site({"/": Reply(status=302, headers={"Location": location} if location else {})}) as web:
        assert reason(f"{web.url}/") == expected


@pytest.mark.parametrize("url", [
    "", "tea", "/tea", "file:///etc/passwd", "ftp://example.com/x", "folder:a.txt", "data:text/html,x",
    "javascript:alert(1)", "http:///x", "https://user@example.com/", "http://user:word@example.com/", "http://[::1", "http://a\x00b/",
])
def test_only_plain_web_addresses_are_fetched(url: str) -> None:
    assert reason(url) == "address"


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(FetchError) as caught:
        fetcher().fetch("http://user:hunter2@example.com/")
    assert "hunter2" not in str(caught.value)


def test_a_host_that_is_not_there_is_a_network_error() -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no such host")

    with site({}) as web:
        port = web.port
    assert reason(f"http://127.0.0.1:{port}/") == "network"
    with pytest.raises(FetchError) as caught:
        HttpFetcher(FetchConfig(), resolver=unknown).fetch("http://no-such-host.invalid/")
    assert caught.value.reason == "network"


def test_one_fetcher_serves_several_threads() -> None:
    routes = {f"/{number}": Reply(f"page {number}") for number in range(24)}
    with site(routes) as web, ThreadPoolExecutor(8) as pool:
        one = fetcher()
        pages = list(pool.map(one.fetch, [f"{web.url}/{number}" for number in range(24)]))
    assert [page.text for page in pages] == [f"page {number}" for number in range(24)]


def test_errors_keep_their_reason_on_the_way_between_processes() -> None:
    again = pickle.loads(pickle.dumps(FetchError("x is closed.", reason="robots")))
    assert (str(again), again.reason) == ("x is closed.", "robots")
