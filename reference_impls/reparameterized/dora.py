r"""DoRA: Weight-Decomposed Low-Rank Adaptation.

Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen; ICML 2024; arXiv 2402.09353, section 4, equations 5, 6 and 11.

    V' = W0 + s B A,   W' = diag(g) V',   g = m / n(V'),   n(V')_i = ||row i of V'||
    y  = W0 x + b + (g - 1) * W0 drop(x) + g * s B A drop(x)          without dropout: y = g * (V' x) + b
    W0 in R^{d_out x d_in} frozen,  A in R^{r x d_in},  B in R^{d_out x r},  s = alpha / r,  m in R^{d_out}

Trained: the magnitude m and the factors A, B. A layer may be given a trained magnitude alone, y = W0 x + b +
(g - 1) * W0 drop(x) with g = m / n(W0); the paper does so with the matrices behind attention and around the gate.
Start: m = n(W0), B = 0, A from Kaiming's uniform distribution (a = sqrt 5), as in LoRA: g = 1, the base model.

The paper speaks of columns, for weights written (d_in, d_out); with torch's (d_out, d_in) there is one norm an output
row. It treats n(V') as a constant in the backward pass (``simple``, equation 11), which saves memory and changes the
gradient of A and B by its component along V' (equation 6 projects it out).

The norm is computed without B A, through ||W0 + s B A||^2 = ||W0||^2 + 2 s <W0 A^T, B> + s^2 <B A A^T, B>, row by row,
and relative to ||W0||, so that g is exactly 1 at the start in every precision.

The coefficient c goes through the normalization: V'(c) = W0 + c s B A with the magnitude m0 + c (m - m0); c = 0 is the
base, c = -1 not the opposite change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, find_linear
from reference_impls.reparameterized.lora import LoRALinear, check


def row_norms(base: nn.Linear) -> Tensor:
    """n(W0), (d_out,); AdapterError for a row of zeros, which has no direction."""
    norms = torch.linalg.vector_norm(base.weight.detach(), dim=1)
    if norms.device.type != "meta" and not bool((norms > 0).all()):
        raise AdapterError(f"row {int(norms.argmin())} of a weight is zero: it has no direction to normalize")
    return norms


class MagnitudeLinear(Wrapper):
    """y = (m / n(W0)) * W0 x + b: the direction stays as it is."""

    base: nn.Linear
    m0: Tensor

    def __init__(self, base: nn.Linear, dropout: float = 0.0) -> None:
        super().__init__(base)
        self.dropout = nn.Dropout(dropout)
        norms = row_norms(base)
        self.m = nn.Parameter(norms.clone())
        self.register_buffer("m0", norms, persistent=False)

    def gain(self) -> Tensor:
        """g at strength c, (d_out,)."""
        return 1.0 + self.strength * (self.m / self.m0 - 1.0)

    def forward(self, x: Tensor) -> Tensor:
        g = self.gain()
        y = F.linear(x, self.base.weight)
        if self.training and self.dropout.p > 0.0:
            y = y + (g - 1.0) * F.linear(self.dropout(x), self.base.weight)
        else:
            y = g * y
        return y if self.base.bias is None else y + self.base.bias

    def merged(self) -> dict[str, Tensor]:
        return {"weight": self.gain()[:, None] * self.base.weight}


class DoRALinear(LoRALinear):
    """A low-rank change whose result is normalized row by row and given a trained magnitude."""

    m0: Tensor

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float, simple: bool) -> None:
        super().__init__(base, rank, alpha, dropout)
        self.simple = simple
        norms = row_norms(base)
        self.m = nn.Parameter(norms.clone())
        self.register_buffer("m0", norms, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        g = self.gain()  # (d_out,)
        inner = self.dropout(x)
        z = F.linear(inner, self.A) * (self.strength * self.scale)  # (..., r)
        thin = F.linear(z, self.B)  # (..., d_out)
        y = F.linear(x, self.base.weight)
        if self.training and self.dropout.p > 0.0:
            y = y + (g - 1.0) * F.linear(inner, self.base.weight) + g * thin
        else:
            y = g * (y + thin)
        return y if self.base.bias is None else y + self.base.bias

    def gain(self) -> Tensor:
        """g = m / n(V') at strength c, (d_out,); the norm is a constant to autograd when ``simple``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.simple):
            norm = self.relative_norm()
        return (1.0 + self.strength * (self.m / self.m0 - 1.0)) / norm

    def relative_norm(self) -> Tensor:
        """n(V') / n(W0), (d_out,), from products no wider than r."""
        s = self.strength * self.scale
        crossed = F.linear(self.base.weight, self.A)  # W0 A^T, (d_out, r)
        gram = self.A @ self.A.T  # (r, r)
        change = ((2.0 * s * crossed + s * s * self.B @ gram) * self.B).sum(dim=1)
        return (1.0 + change / self.m0 / self.m0).clamp(min=0.0).sqrt()

    def merged(self) -> dict[str, Tensor]:
        direction = self.base.weight + self.strength * self.delta_weight()  # V'
        magnitude = self.m0 + self.strength * (self.m - self.m0)
        return {"weight": (magnitude / torch.linalg.vector_norm(direction, dim=1))[:, None] * direction}


class DoRA(Adapter):
    """Magnitudes and low-rank directions of chosen linear layers."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    rank: int = 16,
    alpha: float = 32,
    dropout: float = 0.0,
    simple: bool = True,
    targets: Sequence[str] = ("q", "k", "v", "up", "down"),
    magnitude_only: Sequence[str] = (),
) -> Adapter:
    """Adapt the linear layers named in ``targets``; those in ``magnitude_only`` get a trained magnitude and no factors.

    ``simple`` keeps the norm out of the backward pass.
    """
    check(rank, alpha, dropout)
    both = sorted(set(targets) & set(magnitude_only))
    if both or not (targets or magnitude_only):
        raise AdapterError(f"a layer is in targets or in magnitude_only: {', '.join(both) or 'nothing'} is in both")
    full, scaled = (find_linear(model, names) if names else {} for names in (targets, magnitude_only))
    sites: dict[str, Wrapper] = {path: DoRALinear(base, rank, alpha, dropout, simple) for path, base in full.items()}
    sites |= {path: MagnitudeLinear(base, dropout) for path, base in scaled.items()}
    adapter = DoRA(model)
    for path, site in sites.items():
        adapter.replace(path, site)
    return adapter
