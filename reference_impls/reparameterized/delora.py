r"""DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation.

Bini, Girrbach, Akata; ICLR 2025; arXiv 2503.18225, section 2.2, equations 5 to 9 and 15.

    W' = W + D(A, B, lambda) - D(A_0, B_0, lambda_0)
    D(A, B, lambda) = (lambda / r) * B Xi A * n,   Xi = diag(1 / (||b_i|| ||a_i||))
    W in R^{d_out x d_in} frozen,  B in R^{d_out x r} with columns b_i,  A in R^{r x d_in} with rows a_i,  lambda in R

Every rank-one piece has length one, so that A and B say only where to, and lambda how far: ||B Xi A||_F <= r whatever
the factors are. n makes the bound relative to the weight. The paper writes one norm ||W||; its code, from which the
paper's values of lambda come, takes one norm for every input, n_j = ||column j of W||: ``norm``.

Trained: A, B and the one number lambda of every adapted layer, the latter usually with smaller steps.
Start: A and B from Kaiming's uniform distribution (a = sqrt 5). A normalized product cannot start at zero, hence the
frozen copies A_0, B_0, which are subtracted: the base model. They are clones; the official code's share their memory
with A and B, so that nothing can be learned until the model is moved. ``copy_follows``: the copy is scaled by the
present lambda as in that code, not by its starting value as in the paper's formula.

The trained D has rank r; the change of the weight, with the copy, up to 2 r. The coefficient c multiplies this change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, check_dropout, check_rank, find_linear

Norm = Literal["columns", "matrix"]


class DeLoRALinear(DeltaLinear):
    """A bounded low-rank change: directions A, B and a strength lambda."""

    A_0: Tensor
    B_0: Tensor
    n: Tensor

    def __init__(self, base: nn.Linear, rank: int, start: float, dropout: float, norm: Norm, follows: bool) -> None:
        super().__init__(base)
        self.rank = 2 * rank  # of the change, learned part and frozen copy together
        self.start, self.follows = start, follows
        self.dropout = nn.Dropout(dropout)
        self.A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.B = nn.Parameter(base.weight.new_empty(base.out_features, rank))
        self.lambda_ = nn.Parameter(base.weight.new_full((1,), start))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.B, a=math.sqrt(5))
        self.register_buffer("A_0", self.A.detach().clone())
        self.register_buffer("B_0", self.B.detach().clone())
        weight = base.weight.detach()
        n = torch.linalg.vector_norm(weight, dim=0) if norm == "columns" else torch.linalg.vector_norm(weight)
        self.register_buffer("n", n, persistent=False)

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Factors of the rank-one pieces, learned and frozen: lambda / (r ||a_i|| ||b_i||), (r,) each."""
        copy = self.lambda_ if self.follows else self.start
        r = len(self.A)
        return (
            self.lambda_ / (r * self.A.norm(dim=1) * self.B.norm(dim=0)),
            -copy / (r * self.A_0.norm(dim=1) * self.B_0.norm(dim=0)),
        )

    def delta(self, x: Tensor) -> Tensor:
        # Learned part and copy side by side: two products of width 2 r instead of four of width r.
        z = F.linear(self.dropout(x) * self.n, torch.cat([self.A, self.A_0]))  # (..., 2 r)
        return F.linear(z * torch.cat(self.coefficients()), torch.cat([self.B, self.B_0], dim=1))  # (..., d_out)

    def delta_weight(self) -> Tensor:
        learned, frozen = self.coefficients()
        return (self.B @ torch.diag(learned) @ self.A + self.B_0 @ torch.diag(frozen) @ self.A_0) * self.n


class DeLoRA(Adapter):
    """Bounded low-rank changes; ``lambda_rate`` is the step size of lambda relative to that of A and B."""

    mergeable = True
    family = "low-rank"
    lambda_rate = 0.5

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """AdamW without decay, with smaller steps for lambda."""
        named = list(self.named_parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in named if not name.endswith(".lambda_")]},
            {"params": [p for name, p in named if name.endswith(".lambda_")], "lr": learning_rate * self.lambda_rate},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0)


def attach(
    model: nn.Module,
    *,
    rank: int = 8,
    lambda_start: float = 8.0,
    dropout: float = 0.0,
    norm: Norm = "columns",
    copy_follows: bool = False,
    lambda_rate: float = 0.5,
    targets: Sequence[str] = ("q", "v"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``; ``lambda_start`` is lambda's first value."""
    check_rank(rank)
    if lambda_start == 0:
        raise AdapterError("lambda_start is 0: lambda multiplies the whole change, so A and B would get no gradient")
    check_dropout(dropout)
    if norm not in ("columns", "matrix"):
        raise AdapterError(f"norm is {norm!r}; allowed: columns, matrix")
    layers = find_linear(model, targets)
    adapter = DeLoRA(model)
    adapter.lambda_rate = lambda_rate
    for path, base in layers.items():
        adapter.replace(path, DeLoRALinear(base, rank, lambda_start, dropout, norm, copy_follows))
    return adapter
