"""The learned part on disk, and the two faces of an implementation."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch.func import functional_call

from reference_impls.adapter import Wrapper
from reference_impls.claims.removal import output
from reference_impls.claims.strength import record_calls
from reference_impls.claims.trial import Measurement, Trial, distance, judge


def saves(trial: Trial) -> Measurement:
    """The learned part through safetensors into a fresh attach (another seed): equal outputs."""
    model, adapter, batch = trial.away()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "learned.safetensors"
        size = adapter.save(file)
        other, second = trial.fresh()
        second.detach()
        second = trial.attach(other, seed=5)
        second.load(file)
    equal = torch.equal(output(model, batch), output(other, batch))
    return judge(
        "saves",
        equal,
        expected="equal outputs",
        measured="equal outputs" if equal else f"{distance(output(other, batch), output(model, batch)):.3g} apart",
        tolerance="bit-identical",
        detail=f"{size:,} bytes in float64",
    )


def two_faces(trial: Trial) -> Measurement:
    """Where a change can be written as new base tensors, the fast forward equals the base with these tensors."""
    model, adapter, batch = trial.away()
    calls = record_calls(model, adapter, batch)
    worst, seen = 0.0, 0
    for path, site in adapter.sites().items():
        if not isinstance(site, Wrapper) or path not in calls:
            continue
        with torch.no_grad():
            tensors = site.merged()
            if tensors is None:
                continue
            args, keywords = calls[path]
            defined = functional_call(site.base, tensors, args, keywords)
            worst, seen = max(worst, distance(site(*args, **keywords), defined)), seen + 1
    if not seen:
        return Measurement("two-faces", "not-applicable", "", "", detail="the forward pass is the definition itself")
    return judge(
        "two-faces",
        worst <= 1e-10,
        expected="equal",
        measured=worst,
        tolerance=1e-10,
        detail=f"{seen} places",
    )
