"""A score is the sum of its reasons; papers on tuning reach the threshold, papers on other things do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.discovery.phrases import tokens
from catalog.discovery.queries import load
from catalog.discovery.scoring import Reason, Scorer
from catalog.entry import load_entries
from catalog.locations import shipped_root
from catalog.taxonomy import Kind
from tests.discovery.off_topic import OFF_TOPIC

RULES = load()
SCORER = Scorer(RULES)


def test_every_reason_says_which_word_where_and_how_much():
    score = SCORER.score(
        "QLoRA for all", "Fine-tuning of a language model that is frozen. LoRA.", ("cs.CL", "cs.NI", "cs.IR")
    )
    assert set(score.reasons) == {
        Reason("*LoRA", "title", 50),
        Reason("LoRA", "abstract", 25),
        Reason("fine tuning", "abstract", 4),
        Reason("frozen", "abstract", 4),
        Reason("language model", "abstract", 3),
        Reason("cs.CL", "category", 4),
        Reason("cs.NI", "category", -20),
    }
    assert score.points == 70


def test_a_word_counts_once_and_in_the_title_rather_than_the_abstract():
    once = SCORER.score("LoRA", "LoRA and LoRA again")
    assert once.reasons == (Reason("LoRA", "title", 50),)


def test_without_a_word_of_its_own_a_paper_scores_nothing():
    assert SCORER.score("Fine-tuning frozen transformers", "GLUE, LLM, few-shot", ("cs.CL",)).points == 0


def test_case_tells_the_radio_from_the_method():
    assert SCORER.score("LoRA", "").points > 0
    assert SCORER.score("LoRa", "").points == SCORER.score("lora", "").points == 0
    assert SCORER.score("LoRA and LoRaWAN", "").points == 0


def test_a_radio_may_be_what_a_model_is_tuned_for():
    text = "We fine-tune a large language model with LoRA on the logs of IoT end devices; few parameters are trainable."
    assert SCORER.score("Low-Rank Adaptation at the Edge", text, ("cs.LG", "cs.NI")).points >= RULES.threshold


def test_a_category_of_an_archive_counts_as_the_archive():
    text = "low-rank adaptation"
    assert Reason("astro-ph.HE", "category", -40) in SCORER.score("", text, ("astro-ph.HE",)).reasons
    assert Reason("hep-ex", "category", -40) in SCORER.score("", text, ("hep-ex",)).reasons
    assert all(reason.where != "category" for reason in SCORER.score("", text, ("econ.EM", "")).reasons)


@pytest.mark.parametrize(("title", "abstract", "categories"), OFF_TOPIC, ids=[title for title, *_ in OFF_TOPIC])
def test_papers_on_something_else_are_no_candidates(title, abstract, categories):
    assert SCORER.score(title, abstract, categories).points < RULES.threshold


def test_most_of_the_catalog_would_be_found():
    entries = load_entries(shipped_root())
    methods = [entry for entry in entries if entry.kind is Kind.METHOD]

    def share(of: list) -> float:
        """Entries whose title and summary, in place of the abstract, reach the threshold."""
        scores = [SCORER.score(entry.title, entry.summary, entry.arxiv_categories).points for entry in of]
        return sum(score >= RULES.threshold for score in scores) / len(of)

    assert share(entries) >= 0.85
    assert share(methods) >= 0.88


WORDS = st.sampled_from([*RULES.core, *RULES.support, *RULES.against, "and", "of"])
TEXTS = st.one_of(st.lists(WORDS, max_size=12).map(" ".join), st.text(max_size=60))
CATEGORIES = st.lists(st.sampled_from([*RULES.categories, "math.CO", "econ.EM", ".", ""]), max_size=4)


@settings(deadline=None)
@given(TEXTS, TEXTS, CATEGORIES)
def test_the_score_is_the_sum_of_its_reasons_within_bounds(title, abstract, categories):
    score = SCORER.score(title, abstract, categories)
    total = sum(reason.points for reason in score.reasons)
    assert score.points == round(min(max(total, 0), RULES.most), 1)
    assert len({(reason.word, reason.where) for reason in score.reasons}) == len(score.reasons)
    assert not score.reasons or any(reason.word in RULES.core for reason in score.reasons)


@settings(deadline=None)
@given(TEXTS, TEXTS, CATEGORIES)
def test_the_quick_look_changes_no_score(title, abstract, categories):
    assert SCORER.score(title, abstract, categories) == SCORER.score_of(tokens(title), tokens(abstract), categories)


@settings(deadline=None)
@given(TEXTS, CATEGORIES)
def test_a_title_never_counts_less_than_the_same_words_in_the_abstract(text, categories):
    kind = Scorer(replace(RULES, against={}))
    assert kind.score(text, "", categories).points >= kind.score("", text, categories).points
