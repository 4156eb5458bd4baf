"""`peft-catalog enrich`, as people and programs use it."""

from __future__ import annotations

import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from catalog.enrichment import cache, client
from catalog.enrichment.sources import KEY_VARIABLE
from catalog.links.pace import Pace
from catalog.network.identity import CONTACT_VARIABLE
from tests.conftest import Answer, Ask
from tests.enrichment.conftest import HANGS_UP, NEVER, Indexes, Write, crossref, openalex

SECRET = "s3cretKey9876"


def proposals(answer: Answer) -> list[tuple[Any, ...]]:
    """Key, what the entry says, what the source says, source."""
    found = json.loads(answer.out)["proposals"]
    return [(each["key"], each["entry_says"], each["source_says"], each["source"]) for each in found]


def test_what_sources_know_is_proposed_and_no_entry_is_changed(indexes: Indexes, entry: Write, ask_own: Ask) -> None:
    path = entry("one")
    before = path.read_bytes()
    indexes.say("openalex", openalex())
    indexes.say("crossref", {"message": {"items": [crossref()]}})
    answer = ask_own("enrich", "--json")
    assert answer.code == 0
    assert proposals(answer) == [
        ("venue", None, "International Conference on Learning Representations (2022)", "openalex"),
        ("doi", None, "10.1000/abc", "openalex"),
        ("url", None, "https://publisher.org/one", "openalex"),
        ("venue", None, "Proceedings of the Conference on One (ONEC) (2022)", "crossref"),
        ("doi", None, "10.1000/abc", "crossref"),
    ]
    assert path.read_bytes() == before
    shown = ask_own("enrich")
    assert "5 proposals for 1 paper; no entry was changed" in shown.out
    assert "crossref: everything known from the last thirty days" in shown.out


def test_nothing_is_proposed_where_all_agree(indexes: Indexes, entry: Write, ask_own: Ask) -> None:
    entry("one", venue="ICLR 2022", doi="10.1000/abc", url="https://elsewhere.org")
    indexes.say("openalex", openalex())
    indexes.say(
        "crossref", {"message": crossref(**{"container-title": ["Lecture Notes in X", "Learning Representations"]})}
    )
    answer = ask_own("enrich", "--json")
    assert (answer.code, proposals(answer)) == (0, [])


def test_what_is_asked(indexes: Indexes, entry: Write, ask_own: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONTACT_VARIABLE, "me@example.org")
    entry("a", arxiv="2106.00001")
    entry("b", arxiv="2106.00002", doi="10.1000/a(b)<c>;1#2?3%4")
    entry("c", arxiv="")
    ask_own("enrich")
    assert indexes.requests("openalex") == ["works/doi:10.48550/arxiv.2106.00001", "works/doi:10.1000/a(b)<c>;1#2?3%4"]
    assert indexes.requests("crossref") == ["works", "works/10.1000/a(b)<c>;1#2?3%4", "works"]
    first = next(query for name, _, query, _ in indexes.asked if name == "crossref")
    assert first["query.bibliographic"] == ["On a"]
    for _, _, query, agent in indexes.asked:
        assert query["mailto"] == ["me@example.org"]
        assert agent.startswith("peft-catalog/")
        assert "api_key" not in query


