"""The shipped entries, and small lists of one item held against them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from catalog.entry import Entry, load_entries
from catalog.lists import Comparison, compare, read_text
from catalog.locations import shipped_root


@cache
def shipped() -> tuple[Entry, ...]:
    return tuple(load_entries(shipped_root()))


@pytest.fixture(scope="session")
def entries() -> tuple[Entry, ...]:
    return shipped()


@pytest.fixture(scope="session")
def entry(entries: tuple[Entry, ...]) -> Callable[[str], Entry]:
    """An entry by its slug."""
    by_slug = {each.slug: each for each in entries}
    return by_slug.__getitem__


@pytest.fixture(scope="session")
def held(entries: tuple[Entry, ...]) -> Callable[[str], Comparison]:
    """A list, given as text, held against the shipped entries."""
    return lambda text: compare(read_text(text), entries)
