r"""FISH Mask: Training Neural Networks with Fixed Sparse Masks.

Sung, Nair, Raffel; NeurIPS 2021; arXiv 2111.09839.

    F_i = 1/N sum_j (d log p_theta(y_j | x_j) / d theta_i)^2          empirical Fisher information of weight i
    theta = theta_0 + c M * d,   M_i = 1 for the k largest F_i of the whole model, 0 elsewhere
    k = floor(keep_ratio N_total) - N_head

Trained: the k chosen weights and the whole task head, which counts towards the budget. The squares are taken example by
example and then averaged: two examples that pull a weight in opposite directions make it important, although their
gradients cancel in a batch. The choice is global, so that some tensors get no entry at all, and is never revised.
Start: pretrained weights; the Fisher is computed before any step, with the head as it is.

The paper masks the gradients of all weights. Here only the k values exist, scattered into the frozen tensors in the
forward pass, which trains the same and stores what the paper wants stored: k values and k positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError
from reference_impls.selective.diff_pruning import SparseDelta

SAMPLES = ("label", "expect")
GRADIENTS = ("square", "absolute")
HEAD = "head"


class FishMask(Adapter):
    """Changes at the positions of largest Fisher information."""

    mergeable = True
    family = "sparse"


def attach(
    model: nn.Module,
    *,
    batches: Iterable[Any],
    keep_ratio: float = 0.005,
    num_samples: int = 1024,
    sample_type: str = "label",
    grad_type: str = "square",
    train_head: bool = True,
) -> Adapter:
    """Choose ``keep_ratio`` of all weights, head included, by their importance for the examples in ``batches``.

    ``sample_type`` "label" takes the true labels, "expect" the expectation over the model's own; ``grad_type``
    "absolute" averages absolute gradients instead of squares. Without ``train_head`` (a language model, whose head is
    pretrained) the head is ranked like everything else.
    """
    if sample_type not in SAMPLES or grad_type not in GRADIENTS:
        raise AdapterError(
            f"sample_type is one of {', '.join(SAMPLES)} and grad_type one of {', '.join(GRADIENTS)}, "
            f"not {sample_type!r} and {grad_type!r}"
        )
    if not 0 < keep_ratio <= 1 or num_samples < 1:
        raise AdapterError(f"keep_ratio is in (0, 1] and num_samples at least 1, not {keep_ratio} and {num_samples}")
    scores = fisher(model, itertools.islice(examples(batches), num_samples), sample_type, grad_type)
    total = sum(score.numel() for score in scores.values())
    ranked = {name: s for name, s in scores.items() if not (train_head and name.startswith(f"{HEAD}."))}
    head = total - sum(score.numel() for score in ranked.values())
    budget = int(keep_ratio * total) - head
    if budget < 0:
        raise AdapterError(f"keep_ratio {keep_ratio} of {total} weights is less than the head's {head}")
    adapter = FishMask(model)
    for name, positions in largest(ranked, budget).items():
        adapter.reparameterize(name, SparseDelta(model.get_parameter(name), positions))
    if train_head:
        adapter.unfreeze(HEAD)
    return adapter


def examples(batches: Iterable[Any]) -> Iterator[Any]:
    """Every example as a batch of its own."""
    for batch in batches:
        tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
        for i in range(len(batch.inputs)):
            yield replace(batch, **{n: t[i : i + 1] for n, t in tensors.items() if isinstance(t, Tensor)})


def fisher(
    model: nn.Module, singles: Iterable[Any], sample_type: str = "label", grad_type: str = "square"
) -> dict[str, Tensor]:
    """Mean squared (or absolute) gradient of log p, example by example, of every tensor that the loss reaches."""
    named = dict(model.named_parameters())
    scores: dict[str, Tensor] = {}
    count = 0
    with differentiable(named.values()):
        for single in singles:
            count += 1
            for weight, loss in outcomes(model, single, sample_type):
                gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
                for name, gradient in zip(named, gradients, strict=True):
                    if gradient is not None:
                        size = gradient.square() if grad_type == "square" else gradient.abs()
                        scores[name] = scores[name] + weight * size if name in scores else weight * size
    if not count:
        raise AdapterError("batches holds no example, and FISH chooses its mask from data")
    return {name: scores[name] / count for name in named if name in scores}


@contextmanager
def differentiable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """All parameters ask for gradients inside, and are as they were outside."""
    flags = [(p, p.requires_grad) for p in parameters]
    try:
        for p, _ in flags:
            p.requires_grad_(True)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def outcomes(model: nn.Module, single: Any, sample_type: str) -> Iterator[tuple[Tensor | float, Tensor]]:
    """(probability, -log p) of the outcomes that count: the true one, or every class under the model."""
    if sample_type == "label":
        yield 1.0, model.loss(single)  # type: ignore[operator]
        return
    logits = model(single)
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise AdapterError(
            'sample_type "expect" needs logits of classes (B, C); use "label" for sequences and regression'
        )
    log_p = logits[0].log_softmax(-1)
    for y in range(len(log_p)):
        yield log_p[y].exp().detach(), -log_p[y]


def largest(scores: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Positions of the ``count`` largest scores of all tensors together, tensor by tensor; those without are left out.

    On the meta device nothing can be ranked and the first positions stand in, so that counts come out right.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    chosen = torch.arange(count) if flat.is_meta else flat.topk(count).indices.sort().values
    ends = list(itertools.accumulate(score.numel() for score in scores.values()))
    bounds = torch.searchsorted(chosen, torch.tensor([0, *ends], device=chosen.device)).tolist()
    return {
        name: chosen[first:last] - (end - scores[name].numel())
        for name, first, last, end in zip(scores, bounds, bounds[1:], ends, strict=False)
        if last > first
    }
