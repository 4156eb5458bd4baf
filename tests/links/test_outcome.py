"""What becomes of an address: every way in which servers answer, or fail to."""

from __future__ import annotations

import time

import pytest

from catalog.links.closed import CLOSED_SINCE
from catalog.links.outcome import Hop, State
from catalog.links.trail import LONGEST
from catalog.lint.links import DEAD_HOSTS
from catalog.lists.addresses import CLOSED
from tests.links.conftest import Names, outcome
from tests.links.server import Web


@pytest.mark.parametrize(
    ("path", "state", "status", "asked"),
    [
        ("/ok", State.ALIVE, 200, ["HEAD"]),
        ("/status/206", State.ALIVE, 206, ["HEAD"]),
        ("/status/404", State.GONE, 404, ["HEAD", "GET"]),
        ("/status/410", State.GONE, 410, ["HEAD"]),
        ("/status/401", State.REFUSED, 401, ["HEAD"]),
        ("/status/403", State.REFUSED, 403, ["HEAD", "GET"]),
        ("/status/406", State.REFUSED, 406, ["HEAD"]),
        ("/status/451", State.REFUSED, 451, ["HEAD"]),
        ("/status/999", State.REFUSED, 999, ["HEAD", "GET"]),
        ("/status/500", State.UNREACHABLE, 500, ["HEAD", "GET"]),
        ("/status/503", State.UNREACHABLE, 503, ["HEAD", "GET"]),
        ("/head/400", State.ALIVE, 200, ["HEAD", "GET"]),
        ("/head/403", State.ALIVE, 200, ["HEAD", "GET"]),
        ("/head/404", State.ALIVE, 200, ["HEAD", "GET"]),
        ("/head/405", State.ALIVE, 200, ["HEAD", "GET"]),
        ("/head/501", State.ALIVE, 200, ["HEAD", "GET"]),
        ("/head/502", State.ALIVE, 200, ["HEAD", "GET"]),
        ("/head-dies", State.ALIVE, 200, ["HEAD", "GET"]),
        ("/endless", State.ALIVE, 200, ["HEAD", "GET"]),
        ("/reset", State.UNREACHABLE, None, ["HEAD", "GET"]),
        ("/garbage", State.UNREACHABLE, None, ["HEAD", "GET"]),
        ("/huge-header", State.UNREACHABLE, None, ["HEAD", "GET"]),
        ("/nowhere", State.UNREACHABLE, None, ["HEAD"]),
    ],
)
def test_answers(web: Web, path: str, state: State, status: int | None, asked: list[str]) -> None:
    found = outcome(web.host() + path)
    assert (found.state, found.status) == (state, status), found
    assert web.asked(path) == asked


@pytest.mark.parametrize(
    ("path", "state"),
    [
        ("/to/301?u=/ok", State.MOVED),
        ("/to/308?u=/to/301?u=/ok", State.MOVED),
        ("/to/302?u=/ok", State.ALIVE),
        ("/to/303?u=/ok", State.ALIVE),
        ("/to/307?u=/ok", State.ALIVE),
        ("/to/301?u=/to/302?u=/ok", State.ALIVE),
        ("/to/302?u=/to/301?u=/ok", State.ALIVE),
        ("/to/301?u=/status/404", State.GONE),
        ("/to/302?u=/status/403", State.REFUSED),
        ("/to/301?u=https://arxiv.org/abs/2106.09685", State.MOVED),
        ("/to/302?u=https://arxiv.org/abs/2106.09685", State.ARXIV),
        ("/to/302?u=https://paperswithcode.com/paper/x", State.CLOSED),
        ("/to/302?u=ftp://example.org/", State.UNREACHABLE),
        ("/to/302?u=http://[bad", State.UNREACHABLE),
    ],
)
def test_redirects(web: Web, path: str, state: State) -> None:
    assert outcome(web.host() + path).state == state


def test_a_redirect_to_an_endless_address_is_not_followed(web: Web) -> None:
    path = "/ok/" + "x" * LONGEST
    found = outcome(f"{web.host()}/to/302?u={path}")
    assert (found.state, found.redirects) == (State.UNREACHABLE, ())
    assert web.asked(path) == []


