"""Harvests through the command line: what is stored, what is asked for, what is said, and what failures cost."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

import catalog
from catalog.locations import shipped_root
from tests.conftest import Ask
from tests.standin import StandIn
from tests.standin.oai import failure
from tests.standin.papers import Paper, catalogued, invented

LORA = "2106.09685"
FIRST = ("harvest", "--from", "2005-09-16", "--json")
NEXT = ("harvest", "--json")
PAPERS = tuple(invented(10))
FOUND = Paper(
    arxiv="2601.00001",
    title="TinyLoRA: Low-Rank Adaptation with Few Parameters",
    authors=("Jo Ódd", "Ann Other, Jr."),
    abstract="We propose a parameter-efficient fine-tuning method, a variant of LoRA, for large language models.",
    versions=(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one entry and the catalog built from it, so that commands start quickly."""
    folder = tmp_path_factory.mktemp("small")
    text = (shipped_root() / "reparameterized" / "lora.toml").read_text("utf-8")
    (folder / "entries" / "reparameterized").mkdir(parents=True)
    entry = folder / "entries" / "reparameterized" / "lora.toml"
    entry.write_text(re.sub(r"(?m)^builds_on = .*$", "builds_on = []", text), "utf-8")
    catalog.open(folder / "catalog.sqlite", entries=folder / "entries").close()
    return folder


@pytest.fixture
def arxiv() -> Iterator[StandIn]:
    """Ten made-up papers and a candidate, four on a page."""
    with StandIn((*PAPERS, FOUND), page=4) as server:
        yield server


