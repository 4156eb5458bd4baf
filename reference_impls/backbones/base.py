"""What every backbone offers: a seeded batch of a task, its loss, and a short pretraining."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from reference_impls.backbones.size import Size

Task = Literal["pretraining", "downstream"]


@dataclass(frozen=True)
class Batch:
    """Inputs and targets, and what some models need besides, None elsewhere."""

    inputs: Tensor
    targets: Tensor
    visible: Tensor | None = None
    """(B, T): which tokens are real, where the inputs are a sequence"""
    task_ids: Tensor | None = None
    """(B,): which of several tasks an example belongs to"""
    text: Tensor | None = None
    """(B, S): the tokens of the prompt that a picture belongs to"""
    time: Tensor | None = None
    """(B,): how far the diffusion of a picture has gone, from 0 (the picture) to 1 (noise)"""

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Batch:
        """On another device; ``dtype`` applies to the floating-point tensors alone."""

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device=device, dtype=dtype if x.is_floating_point() else None)

        return Batch(*(move(getattr(self, field.name)) for field in fields(self)))  # type: ignore[arg-type]


class Backbone(nn.Module, ABC):
    """A small, honest model. Subclasses define ``forward(batch)``, ``loss(batch)`` and ``batch(seed, ...)``."""

    kind: ClassVar[str]
    pretraining_steps: ClassVar[int] = 400
    learning_rate: ClassVar[float] = 5e-3

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    @abstractmethod
    def batch(self, seed: int, task: Task = "downstream", count: int = 32) -> Batch:
        """``count`` examples of the task, the same for the same seed, on the CPU in the default float32."""

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar."""
        logits = self(batch)
        return nn.functional.cross_entropy(logits.flatten(0, -2), batch.targets.flatten(), ignore_index=-100)

    def training_loss(self, seed: int, task: Task) -> Tensor:
        """What one step of pretraining, or of full fine-tuning downstream, minimizes."""
        return self.loss(self.batch(seed, task))


def generator(seed: int) -> torch.Generator:
    """A random source of its own, so that nothing depends on torch's global state."""
    return torch.Generator().manual_seed(seed)


def rule(seed: int, size: int, shift: float = 0.0) -> Tensor:
    """A permutation of 0..size-1; with ``shift``, that share of its entries is permuted anew among themselves."""
    source = generator(seed)
    table = torch.randperm(size, generator=source)
    changed = torch.randperm(size, generator=source)[: round(shift * size)]
    table[changed] = table[changed.roll(1)]
    return table
