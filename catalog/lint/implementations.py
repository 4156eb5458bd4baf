"""Entries and implementations are bound by name, in both directions."""

from __future__ import annotations

from collections.abc import Iterator

from catalog.lint.core import Collection, Finding
from catalog.taxonomy import Category, Kind


def no_implementation_is_true(collection: Collection) -> Iterator[Finding]:
    """An entry that says why it has no implementation has none, and is no method."""
    for file in collection.files:
        reason = file.entry.no_implementation
        if reason is None:
            continue
        path = collection.implementation(file.entry)
        if path is not None:
            message = f"is contradicted by {path.parent.name}/{path.name}"
            yield file.finding("no-implementation-is-true", "no_implementation", message, reason, "leave the key out")
        elif file.entry.kind is Kind.METHOD:
            message = "is given for a method"
            kinds = [word for word in Kind.words() if word != Kind.METHOD]
            yield file.finding("no-implementation-is-true", "no_implementation", message, reason, kinds)


def implemented_is_described(collection: Collection) -> Iterator[Finding]:
    """An entry with an implementation says what that rests on, how it is undone and what it is shown on."""
    for file in collection.files:
        entry = file.entry
        if collection.implementation(entry) is None:
            continue
        blanks = {
            "fidelity": entry.fidelity is None,
            "reversibility": entry.reversibility is None,
            "claims.backbones": not entry.claim_backbones,
        }
        for key in (key for key, blank in blanks.items() if blank):
            message = "is missing beside an implementation"
            yield file.finding("implemented-is-described", key, message, "nothing", "see peft-catalog schema")


def implementation_has_entry(collection: Collection) -> Iterator[Finding]:
    """Every implementation belongs to an entry, or the draft of one, of the same name and category.

    Files with a leading underscore are parts of others.
    """
    bound = {collection.implementation(file.entry) for file in collection.files}
    bound |= {collection.implementation_of(path.parent.name, path.stem) for path in collection.drafts}
    for folder in collection.implementations:
        for category in Category:
            for path in sorted((folder / category).glob("*.py")):
                if not path.name.startswith("_") and path not in bound:
                    yield Finding(
                        f"{folder.name}/{category}/{path.name}",
                        "file",
                        "implementation-has-entry",
                        "no entry is bound to this implementation",
                        None,
                        f"an entry {category}/{path.stem.replace('_', '-')}.toml",
                    )
