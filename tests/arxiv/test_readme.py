"""What the README shows of following arXiv is what the program prints against the stand-in."""

from __future__ import annotations

import shlex

from tests.catalog.test_readme import blocks
from tests.conftest import Ask
from tests.standin import StandIn


def test_sync_as_the_readme_shows_it(arxiv: StandIn, ask_arxiv: Ask) -> None:
    shown = [(command, lines) for command, lines in blocks() if command.startswith("peft-catalog sync")]
    assert shown
    for command, lines in shown:
        printed = ask_arxiv(*shlex.split(command)[1:]).out.splitlines()
        assert [line for line in lines if line not in printed] == []
