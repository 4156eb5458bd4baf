r"""MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure.

Kang, Yin; ICLR 2026; arXiv 2409.15371, sections 4.1 and 4.2, equations 2 to 7. The paper's earlier form is Bone.

    definition:  y = W0 x + b + expand(D) x,   D in R^{N x d_in}: the d_out outputs are cut into N shards, all rows of
                 shard i of expand(D) are row i of D
    efficient:   y = W0 x + b + D^T S,   S = sum_i x_i in R^r,   D in R^{r x d_out},  x_i the i-th r entries of x
    mini:        D in R^{r x m} repeated d_out / m times along the outputs
    bat:         W_{o,i}' = W_{o,i} + W_{o,i} D_o + D_o, Bone's block-affine form

The efficient form shares along the inputs, the definition along the outputs: transposed ideas with different counts,
not two ways to compute the same. Equations 4 to 6 sum chunks of length r, so that input j shares with input j + r; a
last chunk that is too short is padded with zeros. Mini and bat come from the official scripts and peft.

Trained: D alone, of every adapted layer. There is no second factor: a sum takes the place of LoRA's A.
Start: D = 0, hence the base model; its gradient is not zero there, since D is the only factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, Wrapper, check_dropout, find_linear
from reference_impls.reparameterized.bone import Bat, BatLinear, BoneLinear, check_blocks

Form = Literal["efficient", "mini", "definition", "bat"]


class MiSSLinear(BoneLinear):
    """y = W0 x + b + c D^T S, the m outputs of D repeated up to d_out (m = d_out but in the mini form)."""

    def __init__(self, base: nn.Linear, rank: int, width: int, dropout: float) -> None:
        super().__init__(base, rank)
        self.repeats = base.out_features // width
        self.dropout = nn.Dropout(dropout)
        self.D = nn.Parameter(base.weight.new_zeros(rank, width))

    def delta(self, x: Tensor) -> Tensor:
        thin = super().delta(self.dropout(x))  # (..., m)
        return thin if self.repeats == 1 else thin.repeat(*[1] * (x.ndim - 1), self.repeats)

    def delta_weight(self) -> Tensor:
        return super().delta_weight().repeat(self.repeats, 1)


class ShardLinear(DeltaLinear):
    """y = W0 x + b + c expand(D) x: one number for each shard of the outputs."""

    shard: Tensor

    def __init__(self, base: nn.Linear, shards: int, dropout: float) -> None:
        super().__init__(base)
        self.rank = shards
        self.dropout = nn.Dropout(dropout)
        self.D = nn.Parameter(base.weight.new_zeros(shards, base.in_features))
        rows = torch.arange(base.out_features, device=base.weight.device)
        # Consecutive outputs, in shards whose sizes differ by one at most.
        self.register_buffer("shard", rows * shards // base.out_features, persistent=False)

    def delta(self, x: Tensor) -> Tensor:
        return F.linear(self.dropout(x), self.D)[..., self.shard]  # (..., N) -> (..., d_out)

    def delta_weight(self) -> Tensor:
        return self.D[self.shard]


class MiSS(Adapter):
    """One trained matrix that all shards of a weight share."""

    mergeable = True
    family = "low-rank"


def attach(
    model: nn.Module,
    *,
    rank: int = 16,
    form: Form = "efficient",
    width: int = 1,
    dropout: float = 0.0,
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``.

    ``rank`` is r, or the number of shards N of the definition; ``width`` is m of the mini form.
    """
    if form not in get_args(Form):
        raise AdapterError(f"form is {form!r}; allowed: {', '.join(get_args(Form))}")
    check_dropout(dropout)
    if form == "bat" and dropout:
        raise AdapterError(f"dropout is {dropout}; bat computes a new weight and has no branch to drop inputs of")
    layers = find_linear(model, targets)
    for path, layer in layers.items():
        check_form(path, layer, rank, form, width)
    adapter = Bat(model) if form == "bat" else MiSS(model)
    for path, base in layers.items():
        adapter.replace(path, make_site(base, rank, form, width, dropout))
    return adapter


def make_site(base: nn.Linear, rank: int, form: Form, width: int, dropout: float) -> Wrapper:
    """The layer in the form chosen."""
    if form == "bat":
        return BatLinear(base, rank)
    if form == "definition":
        return ShardLinear(base, rank, dropout)
    return MiSSLinear(base, rank, width if form == "mini" else base.out_features, dropout)


def check_form(path: str, layer: nn.Linear, rank: int, form: Form, width: int) -> None:
    """AdapterError for shards that do not fit the layer."""
    if form == "definition":
        if not 1 <= rank <= layer.out_features:
            raise AdapterError(f"rank is {rank}; {path} has {layer.out_features} outputs to cut into shards")
        return
    check_blocks(path, layer, rank, form == "bat")
    if form == "mini" and (width < 1 or layer.out_features % width):
        sizes = [n for n in range(1, layer.out_features + 1) if layer.out_features % n == 0]
        raise AdapterError(
            f"width is {width}; for the {layer.out_features} outputs of {path} it must be one of {sizes}"
        )
