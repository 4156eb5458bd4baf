"""Where the database is, how it is opened, and how an older one is brought up to date."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import DatabaseError
from sqlmodel import create_engine

from catalog.errors import StoreError
from catalog.migrations import HEAD, REVISIONS

VARIABLE = "PEFT_CATALOG_DB"
BUSY_SECONDS = 30


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
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _: Any) -> None:
    # Python's own transaction handling would commit before every CREATE TABLE; _begin says BEGIN instead.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin(connection: Connection) -> None:
    wanted = connection.get_execution_options().get("begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {wanted}")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the write lock from its first statement; all or nothing."""
    with engine.connect().execution_options(begin="IMMEDIATE") as connection, connection.begin():
        yield connection


def revision(engine: Engine, path: Path) -> str | None:
    """The schema's revision; None for a new file. StoreError for a file that is no database or from the future."""
    try:
        with engine.connect() as connection:
            tables = {row[0] for row in connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'"))}
            if "alembic_version" not in tables:
                if tables:
                    raise StoreError(
                        "this SQLite file is not a catalog", where=str(path), hint="name another file with --db"
                    )
                return None
            found: str = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    except DatabaseError as error:
        raise unusable(path, error) from error
    if found not in REVISIONS:
        raise StoreError(
            f"the database has the schema {found}, which this version of peft-catalog does not know",
            where=str(path),
            allowed=REVISIONS,
            hint="upgrade peft-catalog, or name another file with --db",
        )
    return found


def unusable(path: Path, error: DatabaseError) -> StoreError:
    """What SQLite says about a file, for people."""
    return StoreError(
        f"the database cannot be used: {error.orig}",
        where=str(path),
        hint="check permissions and free space; a damaged file can be deleted, and what was measured here goes with it",
    )


def migrate(engine: Engine, target: str = HEAD) -> None:
    """Bring the schema to ``target`` in one transaction; data stays."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, target)
