"""One request at a time, at a distance, over all commands and processes of a user.

A lock on disk is held while a request is under way, and the moment from which the next one may start is kept beside it;
the system gives the lock back when a process dies, and the moment stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from catalog.errors import CatalogError, Unreachable
from catalog.files import write_atomic

LONGEST = 3600.0
"""Seconds that a moment on disk can lie ahead; one further away comes from a clock that was set back."""
STEP = 0.25
"""Seconds between two looks at a lock or a clock, so that a person sees the wait and can interrupt it."""

Waiting = Callable[[float, str], None]
"""Told how many seconds are left and why."""


def ignore(seconds: float, why: str) -> None:
    """For callers that show no wait."""


class Pace:
    """Turns to ask a site. ``seconds`` lie between the end of one request and the start of the next."""

    def __init__(
        self,
        folder: Path,
        site: str,
        seconds: float,
        patience: float,
        waiting: Waiting = ignore,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.seconds = seconds
        self.patience = patience
        self.waiting = waiting
        self._now = now
        self._sleep = sleep
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CatalogError(
                f"cannot keep the time of the last request: {error.strerror}",
                where=str(folder),
                hint="set PEFT_CATALOG_STATE to a folder you may write to",
            ) from error
        self._lock = FileLock(folder / f"{site}.lock")
        self._file = folder / f"{site}.free-at"

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn and hold it; Unreachable when arXiv wants a longer wait than patience allows."""
        self._acquire()
        try:
            self._wait()
            self.hold(self.seconds)
            yield
        finally:
            self.hold(self.seconds)
            self._lock.release()

    def hold(self, seconds: float) -> None:
        """Nobody asks for at least so many seconds from now on, whatever process it is."""
        write_atomic(self._file, repr(self._now() + min(max(seconds, self._left()), LONGEST)))

    def _acquire(self) -> None:
        started = self._now()
        while True:
            try:
                self._lock.acquire(timeout=STEP, poll_interval=STEP / 10)
                return
            except Timeout:
                waited = self._now() - started
                if waited > self.patience:
                    raise Unreachable(
                        "another command has been asking arXiv all the time",
                        hint="let it finish, or stop it",
                    ) from None
                self.waiting(0.0, "for another command that is asking arXiv")
            except OSError as error:
                raise CatalogError(f"cannot lock: {error.strerror}", where=self._lock.lock_file) from error

    def _left(self) -> float:
        """Seconds until the next request may start."""
        try:
            left = float(self._file.read_text("ascii")) - self._now()
        except FileNotFoundError:
            return 0.0
        except (OSError, ValueError):
            return self.seconds
        return max(left, 0.0) if left <= LONGEST else self.seconds

    def _wait(self) -> None:
        left = self._left()
        if left > self.patience:
            raise Unreachable(
                f"arXiv asked not to be asked for another {left / 60:.0f} minutes", hint="try again after that"
            )
        while left > 0:
            self.waiting(left, "between requests")
            self._sleep(min(left, STEP))
            left = self._left()
