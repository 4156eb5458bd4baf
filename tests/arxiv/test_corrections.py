"""Entries held against arXiv and corrected: once is enough, and nothing else in the file changes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from catalog.arxiv_sync.correct import correct, edited
from catalog.arxiv_sync.reconcile import drifts, same_people
from catalog.arxiv_sync.record import Person, Record
from catalog.entry import load_entry, validate
from catalog.errors import EntryError
from catalog.locations import entry_paths, shipped_root

LINES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=40).filter(
    lambda text: bool(text.strip())
)
DAYS = st.dates().map(str)
RECORDS = st.builds(
    Record,
    arxiv=st.just("2106.09685"),
    version=st.integers(1, 9),
    title=LINES.map(str.strip),
    authors=st.lists(LINES.map(str.strip).map(Person), min_size=1, max_size=12).map(tuple),
    abstract=st.just(""),
    published=DAYS.map(lambda day: f"{day}T00:00:00Z"),
    updated=DAYS,
    categories=st.lists(st.sampled_from(["cs.CL", "cs.LG", "stat.ML"]), min_size=1, unique=True).map(tuple),
    doi=st.none() | st.just("10.1000/xyz"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where entries of single examples go."""
    return tmp_path_factory.mktemp("corrections")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(RECORDS, st.sampled_from(["reparameterized/lora", "reparameterized/bone", "prompt/vpt", "prompt/smop"]))
def test_after_a_correction_nothing_is_left_to_write(folder: Path, record: Record, name: str) -> None:
    path = folder / f"{name.rpartition('/')[2]}.toml"
    path.write_bytes((shipped_root() / f"{name}.toml").read_bytes())
    before = load_entry(path)
    found = [drift for drift in drifts(before, record) if drift.correction is not None]
    assume(record.published >= "1000")
    assert correct(path, drifts(before, record)) == found
    after = load_entry(path)
    assert [drift for drift in drifts(after, record) if drift.correction is not None] == []
    changed = {drift.key for drift in found}
    kept = before.model_dump(exclude=changed)
    assert after.model_dump(exclude=changed) == kept
    text = path.read_bytes()
    assert correct(path, drifts(after, record)) == []
    assert path.read_bytes() == text


@given(LINES, st.sampled_from(["title", "venue", "name"]))
def test_any_text_can_be_written(value: str, key: str) -> None:
    text = (shipped_root() / "reparameterized/lora.toml").read_text("utf-8")
    changed = edited(text, key, value)
    assert tomllib.loads(changed) == tomllib.loads(text) | {key: value}
    assert len(changed.splitlines()) == len(text.splitlines())


@given(st.lists(LINES, min_size=1, max_size=30))
def test_any_names_can_be_written(names: list[str]) -> None:
    text = (shipped_root() / "reparameterized/lora.toml").read_text("utf-8")
    changed = edited(text, "authors", tuple(names))
    assert tomllib.loads(changed) == tomllib.loads(text) | {"authors": names}
    assert edited(changed, "authors", tuple(names)) == changed


def test_a_new_key_stands_where_its_kind_stands() -> None:
    text = 'title = "A"\npublished = "2021"  # seen\nvenue = "ICLR 2022"\nurl = "x"\n\n[claims]\nnote = "b"\n'
    assert edited(text, "doi", "10.1/x").splitlines()[2:4] == ['venue = "ICLR 2022"', 'doi = "10.1/x"']
    odd = 'title = "A"\nvenue = """ICLR\n2022"""\n[claims]\nnote = "b"\n'
    assert tomllib.loads(edited(odd, "doi", "10.1/x"))["doi"] == "10.1/x"


def test_every_entry_can_be_corrected_without_changing_anything_else() -> None:
    for path in entry_paths(shipped_root()):
        text = path.read_text("utf-8")
        changed = edited(text, "title", "Another title")
        assert tomllib.loads(changed) == tomllib.loads(text) | {"title": "Another title"}
        differing = [pair for pair in zip(text.splitlines(), changed.splitlines(), strict=True) if pair[0] != pair[1]]
        assert len(differing) == 1
        assert validate(tomllib.loads(changed))[0] is not None


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    entry = load_entry(shipped_root() / "reparameterized/lora.toml")
    record = Record("2106.09685", 1, "Other", (Person("A B"),), "", "2021-06-17T00:00:00Z", "2021", ("cs.CL",))
    with pytest.raises(EntryError, match="cannot read the entry"):
        correct(tmp_path / "lora.toml", drifts(entry, record))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (["Edward J. Hu"], ["E. Hu"], True),
        (["José García"], ["Jose Garcia"], True),
        (["Ann One", "Bo Two"], ["Bo Two", "Ann One"], False),
        (["Ann One"], ["Ann One", "Bo Two"], False),
        (["Ann One"], ["Bo One"], False),
        (["李明"], ["李明"], True),
        (["!"], ["?"], True),
    ],
)
def test_who_is_the_same(one: list[str], other: list[str], same: bool) -> None:
    assert same_people(one, other) is same