def test_every_redirect_is_recorded(web: Web) -> None:
    found = outcome(f"{web.host()}/to/308?u={web.host(2)}/to/301?u=/ok")
    first, last = f"{web.host(2)}/to/301?u=/ok", f"{web.host(2)}/ok"
    assert found.redirects == (Hop(308, first), Hop(301, last))
    assert (found.state, found.leads_to) == (State.MOVED, last)


@pytest.mark.parametrize("wall", ["/ok/login?next=/paper", "/ok/consent", "/ok/signin/v2"])
def test_a_page_to_log_in_is_no_new_address(web: Web, wall: str) -> None:
    found = outcome(f"{web.host()}/to/301?u={wall}")
    assert found.state == State.ALIVE
    assert "log in" in found.detail


def test_redirects_in_a_circle_and_without_end(web: Web) -> None:
    assert outcome(web.host() + "/loop/a").detail == "redirected in a circle"
    assert web.asked("/loop/a") == ["HEAD"]
    web.forget()
    found = outcome(web.host() + "/far/0")
    assert (found.state, found.detail) == (State.UNREACHABLE, "redirected more than 10 times")
    assert len(web.log) == 11


@pytest.mark.parametrize(("limit", "asked"), [("request", ["HEAD", "GET"]), ("address", ["HEAD"])])
def test_a_server_that_drips_is_left(web: Web, limit: str, asked: list[str]) -> None:
    found = outcome(web.host() + "/drip", **{limit: 0.5})
    assert (found.state, found.detail) == (State.UNREACHABLE, "no answer in time")
    assert web.asked("/drip") == asked


def test_a_server_that_asks_to_wait_is_asked_once_more(web: Web) -> None:
    begun = time.monotonic()
    assert outcome(web.host() + "/busy/1/1").state == State.ALIVE
    _, second = web.log
    assert second.at >= begun + 1


def test_an_address_is_waited_for_once(web: Web) -> None:
    assert outcome(web.host() + "/busy/9/0/503").state == State.UNREACHABLE
    assert web.asked("/busy/9/0/503") == ["HEAD", "HEAD", "GET"]


@pytest.mark.parametrize(("path", "asked", "words"), [("/busy/9/0", 2, "wait 0 s"), ("/busy/9/31", 1, "wait 31 s")])
def test_a_server_that_asks_to_wait_again_or_for_long_refuses(web: Web, path: str, asked: int, words: str) -> None:
    found = outcome(web.host() + path)
    assert (found.state, found.status) == (State.REFUSED, 429)
    assert words in found.detail
    assert len(web.log) == asked


def test_what_is_not_asked(web: Web) -> None:
    for address, state in {
        "https://arxiv.org/abs/2106.09685": State.ARXIV,
        "https://export.arxiv.org/abs/2106.09685": State.ARXIV,
        "https://notarxiv.org/": State.GONE,
        "https://www.paperswithcode.com/paper/x": State.CLOSED,
        "arXiv:2106.09685": State.INVALID,
        "http://[::1": State.INVALID,
        "ftp://example.org/": State.INVALID,
        "http://example.org:99999/": State.INVALID,
        "http://example.org:0/": State.INVALID,
        "see the paper": State.INVALID,
    }.items():
        assert outcome(address, private=False).state == state, address
    assert not web.log


def test_a_host_that_does_not_exist_is_gone_unless_no_name_is_found(names: Names) -> None:
    found = outcome("http://nobody.example/")
    assert (found.state, found.detail) == (State.GONE, "there is no host nobody.example")
    names.clear()
    assert outcome("http://nobody.example/").state == State.UNREACHABLE


def test_connections_that_fail(web: Web) -> None:
    free = outcome("http://127.0.0.1:1/")
    assert free.state == State.UNREACHABLE
    speaks_no_tls = outcome(web.host().replace("http://", "https://") + "/ok")
    assert (speaks_no_tls.state, "SSL" in speaks_no_tls.detail) == (State.UNREACHABLE, True)


def test_the_places_that_know_closed_sites_agree() -> None:
    assert tuple(CLOSED_SINCE) == CLOSED == tuple(DEAD_HOSTS)
