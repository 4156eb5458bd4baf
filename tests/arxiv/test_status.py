"""Fresh or stale: arXiv's calendar, and what a person and an exit code see."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.arxiv_sync.announcements import NEW_YORK, announced, announcements, is_holiday, missed
from tests.conftest import Ask
from tests.standin import StandIn


def eastern(text: str) -> datetime:
    """A moment in New York."""
    return datetime.fromisoformat(text).replace(tzinfo=NEW_YORK)


@pytest.mark.parametrize(
    ("submitted", "expected"),
    [
        ("2026-03-03 13:59", "2026-03-03 20:00"),  # Tuesday before the deadline
        ("2026-03-03 14:01", "2026-03-04 20:00"),  # Tuesday after it
        ("2026-03-05 14:01", "2026-03-08 20:00"),  # Thursday afternoon: Sunday
        ("2026-03-06 13:59", "2026-03-08 20:00"),  # Friday before the deadline: Sunday
        ("2026-03-06 14:01", "2026-03-09 20:00"),  # Friday after it: Monday
        ("2026-03-08 10:00", "2026-03-09 20:00"),  # Sunday: Monday
        ("2026-11-25 15:00", "2026-11-29 20:00"),  # the day before Thanksgiving: Sunday
        ("2026-12-23 15:00", "2026-12-27 20:00"),  # before Christmas
    ],
)
def test_when_a_paper_is_announced(submitted: str, expected: str) -> None:
    assert announced(eastern(submitted)) == eastern(expected)


def test_the_holidays_of_2023_that_come_every_year() -> None:
    listed = {date(2023, 1, 16), date(2023, 6, 19), date(2023, 7, 4), date(2023, 9, 4), date(2023, 11, 23)}
    assert all(map(is_holiday, listed | {date(2023, 12, 25)}))
    assert not any(map(is_holiday, [date(2023, 2, 20), date(2023, 10, 9), date(2023, 11, 10), date(2023, 11, 24)]))


def test_weekends_are_silent() -> None:
    found = announcements(datetime(2026, 3, 1, tzinfo=UTC))
    days = {next(found).astimezone(NEW_YORK).strftime("%a") for _ in range(50)}
    assert days == {"Sun", "Mon", "Tue", "Wed", "Thu"}


@pytest.mark.parametrize(
    ("newest", "now", "expected"),
    [
        ("2026-03-05 10:00", "2026-03-08 19:00", 0),  # over a weekend nothing is missed
        ("2026-03-05 10:00", "2026-03-09 06:00", 0),  # Sunday's is not twelve hours old
        ("2026-03-05 10:00", "2026-03-09 09:00", 1),
        ("2026-03-05 10:00", "2026-03-10 09:00", 2),
        ("2026-11-25 10:00", "2026-11-29 21:00", 0),  # over Thanksgiving and the weekend
        ("2026-03-05 10:00", "2026-03-01 00:00", 0),  # from the future
        ("2020-03-05 10:00", "2026-03-01 00:00", 100),
    ],
)
def test_what_was_missed(newest: str, now: str, expected: int) -> None:
    assert len(missed(eastern(newest), eastern(now))) == expected


@given(st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)), st.integers(0, 40 * 24))
def test_missing_only_grows(newest: datetime, hours: int) -> None:
    start = newest.replace(tzinfo=UTC)
    now = start + timedelta(hours=hours)
    assert len(missed(start, now)) <= len(missed(start, now + timedelta(hours=7)))
    assert announced(start) > start


def ago(**distance: float) -> datetime:
    """A moment before now."""
    return datetime.now(UTC) - timedelta(**distance)


def test_never_synced(ask_arxiv: Ask) -> None:
    answer = ask_arxiv("status")
    assert (answer.code, "never synced" in answer.out) == (1, True)


def test_fresh_and_stale(arxiv: StandIn, ask_arxiv: Ask) -> None:
    old = arxiv.papers["2106.09685"]
    newest = replace(old, arxiv="2611.00001", versions=(ago(minutes=5),), categories=("cs.LG",))
    arxiv.put(newest)
    ask_arxiv("sync")
    answer = ask_arxiv("status", "--json")
    found = json.loads(answer.out)
    assert (answer.code, found["stale"], found["missed"]) == (0, False, [])
    assert found["newest"] == newest.versions[0].strftime("%Y-%m-%dT%H:%M:%SZ")
    assert found["known"] == found["papers"]
    assert "fresh: " in ask_arxiv("status").out


def test_the_newest_paper_seen_never_becomes_older(arxiv: StandIn, ask_arxiv: Ask) -> None:
    newest = replace(arxiv.papers["2106.09685"], arxiv="2611.00001", versions=(ago(days=1),), categories=("cs.LG",))
    arxiv.put(newest)
    ask_arxiv("sync")
    del arxiv.papers[newest.arxiv]
    ask_arxiv("sync")
    assert json.loads(ask_arxiv("status", "--json").out)["newest"] == newest.versions[0].strftime("%Y-%m-%dT%H:%M:%SZ")
    arxiv.misbehave("500", times=None, after=1)
    ask_arxiv("sync")
    assert json.loads(ask_arxiv("status", "--json").out)["newest"] == newest.versions[0].strftime("%Y-%m-%dT%H:%M:%SZ")


def test_runs_that_succeed_and_see_nothing_new_are_stale(arxiv: StandIn, ask_arxiv: Ask) -> None:
    """Silent staleness: every run is fine, and the newest paper is as old as a month ago."""
    for paper in list(arxiv.papers.values()):
        if paper.versions[0] > ago(days=30):
            del arxiv.papers[paper.arxiv]
    arxiv.put(replace(arxiv.papers["2106.09685"], arxiv="2610.00001", versions=(ago(days=30),), categories=("cs.LG",)))
    assert ask_arxiv("sync").code == 0
    answer = ask_arxiv("status")
    assert answer.code == 1
    assert "stale: " in answer.out
    assert "were missed" in answer.out


def test_a_sync_without_a_newest_paper_is_complete_and_says_so(arxiv: StandIn, ask_arxiv: Ask) -> None:
    arxiv.misbehave("500", times=None, after=1)
    answer = ask_arxiv("sync")
    assert answer.code == 0
    assert "the newest announcement is not known" in answer.out
    arxiv.behave()
    assert json.loads(ask_arxiv("status", "--json").out)["stale"] is True
