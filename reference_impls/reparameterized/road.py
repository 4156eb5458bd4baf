r"""RoAd: 3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability.

Liao, Monz; NeurIPS 2024; arXiv 2409.00119, section 3.2, equations 2 to 4 and table 1.

    h = W x + b in R^{d_out} frozen,   z = R h,   R = blockdiag(R_1 .. R_{d_out/2}) on the outputs (2i - 1, 2i)
    R_i = [[a_11 cos t_11, -a_12 sin t_12],
           [a_21 sin t_21,  a_22 cos t_22]]
    z = c_1 * h + c_2 * h_hat,   h_hat = (-h_2, h_1, -h_4, h_3, ..)         the element-wise form

    variant 1: one a and one t a pair, a rotation and a stretch    d_out     trained values
    variant 2: one a and one t for each row of R_i                 2 d_out
    variant 4: every entry its own                                 4 d_out

In variant 1 a pair is a complex number, multiplied by a e^{it}: one pass over h, and nothing but h is kept for the
backward pass. The other variants take the element-wise form.

Trained: angles t (theta) and lengths a (alpha). The output of the layer turns, its bias included.
Start: t = 0, a = 1, hence R = I: the base model.

In variant 4 the angles on the diagonal cannot leave zero: the derivative of cos vanishes there, and only
their own entry depends on them. A quarter of its values is idle.

The coefficient c acts as (c t, a^c): the base at c = 0 and, for variant 1, the inverse map at c = -1. A negative a is a
positive one at an angle half a turn further. The factor a itself is no coefficient: at a = 0 the layer is silent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError, Wrapper, find_linear

SHAPES = {1: (1, 1), 2: (1, 2), 4: (2, 2)}
"""Variant -> angles of its own for cosine and sine (1: none), and for the two rows of a block (1: none)."""


class RotaryLinear(Wrapper):
    """A linear layer whose outputs are turned and stretched in pairs."""

    base: nn.Linear

    def __init__(self, base: nn.Linear, variant: int) -> None:
        super().__init__(base)
        entries, rows = SHAPES[variant]
        shape = (entries, base.out_features // 2, rows)
        self.theta = nn.Parameter(base.weight.new_zeros(shape))
        self.alpha = nn.Parameter(base.weight.new_ones(shape))

    def factors(self) -> tuple[Tensor, Tensor]:
        """c_1 (cosines) and c_2 (sines) at strength c, (d_out / 2, rows) each: a pair's rows, or one for both."""
        theta: Tensor = self.theta
        alpha: Tensor = self.alpha
        if self.strength != 1.0:
            theta = self.strength * (theta + math.pi * (alpha < 0).to(theta))
            alpha = alpha.abs() ** self.strength
        return (alpha * torch.cos(theta))[0], (alpha * torch.sin(theta))[-1]

    def rotated(self, h: Tensor) -> Tensor:
        """R h along the last axis."""
        cosines, sines = self.factors()
        pairs = h.unflatten(-1, (-1, 2))
        if cosines.shape[1] == 1:
            wide = torch.promote_types(h.dtype, torch.float32)  # half precision has no complex numbers
            factor = torch.complex(cosines.to(wide), sines.to(wide)).squeeze(1)
            turned = torch.view_as_complex(pairs.to(wide).contiguous()) * factor
            return torch.view_as_real(turned).flatten(-2).to(h.dtype)
        first, second = pairs.unbind(-1)
        return (cosines * pairs + sines * torch.stack([-second, first], dim=-1)).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        return self.rotated(self.base(x))

    def merged(self) -> dict[str, Tensor]:
        R = self.blocks()
        weight = {"weight": (R @ self.base.weight.unflatten(0, (-1, 2))).flatten(0, 1)}
        if self.base.bias is None:
            return weight
        return weight | {"bias": (R @ self.base.bias.view(-1, 2, 1)).flatten()}

    def blocks(self) -> Tensor:
        """R_1 .. R_{d_out/2}, (d_out/2, 2, 2)."""
        (c1, c2), (s1, s2) = (factor.expand(-1, 2).unbind(-1) for factor in self.factors())
        return torch.stack([torch.stack([c1, -s1], dim=-1), torch.stack([s2, c2], dim=-1)], dim=-2)


class RoAd(Adapter):
    """Rotary adaptation of the outputs of chosen linear layers."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    variant: int = 1,
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down"),
) -> Adapter:
    """Turn the output of every linear layer whose name is in ``targets``; ``variant`` is 1, 2 or 4."""
    if variant not in SHAPES:
        raise AdapterError(f"variant is {variant}; allowed: {', '.join(map(str, SHAPES))}")
    layers = find_linear(model, targets)
    for path, layer in layers.items():
        if layer.out_features % 2:
            raise AdapterError(f"{path} has {layer.out_features} outputs; RoAd turns pairs, so it takes an even number")
    adapter = RoAd(model)
    for path, base in layers.items():
        adapter.replace(path, RotaryLinear(base, variant))
    return adapter
