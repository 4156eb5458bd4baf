"""Answers of the interface for harvests, as records: equal to those of the query interface, whatever is sent."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from catalog.arxiv_sync.authors import names
from catalog.arxiv_sync.feed import read_feed
from catalog.arxiv_sync.oai import Page, Refused, read_page
from catalog.arxiv_sync.record import Record, State
from catalog.arxiv_sync.transport import Again, Answer
from tests.standin import StandIn, atom, oai, papers, raw
from tests.standin.papers import Paper

WHEN = datetime(2021, 6, 17, 17, 37, 18, tzinfo=UTC)
PLAIN = Paper("2106.09685", "A title", ("Ann Author", "Bo Writer"), "An abstract.", (WHEN,), ("cs.CL", "cs.LG"))
ODD = (
    replace(PLAIN, versions=(WHEN, datetime(2021, 10, 1, 5, 0, 0, tzinfo=UTC))),
    replace(PLAIN, title=r"On $\Delta$-tuning & <b>others</b>", comment=r"12 pages, in $\LaTeX$"),
    replace(PLAIN, title="Éric's façade: ñandú, Łódź, straße", authors=("José Ågren", "Øyvind Müller", "Zoë Dvořák")),
    replace(PLAIN, authors=("Ana Ruíz", "Jo Ou"), affiliations={"Ana Ruíz": "Université (Paris, 6)", "Jo Ou": "CERN"}),
    replace(PLAIN, authors=("John Smith, Jr.", "Ann Other III", "ATLAS Collaboration")),
    replace(PLAIN, authors=("Prince",), comment="", journal_ref="J. Odd Res. 1 (2021) 1-2", doi="10.1000/ABC.1"),
    replace(PLAIN, comment="This paper has been withdrawn by the authors."),
    replace(PLAIN, arxiv="hep-ex/0307015", abstract="One. " * 60, categories=("hep-ex", "cs.LG")),
    replace(PLAIN, title="0", authors=("李 明", "Андрей Белый", "محمد علي")),
)
_WORD = some.from_regex(r"[A-Z][a-z]{1,8}(?:-[A-Z][a-z]{1,8})?", fullmatch=True)
_FIRST = some.from_regex(r"[A-Z]\.|[A-Z][a-z]{2,8}", fullmatch=True)
_NAME = some.builds(lambda first, last: f"{first} {last}", _FIRST, _WORD)
_BETWEEN = some.sampled_from([", ", " and ", " & ", ", and "])
_PLACE = some.recursive(
    some.text("ab, and 1:&", max_size=8), lambda inner: some.tuples(inner, inner).map(lambda two: f"{two[0]}({two[1]})")
)
_TEXT = some.text(some.characters(min_codepoint=32, exclude_categories=("Cs",), exclude_characters="\ufffe\uffff"))


def page_of(*entries: str, inside: str = "") -> Page:
    return read_page(Answer(200, {}, oai.answered(f"<ListRecords>{''.join(entries)}{inside}</ListRecords>").body))


def harvested(paper: Paper) -> Record:
    page = page_of(raw.record(paper))
    assert not page.unusable
    return page.records[0][0]


def queried(paper: Paper) -> Record:
    return read_feed(Answer(200, {}, atom.feed([paper], 1, 0, 1))).records[0]


# One paper, two interfaces.


def test_every_catalogued_paper_says_the_same_through_both_interfaces() -> None:
    for paper in papers.catalogued():
        ours, theirs = harvested(paper), queried(paper)
        assert ours.digest == theirs.digest, (ours, theirs)


@pytest.mark.parametrize("paper", ODD, ids=range(len(ODD)))
def test_odd_papers_say_the_same_through_both_interfaces(paper: Paper) -> None:
    ours, theirs = harvested(paper), queried(paper)
    assert ours.digest == theirs.digest, (ours, theirs)
    assert ours.names == theirs.names == paper.authors


def test_what_only_this_interface_says() -> None:
    record = harvested(ODD[0])
    assert record.versions == ((1, "2021-06-17T17:37:18Z"), (2, "2021-10-01T05:00:00Z"))
    assert (record.version, record.published, record.updated) == (2, record.versions[0][1], record.versions[1][1])
    assert record.license == raw.LICENSE
    assert record.categories == ("cs.CL", "cs.LG")


def test_a_withdrawal_is_read_from_the_comment() -> None:
    assert [harvested(paper).state for paper in (PLAIN, ODD[6])] == [State.LISTED, State.WITHDRAWN]


# Pages.


def test_datestamps_and_tokens() -> None:
    entry = raw.record(replace(PLAIN, datestamp=date(2021, 6, 20)))
    page = page_of(entry, inside="<resumptionToken> a/b </resumptionToken>")
    assert [stamp for _, stamp in page.records] == list(page.stamps) == ["2021-06-20"]
    assert page.token == "a/b"
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", page.at)


@pytest.mark.parametrize("end", ["", "<resumptionToken/>", "<resumptionToken cursor='1'> \n</resumptionToken>"])
def test_the_end_of_a_list(end: str) -> None:
    assert page_of(raw.record(PLAIN), inside=end).token is None


def test_of_listed_and_deleted_on_one_page_the_last_counts() -> None:
    gone = replace(PLAIN, deleted=True)
    assert page_of(raw.record(PLAIN), raw.record(gone)).deleted == {PLAIN.arxiv: "2021-06-18"}
    back = page_of(raw.record(gone), raw.record(PLAIN))
    assert (back.deleted, len(back.records)) == ({}, 1)


def test_a_deleted_version_is_no_deleted_paper() -> None:
    entry = raw.record(replace(PLAIN, deleted=True)).replace(PLAIN.arxiv, f"{PLAIN.arxiv}v1")
    assert (page_of(entry).deleted, len(page_of(entry).unusable)) == ({}, 1)


def test_comments_in_the_document_are_no_text() -> None:
    record = raw.record(PLAIN).replace("A title", "A <!-- odd --> title").replace("<title>", "<!-- here --><title>")
    assert page_of(record).records[0][0].title == "A title"


@pytest.mark.parametrize(
    ("inside", "code"),
    [("<error code='badArgument'>no such\nset</error>", "badArgument"), ("<error>?</error>", "")],
)
def test_errors_of_the_protocol(inside: str, code: str) -> None:
    with pytest.raises(Refused) as refusal:
        read_page(Answer(200, {}, oai.answered(inside).body))
    assert refusal.value.code == code
    assert "\n" not in str(refusal.value)


def test_a_long_error_is_cut() -> None:
    with pytest.raises(Refused) as refusal:
        read_page(Answer(200, {}, oai.failure("badArgument", "no " * 9_000).body))
    assert len(str(refusal.value)) <= 500


def test_no_match_is_an_empty_page() -> None:
    page = read_page(Answer(200, {}, oai.failure("noRecordsMatch", "nothing").body))
    assert (page.size, page.token) == (0, None)


@pytest.mark.parametrize("inside", ["", "<ListRecords/>", "<ListIdentifiers/>", "<ListRecords><header/></ListRecords>"])
def test_what_is_no_list_is_asked_again(inside: str) -> None:
    with pytest.raises(Again):
        read_page(Answer(200, {}, oai.answered(inside).body))


def test_a_page_of_which_nothing_can_be_read_is_asked_again() -> None:
    broken = raw.record(PLAIN).replace("<authors>", "<people>").replace("</authors>", "</people>")
    assert len(page_of(*[broken] * 5).unusable) == 5
    with pytest.raises(Again, match="it has no authors"):
        page_of(*[broken] * 6)


# Authors.


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (
            "A. B. Author (1 and 2), C. D'Author, E. F. Third and G. Last ((1) Place, (2) Other)",
            ("A. B. Author", "C. D'Author", "E. F. Third", "G. Last"),
        ),
        ("ATLAS Collaboration: G. Aad, B. Abbott (for the ATLAS, CMS)", ("ATLAS Collaboration", "G. Aad", "B. Abbott")),
        ("John Smith, Jr., Al Gore III and Bo, III", ("John Smith, Jr.", "Al Gore III", "Bo, III")),
        ("One (CERN), Jr.", ("One", "Jr.")),
        ("Jr., III, One, Jr., III", ("Jr., III", "One, Jr.", "III")),
        ("One & Two, and Three and and Four, et al.", ("One", "Two", "Three", "Four")),
        ("Sandy Anderson, Rand Al, R&D Team and AT&T", ("Sandy Anderson", "Rand Al", "R&D Team", "AT&T")),
        ("One (never closed, Two and Three", ("One",)),
        ("One) Two, Three", ("One Two", "Three")),
        ("Mary(CERN)Ann", ("Mary Ann",)),
        (" , ;, and . (x)", ()),
        ("", ()),
    ],
)
def test_names_in_a_line(line: str, wanted: tuple[str, ...]) -> None:
    assert names(line) == wanted


@given(some.lists(some.tuples(_NAME, some.none() | _PLACE), min_size=1, max_size=8), _BETWEEN)
@settings(deadline=None)
def test_names_are_told_from_affiliations(people: list[tuple[str, str | None]], between: str) -> None:
    line = between.join(f"{name} ({place})" if place is not None else name for name, place in people)
    assert names(line) == tuple(name for name, _ in people)


@given(some.text("ab(),:& and.Jr", max_size=60))
@settings(deadline=None)
def test_any_line_is_split_into_what_it_holds(line: str) -> None:
    for name in names(line):
        assert name == " ".join(name.split())
        assert any(sign.isalnum() for sign in name)
        assert set(name) <= {*line, " "}


@pytest.mark.parametrize("part", ["(", ")", "()", ",", " and", "a(b", "a, Jr", ", Jr", "a:", " & &", "a(b), "])
def test_long_lines_take_time_that_grows_with_them(part: str) -> None:
    assert seconds(part * 160_000) < 10 * seconds(part * 40_000) + 0.1


def seconds(line: str) -> float:
    """The better time of two."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        names(line)
        times.append(time.perf_counter() - start)
    return min(times)


