"""Curves of strength and drift: the figures are those of the definition, and would show a fault."""

from __future__ import annotations

import pytest
import torch

from reference_impls import reversal
from reference_impls.adapter import Adapter
from reference_impls.claims import Expected, Trial
from reference_impls.registry import load

from .cases import first_places, trial


def along(figures: reversal.Reversal, level: str) -> dict[float, tuple[float, float]]:
    return {p.c: (p.along, p.off) for p in figures.points if p.level == level}


def test_lora_is_linear_at_its_layers_and_not_at_the_output() -> None:
    found = reversal.reversal(trial("lora", "decoder"), cycles=3)
    assert found.word == "linear"
    assert found.zero_is_base
    for c, (share, off) in along(found, "module").items():
        assert share == pytest.approx(c, abs=1e-12)
        assert off < 1e-12
    output = along(found, "output")
    assert output[1.0] == pytest.approx((1.0, 0.0), abs=1e-12)
    assert output[0.0] == pytest.approx((0.0, 0.0), abs=1e-12)
    assert output[-1.0][1] > 0.1


def test_a_product_of_two_learned_factors_grows_with_their_square_and_a_reflection_does_not() -> None:
    assert reversal.growth(trial("lora", "decoder")) > 50  # type: ignore[operator]
    assert reversal.growth(trial("lora-fa", "decoder")) == pytest.approx(10.0)
    assert reversal.growth(trial("ether", "encoder")) < 2  # type: ignore[operator]


def test_what_is_kept_does_not_drift_and_what_is_added_and_subtracted_does() -> None:
    for name, found in reversal.drifts(trial("lora", "decoder"), 5).items():
        assert found.kept == 0.0
        assert 0 < found.once <= found.often, name
    half, single = (reversal.drift(trial("lora", "decoder"), d, 5).once for d in reversal.PRECISIONS.values())
    assert half > 1000 * single


def test_a_merge_that_subtracts_instead_of_keeping_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    merge, unmerge = Adapter.merge, Adapter.unmerge

    def forgetful(adapter: Adapter) -> None:
        merge(adapter)
        kept = adapter._kept or []
        adapter._kept = [(p, p.data - (p.data - data)) for p, data in kept]

    monkeypatch.setattr(Adapter, "merge", forgetful)
    monkeypatch.setattr(Adapter, "unmerge", unmerge)
    assert reversal.drift(trial("lora", "decoder"), torch.bfloat16, 2).kept > 0


@pytest.mark.parametrize(("slug", "kind"), first_places())
def test_every_method_has_its_figures(slug: str, kind: str) -> None:
    one = trial(slug, kind)
    found = reversal.reversal(one, cycles=2)
    assert found.word == one.expected.strength
    assert bool(found.points) == (found.zero_is_base is not None)
    assert bool(found.drift) == one.expected.mergeable
    assert all(d.kept == 0.0 for d in found.drift.values())


def test_a_method_without_coefficient_has_no_curve() -> None:
    one = Trial(load("hra"), "encoder", Expected(True, True, True, "none", {"rank": 4}))
    found = reversal.reversal(one, cycles=2)
    assert (found.word, found.zero_is_base, found.points) == ("none", None, ())
    assert found.drift["float32"].often > 0
