r"""BOFT: Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization.

Liu, Qiu, Feng, Xiu, Xue, Yu, Feng, Liu, Heo, Peng, Wen, Black, Weller, Schölkopf; ICLR 2024; arXiv 2311.06243,
sections 3 and 4.

    paper:   z = (R W0)^T x,  W0 in R^{d x n},  R = R(m, b) in R^{d x d},  R^T R = I
    here:    y = s o (V0 R^T x) + b,  V0 = W0^T in R^{d_out x d} frozen,  s = 1 unless ``rescale``
    R(m, b) = F_m .. F_2 F_1,   F_k = P_k^T blockdiag(G_{k,1} .. G_{k,d/b}) P_k
    G_{k,j} = (I + Q_{k,j})(I - Q_{k,j})^{-1},   Q_{k,j} = -Q_{k,j}^T in R^{b x b}

P_k is the k-th stage of a fast Fourier transform on half-blocks of b/2 coordinates: it brings half-blocks that are
2^(k-1) apart into one block, so that F_1 is block-diagonal (OFT, m = 1) and every further stage doubles the reach. R is
dense from m = 1 + log2(d/b) on. Half-blocks need an even b, and m stages a d divisible by b 2^(m-1).

Trained: the b (b - 1) / 2 entries above the diagonal of every Q; with ``rescale`` one factor s per neuron, as peft has.
Start: Q = 0, s = 1: every stage is the identity, the base model. Neurons keep their lengths and angles (without s), and
the weight its singular values.

While training, multiplicative dropout puts the identity in the place of a share of the blocks of a share of the stages.

No stage is ever a d x d matrix: coordinates are regrouped by strides, and small blocks multiply them in batches, b
multiplications a coordinate and stage, on the activations or on the rows of the weight, whichever are fewer; for
convolutions on the flattened kernels (d = q k k). The coefficient c scales every Q (and s - 1): orthogonal for every c
and the base at c = 0, but for m > 1 not the inverse at c = -1, which has the stages in the opposite order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, check_dropout, find
from reference_impls.reparameterized.oft import cayley, skew


class ButterflyLayer(Wrapper):
    """A linear layer or a convolution behind a product of sparse rotations of its input coordinates."""

    base: nn.Linear | nn.Conv2d

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        factors: int,
        block_size: int,
        rescale: bool = False,
        dropout: float = 0.0,
        factor_dropout: float = 1.0,
    ) -> None:
        super().__init__(base)
        self.block_size, self.dropout, self.factor_dropout = block_size, dropout, factor_dropout
        weight, blocks = base.weight, base.weight[0].numel() // block_size
        self.q = nn.Parameter(weight.new_zeros(factors, blocks, block_size * (block_size - 1) // 2))
        self.s = nn.Parameter(weight.new_ones(weight.shape[0])) if rescale else None

    def blocks(self, dropped: bool = False) -> Tensor:
        """G at strength c, (m, d / b, b, b); with ``dropped`` some of them are the identity."""
        G = cayley(self.strength * skew(self.q, self.block_size))
        if not dropped:
            return G
        m, n = G.shape[:2]
        stages = torch.rand(m, 1, device=G.device).argsort(0) < math.ceil(self.factor_dropout * m)
        mask = stages & (torch.rand(m, n, device=G.device).argsort(1) < int(self.dropout * n))
        return torch.where(mask[..., None, None], torch.eye(self.block_size, dtype=G.dtype, device=G.device), G)

    def forward(self, x: Tensor) -> Tensor:
        base, G = self.base, self.blocks(self.training and self.dropout > 0.0)
        if isinstance(base, nn.Conv2d):
            return base._conv_forward(x, self.weight(G), base.bias)
        if x.numel() > base.weight.numel():  # the weight has fewer rows
            return F.linear(x, self.weight(G), base.bias)
        for k in reversed(range(len(G))):
            x = stage(x, G[k], k)  # a row times R is R^T times the column
        y = F.linear(x, base.weight) * self.gain()
        return y if base.bias is None else y + base.bias

    def gain(self) -> Tensor | float:
        """s at strength c, (d_out,); 1 without."""
        return 1.0 if self.s is None else 1.0 + self.strength * (self.s - 1.0)

    def weight(self, G: Tensor) -> Tensor:
        """diag(s) V0 R^T, in the shape of the weight."""
        rows = self.base.weight.flatten(1)
        for k in range(len(G)):
            rows = stage(rows, G[k].mT, k)
        return (rows.T * self.gain()).T.view_as(self.base.weight)

    def merged(self) -> dict[str, Tensor]:
        return {"weight": self.weight(self.blocks())}


def stage(rows: Tensor, G: Tensor, k: int) -> Tensor:
    """Rows (..., d) times F_{k+1}, whose blocks G (d / b, b, b) couple half-blocks 2^k apart."""
    if k == 0:
        return torch.einsum("...nb,nbc->...nc", rows.unflatten(-1, G.shape[:2]), G).flatten(-2)
    half = G.shape[-1] // 2
    pairs = rows.unflatten(-1, (-1, 2, 2**k, half)).transpose(-3, -2)  # (..., d / (b 2^k), 2^k, 2, b / 2)
    turned = torch.einsum("...nb,nbc->...nc", pairs.flatten(-2).flatten(-3, -2), G)
    return turned.unflatten(-2, (-1, 2**k)).unflatten(-1, (2, half)).transpose(-3, -2).flatten(-4)


class BOFT(Adapter):
    """Butterfly-factorized rotations in front of chosen layers."""

    mergeable = True
    family = "orthogonal"


def attach(
    model: nn.Module,
    *,
    factors: int = 2,
    block_size: int = 8,
    rescale: bool = False,
    dropout: float = 0.0,
    factor_dropout: float = 1.0,
    targets: Sequence[str] = ("q", "k", "v", "o", "up", "down"),
) -> Adapter:
    """Rotate the input of every linear layer and two-dimensional convolution whose name is in ``targets``.

    ``factors`` is m, ``block_size`` b. ``dropout`` is the share of blocks that are dropped, rounded down to whole
    blocks, in a share ``factor_dropout`` of the stages, rounded up.
    """
    check_dropout(dropout)
    if not 0 < factor_dropout <= 1:
        raise AdapterError(f"factor_dropout is {factor_dropout}; it must be above 0 and at most 1")
    if factors < 1:
        raise AdapterError(f"factors is {factors}; it must be at least 1")
    layers = find(model, targets)
    for path, layer in layers.items():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise AdapterError(
                f"{path} is a {type(layer).__name__}; BOFT adapts linear layers and two-dimensional convolutions"
            )
        inputs = layer.weight[0].numel()
        if not fits(inputs, factors, block_size):
            sizes = [b for b in range(2, inputs + 1) if fits(inputs, factors, b)]
            raise AdapterError(
                f"block_size is {block_size}; for the {inputs} inputs of {path} and {factors} factors it must be one of"
                f" {sizes}"
            )
    adapter = BOFT(model)
    for path, base in layers.items():
        adapter.replace(path, ButterflyLayer(base, factors, block_size, rescale, dropout, factor_dropout))
    return adapter


def fits(inputs: int, factors: int, block_size: int) -> bool:
    """Whether a dimension has so many stages with blocks of this size."""
    if block_size < 2 or (factors > 1 and block_size % 2):
        return False
    return inputs % (block_size * 2 ** (factors - 1)) == 0
