r"""Trainable tokens: chosen rows of the embedding table.

A tuner of the PEFT library (``TrainableTokensConfig``, February 2025) without a paper: its code is the definition.

    W'[i_j] = W[i_j] + c (D[j] - W[i_j]),  j = 1 .. k;     W'[v] = W[v] for every other token v
    W in R^{V x d} frozen,  I = {i_1 .. i_k} the chosen tokens,  D in R^{k x d}
    embed(v) = W'[v];   with a tied head also logits = W' h + b

Trained: D, k d values whether or not a head shares the table; the gradient of D is then the sum of both sides. The
tokens must exist: enlarging vocabulary and table is another step, before this one.
Start: D = W[I], the base model; or standard normal rows, which is not. D holds rows and no difference, so that what was
learned keeps its meaning when the rest of the table, or the rows themselves, are made anew.

Nothing of the table's size is formed: rows are looked up in W and, where the token is a chosen one, in D; a tied head
writes k columns over its logits. The coefficient c leads from the base row through D on a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, find


class TokenEmbedding(Wrapper):
    """An embedding table with rows of its own for the tokens ``ids``, (k,) in order."""

    base: nn.Embedding
    ids: Tensor

    def __init__(self, base: nn.Embedding, ids: Tensor, init_weights: bool) -> None:
        super().__init__(base)
        self.register_buffer("ids", ids.to(base.weight.device))
        rows = base.weight.detach()[self.ids]
        self.D = nn.Parameter(rows if init_weights else torch.randn_like(rows))

    def rows(self) -> Tensor:
        """W'[I] at strength c, (k, d)."""
        if self.strength == 1.0:
            return self.D
        kept = self.base.weight[self.ids]
        return kept + self.strength * (self.D - kept)

    def forward(self, tokens: Tensor) -> Tensor:
        place = torch.searchsorted(self.ids, tokens).clamp(max=len(self.ids) - 1)
        chosen = F.embedding(place, self.rows())
        scale = getattr(self.base, "embed_scale", None)  # models that scale what they look up, as Gemma
        if scale is not None:
            chosen = chosen * scale
        return torch.where((self.ids[place] == tokens)[..., None], chosen, self.base(tokens))

    def support(self, base: Tensor) -> Tensor:
        """Where the table may change, in the shape of ``base``."""
        return torch.zeros_like(base, dtype=torch.bool).index_fill(0, self.ids, True)

    def merged(self) -> dict[str, Tensor]:
        return {"weight": self.base.weight.index_copy(0, self.ids, self.rows())}


class TiedHead(Wrapper):
    """An output projection that shares the table, and so the rows learned for it."""

    base: nn.Linear

    def __init__(self, base: nn.Linear, embedding: TokenEmbedding) -> None:
        super().__init__(base)
        # A tuple hides the embedding from module registration: its rows are trained and saved once.
        self._embedding = (embedding,)

    def forward(self, x: Tensor) -> Tensor:
        (embedding,) = self._embedding
        bias = None if self.base.bias is None else self.base.bias[embedding.ids]
        return self.base(x).index_copy(-1, embedding.ids, F.linear(x, embedding.rows(), bias))

    def merged(self) -> dict[str, Tensor]:
        (embedding,) = self._embedding
        return embedding.merged()


class TrainableTokens(Adapter):
    """Trained rows of an embedding table."""

    mergeable = True
    family = "sparse"

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over rows that were learned for the same tokens; AdapterError for those of others."""
        for path, site in self.sites().items():
            ids = state.get(f"{path}.ids")
            if isinstance(site, TokenEmbedding) and ids is not None and ids.tolist() != site.ids.tolist():
                raise AdapterError(f"these rows belong to the tokens {ids.tolist()}, not {site.ids.tolist()}")
        super().load_state_dict(state)


def attach(
    model: nn.Module, *, token_indices: Sequence[int], init_weights: bool = True, embedding: str = "embed"
) -> Adapter:
    """Train the rows of ``token_indices`` in the table named ``embedding``, and with them a head that shares it.

    ``init_weights`` starts them at the table's rows, otherwise they are standard normal.
    """
    tables = find(model, [embedding])
    if len(tables) > 1:
        raise AdapterError(f"several modules are named {embedding}: {', '.join(tables)}")
    ((path, table),) = tables.items()
    if not isinstance(table, nn.Embedding):
        raise AdapterError(f"{path} is a {type(table).__name__}; trainable tokens are rows of an embedding")
    check(table, token_indices)
    heads = {
        name: m for name, m in model.named_modules() if m is not table and getattr(m, "weight", None) is table.weight
    }
    for name, head in heads.items():
        if not isinstance(head, nn.Linear):
            raise AdapterError(f"{name}, which shares the table, is a {type(head).__name__} and no linear layer")
    adapter = TrainableTokens(model)
    site = TokenEmbedding(table, torch.tensor(sorted(token_indices)), init_weights)
    adapter.replace(path, site)
    for name, head in heads.items():
        adapter.replace(name, TiedHead(head, site))
    return adapter


def check(table: nn.Embedding, token_indices: Sequence[int]) -> None:
    """AdapterError for tokens that the table has no trainable rows for."""
    if not token_indices or len(set(token_indices)) < len(token_indices):
        raise AdapterError(f"token_indices is {list(token_indices)}; it must name tokens, each once")
    wrong = [i for i in token_indices if not 0 <= i < table.num_embeddings or i == table.padding_idx]
    if wrong:
        raise AdapterError(
            f"token_indices contains {wrong}; the table has rows 0 to {table.num_embeddings - 1}, and padding "
            f"({table.padding_idx}) is never trained"
        )
    if table.max_norm is not None:
        raise AdapterError(f"the table renormalizes its rows in place (max_norm is {table.max_norm}): it is not frozen")
