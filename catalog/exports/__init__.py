"""The catalog for other programs: BibTeX, CSL-JSON, a JSON API of static files, and the database itself.

from catalog.exports import to_bibtex, write_api

with catalog.open() as cat:
    Path("peft.bib").write_text(to_bibtex(cat.papers()), encoding="utf-8")
    write_api(cat, Path("api/v1"))
"""

from __future__ import annotations

from catalog.exports.api import write_api
from catalog.exports.bibtex import to_bibtex
from catalog.exports.csl import to_csl
from catalog.exports.database import copy_database

__all__ = ["copy_database", "to_bibtex", "to_csl", "write_api"]
