"""How long to wait before asking again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True)
class Backoff:
    """Waits that double from ``first`` seconds to ``longest``, each lengthened by up to a half at random.

    The random part keeps programs that failed together from coming back together.
    """

    first: float
    longest: float = 300.0
    chance: random.Random = field(default_factory=random.Random, compare=False)

    def seconds(self, failures: int, told: float | None = None) -> float:
        """The wait after so many failures in a row; never shorter than what the server asked for."""
        wait = min(self.longest, self.first * 2 ** (failures - 1)) * self.chance.uniform(1.0, 1.5)
        return max(wait, told or 0.0)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None without a usable one."""
    given = headers.get("retry-after", "").strip()
    if given.isascii() and given.isdigit():
        return float(given)
    try:
        moment = parsedate_to_datetime(given)
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
