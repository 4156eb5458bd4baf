r"""LoKr: the Kronecker adapter of LyCORIS.

Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation. Yeh, Hsieh, Gao, Yang, Oh, Gong;
ICLR 2024; arXiv 2309.14859, equation 4.

    y = W0 x + b + gamma * (C (x) D) x,   D free, or D = B A and gamma = alpha / r          ((x) the Kronecker product)
    W0 in R^{p x q} frozen,  C in R^{u_p x u_q},  D in R^{v_p x v_q},  B in R^{v_p x r},  A in R^{r x v_q}
    p = u_p v_p,  q = u_q v_q,  u_p the largest divisor of p that is at most min(f, sqrt p), and so u_q

The small factor stands on the left: the product does not commute. D is split only for r < max(v_p, v_q) / 2, and with
``both`` C = C1 C2 too, for r < max(u_p, u_q) / 2. A convolution's kernel (p, q, k, k) has D in R^{v_p x v_q x k x k},
split into B and A in R^{r x v_q x k x k} or (``tucker``) into B, A in R^{r x v_q} and a core T in R^{r x r x k x k}.
Where nothing is split gamma is 1, as in the code of LyCORIS.

Trained: the factors. Ranks multiply, rank(C (x) D) = rank C * rank D, so that few values may change a weight in full
rank.
Start: C, B and T from Kaiming's uniform distribution (a = sqrt 5), D = 0 or A = 0, as in LyCORIS: the base model. What
is zero learns in the first step, since the other side is not.

(C (x) D) x is C X D^T with x written as a matrix X in R^{u_q x v_q}: two small products, and no p x q matrix; likewise
for feature maps. Where D is split C stands in the middle, (C (X A^T)) B^T: on r columns it costs little, and only thin
matrices are kept for the backward pass. Only convolutions in groups form the change. The coefficient c acts on gamma:
linear, as it would be in either side alone, and not in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, check_rank, find


def factorization(size: int, factor: int | None) -> tuple[int, int]:
    """u v = ``size``: u is the largest divisor that is at most ``factor`` (None: no bound) and at most the root."""
    root = math.isqrt(size)
    bound = root if factor is None else min(factor, root)
    u = next(n for n in range(bound, 0, -1) if size % n == 0)
    return u, size // u


class LoKrLayer(Wrapper):
    """A linear layer or a convolution plus a Kronecker product."""

    base: nn.Linear | nn.Conv2d
    C1: nn.Parameter  # where C is split, and so B and A where D is
    C2: nn.Parameter
    B: nn.Parameter
    A: nn.Parameter

    def __init__(
        self,
        base: nn.Linear | nn.Conv2d,
        factor: int | None,
        rank: int | None,
        alpha: float = 1.0,
        both: bool = False,
        tucker: bool = False,
    ) -> None:
        super().__init__(base)
        weight, kernel = base.weight, base.weight.shape[2:]
        u_p, v_p = factorization(weight.shape[0], factor)
        self.u_q, self.v_q = u_q, v_q = factorization(weight.shape[1], factor)
        r = rank if rank is not None and rank < max(v_p, v_q) / 2 else 0
        self.scale = alpha / r if r else 1.0

        def random(*shape: int) -> nn.Parameter:
            return nn.Parameter(nn.init.kaiming_uniform_(weight.new_empty(shape), a=math.sqrt(5)))

        self.C = self.D = self.T = None
        if both and 0 < r < max(u_p, u_q) / 2:
            self.C1, self.C2 = random(u_p, r), random(r, u_q)
        else:
            self.C = random(u_p, u_q)
        if not r:
            self.D = nn.Parameter(weight.new_zeros(v_p, v_q, *kernel))
            return
        self.B = random(v_p, r)
        if tucker and kernel.numel() > 1:
            self.T = random(r, r, *kernel)
            kernel = kernel[:0]
        self.A = nn.Parameter(weight.new_zeros(r, v_q, *kernel))

    def left(self) -> Tensor:
        """C, (u_p, u_q)."""
        return self.C1 @ self.C2 if self.C is None else self.C

    def right(self) -> Tensor:
        """D, (v_p, v_q) or (v_p, v_q, k, k)."""
        if self.D is not None:
            return self.D
        if self.T is not None:
            return torch.einsum("si,ijkl,jt->stkl", self.B, self.T, self.A)
        return torch.tensordot(self.B, self.A, dims=1)

    def forward(self, x: Tensor) -> Tensor:
        change = self.delta(x)
        return self.base(x) + (change if self.strength == 1.0 else self.strength * change)

    def delta(self, x: Tensor) -> Tensor:
        """The change of the output at strength 1."""
        C = self.scale * self.left()
        if isinstance(self.base, nn.Linear):
            X = x.unflatten(-1, (self.u_q, self.v_q))
            if self.D is not None:
                return (C @ F.linear(X, self.D)).flatten(-2)  # (..., u_p, v_p)
            return F.linear(C @ F.linear(X, self.A), self.B).flatten(-2)
        if self.base.groups > 1:
            return self.base._conv_forward(x, self.delta_weight(), None)
        X = x.unflatten(-3, (self.u_q, self.v_q))  # (..., u_q, v_q, H, W)
        Y = self.convolve(X.flatten(0, -4)).unflatten(0, X.shape[:-3])  # (..., u_q, r or v_p, H', W')
        Y = torch.einsum("ij,...jshw->...ishw", C, Y)
        if self.D is None:
            Y = pointwise(Y.flatten(0, -4), self.B).unflatten(0, Y.shape[:-3])  # (..., u_p, v_p, H', W')
        return Y.flatten(-4, -3)

    def convolve(self, X: Tensor) -> Tensor:
        """The convolution with D, or with A and the core alone, (n, v_q, H, W) -> (n, v_p or r, H', W')."""
        assert isinstance(self.base, nn.Conv2d)
        if self.D is not None:
            return self.base._conv_forward(X, self.D, None)
        if self.T is not None:
            return self.base._conv_forward(pointwise(X, self.A), self.T, None)
        return self.base._conv_forward(X, self.A, None)

    def delta_weight(self) -> Tensor:
        """The change of the weight at strength 1, in its shape."""
        D = self.right()
        return self.scale * torch.kron(self.left().view(*self.left().shape, *[1] * (D.ndim - 2)), D.contiguous())

    def merged(self) -> dict[str, Tensor]:
        return {"weight": self.base.weight + self.strength * self.delta_weight()}


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """A matrix (m, n) on the channels, (batch, n, H, W) -> (batch, m, H, W)."""
    return F.conv2d(x, weight[:, :, None, None])


class LoKr(Adapter):
    """Kronecker products added to chosen layers."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    factor: int | None = 8,
    rank: int | None = None,
    alpha: float = 1.0,
    both: bool = False,
    tucker: bool = False,
    targets: Sequence[str] = ("q", "k", "v", "o", "up", "down"),
) -> Adapter:
    """Adapt every linear layer and two-dimensional convolution whose name is in ``targets``.

    ``factor`` is f, None for factors as near to the root as possible. ``rank`` splits right factors, and with ``both``
    left ones, that are more than twice as wide, and gives them the scale ``alpha / rank``; None leaves all whole.
    ``tucker`` gives split kernels wider than 1 x 1 a core.
    """
    if factor is not None and factor < 1:
        raise AdapterError(f"factor is {factor}; it must be at least 1, or None for the nearest to the root")
    if rank is not None:
        check_rank(rank)
    elif both or tucker:
        raise AdapterError("both and tucker are ways to split factors, and need a rank")
    if alpha <= 0:
        raise AdapterError(f"alpha is {alpha}; it must be positive, and rank (here {rank}) leaves gamma at 1")
    layers = find(model, targets)
    for path, layer in layers.items():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise AdapterError(
                f"{path} is a {type(layer).__name__}; LoKr adapts linear layers and two-dimensional convolutions"
            )
    widest = max(factorization(n, factor)[1] for layer in layers.values() for n in layer.weight.shape[:2])
    if rank is not None and 2 * rank >= widest:
        raise AdapterError(
            f"rank is {rank}; it splits nothing, as right factors are at most {widest} wide: leave it out"
        )
    adapter = LoKr(model)
    for path, base in layers.items():
        adapter.replace(path, LoKrLayer(base, factor, rank, alpha, both, tucker))
    return adapter
