"""The parts all transformers here are made of. B batch, T positions, S positions attended to, d width, h heads."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.backbones.size import Size


def make_norm(size: Size) -> nn.Module:
    """The normalization of a model: layer norm, or RMS norm (no bias)."""
    return nn.LayerNorm(size.d) if size.norm == "layer" else nn.RMSNorm(size.d, eps=1e-6)


class AttentionCore(nn.Module):
    """softmax(q k^T / sqrt(d_h) + bias) v: a module of its own, so that a prefix can join the keys and values."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """q (B, h, T, d_h), k and v (B, h, S, d_h), bias broadcastable to (B, h, T, S) -> (B, h, T, d_h)."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Attention(nn.Module):
    """Multi-head attention: self-attention, or cross attention where a ``memory`` is given."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.q = nn.Linear(size.d, size.inner, bias=size.bias)
        self.k = nn.Linear(size.d, size.inner, bias=size.bias)
        self.v = nn.Linear(size.d, size.inner, bias=size.bias)
        self.core = AttentionCore()
        self.o = nn.Linear(size.inner, size.d, bias=size.bias)

    def forward(self, x: Tensor, bias: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """x (B, T, d), memory (B, S, d) -> (B, T, d)."""
        source = x if memory is None else memory
        q, k, v = self.split(self.q(x)), self.split(self.k(source)), self.split(self.v(source))
        out = self.core(q, k, v, bias)  # (B, h, T, d_h)
        return self.o(out.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """(B, T, h d_h) -> (B, h, T, d_h)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """down(act(up(x))), or gated: down(act(gate(x)) * up(x))."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        if size.gated:
            self.gate = nn.Linear(size.d, size.f, bias=size.bias)
        self.up = nn.Linear(size.d, size.f, bias=size.bias)
        self.act = nn.GELU() if not size.gated else nn.SiLU()
        self.down = nn.Linear(size.f, size.d, bias=size.bias)
        self.gated = size.gated

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.gate(x)) * self.up(x) if self.gated else self.act(self.up(x))
        return self.down(hidden)


class Block(nn.Module):
    """Attention, cross attention (decoders of an encoder-decoder) and feed-forward, each with norm and residual.

    Pre-norm: x + f(norm(x)).  Post-norm (BERT): norm(x + f(x)).
    """

    def __init__(self, size: Size, *, prenorm: bool = True, cross: bool = False) -> None:
        super().__init__()
        self.prenorm = prenorm
        self.norm1 = make_norm(size)
        self.attention = Attention(size)
        if cross:
            self.norm_cross = make_norm(size)
            self.cross = Attention(size)
        self.norm2 = make_norm(size)
        self.mlp = FeedForward(size)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        memory: Tensor | None = None,
        memory_bias: Tensor | None = None,
    ) -> Tensor:
        if not self.prenorm:
            x = self.norm1(x + self.attention(x, bias))
            return self.norm2(x + self.mlp(x))
        x = x + self.attention(self.norm1(x), bias)
        if memory is not None:
            x = x + self.cross(self.norm_cross(x), memory_bias, memory)
        return x + self.mlp(self.norm2(x))


class Positions(nn.Module):
    """Learned absolute positions, added to (B, T, d): position 0 is the first one of the sequence as it stands."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size.positions, size.d) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight[: x.shape[1]]


class RelativePositions(nn.Module):
    """One learned attention bias per head and (clipped) distance, as in T5 but with linear buckets."""

    def __init__(self, size: Size, buckets: int = 32) -> None:
        super().__init__()
        self.reach = buckets // 2
        self.weight = nn.Parameter(torch.randn(buckets, size.heads) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, d) -> bias (1, h, T, T)."""
        steps = torch.arange(x.shape[1], device=x.device)
        distance = (steps[None] - steps[:, None]).clamp(-self.reach, self.reach - 1) + self.reach
        return self.weight[distance].permute(2, 0, 1)[None]


class Stack(nn.Module):
    """Positions, blocks, norm: a sequence (B, T, d) and which of its positions are visible (B, T), in and out.

    Both come back, so that a method can lengthen the sequence in front and shorten it behind.
    """

    def __init__(self, size: Size, depth: int, *, causal: bool, prenorm: bool = True, cross: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.prenorm = prenorm
        self.positions = Positions(size) if size.positions else nn.Identity()
        self.relative = None if size.positions else RelativePositions(size)
        self.norm_in = nn.Identity() if prenorm else make_norm(size)
        self.blocks = nn.ModuleList(Block(size, prenorm=prenorm, cross=cross) for _ in range(depth))
        self.norm_out = make_norm(size) if prenorm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        visible: Tensor,
        memory: Tensor | None = None,
        memory_visible: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        x = self.norm_in(self.positions(x))
        bias = self.bias(x, visible)
        memory_bias = None if memory_visible is None else hide(memory_visible[:, None, None], x.dtype)
        for block in self.blocks:
            x = block(x, bias, memory, memory_bias)
        return self.norm_out(x), visible

    def bias(self, x: Tensor, visible: Tensor) -> Tensor:
        """Additive attention bias (B, 1 or h, T, T): invisible and, where causal, later positions are closed."""
        seen = visible[:, None, None]  # (B, 1, 1, T)
        if self.causal:
            steps = torch.arange(x.shape[1], device=x.device)
            seen = seen & (steps[None] <= steps[:, None])  # (B, 1, T, T)
        bias = hide(seen, x.dtype)
        return bias if self.relative is None else bias + self.relative(x)


def hide(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where ``seen``, minus infinity elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -math.inf)
