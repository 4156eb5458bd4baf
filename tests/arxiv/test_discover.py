"""Searching for candidates, through the command line and against arXiv's stand-in."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ask
from tests.standin import StandIn
from tests.standin.papers import Paper


def made_up(number: int, title: str, abstract: str, days: int = 3) -> Paper:
    """A paper that was submitted some days ago."""
    when = datetime.now(UTC) - timedelta(days=days, minutes=number)
    return Paper(f"2611.{number:05d}", title, ("Ann One", "Bo Two"), abstract, (when,), ("cs.LG",))


TUNING = made_up(
    1,
    "TiltLoRA: Tilted Low-Rank Adaptation of Language Models",
    "We propose a parameter-efficient fine-tuning method, a low-rank adaptation of frozen language models.",
)
RADIO = made_up(2, "A LoRa gateway for LoRaWAN sensors", "Long range radio for the Internet of Things, called LoRa.")
OLD = replace(
    TUNING,
    arxiv="2601.00001",
    title="ElderLoRA: an Older Low-Rank Adaptation",
    versions=(datetime(2026, 1, 5, tzinfo=UTC),),
)


@pytest.fixture
def news(arxiv: StandIn) -> StandIn:
    """The stand-in with papers that the catalog does not have."""
    arxiv.put(TUNING, RADIO, OLD)
    return arxiv


def found(ask: Ask, *arguments: str) -> dict[str, Any]:
    """What a search found."""
    answer = ask("discover", *arguments, "--json")
    assert answer.code == 0, answer.err
    return dict(json.loads(answer.out))


def candidates(path: Path) -> list[tuple[str, str]]:
    """The inbox."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT arxiv, state FROM candidate ORDER BY 1").fetchall()


