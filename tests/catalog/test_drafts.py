"""A draft stops nothing: queries leave it out, the linter says what it lacks, and finishing it brings it in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import catalog
import catalog.lint
from catalog import freshness, store
from catalog.database import open_engine
from catalog.entry import Entry, load_entries, load_entry, validate
from catalog.errors import EntryError, StoreError
from catalog.json_schema import entry_schema
from catalog.lint import Collection, implementations, lint
from catalog.locations import ENTRIES_VARIABLE, shipped_root
from catalog.scaffold import Draft, scaffold
from tests.conftest import Ask

LORA = (shipped_root() / "reparameterized" / "lora.toml").read_text("utf-8")


def slugs(root: Path) -> list[str]:
    return [entry.slug for entry in load_entries(root)]


def begun(root: Path, text: str, slug: str = "begun") -> Path:
    """A draft file with this text."""
    path = root / "prompt" / f"{slug}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"draft = true\n{text}", encoding="utf-8")
    return path


def finished(slug: str, **change: str) -> str:
    """An entry with nothing missing, as text."""
    facts = {"name": slug, "title": f"On {slug}", "published": "2026", "kind": "method", "category": "prompt"} | change
    lines = [f'slug = "{slug}"', 'authors = ["A B"]', 'summary = "S"', *(f'{key} = "{facts[key]}"' for key in facts)]
    return "\n".join(lines) + "\n"


# Loading and building.


@pytest.mark.parametrize("text", ["", "slug = 7\nnonsense = []\n", 'slug = "lora"\n', LORA])
def test_a_draft_is_no_entry_whatever_it_says(few, text):
    before = slugs(few)
    begun(few, text)
    assert slugs(few) == before


def test_a_draft_of_broken_toml_is_told_by_its_file(few):
    path = begun(few, "title = \n")
    with pytest.raises(EntryError) as error:
        load_entries(few)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("mark", ['"true"', "1", "[]"])
def test_a_mark_that_is_no_truth_value_is_a_fault(few, mark):
    path = begun(few, finished("begun"))
    path.write_text(path.read_text("utf-8").replace("draft = true", f"draft = {mark}"), encoding="utf-8")
    with pytest.raises(EntryError, match="draft: is neither true nor false"):
        load_entries(few)


def test_a_draft_asked_for_by_its_file_is_refused_with_what_it_lacks(few):
    with pytest.raises(EntryError) as error:
        load_entry(begun(few, 'slug = "begun"\n'))
    assert {"draft", "title", "authors"} <= {problem.key for problem in error.value.problems}


def test_an_entry_may_say_that_it_is_no_draft():
    data = {"slug": "a", "name": "A", "title": "T", "authors": ["A B"], "published": "2026", "summary": "S"}
    data |= {"kind": "method", "category": "prompt"}
    entry, problems = validate({**data, "draft": False})
    assert (entry, problems) == (Entry(**data), ())
    entry, problems = validate({**data, "draft": True})
    assert entry is None
    assert [str(problem) for problem in problems] == [
        "draft: is true: the entry is a draft, which queries leave out; remove the line when nothing else is missing"
    ]


def test_editors_accept_the_mark():
    assert entry_schema()["properties"]["draft"]["type"] == "boolean"


def test_a_draft_is_in_no_database_until_it_is_finished(few, tmp_path, unmeasured):
    path, engine = begun(few, finished("begun")), open_engine(tmp_path / "catalog.sqlite")

    def found() -> list[str]:
        with catalog.open(tmp_path / "catalog.sqlite", entries=few) as cat:
            return [paper.slug for paper in cat.papers()]

    assert "begun" not in found()
    assert freshness.is_current(engine, few)
    path.write_text(path.read_text("utf-8") + "# edited\n", encoding="utf-8")
    assert not freshness.is_current(engine, few)
    assert "begun" not in found()
    path.write_text(path.read_text("utf-8").removeprefix("draft = true\n"), encoding="utf-8")
    assert not freshness.is_current(engine, few)
    assert "begun" in found()
    path.write_text("draft = true\n" + path.read_text("utf-8"), encoding="utf-8")
    assert "begun" not in found()
    path.unlink()
    assert not freshness.is_current(engine, few)
    engine.dispose()


def test_nothing_builds_on_a_draft(few, tmp_path, unmeasured, edit):
    begun(few, finished("begun"))
    edit("reparameterized/dora", 'builds_on = ["lora"]', 'builds_on = ["lora", "begun"]')
    engine = open_engine(tmp_path / "catalog.sqlite")
    with pytest.raises(StoreError, match="'begun', which is no entry"):
        store.build(engine, few)
    engine.dispose()
    (finding,) = [
        finding for finding in lint(few) if finding.rule == "builds-on-known" and "begun" in str(finding.value)
    ]
    assert (finding.file, finding.message) == ("reparameterized/dora.toml", "names a draft")


def test_a_new_entry_stops_no_command(ask_own: Ask, few, monkeypatch, unmeasured):
    monkeypatch.setenv(ENTRIES_VARIABLE, str(few))
    assert ask_own("new", "begun", "--category", "prompt").code == 0
    answer = ask_own("query", "--format", "csv")
    assert (answer.code, len(answer.out.splitlines()), "begun" in answer.out) == (0, 4, False)
    assert ask_own("info").code == 0
    assert ask_own("show", "begun").code == 2
    answer = ask_own("lint", "begun")
    assert answer.code == 1
    assert "prompt/begun.toml: draft: is true: the entry is a draft" in answer.out
    assert "prompt/begun.toml: title: is empty; fill it in" in answer.out


# Linting.


def rules(root: Path, file: str = "prompt/begun.toml") -> list[tuple[str, str]]:
    return [(finding.key, finding.rule) for finding in lint(root) if finding.file == file]


def test_what_a_draft_lacks_is_told_until_nothing_is(few):
    path = begun(few, 'slug = "begun"\nname = ""\n')
    assert {("draft", "draft"), ("name", "schema"), ("title", "schema")} <= set(rules(few))
    begun(few, finished("begun"))
    assert rules(few) == [("draft", "draft")]
    path.write_text(finished("begun"), encoding="utf-8")
    assert rules(few) == []


def test_a_complete_draft_is_held_against_the_entries_and_not_they_against_it(few):
    before = lint(few)
    begun(few, finished("begun", title="LoRA: Low-Rank Adaptation of Large Language Models", name="LoRA"))
    found = [finding for finding in lint(few) if finding not in before]
    assert {finding.file for finding in found} == {"prompt/begun.toml"}
    assert {finding.rule for finding in found} == {"draft", "title-unique", "name-unique"}
    begun(few, finished("begun", name="LoraConfig"))  # an alias of LoRA
    found = [finding for finding in lint(few) if finding not in before]
    assert [(finding.file, finding.rule) for finding in found] == [("prompt/begun.toml", "draft")]


def test_a_draft_without_readable_toml_is_a_finding(few):
    begun(few, "title = \n")
    assert rules(few) == [("file", "readable")]


def test_the_implementation_of_a_draft_is_bound_to_it(tmp_path):
    root, package = tmp_path / "entries", tmp_path / "impls"
    root.mkdir()
    (entry, _) = scaffold(Draft("new-method", "prompt"), root, package)
    bound = Collection((), implementations=(package,), drafts=(entry,))
    assert list(implementations.implementation_has_entry(bound)) == []
    stray = Collection((), implementations=(package,))
    (finding,) = implementations.implementation_has_entry(stray)
    assert finding.file == "impls/prompt/new_method.py"


def test_a_draft_in_the_shipped_catalog_is_the_only_finding(tmp_path, monkeypatch):
    """As where somebody has begun an entry in a checkout, with its implementation."""
    root, package = tmp_path / "entries", tmp_path / "reference_impls"
    shutil.copytree(shipped_root(), root)
    for module in ("catalog.lint", "catalog.scaffold"):
        monkeypatch.setattr(f"{module}.shipped_root", lambda: root)
    monkeypatch.setattr("catalog.scaffold.implementation_folders", lambda: (package,))
    monkeypatch.setattr("catalog.lint.core.implementation_folders", lambda: (package,))
    scaffold(Draft("new-method", "prompt"), root)
    assert (package / "prompt" / "new_method.py").is_file()
    assert {finding.file for finding in lint(root)} == {"prompt/new-method.toml"}
