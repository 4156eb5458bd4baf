"""A post-norm encoder (BERT, RoBERTa) with a classification head and a masked-language-model head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.backbones.base import Backbone, Batch, Task, generator, rule
from reference_impls.backbones.layers import Stack
from reference_impls.backbones.size import Size


class Encoder(Backbone):
    """tokens (B, T) -> class logits (B, C); ``fill`` gives token logits (B, T, V)."""

    kind = "encoder"
    learning_rate = 2e-3

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.embed = nn.Embedding(size.V, size.d)
        self.stack = Stack(size, size.L, causal=False, prenorm=False)
        self.pooler = nn.Linear(size.d, size.d)
        self.head = nn.Linear(size.d, size.C)
        self.lm_head = nn.Linear(size.d, size.V)

    @property
    def mask_token(self) -> int:
        """The token that stands for a word to be filled in."""
        return self.size.V - 1

    @property
    def class_token(self) -> int:
        """The token at position 0, whose state is pooled."""
        return self.size.V - 2

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.encode(self.embed(batch.inputs), batch.visible)
        return self.head(torch.tanh(self.pooler(hidden[:, 0])))

    def fill(self, batch: Batch) -> Tensor:
        """Logits over the vocabulary at every position, (B, T, V)."""
        return self.lm_head(self.encode(self.embed(batch.inputs), batch.visible))

    def encode(self, embedded: Tensor, visible: Tensor | None) -> Tensor:
        """Embedded tokens (B, T, d) -> hidden states (B, T, d)."""
        if visible is None:
            visible = torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)
        hidden, _ = self.stack(embedded, visible)
        return hidden

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self(batch), batch.targets)

    def fill_loss(self, batch: Batch) -> Tensor:
        """Mean loss of filling masks in; targets (B, T) are the words hidden there and -100 elsewhere."""
        return F.cross_entropy(self.fill(batch).flatten(0, 1), batch.targets.flatten(), ignore_index=-100)

    def training_loss(self, seed: int, task: Task) -> Tensor:
        """Pretraining fills masks as well, so that prompts can ask the frozen model for words."""
        loss = self.loss(self.batch(seed, task))
        return loss + self.fill_loss(self.masked_batch(seed, task)) if task == "pretraining" else loss

    def masked_batch(self, seed: int, task: Task = "pretraining", count: int = 32, length: int = 16) -> Batch:
        """The sentences of ``batch`` with one word in each behind a mask; the targets are these words."""
        plain = self.batch(seed, task, count, length)
        assert plain.visible is not None
        words = plain.visible.float() * (torch.arange(length + 1) > 0)
        place = torch.multinomial(words, 1, generator=generator(seed))  # (B, 1)
        targets = torch.full_like(plain.inputs, -100).scatter(1, place, plain.inputs.gather(1, place))
        return Batch(plain.inputs.scatter(1, place, self.mask_token), targets, plain.visible)

    def batch(self, seed: int, task: Task = "downstream", count: int = 32, length: int = 10) -> Batch:
        """Sentences of which half of the words speak for one class; a word's class is its group in a table.

        Downstream a quarter of the words have moved to another group. Lengths differ: the rest is padding.
        """
        source, words, classes = generator(seed), self.size.V - 2, self.size.C
        table = rule(2, words, shift=0.25 if task == "downstream" else 0.0)  # word -> place in a sorted order
        target = torch.randint(classes, (count,), generator=source)
        by_group = torch.stack([(table % classes == c).float() for c in range(classes)])  # (C, words)
        telling = torch.multinomial(by_group[target], length, replacement=True, generator=source)
        other = torch.randint(words, (count, length), generator=source)
        tokens = torch.where(torch.rand(count, length, generator=source) < 0.5, telling, other)
        lengths = torch.randint(length // 2, length + 1, (count,), generator=source)
        visible = torch.arange(length)[None] < lengths[:, None]
        first = torch.full((count, 1), self.class_token)
        return Batch(
            torch.cat([first, tokens * visible], dim=1),
            target,
            torch.cat([torch.ones(count, 1, dtype=torch.bool), visible], dim=1),
        )
