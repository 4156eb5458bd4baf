"""What is shipped as measured belongs to the implementations as they are."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import pytest

from catalog.conditions import CLAIMS
from catalog.entry import Entry
from catalog.evidence import fingerprint, runnable
from catalog.locations import MEASURED

STALE = "stale: run peft-catalog {} {} --record"


def shipped(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (MEASURED / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def methods(entries: list[Entry]) -> dict[str, Entry]:
    return {entry.slug: entry for entry in runnable(entries)}


def test_every_claim_of_every_method_is_measured_on_all_its_backbones(methods: dict[str, Entry]) -> None:
    expected = {
        (slug, str(kind), claim) for slug, e in methods.items() for kind in e.claim_backbones for claim in CLAIMS
    }
    rows = [(row["slug"], row["backbone"], row["claim"]) for row in shipped("claims")]
    assert set(rows) == expected
    assert len(rows) == len(expected)


def test_nothing_shipped_contradicts_a_claim() -> None:
    assert [(r["slug"], r["claim"], r["measured"]) for r in shipped("claims") if r["status"] == "contradicted"] == []


def test_every_method_has_its_costs(methods: dict[str, Entry]) -> None:
    rows = [(row["slug"], row["backbone"]) for row in shipped("bench") if row["device"] == "cpu"]
    assert sorted(rows) == sorted((slug, str(entry.claim_backbones[0])) for slug, entry in methods.items())


def test_every_method_has_its_figures_of_strength(methods: dict[str, Entry]) -> None:
    rows = {row["slug"]: row for row in shipped("reversal")}
    assert {slug: row["backbone"] for slug, row in rows.items()} == {
        slug: str(entry.claim_backbones[0]) for slug, entry in methods.items()
    }
    stated = {slug: str(entry.reversibility.strength) for slug, entry in methods.items() if entry.reversibility}
    assert {slug: row["word"] for slug, row in rows.items()} == stated
    curves = {row["slug"] for row in shipped("strength")}
    assert curves == {slug for slug, row in rows.items() if row["zero_is_base"] is not None}


@pytest.mark.parametrize(("name", "command"), [("claims", "verify"), ("bench", "bench"), ("reversal", "strength")])
def test_measurements_are_of_the_code_as_it_is(methods: dict[str, Entry], name: str, command: str) -> None:
    now = {slug: fingerprint(entry) for slug, entry in methods.items()}
    stale = {row["slug"] for row in shipped(name) if row["implementation"] != now[row["slug"]]}
    assert not stale, STALE.format(command, " ".join(sorted(stale)))


COMPARED = ("peft", "lycoris-lora", "loralib")


def test_every_library_that_tests_install_is_compared_with_every_method_it_ships(methods: dict[str, Entry]) -> None:
    ships = {(slug, library) for slug, entry in methods.items() for library in entry.libraries if library in COMPARED}
    rows = {(row["slug"], row["library"]) for row in shipped("parity")}
    assert ships <= rows, "record with: pytest tests/methods -k 'peft or lycoris or loralib' --record-parity"


def test_libraries_are_compared_in_the_version_that_is_installed() -> None:
    for row in shipped("parity"):
        pytest.importorskip(row["library"].partition("-")[0])
        assert row["version"] == version(row["library"]), row["slug"]


def test_measurements_say_with_what_and_when() -> None:
    for row in [*shipped("claims"), *shipped("bench"), *shipped("reversal")]:
        assert all(row[key] for key in ("torch", "python", "commit", "date", "device")), row
        assert not row["commit"].endswith("-dirty"), row
