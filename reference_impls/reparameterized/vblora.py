r"""VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks.

Li, Han, Ji; NeurIPS 2024; arXiv 2405.15179, sections 3.2 to 3.4, equation 3.3.

    h = W0 x + bias + B A dropout(x),   W0 in R^{d_out x d_in} frozen,  A in R^{r x d_in},  B in R^{d_out x r}
    every row of A and column of B is cut into sub-vectors u in R^b, and every u comes from one bank V in R^{h x b}:
    u = sum_s w_s V_s,   w = softmax(TopK(sigma, k)),   TopK(sigma, k)_s = sigma_s among the k largest, else -infinity

Trained: the bank, once for the whole model, and the logits sigma in R^h of every sub-vector, r (d_in + d_out) / b of
them a matrix. The k vectors are chosen anew in every forward pass; only their logits and the chosen rows of the bank
get a gradient. There is no scale alpha / r. Logits learn ten times as fast as the bank, as in the paper.
Start: V uniform in +-0.02, since both factors come from it: with V = 0 no gradient would ever arrive. Logits from
N(0, 0.01), as in the paper; in the official code 0.01 is the standard deviation. Hence near the base model, not equal.

Stored: the bank, and for every sub-vector k indices and k - 1 weights, the last one being what is missing to 1
(``compact``); the logits may be thrown away. The paper's counts are of these, not of what is trained. What was loaded
from there works but cannot be trained on, since a logit of -infinity never comes back.

Only thin factors are formed. The coefficient c acts on the change B A; in the bank the change is quadratic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, check_dropout, check_rank, find_linear


class Bank(nn.Module):
    """The vectors all sub-vectors are mixed from: V (h, b)."""

    def __init__(self, like: Tensor, vectors: int, length: int, bound: float) -> None:
        super().__init__()
        self.V = nn.Parameter(like.new_empty(vectors, length))
        nn.init.uniform_(self.V, -bound, bound)


class VectorBankLinear(DeltaLinear):
    """LoRA whose factors are mixed from a bank: logits (r, sub-vectors, h) for either factor."""

    def __init__(self, base: nn.Linear, bank: Bank, rank: int, k: int, deviation: float, dropout: float) -> None:
        super().__init__(base)
        self.rank, self.k = rank, k
        # A tuple hides the bank from module registration: it belongs to the model, once, not to every layer.
        self._shared = (bank,)
        self.dropout = nn.Dropout(dropout)
        vectors, length = bank.V.shape
        self.logits_A = nn.Parameter(base.weight.new_empty(rank, base.in_features // length, vectors))
        self.logits_B = nn.Parameter(base.weight.new_empty(rank, base.out_features // length, vectors))
        for logits in (self.logits_A, self.logits_B):
            nn.init.normal_(logits, std=deviation)

    def mixed(self, logits: Tensor) -> Tensor:
        """Rows of concatenated sub-vectors, (r, sub-vectors * b)."""
        (bank,) = self._shared
        largest, indices = logits.topk(self.k, dim=-1)  # (r, sub-vectors, k)
        return (torch.softmax(largest, dim=-1)[..., None] * bank.V[indices]).sum(-2).flatten(1)

    def delta(self, x: Tensor) -> Tensor:
        z = F.linear(self.dropout(x), self.mixed(self.logits_A))  # (..., r)
        return z @ self.mixed(self.logits_B)  # (..., d_out)

    def delta_weight(self) -> Tensor:
        return self.mixed(self.logits_B).T @ self.mixed(self.logits_A)


class VBLoRA(Adapter):
    """Low-rank factors composed from one bank of vectors."""

    mergeable = True
    family = "low-rank"
    compacted = False
    """Whether the learned part came from its stored form, which cannot be trained on."""

    def logits(self) -> dict[str, nn.Parameter]:
        """Name -> logits of every factor."""
        layers = [(path, site) for path, site in self.sites().items() if isinstance(site, VectorBankLinear)]
        named = {f"{path}.logits_A": site.logits_A for path, site in layers}
        return named | {f"{path}.logits_B": site.logits_B for path, site in layers}

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """AdamW in two groups: logits at ``learning_rate``, the bank at a tenth of it."""
        groups: list[dict[str, Any]] = [
            {"params": list(self.logits().values())},
            {"params": [self.bank().V], "lr": learning_rate / 10},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0)

    def loss(self, batch: Any) -> Tensor:
        """Task loss; AdapterError for what was loaded from its stored form."""
        if self.compacted:
            raise AdapterError(
                "loaded from its compact form, which keeps the chosen vectors alone: cannot be trained on"
            )
        return super().loss(batch)

    def bank(self) -> Bank:
        """The bank all layers share."""
        bank = self.sites()["vblora"]
        assert isinstance(bank, Bank)
        return bank

    def compact(self) -> dict[str, Tensor]:
        """What has to be stored: the bank, and k indices and k - 1 weights a sub-vector, in the smallest integers."""
        V = self.bank().V.detach()
        kind = torch.uint8 if len(V) <= 2**8 else torch.int16 if len(V) <= 2**15 else torch.int32
        state = {"vblora.V": V.clone()}
        for name, logits in self.logits().items():
            largest, indices = logits.detach().topk(self._k(), dim=-1)
            state[f"{name}.indices"] = indices.to(kind)
            state[f"{name}.weights"] = torch.softmax(largest, dim=-1)[..., :-1].clone()
        return state

    def load_compact(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``compact`` gave: logits that choose and weight the same vectors; -infinity elsewhere."""
        full = {"vblora.V": state["vblora.V"]}
        for name, logits in self.logits().items():
            weights = state[f"{name}.weights"]
            last = (1.0 - weights.sum(-1, keepdim=True)).clamp(min=0.0)
            weights = torch.cat([weights, last], dim=-1)
            empty = torch.full_like(logits, -torch.inf)
            full[name] = empty.scatter(-1, state[f"{name}.indices"].long(), weights.log())
        self.load_state_dict(full)
        self.compacted = True

    def _k(self) -> int:
        return next(site.k for site in self.sites().values() if isinstance(site, VectorBankLinear))


def attach(
    model: nn.Module,
    *,
    rank: int = 4,
    vectors: int = 256,
    length: int = 256,
    k: int = 2,
    bound: float = 0.02,
    deviation: float = 0.01,
    dropout: float = 0.0,
    targets: Sequence[str] = ("q", "v"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets`` from a bank of ``vectors`` (h) of ``length`` b.

    ``k`` vectors make a sub-vector; ``bound`` and ``deviation`` are those of bank and logits at the start.
    """
    check_rank(rank)
    check_dropout(dropout)
    if not 1 <= k <= vectors:
        raise AdapterError(f"k is {k}; with {vectors} vectors it must be from 1 to {vectors}")
    if bound <= 0:
        raise AdapterError(f"bound is {bound}; it must be positive, as a bank of zeros would never get a gradient")
    layers = find_linear(model, targets)
    for path, base in layers.items():
        if length < 1 or base.in_features % length or base.out_features % length:
            raise AdapterError(
                f"length is {length}; it must divide the {base.in_features} inputs and {base.out_features} outputs"
                f" of {path}"
            )
    bank = Bank(next(iter(layers.values())).weight, vectors, length, bound)
    adapter = VBLoRA(model)
    adapter.add("", "vblora", bank)
    for path, base in layers.items():
        adapter.replace(path, VectorBankLinear(base, bank, rank, k, deviation, dropout))
    return adapter
