"""The commands that ask: their formats, their messages, and what never reaches a terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from markdown_it import MarkdownIt

import catalog
from catalog.cli import AREAS, area_of, make_app
from catalog.entry import Entry
from catalog.query import Catalog
from tests.catalog.rows import evidence_row
from tests.conftest import Ask

ASKED = ("query", "--category", "reparameterized", "--strength", "linear", "--mergeable")
HOSTILE = r"Bad \u001b[2J\u001b]0;owned\u0007 \u202edesrever\u202c \u009b31m | `x` <b>\r\nline [red]two[/red] =1+1"
STEERING = ("\x1b", "\x07", "\u202e", "\u202c", "\x9b", "\r")


def program(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Runs the program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from catalog.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=Path(catalog.__file__).parents[1],
        **settings,  # type: ignore[call-overload]
    )


@pytest.fixture
def slugs(cat: Catalog) -> list[str]:
    """What ASKED asks for."""
    return [paper.slug for paper in cat.papers(category="reparameterized", strength="linear", mergeable=True)]


# Formats.


def test_table(ask: Ask, slugs: list[str]) -> None:
    lines = ask(*ASKED).out.splitlines()
    assert lines[0].split() == ["slug", "year", "category", "subcategory", "merge", "strength", "claims", "title"]
    assert [line.split()[0] for line in lines[1:-1] if line[0] != " "] == slugs
    assert lines[-1].strip() == f"{len(slugs)} papers"


def test_table_of_one_and_of_none(ask: Ask) -> None:
    assert ask("query", "--limit", "1").out.rstrip().endswith("1 paper")
    answer = ask("query", "qqqqq")
    assert (answer.code, answer.out.split()[-2:]) == (0, ["0", "papers"])


def test_json(ask: Ask, entries: list[Entry], slugs: list[str]) -> None:
    found = json.loads(ask(*ASKED, "--json").out)
    assert [item["slug"] for item in found] == slugs
    assert found == json.loads(ask(*ASKED, "--format", "json").out)
    by_slug = {entry.slug: entry for entry in entries}
    for item in found:
        measured = {name: item.pop(name) for name in ("implementation", "evidence", "bench")}
        assert Entry.model_validate(item) == by_slug[item["slug"]]
        assert isinstance(measured["evidence"], list)


def test_jsonl(ask: Ask) -> None:
    lines = ask(*ASKED, "-f", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == json.loads(ask(*ASKED, "--json").out)


def test_csv(ask: Ask, cat: Catalog, slugs: list[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(ask(*ASKED, "-f", "csv").out)))
    assert [row["slug"] for row in rows] == slugs
    lora = next(row for row in rows if row["slug"] == "lora")
    assert lora["title"] == cat.paper("lora").title
    assert lora["authors"].split("; ") == list(cat.paper("lora").authors)
    assert (lora["mergeable"], lora["strength"], lora["implementation"]) == (
        "yes",
        "linear",
        "reference_impls.reparameterized.lora",
    )


def test_markdown(ask: Ask, slugs: list[str]) -> None:
    text = ask(*ASKED, "-f", "markdown").out
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert sum(token.type == "tr_open" for token in tokens) == len(slugs) + 1
    assert sum(token.type == "td_open" for token in tokens) == 4 * len(slugs)
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines()}) == 1


def test_slugs(ask: Ask, slugs: list[str]) -> None:
    assert ask(*ASKED, "-f", "slugs").out.splitlines() == slugs


def test_every_paper_in_every_format(ask: Ask, entries: list[Entry]) -> None:
    assert len(json.loads(ask("query", "--json").out)) == len(entries)
    assert len(list(csv.reader(io.StringIO(ask("query", "-f", "csv").out)))) == len(entries) + 1
    assert len(ask("query", "-f", "markdown").out.splitlines()) == len(entries) + 2


def test_parameters_are_shown_where_they_are_asked_for(ask: Ask) -> None:
    lines = ask("query", "--max-parameters", "300k", "--at", "roberta-base").out.splitlines()
    assert "trained at roberta-base" in lines[0]
    assert any(line.startswith("bitfit") and "104,450" in line for line in lines)


# Other commands.


def test_show(ask: Ask, cat: Catalog) -> None:
    page = ask("show", "lora").out
    for part in (cat.paper("lora").title, "arxiv.org/abs/2106.09685", "Edward J. Hu", "builds on: houlsby-adapter"):
        assert part in page
    assert ask("show", "(IA)^3", "-f", "slugs").out == "ia3\n"
    assert json.loads(ask("show", "2106.09685", "--json").out)[0]["slug"] == "lora"


def test_show_of_every_paper(cat: Catalog) -> None:
    from rich.console import Console

    from catalog.present import page

    for paper in cat.papers():
        out = io.StringIO()
        Console(file=out, width=100).print(page(paper, cat.lineage(paper.slug)))
        assert paper.slug in out.getvalue() or paper.name in out.getvalue()


def test_categories_authors_lineage_info(ask: Ask, cat: Catalog) -> None:
    categories = json.loads(ask("categories", "--json").out)
    assert {row["category"]: row["papers"] for row in categories} == {c.category: c.papers for c in cat.categories()}
    assert ask("categories").out.count("\n") >= len(categories)
    authors = json.loads(ask("authors", "--limit", "4", "--json").out)
    assert [(row["author"], row["papers"]) for row in authors] == [(a.name, a.papers) for a in cat.authors(limit=4)]
    assert "Edward J. Hu" in ask("authors", "hu").out
    assert "dora" in ask("lineage", "lora").out
    rows = json.loads(ask("lineage", "dora", "--json").out)
    assert {"dora": "builds on", "paper": "lora", "steps": 1} in rows
    info = json.loads(ask("info", "--json").out)
    assert info["papers"] == cat.count()
    assert f"{info['papers']} papers" in ask("info").out


@pytest.mark.parametrize(
    ("years", "first", "last"),
    [("2023", 2023, 2023), ("2021-2022", 2021, 2022), ("2024-", 2024, None), ("-2020", None, 2020)],
)
def test_years(ask: Ask, cat: Catalog, years: str, first: int | None, last: int | None) -> None:
    expected = [paper.slug for paper in cat.papers(year_from=first, year_to=last)]
    assert ask("query", f"--year={years}", "-f", "slugs").out.splitlines() == expected != []


@pytest.mark.parametrize("text", ["300k", "0.3M", "300000", "300,000", "300_000", "300 K"])
def test_numbers(ask: Ask, text: str) -> None:
    answer = ask("query", "--max-parameters", text, "--at", "roberta-base", "-f", "slugs").out
    assert answer == ask("query", "--max-parameters", "300k", "--at", "roberta-base", "-f", "slugs").out != ""


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["query", "--category", "adaptive"], ["'adaptive' is not a category", "did you mean additive"]),
        (["query", "--subcategory", "low-rnk"], ["did you mean low-rank"]),
        (["query", "--strength", "lineer"], ["did you mean linear"]),
        (["query", "--status", "verifed"], ["did you mean verified"]),
        (["query", "--status", "verified", "--claim", "mergable"], ["did you mean mergeable"]),
        (["query", "--claim", "mergeable"], ["--status"]),
        (["query", "--list", "peft-state"], ["did you mean peft-state-of-the-art"]),
        (["query", "--library", "pefts"], ["did you mean peft"]),
        (["query", "--builds-on", "lorra"], ["no paper is known as 'lorra'", "LoRA"]),
        (["query", "--sort", "date"], ["allowed: name, published, slug, relevance"]),
        (["query", "--format", "yaml"], ["'yaml' is not an output format", "jsonl"]),
        (["query", "--year", "then"], ["2021-2023"]),
        (["query", "--year", "-"], ["2021-2023"]),
        (["query", "--max-parameters", "many", "--at", "roberta-base"], ["300k"]),
        (["query", "--max-parameters", "1k"], ["--at roberta-base"]),
        (["query", "--max-parameters", "1k", "--at", "robertabase"], ["roberta-base"]),
        (["query", "--limit", "0"], ["--limit"]),
        (["query", "--no-such-option"], ["--no-such-option"]),
        (["show", "lorra"], ["no paper is known as 'lorra'", "LoRA"]),
        (["show", "zzzzzz"], ["peft-catalog query 'zzzzzz'"]),
        (["lineage", "lorra"], ["LoRA"]),
        (["shwo", "lora"], ["shwo"]),
        (["--db", "/dev/null/x.sqlite", "query"], ["/dev/null"]),
    ],
)
def test_mistakes_get_a_message_and_exit_code_2(ask: Ask, arguments: list[str], parts: list[str]) -> None:
    answer = ask(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    for part in parts:
        assert part in answer.err


def test_a_mistake_in_an_entry_is_told(few: Path, tmp_path: Path, edit: Callable[[str, str, str], None]) -> None:
    edit("reparameterized/lora", 'strength = "linear"', 'strength = "liner"')
    environment = {**os.environ, "PEFT_CATALOG_ENTRIES": str(few)}
    done = program("--db", str(tmp_path / "a.sqlite"), "query", env=environment)
    assert done.returncode == 2
    for part in ("lora.toml", "reversibility.strength", "did you mean linear"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_arguments_that_are_no_text_are_taken_as_they_come(ask: Ask) -> None:
    assert ask("query", "\udcff\udcfe").code == 0
    assert ask("query", "--author", "\udcff").code == 0
    assert ask("show", "\udcff").code == 2


# Where the database is.


def test_the_option_goes_before_the_variable(
    ask: Ask, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFT_CATALOG_ENTRIES", str(few))
    named, other = tmp_path / "named.sqlite", tmp_path / "deep" / "other.sqlite"
    monkeypatch.setenv("PEFT_CATALOG_DB", str(named))
    assert ask("query", "-f", "slugs").out.split() == ["houlsby-adapter", "dora", "lora"]
    assert named.is_file()
    assert ask("--db", str(other), "query", "-f", "slugs").out.split() == ["houlsby-adapter", "dora", "lora"]
    assert other.is_file()
    assert ask("--db", str(other), "build").out == f"built {other}\n"


def test_the_first_use_builds_the_database_in_the_users_folder(few: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PEFT_CATALOG_DB"}
    environment |= {"PEFT_CATALOG_ENTRIES": str(few), "XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = program("query", "-f", "slugs", env=environment)
    assert done.stdout.split() == ["houlsby-adapter", "dora", "lora"], done.stderr
    assert len(list(tmp_path.rglob("catalog.sqlite"))) == 1


# Hostile text.


@pytest.fixture
def hostile(few: Path, tmp_path: Path, edit: Callable[[str, str, str], None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog whose LoRA has a title, an author and a measurement that try to steer the terminal."""
    edit("reparameterized/lora", 'title = "LoRA: Low-Rank', f'title = "{HOSTILE}')
    edit("reparameterized/lora", '"Edward J. Hu"', r'"Edward\u001b[2J J. Hu"')
    path = tmp_path / "hostile.sqlite"
    with catalog.open(path, entries=few) as cat:
        cat.record_evidence([evidence_row("lora", measured="\x1b[2Jyes")])
    monkeypatch.setenv("PEFT_CATALOG_ENTRIES", str(few))
    return path


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv", "markdown", "slugs"])
def test_no_control_character_of_a_title_reaches_the_terminal(ask: Ask, hostile: Path, form: str) -> None:
    out = ask("--db", str(hostile), "query", "-f", form).out
    assert [sign for sign in STEERING if sign in out] == []
    assert "owned" in out or form == "slugs"
    if form == "table":
        assert "[red]two[/red]" in out  # shown, not obeyed
    if form == "json":
        assert json.loads(out)[-1]["title"].startswith("Bad \x1b[2J")  # escaped, not lost
    if form == "jsonl":
        assert len(out.splitlines()) == 3
    if form == "csv":
        assert len(list(csv.reader(io.StringIO(out)))) == 4


