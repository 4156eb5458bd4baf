r"""LoRA: Low-Rank Adaptation of Large Language Models.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen; ICLR 2022; arXiv 2106.09685, section 4.1, equation 3.

    h = W0 x + b + s B A dropout(x),   s = alpha / r
    x in R^{d_in},  W0 in R^{d_out x d_in} frozen,  A in R^{r x d_in},  B in R^{d_out x r},  r << min(d_in, d_out)

Trained: A and B of every adapted matrix; the paper adapts W_q and W_v alone and leaves the feed-forward part frozen.
Start: B = 0, so that training departs from the pretrained function; A is random, since with both at zero neither would
ever get a gradient. The paper draws A from a Gaussian; its code, followed here, from Kaiming's uniform distribution
(a = sqrt 5): entries in +-1/sqrt(d_in).

Dividing by r keeps the size of the change about the same when r is varied, so that the learning rate need not follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, DeltaLinear, find


class LoRALinear(DeltaLinear):
    """y = W0 x + b + c s B A x, with the two thin products in the forward pass and B A only when asked for."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base)
        self.rank = rank
        self.scale = alpha / rank
        # Dropout sits on the branch's input: a merged weight equals it in expectation, and exactly in eval mode.
        self.dropout = nn.Dropout(dropout)
        self.A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def delta(self, x: Tensor) -> Tensor:
        z = F.linear(self.dropout(x), self.A)  # (..., r)
        return F.linear(z, self.B) * self.scale  # (..., d_out)

    def delta_weight(self) -> Tensor:
        return self.scale * self.B @ self.A


class LoRA(Adapter):
    """Low-rank adaptation of chosen linear layers."""

    mergeable = True
    family = "low-rank"


def attach(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    targets: Sequence[str] = ("q", "v"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``; ``alpha`` is the numerator of the scale."""
    adapter = LoRA(model)
    for path, base in find(model, targets).items():
        adapter.replace(path, LoRALinear(base, rank, alpha, dropout))
    return adapter
