r"""UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning.

Mao, Mathias, Hou, Almahairi, Ma, Han, Yih, Khabsa; ACL 2022; arXiv 2110.07577, section 3.

LoRA, a prefix and an adapter in every layer, each with a gate on its own input x in R^{T x d}, one number per example:

    g(x) = 1/T sum_t sigmoid(w_g . x_t + b_g),   w_g in R^d

    LoRA     q = W_q x + c g_q(x) B_q A_q x,  v likewise             the gate takes the place of alpha / r
    prefix   K' = [c g_P(x) P_K ; K],  V' = [c g_P(x) P_V ; V]       P_K, P_V in R^{m x d}, from an MLP while training
    adapter  u = LN(o + h),  y = LN(o + c g_A(u) (W_up ReLU(W_down u + b_d) + b_u) + h)      o = FFN(h), one LN twice

Trained: A and B on queries and values, the prefix (through its MLP), W_down, W_up and their biases, all gates, and the
task head. Counts in the paper leave the MLP out. Without LoRA it is the paper's UniPELT (AP), with it UniPELT (APL).
Start: B = 0, A Kaiming uniform (a = sqrt 5); everything else as BERT starts, weights and embeddings from N(0, 0.02)
and biases 0. So gates begin near 1/2, and the prefix near zero. A closed gate makes nothing of LoRA and adapter, but a
prefix of zeros still takes its share of the softmax.

The mean runs over real tokens; the official code averages over padding as well, so that its outputs depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper
from reference_impls.backbones.layers import Attention, Block
from reference_impls.prompt.prefix_tuning import Prefix, PrefixTuning, check, put_in_front


class RealTokens:
    """Which tokens of the present batch are no padding, (B, T): the stack is told, the gates ask."""

    visible: Tensor

    def keep(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Pre-hook on the stack."""
        self.visible = args[1]


class Gate(nn.Module):
    """x (B, T, d) -> g(x) (B, 1, 1)."""

    def __init__(self, like: Tensor, d: int, tokens: RealTokens) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(like, d))
        self.bias = nn.Parameter(like.new_zeros(1))
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        opened = torch.sigmoid(x @ self.weight + self.bias)  # (B, T)
        real = self.tokens.visible.to(x.dtype)
        return ((opened * real).sum(1) / real.sum(1))[:, None, None]


class GatedLoRA(Wrapper):
    """A linear layer plus c g(x) B A x."""

    def __init__(self, base: nn.Linear, rank: int, tokens: RealTokens) -> None:
        super().__init__(base)
        self.A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.gate = Gate(base.weight, base.in_features, tokens)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.strength * self.gate(x) * F.linear(F.linear(x, self.A), self.B)


class GatedPrefixAttention(Wrapper):
    """Self-attention with g(x) times a prefix, which holds the strength c, in front of keys and values."""

    base: Attention

    def __init__(self, base: Attention, prefix: Callable[[], tuple[Tensor, Tensor]], tokens: RealTokens) -> None:
        super().__init__(base)
        self.prefix = prefix
        self.gate = Gate(base.k.weight, base.k.in_features, tokens)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        base, g = self.base, self.gate(x)[..., None]  # (B, 1, 1, 1)
        q, k, v = base.split(base.q(x)), base.split(base.k(x)), base.split(base.v(x))
        prefix_k, prefix_v = self.prefix()  # (h, m, d_h)
        out = base.core(*put_in_front(g * prefix_k, g * prefix_v, q, k, v, bias))
        return base.o(out.transpose(1, 2).flatten(2))


class GatedAdapterNorm(Wrapper):
    """The norm behind a feed-forward sublayer, with a gated bottleneck adapter between two uses of it."""

    base: nn.LayerNorm

    def __init__(self, base: nn.LayerNorm, bottleneck: int, tokens: RealTokens) -> None:
        super().__init__(base)
        like, (d,) = base.weight, base.normalized_shape
        self.down = nn.Parameter(normal(like, bottleneck, d))
        self.down_bias = nn.Parameter(like.new_zeros(bottleneck))
        self.up = nn.Parameter(normal(like, d, bottleneck))
        self.up_bias = nn.Parameter(like.new_zeros(d))
        self.gate = Gate(like, d, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """x is the residual sum o + h."""
        u = self.base(x)
        change = F.linear(F.relu(F.linear(u, self.down, self.down_bias)), self.up, self.up_bias)
        return self.base(x + self.strength * self.gate(u) * change)


class UniPELT(PrefixTuning):
    """Gated LoRA, prefix and adapter in every layer."""


def attach(
    model: nn.Module,
    *,
    rank: int = 8,
    length: int = 10,
    hidden: int = 512,
    bottleneck: int = 48,
    train_head: bool = True,
) -> Adapter:
    """``rank`` of LoRA, ``length`` and MLP width ``hidden`` of the prefix, ``bottleneck`` of the adapter.

    A rank, length or bottleneck of 0 leaves that part out; hidden = 0 trains the prefix itself.
    """
    check(model, length, hidden)
    if min(rank, bottleneck) < 0:
        raise AdapterError(f"rank is {rank}, bottleneck {bottleneck}; both must be 0 or more")
    blocks = {p: m for p, m in model.named_modules() if isinstance(m, Block) and not m.prenorm}
    if not blocks or any(not path.startswith("stack.") for path in blocks):
        raise AdapterError(f"{type(model).__name__} is no stack of post-norm blocks, which UniPELT's adapter needs")
    adapter, tokens = UniPELT(model), RealTokens()
    adapter.hook("stack", pre=tokens.keep)
    prefix = small(Prefix(next(iter(blocks.values())).attention, len(blocks), length, hidden))
    if length:
        adapter.add("stack", "prefix", prefix)
    for layer, (path, block) in enumerate(blocks.items()):
        attention = block.attention
        if rank:
            adapter.replace(f"{path}.attention.q", GatedLoRA(attention.q, rank, tokens))
            adapter.replace(f"{path}.attention.v", GatedLoRA(attention.v, rank, tokens))
        if length:
            adapter.replace(f"{path}.attention", GatedPrefixAttention(attention, partial(prefix, layer), tokens))
        if bottleneck:
            adapter.replace(f"{path}.norm2", GatedAdapterNorm(block.norm2, bottleneck, tokens))  # type: ignore[arg-type]
    if train_head:
        adapter.unfreeze("head")
    return adapter


def small(prefix: Prefix) -> Prefix:
    """The prefix as BERT starts its layers."""
    with torch.no_grad():
        for name, parameter in prefix.named_parameters():
            parameter.zero_() if name.endswith("bias") else parameter.normal_(std=0.02)
    return prefix


def normal(like: Tensor, *shape: int) -> Tensor:
    """Entries from N(0, 0.02), where and as precise as ``like`` is."""
    return like.new_empty(shape).normal_(std=0.02)
