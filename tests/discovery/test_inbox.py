"""The inbox on the command line: what waits is shown, explained and decided on."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

import catalog
import catalog.discovery.accept
from catalog.arxiv_sync.archive import Statement, keep, news
from catalog.arxiv_sync.record import Person, Record
from catalog.arxiv_sync.record import State as Listed
from catalog.database import open_engine, writing
from catalog.errors import CatalogError
from catalog.lint import lint
from tests.conftest import Ask
from tests.discovery.conftest import LATER, NOW, inbox, record
from tests.discovery.taking import take_in

ESC = "\x1b[31m\u202e[bold]"
HOSTILE = f'Evil{ESC}: Low-Rank\r\n[link]Adaptation[/] \x00 "quoted" \'\'\'""" \\'


@pytest.fixture
def path(tmp_path: Path, root: Path) -> Path:
    """The database of the test, built."""
    catalog.open(tmp_path / "catalog.sqlite").close()
    return tmp_path / "catalog.sqlite"


@pytest.fixture
def arrive(path: Path) -> Callable[..., None]:
    """Takes records into the inbox, and what arXiv says of them into the database unless told otherwise."""

    def run(*records: Record, stated: bool = True) -> None:
        engine = open_engine(path)
        if stated:
            with writing(engine) as connection:
                keep(connection, news(connection, [Statement(each, NOW, "api") for each in records]))
        take_in(engine, [records], source="test", now=NOW)
        engine.dispose()

    return run


@pytest.fixture
def ask(ask_own: Ask, path: Path) -> Ask:
    return ask_own


def states(path: Path) -> dict[str, tuple[str, str]]:
    engine = open_engine(path)
    found = {arxiv: (str(candidate.state), candidate.reason) for arxiv, candidate in inbox(engine).items()}
    engine.dispose()
    return found


# Listing and showing.


def test_an_empty_inbox_says_what_fills_it(ask):
    assert ask("inbox", "list") == (0, "no candidates; peft-catalog discover looks for new ones\n", "")
    assert ask("inbox", "list", "--json").out == "[]\n"


def test_the_list_has_the_most_likely_first(ask, arrive):
    arrive(record(1, title="Adapters", abstract="of frozen models"), record(2))
    out = ask("inbox", "list").out
    assert out.index("2601.00002") < out.index("2601.00001")
    assert "Method2: Low-Rank Adaptation in Another Way" in out
    assert out.endswith("2 candidates\n")
    rows = json.loads(ask("inbox", "list", "--json").out)
    assert [row["arxiv"] for row in rows] == ["2601.00002", "2601.00001"]
    assert {"word": "low rank adaptation", "where": "title", "points": 50.0} in rows[0]["reasons"]


def test_the_list_can_be_narrowed_and_widened(ask, arrive):
    arrive(record(1), record(2, title="Soft Prompts", abstract="prompts and prefixes"))
    ask("inbox", "reject", "soft-prompts", "no news")
    assert "2601.00002" not in ask("inbox", "list").out
    everything = ask("inbox", "list", "--all").out
    assert "2601.00002" in everything
    assert "rejected" in everything
    narrowed = json.loads(ask("inbox", "list", "--all", "--category", "prompt", "--json").out)
    assert [row["slug"] for row in narrowed] == ["soft-prompts"]
    answer = ask("inbox", "list", "--category", "prompts")
    assert (answer.code, "did you mean prompt?" in answer.err) == (2, True)


def test_what_has_got_an_entry_meanwhile_waits_no_more(ask, arrive, root):
    arrive(record(1))
    lora = root / "reparameterized" / "lora.toml"
    lora.write_text(lora.read_text("utf-8").replace("2106.09685", "2601.00001"), encoding="utf-8")
    assert "no candidates" in ask("inbox", "list").out
    assert "2601.00001" in ask("inbox", "list", "--all").out


