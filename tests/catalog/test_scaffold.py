"""A new entry and its implementation are begun honestly: the entry is a draft, and nothing can be attached."""

from __future__ import annotations

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import catalog.scaffold
from catalog import json_schema
from catalog.cli.entries import register
from catalog.entry import Entry, load_entry
from catalog.errors import CatalogError, EntryError, UsageError
from catalog.lint import lint
from catalog.scaffold import Draft, entry_of, is_slug, scaffold
from catalog.skeletons import entry_text, implementation_text

TITLE = 'A "quoted" \\title with """ and {{ braces }} and \'\'\' and \x07'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "entries"
    folder.mkdir()
    return folder


def run(*arguments: str) -> object:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, list(arguments))


def test_both_files_are_written_with_what_is_known(root):
    draft = Draft("new-method", "prompt", "2501.01234", "New Method", TITLE, ("Ada Lovelace",))
    entry, implementation = scaffold(draft, root)
    assert entry == root / "prompt" / "new-method.toml"
    assert implementation == root.parent / "reference_impls" / "prompt" / "new_method.py"
    data = tomllib.loads(entry.read_text(encoding="utf-8"))
    assert (data["title"], data["arxiv"], data["published"]) == (TITLE, "2501.01234", "2025-01")
    assert data["authors"] == ["Ada Lovelace"]


def test_blanks_are_faults_until_they_are_filled_in(root):
    (path, _) = scaffold(Draft("new-method", "prompt", "2501.01234"), root)
    with pytest.raises(EntryError) as error:
        load_entry(path)
    keys = {problem.key for problem in error.value.problems}
    assert {"draft", "title", "authors", "summary", "claims.identity_at_init", "reversibility.mergeable"} <= keys
    assert {finding.rule for finding in lint(root)} == {"schema", "draft"}


def test_every_key_of_the_scaffold_is_a_key_of_the_schema(root):
    (path, _) = scaffold(Draft("new-method", "prompt"), root)
    with pytest.raises(EntryError) as error:
        load_entry(path)
    assert [p.key for p in error.value.problems if "not a key" in p.message] == []


def test_what_is_known_besides_is_written_and_hints_are_comments(root):
    more = {"arxiv_categories": ("cs.CL", 'x"]'), "status": "withdrawn", "hints": ("a hint", "x\nslug = 1\r[a]\x00")}
    (entry, _) = scaffold(Draft("new-method", "prompt", **more), root)
    text = entry.read_text(encoding="utf-8")
    data = tomllib.loads(text)
    assert (data["arxiv_categories"], data["status"], data["slug"]) == (["cs.CL", 'x"]'], "withdrawn", "new-method")
    assert "\n# a hint\n# x slug = 1 [a]\ufffd\n" in text
    assert list(data).index("draft") == 0


def test_text_that_is_no_unicode_can_be_written(root):
    (entry, implementation) = scaffold(Draft("new-method", "prompt", title="a\ud800b", hints=["\udcff"]), root)
    assert tomllib.loads(entry.read_text(encoding="utf-8"))["title"] == "a?b"
    ast.parse(implementation.read_text(encoding="utf-8"))


@pytest.mark.parametrize("title", [TITLE, "", 'ends with a quote"', "back\\slash\\", "\x00", "a\r\u2028b"])
def test_the_implementation_is_python_whatever_the_title(title):
    tree = ast.parse(implementation_text(Draft("x-1", "additive", title=title, name="(X)^1")))
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)] == ["X1", "attach"]


@pytest.mark.parametrize("name", ["None", "Adapter", "AdapterError", "2D", "低秩"])
def test_the_class_has_a_name_that_python_accepts(name):
    tree = ast.parse(implementation_text(Draft("x", "additive", name=name)))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert found.name.startswith("Method")
    assert [ast.unparse(base) for base in found.bases] == ["Adapter"]


def test_the_implementation_refuses_to_be_attached(root):
    torch = pytest.importorskip("torch")
    (_, path) = scaffold(Draft("new-method", "prompt"), root)
    spec = importlib.util.spec_from_file_location("begun", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(RuntimeError, match="new-method is not implemented yet"):
        module.attach(torch.nn.Linear(1, 1))


def test_an_entry_without_category_of_methods_has_no_implementation(root):
    assert len(scaffold(Draft("a-study", "context"), root)) == 1


def test_nothing_is_overwritten(root):
    entry, implementation = scaffold(Draft("new-method", "prompt"), root)
    entry.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="there is an entry new-method already"):
        scaffold(Draft("new-method", "additive"), root)
    entry.unlink()
    implementation.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="not overwritten"):
        scaffold(Draft("new-method", "prompt"), root)
    assert implementation.read_text(encoding="utf-8") == "mine"
    assert not entry.exists()


