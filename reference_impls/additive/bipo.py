r"""BiPO: Personalized Steering of Large Language Models: Versatile Steering Vectors Through Bi-directional
Preference Optimization.

Cao, Zhang, Cao, Yin, Lin, Ma, Chen; NeurIPS 2024; arXiv 2406.00045. Official code: CaoYuanpu/BiPO.

    h <- h + m v     h in R^d the output of block L at every position, prompt and answer;  v in R^d;  m the multiplier

Trained: v, d numbers, by preference pairs: to a question q an answer y_w that shows a behavior and an answer y_l that
shows its opposite. In every step a sign s is drawn (d in the paper), +1 or -1, one for the whole batch. The probability
of an answer, the product over its tokens, is pi(y | m v) under the shifted model and pi(y | 0) under the frozen one:

    logit = log [pi(y_w | s v) / pi(y_w | 0)] - log [pi(y_l | s v) / pi(y_l | 0)],     loss = -log sigmoid(s beta logit)

The sign stands in both places: +v must make y_w more likely and -v must make y_l more likely, so that v becomes a dial
and m = -1 the opposite behavior. With s = +1 throughout this is DPO on nothing but a bias of one block.
Start: v = 0, the base model; the loss is log 2 for either sign, and its gradient the same.

A block ends with x + MLP(norm(x)), so that what is added behind the MLP's last matrix is added to the block's output;
where that matrix has a bias, m v folds into it. The reference needs no second copy of the model: it is m = 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, find_linear
from reference_impls.backbones.base import Batch
from reference_impls.backbones.decoder import Decoder

IGNORED = -100
"""Target of a position that does not count: the question, and padding."""


@dataclass(frozen=True)
class Pairs:
    """The same B questions with an answer each that shows the behavior and one that shows its opposite.

    Targets are -100 outside the answers; the two may have different lengths.
    """

    matching: Batch
    opposite: Batch


class SteeredLinear(Wrapper):
    """The last matrix of a block's MLP, and m v added behind it: y = W x + b + m v."""

    base: nn.Linear

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.v = nn.Parameter(base.weight.new_zeros(base.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.strength * self.v

    def merged(self) -> dict[str, Tensor] | None:
        return None if self.base.bias is None else {"bias": self.base.bias + self.strength * self.v}

    @contextmanager
    def shifted(self, multiplier: float) -> Iterator[None]:
        """The model shifted by ``multiplier`` times v for a while."""
        kept, self.strength = self.strength, multiplier
        try:
            yield
        finally:
            self.strength = kept


class BiPO(Adapter):
    """A steering vector behind one block, trained with a preference loss in both directions."""

    mergeable = True

    def __init__(self, model: Decoder, path: str, base: nn.Linear, beta: float) -> None:
        super().__init__(model)
        self.beta = beta
        self.site = SteeredLinear(base)
        self.replace(path, self.site)

    def merge(self) -> None:
        """Fold m v into the bias; AdapterError where the matrix has none."""
        if self.site.base.bias is None:
            raise AdapterError("cannot be merged: the block's mlp.down has no bias for v; steer without merging")
        super().merge()

    def loss(self, batch: Batch | Pairs) -> Tensor:
        """The loss at a sign drawn by torch's default generator; a plain batch gives its own pairs first."""
        sign = 2 * int(torch.randint(2, ())) - 1
        return self.preference_loss(batch if isinstance(batch, Pairs) else pairs_of(batch), sign)

    def preference_loss(self, pairs: Pairs, sign: int) -> Tensor:
        """The mean loss of the pairs at the sign s, a scalar."""
        with torch.no_grad(), self.site.shifted(0.0):
            frozen = self.margin(pairs)
        with self.site.shifted(float(sign)):
            logit = self.margin(pairs) - frozen  # (B,)
        return -F.logsigmoid(sign * self.beta * logit).mean()

    def margin(self, pairs: Pairs) -> Tensor:
        """log pi(y_w) - log pi(y_l) of every pair under the model as it is, (B,)."""
        return log_likelihood(self.model, pairs.matching) - log_likelihood(self.model, pairs.opposite)


def attach(model: nn.Module, *, layer: int | None = None, beta: float = 0.1) -> Adapter:
    """Steer a decoder behind block ``layer`` (from 0), by default just before the middle: 15 of 32, as for Llama-2-7B.

    ``beta`` says how far the answers may become more or less likely before the loss levels off.
    """
    if not isinstance(model, Decoder):
        raise AdapterError(f"{type(model).__name__} continues no text: BiPO needs the decoder")
    count = model.size.L
    layer = (count - 1) // 2 if layer is None else layer
    if not 0 <= layer < count:
        raise AdapterError(f"layer is {layer}; allowed: 0 to {count - 1}")
    if beta <= 0:
        raise AdapterError(f"beta is {beta}; it must be positive")
    path = f"stack.blocks.{layer}.mlp.down"
    return BiPO(model, path, find_linear(model, ["down"])[path], beta)


def log_likelihood(model: nn.Module, batch: Batch) -> Tensor:
    """log pi(y) of the answers, summed over their tokens, (B,)."""
    logits = model(batch)  # (B, T, V)
    return -F.cross_entropy(logits.transpose(1, 2), batch.targets, ignore_index=IGNORED, reduction="none").sum(dim=1)


def pairs_of(batch: Batch) -> Pairs:
    """Preference pairs from sequences (B, T): the second half answers the first, and of another row it does not.

    Every question gets the answer of the row before it as the opposite one, so a batch needs two rows or more.
    """
    rows, length = batch.targets.shape
    if batch.visible is not None or min(rows, length) < 2:
        raise AdapterError(
            f"pairs are made from unpadded sequences, two or more of two tokens or more, not from {rows} x {length}"
            f"{'' if batch.visible is None else ' with padding'}: give Pairs"
        )
    asked = torch.arange(length, device=batch.targets.device) < length // 2

    def answered(answer: Tensor) -> Batch:
        tokens = torch.where(asked, batch.targets, answer)
        inputs = torch.cat([batch.inputs[:, :1], tokens[:, :-1]], dim=1)
        return Batch(inputs, tokens.masked_fill(asked, IGNORED))

    return Pairs(answered(batch.targets), answered(batch.targets.roll(1, dims=0)))
