r"""LLM-Adapters: An Adapter Family for Parameter-Efficient Fine-Tuning of Large Language Models.

Hu, Wang, Lan, Xu, Lim, Bing, Xu, Poria, Lee; EMNLP 2023; arXiv 2304.01933. Official code: AGI-Edgerunners/LLM-Adapters.

The bottleneck adapters of the framework, each bound to one linear layer W in R^{d_out x d_in} instead of a sublayer.
With width b, nonlinearity f and scale s, no biases and no norm:

    series, input side     y = W (x + s U f(D x)) + bias                D in R^{b x d_in},   U in R^{d_in x b}
    series, output side    y = z + s U f(D z),   z = W x + bias         D in R^{b x d_out},  U in R^{d_out x b}
    parallel               y = W x + bias + s U f(D x)                  D in R^{b x d_in},   U in R^{d_out x b}

The side of a series adapter goes with the layer's name: input for the first matrices of a feed-forward network (up,
gate), output for its last one (down) and for that of attention (o): the entrance or the exit of a sublayer. The paper
finds series adapters best behind the feed-forward network, ``targets`` down, and parallel ones best inside it, up and
down.

Trained: D and U of every adapted layer; with scaling = "learned" s too, one number a layer, from 1.
Start: "bert", the default, draws D and U from N(0, 0.02^2), as BERT's own layers: both get a gradient at once, and the
model is nearly the base and not quite. "mam_adapter" has U = 0, the base model exactly, and D Kaiming uniform (a = sqrt
5): entries in +-1/sqrt of its input width.

Bottlenecks compute in float32 where the model is in half precision (the official code has 8-bit layers in mind), and
the result is cast back. LoRA and prefixes, the other branches of the framework, are methods of their own here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, check_dropout, find_linear

Side = Literal["input", "output", "parallel"]
SERIES_SIDE: Mapping[str, Side] = {"up": "input", "gate": "input", "down": "output", "o": "output"}
NONLINEARITIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}
INITS = ("bert", "mam_adapter")


class LinearWithBottleneck(Wrapper):
    """A linear layer and a bottleneck before, behind or beside it."""

    base: nn.Linear

    def __init__(
        self,
        base: nn.Linear,
        side: Side,
        bottleneck: int,
        f: Callable[[Tensor], Tensor],
        scaling: float | Literal["learned"],
        init: str,
        dropout: float,
    ) -> None:
        super().__init__(base)
        self.side, self.f = side, f
        width_in = base.out_features if side == "output" else base.in_features
        width_out = base.in_features if side == "input" else base.out_features
        like = base.weight.new_empty(0, dtype=wide(base.weight.dtype))
        self.down = nn.Parameter(like.new_empty(bottleneck, width_in))  # D
        self.up = nn.Parameter(like.new_zeros(width_out, bottleneck))  # U
        self.scale = nn.Parameter(like.new_ones(1)) if scaling == "learned" else scaling
        self.dropout = nn.Dropout(dropout)
        if init == "bert":
            nn.init.normal_(self.down, std=0.02)
            nn.init.normal_(self.up, std=0.02)
        else:
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        if self.side == "input":
            return self.base(x + self.change(x))
        z: Tensor = self.base(x)
        return z + self.change(x if self.side == "parallel" else z)

    def change(self, x: Tensor) -> Tensor:
        """c s U f(D x): (..., width of D) -> (..., width of U), in the precision of x."""
        dtype = wide(x.dtype)
        h = self.f(F.linear(self.dropout(x.to(dtype)), self.down.to(dtype)))  # (..., b)
        return self.strength * F.linear(h, self.up.to(dtype)).to(x.dtype) * self.scale


class LLMAdapters(Adapter):
    """Bottleneck adapters on single linear layers."""


def attach(
    model: nn.Module,
    *,
    bottleneck: int = 256,
    parallel: bool = False,
    targets: Sequence[str] = ("down",),
    nonlinearity: str = "tanh",
    scaling: float | Literal["learned"] = 1.0,
    init: str = "bert",
    dropout: float = 0.0,
) -> Adapter:
    """A bottleneck of that width on every linear layer named in ``targets``, in series or ``parallel``.

    ``scaling`` is s, a number or "learned"; ``dropout`` acts on what enters a bottleneck.
    """
    if bottleneck < 1:
        raise AdapterError(f"bottleneck is {bottleneck}; it must be at least 1")
    check_dropout(dropout)
    choices = {"nonlinearity": (nonlinearity, tuple(NONLINEARITIES)), "init": (init, INITS)}
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise AdapterError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    if scaling == 0 or (isinstance(scaling, str) and scaling != "learned"):
        raise AdapterError(f'scaling is {scaling!r}; allowed: a number other than 0, or "learned"')
    sideless = [] if parallel else sorted(set(targets) - set(SERIES_SIDE))
    if sideless:
        raise AdapterError(
            f"a series adapter has no side at {', '.join(sideless)}; it has at {', '.join(SERIES_SIDE)}, "
            "and a parallel one goes with every linear layer"
        )
    layers = find_linear(model, targets)
    adapter = LLMAdapters(model)
    for path, base in layers.items():
        side = "parallel" if parallel else SERIES_SIDE[path.rpartition(".")[2]]
        f = NONLINEARITIES[nonlinearity]
        adapter.replace(path, LinearWithBottleneck(base, side, bottleneck, f, scaling, init, dropout))
    return adapter


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision that bottlenecks compute in: float32, or more where the model has more."""
    return torch.promote_types(dtype, torch.float32)
