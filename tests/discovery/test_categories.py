"""The suggested category comes with the words that lead to it, and is mostly that of the entry."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.discovery.categories import Suggester, Suggestion
from catalog.discovery.phrases import tokens
from catalog.discovery.queries import load
from catalog.entry import load_entries
from catalog.locations import shipped_root
from catalog.taxonomy import Category

SUGGESTER = Suggester(load())


def suggest(title: str, abstract: str = "") -> Suggestion:
    return SUGGESTER.suggest(tokens(title), tokens(abstract))


@pytest.mark.parametrize(
    ("title", "category"),
    [
        ("Tuning Only the Bias Terms", "selective"),
        ("Bottleneck Adapters in Every Layer", "additive"),
        ("Soft Prompts and Prefixes", "prompt"),
        ("A Kronecker Factorization of the Weight Update", "reparameterized"),
        ("A Design Space and an Architecture Search", "hybrid"),
        ("A Survey and Taxonomy", "context"),
    ],
)
def test_words_lead_to_categories(title, category):
    assert suggest(title).category == category


def test_the_words_are_told_with_what_they_count():
    found = suggest("Adapters", "adapter adapter adapter adapter bottleneck prompt")
    assert found == Suggestion("additive", (("adapter", 25.0), ("bottleneck", 5.0)))


def test_where_no_word_leads_anywhere_nothing_is_suggested():
    assert suggest("Nothing of the kind", "at all") == Suggestion()


def test_most_entries_get_their_own_category():
    """Title and summary stand in for title and abstract. The words were chosen with these entries in view."""
    entries = load_entries(shipped_root())
    right = sum(suggest(entry.title, entry.summary).category == entry.category for entry in entries)
    assert right / len(entries) >= 0.78


@settings(deadline=None)
@given(st.text(max_size=80), st.text(max_size=80))
def test_the_suggestion_is_a_category_exactly_when_words_lead_to_it(title, abstract):
    found = suggest(title, abstract)
    assert (found.category in Category.words()) == bool(found.words)
