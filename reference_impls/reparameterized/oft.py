r"""OFT: Controlling Text-to-Image Diffusion by Orthogonal Finetuning.

Qiu, Liu, Feng, Xue, Feng, Liu, Zhang, Weller, Schölkopf; NeurIPS 2023; arXiv 2306.07280, sections 3.3 to 3.5,
equations 2 to 4.

    paper:   z = (R W0)^T x,  W0 in R^{d x n},  R in R^{d x d},  R^T R = I
    here:    y = V0 (R^T x) + b,  V0 = W0^T in R^{d_out x d_in} frozen: one rotation of the input for all neurons
    R = blockdiag(R_1 .. R_r),   R_i = (I + Q_i)(I - Q_i)^{-1},   Q_i = -Q_i^T in R^{k x k},   k = d_in / r

Trained: the k (k - 1) / 2 entries above the diagonal of every Q_i, which is what the paper counts; or of a single Q
that all blocks share (``share``); with ``rescale`` one positive factor per neuron besides, y = exp(t) * V0 (R^T x) + b,
trained along with R. (The paper also fits the factors afterwards: that is freezing every ``q``.)
Start: Q = 0, t = 0, hence R = I: the base model. Lengths of neurons and angles between them stay what they were, and so
do the singular values of the weight (but for ``rescale``).

COFT keeps R near I: after every step each Q_i longer than eps_i = eps k^2 / sqrt(r), the official code's radius, is
drawn back to that length in Frobenius norm; ||R_i - I|| <= 2 ||Q_i||.

The official code trains a full P and takes Q = (P - P^T) / 2: the same steps of Q under Adam, for twice the numbers.
Blocks rotate activations, k multiplications a feature; the Cayley transform is solved exactly, never a series. The
coefficient c scales Q (and t): orthogonal for every c, the base at c = 0, the inverse rotation at c = -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, find_linear


def skew(entries: Tensor, size: int) -> Tensor:
    """Skew-symmetric matrices (..., size, size) from their entries above the diagonal (..., size (size - 1) / 2)."""
    rows, columns = torch.triu_indices(size, size, 1, device=entries.device)
    upper = entries.new_zeros(*entries.shape[:-1], size, size)
    upper[..., rows, columns] = entries
    return upper - upper.mT


def cayley(q: Tensor) -> Tensor:
    """(I + Q)(I - Q)^{-1}, the factors commute; solved in float32 at least, as half precision has no solver."""
    wide = q.to(torch.promote_types(q.dtype, torch.float32))
    eye = torch.eye(q.shape[-1], dtype=wide.dtype, device=q.device)
    return torch.linalg.solve(eye - wide, eye + wide).to(q.dtype)


class RotatedLinear(Wrapper):
    """A linear layer behind a block-diagonal rotation of its input."""

    base: nn.Linear

    def __init__(self, base: nn.Linear, blocks: int, share: bool, rescale: bool) -> None:
        super().__init__(base)
        self.blocks, self.size = blocks, base.in_features // blocks
        self.q = nn.Parameter(base.weight.new_zeros(1 if share else blocks, self.size * (self.size - 1) // 2))
        self.t = nn.Parameter(base.weight.new_zeros(base.out_features)) if rescale else None

    def rotation(self) -> Tensor:
        """R_1 .. R_r at strength c, (r, k, k); one block only where all share it."""
        return cayley(self.strength * skew(self.q, self.size))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.blocks, self.size))  # (..., r, k)
        R = self.rotation()
        # A row times R is R^T times the column.
        turned = parts @ R[0] if len(R) == 1 else torch.einsum("...rk,rkl->...rl", parts, R)
        if self.t is None:
            return self.base(turned.flatten(-2))
        y = torch.exp(self.strength * self.t) * F.linear(turned.flatten(-2), self.base.weight)
        return y if self.base.bias is None else y + self.base.bias

    def merged(self) -> dict[str, Tensor]:
        R = self.rotation().expand(self.blocks, -1, -1)
        parts = self.base.weight.unflatten(1, (self.blocks, self.size))  # (d_out, r, k)
        weight = torch.einsum("ork,rlk->orl", parts, R).flatten(1)
        return {"weight": weight if self.t is None else torch.exp(self.strength * self.t)[:, None] * weight}


class OFT(Adapter):
    """Orthogonal finetuning of chosen linear layers; ``eps``: COFT's radius, None without the constraint."""

    mergeable = True
    family = "orthogonal"
    eps: float | None = None

    def after_step(self) -> None:
        """COFT: every block that left the ball around I goes back to its surface."""
        if self.eps is None:
            return
        with torch.no_grad():
            for site in self.sites().values():
                assert isinstance(site, RotatedLinear)
                radius = self.eps * site.size**2 / math.sqrt(len(site.q))
                length = math.sqrt(2) * site.q.norm(dim=1, keepdim=True)  # ||Q||_F: every entry occurs twice
                site.q.mul_((radius / length).clamp(max=1.0))


def attach(
    model: nn.Module,
    *,
    blocks: int = 4,
    share: bool = False,
    coft: bool = False,
    eps: float = 1e-5,
    rescale: bool = False,
    targets: Sequence[str] = ("q", "k", "v", "o"),
) -> Adapter:
    """Rotate the input of every linear layer whose name is in ``targets``, in ``blocks`` diagonal blocks."""
    if coft and eps <= 0:
        raise AdapterError(f"eps is {eps}; COFT needs a positive radius")
    layers = find_linear(model, targets)
    for path, layer in layers.items():
        if blocks < 1 or layer.in_features % blocks or layer.in_features == blocks:
            sizes = [n for n in range(1, layer.in_features) if layer.in_features % n == 0]
            raise AdapterError(
                f"blocks is {blocks}; for the {layer.in_features} inputs of {path} it must be one of {sizes}"
            )
    adapter = OFT(model)
    adapter.eps = eps if coft else None
    for path, base in layers.items():
        adapter.replace(path, RotatedLinear(base, blocks, share, rescale))
    return adapter
