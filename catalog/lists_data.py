"""The public lists the entries come from, with their items as the lists print them (catalog/lists.toml)."""

from __future__ import annotations

import tomllib
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from pydantic import Field, StrictBool, ValidationError

from catalog.entry import Month, Part, Slug, Text, Url
from catalog.errors import EntryError
from catalog.locations import LISTS_FILE


class Style(StrEnum):
    """How a list lays out its items."""

    AWESOME = "awesome"
    BADGES = "badges"
    NUMBERED = "numbered"
    GIST = "gist"


class ListItem(Part):
    """One item of a list: its place, its title and its links as printed."""

    section: Text
    title: Text
    link: Text | None = None
    code: Text | None = Field(default=None, description="Where the list says the code is.")
    commented: StrictBool = Field(default=False, description="Present only in a comment of the list's source.")


class SourceList(Part):
    """One public list."""

    slug: Slug
    title: Text
    url: Url | None = None
    style: Style
    read_on: Month = Field(description="Month in which the list was read.")
    steer_with: tuple[Slug, ...] = Field(default=(), description="Methods it recommends for steering with +1 and -1.")
    steer_without: tuple[Slug, ...] = Field(default=(), description="Methods it says to avoid for that.")
    items: tuple[ListItem, ...] = Field(min_length=1)


class _Lists(Part):
    lists: tuple[SourceList, ...]


@lru_cache(maxsize=4)
def load_lists(path: Path = LISTS_FILE) -> tuple[SourceList, ...]:
    """All lists, in the order of the file."""
    try:
        return _Lists.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).lists
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise EntryError(f"the file of source lists cannot be read: {error}", where=str(path)) from error
