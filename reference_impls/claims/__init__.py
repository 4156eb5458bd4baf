"""Measures what an entry claims about a method, on its implementation.

Everything is measured away from the initial point and, where exactness is claimed, in float64. ``measure`` runs one
claim, ``measure_all`` every one; a claim that fails for a fault in the code counts as contradicted, with the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from reference_impls.claims.devices import device_dtype
from reference_impls.claims.invariants import family_invariant
from reference_impls.claims.parameters import reported_counts, trained_parameters
from reference_impls.claims.removal import detachable, mergeable
from reference_impls.claims.storage import saves, two_faces
from reference_impls.claims.strength import strength
from reference_impls.claims.training import (
    determinism,
    identity_at_init,
    it_learns,
    only_trained_tensors_move,
    trained_tensors_learn,
)
from reference_impls.claims.trial import Expected, Measurement, ReportedCount, Trial

__all__ = ["CLAIMS", "Expected", "Measurement", "ReportedCount", "Trial", "measure", "measure_all"]

CLAIMS: dict[str, Callable[[Trial], Measurement]] = {
    "trained-parameters": trained_parameters,
    "reported-counts": reported_counts,
    "identity-at-init": identity_at_init,
    "trained-tensors-learn": trained_tensors_learn,
    "only-trained-tensors-move": only_trained_tensors_move,
    "it-learns": it_learns,
    "detachable": detachable,
    "mergeable": mergeable,
    "strength": strength,
    "saves": saves,
    "two-faces": two_faces,
    "family-invariant": family_invariant,
    "device-dtype": device_dtype,
    "determinism": determinism,
}


def measure(claim: str, trial: Trial) -> Measurement:
    """One claim; whatever goes wrong inside a method is a contradiction, not a crash."""
    try:
        return CLAIMS[claim](trial)
    except Exception as error:
        return Measurement(claim, "contradicted", "", "failed", detail=f"{type(error).__name__}: {error}"[:500])


def measure_all(trial: Trial) -> Iterator[Measurement]:
    """Every claim, in the order of :data:`CLAIMS`."""
    return (measure(claim, trial) for claim in CLAIMS)
