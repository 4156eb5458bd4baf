"""Where the database is, how it is opened, and how an older one is brought up to date."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError

from catalog.errors import StoreError
from catalog.migrations import HEAD, REVISIONS

VARIABLE = "PEFT_CATALOG_DB"
BUSY_SECONDS = 30
MAPPED = 2**30
"""Bytes of the file that SQLite may map into memory instead of copying page by page."""
SCRIPTS = Path(__file__).parent / "migrations"
MAGIC = b"SQLite format 3\0"
OURS = ("paper", "paper_text", "evidence")
"""Tables by which a catalog of any revision is known."""


def database_path(path: Path | str | None = None) -> Path:
    """The database file: ``path``, else $PEFT_CATALOG_DB, else the one in the user's data directory."""
    chosen = path or os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("peft-catalog", appauthor=False)) / "catalog.sqlite"


def open_engine(path: Path) -> Engine:
    """An engine with foreign keys and write-ahead log on; creates the file's folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot create the database's folder: {error.strerror}", where=str(path.parent)) from error
    _require_database(path)
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _require_database(path: Path) -> None:
    """StoreError for a file of another kind: SQLite would take a very short one for empty, and write over it."""
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"the database cannot be used: {error.strerror}", where=str(path)) from error
    if start and start != MAGIC:
        raise StoreError("this file is not an SQLite database", where=str(path), hint="name another file with --db")


def _prepare(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA mmap_size = {MAPPED}")
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        _keep_log(connection)


def _keep_log(connection: Any) -> None:
    """Turn the write-ahead log on, for good; SQLite does not wait by itself when another program does so just now."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin(connection: Connection) -> None:
    # Python's own driver begins at the first INSERT, too late for tables made before it and for reads that belong
    # together.
    wanted = connection.get_execution_options().get("begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {wanted}")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection that sees the database as it is now; StoreError where SQLite fails."""
    try:
        with engine.connect() as connection:
            yield connection
    except DatabaseError as error:
        raise _unusable(engine, error) from error


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the write lock from its first statement; all or nothing."""
    try:
        with engine.connect().execution_options(begin="IMMEDIATE") as connection, connection.begin():
            yield connection
    except DatabaseError as error:
        raise _unusable(engine, error) from error


def revision(engine: Engine) -> str | None:
    """The schema's revision; None for a new file. StoreError for a file that is no catalog or from the future."""
    with reading(engine) as connection:
        tables = set(connection.execute(text("SELECT name FROM sqlite_master")).scalars())
        if not tables:
            return None
        found = None
        if {"alembic_version", *OURS} <= tables:
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if found is None:
        hint = "name another file with --db"
        raise StoreError("this SQLite file is not a catalog", where=engine.url.database, hint=hint)
    if found not in REVISIONS:
        raise StoreError(
            f"the database has the schema {found}, which this version of peft-catalog does not know",
            where=engine.url.database,
            allowed=REVISIONS,
            hint="upgrade peft-catalog, or name another file with --db",
        )
    return str(found)


def _unusable(engine: Engine, error: DatabaseError) -> StoreError:
    """What SQLite says about a file, for people."""
    return StoreError(
        f"the database cannot be used: {error.orig}",
        where=engine.url.database,
        hint="check permissions and free space; a damaged file can be deleted, and what was measured here goes with it",
    )


def migrate(connection: Connection, target: str = HEAD) -> None:
    """Bring the schema to ``target`` within the connection's transaction; data stays."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, target)
