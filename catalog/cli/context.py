"""What options before a command say."""

from __future__ import annotations

from typing import Any

import typer


def database(ctx: typer.Context) -> Any:
    """The database asked for with --db, if any."""
    return (ctx.obj or {}).get("db") if isinstance(ctx.obj, dict) else getattr(ctx.obj, "db", None)
