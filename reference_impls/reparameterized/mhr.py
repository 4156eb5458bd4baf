r"""MHR: Multi-Head Adapter Routing for Cross-Task Generalization.

Page-Caccia, Ponti, Su, Pereira, Le Roux, Sordoni; NeurIPS 2023; arXiv 2211.03831.

Polytropon with h routing rows a task instead of one. The features of a layer are cut into h blocks, of d_in / h inputs
and d_out / h outputs each; row k of Z in R^{|T| x h x |S|} mixes the k-th block of A and the k-th block of B:

    w_{t,k,s} = sigmoid(Z_{t,k,s}) / (sum_s sigmoid(Z_{t,k,s}) + 1e-12)
    A_t = concat_k sum_s w_{t,k,s} A_{s,k} in R^{d_in x r}      along the inputs,   A_{s,k} in R^{d_in/h x r}
    B_t = concat_k sum_s w_{t,k,s} B_{s,k} in R^{r x d_out}     along the outputs,  B_{s,k} in R^{r x d_out/h}
    y   = W0 x + b + (alpha / r) x A_t B_t                      rows x; averages come before the product

Trained on many tasks: A, B and Z of every adapted layer, Z faster; h = 1 is Polytropon. Skills cost the same for every
h, Z is h times as large. Start: as in Polytropon, B = 0, hence the base model; A uniform in +-1/sqrt(3 d_in), so that B
gets a gradient, and for every h alike, since blocks are pieces of the same matrices; Z in +-1e-3, no skill preferred.
The official configuration for T0 does not sample allocations in training; ``relaxed`` does.

For a new task:

    MHR      a fresh row (``add_task``), then A, B and Z are tuned
    MHR-z    a fresh row, and Z alone is tuned (``freeze_skills`` first)
    MHR-mu   no routing: the plain mean of the skills, one LoRA, is tuned (``average``), also without any new task
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError, find_linear
from reference_impls.reparameterized.lora import LoRALinear
from reference_impls.reparameterized.lora import attach as attach_lora
from reference_impls.reparameterized.poly import Poly, Routing, SkilledLinear, check


class MultiHeadLinear(SkilledLinear):
    """A Polytropon layer whose rows of z, (h, |S|) a task, mix block by block."""

    def __init__(self, base: nn.Linear, skills: int, rank: int, splits: int, routing: Routing, alpha: float) -> None:
        self.splits = splits
        super().__init__(base, skills, rank, routing, alpha)

    def fresh_rows(self, count: int) -> Tensor:
        """Z of ``count`` tasks at the start, (count, h, |S|)."""
        return nn.init.uniform_(self.A.new_empty(count, self.splits, len(self.A)), -1e-3, 1e-3)

    def pair(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """A_t (n, d_in, r) and B_t (n, r, d_out) for weights (n, h, |S|)."""
        A = self.A.unflatten(1, (self.splits, -1))  # (|S|, h, d_in/h, r)
        B = self.B.unflatten(2, (self.splits, -1))  # (|S|, r, h, d_out/h)
        mixed_A = torch.einsum("nks,skir->nkir", w, A).flatten(1, 2)
        # The rank comes before the blocks, so that blocks lie side by side along the outputs.
        return mixed_A, torch.einsum("nks,srko->nrko", w, B).flatten(2)


class MHR(Poly):
    """Skills in blocks, and which of them every block of a task uses."""

    def freeze_skills(self) -> None:
        """Train Z alone from now on (MHR-z)."""
        for layer in self.layers():
            layer.A.requires_grad_(False)
            layer.B.requires_grad_(False)


def average(adapter: MHR) -> Adapter:
    """Take MHR off the model and put one LoRA with the mean of its skills in its place (MHR-mu); the LoRA adapter.

    That is MHR with weights 1/|S| for every task. It knows no tasks, and starts at strength 1.
    """
    layers = {path: site for path, site in adapter.sites().items() if isinstance(site, SkilledLinear)}
    first = next(iter(layers.values()))
    names = sorted({path.rpartition(".")[2] for path in layers})
    adapter.detach()
    lora = attach_lora(adapter.model, rank=first.rank, alpha=first.scale * first.rank, targets=names)
    for path, site in lora.sites().items():
        assert isinstance(site, LoRALinear)
        with torch.no_grad():
            site.A.copy_(layers[path].A.mean(0).T)
            site.B.copy_(layers[path].B.mean(0).T)
    return lora


def attach(
    model: nn.Module,
    *,
    tasks: int,
    skills: int = 8,
    rank: int = 1,
    splits: int = 64,
    alpha: float = 1.0,
    relaxed: bool = False,
    temperature: float = 1.0,
    speed: float = 100.0,
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down"),
) -> MHR:
    """Give every linear layer named in ``targets`` ``skills`` in ``splits`` blocks for ``tasks`` known by number.

    ``alpha`` is the numerator of the scale, ``speed`` the ratio of the learning rates of Z and the skills.
    """
    check(tasks, skills, rank, temperature, speed)
    if splits < 1 or alpha <= 0:
        raise AdapterError(f"splits is {splits}, alpha {alpha}; at least 1, and positive")
    layers = find_linear(model, targets)
    for path, base in layers.items():
        if base.in_features % splits or base.out_features % splits:
            width = f"{base.in_features} inputs and {base.out_features} outputs"
            raise AdapterError(f"splits is {splits}; it must divide the {width} of {path}")
    adapter = MHR(model)
    adapter.routing = Routing(tasks, temperature)
    adapter.relaxed, adapter.speed = relaxed, speed
    for path, base in layers.items():
        adapter.replace(path, MultiHeadLinear(base, skills, rank, splits, adapter.routing, alpha))
    adapter.hook("", pre=adapter.routing.receive)
    return adapter
