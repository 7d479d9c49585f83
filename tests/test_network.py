"""Which addresses are connected to, under which names, over real sockets."""

from __future__ import annotations

import ssl

import pytest
import trustme

from culturemanager.errors import FetchError
from culturemanager.providers.fetch import HttpFetcher
from culturemanager.providers.network import is_public, resolve
from culturemanager.sections.synthesis import FetchConfig
from tests.fetching import PAGE, fetcher, reason, with_a_public_door
from tests.loopback import Reply, redirect, site


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "0.1.2.3",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "192.0.0.192", "168.63.129.16",
    "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1",
    "2002:7f00:1::", "2001:0:1::1", "100::1", "3fff::1", "5f00::1",
])
def test_addresses_off_the_public_internet_are_recognised(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450:4001::1"])
def test_public_addresses_are_recognised(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", [
    "127.0.0.1", "localhost", "0x7f000001", "2130706433", "127.1", "0", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
])
def test_loopback_is_refused_under_each_of_its_names(host: str) -> None:
    with site({"/": Reply(PAGE)}) as web:
        assert reason(f"http://{host}:{web.port}/", allow_private_addresses=False) == "address"
        assert web.requests == []  # not even robots.txt was asked for


class Names:
    """A resolver that knows the names of a test and counts the look-ups."""

    def __init__(self, **names: list[list[str]]) -> None:
        self.names, self.asked = names, []

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self.names[host.split(".")[0]]
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.mark.parametrize("target", ["127.0.0.1", "localhost", "inner.example"])
def test_loopback_is_refused_behind_a_redirect(target: str) -> None:
    with site({"/": Reply(PAGE)}) as inner, site({"/": redirect(f"http://{target}:{inner.port}/")}) as outer:
        def names(host: str, port: int) -> list[str]:
            return ["127.0.0.1"] if host == "inner.example" else resolve(host, port)

        with pytest.raises(FetchError) as caught:
            with_a_public_door(outer, resolver=names).fetch(f"{outer.url}/")
        assert caught.value.reason == "address"
        assert outer.asked("/") == 1 and inner.requests == []


def test_a_name_is_refused_if_one_of_its_addresses_is_private() -> None:
    names = Names(mixed=[["93.184.215.14", "10.0.0.5"]])
    with pytest.raises(FetchError, match=r"10\.0\.0\.5") as caught:
        HttpFetcher(FetchConfig(), resolver=names).fetch("http://mixed.example/")
    assert caught.value.reason == "address"


def test_the_address_that_was_checked_is_the_one_connected_to() -> None:
    # The name exists nowhere but in this resolver: had anything looked it up again, it would have failed.
    names = Names(pinned=[["127.0.0.1"]])
    with site({"/": Reply(PAGE), "/robots.txt": Reply("")}) as web:
        limits = FetchConfig(allow_private_addresses=True)
        assert HttpFetcher(limits, resolver=names).fetch(f"http://pinned.example:{web.port}/").text == PAGE
        assert [headers["host"] for headers in web.headers] == [f"pinned.example:{web.port}"] * 2
    assert names.asked == ["pinned.example"] * 2  # once for robots.txt, once for the page


def test_a_name_that_turns_private_after_robots_txt_is_refused_then() -> None:
    with site({"/": Reply(PAGE)}) as web:
        names = Names(rebinding=[["127.0.0.1"], ["10.0.0.5"]])
        with pytest.raises(FetchError, match=r"10\.0\.0\.5") as caught:
            HttpFetcher(FetchConfig(), resolver=names, approval=lambda address, port: address == "127.0.0.1"
                        ).fetch(f"http://rebinding.example:{web.port}/")
        assert caught.value.reason == "address"
        assert web.requests == ["/robots.txt"]


def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    with site({"/": Reply(PAGE)}) as web:
        names = Names(two=[["127.0.0.2", "127.0.0.1"]])  # nothing listens at the first
        limits = FetchConfig(allow_private_addresses=True)
        assert HttpFetcher(limits, resolver=names).fetch(f"http://two.example:{web.port}/").text == PAGE


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.mark.parametrize(("certified", "arrives"), [("secure.example", True), ("other.example", False)])
def test_https_checks_the_certificate_against_the_name(authority: trustme.CA, certified: str, arrives: bool) -> None:
    shown: list[str] = []
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(certified).configure_cert(server)
    server.sni_callback = lambda sock, name, context: shown.append(name)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    with site({"/": Reply(PAGE)}, wrap=lambda sock: server.wrap_socket(sock, server_side=True)) as web:
        limits = FetchConfig(allow_private_addresses=True)
        one = HttpFetcher(limits, ssl_context=client, resolver=Names(secure=[["127.0.0.1"]]))
        if arrives:
            assert one.fetch(f"https://secure.example:{web.port}/").text == PAGE
        else:
            with pytest.raises(FetchError, match="certificate") as caught:
                one.fetch(f"https://secure.example:{web.port}/")
            assert caught.value.reason == "network" and web.requests == []
    assert set(shown) == {"secure.example"}


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with site({"/": Reply(PAGE)}) as web:
        assert fetcher().fetch(f"{web.url}/").text == PAGE
