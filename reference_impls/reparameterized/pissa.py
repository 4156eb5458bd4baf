r"""PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models.

Meng, Wang, Zhang; NeurIPS 2024 (spotlight); arXiv 2404.02948.

    W = U S V^T,   B0 = U_r (S_r / s)^{1/2},   A0 = (S_r / s)^{1/2} V_r^T,   W_res = W - s B0 A0
    h = W_res x + b + s B A x = W x + b + s (B A - B0 A0) x,   s = alpha / r
    W in R^{d_out x d_in},  U_r in R^{d_out x r},  V_r in R^{d_in x r},  A in R^{r x d_in},  B in R^{d_out x r}

Trained: A and B of every linear layer of the blocks.
Start: A = A0 and B = B0, the r principal singular triplets, each singular value split evenly between the factors:
together with W_res the base model. Both factors get a gradient from the first step, along the directions in which the
weight acts most; LoRA starts from noise and zero. The division by s, which the paper with s = 1 has no need of, keeps
s B0 A0 the principal part for every alpha. ``power_iterations`` takes the randomized decomposition instead: any A0, B0
leave the start where it is.

The authors' code overwrites W by W_res. Here W stays and the second form is computed, with thin products alone: the
start is the base model exactly, ``detach`` gives it back, and the coefficient c acts on B A - B0 A0, what was learned:
c = 0 is the base. (c on B A would have W_res at c = 0.) A0 and B0 are saved with A and B, the change of rank 2 r to the
original weight: singular vectors are unique up to their signs only.

QPiSSA (``quantize`` = T > 0) keeps W_res in NF4, where it rounds less than W, its largest components being gone:

    T times:  s B0 A0 = principal part of W - deq(Q)  (of W at first),   Q = NF4(W - s B0 A0)
    h = deq(Q) x + b + s B A x

It starts near the base model, not at it; c = 0 is that start.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, Wrapper, check_rank, find_linear
from reference_impls.reparameterized.qlora import NF4, Product


def principal(weight: Tensor, rank: int, scale: float, power_iterations: int | None) -> tuple[Tensor, Tensor]:
    """A0 (r, d_in) and B0 (d_out, r) in float32 at least, as half precision has no decomposition."""
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if power_iterations is None:
        U, S, Vt = torch.linalg.svd(wide, full_matrices=False)
        U, S, Vt = U[:, :rank], S[:rank], Vt[:rank]
    else:
        U, S, V = torch.svd_lowrank(wide, q=rank, niter=power_iterations)
        Vt = V.T
    root = (S / scale).sqrt()
    return root[:, None] * Vt, U * root


class PiSSALinear(DeltaLinear):
    """y = W x + b + c s (B A - B0 A0) x."""

    A: Tensor
    B: Tensor
    A0: Tensor
    B0: Tensor

    def __init__(self, base: nn.Linear, rank: int, alpha: float, power_iterations: int | None) -> None:
        super().__init__(base)
        self.rank = 2 * rank  # of the change
        self.scale = alpha / rank
        for name, factor in zip("AB", principal(base.weight, rank, self.scale, power_iterations), strict=True):
            start = factor.to(base.weight.dtype)
            self.register_parameter(name, nn.Parameter(start.clone()))
            self.register_buffer(f"{name}0", start.clone())

    def delta(self, x: Tensor) -> Tensor:
        # B A - B0 A0 = B (A - A0) + (B - B0) A0: one product of width 2 r, and exactly zero at the start.
        z = F.linear(x, torch.cat([self.A - self.A0, self.A0])) * self.scale  # (..., 2 r)
        return F.linear(z, torch.cat([self.B, self.B - self.B0], dim=1))

    def delta_weight(self) -> Tensor:
        return self.scale * (self.B @ self.A - self.B0 @ self.A0)


class QPiSSALinear(Wrapper):
    """y = deq(Q) x + b + s (c B A + (1 - c) B0 A0) x."""

    base: nn.Linear
    A: Tensor
    B: Tensor
    A0: Tensor
    B0: Tensor

    def __init__(self, base: nn.Linear, rank: int, alpha: float, power_iterations: int | None, rounds: int) -> None:
        super().__init__(base)
        self.scale = alpha / rank
        weight = base.weight.detach().to(torch.promote_types(base.weight.dtype, torch.float32))
        rest = weight
        for _ in range(rounds):
            A, B = principal(rest, rank, self.scale, power_iterations)
            self.quantized = NF4(weight - self.scale * B @ A, double_quant=False, persistent=True)
            rest = weight - self.quantized.dequantize(weight.dtype)
        for name, factor in (("A", A), ("B", B)):
            start = factor.to(base.weight.dtype)
            self.register_parameter(name, nn.Parameter(start.clone()))
            self.register_buffer(f"{name}0", start.clone())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Product.apply(x, self.quantized)
        branch = self.strength * F.linear(F.linear(x, self.A), self.B)
        if self.strength != 1.0:
            branch = branch + (1.0 - self.strength) * F.linear(F.linear(x, self.A0), self.B0)
        y = y + self.scale * branch
        return y if self.base.bias is None else y + self.base.bias

    def merged(self) -> dict[str, Tensor]:
        low_rank = self.strength * self.B @ self.A + (1.0 - self.strength) * self.B0 @ self.A0
        return {"weight": self.quantized.dequantize(self.base.weight.dtype) + self.scale * low_rank}


class PiSSA(Adapter):
    """Training the principal components of chosen linear layers."""

    mergeable = True
    family = "low-rank"


class QPiSSA(Adapter):
    """The same over a residual in 4 bits."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    rank: int = 128,
    alpha: float = 128,
    power_iterations: int | None = None,
    quantize: int = 0,
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down"),
) -> Adapter:
    """Train the ``rank`` principal components of every linear layer whose name is in ``targets``.

    ``power_iterations`` of the randomized decomposition (None: the exact one); ``quantize``: rounds of QPiSSA.
    """
    check_rank(rank)
    if alpha <= 0:
        raise AdapterError(f"alpha is {alpha}; it must be positive, and rank (here {rank}) leaves the scale at 1")
    for name, number in (("power_iterations", power_iterations or 0), ("quantize", quantize)):
        if number < 0:
            raise AdapterError(f"{name} is {number}; it must not be negative")
    layers = find_linear(model, targets)
    for path, layer in layers.items():
        if rank > min(layer.weight.shape):
            raise AdapterError(f"rank is {rank}; the weight of {path} has {min(layer.weight.shape)} singular values")
    adapter = QPiSSA(model) if quantize else PiSSA(model)
    for path, base in layers.items():
        if quantize:
            adapter.replace(path, QPiSSALinear(base, rank, alpha, power_iterations, quantize))
        else:
            adapter.replace(path, PiSSALinear(base, rank, alpha, power_iterations))
    return adapter
