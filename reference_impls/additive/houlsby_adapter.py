r"""Adapter (Houlsby): Parameter-Efficient Transfer Learning for NLP.

Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly; ICML 2019; arXiv 1902.00751,
section 2.1 and figure 2 (the start: 3.6).

    Adapter(h) = h + c (W_up phi(W_down h + b_down) + b_up)
    h in R^d,  W_down in R^{m x d},  b_down in R^m,  W_up in R^{d x m},  b_up in R^d,  m << d

Two in every block, each right behind the projection that ends a sublayer and before the block's own skip connection, so
that there are two skips, one inside the adapter and one around it. For a post-norm block with input x:

    x_1 = LN_1(x + Adapter_1(Attention(x))),    x_2 = LN_2(x_1 + Adapter_2(FFN(x_1)))

Trained: the adapters, gain and bias of every layer norm (that of the embeddings included), and the task head.
Start: both matrices from a Gaussian of standard deviation s = 1e-2, cut off at 2 s (the official code: 1e-3), biases 0.
The change is then of size s^2: nearly the identity and not quite, so that all four tensors get a gradient at once.

phi is GELU in the official code, in its form with tanh. The paper trains with Adam, the step size rising over the first
tenth of the steps and falling to zero.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, FreeDelta, Wrapper, find

PROJECTIONS = {"attention": "o", "mlp": "down"}
"""Sublayers that an adapter follows, and the linear layer each one ends with."""


class BottleneckAdapter(Wrapper):
    """A sublayer followed by down-projection, nonlinearity and up-projection with a skip of their own."""

    def __init__(self, base: nn.Module, projection: Tensor, bottleneck: int, init_scale: float) -> None:
        super().__init__(base)
        d = projection.shape[0]  # of the weight (d, d_in) that the sublayer ends with
        self.down = nn.Parameter(projection.new_empty(bottleneck, d))
        self.down_bias = nn.Parameter(projection.new_zeros(bottleneck))
        self.up = nn.Parameter(projection.new_empty(d, bottleneck))
        self.up_bias = nn.Parameter(projection.new_zeros(d))
        for weight in (self.down, self.up):
            nn.init.trunc_normal_(weight, std=init_scale, a=-2 * init_scale, b=2 * init_scale)

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        h: Tensor = self.base(*inputs, **options)
        z = F.gelu(F.linear(h, self.down, self.down_bias), approximate="tanh")  # (..., m)
        return h + self.strength * F.linear(z, self.up, self.up_bias)


class HoulsbyAdapter(Adapter):
    """Two serial bottlenecks a block, and layer norms of the task's own."""


def attach(
    model: nn.Module,
    *,
    bottleneck: int = 64,
    init_scale: float = 1e-2,
    train_head: bool = True,
) -> Adapter:
    """Adapters of width ``bottleneck`` behind every attention and feed-forward sublayer, drawn at ``init_scale`` s."""
    if bottleneck < 1 or init_scale <= 0:
        raise AdapterError(f"bottleneck {bottleneck}, init_scale {init_scale}: need 1 or more, and more than 0")
    sublayers = find(model, PROJECTIONS)
    norms = [
        f"{path}.{name}"
        for path, norm in model.named_modules()
        if isinstance(norm, nn.LayerNorm | nn.RMSNorm)
        for name, _ in norm.named_parameters()
    ]
    adapter = HoulsbyAdapter(model)
    for name in norms:
        adapter.reparameterize(name, FreeDelta(model.get_parameter(name)))
    for path, base in sublayers.items():
        projection = base.get_parameter(f"{PROJECTIONS[path.rpartition('.')[2]]}.weight")
        adapter.replace(path, BottleneckAdapter(base, projection, bottleneck, init_scale))
    if train_head:
        adapter.unfreeze("head")
    return adapter
