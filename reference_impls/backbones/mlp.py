"""A residual stack of linear layers, for methods that know nothing but a weight matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.backbones.base import Backbone, Batch, Task, generator
from reference_impls.backbones.layers import FeedForward
from reference_impls.backbones.size import Size


class MLP(Backbone):
    """vectors (B, d) -> vectors (B, C): regression on a teacher of the same form, with one hidden layer."""

    kind = "mlp"

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.embed = nn.Linear(size.d, size.d)
        self.blocks = nn.ModuleList(ResidualBlock(size) for _ in range(size.L))
        self.head = nn.Linear(size.d, size.C)

    def forward(self, batch: Batch) -> Tensor:
        x = self.embed(batch.inputs)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def loss(self, batch: Batch) -> Tensor:
        return F.mse_loss(self(batch), batch.targets)

    def batch(self, seed: int, task: Task = "downstream", count: int = 32) -> Batch:
        """Gaussian inputs and the teacher's answers; downstream the teacher's first layer has turned a little."""
        size, source = self.size, generator(6)
        first = torch.randn(size.d, size.f, generator=source) / size.d**0.5
        second = torch.randn(size.f, size.C, generator=source) / size.f**0.5
        if task == "downstream":
            first = (first + 0.5 * torch.randn(size.d, size.f, generator=source) / size.d**0.5) / 1.25**0.5
        inputs = torch.randn(count, size.d, generator=generator(seed))
        return Batch(inputs, 2.0 * F.gelu(inputs @ first) @ second)


class ResidualBlock(nn.Module):
    """x + mlp(x), (B, d) -> (B, d)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.mlp = FeedForward(size)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)
