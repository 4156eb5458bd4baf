"""`peft-catalog strength`: measured, shown, stored, and read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import catalog
from catalog import evidence
from tests.conftest import Ask


def test_figures_are_shown_and_kept(ask_own: Ask, tmp_path: Path) -> None:
    answer = ask_own("strength", "lora", "hra", "--cycles", "2")
    assert answer.code == 0, answer.err
    assert "linear" in answer.out
    with catalog.open(tmp_path / "catalog.sqlite") as cat:
        rows = {row["slug"]: row for row in cat.measured("reversal") if row["source"] == "local"}
        points = [p for p in cat.measured("strength_point") if p["source"] == "local"]
    assert {slug: row["word"] for slug, row in rows.items()} == {"lora": "linear", "hra": "none"}
    assert rows["lora"]["cycles"] == 2
    assert rows["lora"]["kept_bfloat16"] == 0.0 < rows["lora"]["often_bfloat16"]
    assert sorted({(p["slug"], p["level"]) for p in points}) == [("lora", "module"), ("lora", "output")]
    assert len(points) == 12


def test_a_newer_measurement_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    row = {"slug": "lora", "backbone": "decoder", "word": "linear", "cycles": 1}
    point = {"slug": "lora", "backbone": "decoder", "level": "module", "c": -1.0, "along": -1.0, "off": 0.0}
    with catalog.open(tmp_path / "catalog.sqlite") as cat:
        cat.record_reversals([row], [point])
        cat.record_reversals([row | {"cycles": 5}], [point | {"off": 0.5}])
        assert [r["cycles"] for r in cat.measured("reversal") if r["slug"] == "lora"] == [5]
        found = [
            p["off"]
            for p in cat.measured("strength_point")
            if (p["slug"], p["level"], p["c"]) == ("lora", "module", -1)
        ]
        assert found == [0.5]


def test_recorded_rows_are_lines_of_json(ask_own: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MEASURED", tmp_path)
    answer = ask_own("strength", "lora", "--cycles", "1", "--record", "--json")
    assert answer.code == 0, answer.err
    assert len(json.loads(answer.out)["points"]) == 12
    (row,) = [json.loads(line) for line in (tmp_path / "reversal.jsonl").read_text("utf-8").splitlines()]
    assert "points" not in row
    assert row["implementation"]
    assert len((tmp_path / "strength.jsonl").read_text("utf-8").splitlines()) == 12


def test_cycles_must_be_some(ask_own: Ask) -> None:
    assert ask_own("strength", "lora", "--cycles", "0").code == 2
