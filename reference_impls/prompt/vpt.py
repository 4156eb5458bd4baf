r"""VPT: Visual Prompt Tuning.

Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim; ECCV 2022; arXiv 2203.12119, section 3.

Class token x_0 in R^d, patches with positions E_0 in R^{m x d}, frozen blocks L_1 .. L_N, p prompts:

    Shallow:  [x_1, Z_1, E_1] = L_1([x_0, c P_0, E_0]),            [x_i, Z_i, E_i] = L_i([x_{i-1}, Z_{i-1}, E_{i-1}])
    Deep:     [x_i,  _ , E_i] = L_i([x_{i-1}, c P_{i-1}, E_{i-1}]),                        P_{i-1} in R^{p x d}, each i
    y = Head(x_N)

Trained: the prompts, p * d values (shallow) or N * p * d (deep), and the linear head.

Prompts stand between class token and patches and get no positions, so their order within a layer means nothing. Deep
replaces: the prompts' outputs are thrown away before every block, and the sequence stays as long as in shallow. What a
deep prompt does, it does through the norm in front of attention, which takes its length away: c > 0 means next to
nothing, and c = 0 is not the base model but p tokens that are the norm's bias.
Start: uniform in (-v, v), v = sqrt(6 / (3 s^2 + d)) with the side s of a patch: Xavier's range for the embedding of a
patch. The paper's head is new; here it starts as the model's own, which knows the classes.
Dropout acts on the prompts alone. The paper trains with SGD, warm-up and a cosine schedule.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError, Site


class VisualPrompts(Site):
    """P in R^{N x p x d}, or R^{1 x p x d} for shallow, and the hooks that put it in its place."""

    def __init__(self, projection: nn.Conv2d, layers: int, length: int, dropout: float) -> None:
        super().__init__()
        d, fan_in = projection.out_channels, projection.weight[0].numel()  # fan_in = 3 s^2
        reach = math.sqrt(6 / (fan_in + d))
        self.P = nn.Parameter(projection.weight.new_empty(layers, length, d).uniform_(-reach, reach))
        self.dropout = nn.Dropout(dropout)

    def between(self, layer: int, x: Tensor, patches: Tensor) -> Tensor:
        """[class token of x, prompts of the layer, patches], (B, 1 + p + m, d)."""
        prompts = (self.strength * self.P[layer]).expand(len(x), -1, -1)
        return torch.cat([x[:, :1], self.dropout(prompts), patches], dim=1)

    def make_visible(self, _: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Pre-hook on the stack: visible (B, 1 + m) grows by p."""
        x, visible = args
        return x, torch.cat([visible.new_ones(len(x), self.P.shape[1]), visible], dim=1)

    def enter(self, _: nn.Module, __: tuple[Tensor], tokens: Tensor) -> Tensor:
        """Post-hook on the positions: the first layer's prompts come in behind them."""
        return self.between(0, tokens, tokens[:, 1:])

    def renew(self, layer: int, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Pre-hook on a block: the last layer's prompt outputs make way for prompts of its own."""
        x, *rest = args
        return self.between(layer, x, x[:, 1 + self.P.shape[1] :]), *rest

    def leave(self, _: nn.Module, __: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Post-hook on the stack: class token and patches alone go on."""
        x, visible = output
        p = self.P.shape[1]
        return torch.cat([x[:, :1], x[:, 1 + p :]], dim=1), visible[:, p:]


class VPT(Adapter):
    """Learned tokens among the patches, and a head."""


def attach(
    model: nn.Module,
    *,
    length: int = 50,
    deep: bool = True,
    dropout: float = 0.0,
    train_head: bool = True,
) -> Adapter:
    """``length`` prompts before every block (``deep``) or before the first alone; the paper's runs have dropout 0.1."""
    projection = getattr(getattr(model, "embed", None), "project", None)
    if not isinstance(projection, nn.Conv2d):
        raise AdapterError(f"{type(model).__name__} embeds no patches: visual prompts need a vision transformer")
    if length < 0:
        raise AdapterError(f"length is {length}; it must be 0 or more")
    if not 0 <= dropout < 1:
        raise AdapterError(f"dropout is {dropout}; it must be at least 0 and below 1")
    blocks = len(model.get_submodule("stack.blocks"))  # type: ignore[arg-type]
    adapter = VPT(model)
    site = VisualPrompts(projection, blocks if deep else 1, length, dropout)
    adapter.add("", "prompts", site)
    adapter.hook("stack", pre=site.make_visible, post=site.leave)
    adapter.hook("stack.positions", post=site.enter)
    for layer in range(1, blocks if deep else 1):
        adapter.hook(f"stack.blocks.{layer}", pre=partial(site.renew, layer))
    if train_head:
        adapter.unfreeze("head")
    return adapter
