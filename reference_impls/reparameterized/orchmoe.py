r"""OrchMoE: Efficient Multi-Adapter Learning with Task-Skill Synergy.

Wang, Sun, Ji, Wang, Fan, Gu; arXiv 2401.10559 (2024). A reconstruction: no code is known, and of the method the double
sum (equation 3) and the task router's first two lines are confirmed, the latter from reports on the paper.

Polytropon without task ids. A task router spreads an input over |T| abstract tasks, a skill router allocates |S| LoRA
skills to each of them:

    Xhat     = softmax(X X^T / sqrt(d)) X + X           X in R^{n x d}, the input sequence; no parameters    (reported)
    w        = W_Task Xhat + bias                       W_Task in R^{|T| x d}                                (reported)
    delta(x) = sum_i sum_j w_i phi_ij x                                                                     (equation 3)

Filled in here:

    where    X is the embedded source, read once for the whole model: a router that pooled a decoder's hidden states
             would let every position see the later ones
    w        the mean over the visible positions of the sequence, then a softmax: w in R^{|T|}, one an example
    phi_ij   (1/r) v_ij B_j A_j, A_j in R^{r x d_in}, B_j in R^{d_out x r}: products, since equation 3 adds outputs;
             v_ij = s_ij / sum_j s_ij with s = sigmoid(z), in training a relaxed Bernoulli sample of it, as Polytropon
             has them; z in R^{|T| x |S|}, A and B belong to the layer
    targets  the projections of every attention, as in Polytropon's code

Then delta(x) = (1/r) sum_j m_j B_j A_j x with m = w v in R^{|S|}, one for each example.

Trained: W_Task and its bias once; z, A and B of every adapted layer.
Start, filled in too: B = 0, hence the base model; A and z as in Polytropon, uniform in +-1/sqrt(3 d_in) and +-1e-3; the
task router as torch starts a linear layer, so that inputs differ from the first step.

Sampling happens inside ``loss`` alone, and only while the model is in training mode, as in Polytropon. The mixture
depends on the input, so that nothing can be merged. The router's input does not depend on what is learned: w is the
same at every strength.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, check_rank, find_linear
from reference_impls.backbones.layers import Stack
from reference_impls.reparameterized.poly import EPS, relaxed_bernoulli


class TaskRouter(nn.Module):
    """Source -> weights of the abstract tasks; keeps the mean of Xhat of the last source."""

    pooled: Tensor | None = None
    """(B, d)"""
    sampling = False

    def __init__(self, like: Tensor, tasks: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.task = nn.Linear(like.shape[1], tasks, device=like.device, dtype=like.dtype)

    def receive(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Pre-hook on the encoder, whose arguments are X (B, n, d) and which positions are visible (B, n)."""
        X, visible = args[0], args[1]
        with torch.no_grad():  # nothing here is trained
            scores = (X @ X.mT / math.sqrt(X.shape[-1])).masked_fill(~visible[:, None], -math.inf)
            seen = visible.to(X).unsqueeze(-1)
            Xhat = scores.softmax(-1) @ X + X
            self.pooled = (Xhat * seen).sum(1) / seen.sum(1)

    def forward(self, count: int) -> Tensor:
        """w of ``count`` examples, (count, |T|)."""
        if self.pooled is None or count % len(self.pooled):
            known = "none" if self.pooled is None else len(self.pooled)
            raise AdapterError(f"{count} examples and sources of {known}; run the model on a batch")
        w = self.task(self.pooled).softmax(-1)
        # Examples repeated for generation stand beside each other.
        return w.repeat_interleave(count // len(self.pooled), 0)


class OrchestratedLinear(Wrapper):
    """y = W0 x + b + c s B (m * A x), every m_j on the r directions of its skill."""

    base: nn.Linear

    def __init__(self, base: nn.Linear, router: TaskRouter, skills: int, rank: int) -> None:
        super().__init__(base)
        # A tuple hides the router from module registration: it belongs to the model, once, not to every layer.
        self._router = (router,)
        self.rank, self.scale = rank, 1 / rank
        new, bound = base.weight.new_empty, 1 / math.sqrt(3 * base.in_features)
        self.A = nn.Parameter(nn.init.uniform_(new(skills * rank, base.in_features), -bound, bound))
        self.B = nn.Parameter(base.weight.new_zeros(base.out_features, skills * rank))
        self.z = nn.Parameter(nn.init.uniform_(new(router.task.out_features, skills), -1e-3, 1e-3))

    def mixture(self, count: int) -> Tensor:
        """m = w v of ``count`` examples, (count, |S|)."""
        (router,) = self._router
        w = router(count)
        if router.sampling:
            s = relaxed_bernoulli(self.z.expand(count, -1, -1), router.temperature)
        else:
            s = self.z.sigmoid().expand(count, -1, -1)
        v = s / (s.sum(-1, keepdim=True) + EPS)  # (count, |T|, |S|)
        return torch.einsum("nt,nts->ns", w, v)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, .., d_in) -> (B, .., d_out)."""
        m = self.mixture(len(x)).repeat_interleave(self.rank, 1)  # (B, |S| r)
        z = F.linear(x, self.A) * m.view(len(x), *[1] * (x.ndim - 2), -1)
        return self.base(x) + self.strength * self.scale * F.linear(z, self.B)


class OrchMoE(Adapter):
    """Skills, and two routers that find out from the input which of them to use."""

    router: TaskRouter
    relaxed = True

    def loss(self, batch: Any) -> Tensor:
        """Task loss, at sampled allocations."""
        self.router.sampling = self.relaxed and self.model.training
        try:
            return super().loss(batch)
        finally:
            self.router.sampling = False


def attach(
    model: nn.Module,
    *,
    tasks: int = 8,
    skills: int = 8,
    rank: int = 4,
    relaxed: bool = True,
    temperature: float = 1.0,
    targets: Sequence[str] = ("q", "k", "v", "o"),
) -> OrchMoE:
    """Give every linear layer named in ``targets`` an inventory of ``skills``, routed over ``tasks`` abstract tasks.

    ``relaxed`` samples allocations in training, at ``temperature``.
    """
    check_rank(rank)
    if min(tasks, skills) < 1 or temperature <= 0:
        raise AdapterError(f"tasks is {tasks}, skills {skills}, temperature {temperature}; at least 1, 1, and positive")
    layers = find_linear(model, targets)
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, Stack):
        raise AdapterError(f"{type(model).__name__} has no encoder whose input the task router could read")
    width = encoder.blocks[0].attention.q.weight  # type: ignore[union-attr]
    router = TaskRouter(width, tasks, temperature)  # type: ignore[arg-type]
    adapter = OrchMoE(model)
    adapter.router, adapter.relaxed = router, relaxed
    adapter.add("", "task_router", router)
    for path, base in layers.items():
        adapter.replace(path, OrchestratedLinear(base, router, skills, rank))
    adapter.hook("encoder", pre=router.receive)
    return adapter
