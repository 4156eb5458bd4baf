"""Stored queries and scoring words: those shipped, those of the user over them, and mistakes in either."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalog.discovery.queries import LONGEST_QUERY, SHIPPED, VARIABLE, QueriesError, load, read
from catalog.taxonomy import Category


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_shipped_query_is_told_and_restricted_to_categories():
    rules = load()
    assert len(rules.queries) >= 8
    assert rules.comments.keys() == rules.queries.keys()
    for query in rules.queries.values():
        assert query.startswith("(cat:cs.CL OR cat:cs.LG OR cat:cs.CV OR cat:cs.AI")
        assert query.count("(") == query.count(")")
        assert query.count('"') % 2 == 0
        assert query.isprintable()


def test_every_category_has_words_that_lead_to_it():
    assert all(load().leads[word] for word in Category.words())


def test_words_whose_case_matters_are_words():
    rules = load()
    leads = [word for words in rules.leads.values() for word in words]
    assert rules.as_written <= {*rules.core, *rules.support, *rules.against, *leads}


def test_signs_of_the_points_agree_with_their_tables():
    rules = load()
    assert min(rules.core.values()) > 0
    assert min(rules.support.values()) > 0
    assert max(rules.against.values()) < 0
    assert rules.core.keys().isdisjoint({**rules.support, **rules.against})


def test_a_file_of_ones_own_goes_first_word_by_word(tmp_path, monkeypatch):
    text = """
    [[query]]
    name = "peft"
    comment = "mine"
    search = "abs:PEFT"
    categories = ["q-bio.NC"]
    [[query]]
    name = "new"
    comment = "another"
    search = '''ti:"spectral
        tuning"'''
    [score]
    threshold = 7
    as_written = ["DoRA"]
    core = { LoRA = 1, DoRA = 50, "low rank" = 0 }
    [leads.prompt]
    whisper = 9
    """
    shipped = load()
    monkeypatch.setenv(VARIABLE, str(own(tmp_path, text)))
    rules = load()
    assert rules.queries["peft"] == "(cat:q-bio.NC) AND (abs:PEFT)"
    assert rules.queries["new"].endswith('AND (ti:"spectral tuning")')
    assert rules.queries["prompts"] == shipped.queries["prompts"]
    assert (rules.threshold, rules.most) == (7, shipped.most)
    assert rules.as_written == shipped.as_written | {"DoRA"}
    assert (rules.core["LoRA"], rules.core["DoRA"], rules.core["PEFT"]) == (1, 50, shipped.core["PEFT"])
    assert "low rank" not in rules.core
    assert rules.leads["prompt"] == {**shipped.leads["prompt"], "whisper": 9}


def test_an_empty_file_changes_nothing(tmp_path):
    assert load(own(tmp_path, "")) == load()


QUERY = '[[query]]\nname = "a"\ncomment = "b"\n'
BAD = [
    ("nonsense = 1", "nonsense"),
    ("x = ", "not valid TOML"),
    ("categories = []", "categories"),
    ('categories = ["cs.CL OR all:x"]', "categories.0"),
    (QUERY, "query.0.search"),
    (QUERY + "search = ''", "query.0.search"),
    (QUERY + "search = '(abs:a'", "without its other half"),
    (QUERY + "search = 'abs:a)('", "without its other half"),
    (QUERY + "search = 'abs:\"a'", "without its other half"),
    (QUERY + 'search = "abs:a\\u0000"', "control character"),
    (QUERY + f"search = 'abs:{'a' * LONGEST_QUERY}'", "query.0.search"),
    (QUERY.replace('"a"', '"A B"') + "search = 'abs:a'", "query.0.name"),
    ("[score]\nthreshold = 'x'", "score.threshold"),
    ("[score]\nthreshold = 0", "score.threshold"),
    ("[score]\nmost = inf", "score.most"),
    ("[score.core]\nx = nan", "score.core.x"),
    ("[score.core]\n'--' = 1", "neither letters nor digits"),
    ("[score.core]\n'a*b' = 1", "elsewhere than at the beginning"),
    ("[score.core]\n'low *rank' = 1", "elsewhere than at the beginning"),
    ("[score.core]\n'*' = 1", "neither letters nor digits"),
    ("[leads.prompts]\nx = 1", "allowed: selective, additive, prompt"),
]


@pytest.mark.parametrize(("text", "told"), BAD)
def test_a_mistake_is_told_with_file_and_key(tmp_path, text, told):
    path = own(tmp_path, text)
    with pytest.raises(QueriesError) as error:
        load(path)
    assert told in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_told(tmp_path):
    with pytest.raises(QueriesError, match="cannot read the queries"):
        load(tmp_path / "none.toml")
    path = tmp_path / "own.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(QueriesError, match="not valid TOML"):
        load(path)


def test_the_shipped_file_is_valid_by_itself():
    assert read(SHIPPED).score.threshold
