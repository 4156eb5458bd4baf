"""Measuring claims and costs from the command line: what is stored, what is reported, what goes wrong politely."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import catalog
from catalog import evidence
from catalog.entry import Entry
from catalog.errors import CatalogError, UsageError
from tests.conftest import Ask

CHEAP = ("trained-parameters", "mergeable", "strength")


@pytest.fixture
def lora(entries: list[Entry]) -> Entry:
    return next(entry for entry in entries if entry.slug == "lora")


def claimed(entry: Entry, **change: Any) -> Entry:
    """The entry with another claim on its reversibility."""
    assert entry.reversibility is not None
    return entry.model_copy(update={"reversibility": entry.reversibility.model_copy(update=change)})


def test_verify_stores_what_was_measured_with_its_provenance(ask_own: Ask, tmp_path: Path) -> None:
    answer = ask_own("verify", "lora", *(word for claim in CHEAP for word in ("--claim", claim)))
    assert answer.code == 0
    assert "contradicted" in answer.out
    with catalog.open(tmp_path / "catalog.sqlite") as cat:
        rows = [row for row in cat.evidence("lora") if row.source == "local"]
    assert {row.claim for row in rows} == set(CHEAP)
    assert {row.backbone for row in rows} == {"decoder", "encoder"}
    for row in rows:
        assert row.status == "verified"
        assert row.torch.startswith("2.")
        assert row.device == "cpu"
        assert len(row.implementation) == 12
        assert row.date


def test_a_claim_that_measurement_contradicts_is_reported_with_exit_code_1(
    ask_own: Ask, lora: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = claimed(lora, strength="none", mergeable=False)
    monkeypatch.setattr(evidence, "runnable", lambda entries: [wrong])
    answer = ask_own("verify", "lora", "--claim", "strength")
    assert answer.code == 1
    assert "contradicted: lora on decoder, strength: expected none, measured linear" in answer.out


def test_verify_prints_rows_for_programs(ask_own: Ask) -> None:
    answer = ask_own("verify", "lora", "--claim", "mergeable", "--json")
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [(row["slug"], row["claim"], row["status"]) for row in rows] == [("lora", "mergeable", "verified")] * 2
    assert all(float(row["measured"].split(",")[0]) <= 1e-10 for row in rows)


def test_a_claim_with_a_reason_is_untestable_and_not_measured(lora: Entry) -> None:
    reason = {"claim": "mergeable", "why": "for the test"}
    entry = Entry.model_validate(
        lora.model_dump(by_alias=True) | {"claims": lora.claims.model_dump() | {"untestable": [reason]}}
    )
    rows = list(evidence.verify(entry, ["mergeable"]))
    assert {(row["status"], row["detail"]) for row in rows} == {("untestable", "for the test")}


def test_an_unknown_claim_names_the_known_ones(lora: Entry) -> None:
    with pytest.raises(UsageError, match="unknown claim 'mergable'") as caught:
        list(evidence.verify(lora, ["mergable"]))
    assert "mergeable" in str(caught.value)


def test_a_method_without_implementation_says_so(ask_own: Ask, entries: list[Entry]) -> None:
    bare = next(entry.slug for entry in entries if not entry.has_implementation)
    answer = ask_own("verify", bare)
    assert answer.code == 2
    assert f"{bare} has no implementation yet" in answer.err


def test_without_torch_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CatalogError, match="needs torch") as caught:
        evidence.require_torch()
    assert "peft-catalog[run]" in str(caught.value)


def test_the_fingerprint_follows_the_file(lora: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "reparameterized" / "lora.py"
    file.parent.mkdir()
    file.write_text("one")
    monkeypatch.setattr(evidence, "implementation_folders", lambda: (tmp_path,))
    first = evidence.fingerprint(lora)
    file.write_text("two")
    assert evidence.fingerprint(lora) != first
    file.unlink()
    assert evidence.fingerprint(lora) == ""


def test_record_replaces_rows_with_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MEASURED", tmp_path)
    old = {"slug": "b", "claim": "strength", "measured": "1"}
    evidence.record("claims", [old, old | {"slug": "a"}], ("slug", "claim"))
    path = evidence.record("claims", [old | {"measured": "2"}], ("slug", "claim"))
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [(row["slug"], row["measured"]) for row in rows] == [("a", "1"), ("b", "2")]


def test_one_failing_method_does_not_stop_the_others(
    ask_own: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reference_impls import benchmark

    def cost(slug: str, *_: Any) -> benchmark.Cost:
        if slug == "lora":
            raise RuntimeError("out of order")
        return benchmark.Cost(10, 0.5, 0.1, 1.0, None, 1.0, None, None, None, 40, 0.25)

    monkeypatch.setattr(benchmark, "cost", cost)
    answer = ask_own("bench", "lora", "dora", "--device", "cpu")
    assert answer.code == 1
    assert "failed: lora: RuntimeError: out of order" in answer.out
    assert "25 %" in answer.out
    assert "no GPU in use" in answer.out
    with catalog.open(tmp_path / "catalog.sqlite") as cat:
        rows = [row for row in cat.bench("dora") if row.source == "local"]
        failed = [row for row in cat.bench("lora") if row.source == "local"]
    assert [(row.trained, row.gap_closed, row.device) for row in rows] == [(10, 0.25, "cpu")]
    assert failed == []


def test_bench_refuses_a_device_that_is_not_there(ask_own: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, words in (("cuda", "no CUDA device"), ("tpu", "allowed: auto, cpu, cuda")):
        answer = ask_own("bench", "lora", "--device", device)
        assert answer.code == 2
        assert words in answer.err
