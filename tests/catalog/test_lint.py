"""Each linter passes a good collection and fails on the one fault it is for; the shipped entries have none."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from catalog.cli.entries import register
from catalog.entry import validate
from catalog.errors import CatalogError
from catalog.lint import (
    LINTERS,
    Collection,
    EntryFile,
    Finding,
    claims,
    dates,
    equations,
    evidence,
    identity,
    implementations,
    lineage,
    links,
    lint,
    people,
    placement,
    prose,
    references,
)
from catalog.lists_data import ListItem, SourceList, Style

LIST = SourceList(
    slug="a-list",
    title="A list",
    style=Style.BADGES,
    read_on="2026-11",
    items=(ListItem(section="S", title="First title", link="https://example.org/1"),),
)


def entry_data(slug: str) -> dict:
    number = sum(map(ord, slug)) % 10000
    return {
        "slug": slug,
        "name": slug.upper(),
        "aliases": [f"{slug}Config"],
        "title": f"{slug} title",
        "authors": ["Ada Lovelace", "Alan M. Turing, Jr"],
        "arxiv": f"2106.{number:05}",
        "published": "2021-06-17",
        "doi": f"10.1234/{slug}",
        "url": "https://example.org/paper",
        "code": "https://github.com/a/b",
        "libraries": {"peft": "Config"},
        "kind": "method",
        "category": "additive",
        "builds_on": [],
        "summary": "Initialization is normalized, as in `initialise_weights` and 'behaviour'.",
        "mechanism": {"latex": [r"\left( \frac{a}{b} \right) \{ \begin{matrix} 1 \end{matrix}"]},
        "claims": {
            "parameters": "L * rank * d",
            "defaults": {"rank": 8},
            "counts": [{"at": "gpt2", "hyperparameters": {"rank": 1}, "trained": 12 * 768, "source": "table 1"}],
        },
        "sources": {"checked_on": "2026-11"},
        "listed_in": [{"list": "a-list", "section": "S", "as": "First title", "link": "https://example.org/1"}],
        "errata": [{"list": "a-list", "claim": "initialised", "fact": "not so", "evidence": "page"}],
    }


def collection(
    changes: dict[str, dict] | None = None,
    path: Path = Path("additive/first.toml"),
    implementations: tuple[Path, ...] = (),
) -> Collection:
    """Two entries, first and second; `changes` replaces top-level keys of them by slug."""
    files = []
    for slug in ("first", "second"):
        data = {**entry_data(slug), **(changes or {}).get(slug, {})}
        entry, problems = validate(data)
        assert entry is not None, problems
        files.append(EntryFile(path if slug == "first" else Path(f"additive/{slug}.toml"), entry))
    return Collection(tuple(files), (LIST,), implementations)


def first(**changes: object) -> Callable[[], Collection]:
    return lambda: collection({"first": changes})


def claimed(**changes: object) -> Callable[[], Collection]:
    return first(claims={**entry_data("first")["claims"], **changes})


COUNT = {"at": "gpt2", "trained": 1, "source": "table 1"}
DEVIATION = {"who": "peft 0.21.2", "what": "w", "evidence": "layer.py", "test": "tests/methods/test_a.py::test_b[c-1]"}
NOTE, WHO, WHY = "fidelity.note", "deviations[1].who", "claims.untestable[0].why"

BAD = [
    (placement.slug_is_file_name, lambda: collection(path=Path("additive/other.toml")), "slug", "first"),
    (placement.folder_is_category, lambda: collection(path=Path("prompt/first.toml")), "category", "additive"),
    (identity.slug_unique, lambda: collection({"second": {"slug": "first"}}), "slug", "first"),
    (identity.arxiv_unique, lambda: collection({"second": {"arxiv": entry_data("first")["arxiv"]}}), "arxiv", "2106."),
    (identity.doi_unique, lambda: collection({"second": {"doi": "10.1234/FIRST"}}), "doi", "10.1234/FIRST"),
    (identity.title_unique, lambda: collection({"second": {"title": "First: Títle!"}}), "title", "First: Títle!"),
    (identity.name_unique, lambda: collection({"second": {"name": "First"}}), "name", "First"),
    (identity.alias_unique, first(aliases=["Second"]), "aliases", "Second"),
    (identity.alias_unique, first(aliases=["Sécond"]), "aliases", "Sécond"),
    (identity.alias_unique, first(aliases=["FIRST"]), "aliases", "FIRST"),
    (lineage.builds_on_known, first(builds_on=["secnd"]), "builds_on", "secnd"),
    (lineage.builds_on_acyclic, first(builds_on=["first"]), "builds_on", "first -> first"),
    (
        lineage.builds_on_acyclic,
        lambda: collection({"first": {"builds_on": ["second"]}, "second": {"builds_on": ["first"]}}),
        "builds_on",
        "->",
    ),
    (
        lineage.builds_on_earlier,
        lambda: collection({"first": {"builds_on": ["second"]}, "second": {"published": "2021-08", "arxiv": None}}),
        "builds_on",
        "second",
    ),
    (lineage.superseded_by_known, first(status="superseded"), "superseded_by", "nothing"),
    (lineage.superseded_by_known, first(superseded_by="second"), "superseded_by", "second"),
    (lineage.superseded_by_known, first(status="superseded", superseded_by="third"), "superseded_by", "third"),
    (dates.date_exists, first(published="2021-02-30"), "published", "2021-02-30"),
    (dates.date_plausible, first(published="2199-01-01"), "published", "2199-01-01"),
    (dates.date_plausible, first(published="1821"), "published", "1821"),
    (dates.date_plausible, first(sources={"checked_on": "2199-01"}), "sources.checked_on", "2199-01"),
    (dates.date_agrees_with_arxiv, first(arxiv="2104.00001"), "published", "2021-06-17"),
    (dates.date_agrees_with_arxiv, first(arxiv="2006.00001", published="2021"), "published", "2021"),
    (dates.arxiv_month_exists, first(arxiv="2113.00001"), "arxiv", "2113.00001"),
    (people.authors_unique, first(authors=["Ada Lovelace", "Ada Lovelace"]), "authors", "Ada Lovelace"),
    (people.author_is_one_name, first(authors=["Ada Lovelace et al."]), "authors", "et al"),
    (people.author_is_one_name, first(authors=["Lovelace, Ada"]), "authors", "Lovelace, Ada"),
    (people.author_is_one_name, first(authors=["Ada Lovelace and Alan Turing"]), "authors", "and"),
    (links.url_well_formed, first(url="https://localhost/x"), "url", "localhost"),
    (links.url_well_formed, first(code="https://-.org/"), "code", "-.org"),
    (links.url_alive, first(url="https://www.paperswithcode.com/paper/x"), "url", "paperswithcode"),
    (links.url_canonical, first(url="https://export.arxiv.org/abs/2106.09685"), "url", "export"),
    (prose.no_html, first(summary="A <b>bold</b> word"), "summary", "<b>"),
    (prose.no_html, first(mechanism={"pitfalls": ["fine", "x &lt; y"]}), "mechanism.pitfalls[1]", "&lt;"),
    (prose.american_spelling, first(summary="The initialisation"), "summary", "initialisation"),
    (prose.american_spelling, first(how_it_differs="Relabelled once"), "how_it_differs", "Relabelled"),
    (
        prose.american_spelling,
        first(errata=[{"list": "a-list", "claim": "c", "fact": "a grey area", "evidence": "e"}]),
        "errata[0].fact",
        "grey",
    ),
    (prose.american_spelling, first(claims={"untestable": [{"claim": "c", "why": "by licences"}]}), WHY, "licences"),
    (prose.own_words, first(summary="In this paper we propose a thing"), "summary", "In this paper"),
    (prose.about_the_paper, first(mechanism={"pitfalls": ["a, b chosen by us"]}), "mechanism.pitfalls[0]", "by us"),
    (prose.about_the_paper, first(fidelity={"basis": "paper", "note": "It could not be read"}), NOTE, "could not be"),
    (
        prose.about_the_paper,
        first(sources={"unverified": ["doi", "url (page not opened)"]}),
        "sources.unverified[1]",
        "not opened",
    ),
    (references.list_known, first(listed_in=[{"list": "b-list", "as": "x"}]), "listed_in[0].list", "b-list"),
    (
        references.list_known,
        first(errata=[{"list": "b-list", "claim": "c", "fact": "f", "evidence": "e"}]),
        "errata[0].list",
        "b-list",
    ),
    (
        references.listing_is_item,
        first(listed_in=[{"list": "a-list", "section": "S", "as": "First title"}]),
        "listed_in[0]",
        "First title",
    ),
    (
        references.listing_is_item,
        first(listed_in=[{**entry_data("first")["listed_in"][0], "as": "Second title"}]),
        "listed_in[0]",
        "Second title",
    ),
    (
        references.listing_is_item,
        first(listed_in=[{**entry_data("first")["listed_in"][0], "commented": True}]),
        "listed_in[0]",
        "First title",
    ),
    (evidence.reconstruction_is_explained, first(fidelity={"basis": "reconstruction"}), NOTE, "nothing"),
    (evidence.deviation_names_version, first(deviations=[DEVIATION, {**DEVIATION, "who": "peft"}]), WHO, "peft"),
    (
        evidence.deviation_test_well_formed,
        first(deviations=[{**DEVIATION, "test": "test_a_starts_at_zero"}]),
        "deviations[0].test",
        "test_a_starts_at_zero",
    ),
    (implementations.no_implementation_is_true, first(no_implementation="because"), "no_implementation", "because"),
    (claims.formula_readable, claimed(parameters="L * rank * d +"), "claims.parameters", "L * rank * d +"),
    (claims.formula_readable, claimed(parameters="L * ranks"), "claims.parameters", "L * ranks"),
    (claims.reported_model_known, claimed(counts=[{**COUNT, "at": "gpt-2"}]), "claims.counts[0].at", "gpt-2"),
    (claims.reported_count_follows, claimed(counts=[COUNT]), "claims.counts[0].trained", "1"),
    (claims.reported_count_follows, claimed(parameters="L / 0"), "claims.counts[0].trained", "L / 0"),
    (claims.hyperparameter_is_keyword, claimed(defaults={"rank": 8, "lambda": 1}), "claims.defaults", "lambda"),
    (claims.hyperparameter_is_keyword, claimed(hyperparameters={"r-1": 8}), "claims.hyperparameters", "r-1"),
    (equations.latex_balanced, first(mechanism={"latex": ["x", r"\frac{a}{b"]}), "mechanism.latex[1]", "frac"),
    (equations.latex_balanced, first(mechanism={"latex": ["}{"]}), "mechanism.latex[0]", "}{"),
    (equations.latex_balanced, first(mechanism={"latex": ["$x$"]}), "mechanism.latex[0]", "$x$"),
    (equations.latex_balanced, first(mechanism={"latex": [r"\left( x )"]}), "mechanism.latex[0]", "left"),
    (equations.latex_balanced, first(mechanism={"latex": [r"\begin{cases} x"]}), "mechanism.latex[0]", "cases"),
    (equations.latex_balanced, first(mechanism={"latex": [r"x \end{cases}"]}), "mechanism.latex[0]", "cases"),
]


@pytest.mark.parametrize(("linter", "bad", "key", "value"), BAD, ids=lambda part: getattr(part, "__name__", None))
def test_linter_finds_its_fault(linter, bad, key, value):
    assert list(linter(collection())) == []
    findings = list(linter(bad()))
    assert len(findings) == 1
    found = findings[0]
    assert found.key == key
    assert value in str(found.value)
    assert found.rule == linter.__name__.replace("_", "-") or found.rule.endswith("-unique")
    assert found.message
    assert found.allowed
    assert found.file == bad().files[0].name or linter.__name__.endswith("_unique") or "->" in str(found.value)


def test_every_linter_is_shown_to_fail():
    elsewhere = {
        implementations.implementation_has_entry,
        implementations.implemented_is_described,
        references.item_has_entry,
    }
    assert {linter for linter, *_ in BAD} | elsewhere == set(LINTERS)


def test_every_linter_says_what_it_is_for():
    assert all(linter.__doc__ for linter in LINTERS)


def test_an_alias_of_two_entries_is_told_at_both():
    findings = list(identity.alias_unique(first(aliases=["SECONDCONFIG"])()))
    assert [finding.file for finding in findings] == ["additive/first.toml", "additive/second.toml"]


def test_titles_in_other_scripts_are_told_apart():
    titles = {"first": {"title": "低秩"}, "second": {"title": "提示"}}
    assert list(identity.title_unique(collection(titles))) == []


def test_two_methods_of_one_paper_may_share_its_number_when_one_names_the_other():
    shared = {"arxiv": entry_data("first")["arxiv"], "builds_on": ["first"]}
    assert list(identity.arxiv_unique(collection({"second": shared}))) == []


def test_implementations_and_entries_are_bound_both_ways(tmp_path):
    package = tmp_path / "impls"
    file = package / "additive" / "first.py"
    file.parent.mkdir(parents=True)
    file.touch()
    (package / "additive" / "__init__.py").touch()
    both = collection(implementations=(package,))
    assert list(implementations.implementation_has_entry(both)) == []

    without_method = {"first": {"kind": "study", "no_implementation": "because"}}
    assert list(implementations.no_implementation_is_true(collection(without_method))) == []
    contradicted = collection(without_method, implementations=(package,))
    (finding,) = implementations.no_implementation_is_true(contradicted)
    assert "additive/first.py" in finding.message

    (package / "additive" / "stray_one.py").touch()
    (finding,) = implementations.implementation_has_entry(both)
    assert (finding.file, finding.allowed) == ("impls/additive/stray_one.py", "an entry additive/stray-one.toml")


def test_an_implemented_entry_is_described(tmp_path):
    package = tmp_path / "impls"
    (package / "additive").mkdir(parents=True)
    (package / "additive" / "first.py").touch()
    undo = {"detachable": True, "mergeable": True, "strength": "linear"}
    told = {"fidelity": {"basis": "paper"}, "reversibility": undo, "claims": {"backbones": ["decoder"]}}
    linter = implementations.implemented_is_described
    assert list(linter(collection({"first": told}, implementations=(package,)))) == []
    assert list(linter(collection())) == []
    findings = list(linter(collection(implementations=(package,))))
    assert {finding.key for finding in findings} == {"fidelity", "reversibility", "claims.backbones"}
    assert {finding.file for finding in findings} == {"additive/first.toml"}
    assert all(finding.allowed for finding in findings)


def accounting(*listed: list[dict]) -> Collection:
    """The whole catalog, where first and second appear on the list as told."""
    files = collection(
        {slug: {"listed_in": rows} for slug, rows in zip(("first", "second"), listed, strict=True)}
    ).files
    return Collection(files, (LIST,), complete=True)


def test_every_item_of_a_list_is_in_one_entry():
    row = entry_data("first")["listed_in"][0]
    assert list(references.item_has_entry(accounting([row], []))) == []
    assert list(references.item_has_entry(collection())) == [], "only the whole catalog accounts for the lists"

    (missing,) = references.item_has_entry(accounting([], []))
    assert (missing.file, missing.key, missing.value) == ("lists.toml", "a-list.items[0]", "'First title'")
    assert missing.message == "is in no entry"
    (twice,) = references.item_has_entry(accounting([row], [row]))
    assert twice.message == "is in additive/first.toml and additive/second.toml"
    assert twice.allowed


@pytest.mark.parametrize(
    ("base", "later"), [("2021-07-31", False), ("2021-08-01", True), ("2022", True), ("2021", False)]
)
def test_papers_of_two_months_on_end_may_build_on_each_other(base, later):
    changes = {"first": {"builds_on": ["second"]}, "second": {"published": base, "arxiv": None}}
    assert bool(list(lineage.builds_on_earlier(collection(changes)))) == later


def test_one_month_of_grace_between_number_and_announcement():
    assert list(dates.date_agrees_with_arxiv(first(arxiv="2105.00001")())) == []
    assert list(dates.date_agrees_with_arxiv(first(arxiv="1906.00001", published="2019-07")())) == []
    assert list(dates.date_agrees_with_arxiv(first(arxiv="2212.00001", published="2019")())) == []


def test_today_is_plausible_and_tomorrow_is_not(monkeypatch):
    monkeypatch.setattr(dates, "today", lambda: datetime.date(2021, 6, 17))
    good = first(sources={"checked_on": "2021-06"})()
    later = first(published="2021-06-18", sources={"checked_on": "2021-06"})()
    mine = [f for f in dates.date_plausible(good) if f.file == "additive/first.toml"]
    assert mine == []
    assert [f.value for f in dates.date_plausible(later) if f.key == "published"] == ["'2021-06-18'"]


def test_the_shipped_entries_have_no_findings():
    assert [str(finding) for finding in lint()] == []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one good entry and one that breaks the schema."""
    (tmp_path / "additive").mkdir()
    (tmp_path / "additive" / "good.toml").write_text(
        'slug = "good"\nname = "Good"\ntitle = "T"\nauthors = ["A B"]\npublished = "2020"\n'
        'kind = "method"\ncategory = "additive"\nsummary = "S"\n',
        encoding="utf-8",
    )
    (tmp_path / "additive" / "bad.toml").write_text('slug = "bad"\nknd = "method"\n', encoding="utf-8")
    (tmp_path / "additive" / "torn.toml").write_text("slug = \x1b[31m", encoding="utf-8")
    return tmp_path