@pytest.mark.parametrize("key", ["method1", "METHOD1", "2601.00001", "2601.00001v7"])
def test_a_candidate_is_shown_with_all_that_speaks_for_it(ask, arrive, key):
    arrive(record(1))
    answer = ask("inbox", "show", key)
    assert answer.code == 0
    for part in (
        "Method1: Low-Rank Adaptation in Another Way",
        "https://arxiv.org/abs/2601.00001v1",
        "Ada Lovelace, Erika Mustermann",
        "+50  low rank adaptation (title)",
        "+4  cs.CL (category)",
        "category reparameterized: low rank adaptation 14",
        "published 2026-01-15, found 2026-11-26T01:40:00Z by test",
        "that adds low-rank adapters to a frozen language model.",
    ):
        assert part in answer.out
    data = json.loads(ask("inbox", "show", key, "--json").out)
    assert (data["slug"], data["arxiv_state"], len(data["authors"])) == ("method1", "listed", 2)
    assert data["words"][0] == {"word": "low rank adaptation", "points": 14.0}


def test_without_a_statement_there_is_no_abstract(ask, arrive):
    arrive(record(1), stated=False)
    assert "language model." not in ask("inbox", "show", "method1").out
    assert json.loads(ask("inbox", "show", "method1", "--json").out)["abstract"] is None


def test_a_withdrawn_paper_is_said_to_be(ask, arrive):
    arrive(record(1, state=Listed.WITHDRAWN))
    assert "on arXiv: withdrawn" in ask("inbox", "show", "method1").out


@pytest.mark.parametrize("command", ["show", "accept", "restore", "reject"])
@pytest.mark.parametrize("key", ["metod1", "2601.0001", "no-such-thing", ESC, "'; DROP TABLE candidate; --", ""])
def test_an_unknown_key_is_refused_with_near_misses(ask, arrive, command, key):
    arrive(record(1))
    answer = ask("inbox", command, "--", key, *(["reason"] if command == "reject" else []))
    assert answer.code == 2
    assert "no candidate is known as" in answer.err
    assert "\x1b" not in answer.err
    near = "did you mean" if key in ("metod1", "2601.0001") else "peft-catalog inbox list --all"
    assert near in answer.err


def test_nothing_of_others_steers_the_terminal(ask, arrive, path, root):
    arrive(record(1, title=HOSTILE, abstract=f"{ESC} LoRA", authors=(Person(f"Ada {ESC}"),), comment=ESC))
    decided = [
        ask("inbox", "reject", "2601.00001", f"because {ESC}").out,
        ask("inbox", "list", "--all", "--json").out,
        ask("inbox", "show", "2601.00001").out,
        ask("inbox", "restore", "2601.00001").out,
    ]
    outputs = [
        ask("inbox", "list").out,
        ask("inbox", "list", "--json").out,
        ask("inbox", "show", "2601.00001").out,
        ask("inbox", "show", "2601.00001", "--json").out,
        ask("inbox", "accept", "2601.00001").out,
        ask("inbox", "reject", "2601.00001", ESC).err,
        ask("inbox", "list", "--all").out,
    ]
    for output in (*decided, *outputs):
        assert output
        assert not {"\x1b", "\u202e", "\x00", "\r"} & set(output)
    assert json.loads(outputs[1])[0]["title"] == HOSTILE
    assert "[link]Adaptation[/]" in outputs[0].replace("\n", "")


# Deciding.


def test_an_accepted_candidate_becomes_a_draft_with_the_facts_of_arxiv(ask, arrive, path, root):
    arrive(record(1, comment="Accepted at ICLR", journal_ref="J. 1 (2026)", doi="10.1234/x"))
    answer = ask("inbox", "accept", "method1")
    entry = root / "reparameterized" / "method1.toml"
    assert answer.code == 0
    assert f"wrote {entry}" in answer.out
    assert "peft-catalog lint method1" in answer.out
    assert "draft = true" in answer.out
    written = entry.read_text("utf-8")
    data = tomllib.loads(written)
    expected = {
        "draft": True,
        "slug": "method1",
        "name": "Method1",
        "title": "Method1: Low-Rank Adaptation in Another Way",
        "authors": ["Ada Lovelace", "Erika Mustermann"],
        "arxiv": "2601.00001",
        "arxiv_categories": ["cs.CL", "cs.LG"],
        "published": "2026-01-15",
        "category": "reparameterized",
    }
    assert {key: data[key] for key in expected} == expected
    assert "status" not in data
    for hint in (
        "# arXiv's journal_ref: J. 1 (2026)",
        "# arXiv's doi: 10.1234/x",
        "# arXiv's comment: Accepted at ICLR",
    ):
        assert f"{hint}\n" in written
    assert "frozen language model" not in written
    assert (root.parent / "reference_impls" / "reparameterized" / "method1.py").is_file()
    assert states(path) == {"2601.00001": ("accepted", "")}
    assert "no candidates" in ask("inbox", "list").out


