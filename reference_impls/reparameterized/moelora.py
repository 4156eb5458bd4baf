r"""MOELoRA: When MOE Meets LLMs, Parameter Efficient Fine-tuning for Multi-task Medical Applications.

Liu, Wu, Zhao, Zhu, Xu, Tian, Zheng; SIGIR 2024; arXiv 2310.18339.

The rank r of a LoRA is shared out among N experts of rank r / N, and one gate for the whole model weighs them by task:

    w(t) = softmax(W_T E_t) in R^N                      E in R^{(|T|+1) x d_T},  W_T in R^{N x d_T}, no bias
    y    = W0 x + b + (alpha / r) sum_i w_i(t) B_i A_i dropout(x)      A_i in R^{r/N x d_in},  B_i in R^{d_out x r/N}

The scale has the total rank r in it, so that equal weights 1/N give 1/N of the LoRA whose A is the stack of the A_i and
whose B has the B_i side by side. That is how the factors are kept here: w_i is one number for r/N of the r directions,
and acts between two thin products.

Trained: A_i and B_i of every adapted layer, E and W_T once; the paper adapts every linear layer of ChatGLM-6B's blocks.
Start: B = 0, hence the base model; A ~ N(0, 0.01^2), so that B gets a gradient; E ~ N(0, 1) and W_T uniform in
+-1/sqrt(d_T), as torch starts an embedding and a linear layer, so that tasks differ from the first step.

The gate sees the task and never the token: two examples of a task have equal weights in every layer, and for one
``task`` the change is one LoRA of rank at most r. Only so can it be merged, since every task has its own.

An example may have several ids (``task_ids`` of shape (B, M), padded with -1): their embeddings are averaged. The
official code numbers tasks from 1 and pads with 0, so its table has a row that is never used; here tasks are numbered
from 0, and the row for padding is kept, unused, so that counts agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError, Wrapper, find_linear
from reference_impls.reparameterized.lora import check
from reference_impls.tasks import PerTask, check_known, task_ids


class Gate(nn.Module):
    """Task -> weights of the experts; knows the ``ids`` of the batch, or the one ``task`` of all examples."""

    ids: Tensor | None = None
    task: int | None = None

    def __init__(self, like: Tensor, tasks: int, width: int, experts: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.E = nn.Parameter(nn.init.normal_(like.new_empty(tasks + 1, width)))  # row 0 is for padding
        self.W = nn.Parameter(nn.init.kaiming_uniform_(like.new_empty(experts, width), a=math.sqrt(5)))

    def receive(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Pre-hook on the model: take the ids of the batch; AdapterError where there are none, or unknown ones."""
        if self.task is not None:
            return
        ids = task_ids(args, wanted="(B,) or (B, M)")
        if ids.device.type != "meta":
            check_known(int(ids.amax(-1).min() if ids.ndim == 2 else ids.min()), int(ids.max()), self.tasks)
        self.ids = ids

    def forward(self, count: int) -> Tensor:
        """w of ``count`` examples, (count, N); of one task for all, (1, N)."""
        if self.task is not None:
            return F.linear(self.E[self.task + 1 : self.task + 2], self.W).softmax(-1)
        if self.ids is None or count % len(self.ids):
            known = "none" if self.ids is None else len(self.ids)
            raise AdapterError(f"{count} examples and task_ids of {known}; run the model, or set adapter.task")
        e = self.E[self.ids.clamp(min=-1) + 1]  # (B, d_T), of lists of ids (B, M, d_T)
        if self.ids.ndim == 2:
            real = (self.ids >= 0).to(e).unsqueeze(-1)
            e = (e * real).sum(1) / real.sum(1)
        # Examples repeated for generation stand beside each other.
        return F.linear(e, self.W).softmax(-1).repeat_interleave(count // len(self.ids), 0)


class ExpertsLinear(Wrapper):
    """y = W0 x + b + c s B (w * A x), every w_i on the r/N directions of its expert."""

    base: nn.Linear

    def __init__(self, base: nn.Linear, gate: Gate, rank: int, alpha: float, dropout: float) -> None:
        super().__init__(base)
        # A tuple hides the gate from module registration: it belongs to the model, once, not to every layer.
        self._gate = (gate,)
        self.rank, self.scale = rank, alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.A = nn.Parameter(nn.init.normal_(base.weight.new_empty(rank, base.in_features), std=0.01))
        self.B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    def weights(self, count: int) -> Tensor:
        """w for each of the r directions, (count or 1, r)."""
        (gate,) = self._gate
        w: Tensor = gate(count)
        return w.repeat_interleave(self.rank // w.shape[1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, .., d_in) -> (B, .., d_out)."""
        w = self.weights(len(x))
        z = F.linear(self.dropout(x), self.A) * w.view(len(w), *[1] * (x.ndim - 2), self.rank)
        return self.base(x) + self.strength * self.scale * F.linear(z, self.B)

    def delta_weight(self) -> Tensor:
        """The change for the gate's task, (d_out, d_in)."""
        return self.scale * (self.B * self.weights(1)) @ self.A

    def merged(self) -> dict[str, Tensor] | None:
        (gate,) = self._gate
        if gate.task is None:
            return None
        return {"weight": self.base.weight + self.strength * self.delta_weight()}


class MOELoRA(PerTask):
    """Low-rank experts, and one gate that weighs them by task."""

    gate: Gate

    @property
    def tasks(self) -> Gate:
        """The gate, which all layers share."""
        return self.gate


def attach(
    model: nn.Module,
    *,
    tasks: int,
    experts: int = 8,
    rank: int = 16,
    alpha: float = 32,
    dropout: float = 0.0,
    width: int = 64,
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down"),
) -> MOELoRA:
    """Give every linear layer named in ``targets`` ``experts`` of ``rank`` together, for ``tasks`` known by number.

    ``alpha`` is the numerator of the scale, ``width`` that of the task embeddings.
    """
    check(rank, alpha, dropout)
    if min(tasks, experts, width) < 1:
        raise AdapterError(f"tasks is {tasks}, experts {experts}, width {width}; all must be at least 1")
    if rank % experts:
        raise AdapterError(f"rank is {rank}, for {experts} experts together; it must be a multiple of their number")
    layers = find_linear(model, targets)
    gate = Gate(next(iter(layers.values())).weight, tasks, width, experts)
    adapter = MOELoRA(model)
    adapter.gate = gate
    adapter.add("", "moelora_gate", gate)
    for path, base in layers.items():
        adapter.replace(path, ExpertsLinear(base, gate, rank, alpha, dropout))
    adapter.hook("", pre=gate.receive)
    return adapter
