"""What a claim is measured on: a fresh small model, the method attached to it, and a point away from the start."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter
from reference_impls.backbones import Backbone, Batch, Size, build, pretrained

AWAY = 0.3
"""Relative change of the output that learned tensors are perturbed to before anything is measured."""


@dataclass(frozen=True)
class ReportedCount:
    """A number of trained parameters that a paper prints, at real dimensions."""

    at: str
    kind: str
    size: Size
    hyperparameters: Mapping[str, Any]
    trained: int


@dataclass(frozen=True)
class Expected:
    """What the entry claims; None: it claims nothing."""

    identity_at_init: bool | None
    detachable: bool
    mergeable: bool
    strength: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    count: Callable[[Mapping[str, float]], int] | None = None
    """The formula for trained parameters, a function of dimensions and hyperparameters."""
    reported: tuple[ReportedCount, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """What came out: ``status`` is verified, contradicted or not-applicable."""

    claim: str
    status: str
    expected: str
    measured: str
    tolerance: str = ""
    detail: str = ""
    dtype: str = "float64"


def judge(
    claim: str, ok: bool, *, expected: object, measured: object, tolerance: object = "", **more: str
) -> Measurement:
    """A measurement that either bears the claim out or contradicts it."""
    status = "verified" if ok else "contradicted"
    return Measurement(claim, status, show(expected), show(measured), show(tolerance), **more)


def show(value: object) -> str:
    """Figures with three digits, everything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Trial:
    """One method on one kind of backbone."""

    method: ModuleType
    kind: str
    expected: Expected

    def attach(self, model: Backbone, hyperparameters: Mapping[str, Any] | None = None, seed: int = 0) -> Adapter:
        """The method on ``model``, seeded; methods that look at data first get batches of the downstream task."""
        keywords = dict(self.expected.hyperparameters if hyperparameters is None else hyperparameters)
        if "batches" in inspect.signature(self.method.attach).parameters:
            keywords["batches"] = [like(model, model.batch(900 + i, count=8)) for i in range(2)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter: Adapter = self.method.attach(model, **keywords)
        return adapter

    def fresh(self, dtype: torch.dtype = torch.float64) -> tuple[Backbone, Adapter]:
        """A pretrained model in ``dtype`` with the method at its start."""
        model = pretrained(self.kind).to(dtype)
        return model, self.attach(model)

    def away(self, dtype: torch.dtype = torch.float64) -> tuple[Backbone, Adapter, Batch]:
        """The same, with the learned part moved until the output has changed by about 30 %, and a batch."""
        model, adapter = self.fresh(dtype)
        batch = like(model, model.batch(7))
        move_away(model, adapter, batch, base_output(self.kind, dtype, batch))
        return model, adapter, batch

    def variables(self, model: Backbone, hyperparameters: Mapping[str, Any]) -> dict[str, float]:
        """What a parameter formula may mention: dimensions, hyperparameters (lists by length), ``total``."""
        defaults = {
            name: p.default
            for name, p in inspect.signature(self.method.attach).parameters.items()
            if p.default is not inspect.Parameter.empty
        }
        values = {**vars(model.size), **defaults, **hyperparameters}
        total = sum(p.numel() for p in model.parameters())
        return {"total": total} | {
            name: len(value) if isinstance(value, (list, tuple)) else value
            for name, value in values.items()
            if isinstance(value, (int, float, list, tuple))
        }


def like(model: nn.Module, batch: Batch) -> Batch:
    """The batch on the model's device, in its precision."""
    parameter = next(model.parameters())
    return batch.to(parameter.device, parameter.dtype)


def base_output(kind: str, dtype: torch.dtype, batch: Batch) -> Tensor:
    """What the untouched small model says."""
    with torch.no_grad():
        output: Tensor = pretrained(kind).to(dtype)(batch)
    return output


def distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| relative to ||b||; infinite where shapes differ."""
    return float((a - b).norm() / b.norm()) if a.shape == b.shape else float("inf")


def move_away(model: Backbone, adapter: Adapter, batch: Batch, base: Tensor, seed: int = 11) -> None:
    """Perturb every trained tensor at random until the output is about 30 % away from the base's.

    The same noise moves one method's output by a thousandth and another's by thousands, so its size is searched. A
    method that does something after every step is fitted for a few first, so that what it keeps beside its parameters
    (a moved weight, a mask) has left the start too; one without trained tensors is fitted and nothing else.
    """
    parameters = adapter.parameters()
    if not parameters or type(adapter).after_step is not Adapter.after_step:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter.fit([like(model, model.batch(50 + i)) for i in range(4)])
    if not parameters:
        return
    source = torch.Generator().manual_seed(seed)
    start = [p.detach().clone() for p in parameters]
    noise = [
        torch.randn(p.shape, generator=source).to(p) * max(float(p.detach().square().mean().sqrt()), 0.1)
        for p in parameters
    ]

    def change(scale: float) -> float:
        with torch.no_grad():
            for p, p0, n in zip(parameters, start, noise, strict=True):
                p.copy_(p0 + scale * n)
            return distance(model(batch), base)

    low, high = 0.0, 1.0
    if change(low) > AWAY:  # methods that do not start at the identity are away already; moved a little all the same
        change(0.1)
    else:
        while change(high) < AWAY and high < 1e4:
            low, high = high, high * 2
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if change(middle) < AWAY else (low, middle)
        change(high)
    adapter.after_step()


def on_meta(kind: str, size: Size) -> Backbone:
    """A model of any size without memory."""
    return build(kind, size, device="meta")