def test_slug_and_category_can_be_chosen(ask, arrive, root):
    arrive(record(1))
    assert ask("inbox", "accept", "2601.00001v1", "--slug", "mine", "--category", "hybrid").code == 0
    assert (root / "hybrid" / "mine.toml").is_file()


def test_the_folder_of_entries_can_be_chosen(ask, arrive, root, tmp_path):
    arrive(record(1))
    assert ask("inbox", "accept", "method1", "--root", str(tmp_path / "other")).code == 0
    assert (tmp_path / "other" / "reparameterized" / "method1.toml").is_file()
    assert (tmp_path / "reference_impls" / "reparameterized" / "method1.py").is_file()


def test_a_withdrawn_paper_gets_its_status(ask, arrive, root):
    arrive(record(1, state=Listed.WITHDRAWN))
    ask("inbox", "accept", "method1")
    assert tomllib.loads((root / "reparameterized" / "method1.toml").read_text("utf-8"))["status"] == "withdrawn"


def test_without_a_statement_the_inbox_knows_title_and_date(ask, arrive, root):
    arrive(record(1), stated=False)
    ask("inbox", "accept", "method1")
    data = tomllib.loads((root / "reparameterized" / "method1.toml").read_text("utf-8"))
    assert (data["published"], data["authors"]) == ("2026-01-15", [])
    assert data["title"].startswith("Method1")


def test_hostile_facts_are_text_and_nothing_else(ask, arrive, root):
    evil = 'x\nslug = "evil"\r[claims]\x00\u2028kind = 1'
    arrive(
        record(
            1, title=HOSTILE, comment=evil, journal_ref=evil, doi=evil, authors=(Person('A"\nB'),), categories=(evil,)
        )
    )
    assert ask("inbox", "accept", "2601.00001", "--slug", "tame").code == 0
    text = (root / "reparameterized" / "tame.toml").read_text("utf-8")
    data = tomllib.loads(text)
    assert (data["slug"], data["kind"], data["authors"]) == ("tame", "method", ['A" B'])
    assert text.count("[claims]\n") == 1
    assert not {"\x00", "\r", "\x1b", "\u2028", "\u202e"} & set(text)
    compile((root.parent / "reference_impls" / "reparameterized" / "tame.py").read_text("utf-8"), "tame.py", "exec")


def test_where_no_word_leads_to_a_category_it_must_be_chosen(ask, arrive, path):
    arrive(record(1, title="PEFT", abstract=""))
    answer = ask("inbox", "accept", "peft")
    assert answer.code == 2
    assert "lead to no category" in answer.err
    assert "allowed: selective, additive" in answer.err
    assert states(path)["2601.00001"] == ("waiting", "")
    assert ask("inbox", "accept", "peft", "--category", "context").code == 0


def test_a_refused_acceptance_changes_nothing(ask, arrive, path, root):
    arrive(record(1))
    before = sorted(root.rglob("*"))
    for wrong in (("--slug", "lora"), ("--slug", "No Slug"), ("--category", "none")):
        assert ask("inbox", "accept", "method1", *wrong).code == 2
    assert sorted(root.rglob("*")) == before
    assert states(path)["2601.00001"] == ("waiting", "")


