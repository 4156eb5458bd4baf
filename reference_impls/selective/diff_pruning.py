r"""Diff Pruning: Parameter-Efficient Transfer Learning with Diff Pruning.

Guo, Rush, Kim; ACL-IJCNLP 2021; arXiv 2012.07463, sections 3.1 to 3.3.

    theta = theta_0 + c delta,   delta = z * w                              elementwise
    u ~ U(eps, 1 - eps),  s = sigmoid(log u - log(1 - u) + alpha),  z = min(1, max(0, s (r - l) + l)),   l < 0, r > 1
    structured: delta = z_g z * w with one more gate z_g for every tensor
    min over w, alpha:  E_z[task loss] + lambda E||delta||_0,   E||delta||_0 = sum_i P(z_i > 0) P(z_g > 0),
    P(z > 0) = sigmoid(alpha - log(-l / r))

Trained in three stages: w and alpha of every weight of the encoder, with sampled gates and the penalty; then z is drawn
a last time and the k = target_sparsity N entries with the largest |z w| of the whole model are kept; then their values
alone, with five times the step size. The head is trained freely throughout and costs no budget.
Start: w = 0, so that the model is the base model whatever the gates; alpha = 5, so that gates are open and changes can
grow before the penalty closes what the task does not need.

Gates are sampled where the paper takes an expectation: in the training loss, while the model is in training mode. A
plain forward pass before the projection has the gates z = min(1, max(0, sigmoid(alpha) (r - l) + l)).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError, Delta

HEADS = ("head", "lm_head")
"""Task heads: outside of the penalty and the budget."""
EDGE = 1e-4
"""How far u stays from 0 and 1."""


class HardConcrete(nn.Module):
    """Gates in [0, 1] that are exactly 0 or 1 with positive probability, one for every entry of alpha."""

    def __init__(self, alpha: Tensor, low: float, high: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(alpha)
        self.low, self.high = low, high
        self.noise: Tensor | None = None

    def sample(self) -> None:
        """Draw log u - log(1 - u); it holds until it is dropped, so that one loss sees one sample."""
        self.noise = torch.empty_like(self.alpha, requires_grad=False).uniform_(EDGE, 1 - EDGE).logit()

    def forward(self) -> Tensor:
        score = self.alpha if self.noise is None else self.alpha + self.noise
        return (torch.sigmoid(score) * (self.high - self.low) + self.low).clamp(0.0, 1.0)

    def open_probability(self) -> Tensor:
        """P(z > 0) under sampling."""
        return torch.sigmoid(self.alpha - math.log(-self.low / self.high))


class SparseDelta(Delta):
    """A change of a few entries of a tensor: ``values`` (k) at ``positions`` (k) of the flattened tensor."""

    positions: Tensor

    def __init__(self, base: Tensor, positions: Tensor, values: Tensor | None = None) -> None:
        super().__init__()
        self.values = nn.Parameter(base.new_zeros(len(positions)) if values is None else values.clone())
        # Four bytes a position; a single tensor has fewer than 2^31 entries.
        self.register_buffer("positions", positions.to(base.device, torch.int32))

    def forward(self, base: Tensor) -> Tensor:
        return base.flatten().index_add(0, self.positions, self.strength * self.values).view_as(base)

    def delta_weight(self, base: Tensor) -> Tensor:
        return torch.zeros_like(base).flatten().index_add(0, self.positions, self.values).view_as(base)

    def support(self, base: Tensor) -> Tensor:
        """Where the tensor may change, in the shape of ``base``."""
        mask = torch.zeros(base.numel(), dtype=torch.bool, device=base.device)
        mask[self.positions.long()] = True
        return mask.view_as(base)


class GatedDelta(Delta):
    """delta = z_g z * w while gates are learned; what was ``kept`` of it once the positions are fixed."""

    def __init__(self, base: Tensor, alpha: float, low: float, high: float, structured: bool) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros_like(base))
        self.gate = HardConcrete(torch.full_like(base, alpha), low, high)
        self.group = HardConcrete(base.new_full((), alpha), low, high) if structured else None
        self.kept: SparseDelta | None = None

    def gates(self) -> Tensor:
        """z, or z_g z."""
        return self.gate() if self.group is None else self.group() * self.gate()

    def delta_weight(self, base: Tensor) -> Tensor:
        return self.gates() * self.w if self.kept is None else self.kept.delta_weight(base)

    def support(self, base: Tensor) -> Tensor:
        """Where the tensor may differ from the base: open gates, then fixed positions."""
        return self.gates() != 0 if self.kept is None else self.kept.support(base)

    def expected_count(self) -> Tensor:
        """E||delta||_0, the differentiable number of open gates."""
        count = self.gate.open_probability().sum()
        return count if self.group is None else self.group.open_probability() * count

    def fix(self, positions: Tensor, values: Tensor) -> None:
        """Learn no more gates, and nothing but the values at these positions."""
        self.kept = SparseDelta(self.w, positions, values)
        del self.w, self.gate, self.group


class DiffPruning(Adapter):
    """A sparse change of every weight of the encoder, found by an L0 penalty."""

    mergeable = True
    family = "sparse"
    # Softmax is invariant to what a bias of the keys adds: q^T (k + b) moves the scores of all keys alike.
    inert = (".k.parametrizations.bias.0.w",)
    retraining_rate = 5.0
    """Step size of the last stage relative to the first: 5e-5 after 1e-5 in the paper."""

    def __init__(self, model: nn.Module, penalty: float, target_sparsity: float, alpha_learning_rate: float) -> None:
        super().__init__(model)
        self.penalty = penalty
        self.target_sparsity = target_sparsity
        self.alpha_learning_rate = alpha_learning_rate

    def deltas(self) -> dict[str, GatedDelta]:
        """The gated changes; the head's are not gated."""
        return {path: site for path, site in self.sites().items() if isinstance(site, GatedDelta)}

    @property
    def projected(self) -> bool:
        """Whether the positions are fixed."""
        return all(site.kept is not None for site in self.deltas().values())

    def loss(self, batch: Any) -> Tensor:
        """Task loss with sampled gates (in training mode) plus the L0 penalty; the task loss alone after projection."""
        if self.projected:
            return super().loss(batch)
        try:
            for gate in self._gates() if self.model.training else ():
                gate.sample()
            task = super().loss(batch)
        finally:
            for gate in self._gates():
                gate.noise = None
        return task + self.penalty * torch.stack([site.expected_count() for site in self.deltas().values()]).sum()

    def _gates(self) -> list[HardConcrete]:
        return [m for site in self.deltas().values() for m in site.modules() if isinstance(m, HardConcrete)]

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """AdamW without decay, with a step size of its own for alpha: gates have far to go, changes little."""
        alphas = [p for name, p in self.named_parameters() if name.endswith(".alpha")]
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in self.named_parameters() if not name.endswith(".alpha")]},
            {"params": alphas, "lr": self.alpha_learning_rate},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0)

    def fit(self, batches: Iterable[Any], learning_rate: float | None = None) -> list[float]:
        """Half of the steps with learned gates, projection, the other half with fixed positions.

        An adapter that is projected already spends all steps on the last stage.
        """
        steps, rate = list(batches), learning_rate or self.learning_rate
        first = 0 if self.projected else (len(steps) + 1) // 2
        losses = self._stage(steps[:first], rate)
        if first:
            self.project()
        return losses + self._stage(steps[first:], self.retraining_rate * rate)

    def _stage(self, batches: list[Any], learning_rate: float) -> list[float]:
        optimizer = self.optimizer(learning_rate)
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            for group in optimizer.param_groups:  # changes and gates apart, as their sizes have nothing in common
                nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimizer.step()
            losses.append(loss.item())
        return losses

    @torch.no_grad()
    def project(self) -> None:
        """Draw z once, keep the k entries with the largest |z w| of all tensors together and fix where they are."""
        sites = self.deltas().values()
        for gate in self._gates():
            gate.sample()
        changes = [(site.gates() * site.w).flatten() for site in sites]
        sizes = torch.cat(changes).abs()
        chosen = torch.zeros_like(sizes, dtype=torch.bool)
        chosen[sizes.topk(int(self.target_sparsity * len(sizes))).indices] = True
        for site, change, mask in zip(sites, changes, chosen.split([len(c) for c in changes]), strict=True):
            site.fix(mask.nonzero().flatten(), change[mask])

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a learned part; what was saved after projection makes this adapter projected too."""
        names = [f"{path}.kept.positions" for path in self.deltas()]
        if not self.projected and all(name in state for name in names):
            for name, site in zip(names, self.deltas().values(), strict=True):
                site.fix(state[name], site.w.new_zeros(len(state[name])))
        super().load_state_dict(state)


def attach(
    model: nn.Module,
    *,
    target_sparsity: float = 0.005,
    penalty: float = 1.25e-7,
    structured: bool = True,
    alpha: float = 5.0,
    low: float = -1.5,
    high: float = 1.5,
    alpha_learning_rate: float = 0.1,
    train_head: bool = True,
) -> Adapter:
    """Learn a gated change of every tensor outside the heads; keep the share ``target_sparsity`` of their entries.

    ``penalty`` multiplies a sum over all weights: small models want a larger one.
    """
    if not 0 <= target_sparsity <= 1 or penalty < 0:
        raise AdapterError(f"target_sparsity is in [0, 1] and penalty at least 0, not {target_sparsity} and {penalty}")
    if not (low < 0 and high > 1):
        raise AdapterError(f"gates need low < 0 and high > 1 to close and open fully, not {low} and {high}")
    names = [name for name, _ in model.named_parameters() if name.split(".")[0] not in HEADS]
    adapter = DiffPruning(model, penalty, target_sparsity, alpha_learning_rate)
    for name in names:
        adapter.reparameterize(name, GatedDelta(model.get_parameter(name), alpha, low, high, structured))
    if train_head:
        adapter.unfreeze("head")
    return adapter
