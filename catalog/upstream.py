"""What libraries ship and the catalog does not have yet (catalog/upstream.toml)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("upstream.toml")


@dataclass(frozen=True)
class Upstream:
    """A library in the version that tests install, and its method types that no entry names."""

    library: str
    version: str
    not_catalogued: tuple[str, ...]


def upstream() -> tuple[Upstream, ...]:
    """Every library whose method types are known."""
    tables = tomllib.loads(FILE.read_text("utf-8"))
    return tuple(Upstream(name, each["version"], tuple(each["not_catalogued"])) for name, each in tables.items())
