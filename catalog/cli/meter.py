"""A progress display of what has no known end: pages, records, and how many a second."""

from __future__ import annotations

from time import monotonic

from catalog.cli.progress import Waits


class Meter(Waits):
    """Shows how much has arrived since it was made, and what is waited for."""

    def __init__(self, verb: str, *, quiet: bool = False) -> None:
        super().__init__(verb, quiet=quiet)
        self._verb = verb
        self._started = monotonic()

    def arrived(self, pages: int, records: int) -> None:
        """So many records have come, on so many pages."""
        rate = records / max(monotonic() - self._started, 0.001)
        self._progress.update(
            self._task, completed=records, description=f"{self._verb}, page {pages:,}, {rate:,.0f} records/s", wait=""
        )
