r"""AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition.

Chen, Ge, Tong, Wang, Song, Wang, Luo; NeurIPS 2022; arXiv 2205.13535, section 3.

A bottleneck beside the MLP of every block, its output added with a small fixed factor s. For tokens x in R^{n x d}:

    x' = x + Attention(LN_1(x))
    a  = ReLU(x' W_down + b_down) W_up + b_up                W_down in R^{d x r},  W_up in R^{r x d},  r << d
    y  = x' + MLP(LN_2(x')) + c s a

Trained: both matrices and their biases in every block, and the task head.
Start: W_up = 0 and both biases 0, so that training departs from the pretrained function; W_down Kaiming uniform
(a = sqrt 5), entries in +-1/sqrt(d).

The bottleneck reads x', the residual stream, where the MLP beside it reads LN_2(x'). The paper prints a norm in the
bottleneck, ReLU(LN(x') W_down) W_up; the code has it as an option, with gain and bias of its own, and its experiments
run without it. The default is that of the experiments, ``norm=True`` the printed form.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper
from reference_impls.backbones.layers import Block


class AdaptMLPBlock(Wrapper):
    """A pre-norm block with a bottleneck beside its feed-forward sublayer."""

    base: Block

    def __init__(self, base: Block, rank: int, scale: float, dropout: float, norm: bool) -> None:
        super().__init__(base)
        like = base.mlp.up.weight  # (f, d)
        d = like.shape[1]
        self.scale = scale
        self.norm = nn.LayerNorm(d, device=like.device, dtype=like.dtype) if norm else nn.Identity()
        self.down = nn.Parameter(like.new_empty(rank, d))
        self.down_bias = nn.Parameter(like.new_zeros(rank))
        self.up = nn.Parameter(like.new_zeros(d, rank))
        self.up_bias = nn.Parameter(like.new_zeros(d))
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor, bias: Tensor | None = None, *_: None) -> Tensor:
        base = self.base
        x = x + base.attention(base.norm1(x), bias)
        return x + base.mlp(base.norm2(x)) + self.strength * self.scale * self.bottleneck(x)

    def bottleneck(self, x: Tensor) -> Tensor:
        """x' (B, n, d) -> a (B, n, d)."""
        z = F.relu(F.linear(self.norm(x), self.down, self.down_bias))  # (B, n, r)
        return F.linear(self.dropout(z), self.up, self.up_bias)


class AdaptFormer(Adapter):
    """Scaled parallel bottlenecks in a vision transformer, and a head."""


def attach(
    model: nn.Module,
    *,
    rank: int = 64,
    scale: float = 0.1,
    dropout: float = 0.1,
    norm: bool = False,
    train_head: bool = True,
) -> Adapter:
    """``rank`` r and ``scale`` s of the bottlenecks, ``dropout`` behind their ReLU, ``norm`` in front of them."""
    if rank < 1 or not 0 <= dropout < 1:
        raise AdapterError(f"rank {rank}, dropout {dropout}: need 1 or more, and at least 0 but less than 1")
    blocks = {path: m for path, m in model.named_modules() if isinstance(m, Block)}
    if not blocks or any(not b.prenorm or hasattr(b, "cross") for b in blocks.values()):
        raise AdapterError(f"{type(model).__name__} is no stack of pre-norm blocks, as a vision transformer is")
    adapter = AdaptFormer(model)
    for path, block in blocks.items():
        adapter.replace(path, AdaptMLPBlock(block, rank, scale, dropout, norm))
    if train_head:
        adapter.unfreeze("head")
    return adapter
