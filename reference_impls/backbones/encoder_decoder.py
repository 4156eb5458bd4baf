"""A pre-norm encoder-decoder (T5: RMS norm, no biases, relative positions; BART's sizes) that translates by a rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reference_impls.backbones.base import Backbone, Batch, Task, generator, rule
from reference_impls.backbones.layers import Stack
from reference_impls.backbones.size import Size


class EncoderDecoder(Backbone):
    """source tokens (B, S) -> logits (B, T, V) for the target, which is fed shifted right behind a start token."""

    kind = "encoder-decoder"

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.embed = nn.Embedding(size.V, size.d)
        self.encoder = Stack(size, size.L, causal=False)
        self.decoder = Stack(size, size.L_dec or size.L, causal=True, cross=True)
        self.head = nn.Linear(size.d, size.V, bias=False)

    def forward(self, batch: Batch) -> Tensor:
        visible = torch.ones_like(batch.inputs, dtype=torch.bool) if batch.visible is None else batch.visible
        memory, memory_visible = self.encoder(self.embed(batch.inputs), visible)
        previous = self.shift_right(batch.targets)
        hidden, _ = self.decoder(
            self.embed(previous), torch.ones_like(previous, dtype=torch.bool), memory, memory_visible
        )
        return self.head(hidden)

    def shift_right(self, targets: Tensor) -> Tensor:
        """Decoder inputs: the start token, then all targets but the last; ignored targets become token 0."""
        start = torch.full_like(targets[:, :1], self.size.V - 1)
        return torch.cat([start, targets[:, :-1].clamp(min=0)], dim=1)

    def batch(self, seed: int, task: Task = "downstream", count: int = 32, length: int = 6) -> Batch:
        """Word-by-word translation; downstream, a quarter of the dictionary is new."""
        source, words = generator(seed), self.size.V - 1
        table = rule(3, words, shift=0.25 if task == "downstream" else 0.0)
        inputs = torch.randint(words, (count, length), generator=source)
        return Batch(inputs, table[inputs])
