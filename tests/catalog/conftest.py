"""A database built once, and entries that a test may change."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import catalog
from catalog.cli import main
from catalog.entry import Entry, load_entries
from catalog.locations import shipped_root
from catalog.query import Catalog


@dataclass
class Answer:
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
def entries() -> list[Entry]:
    return load_entries(shipped_root())


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped catalog, for reading only."""
    path = tmp_path_factory.mktemp("database") / "catalog.sqlite"
    catalog.open(path).close()
    return path


@pytest.fixture
def cat(database: Path) -> Iterator[Catalog]:
    with catalog.open(database) as opened:
        yield opened


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder with three entries, each of which builds on the one before."""
    root = tmp_path / "entries"
    for name in ("reparameterized/lora", "reparameterized/dora", "additive/houlsby-adapter"):
        target = root / f"{name}.toml"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shipped_root() / f"{name}.toml", target)
    return root


@pytest.fixture
def edit(few: Path) -> Callable[[str, str, str], None]:
    """Replaces text in one of the three entries."""

    def replace(name: str, old: str, new: str) -> None:
        path = few / f"{name}.toml"
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new), "utf-8")

    return replace
