r"""MPOP: Enabling Lightweight Fine-tuning for Pre-trained Language Model Compression based on Matrix Product Operators.

Liu, Gao, Zhao, Xie, Lu, Wen; ACL 2021; arXiv 2106.02205.

    W[i_1 .. i_n, j_1 .. j_n] = T_1[:, i_1, j_1, :] T_2[:, i_2, j_2, :] .. T_n[:, i_n, j_n, :]
    W in R^{I x J},  I = prod i_k,  J = prod j_k,  T_k in R^{d_{k-1} x i_k x j_k x d_k},  d_0 = d_n = 1,  n odd (5)
    d_k <= min(prod_{m <= k} i_m j_m, prod_{m > k} i_m j_m), with equality if nothing is cut off

Rows and columns are split into n factors and interleaved to (i_1, j_1, i_2, j_2, ..); a singular value decomposition a
bond, from left to right, takes off one tensor after the other. A gauge change then gives both neighbors of a bond the
square root of its singular values: T_k = S_{k-1}^{-1/2} U_k S_k^{1/2}.

Trained: the auxiliary tensors, all but the one in the middle. This central tensor, which holds nearly all values (as
many as W, if nothing is cut off), is frozen; still every entry of W moves.
Start: the exact decomposition of the pretrained matrix, hence the base model; with ``bond``, the largest d_k, within
sqrt(sum_k eps_k^2) of it in Frobenius norm, eps_k^2 the sum of the squared singular values dropped at bond k.

Dimension squeezing: ``squeeze`` shortens by one the bond, of all matrices, where that costs least: the error is its
smallest singular value. ``squeeze_and_tune`` fine-tunes after every cut, until the measured gap is too large.

Factors are balanced, the smallest at the ends, and mirrored between rows and columns: 768 = 3 4 4 4 4 and 4 4 4 4 3.
A product with an activation goes through the chain or through W rebuilt from it, whichever takes fewer multiplications:
the chain when bonds are cut short, W when they are long and tokens many.

The chain replaces W altogether; the pretrained matrix is kept beside it for removal alone. The chain has no coefficient
of its own, as every tensor holds part of W. The coefficient c here acts on what it has learned: W + c (W_chain - W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, FreeDelta, Wrapper, find

Factors = tuple[Sequence[int], Sequence[int]]
"""i_1 .. i_n of the rows and j_1 .. j_n of the columns."""


def factorize(width: int, count: int) -> list[int]:
    """``count`` factors of a width, as equal as its primes allow, the smallest at the ends."""
    factors, rest, prime, primes = [1] * count, width, 2, []
    while rest > 1:
        while rest % prime == 0:
            primes.append(prime)
            rest //= prime
        prime += 1
    for prime in reversed(primes):
        factors.sort()
        factors[0] *= prime
    factors.sort()
    return factors[::2] + factors[1::2][::-1]


def decompose(
    matrix: Tensor, rows: Sequence[int], columns: Sequence[int], bonds: Sequence[int] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """T_1 .. T_n and the singular values at the bonds 1 .. n - 1; ``bonds``: the most that is kept of each."""
    n = len(rows)
    rest = matrix.reshape(*rows, *columns).permute([k + side for k in range(n) for side in (0, n)])
    cores, spectra = [], [matrix.new_ones(1)]
    for k in range(n - 1):
        shape = (len(spectra[-1]), rows[k], columns[k])
        U, S, Vt = torch.linalg.svd(rest.reshape(prod(shape), -1), full_matrices=False)
        kept = slice(None if bonds is None else bonds[k])
        cores.append(U[:, kept].reshape(*shape, -1))
        spectra.append(S[kept])
        rest = S[kept, None] * Vt[kept]
    cores.append(rest.reshape(len(spectra[-1]), rows[-1], columns[-1], 1))
    spectra.append(matrix.new_ones(1))
    tensors = [
        inverse_root(left)[:, None, None, None] * core * right.sqrt()
        for left, core, right in zip(spectra[:-1], cores, spectra[1:], strict=True)
    ]
    return tensors, spectra[1:-1]


def inverse_root(values: Tensor) -> Tensor:
    """S^{-1/2}, 0 for values that are 0 up to rounding: their directions take no part in the matrix."""
    floor = values[0] * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > floor, values.rsqrt(), 0.0)


def rebuild(tensors: Sequence[Tensor]) -> Tensor:
    """W (I, J) from its chain."""
    W = tensors[0]
    for T in tensors[1:]:
        W = torch.tensordot(W, T, 1)
    n = len(tensors)
    order = [2 * k + side for side in (0, 1) for k in range(n)]
    return (
        W.reshape([size for T in tensors for size in T.shape[1:3]])
        .permute(order)
        .reshape(prod(T.shape[1] for T in tensors), -1)
    )


def contract(tensors: Sequence[Tensor], x: Tensor) -> Tensor:
    """x (..., J) -> W x (..., I), tensor by tensor."""
    state = x.reshape(-1, 1, 1, x.shape[-1])  # (N, i_1 .. i_{k-1}, d_{k-1}, j_k .. j_n)
    for T in tensors:
        parts = state.unflatten(-1, (T.shape[2], -1))
        state = torch.einsum("npdjr,dije->npier", parts, T).flatten(1, 2)
    return state.reshape(*x.shape[:-1], -1)


class MPO(Wrapper):
    """A module whose weight (I, J) is a chain of tensors."""

    base: nn.Linear | nn.Embedding
    central: Tensor

    def __init__(self, base: nn.Linear | nn.Embedding, factors: Factors, bond: int | None) -> None:
        super().__init__(base)
        self.rows, self.columns = factors
        self.middle = len(self.rows) // 2
        self.register_buffer("central", None)
        self.take(base.weight, None if bond is None else [bond] * (len(self.rows) - 1))

    def take(self, matrix: Tensor, bonds: Sequence[int] | None) -> None:
        """Become the chain of this matrix, in the canonical gauge."""
        with torch.no_grad():
            tensors, _ = decompose(widened(matrix), self.rows, self.columns, bonds)
        self.keep([T.to(matrix.dtype).contiguous() for T in tensors])

    def keep(self, tensors: list[Tensor]) -> None:
        """Hold these tensors."""
        self.central = tensors.pop(self.middle)
        self.auxiliary = nn.ParameterList(tensors)

    def tensors(self) -> list[Tensor]:
        """T_1 .. T_n."""
        return [*self.auxiliary[: self.middle], self.central, *self.auxiliary[self.middle :]]

    def bonds(self) -> list[int]:
        """d_1 .. d_{n-1}."""
        return [T.shape[-1] for T in self.tensors()[:-1]]

    def weight(self) -> Tensor:
        """W at strength c, (I, J)."""
        W = rebuild(self.tensors())
        return W if self.strength == 1.0 else torch.lerp(self.base.weight, W, self.strength)

    def spectra(self) -> list[Tensor]:
        """Singular values at the bonds of the chain as it is now."""
        with torch.no_grad():
            return decompose(widened(rebuild(self.tensors())), self.rows, self.columns, self.bonds())[1]

    def merged(self) -> dict[str, Tensor]:
        return {"weight": self.weight()}


class MPOLinear(MPO):
    """A linear layer on a chain; its bias stays."""

    base: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        if self.strength == 1.0 and self.short(x.numel() // x.shape[-1]):
            y = contract(self.tensors(), x)
            return y if self.base.bias is None else y + self.base.bias
        return F.linear(x, self.weight(), self.base.bias)

    def short(self, tokens: int) -> bool:
        """Whether the chain on so many activations takes fewer multiplications than rebuilding W and using it."""
        through, rebuilding = 0, 0
        for k, T in enumerate(self.tensors()):
            done = prod(self.rows[:k])
            through += done * T.numel() * prod(self.columns[k + 1 :])
            rebuilding += done * prod(self.columns[:k]) * T.numel() if k else 0
        return tokens * through < rebuilding + tokens * prod(self.rows) * prod(self.columns)


class MPOEmbedding(MPO):
    """An embedding table on a chain."""

    base: nn.Embedding

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight())


def widened(tensor: Tensor) -> Tensor:
    """In float32 at least: half precision has no decomposition."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class MPOP(Adapter):
    """Chains of tensors in place of chosen matrices. ``chain_rate``: their step size relative to that of the rest."""

    mergeable = True
    chain_rate = 1.0

    def chains(self) -> dict[str, MPO]:
        """Path -> chain."""
        return {path: site for path, site in self.sites().items() if isinstance(site, MPO)}

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        chains = [p for site in self.chains().values() for p in site.auxiliary]
        rest = [p for site in self.sites().values() if isinstance(site, FreeDelta) for p in site.parameters()]
        groups: list[dict[str, Any]] = [{"params": chains, "lr": self.chain_rate * learning_rate}, {"params": rest}]
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0)

    def squeeze(self, cuts: int = 1) -> list[tuple[str, int, float]]:
        """Shorten so many bonds by one, the cheapest first; (path, bond from 1, error ||W - W_cut||_F) of each.

        Optimizers made before know nothing of the new tensors; ``fit`` makes its own.
        """
        chains = self.chains()
        spectra = {path: site.spectra() for path, site in chains.items()}
        done = []
        for _ in range(cuts):
            costs = [
                (float(S[-1]), path, k) for path, all_S in spectra.items() for k, S in enumerate(all_S) if len(S) > 1
            ]
            if not costs:
                raise AdapterError("every bond has dimension 1: there is nothing left to squeeze")
            error, path, k = min(costs)
            site = chains[path]
            bonds = site.bonds()
            bonds[k] -= 1
            site.take(rebuild(site.tensors()), bonds)
            spectra[path] = site.spectra()
            done.append((path, k + 1, error))
        return done

    def squeeze_and_tune(
        self,
        batches: Callable[[], Iterable[Any]],
        measure: Callable[[], float],
        gap: float,
        cuts: int = 1,
        learning_rate: float | None = None,
    ) -> int:
        """Squeeze by ``cuts`` and fine-tune on ``batches()`` while ``measure()``, a loss, rises by at most ``gap``.

        The number of rounds that were kept; the round that went too far is taken back.
        """
        start, rounds = measure(), 0
        while any(d > 1 for site in self.chains().values() for d in site.bonds()):
            before = self.state_dict()
            self.squeeze(cuts)
            self.fit(batches(), learning_rate)
            if measure() - start > gap:
                self.load_state_dict(before)
                break
            rounds += 1
        return rounds

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As usual, but a chain takes over bonds of other dimensions too."""
        for path, site in self.chains().items():
            shapes = [tuple(state[name].shape) for name in self.names(path, site) if name in state]
            now = [tuple(T.shape) for T in site.tensors()]
            links = zip([1, *[d for *_, d in shapes]], [*[shape[0] for shape in shapes], 1], strict=True)
            same = [shape[1:3] for shape in shapes] == [shape[1:3] for shape in now]
            if shapes != now and same and all(left == right for left, right in links):
                site.keep([site.central.new_empty(shape) for shape in shapes])
        super().load_state_dict(state)

    @staticmethod
    def names(path: str, site: MPO) -> list[str]:
        """Names of T_1 .. T_n in a state."""
        outer = [f"{path}.auxiliary.{k}" for k in range(len(site.auxiliary))]
        return [*outer[: site.middle], f"{path}.central", *outer[site.middle :]]


def attach(
    model: nn.Module,
    *,
    tensors: int = 5,
    bond: int | None = None,
    factors: Mapping[tuple[int, int], Factors] | None = None,
    train_rest: bool = False,
    chain_rate: float = 1.0,
    targets: Sequence[str] = ("embed", "q", "k", "v", "o", "up", "down", "pooler"),
) -> MPOP:
    """Put n = ``tensors`` in place of the weight of every linear layer and embedding named in ``targets``.

    ``bond`` cuts the chains to a largest dimension; ``factors`` gives rows and columns of weights of a shape (I, J).
    ``train_rest`` trains all that has no chain as well, with a step size 1 / ``chain_rate`` times theirs.
    """
    if tensors < 3 or tensors % 2 == 0:
        raise AdapterError(f"tensors is {tensors}; it must be odd and at least 3, so that there is one in the middle")
    if (bond is not None and bond < 1) or chain_rate <= 0:
        raise AdapterError(f"bond is {bond}, chain_rate {chain_rate}; need 1 or more, and more than 0")
    modules = find(model, targets)
    sites: dict[str, MPO] = {}
    for path, module in modules.items():
        if not isinstance(module, nn.Linear | nn.Embedding):
            raise AdapterError(f"{path} is a {type(module).__name__}; chains replace linear layers and embeddings")
        shape = (module.weight.shape[0], module.weight.shape[1])
        rows, columns = (factors or {}).get(shape) or (factorize(shape[0], tensors), factorize(shape[1], tensors)[::-1])
        if (prod(rows), prod(columns), len(rows), len(columns)) != (*shape, tensors, tensors):
            raise AdapterError(f"factors {rows} and {columns} of {path} are not {tensors} each that give {shape}")
        sites[path] = (MPOLinear if isinstance(module, nn.Linear) else MPOEmbedding)(module, (rows, columns), bond)
    chained = {f"{path}.weight" for path in sites}
    rest = [name for name, _ in model.named_parameters() if train_rest and name not in chained]
    adapter = MPOP(model)
    adapter.chain_rate = chain_rate
    for name in rest:
        adapter.reparameterize(name, FreeDelta(model.get_parameter(name)))
    for path, site in sites.items():
        adapter.replace(path, site)
    return adapter
