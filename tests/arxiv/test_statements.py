"""Feeds read and statements kept, whatever they hold and in whatever order they come."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from catalog.arxiv_sync import feed as feeds
from catalog.arxiv_sync.archive import Statement, history, keep, news
from catalog.arxiv_sync.changes import Kind
from catalog.arxiv_sync.feed import RefusedRequest, read_feed
from catalog.arxiv_sync.record import LONGEST, Person, Record, State, UnusableRecord, checked, is_withdrawn, paragraphs
from catalog.arxiv_sync.sync import learn
from catalog.arxiv_sync.tex import decoded
from catalog.arxiv_sync.transport import Again, Answer
from catalog.database import migrate, open_engine, reading, writing
from tests.standin import atom
from tests.standin.papers import Paper

START = datetime(2021, 6, 17, 15, 30, tzinfo=UTC)
# What XML can hold, without the TeX that is decoded on purpose.
LETTERS = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="\\\ufffe\uffff")
WORDS = st.text(LETTERS, min_size=1, max_size=60).filter(lambda text: bool(text.split()))
PAPERS = st.builds(
    Paper,
    arxiv=st.integers(0, 99_999).map(lambda number: f"2106.{number:05d}"),
    title=WORDS,
    authors=st.lists(WORDS, min_size=1, max_size=4).map(tuple),
    abstract=WORDS,
    versions=st.integers(1, 4).map(lambda n: tuple(START + timedelta(days=30 * k) for k in range(n))),
    categories=st.lists(st.sampled_from(["cs.CL", "cs.LG", "stat.ML"]), min_size=1, unique=True).map(tuple),
    comment=st.none() | WORDS,
    journal_ref=st.none() | WORDS,
    doi=st.none() | WORDS,
)


def normal(text: str) -> str:
    """Text as records hold it."""
    import unicodedata

    return unicodedata.normalize("NFC", " ".join(text.split()))


@given(st.lists(PAPERS, max_size=5, unique_by=lambda paper: paper.arxiv), st.sampled_from(["present", "former"]))
def test_a_feed_is_read_as_it_was_written(papers: list[Paper], form: atom.Form) -> None:
    found = read_feed(Answer(200, {}, atom.feed(papers, len(papers), 0, 100, form)))
    assert (found.total, found.start, found.unusable) == (len(papers), 0, ())
    for record, paper in zip(found.records, papers, strict=True):
        assert (record.arxiv, record.version) == (paper.arxiv, len(paper.versions))
        assert record.title == normal(paper.title)
        assert record.names == tuple(normal(name).replace(". -", ".-") for name in paper.authors)
        assert record.abstract.split() == normal(paper.abstract).split()
        for name in ("comment", "journal_ref", "doi"):
            given_ = getattr(paper, name)
            assert getattr(record, name) == (None if given_ is None else normal(given_))
        assert record.categories == paper.categories
        assert Record.from_json(record.to_json()) == record


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_what_is_no_feed_is_asked_again(body: bytes) -> None:
    with pytest.raises(Again):
        read_feed(Answer(200, {}, body))


@given(PAPERS, st.data())
def test_a_feed_cut_anywhere_is_asked_again(paper: Paper, data: st.DataObject) -> None:
    body = atom.feed([paper], 1, 0, 1).rstrip()
    with pytest.raises(Again):
        read_feed(Answer(200, {}, body[: data.draw(st.integers(0, len(body) - 1))]))


@pytest.mark.parametrize("form", ["present", "former"])
def test_an_error_feed_says_why(form: atom.Form) -> None:
    with pytest.raises(RefusedRequest, match="incorrect id format for x"):
        read_feed(Answer(200, {}, atom.error("incorrect id format for x", form)))


def test_the_private_parser_of_the_package_is_where_it_was() -> None:
    assert callable(feeds._feed.parse)


# Words.


@given(st.text(max_size=80))
def test_decoding_tex_is_total_and_settles(text: str) -> None:
    once = decoded(text)
    if "\\" not in once:
        assert decoded(once) == once


@pytest.mark.parametrize(
    ("tex", "text"),
    [
        (r"Erd\H{o}s", "Erdős"),
        (r"{\'E}douard", "Édouard"),
        (r"M{\"u}ller", "Müller"),
        (r"na\"{\i}ve", "naïve"),
        (r"\v{S}ime\v{c}ek", "Šimeček"),
        (r"Paw{\l}owski", "Pawłowski"),
        (r"\O{}ster", "Øster"),
        (r"$\Delta$-LoRA of \'Eric", r"$\Delta$-LoRA of Éric"),
        (r"$\o$ of \'Eric", r"$\o$ of Éric"),
        (r"\cite{a} and {\bf b}", r"\cite{a} and {\bf b}"),
    ],
)
def test_tex_accents_are_letters(tex: str, text: str) -> None:
    assert decoded(tex) == text


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("This paper has been withdrawn by the authors", True),
        ("Withdrawn, see 2401.00001", True),
        ("We thank the reviewers; code was withdrawn from the appendix", False),
        ("This submission has been withdrawn by arXiv administrators", True),
        ("12 pages, accepted to ICML", False),
        ("We discuss how authors withdraw papers", False),
        (None, False),
    ],
)
def test_a_withdrawal_is_told_from_other_comments(comment: str | None, expected: bool) -> None:
    assert is_withdrawn(comment) is expected


def test_paragraphs_of_an_abstract() -> None:
    assert paragraphs("  One\ntwo.\n  Three\nfour.\n\nFive.") == "One two.\n\nThree four.\n\nFive."


def test_fields_beyond_any_paper_are_refused() -> None:
    with pytest.raises(UnusableRecord, match="2,000 characters"):
        checked(replace(record_of(1), title="x" * 2000))
    with pytest.raises(UnusableRecord, match="no title"):
        checked(replace(record_of(1), title=""))
    with pytest.raises(UnusableRecord, match="an author's name"):
        checked(replace(record_of(1), authors=(Person("x" * (LONGEST["name"] + 1)),)))
    assert checked(replace(record_of(1), title="0")).title == "0"


# Statements.


def record_of(version: int, title: str = "A title", arxiv: str = "2106.09685") -> Record:
    """A paper in some version."""
    return Record(
        arxiv=arxiv,
        version=version,
        title=title,
        authors=(Person("Ann One"), Person("Bo Two")),
        abstract="Words.",
        published="2021-06-17T15:30:12Z",
        updated=f"2021-06-{16 + version}T15:30:12Z",
        categories=("cs.CL",),
    )


STATEMENTS = st.lists(
    st.tuples(st.integers(1, 3), st.sampled_from("ABC"), st.sampled_from(["2106.09685", "2106.00001"])),
    min_size=1,
    max_size=8,
    unique=True,
).map(
    lambda drawn: [
        Statement(record_of(version, title, arxiv), f"2026-11-{place + 1:02d}T00:00:00Z", "query")
        for place, (version, title, arxiv) in enumerate(drawn)
    ]
)
_numbers = count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where databases of single examples go."""
    return tmp_path_factory.mktemp("statements")