def test_answers_are_kept_for_thirty_days_negative_ones_too(
    indexes: Indexes, entry: Write, ask_own: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry("one")
    ask_own("enrich", "--source", "openalex")
    ask_own("enrich", "--source", "openalex")
    assert len(indexes.asked) == 1
    indexes.say("openalex", openalex())
    assert len(proposals(ask_own("enrich", "--source", "openalex", "--refresh", "--json"))) == 3
    assert len(indexes.asked) == 2
    monkeypatch.setattr(cache, "GOOD_DAYS", -1)
    ask_own("enrich", "--source", "openalex")
    assert len(indexes.asked) == 3


def test_every_request_waits_for_its_turn(
    indexes: Indexes, entry: Write, ask_own: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    turns: list[str] = []

    class Counting(Pace):
        def __init__(self, seconds: float) -> None:
            made.append(seconds)
            super().__init__(0.0)

        async def turn(self, host: str) -> None:
            turns.append(host)
            await super().turn(host)

    monkeypatch.setattr(client, "SECONDS_APART", 1.5)
    monkeypatch.setattr(client, "Pace", Counting)
    entry("one")
    indexes.say("openalex", status=500)
    ask_own("enrich")
    assert made == [1.5, 1.5]
    assert len(turns) == len(indexes.asked) == client.TRIES + 1


def test_one_source_that_is_down_is_said_and_the_other_works(indexes: Indexes, entry: Write, ask_own: Ask) -> None:
    entry("a", arxiv="2106.00001")
    entry("b", arxiv="2106.00002")
    indexes.say("crossref", status=503)
    answer = ask_own("enrich")
    assert answer.code == 0
    assert "crossref: not reached (status 503); venues of 2 papers not compared" in answer.err
    assert len(indexes.requests("crossref")) == client.TRIES  # given up, and not asked about the second paper
    assert len(indexes.requests("openalex")) == 2


def test_no_source_that_answers_gives_exit_code_3_and_what_was_known(
    indexes: Indexes, entry: Write, ask_own: Ask
) -> None:
    entry("one")
    indexes.say("openalex", openalex())
    ask_own("enrich", "--source", "openalex")
    for source in ("openalex", "crossref"):
        indexes.say(source, status=500)
    answer = ask_own("enrich", "--refresh", "--json")
    assert answer.code == 3
    assert "no source answered" in answer.err
    assert len(proposals(answer)) == 3
    reports = {report["source"]: report for report in json.loads(answer.out)["sources"]}
    assert (reports["openalex"]["missing"], reports["crossref"]["missing"]) == (0, 1)


def test_failures_that_pass_are_asked_again(indexes: Indexes, entry: Write, ask_own: Ask) -> None:
    entry("one")
    indexes.say("openalex", status=429, Retry_After="0")
    indexes.then("openalex", status=502)
    indexes.then("openalex", openalex())
    answer = ask_own("enrich", "--source", "openalex", "--json")
    assert (answer.code, len(proposals(answer))) == (0, 3)
    assert len(indexes.asked) == 3


def test_a_source_that_asks_to_wait_for_long_is_given_up(indexes: Indexes, entry: Write, ask_own: Ask) -> None:
    entry("one")
    indexes.say("openalex", status=429, Retry_After="3600")
    assert ask_own("enrich", "--source", "openalex").code == 3
    assert len(indexes.asked) == 1


def test_sources_that_never_answer_or_never_end_are_given_up(
    indexes: Indexes, entry: Write, ask_own: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.1)
    entry("one")
    indexes.say("openalex", openalex(), X_Drip="slowly")
    indexes.say("crossref", status=NEVER)
    answer = ask_own("enrich", "--json")
    assert answer.code == 3
    reports = json.loads(answer.out)["sources"]
    assert [report["given_up"] for report in reports] == ["no answer in time"] * 2


@pytest.mark.parametrize("status", [200, 400, 403, 429, NEVER, HANGS_UP])
def test_the_key_is_sent_and_nowhere_seen(
    indexes: Indexes, entry: Write, ask_own: Ask, tmp_path: Path, status: int,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    monkeypatch.setattr(client, "TIMEOUT", 0.05 if status == NEVER else client.TIMEOUT)
    entry("one")
    echo = f"https://echo.org/?api_key={SECRET}"
    place = {"landing_page_url": echo, "source": {"display_name": f"Key {SECRET}", "type": "journal"}}
    indexes.say("openalex", openalex(locations=[place]), status=status, X_Echo=SECRET)
    with caplog.at_level(logging.INFO):
        answers = [ask_own("enrich"), ask_own("enrich", "--json", "--refresh")]
    assert all(query["api_key"] == [SECRET] for name, _, query, _ in indexes.asked if name == "openalex")
    assert all("api_key" not in query for name, _, query, _ in indexes.asked if name == "crossref")
    for answer in answers:
        assert SECRET not in answer.out + answer.err
    assert SECRET not in caplog.text
    with sqlite3.connect(tmp_path / "catalog.sqlite") as database:
        assert SECRET not in "\n".join(database.iterdump())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>", b"[]", b"null", b"[" * 100_000, b'{"title": 1e999}', b"\xff\xfe",
        b'{"publication_year": ' + b"9" * 5000, b'{"message": []}',
        b'{"doi": "10.1000/abc"}' + b" " * client.MOST_BYTES,
    ],
    ids=["empty", "html", "list", "null", "deep", "infinite", "no-text", "long-number", "no-message", "huge"],
)  # fmt: skip
def test_broken_answers_crash_nothing(indexes: Indexes, entry: Write, ask_own: Ask, body: bytes) -> None:
    entry("one")
    indexes.say("openalex", body)
    indexes.say("crossref", body)
    answer = ask_own("enrich", "--json")
    understood = body in (b'{"title": 1e999}', b'{"message": []}')  # by OpenAlex: a work of which nothing is known
    assert answer.code == (0 if understood else 3)
    assert proposals(answer) == []


def test_hostile_text_cannot_steer_the_terminal(indexes: Indexes, entry: Write, ask_own: Ask) -> None:
    entry("one")
    place = {"source": {"display_name": "ESC\x1b[2J\u202e[red]Venue \ud800", "type": "journal"}}
    indexes.say("openalex", openalex(locations=[place]))
    shown, document = ask_own("enrich"), ask_own("enrich", "--json")
    for answer in (shown, document):
        assert answer.code == 0
        for sign in ("\x1b", "\u202e"):
            assert sign not in answer.out + answer.err
    assert "[red]Venue" in shown.out
    assert "[red]Venue" in proposals(document)[0][2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--source", "scholar"), "openalex, crossref"), (("ones",), "did you mean one?")],
)
def test_wrong_arguments(indexes: Indexes, entry: Write, ask_own: Ask, arguments: tuple[str, ...], words: str) -> None:
    entry("one")
    answer = ask_own("enrich", *arguments)
    assert answer.code == 2
    assert words in answer.err
    assert not indexes.asked


@pytest.mark.parametrize("address", ["nowhere", "ftp://x", f"http://user:{SECRET}@host:port"])
def test_a_wrong_address_of_a_source_is_told_without_repeating_it(
    indexes: Indexes, entry: Write, ask_own: Ask, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    entry("one")
    monkeypatch.setenv("PEFT_CATALOG_OPENALEX_URL", address)
    answer = ask_own("enrich")
    assert answer.code == 2
    assert "PEFT_CATALOG_OPENALEX_URL" in answer.err
    assert address not in answer.err


def test_a_whole_run_is_noted(indexes: Indexes, entry: Write, ask_own: Ask, tmp_path: Path) -> None:
    entry("one")
    indexes.say("openalex", openalex())

    def noted() -> list[Any]:
        rows = sqlite3.connect(tmp_path / "catalog.sqlite").execute("SELECT kind, learned IS NULL, note FROM follow")
        return rows.fetchall()

    ask_own("enrich", "one")
    assert noted() == []
    ask_own("enrich", "--refresh")
    assert noted() == [("enrich", 1, "3 proposals")]
