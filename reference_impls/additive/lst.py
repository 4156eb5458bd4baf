r"""LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning.

Sung, Cho, Bansal; NeurIPS 2022; arXiv 2206.06522, section 3.

A transformer r times slimmer runs beside the frozen backbone, reads its states and alone makes the prediction. With
h_0 what the backbone's first block reads and h_i the output of its block i, all in R^{T x d}, and z in R^{T x d/r}:

    z = P_0 h_0
    z = SideBlock_i(mu_i z + (1 - mu_i) P_i h_i),   mu_i = sigmoid(a_i / tau)       for every kept block i, in order
    y = P_out Norm(z)                                                               to the backbone's own frozen head

An encoder-decoder gets a side network for each stack; the decoder's attends to what the encoder's has ended in.

Trained: the side blocks (heads and hidden layers r times slimmer too), their relative positions and last norm, the
projections P_0, P_i in R^{d/r x d} and P_out in R^{d x d/r} with biases, and one number a_i a kept block. The backbone
runs without a graph: no gradient goes back through it, and of its activations only the h_i are kept, for the P_i.

Start: a_i = 0, gates half open; projections N(0, 0.01), biases 0; side blocks cut out of the backbone's. All along the
network a matrix keeps as columns what the one before it kept as rows, and of its rows the d_out/r with the largest sums
of importance; q, k and v keep the same rows, by the product of their importances, and so do gate and up. The first
columns are the embedding's most important coordinates. The importance of an entry w is its Fisher information, the
mean over examples of (d log p(y|x) / dw)^2, or its magnitude. As in the official code, rows are kept wherever in a head
they lie, and the coordinates of the residual stream change with every sublayer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError, Wrapper
from reference_impls.backbones import Size
from reference_impls.backbones.layers import Stack, hide
from reference_impls.selective.fish_mask import examples, fisher

IMPORTANCE = ("fisher", "magnitude", "random")
ATTENTION = (("norm1",), ("attention.q", "attention.k", "attention.v"), ("attention.o",))
CROSS = (("norm_cross",), ("cross.q", "cross.k", "cross.v"), ("cross.o",))
FEED_FORWARD = (("norm2",), ("mlp.gate", "mlp.up"), ("mlp.down",))


class Rung(nn.Module):
    """mu z + (1 - mu) P h: where the side network's z (B, T, d/r) meets the backbone's h (B, T, d)."""

    def __init__(self, d: int, slim: int, temperature: float) -> None:
        super().__init__()
        self.P = projection(d, slim)
        self.a = nn.Parameter(torch.zeros(1))
        self.temperature = temperature

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        mu = torch.sigmoid(self.a / self.temperature)
        return mu * z + (1 - mu) * self.P(h)


class SideMemory:
    """What the encoder's side network ended in, (B, S, d/r), for the decoder's to attend to."""

    z: Tensor


class Ladder(Wrapper):
    """A frozen stack and the side network beside it; the ``last`` one of a model makes the prediction."""

    base: Stack

    def __init__(
        self, base: Stack, size: Size, kept: Sequence[int], r: int, temperature: float, memory: SideMemory, last: bool
    ) -> None:
        super().__init__(base)
        slim = replace(size, d=size.d // r, f=size.f // r, head_dim=size.head_dim // r)
        self.P_0 = projection(size.d, slim.d)
        self.rungs = nn.ModuleList(Rung(size.d, slim.d, temperature) for _ in kept)
        self.side = Stack(slim, len(kept), causal=base.causal, cross=hasattr(base.blocks[0], "cross"))
        self.side.positions = nn.Identity()  # learned positions are in h_0; relative ones act in every attention
        self.P_out = projection(slim.d, size.d) if last else None
        for name, part in self.named_children():
            if name != "base":
                part.to(base.get_parameter("blocks.0.attention.q.weight"))
        self.memory = memory
        self.states: list[Tensor] = []

    def keep(self, _: nn.Module, __: tuple[Any, ...], h: Tensor) -> None:
        """Post-hook in front of the backbone's first block, for h_0, and on its kept blocks."""
        self.states.append(h.detach())  # h_0 may be the stack's own input, which comes from outside no_grad

    def forward(
        self, x: Tensor, visible: Tensor, memory: Tensor | None = None, memory_visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.states = []
        with torch.no_grad():
            hidden, visible = self.base(x, visible, memory, memory_visible)
        (h_0, *states), self.states = self.states, []
        z = self.P_0(h_0)
        bias = self.side.bias(z, visible)
        cross = () if memory_visible is None else (self.memory.z, hide(memory_visible[:, None, None], z.dtype))
        for rung, block, h in zip(self.rungs, self.side.blocks, states, strict=True):
            z = block(rung(z, h), bias, *cross)
        z = self.side.norm_out(z)
        if self.P_out is None:
            self.memory.z = z
            return hidden, visible
        return self.P_out(z), visible


class LST(Adapter):
    """A slim network that climbs along a frozen one."""

    has_strength = False
    family = "side-network"


def attach(
    model: nn.Module,
    *,
    reduction: int = 8,
    temperature: float = 0.1,
    layers: Sequence[int] | None = None,
    decoder_layers: Sequence[int] | None = None,
    importance: str = "fisher",
    num_samples: int = 1024,
    batches: Iterable[Any] | None = None,
) -> Adapter:
    """``reduction`` is r, ``temperature`` the gates' tau; ``layers`` are the blocks that side blocks run beside, from 0
    (None: all), ``decoder_layers`` those of the decoder where there are two stacks.

    ``importance`` is "fisher", over the first ``num_samples`` examples in ``batches``, "magnitude", or "random" where
    side blocks start afresh.
    """
    kept = choose(model, layers, decoder_layers)
    size: Size = model.size  # type: ignore[assignment]
    if reduction < 1 or any(n % reduction for n in (size.d, size.f, size.head_dim)):
        raise AdapterError(f"reduction {reduction} has to divide the widths {size.d}, {size.f} and {size.head_dim}")
    if temperature <= 0:
        raise AdapterError(f"temperature is {temperature}; it must be positive")
    scores = score(model, importance, batches, num_samples)
    adapter, memory = LST(model), SideMemory()
    columns = top(scores["embed.weight"].T, reduction) if scores else None
    for path, chosen in kept.items():
        stack: Stack = model.get_submodule(path)  # type: ignore[assignment]
        ladder = Ladder(stack, size, chosen, reduction, temperature, memory, last=path != "encoder")
        if columns is not None:
            columns = inherit(ladder, chosen, scores, path, columns, reduction)
        adapter.hook(f"{path}.norm_in", post=ladder.keep)
        for i in chosen:
            adapter.hook(f"{path}.blocks.{i}", post=ladder.keep)
        adapter.replace(path, ladder)
    return adapter


def projection(d_in: int, d_out: int) -> nn.Linear:
    """A linear layer that starts small."""
    layer = nn.Linear(d_in, d_out)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def choose(
    model: nn.Module, layers: Sequence[int] | None, decoder_layers: Sequence[int] | None
) -> dict[str, list[int]]:
    """Path of every stack -> its kept blocks, in order."""
    stacks = {path: m for path, m in model.named_children() if isinstance(m, Stack) and m.prenorm}
    if not stacks or not isinstance(model.embed, nn.Embedding):
        raise AdapterError(f"{type(model).__name__} is no pre-norm transformer over embedded tokens")
    if decoder_layers is not None and "decoder" not in stacks:
        raise AdapterError(f"{type(model).__name__} has no stack beside the one that layers is about")
    chosen = {}
    for path, stack in stacks.items():
        wanted, depth = decoder_layers if path == "decoder" else layers, len(stack.blocks)
        chosen[path] = sorted(set(range(depth) if wanted is None else wanted))
        if not chosen[path] or chosen[path][0] < 0 or chosen[path][-1] >= depth:
            raise AdapterError(f"blocks {chosen[path]} of the {path}: name at least one of 0 to {depth - 1}")
    return chosen


def score(model: nn.Module, importance: str, batches: Iterable[Any] | None, num_samples: int) -> dict[str, Tensor]:
    """Name of a tensor -> importance of its entries; empty where nothing is cut out of the backbone."""
    if importance not in IMPORTANCE:
        raise AdapterError(f"importance is one of {', '.join(IMPORTANCE)}, not {importance!r}")
    if importance == "magnitude":
        return {name: p.detach().abs() for name, p in model.named_parameters()}
    if importance == "random":
        return {}
    if batches is None or num_samples < 1:
        raise AdapterError('importance "fisher" looks at data: give batches and num_samples, or choose "magnitude"')
    return fisher(model, itertools.islice(examples(batches), num_samples))


def top(importance: Tensor, r: int) -> Tensor:
    """The n/r rows of (n, m) with the largest sums, in order."""
    return importance.sum(1).topk(len(importance) // r).indices.sort().values


@torch.no_grad()
def inherit(
    ladder: Ladder, kept: Sequence[int], scores: dict[str, Tensor], path: str, columns: Tensor, r: int
) -> Tensor:
    """Fill the side network from the backbone's stack at ``path``; the coordinates kept at its end.

    Dropped blocks are cut too: which coordinates are kept behind them depends on it.
    """
    base, side = ladder.base, ladder.side
    for i, block in enumerate(base.blocks):
        tensors, columns = cut(block, scores, f"{path}.blocks.{i}", columns, r)
        if i in kept:
            side.blocks[kept.index(i)].load_state_dict(tensors)
    side.norm_out.load_state_dict({name: p[columns] for name, p in base.norm_out.named_parameters()})
    if side.relative is not None and base.relative is not None:
        side.relative.load_state_dict(base.relative.state_dict())
    return columns


def cut(
    block: nn.Module, scores: dict[str, Tensor], path: str, columns: Tensor, r: int
) -> tuple[dict[str, Tensor], Tensor]:
    """A side block's tensors out of the backbone's block at ``path``, and the coordinates it leaves kept."""
    tensors, modules = {}, dict(block.named_modules())
    for names in (*ATTENTION, *CROSS, *FEED_FORWARD):
        group = [name for name in names if name in modules]
        rows = columns
        if any(isinstance(modules[name], nn.Linear) for name in group):
            # In float64, where a product of three squared gradients does not vanish.
            shares = [scores[f"{path}.{name}.weight"][:, columns].double() for name in group]
            rows = top(math.prod(shares[1:], start=shares[0]), r)
        for name in group:
            for key, p in modules[name].named_parameters():
                tensors[f"{name}.{key}"] = p[rows] if p.ndim == 1 else p[rows][:, columns]
        columns = rows
    return tensors, columns
