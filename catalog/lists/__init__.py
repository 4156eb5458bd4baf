"""Public lists of papers: writing them from the catalog, reading them and holding them against it."""

from __future__ import annotations

from catalog.lists.comparison import Comparison, compare
from catalog.lists.reading import read_file, read_text
from catalog.lists.writers import write_list
from catalog.lists_data import Style

__all__ = ["Comparison", "Style", "compare", "read_file", "read_text", "write_list"]
