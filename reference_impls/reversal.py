"""Strength and reversal as curves: how a method's change answers to its coefficient, and what merging leaves behind.

The claim `strength` says which of four words holds; here are the figures behind the word, at the adapted modules and at
the model's output, whether the change has a bound, and how far the base weights have moved after many merges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from reference_impls.adapter import Adapter
from reference_impls.backbones import Backbone
from reference_impls.claims.invariants import weights
from reference_impls.claims.strength import changes
from reference_impls.claims.strength import strength as strength_claim
from reference_impls.claims.trial import Trial, base_output, like

COEFFICIENTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
CYCLES = 1000
PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Point:
    """The change d(c) at one level ("module" or "output"), relative to d(1)."""

    level: str
    c: float
    along: float
    """<d(c), d(1)> / |d(1)|^2: c where the change is linear, -1 at c = -1 where it is antisymmetric"""
    off: float
    """|d(c) - along d(1)| / |d(1)|: what points elsewhere"""


@dataclass(frozen=True)
class Drift:
    """How far base weights are from where they were, |W - W0| / |W0| over all of them, after merging and unmerging."""

    kept: float
    """with the base weights kept, as here"""
    once: float
    """with the change added and subtracted again, one time"""
    often: float
    """and as many times as `Reversal.cycles` says, at another coefficient each time where there is one"""


@dataclass(frozen=True)
class Reversal:
    """What was measured on one method; None: the method has no such thing."""

    word: str
    """linear, antisymmetric, nonlinear or none, measured at the modules"""
    zero_is_base: bool | None
    """whether c = 0 gives the base model's output bit for bit, in float32"""
    growth: float | None
    """|change| with everything learned ten times as far from its start, relative to |change|; near 1: bounded"""
    cycles: int
    drift: dict[str, Drift]
    """by precision; empty for a method that cannot be merged"""
    points: tuple[Point, ...]


def reversal(trial: Trial, cycles: int = CYCLES) -> Reversal:
    """Measure one method on one backbone, away from the start."""
    return Reversal(
        word=strength_claim(trial).measured,
        zero_is_base=zero_is_base(trial),
        growth=growth(trial),
        cycles=cycles,
        drift=drifts(trial, cycles) if trial.expected.mergeable else {},
        points=tuple(points(trial)),
    )


def points(trial: Trial) -> Iterator[Point]:
    """Both curves, in float64; none for a method without a coefficient."""
    model, adapter, batch = trial.away()
    if not adapter.has_strength:
        return
    base = base_output(trial.kind, torch.float64, batch)
    levels = {
        "module": together(changes(trial, model, adapter, batch)),
        "output": lambda: (model(batch) - base).flatten(),
    }
    for level, probe in levels.items():
        found = curve(adapter, probe)
        size = found[1.0].norm()
        for c in COEFFICIENTS:
            along = found[c] @ found[1.0] / size**2
            yield Point(level, c, float(along), float((found[c] - along * found[1.0]).norm() / size))


def together(probes: list[Callable[[], Tensor]]) -> Callable[[], Tensor]:
    """The changes at all places as one vector."""
    return lambda: torch.cat([probe().flatten() for probe in probes])


def curve(adapter: Adapter, probe: Callable[[], Tensor]) -> dict[float, Tensor]:
    """d(c) for every coefficient; the adapter is left at 1."""
    found = {}
    for c in COEFFICIENTS:
        adapter.strength = c
        with torch.no_grad():
            found[c] = probe()
    adapter.strength = 1.0
    return found


def zero_is_base(trial: Trial) -> bool | None:
    """Whether the output at c = 0 is the base's, bit for bit, in float32."""
    model, adapter, batch = trial.away(torch.float32)
    if not adapter.has_strength:
        return None
    adapter.strength = 0.0
    with torch.no_grad():
        return torch.equal(model(batch), base_output(trial.kind, torch.float32, batch))


def growth(trial: Trial, factor: float = 10.0) -> float | None:
    """How much the change grows when everything learned moves ``factor`` times as far from its start."""
    model, adapter, batch = trial.away()
    learned = adapter.parameters()
    if not learned:
        return None
    start = [p.detach() for p in trial.fresh()[1].parameters()]
    probe = together(changes(trial, model, adapter, batch))
    with torch.no_grad():
        before = probe().norm()
        for p, origin in zip(learned, start, strict=True):
            p.copy_(origin + factor * (p - origin))
        return float(probe().norm() / before)


def drifts(trial: Trial, cycles: int) -> dict[str, Drift]:
    """Merging and unmerging, in both precisions."""
    return {name: drift(trial, dtype, cycles) for name, dtype in PRECISIONS.items()}


def drift(trial: Trial, dtype: torch.dtype, cycles: int) -> Drift:
    """The three figures of one precision."""
    model, adapter, batch = trial.away(torch.float32)
    model.to(dtype)
    with torch.no_grad():
        model(like(model, batch))
        turns = [c for c in reversed(COEFFICIENTS) if c] if adapter.has_strength else [1.0]
        found = [weight_changes(model, adapter, c) for c in turns]
        reference = [(p, p.detach().clone()) for p in base_parameters(model, adapter)]
        for _ in range(cycles):
            adapter.merge()
            adapter.unmerge()
    places = [(base, [d[i][1] for d in found]) for i, (base, _) in enumerate(found[0])]
    return Drift(
        kept=apart([(p.detach(), before) for p, before in reference]),
        once=apart([(added_and_subtracted(base, changes[turns.index(1.0) :], 1), base) for base, changes in places]),
        often=apart([(added_and_subtracted(base, changes, cycles), base) for base, changes in places]),
    )


def weight_changes(model: Backbone, adapter: Adapter, c: float) -> list[tuple[Tensor, Tensor]]:
    """Base weight and its change at ``c``, at every place; the adapter is left at 1."""
    if adapter.has_strength:
        adapter.strength = c
    found = [(base.detach().clone(), (now - base).detach()) for _, base, now, _ in weights(model, adapter)]
    if adapter.has_strength:
        adapter.strength = 1.0
    return found


def base_parameters(model: Backbone, adapter: Adapter) -> list[Tensor]:
    """The tensors of the base model: everything that is not trained."""
    learned = {id(p) for p in adapter.parameters()}
    return [p for p in model.parameters() if id(p) not in learned]


def added_and_subtracted(weight: Tensor, changes: list[Tensor], cycles: int) -> Tensor:
    """W + d - d, again and again with the next change, as programs do that keep no copy of W."""
    weight = weight.clone()
    for change in islice(cycle(changes), cycles):
        weight += change
        weight -= change
    return weight


def apart(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """|W - W0| / |W0| over all pairs (W, W0), in float64."""
    distance = sum(float((now.double() - before.double()).square().sum()) for now, before in pairs)
    size = sum(float(before.double().square().sum()) for _, before in pairs)
    return (distance / size) ** 0.5 if size else 0.0
