"""Corrections written into entry files: only the keys concerned, with comments and order as they were."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Array

from catalog.arxiv_sync.reconcile import Drift, Value
from catalog.entry import validate
from catalog.errors import EntryError
from catalog.files import write_atomic

_WIDTH = 120
_BEFORE = {"doi": ("venue", "published"), "arxiv_categories": ("arxiv",)}
"""Key -> the keys after one of which a new one goes."""


def correct(path: Path, drifts: Sequence[Drift]) -> list[Drift]:
    """Write the corrections of one entry into its file, in one step; the ones written.

    EntryError when the result would be no valid entry, and the file stays as it was.
    """
    wanted = [drift for drift in drifts if drift.correction is not None]
    if not wanted:
        return []
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise EntryError(f"cannot read the entry: {error.strerror or error}", where=str(path)) from error
    for drift in wanted:
        assert drift.correction is not None
        text = edited(text, drift.key, drift.correction)
    entry, problems = validate(tomllib.loads(text))
    if entry is None:
        raise EntryError("what arXiv says makes no valid entry", where=str(path), problems=problems)
    write_atomic(path, text.encode())
    return wanted


def edited(text: str, key: str, value: Value) -> str:
    """The TOML with one top-level key set."""
    document = tomlkit.parse(text)
    plain: Any = list(value) if isinstance(value, tuple) else value
    if key in document:
        document[key] = _array(document[key], plain) if isinstance(plain, list) else plain
        return tomlkit.dumps(document)
    line = f"{key} = {tomlkit.item(plain).as_string()}\n"
    for before in _BEFORE.get(key, ()):
        placed = re.sub(rf'^{before} *= *"[^"\n]*" *(#[^\n]*)?\r?\n', lambda m: m[0] + line, text, count=1, flags=re.M)
        if placed != text and tomllib.loads(placed) == {**tomllib.loads(text), key: plain}:
            return placed
    document[key] = plain
    return tomlkit.dumps(document)


def _array(old: Any, values: list[str]) -> Array:
    """An array laid out as the old one, and one item a line where it would be too wide."""
    array = tomlkit.array()
    array.extend(values)
    spread = isinstance(old, Array) and "\n" in old.as_string()
    return array.multiline(spread or len(array.as_string()) > _WIDTH - 20)
