"""Every condition against a plain computation over the entry files, and free text against anything at all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import catalog
from catalog.conditions import CLAIMS, SORTS, VOCABULARIES, Filter
from catalog.dimensions import MODELS
from catalog.entry import Entry
from catalog.errors import CatalogError, UnknownEntry, UsageError
from catalog.formula import evaluate
from catalog.query import Catalog
from catalog.taxonomy import Category, Kind, Modality, Strength, Subcategory

Rule = Callable[[Entry], bool]

LISTS = ("peft-state-of-the-art", "awesome-peft-for-foundation-models", "peft-adapter-papers-gist")


def plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(sign for sign in decomposed if not unicodedata.combining(sign)).casefold()


def of_method(name: str, value: object) -> Rule:
    """Whether a method has a property; an entry without a method has none."""
    return lambda entry: (
        not entry.no_implementation and bool(entry.reversibility) and getattr(entry.reversibility, name) == value
    )


def words(name: str, vocabulary: Any) -> list[tuple[dict[str, Any], Rule]]:
    return [
        ({name: word}, lambda entry, word=word: getattr(entry, name) == word)  # type: ignore[misc]
        for word in vocabulary.words()
    ]


CONDITIONS: list[tuple[dict[str, Any], Rule]] = [
    ({}, lambda entry: True),
    *words("category", Category),
    *words("kind", Kind),
    *words("subcategory", Subcategory),
    *[({"modality": str(w)}, lambda entry, w=w: w in entry.modality) for w in Modality],
    *[({"strength": str(w)}, of_method("strength", w)) for w in Strength],
    *[({name: value}, of_method(name, value)) for name in ("mergeable", "detachable") for value in (True, False)],
    *[({"identity_at_init": v}, lambda entry, v=v: entry.claims.identity_at_init is v) for v in (True, False)],
    *[({"listed_in": w}, lambda entry, w=w: any(i.list_slug == w for i in entry.listed_in)) for w in LISTS],
    ({"year_from": 2023}, lambda entry: entry.year >= 2023),
    ({"year_to": 2021}, lambda entry: entry.year <= 2021),
    ({"year_from": 2022, "year_to": 2023}, lambda entry: 2022 <= entry.year <= 2023),
    ({"year_from": 2023, "year_to": 2022}, lambda entry: False),
    ({"venue": "iclr"}, lambda entry: "iclr" in (entry.venue or "").lower()),
    ({"venue": "%"}, lambda entry: "%" in (entry.venue or "")),
    ({"author": "edward j. HU"}, lambda entry: any("edward j. hu" in plain(name) for name in entry.authors)),
    ({"author": "lí"}, lambda entry: any("li" in plain(name) for name in entry.authors)),
    ({"author": "%"}, lambda entry: False),
    ({"library": "peft"}, lambda entry: "peft" in entry.libraries),
    ({"has_code": True}, lambda entry: entry.code is not None),
    ({"has_code": False}, lambda entry: entry.code is None),
    ({"has_implementation": True}, lambda entry: entry.has_implementation),
    ({"has_implementation": False}, lambda entry: not entry.has_implementation),
    (
        {"category": "reparameterized", "strength": "linear", "mergeable": True, "year_from": 2023, "has_code": True},
        lambda entry: (
            entry.category == "reparameterized"
            and of_method("strength", "linear")(entry)
            and of_method("mergeable", True)(entry)
            and entry.year >= 2023
            and entry.code is not None
        ),
    ),
]


@pytest.mark.parametrize(("asked", "rule"), CONDITIONS, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_a_condition_finds_what_the_entries_say(
    cat: Catalog, entries: list[Entry], asked: dict[str, Any], rule: Rule
) -> None:
    expected = {entry.slug for entry in entries if rule(entry)}
    assert {paper.slug for paper in cat.papers(**asked)} == expected
    assert {paper.slug for paper in cat.papers(Filter(**asked))} == expected
    assert cat.count(**asked) == len(expected)


def test_every_condition_is_checked_somewhere() -> None:
    here = {name for asked, _ in CONDITIONS for name in asked}
    elsewhere = {"text", "builds_on", "status", "claim", "max_parameters", "at", "sort", "limit"}
    assert {field.name for field in fields(Filter)} == here | elsewhere


def test_most_conditions_tell_papers_apart(entries: list[Entry]) -> None:
    telling = [asked for asked, rule in CONDITIONS if 0 < sum(map(rule, entries)) < len(entries)]
    assert len(telling) > 0.8 * len(CONDITIONS)


def test_a_paper_says_what_its_entry_says(cat: Catalog, entries: list[Entry]) -> None:
    by_slug = {entry.slug: entry for entry in entries}
    same = "name title arxiv doi url code venue published year kind category subcategory summary authors aliases"
    same += " modality libraries builds_on how_it_differs status mechanism claims reversibility deviations errata"
    for paper in cat.papers():
        entry = by_slug[paper.slug]
        assert paper.entry == entry
        for name in same.split():
            value, expected = getattr(paper, name), getattr(entry, name)
            assert value == expected, (paper.slug, name)
            assert type(value) is type(expected), (paper.slug, name)
        for name in ("detachable", "mergeable", "strength"):
            expected = None if entry.no_implementation else getattr(entry.reversibility, name, None)
            assert getattr(paper, name) is expected, (paper.slug, name)
        assert (paper.implementation is not None) == entry.has_implementation


# Sorting.


def test_papers_are_sorted_by_name_without_regard_to_case(cat: Catalog) -> None:
    names = [(paper.name.lower(), paper.slug) for paper in cat.papers()]
    assert names == sorted(names)


def test_other_orders(cat: Catalog) -> None:
    assert [p.slug for p in cat.papers(sort="slug")] == sorted(p.slug for p in cat.papers())
    newest = cat.papers(sort="published")
    by_slug = sorted(newest, key=lambda paper: paper.slug)
    assert newest == sorted(by_slug, key=lambda paper: paper.published, reverse=True)
    found = cat.papers(text="adaptation", sort="name")
    assert [p.name.lower() for p in found] == sorted(p.name.lower() for p in found)


@pytest.mark.parametrize("sort", SORTS)
def test_a_limit_takes_the_first_papers(cat: Catalog, sort: str) -> None:
    assert cat.papers(text="rank", sort=sort, limit=5) == cat.papers(text="rank", sort=sort)[:5]
    assert cat.papers(text="rank", sort=sort, limit=10**30) == cat.papers(text="rank", sort=sort)


# What cannot be asked.


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_misspelled_word_gives_the_near_ones(cat: Catalog, name: str) -> None:
    right = max(VOCABULARIES[name], key=len)
    with pytest.raises(UsageError) as caught:
        cat.papers(**{name: f"{right[:-1]}x"})
    assert right in (caught.value.hint or "")
    assert right in (caught.value.allowed or "")


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ({"listed_in": "peft-state-of-art"}, "peft-state-of-the-art"),
        ({"library": "pfet"}, "peft"),
        ({"builds_on": "lorra"}, "LoRA"),
        ({"max_parameters": 10, "at": "roberta-bas"}, "roberta-base"),
        ({"mergable": True}, "mergeable"),
        ({"max_parameters": 10}, "--at"),
        ({"at": "roberta-base"}, "--max-parameters"),
        ({"claim": "mergeable"}, "--status"),
        ({"limit": 0}, "1 or more"),
        ({"limit": -1}, "1 or more"),
    ],
)
def test_what_makes_no_sense_is_told(cat: Catalog, asked: dict[str, Any], near: str) -> None:
    with pytest.raises(CatalogError) as caught:
        cat.papers(**asked)
    assert near in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_claims_that_can_be_asked_for_are_those_that_are_measured() -> None:
    claims = pytest.importorskip("reference_impls.claims")
    assert tuple(claims.CLAIMS) == CLAIMS


# One paper.


def test_a_paper_is_found_by_every_name_it_has(cat: Catalog, entries: list[Entry]) -> None:
    for entry in entries:
        assert cat.paper(entry.slug).slug == entry.slug
        for name in filter(None, (entry.arxiv, entry.doi, *entry.aliases)):
            assert cat.paper(name).name, name
    for name in ("(IA)^3", "  (ia)^3 ", "2205.05638", "IA3Config"):
        assert cat.paper(name).slug == "ia3"


def test_an_unknown_name_gives_the_near_ones(cat: Catalog) -> None:
    with pytest.raises(UnknownEntry, match="LoRA"):
        cat.paper("lorra")
    with pytest.raises(UnknownEntry, match="query 'quite unlike any'"):
        cat.paper("quite unlike any")


# Free text.

ANYTHING = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ANYTHING
@given(st.text() | st.text(alphabet="\"*^:()-+{}[]\\'\0 aN", max_size=12) | st.sampled_from(["NEAR(a b)", "title:x"]))
def test_any_text_can_be_searched(cat: Catalog, anything: str) -> None:
    cat.papers(text=anything, limit=3)


@pytest.mark.parametrize("anything", ["a b " * 3000, "x" * 100_000, "\udcff\ud800", "AND OR NOT", '" OR "', "\0", ""])
def test_strange_text_can_be_searched(cat: Catalog, anything: str) -> None:
    cat.papers(text=anything)
    cat.papers(text=anything, author=anything, venue=anything)
    cat.authors(anything)
    with pytest.raises(UnknownEntry):
        cat.paper(anything)


def test_text_without_a_letter_or_digit_finds_nothing(cat: Catalog) -> None:
    for text in ("", "   ", "?!", "^^^ ---"):
        assert cat.papers(text=text) == []
    assert cat.papers(text="lora !?") == cat.papers(text="lora")


def test_a_word_of_a_title_finds_its_paper(cat: Catalog, entries: list[Entry]) -> None:
    found: dict[str, set[str]] = {}
    for entry in entries:
        for word in {*entry.title.split(), *re.findall(r"\w+", entry.title), *entry.name.split(), entry.name}:
            if any(sign.isalnum() for sign in word):
                if word not in found:
                    found[word] = {paper.slug for paper in cat.papers(text=word)}
                assert entry.slug in found[word], (entry.slug, word)


@ANYTHING
@given(st.data())
def test_some_words_of_a_title_find_its_paper(cat: Catalog, entries: list[Entry], data: st.DataObject) -> None:
    entry = data.draw(st.sampled_from(entries))
    words = data.draw(st.lists(st.sampled_from(entry.title.split()), min_size=1, max_size=4))
    change = data.draw(st.sampled_from(["{}", "  {}?", "({})"]))
    text = change.format(" ".join(words))
    text = data.draw(st.sampled_from([text, text.upper(), text.lower()]))
    if any(sign.isalnum() for sign in text):
        assert entry.slug in {paper.slug for paper in cat.papers(text=text)}


@pytest.mark.parametrize(
    ("text", "slug"),
    [("(IA)^3", "ia3"), ("LoRA", "lora"), ("lora", "lora"), ("low-rank adaptation of large language", "lora")],
)
def test_the_paper_meant_comes_first(cat: Catalog, text: str, slug: str) -> None:
    assert cat.papers(text=text)[0].slug == slug


def test_a_paper_comes_first_under_its_own_name(cat: Catalog, entries: list[Entry]) -> None:
    for entry in entries:
        assert cat.papers(text=entry.slug)[0].slug == entry.slug


def test_the_last_word_may_be_a_beginning_and_accents_do_not_matter(cat: Catalog) -> None:
    assert "lora" in {paper.slug for paper in cat.papers(text="Low-Rank Adapt")}
    assert cat.papers(text="ádàptátion") == cat.papers(text="adaptation") != []


# Lineage.


def walk(edges: dict[str, tuple[str, ...]], start: str) -> dict[str, int]:
    """Steps to everything that can be reached, level by level."""
    found: dict[str, int] = {}
    level, steps = [start], 0
    while level:
        steps += 1
        level = [there for here in level for there in edges.get(here, ()) if there not in found and there != start]
        found |= dict.fromkeys(level, steps)
    return found


def test_lineage_is_what_a_walk_over_the_entries_finds(cat: Catalog, entries: list[Entry]) -> None:
    up = {entry.slug: entry.builds_on for entry in entries}
    down: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        for base in entry.builds_on:
            down[base] = (*down.get(base, ()), entry.slug)
    deepest = 0
    for entry in entries:
        lineage = cat.lineage(entry.slug)
        assert dict(lineage.ancestors) == walk(up, entry.slug)
        assert dict(lineage.descendants) == walk(down, entry.slug)
        assert [steps for _, steps in lineage.ancestors] == sorted(steps for _, steps in lineage.ancestors)
        assert {paper.slug for paper in cat.papers(builds_on=entry.slug)} == set(walk(down, entry.slug))
        deepest = max([deepest, *walk(down, entry.slug).values()])
    assert deepest > 2


def test_lineage_takes_any_name(cat: Catalog) -> None:
    assert cat.lineage("LoraConfig") == cat.lineage("lora")
    assert cat.papers(builds_on="LoraConfig") == cat.papers(builds_on="lora") != []


# Trained parameters.


@pytest.mark.parametrize("model", ["roberta-base", "llama-7b", "vit-b16", "t5-base"])
@pytest.mark.parametrize("most", [0, 100_000, 300_000, 10**8, 10**40])
def test_papers_within_a_number_of_parameters(cat: Catalog, entries: list[Entry], model: str, most: int) -> None:
    expected = set()
    for entry in entries:
        suits = {str(backbone) for backbone in entry.claim_backbones} & {MODELS[model].kind, "mlp"}
        if entry.claims.parameters and suits:
            given = entry.claims.hyperparameters | entry.claims.defaults
            numbers: dict[str, Any] = {
                name: len(value) if isinstance(value, list) else value for name, value in given.items()
            }
            if evaluate(entry.claims.parameters, MODELS[model].variables() | numbers) <= most:
                expected.add(entry.slug)
    found = cat.papers(max_parameters=most, at=model)
    assert {paper.slug for paper in found} == expected
    assert all((paper.parameters_at(model) or 0) <= most for paper in found)


def test_the_most_itself_is_within(cat: Catalog) -> None:
    count = cat.paper("bitfit").parameters_at("roberta-base")
    assert count is not None
    assert "bitfit" in {paper.slug for paper in cat.papers(max_parameters=count, at="roberta-base")}
    assert "bitfit" not in {paper.slug for paper in cat.papers(max_parameters=count - 1, at="roberta-base")}


def test_a_paper_without_a_formula_has_no_count(cat: Catalog) -> None:
    assert cat.paper("clip").parameters_at("roberta-base") is None


# Overviews.


def test_categories_count_their_papers(cat: Catalog, entries: list[Entry]) -> None:
    counts = cat.categories()
    assert [count.category for count in counts] == list(Category)
    for count in counts:
        of = [entry for entry in entries if entry.category == count.category]
        assert count.papers == len(of)
        assert count.methods == sum(not entry.no_implementation for entry in of)
        assert count.implemented == sum(entry.has_implementation for entry in of)
        assert count.measured == cat.count(category=str(count.category), status="verified")


def test_authors_count_their_papers(cat: Catalog, entries: list[Entry]) -> None:
    expected: dict[str, int] = {}
    for entry in entries:
        for name in entry.authors:
            expected[name] = expected.get(name, 0) + 1
    found = [(author.name, author.papers) for author in cat.authors()]
    assert found == sorted(expected.items(), key=lambda pair: (-pair[1], pair[0]))
    assert [(author.name, author.papers) for author in cat.authors(limit=3)] == found[:3]
    assert {author.name for author in cat.authors("LIU")} == {name for name in expected if "liu" in plain(name)}


@pytest.mark.parametrize("slug", LISTS)
def test_listings_and_errata_of_a_list(cat: Catalog, entries: list[Entry], slug: str) -> None:
    listed = sorted((e.slug, i.printed_as) for e in entries for i in e.listed_in if i.list_slug == slug)
    assert sorted((paper.slug, item.printed_as) for paper, item in cat.listings(slug)) == listed != []
    wrong = sorted((e.slug, i.claim) for e in entries for i in e.errata if i.list_slug == slug)
    assert sorted((paper.slug, item.claim) for paper, item in cat.errata(slug)) == wrong


def test_errata_and_deviations_of_all(cat: Catalog, entries: list[Entry]) -> None:
    assert len(cat.errata()) == sum(len(entry.errata) for entry in entries) > 0
    assert len(cat.deviations()) == sum(len(entry.deviations) for entry in entries) > 0
    assert {source.slug for source in cat.lists()} == set(LISTS)


def test_the_package_opens_the_catalog(cat: Catalog) -> None:
    assert catalog.Filter is Filter
    with catalog.open(cat.path) as opened:
        assert opened.paper("lora") == cat.paper("lora")


def test_a_shared_identifier_leads_to_the_paper_that_stands(cat: Catalog) -> None:
    bone, miss = cat.paper("bone"), cat.paper("miss")
    assert bone.arxiv == miss.arxiv
    assert cat.paper(str(miss.arxiv)).slug == "miss"
