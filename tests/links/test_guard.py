"""Requests go to public addresses only, whatever names claim."""

from __future__ import annotations

import asyncio
import ssl
from ipaddress import ip_address
from typing import Any

import httpcore
import httpx
import pytest

from catalog.links.outcome import State
from catalog.network import guard
from tests.links.conftest import Names, outcome
from tests.links.server import Web

PUBLIC = "93.184.215.14"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "255.255.255.255", "224.0.0.1", "240.0.0.1", "192.0.0.9", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1",
        "fe80::1%eth0", "fec0::1", "fd00::1", "ff02::1", "2001:db8::1", "2001:0:1::", "3fff::1", "4000::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1",
        "64:ff9b:1::1",
    ],
)  # fmt: skip
def test_no_private_address_is_public(address: str) -> None:
    assert not guard.is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", [PUBLIC, "1.1.1.1", "2606:4700:4700::1111", f"::ffff:{PUBLIC}", "2002:101:101::", "64:ff9b::101:101"]
)
def test_public_addresses_are(address: str) -> None:
    assert guard.is_public(ip_address(address))


@pytest.mark.parametrize("spelling", ["127.0.0.1", "localhost", "LOCALHOST.", "2130706433", "0x7f.1", "127.1", "[::1]"])
def test_loopback_in_any_spelling_is_not_asked(web: Web, spelling: str) -> None:
    port = web.host().rpartition(":")[2]
    found = outcome(f"http://{spelling}:{port}/ok", private=False)
    assert found.state == State.PRIVATE
    assert "not public" in found.detail
    assert not web.log


def test_loopback_is_asked_when_that_is_wanted(web: Web) -> None:
    port = web.host().rpartition(":")[2]
    for spelling in ("localhost", "2130706433"):
        assert outcome(f"http://{spelling}:{port}/ok").state == State.ALIVE


def test_one_private_address_among_public_ones_is_enough(web: Web, names: Names) -> None:
    names["mixed.example"] = [PUBLIC, "127.0.0.1"]
    assert outcome("http://mixed.example/", private=False).state == State.PRIVATE


def test_redirects_are_checked_like_addresses(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "is_public", lambda address: str(address) == "127.0.0.2")
    found = outcome(f"{web.host(2)}/to/301?u={web.host(1)}/ok", private=False)
    assert (found.state, found.leads_to) == (State.PRIVATE, f"{web.host(1)}/ok")
    assert [request.host for request in web.log] == ["127.0.0.2"]


def test_a_name_that_changes_its_answer_gains_nothing(web: Web, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check and the connection use one and the same answer; the next connection is checked anew."""
    monkeypatch.setattr(guard, "is_public", lambda address: str(address) == "127.0.0.2")
    ports = {address: web.host(int(address[-1])).rpartition(":")[2] for address in ("127.0.0.1", "127.0.0.2")}
    answers = [["127.0.0.2"], ["127.0.0.1"], ["127.0.0.1"]]
    asked: list[str] = []

    async def changing(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[len(asked) - 1]

    monkeypatch.setattr(guard, "resolve", changing)
    found = outcome(f"http://rebinding.example:{ports['127.0.0.2']}/head-dies", private=False)
    assert found.state == State.PRIVATE
    assert asked == ["rebinding.example"] * 2
    assert [request.method for request in web.log] == ["HEAD"]


class Stream(httpcore.AsyncNetworkStream):
    """Remembers the name that a certificate must have."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        self.seen.append((server_hostname, ssl_context.check_hostname, ssl_context.verify_mode))
        raise httpcore.ConnectError("far enough")

    async def aclose(self) -> None:
        pass


class Inner(httpcore.AsyncNetworkBackend):
    """Remembers where connections go, and fails for some addresses."""

    def __init__(self, down: tuple[str, ...] = ()) -> None:
        self.down = down
        self.seen: list[Any] = []

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        self.seen.append(host)
        if host in self.down:
            raise httpcore.ConnectError("down")
        return Stream(self.seen)


def test_the_connection_goes_to_the_checked_address_and_the_certificate_must_be_the_hosts(
    monkeypatch: pytest.MonkeyPatch, names: Names
) -> None:
    inner = Inner(down=("192.0.2.9",))
    names["paper.example"] = ["192.0.2.9", PUBLIC]
    monkeypatch.setattr(guard, "is_public", lambda address: True)
    monkeypatch.setattr(httpcore, "AnyIOBackend", lambda: inner)

    async def ask() -> None:
        async with guard.guarded_transport() as transport:
            await transport.handle_async_request(httpx.Request("GET", "https://paper.example/"))

    with pytest.raises(httpx.ConnectError, match="far enough"):
        asyncio.run(ask())
    assert inner.seen == ["192.0.2.9", PUBLIC, ("paper.example", True, ssl.CERT_REQUIRED)]


def test_looking_a_name_up_has_a_time_limit() -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(httpcore.ConnectTimeout):
        asyncio.run(guard.Guard(resolver=never).connect_tcp("slow.example", 80, timeout=0.05))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://user:word@h.org/x?y#z", "https://h.org/x?y"),
        (" http://h.org.:8080/ ", "http://h.org:8080/"),
        ("http://[::1]/", "http://[::1]/"),
    ],
)
def test_addresses_are_sent_without_credentials_and_fragments(text: str, url: str) -> None:
    assert str(guard.checked_url(text)) == url


@pytest.mark.parametrize(
    "text",
    ["", "h.org", "ftp://h.org", "javascript:alert(1)", "http://", "http:///x", "http://[::1", "http://[bad/",
     "http://a b/", "http://h\x1b.org/", "http://h.org/\x07", "http://h.org:0/", "http://h.org:65536/", "http://[fe80::1%25eth0]/"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(guard.NoAddress):
        guard.checked_url(text)
