"""What every entry claims, measured on its implementation: one test a method, backbone and claim."""

from __future__ import annotations

import pytest

from reference_impls.claims import CLAIMS, measure
from reference_impls.claims.training import learns_at_all
from reference_impls.registry import methods

from .cases import entries, places, trial


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize(("slug", "kind"), places(), ids=lambda value: value)
def test_claim(slug: str, kind: str, claim: str) -> None:
    reasons = {item.claim: item.why for item in entries()[slug].claims.untestable}
    if claim in reasons:
        return
    if claim == "it-learns":  # its figure takes a hundred times as long as any other claim
        assert learns_at_all(trial(slug, kind))
        return
    result = measure(claim, trial(slug, kind))
    assert result.status != "contradicted", (
        f"{slug} on {kind}, {claim}: expected {result.expected}, measured {result.measured} "
        f"(tolerance {result.tolerance}); {result.detail}"
    )


def test_implementations_and_entries_match() -> None:
    assert methods() == {slug: entry.implementation for slug, entry in sorted(entries().items(), key=order)}


def order(item: tuple[str, object]) -> tuple[int, str]:
    """As the registry lists them: by folder, then by file name."""
    from reference_impls.registry import CATEGORIES

    entry = entries()[item[0]]
    return CATEGORIES.index(str(entry.category)), item[0].replace("-", "_")


def test_every_method_states_its_parameter_formula() -> None:
    without = [slug for slug, entry in entries().items() if entry.claims.parameters is None]
    assert without == []
