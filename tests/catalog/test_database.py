"""The file: its schema, its upgrades, and what is said when it cannot be used."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlmodel import SQLModel

import catalog
from catalog import columns, database, freshness, models, store
from catalog.database import database_path, migrate, open_engine, reading, revision, writing
from catalog.errors import StoreError
from catalog.migrations import HEAD, REVISIONS
from tests.catalog.rows import ARXIV_RECORD, ARXIV_STATEMENT, bench_row, evidence_row

NEXT_REVISION = '''"""A later schema."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade() -> None:
    """Give measurements a note and forbid empty states."""
    with op.batch_alter_table("evidence") as table:
        table.add_column(sa.Column("note", sa.String(), nullable=False, server_default="none"))
        table.create_check_constraint("some_status", "status != ''")
    op.add_column("bench_run", sa.Column("watts", sa.Float()))
'''


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The program as it will be after one more revision."""
    scripts = tmp_path / "migrations"
    shutil.copytree(database.SCRIPTS, scripts)
    (scripts / "versions" / "9999_later.py").write_text(NEXT_REVISION.format(head=HEAD))
    with monkeypatch.context() as patch:
        patch.setattr(database, "SCRIPTS", scripts)
        patch.setattr(database, "REVISIONS", (*REVISIONS, "9999"))
        patch.setattr(store, "HEAD", "9999")
        patch.setattr(freshness, "HEAD", "9999")
        patch.setattr(migrate, "__defaults__", ("9999",))
        yield "9999"


def test_models_equal_the_migrated_schema(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "new.sqlite")
    with writing(engine) as connection:
        migrate(connection)
        options = {"include_object": lambda _, name, kind, *rest: not str(name).startswith("paper_text")}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), SQLModel.metadata) == []
    engine.dispose()


def test_the_indexes_that_sort_are_those_of_the_models(tmp_path: Path) -> None:
    # compare_metadata passes over collations.
    made, migrated = open_engine(tmp_path / "made.sqlite"), open_engine(tmp_path / "migrated.sqlite")
    SQLModel.metadata.create_all(made)
    with writing(migrated) as connection:
        migrate(connection)
    found = []
    for engine in (made, migrated):
        with reading(engine) as connection:
            terms = "SELECT m.name, x.name, x.desc, x.coll FROM sqlite_master m, pragma_index_xinfo(m.name) x"
            where = " WHERE m.type = 'index' AND m.name LIKE 'ix_paper_%' ORDER BY 1, x.seqno"
            found.append(connection.execute(text(terms + where)).all())
        engine.dispose()
    assert found[0] == found[1]


@pytest.mark.parametrize("name", [name for name in dir(columns) if name.isupper() and name not in ("TRUTHS", "TEXT")])
def test_the_columns_that_queries_name_are_those_of_the_models(name: str) -> None:
    for column in getattr(columns, name):
        known = SQLModel.metadata.tables[column.table.name].c
        assert column.name in known
        assert (str(column.type) == "BOOLEAN") == (str(known[column.name].type) == "BOOLEAN")


def test_the_newest_revision_is_the_head() -> None:
    assert sorted(REVISIONS) == list(REVISIONS)
    assert REVISIONS[-1] == HEAD


def test_a_connection_checks_foreign_keys_and_keeps_a_log(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "a.sqlite")
    with reading(engine) as connection:
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    engine.dispose()


def test_the_log_is_turned_on_as_soon_as_another_program_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQLite gives up at once here, however long it is told to wait.
    path = tmp_path / "a.sqlite"
    other = sqlite3.connect(path, isolation_level=None)
    other.executescript("CREATE TABLE held (x); BEGIN IMMEDIATE; INSERT INTO held VALUES (1)")
    monkeypatch.setattr("catalog.database.time.sleep", lambda _: other.execute("COMMIT"))
    engine = open_engine(path)
    with reading(engine) as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    assert not other.in_transaction
    engine.dispose()


def test_a_transaction_that_fails_leaves_no_table(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "a.sqlite")

    def fail() -> None:
        with writing(engine) as connection:
            migrate(connection)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert revision(engine) is None
    engine.dispose()


@pytest.mark.usefixtures("unmeasured")
def test_an_upgrade_loses_nothing_that_was_measured_or_fetched(few: Path, tmp_path: Path, later: str) -> None:
    path = tmp_path / "old.sqlite"
    engine = open_engine(path)
    with writing(engine) as connection:
        migrate(connection, HEAD)
        store.keep_evidence(connection, [evidence_row("lora"), evidence_row("gone", measured="kept as well")])
        store.keep_bench(connection, [bench_row("lora")])
        store.put(connection, models.ArxivStatement, [ARXIV_STATEMENT])
        store.put(connection, models.ArxivRecord, [ARXIV_RECORD])
        before = _kept(connection)
    assert revision(engine) == HEAD
    engine.dispose()
    with catalog.open(path, entries=few) as cat:
        assert cat.count() == 3
        assert [row.claim for row in cat.evidence("lora")] == ["mergeable"]
    with reading(open_engine(path)) as connection:
        assert revision(connection.engine) == later
        assert connection.execute(text("SELECT DISTINCT note FROM evidence")).scalars().all() == ["none"]
        after = _kept(connection)
    assert [
        [row[: len(old)] for row, old in zip(*pair, strict=True)] for pair in zip(after, before, strict=True)
    ] == before


def _kept(connection: object) -> list[list[tuple[object, ...]]]:
    tables = ("evidence", "bench_run", "arxiv_statement", "arxiv_record")
    return [[tuple(row) for row in connection.execute(text(f"SELECT * FROM {t}"))] for t in tables]  # type: ignore[attr-defined]


def test_an_upgrade_that_fails_leaves_the_old_schema(few: Path, tmp_path: Path, later: str) -> None:
    path = tmp_path / "old.sqlite"
    engine = open_engine(path)
    with writing(engine) as connection:
        migrate(connection, HEAD)
        store.keep_evidence(connection, [evidence_row("lora", status="")])  # the later schema forbids it
    engine.dispose()
    with pytest.raises(StoreError, match="cannot be used"):
        catalog.open(path, entries=few)
    assert revision(open_engine(path)) == HEAD
    columns_now = [row[1] for row in sqlite3.connect(path).execute("PRAGMA table_info(bench_run)")]
    assert "watts" not in columns_now


def test_a_database_of_a_newer_program_is_left_alone(few: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite"
    catalog.open(path, entries=few).close()
    _execute(path, "UPDATE alembic_version SET version_num = '7777'")
    with pytest.raises(StoreError, match="7777") as caught:
        catalog.open(path, entries=few)
    assert "upgrade peft-catalog" in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"not a database, " * 100, b"x", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot be used|not an SQLite database") as caught:
        catalog.open(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TABLE customer (name TEXT)",
        "CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES ('0001')",
        "CREATE VIEW paper AS SELECT 1",
    ],
)
def test_a_database_of_another_program_is_left_alone(tmp_path: Path, statements: str) -> None:
    path = tmp_path / "theirs.sqlite"
    _execute(path, statements)
    before = list(sqlite3.connect(path).iterdump())
    with pytest.raises(StoreError, match="not a catalog"):
        catalog.open(path)
    assert list(sqlite3.connect(path).iterdump()) == before


def test_a_catalog_without_a_revision_is_refused(few: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    catalog.open(path, entries=few).close()
    _execute(path, "DELETE FROM alembic_version")
    with pytest.raises(StoreError, match="not a catalog"):
        catalog.open(path, entries=few)


def test_a_folder_in_the_place_of_the_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        catalog.open(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="folder"):
        catalog.open(tmp_path / "file" / "catalog.sqlite")


def test_a_folder_that_may_not_be_written_is_told(database: Path) -> None:
    catalog.open(database).close()  # everything is imported before rights are given up
    superuser = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        if superuser:  # who may write anywhere
            os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match="cannot be used: unable to open database file") as caught:
                catalog.open(Path(folder) / "catalog.sqlite")
        finally:
            if superuser:
                os.seteuid(0)
    assert "check permissions" in str(caught.value)


def test_a_database_damaged_while_open_is_told(few: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with catalog.open(path, entries=few) as cat:
        _execute(path, "DROP TABLE method")
        with pytest.raises(StoreError, match="cannot be used"):
            cat.papers()


@pytest.mark.parametrize("name", ["with space.sqlite", "100%.sqlite", "what?.sqlite", "ünï#.sqlite"])
def test_any_file_name_will_do(few: Path, tmp_path: Path, name: str) -> None:
    with catalog.open(tmp_path / name, entries=few) as cat:
        assert cat.path == tmp_path / name
    assert (tmp_path / name).is_file()


def test_where_the_database_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PEFT_CATALOG_DB", str(tmp_path / "named.sqlite"))
    assert database_path() == tmp_path / "named.sqlite"
    assert database_path("other.sqlite") == Path("other.sqlite")
    assert database_path("~/a.sqlite") == Path.home() / "a.sqlite"
    monkeypatch.delenv("PEFT_CATALOG_DB")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert database_path().name == "catalog.sqlite"
    assert tmp_path in database_path().parents


def _execute(path: Path, statements: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(statements)
    connection.close()
