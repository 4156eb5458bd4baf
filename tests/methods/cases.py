"""The methods and backbones that the claims are measured on, from the entries."""

from __future__ import annotations

from functools import cache

from catalog.entry import Entry, load_entries
from catalog.evidence import runnable, trials
from reference_impls.claims import Trial


@cache
def entries() -> dict[str, Entry]:
    return {entry.slug: entry for entry in runnable(load_entries())}


def places() -> list[tuple[str, str]]:
    """(slug, backbone) of every place a method is measured at."""
    return [(slug, str(kind)) for slug, entry in entries().items() for kind in entry.claim_backbones]


def first_places() -> list[tuple[str, str]]:
    """(slug, backbone) of every method's own backbone."""
    return [(slug, str(entry.claim_backbones[0])) for slug, entry in entries().items()]


def trial(slug: str, kind: str) -> Trial:
    return next(t for t in trials(entries()[slug]) if t.kind == kind)
