r"""FourierFT: Parameter-Efficient Fine-Tuning with Discrete Fourier Transform.

Gao, Wang, Chen, Liu, Wu, Chen, Li; ICML 2024; arXiv 2405.03003, section 3.1, equations 2 to 5.

    h = W0 x + bias + alpha Re(S) x,   S = ifft2(F),   F[j_l, k_l] = c_l,  zero elsewhere
    W0 in R^{d_out x d_in} frozen;  c in R^n;  positions (j_l, k_l) of a d_out x d_in grid, l = 1 .. n, distinct, frozen
    Re(S)[p, q] = 1 / (d_out d_in) * sum_l c_l cos(2 pi (p j_l / d_out + q k_l / d_in))

Trained: c, n real numbers a matrix whatever its size. The positions come from a seed of their own and are shared by all
layers of one shape: stored once, two integers each.
Start: c from a standard normal distribution, as in the paper: not the base model, but near it where d_out d_in is large
beside alpha; on small layers alpha = 300 swamps the weight. ``start`` = "zero" is the base model.

The factor 1 / (d_out d_in) is missing from equation 3 and present in the algorithm, as torch has it.

Positions are uniform, or biased to a favored frequency f: probabilities in proportion to
exp(-((D^2 - f^2) / (D w))^2), equation 5, D the distance of (j, k) from frequency zero and w the bandwidth.

Neither the complex d_out x d_in spectrum nor the change itself is formed in the forward pass: tokens are transformed
there and back instead, which is cheaper than a product with the change. They are real, so half of a spectrum will do:
Re(S) = F^T M F, F x the real and imaginary parts of rfft(x), M sparse with c_l and +-c_l at the positions of l, folded
into the half. Its transpose is the same with rows and columns exchanged, and gives the gradient of x. Transforms run in
float32 at least, as half precision has none. A merge has to form the change, and sums the cosines as two real products.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, find_linear

Start = Literal["normal", "zero"]


class Positions(nn.Module):
    """Positions for every shape of layer: buffers (2, n), rows j above columns k, named as in ``32x64``."""

    def __init__(
        self, layers: Iterable[nn.Linear], frequencies: int, seed: int, favored: float | None, bandwidth: float
    ) -> None:
        super().__init__()
        for layer in layers:
            d_out, d_in = layer.weight.shape
            if not hasattr(self, name := f"{d_out}x{d_in}"):
                # Drawn on the CPU: the same positions on every device, and those that PEFT draws from the same seed.
                source = torch.Generator().manual_seed(seed)
                if favored is None:
                    flat = torch.randperm(d_out * d_in, generator=source, device="cpu")[:frequencies]
                else:
                    logits = log_probabilities(d_out, d_in, favored, bandwidth).flatten()
                    # Largest of log p plus Gumbel noise: n draws without replacement.
                    noise = torch.rand(len(logits), generator=source, dtype=torch.float64, device="cpu")
                    flat = (logits - (-noise.log()).log()).topk(frequencies).indices
                self.register_buffer(name, torch.stack([flat // d_in, flat % d_in]).to(layer.weight.device))


def log_probabilities(d_out: int, d_in: int, favored: float, bandwidth: float) -> Tensor:
    """Logarithms of equation 5 for every position, (d_out, d_in), up to a constant; frequencies wrap around."""
    with torch.device("cpu"):
        rows, columns = (torch.fft.fftfreq(d, 1 / d, dtype=torch.float64) for d in (d_out, d_in))
    distance = torch.hypot(rows[:, None], columns)
    return -(((distance.square() - favored**2) / (distance.clamp(min=1e-9) * bandwidth)) ** 2)


TOKENS = 256
"""Tokens transformed at a time: few enough for their spectra to be turned over within a processor's cache."""


