r"""C3A: Parameter-Efficient Fine-Tuning via Circular Convolution.

Chen, Cheng, Liu, Gao, Tsung, Li, Li; Findings of ACL 2025; arXiv 2407.19342, section 3, equations 1, 3 and 4.

    y = W0 x + bias + s dz,   dz_i = sum_j C(w_ij) x_j,   C(w)[p, q] = w[(q - p) mod b]
    W0 in R^{d_out x d_in} frozen;  x_j, dz_i in R^b are blocks of input and output;  w in R^{m x n x b},
    m = d_out / b, n = d_in / b, b a common divisor of both: a row of C(w) is the row above it rolled right by one

Trained: the m n kernels w, d_out d_in / b numbers a matrix. The block size b sets their number, not the rank: C(w) has
rank b - deg gcd(f, t^b - 1), f the polynomial with coefficients w; generic kernels have full rank.
Start: Xavier's uniform distribution of the whole matrix, bounds +-sqrt(6 / (d_in + d_out)), as in the paper's runs: not
the base model. The paper's ablation finds zero (the base model), Gaussian and Kaiming starts to do as well.

The product is a correlation, so no circulant is formed: FFT(FFT(w) * iFFT(x)) in the paper (equation 1, algorithm A1).
Everything is real, hence half of the spectrum will do: dz_i = irfft(sum_j conj(rfft(w_ij)) * rfft(x_j)), in float32 at
least, as half precision has no transform. Frequency by frequency this is a linear layer X W^H with a matrix W (m, n),
and its gradients are those of one, G W and G^H X. The paper treats the product as commutative, which a correlation is
not, so that the gradient it prints for x, and its code, read the kernel in the wrong direction (C(w)^T g is a
convolution); its gradient for w is right.

The scale s: equation 3 and the printed algorithms have none (s = 1); the authors' code, in PEFT, divides by d_in. The
paper's large learning rates (0.05 to 7) and its indifference to the start suggest that its runs did so too: undivided,
the kernels of the start are a change as large as the weight itself. Hence s = 1 / d_in by default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, check_dropout, find_linear

Start = Literal["xavier", "zero", "gaussian", "kaiming"]


class Correlation(torch.autograd.Function):
    """sum_j C(w_ij) x_j of blocks (tokens, n, b) by kernels (m, n, b): (tokens, m, b).

    Only spectra are kept for the backward pass. That of x is hardly larger than x, and saves transforming it again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        X, W = spectra(x), spectra(w)
        ctx.save_for_backward(X, W)
        ctx.b = x.shape[-1]
        return blocks(X @ W.mH, ctx.b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        X, W = ctx.saved_tensors
        G = spectra(gradients[0])
        return blocks(G @ W, ctx.b) if ctx.needs_input_grad[0] else None, blocks(G.mH @ X, ctx.b)


def spectra(x: Tensor) -> Tensor:
    """(t, n, b) -> (b // 2 + 1, t, n): frequencies first, as each has a product of matrices of its own."""
    return torch.fft.rfft(x).permute(2, 0, 1).contiguous()


def blocks(X: Tensor, b: int) -> Tensor:
    """The inverse of ``spectra``."""
    return torch.fft.irfft(X.permute(1, 2, 0).contiguous(), n=b)


class CirculantLinear(DeltaLinear):
    """A linear layer plus blocks of circular convolutions of its input."""

    def __init__(self, base: nn.Linear, block_size: int, start: Start, scale: float | None, dropout: float) -> None:
        super().__init__(base)
        d_out, d_in = base.weight.shape
        self.block_size = block_size
        self.scale = 1.0 / d_in if scale is None else scale
        self.dropout = nn.Dropout(dropout)
        self.w = nn.Parameter(base.weight.new_zeros(d_out // block_size, d_in // block_size, block_size))
        if start == "gaussian":
            nn.init.normal_(self.w)
        elif start != "zero":
            # Kaiming's with a = sqrt 5, as in the authors' code.
            bound = math.sqrt(6 / (d_in + d_out)) if start == "xavier" else math.sqrt(1 / d_in)
            nn.init.uniform_(self.w, -bound, bound)

    def delta(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        parts = self.dropout(x).to(wide).reshape(-1, self.w.shape[1], self.block_size)  # (tokens, n, b)
        change: Tensor = Correlation.apply(parts, self.scale * self.w.to(wide))
        return change.view(*x.shape[:-1], -1).to(x.dtype)

    def delta_weight(self) -> Tensor:
        index = torch.arange(self.block_size, device=self.w.device)
        circulants = self.w[..., (index[None, :] - index[:, None]) % self.block_size]  # (m, n, b, b)
        return self.scale * circulants.transpose(1, 2).reshape(self.base.weight.shape)


class C3A(Adapter):
    """Block-circular convolutions beside chosen linear layers."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    block_size: int | None = None,
    start: Start = "xavier",
    scale: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = ("q", "v"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``.

    ``block_size`` is b; None is the largest possible one, the greatest common divisor of inputs and outputs, and so the
    fewest kernels. ``scale`` is s; None is 1 / d_in. ``dropout`` acts on the input of the convolutions.
    """
    if start not in get_args(Start):
        raise AdapterError(f"start is {start!r}; allowed: {', '.join(get_args(Start))}")
    if scale == 0:
        raise AdapterError("scale is 0, which leaves nothing to train; None is 1 / d_in, 1 the paper's formula")
    check_dropout(dropout)
    layers = find_linear(model, targets)
    sizes = {path: block_size_of(path, base, block_size) for path, base in layers.items()}
    adapter = C3A(model)
    for path, base in layers.items():
        adapter.replace(path, CirculantLinear(base, sizes[path], start, scale, dropout))
    return adapter


def block_size_of(path: str, base: nn.Linear, wanted: int | None) -> int:
    """b for one layer; AdapterError with its common divisors when ``wanted`` is none of them."""
    largest = math.gcd(base.in_features, base.out_features)
    if wanted is None:
        return largest
    if wanted < 1 or largest % wanted:
        divisors = [n for n in range(1, largest + 1) if largest % n == 0]
        raise AdapterError(
            f"block_size is {wanted}; for {path} with {base.in_features} inputs and {base.out_features} outputs it must"
            f" be one of {divisors}"
        )
    return wanted
