r"""Bone: Block-Affine Adaptation of Large Language Models.

Kang; arXiv 2409.15371, versions 1 to 7. Later versions of the same record are MiSS, whose efficient form is the plain
form of Bone. "Bone" is the affine form in versions 1 to 3 and the plain one from version 4 on; the other is Bat then.

    plain:  y = W0 x + b + D^T sum_i x_i,   D in R^{r x d_out},  x_i the i-th r entries of x, the last padded with zeros
    Bat:    W_{o,i}' = W_{o,i} + W_{o,i} D_o + D_o,   D in R^{(d_out/r) x r x r},  W_{o,i} the r x r blocks of W0

Trained: D, r d_out values a layer in both forms: one block for all inputs i.
Start: D = 0, hence the base model. A single factor gets a gradient there, so nothing has to be random.

The plain change repeats D^T along the inputs, its rank is at most r; a sum of chunks takes the place of LoRA's
down-projection. In Bat the frozen blocks make the shared one act differently on every input block (the paper's "weight
guide") and the change is of full rank in general; there is no cheaper form of it than the new weight, which every step
computes anew. Both forms are linear in D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, find_linear


def chunk_sum(x: Tensor, size: int) -> Tensor:
    """(..., d_in) -> (..., size): the sum of consecutive chunks, the last one padded with zeros."""
    missing = -x.shape[-1] % size
    whole = F.pad(x, (0, missing)) if missing else x  # padding copies, even with nothing
    return whole.unflatten(-1, (-1, size)).sum(dim=-2)


class BoneLinear(DeltaLinear):
    """y = W0 x + b + c D^T sum_i x_i: input j shares its column of the change with input j + r."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__(base)
        self.rank = rank
        self.D = nn.Parameter(base.weight.new_zeros(rank, base.out_features))

    def delta(self, x: Tensor) -> Tensor:
        return chunk_sum(x, self.rank) @ self.D  # (..., r) (r, d_out)

    def delta_weight(self) -> Tensor:
        columns = torch.arange(self.base.in_features, device=self.D.device) % self.rank
        return self.D[columns].T


class BatProduct(torch.autograd.Function):
    """W' x, with W' computed again in the backward pass instead of being kept; W0 gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W0: Tensor, D: Tensor) -> Tensor:
        ctx.save_for_backward(x, W0, D)
        return F.linear(x, bat_weight(W0, D))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, W0, D = ctx.saved_tensors
        (g,) = gradients
        G = g.flatten(0, -2).T @ x.flatten(0, -2)  # dL/dW', (d_out, d_in)
        blocks, r = G.view(len(D), -1, D.shape[-1]), D.shape[-1]
        change = W0.view_as(blocks).mT @ blocks + G.view(len(D), r, -1, r).sum(2)
        return g @ bat_weight(W0, D), None, change


def bat_weight(W0: Tensor, D: Tensor) -> Tensor:
    """W0 with every block times that of its outputs, and that block, added to it, (d_out, d_in)."""
    r = D.shape[-1]
    rows = W0.view(len(D), -1, r)  # a row here is a row of one block
    new = torch.baddbmm(rows, rows, D).view(len(D), r, -1, r)
    return (new + D[:, :, None]).view_as(W0)


class BatLinear(DeltaLinear):
    """Every r x r block of W0 times the block its outputs share, plus that block."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__(base)
        self.size = rank
        self.D = nn.Parameter(base.weight.new_zeros(base.out_features // rank, rank, rank))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = BatProduct.apply(x, self.base.weight, self.strength * self.D)
        return y if self.base.bias is None else y + self.base.bias

    def delta_weight(self) -> Tensor:
        blocks = self.base.weight.unflatten(1, (-1, self.size)).unflatten(0, (-1, self.size))  # (d_out/r, r, d_in/r, r)
        change = torch.einsum("oaib,obc->oaic", blocks, self.D) + self.D[:, :, None]
        return change.flatten(0, 1).flatten(1)


class Bone(Adapter):
    """One trained block for all input blocks of chosen linear layers."""

    mergeable = True
    family = "low-rank"


class Bat(Adapter):
    """The same through the frozen blocks: no bound on the rank."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    rank: int = 16,
    bat: bool = False,
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``; ``rank`` is the width of a block, ``bat``: affine form."""
    layers = find_linear(model, targets)
    for path, layer in layers.items():
        check_blocks(path, layer, rank, bat)
    adapter = Bat(model) if bat else Bone(model)
    for path, base in layers.items():
        adapter.replace(path, BatLinear(base, rank) if bat else BoneLinear(base, rank))
    return adapter


def check_blocks(path: str, layer: nn.Linear, rank: int, bat: bool) -> None:
    """AdapterError for a width of blocks that does not fit the layer."""
    d_in, d_out = layer.in_features, layer.out_features
    if not 1 <= rank <= d_in:
        raise AdapterError(f"rank is {rank}; for {path} it must be from 1 to its {d_in} inputs")
    if bat and (d_in % rank or d_out % rank):
        sizes = [n for n in range(1, min(d_in, d_out) + 1) if d_in % n == 0 and d_out % n == 0]
        raise AdapterError(
            f"rank is {rank}; Bat cuts the ({d_out}, {d_in}) weight of {path} into square blocks, so that it must be"
            f" one of {sizes}"
        )
