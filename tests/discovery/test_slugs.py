"""Suggested names are valid, unique and those that people use."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.discovery.slugs import short_name, suggested
from catalog.scaffold import is_slug


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("LoRA-XS: Low-Rank Adaptation with Few Parameters", "lora-xs"),
        ("(IA)^3: Few-Shot", "ia3"),
        ("LoRA+: Efficient Low Rank Adaptation", "lora-plus"),
        ("S²FT: Structured Sparse Fine-Tuning", "s2ft"),
        ("$\\text{C}^3$A: Circular Convolution", "c3a"),
        ("ψ-Tuning: A Name in Greek", "psi-tuning"),
        ("Éclair Adapters: Light", "eclair-adapters"),
        ("Learning to Prompt for Vision-Language Models", "learning-prompt-vision-language"),
        ("A Long Name That Is None: Something", "long-name-none-something"),
        ("How to Do It", "arxiv-2601-00001"),
        ("低秩适应", "arxiv-2601-00001"),
        ("Lambda: A Keyword of Python", "lambda-2601-00001"),
        ("", "arxiv-2601-00001"),
    ],
)
def test_the_name_comes_from_the_title(title, slug):
    assert suggested(title, "2601.00001", set()) == slug


def test_a_name_that_is_taken_gets_the_number_of_the_paper():
    assert suggested("LoRA: Again", "2601.00001", {"lora"}) == "lora-2601-00001"
    assert suggested("LoRA: Again", "2601.00001", {"lora", "lora-2601-00001"}) == "lora-2601-00001-2"


def test_the_short_name_is_that_before_the_colon():
    assert short_name("DoRA: Weight-Decomposed") == "DoRA"
    assert short_name("$\\text{DoRA}$: Weight-Decomposed") == "DoRA"
    assert short_name("No colon") is None
    assert short_name("More words than a name has: x") is None
    assert short_name(" : x") is None
    assert short_name("低秩: x") is None


IDS = st.from_regex(r"\d{4}\.\d{4,5}|[a-z]{2,8}(\.[A-Z]{2})?/\d{7}|[^a-z0-9]{0,3}", fullmatch=True)
TITLES = st.one_of(st.text(max_size=200), st.sampled_from(["LoRA: x", "class", "a", "x" * 300, "LoRA " * 50, "-:-"]))


@settings(deadline=None)
@given(st.lists(st.tuples(TITLES, IDS), max_size=20), st.sets(st.sampled_from(["lora", "a", "x" * 60])))
def test_names_are_always_valid_and_unique(papers, taken):
    names = set(taken)
    for title, arxiv in papers:
        name = suggested(title, arxiv, names)
        assert is_slug(name)
        assert name not in names
        names.add(name)
