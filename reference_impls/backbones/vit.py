"""A vision transformer (ViT) that tells which pattern an image is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.backbones.base import Backbone, Batch, Task, generator
from reference_impls.backbones.layers import Stack
from reference_impls.backbones.size import Size


class VisionTransformer(Backbone):
    """images (B, 3, H, W) -> class logits (B, C), read from the class token."""

    kind = "vit"
    learning_rate = 2e-3

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.embed = Patches(size)
        self.stack = Stack(size, size.L, causal=False)
        self.head = nn.Linear(size.d, size.C)

    def forward(self, batch: Batch) -> Tensor:
        tokens = self.embed(batch.inputs)
        hidden, _ = self.stack(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))
        return self.head(hidden[:, 0])

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self(batch), batch.targets)

    def batch(self, seed: int, task: Task = "downstream", count: int = 32) -> Batch:
        """Noisy pictures of fixed patterns, one a class; downstream the patterns are half-way to new ones."""
        source, side = generator(seed), self.size.image
        patterns = torch.randn(self.size.C, 3, side, side, generator=generator(4))
        if task == "downstream":
            fresh = torch.randn(self.size.C, 3, side, side, generator=generator(5))
            patterns = (0.5 * patterns.roll(1, dims=0) + fresh) / 1.25**0.5
        target = torch.randint(self.size.C, (count,), generator=source)
        noise = torch.randn(count, 3, side, side, generator=source)
        return Batch(0.3 * patterns[target] + noise, target)


class Patches(nn.Module):
    """Class token and linearly embedded patches: (B, 3, H, W) -> (B, 1 + m, d). The stack adds the positions."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, size.d, kernel_size=size.patch, stride=size.patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, size.d) * 0.02)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.project(images).flatten(2).transpose(1, 2)  # (B, m, d)
        return torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
