r"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning.

Zhang, Chen, Bukharin, Karampatziakis, He, Cheng, Chen, Zhao; ICLR 2023; arXiv 2303.10512, section 3, equations 3 to 11,
algorithm 1, appendix A.

    y = W0 x + b + s P (lambda * (Q x)),   s = alpha / r0                       (* element-wise)
    W0 in R^{d_out x d_in} frozen,  P in R^{d_out x r0},  lambda in R^{r0},  Q in R^{r0 x d_in}
    loss = task + gamma * sum over all layers of || P^T P - I ||_F^2 + || Q Q^T - I ||_F^2

Trained: P, lambda and Q of every adapted layer. Start: lambda = 0, hence the base model; P and Q from a Gaussian of
deviation 0.02. The task's gradient reaches lambda first; until then the penalty alone moves P and Q.

Every step, of every trained entry w with gradient g, both from before the optimizer moves w:

    I = |w g|,   I_bar <- beta1 I_bar + (1 - beta1) I,   U_bar <- beta2 U_bar + (1 - beta2) |I - I_bar|
    s(w) = I_bar U_bar,   S_i = s(lambda_i) + mean_j s(P_ji) + mean_j s(Q_ij), the score of triplet i of one layer

All triplets of all n layers compete: those outside the b(t) best get lambda_i = 0, but keep P and Q and a gradient, and
may come back before the next pruning. In steps t, with b0 = r0 n and b_T = target n:

    t <= t_i                nothing is pruned
    t_i < t <= T - t_f      b(t) = b_T + (b0 - b_T) (1 - (t - t_i) / (T - t_i - t_f))^3, every Delta T steps
    t > T - t_f             b(t) = b_T every step, from scores that no longer change

The budget is that of the official code: as printed in the appendix it would start above b0 and jump. ``official`` gives
the code's other departures too: scores of w after the optimizer's step with g from before it, a penalty that is the
mean of the norms over all P and Q, and ties at the threshold pruned as a whole. The scale keeps r0 after pruning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, DeltaLinear, check_rank, find_linear
from reference_impls.reparameterized.lora import check


@dataclass(frozen=True)
class Schedule:
    """Lengths in steps: T in all, t_i before the first pruning, t_f after the last new one, Delta T between two."""

    total: int
    warmup: int
    final: int
    interval: int

    def budget(self, step: int, start: int, target: int) -> tuple[int, bool]:
        """b(t) in triplets, from ``start`` to ``target``, and whether step t prunes."""
        if step <= self.warmup:
            return start, False
        if step > self.total - self.final:
            return target, True
        left = 1 - (step - self.warmup) / (self.total - self.warmup - self.final)
        return int(target + (start - target) * left**3), step % self.interval == 0


