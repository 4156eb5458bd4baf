"""What every method of a family keeps or bounds, whatever was learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from reference_impls.adapter import Adapter, Delta, Wrapper
from reference_impls.backbones import Backbone
from reference_impls.claims.strength import original
from reference_impls.claims.trial import Measurement, Trial, judge


def family_invariant(trial: Trial) -> Measurement:
    """The invariant of the method's family, in float64, away from the start."""
    model, adapter, batch = trial.away()
    if adapter.family is None:
        return Measurement("family-invariant", "not-applicable", "", "", detail="its family has no invariant")
    if adapter.family == "side-network":
        return side_network(model, adapter, lambda: adapter.loss(batch))
    with torch.no_grad():
        words, measured, bound = FAMILIES[adapter.family](model, adapter)
    ok = measured <= bound
    return judge("family-invariant", ok, expected=words, measured=measured, tolerance=bound, detail=adapter.family)


def weights(model: Backbone, adapter: Adapter) -> Iterator[tuple[str, Tensor, Tensor, object]]:
    """Place, base weight, weight in effect, site: for every site that can be written as a weight."""
    for path, site in adapter.sites().items():
        if isinstance(site, Wrapper):
            tensors = site.merged() or {}
            if "weight" in tensors:
                yield path, site.base.weight, tensors["weight"], site  # type: ignore[misc]
        elif isinstance(site, Delta):
            base = original(model, path)
            yield path, base, site(base), site


def orthogonal(model: Backbone, adapter: Adapter) -> tuple[str, float, float]:
    """Singular values of every adapted weight are those of the base weight."""
    worst = 0.0
    for _, base, now, _ in weights(model, adapter):
        kept, new = torch.linalg.svdvals(base), torch.linalg.svdvals(now)
        worst = max(worst, float((kept - new).abs().max() / kept.max()))
    return "singular values kept", worst, 1e-10


def low_rank(model: Backbone, adapter: Adapter) -> tuple[str, float, float]:
    """The change has the rank it says: singular values beyond it vanish, the first does not."""
    worst = 0.0
    for path, base, now, site in weights(model, adapter):
        values = torch.linalg.svdvals((now - base).flatten(1))
        rank: int = site.rank  # type: ignore[attr-defined]
        if float(values[0]) == 0.0:
            raise ValueError(f"{path} has not changed, so its rank says nothing")
        if rank < len(values):
            worst = max(worst, float(values[rank] / values[0]))
    return "rank of the change within the rank chosen", worst, 1e-10


def sparse(model: Backbone, adapter: Adapter) -> tuple[str, float, float]:
    """Entries changed outside the support, over all tensors that have one."""
    outside = 0
    for _, base, now, site in weights(model, adapter):
        if hasattr(site, "support"):
            outside += int(((now != base) & ~site.support(base)).sum())
    return "no entry outside the support changes", float(outside), 0.0


def scaling(model: Backbone, adapter: Adapter) -> tuple[str, float, float]:
    """Rows (or columns) of every weight keep their direction: the ratio to the base is one number along them."""
    worst = 0.0
    for _, base, now, _ in weights(model, adapter):
        ratio = now / base
        spread = min(float(ratio.std(dim=axis).max()) for axis in (0, 1)) if ratio.ndim == 2 else 0.0
        worst = max(worst, spread)
    return "rows or columns keep their direction", worst, 1e-10


FAMILIES: dict[str, Callable[[Backbone, Adapter], tuple[str, float, float]]] = {
    "orthogonal": orthogonal,
    "low-rank": low_rank,
    "sparse": sparse,
    "scaling": scaling,
}


def side_network(model: Backbone, adapter: Adapter, run: Callable[[], Tensor]) -> Measurement:
    """While the backbone's own blocks run, autograd saves nothing for the backward pass."""
    saved = 0
    inside = 0

    def enter(*_: object) -> None:
        nonlocal inside
        inside += 1

    def leave(*_: object) -> None:
        nonlocal inside
        inside -= 1

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += bool(inside)
        return tensor

    blocks = [
        m
        for m in model.modules()
        if type(m).__name__ == "Block" and not any(m is x for s in own(adapter) for x in s.modules())
    ]
    handles = [h for b in blocks for h in (b.register_forward_pre_hook(enter), b.register_forward_hook(leave))]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run().backward()
    for handle in handles:
        handle.remove()
    return judge(
        "family-invariant",
        saved == 0 and bool(blocks),
        expected="0 tensors saved in the backbone",
        measured=f"{saved} tensors saved in {len(blocks)} blocks",
        tolerance=0,
        detail="side-network",
    )


def own(adapter: Adapter) -> list[torch.nn.Module]:
    """The modules a side network brought along: children of its sites other than the base."""
    return [child for site in adapter.sites().values() for name, child in site.named_children() if name != "base"] + [
        site for site in adapter.sites().values() if not isinstance(site, Wrapper)
    ]
