r"""DiffuseKronA: A Parameter Efficient Fine-tuning Method for Personalized Diffusion Models.

Marjit, Singh, Mathur, Paul, Yu, Chen; WACV 2025; arXiv 2402.17412. Official code: IBM/DiffuseKronA.

    y = W0 x + b + s (A (x) B) x                                    ((x) the Kronecker product)
    W0 in R^{d_out x d_in} frozen,  A in R^{a1 x a2},  B in R^{b1 x b2},  d_out = a1 b1,  d_in = a2 b2
    (A (x) B)[q b1 + p, i b2 + j] = A[q, i] B[p, j]

Trained: A and B of the query, key, value and output projections of every attention of the U-Net, to itself and to the
text; those of the text encoder on request, as the official code has it for Stable Diffusion. The scripts advise against
feed-forward layers, and neither paper nor code adapts a convolution: the attention works on pixels as tokens, so that
linear layers are all there is. The loss is that of denoising a few pictures of the subject (DreamBooth).
Start: B = 0, so that training departs from the pretrained model; A ~ N(0, 1/a1^2), the official code's choice, is not
zero, or no gradient would reach B. The scale s is 1.

A and B are a1 a2 + d_out d_in / (a1 a2) values, least where a1 a2 is the root of d_out d_in. Ranks multiply, so that
two small dense factors may change a weight in more directions than a LoRA of as many values: what is limited is the
structure. A factor times t and the other divided by t are the same change.

With x written row by row as X in R^{a2 x b2}, (A (x) B) x is A X B^T in R^{a1 x b1}, row by row again: two small
products, and no d_out x d_in matrix. The released forward pass writes B X^T A^T instead, the same numbers in another
order: output p a1 + q where the equation, followed here, has q b1 + p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, find_linear


class KroneckerLinear(DeltaLinear):
    """y = W0 x + b + c (A (x) B) x."""

    def __init__(self, base: nn.Linear, a1: int, a2: int) -> None:
        super().__init__(base)
        self.a2, self.b2 = a2, base.in_features // a2
        self.A = nn.Parameter(nn.init.normal_(base.weight.new_empty(a1, a2), std=1 / a1))
        self.B = nn.Parameter(base.weight.new_zeros(base.out_features // a1, self.b2))

    def delta(self, x: Tensor) -> Tensor:
        X = x.unflatten(-1, (self.a2, self.b2))
        # B first: with a1 much larger than a2, as in the released scripts, b1 < b2 and the larger product comes last.
        return (self.A @ F.linear(X, self.B)).flatten(-2)  # (..., a1, b1) -> (..., d_out)

    def delta_weight(self) -> Tensor:
        return torch.kron(self.A, self.B)


class DiffuseKronA(Adapter):
    """Kronecker products beside the attention's projections."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    a1: int = 64,
    a2: int = 8,
    factors: Mapping[str, tuple[int, int]] | None = None,
    text_encoder: bool = False,
    targets: Sequence[str] = ("q", "k", "v", "o"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``, those of a text encoder only with ``text_encoder``.

    A is ``a1`` x ``a2``; ``factors`` has other sizes for some of the targets, such as {"v": (32, 16)}.
    """
    sizes = {name: (a1, a2) for name in targets} | dict(factors or {})
    strange = sorted(set(sizes) - set(targets))
    if strange:
        raise AdapterError(f"factors has {', '.join(strange)}; allowed: the targets {', '.join(targets)}")
    layers = {
        path: layer
        for path, layer in find_linear(model, targets).items()
        if text_encoder or not path.startswith("text.")
    }
    if not layers:
        raise AdapterError("the targets are in the text encoder alone, which is adapted with text_encoder only")
    chosen = {path: sizes[path.rpartition(".")[2]] for path in layers}
    for path, layer in layers.items():
        check(path, layer, *chosen[path])
    adapter = DiffuseKronA(model)
    for path, layer in layers.items():
        adapter.replace(path, KroneckerLinear(layer, *chosen[path]))
    return adapter


def check(path: str, layer: nn.Linear, a1: int, a2: int) -> None:
    """AdapterError for sizes of A that do not divide the layer's."""
    for name, value, width, side in (("a1", a1, layer.out_features, "out"), ("a2", a2, layer.in_features, "in")):
        if value < 1 or width % value:
            raise AdapterError(f"{name} is {value}; for {path} it must divide the layer's {side}put width {width}")
