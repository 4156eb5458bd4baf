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

Neither the complex d_out x d_in spectrum nor the change itself is formed in the forward pass: the transform over q acts
on the activation, n of its entries are scaled by c and moved from k_l to j_l, and the transform over p brings them back
(n complex numbers a token). Transforms run in float32 at least, as half precision has none. A merge has to form the
change, and sums the cosines as two real products.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

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
        rows, columns = self.positions()
        signal = torch.fft.ifft(x.to(wide))  # (..., d_in), over q
        chosen = signal[..., columns] * self.c.to(wide)  # (..., n)
        spectrum = signal.new_zeros(*x.shape[:-1], self.base.out_features).index_add(-1, rows, chosen)
        return (self.alpha * torch.fft.ifft(spectrum).real).to(x.dtype)  # (..., d_out)

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
