"""The schema's history: one revision a file in ``versions``, applied by alembic."""

from pathlib import Path

REVISIONS = tuple(
    sorted(path.stem.partition("_")[0] for path in (Path(__file__).parent / "versions").glob("[0-9]*.py"))
)
"""Revisions this version knows, oldest first; a file is named after its revision."""

HEAD = REVISIONS[-1]
"""The revision this version works with."""
