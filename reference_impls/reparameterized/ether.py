r"""ETHER: Efficient Finetuning of Large-Scale Models with Hyperplane Reflections.

Bini, Roth, Akata, Khoreva; ICML 2024; arXiv 2405.20271, sections 3.2 to 3.4.

    ETHER:   y = V H x + b,       H  = I - 2 u u^T
    ETHER+:  y = H~ V H+ x + b,   H+ = I - u u^T + v v^T of the inputs,  H~ = I - u~ u~^T + v~ v~^T of the outputs
    V in R^{d_out x d_in} frozen (the paper's W is V^T);  u, v in R^{d_in}, u~, v~ in R^{d_out} of length one
    blocks: H = blockdiag(H_1 .. H_n), H_i = I - 2 u_i u_i^T with u_i in R^{d_in / n} of length one; H+, H~ alike

Trained: the normals, before normalization: d_in numbers a matrix in ETHER, 2 (d_in + d_out) in ETHER+ (2 d_in with the
inputs' side alone, the paper's ablation), for any number of blocks.
Start: normals from Kaiming's uniform distribution, of which only the direction counts. ETHER starts at a random
reflection, not at the base model: ||H - I||_F = 2 sqrt(n) then and always, which is its point. ETHER+ starts with
v = -u, the same projector, hence at the base model; ||H+ - I||_F <= sqrt(2 n), reached where u and v are orthogonal.

H is orthogonal with determinant (-1)^n and its own inverse; H+ has determinant prod (u_i^T v_i)^2, not orthogonal.

Reflections act on activations, two multiplications a feature and normal; no matrix H is formed. The coefficient c
goes to the residuals, H(c) = I - 2 c u u^T and H+(c) = I - c (u u^T - v v^T): linear in ETHER, quadratic in the
two-sided ETHER+. The paper has none: H(c) is orthogonal at c = 0 and 1 alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, check_dropout, find_linear


class Reflection(nn.Module):
    """Block-diagonal H, or H+ where ``plus``, applied to the last axis; symmetric, so rows and columns are alike."""

    def __init__(self, like: Tensor, size: int, blocks: int, plus: bool) -> None:
        super().__init__()
        self.u = nn.Parameter(like.new_empty(blocks, size // blocks))
        nn.init.kaiming_uniform_(self.u, a=math.sqrt(5))
        self.v = nn.Parameter(-self.u.detach()) if plus else None

    def forward(self, x: Tensor, strength: float) -> Tensor:
        parts = x.unflatten(-1, self.u.shape)  # (..., n, size / n)
        if self.v is None:
            return (parts - 2.0 * strength * along(parts, self.u)).flatten(-2)
        return (parts - strength * (along(parts, self.u) - along(parts, self.v))).flatten(-2)


def along(parts: Tensor, normals: Tensor) -> Tensor:
    """Projection u u^T x of every block (..., n, k) on its normal (n, k), normalized."""
    u = normals / normals.norm(dim=1, keepdim=True)
    return (parts * u).sum(-1, keepdim=True) * u


class ReflectedLinear(Wrapper):
    """A linear layer behind a reflection of its input and, in ETHER+, before one of its output."""

    base: nn.Linear

    def __init__(self, base: nn.Linear, blocks: int, plus: bool, both: bool, dropout: float) -> None:
        super().__init__(base)
        self.dropout = nn.Dropout(dropout)
        self.inputs = Reflection(base.weight, base.in_features, blocks, plus)
        self.outputs = Reflection(base.weight, base.out_features, blocks, plus) if plus and both else None

    def forward(self, x: Tensor) -> Tensor:
        # Dropout acts on the input of the whole layer, as in the official code: there is no branch beside it.
        turned = self.inputs(self.dropout(x), self.strength)
        if self.outputs is None:
            return self.base(turned)
        y: Tensor = self.outputs(F.linear(turned, self.base.weight), self.strength)
        return y if self.base.bias is None else y + self.base.bias

    def merged(self) -> dict[str, Tensor]:
        weight = self.inputs(self.base.weight, self.strength)  # V H, row by row
        return {"weight": weight if self.outputs is None else self.outputs(weight.T, self.strength).T}


class ETHER(Adapter):
    """One reflection of the input of chosen linear layers."""

    mergeable = True
    family: ClassVar[str | None] = "orthogonal"


class ETHERPlus(ETHER):
    """Two projectors that may cancel, on one side or both; not orthogonal."""

    family = None


def attach(
    model: nn.Module,
    *,
    plus: bool = False,
    both: bool = True,
    blocks: int = 1,
    dropout: float = 0.0,
    targets: Sequence[str] = ("q", "k", "v", "o", "up", "down"),
) -> Adapter:
    """Reflect the input of every linear layer whose name is in ``targets``, in ``blocks`` diagonal blocks.

    ``plus`` is ETHER+, on the side of the outputs too where ``both``; ``dropout`` is that of the layers' input.
    """
    check_dropout(dropout)
    layers = find_linear(model, targets)
    for path, base in layers.items():
        sides = (base.in_features, base.out_features) if plus and both else (base.in_features,)
        common = math.gcd(*sides)
        if blocks < 1 or common % blocks or blocks in sides:
            allowed = [n for n in range(1, common + 1) if common % n == 0 and n not in sides]
            raise AdapterError(f"blocks is {blocks}; for {path} it must be one of {allowed}")
    adapter = ETHERPlus(model) if plus else ETHER(model)
    for path, base in layers.items():
        adapter.replace(path, ReflectedLinear(base, blocks, plus, both, dropout))
    return adapter
