"""Harvests that are killed or interrupted at any moment end, given again, as if nothing had happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from tests.arxiv.processes import start
from tests.arxiv.test_harvest import FOUND, small  # noqa: F401 - a fixture
from tests.arxiv.test_processes import sound
from tests.conftest import Ask
from tests.standin import StandIn
from tests.standin.papers import Paper, invented

JOURNEYS = 12
COMMAND = ["harvest", "--from", "2005-09-16"]
SHOWN = {
    "arxiv_record": "arxiv, version, title, published, updated, state",
    "arxiv_statement": "arxiv, version, source, datestamp, digest, record",
    "candidate": "arxiv, slug, title, score, reasons, category, words, state, source",
    "harvest": "address, set_name, since, token, pages, records, complete_to",
    "follow": "kind, newest, learned IS NULL, succeeded IS NULL",
}
"""What a harvest leaves, but for when it was."""


def changing() -> Iterator[Paper]:
    """Papers that come, change and go within one list."""
    papers = list(invented(36))
    yield from papers
    for place in range(3):
        yield replace(FOUND, arxiv=f"2601.0000{place}", datestamp=date(2026, 2, 1 + place))
    yield papers[3].revised(datetime(2026, 3, 1, tzinfo=UTC), title="A new title")
    yield replace(papers[4], deleted=True, datestamp=date(2026, 3, 5))


@pytest.fixture
def arxiv() -> Iterator[StandIn]:
    """Some forty papers, four on a page."""
    with StandIn(changing(), page=4) as server:
        yield server


@pytest.fixture
def path(
    small: Path,  # noqa: F811
    ask_arxiv: Ask,
    arxiv: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A catalog of one entry that knows the papers as they were before."""
    monkeypatch.setenv("PEFT_CATALOG_ENTRIES", str(small / "entries"))
    shutil.copy(small / "catalog.sqlite", tmp_path / "catalog.sqlite")
    now = dict(arxiv.papers)
    arxiv.papers.clear()
    arxiv.put(*list(invented(8)))
    assert ask_arxiv("harvest", "--from", "2026-01-01", "--until", "2026-01-10").code == 0
    arxiv.papers = now
    arxiv.log.clear()
    return tmp_path / "catalog.sqlite"


def contents(path: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(path)) as connection:
        return {
            table: connection.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3, 4").fetchall()
            for table, columns in SHOWN.items()
        }


def test_killed_at_any_moment(arxiv: StandIn, ask_arxiv: Ask, path: Path, tmp_path: Path) -> None:
    """Killed when the k-th request has come, a moment later, or before the k-th statement to the database."""
    before = tmp_path / "before.sqlite"
    shutil.copy(path, before)
    assert ask_arxiv(*COMMAND).code == 0
    undisturbed = contents(path)
    assert (undisturbed["harvest"][0][4:6], len(undisturbed["candidate"])) == ((10, 39), 3)
    assert undisturbed["follow"] == [("harvest", "2026-01-05T09:35:00Z", 0, 0)]
    chance = random.Random(0)
    alive = 0
    for _ in range(JOURNEYS):
        forget(path)
        shutil.copy(before, path)
        for kill in (at_request, after_request, at_statement, at_statement):
            alive += kill(arxiv, chance)
            assert sound(path)
            assert_part(contents(path), undisturbed)
        assert ask_arxiv(*COMMAND).code == 0
        assert contents(path) == undisturbed
    assert alive >= 40


def at_request(arxiv: StandIn, chance: random.Random, later: float = 0.0) -> bool:
    """Kill when a request has come, or so much later; whether the program was still running."""
    arxiv.log.clear()
    arxiv.seen.clear()
    arxiv.awaited = chance.randint(1, 3)
    process = start(COMMAND)
    while process.is_alive() and not arxiv.seen.wait(0.05):
        pass
    process.join(later)
    running = process.is_alive()
    process.kill()
    process.join(20)
    return running


def after_request(arxiv: StandIn, chance: random.Random) -> bool:
    """Kill while an answer is read or taken in."""
    return at_request(arxiv, chance, later=chance.uniform(0.0, 0.04))


def at_statement(arxiv: StandIn, chance: random.Random) -> bool:
    """Kill before the n-th statement or the end of a transaction."""
    test, left = os.getpid(), chance.randint(5, 60)

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0 and os.getpid() != test:
            os.kill(os.getpid(), signal.SIGKILL)

    hooks = [(Engine, name, count) for name in ("before_cursor_execute", "commit")]
    for hook in hooks:
        event.listen(*hook)
    try:
        process = start(COMMAND)
    finally:
        for hook in hooks:
            event.remove(*hook)
    process.join(60)
    return process.exitcode == -signal.SIGKILL


def assert_part(kept: dict[str, list[Any]], undisturbed: dict[str, list[Any]]) -> None:
    """Nothing doubled, nothing that an undisturbed harvest would not have, and no record without its statement."""
    for table in ("arxiv_statement", "candidate"):
        assert len(set(kept[table])) == len(kept[table])
        assert set(kept[table]) <= set(undisturbed[table])
    assert {row[0] for row in kept["arxiv_record"]} == {row[0] for row in kept["arxiv_statement"]}


def forget(path: Path) -> None:
    for leftover in path.parent.glob(f"{path.name}*"):
        leftover.unlink()


def test_ctrl_c_says_what_was_kept(arxiv: StandIn, ask_arxiv: Ask, path: Path, tmp_path: Path) -> None:
    arxiv.misbehave("connection that hangs", after=2)
    arxiv.awaited = 3
    process = start(COMMAND, tmp_path / "err")
    assert arxiv.seen.wait(20)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130
    told = (tmp_path / "err").read_text("utf-8")
    assert "stopped; kept: 2 pages, 8 records; the same command goes on there" in " ".join(told.split())
    assert "Traceback" not in told
    assert ask_arxiv(*COMMAND).code == 0


def test_two_harvests_at_once_double_nothing(arxiv: StandIn, ask_arxiv: Ask, path: Path) -> None:
    running = [start(COMMAND) for _ in range(2)]
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0]
    assert max(request.open for request in arxiv.log) == 1
    found = contents(path)
    assert len(found["arxiv_record"]) == len(arxiv.papers)
    assert len({row[:5] for row in found["arxiv_statement"]}) == len(found["arxiv_statement"])
    assert found["harvest"][0][3] is None
