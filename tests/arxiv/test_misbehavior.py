"""Every way in which arXiv misbehaves, through the command line: what is done about it, and what is kept.

The rows make the table in the documentation. `pytest tests/arxiv/test_misbehavior.py --record-misbehavior` writes it.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from catalog.locations import MEASURED
from tests.conftest import Answer, Ask
from tests.standin import StandIn
from tests.standin.mischief import MISCHIEF

pytestmark = pytest.mark.usefixtures("slim")
TABLE = MEASURED / "misbehavior.jsonl"
BATCH = 20
SLOW = ("connection that hangs", "connection that drips")
NOTICED = re.compile(r"^(?P<what>.+); asking again in \d+ s$", re.MULTILINE)


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[dict[str, dict[str, Any]]]:
    """The rows of this run by kind; written at the end when asked to."""
    found: dict[str, dict[str, Any]] = {}
    yield found
    if request.config.getoption("--record-misbehavior") and set(found) == set(MISCHIEF):
        TABLE.write_text("".join(json.dumps(found[kind], ensure_ascii=False) + "\n" for kind in MISCHIEF), "utf-8")


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]] | None:
    """The rows as the documentation has them; None while they are being recorded."""
    if request.config.getoption("--record-misbehavior"):
        return None
    return {row["kind"]: row for row in map(json.loads, TABLE.read_text("utf-8").splitlines())}


@pytest.mark.parametrize("kind", MISCHIEF)
def test_misbehavior_is_survived(
    kind: str,
    arxiv: StandIn,
    ask_arxiv: Ask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: dict[str, dict[str, Any]],
    recorded: dict[str, dict[str, Any]] | None,
) -> None:
    if kind in SLOW:
        monkeypatch.setenv("PEFT_CATALOG_ARXIV_TIMEOUT", "1")
    arxiv.misbehave(kind, times=2)
    passing = said(ask_arxiv("sync", "--json", "--batch", "1000"), arxiv, tmp_path)
    passing["more_requests"] = sum(bool(request.ids) for request in arxiv.log) - 1
    empty(tmp_path / "catalog.sqlite")

    monkeypatch.setenv("PEFT_CATALOG_STATE", str(tmp_path / "later"))
    arxiv.behave()
    arxiv.misbehave(kind, times=None, after=1)
    lasting = said(ask_arxiv("sync", "--json", "--batch", str(BATCH)), arxiv, tmp_path)

    monkeypatch.setenv("PEFT_CATALOG_STATE", str(tmp_path / "much later"))
    monkeypatch.delenv("PEFT_CATALOG_ARXIV_TIMEOUT", raising=False)
    arxiv.behave()
    assert said(ask_arxiv("sync", "--json"), arxiv, tmp_path)["kept"] == "everything"
    rows[kind] = {"kind": kind, "passing": passing, "lasting": lasting}
    if recorded is not None:
        assert rows[kind] == recorded.get(kind), "the table is stale: run this module with --record-misbehavior"


def said(answer: Answer, arxiv: StandIn, folder: Path) -> dict[str, Any]:
    """What a sync did, in words that do not depend on how many papers there are."""
    outcome = json.loads(answer.out)
    kept = stored(folder / "catalog.sqlite")
    assert kept == outcome["received"]
    assert outcome["asked"] == len(arxiv.papers)
    assert bool(outcome["failure"]) == (answer.code == 3)
    named = [*outcome["unusable"], *outcome["withheld"], *outcome["malformed"], *outcome["unknown"]]
    assert outcome["failure"] or kept + len(named) == outcome["asked"]
    noticed = [match["what"] for match in NOTICED.finditer(answer.err)]
    seen = [*noticed, outcome["failure"] or "", *(re.sub(r"^\S+: ", "", each) for each in outcome["unusable"])]
    return {
        "seen": general(next((each for each in seen if each), "")),
        "asked_again": len(noticed),
        "exit": answer.code,
        "kept": words(kept, len(named), outcome),
    }


def general(message: str) -> str:
    """A message without the numbers of one run."""
    message = re.sub(r"\d{1,3}(,\d{3})+ characters", "millions of characters", message)
    return re.sub(
        r" \([^)]* bytes\)| \(kept.*|, http\S*|: [\d., ]+$|\[Errno \d+\] | of \d+ papers| about \d+ papers", "", message
    )


def words(kept: int, named: int, outcome: dict[str, Any]) -> str:
    """How much was kept, without the number of papers there are."""
    if kept == outcome["asked"]:
        return "everything"
    if kept + named == outcome["asked"]:
        return "everything but what is named"
    assert outcome["failure"]
    return "what had arrived before" if kept else "nothing had arrived"


def stored(path: Path) -> int:
    """Papers of which the database has a record, one statement each; the database is sound."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        counts = [
            connection.execute(f"SELECT count(*) FROM {t}").fetchone() for t in ("arxiv_record", "arxiv_statement")
        ]
    assert counts[0] == counts[1]
    return int(counts[0][0])


def empty(path: Path) -> None:
    """Forget what arXiv said."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("DELETE FROM arxiv_record; DELETE FROM arxiv_statement;")


def test_the_table_has_every_kind(recorded: dict[str, dict[str, Any]] | None) -> None:
    assert recorded is None or list(recorded) == list(MISCHIEF)