def test_what_was_stopped_half_way_is_completed(root, monkeypatch):
    write = catalog.scaffold.write_atomic

    def stopped(path: Path, text: str) -> Path:
        if path.suffix == ".toml":
            raise KeyboardInterrupt
        return write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(catalog.scaffold, "write_atomic", stopped)
        with pytest.raises(KeyboardInterrupt):
            scaffold(Draft("new-method", "prompt", "2501.01234"), root)
    assert [path.name for path in root.rglob("*.toml")] == []
    paths = scaffold(Draft("new-method", "prompt", "2501.01234"), root)
    assert all(path.is_file() for path in paths)


def test_the_entry_of_a_paper_is_found_by_its_number(root):
    (entry, _) = scaffold(Draft("new-method", "prompt", "2501.01234"), root)
    assert entry_of("2501.01234", root) == entry
    assert entry_of("2501.01235", root) is None
    assert entry_of("2501.01234", root / "none") is None


@pytest.mark.parametrize(
    "slug", ["", "New", "a_b", "a--b", "-a", "../a", "a/b", "ä", "class", "lambda", "a\n", "x" * 61, "a.b"]
)
def test_slugs_that_cannot_be_files_and_modules_are_refused(root, slug):
    with pytest.raises(UsageError, match="cannot be a slug"):
        scaffold(Draft(slug, "additive"), root)
    assert list(root.rglob("*")) == []
    assert not is_slug(slug)


def test_a_near_slug_is_proposed(root):
    with pytest.raises(UsageError, match=r"did you mean my-method\?"):
        scaffold(Draft("My_Method", "additive"), root)


def test_an_unknown_category_lists_the_known_ones(root):
    with pytest.raises(UsageError) as error:
        scaffold(Draft("a", "reparametrised"), root)
    assert "allowed: selective, additive" in str(error.value)
    assert "did you mean reparameterized?" in str(error.value)


@pytest.mark.parametrize(
    "arxiv", ["2501.01234v2", "https://arxiv.org/abs/2501.01234", "2513.01234", "cs/0101001", "2501.01234\n", "x"]
)
def test_an_arxiv_id_is_checked(root, arxiv):
    with pytest.raises(UsageError, match="is not an arXiv id"):
        scaffold(Draft("a", "additive", arxiv), root)


def test_a_paper_that_has_an_entry_is_not_begun_again(root):
    scaffold(Draft("one", "additive", "2501.01234"), root)
    with pytest.raises(UsageError, match="has an entry already: one"):
        scaffold(Draft("two", "additive", "2501.01234"), root)


def test_an_installed_package_is_not_written_to(tmp_path, monkeypatch):
    root = tmp_path / "site-packages" / "catalog" / "entries"
    root.mkdir(parents=True)
    with pytest.raises(UsageError, match="not in an installed package"):
        scaffold(Draft("a", "additive"), root)
    assert list(root.iterdir()) == []


def test_in_a_checkout_the_implementation_goes_into_its_package(root, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog.scaffold, "shipped_root", lambda: root)
    monkeypatch.setattr(catalog.scaffold, "implementation_folders", lambda: (tmp_path / "package",))
    (_, path) = scaffold(Draft("a", "additive"), root)
    assert path == tmp_path / "package" / "additive" / "a.py"


def test_the_package_can_be_given(root, tmp_path):
    (_, path) = scaffold(Draft("a", "additive"), root, tmp_path / "mine")
    assert path == tmp_path / "mine" / "additive" / "a.py"


def test_the_command_says_what_it_wrote_and_what_is_next(root):
    result = run("new", "new-method", "--arxiv", "2501.01234", "--category", "hybrid", "--root", str(root))
    assert result.exit_code == 0
    assert str(root / "hybrid" / "new-method.toml") in result.output.replace("\n", "")
    assert "peft-catalog lint new-method" in result.output
    assert "draft = true is removed" in result.output


def test_the_command_passes_errors_on(root):
    result = run("new", "New", "--category", "hybrid", "--root", str(root))
    assert isinstance(result.exception, CatalogError)


def test_the_schema_file_is_current():
    written = json_schema.SCHEMA_FILE.read_text(encoding="utf-8")
    assert written == json_schema.schema_text(), "stale: run peft-catalog schema --write"


def test_the_schema_has_the_names_used_in_files_and_the_definitions_of_words():
    schema = json_schema.entry_schema()
    assert set(schema["properties"]) == set(Entry.model_fields)
    assert {"list", "as"} <= set(schema["$defs"]["Listing"]["properties"])
    assert "selective: Trains a chosen part" in schema["$defs"]["Category"]["description"]
    assert schema["additionalProperties"] is False


def test_the_command_prints_or_writes_the_schema(tmp_path, monkeypatch):
    assert run("schema").stdout == json_schema.schema_text()
    monkeypatch.setattr(json_schema, "SCHEMA_FILE", tmp_path / "entry.schema.json")
    assert "wrote" in run("schema", "--write").stdout
    assert (tmp_path / "entry.schema.json").read_text(encoding="utf-8") == json_schema.schema_text()


def test_the_entry_text_is_toml_for_every_combination():
    for arxiv in (None, "2501.01234"):
        for name in (None, "N"):
            assert tomllib.loads(entry_text(Draft("a", "additive", arxiv, name)))["slug"] == "a"
