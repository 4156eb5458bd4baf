"""Records are taken into the inbox once, whatever their order, and what was decided stands."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, event

from catalog.arxiv_sync.record import State as Listed
from catalog.database import reading, writing
from catalog.discovery import inbox as decisions
from catalog.discovery.candidates import TABLE, State
from catalog.discovery.sieve import Found, Sieve
from catalog.models import CandidateRow
from catalog.scaffold import Draft, scaffold
from tests.discovery.conftest import LATER, NOW, inbox, record, unrelated
from tests.discovery.taking import take_in


@pytest.fixture
def take(engine: Engine, root: Path):
    """Takes pages of records into the inbox."""
    return lambda *pages, now=NOW: take_in(engine, pages, source="test", now=now, root=root)


def test_the_columns_are_those_of_the_model():
    assert set(TABLE.c.keys()) == set(CandidateRow.model_fields)


def test_a_new_paper_becomes_a_candidate_with_its_reasons(take, engine):
    found = take([record(1), unrelated(2)])
    (candidate,) = found.new
    assert (found.seen, found.below, found.known, found.catalogued) == (2, 1, 0, {})
    assert inbox(engine) == {candidate.arxiv: candidate}
    assert (candidate.slug, candidate.category, candidate.state) == ("method1", "reparameterized", State.WAITING)
    assert (candidate.found, candidate.source, candidate.published) == (NOW, "test", "2026-01-15T12:00:00Z")
    assert candidate.score == sum(reason.points for reason in candidate.reasons)
    assert "low rank adaptation" in {word for word, _ in candidate.words}


def test_new_ones_are_told_with_the_highest_score_first(take):
    found = take(
        [record(1, title="Adapters"), record(2, abstract="")],
        [record(3, title="LoRA, Low-Rank Adaptation and Adapters")],
    )
    scores = [candidate.score for candidate in found.new]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3


def test_what_is_catalogued_is_left_out_by_number_and_by_title(take, engine):
    changed = "LoRA, Low Rank Adaption of Large Language Models"
    found = take([record(1, arxiv="2106.09685", title="Another Title"), record(2, title=changed)])
    assert found.catalogued == {"2106.09685": "lora", "2601.00002": "lora"}
    assert inbox(engine) == {}


def test_drafts_count_as_catalogued_whatever_they_lack(take, engine, root):
    scaffold(Draft("begun", "prompt", "2601.00001"), root)
    (root / "prompt" / "odd.toml").write_text("draft = true\narxiv = 7\ntitle = []\naliases = 1\n", encoding="utf-8")
    scaffold(Draft("titled", "prompt", title="Method2: Low-Rank Adaptation in Another Way"), root)
    assert take([record(1), record(2, title="Method2: Low Rank Adaptation in Another Way!")]).catalogued == {
        "2601.00001": "begun",
        "2601.00002": "titled",
    }
    assert inbox(engine) == {}


def test_a_name_of_the_catalog_is_not_suggested(take, root):
    scaffold(Draft("begun", "prompt", name="Method 2"), root)
    titles = ("LoRA: Something Else Entirely, with Adapters", "Method2: Low-Rank Adaptation in Another Way")
    found = take([record(number, title=title) for number, title in enumerate(titles, 1)])
    slugs = {candidate.arxiv: candidate.slug for candidate in found.new}
    assert slugs == {"2601.00001": "lora-2601-00001", "2601.00002": "method2"}
    again = take([record(3, title="method-2: Adapters for Language Models in General")])
    assert again.new[0].slug == "method-2-2601-00003"


def test_two_papers_of_one_name_get_two(take):
    titles = ("X: Adapters for Language Models in General", "X: Soft Prompts for Images")
    found = take([record(number, title=title) for number, title in enumerate(titles, 1)])
    assert sorted(candidate.slug for candidate in found.new) == ["x", "x-2601-00002"]


def test_what_was_rejected_never_comes_back(take, engine):
    take([record(1)])
    decisions.reject(engine, "2601.00001", "no method", now=NOW)
    before = inbox(engine)
    found = take([record(1), record(1, version=2, title="LoRA: A New Title")], now=LATER)
    assert (found.new, found.rejected) == ([], 2)
    assert inbox(engine) == before


@pytest.mark.parametrize("accepted", [False, True])
def test_a_newer_version_changes_what_is_said_and_not_what_was_decided(take, engine, accepted):
    take([record(1)])
    if accepted:
        decisions.mark_accepted(engine, "2601.00001", now=NOW)
    before = inbox(engine)["2601.00001"]
    found = take([record(1, version=2, title="Soft Prompts", abstract="")], now=LATER)
    after = inbox(engine)["2601.00001"]
    assert (len(found.new), len(found.updated)) == (0, 1)
    assert (after.title, after.version, after.score, after.category) == ("Soft Prompts", 2, 54.0, "prompt")
    assert (after.state, after.slug, after.found, after.decided) == (
        before.state,
        before.slug,
        before.found,
        before.decided,
    )
    assert take([record(1)]).known == 1
    assert inbox(engine)["2601.00001"] == after


def test_a_version_that_makes_no_candidate_changes_nothing(take, engine):
    take([record(1)])
    before = inbox(engine)
    found = take(
        [record(1, version=2, title="Magnets", abstract="Magnets"), record(1, version=3, state=Listed.DELETED)]
    )
    assert (found.below, found.updated, inbox(engine)) == (2, [], before)


def test_deleted_papers_and_odd_numbers_are_no_candidates(take, engine):
    take([record(1)])
    gone = {"state": Listed.DELETED, "title": "", "version": 2}
    found = take(
        [record(1, **gone), record(2, state=Listed.DELETED), record(3, arxiv="../x"), record(4, arxiv="٢٦٠١.٠٠٠٠١")]
    )
    assert (found.known, found.below, found.new) == (0, 4, [])
    assert list(inbox(engine)) == ["2601.00001"]
    assert inbox(engine)["2601.00001"].title


def test_a_page_without_news_writes_nothing(take, engine):
    take([record(1)])
    begun: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda c, cursor, statement, *_: begun.append(statement))
    take([record(1), unrelated(2)], [])
    assert not any(word in statement for statement in begun for word in ("IMMEDIATE", "INSERT", "UPDATE"))


def test_pages_before_an_interruption_are_kept(engine, root):
    def pages():
        yield [record(1)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_in(engine, pages(), source="test", now=NOW, root=root)
    assert list(inbox(engine)) == ["2601.00001"]


def test_progress_is_told_after_every_page(engine, root):
    seen: list[tuple[int, int]] = []

    def told(found: Found) -> None:
        seen.append((found.seen, len(found.new)))

    take_in(engine, [[record(1)], [unrelated(2)], [record(3)]], source="t", now=NOW, root=root, on_page=told)
    assert seen == [(1, 1), (2, 1), (3, 2)]


def test_what_others_decide_between_sifting_and_keeping_stands(engine, root):
    """A discover and a harvest run side by side, and somebody decides meanwhile."""
    one, other = Sieve(engine, root), Sieve(engine, root)
    mine = one.sift([record(1), record(2, title="Method3: Adapters for Language Models in General")])
    theirs = other.sift([record(1, version=2), record(3)])
    with writing(engine) as connection:
        other.keep(connection, theirs, source="other", now=NOW)
    decisions.reject(engine, "2601.00001", "no method", now=NOW)
    with writing(engine) as connection:
        one.keep(connection, mine, source="one", now=NOW)
    kept = inbox(engine)
    assert (kept["2601.00001"].state, kept["2601.00001"].version) == (State.REJECTED, 2)
    assert {kept["2601.00002"].slug, kept["2601.00003"].slug} == {"method3", "method3-2601-00002"}
    assert one.sift([record(1, version=3)]) == []
    assert one.found.rejected == 1


@pytest.mark.parametrize(("version", "rejected"), [(1, False), (3, True)])
def test_neither_an_older_version_nor_one_of_a_rejected_paper_is_kept(engine, root, version, rejected):
    one, other = Sieve(engine, root), Sieve(engine, root)
    mine = one.sift([record(1, version=version, title="LoRA: Another Title")])
    with writing(engine) as connection:
        other.keep(connection, other.sift([record(1, version=2)]), source="other", now=NOW)
    if rejected:
        decisions.reject(engine, "2601.00001", "no method", now=NOW)
    before = inbox(engine)
    with writing(engine) as connection:
        one.keep(connection, mine, source="one", now=LATER)
    assert inbox(engine) == before
    assert (one.found.new, one.found.updated) == ([], [])


def test_a_sieve_works_within_the_transaction_of_its_caller(engine, root):
    with writing(engine) as connection:
        sieve = Sieve(connection, root)
        sieve.keep(connection, sieve.sift([record(1)]), source="harvest", now=NOW)
        assert sieve.sift([record(1)]) == []
    with reading(engine) as connection:
        assert decisions.find(connection, "method1").source == "harvest"


PAPERS = [record(number, title=f"Name{number}: Low-Rank Adaptation of Kind {number}") for number in range(1, 6)]
PAPERS += [record(number, version=2, title=f"Second Title {number * 111}: LoRA") for number in range(1, 4)]
PAPERS += [record(3, version=3, title="Magnets", abstract=""), record(4, version=2, state=Listed.DELETED)]
PAPERS += [record(5, version=2, title="LoRA: Low-Rank Adaptation of Large Language Models")]
PAPERS += [unrelated(8), record(9, arxiv="2106.09685")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(PAPERS), st.integers(1, len(PAPERS)), st.lists(st.sampled_from(PAPERS), max_size=4))
def test_neither_order_nor_repetition_matters(engine, root, papers, size, again):
    def outcome(records: list, size: int) -> dict:
        with writing(engine) as connection:
            connection.execute(delete(TABLE))
        pages = [records[start : start + size] for start in range(0, len(records), size)]
        take_in(engine, pages, source="test", now=NOW, root=root)
        return {arxiv: candidate.as_judged() for arxiv, candidate in inbox(engine).items()}

    assert outcome([*papers, *again], size) == outcome(PAPERS, len(PAPERS))
    before = inbox(engine)
    repeated = take_in(engine, [papers], source="again", now=LATER, root=root)
    assert (repeated.new, repeated.updated, inbox(engine)) == ([], [], before)


def test_many_records_on_other_things_pass_quickly(engine, root):
    """Far below what it takes on an idle machine, where 5,000 records pass in a second and more."""
    chance = random.Random(0)
    words = [*unrelated(1).abstract.lower().replace(".", "").split(), "parameters", "low", "image", "prompt"]

    def text(length: int) -> str:
        return " ".join(chance.choices(words, k=length))

    page = [record(number, title=text(10), abstract=text(200)) for number in range(3000)]
    start = time.perf_counter()
    found = take_in(engine, [page], source="harvest", now=NOW, root=root)
    assert time.perf_counter() - start < 6
    assert found.below == found.seen == 3000
