"""The shipped catalog, and running the program on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

import catalog
from catalog import freshness, store
from catalog.cli import main
from catalog.locations import shipped_root


def missing(what: str, left_out: str) -> NoReturn:
    """Skip for want of a tool, saying what is left out; fail where nothing may be skipped."""
    if os.environ.get("PEFT_CATALOG_REQUIRE_ALL") == "1":
        pytest.fail(f"{what}, and PEFT_CATALOG_REQUIRE_ALL=1 allows no skipping")
    pytest.skip(f"{what}: {left_out}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for the tables in the documentation that tests write."""
    parser.addoption("--record-misbehavior", action="store_true", help="write catalog/measured/misbehavior.jsonl")
    parser.addoption("--record-parity", action="store_true", help="write catalog/measured/parity.jsonl")


@contextmanager
def nothing_shipped(folder: Path) -> Iterator[None]:
    """Databases built meanwhile hold no measurements but those of the test."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (store, freshness):
            patch.setattr(module, "MEASURED", folder / "nothing-measured")
        yield


@pytest.fixture
def unmeasured(tmp_path: Path) -> Iterator[None]:
    """No measurements are shipped."""
    with nothing_shipped(tmp_path):
        yield


class Answer(NamedTuple):
    """What a run of the program left."""

    code: int
    out: str
    err: str


Ask = Callable[..., Answer]


@pytest.fixture
def ask_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[Path], Ask]:
    """For a database, a function that runs the program on it in this process, as its script would."""

    def choose(path: Path) -> Ask:
        monkeypatch.setenv("PEFT_CATALOG_DB", str(path))
        monkeypatch.setenv("COLUMNS", "200")

        def run(*arguments: str) -> Answer:
            monkeypatch.setattr(sys, "argv", ["peft-catalog", *arguments])
            with pytest.raises(SystemExit) as stop:
                main()
            out, err = capfd.readouterr()
            assert "Traceback" not in err
            return Answer(int(stop.value.code or 0), out, err)

        return run

    return choose


@pytest.fixture
def ask(ask_of: Callable[[Path], Ask], database: Path) -> Ask:
    """Runs the program on the shipped catalog, for reading only."""
    return ask_of(database)


@pytest.fixture
def ask_own(ask_of: Callable[[Path], Ask], tmp_path: Path) -> Ask:
    """Runs the program on a database of the test's own, tmp_path / "catalog.sqlite"."""
    return ask_of(tmp_path / "catalog.sqlite")


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped catalog, for reading only."""
    path = tmp_path_factory.mktemp("database") / "catalog.sqlite"
    catalog.open(path, entries=shipped_root()).close()
    return path
