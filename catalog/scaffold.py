"""A new entry and its implementation, begun: the facts given, and every key that still has to be filled in.

What is written is a draft, which queries leave out, and the implementation refuses to be attached: nothing begun passes
for finished.
"""

from __future__ import annotations

import difflib
import keyword
import re
from pathlib import Path

from catalog.entry import read_table
from catalog.errors import UsageError
from catalog.files import write_atomic
from catalog.locations import entries_root, entry_paths, implementation_folders, shipped_root
from catalog.skeletons import Draft, entry_text, implementation_text
from catalog.taxonomy import Category

__all__ = ["LONGEST_SLUG", "Draft", "category_of", "entry_of", "is_slug", "scaffold", "to_finish"]

LONGEST_SLUG = 60
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_ARXIV = re.compile(r"\d{2}(0[1-9]|1[0-2])\.\d{4,5}", re.ASCII)
_KEYWORDS = {word.lower() for word in keyword.kwlist}


def scaffold(draft: Draft, root: Path | str | None = None, implementations: Path | str | None = None) -> list[Path]:
    """Write the entry and, unless its category is context, the implementation; the paths written, the entry's first.

    The entry is written last: stopped half-way, this leaves no entry, and doing the same again completes it.
    """
    folder = entries_root(root)
    category = category_of(draft.category)
    _check_slug(draft.slug, folder)
    _check_arxiv(draft.arxiv, folder)
    texts = {folder / category / f"{draft.slug}.toml": entry_text(draft)}
    if category is not Category.CONTEXT:
        package = _package(folder, implementations)
        texts[package / category / f"{draft.slug.replace('-', '_')}.py"] = implementation_text(draft)
    for path, text in texts.items():
        _check_free(path, text)
    for path in reversed(texts):
        write_atomic(path, texts[path])
    return list(texts)


def to_finish(slug: str) -> str:
    """What is left to do with an entry only begun, in words for people."""
    return (
        f"next: fill in the blanks; peft-catalog lint {slug} says what is missing\n"
        "      until the line draft = true is removed, queries leave the entry out"
    )


def is_slug(text: str) -> bool:
    """Whether this may name an entry, and so a file and a Python module."""
    return bool(_SLUG.fullmatch(text)) and len(text) <= LONGEST_SLUG and text.replace("-", "_") not in _KEYWORDS


def entry_of(arxiv: str, root: Path | str | None = None) -> Path | None:
    """The file of the entry, or of its draft, that has this arXiv id."""
    folder = entries_root(root)
    paths = entry_paths(folder) if folder.is_dir() else []
    return next((path for path in paths if read_table(path).get("arxiv") == arxiv), None)


def category_of(word: str) -> Category:
    """The category that a word names; UsageError with the near ones."""
    if word not in Category.words():
        near = difflib.get_close_matches(word.lower(), Category.words(), n=1)
        raise UsageError(
            f"{word!r} is not a category",
            allowed=Category.words(),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return next(category for category in Category if category == word)


def _check_slug(slug: str, folder: Path) -> None:
    if not is_slug(slug):
        allowed = "lower-case letters, digits and single dashes, such as p-tuning-v2"
        near = re.sub(r"[^a-z0-9]+", "-", slug.lower()).strip("-")
        hint = f"did you mean {near}?" if near != slug and is_slug(near) else None
        raise UsageError(f"{slug!r} cannot be a slug", allowed=allowed, hint=hint)
    for path in entry_paths(folder) if folder.is_dir() else []:
        if path.stem == slug:
            raise UsageError(
                f"there is an entry {slug} already", where=str(path), hint="edit it, or choose another slug"
            )


def _check_arxiv(arxiv: str | None, folder: Path) -> None:
    if arxiv is None:
        return
    if not _ARXIV.fullmatch(arxiv):
        bare = re.search(r"\d{4}\.\d{4,5}", arxiv)
        hint = f"did you mean {bare.group(0)}?" if bare else None
        raise UsageError(f"{arxiv!r} is not an arXiv id", allowed="YYMM.number, such as 2106.09685", hint=hint)
    path = entry_of(arxiv, folder)
    if path is not None:
        raise UsageError(f"arXiv {arxiv} has an entry already: {path.stem}", where=str(path))


def _check_free(path: Path, text: str) -> None:
    """UsageError for a file that is there already, unless it is what would be written: then this was begun before."""
    if path.exists() and path.read_bytes() != text.encode():
        raise UsageError("the file exists already, and is not overwritten", where=str(path), hint="choose another slug")


def _package(folder: Path, implementations: Path | str | None) -> Path:
    """The package that takes the implementation: given, else beside the entries, else the one of this checkout."""
    if implementations is not None:
        return Path(implementations)
    shipped = folder.resolve() == shipped_root().resolve()
    found = next(iter(implementation_folders()), None) if shipped else folder.parent / "reference_impls"
    if found is None or "site-packages" in found.parts or "site-packages" in folder.parts:
        raise UsageError(
            "entries are written in a checkout of the repository, not in an installed package",
            where=str(folder),
            hint="run this in a checkout, or give --root FOLDER",
        )
    return found
