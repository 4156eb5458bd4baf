r"""SVFT: Parameter-Efficient Fine-Tuning with Singular Vectors.

Lingam, Tejaswi, Vavre, Shetty, Gudur, Ghosh, Dimakis, Choi, Bojchevski, Sanghavi; NeurIPS 2024; arXiv 2405.19597,
section 3.1, equations 1 and 2.

    h = W0 x + b + U M V^T x = U (S + M) V^T x + b,     U M V^T = sum over (i, j) in Omega of m_ij u_i v_j^T
    W0 = U S V^T in R^{d_out x d_in},  U in R^{d_out x n},  V in R^{d_in x n},  M in R^{n x n},  n = min(d_in, d_out)

Trained: the entries of M at the positions Omega; U and V are frozen. One number buys one rank-one term. Omega is
    banded: |i - j| <= d, that is n (2 d + 1) - d (d + 1) positions; d = 0 is the plain variant, which changes singular
        values alone
    random: as many positions, drawn without replacement
    top-k: as many positions, those of the largest |u_i^T v_j|, for square weights only, as nothing else has a product.
        The size counts, since a pair u_i, v_i may change its sign
``rank`` cuts U, V and M to the leading n = rank singular vectors; the paper finds that this costs quality.
Start: M = 0, the base model. The paper does not say; in the authors' code, which has a ``gate``, M is a normal draw
with variance 2 / |Omega| times sigmoid(g), g trained and 0 at the start: near the base model, not at it.

The paper decomposes in full, with square U and V; its code and this one keep n vectors of each, so that of a weight
that is not square the row or the column space stays. The base weight stays as it is and U M V^T is added to what it
does: M acts on n coordinates of an activation through |Omega| products and no weight-sized matrix is formed.

Singular vectors are computed anew on attaching, signs fixed by the largest entry of every u_i; ``save_bases`` saves
them with M, for weights whose equal singular values leave more than a sign open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, check_rank, find_linear

Pattern = Literal["banded", "random", "top-k"]


def decompose(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (d_out, n), S (n,), V^T (n, d_in) for the n = ``rank`` largest singular values, signs fixed."""
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))  # half precision has no decomposition
    U, S, Vt = torch.linalg.svd(wide, full_matrices=False)
    U, S, Vt = U[:, :rank], S[:rank], Vt[:rank]
    signs = U.gather(0, U.abs().argmax(dim=0, keepdim=True)).sign()  # (1, n)
    return (U * signs).to(weight.dtype), S.to(weight.dtype), (Vt * signs.T).to(weight.dtype)


def positions(U: Tensor, Vt: Tensor, pattern: Pattern, off_diagonals: int) -> tuple[Tensor, Tensor]:
    """Rows i and columns j of Omega, (|Omega|,) each."""
    n = len(Vt)
    count = entries(n, off_diagonals)
    if pattern == "banded":
        steps = range(-off_diagonals, off_diagonals + 1)
        rows = torch.cat([torch.arange(max(0, -s), min(n, n - s), device=U.device) for s in steps])
        shift = torch.cat([torch.full((n - abs(s),), s, device=U.device) for s in steps])
        return rows, rows + shift
    if pattern == "random":
        chosen = torch.randperm(n * n, device=U.device)[:count]
    else:
        chosen = (U.T @ Vt.T).abs().flatten().topk(count).indices
    return chosen // n, chosen % n


def entries(n: int, off_diagonals: int) -> int:
    """|Omega|."""
    return n * (2 * off_diagonals + 1) - off_diagonals * (off_diagonals + 1)


class SVFTLinear(DeltaLinear):
    """A sparse matrix between the singular vectors of a weight."""

    U: Tensor
    Vt: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(
        self, base: nn.Linear, pattern: Pattern, off_diagonals: int, rank: int, gate: bool, save_bases: bool
    ) -> None:
        super().__init__(base)
        U, _, Vt = decompose(base.weight, rank)
        rows, columns = positions(U, Vt, pattern, off_diagonals)
        for name, constant, keep in (
            ("U", U, save_bases),
            ("Vt", Vt, save_bases),
            ("rows", rows, pattern == "random"),  # drawn, so that nothing but the draw itself tells them
            ("columns", columns, pattern == "random"),
        ):
            self.register_buffer(name, constant.contiguous(), persistent=keep)
        self.m = nn.Parameter(base.weight.new_zeros(len(rows)))
        self.g = nn.Parameter(base.weight.new_zeros(())) if gate else None
        if gate:
            nn.init.normal_(self.m, std=(2.0 / len(rows)) ** 0.5)

    def values(self) -> Tensor:
        """The entries of M, (|Omega|,)."""
        return self.m if self.g is None else self.m * torch.sigmoid(self.g)

    def delta(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.Vt)  # (..., n)
        terms = z[..., self.columns] * self.values()  # (..., |Omega|)
        return F.linear(torch.zeros_like(z).index_add(-1, self.rows, terms), self.U)

    def delta_weight(self) -> Tensor:
        n = len(self.Vt)
        M = self.m.new_zeros(n, n).index_put((self.rows, self.columns), self.values())
        return self.U @ M @ self.Vt


class SVFT(Adapter):
    """Sparse matrices between the singular vectors of chosen linear layers."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    pattern: Pattern = "banded",
    off_diagonals: int = 0,
    rank: int | None = None,
    gate: bool = False,
    save_bases: bool = False,
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``; the number of positions follows ``off_diagonals``, d."""
    if pattern not in get_args(Pattern):
        raise AdapterError(f"pattern is {pattern!r}; allowed: {', '.join(get_args(Pattern))}")
    if rank is not None:
        check_rank(rank)
    layers = find_linear(model, targets)
    sizes = {path: min(rank or min(layer.weight.shape), *layer.weight.shape) for path, layer in layers.items()}
    for path, layer in layers.items():
        if not 0 <= off_diagonals < sizes[path]:
            raise AdapterError(f"off_diagonals is {off_diagonals}; {path} has room for 0 to {sizes[path] - 1}")
        if pattern == "top-k" and layer.in_features != layer.out_features:
            raise AdapterError(
                f"pattern is 'top-k' and {path} maps {layer.in_features} to {layer.out_features}; it compares left with"
                " right singular vectors, which takes a square weight: name others in targets"
            )
    adapter = SVFT(model)
    for path, base in layers.items():
        adapter.replace(path, SVFTLinear(base, pattern, off_diagonals, sizes[path], gate, save_bases))
    return adapter