# Anything at all.


@given(title=_TEXT, authors=_TEXT, abstract=_TEXT, comment=_TEXT)
@settings(deadline=None)
def test_any_text_in_a_record(title: str, authors: str, abstract: str, comment: str) -> None:
    paper = replace(PLAIN, title=title, authors=(authors,), abstract=abstract, comment=comment)
    page = page_of(raw.record(paper), raw.record(replace(PLAIN, arxiv="2106.00001")))
    assert page.size == 2
    assert page.records[-1][0].arxiv == "2106.00001"
    for problem in page.unusable:
        assert problem.startswith(PLAIN.arxiv)


@given(some.data())
@settings(deadline=None, max_examples=200)
def test_a_damaged_page_is_refused_or_read(data: some.DataObject) -> None:
    whole = oai.answered(f"<ListRecords>{raw.record(ODD[3])}{raw.record(PLAIN)}</ListRecords>").body
    at = data.draw(some.integers(0, len(whole)))
    to = data.draw(some.integers(at, min(len(whole), at + 80)))
    damaged = whole[:at] + data.draw(some.binary(max_size=8)) + whole[to:]
    try:
        page = read_page(Answer(200, {}, damaged))
    except (Again, Refused):
        return
    assert page.size <= 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<version ", "<version version='v0' "),
        ('version="v1"', 'version="v1.5"'),
        ('version="v1"', 'version="1"'),
        ('version="v1"', ""),
        ('version="v1"', 'version="v٣"'),
        ("17 Jun 2021", "31 Jun 2021"),
        ("17 Jun 2021", "17 Qua 2021"),
        ("17 Jun 2021", "17 Jun 0021"),
        ("17:37:18 GMT", "17:37:18 +0100"),
        ("17:37:18 GMT", "25:37:18 GMT"),
        ("<id>2106.09685</id>", "<id>2106.09686</id>"),
        ("<id>2106.09685</id>", ""),
        ("oai:arXiv.org:2106.09685", "oai:arXiv.org:2106.09685v1"),
        ("oai:arXiv.org:2106.09685", "oai:arXiv.org:"),
        ("<header>", "<header/><header>"),
        ("http://arxiv.org/OAI/arXivRaw/", "http://arxiv.org/OAI/arXiv/"),
        ("<title>A title</title>", ""),
        ("<authors>Ann Author and Bo Writer</authors>", "<authors>(Ann Author)</authors>"),
    ],
)
def test_a_record_that_cannot_be_read_costs_itself_only(old: str, new: str) -> None:
    assert old in raw.record(PLAIN)
    broken = raw.record(PLAIN).replace(old, new)
    if new.startswith("<version version='v0'"):
        broken = broken.replace(' version="v1"', "")
    page = page_of(broken, raw.record(replace(PLAIN, arxiv="2106.00001")))
    assert (len(page.records), len(page.unusable)) == (1, 1)
    assert page.records[0][0].arxiv == "2106.00001"


@pytest.mark.parametrize(
    ("name", "size"), [("cs", 1), ("stat", 1), ("cs:cs:CL", 1), ("cs:cs:CV", 0), ("stat:stat:ML", 1), ("physics", 0)]
)
def test_the_stand_in_knows_sets(name: str, size: int) -> None:
    server = StandIn([PLAIN, replace(PLAIN, arxiv="2106.00001", categories=("stat.ML",))])
    reply = server.oai.reply({"verb": "ListRecords", "metadataPrefix": "arXivRaw", "set": name})
    assert read_page(Answer(200, {}, reply.body)).size == size