class SparseSpectrum(torch.autograd.Function):
    """F^T M F x, (..., d_in) -> (..., d_out), that keeps F x alone of all activations; it is as large as x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor, rows: Tensor, columns: Tensor, d_out: int) -> Tensor:
        d_in = x.shape[-1]
        j, k = folded(rows, d_out), folded(columns, d_in)
        # i^2 = -1 for two imaginary parts; the half that is folded away is the conjugate of the one that is kept.
        mirrored = torch.where((2 * rows > d_out) == (2 * columns > d_in), -1.0, 1.0).to(c)
        sign = torch.cat([torch.ones_like(c), mirrored])
        spectrum, values = transformed(x), sign * c.repeat(2)
        ctx.save_for_backward(spectrum, values, j, k, sign)
        ctx.shape = x.shape
        return back(multiplied(values, j, k, spectrum, d_out), d_out).view(*x.shape[:-1], d_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        spectrum, values, j, k, sign = ctx.saved_tensors
        gradient, d_in = transformed(gradients[0]), ctx.shape[-1]
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = back(multiplied(values, k, j, gradient, d_in), d_in).view(ctx.shape)
        to_values = gradient.index_select(0, j).mul_(spectrum.index_select(0, k)).sum(1)
        return to_x, (sign * to_values).view(2, -1).sum(0), None, None, None


def folded(index: Tensor, d: int) -> Tensor:
    """Rows of F x, d numbers each, where the real and then the imaginary parts of the frequencies are, (2 n,)."""
    half = torch.minimum(index, d - index)
    return torch.cat([half, d // 2 + 1 + half])


def transformed(x: Tensor) -> Tensor:
    """F x, (2 (d // 2 + 1), tokens): real parts above imaginary ones, so that M adds up whole rows."""
    x = x.reshape(-1, x.shape[-1])
    parts = x.new_empty(2, x.shape[-1] // 2 + 1, len(x))
    for some, place in zip(x.split(TOKENS), parts.split(TOKENS, dim=-1), strict=True):
        place.copy_(torch.view_as_real(torch.fft.rfft(some)).permute(2, 1, 0))
    return parts.flatten(0, 1)


def back(parts: Tensor, d: int) -> Tensor:
    """F^T of such rows, (tokens, d), if all frequencies that irfft counts twice come halved."""
    x = parts.new_empty(parts.shape[1], d)
    for place, some in zip(x.split(TOKENS), parts.split(TOKENS, dim=-1), strict=True):
        place.copy_(torch.fft.irfft(torch.complex(*some.chunk(2)).T.contiguous(), n=d, norm="forward"))
    return x


def multiplied(values: Tensor, rows: Tensor, columns: Tensor, parts: Tensor, d: int) -> Tensor:
    """M F x for ``back`` to size d, from the entries of M; those at the same place add up."""
    half = d // 2 + 1
    rows, order = rows.sort()
    values = values[order] * torch.where(2 * (rows % half) % d == 0, 1.0, 0.5).to(values)
    starts = torch.searchsorted(rows, torch.arange(2 * half, device=rows.device))
    # A sparse product is a bag of weighted rows for every row of the result.
    return F.embedding_bag(columns[order], parts, starts, mode="sum", per_sample_weights=values)


class FourierLinear(DeltaLinear):
    """A linear layer plus a change that is sparse in the frequency domain."""

    def __init__(self, base: nn.Linear, shared: Positions, alpha: float, start: Start) -> None:
        super().__init__(base)
        self.alpha = alpha
        # A tuple hides the positions from module registration: they belong to the model, once, not to every layer.
        self._shared = (shared,)
        self.c = nn.Parameter(base.weight.new_zeros(self.positions().shape[1]))
        if start == "normal":
            nn.init.normal_(self.c)

    def positions(self) -> Tensor:
        """(2, n): rows j_l and columns k_l."""
        (shared,) = self._shared
        return shared.get_buffer(f"{self.base.out_features}x{self.base.in_features}")

    def delta(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        d_out, d_in = self.base.weight.shape
        c = self.c.to(wide) * (self.alpha / (d_out * d_in))
        change: Tensor = SparseSpectrum.apply(x.to(wide), c, *self.positions(), d_out)
        return change.to(x.dtype)

    def delta_weight(self) -> Tensor:
        d_out, d_in = self.base.weight.shape
        wide = torch.promote_types(self.c.dtype, torch.float32)
        rows, columns = self.positions()
        a, b = angles(d_out, rows, wide), angles(d_in, columns, wide)  # (d_out, n), (d_in, n)
        c = self.c.to(wide) * (self.alpha / (d_out * d_in))
        return ((c * a.cos()) @ b.cos().T - (c * a.sin()) @ b.sin().T).to(self.c.dtype)


def angles(size: int, index: Tensor, dtype: torch.dtype) -> Tensor:
    """2 pi p index / size for p = 0 .. size - 1, (size, n); the product is reduced in integers, where it is exact."""
    turns = torch.arange(size, device=index.device)[:, None] * index % size
    return turns.to(dtype) * (2 * math.pi / size)


class FourierFT(Adapter):
    """Trained spectral coefficients at shared positions."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    frequencies: int = 1000,
    alpha: float = 300.0,
    start: Start = "normal",
    seed: int = 2024,
    favored: float | None = None,
    bandwidth: float = 200.0,
    targets: Sequence[str] = ("q", "v"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets`` by ``frequencies`` (n) coefficients.

    ``seed`` draws the positions; ``favored`` biases them to that frequency, in cycles a side, within ``bandwidth``.
    """
    if alpha == 0:
        raise AdapterError("alpha is 0, which leaves nothing to train")
    if start not in get_args(Start):
        raise AdapterError(f"start is {start!r}; allowed: {', '.join(get_args(Start))}")
    if favored is not None and (favored < 0 or bandwidth <= 0):
        raise AdapterError(f"favored is {favored}, bandwidth {bandwidth}; at least 0 and above 0")
    layers = find_linear(model, targets)
    for path, base in layers.items():
        if not 1 <= frequencies <= base.weight.numel():
            raise AdapterError(f"frequencies is {frequencies}; {path} has room for 1 to {base.weight.numel()}")
    shared = Positions(layers.values(), frequencies, seed, favored, bandwidth)
    adapter = FourierFT(model)
    adapter.add("", "fourierft", shared)
    for path, base in layers.items():
        adapter.replace(path, FourierLinear(base, shared, alpha, start))
    return adapter
