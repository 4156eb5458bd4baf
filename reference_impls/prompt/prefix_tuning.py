r"""Prefix-Tuning: Optimizing Continuous Prompts for Generation.

Li, Liang; ACL-IJCNLP 2021; arXiv 2101.00190, section 4.

In every attention layer l and head, for queries Q, keys K and values V of the text, (T, d_h) each:

    softmax(Q [c P_K ; K]^T / sqrt(d_h)) [c P_V ; V],        P_K, P_V in R^{m x d_h}

Every query sees the m positions of the prefix; the causal mask is for real tokens. Over L layers and all heads the
prefix is P_theta in R^{m x 2 L d}. While training it is computed from a smaller matrix (section 4.3):

    P_theta[i] = W2 tanh(W1 P'[i] + b1) + b2,                 P' in R^{m x d},  W1 in R^{k x d},  W2 in R^{2 L d x k}

Trained: P', W1, b1, W2, b2, since training P_theta directly is unstable; or P_theta itself with ``hidden=0``. Kept
afterwards, and all that ``state_dict`` holds: P_theta. An encoder-decoder has one prefix, with an MLP of its own, for
each of its three kinds of attention. The paper's text has P' narrower than d; its code, followed here, gives it width
d and makes k the MLP's hidden width.

Start: the framework's own for P' and the MLP. With few examples, better the activations of real words: ``words`` fits
the MLP to the keys and values that the frozen model computes for them (500 steps of Adam on the squared error).
Zero keys and values are no identity: a slot whose score is 0 still takes its share of the softmax.

The prefix stands left of the text, so in a model of one stack learned positions of the text begin at m.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Site


class Reparameterization(nn.Module):
    """P' and the MLP that makes P_theta of it, one slice of W2's rows a time."""

    def __init__(self, like: Tensor, length: int, d: int, hidden: int, width: int) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.embed = nn.Embedding(length, d, **place)  # P'
        self.inner = nn.Linear(d, hidden, **place)  # W1, b1
        self.outer = nn.Linear(hidden, width, **place)  # W2, b2

    def forward(self, columns: slice) -> Tensor:
        """The given columns of P_theta, (m, columns)."""
        z = torch.tanh(self.inner(self.embed.weight))  # (m, k)
        return F.linear(z, self.outer.weight[columns], self.outer.bias[columns])


class Prefix(Site):
    """Keys and values of m made-up positions, for the attention layers of one kind."""

    def __init__(self, like: Tensor, length: int, layers: int, d: int, heads: int, inner: int, hidden: int) -> None:
        super().__init__()
        self.length, self.layers, self.heads, self.inner = length, layers, heads, inner
        width = layers * 2 * inner
        self.reparameterization = Reparameterization(like, length, d, hidden, width) if hidden else None
        self.P = None if hidden else nn.Parameter(like.new_empty(length, width).normal_())
        self.dropout = nn.Dropout(0.0)

    def forward(self, layer: int) -> tuple[Tensor, Tensor]:
        """c P_K and c P_V of one layer, (h, m, d_h) each."""
        both = self.dropout(self.strength * self.rows(layer))  # (m, 2 h d_h)
        k, v = both.unflatten(-1, (2, self.heads, -1)).permute(1, 2, 0, 3)
        return k, v

    def rows(self, layer: int) -> Tensor:
        """One layer's columns of P_theta, (m, 2 h d_h): keys, then values."""
        columns = slice(layer * 2 * self.inner, (layer + 1) * 2 * self.inner)
        return self.reparameterization(columns) if self.P is None else self.P[:, columns]  # type: ignore[misc]

    def whole(self) -> Tensor:
        """P_theta, (m, L 2 h d_h)."""
        return torch.cat([self.rows(layer) for layer in range(self.layers)], dim=-1)

    def drop(self) -> None:
        """Keep P_theta alone."""
        if self.reparameterization is not None:
            self.P = nn.Parameter(self.whole().detach())
            self.reparameterization = None

    def join(self, layer: int, _: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Pre-hook on an attention core: the layer's prefix joins keys and values in front."""
        return put_in_front(*self(layer), *args)


def put_in_front(
    prefix_k: Tensor, prefix_v: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Keys and values (B, h, S, d_h) behind those of a prefix, (h, m, d_h) or (B, h, m, d_h); the bias grows by m."""
    batch = (len(q), -1, -1, -1)
    k = torch.cat([prefix_k.expand(batch), k], dim=2)
    v = torch.cat([prefix_v.expand(batch), v], dim=2)
    # No position bias and no mask on a prefix: every query may look at all of it.
    return q, k, v, None if bias is None else F.pad(bias, (prefix_k.shape[-2], 0))


class PrefixTuning(Adapter):
    """A prefix of learned keys and values in every attention layer."""

    def drop_reparameterization(self) -> None:
        """Throw P' and the MLP away and keep what they compute; training may go on, on P_theta itself."""
        for prefix in self.prefixes().values():
            prefix.drop()

    def prefixes(self) -> dict[str, Prefix]:
        """The prefixes by place: one, or three in an encoder-decoder."""
        return {name: site for name, site in self.sites().items() if isinstance(site, Prefix)}

    def state_dict(self) -> dict[str, Tensor]:
        """P_theta in place of the reparameterization, which no one needs after training."""
        state = super().state_dict()
        for name, prefix in self.prefixes().items():
            state = {key: t for key, t in state.items() if not key.startswith(f"{name}.reparameterization.")}
            state[f"{name}.P"] = prefix.whole().detach().clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a prefix; a reparameterization goes, since P_theta does not say what it was made of."""
        kept = {prefix: (prefix.reparameterization, prefix.P) for prefix in self.prefixes().values()}
        self.drop_reparameterization()
        try:
            super().load_state_dict(state)
        except AdapterError:
            for prefix, (reparameterization, rows) in kept.items():
                prefix.reparameterization, prefix.P = reparameterization, rows
            raise


def attach(
    model: nn.Module,
    *,
    length: int = 10,
    hidden: int = 512,
    dropout: float = 0.0,
    words: Sequence[int] = (),
) -> Adapter:
    """A prefix of ``length`` positions; ``hidden``: width of the MLP it is computed from, 0 for none.

    ``words``: as many token ids, on whose activations in a decoder the prefix starts.
    """
    if length < 0 or hidden < 0:
        raise AdapterError(f"length {length}, hidden {hidden}: both must be 0 or more")
    activations = real_activations(model, words, length) if words else None
    adapter = PrefixTuning(model)
    install(adapter, length, hidden, dropout)
    if isinstance(getattr(model, "stack", None), nn.Module):
        adapter.hook("stack.positions", post=partial(shifted, length))
    if activations is not None:
        start_from(adapter.prefixes()["stack.prefix"], activations)
    return adapter


def install(adapter: Adapter, length: int, hidden: int, dropout: float = 0.0) -> None:
    """Give every kind of attention its prefix, and every core of that kind the hook that puts it in front."""
    for (stack, kind), cores in kinds_of_attention(adapter.model).items():
        attention = adapter.model.get_submodule(cores[0].removesuffix(".core"))
        k, heads = attention.get_parameter("k.weight"), int(attention.heads)  # type: ignore[arg-type]
        prefix = Prefix(k, length, len(cores), k.shape[1], heads, k.shape[0], hidden)
        prefix.dropout.p = dropout
        adapter.add(stack, "prefix" if kind == "attention" else f"prefix_{kind}", prefix)
        for layer, core in enumerate(cores):
            adapter.hook(core, pre=partial(prefix.join, layer))


def kinds_of_attention(model: nn.Module) -> dict[tuple[str, str], list[str]]:
    """(stack, attention or cross) -> its attention cores by layer; AdapterError when there is none."""
    found: dict[tuple[str, str], list[str]] = {}
    for path, _ in model.named_modules():
        if match := re.fullmatch(r"(.+)\.blocks\.\d+\.(attention|cross)\.core", path):
            found.setdefault((match[1], match[2]), []).append(path)
    if not found:
        raise AdapterError(f"{type(model).__name__} has no attention for a prefix to stand in")
    return found


def shifted(length: int, positions: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    """Post-hook on learned positions: the text begins at ``length``."""
    if not hasattr(positions, "weight"):
        return output
    (x,) = args
    rows: Tensor = positions.weight[length : length + x.shape[1]]  # type: ignore[index]
    if len(rows) < x.shape[1]:
        raise AdapterError(f"a prefix of {length} and {x.shape[1]} tokens are more positions than the model has")
    return x + rows


def real_activations(model: nn.Module, words: Sequence[int], length: int) -> Tensor:
    """Keys and values the frozen model computes for ``words``, laid out as P_theta: (m, L 2 h d_h)."""
    embed, stack = getattr(model, "embed", None), getattr(model, "stack", None)
    if not isinstance(embed, nn.Embedding) or not getattr(stack, "causal", False):
        raise AdapterError("words: only in a decoder is a prefix what real words in front of the text would be")
    if len(words) != length:
        raise AdapterError(f"words: {len(words)} token ids for a prefix of length {length}; give one for each position")
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.extend(x[0].transpose(0, 1).flatten(1) for x in args[1:3])  # (m, h d_h) each

    (cores,) = kinds_of_attention(model).values()
    handles = [model.get_submodule(core).register_forward_pre_hook(keep) for core in cores]
    tokens = torch.tensor([list(words)], device=embed.weight.device)
    with torch.no_grad():
        stack(embed(tokens), torch.ones_like(tokens, dtype=torch.bool))  # type: ignore[misc]
    for handle in handles:
        handle.remove()
    return torch.cat(seen, dim=-1)


def start_from(prefix: Prefix, activations: Tensor, steps: int = 500, learning_rate: float = 1e-4) -> None:
    """Fit the reparameterization to ``activations`` by squared error; without one, take them over."""
    if prefix.P is not None:
        with torch.no_grad():
            prefix.P.copy_(activations)
        return
    optimizer = torch.optim.Adam(prefix.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(prefix.whole(), activations).backward()
        optimizer.step()
    optimizer.zero_grad()
