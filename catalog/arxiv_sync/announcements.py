"""arXiv's calendar: when papers are announced, and how many announcements went by unseen.

Announced at 20:00 in New York from Sunday to Thursday, whatever was submitted until 14:00 of the same day (on Sunday:
of the Friday before); https://info.arxiv.org/help/availability.html. On holidays there is none, and papers wait for the
next one. arXiv names its holidays year by year; these are the ones that come every year, and its days off between the
years. A holiday too many makes the alarm a day late, one too few a day early: that is why two must be missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

NEW_YORK = ZoneInfo("America/New_York")
ANNOUNCED = time(20)
DEADLINE = time(14)
MISSED = 2
"""Announcements missed from which what is known counts as stale."""
MOST = 100
"""Missed announcements that are counted one by one."""
GRACE = timedelta(hours=12)
"""Between an announcement and its being there for programs."""
_SILENT = (4, 5)  # Friday and Saturday evening
_SUNDAY = 6


def is_holiday(day: date) -> bool:
    """Whether arXiv announces nothing on the evening of this day, though the weekday would have it."""
    fixed = {(1, 1), (6, 19), (7, 4), (12, 24), (12, 25), (12, 26), (12, 31)}
    if (day.month, day.day) in fixed:
        return True
    nth = (day.day - 1) // 7 + 1
    monday, thursday, last = day.weekday() == 0, day.weekday() == 3, (day + timedelta(days=7)).month != day.month
    return (
        (monday and day.month == 1 and nth == 3)  # Martin Luther King Jr. Day
        or (monday and day.month == 5 and last)  # Memorial Day
        or (monday and day.month == 9 and nth == 1)  # Labor Day
        or (thursday and day.month == 11 and nth == 4)  # Thanksgiving
    )


def announcements(first: datetime) -> Iterator[datetime]:
    """The moments of announcement from ``first`` on, in UTC, without end."""
    day = first.astimezone(NEW_YORK).date()
    while True:
        moment = datetime.combine(day, ANNOUNCED, NEW_YORK).astimezone(UTC)
        if moment >= first and day.weekday() not in _SILENT and not is_holiday(day):
            yield moment
        day += timedelta(days=1)


def announced(submitted: datetime) -> datetime:
    """When a paper submitted at this moment is announced, at the earliest."""
    for moment in announcements(submitted):
        if submitted <= _deadline(moment):
            return moment
    raise AssertionError("announcements have no end")


def missed(newest: datetime, now: datetime) -> list[datetime]:
    """Announcements that programs could have seen by now, after the one that brought the newest paper seen.

    MOST of them at most.
    """
    found: list[datetime] = []
    for moment in announcements(announced(newest) + timedelta(seconds=1)):
        if moment + GRACE > now:
            return found
        found.append(moment)
        if len(found) == MOST:
            return found
    raise AssertionError("announcements have no end")


def _deadline(moment: datetime) -> datetime:
    """The last submission that an announcement takes; on Sunday that of Friday."""
    day = moment.astimezone(NEW_YORK).date()
    back = 2 if day.weekday() == _SUNDAY else 0
    return datetime.combine(day - timedelta(days=back), DEADLINE, NEW_YORK).astimezone(UTC)
