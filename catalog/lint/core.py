"""What every linter sees and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from catalog.entry import Entry
from catalog.lists_data import SourceList, load_lists
from catalog.locations import implementation_folders


@dataclass(frozen=True, order=True)
class Finding:
    """One fault: where it is, what was found, what is allowed."""

    file: str
    key: str
    rule: str
    message: str
    value: str | None = None
    allowed: str | None = None
    hint: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        """The finding as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        found = f"; found {self.value}" if self.value is not None else ""
        allowed = f"; allowed: {self.allowed}" if self.allowed else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{self.file}: {self.key}: {self.message}{found}{allowed}{hint} [{self.rule}]"


@dataclass(frozen=True)
class EntryFile:
    """A valid entry and the file it was read from."""

    path: Path
    entry: Entry

    @property
    def name(self) -> str:
        """The file as findings name it: folder and file name."""
        return f"{self.path.parent.name}/{self.path.name}"

    def finding(
        self, rule: str, key: str, message: str, value: object = None, allowed: str | Iterable[str] | None = None
    ) -> Finding:
        """A fault of this file."""
        words = allowed if allowed is None or isinstance(allowed, str) else ", ".join(allowed)
        return Finding(self.name, key, rule, message, None if value is None else shorten(value), words)


@dataclass(frozen=True)
class Collection:
    """All entries that are linted together, and what they refer to."""

    files: tuple[EntryFile, ...]
    lists: tuple[SourceList, ...] = ()
    implementations: tuple[Path, ...] = ()
    drafts: tuple[Path, ...] = ()
    """Files of entries only begun, which may have an implementation only begun."""
    complete: bool = False
    """Whether the entries are to account for the lists, as the shipped ones are."""

    @classmethod
    def shipped(cls, files: Iterable[EntryFile], drafts: Iterable[Path] = ()) -> Collection:
        """The entries that come with the program: its implementations are theirs, and they account for its lists."""
        return cls(tuple(files), load_lists(), implementation_folders(), tuple(drafts), complete=True)

    @classmethod
    def foreign(cls, files: Iterable[EntryFile], drafts: Iterable[Path] = ()) -> Collection:
        """Entries of another folder, which may speak of the lists shipped with the program."""
        return cls(tuple(files), load_lists(), drafts=tuple(drafts))

    @cached_property
    def slugs(self) -> dict[str, EntryFile]:
        """Slug to file."""
        return {file.entry.slug: file for file in self.files}

    def implementation(self, entry: Entry) -> Path | None:
        """The file that implements an entry, if there is one."""
        return self.implementation_of(entry.category, entry.slug)

    def implementation_of(self, category: str, slug: str) -> Path | None:
        """The file that implements what has this category and slug, if there is one."""
        name = f"{slug.replace('-', '_')}.py"
        paths = (folder / category / name for folder in self.implementations)
        return next((path for path in paths if path.is_file()), None)


Linter = Callable[[Collection], Iterator[Finding]]


def shorten(value: object) -> str:
    """A value as shown to a person, on one line and not too long."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
