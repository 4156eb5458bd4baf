r"""AdapterFusion: Non-Destructive Task Composition for Transfer Learning.

Pfeiffer, Kamath, Rücklé, Cho, Gurevych; EACL 2021; arXiv 2005.00247, section 3 (the start: 4.1, the adapter: A.2).

A post-norm block, x in R^d the input of its feed-forward sublayer and a = FFN(x); the layer norm is used twice:

    h   = LN(a + x)
    u_n = W_up,n ReLU(W_down,n h + b_down,n) + b_up,n          adapter n = 1 .. N,  W_down,n in R^{m x d}

    Stage 1:  y = LN(a + c u_n + x)                            each adapter on its own task, nothing else active
    Stage 2:  s = softmax_n(q . k_n),  q = Q h + b_Q,  k_n = K u_n + b_K,  v_n = V u_n         Q, K, V in R^{d x d}
              y = LN(a + c sum_n s_n v_n + x)                  all adapters at once, for every token its own mixture

Trained: in stage 1 one adapter, in stage 2 Q, K, V, b_Q and b_K of every block while all adapters stay as they are; in
both the task head, anew for every task. The layer norms stay pretrained. Stage 2 adds 0.01 sum ||V - I||_F^2 over the
blocks to the task loss, so that V does not become one more adapter.
Start: adapters, Q and K from N(0, 0.02^2), biases 0, so that the mixture begins near the mean; V the identity, with
N(0, 1e-6^2) off the diagonal (the official code: 1e-6 in every place).

The scores are not divided by sqrt(d). Dropout acts on them, before the softmax. b_K adds the same number to all scores
of a token: without dropout it changes nothing and gets no gradient. Where the paper's words can be read in several ways
the official code decides: the query is the normalized h, keys and values are the u_n without a, which is added once;
it is also where the biases, dropout and the weight 0.01 come from.

Training the adapters of stage 1 jointly on all tasks (MT-A in the paper) is not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, FreeDelta, Wrapper
from reference_impls.backbones.layers import Block, FeedForward


class Bottleneck(nn.Module):
    """What an adapter adds, without its skip connection: h (..., d) -> u (..., d)."""

    def __init__(self, like: Tensor, width: int) -> None:
        super().__init__()
        d = like.shape[1]
        self.down = normal(like, width, d)
        self.down_bias = nn.Parameter(like.new_zeros(width))
        self.up = normal(like, d, width)
        self.up_bias = nn.Parameter(like.new_zeros(d))

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(h, self.down, self.down_bias)), self.up, self.up_bias)


class Fusion(nn.Module):
    """Attention over the adapters of one block: h (..., d) and u (..., N, d) -> sum_n s_n V u_n (..., d)."""

    def __init__(self, like: Tensor, dropout: float) -> None:
        super().__init__()
        d = like.shape[1]
        self.Q = normal(like, d, d)
        self.query_bias = nn.Parameter(like.new_zeros(d))
        self.K = normal(like, d, d)
        self.key_bias = nn.Parameter(like.new_zeros(d))
        self.V = normal(like, d, d, std=1e-6)
        with torch.no_grad():
            self.V.fill_diagonal_(1.0)
        self.dropout = nn.Dropout(dropout)

    def weights(self, h: Tensor, u: Tensor) -> Tensor:
        """s (..., N). K moves over to the query, q . K u_n = (K^T q) . u_n: one product a token instead of N."""
        q = F.linear(h, self.Q, self.query_bias)
        scores = (u @ (q @ self.K)[..., None])[..., 0] + (q @ self.key_bias)[..., None]
        return self.dropout(scores).softmax(-1)

    def forward(self, h: Tensor, u: Tensor) -> Tensor:
        mixture = (self.weights(h, u)[..., None] * u).sum(-2)
        return F.linear(mixture, self.V)  # V is linear: once on the mixture instead of N times

    def distance(self) -> Tensor:
        """||V - I||_F^2."""
        return (self.V - torch.eye(len(self.V), dtype=self.V.dtype, device=self.V.device)).square().sum()


class FusedAdapters(Wrapper):
    """A feed-forward sublayer, the adapters behind it and their fusion; the block adds x and normalizes."""

    base: FeedForward
    active: int | None = None
    """The only adapter at work, in stage 1; None: all of them, fused."""

    def __init__(
        self, base: FeedForward, norm: Callable[[Tensor], Tensor], tasks: int, bottleneck: int, dropout: float
    ) -> None:
        super().__init__(base)
        like = base.up.weight  # (f, d)
        self.norm = norm
        self.adapters = nn.ModuleList(Bottleneck(like, bottleneck) for _ in range(tasks))
        self.fusion = Fusion(like, dropout)

    def forward(self, x: Tensor) -> Tensor:
        a = self.base(x)
        return a + self.strength * self.change(self.norm(a + x))

    def change(self, h: Tensor) -> Tensor:
        """u_n of the active adapter, or the fusion of all."""
        if self.active is not None:
            change: Tensor = self.adapters[self.active](h)
            return change
        fused: Tensor = self.fusion(h, torch.stack([adapter(h) for adapter in self.adapters], dim=-2))
        return fused


class AdapterFusion(Adapter):
    """Adapters of N tasks and, in every block, an attention over them. Begins in stage 2."""

    # It shifts all scores of a token alike; see the module's docstring.
    inert = (".fusion.key_bias",)

    def __init__(self, model: nn.Module, tasks: int, regularization: float) -> None:
        super().__init__(model)
        self.tasks = tasks
        self.regularization = regularization

    def fused(self) -> list[FusedAdapters]:
        """The sites of all blocks."""
        return [site for site in self.sites().values() if isinstance(site, FusedAdapters)]

    def activate(self, task: int | None) -> None:
        """Stage 1 for the adapter of ``task``, counted from 0; None: stage 2. Sets what is run and what is trained."""
        if task is not None and not 0 <= task < self.tasks:
            raise AdapterError(f"task {task}: there are adapters for the tasks 0 to {self.tasks - 1}")
        for site in self.fused():
            site.active = task
            site.fusion.requires_grad_(task is None)
            for n, adapter in enumerate(site.adapters):
                adapter.requires_grad_(n == task)

    def loss(self, batch: Any) -> Tensor:
        loss = super().loss(batch)
        for site in self.fused():
            if site.active is None:
                loss = loss + self.regularization * site.fusion.distance()
        return loss

    def learn(self, task: int, batches: Iterable[Any], learning_rate: float | None = None) -> list[float]:
        """Stage 1: train the adapter of ``task`` alone on its batches. The head it learns meanwhile is not kept."""
        self.activate(task)
        losses = super().fit(batches, learning_rate)
        self.activate(None)
        with torch.no_grad():
            for site in self.sites().values():
                if isinstance(site, FreeDelta):
                    site.d.zero_()
        return losses

    def fit(self, batches: Iterable[Any], learning_rate: float | None = None) -> list[float]:
        """Both stages on the target task: its own adapter, the last one, on the first half of the batches, then fusion.

        The paper uses the target's data for both; the other tasks' adapters come from ``learn`` or ``load``.
        """
        steps = list(batches)
        half = len(steps) // 2
        losses = self.learn(self.tasks - 1, steps[:half], learning_rate)
        return losses + self.fuse(steps[half:], learning_rate)

    def fuse(self, batches: Iterable[Any], learning_rate: float | None = None) -> list[float]:
        """Stage 2 alone."""
        return super().fit(batches, learning_rate)


def attach(
    model: nn.Module,
    *,
    tasks: int = 3,
    bottleneck: int = 48,
    dropout: float = 0.0,
    regularization: float = 0.01,
    train_head: bool = True,
) -> AdapterFusion:
    """N = ``tasks`` adapters of width m = ``bottleneck`` a block, the target's last; the code drops out 0.1."""
    if min(tasks, bottleneck) < 1 or not 0 <= dropout < 1 or regularization < 0:
        raise AdapterError(
            f"tasks {tasks}, bottleneck {bottleneck}: 1 or more; dropout {dropout}: at least 0 and below 1; "
            f"regularization {regularization}: 0 or more"
        )
    blocks = {path: block for path, block in model.named_modules() if isinstance(block, Block) and not block.prenorm}
    if not blocks:
        raise AdapterError(f"{type(model).__name__} has no post-norm blocks, which AdapterFusion is made for")
    adapter = AdapterFusion(model, tasks, regularization)
    for path, block in blocks.items():
        # A partial function: the norm stays the block's, and a copy of the model gets the copy's.
        site = FusedAdapters(block.mlp, partial(block.norm2), tasks, bottleneck, dropout)
        adapter.replace(f"{path}.mlp", site)
    if train_head:
        adapter.unfreeze("head")
    adapter.activate(None)
    return adapter


def normal(like: Tensor, *shape: int, std: float = 0.02) -> nn.Parameter:
    """Entries from N(0, std^2), where and as precise as ``like`` is."""
    return nn.Parameter(like.new_empty(shape).normal_(std=std))
