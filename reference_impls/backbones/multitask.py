"""The text models on several tasks at once: every example says which task it belongs to, by number and by a token.

The number (``Batch.task_ids``) is for methods that are told the task; the token, first in the inputs, lets the model
itself, and methods that are not told, find it out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_impls.backbones.base import Batch, Task, generator, rule
from reference_impls.backbones.decoder import Decoder, walks
from reference_impls.backbones.encoder_decoder import EncoderDecoder

TASKS = 4
"""How many tasks there are, numbered from 0."""


class MultitaskDecoder(Decoder):
    """A decoder that continues sequences by one rule a task."""

    kind = "multitask-decoder"

    def batch(self, seed: int, task: Task = "downstream", count: int = 32, length: int = 12) -> Batch:
        """Walks as the plain decoder's; downstream a quarter of every task's transitions is new."""
        source, tokens = generator(seed), self.size.V - TASKS
        which = torch.randint(TASKS, (count,), generator=source)
        sequence = walks(tables(tokens, task), which, length, source)
        inputs = torch.cat([which[:, None] + tokens, sequence[:, :-1]], dim=1)
        return Batch(inputs, sequence, task_ids=which)


class MultitaskEncoderDecoder(EncoderDecoder):
    """An encoder-decoder that translates with one dictionary a task."""

    kind = "multitask-encoder-decoder"
    pretraining_steps = 400

    def batch(self, seed: int, task: Task = "downstream", count: int = 32, length: int = 6) -> Batch:
        """Word-by-word translation; downstream a quarter of every task's dictionary is new."""
        source, words = generator(seed), self.size.V - 1 - TASKS  # the last token starts the target
        which = torch.randint(TASKS, (count,), generator=source)
        sentence = torch.randint(words, (count, length), generator=source)
        targets = tables(words, task)[which[:, None], sentence]
        return Batch(torch.cat([which[:, None] + words, sentence], dim=1), targets, task_ids=which)


def tables(size: int, task: Task) -> Tensor:
    """One permutation of 0..size-1 a task, (TASKS, size); downstream with a quarter of the entries permuted anew."""
    return torch.stack([rule(10 + i, size, shift=0.25 if task == "downstream" else 0.0) for i in range(TASKS)])
