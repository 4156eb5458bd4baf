"""`peft-catalog list write` and `list read`: exit codes, JSON, tables, files, and what never reaches a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import catalog
from catalog.entry import Entry
from catalog.lists import Style, write_list
from tests.conftest import Ask

GOOD = (
    "- [LoRA: Low-Rank Adaptation of Large Language Models](https://arxiv.org/abs/2106.09685) - Words. *ICLR 2022*.\n"
)
WRONG = "- [QLoRA](https://arxiv.org/abs/2106.09685) - Words.\n"
NEW = "- [A paper nobody knows](https://arxiv.org/abs/2401.99999) - Words.\n"
ODD = "- [LoRA](https://arxiv.org/abs/2106.09685) - Words **never closed.\n"
HEAD = "# List\n\n## Papers\n\n"
HOSTILE = "- [Bad \x1b[2J\x1b]0;owned\x07 \u202edesrever\u202c \x9b31m [red]two[/red]](https://x.y) - Words.\n"
STEERING = ("\x1b", "\x07", "\u202e", "\u202c", "\x9b")


@pytest.fixture
def ask(ask_of: Callable[[Path], Ask], database: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs `peft-catalog list`."""
    monkeypatch.delenv("PEFT_CATALOG_ENTRIES", raising=False)
    run = ask_of(database)
    return lambda *arguments: run("list", *arguments)


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., str]:
    """A file of these items; its path."""

    def write(*items: str, name: str = "list.md") -> str:
        path = tmp_path / name
        path.write_text(HEAD + "".join(items), encoding="utf-8")
        return str(path)

    return write


# write


@pytest.mark.parametrize("style", Style)
def test_write_prints_the_list(ask: Ask, entries: tuple[Entry, ...], style: Style) -> None:
    answer = ask("write", "--style", style)
    assert (answer.code, answer.out, answer.err) == (0, write_list(entries, style), "")


def test_write_is_awesome_by_default(ask: Ask, entries: tuple[Entry, ...]) -> None:
    assert ask("write").out == write_list(entries, Style.AWESOME)


@pytest.mark.parametrize("categories", [["selective"], ["hybrid", "prompt"], ["prompt", "prompt"]])
def test_write_of_categories(ask: Ask, entries: tuple[Entry, ...], categories: list[str]) -> None:
    options = [word for category in categories for word in ("--category", category)]
    expected = write_list([entry for entry in entries if entry.category in categories], Style.BADGES)
    assert ask("write", "--style", "badges", *options).out == expected


def test_write_to_a_file(ask: Ask, entries: tuple[Entry, ...], tmp_path: Path) -> None:
    path = tmp_path / "deep" / "LIST.md"
    answer = ask("write", "--style", "gist", "--output", str(path))
    assert (answer.code, answer.out) == (0, f"wrote {path}: {len(entries)} papers\n")
    assert path.read_text(encoding="utf-8") == write_list(entries, Style.GIST)
    assert [each.name for each in path.parent.iterdir()] == ["LIST.md"]


def test_what_is_written_is_read_as_consistent(ask: Ask, tmp_path: Path) -> None:
    for style in Style:
        path = str(tmp_path / f"{style}.md")
        ask("write", "--style", style, "-o", path, "--category", "selective")
        answer = ask("read", path)
        assert (answer.code, answer.err) == (0, "")
        assert "0 new, 0 contradictions" in answer.out