@pytest.fixture
def few(small: Path, arxiv: StandIn, ask_arxiv: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The same, for a catalog of one entry."""
    monkeypatch.setenv("PEFT_CATALOG_ENTRIES", str(small / "entries"))
    shutil.copy(small / "catalog.sqlite", tmp_path / "catalog.sqlite")
    return arxiv


def rows(folder: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as connection:
        return connection.execute(query).fetchall()


def statements(folder: Path) -> list[Any]:
    return rows(folder, "SELECT arxiv, version, source, datestamp, digest FROM arxiv_statement ORDER BY id")


def everything(folder: Path) -> list[Any]:
    """All that was learned, and when."""
    learned = "SELECT learned FROM follow WHERE kind = 'harvest'"
    tables = ("arxiv_statement", "arxiv_record", "candidate")
    return [rows(folder, learned), *(rows(folder, f"SELECT * FROM {table}") for table in tables)]


def asked(arxiv: StandIn) -> list[str]:
    """What each request began with: a day, or a token."""
    return [each.parameters.get("from") or each.parameters["resumptionToken"] for each in arxiv.log]


# What is stored.


def test_a_first_harvest(few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    answer = ask_arxiv(*FIRST)
    assert answer.code == 0
    said = json.loads(answer.out)
    assert {key: said[key] for key in ("pages", "records", "new", "changed", "deleted", "complete", "requests")} == {
        "pages": 3, "records": 11, "new": 11, "changed": 0, "deleted": 0, "complete": True, "requests": 3,
    }  # fmt: skip
    assert (said["newest"], said["complete_to"]) == ("2026-01-05T09:09:00Z", "2026-01-06")
    assert few.log[0].parameters == {
        "verb": "ListRecords", "metadataPrefix": "arXivRaw", "set": "cs", "from": "2005-09-16",
    }  # fmt: skip
    assert [sorted(each.parameters) for each in few.log[1:]] == [["resumptionToken", "verb"]] * 2
    assert {(row[2], row[3]) for row in statements(tmp_path)} == {("oai", "2026-01-06"), ("oai", "2026-01-03")}
    ((stored,),) = rows(tmp_path, f"SELECT record FROM arxiv_statement WHERE arxiv = '{FOUND.arxiv}'")
    record = json.loads(stored)
    assert [each["name"] for each in record["authors"]] == list(FOUND.authors)
    assert record["versions"] == [[1, "2026-01-02T03:04:05Z"]]


def test_candidates_come_into_the_inbox_once(few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    said = json.loads(ask_arxiv(*FIRST).out)["candidates"]
    assert (said["count"], [each["slug"] for each in said["best"]]) == (1, ["tinylora"])
    assert rows(tmp_path, "SELECT arxiv, source, state FROM candidate") == [(FOUND.arxiv, "harvest", "waiting")]
    assert json.loads(ask_arxiv("harvest", "--from", "2005-09-16", "--json").out)["candidates"]["count"] == 0


def test_nothing_new_writes_nothing(few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    ask_arxiv(*FIRST)
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as connection, connection:
        connection.execute("UPDATE follow SET learned = '2026-01-01T00:00:00Z'")
    before = everything(tmp_path)
    said = json.loads(ask_arxiv(*FIRST).out)
    assert (said["records"], said["new"], said["changed"]) == (11, 0, 0)
    assert everything(tmp_path) == before


def test_what_sync_knows_is_no_news_but_completed(arxiv: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    arxiv.put(*catalogued())
    ask_arxiv("sync")
    before = statements(tmp_path)
    said = json.loads(ask_arxiv(*FIRST).out)
    assert (said["records"], said["new"], said["changed"]) == (len(before) + 11, 11, 0)
    assert statements(tmp_path)[: len(before)] == before
    ((stored,),) = rows(tmp_path, f"SELECT record FROM arxiv_statement WHERE arxiv = '{LORA}'")
    assert json.loads(stored)["versions"]


def test_changed_records_keep_their_history(few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    ask_arxiv(*FIRST)
    one, two = PAPERS[:2]
    few.put(replace(one, comment="Withdrawn by the authors.", datestamp=date(2026, 11, 1)))
    few.put(two.revised(datetime(2026, 11, 2, 8, tzinfo=UTC), title="A new title"))
    said = json.loads(ask_arxiv(*NEXT).out)
    assert (said["new"], said["changed"], said["complete_to"]) == (0, 2, "2026-11-03")
    changed = "SELECT arxiv, version, state FROM arxiv_record WHERE updated > '2026-11' OR state <> 'listed'"
    assert rows(tmp_path, changed) == [(one.arxiv, 1, "withdrawn"), (two.arxiv, 2, "listed")]
    assert len(statements(tmp_path)) == 13


def test_a_deleted_record_and_one_that_comes_back(few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    ask_arxiv(*FIRST)
    gone = replace(PAPERS[0], deleted=True, datestamp=date(2026, 11, 1))
    few.put(gone, replace(PAPERS[1], arxiv="2601.99999", deleted=True, datestamp=date(2026, 11, 1)))
    said = json.loads(ask_arxiv(*NEXT).out)
    assert (said["new"], said["changed"], said["deleted"]) == (0, 0, 1)
    assert rows(tmp_path, "SELECT arxiv, title FROM arxiv_record WHERE state = 'deleted'") == [(gone.arxiv, gone.title)]
    assert statements(tmp_path)[-1][:4] == (gone.arxiv, 1, "oai", "2026-11-01")
    assert json.loads(ask_arxiv(*NEXT).out)["deleted"] == 0
    few.put(replace(PAPERS[0], datestamp=date(2026, 11, 5)))
    assert json.loads(ask_arxiv(*NEXT).out)["changed"] == 1
    assert rows(tmp_path, "SELECT arxiv FROM arxiv_record WHERE state = 'deleted'") == []


@pytest.mark.parametrize("kind", ["every record twice", "answer of the year 1", "answer from the future"])
def test_harmless_oddities(kind: str, few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    few.misbehave(kind, times=None)
    assert json.loads(ask_arxiv(*FIRST).out)["new"] == 11
    assert len(statements(tmp_path)) == 11
    started = datetime.now(UTC).strftime("%Y-%m-%dT%H")
    assert all(as_of[:13] <= started for (as_of,) in rows(tmp_path, "SELECT as_of FROM arxiv_statement"))
    assert all(as_of > "2026" for (as_of,) in rows(tmp_path, "SELECT as_of FROM arxiv_statement"))
    assert rows(tmp_path, "SELECT complete_to, token FROM harvest") == [("2026-01-06", None)]


def test_a_paper_from_the_future_is_not_the_newest(few: StandIn, ask_arxiv: Ask) -> None:
    few.put(replace(PAPERS[0], versions=(datetime(2099, 1, 1, tzinfo=UTC),), datestamp=date(2026, 1, 6)))
    assert json.loads(ask_arxiv(*FIRST).out)["newest"] == "2026-01-05T09:09:00Z"


def test_a_datestamp_from_the_future_does_not_skip_days(few: StandIn, ask_arxiv: Ask) -> None:
    few.page = 100
    few.misbehave("record with a datestamp in the future")
    assert json.loads(ask_arxiv(*FIRST).out)["complete_to"] == "2026-01-06"


# Where it goes on.


def test_windows_overlap(few: StandIn, ask_arxiv: Ask) -> None:
    ask_arxiv(*FIRST)
    late = replace(PAPERS[0], arxiv="2601.77777", datestamp=date(2026, 1, 4))
    few.put(late)
    few.log.clear()
    assert json.loads(ask_arxiv(*NEXT).out)["new"] == 1
    assert few.log[0].parameters["from"] == "2026-01-04"


def test_the_first_harvest_needs_a_day(few: StandIn, ask_arxiv: Ask) -> None:
    ask_arxiv(*FIRST)
    answer = ask_arxiv("harvest", "--set", "stat")
    assert (answer.code, "--from" in answer.err) == (2, True)
    assert len(few.log) == 3


def test_silence_is_success_and_moves_nothing(few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    ask_arxiv(*FIRST)
    before = rows(tmp_path, "SELECT complete_to FROM harvest")
    few.misbehave("no records match")
    answer = ask_arxiv(*NEXT)
    assert (answer.code, json.loads(answer.out)["records"]) == (0, 0)
    assert rows(tmp_path, "SELECT complete_to FROM harvest") == before


def test_a_list_that_ends_too_early_is_gone_on_with(few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    few.misbehave("last page without a token element")
    assert json.loads(ask_arxiv(*FIRST).out)["records"] == 4
    ask_arxiv(*NEXT)
    assert len(statements(tmp_path)) == 11


def test_an_old_window_does_not_set_the_harvest_back(few: StandIn, ask_arxiv: Ask) -> None:
    ask_arxiv(*FIRST)
    said = json.loads(ask_arxiv("harvest", "--from", "2025-12-30", "--until", "2026-01-03", "--json").out)
    assert (said["records"], said["until"], said["complete_to"]) == (1, "2026-01-03", "2026-01-06")


def test_days_between_two_harvests_are_told_of(few: StandIn, ask_arxiv: Ask) -> None:
    few.put(replace(PAPERS[0], datestamp=date(2026, 11, 20)))
    ask_arxiv("harvest", "--from", "2026-01-03", "--until", "2026-01-04")
    answer = ask_arxiv("harvest", "--from", "2026-11-01")
    assert "not harvested: 2026-01-03 to 2026-11-01; --from 2026-01-03 brings it" in answer.out


def interrupted(arxiv: StandIn, ask: Ask, pages: int = 2) -> str:
    """A harvest that failed after so many pages; what it says."""
    arxiv.misbehave("500", times=None, after=pages)
    answer = ask(*FIRST)
    arxiv.behave()
    arxiv.log.clear()
    assert answer.code == 3
    return answer.err


@pytest.mark.parametrize("command", [FIRST, NEXT])
def test_a_failed_harvest_goes_on(command: tuple[str, ...], few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    said = interrupted(few, ask_arxiv)
    assert "kept: 2 pages, 8 records; the same command goes on there" in said
    outcome = json.loads(ask_arxiv(*command).out)
    assert (outcome["earlier_pages"], outcome["pages"], outcome["records"]) == (2, 1, 3)
    assert len(few.log) == 1
    assert len(statements(tmp_path)) == 11
    assert rows(tmp_path, "SELECT pages, records, token FROM harvest") == [(3, 11, None)]


def test_another_window_needs_a_word(few: StandIn, ask_arxiv: Ask) -> None:
    interrupted(few, ask_arxiv)
    for window in (
        ["--from", "2026-01-01"],
        ["--from", "2005-09-16", "--until", "2026-01-06"],
        ["--until", "2026-01-01"],
    ):
        answer = ask_arxiv("harvest", *window)
        assert (answer.code, "--restart" in answer.err) == (2, True)
    assert json.loads(ask_arxiv("harvest", "--from", "2026-01-06", "--restart", "--json").out)["records"] == 10
    assert asked(few)[0] == "2026-01-06"


def test_restart_without_a_day_begins_the_same_window(few: StandIn, ask_arxiv: Ask) -> None:
    interrupted(few, ask_arxiv)
    assert json.loads(ask_arxiv("harvest", "--restart", "--json").out)["records"] == 11
    assert asked(few)[0] == "2005-09-16"


def test_an_expired_token_begins_the_window_again(few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    interrupted(few, ask_arxiv)
    few.oai.forget()
    answer = ask_arxiv(*NEXT)
    assert "begins again" in answer.err
    said = json.loads(answer.out)
    assert (said["records"], said["new"], said["changed"]) == (11, 3, 0)
    assert asked(few)[1] == "2005-09-16"
    assert len(statements(tmp_path)) == 11
    assert rows(tmp_path, "SELECT pages, records FROM harvest") == [(3, 11)]


def test_an_old_token_is_not_tried(few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    interrupted(few, ask_arxiv)
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as connection, connection:
        connection.execute("UPDATE harvest SET token_at = '2026-01-01T00:00:00Z'")
    assert json.loads(ask_arxiv(*NEXT).out)["records"] == 11
    assert asked(few)[0] == "2005-09-16"


def test_tokens_that_are_never_taken_end_the_harvest(few: StandIn, ask_arxiv: Ask) -> None:
    for _ in range(10):
        few.misbehave("expired resumption token", after=1)
    answer = ask_arxiv(*FIRST)
    assert (answer.code, "refuses the resumption tokens that it gave" in answer.err) == (3, True)
    assert len(few.log) == 8


# Misbehavior.


@pytest.mark.parametrize(
    "kind",
    [
        "503 with Retry-After from the harvest interface",
        "rate text with status 200",
        "truncated XML",
        "HTML with status 200",
        "connection reset",
        "list without records",
        "token of a megabyte",
        "entity bomb in a harvest",
    ],
)
def test_what_passes_is_asked_again(kind: str, few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    few.misbehave(kind, after=1)
    answer = ask_arxiv(*FIRST)
    assert (answer.code, "asking again" in answer.err) == (0, True)
    assert len(few.log) == 4
    assert len(statements(tmp_path)) == 11


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("record of another kind", "its metadata are of another kind"),
        ("record without versions", "its versions are missing"),
        ("record with a date that is none", "it has a date that is none"),
        ("record of another paper", "its metadata are those of another paper"),
        ("record without an id", "a record without an id"),
        ("record with an abstract of two megabytes", "its abstract has 2,00"),
        ("record of six thousand authors too many", "it has 12,00"),
    ],
)
def test_an_unreadable_record_costs_itself(kind: str, why: str, few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    few.misbehave(kind)
    answer = ask_arxiv(*FIRST)
    said = json.loads(answer.out)
    assert (answer.code, said["records"], said["new"], said["unusable"]["count"]) == (0, 11, 10, 1)
    assert why in said["unusable"]["first"][0]
    assert len(statements(tmp_path)) == 10


def test_a_record_without_a_datestamp_is_taken(few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    few.misbehave("record without a datestamp")
    assert json.loads(ask_arxiv(*FIRST).out)["new"] == 11


def test_pages_may_be_short(few: StandIn, ask_arxiv: Ask) -> None:
    few.misbehave("page of half the records", times=None)
    assert json.loads(ask_arxiv(*FIRST).out)["records"] == 2 + 2 + 1


def test_nothing_that_can_be_read_is_a_failure(few: StandIn, ask_arxiv: Ask) -> None:
    few.page = 10
    few.misbehave("records of another kind", times=None)
    answer = ask_arxiv(*FIRST)
    assert (answer.code, "a page of 10 records that cannot be read" in answer.err) == (3, True)


def test_a_page_that_leads_to_itself_is_a_failure(few: StandIn, ask_arxiv: Ask) -> None:
    few.oai.loops = True
    answer = ask_arxiv(*FIRST)
    assert (answer.code, "a page that leads to itself" in answer.err) == (3, True)
    assert len(few.log) == 6


def test_a_server_of_another_kind(few: StandIn, ask_arxiv: Ask) -> None:
    few.misbehave("error without a meaning")
    answer = ask_arxiv(*FIRST)
    assert (answer.code, "check --arxiv-url" in answer.err) == (3, True)


def test_what_a_server_says_does_not_steer_the_terminal(
    few: StandIn, ask_arxiv: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "\u009b31m\u202egnp"
    monkeypatch.setattr(few.oai, "reply", lambda parameters: failure("badArgument", f"no {evil}"))
    answer = ask_arxiv(*FIRST)
    assert (answer.code, "arXiv refuses the harvest: no" in answer.err) == (2, True)
    assert not set("\u009b\u202e") & set(answer.err)


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_what_records_say_does_not_steer_the_terminal(as_json: list[str], few: StandIn, ask_arxiv: Ask) -> None:
    few.put(replace(FOUND, title="Evil\u202eLoRA: \u009b[red]low-rank adaptation of LoRA"))
    few.put(replace(PAPERS[0], arxiv="2601\u202e.1"))
    answer = ask_arxiv("harvest", "--from", "2005-09-16", *as_json)
    assert answer.code == 0
    assert not set("\u009b\u202e") & set(answer.out + answer.err)


# What is said.


def test_a_harvest_for_people(few: StandIn, ask_arxiv: Ask) -> None:
    few.misbehave("record of another kind", after=1)
    answer = ask_arxiv("harvest", "--from", "2026-01-01")
    assert answer.code == 0
    for words in (
        "cs from 2026-01-01: 3 pages, 11 records",
        "10 new, 0 changed, 0 deleted, 1 unreadable",
        "its metadata are of another kind",
        "TinyLoRA: Low-Rank Adaptation with Few Parameters",
        "1 new candidate; next: peft-catalog inbox list",
        "newest paper: 2026-01-05T09:09:00Z",
        "newest change: 2026-01-06; the next harvest begins on 2026-01-04",
    ):
        assert words in answer.out


def test_status_knows_of_it(few: StandIn, ask_arxiv: Ask) -> None:
    interrupted(few, ask_arxiv)
    assert "last harvest         never" in ask_arxiv("status").out
    ask_arxiv(*NEXT)
    answer = ask_arxiv("status")
    assert "newest paper seen    2026-01-05T09:09:00Z" in answer.out
    assert "last harvest         never" not in answer.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "yesterday"], "is no day"),
        (["--from", "2026-02-30"], "is no day"),
        (["--from", "2026-01-02", "--until", "2026-01-01"], "lies before"),
        (["--from", "2026-01-02", "--set", "cs;drop"], "is no set of arXiv"),
        (["--from", "2026-01-02", "--set", "nothing"], "Set does not exist"),
        (["--from", "1991-01-01"], "start date too early"),
        (["--from", "2026-01-02", "--arxiv-url", "ftp://x"], "is no address"),
        (["--from", "2026-01-02", "--arxiv-url", "http://127.0.0.1:9"], "the connection failed"),
    ],
)
def test_bad_arguments(arguments: list[str], words: str, few: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    answer = ask_arxiv("harvest", *arguments)
    assert words in answer.err
    assert answer.code == (3 if "failed" in words else 2)
    assert rows(tmp_path, "SELECT * FROM harvest") == []


def test_a_token_too_long_for_an_address(few: StandIn, ask_arxiv: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    few.misbehave("414", after=1)
    answer = ask_arxiv(*FIRST)
    assert (answer.code, "too long" in answer.err) == (3, True)
