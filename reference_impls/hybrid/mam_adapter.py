r"""MAM Adapter: Towards a Unified View of Parameter-Efficient Transfer Learning.

He, Zhou, Ma, Berg-Kirkpatrick, Neubig; ICLR 2022; arXiv 2110.04366, sections 3 and 4.6.

The paper writes adapters, prefixes and LoRA as one thing, a small change of some hidden state, and puts the best of
each together. In every attention, a short prefix on keys and values, P_K and P_V in R^{l x d}; for a query x that is

    h <- (1 - lam(x)) h + lam(x) softmax(x W_q P_K^T) P_V,        lam(x): the prefix's share of the whole softmax sum

and beside every feed-forward sublayer, reading the same input x, a wide bottleneck adapter (scaled, parallel):

    h <- FFN(x) + c s (ReLU(x W_down + b_down) W_up + b_up),      W_down in R^{d x r},  W_up in R^{r x d}

Trained: both adapter matrices and their biases, and the prefix, through its MLP while training (prefix-tuning). The
paper's counts are without the MLP, after ``drop_reparameterization``.
Start: like LoRA, W_up = 0 and biases 0, so that the adapter begins as nothing; W_down Kaiming uniform (a = sqrt 5). The
prefix begins at what its MLP makes of a random embedding and changes the function from the first step.

The adapter reads what the sublayer reads: behind the norm in a pre-norm model. It has no norm of its own. Its hidden
layer takes the model's own dropout in the code, 0.1 for BART.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, find
from reference_impls.prompt.prefix_tuning import PrefixTuning, check, install


class ScaledParallelAdapter(Wrapper):
    """A bottleneck beside a feed-forward sublayer."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base)
        like = base.get_parameter("up.weight")  # (f, d)
        d = like.shape[1]
        self.scale = scale
        self.down = nn.Parameter(like.new_empty(rank, d))
        self.down_bias = nn.Parameter(like.new_zeros(rank))
        self.up = nn.Parameter(like.new_zeros(d, rank))
        self.up_bias = nn.Parameter(like.new_zeros(d))
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        z = self.dropout(F.relu(F.linear(x, self.down, self.down_bias)))  # (..., r)
        return self.base(x) + self.strength * self.scale * F.linear(z, self.up, self.up_bias)


class MAMAdapter(PrefixTuning):
    """A prefix in attention, a scaled parallel adapter beside the feed-forward sublayer."""


def attach(
    model: nn.Module,
    *,
    length: int = 30,
    hidden: int = 800,
    rank: int = 512,
    scale: float = 4.0,
    dropout: float = 0.0,
) -> Adapter:
    """A prefix of ``length`` l (MLP width ``hidden``, 0 for none), adapters of ``rank`` r (0 for none) and ``scale`` s.

    ``dropout`` acts on the adapters' hidden layer.
    """
    check(model, length, hidden, dropout)
    if rank < 0:
        raise AdapterError(f"rank is {rank}; it must be 0 or more")
    adapter = MAMAdapter(model)
    install(adapter, length, hidden)
    for path, base in find(model, ("mlp",)).items() if rank else ():
        adapter.replace(path, ScaledParallelAdapter(base, rank, scale, dropout))
    return adapter
