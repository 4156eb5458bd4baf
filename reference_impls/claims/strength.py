"""The coefficient on the learned change: linear, antisymmetric, nonlinear, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reference_impls.adapter import Adapter, AdapterError, Delta, Site, Wrapper
from reference_impls.backbones import Backbone, Batch
from reference_impls.claims.trial import Measurement, Trial, base_output, judge

EXACT = 1e-9


def strength(trial: Trial) -> Measurement:
    """Change at module level for c = -1, 0, 1/2, 1, 2; the worst of all places decides."""
    model, adapter, batch = trial.away()
    expected = trial.expected.strength
    if not adapter.has_strength:
        return judge("strength", expected == "none" and refuses(adapter), expected=expected, measured="none")
    probes = changes(trial, model, adapter, batch)
    figures = [figures_of(probe, adapter) for probe in probes]
    zero, antisymmetry, half, double, effect = (max(column) for column in zip(*figures, strict=True))
    if effect < EXACT:
        measured = "ignored"
    elif max(zero, antisymmetry, half, double) < EXACT:
        measured = "linear"
    elif max(zero, antisymmetry) < EXACT:
        measured = "antisymmetric"
    else:
        measured = "nonlinear"
    return judge(
        "strength",
        measured == expected,
        expected=expected,
        measured=measured,
        tolerance=EXACT,
        detail=f"|d(0)| {zero:.2g}, |d(-1)+d(1)| {antisymmetry:.2g}, |d(1/2)-d(1)/2| {half:.2g}, "
        f"|d(2)-2d(1)| {double:.2g}, relative to |d(1)|",
    )


def refuses(adapter: Adapter) -> bool:
    """Whether setting a strength is an error."""
    try:
        adapter.strength = 0.5
    except AdapterError:
        return True
    return False


def figures_of(probe: Callable[[], Tensor], adapter: Adapter) -> tuple[float, ...]:
    """How far the change d(c) is from d(0) = 0, d(-1) = -d(1), d(1/2) = d(1)/2, d(2) = 2 d(1) and from d(2) = d(1)."""
    d = {}
    for c in (-1.0, 0.0, 0.5, 1.0, 2.0):
        adapter.strength = c
        with torch.no_grad():
            d[c] = probe()
    adapter.strength = 1.0
    size = float(d[1.0].norm())
    if size == 0.0:
        return (0.0,) * 5

    def relative(x: Tensor) -> float:
        return float(x.norm()) / size

    return (
        relative(d[0.0]),
        relative(d[-1.0] + d[1.0]),
        relative(d[0.5] - d[1.0] / 2),
        relative(d[2.0] - 2 * d[1.0]),
        relative(d[2.0] - d[1.0]),
    )


def changes(trial: Trial, model: Backbone, adapter: Adapter, batch: Batch) -> list[Callable[[], Tensor]]:
    """One probe a site: the change it makes to its module's output, or to its tensor.

    What acts through hooks (prompts, prefixes) is probed at the model's output.
    """
    calls = record_calls(model, adapter, batch)
    probes: list[Callable[[], Tensor]] = []
    for path, site in adapter.sites().items():
        if isinstance(site, Wrapper) and path in calls:
            probes.append(wrapper_probe(site, *calls[path]))
        elif isinstance(site, Delta):
            probes.append(delta_probe(site, original(model, path)))
    hooked = any(isinstance(s, Site) and not isinstance(s, Wrapper | Delta) for s in adapter.sites().values())
    if hooked or not probes:
        reference = base_output(trial.kind, torch.float64, batch)
        probes.append(lambda: model(batch) - reference)
    return probes


def original(model: Backbone, path: str) -> Tensor:
    """The base tensor under a reparameterized one."""
    module, _, name = path.rpartition(".")
    tensor: Tensor = model.get_submodule(module).parametrizations[name].original  # type: ignore[union-attr,index]
    return tensor


def wrapper_probe(site: Wrapper, args: tuple[Any, ...], keywords: dict[str, Any]) -> Callable[[], Tensor]:
    """The change a wrapper makes to its module's output, on these arguments."""

    def tensor(value: Any) -> Tensor:
        return value[0] if isinstance(value, tuple) else value

    return lambda: tensor(site(*args, **keywords)) - tensor(site.base(*args, **keywords))


def delta_probe(site: Delta, base: Tensor) -> Callable[[], Tensor]:
    """The change a reparameterization makes to its tensor."""
    return lambda: site(base) - base


def record_calls(model: Backbone, adapter: Adapter, batch: Batch) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments every wrapper is called with on a real batch."""
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    handles = []
    for path, site in adapter.sites().items():
        if isinstance(site, Wrapper):

            def keep(_: Any, args: Any, keywords: Any, path: str = path) -> None:
                calls[path] = (args, keywords)

            handles.append(site.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return calls
