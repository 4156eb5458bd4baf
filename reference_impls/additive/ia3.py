r"""(IA)^3: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning.

Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel; NeurIPS 2022; arXiv 2205.05638, section 3.3 (the losses: 3.2).

    attention:     softmax(Q (l_k * K)^T / sqrt(d_k)) (l_v * V)          l_k in R^{d_k}, l_v in R^{d_v}
    feed-forward:  W_2 (l_ff * act(W_1 x))                               l_ff in R^{d_ff}

Trained: one vector for the keys and one for the values of every attention, cross attention included, and one for the
hidden layer of every feed-forward network, behind the nonlinearity: the input of ``down``. Nothing else.
Start: all vectors 1, the base model.

Merged, W_k and W_v have their rows scaled (biases too), W_2 its columns. The coefficient c acts on the distance from
one, 1 + c (l - 1): scaling l itself would silence the activation at c = 0 instead of giving back the base model.

The paper's recipe T-Few trains the vectors with Adafactor, a linear warm-up over 6 % of the steps and a linear decay,
and adds two losses over wrong answers (fit on :class:`Choices`); what it predicts is the answer with the largest mean
log-likelihood (``rank``). Before, it trains the vectors on a mixture of tasks: one more ``fit``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, find_linear

IGNORED = -100
"""Target of a position that does not count: padding behind an answer."""


@dataclass(frozen=True)
class Choices:
    """Questions with their right answers, a batch of the model, and ``wrong`` ones (B, N, T) padded with -100."""

    question: Any
    wrong: Tensor


class ScaledLinear(Wrapper):
    """A linear layer whose output or input is multiplied by a learned vector."""

    base: nn.Linear

    def __init__(self, base: nn.Linear, width: int) -> None:
        super().__init__(base)
        self.l = nn.Parameter(base.weight.new_ones(width))

    def factor(self) -> Tensor:
        """1 + c (l - 1)."""
        return self.l if self.strength == 1.0 else 1.0 + self.strength * (self.l - 1.0)


class ScaledOutput(ScaledLinear):
    """y = l * (W x + b), for keys and values."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self.factor()

    def merged(self) -> dict[str, Tensor]:
        weight = {"weight": self.base.weight * self.factor()[:, None]}
        return weight if self.base.bias is None else weight | {"bias": self.base.bias * self.factor()}


class ScaledInput(ScaledLinear):
    """y = W (l * x) + b, for the second matrix of the feed-forward network."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base, base.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x * self.factor())

    def merged(self) -> dict[str, Tensor]:
        return {"weight": self.base.weight * self.factor()}


class IA3(Adapter):
    """Learned factors on keys, values and hidden activations."""

    mergeable = True
    family = "scaling"

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """Adafactor, as in T-Few."""
        return torch.optim.Adafactor(self.parameters(), lr=learning_rate)

    def fit(self, batches: Iterable[Any], learning_rate: float | None = None) -> list[float]:
        """T-Few's schedule: one step a batch, the step size rising over the first 6 % and falling to zero."""
        steps = list(batches)
        optimizer = self.optimizer(learning_rate or self.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: t_few_rate(step, len(steps)))
        losses = []
        for batch in steps:
            optimizer.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return losses

    def loss(self, batch: Any) -> Tensor:
        """The task loss of a plain batch; T-Few's three losses of :class:`Choices`, for an encoder-decoder."""
        if not isinstance(batch, Choices):
            return super().loss(batch)
        return t_few_loss(*self._score(batch))

    @torch.no_grad()
    def rank(self, choices: Choices) -> Tensor:
        """Which answer the model predicts, the one of largest beta, (B,): 0 is the right one."""
        return mean_log_likelihood(*self._score(choices)).argmax(dim=1)

    def _score(self, choices: Choices) -> tuple[Tensor, Tensor]:
        """Logits (B, 1 + N, T, V) of all answers, and the answers (B, 1 + N, T), the right one first."""
        question = choices.question
        answers = torch.cat([question.targets[:, None], choices.wrong], dim=1)
        count = answers.shape[1]
        seen = None if question.visible is None else question.visible.repeat_interleave(count, dim=0)
        inputs = question.inputs.repeat_interleave(count, dim=0)
        logits = self.model(replace(question, inputs=inputs, targets=answers.flatten(0, 1), visible=seen))
        return logits.unflatten(0, (-1, count)), answers


def attach(
    model: nn.Module,
    *,
    attention: Sequence[str] = ("k", "v"),
    feedforward: Sequence[str] = ("down",),
) -> Adapter:
    """Scale the outputs of the linear layers named in ``attention`` and the inputs of those in ``feedforward``."""
    both = sorted(set(attention) & set(feedforward))
    if both or not (attention or feedforward):
        raise AdapterError(f"a layer is scaled at its output or its input: {', '.join(both) or 'none'} named in both")
    outputs, inputs = (find_linear(model, names) if names else {} for names in (attention, feedforward))
    adapter = IA3(model)
    for path, base in outputs.items():
        adapter.replace(path, ScaledOutput(base))
    for path, base in inputs.items():
        adapter.replace(path, ScaledInput(base))
    return adapter


def t_few_rate(step: int, steps: int = 1000, warmup: float = 0.06) -> float:
    """Factor on the step size: linear from zero to one over the share ``warmup``, then linear to zero."""
    rising = max(1, round(warmup * steps))
    return (step + 1) / rising if step < rising else max(0.0, (steps - step) / (steps - rising))


def t_few_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """L_LM + L_UL + L_LN of logits (B, 1 + N, T, V) for answers (B, 1 + N, T), the right one first."""
    right = mean_log_likelihood(logits[:, 0], answers[:, 0])  # (B,)
    return -right.mean() + unlikelihood(logits[:, 1:], answers[:, 1:]) + length_normalized(logits, answers)


def unlikelihood(logits: Tensor, answers: Tensor) -> Tensor:
    """L_UL: -log(1 - p) of every token of the wrong answers (..., T), averaged over all these tokens."""
    counts = answers != IGNORED
    log_p = log_likelihood(logits, answers).masked_fill(~counts, -torch.inf)
    # 1 - p through expm1: exact for small p; p = 1 is held off infinity by the smallest difference from 1.
    gap = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps)
    return -gap.log().sum() / counts.sum()


def length_normalized(logits: Tensor, answers: Tensor) -> Tensor:
    """L_LN: cross entropy of the right answer, the first of dimension 1, among the scores beta of all of them."""
    scores = mean_log_likelihood(logits, answers)  # (B, 1 + N)
    return -scores.log_softmax(dim=1)[:, 0].mean()


def mean_log_likelihood(logits: Tensor, answers: Tensor) -> Tensor:
    """beta = 1/T sum_t log p(y_t): (..., T, V) and (..., T) -> (...).

    An answer without tokens has minus infinity: questions may have unequal numbers of wrong answers.
    """
    count = (answers != IGNORED).sum(-1)
    return (log_likelihood(logits, answers).sum(-1) / count.clamp(min=1)).masked_fill(count == 0, -torch.inf)


def log_likelihood(logits: Tensor, answers: Tensor) -> Tensor:
    """log p of every token, 0 where it does not count: (..., T)."""
    flat = F.cross_entropy(logits.flatten(0, -2), answers.flatten(), ignore_index=IGNORED, reduction="none")
    return -flat.view(answers.shape)
