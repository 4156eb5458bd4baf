r"""LoRA: Low-Rank Adaptation of Large Language Models.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen; ICLR 2022; arXiv 2106.09685, section 4.1, equation 3.

    h = W0 x + b + s B A dropout(x),   s = alpha / r
    x in R^{d_in},  W0 in R^{d_out x d_in} frozen,  A in R^{r x d_in},  B in R^{d_out x r},  r << min(d_in, d_out)

Trained: A and B of every adapted matrix; the paper adapts W_q and W_v alone and leaves the feed-forward part frozen.
The official code can train biases besides: those of the adapted layers, or all of the model.
Start: B = 0, so that training departs from the pretrained function; A is random, since with both at zero neither would
ever get a gradient. The paper draws A from a Gaussian; its code, followed here, from Kaiming's uniform distribution
(a = sqrt 5): entries in +-1/sqrt(d_in).

An embedding table E in R^{V x d} is adapted as in the official code, the factors in swapped roles: E + s (B A)^T with
A in R^{r x V} zero at the start, since a batch sees few of its columns, and B in R^{d x r} Gaussian.

A convolution's kernel (c_out, c_in / g, k, k), in g groups, is changed as in the official code, the paper having none:
by s B A read in order as such a kernel, A in R^{r k x c_in k}, B in R^{c_out / g k x r k}. In one group this is a
convolution with the k copies of A on the diagonal of a matrix, as kernels (r k^2, c_in, k, k), and then a 1 x 1 one
with B in R^{c_out x r k^2}: the change has up to rank r k^2. peft and LyCORIS use other factors, a k x k convolution
to r channels and a 1 x 1 one from there: rank r, and fewer values.

Dividing by r keeps the size of the change about the same when r is varied, so that the learning rate need not follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import (
    Adapter,
    AdapterError,
    DeltaLinear,
    FreeDelta,
    Wrapper,
    check_dropout,
    check_rank,
    find,
)

Bias = Literal["none", "lora_only", "all"]


class LoRALinear(DeltaLinear):
    """y = W0 x + b + c s B A x, with the two thin products in the forward pass and B A only when asked for."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base)
        self.rank = rank
        self.scale = alpha / rank
        # Dropout sits on the branch's input: a merged weight equals it in expectation, and exactly in eval mode.
        self.dropout = nn.Dropout(dropout)
        self.A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def delta(self, x: Tensor) -> Tensor:
        z = F.linear(self.dropout(x), self.A) * self.scale  # (..., r), where scaling costs next to nothing
        return F.linear(z, self.B)  # (..., d_out)

    def delta_weight(self) -> Tensor:
        return self.scale * self.B @ self.A


class LoRAEmbedding(Wrapper):
    """E[i] + c s (A^T)[i] B^T: a look-up in a thin table, widened to d."""

    base: nn.Embedding

    def __init__(self, base: nn.Embedding, rank: int, alpha: float) -> None:
        super().__init__(base)
        self.rank = rank
        self.scale = alpha / rank
        self.A = nn.Parameter(base.weight.new_zeros(rank, base.num_embeddings))
        self.B = nn.Parameter(base.weight.new_empty(base.embedding_dim, rank))
        nn.init.normal_(self.B)

    def forward(self, tokens: Tensor) -> Tensor:
        thin = F.embedding(tokens, self.A.T)  # (..., r)
        return self.base(tokens) + self.strength * self.scale * F.linear(thin, self.B)

    def merged(self) -> dict[str, Tensor]:
        return {"weight": self.base.weight + self.strength * self.scale * (self.B @ self.A).T}


class LoRAConv2d(Wrapper):
    """conv(x; K + c s B A): two thin convolutions while they are smaller than the kernel, else one with the change."""

    base: nn.Conv2d

    def __init__(self, base: nn.Conv2d, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base)
        self.kernel = k = base.kernel_size[0]
        self.rank = rank * k * k
        self.scale = alpha / rank
        # The official code has this option and ignores it in convolutions.
        self.dropout = nn.Dropout(dropout)
        self.A = nn.Parameter(base.weight.new_empty(rank * k, base.in_channels * k))
        self.B = nn.Parameter(base.weight.new_zeros(base.out_channels // base.groups * k, rank * k))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.thin = base.groups == 1 and self.rank < base.out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.strength * self.delta(self.dropout(x))

    def delta(self, x: Tensor) -> Tensor:
        """The change of the output at strength 1."""
        if not self.thin:
            return self.base._conv_forward(x, self.delta_weight(), None)
        kernels = torch.block_diag(*[self.A] * self.kernel).view(self.rank, *self.base.weight.shape[1:])
        z = self.base._conv_forward(x, kernels, None)  # (..., r k^2, H', W')
        return F.conv2d(z, self.B.view(-1, self.rank, 1, 1)) * self.scale

    def delta_weight(self) -> Tensor:
        """The change of the kernel at strength 1, in its shape."""
        return self.scale * (self.B @ self.A).view_as(self.base.weight)

    def merged(self) -> dict[str, Tensor]:
        return {"weight": self.base.weight + self.strength * self.delta_weight()}


class LoRA(Adapter):
    """Low-rank adaptation of chosen linear layers, embeddings and convolutions."""

    mergeable = True
    family = "low-rank"


def attach(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    bias: Bias = "none",
    targets: Sequence[str] = ("q", "v"),
) -> Adapter:
    """Adapt every linear layer, embedding and two-dimensional convolution whose name is in ``targets``.

    ``alpha`` is the numerator of the scale. ``bias`` trains no bias vector, those of the adapted layers ("lora_only")
    or every one of the model ("all").
    """
    check(rank, alpha, dropout)
    layers = find(model, targets)
    for path, layer in layers.items():
        if not isinstance(layer, nn.Linear | nn.Embedding | nn.Conv2d):
            raise AdapterError(f"{path} is a {type(layer).__name__}; LoRA adapts linear layers, embeddings and Conv2d")
        if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] != layer.kernel_size[1]:
            raise AdapterError(f"{path} has a kernel of {layer.kernel_size}; LoRA's factors are for square kernels")
    biases = bias_names(model, list(layers), bias)
    adapter = LoRA(model)
    for name in biases:
        adapter.reparameterize(name, FreeDelta(model.get_parameter(name)))
    for path, layer in layers.items():
        if isinstance(layer, nn.Embedding):
            adapter.replace(path, LoRAEmbedding(layer, rank, alpha))
        elif isinstance(layer, nn.Conv2d):
            adapter.replace(path, LoRAConv2d(layer, rank, alpha, dropout))
        else:
            adapter.replace(path, LoRALinear(layer, rank, alpha, dropout))
    return adapter


def check(rank: int, alpha: float, dropout: float) -> None:
    """AdapterError for a rank, numerator of the scale or dropout that makes no sense."""
    check_rank(rank)
    if alpha <= 0:
        raise AdapterError(f"alpha is {alpha}; it must be positive, and rank (here {rank}) leaves the scale at 1")
    check_dropout(dropout)


def bias_names(model: nn.Module, layers: Sequence[str], bias: Bias) -> list[str]:
    """Names of the bias vectors that are trained beside the factors."""
    present = [name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"]
    chosen = {
        "none": [],
        "lora_only": [name for name in present if name.rpartition(".")[0] in set(layers)],
        "all": present,
    }
    if bias not in chosen:
        raise AdapterError(f"bias is {bias!r}; allowed: {', '.join(chosen)}")
    return chosen[bias]
