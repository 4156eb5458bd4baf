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

In a decoder the prefix takes up positions: the text begins at position m, as behind a cache of m words. The two sides
of an encoder-decoder keep theirs.
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
    """P' and the MLP that makes P_theta of it."""

    def __init__(self, like: Tensor, length: int, hidden: int, width: int) -> None:
        super().__init__()
        d = like.shape[1]
        place: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.embed = nn.Embedding(length, d, **place)  # P'
        self.inner = nn.Linear(d, hidden, **place)  # W1, b1
        self.outer = nn.Linear(hidden, width, **place)  # W2, b2

    def forward(self, columns: slice) -> Tensor:
        """The given columns of P_theta, (m, columns): a layer asks for no more of W2 than its own rows."""
        z = torch.tanh(self.inner(self.embed.weight))  # (m, k)
        return F.linear(z, self.outer.weight[columns], self.outer.bias[columns])


class Prefix(Site):
    """Keys and values of m made-up positions, for the ``layers`` attention layers of one kind."""

    def __init__(self, attention: nn.Module, layers: int, length: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        k = attention.get_parameter("k.weight")  # (h d_h, d)
        self.layers, self.heads, self.share = layers, attention.heads, 2 * len(k)
        width = layers * self.share
        self.reparameterization = Reparameterization(k, length, hidden, width) if hidden else None
        self.P = None if hidden else nn.Parameter(k.new_empty(length, width).normal_())
        self.dropout = nn.Dropout(dropout)

    def forward(self, layer: int) -> tuple[Tensor, Tensor]:
        """c P_K and c P_V of one layer, (h, m, d_h) each."""
        both = self.dropout(self.strength * self.rows(layer))  # (m, 2 h d_h)
        k, v = both.unflatten(-1, (2, self.heads, -1)).permute(1, 2, 0, 3)
        return k, v

    def rows(self, layer: int) -> Tensor:
        """One layer's columns of P_theta, (m, 2 h d_h): keys, then values."""
        columns = slice(layer * self.share, (layer + 1) * self.share)
        return self.reparameterization(columns) if self.P is None else self.P[:, columns]  # type: ignore[misc]

    def whole(self) -> Tensor:
        """P_theta, (m, L 2 h d_h)."""
        return torch.cat([self.rows(layer) for layer in range(self.layers)], dim=-1)

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
            if prefix.P is None:
                prefix.P = nn.Parameter(prefix.whole().detach())
                prefix.reparameterization = None

    def prefixes(self) -> dict[str, Prefix]:
        """The prefixes by place: one, or three in an encoder-decoder."""
        return {name: site for name, site in self.sites().items() if isinstance(site, Prefix)}

    def _learned(self) -> dict[str, Tensor]:
        """P_theta in place of the reparameterization, which no one needs after training."""
        learned = super()._learned()
        for name, prefix in self.prefixes().items():
            learned = {key: t for key, t in learned.items() if not key.startswith(f"{name}.")}
            learned[f"{name}.P"] = prefix.whole() if prefix.P is None else prefix.P
        return learned

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a prefix; a reparameterization goes, since P_theta does not say what it was made of."""
        super().load_state_dict(state)  # a state that does not fit is refused here, while there is nothing lost
        self.drop_reparameterization()
        super().load_state_dict(state)


def attach(
    model: nn.Module,
    *,
    length: int = 10,
    hidden: int = 512,
    dropout: float = 0.0,
    words: Sequence[int] = (),
) -> Adapter:
    """A prefix of ``length`` positions; ``hidden``: width of the MLP it is computed from, 0 for none.

    ``words``: as many token ids, on whose activations in a decoder the prefix starts. ``dropout`` acts on P_theta.
    """
    check(model, length, hidden, dropout)
    activations = real_activations(model, words, length) if words else None
    adapter = PrefixTuning(model)
    install(adapter, length, hidden, dropout)
    if activations is not None:
        start_from(adapter.prefixes()["stack.prefix"], activations)
    return adapter


def check(model: nn.Module, length: int, hidden: int, dropout: float = 0.0) -> None:
    """AdapterError for a model without attention, or a prefix that makes no sense."""
    if not kinds_of_attention(model):
        raise AdapterError(f"{type(model).__name__} has no attention for a prefix to stand in")
    if length < 0 or hidden < 0:
        raise AdapterError(f"length is {length}, hidden {hidden}; both must be 0 or more")
    if not 0 <= dropout < 1:
        raise AdapterError(f"dropout is {dropout}; it must be at least 0 and below 1")


def install(adapter: Adapter, length: int, hidden: int, dropout: float = 0.0) -> None:
    """Give every kind of attention its prefix, and the core of every layer the hook that puts it in front."""
    for (stack, kind), layers in kinds_of_attention(adapter.model).items():
        prefix = Prefix(adapter.model.get_submodule(layers[0]), len(layers), length, hidden, dropout)
        adapter.add(stack, "prefix" if kind == "attention" else f"prefix_{kind}", prefix)
        for layer, path in enumerate(layers):
            adapter.hook(f"{path}.core", pre=partial(prefix.join, layer))
    if is_decoder(adapter.model) and hasattr(adapter.model.get_submodule("stack.positions"), "weight"):
        adapter.hook("stack.positions", post=partial(shifted, length))


def kinds_of_attention(model: nn.Module) -> dict[tuple[str, str], list[str]]:
    """(stack, attention or cross) -> its attention layers in order."""
    found: dict[tuple[str, str], list[str]] = {}
    for path, _ in model.named_modules():
        if match := re.fullmatch(r"(.+)\.blocks\.\d+\.(attention|cross)", path):
            found.setdefault((match[1], match[2]), []).append(path)
    return found


def is_decoder(model: nn.Module) -> bool:
    """Whether the model is one stack that reads from left to right."""
    return bool(getattr(getattr(model, "stack", None), "causal", False))


def shifted(length: int, positions: nn.Module, args: tuple[Tensor], _: Tensor) -> Tensor:
    """Post-hook on learned positions: the text begins at ``length``."""
    (x,) = args
    rows: Tensor = positions.weight[length : length + x.shape[1]]  # type: ignore[index]
    if len(rows) < x.shape[1]:
        raise AdapterError(f"a prefix of {length} and {x.shape[1]} tokens are more positions than the model has")
    return x + rows


def real_activations(model: nn.Module, words: Sequence[int], length: int) -> Tensor:
    """Keys and values the frozen model computes for ``words``, laid out as P_theta: (m, L 2 h d_h)."""
    if not is_decoder(model):
        raise AdapterError("words: only in a decoder is a prefix what real words in front of the text would be")
    if len(words) != length:
        raise AdapterError(f"words: {len(words)} token ids for a prefix of length {length}; give one for each position")
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.extend(x[0].transpose(0, 1).flatten(1) for x in args[1:3])  # (m, h d_h) each

    (layers,) = kinds_of_attention(model).values()
    handles = [model.get_submodule(f"{path}.core").register_forward_pre_hook(keep) for path in layers]
    embed, stack = model.get_submodule("embed"), model.get_submodule("stack")
    tokens = torch.tensor([list(words)], device=embed.get_parameter("weight").device)
    with torch.no_grad():
        stack(embed(tokens), torch.ones_like(tokens, dtype=torch.bool))
    for handle in handles:
        handle.remove()
    return torch.cat(seen, dim=-1)


def start_from(prefix: Prefix, activations: Tensor, steps: int = 500, learning_rate: float = 1e-4) -> None:
    """Fit the MLP, P' left as drawn, to ``activations`` by squared error; without an MLP, take them over."""
    if prefix.reparameterization is None:
        prefix.P = nn.Parameter(activations)
        return
    mlp = [*prefix.reparameterization.inner.parameters(), *prefix.reparameterization.outer.parameters()]
    optimizer = torch.optim.Adam(mlp, lr=learning_rate)
    for _ in range(steps):
        prefix.zero_grad()
        F.mse_loss(prefix.whole(), activations).backward()
        optimizer.step()
    prefix.zero_grad()
