r"""LoRand: 1% VS 100%: Parameter-Efficient Low Rank Adapter for Dense Predictions.

Yin, Yang, Wang, Yu, Wei, Sun; CVPR 2023.

A bottleneck adapter whose projections are not stored but put together from alpha branches of three small factors each,
the middle ones, K_i, common to both projections:

    A(x) = x + c f(x),   f(x) = GELU(x W_D + b_D) W_U + b_U,   x in R^m,  n the width of the bottleneck
    W_D = sum_i P_i^D K_i Q_i^D in R^{m x n},   P_i^D in R^{m x beta},  K_i in R^{beta x beta},  Q_i^D in R^{beta x n}
    W_U = sum_i P_i^U K_i Q_i^U in R^{n x m},   P_i^U in R^{n x beta},                           Q_i^U in R^{beta x m}

so that both have a rank of at most alpha beta. Two in every block, one behind attention and one behind the feed-forward
sublayer, inside the block's own skip connection, so that x is added twice:

    x <- x + A_1(Attention(LN_1(x))),    x <- x + A_2(FFN(LN_2(x)))

Trained: P, K, Q, both biases, and the task head. Norms stay as they are.
Start: every factor from Kaiming's uniform distribution (a = sqrt 5), entries in +-1/sqrt(columns); biases in
+-1/sqrt(inputs), as torch starts a linear layer of that size. Nothing is zero: the identity and a small disturbance.

Activations go through the factors one by one, alpha beta wide at the narrowest; W_D and W_U are never put together.

The text of the paper was not at hand, and it has no repository. Placement, start and default sizes are those of the
first author's later code (LoRand as a baseline of CoLin), which gives each projection kernels of its own
(``shared=False``); that the paper shares them is what reading notes and an independent class say. Which alpha and beta
make LoRand, LoRand+ and LoRand++ is not confirmed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, find

PROJECTIONS = {"attention": "o", "mlp": "down"}
"""Sublayers that an adapter follows, and the linear layer each one ends with."""


class LowRankAdapter(Wrapper):
    """A sublayer, whose output is like ``like`` (.., m), followed by a bottleneck of synthesized projections."""

    def __init__(
        self, base: nn.Module, like: Tensor, bottleneck: int, branches: int, kernel: int, shared: bool
    ) -> None:
        super().__init__(base)
        m, n = like.shape[-1], bottleneck
        self.P_down = uniform(like, branches, m, kernel)
        self.Q_down = uniform(like, branches, kernel, n)
        self.P_up = uniform(like, branches, n, kernel)
        self.Q_up = uniform(like, branches, kernel, m)
        self.K = uniform(like, 1 if shared else 2, branches, kernel, kernel)
        self.b_down = uniform(like, n, bound=m**-0.5)
        self.b_up = uniform(like, m, bound=n**-0.5)

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        h: Tensor = self.base(*inputs, **options)
        return h + self.strength * self.change(h)

    def change(self, x: Tensor) -> Tensor:
        """f(x), (..., m)."""
        z = F.gelu(through(x, self.P_down, self.K[0], self.Q_down) + self.b_down)  # (..., n)
        return through(z, self.P_up, self.K[-1], self.Q_up) + self.b_up

    def weights(self) -> tuple[Tensor, Tensor]:
        """W_D (m, n) and W_U (n, m), which nothing but a comparison needs."""
        return (self.P_down @ self.K[0] @ self.Q_down).sum(0), (self.P_up @ self.K[-1] @ self.Q_up).sum(0)


def through(x: Tensor, P: Tensor, K: Tensor, Q: Tensor) -> Tensor:
    """x (..., a) times sum_i P_i K_i Q_i, with P (alpha, a, beta), K (alpha, beta, beta), Q (alpha, beta, b)."""
    thin = torch.einsum("...a,iab->...ib", x, P)  # (..., alpha, beta)
    return torch.einsum("...ib,ibc->...c", thin, K @ Q)


def uniform(like: Tensor, *shape: int, bound: float | None = None) -> nn.Parameter:
    """Entries in +-bound, by default one over the root of the columns, where and as precise as ``like`` is."""
    bound = shape[-1] ** -0.5 if bound is None else bound
    return nn.Parameter(like.new_empty(shape).uniform_(-bound, bound))


class LoRand(Adapter):
    """Low-rank serial adapters behind every sublayer, and a head."""


def attach(
    model: nn.Module,
    *,
    branches: int = 4,
    kernel: int = 8,
    reduction: int = 2,
    shared: bool = True,
    train_head: bool = True,
) -> Adapter:
    """Adapters of alpha = ``branches``, beta = ``kernel`` and n = m / ``reduction``, rounded down.

    ``shared``: both projections of an adapter have the same kernels.
    """
    sublayers = find(model, PROJECTIONS)
    projections = {
        path: base.get_parameter(f"{PROJECTIONS[path.rpartition('.')[2]]}.weight") for path, base in sublayers.items()
    }
    narrowest = min(weight.shape[0] for weight in projections.values())
    if min(branches, kernel) < 1 or not 1 <= reduction <= narrowest:
        raise AdapterError(
            f"branches {branches}, kernel {kernel}, reduction {reduction}: need 1 or more, and a reduction of at most"
            f" the width, {narrowest}"
        )
    adapter = LoRand(model)
    for path, base in sublayers.items():
        like = projections[path].T  # (.., m)
        site = LowRankAdapter(base, like, like.shape[1] // reduction, branches, kernel, shared)
        adapter.replace(path, site)
    if train_head:
        adapter.unfreeze("head")
    return adapter
