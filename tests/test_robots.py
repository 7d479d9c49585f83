"""robots.txt over real HTTP: obeyed, read once, and what its absence means."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from culturemanager.errors import FetchError
from culturemanager.providers.fetch import HttpFetcher
from culturemanager.sections.synthesis import FetchConfig
from tests.fetching import PAGE, fetcher, reason, with_a_public_door
from tests.loopback import Reply, redirect, site

ROBOTS = "User-agent: *\nDisallow: /private\n\nUser-agent: Tester\nDisallow: /tea\nAllow: /tea/green\n"


def with_robots(robots: Reply) -> dict[str, Reply]:
    pages = {path: Reply(PAGE) for path in ("/tea", "/tea/green", "/private")}
    return {"/robots.txt": robots, "/go": redirect("/tea"), **pages}


def test_robots_txt_is_obeyed_by_the_product_token_and_read_once() -> None:
    with site(with_robots(Reply(ROBOTS, headers={"Content-Type": "text/plain"}))) as web:
        tester = fetcher(user_agent="Tester/2.0 (+https://example.com)")
        with pytest.raises(FetchError) as caught:
            tester.fetch(f"{web.url}/tea")
        assert caught.value.reason == "robots"
        assert tester.fetch(f"{web.url}/tea/green").text == PAGE and tester.fetch(f"{web.url}/private").text == PAGE
        assert web.asked("/robots.txt") == 1 and web.asked("/tea") == 0
        assert reason(f"{web.url}/private", user_agent="Somebody/1") == "robots"


def test_robots_txt_is_obeyed_behind_a_redirect() -> None:
    with site(with_robots(Reply(ROBOTS))) as web:
        assert reason(f"{web.url}/go", user_agent="Tester/2.0") == "robots"
        assert web.asked("/go") == 1 and web.asked("/tea") == 0


def test_robots_txt_may_be_redirected_but_not_to_a_private_address() -> None:
    with site({"/robots.txt": redirect("/moved"), "/moved": Reply(ROBOTS), "/tea": Reply(PAGE)}) as web:
        assert reason(f"{web.url}/tea", user_agent="Tester/2.0") == "robots"
    with site({"/": Reply(PAGE)}) as inner, site({"/robots.txt": redirect(f"{inner.url}/"), "/": Reply(PAGE)}) as outer:
        with pytest.raises(FetchError) as caught:
            with_a_public_door(outer).fetch(f"{outer.url}/")
        assert caught.value.reason == "address" and inner.requests == [] and outer.asked("/") == 0


@pytest.mark.parametrize(("robots", "allowed"), [
    (Reply("", 404), True), (Reply("", 401), True), (Reply("", 403), True), (Reply("", 500), False), (Reply("", 503), False),
    (redirect("/robots.txt"), False), (Reply(send=lambda handler: time.sleep(4)), False),
    (Reply(send=lambda handler: handler.wfile.write(b"nonsense\r\n\r\n")), False), (Reply(b"\xff\xfe\0\0 nonsense"), True),
], ids=["404", "401", "403", "500", "503", "ring", "timeout", "broken", "unreadable"])
def test_without_a_readable_robots_txt_4xx_allows_and_failure_forbids(robots: Reply, allowed: bool) -> None:
    with site(with_robots(robots)) as web:
        one = fetcher(timeout_s=6)  # half of it for robots.txt
        if allowed:
            assert one.fetch(f"{web.url}/tea").text == PAGE
        else:
            with pytest.raises(FetchError) as caught:
                one.fetch(f"{web.url}/tea")
            assert caught.value.reason == "robots" and web.asked("/tea") == 0


def test_of_a_huge_robots_txt_the_beginning_counts() -> None:
    huge = "User-agent: *\nDisallow: /private\n" + "# padding\n" * 100_000
    with site(with_robots(Reply(huge))) as web:
        one = fetcher()
        assert one.fetch(f"{web.url}/tea").text == PAGE
        with pytest.raises(FetchError, match="closed"):
            one.fetch(f"{web.url}/private")


def test_a_crawl_delay_is_kept_and_does_not_count_as_time_of_the_page() -> None:
    with site(with_robots(Reply("User-agent: *\nCrawl-delay: 2\n"))) as web:
        one = fetcher(timeout_s=1.8)
        start = time.monotonic()
        one.fetch(f"{web.url}/tea")
        one.fetch(f"{web.url}/tea/green")
        assert time.monotonic() - start >= 2


@pytest.fixture
def nobody_answers() -> Iterator[Callable[[int], str]]:
    """Makes a port of an address at which connecting hangs, since what may wait there waits already; the address."""
    with contextlib.ExitStack() as sockets:
        def hang(port: int) -> str:
            listener = sockets.enter_context(socket.socket())
            listener.bind(("127.0.0.3", port))
            listener.listen(0)
            for _ in range(4):
                waiting = sockets.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.3", port))
            return "127.0.0.3"

        yield hang


@pytest.mark.parametrize("connect_s", [0.2, 5.0], ids=["connecting takes too long", "everything takes too long"])
def test_a_host_that_is_not_reached_is_not_closed_and_is_asked_again(nobody_answers: Callable[[int], str], connect_s: float,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("culturemanager.providers.fetch.CONNECT_TIMEOUT_S", connect_s)
    with site({"/": Reply(PAGE)}) as web:
        addresses = [[nobody_answers(web.port)], ["127.0.0.1"]]
        one = HttpFetcher(FetchConfig(allow_private_addresses=True, timeout_s=2),
                          resolver=lambda host, port: addresses.pop(0) if len(addresses) > 1 else addresses[0])
        with pytest.raises(FetchError) as caught:
            one.fetch(f"http://far.example:{web.port}/")
        assert caught.value.reason == "timeout"
        assert one.fetch(f"http://far.example:{web.port}/").text == PAGE


def test_a_name_server_that_does_not_answer_closes_no_site() -> None:
    answers = iter([1.5, 0.0, 0.0])
    with site({"/": Reply(PAGE)}) as web:
        one = HttpFetcher(FetchConfig(allow_private_addresses=True, timeout_s=2),
                          resolver=lambda host, port: [time.sleep(next(answers)), "127.0.0.1"][1:])
        with pytest.raises(FetchError) as caught:
            one.fetch(f"http://far.example:{web.port}/")
        assert caught.value.reason == "timeout"
        assert one.fetch(f"http://far.example:{web.port}/").text == PAGE
