"""What can be downloaded from the site: the JSON API, the bibliography and the database."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_downloads(cat: Any, folder: Path) -> None:
    """Write api/v1/*.json, peft.bib, peft.csl.json and catalog.sqlite."""
    from catalog.exports import copy_database, to_bibtex, to_csl, write_api

    papers = cat.papers()
    write_api(cat, folder / "api" / "v1")
    (folder / "peft.bib").write_text(to_bibtex(papers), encoding="utf-8")
    (folder / "peft.csl.json").write_text(to_csl(papers), encoding="utf-8")
    copy_database(Path(cat.path), folder / "catalog.sqlite")
