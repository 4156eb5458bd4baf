"""Entry files are read strictly, and a fault is told with file, key, value and what is allowed."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
from pydantic import ValidationError

import catalog.entry
from catalog.entry import Entry, load_entries, load_entry, validate
from catalog.errors import CatalogError, EntryError, Problem
from catalog.locations import ENTRIES_VARIABLE, entries_root, entry_paths
from catalog.taxonomy import Backbone, Category, Fidelity, Kind, Modality, Status, Strength, Subcategory, Word

GOOD = {
    "slug": "some-method",
    "name": "Some Method",
    "title": "A title",
    "authors": ["Ada Lovelace"],
    "arxiv": "2106.09685",
    "published": "2021-06-17",
    "kind": "method",
    "category": "additive",
    "subcategory": "serial-adapter",
    "modality": ["llm"],
    "summary": "A summary.",
    "mechanism": {"backbone": "encoder", "latex": ["y = x"]},
    "claims": {"identity_at_init": True, "counts": [{"at": "gpt2", "trained": 1, "source": "table 1"}]},
    "reversibility": {"detachable": True, "mergeable": False, "strength": "linear"},
    "listed_in": [{"list": "some-list", "section": "S", "as": "A title"}],
}


def with_value(path: str, value: object) -> dict:
    """GOOD with the value at a dotted path replaced."""
    data = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    table = data
    for parent in parents:
        table = table[int(parent)] if parent.isdigit() else table[parent]
    table[last] = value
    return data


def only_problem(data: dict) -> Problem:
    entry, problems = validate(data)
    assert entry is None
    assert len(problems) == 1, problems
    return problems[0]


def test_a_good_entry_is_read():
    entry, problems = validate(GOOD)
    assert problems == ()
    assert isinstance(entry, Entry)
    assert entry.category is Category.ADDITIVE
    assert entry.status is Status.CURRENT
    assert entry.listed_in[0].printed_as == "A title"
    assert entry.year == 2021
    assert entry.implementation == "reference_impls.additive.some_method"
    assert entry.claim_backbones == (Backbone.ENCODER,)


def test_an_entry_cannot_be_changed():
    entry, _ = validate(GOOD)
    assert entry is not None
    with pytest.raises(ValidationError):
        entry.name = "other"


@pytest.mark.parametrize("key", ["slug", "name", "title", "authors", "published", "kind", "category", "summary"])
def test_a_required_key_that_is_missing_is_named(key):
    data = {k: v for k, v in GOOD.items() if k != key}
    problem = only_problem(data)
    assert (problem.key, problem.message, problem.hint) == (key, "is required and missing", "add it")


@pytest.mark.parametrize(
    ("path", "word", "near"),
    [
        ("category", "reparametrized", "reparameterized"),
        ("category", "Additive", "additive"),
        ("kind", "metod", "method"),
        ("modality", ["LLM"], "llm"),
        ("subcategory", "lowrank", "low-rank"),
        ("mechanism.backbone", "encoder_decoder", "encoder-decoder"),
        ("reversibility.strength", "nonlinar", "nonlinear"),
    ],
)
def test_a_word_outside_the_vocabulary_comes_with_the_words_and_a_near_miss(path, word, near):
    problem = only_problem(with_value(path, word))
    assert problem.key.startswith(path)
    assert problem.value == repr(word[0] if isinstance(word, list) else word)
    assert near in str(problem.allowed).split(", ")
    assert near in str(problem.hint)


@pytest.mark.parametrize(
    ("path", "value", "allowed"),
    [
        ("slug", "Some_Method", "lower-case letters"),
        ("slug", "a--b", "lower-case letters"),
        ("published", "17.6.2021", "YYYY-MM-DD"),
        ("published", "2021-13", "YYYY-MM-DD"),
        ("arxiv", "arXiv:2106.09685", "an arXiv id without version"),
        ("arxiv", "2106.09685v2", "an arXiv id without version"),
        ("doi", "https://doi.org/10.1/x", "a DOI without resolver"),
        ("url", "ftp://example.org", "https://"),
        ("url", "javascript:alert(1)", "https://"),
        ("url", 'https://example.org/"><script>', "https://"),
        ("code", "github.com/a/b", "https://"),
    ],
)
def test_a_malformed_value_comes_with_the_form_it_should_have(path, value, allowed):
    problem = only_problem(with_value(path, value))
    assert problem.key == path
    assert problem.message == "is not well formed"
    assert problem.value == repr(value)
    assert allowed in str(problem.allowed)


def test_an_unknown_key_comes_with_the_known_ones_and_a_near_miss():
    problem = only_problem(with_value("mechanism.pitfall", ["x"]))
    assert problem.key == "mechanism.pitfall"
    assert "golden_facts" in str(problem.allowed)
    assert problem.hint == "did you mean pitfalls?"


def test_an_unknown_key_in_a_row_is_located():
    problem = only_problem(with_value("listed_in.0.lnk", "https://example.org"))
    assert problem.key == "listed_in[0].lnk"
    assert problem.allowed == "list, section, as, link, commented"


@pytest.mark.parametrize(
    ("path", "value", "hint"),
    [
        ("title", "  ", "fill it in"),
        ("authors", [], "fill it in"),
        ("venue", "", "fill it in, or leave the key out when nothing is known"),
        ("listed_in.0.as", "", "fill it in"),
    ],
)
def test_an_empty_value_says_whether_it_may_be_left_out(path, value, hint):
    problem = only_problem(with_value(path, value))
    assert problem.message == "is empty"
    assert problem.hint == hint


@pytest.mark.parametrize("value", ["yes", 1, "true"])
def test_booleans_are_booleans(value):
    problem = only_problem(with_value("reversibility.mergeable", value))
    assert (problem.key, problem.allowed) == ("reversibility.mergeable", "true, false")


def test_every_fault_of_a_file_is_told_at_once(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text('slug = "X"\nname = "x"\n', encoding="utf-8")
    with pytest.raises(EntryError) as error:
        load_entry(path)
    assert str(path) in str(error.value)
    assert {problem.key for problem in error.value.problems} == {
        "slug", "title", "authors", "published", "kind", "category", "summary",
    }  # fmt: skip
    assert "\n  - slug: is not well formed; found 'X'" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a = [", "not valid TOML"), (b"a = \xff", "not UTF-8"), (b"a = 1\na = 2", "not valid TOML")],
)
def test_a_file_that_is_no_toml_is_an_error_for_people(tmp_path, content, message):
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(EntryError, match=message):
        load_entry(path)


def test_a_file_that_is_not_there_is_an_error_for_people(tmp_path):
    with pytest.raises(EntryError, match="cannot read"):
        load_entry(tmp_path / "none.toml")


def test_the_root_can_be_given_or_set(tmp_path, monkeypatch):
    assert entries_root().name == "entries"
    monkeypatch.setenv(ENTRIES_VARIABLE, str(tmp_path))
    assert entries_root() == tmp_path
    assert entries_root(tmp_path / "other") == tmp_path / "other"
    assert load_entries() == []


def test_a_root_that_is_not_there_says_how_to_give_one(tmp_path):
    with pytest.raises(EntryError, match="PEFT_CATALOG_ENTRIES"):
        load_entries(tmp_path / "none")


def test_all_entries_load_in_order():
    entries = load_entries()
    assert len(entries) == len(entry_paths()) == len({entry.slug for entry in entries})
    keys = [(str(entry.category), entry.slug) for entry in entries]
    assert keys == sorted(keys)


WITHOUT_A_METHOD = {
    "adapterhub", "peft-u", "dark-secrets-bert", "clip", "kindergarten-visual-prompts", "indictti", "lora-sparse",
}  # fmt: skip


def test_exactly_the_entries_without_a_method_say_why_they_have_no_implementation():
    assert {entry.slug for entry in load_entries() if entry.no_implementation} == WITHOUT_A_METHOD


def test_an_implementation_is_found_without_importing_it(tmp_path, monkeypatch):
    entry, _ = validate(GOOD)
    assert entry is not None
    assert not entry.has_implementation
    file = tmp_path / "additive" / "some_method.py"
    file.parent.mkdir()
    file.write_text("raise RuntimeError", encoding="utf-8")
    monkeypatch.setattr(catalog.entry, "implementation_folders", lambda: (tmp_path,))
    assert entry.has_implementation


@pytest.mark.parametrize("statement", ["import catalog", "import catalog.entry; catalog.entry.load_entries()"])
def test_importing_is_cheap(statement):
    """Neither the package nor its entries need torch, the database layer or the terminal's."""
    heavy = "{'torch', 'sqlmodel', 'sqlalchemy', 'rich', 'jinja2', 'reference_impls.adapter'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [Backbone, Category, Fidelity, Kind, Modality, Status, Strength, Subcategory])
def test_every_word_has_a_definition_of_its_own(words: type[Word]):
    definitions = list(words.definitions().values())
    assert list(words.definitions()) == words.words() == [f"{word}" for word in words]
    assert all(text.endswith(".") and len(text) > 15 for text in definitions)
    assert len(set(definitions)) == len(definitions)


def test_every_word_of_the_vocabulary_of_mechanisms_is_used():
    assert set(Subcategory) - {entry.subcategory for entry in load_entries()} == set()


def test_errors_say_what_where_what_is_allowed_and_what_next():
    error = CatalogError("wrong", where="here", allowed=["a", "b"], hint="do this")
    assert str(error) == "wrong\n  where: here\n  allowed: a, b\n  next: do this"
    assert error.exit_code == 2


EQUATIONS = [
    pytest.param(equation, id=f"{entry.slug}-{index}")
    for entry in load_entries()
    for index, equation in enumerate(entry.mechanism.latex)
]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_display_equations_are_rendered_without_leftovers(equation):
    converter = pytest.importorskip("latex2mathml.converter")
    mathml = converter.convert(equation)
    assert "\\" not in mathml, "an unknown command is left as it is"
    assert mathml.count("<math") == 1
