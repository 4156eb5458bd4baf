r"""NB-LoRA: Norm-Bounded Low-Rank Adaptation.

Wang, Dvijotham, Manchester; arXiv 2501.19050, versions 3 and 4.

    h = W0 x + b + 2 B^T S A x,   S = diag(s_1 >= .. >= s_r >= 0),   A A^T + B B^T = I_r
    W0 in R^{d_out x d_in} frozen,  A in R^{r x d_in},  B in R^{r x d_out}

    free:  A~ in R^{r x d_in},  B~ in R^{r x d_out};   [A~^T; B~^T] = [X; Y],  X in R^{r x r},  r <= d_in
    Z = X - X^T + Y^T Y,   M = (I + Z)^{-1},   [A^T; B^T] = [(I - Z) M; -2 Y M]: orthonormal columns, by Cayley

Singular value i of the change is at most s_i, whatever A~ and B~ are, and every matrix of rank r that obeys these
bounds is reached up to closure: no projection, plain gradient descent. I + Z can always be inverted, its symmetric part
being I + Y^T Y.

Trained: A~ and B~ of every adapted layer.
Start: B~ = 0, hence B = 0, the base model; A~ is drawn from Kaiming's uniform distribution (a = sqrt 5), as LoRA's A.
What the paper starts from could not be confirmed.

``bound`` is a bound delta on the spectral norm, S = delta I, or r bounds s_1 .. s_r. The paper bounds other Schatten
norms by an S inside the l_p ball; how it moves there could not be confirmed. Here ``norm`` "frobenius" (p = 2) and
"nuclear" (p = 1) train s_i = delta softmax(t)_i^{1/p}, t in R^r zero at the start, which keeps the l_p norm of s at
delta, so that every change within the ball is reached.

Only thin products and one r x r solve are computed, in float32 at least. The change is linear in S, so the coefficient
c multiplies the bounds. They do not grow with B~: as it grows without end, B and the change vanish again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, check_rank, find_linear

Norm = Literal["spectral", "frobenius", "nuclear"]
POWER: dict[Norm, int] = {"frobenius": 2, "nuclear": 1}


class NBLoRALinear(DeltaLinear):
    """A low-rank change whose singular values cannot pass their bounds."""

    bounds: Tensor

    def __init__(self, base: nn.Linear, bounds: Sequence[float], norm: Norm) -> None:
        super().__init__(base)
        self.rank, self.norm = len(bounds), norm
        weight = base.weight
        self.A_free = nn.Parameter(weight.new_empty(self.rank, base.in_features))
        self.B_free = nn.Parameter(weight.new_zeros(self.rank, base.out_features))
        nn.init.kaiming_uniform_(self.A_free, a=math.sqrt(5))
        self.register_buffer("bounds", weight.new_tensor(bounds), persistent=False)
        self.t = None if norm == "spectral" else nn.Parameter(weight.new_zeros(self.rank))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (r, d_out)."""
        wide = torch.promote_types(self.A_free.dtype, torch.float32)  # half precision has no solver
        free_A, free_B = self.A_free.to(wide), self.B_free.to(wide)
        X, rest = free_A[:, : self.rank].T, free_A[:, self.rank :]  # Y^T = [rest, free_B]
        Z = X - X.T + rest @ rest.T + free_B @ free_B.T
        eye = torch.eye(self.rank, dtype=wide, device=Z.device)
        # Q^T = M^T [(I - Z)^T, -2 Y^T], with M^T the inverse of (I + Z)^T.
        right = torch.cat([(eye - Z).T, -2.0 * rest, -2.0 * free_B], dim=1)
        Qt = torch.linalg.solve((eye + Z).T, right).to(self.A_free.dtype)
        return Qt[:, : self.base.in_features], Qt[:, self.base.in_features :]

    def singular_bounds(self) -> Tensor:
        """s_1 .. s_r, (r,)."""
        if self.t is None:
            return self.bounds
        return self.bounds * torch.softmax(self.t, dim=0) ** (1.0 / POWER[self.norm])

    def delta(self, x: Tensor) -> Tensor:
        A, B = self.factors()
        z = F.linear(x, A) * self.singular_bounds()  # (..., r)
        return 2.0 * (z @ B)

    def delta_weight(self) -> Tensor:
        A, B = self.factors()
        return 2.0 * B.T @ (self.singular_bounds()[:, None] * A)


class NBLoRA(Adapter):
    """Norm-bounded low-rank adaptation of chosen linear layers."""

    mergeable = True
    family = "low-rank"


def attach(
    model: nn.Module,
    *,
    rank: int = 8,
    bound: float | Sequence[float] = 1.0,
    norm: Norm = "spectral",
    targets: Sequence[str] = ("q", "v"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``; ``bound`` limits the ``norm`` of each layer's change."""
    check_rank(rank)
    if norm not in get_args(Norm):
        raise AdapterError(f"norm is {norm!r}; allowed: {', '.join(get_args(Norm))}")
    bounds = [float(bound)] * rank if isinstance(bound, int | float) else [float(s) for s in bound]
    if len(bounds) != rank or sorted(bounds, reverse=True) != bounds or bounds[-1] < 0 or bounds[0] == 0:
        raise AdapterError(f"bound is {bound}; it must be a positive number, or rank ({rank}) numbers that do not rise")
    if norm != "spectral" and bounds[-1] != bounds[0]:
        raise AdapterError(f"bound is {bound}; the {norm} norm has one bound")
    layers = find_linear(model, targets)
    for path, layer in layers.items():
        if rank > layer.in_features:
            raise AdapterError(f"rank is {rank}; {path} has {layer.in_features} inputs, and r <= d_in is needed")
    adapter = NBLoRA(model)
    for path, base in layers.items():
        adapter.replace(path, NBLoRALinear(base, bounds, norm))
    return adapter
