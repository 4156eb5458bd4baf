r"""RandLoRA: Full-rank parameter-efficient fine-tuning of large models.

Albert, Zhang, Saratchandran, Rodriguez-Opazo, van den Hengel, Abbasnejad; ICLR 2025; arXiv 2502.00987, section 4,
equation 4, and appendix C.

    h = W0 x + bias + s M dropout(x),   M = sum_j B_j Lambda_j A Gamma_j,   j = 1 .. n,   n = ceil(d / r),
    s = alpha / (r sqrt(n));   W0 frozen, d its smaller side, D its larger one; where outputs are fewer than inputs, M^T
    B_j in R^{D x r}, A in R^{r x d} random, frozen and shared by all layers;  Lambda_j = diag(lambda_j) in R^{r x r},
    Gamma_j = diag(g_j) in R^{d x d}

Trained: lambda and g, n (r + d) numbers a matrix: the larger the rank r of the bases, the fewer. n r >= d, so that M
has full rank for generic scalings. One A serves all n terms, since every g_j makes another matrix of it; it is these
that the paper's theorem 4.1 wants to be independent.
Start: lambda = 0, the base model; g = 1 / d. A and B_j are uniform and divided by their standard deviation; or, with
``sparsity`` s, sparse: -1 and 1 with probability 1/s each and zero otherwise, before the division. They come from a
seed and are as large as the largest layer asks for; a smaller one uses the first n terms, D rows and d columns.

The factor 1 / sqrt(n) keeps the size of the sum about the same when n is varied (appendix C.4). The paper's scaling
coefficient for language models is 2, alpha = 2 r.

M is not formed: the activation meets the n r rows of all A Gamma_j, then lambda, then the n r columns of all B_j. The
stack of the A Gamma_j is formed, about as large as a square of the smaller side, as in the official code.
The coefficient c acts on the change: linear in lambda, and in g, but not in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, check_dropout, check_rank, find_linear


class Bases(nn.Module):
    """The random bases all layers share: A (r, d) and B (n, r, D), B_j transposed, for the largest d and D."""

    A: Tensor
    B: Tensor

    def __init__(
        self, like: Tensor, rank: int, smaller: int, larger: int, seed: int, sparsity: float | None, persistent: bool
    ) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        terms = math.ceil(smaller / rank)
        # Drawn on the CPU, in float32: the same bases on every device and in every precision.
        A = torch.rand(rank, smaller, generator=source, dtype=torch.float32, device="cpu")
        B = torch.rand(terms, larger, rank, generator=source, dtype=torch.float32, device="cpu")
        for name, drawn in (("A", A), ("B", B.transpose(1, 2))):
            values = 2.0 * drawn - 1.0
            if sparsity is not None:
                values = (drawn > 1 - 1 / sparsity).float() - (drawn < 1 / sparsity).float()
                if not values.any():
                    raise AdapterError(
                        f"sparsity is {sparsity:g}; it leaves nothing of a base of {values.numel()} entries"
                    )
            self.register_buffer(name, (values / values.std()).to(like).contiguous(), persistent=persistent)


class RandLoRALinear(DeltaLinear):
    """Scalings of the shared random bases."""

    def __init__(self, base: nn.Linear, shared: Bases, alpha: float, dropout: float) -> None:
        super().__init__(base)
        # A tuple hides the bases from module registration: they belong to the model, once, not to every layer.
        self._shared = (shared,)
        rank, smaller = len(shared.A), min(base.weight.shape)
        terms = math.ceil(smaller / rank)
        self.scale = alpha / (rank * math.sqrt(terms))
        self.dropout = nn.Dropout(dropout)
        self.lambda_ = nn.Parameter(base.weight.new_zeros(terms, rank))
        self.g = nn.Parameter(base.weight.new_full((terms, smaller), 1.0 / smaller))

    def bases(self) -> tuple[Tensor, Tensor]:
        """A (r, d) and B (n, r, D) of this layer."""
        (shared,) = self._shared
        d, D = sorted(self.base.weight.shape)
        return shared.A[:, :d], shared.B[: len(self.g), :, :D]

    def delta(self, x: Tensor) -> Tensor:
        A, B = self.bases()
        scaled = (self.g[:, None, :] * A).flatten(0, 1)  # A Gamma_j, stacked: (n r, d)
        inward, outward = scaled, B.flatten(0, 1)  # (n r, D)
        if self.base.in_features > self.base.out_features:
            inward, outward = outward, inward
        z = F.linear(self.dropout(x), inward) * self.lambda_.flatten()  # (..., n r)
        return self.scale * (z @ outward)

    def delta_weight(self) -> Tensor:
        A, B = self.bases()
        total = sum(B[j].T @ (self.lambda_[j][:, None] * A * self.g[j]) for j in range(len(self.g)))
        assert isinstance(total, Tensor)
        return self.scale * (total.T if self.base.in_features > self.base.out_features else total)


class RandLoRA(Adapter):
    """Trained scalings of frozen random bases that add up to a change of full rank."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    rank: int = 32,
    alpha: float = 64,
    dropout: float = 0.0,
    sparsity: float | None = None,
    seed: int = 0,
    save_bases: bool = True,
    targets: Sequence[str] = ("q", "k", "v", "o", "up", "down"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``; ``rank`` is that of the bases, ``seed`` draws them.

    ``sparsity`` is s, the inverse probability of a 1, at least 2; None is dense.
    """
    check_rank(rank)
    check_dropout(dropout)
    if alpha == 0:
        raise AdapterError("alpha is 0, which leaves nothing to train")
    if sparsity is not None and sparsity < 2:
        raise AdapterError(
            f"sparsity is {sparsity}; it must be at least 2, as 1 and -1 have probability 1 / sparsity each"
        )
    layers = find_linear(model, targets)
    sides = [sorted(layer.weight.shape) for layer in layers.values()]
    smaller, larger = max(d for d, _ in sides), max(D for _, D in sides)
    if rank > min(d for d, _ in sides):
        raise AdapterError(f"rank is {rank}; the smallest side of the layers is {min(d for d, _ in sides)}")
    like = next(iter(layers.values())).weight
    shared = Bases(like, rank, smaller, larger, seed, sparsity, save_bases)
    adapter = RandLoRA(model)
    adapter.add("", "randlora", shared)
    for path, base in layers.items():
        adapter.replace(path, RandLoRALinear(base, shared, alpha, dropout))
    return adapter
