"""How many values are trained: the entry's formula at several sizes, and the counts that papers print."""

from __future__ import annotations

from dataclasses import replace

from reference_impls.backbones import SMALL
from reference_impls.claims.trial import Measurement, Trial, judge, on_meta


def trained_parameters(trial: Trial) -> Measurement:
    """Count equals the formula at three sizes."""
    if trial.expected.count is None:
        return Measurement("trained-parameters", "not-applicable", "", "", detail="the entry gives no formula")
    small = SMALL[trial.kind]
    sizes = [
        small,
        replace(small, d=48, f=80, head_dim=12, V=30),
        replace(small, L=4, d=64, f=128, head_dim=16, C=6),
    ]
    expected, measured = [], []
    for size in sizes:
        model = on_meta(trial.kind, size)
        expected.append(trial.expected.count(trial.variables(model, trial.expected.hyperparameters)))
        measured.append(trial.attach(model).count())
    return judge("trained-parameters", expected == measured, expected=expected, measured=measured, tolerance=0)


def reported_counts(trial: Trial) -> Measurement:
    """Counts reported in the paper, reproduced at real dimensions on the meta device."""
    reported = trial.expected.reported
    if not reported:
        return Measurement("reported-counts", "not-applicable", "", "", detail="no count of the paper is recorded")
    expected = [f"{r.at}: {r.trained:,}" for r in reported]
    measured = [f"{r.at}: {trial.attach(on_meta(r.kind, r.size), r.hyperparameters).count():,}" for r in reported]
    return judge(
        "reported-counts",
        expected == measured,
        expected="; ".join(expected),
        measured="; ".join(measured),
        tolerance=0,
    )
