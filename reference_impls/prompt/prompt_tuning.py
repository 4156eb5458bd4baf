r"""Prompt Tuning: The Power of Scale for Parameter-Efficient Prompt Tuning.

Lester, Al-Rfou, Constant; EMNLP 2021; arXiv 2104.08691, section 2.

    X' = [c P ; X_e]        P in R^{p x e} trained,  X_e = E[x_1 .. x_n] in R^{n x e}
    loss = -log Pr(Y | X')

Trained: P alone, p * e values. The embedding table and everything above it are frozen.

An encoder-decoder gets the prompt in front of its encoder's input, nothing else: the decoder attends to the prompt's
encoded states as to any other, which is why the mask over the memory grows too. Models of one stack get it in front of
theirs, and its positions are cut off again behind the stack, so that they take no part in the loss. Prompt positions
count as positions: p real tokens in front of the input would do exactly what their p embeddings do as a prompt.

Start (section 3.2): sampled from the embeddings of the most frequent tokens, or, best in the paper, the embeddings of
the class labels (the mean of its pieces where a label has several) with such a sample behind them; uniform in
[-0.5, 0.5] is the weakest. None of them is an identity: even p zeros take their share of every softmax.

Steps are large in the paper: learning rate 0.3, with Adafactor and no parameter scaling. The model is LM-adapted
there: without that, small frozen models fail to follow.

Ensembling (section 6): N prompts for one task share one pass of the frozen model, the batch repeated N times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError, Site
from reference_impls.backbones.base import Batch


class SoftPrompt(Site):
    """The prompt P in R^{p x e}, joined to a stack's input in front and cut from its output."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.P = nn.Parameter(start)
        self.members: Tensor | None = None
        """(N, p, e): prompts that share a batch made of N copies, while ``PromptTuning.vote`` runs."""

    def join(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Pre-hook on a stack: embedded tokens (B, n, e) and visible (B, n) grow by p in front."""
        x, visible, *rest = args
        prompts = self.P[None] if self.members is None else self.members  # (N, p, e)
        prompts = self.strength * prompts.repeat_interleave(len(x) // len(prompts), dim=0)  # (B, p, e)
        return torch.cat([prompts, x], dim=1), torch.cat([visible.new_ones(prompts.shape[:2]), visible], dim=1), *rest

    def cut(self, _: nn.Module, __: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Post-hook on a stack: the p positions in front go."""
        hidden, visible = output
        return hidden[:, len(self.P) :], visible[:, len(self.P) :]


class PromptTuning(Adapter):
    """A soft prompt in front of the input."""

    learning_rate = 1e-1

    def vote(self, batch: Batch, prompts: Sequence[Tensor]) -> Tensor:
        """What most of N ``prompts``, (p, e) each, predict, in one pass: classes (...) where logits are (..., C).

        Between equally many votes the smaller class wins.
        """
        site = self.sites()["prompt"]
        assert isinstance(site, SoftPrompt)
        if not prompts or any(prompt.shape != site.P.shape for prompt in prompts):
            raise AdapterError(f"prompts: needs one or more tensors of shape {tuple(site.P.shape)}")
        n = len(prompts)
        visible = None if batch.visible is None else torch.cat([batch.visible] * n)
        copies = Batch(torch.cat([batch.inputs] * n), torch.cat([batch.targets] * n), visible)
        site.members = torch.stack(list(prompts))
        try:
            with torch.no_grad():
                choices = self.model(copies).argmax(dim=-1)  # (N B, ...)
        finally:
            site.members = None
        return choices.unflatten(0, (n, -1)).mode(dim=0).values


def attach(
    model: nn.Module,
    *,
    length: int = 100,
    init: Literal["vocabulary", "labels", "uniform"] = "vocabulary",
    labels: Sequence[Sequence[int]] = (),
    population: int = 5000,
) -> Adapter:
    """Put a prompt of ``length`` vectors in front; ``labels`` are the token ids of each class label's text.

    The vocabulary is taken to be sorted by frequency, as SentencePiece's is: samples come from its first
    ``population`` tokens, without replacement where there are enough.
    """
    embed = getattr(model, "embed", None)
    if not isinstance(embed, nn.Embedding):
        raise AdapterError(f"{type(model).__name__} embeds no tokens: use a decoder, an encoder or an encoder-decoder")
    if length < 0 or population < 1:
        raise AdapterError(f"length is {length}, population {population}; they must be at least 0 and 1")
    if init not in ("vocabulary", "labels", "uniform"):
        raise AdapterError(f"init is {init!r}; allowed: vocabulary, labels, uniform")
    if (init == "labels") != bool(labels) or not all(labels):
        raise AdapterError('labels: the token ids of each class label go with init="labels", one or more each')
    stack = "encoder" if hasattr(model, "encoder") else "stack"
    positions = getattr(model.get_submodule(f"{stack}.positions"), "weight", None)
    if positions is not None and length >= len(positions):
        raise AdapterError(
            f"a prompt of length {length} leaves no room for text: the model has {len(positions)} positions"
        )
    table = embed.weight.detach()
    adapter = PromptTuning(model)
    site = SoftPrompt(uniform(table, length) if init == "uniform" else sampled(table, length, population, labels))
    adapter.add("", "prompt", site)
    adapter.hook(stack, pre=site.join, post=site.cut if stack == "stack" else None)
    return adapter


def uniform(table: Tensor, length: int) -> Tensor:
    """Entries uniform in [-0.5, 0.5]."""
    return table.new_empty(length, table.shape[1]).uniform_(-0.5, 0.5)


def sampled(table: Tensor, length: int, population: int, labels: Sequence[Sequence[int]]) -> Tensor:
    """Rows for the labels first, as far as there is room; the rest are embeddings of frequent tokens."""
    population = min(population, len(table))
    if length <= population:
        picked = torch.randperm(population, device="cpu")[:length]
    else:
        picked = torch.randint(population, (length,), device="cpu")
    start = table[picked.to(table.device)]
    for row, pieces in zip(start, labels, strict=False):
        row.copy_(table[list(pieces)].mean(dim=0))
    return start