@pytest.mark.parametrize("stop", ["before the entry", "before the mark"])
def test_an_acceptance_that_was_stopped_can_be_repeated(ask, arrive, path, root, monkeypatch, stop):
    arrive(record(1))
    with monkeypatch.context() as patch:

        def killed(*_: object, **__: object) -> None:
            raise CatalogError("killed")

        if stop == "before the mark":
            patch.setattr(catalog.discovery.accept, "mark_accepted", killed)
        else:
            write = catalog.scaffold.write_atomic
            patch.setattr(
                catalog.scaffold, "write_atomic", lambda p, t: killed() if p.suffix == ".toml" else write(p, t)
            )
        assert "killed" in ask("inbox", "accept", "method1").err
    assert states(path)["2601.00001"] == ("waiting", "")
    assert (root.parent / "reference_impls" / "reparameterized" / "method1.py").is_file()
    assert ask("inbox", "accept", "method1").code == 0
    assert (root / "reparameterized" / "method1.toml").is_file()
    assert states(path)["2601.00001"] == ("accepted", "")


def test_a_paper_that_has_an_entry_is_only_marked(ask, arrive, path, root):
    arrive(record(1))
    ask("new", "mine", "--arxiv", "2601.00001", "--category", "prompt")
    before = sorted(root.rglob("*"))
    answer = ask("inbox", "accept", "method1")
    assert (answer.code, "has an entry already" in answer.out) == (0, True)
    assert str(root / "prompt" / "mine.toml") in answer.out
    assert sorted(root.rglob("*")) == before
    assert states(path)["2601.00001"] == ("accepted", "")


def test_an_accepted_candidate_stays_accepted(ask, arrive, path, root):
    arrive(record(1))
    ask("inbox", "accept", "method1")
    again = ask("inbox", "accept", "method1")
    assert (again.code, "has an entry already" in again.out) == (0, True)
    refused = ask("inbox", "reject", "method1", "after all")
    assert refused.code == 2
    assert "inbox restore method1" in refused.err
    (root / "reparameterized" / "method1.toml").unlink()
    assert ask("inbox", "restore", "method1").code == 0
    assert ask("inbox", "reject", "method1", "after all").code == 0
    assert states(path)["2601.00001"] == ("rejected", "after all")


def test_a_rejection_has_a_reason_and_can_be_taken_back(ask, arrive, path):
    arrive(record(1))
    assert ask("inbox", "reject", "method1").code == 2
    for blank in ("", " \n"):
        answer = ask("inbox", "reject", "method1", blank)
        assert (answer.code, "needs a reason" in answer.err) == (2, True)
    assert states(path)["2601.00001"] == ("waiting", "")

    answer = ask("inbox", "reject", "method1", " no method ")
    assert answer == (0, "rejected method1 (2601.00001): no method\n", "")
    assert "rejected" in ask("inbox", "show", "method1").out
    arrive(record(1, version=2))
    assert states(path) == {"2601.00001": ("rejected", "no method")}
    for command in (("accept", "method1"), ("reject", "method1", "again")):
        answer = ask("inbox", *command)
        assert answer.code == 2
        assert "no method" in answer.err
        assert "inbox restore method1" in answer.err

    assert ask("inbox", "restore", "method1").code == 0
    assert states(path) == {"2601.00001": ("waiting", "")}
    answer = ask("inbox", "restore", "method1")
    assert (answer.code, "nothing to take back" in answer.err) == (2, True)


def test_decisions_outlive_a_build(ask, arrive, path):
    arrive(record(1))
    ask("inbox", "reject", "method1", "no method")
    assert ask("build").code == 0
    assert states(path) == {"2601.00001": ("rejected", "no method")}


def test_a_draft_from_the_inbox_stops_no_query(ask, arrive, root):
    arrive(record(1))
    ask("inbox", "accept", "method1")
    assert ask("query", "--category", "reparameterized").code == 0
    found = {finding.rule for finding in lint(root) if finding.file.endswith("method1.toml")}
    assert found == {"draft", "schema"}


def test_the_decision_says_when(ask, arrive, path, monkeypatch):
    arrive(record(1))
    monkeypatch.setattr("catalog.arxiv_sync.follow.now", lambda: LATER)
    ask("inbox", "accept", "method1")
    engine = open_engine(path)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT decided FROM candidate")).scalar_one() == LATER
    engine.dispose()
