"""What commands print: tables for people, JSON for programs. Text of others is made harmless on both ways."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from catalog.terminal import cell, console, escaped

Json = Annotated[bool, typer.Option("--json", help="Everything found, as JSON.")]


def print_json(data: Any) -> None:
    """Data for programs, with what could steer a terminal escaped."""
    typer.echo(escaped(json.dumps(data, indent=2, ensure_ascii=False)))


def table(title: str, headings: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    """A table on the terminal; nothing where there are no rows."""
    from rich.table import Table

    rows = list(rows)
    if not rows:
        return
    shown = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for heading in headings:
        shown.add_column(heading, justify="right" if heading == "line" else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(cell, row))
    console().print(shown)
    typer.echo()


def count(number: int, word: str) -> str:
    """A number with its word, in the plural where it needs one."""
    return f"{number} {word}" + ("" if number == 1 else "s")
