"""What is taken from answers, and when it becomes a proposal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from catalog.database import migrate, open_engine, reading, writing
from catalog.enrichment import cache
from catalog.enrichment.answers import LONGEST, Unusable, crossref_works
from catalog.enrichment.client import SECONDS_APART
from catalog.enrichment.facts import Facts, key
from catalog.enrichment.proposals import proposals
from catalog.enrichment.sources import Crossref, OpenAlex
from catalog.enrichment.venues import same_venue
from catalog.entry import Entry, load_entry
from tests.enrichment.conftest import Write, crossref, openalex

ODD = [
    None,
    7,
    -1,
    True,
    1.5,
    "",
    "x" * (LONGEST + 1),
    [],
    [None],
    {},
    {"a": 1},
    [[]],
    [{"source": 3}],
    "10.1",
    "ftp://x",
]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_engine(tmp_path / "catalog.sqlite")
    with writing(engine) as connection:
        migrate(connection)
    yield engine
    engine.dispose()


def loaded(entry: Write, **keys: str) -> Entry:
    return load_entry(entry("one", **keys))


@pytest.mark.parametrize("name", list(openalex()))
def test_odd_values_of_openalex_are_ignored(entry: Write, name: str) -> None:
    paper = loaded(entry)
    for odd in ODD:
        facts = OpenAlex().facts(paper, json.dumps(openalex(**{name: odd})).encode())
        assert facts.found
        assert facts.doi in ("10.1000/abc", None)


@pytest.mark.parametrize("name", list(crossref()))
def test_odd_values_of_crossref_are_ignored(entry: Write, name: str) -> None:
    paper = loaded(entry, doi="10.1000/abc")
    for odd in ODD:
        facts = Crossref().facts(paper, json.dumps({"message": crossref(**{name: odd})}).encode())
        assert facts.found
        assert facts.year in (2022, None)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"message": 3}', b'{"message": [1]}'])
def test_answers_of_another_form_are_unusable(body: bytes) -> None:
    with pytest.raises(Unusable):
        crossref_works(body)


def test_repositories_are_no_venues(entry: Write) -> None:
    facts = OpenAlex().facts(loaded(entry), json.dumps(openalex(locations=[])).encode())
    assert facts == Facts(found=True, title="On one", doi="10.1000/abc", year=2022, type="article")


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({}, True),
        ({"title": ["On One!"]}, True),
        ({"title": ["On two and three"]}, False),
        ({"title": []}, False),
        ({"issued": {"date-parts": [[2023]]}}, True),
        ({"issued": {"date-parts": [[2024]]}}, False),
        ({"issued": {"date-parts": [[None]]}}, False),
        ({"author": [{"family": "Nobody"}, {"family": "UNAL"}]}, True),
        ({"author": [{"family": "u"}]}, False),
        ({"author": [{"name": "Hu Group"}]}, False),
        ({"type": "posted-content"}, False),
    ],
)
def test_a_work_found_by_title_must_agree(entry: Write, changes: dict[str, Any], accepted: bool) -> None:
    other = crossref(title=["Something else"])
    body = json.dumps({"message": {"items": [other, crossref(**changes)]}}).encode()
    assert Crossref().facts(loaded(entry), body).found == accepted


@pytest.mark.parametrize(
    ("known", "name"),
    [
        ("ICLR 2022", "International Conference on Learning Representations"),
        ("EMNLP 2021", "Proceedings of the 2021 Conference on Empirical Methods in Natural Language Processing"),
        ("Findings of EMNLP 2021", "Findings of the Association for Computational Linguistics: EMNLP 2021"),
        ("NeurIPS 2022", "Neural Information Processing Systems"),
        ("CVPR 2024", "2024 IEEE/CVF Conference on Computer Vision and Pattern Recognition"),
        ("CIKM 2023", "Proceedings of the 32nd ACM International Conference on Information and Knowledge Management"),
        ("TACL 2024", "Transactions of the Association for Computational Linguistics"),
        ("AAAI 2024, pp. 12082-12090", "Proceedings of the AAAI Conference on Artificial Intelligence"),
        ("WACV 2025", "2025 IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)"),
        ("ASRU 2025", "2025 IEEE Automatic Speech Recognition and Understanding Workshop (ASRU)"),
    ],
)
def test_names_of_one_venue(known: str, name: str) -> None:
    assert same_venue(known, name)


@pytest.mark.parametrize(
    ("known", "name"),
    [
        ("ICLR 2022", "International Conference on Machine Learning"),
        ("EMNLP 2021", "Findings of the Association for Computational Linguistics: EMNLP 2021"),
        ("ACL 2022", "North American Chapter of the Association for Computational Linguistics"),
        ("AI Open 2023", "Neurocomputing"),
    ],
)
def test_names_of_different_venues(known: str, name: str) -> None:
    assert not same_venue(known, name)


@pytest.mark.parametrize(
    ("keys", "facts", "expected"),
    [
        ({"venue": "ICLR 2022"}, Facts(found=True, venues=("ICML",)), [("venue", "ICLR 2022", "ICML")]),
        ({}, Facts(found=True, venues=("arXiv (Cornell University)", "Lecture Notes in Computer Science")), []),
        ({"doi": "10.1000/A"}, Facts(found=True, doi="10.1000/a"), []),
        ({"doi": "10.1000/b"}, Facts(found=True, doi="10.1000/a"), [("doi", "10.1000/b", "10.1000/a")]),
        ({"url": "https://u.org"}, Facts(found=True, url="https://other.org"), []),
        ({}, Facts(found=True, year=2022), []),
        ({}, Facts(found=True, year=2023), [("year", "2021", "2023")]),
        ({"venue": "ICLR 2023"}, Facts(found=True, year=2024), []),
        ({}, Facts(found=True, title="A very different paper", doi="10.1000/a"), []),
        ({}, Facts(found=False, doi="10.1000/a"), []),
    ],
)
def test_proposals(
    entry: Write, engine: Engine, keys: dict[str, str], facts: Facts, expected: list[tuple[str, str, str]]
) -> None:
    paper = loaded(entry, **keys)
    cache.keep(engine, "openalex", key(paper), facts)
    with reading(engine) as connection:
        found = proposals(connection, [paper])
    assert [(each.key, each.entry_says, each.source_says) for each in found] == expected
    assert all(len(each.fetched) == len("2026-11-26T01:40:00Z") for each in found)


def test_rows_that_cannot_be_read_count_as_not_there(entry: Write, engine: Engine) -> None:
    paper = loaded(entry)
    cache.keep(engine, "openalex", key(paper), Facts(found=True, doi="10.1000/a"))
    with writing(engine) as connection:
        connection.execute(text("UPDATE enrichment SET facts = 'damaged'"))
    with reading(engine) as connection:
        assert proposals(connection, [paper]) == []
    assert cache.good(engine, "openalex") == set()


def test_papers_are_kept_by_what_identifies_them(entry: Write) -> None:
    assert key(loaded(entry)) == "2106.09685"
    assert key(loaded(entry, arxiv="", doi="10.1000/X")) == "doi:10.1000/x"
    assert key(loaded(entry, arxiv="")) == "slug:one"


def test_sources_are_asked_once_a_second() -> None:
    assert SECONDS_APART == 1.0
