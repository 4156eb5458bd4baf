r"""Polytropon: Combining Modular Skills in Multitask Learning.

Ponti, Sordoni, Bengio, Reddy; EACL 2023 (as Combining Parameter-efficient Modules for Task-level Generalisation);
arXiv 2202.13914, sections 2.1 to 2.4, equations 2, 3, 4 and 6.

For task i of |T|, with |S| skills in every adapted layer and z in R^{|T| x |S|} a layer's allocation logits:

    zhat_ij = sigmoid((z_ij + log u - log(1 - u)) / tau),  u ~ U(0, 1)        in training: a relaxed Bernoulli
    zhat_ij = sigmoid(z_ij)                                                   otherwise
    w_ij    = zhat_ij / (sum_j zhat_ij + 1e-12)
    A_i     = sum_j w_ij A_j in R^{d_in x r},   B_i = sum_j w_ij B_j in R^{r x d_out}
    y       = W0 x + b + (1/r) x A_i B_i                                      rows x, one task for each example

Factors are averaged before they are multiplied, as in the official code: A_i B_i has the cross terms A_j B_k. Rows of
zhat are normalized, since otherwise the number of active skills would set the size of the change.

Trained: A_j, B_j and z of every adapted layer; the official code adapts the four projections of every attention.
Start: B = 0, hence the base model; A uniform in +-1/sqrt(3 d_in) (Kaiming's gain for a leaky ReLU of slope sqrt 5),
so that B gets a gradient; z in +-1e-3, so that no skill is preferred and all are about half on.

Against a collapse where every task uses every skill, the paper tries two biases. One is a higher learning rate for z
(``speed``), adopted for language. The other is an Indian-buffet prior on the binary Z = [z > 0] (``prior``): its log,
summed over all layers and with a straight-through gradient, is subtracted from the loss:

    log p(Z | alpha) = K log alpha - sum_h log K_h! - alpha H_|T| + sum_j [log (|T| - m_j)! + log (m_j - 1)! - log |T|!]

m_j tasks use skill j, K_h skills are used by exactly the tasks h, and K skills by any task; sums are over these.

Sampling happens inside ``loss`` alone, and only while the model is in training mode: a model is so by default, and a
forward pass outside of training should give one answer. A new task gets a fresh row (``add_task``), then z and skills
are tuned on its few examples. For one ``task`` the change is an ordinary low-rank one, and only so can it be merged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError, Wrapper, check_rank, find_linear
from reference_impls.tasks import PerTask, check_known, task_ids

EPS = 1e-12


def relaxed_bernoulli(z: Tensor, temperature: float) -> Tensor:
    """A differentiable sample, between 0 and 1, for every logit of z."""
    tiny = torch.finfo(z.dtype).eps
    u = torch.rand_like(z).clamp(tiny, 1 - tiny)
    return ((z + u.log() - (-u).log1p()) / temperature).sigmoid()


class Routing:
    """What all layers know of the batch: ``ids`` (B,), or the one ``task`` that every example belongs to."""

    def __init__(self, tasks: int, temperature: float = 1.0) -> None:
        self.tasks, self.temperature = tasks, temperature
        self.ids: Tensor | None = None
        self.task: int | None = None
        self.sampling = False

    def receive(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Pre-hook on the model: take the ids of the batch; AdapterError where there are none, or unknown ones."""
        if self.task is not None:
            return
        ids = task_ids(args)
        if ids.ndim != 1:
            raise AdapterError(f"task_ids are {tuple(ids.shape)}; Polytropon has one task an example, (B,)")
        if ids.device.type != "meta":
            check_known(int(ids.min()), int(ids.max()), self.tasks)
        self.ids = ids

    def rows(self, z: Tensor, count: int) -> Tensor:
        """Of z (|T|, ..) those of ``count`` examples, (count, ..); (1, ..) of one task for all, unless sampled."""
        if self.task is not None:
            return z[self.task].expand(count if self.sampling else 1, *z.shape[1:])
        if self.ids is None or count % len(self.ids):
            known = "none" if self.ids is None else len(self.ids)
            raise AdapterError(f"{count} examples and task_ids of {known}; run the model, or set adapter.task")
        # Examples repeated for generation stand beside each other.
        return z[self.ids.repeat_interleave(count // len(self.ids))]

    def allocate(self, z: Tensor) -> Tensor:
        """zhat, of any shape."""
        return relaxed_bernoulli(z, self.temperature) if self.sampling else z.sigmoid()


class SkilledLinear(Wrapper):
    """y = W0 x + b + c s x A_i B_i with the averages of task i's skills; an ``allocation`` is a fixed zhat."""

    base: nn.Linear

    def __init__(
        self,
        base: nn.Linear,
        skills: int,
        rank: int,
        routing: Routing,
        alpha: float = 1.0,
        allocation: Tensor | None = None,
    ) -> None:
        super().__init__(base)
        self.rank, self.scale = rank, alpha / rank
        self._routing = routing
        bound = 1 / math.sqrt(3 * base.in_features)
        new = base.weight.new_empty
        self.A = nn.Parameter(nn.init.uniform_(new(skills, base.in_features, rank), -bound, bound))
        self.B = nn.Parameter(base.weight.new_zeros(skills, rank, base.out_features))
        self.learned = allocation is None
        if allocation is None:
            self.z = nn.Parameter(self.fresh_rows(routing.tasks))
        else:
            self.register_buffer("z", allocation.to(base.weight))

    def fresh_rows(self, count: int) -> Tensor:
        """z of ``count`` tasks at the start."""
        return nn.init.uniform_(self.A.new_empty(count, len(self.A)), -1e-3, 1e-3)

    def weights(self, count: int) -> Tensor:
        """w (n, |S|): one row an example, or one for all."""
        rows = self._routing.rows(self.z, count)
        hat = self._routing.allocate(rows) if self.learned else rows
        return hat / (hat.sum(-1, keepdim=True) + EPS)

    def pair(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """A_i (n, d_in, r) and B_i (n, r, d_out) for weights (n, |S|)."""
        return torch.einsum("ns,sir->nir", w, self.A), torch.einsum("ns,sro->nro", w, self.B)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, .., d_in) -> (B, .., d_out)."""
        A, B = self.pair(self.weights(len(x)))
        thin = torch.einsum("b...i,bir->b...r", x, A)
        return self.base(x) + self.strength * self.scale * torch.einsum("b...r,bro->b...o", thin, B)

    def delta_weight(self) -> Tensor:
        """The change for the routing's task, (d_out, d_in)."""
        A, B = self.pair(self.weights(1))
        return self.scale * (A[0] @ B[0]).T

    def merged(self) -> dict[str, Tensor] | None:
        if self._routing.task is None:
            return None
        return {"weight": self.base.weight + self.strength * self.delta_weight()}


def log_prior(z: Tensor, alpha: float) -> Tensor:
    """log p(Z | alpha) of the Indian buffet for logits (.., |T|, |S|), summed over the leading axes."""
    p = z.sigmoid()
    hard = (z > 0).to(z)
    Z = hard + (p - p.detach())  # binary, with the gradient of p
    m = Z.sum(-2)  # (.., |S|)
    used = hard.any(-2)
    tasks = z.shape[-2]
    alike = (hard.unsqueeze(-1) == hard.unsqueeze(-2)).all(-3).sum(-1).to(z)  # K_h of the skill's own history
    term = math.log(alpha) - torch.lgamma(alike + 1) / alike - math.lgamma(tasks + 1)
    term = term + torch.lgamma(tasks - m + 1) + torch.lgamma(torch.where(used, m, 1.0))
    matrices = z.numel() // (tasks * z.shape[-1])
    return torch.where(used, term, 0.0).sum() - matrices * alpha * sum(1 / n for n in range(1, tasks + 1))


class Poly(PerTask):
    """Skills, and which of them a task uses."""

    routing: Routing
    relaxed = True
    speed = 10.0
    prior = 0.0
    alpha = 5.0

    @property
    def tasks(self) -> Routing:
        """The routing, which all layers share."""
        return self.routing

    def loss(self, batch: Any) -> Tensor:
        """Task loss at sampled allocations, minus the prior's log-probability if it has a weight."""
        self.routing.sampling = self.relaxed and self.model.training
        try:
            loss = super().loss(batch)
        finally:
            self.routing.sampling = False
        for layer in self.layers() if self.prior else ():
            loss = loss - self.prior * log_prior(layer.z.movedim(0, -2), self.alpha)
        return loss

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """AdamW without decay; z is ``speed`` times as fast as the skills."""
        logits = [layer.z for layer in self.layers() if layer.z.requires_grad]
        skills = [p for p in self.parameters() if not any(p is z for z in logits)]
        groups: list[dict[str, Any]] = [{"params": skills}, {"params": logits, "lr": self.speed * learning_rate}]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, weight_decay=0.0)

    def add_task(self) -> int:
        """Give every layer a fresh row for a new task; its id. An optimizer made before does not know it."""
        layers = self.layers()
        if self._kept is not None or not all(layer.learned for layer in layers):
            raise AdapterError("a row cannot be added while the adapter is merged, nor to a fixed allocation")
        for layer in layers:
            layer.z = nn.Parameter(torch.cat([layer.z.detach(), layer.fresh_rows(1)]))
        self.routing.tasks += 1
        return self.routing.tasks - 1

    def layers(self) -> list[SkilledLinear]:
        return [site for site in self.sites().values() if isinstance(site, SkilledLinear)]


def attach(
    model: nn.Module,
    *,
    tasks: int,
    skills: int = 8,
    rank: int = 16,
    allocation: Tensor | None = None,
    relaxed: bool = True,
    temperature: float = 1.0,
    speed: float = 10.0,
    prior: float = 0.0,
    alpha: float = 5.0,
    targets: Sequence[str] = ("q", "k", "v", "o"),
) -> Poly:
    """Give every linear layer named in ``targets`` an inventory of ``skills`` for ``tasks`` known by number.

    ``allocation`` (|T|, |S|) fixes zhat in all layers: ones for one skill shared by all tasks, the identity for a
    private one each. ``relaxed`` samples in training; ``prior`` is the weight of the Indian-buffet prior, ``alpha`` its
    parameter, and ``speed`` the ratio of the learning rates of z and the skills.
    """
    check(tasks, skills, rank, temperature, speed)
    if prior < 0 or alpha <= 0 or (prior and allocation is not None):
        raise AdapterError(f"prior is {prior}, alpha {alpha}; at least 0, above 0, and no prior on a fixed allocation")
    if allocation is not None and (
        allocation.shape != (tasks, skills) or bool((allocation < 0).any()) or not bool((allocation.sum(1) > 0).all())
    ):
        raise AdapterError(f"allocation must be ({tasks}, {skills}), not negative, and leave no task without a skill")
    layers = find_linear(model, targets)
    adapter = Poly(model)
    adapter.routing = Routing(tasks, temperature)
    adapter.relaxed, adapter.speed, adapter.prior, adapter.alpha = relaxed, speed, prior, alpha
    for path, base in layers.items():
        adapter.replace(path, SkilledLinear(base, skills, rank, adapter.routing, allocation=allocation))
    adapter.hook("", pre=adapter.routing.receive)
    return adapter


def check(tasks: int, skills: int, rank: int, temperature: float, speed: float) -> None:
    """AdapterError for a size, temperature or ratio of learning rates that makes no sense."""
    check_rank(rank)
    if min(tasks, skills) < 1:
        raise AdapterError(f"tasks is {tasks}, skills {skills}; both must be at least 1")
    if min(temperature, speed) <= 0:
        raise AdapterError(f"temperature is {temperature}, speed {speed}; both must be positive")
