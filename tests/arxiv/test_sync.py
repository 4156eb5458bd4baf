"""Following the catalogued papers: what a person sees, what is stored, what is written into entries."""

from __future__ import annotations

import json
import re
import sqlite3
import tomllib
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from catalog.locations import shipped_root
from tests.conftest import Ask
from tests.standin import StandIn
from tests.standin.papers import of_entry

LORA = "2106.09685"
LATER = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three entries that a test may change."""
    folder = tmp_path / "entries"
    for name in ("reparameterized/lora", "reparameterized/dora", "prompt/vpt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = (shipped_root() / f"{name}.toml").read_text("utf-8")
        (folder / f"{name}.toml").write_text(re.sub(r"(?m)^builds_on = .*$", "builds_on = []", text), "utf-8")
    monkeypatch.setenv("PEFT_CATALOG_ENTRIES", str(folder))
    return folder


def state(path: Path) -> dict[str, list[Any]]:
    """Everything that arXiv said."""
    with closing(sqlite3.connect(path)) as connection:
        return {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
            for table in ("arxiv_record", "arxiv_statement")
        }


def test_every_paper_takes_two_requests(arxiv: StandIn, ask_arxiv: Ask) -> None:
    answer = ask_arxiv("sync")
    assert answer.code == 0
    assert f"{len(arxiv.papers)} of {len(arxiv.papers)} papers arrived in 2 requests" in answer.out
    assert [len(request.ids) for request in arxiv.log] == [len(arxiv.papers), 0]
    assert all(request.headers["accept"].startswith("application/atom+xml") for request in arxiv.log)
    assert all(request.headers["user-agent"].startswith("peft-catalog/") for request in arxiv.log)


@pytest.mark.parametrize("form", ["present", "former"])
def test_what_arxiv_says_is_stored(form: str, arxiv: StandIn, ask_arxiv: Ask, tmp_path: Path) -> None:
    arxiv.form = form  # type: ignore[assignment]
    paper = replace(
        arxiv.papers[LORA],
        title="0",
        authors=("Ann Ōe & Sons", "$\\Delta$ Team <x>", "李 明"),
        affiliations={"李 明": "A <University> & Co"},
        abstract="One line that is long enough to be wrapped. " * 5 + "a < b & c",
        comment="12 pages,\n 3 figures",
        journal_ref="Proc. ICLR 2022",
        doi="10.1000/xyz",
        categories=("cs.CL", "cs.LG"),
    )
    arxiv.put(paper)
    assert ask_arxiv("sync", "lora").code == 0
    record = json.loads(ask_arxiv("history", "lora", "--json").out)[0]["record"]
    assert record["title"] == "0"
    assert [person["name"] for person in record["authors"]] == list(paper.authors)
    assert [person["affiliations"] for person in record["authors"]] == [[], [], ["A <University> & Co"]]
    assert record["abstract"] == " ".join(paper.abstract.split())
    assert (record["comment"], record["journal_ref"], record["doi"]) == (
        "12 pages, 3 figures",
        "Proc. ICLR 2022",
        "10.1000/xyz",
    )
    assert (record["categories"], record["primary_category"]) == (["cs.CL", "cs.LG"], "cs.CL")
    assert (record["version"], record["published"], record["state"]) == (1, "2021-06-17T15:30:12Z", "listed")


def test_a_second_sync_writes_no_record(ask_arxiv: Ask, tmp_path: Path) -> None:
    path = tmp_path / "catalog.sqlite"
    ask_arxiv("sync")
    before = state(path)
    answer = ask_arxiv("sync", "--json")
    assert json.loads(answer.out)["learned"] == 0
    assert state(path) == before


def test_changes_are_shown_and_kept(arxiv: StandIn, ask_arxiv: Ask) -> None:
    ask_arxiv("sync")
    old = arxiv.papers[LORA]
    arxiv.put(old.revised(LATER, title="Another title", doi="10.1000/xyz", journal_ref="Proc. ICLR 2022"))
    answer = ask_arxiv("sync", "--json")
    found = {(change["kind"], change["before"], change["now"]) for change in json.loads(answer.out)["changes"]}
    assert found == {
        ("new version", "v1", "v2"),
        ("title", old.title, "Another title"),
        ("DOI", "", "10.1000/xyz"),
        ("journal reference", "", "Proc. ICLR 2022"),
    }
    history = json.loads(ask_arxiv("history", LORA, "--json").out)
    assert [statement["record"]["title"] for statement in history] == [old.title, "Another title"]
    assert [len(statement["changes"]) for statement in history] == [1, 4]
    shown = ask_arxiv("history", "lora").out
    assert "title: " in shown
    assert "first seen" in shown


def test_a_withdrawal_is_told(arxiv: StandIn, ask_arxiv: Ask) -> None:
    comment = "This paper has been withdrawn by the authors; see 2401.00001 instead"
    arxiv.put(arxiv.papers[LORA].revised(LATER, comment=comment))
    found = json.loads(ask_arxiv("sync", "lora", "--check", "--json").out)
    assert [(drift["key"], drift["arxiv"]) for drift in found["drifts"]] == [("status", f"withdrawn: {comment}")]
    assert ask_arxiv("sync", "lora", "--check").code == 1


def test_an_unknown_id_is_reported_by_name_and_the_others_arrive(arxiv: StandIn, ask_arxiv: Ask) -> None:
    del arxiv.papers[LORA]
    answer = ask_arxiv("sync", "--json")
    found = json.loads(answer.out)
    assert (answer.code, found["unknown"], found["received"]) == (0, [LORA], len(arxiv.papers))
    assert ask_arxiv("sync", "--check").code == 1
    assert "arXiv does not know this id" in ask_arxiv("sync").out


@pytest.mark.parametrize("form", ["present", "former"])
def test_a_malformed_id_does_not_cost_the_others(
    form: str, arxiv: StandIn, ask_arxiv: Ask, entries: Path, tmp_path: Path
) -> None:
    arxiv.form = form  # type: ignore[assignment]
    # arXiv refuses numbers that have the form of an id and are none; the stand-in is told to.
    arxiv.refused.add("2402.09353")
    found = json.loads(ask_arxiv("sync", "--json").out)
    assert found["malformed"] == {"2402.09353": "incorrect id format for 2402.09353"}
    assert found["received"] == 2
    assert found["requests"] == 4  # all, the named one alone, the others, the newest paper


def test_disagreements_are_shown_and_written_where_wanted(arxiv: StandIn, ask_arxiv: Ask, entries: Path) -> None:
    path = entries / "reparameterized" / "lora.toml"
    text = path.read_text("utf-8")
    path.write_text(
        text.replace('title = "LoRA: Low-Rank', '# our spelling\ntitle = "LoRA: Lowest-Rank').replace(
            'published = "2021-06-17"', 'published = "2021-07"  # from a list'
        ),
        "utf-8",
    )
    answer = ask_arxiv("sync", "--json")
    found = {
        (each["slug"], each["key"]): (each["entry"], each["correction"]) for each in json.loads(answer.out)["drifts"]
    }
    assert found == {
        ("lora", "title"): (
            "LoRA: Lowest-Rank Adaptation of Large Language Models",
            "LoRA: Low-Rank Adaptation of Large Language Models",
        ),
        ("lora", "published"): ("2021-07", "2021-06-17"),
    }
    before = path.read_text("utf-8")
    assert ask_arxiv("sync", "--check").code == 1
    assert path.read_text("utf-8") == before
    answer = ask_arxiv("sync", "--write", "--key", "title")
    assert "wrote 1 correction into 1 entry file" in answer.out
    assert path.read_text("utf-8") == before.replace("Lowest-Rank", "Low-Rank")
    ask_arxiv("sync", "--write")
    after = path.read_text("utf-8")
    assert after == before.replace("Lowest-Rank", "Low-Rank").replace('"2021-07"', '"2021-06-17"')
    assert "# our spelling" in after
    assert "# from a list" in after
    assert ask_arxiv("sync", "--check").code == 0


def test_an_entry_may_differ_with_a_reason(arxiv: StandIn, ask_arxiv: Ask, entries: Path) -> None:
    path = entries / "reparameterized" / "lora.toml"
    text = path.read_text("utf-8").replace("LoRA: Low-Rank", "LoRA: Lowest-Rank")
    path.write_text(text, "utf-8")
    assert ask_arxiv("sync", "--check").code == 1
    reason = 'arxiv_differs = { title = "the title of the published version" }\n'
    path.write_text(text.replace("published =", reason + "published ="), "utf-8")
    assert ask_arxiv("sync", "--check").code == 0


def test_spelling_is_no_disagreement(arxiv: StandIn, ask_arxiv: Ask, entries: Path) -> None:
    paper = arxiv.papers[LORA]
    arxiv.put(replace(paper, title=paper.title.upper().replace(":", " -"), authors=("E. Hu", *paper.authors[1:])))
    assert json.loads(ask_arxiv("sync", "lora", "--json").out)["drifts"] == []


def test_a_doi_and_a_venue_that_appear_are_told(arxiv: StandIn, ask_arxiv: Ask, entries: Path) -> None:
    path = entries / "reparameterized" / "lora.toml"
    path.write_text(path.read_text("utf-8").replace('venue = "ICLR 2022"\n', ""), "utf-8")
    arxiv.put(replace(arxiv.papers[LORA], doi="10.1000/xyz", journal_ref="Proc. of ICLR 2022, pages 1-9"))
    found = json.loads(ask_arxiv("sync", "lora", "--write", "--json").out)
    assert [(each["key"], each["advice"]) for each in found["drifts"]] == [("doi", ""), ("venue", "a venue to fill in")]
    assert found["written"] == [{"slug": "lora", "key": "doi"}]
    written = tomllib.loads(path.read_text("utf-8"))
    assert written["doi"] == "10.1000/xyz"
    assert "venue" not in written


def test_what_makes_no_valid_entry_is_not_written(arxiv: StandIn, ask_arxiv: Ask, entries: Path) -> None:
    path = entries / "reparameterized" / "lora.toml"
    before = path.read_bytes()
    arxiv.put(replace(arxiv.papers[LORA], doi="no DOI at all"))
    answer = ask_arxiv("sync", "lora", "--write")
    assert answer.code == 2
    assert "what arXiv says makes no valid entry" in answer.err
    assert path.read_bytes() == before


def test_hostile_text_does_not_steer_the_terminal(arxiv: StandIn, ask_arxiv: Ask) -> None:
    evil = "Title [red]\u202ewith\u009b31m escapes"
    arxiv.put(replace(arxiv.papers[LORA], title=evil))
    for arguments in (("sync", "lora"), ("history", "lora"), ("sync", "lora", "--json")):
        out = ask_arxiv(*arguments).out
        assert "\u202e" not in out
        assert "\u009b" not in out
        assert "[red]" in out


def test_check_and_write_exclude_each_other(ask_arxiv: Ask) -> None:
    answer = ask_arxiv("sync", "--check", "--write")
    assert (answer.code, "give one of the two" in answer.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--write", "--key", "venue"], "no key"), (["--key", "doi"], "add --write")]
)
def test_keys_that_make_no_sense(arguments: list[str], words: str, ask_arxiv: Ask) -> None:
    answer = ask_arxiv("sync", *arguments)
    assert (answer.code, words in answer.err) == (2, True)


def test_only_known_keys_are_written(ask_arxiv: Ask, arxiv: StandIn) -> None:
    from catalog.arxiv_sync.reconcile import WRITTEN

    paper = arxiv.papers[LORA]
    later = (LATER,)
    arxiv.put(replace(paper, title="X", authors=("A B",), versions=later, categories=("cs.SD",), doi="10.1000/x"))
    drifts = json.loads(ask_arxiv("sync", "lora", "--check", "--json").out)["drifts"]
    assert {each["key"] for each in drifts if each["correction"]} == set(WRITTEN)


@pytest.mark.parametrize("address", ["nonsense", "a b@c.org", "https://x.org/(y)"])
def test_a_contact_that_is_none_is_refused(address: str, ask_arxiv: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_CATALOG_CONTACT", address)
    answer = ask_arxiv("sync")
    assert (answer.code, "is no address at which you can be reached" in answer.err) == (2, True)


def test_a_contact_is_told(arxiv: StandIn, ask_arxiv: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_CATALOG_CONTACT", "someone@example.org")
    ask_arxiv("sync", "lora")
    assert arxiv.log[0].headers["user-agent"].endswith("(someone@example.org)")


def test_check_stores_nothing(ask_arxiv: Ask, tmp_path: Path) -> None:
    ask_arxiv("sync", "--check")
    assert state(tmp_path / "catalog.sqlite") == {"arxiv_record": [], "arxiv_statement": []}
    assert "never synced" in ask_arxiv("status").out


def test_a_paper_off_arxiv_has_no_history(ask_arxiv: Ask) -> None:
    answer = ask_arxiv("history", "smop")
    assert (answer.code, "is not on arXiv" in answer.err) == (2, True)


def test_before_a_sync_there_is_no_history(ask_arxiv: Ask) -> None:
    assert "next: peft-catalog sync" in ask_arxiv("history", "lora").out


@pytest.mark.parametrize("address", ["ftp://x", "nonsense", "http://", "http://arxiv.org", "http://[::1"])
def test_a_wrong_address_is_refused(address: str, ask_arxiv: Ask) -> None:
    answer = ask_arxiv("sync", "--arxiv-url", address)
    assert (answer.code, "is no address of an arXiv server" in answer.err) == (2, True)


def test_arxiv_itself_is_not_hurried(ask_arxiv: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEFT_CATALOG_ARXIV_URL")
    answer = ask_arxiv("sync")
    assert (answer.code, "fewer than arXiv's terms allow" in answer.err) == (2, True)


def test_nobody_there(ask_arxiv: Ask) -> None:
    answer = ask_arxiv("sync", "--arxiv-url", "http://127.0.0.1:9")
    assert answer.code == 3
    assert "kept: 0 of" in answer.err
    assert answer.err.count("asking again") == 4


def test_an_entry_as_arxiv_has_it_does_not_drift() -> None:
    from catalog.arxiv_sync.reconcile import drifts
    from catalog.arxiv_sync.record import Person, Record
    from catalog.entry import load_entries

    for entry in load_entries():
        if entry.arxiv and entry.arxiv_categories:
            paper = of_entry(entry)
            record = Record(
                arxiv=paper.arxiv,
                version=1,
                title=paper.title,
                authors=tuple(Person(name) for name in paper.authors),
                abstract="",
                published=paper.versions[0].isoformat(),
                updated=paper.versions[0].isoformat(),
                categories=paper.categories,
                doi=paper.doi,
            )
            assert drifts(entry, record) == []