@pytest.mark.parametrize("command", [["show", "lora"], ["authors"], ["lineage", "lora"], ["show", "\x1b[2J"]])
def test_no_control_character_reaches_the_terminal_from_other_commands(
    ask: Ask, hostile: Path, command: list[str]
) -> None:
    answer = ask("--db", str(hostile), *command)
    assert answer.out or answer.err
    assert [sign for sign in STEERING if sign in answer.out + answer.err] == []


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_a_cell_is_no_formula_in_a_spreadsheet(
    ask: Ask,
    few: Path,
    tmp_path: Path,
    edit: Callable[[str, str, str], None],
    start: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edit("reparameterized/lora", 'title = "LoRA: Low-Rank', f'title = "{start}cmd|x')
    monkeypatch.setenv("PEFT_CATALOG_ENTRIES", str(few))
    rows = csv.DictReader(io.StringIO(ask("--db", str(tmp_path / "a.sqlite"), "query", "-f", "csv").out))
    assert [row["title"][:2] for row in rows if row["slug"] == "lora"] == [f"'{start}"]


# The program.


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "slugs"])
def test_a_reader_that_stops_reading_is_no_error(database: Path, form: str) -> None:
    arguments = ["--db", str(database), "query", "-f", form]
    command = [sys.executable, "-c", "from catalog.cli import main; main()", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


def test_queries_import_neither_torch_nor_what_they_do_not_need(database: Path) -> None:
    program_text = """if True:
        import sys
        from catalog.cli import main
        sys.argv = ["peft-catalog", *sys.argv[1:]]
        try:
            main()
        finally:
            print(*sys.modules, file=sys.stderr)
    """
    for arguments in (["query", "lora"], ["show", "lora"], ["categories"], ["query", "--json"]):
        command = [sys.executable, "-c", program_text, "--db", str(database), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(catalog.__file__).parents[1], check=True
        )
        modules = set(done.stderr.split())
        assert "catalog.query" in modules
        assert modules & {"torch", "reference_impls", "numpy", "alembic", "jinja2", "rapidfuzz", "markdown_it"} == set()
    command = [sys.executable, "-c", program_text, "--db", str(database), "query", "lora"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(catalog.__file__).parents[1], check=True)
    # What would make a query start slowly.
    slow = {
        "catalog.entry",
        "catalog.models",
        "catalog.store",
        "catalog.dimensions",
        "sqlmodel",
        "sqlalchemy.ext.asyncio",
    }
    assert set(done.stderr.split()) & slow == set()


COMMANDS = [command for area in ("query", "build", "evidence") for command in AREAS[area]]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example(ask: Ask, command: str) -> None:
    answer = ask(command, "--help")
    assert answer.code == 0
    assert "Example" in answer.out
    assert f"{command}" in answer.out.split("Example")[1]


def test_the_help_of_the_program_names_every_command_and_an_example(ask: Ask) -> None:
    out = ask("--help").out
    for commands in AREAS.values():
        for command in commands:
            assert command in out
    assert "peft-catalog query --category" in " ".join(out.split())


def test_every_command_is_in_the_table_of_areas() -> None:
    group = typer.main.get_command(make_app())
    assert set(group.commands) == {command for commands in AREAS.values() for command in commands}  # type: ignore[attr-defined]


def test_the_area_of_a_command() -> None:
    assert area_of(["--db", "query", "show", "lora"]) == ["query"]
    assert area_of(["--db=x", "build"]) == ["build"]
    assert area_of(["--help"]) == []


def test_version(ask: Ask) -> None:
    assert ask("--version").out.startswith("peft-catalog 0.")
