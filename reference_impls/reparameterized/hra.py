r"""HRA: Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation.

Yuan, Liu, Xu; NeurIPS 2024; arXiv 2405.17484, section 3, equations 1 to 6.

    z = W H x + b,   H = H_1 H_2 ... H_r,   H_i = I - 2 u_i u_i^T,   u_i = v_i / ||v_i||
    W in R^{d_out x d} frozen,  V = [v_1 .. v_r] in R^{d x r},  U = [u_1 .. u_r]
    H = I + U G U^T,   G = -(I/2 + T)^{-1},   T the part of U^T U above the diagonal (compact WY form)
    loss = task + lambda * sum over layers ||I_r - U^T U||_F^2

Trained: V of every adapted layer. Only two thin products and an r x r triangular solve act on the activations; no
d x d matrix is formed.
Start: equal pairs v_1 = v_2, v_3 = v_4, .. whose reflections cancel, each pair drawn from Kaiming's uniform
distribution: the base model. That takes an even r.

``orthogonal`` is the paper's limit lambda = infinity: the normals are orthonormalized (Gram-Schmidt), and H =
I - 2 U U^T depends on the span of V alone. Pairs have no two-dimensional span; as in the official code, V starts at the
first r unit vectors, which flips r inputs: not the base model.

There is no coefficient: normalization removes any factor on V, and a reflection does not see the sign of its normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError, Wrapper, find_linear


class ReflectedLinear(Wrapper):
    """A linear layer behind a chain of learned reflections of its input."""

    base: nn.Linear

    def __init__(self, base: nn.Linear, rank: int, orthogonal: bool) -> None:
        super().__init__(base)
        self.orthogonal = orthogonal
        if orthogonal:
            start = torch.eye(base.in_features, rank, dtype=base.weight.dtype, device=base.weight.device)
        else:
            half = base.weight.new_empty(base.in_features, rank // 2)
            start = nn.init.kaiming_uniform_(half, a=math.sqrt(5)).repeat_interleave(2, dim=1)
        self.V = nn.Parameter(start)

    def normals(self) -> Tensor:
        """U, (d, r): columns of length one; orthonormal in the strict variant, up to signs no reflection sees."""
        if self.orthogonal:
            return torch.linalg.qr(widened(self.V)).Q.to(self.V.dtype)
        return self.V / self.V.norm(dim=0)

    def middle(self, U: Tensor) -> Tensor:
        """G, (r, r), upper triangular."""
        wide = widened(U)
        eye = torch.eye(U.shape[1], dtype=wide.dtype, device=U.device)
        gram = 0.5 * eye + torch.triu(wide.T @ wide, 1)
        return -torch.linalg.solve_triangular(gram, eye, upper=True).to(U.dtype)

    def forward(self, x: Tensor) -> Tensor:
        U = self.normals()
        z = x @ U  # (..., r)
        z = -2.0 * z if self.orthogonal else z @ self.middle(U).T
        return self.base(x + z @ U.T)

    def merged(self) -> dict[str, Tensor]:
        weight = self.base.weight
        for u in self.normals().T:
            weight = weight - 2.0 * torch.outer(weight @ u, u)
        return {"weight": weight}

    def penalty(self) -> Tensor:
        """||I - U^T U||_F^2, of the normalized columns; 0 in the strict variant."""
        U = self.normals()
        gram = U.T @ U
        return (torch.eye(len(gram), dtype=gram.dtype, device=gram.device) - gram).square().sum()


def widened(tensor: Tensor) -> Tensor:
    """In float32 at least: half precision has no triangular solver and no QR decomposition."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class HRA(Adapter):
    """Chains of reflections in front of chosen linear layers; ``penalty`` is lambda."""

    mergeable = True
    has_strength = False
    family = "orthogonal"
    penalty = 0.0

    def loss(self, batch: Any) -> Tensor:
        """Task loss plus lambda times the distance of the normals from being orthogonal."""
        loss = super().loss(batch)
        if not self.penalty:
            return loss
        sites = [site for site in self.sites().values() if isinstance(site, ReflectedLinear)]
        return loss + self.penalty * sum((site.penalty() for site in sites), loss.new_zeros(()))


def attach(
    model: nn.Module,
    *,
    rank: int = 8,
    penalty: float = 1e-4,
    orthogonal: bool = False,
    targets: Sequence[str] = ("q", "k", "v", "o", "up", "down"),
) -> Adapter:
    """Reflect the input of every linear layer whose name is in ``targets``; ``penalty`` is lambda."""
    layers = find_linear(model, targets)
    if rank < 1 or (rank % 2 and not orthogonal):
        raise AdapterError(
            f"rank is {rank}; it must be positive, and even, since reflections cancel in pairs at the start"
            " (with orthogonal=True odd numbers are allowed)"
        )
    if penalty < 0:
        raise AdapterError(f"penalty is {penalty}; it must not be negative")
    for path, layer in layers.items():
        if orthogonal and rank > layer.in_features:
            raise AdapterError(f"rank is {rank}; {path} has room for {layer.in_features} orthogonal normals")
    adapter = HRA(model)
    adapter.penalty = 0.0 if orthogonal else penalty
    for path, base in layers.items():
        adapter.replace(path, ReflectedLinear(base, rank, orthogonal))
    return adapter
