"""Several commands at once, killed ones, interrupted ones, a full disk: nothing is lost, doubled or hurried."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from catalog import database as databases
from tests.arxiv.processes import start
from tests.arxiv.test_sync import state
from tests.conftest import Ask
from tests.standin import StandIn

pytestmark = pytest.mark.usefixtures("slim")
ROUNDS = 100


def gaps(arxiv: StandIn) -> list[float]:
    """Seconds between the end of each request and the start of the next."""
    ordered = sorted(arxiv.log, key=lambda request: request.at)
    return [after.at - before.done for before, after in pairwise(ordered)]


def test_requests_keep_their_distance(arxiv: StandIn, ask_arxiv: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_CATALOG_ARXIV_PACE", "0.3")
    ask_arxiv("sync", "--batch", "20")
    ask_arxiv("sync", "--batch", "1000")
    assert len(arxiv.log) == 6
    # The server notes the end of a reply a moment after the client has read it.
    assert min(gaps(arxiv)) >= 0.29
    assert max(request.open for request in arxiv.log) == 1


def test_three_seconds_by_default(arxiv: StandIn, ask_arxiv: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEFT_CATALOG_ARXIV_PACE")
    ask_arxiv("sync", "lora")
    assert [2.99 <= gap < 6 for gap in gaps(arxiv)] == [True]


def test_several_commands_share_one_turn(
    arxiv: StandIn, ask_arxiv: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PEFT_CATALOG_ARXIV_PACE", "0.1")
    running = [start(["sync", "--batch", "40"]) for _ in range(3)]
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert len(arxiv.log) == 9
    assert max(request.open for request in arxiv.log) == 1
    assert min(gaps(arxiv)) >= 0.09
    found = state(tmp_path / "catalog.sqlite")
    assert [len(rows) for rows in found.values()] == [len(arxiv.papers), len(arxiv.papers)]


def test_a_wait_that_arxiv_asks_for_holds_for_the_next_command(arxiv: StandIn, ask_arxiv: Ask) -> None:
    arxiv.misbehave("429 that asks for an hour")
    assert ask_arxiv("sync").code == 3
    answer = ask_arxiv("sync")
    assert (answer.code, "another 60 minutes" in answer.err) == (3, True)
    assert len(arxiv.log) == 1


def test_retry_after_is_honored(arxiv: StandIn, ask_arxiv: Ask) -> None:
    arxiv.misbehave("429 with Retry-After in seconds")
    ask_arxiv("sync")
    assert gaps(arxiv)[0] >= 0.99


def test_a_clock_that_was_set_back_does_not_stop_anybody(ask_arxiv: Ask, tmp_path: Path, arxiv: StandIn) -> None:
    ask_arxiv("sync", "lora")
    for file in (tmp_path / "state").glob("*.free-at"):
        file.write_text("99999999999.0")
    assert ask_arxiv("sync", "lora").code == 0
    for file in (tmp_path / "state").glob("*.free-at"):
        file.write_text("nonsense")
    assert ask_arxiv("sync", "lora").code == 0


def test_killed_at_any_moment(arxiv: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    """A hundred kills: at the k-th request while its answer is on the way, and at random moments of a run."""
    ask_arxiv("sync", "--batch", "20")
    path = tmp_path / "catalog.sqlite"
    wanted = contents(path)
    assert len(wanted) == len(arxiv.papers)
    requests = len(arxiv.log)
    chance = random.Random(0)
    interrupted = 0
    for round_ in range(ROUNDS):
        forget(path)
        arxiv.log.clear()
        process = start(["sync", "--batch", "20"])
        if round_ % 2:
            process.join(chance.uniform(0.0, 0.4))
        else:
            arxiv.seen.clear()
            arxiv.awaited = chance.randint(1, requests)
            arxiv.seen.wait(20)
        interrupted += process.is_alive()
        process.kill()
        process.join(20)
        kept = contents(path)
        assert kept <= wanted
        assert sound(path)
    assert interrupted > ROUNDS // 2
    forget(path)
    assert ask_arxiv("sync", "--batch", "20").code == 0
    assert contents(path) == wanted


def contents(path: Path) -> set[tuple[str, str, str]]:
    """What is stored, without when it was said; every record has its statement."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT r.arxiv, r.title, s.digest FROM arxiv_record r LEFT JOIN arxiv_statement s ON s.id = r.statement_id"
        ).fetchall()
        statements = connection.execute("SELECT count(*), count(DISTINCT arxiv) FROM arxiv_statement").fetchone()
    assert statements == (len(rows), len(rows))
    assert all(digest for _, _, digest in rows)
    return set(rows)


def forget(path: Path) -> None:
    """Forget what arXiv said."""
    with closing(sqlite3.connect(path, timeout=20)) as connection:
        connection.executescript("DELETE FROM arxiv_record; DELETE FROM arxiv_statement; DELETE FROM follow;")


def sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong."""
    with closing(sqlite3.connect(path)) as connection:
        checks = [
            connection.execute(f"PRAGMA {check}").fetchall() for check in ("integrity_check", "foreign_key_check")
        ]
    return checks == [[("ok",)], []]


def test_ctrl_c_says_what_was_kept(arxiv: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    arxiv.misbehave("connection that hangs", after=2)
    arxiv.awaited = 3
    process = start(["sync", "--batch", "20"], tmp_path / "err")
    assert arxiv.seen.wait(20)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130
    told = (tmp_path / "err").read_text("utf-8")
    assert "kept: what arXiv says of 40 papers" in told
    assert "Traceback" not in told
    assert len(contents(tmp_path / "catalog.sqlite")) == 40


def test_a_full_disk_is_an_error_and_an_intact_database(
    arxiv: StandIn, ask_arxiv: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "catalog.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    prepare: Callable[[object, object], None] = databases._prepare

    def cramped(connection: object, record: object) -> None:
        prepare(connection, record)
        connection.execute(f"PRAGMA max_page_count = {pages + 12}")  # type: ignore[attr-defined]

    monkeypatch.setattr(databases, "_prepare", cramped)
    answer = ask_arxiv("sync", "--batch", "5")
    assert answer.code == 2
    assert "disk is full" in answer.err
    monkeypatch.setattr(databases, "_prepare", prepare)
    assert sound(path)
    kept = contents(path)
    assert 0 < len(kept) < len(arxiv.papers)
    assert ask_arxiv("sync").code == 0
    assert len(contents(path)) == len(arxiv.papers)
