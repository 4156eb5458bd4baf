r"""SHiRA: Sparse High Rank Adapters.

Bhardwaj, Pandey, Priyadarshi, Ganapathy, Kadambi, Esteves, Borse, Whatmough, Garrepalli, Van Baalen, Teague, Nagel;
NeurIPS 2024; arXiv 2406.13175.

    W = W0 + a S,   S = M o dW,   M in {0, 1}^{n x m} fixed, with K = floor(density n m) ones a layer
    rows, columns (Struct):  evenly spaced rows or columns and the diagonal, as many as K has room for
    random (Rand):           K positions drawn uniformly
    magnitude (WM):          the K largest |W0|
    gradient (Grad):         the K largest |dL/dW0|, L the loss of a small calibration set
    snip (SNIP):             the K largest |W0 o dL/dW0|

Trained: v in R^K a layer, the entries of S at the positions of M; the paper masks the gradients of W0 or keeps such a
vector, which trains the same. The mask is chosen layer by layer, before training, and never revised.
Start: v = 0, the pretrained entries: the base model. Unlike LoRA's, the scale a (the coefficient c here) is 1 in
training whatever the density, and is varied at inference.

The change is sparse but of high rank: rows alone would bound it by their number, the diagonal lifts that. The K values
are scattered into the weight in the forward pass; no dense S is formed. An adapter is K positions and values a layer:
``load_state_dict`` switches to another one, whatever its masks, and ``fuse`` adds several, W0 + a1 S1 + a2 S2, which
interfere little, as ``interference`` measures, where few entries meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError, find_linear
from reference_impls.selective.diff_pruning import SparseDelta
from reference_impls.selective.fish_mask import differentiable

MASKS = ("rows", "columns", "random", "magnitude", "gradient", "snip")
STRUCTURED = ("rows", "columns")
DATA = ("gradient", "snip")
"""Masks that look at a calibration set."""


class SHiRA(Adapter):
    """Sparse changes of chosen weights at fixed positions."""

    mergeable = True
    family = "sparse"

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Switch to other positions and values, however many; AdapterError for a state that is none of this model."""
        pairs = {site: [state.get(f"{path}.{key}") for key in ("values", "positions")] for path, site in self._deltas()}
        if len(state) == 2 * len(pairs) and all(
            v is not None and p is not None and v.shape == p.shape for v, p in pairs.values()
        ):
            for site, (values, _) in pairs.items():
                assert values is not None
                if values.shape != site.values.shape:
                    site.values = nn.Parameter(site.values.new_zeros(values.shape))
                    site.positions = site.positions.new_zeros(values.shape)
        super().load_state_dict(state)

    def _deltas(self) -> list[tuple[str, SparseDelta]]:
        return [(path, site) for path, site in self.sites().items() if isinstance(site, SparseDelta)]


def attach(
    model: nn.Module,
    *,
    mask: str = "random",
    density: float = 0.01,
    batches: Iterable[Any] | None = None,
    seed: int = 0,
    targets: Sequence[str] = ("q", "k", "v", "up", "down"),
) -> Adapter:
    """Train a share ``density`` of the entries of every linear layer whose name is in ``targets``.

    ``mask`` is one of rows, columns, random, magnitude, gradient, snip; ``seed`` draws a random one, and ``batches`` is
    the calibration set that gradient and snip need.
    """
    if mask not in MASKS:
        raise AdapterError(f"mask is {mask!r}; allowed: {', '.join(MASKS)}")
    if not 0 < density <= 1:
        raise AdapterError(f"density is {density}; it must be above 0 and at most 1")
    weights = {f"{path}.weight": layer.weight for path, layer in find_linear(model, targets).items()}
    for name, weight in weights.items():
        count, least = int(density * weight.numel()), min(weight.shape) if mask in STRUCTURED else 1
        if count < least:
            raise AdapterError(
                f"density {density} leaves {count} entries of {name}; a {mask} mask has at least {least}"
            )
    calibration = list(batches or ()) if mask in DATA else []
    if mask in DATA and not calibration:
        raise AdapterError(f"a {mask} mask is chosen from data: pass a calibration set as batches")
    slopes = gradients(model, weights, calibration) if calibration else weights
    source = torch.Generator().manual_seed(seed)
    chosen = {
        name: positions(mask, weight.detach(), slopes[name], int(density * weight.numel()), source)
        for name, weight in weights.items()
    }
    adapter = SHiRA(model)
    for name, weight in weights.items():
        adapter.reparameterize(name, SparseDelta(weight, chosen[name]))
    return adapter


def gradients(model: nn.Module, weights: Mapping[str, Tensor], batches: Iterable[Any]) -> dict[str, Tensor]:
    """dL/dW of every weight, L the loss summed over the batches."""
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    tensors = [model.get_parameter(name) for name in weights]
    with differentiable(tensors):
        for batch in batches:
            loss: Tensor = model.loss(batch)  # type: ignore[operator]
            for name, slope in zip(weights, torch.autograd.grad(loss, tensors, materialize_grads=True), strict=True):
                total[name] += slope
    return total


def positions(mask: str, weight: Tensor, slope: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Where the ones of a mask are in the flattened weight, in order; ``slope`` is dL/dW where a mask looks at it."""
    if mask == "rows":
        return structured(weight.shape, count).flatten().nonzero().flatten()
    if mask == "columns":
        return structured(weight.T.shape, count).T.flatten().nonzero().flatten()
    if weight.is_meta:  # nothing can be ranked, and the first positions stand in, so that counts come out right
        return torch.arange(count, device="meta")
    if mask == "random":
        return torch.randperm(weight.numel(), generator=source)[:count].sort().values
    scores = {"magnitude": weight, "gradient": slope, "snip": weight * slope}[mask]
    return scores.abs().flatten().topk(count).indices.sort().values


def structured(shape: Sequence[int], count: int, diagonal: bool = True) -> Tensor:
    """Evenly spaced rows and the diagonal, at most ``count`` entries, as a mask (n, m) on the CPU."""
    n, m = shape
    rows = (count - min(n, m) * diagonal) // m
    mask = torch.zeros(n, m, dtype=torch.bool, device="cpu")
    mask[torch.arange(rows, device="cpu") * n // max(rows, 1)] = True
    return mask.fill_diagonal_(True) if diagonal else mask


def fuse(*parts: tuple[Mapping[str, Tensor], float]) -> dict[str, Tensor]:
    """The state of a1 S1 + a2 S2 + .., from states of adapters of the same layers and their coefficients."""
    names = [name.removesuffix(".values") for name in parts[0][0] if name.endswith(".values")]
    fused = {f"{name}.values": torch.cat([a * state[f"{name}.values"] for state, a in parts]) for name in names}
    return fused | {
        f"{name}.positions": torch.cat([state[f"{name}.positions"] for state, _ in parts]) for name in names
    }


def interference(S1: Tensor, S2: Tensor) -> tuple[float, float]:
    """AWOM = ||S1^T S2||_F and AWOR, the share of zeros of S1^T S2, of two changes (n, m) of one weight."""
    product = S1.T @ S2
    return float(product.norm()), 1.0 - int(product.count_nonzero()) / product.numel()