def test_new_papers_are_found_and_kept(news: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    outcome = found(ask_arxiv)
    assert [each["arxiv"] for each in outcome["new"]] == [TUNING.arxiv]
    assert candidates(tmp_path / "catalog.sqlite") == [(TUNING.arxiv, "waiting")]
    shown = ask_arxiv("inbox", "show", TUNING.arxiv).out
    assert "low-rank" in shown.lower()
    assert "We propose a parameter-efficient" in shown
    assert found(ask_arxiv)["new"] == []


def test_what_is_catalogued_is_left_out(news: StandIn, ask_arxiv: Ask) -> None:
    lora = news.papers["2106.09685"]
    news.put(replace(TUNING, arxiv="2611.00009", title=lora.title.upper()))
    outcome = found(ask_arxiv, "--since", "2021-01-01", "--query", "low-rank")
    assert outcome["catalogued"]["2611.00009"] == "lora"
    assert {each["arxiv"] for each in outcome["new"]} == {TUNING.arxiv, OLD.arxiv}


def test_the_window_of_the_first_search_is_a_month_and_later_ones_overlap(news: StandIn, ask_arxiv: Ask) -> None:
    today = datetime.now(UTC).date()
    assert found(ask_arxiv)["since"] in {str(today - timedelta(days=30 + late)) for late in (0, 1)}
    assert found(ask_arxiv)["since"] in {str(today - timedelta(days=14 + late)) for late in (0, 1)}


def test_what_was_rejected_never_comes_back(news: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    found(ask_arxiv)
    assert ask_arxiv("inbox", "reject", TUNING.arxiv, "no new mechanism").code == 0
    news.put(TUNING.revised(datetime.now(UTC), title="TiltLoRA 2: Low-Rank Adaptation, Tilted Twice"))
    outcome = found(ask_arxiv)
    assert (outcome["new"], outcome["rejected"] > 0) == ([], True)
    assert candidates(tmp_path / "catalog.sqlite") == [(TUNING.arxiv, "rejected")]


def test_an_accepted_candidate_is_a_draft_with_arxivs_facts(
    news: StandIn, ask_arxiv: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomllib

    from catalog.locations import shipped_root

    entries = tmp_path / "entries"
    entry = "reparameterized/lora.toml"
    (entries / entry).parent.mkdir(parents=True)
    text = (shipped_root() / entry).read_text("utf-8").replace('builds_on = ["houlsby-adapter"]', "builds_on = []")
    (entries / entry).write_text(text, "utf-8")
    monkeypatch.setenv("PEFT_CATALOG_ENTRIES", str(entries))
    found(ask_arxiv)
    answer = ask_arxiv("inbox", "accept", TUNING.arxiv, "--slug", "tilt-lora", "--category", "reparameterized")
    assert answer.code == 0, answer.err
    written = tomllib.loads((entries / "reparameterized/tilt-lora.toml").read_text("utf-8"))
    assert written["title"] == TUNING.title
    assert written["authors"] == list(TUNING.authors)
    assert written["arxiv"] == TUNING.arxiv
    assert written["published"] == f"{TUNING.versions[0]:%Y-%m-%d}"
    assert "We propose" not in (entries / "reparameterized/tilt-lora.toml").read_text("utf-8")
    assert ask_arxiv("query", "low-rank").code == 0  # a draft stops nobody
    assert found(ask_arxiv)["new"] == []


def test_pages_that_came_are_kept_when_the_last_one_fails(arxiv: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    for number in range(450):
        arxiv.put(
            replace(TUNING, arxiv=f"2611.{number:05d}", title=f"Method{number:03d}: Low-Rank Adaptation no. {number}")
        )
    arxiv.misbehave("truncated XML", times=None, after=2)
    answer = ask_arxiv("discover", "--query", "low-rank")
    assert answer.code == 3
    assert "no complete XML" in answer.err
    assert len(candidates(tmp_path / "catalog.sqlite")) == 400
    arxiv.behave()
    assert len(found(ask_arxiv, "--query", "low-rank")["new"]) == 50


def test_a_page_that_stays_short_is_kept_and_told(arxiv: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    for number in range(100):
        arxiv.put(
            replace(TUNING, arxiv=f"2611.{number:05d}", title=f"Method{number:03d}: Low-Rank Adaptation no. {number}")
        )
    arxiv.misbehave("short page", times=None)
    answer = ask_arxiv("discover", "--query", "low-rank")
    assert (answer.code, "a page of 50 papers instead of 100" in answer.err) == (3, True)
    assert len(candidates(tmp_path / "catalog.sqlite")) == 50


def test_finding_nothing_at_all_is_not_believed(news: StandIn, ask_arxiv: Ask) -> None:
    news.misbehave("empty page that says there is nothing", times=None)
    answer = ask_arxiv("discover")
    assert (answer.code, "which cannot be" in answer.err) == (3, True)
    assert "never synced" in ask_arxiv("status").out


def test_an_empty_first_page_is_asked_again(news: StandIn, ask_arxiv: Ask) -> None:
    news.misbehave("empty page that says there is nothing")
    assert [each["arxiv"] for each in found(ask_arxiv, "--query", "low-rank")["new"]] == [TUNING.arxiv]
    assert len(news.log) == 2


def test_a_query_of_ones_own(news: StandIn, ask_arxiv: Ask) -> None:
    outcome = found(ask_arxiv, "--query", 'abs:"frozen language models"')
    assert [each["arxiv"] for each in outcome["new"]] == [TUNING.arxiv]
    assert list(outcome["queries"].values()) == [1]
    asked = next(request for request in news.log if "search_query" in request.parameters)
    assert asked.parameters["search_query"].startswith('(abs:"frozen language models") AND submittedDate:[20')


def test_a_refused_query_is_the_users_mistake(news: StandIn, ask_arxiv: Ask) -> None:
    news.misbehave("error feed that names no id")
    answer = ask_arxiv("discover", "--query", "abs:((")
    assert (answer.code, "arXiv refuses the query: malformed request" in answer.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--query", "nonsense"], "neither"), (["--since", "soon"], "no day")]
)
def test_wrong_arguments(arguments: list[str], words: str, ask_arxiv: Ask) -> None:
    answer = ask_arxiv("discover", *arguments)
    assert (answer.code, words in answer.err) == (2, True)


def test_stored_queries_are_listed(ask_arxiv: Ask) -> None:
    answer = ask_arxiv("discover", "--list-queries")
    assert answer.code == 0
    assert "low-rank" in answer.out


def test_a_table_for_people(news: StandIn, ask_arxiv: Ask) -> None:
    answer = ask_arxiv("discover")
    assert "TiltLoRA" in answer.out
    assert "1 new candidate; next: peft-catalog inbox list" in answer.out
    assert "waiting in the inbox 1" in ask_arxiv("status").out
