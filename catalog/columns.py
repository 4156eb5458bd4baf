"""The columns that queries name, without the classes of catalog.models: importing those takes longer than a query.

A test compares them with the models.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sqlalchemy import Boolean, column, table

from catalog.paper import Bench, Evidence, Paper

TRUTHS = ("detachable", "mergeable", "identity_at_init")


def columns(name: str, *names: str) -> Any:
    """Columns of a table by name."""
    return table(name, *(column(each, Boolean() if each in TRUTHS else None) for each in names)).c


def names_of(kind: Any) -> tuple[str, ...]:
    """The names of a data class's fields."""
    return tuple(field.name for field in fields(kind))


METHOD = columns(
    "method", "paper_id", "implementation", "no_implementation", "detachable", "mergeable", "strength",
    "identity_at_init",
)  # fmt: skip
PAPER = columns(
    "paper", "id",
    *(name for name in names_of(Paper) if name not in METHOD and name not in ("evidence", "bench", "entry_json")),
)  # fmt: skip
ENTRY = columns("entry", "paper_id", "json_text")
AUTHOR = columns("author", "id", "name", "folded")
PAPER_AUTHOR = columns("paper_author", "paper_id", "author_id")
MODALITY = columns("paper_modality", "paper_id", "modality")
LIBRARY = columns("paper_library", "paper_id", "library")
LISTING = columns("listing", "paper_id", "list_slug")
ERRATUM = columns("erratum", "paper_id")
DEVIATION = columns("deviation", "paper_id")
ALIAS = columns("alias", "folded", "name", "paper_id")
BUILDS_ON = columns("builds_on", "paper_id", "base_id")
COUNT = columns("parameter_count", "paper_id", "model", "trained")
EVIDENCE = columns("evidence", *names_of(Evidence))
BENCH = columns("bench_run", "id", *names_of(Bench))
TEXT = columns("paper_text", "rowid")
