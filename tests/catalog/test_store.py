"""Building: all or nothing, beside readers and other builds, and never at the cost of what was measured."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

import catalog
from catalog import freshness, models, store
from catalog.database import open_engine, reading, writing
from catalog.entry import Entry, load_entries
from catalog.errors import EntryError, StoreError
from catalog.freshness import is_current, signature
from catalog.locations import entry_paths, shipped_root
from tests.catalog.rows import ARXIV_RECORD, ARXIV_STATEMENT, bench_row, evidence_row

Edit = Callable[[str, str, str], None]
LORA = "reparameterized/lora"
TITLE = "LoRA: Low-Rank Adaptation of Large Language Models"

# A build that kills itself where it is told to: at a call of put(), or of ANALYZE, after which comes the commit.
KILLED = """
import os, signal, sys
from pathlib import Path
import catalog.store as store
from catalog.database import open_engine

at, path, root = int(sys.argv[1]), sys.argv[2], sys.argv[3]
calls, put = [], store.put

def counted(connection, table, rows):
    calls.append(table)
    if len(calls) == at:
        put(connection, table, rows[: len(rows) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    put(connection, table, rows)
    if at == 0 and table is store.models.Meta:
        os.kill(os.getpid(), signal.SIGKILL)

store.put = counted
store.build(open_engine(Path(path)), root)
"""

TOGETHER = """
import sys
import catalog.query, catalog.store, alembic.command
print("ready", flush=True)
sys.stdin.readline()
with catalog.query.open(sys.argv[1], entries=sys.argv[2]) as cat:
    print(cat.count())
"""


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(catalog.__file__).parents[1],
    )


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("at", [1, 2, 7, 15, 0])
def test_a_build_that_is_killed_leaves_the_old_database(few: Path, tmp_path: Path, edit: Edit, at: int) -> None:
    path = tmp_path / "a.sqlite"
    with catalog.open(path, entries=few) as cat:
        cat.record_evidence([evidence_row("lora")])
    before = _dump(path)
    edit(LORA, TITLE, "Another title")
    process = run(KILLED, at, path, few)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert _dump(path) == before
    with catalog.open(path, entries=few) as cat:
        assert cat.paper("lora").title == "Another title"
        assert len(cat.evidence("lora")) == 1


@pytest.mark.parametrize("at", [1, 15, 0])
def test_a_first_build_that_is_killed_is_simply_done_again(few: Path, tmp_path: Path, at: int) -> None:
    path = tmp_path / "a.sqlite"
    process = run(KILLED, at, path, few)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    with catalog.open(path, entries=few) as cat:
        assert cat.count() == 3


def test_builds_at_the_same_time_do_not_hurt_each_other(few: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    processes = [run(TOGETHER, path, few) for _ in range(4)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate() for process in processes]
    assert [(process.returncode, out) for process, (out, _) in zip(processes, answers, strict=True)] == [
        (0, "3\n")
    ] * 4, answers
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert sqlite3.connect(path).execute("PRAGMA foreign_key_check").fetchall() == []


def test_readers_see_the_old_catalog_until_a_build_is_done(few: Path, tmp_path: Path, edit: Edit) -> None:
    path = tmp_path / "a.sqlite"
    with catalog.open(path, entries=few) as cat:
        edit(LORA, TITLE, "Another title")
        engine = open_engine(path)
        with writing(engine) as connection:
            store.fill(connection, load_entries(few))
            assert cat.paper("lora").title == TITLE
        assert cat.paper("lora").title == "Another title"
        engine.dispose()


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('slug = "lora"', 'slug = "lora', EntryError),
        ('category = "reparameterized"', 'category = "reparametrized"', EntryError),
        ('builds_on = ["houlsby-adapter"]', 'builds_on = ["nothing"]', StoreError),
        ('list = "awesome-peft-for-foundation-models"', 'list = "no-such-list"', StoreError),
        ('slug = "lora"', 'slug = "dora"', StoreError),
    ],
)
def test_broken_entries_leave_the_old_database(
    few: Path, tmp_path: Path, edit: Edit, old: str, new: str, error: type[Exception]
) -> None:
    path = tmp_path / "a.sqlite"
    catalog.open(path, entries=few).close()
    before = _dump(path)
    edit(LORA, old, new)
    with pytest.raises(error) as caught:
        catalog.open(path, entries=few)
    assert "lint" in str(caught.value) or "lora.toml" in str(caught.value)
    assert _dump(path) == before


@pytest.mark.usefixtures("unmeasured")
def test_what_was_measured_and_fetched_outlives_builds_and_entries(few: Path, tmp_path: Path, edit: Edit) -> None:
    path = tmp_path / "a.sqlite"
    with catalog.open(path, entries=few) as cat:
        cat.record_evidence([evidence_row("dora"), evidence_row("lora", measured="local")])
        cat.record_bench([bench_row("lora"), bench_row("lora", trained=2048)])
        with writing(cat._engine) as connection:
            store.put(connection, models.ArxivStatement, [ARXIV_STATEMENT])
            store.put(connection, models.ArxivRecord, [ARXIV_RECORD])
    kept = {table: _rows(path, table) for table in ("evidence", "bench_run", "arxiv_statement", "arxiv_record")}
    (few / "reparameterized" / "dora.toml").unlink()
    edit(LORA, TITLE, "Another title")
    with catalog.open(path, entries=few) as cat:
        assert cat.count() == 2
        assert cat.paper("lora").evidence[0].measured == "local"
    assert {table: _rows(path, table) for table in kept} == kept
    assert [len(rows) for rows in kept.values()] == [2, 2, 1, 1]


@pytest.mark.usefixtures("unmeasured")
def test_a_new_measurement_takes_the_place_of_the_old_one(few: Path, tmp_path: Path) -> None:
    with catalog.open(tmp_path / "a.sqlite", entries=few) as cat:
        cat.record_evidence([evidence_row("lora", status="contradicted"), evidence_row("lora", backbone="encoder")])
        cat.record_evidence([evidence_row("lora", status="verified", python="3.12")])
        found = {(row.backbone, row.status, row.python) for row in cat.evidence("lora")}
    assert found == {("decoder", "verified", "3.12"), ("encoder", "verified", "")}


@pytest.mark.usefixtures("unmeasured")
def test_rows_that_cannot_be_stored_are_stored_not_even_in_part(few: Path, tmp_path: Path) -> None:
    with catalog.open(tmp_path / "a.sqlite", entries=few) as cat:
        with pytest.raises(StoreError):
            cat.record_evidence([evidence_row("lora"), evidence_row("lora", claim=None)])
        assert cat.evidence() == []


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped measurements: a contradicted claim and a benchmark row of LoRA, a verified claim of DoRA."""
    folder = tmp_path / "measured"
    folder.mkdir()
    claims = [
        evidence_row("lora", status="contradicted", measured="shipped"),
        evidence_row("dora", measured="shipped", source="local", unknown_column=1),
    ]
    (folder / "claims.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in claims))
    (folder / "bench.jsonl").write_text(json.dumps(bench_row("lora", trained=7)) + "\n")
    monkeypatch.setattr(store, "MEASURED", folder)
    monkeypatch.setattr(freshness, "MEASURED", folder)
    return folder


def test_what_is_measured_here_goes_before_what_is_shipped(few: Path, tmp_path: Path, shipped: Path) -> None:
    with catalog.open(tmp_path / "a.sqlite", entries=few) as cat:
        assert {(row.slug, row.source) for row in cat.evidence()} == {("lora", "shipped"), ("dora", "shipped")}
        assert cat.paper("lora").claim_status == "contradicted"
        assert [row.trained for row in cat.bench("lora")] == [7]
        cat.record_evidence([evidence_row("lora", measured="local")])
        cat.record_bench([bench_row("lora", trained=8), bench_row("lora", trained=9, status="failed")])
        assert [(row.measured, row.source) for row in cat.evidence("lora")] == [("local", "local")]
        assert [row.trained for row in cat.bench("lora")] == [8]
        assert cat.paper("lora").claim_status == "verified"
        # The filter must say what the paper says.
        assert [paper.slug for paper in cat.papers(status="contradicted")] == []
        assert {paper.slug for paper in cat.papers(status="verified")} == {"lora", "dora"}
        cat.record_evidence([evidence_row("dora", status="contradicted")])
        assert [paper.slug for paper in cat.papers(status="contradicted")] == ["dora"]
        assert [paper.slug for paper in cat.papers(status="verified")] == ["lora"]


def test_shipped_rows_follow_their_file(few: Path, tmp_path: Path, shipped: Path) -> None:
    path = tmp_path / "a.sqlite"
    with catalog.open(path, entries=few) as cat:
        cat.record_evidence([evidence_row("lora", claim="saves")])
        cat.record_bench([bench_row("lora", device="cuda")])
    (shipped / "claims.jsonl").unlink()
    (shipped / "bench.jsonl").write_text("")
    with catalog.open(path, entries=few) as cat:
        assert [(row.claim, row.source) for row in cat.evidence()] == [("saves", "local")]
        assert [row.device for row in cat.bench()] == ["cuda"]


class TestSignature:
    """A database is rebuilt when something it was built from changes, and only then."""

    @pytest.fixture(autouse=True)
    def places(self, few: Path, tmp_path: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.few, self.shipped = few, shipped
        self.implementations = tmp_path / "reference_impls"
        (self.implementations / "selective").mkdir(parents=True)
        (self.implementations / "selective" / "bitfit.py").write_text("x = 1\n")
        self.lists = tmp_path / "lists.toml"
        self.lists.write_text("")
        monkeypatch.setattr(freshness, "LISTS_FILE", self.lists)
        monkeypatch.setattr(freshness, "implementation_folders", lambda: (self.implementations,))
        self.before = signature(few)

    @property
    def changed(self) -> bool:
        return signature(self.few) != self.before

    def test_stays_while_nothing_changes(self) -> None:
        assert not self.changed

    def test_changes_with_an_entry(self, edit: Edit) -> None:
        edit(LORA, TITLE, TITLE.upper())
        assert self.changed

    def test_changes_when_an_entry_goes(self) -> None:
        (self.few / "reparameterized" / "dora.toml").unlink()
        assert self.changed

    def test_changes_with_the_lists(self) -> None:
        self.lists.write_text("# read again\n")
        assert self.changed

    def test_changes_with_a_shipped_measurement(self) -> None:
        (self.shipped / "claims.jsonl").write_text("\n")
        assert self.changed

    def test_changes_when_an_implementation_comes(self) -> None:
        (self.implementations / "selective" / "ln_tuning.py").write_text("")
        assert self.changed

    def test_changes_when_an_implementation_goes(self) -> None:
        (self.implementations / "selective" / "bitfit.py").unlink()
        assert self.changed

    def test_changes_with_the_schema(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(freshness, "HEAD", "later")
        assert self.changed

    def test_stays_when_an_implementation_is_edited(self) -> None:
        (self.implementations / "selective" / "bitfit.py").write_text("longer = 12345\n")
        assert not self.changed


def test_a_current_database_is_not_built_again(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.sqlite"
    catalog.open(path, entries=few).close()
    monkeypatch.delattr(store, "build")
    catalog.open(path, entries=few).close()
    assert is_current(open_engine(path), few)


def test_an_implementation_makes_a_method_implemented(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    for module in (freshness, catalog.entry):
        monkeypatch.setattr(module, "implementation_folders", lambda: (folder,))
    path = tmp_path / "a.sqlite"
    with catalog.open(path, entries=few) as cat:
        assert cat.papers(has_implementation=True) == []
    (folder / "reparameterized").mkdir(parents=True)
    (folder / "reparameterized" / "lora.py").write_text("")
    with catalog.open(path, entries=few) as cat:
        (paper,) = cat.papers(has_implementation=True)
    assert paper.implementation == "reference_impls.reparameterized.lora"


def test_every_entry_is_in_the_database_whole(database: Path, entries: list[Entry]) -> None:
    with catalog.open(database) as cat:
        assert {paper.slug: paper.entry for paper in cat.papers()} == {entry.slug: entry for entry in entries}
    authors = """SELECT paper.slug, author.name FROM paper_author JOIN paper ON paper.id = paper_id
        JOIN author ON author.id = author_id ORDER BY paper.slug, position"""
    with reading(open_engine(database)) as connection:
        found = [tuple(row) for row in connection.execute(text(authors))]
    assert found == [(e.slug, name) for e in sorted(entries, key=lambda e: e.slug) for name in e.authors]


@pytest.mark.parametrize(
    ("table", "number"),
    [
        ("listing", lambda entry: len(entry.listed_in)),
        ("erratum", lambda entry: len(entry.errata)),
        ("deviation", lambda entry: len(entry.deviations)),
        ("builds_on", lambda entry: len(entry.builds_on)),
        ("paper_library", lambda entry: len(entry.libraries)),
        ("paper_modality", lambda entry: len(entry.modality)),
        ("method", lambda _: 1),
        ("paper_text", lambda _: 1),
    ],
)
def test_a_table_has_a_row_for_every_fact(
    database: Path, entries: list[Entry], table: str, number: Callable[[Entry], int]
) -> None:
    assert len(_rows(database, table)) == sum(map(number, entries)) > 0


def test_the_shipped_entries_are_those_the_catalog_opens() -> None:
    assert entry_paths() == entry_paths(shipped_root())


def _rows(path: Path, table: str) -> list[tuple[object, ...]]:
    return sqlite3.connect(path).execute(f"SELECT * FROM {table}").fetchall()


def _dump(path: Path) -> list[str]:
    """Everything a database holds; what SQLite keeps for its own planning left out."""
    return [line for line in sqlite3.connect(path).iterdump() if "sqlite_stat" not in line]
