"""How following goes: when a kind of run last succeeded, when it last learned something, the newest thing it saw."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, text


def now() -> str:
    """This moment, as the catalog writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seen(connection: Connection, kind: str, *, learned: bool, newest: str | None = None) -> None:
    """A run of this kind, still under way, has seen something. The newest thing seen never becomes older."""
    connection.execute(
        text(
            "INSERT INTO follow (kind, learned, newest, note) VALUES (:kind, :learned, :newest, '') "
            "ON CONFLICT (kind) DO UPDATE SET learned = coalesce(:learned, learned), "
            "newest = nullif(max(coalesce(newest, ''), coalesce(:newest, '')), '')"
        ),
        {"kind": kind, "learned": now() if learned else None, "newest": newest},
    )


def followed(connection: Connection, kind: str, *, learned: bool, newest: str | None = None, note: str = "") -> None:
    """A run of this kind has succeeded just now. The newest thing seen never becomes older."""
    at = now()
    connection.execute(
        text(
            "INSERT INTO follow (kind, succeeded, learned, newest, note) VALUES (:kind, :at, :learned, :newest, :note) "
            "ON CONFLICT (kind) DO UPDATE SET succeeded = :at, learned = coalesce(:learned, learned), "
            "newest = nullif(max(coalesce(newest, ''), coalesce(:newest, '')), ''), note = :note"
        ),
        {"kind": kind, "at": at, "learned": at if learned else None, "newest": newest, "note": note},
    )