@pytest.fixture
def app() -> typer.Typer:
    program = typer.Typer()
    register(program)
    return program


def test_files_that_break_the_schema_are_findings_too(root):
    found = {(finding.file, finding.key, finding.rule) for finding in lint(root)}
    assert ("additive/bad.toml", "knd", "schema") in found
    assert ("additive/bad.toml", "title", "schema") in found
    assert ("additive/torn.toml", "file", "readable") in found
    assert not any(file == "additive/good.toml" for file, *_ in found)


def test_the_command_fails_with_findings_and_names_file_key_value_and_what_is_allowed(app, root):
    result = CliRunner().invoke(app, ["lint", "--root", str(root)])
    assert result.exit_code == 1
    assert "additive/bad.toml: knd: is not a key of an entry" in result.output
    assert "allowed: slug, name" in result.output
    assert "did you mean kind?" in result.output
    assert "\x1b" not in result.output


def test_the_command_prints_json(app, root):
    result = CliRunner().invoke(app, ["lint", "--root", str(root), "--json"])
    rows = json.loads(result.stdout)
    assert result.exit_code == 1
    assert {"file", "key", "rule", "message", "value", "allowed", "hint"} == set(rows[0])


def test_the_command_is_content_with_a_good_entry(app, root):
    result = CliRunner().invoke(app, ["lint", "good", "--root", str(root)])
    assert (result.exit_code, result.stdout) == (0, "no findings\n")
    empty = CliRunner().invoke(app, ["lint", "good", "--root", str(root), "--json"])
    assert (empty.exit_code, empty.stdout) == (0, "[]\n")


def test_the_command_knows_the_root_from_the_environment(app, root, monkeypatch):
    monkeypatch.setenv("PEFT_CATALOG_ENTRIES", str(root))
    assert CliRunner().invoke(app, ["lint"]).exit_code == 1


def test_the_command_refuses_an_unknown_slug_with_near_misses(app, root):
    result = CliRunner().invoke(app, ["lint", "goood", "--root", str(root)])
    assert isinstance(result.exception, CatalogError)
    assert "did you mean good?" in str(result.exception)


def test_findings_sort_by_file_and_key():
    one = Finding("a.toml", "b", "r", "m", None)
    other = Finding("a.toml", "a", "r", "m", "v")
    assert sorted([one, other]) == [other, one]
