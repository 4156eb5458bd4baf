r"""VeRA: Vector-based Random Matrix Adaptation.

Kopiczko, Blankevoort, Asano; ICLR 2024; arXiv 2310.11454, sections 3.1 to 3.3, equation 2.

    h = W0 x + bias + b * (B (d * (A x)))          (* element-wise: Lambda_b B Lambda_d A x)
    A in R^{r x d_in}, B in R^{d_out x r} random, frozen and shared by all layers;  d in R^r, b in R^{d_out}

Trained: d and b of every adapted layer. Nothing of A and B: one pair, as large as the largest layer asks for, serves
the whole model, a smaller layer using the first columns of A and the first rows of B. The pair comes from a seed of its
own, so an adapter is two short vectors a layer and that seed; ``save_projection`` saves the pair all the same.
Start: A, B from Kaiming's uniform distribution (bounds sqrt(6 / d_in), sqrt(6 / r)); d = 0.1; b = 0, hence the base
model. A zero b blocks the gradient of d in the first step.

The coefficient c acts on b: the change is linear in b for fixed d (and in d for fixed b), quadratic in both together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, check_dropout, check_rank, find_linear


class Projections(nn.Module):
    """The random pair all layers share: A (r, widest input), B (widest output, r)."""

    A: Tensor
    B: Tensor

    def __init__(self, like: Tensor, rank: int, d_in: int, d_out: int, seed: int, persistent: bool) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        for name, shape in (("A", (rank, d_in)), ("B", (d_out, rank))):
            # Drawn on the CPU, in float32: the same pair on every device and in every precision.
            drawn = torch.empty(shape, dtype=torch.float32, device="cpu")
            nn.init.kaiming_uniform_(drawn, generator=source)
            self.register_buffer(name, drawn.to(like), persistent=persistent)


class VeRALinear(DeltaLinear):
    """Two trained vectors around the shared random pair."""

    def __init__(self, base: nn.Linear, shared: Projections, d_initial: float, dropout: float) -> None:
        super().__init__(base)
        self.rank = len(shared.A)
        # A tuple hides the pair from module registration: it belongs to the model, once, not to every layer.
        self._shared = (shared,)
        self.dropout = nn.Dropout(dropout)
        self.d = nn.Parameter(base.weight.new_full((self.rank,), d_initial))
        self.b = nn.Parameter(base.weight.new_zeros(base.out_features))

    def pair(self) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (d_out, r) of this layer."""
        (shared,) = self._shared
        return shared.A[:, : self.base.in_features], shared.B[: self.base.out_features]

    def delta(self, x: Tensor) -> Tensor:
        A, B = self.pair()
        z = self.d * F.linear(self.dropout(x), A)  # (..., r)
        return self.b * F.linear(z, B)  # (..., d_out)

    def delta_weight(self) -> Tensor:
        A, B = self.pair()
        return (self.b[:, None] * B) @ (self.d[:, None] * A)


class VeRA(Adapter):
    """Trained vectors around one frozen random pair."""

    mergeable = True
    family = "low-rank"


def attach(
    model: nn.Module,
    *,
    rank: int = 1024,
    d_initial: float = 0.1,
    dropout: float = 0.0,
    seed: int = 0,
    save_projection: bool = True,
    targets: Sequence[str] = ("q", "v"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``; ``seed`` draws the random pair."""
    check_rank(rank)
    if d_initial == 0:
        raise AdapterError(
            "d_initial is 0, as b is at the start: neither would ever get a gradient; the paper takes 0.1"
        )
    check_dropout(dropout)
    layers = find_linear(model, targets)
    adapter = VeRA(model)
    widest_in = max(layer.in_features for layer in layers.values())
    widest_out = max(layer.out_features for layer in layers.values())
    like = next(iter(layers.values())).weight
    shared = Projections(like, rank, widest_in, widest_out, seed, save_projection)
    adapter.add("", "vera", shared)
    for path, base in layers.items():
        adapter.replace(path, VeRALinear(base, shared, d_initial, dropout))
    return adapter
