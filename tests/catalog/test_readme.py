"""The README shows what the program really says: its console blocks are run and compared, but for measurements."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import Ask

README = Path(__file__).parents[2] / "README.md"
SHOWN_BY = {"make": "info"}
"""What prints the end of a command that is no part of the program."""


def blocks() -> list[tuple[str, list[str]]]:
    """Command and the lines shown below it, of every command in a console block."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.rstrip("\n").split("\n")
            found.append((command, lines))
    return found


def shown() -> list[tuple[str, list[str]]]:
    """The commands whose output the README shows."""
    return [(command, lines) for command, lines in blocks() if lines and runnable(command)]


def runnable(command: str) -> bool:
    """Whether the output is the same on every machine; what is measured differs in the last digits."""
    return command in SHOWN_BY or command.startswith(("peft-catalog query ", "peft-catalog list "))


def test_the_readme_shows_the_two_commands_and_a_query() -> None:
    commands = [command for command, _ in blocks()]
    assert {"make", "make test"} <= set(commands)
    assert any(command.startswith("peft-catalog query ") for command, _ in shown())


@pytest.mark.parametrize(("command", "lines"), shown(), ids=[command for command, _ in shown()])
def test_output_in_the_readme_is_current(command: str, lines: list[str], ask: Ask) -> None:
    arguments = shlex.split(SHOWN_BY.get(command, command.removeprefix("peft-catalog ")))
    printed = [line.rstrip() for line in ask(*arguments).out.strip("\n").split("\n")]
    unlike = [line for line in lines if not any(matches(line, other) for other in printed)]
    assert unlike == [], "stale: the program does not print these lines"


def matches(line: str, printed: str) -> bool:
    """Whether the program printed the line; "…" stands for what differs between machines, as the folder of the
    program in its examples does."""
    words = line.rstrip().replace(" .venv/bin/peft-catalog", " peft-catalog")
    return re.fullmatch(".*".join(map(re.escape, words.split("…"))), printed) is not None


def test_every_path_in_the_readme_is_there() -> None:
    text = README.read_text("utf-8")
    paths = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = [path for path in paths if not (README.parent / path).exists()]
    assert paths
    assert missing == []


def programs() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.usefixtures("ask")
@pytest.mark.parametrize("program", programs(), ids=[f"program {i}" for i, _ in enumerate(programs(), start=1)])
def test_python_in_the_readme_runs(program: str) -> None:
    exec(compile(program, str(README), "exec"), {})
