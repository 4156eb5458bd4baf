r"""SSVD: Structured SVD for Parameter-Efficient Fine-Tuning and Benchmarking under Domain Shift in ASR.

Wang, Watanabe, Van hamme; ASRU 2025; arXiv 2509.02830, section III, equations 8 to 13.

    W' = U (S + dS) G V^T,   dS = diag(ds_1 .. ds_k, 0 .. 0),   G = [[G_k, 0], [0, I]]
    W0 = U S V^T in R^{d_out x d_in},  n = min(d_in, d_out),  k = floor(p n)
    approximate (the paper's default):  G_k = I - 2 K,   K = -K^T in R^{k x k}
    strict:                             G_k = (I - K)(I + K)^{-1}, the Cayley transform, orthogonal
    none:                               G_k free

Trained: the k (k - 1) / 2 entries of K above the diagonal (none: all k^2 of G_k) and the k shifts ds. A change of
speaker changes what comes in, not what it means: only the right singular vectors turn, the k leading ones among
themselves, and the left ones stay.
Start: K = 0 (G_k = I) and ds = 0, the base model. The paper does not say; in the authors' code, which has a ``gate``,
ds is drawn uniformly from +-sqrt(6 / k) and multiplied by sigmoid(g), g trained and 0 at the start: not the base model.

Only the k leading components change, so the forward pass adds U_k ((S_k + ds) G_k - S_k) V_k^T x to what the base
weight does: two thin products and a k x k one. The default is orthogonal up to 4 K^2 only, and nothing keeps S + dS
positive or in order.

The coefficient c goes on K (none: on G_k - I) and on ds together: the change has a part in c^2, their product. It is
linear in one of them while the other is at its start, but for the strict rotation, which c = -1 inverts.
``save_bases`` saves the singular vectors with K and ds, as in SVFT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, find_linear
from reference_impls.reparameterized.svft import decompose

Constraint = Literal["approximate", "strict", "none"]


class SSVDLinear(Wrapper):
    """A linear layer whose k leading right singular vectors turn and whose singular values shift."""

    base: nn.Linear
    U: Tensor
    S: Tensor
    Vt: Tensor

    def __init__(self, base: nn.Linear, k: int, constraint: Constraint, gate: bool, save_bases: bool) -> None:
        super().__init__(base)
        self.k, self.constraint = k, constraint
        for name, constant in zip(("U", "S", "Vt"), decompose(base.weight, k), strict=True):
            self.register_buffer(name, constant.contiguous(), persistent=save_bases)
        # Entries of K above the diagonal, or all of G_k - I.
        self.turn = nn.Parameter(base.weight.new_zeros((k, k) if constraint == "none" else (k * (k - 1) // 2,)))
        self.ds = nn.Parameter(base.weight.new_zeros(k))
        self.g = nn.Parameter(base.weight.new_zeros(())) if gate else None
        if gate:
            nn.init.uniform_(self.ds, -math.sqrt(6 / k), math.sqrt(6 / k))

    def shift(self) -> Tensor:
        """dS at strength c, (k,)."""
        ds = self.ds if self.g is None else self.ds * torch.sigmoid(self.g)
        return self.strength * ds

    def rotation_change(self) -> Tensor:
        """G_k - I at strength c, (k, k)."""
        if self.constraint == "none":
            return self.strength * self.turn
        rows, columns = torch.triu_indices(self.k, self.k, 1, device=self.turn.device)
        upper = self.turn.new_zeros(self.k, self.k).index_put((rows, columns), self.strength * self.turn)
        K = upper - upper.T
        if self.constraint == "approximate":
            return -2.0 * K
        wide = K.to(torch.promote_types(K.dtype, torch.float32))  # half precision has no solver
        eye = torch.eye(self.k, dtype=wide.dtype, device=K.device)
        return torch.linalg.solve(eye + wide, -2.0 * wide).to(K.dtype)

    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.Vt)  # (..., k)
        turned = F.linear(z, self.rotation_change())
        return self.base(x) + F.linear(self.S * turned + self.shift() * (z + turned), self.U)

    def merged(self) -> dict[str, Tensor]:
        T = self.rotation_change()
        eye = torch.eye(self.k, dtype=T.dtype, device=T.device)
        middle = (self.S + self.shift())[:, None] * (eye + T) - torch.diag(self.S)
        return {"weight": self.base.weight + self.U @ middle @ self.Vt}


class SSVD(Adapter):
    """Turned and rescaled leading components of chosen linear layers."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    portion: float = 0.25,
    constraint: Constraint = "approximate",
    gate: bool = False,
    save_bases: bool = False,
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``; ``portion`` is p, the share of its singular values."""
    if constraint not in get_args(Constraint):
        raise AdapterError(f"constraint is {constraint!r}; allowed: {', '.join(get_args(Constraint))}")
    if not 0 < portion <= 1:
        raise AdapterError(f"portion is {portion}; it must be above 0 and at most 1")
    layers = find_linear(model, targets)
    sizes = {path: math.floor(portion * min(layer.weight.shape)) for path, layer in layers.items()}
    for path, k in sizes.items():
        # One component has nothing to turn with, and K no entries to train.
        least = 1 if constraint == "none" else 2
        if k < least:
            raise AdapterError(
                f"portion is {portion}, which leaves {k} components of {path}; at least {least} are needed"
            )
    adapter = SSVD(model)
    for path, base in layers.items():
        adapter.replace(path, SSVDLinear(base, sizes[path], constraint, gate, save_bases))
    return adapter
