"""A pre-norm decoder (GPT-2; with RMS norm, gates and no biases LLaMA) that continues sequences by a rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reference_impls.backbones.base import Backbone, Batch, Task, generator, rule
from reference_impls.backbones.layers import Stack
from reference_impls.backbones.size import Size


class Decoder(Backbone):
    """tokens (B, T) -> next-token logits (B, T, V)."""

    kind = "decoder"

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.embed = nn.Embedding(size.V, size.d)
        self.stack = Stack(size, size.L, causal=True)
        self.head = nn.Linear(size.d, size.V, bias=False)

    def forward(self, batch: Batch) -> Tensor:
        visible = torch.ones_like(batch.inputs, dtype=torch.bool) if batch.visible is None else batch.visible
        hidden, _ = self.stack(self.embed(batch.inputs), visible)
        return self.head(hidden)

    def batch(self, seed: int, task: Task = "downstream", count: int = 32, length: int = 12) -> Batch:
        """A walk: the next token is the rule's image of the present one or, now and then, a random one.

        Pretraining knows two rules and says by the first token which one holds; downstream always shows the first
        token of rule 0, and a quarter of its transitions are new.
        """
        source, tokens = generator(seed), self.size.V - 2
        which = torch.randint(2, (count,), generator=source)
        tables = torch.stack([rule(0, tokens), rule(1, tokens)])
        if task == "downstream":
            which = torch.zeros_like(which)
            tables = tables.clone()
            tables[0] = rule(0, tokens, shift=0.25)
        sequence = walks(tables, which, length, source)
        inputs = torch.cat([which[:, None] + tokens, sequence[:, :-1]], dim=1)
        return Batch(inputs, sequence)


def walks(tables: Tensor, which: Tensor, length: int, source: torch.Generator) -> Tensor:
    """Token sequences (B, length + 1) that follow the rule ``tables[which]`` nine times in ten, and else jump."""
    tokens, count = tables.shape[1], len(which)
    walk = [torch.randint(tokens, (count,), generator=source)]
    for _ in range(length):
        jump = torch.rand(count, generator=source) < 0.1
        random = torch.randint(tokens, (count,), generator=source)
        walk.append(torch.where(jump, random, tables[which, walk[-1]]))
    return torch.stack(walk, dim=1)
