"""No host is asked faster than it should be, and no more than four at once."""

from __future__ import annotations

import asyncio
import time

import pytest

from catalog.links.ask import KNOWN_NAME
from catalog.links.exchange import Limits
from catalog.links.outcome import Outcome
from catalog.links.pace import Pace
from catalog.links.run import HOSTS_AT_ONCE, check
from catalog.network import guard
from tests.links.server import Web

GAP = 0.1


def turns(*hosts: str) -> list[tuple[str, float]]:
    """When each host has its turns, each request taking a quarter of a second of time that only sleeping lets pass."""
    now = 0.0
    taken: list[tuple[str, float]] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def take() -> None:
        nonlocal now
        pace = Pace(1.0, clock=lambda: now, sleep=sleep)
        for host in hosts:
            await pace.turn(host)
            taken.append((host, now))
            now += 0.25

    asyncio.run(take())
    return taken


def test_turns_of_a_host_are_a_second_apart_from_start_to_start() -> None:
    assert turns("a", "a", "a") == [("a", 0), ("a", 1), ("a", 2)]


def test_hosts_do_not_wait_for_each_other() -> None:
    assert turns("a", "b", "a", "b") == [("a", 0), ("b", 0.25), ("a", 1), ("b", 1.25)]


def run(addresses: list[str], per_host: float = 0.0) -> list[Outcome]:
    kept: list[Outcome] = []
    check(addresses, kept.append, Limits(per_host=per_host), allow_private=True)
    return kept


def test_a_host_is_asked_slowly_redirects_and_second_requests_included(web: Web) -> None:
    """Six requests to the first host: one, HEAD and GET, a redirect within it, and one from another host."""
    one, two = web.host(1), web.host(2)
    begun = time.monotonic()
    kept = run([f"{one}/ok/1", f"{one}/head/405", f"{one}/to/302?u=/ok/2", f"{two}/to/302?u={one}/ok/3"], GAP)
    assert {str(outcome.state) for outcome in kept} == {"alive"}
    times = sorted(request.at for request in web.log if request.host == "127.0.0.1")
    assert len(times) == 6
    assert all(at - begun >= place * GAP for place, at in enumerate(times))


def test_four_hosts_at_once_and_no_more(web: Web) -> None:
    run([f"{web.host(number)}/crowd/{HOSTS_AT_ONCE}" for number in range(1, 9)])
    assert len(web.log) == 8
    assert web.most_inside == HOSTS_AT_ONCE


def test_a_host_is_asked_one_thing_at_a_time(web: Web) -> None:
    run([f"{web.host()}/crowd/1/{number}" for number in range(3)])
    assert web.most_inside == 1


def test_a_host_that_has_had_enough_is_left_alone(web: Web) -> None:
    kept = run([f"{web.host()}/busy/9/60", f"{web.host()}/ok", f"{web.host(2)}/ok"])
    assert [str(outcome.state) for outcome in sorted(kept, key=lambda outcome: outcome.url)] == [
        "refused", "refused", "alive",
    ]  # fmt: skip
    assert web.asked("/ok") == ["HEAD"]
    assert [request.host for request in web.log if request.path == "/ok"] == ["127.0.0.2"]


def test_a_host_to_which_connections_fail_is_left_alone(web: Web) -> None:
    kept = run([f"http://127.0.0.1:1/{number}" for number in range(5)])
    assert {str(outcome.state) for outcome in kept} == {"unreachable"}
    assert ["not asked" in outcome.detail for outcome in kept] == [False] * 3 + [True] * 2


def test_a_connection_that_succeeds_makes_good_for_those_that_failed(web: Web) -> None:
    dead, live = "http://127.0.0.1:1", web.host()
    kept = run([f"{dead}/1", f"{dead}/2", f"{live}/ok/1", f"{dead}/3", f"{dead}/4", f"{live}/ok/2"])
    assert not any("not asked" in outcome.detail for outcome in kept)


def test_a_host_that_does_not_exist_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        if host == KNOWN_NAME:
            return ["127.0.0.9"]
        raise guard.NoSuchHost(host)

    monkeypatch.setattr(guard, "resolve", resolve)
    kept = run([f"http://nobody.example/{number}" for number in range(5)], per_host=60)
    assert {str(outcome.state) for outcome in kept} == {"gone"}
    assert asked == ["nobody.example", KNOWN_NAME]
