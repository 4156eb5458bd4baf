r"""LoHa: the low-rank Hadamard product of FedPara, as an adapter.

FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning.
Hyeon-Woo, Ye-Bin, Oh; ICLR 2022; arXiv 2108.06098. As the change of a frozen weight: LyCORIS, arXiv 2309.14859,
section 3.2, equation 3.

    y = W0 x + b + gamma * [(B1 A1) o (B2 A2)] x,   gamma = alpha / r          (o element-wise)
    W0 in R^{p x q} frozen,  B1, B2 in R^{p x r},  A1, A2 in R^{r x q}

A convolution's kernel (p, q', k, k) is flattened to q = q' k^2 columns, or (``tucker``, FedPara's form for
convolutions) its factors are A_i in R^{r x q'} with a core T_i in R^{r x r x k x k} each, which together stand for the
wide factor sum_j T_i[:, j] A_i[j].

Trained: the four factors, and the cores. They are as many values as a LoRA of rank 2 r has, but the change may have
rank r^2, since (B1 A1) o (B2 A2) = B A with the r^2 products of columns of B1 and B2 in B, of rows of A1 and A2 in A.
Start: B1 ~ N(0, 0.1^2), A1, A2 ~ N(0, 1), cores ~ N(0, 0.1^2), as in LyCORIS, and B2 = 0: the base model. One zero
factor is enough, and a second one would leave nothing a gradient. FedPara trains whole weights instead, from scratch.

The products of columns and rows are the fast form while r^2 (p + q) < p q: no p x q matrix appears. With more ranks,
or groups of channels, the change is formed, in one pass, and both halves are computed again in the backward pass
instead of being kept. The coefficient c acts on gamma: the change is linear in it, as in any single factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, check_rank, find


class HadamardProduct(torch.autograd.Function):
    """(B1 A1) o (B2 A2), (p, q), that keeps the four factors alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, B1: Tensor, A1: Tensor, B2: Tensor, A2: Tensor) -> Tensor:
        ctx.save_for_backward(B1, A1, B2, A2)
        return (B1 @ A1).mul_(B2 @ A2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        B1, A1, B2, A2 = ctx.saved_tensors
        (gradient,) = gradients
        first = (B2 @ A2).mul_(gradient)
        second = (B1 @ A1).mul_(gradient)
        return first @ A1.T, B1.T @ first, second @ A2.T, B2.T @ second


class LoHaLayer(Wrapper):
    """A linear layer or a convolution plus a Hadamard product of two low-rank changes."""

    base: nn.Linear | nn.Conv2d

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, alpha: float, tucker: bool) -> None:
        super().__init__(base)
        self.rank = rank * rank  # what the rank of the change is bounded by
        self.scale = alpha / rank
        weight = base.weight
        outputs, kernel = weight.shape[0], weight.shape[2:]
        tucker = tucker and kernel.numel() > 1
        inputs = weight.shape[1] if tucker else weight[0].numel()
        self.B1 = nn.Parameter(0.1 * torch.randn_like(weight.new_empty(outputs, rank)))
        self.A1 = nn.Parameter(torch.randn_like(weight.new_empty(rank, inputs)))
        self.B2 = nn.Parameter(weight.new_zeros(outputs, rank))
        self.A2 = nn.Parameter(torch.randn_like(weight.new_empty(rank, inputs)))
        core = weight.new_empty(rank, rank, *kernel)
        self.T1 = nn.Parameter(0.1 * torch.randn_like(core)) if tucker else None
        self.T2 = nn.Parameter(0.1 * torch.randn_like(core)) if tucker else None
        columns = weight[0].numel()
        ungrouped = isinstance(base, nn.Linear) or base.groups == 1
        self.thin = ungrouped and self.rank * (outputs + columns) < outputs * columns

    def factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """gamma B1 (p, r), A1 (r, q), B2 (p, r), A2 (r, q), the cores multiplied in."""
        return self.scale * self.B1, widened(self.A1, self.T1), self.B2, widened(self.A2, self.T2)

    def forward(self, x: Tensor) -> Tensor:
        change = self.delta(x)
        return self.base(x) + (change if self.strength == 1.0 else self.strength * change)

    def delta(self, x: Tensor) -> Tensor:
        """The change of the output at strength 1."""
        B1, A1, B2, A2 = self.factors()
        if not self.thin:
            return self.apply_weight(x, HadamardProduct.apply(B1, A1, B2, A2))
        z = self.apply_weight(x, (A1[:, None] * A2).flatten(0, 1))  # r^2 features
        B = (B1[:, :, None] * B2[:, None]).flatten(1)  # (p, r^2)
        return F.linear(z, B) if isinstance(self.base, nn.Linear) else F.conv2d(z, B[:, :, None, None])

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """What ``base`` does with these rows (n, q) for a weight, without its bias."""
        if isinstance(self.base, nn.Linear):
            return F.linear(x, weight)
        return self.base._conv_forward(x, weight.view(-1, *self.base.weight.shape[1:]), None)

    def delta_weight(self) -> Tensor:
        """The change of the weight at strength 1, in its shape."""
        B1, A1, B2, A2 = self.factors()
        return ((B1 @ A1) * (B2 @ A2)).view_as(self.base.weight)

    def merged(self) -> dict[str, Tensor]:
        return {"weight": self.base.weight + self.strength * self.delta_weight()}


def widened(A: Tensor, core: Tensor | None) -> Tensor:
    """A factor of the flattened kernel, (r, q' k k), from (r, q') and its core (r, r, k, k); itself without a core."""
    return A if core is None else torch.einsum("ijkl,jq->iqkl", core, A).flatten(1)


class LoHa(Adapter):
    """Hadamard products of low-rank changes of chosen layers."""

    mergeable = True
    family = "low-rank"


def attach(
    model: nn.Module,
    *,
    rank: int = 4,
    alpha: float = 2,
    tucker: bool = False,
    targets: Sequence[str] = ("q", "k", "v", "o", "up", "down"),
) -> Adapter:
    """Adapt every linear layer and two-dimensional convolution whose name is in ``targets``.

    ``alpha`` is the numerator of gamma; ``tucker`` gives convolutions wider than 1 x 1 a core.
    """
    check_rank(rank)
    if alpha <= 0:
        raise AdapterError(f"alpha is {alpha}; it must be positive, and rank (here {rank}) leaves gamma at 1")
    layers = find(model, targets)
    for path, layer in layers.items():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise AdapterError(
                f"{path} is a {type(layer).__name__}; LoHa adapts linear layers and two-dimensional convolutions"
            )
    adapter = LoHa(model)
    for path, base in layers.items():
        adapter.replace(path, LoHaLayer(base, rank, alpha, tucker))
    return adapter