def test_a_file_that_cannot_be_written_is_left_as_it_is(ask: Ask, tmp_path: Path) -> None:
    answer = ask("write", "--output", str(tmp_path))
    assert answer.code == 2
    assert "cannot write" in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["write", "--style", "fancy"], ["fancy", "awesome", "gist"]),
        (["write", "--category", "adaptive"], ["'adaptive' is not a category", "did you mean additive"]),
        (["write", "--output", "/dev/null/x.md"], ["cannot write"]),
        (["read"], ["file"]),
        (["read", "missing.md"], ["cannot read the list", "missing.md"]),
        (["read", "."], ["cannot read the list"]),
        (["raed"], ["raed"]),
    ],
)
def test_mistakes_get_a_message_and_exit_code_2(
    ask: Ask, arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = ask(*arguments)
    assert (answer.code, answer.out) == (2, "")
    for part in parts:
        assert part.casefold() in answer.err.casefold()


# read


@pytest.mark.parametrize(
    ("items", "code"),
    [
        ([GOOD], 0),
        ([GOOD, WRONG], 1),
        ([GOOD, NEW], 1),
        ([ODD], 1),
        ([GOOD, GOOD], 1),
        (["Nothing here.\n"], 2),
        (["\x00"], 2),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_exit_codes(ask: Ask, listed: Callable[..., str], items: list[str], code: int, form: list[str]) -> None:
    answer = ask("read", listed(*items), *form)
    assert answer.code == code
    assert bool(answer.err) is (code == 2)


def test_json(ask: Ask, listed: Callable[..., str]) -> None:
    path = listed(GOOD, WRONG, NEW, ODD)
    found: dict[str, Any] = json.loads(ask("read", path, "--json").out)
    assert list(found) == ["file", "style", "consistent", "counts", "known", "new", "contradictions", "notices"]
    assert (found["file"], found["style"], found["consistent"]) == (path, "awesome", False)
    assert found["counts"] == {
        "items": 4,
        "known": 3,
        "new": 1,
        "contradictions": {"link to another paper": 1},
        "notices": 2,
    }
    assert found["known"][0] == {
        "slug": "lora",
        "by": ["arXiv id", "title"],
        "score": 100.0,
        "line": 5,
        "section": "Papers",
        "title": "LoRA: Low-Rank Adaptation of Large Language Models",
        "authors": [],
        "venue": "ICLR 2022",
        "year": 2022,
        "links": [{"line": 5, "role": "paper", "url": "https://arxiv.org/abs/2106.09685"}],
        "commented": False,
        "mention": False,
    }
    assert [(item["line"], item["title"]) for item in found["new"]] == [(7, "A paper nobody knows")]
    wrong = found["contradictions"][0]
    assert {key: wrong[key] for key in ("line", "slug", "kind", "says", "evidence")} == {
        "line": 6,
        "slug": "qlora",
        "kind": "link to another paper",
        "says": "https://arxiv.org/abs/2106.09685",
        "evidence": None,
    }
    assert "2305.14314" in wrong["fact"]
    assert [(notice["line"], set(notice)) for notice in found["notices"]] == [(8, {"line", "message"})] * 2


def test_tables(ask: Ask, listed: Callable[..., str]) -> None:
    path = listed(GOOD, WRONG, NEW, ODD)
    out = ask("read", path).out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert [line for line in lines if line in ("known", "new", "odd", "wrong")] == ["known", "new", "odd", "wrong"]
    assert "5 lora arXiv id, title LoRA: Low-Rank Adaptation of Large Language Models" in lines
    assert "7 A paper nobody knows https://arxiv.org/abs/2401.99999" in lines
    assert any(line.startswith("6 qlora link to another paper https://arxiv.org/abs/2106.09685") for line in lines)
    assert f"{path}: a list in the layout awesome, 4 items, 3 known, 1 new, 1 contradiction" in lines
    assert lines[-1] == "1 link to another paper"


def test_similar_titles_say_how_similar(ask: Ask, listed: Callable[..., str]) -> None:
    item = "- [LoRA: Low-Rank Adaption of Large Langauge Models](https://x.y) - Words.\n"
    path = listed(item)
    assert "similar title (9" in ask("read", path).out
    known = json.loads(ask("read", path, "--json").out)["known"][0]
    assert known["by"] == ["similar title"]
    assert 90 <= known["score"] < 100


def test_broken_markdown_gets_its_line(ask: Ask, listed: Callable[..., str]) -> None:
    path = listed(GOOD, "- [Title](https://x.y - Words.\n")
    assert "6  a link that is broken off; read as text" in ask("read", path).out


def test_a_file_that_is_no_text_gets_its_line(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "list.md"
    path.write_bytes(HEAD.encode() + b"\xff\n")
    answer = ask("read", str(path))
    assert (answer.code, answer.out) == (2, "")
    assert "not UTF-8" in answer.err
    assert "line 5" in answer.err


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_control_character_of_a_list_reaches_the_terminal(
    ask: Ask, listed: Callable[..., str], form: list[str]
) -> None:
    answer = ask("read", listed(GOOD, HOSTILE, HOSTILE.replace("x.y", "arxiv.org/abs/2106.09685")), *form)
    assert answer.code == 1
    assert "owned" in answer.out
    assert [sign for sign in STEERING if sign in answer.out + answer.err] == []
    assert "[red]two" in answer.out
    if form:
        assert json.loads(answer.out)["new"][0]["title"].startswith("Bad \x1b[2J")


def test_no_control_character_of_a_file_name_reaches_the_terminal(
    ask: Ask, listed: Callable[..., str], tmp_path: Path
) -> None:
    name = "a\x1b[2J\udcff.md"
    path = listed(GOOD, name=name)
    for answer in (
        ask("read", path),
        ask("read", path, "--json"),
        ask("read", path + "x"),
        ask("write", "--output", str(tmp_path / name)),
    ):
        shown = answer.out + answer.err
        assert "a\ufffd[2J" in shown or "a\\u001b[2J" in shown
        assert "\x1b" not in shown


@pytest.mark.parametrize("command", ["write", "read"])
def test_the_help_has_an_example(ask: Ask, command: str) -> None:
    out = ask(command, "--help").out
    assert f"peft-catalog list {command}" in out.split("Examples:")[1]


def test_the_help_tells_the_exit_codes(ask: Ask) -> None:
    out = " ".join(ask("read", "--help").out.split())
    assert [code for code in range(3) if f"Exit code {code}: " in out] == [0, 1, 2]


def test_a_reader_that_stops_reading_is_no_error(database: Path) -> None:
    command = [sys.executable, "-c", "from catalog.cli import main; main()", "--db", str(database), "list", "write"]
    root = Path(catalog.__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_list_may_come_through_a_pipe(database: Path) -> None:
    command = [sys.executable, "-c", "from catalog.cli import main; main()", "list", "read", "/dev/stdin"]
    done = subprocess.run(
        command,
        input=HEAD + GOOD,
        capture_output=True,
        text=True,
        cwd=Path(catalog.__file__).parents[1],
        env={**os.environ, "PEFT_CATALOG_DB": str(database)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 item, 1 known, 0 new, 0 contradictions" in done.stdout
