"""One exception tree for everything a person can get wrong; the command line prints these and never a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class CatalogError(Exception):
    """Something a person can mend: what is wrong, where, what is allowed, what to do next.

    `exit_code` is 2 for bad input or usage, 1 for "checked, and problems were found", 3 for what lies outside.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        allowed: str | Iterable[str] | None = None,
        hint: str | None = None,
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.allowed = allowed if allowed is None or isinstance(allowed, str) else ", ".join(allowed)
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        """The whole block, one labelled line for each part that is known."""
        labelled = (("where", self.where), ("allowed", self.allowed), ("next", self.hint))
        return "\n".join([self.message, *(f"  {label}: {text}" for label, text in labelled if text)])


@dataclass(frozen=True)
class Problem:
    """One fault of an entry file: the key it sits at, the value found, and what would be accepted."""

    key: str
    message: str
    value: str | None = None
    allowed: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        parts = [f"{self.key}: {self.message}"]
        if self.value is not None:
            parts.append(f"found {self.value}")
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if self.hint:
            parts.append(self.hint)
        return "; ".join(parts)


class EntryError(CatalogError):
    """An entry file that cannot be read or does not follow the schema; `problems` names every fault."""

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        allowed: str | Iterable[str] | None = None,
        hint: str | None = None,
        exit_code: int | None = None,
        problems: tuple[Problem, ...] = (),
    ) -> None:
        super().__init__(message, where=where, allowed=allowed, hint=hint, exit_code=exit_code)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"  - {problem}" for problem in self.problems)])


class UnknownEntry(CatalogError):
    """No entry has this slug or alias."""


class UsageError(CatalogError):
    """A command or function was called with arguments that make no sense together."""


class FormulaError(CatalogError):
    """A parameter formula that is not arithmetic over known names."""


class StoreError(CatalogError):
    """The database cannot be opened, built or upgraded."""


class Unreachable(CatalogError):
    """Something outside the program failed: no connection, no usable answer, too many requests."""

    exit_code = 3
