"""peft-catalog: a literature catalog of parameter-efficient fine-tuning in which every claim can be run.

    import catalog

    with catalog.open() as cat:
        for paper in cat.papers(category="reparameterized", mergeable=True):
            print(paper.name, paper.title)

Importing this package is cheap: the database layer is loaded at the first use of `open`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from catalog.errors import CatalogError

if TYPE_CHECKING:
    from catalog.query import Filter, open

__all__ = ["CatalogError", "Filter", "open"]

_FROM_QUERY = ("open", "Filter")


def __getattr__(name: str) -> Any:
    if name in _FROM_QUERY:
        from catalog import query

        return getattr(query, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM_QUERY})
