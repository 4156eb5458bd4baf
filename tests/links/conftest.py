"""A web of loopback servers, names that lead there, and entries that name their addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from catalog.links import ask
from catalog.links.ask import Asker
from catalog.links.exchange import Limits
from catalog.links.outcome import Outcome
from catalog.locations import ENTRIES_VARIABLE
from catalog.network import guard
from tests.conftest import Answer, Ask
from tests.links.server import Web

LIST = "awesome-peft-for-foundation-models"
Write = Callable[..., Path]
Names = dict[str, list[str]]


@pytest.fixture(scope="session")
def servers() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()


@pytest.fixture
def web(servers: Web) -> Iterator[Web]:
    servers.forget()
    yield servers
    servers.gate.set()  # lets go of whoever still waits


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """The names there are; loopback addresses in any spelling are looked up as ever, and nothing leaves the machine."""
    known: Names = {ask.KNOWN_NAME: ["127.0.0.9"]}
    real = guard.resolve

    async def resolve(host: str, port: int) -> list[str]:
        if host in known:
            return known[host]
        if host == "localhost" or host[0].isdigit() or ":" in host:
            return await real(host, port)
        raise guard.NoSuchHost(host)

    monkeypatch.setattr(guard, "resolve", resolve)
    return known


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes an entry into a folder that takes the place of the shipped ones."""
    root = tmp_path / "entries"
    monkeypatch.setenv(ENTRIES_VARIABLE, str(root))

    def write(slug: str, *, printed: tuple[str, ...] = (), **keys: str) -> Path:
        lines = [f'slug = "{slug}"', f'name = "{slug}"', f'title = "On {slug}"', 'authors = ["Ann Author"]']
        lines += ['published = "2021-06"', 'kind = "study"', 'category = "additive"', 'summary = "Words."']
        lines += [f'{key} = "{value}"' for key, value in keys.items()]
        for link in printed:
            lines += ["[[listed_in]]", f'list = "{LIST}"', 'as = "Printed"', f'link = "{link}"']
        path = root / "additive" / f"{slug}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return path

    return write


@pytest.fixture
def links(ask_own: Ask) -> Callable[..., Answer]:
    """Runs `peft-catalog links` on servers of this machine, without waiting for each other."""

    def run(*arguments: str) -> Answer:
        return ask_own("links", "--allow-private", "--per-host", "0", *arguments)

    return run


def outcome(url: str, *, private: bool = True, **limits: float) -> Outcome:
    """What becomes of one address."""

    async def run() -> Outcome:
        async with guard.guarded_transport(private) as transport:
            return await Asker(transport, Limits(**{"per_host": 0.0, **limits})).outcome(url)

    return asyncio.run(run())