class SVDLinear(DeltaLinear):
    """y = W0 x + b + c s P (lambda * Q x), with smoothed sensitivities of all entries."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base)
        self.rank = rank
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.P = nn.Parameter(nn.init.normal_(base.weight.new_empty(base.out_features, rank), std=0.02))
        self.lam = nn.Parameter(base.weight.new_zeros(rank))
        self.Q = nn.Parameter(nn.init.normal_(base.weight.new_empty(rank, base.in_features), std=0.02))
        for name in ("P", "lam", "Q"):
            entries: nn.Parameter = getattr(self, name)
            for kind in ("now", "I", "U"):
                self.register_buffer(f"{kind}_{name}", torch.zeros_like(entries.data), persistent=False)
            # The one moment when the gradient is complete and the entries have not moved yet, whatever the optimizer.
            entries.register_post_accumulate_grad_hook(lambda _, name=name: self.sense(name))

    def delta(self, x: Tensor) -> Tensor:
        z = F.linear(self.dropout(x), self.Q) * (self.lam * self.scale)  # (..., r0)
        return F.linear(z, self.P)  # (..., d_out)

    def delta_weight(self) -> Tensor:
        return self.scale * (self.P * self.lam) @ self.Q

    def penalty(self, power: int = 2) -> Tensor:
        """|| P^T P - I ||_F^2 + || Q Q^T - I ||_F^2, pruned directions included; ``power`` 1: not squared."""
        eye = torch.eye(self.rank, dtype=self.P.dtype, device=self.P.device)
        norms = [torch.linalg.matrix_norm(product - eye) for product in (self.P.T @ self.P, self.Q @ self.Q.T)]
        return norms[0] ** power + norms[1] ** power

    @torch.no_grad()
    def sense(self, name: str) -> None:
        """I of the entries ``name``, from their present values and gradients."""
        entries: nn.Parameter = getattr(self, name)
        if entries.grad is not None:
            self.get_buffer(f"now_{name}").copy_((entries * entries.grad).abs())

    def smooth(self, beta1: float, beta2: float) -> None:
        """Take I into I_bar and U_bar."""
        for name in ("P", "lam", "Q"):
            now, mean, spread = (self.get_buffer(f"{kind}_{name}") for kind in ("now", "I", "U"))
            mean.mul_(beta1).add_(now, alpha=1 - beta1)
            spread.mul_(beta2).add_((now - mean).abs(), alpha=1 - beta2)

    def scores(self) -> Tensor:
        """S, (r0,)."""
        s = {name: self.get_buffer(f"I_{name}") * self.get_buffer(f"U_{name}") for name in ("P", "lam", "Q")}
        return s["lam"] + s["P"].mean(dim=0) + s["Q"].mean(dim=1)


class AdaLoRA(Adapter):
    """Triplets of all layers under one budget; ``penalty`` is gamma, ``step`` the number of steps taken."""

    mergeable = True
    family = "low-rank"
    schedule: Schedule
    target_rank: int
    penalty = 0.1
    betas = (0.85, 0.85)
    official = False
    step = 0

    def loss(self, batch: Any) -> Tensor:
        """Task loss plus gamma times the distance of the singular vectors from being orthonormal."""
        loss = super().loss(batch)
        if not self.penalty:
            return loss
        layers = self.layers()
        distance = sum((s.penalty(1 if self.official else 2) for s in layers), loss.new_zeros(()))
        return loss + self.penalty * (distance / (2 * len(layers)) if self.official else distance)

    def after_step(self) -> None:
        """Update the scores and, when the schedule says so, prune."""
        self.step += 1
        layers = self.layers()
        full = sum(layer.rank for layer in layers)
        with torch.no_grad():
            if self.step < self.schedule.total - self.schedule.final:
                for layer in layers:
                    if self.official:
                        for name in ("P", "lam", "Q"):
                            layer.sense(name)
                    layer.smooth(*self.betas)
            budget, prunes = self.schedule.budget(self.step, full, self.target_rank * len(layers))
            if prunes and budget < full:
                self.prune(layers, full - budget)

    def prune(self, layers: Sequence[SVDLinear], count: int) -> None:
        """Set lambda to zero in the ``count`` triplets of least score, and where they tie in the official code."""
        scores = torch.cat([layer.scores() for layer in layers])
        order = scores.sort(stable=True)
        least = torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, order.indices[:count], True)
        if self.official:
            least = scores <= order.values[count - 1]
        for layer, mask in zip(layers, least.split([layer.rank for layer in layers]), strict=True):
            layer.lam.masked_fill_(mask, 0.0)

    def layers(self) -> list[SVDLinear]:
        return [site for site in self.sites().values() if isinstance(site, SVDLinear)]

    def ranks(self) -> dict[str, int]:
        """Path -> number of singular values that are not zero."""
        return {path: int(s.lam.count_nonzero()) for path, s in self.sites().items() if isinstance(s, SVDLinear)}


def attach(
    model: nn.Module,
    *,
    initial_rank: int = 12,
    target_rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    penalty: float = 0.1,
    total_steps: int = 3000,
    warmup: int = 500,
    final: int = 1500,
    interval: int = 10,
    betas: tuple[float, float] = (0.85, 0.85),
    official: bool = False,
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down"),
) -> Adapter:
    """Adapt every linear layer whose name is in ``targets``, with ``target_rank`` triplets a layer left on average.

    ``total_steps``, ``warmup``, ``final`` and ``interval`` are T, t_i, t_f and Delta T. ``official`` follows the
    official code; its penalty is far smaller than the paper's at the same ``penalty``, which is gamma.
    """
    check(initial_rank, alpha, dropout)
    check_rank(target_rank)
    if target_rank > initial_rank:
        raise AdapterError(f"target_rank is {target_rank}; it cannot be above initial_rank, {initial_rank}")
    if min(warmup, final) < 0 or interval < 1 or total_steps <= warmup + final:
        raise AdapterError(
            f"total_steps is {total_steps}, warmup {warmup}, final {final} and interval {interval}; none may be"
            " negative, the interval must be at least 1, and there must be steps left to prune in"
        )
    if penalty < 0 or not all(0 < beta < 1 for beta in betas):
        raise AdapterError(f"penalty is {penalty} and betas {betas}; allowed: at least 0, and between 0 and 1")
    layers = find_linear(model, targets)
    for path, layer in layers.items():
        if initial_rank > min(layer.weight.shape):
            raise AdapterError(f"initial_rank is {initial_rank}; {path} has {min(layer.weight.shape)} singular values")
    adapter = AdaLoRA(model)
    adapter.target_rank, adapter.penalty, adapter.betas, adapter.official = target_rank, penalty, betas, official
    adapter.schedule = Schedule(total_steps, warmup, final, interval)
    for path, base in layers.items():
        adapter.replace(path, SVDLinear(base, initial_rank, alpha, dropout))
    return adapter
