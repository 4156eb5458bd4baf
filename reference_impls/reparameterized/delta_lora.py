r"""Delta-LoRA: Fine-Tuning High-Rank Parameters with the Delta of Low-Rank Matrices.

Zi, Qi, Wang, Wang, Wong, Zhang; arXiv 2309.02411, the algorithm of Delta-LoRA.

    h = W^t x + b + s B^t A^t x,   s = alpha / r,   W^0 pretrained,  A in R^{r x d_in},  B in R^{d_out x r}
    for t = 0 .. T - 1:   A^{t+1}, B^{t+1} by AdamW;   if t > K:   W^{t+1} = W^t + lambda s (B^{t+1} A^{t+1} - B^t A^t)

Trained: A and B by gradient. W moves without a gradient or moments of its own: without dropout on the branch, dL/dW is
dL/d(B A) up to s, so that the step of the product stands in for its step. Hence there is no dropout.
Start: B = 0, A from Kaiming's uniform distribution (a = sqrt 5), as in LoRA: the base model.

The sum telescopes, W^T - W^0 = lambda s (B^T A^T - B^{K+1} A^{K+1}), and is kept here as these two thin products beside
an untouched W^0: the same weight at every step, of rank 2 r at most with the branch itself, that can be taken off and
saved. No gradient reaches A and B through it, as none does through W^t. Weight decay of A and B is part of their step.

The coefficient c acts on the whole change, branch and W^t - W^0 together: linear.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, find_linear
from reference_impls.reparameterized.lora import LoRALinear, check


class DeltaLoRALinear(LoRALinear):
    """y = W0 x + b + c s (B A + lambda (B' A' - B* A*)) x: A', B' as last passed on to W, A*, B* as at step K + 1."""

    A_last: Tensor
    B_last: Tensor
    A_first: Tensor
    B_first: Tensor
    steps: Tensor

    def __init__(self, base: nn.Linear, rank: int, alpha: float, ratio: float, start: int) -> None:
        super().__init__(base, rank, alpha, dropout=0.0)
        self.rank = 2 * rank  # of the whole change
        self.ratio, self.start = ratio, start
        for name in ("A_last", "A_first"):
            self.register_buffer(name, self.A.detach().clone())
        for name in ("B_last", "B_first"):
            self.register_buffer(name, self.B.detach().clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=base.weight.device))

    def delta(self, x: Tensor) -> Tensor:
        passed_on = F.linear(F.linear(x, self.A_last), self.B_last) - F.linear(F.linear(x, self.A_first), self.B_first)
        return super().delta(x) + self.ratio * self.scale * passed_on

    def delta_weight(self) -> Tensor:
        passed_on = self.B_last @ self.A_last - self.B_first @ self.A_first
        return super().delta_weight() + self.ratio * self.scale * passed_on

    def pass_on(self) -> None:
        """Step t is done: from t > K on its change of B A goes to W."""
        self.A_last.copy_(self.A)
        self.B_last.copy_(self.B)
        if self.steps <= self.start:
            self.A_first.copy_(self.A)
            self.B_first.copy_(self.B)
        self.steps += 1


class DeltaLoRA(Adapter):
    """Low-rank factors whose steps move the frozen weights too."""

    mergeable = True
    family = "low-rank"

    def after_step(self) -> None:
        """Pass the change of every product on to its weight."""
        with torch.no_grad():
            for site in self.sites().values():
                if isinstance(site, DeltaLoRALinear):
                    site.pass_on()


def attach(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16,
    ratio: float = 2.0,
    start: int = 500,
    targets: Sequence[str] = ("q", "v"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``; ``ratio`` is lambda, ``start`` is K."""
    check(rank, alpha, dropout=0.0)
    if ratio < 0 or start < 0:
        raise AdapterError(f"ratio is {ratio} and start {start}; neither may be negative")
    layers = find_linear(model, targets)
    adapter = DeltaLoRA(model)
    for path, base in layers.items():
        adapter.replace(path, DeltaLoRALinear(base, rank, alpha, ratio, start))
    return adapter