def fresh(folder: Path) -> Engine:
    """An empty catalog."""
    engine = open_engine(folder / f"{next(_numbers)}.sqlite")
    with writing(engine) as connection:
        migrate(connection)
    return engine


def dump(engine: Engine) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Statements and records, without row numbers."""
    with closing(sqlite3.connect(str(engine.url.database))) as connection:
        statements = connection.execute(
            "SELECT arxiv, version, as_of, source, datestamp, digest, record FROM arxiv_statement ORDER BY 1, 2, 3"
        ).fetchall()
        records = connection.execute(
            "SELECT r.arxiv, r.version, r.title, r.as_of, s.digest FROM arxiv_record r "
            "JOIN arxiv_statement s ON s.id = r.statement_id ORDER BY 1"
        ).fetchall()
    return statements, records


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(STATEMENTS, st.randoms(use_true_random=False), st.data())
def test_the_order_of_arrival_does_not_matter(
    folder: Path, statements: list[Statement], chance: object, data: st.DataObject
) -> None:
    one, other = fresh(folder), fresh(folder)
    for statement in statements:
        learn(one, [statement])
    shuffled = data.draw(st.permutations(statements))
    cut = data.draw(st.integers(0, len(shuffled)))
    learn(other, shuffled[:cut])
    learn(other, shuffled[cut:])
    assert dump(one) == dump(other)
    for engine in (one, other):
        engine.dispose()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(STATEMENTS)
def test_history_only_grows_and_nothing_is_said_twice(folder: Path, statements: list[Statement]) -> None:
    engine = fresh(folder)
    before: set[object] = set()
    for statement in statements:
        learn(engine, [statement])
        after = set(dump(engine)[0])
        assert before <= after
        before = after
    learned = dump(engine)
    again = [replace(each, as_of="2027-01-01T00:00:00Z") for each in (max(statements, key=lambda s: s.rank),)]
    assert not learn(engine, again)
    assert dump(engine) == learned
    with reading(engine) as connection:
        for arxiv in {each.record.arxiv for each in statements}:
            said = history(connection, arxiv)
            assert said[0][1][0].kind is Kind.FIRST_SEEN
            assert all(changes for _, changes in said)
            assert [each.record.version for each, _ in said] == sorted(each.record.version for each, _ in said)
    engine.dispose()


def test_an_old_version_that_comes_again_is_no_news(folder: Path) -> None:
    engine = fresh(folder)
    learn(engine, [Statement(record_of(2), "2026-11-02T00:00:00Z", "query")])
    assert learn(engine, [Statement(record_of(1), "2026-11-01T00:00:00Z", "oai")])
    assert not learn(engine, [Statement(record_of(1), "2026-11-03T00:00:00Z", "query")])
    both = [
        Statement(record_of(3), "2026-11-04T00:00:00Z", "query"),
        Statement(record_of(2), "2026-11-05T00:00:00Z", "query"),
    ]
    assert len(learn(engine, both).added) == 1
    engine.dispose()


def test_what_only_one_interface_says_completes_a_statement(folder: Path) -> None:
    engine = fresh(folder)
    plain = record_of(1)
    full = replace(plain, authors=(Person("Ann One", ("A University",)), plain.authors[1]), primary_category="cs.CL")
    dated = replace(plain, versions=((1, plain.updated),), license="CC0")
    learn(engine, [Statement(plain, "2026-11-01T00:00:00Z", "query")])
    for record in (full, dated):
        found = learn(engine, [Statement(record, "2026-11-02T00:00:00Z", "oai")])
        assert (bool(found), found.changes) == (True, [])
        assert not learn(engine, [Statement(record, "2026-11-03T00:00:00Z", "oai")])
    with reading(engine) as connection:
        ((statement, _),) = history(connection, plain.arxiv)
    assert statement.record == replace(full, versions=dated.versions, license="CC0")
    engine.dispose()


def test_a_later_version_keeps_what_was_known_before(folder: Path) -> None:
    engine = fresh(folder)
    old = replace(record_of(1), versions=((1, record_of(1).updated),), license="CC0")
    learn(engine, [Statement(old, "2026-11-01T00:00:00Z", "oai")])
    learn(engine, [Statement(record_of(2), "2026-11-02T00:00:00Z", "query")])
    with reading(engine) as connection:
        newest = history(connection, old.arxiv)[-1][0].record
    assert newest.license == "CC0"
    assert newest.versions == ((1, old.updated), (2, record_of(2).updated))
    engine.dispose()


def test_a_deleted_paper_keeps_its_facts(folder: Path) -> None:
    from catalog.arxiv_sync.archive import deleted

    engine = fresh(folder)
    learn(engine, [Statement(record_of(1), "2026-11-01T00:00:00Z", "oai")])
    with writing(engine) as connection:
        gone = deleted(connection, ["2106.09685", "2106.00002"])
        assert [record.state for record in gone] == [State.DELETED]
        keep(connection, news(connection, [Statement(gone[0], "2026-11-02T00:00:00Z", "oai")]))
    with reading(engine) as connection:
        said = history(connection, "2106.09685")
    assert [(change.kind, change.now) for change in said[-1][1]] == [(Kind.STATE, "deleted")]
    engine.dispose()
