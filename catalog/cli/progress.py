"""A progress bar on stderr for what waits for others: how far it is, and what it waits for just now."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from catalog.terminal import cell


class Waits:
    """The bar. ``quiet`` shows nothing; failures that are asked again are told in any case, off the bar."""

    def __init__(self, verb: str, total: int | None = None, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        hidden = quiet or not self._console.is_terminal
        self._progress = Progress(
            *columns,
            TextColumn("{task.fields[wait]}"),
            console=self._console,
            disable=hidden,
            transient=True,
        )
        self._task = self._progress.add_task(verb, total=total, wait="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def reached(self, done: int, total: int | None = None) -> None:
        """So much is done, of so much."""
        self._progress.update(self._task, completed=done, total=total, wait="")

    def waiting(self, seconds: float, why: str) -> None:
        """Show what is waited for."""
        left = f"{seconds:.0f} s " if seconds >= 0.5 else ""
        self._progress.update(self._task, wait=f"[dim]waiting {left}{cell(why)}[/]")

    def noticed(self, message: str) -> None:
        """Tell of a failure that is asked again."""
        self._console.print(f"[dim]{cell(message)}[/]", highlight=False, soft_wrap=True)
