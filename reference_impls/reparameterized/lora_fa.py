r"""LoRA-FA: Efficient and Effective Low Rank Representation Fine-tuning.

Zhang, Zhang, Shi, Chu, Li; arXiv 2308.03303. Version 1 (2023, "Memory-efficient Low-rank Adaptation for Large Language
Models Fine-tuning") freezes A; version 2 (2026) corrects the gradient of B besides, as peft's optimizer does.

    h = W0 x + b + s B A dropout(x),   s = alpha / r
    W0 in R^{d_out x d_in} frozen,  A in R^{r x d_in} random and frozen,  B in R^{d_out x r}
    g~_B = (1 / s^2) g_B (A A^T + delta I)^{-1},   g_B = dL/dB = s G A^T,   G = dL/dW

Trained: B alone. Its gradient needs the r numbers A x of a token, not x itself, so nothing as wide as the input is kept
for the backward pass.
Start: B = 0, hence the base model; A must not be zero too, or B would never get a gradient. The paper draws A from a
Gaussian; here, as in LoRA's code and peft, it comes from Kaiming's uniform distribution (a = sqrt 5).

A step along g_B changes W along s^2 G A^T A, which depends on the lengths and angles of A's random rows. Of all
gradients of B, g~_B makes the change of W nearest to G: s g~_B A = G A^T (A A^T)^{-1} A, the projection of G on the row
space of A. The optimizer takes its moments from g~_B. ``correct`` = False is version 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, find_linear
from reference_impls.reparameterized.lora import check


class LoRAFALinear(DeltaLinear):
    """y = W0 x + b + c s B A x with A frozen."""

    A: Tensor

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base)
        self.rank = rank
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        A = nn.init.kaiming_uniform_(base.weight.new_empty(rank, base.in_features), a=math.sqrt(5))
        self.register_buffer("A", A)
        self.B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    def delta(self, x: Tensor) -> Tensor:
        z = F.linear(self.dropout(x), self.A) * self.scale  # (..., r), all that is kept for the backward pass
        return F.linear(z, self.B)  # (..., d_out)

    def delta_weight(self) -> Tensor:
        return self.scale * self.B @ self.A

    def corrected(self, gradient: Tensor, ridge: float) -> Tensor:
        """g~_B from g_B, both (d_out, r); in float32 at least, as half precision has no inverse."""
        A = self.A.to(torch.promote_types(self.A.dtype, torch.float32))
        gram = A @ A.T + ridge * torch.eye(self.rank, dtype=A.dtype, device=A.device)
        # The pseudoinverse serves ranks above d_in too, where A A^T has none but G is reached all the same.
        inverse = torch.linalg.pinv(gram, hermitian=True)
        return (gradient.to(A.dtype) @ inverse / self.scale**2).to(gradient.dtype)


class LoRAFA(Adapter):
    """Trained up-projections behind frozen down-projections; ``ridge`` is delta."""

    mergeable = True
    family = "low-rank"
    correct = True
    ridge = 1e-8

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """AdamW that sees the corrected gradient: ``step`` first replaces every g_B by g~_B."""
        optimizer = super().optimizer(learning_rate)
        if self.correct:
            optimizer.register_step_pre_hook(lambda *_: self.correct_gradients())
        return optimizer

    def correct_gradients(self) -> None:
        """g_B -> g~_B in every layer that has a gradient, once for each backward pass."""
        with torch.no_grad():
            for site in self.sites().values():
                if isinstance(site, LoRAFALinear) and site.B.grad is not None:
                    site.B.grad = site.corrected(site.B.grad, self.ridge)


def attach(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    correct: bool = True,
    ridge: float = 1e-8,
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``; ``correct``: version 2 of the paper."""
    check(rank, alpha, dropout)
    if ridge < 0:
        raise AdapterError(f"ridge is {ridge}; it must not be negative")
    layers = find_linear(model, targets)
    adapter = LoRAFA(model)
    adapter.correct, adapter.ridge = correct, ridge
    for path, base in layers.items():
        adapter.replace(path, LoRAFALinear(base, rank, alpha, dropout))
    return adapter
