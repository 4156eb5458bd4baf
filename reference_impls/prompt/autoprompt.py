r"""AutoPrompt: Eliciting Knowledge from Language Models with Automatically Generated Prompts.

Shin, Razeghi, Logan IV, Wallace, Singh; EMNLP 2020; arXiv 2010.15980, section 2.

A template puts T trigger tokens t_1 .. t_T, the same for every input, and one mask around the sentence. A frozen masked
language model fills the mask, and the words of a class add up their probabilities:

    p(y | x) = sum_{w in V_y} p([MASK] = w | x, t),           loss = -log p(y | x)                        (equation 1)

Learned: the triggers, T integers in a buffer; no tensor is trained. Start: every trigger is the mask token, or a prompt
written by hand.

Search (section 2.2), one step at a position j drawn at random, with e(w) in R^d the input embedding of w:

    g_j = sum over the examples of d loss / d e(t_j),   V_cand = top-k_w [-e(w)^T g_j]                    (equation 2)

e(w)^T g_j - e(t_j)^T g_j is what exchanging t_j for w changes the loss by, to first order. Every candidate is then
tried on fresh batches, the present prompt too, on the same ones; t_j makes way only for a better one. The prompt that
did best on the ``dev`` batches is kept. The paper compares label probabilities, its code accuracies: ``metric``.

Label words (section 2.3), where none are given: a logistic regression a_y, b_y predicts the class from the state h at
the mask, and V_y are the k words whose output embeddings it takes for class y with most conviction:

    p(y | h) = softmax_y(a_y . h + b_y),        s(y, w) = softmax_y(a_y . w_out + b_y),        V_y = top-k_w s(y, w)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Site
from reference_impls.backbones.base import Batch
from reference_impls.backbones.encoder import Encoder

SENTENCE, TRIGGER, MASK = "{sentence}", "[T]", "[MASK]"


class Triggers(Site):
    """The m tokens around a sentence, T of them triggers, and the words of each class."""

    tokens: Tensor
    words: Tensor
    pattern: Tensor
    at: Tensor

    def __init__(self, encoder: Encoder, template: str, start: Sequence[int], words: int) -> None:
        super().__init__()
        parts = template.split()
        around = [part for part in parts if part != SENTENCE]
        fixed = [part for part in around if part not in (TRIGGER, MASK)]
        if parts.count(SENTENCE) != 1 or parts.count(MASK) != 1 or not parts.count(TRIGGER):
            raise AdapterError(f"template {template!r}: needs {SENTENCE} and {MASK} once each, {TRIGGER} at least once")
        if not all(part.isdecimal() and int(part) < encoder.size.V for part in fixed):
            raise AdapterError(
                f"template {template!r}: other words are given by their token ids, 0 to {encoder.size.V - 1}"
            )
        at = [place for place, part in enumerate(around) if part == TRIGGER]
        if start and (len(start) != len(at) or not all(0 <= token < encoder.size.V for token in start)):
            raise AdapterError(f"start {list(start)}: needs {len(at)} token ids, 0 to {encoder.size.V - 1}")
        self.left, self.mask = parts.index(SENTENCE), around.index(MASK)
        device = encoder.embed.weight.device
        pattern = [int(part) if part in fixed else encoder.mask_token for part in around]
        self.register_buffer("pattern", torch.tensor(pattern, device=device), persistent=False)
        self.register_buffer("at", torch.tensor(at, device=device), persistent=False)
        self.register_buffer("tokens", torch.tensor(list(start) or [encoder.mask_token] * len(at), device=device))
        self.register_buffer("words", torch.zeros(encoder.size.C, words, dtype=torch.long, device=device))
        self.places: Tensor | None = None
        """(B, m): the positions of the prompt's tokens while a batch is in the model."""
        self.state: Tensor | None = None
        """(B, d): the states at its masks."""

    def surround(self, _: nn.Module, args: tuple[Batch]) -> tuple[Batch]:
        """Pre-hook on the model: [class] sentence padding becomes [class] prompted sentence, then padding."""
        (batch,) = args
        inputs, rows = batch.inputs, len(batch.inputs)
        visible = torch.ones_like(inputs, dtype=torch.bool) if batch.visible is None else batch.visible
        prompt = self.pattern.index_copy(0, self.at, self.tokens)  # (m,)
        lengths = visible.sum(dim=1, keepdim=True)  # (B, 1), the class token counted
        order = torch.arange(len(prompt), device=inputs.device)
        self.places = torch.where(order < self.left, 1 + order, lengths + order)
        gap, room = inputs.new_zeros(rows, self.left), inputs.new_zeros(rows, len(prompt) - self.left)
        tokens = torch.cat([inputs[:, :1], gap, inputs[:, 1:], room], dim=1)  # (B, n + m)
        tokens = tokens.scatter(1, self.places, prompt.expand(rows, -1))
        seen = torch.arange(tokens.shape[1], device=inputs.device) < lengths + len(prompt)
        return (Batch(tokens, batch.targets, seen),)

    def read(self, _: nn.Module, __: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Post-hook on the stack: the state at the mask."""
        if self.places is not None:
            self.state = output[0].take_along_dim(self.places[:, self.mask, None, None], dim=1)[:, 0]

    def classify(self, encoder: Encoder, _: tuple[Batch], __: Tensor) -> Tensor:
        """Post-hook on the model: log p(y | x), (B, C), in place of what its own head says."""
        logp = encoder.lm_head(self.state).log_softmax(dim=-1)  # (B, V)
        self.places = self.state = None
        return logp[:, self.words].logsumexp(dim=-1)


@dataclass(frozen=True)
class Search:
    """How the triggers are searched; see ``attach``."""

    candidates: int
    accumulation: int
    metric: Literal["probability", "accuracy"]
    excluded: Sequence[int]
    dev: Sequence[Batch]


class AutoPrompt(Adapter):
    """Trigger tokens found by gradient-guided search."""

    has_strength = False

    def __init__(self, model: Encoder, triggers: Triggers, search: Search) -> None:
        super().__init__(model)
        self.triggers, self.search = triggers, search
        self.add("", "triggers", triggers)
        self.hook("", pre=triggers.surround, post=triggers.classify)
        self.hook("stack", post=triggers.read)

    def loss(self, batch: Batch) -> Tensor:
        """-log p(y | x): over the whole vocabulary, not over the label words alone."""
        return F.nll_loss(self.model(batch), batch.targets)

    def fit(self, batches: Iterable[Batch], learning_rate: float | None = None) -> list[float]:
        """Search; a step takes ``accumulation`` batches for the gradient and as many to try candidates on.

        Returns the loss on the latter after every step; ``learning_rate`` has no meaning here. Without ``dev``
        batches the last prompt stays.
        """
        source, n = iter(batches), self.search.accumulation
        tokens, dev = self.triggers.tokens, self.search.dev
        best, kept, losses = self.score(dev), tokens.clone(), []
        while len(group := list(islice(source, 2 * n))) > n:
            fresh = group[n:]
            accepted = self.step(group[:n], fresh)
            losses.append(-self.score(fresh, "probability"))
            if accepted and (score := self.score(dev)) > best:
                best, kept = score, tokens.clone()
        if dev:
            tokens.copy_(kept)
        return losses

    def step(self, batches: Sequence[Batch], fresh: Sequence[Batch]) -> bool:
        """Try to exchange one trigger; whether that was accepted."""
        tokens = self.triggers.tokens
        j = int(torch.randint(len(tokens), ()))
        present = tokens[j].clone()
        ranked = self.rank(self.gradient(batches)[j])
        best, chosen = self.score(fresh), present
        for word in ranked:
            tokens[j] = word
            if (score := self.score(fresh)) > best:
                best, chosen = score, word
        tokens[j] = chosen
        return bool(chosen != present)

    def gradient(self, batches: Sequence[Batch]) -> Tensor:
        """d loss / d e(t_j), (T, d), taken at the output of the embedding, so that no parameter gets a gradient."""
        seen: list[tuple[Tensor, Tensor]] = []

        def start_here(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            places = self.triggers.places
            assert places is not None
            seen.append((output.detach().requires_grad_(), places[:, self.triggers.at, None]))  # (B, n, d), (B, T, 1)
            return seen[-1][0]

        handle = self.model.get_submodule("embed").register_forward_hook(start_here)
        parts = []
        for batch in batches:
            loss = self.loss(batch)
            embedded, at = seen.pop()
            (gradient,) = torch.autograd.grad(loss, embedded)
            parts.append(gradient.take_along_dim(at, dim=1).sum(dim=0))
        handle.remove()
        return torch.stack(parts).mean(dim=0)

    def rank(self, gradient: Tensor) -> Tensor:
        """The words that decrease the loss most to first order, (k,), best first."""
        table, excluded = self.model.get_parameter("embed.weight"), sorted(set(self.search.excluded))
        promise = -(table @ gradient)  # (V,)
        promise[excluded] = -torch.inf
        return promise.topk(min(self.search.candidates, len(table) - len(excluded))).indices

    @torch.no_grad()
    def score(self, batches: Sequence[Batch], metric: str | None = None) -> float:
        """How good the present prompt is on ``batches``, more is better; without any, all prompts are equal."""
        if (metric or self.search.metric) == "accuracy":
            scores = [(self.model(batch).argmax(dim=-1) == batch.targets).double().mean() for batch in batches]
        else:
            scores = [-self.loss(batch) for batch in batches]
        return float(torch.stack(scores).mean()) if scores else 0.0


def attach(
    model: nn.Module,
    *,
    template: str = "{sentence} [T] [T] [T] [MASK]",
    start: Sequence[int] = (),
    label_words: Sequence[Sequence[int]] = (),
    words: int = 3,
    candidates: int = 10,
    accumulation: int = 1,
    metric: Literal["probability", "accuracy"] = "probability",
    excluded: Sequence[int] = (),
    batches: Iterable[Batch] = (),
    dev: Iterable[Batch] = (),
) -> Adapter:
    """Ask a frozen masked language model for one of the ``label_words`` (token ids of each class, equally many).

    The ``template`` may hold fixed words, as token ids; ``start`` are the first triggers. Without ``label_words``,
    ``words`` a class are found on ``batches``. Every step tries ``candidates`` tokens, never one of ``excluded``, and
    takes twice ``accumulation`` batches; the best prompt is chosen on ``dev``, by default the same as ``batches``.
    """
    if not isinstance(model, Encoder):
        raise AdapterError(f"{type(model).__name__} fills no masks: AutoPrompt needs the encoder")
    batches, dev, size = list(batches), list(dev), model.size
    if min(words, candidates, accumulation) < 1 or words > size.V - 2:
        raise AdapterError(
            f"words {words}, candidates {candidates}, accumulation {accumulation}: each must be at least 1, "
            f"words at most {size.V - 2}"
        )
    if metric not in ("probability", "accuracy"):
        raise AdapterError(f"metric is {metric!r}; allowed: probability, accuracy")
    if not label_words and not batches:
        raise AdapterError("label_words: give them, or batches on which to find them")
    if label_words and (len(label_words) != size.C or len({len(w) for w in label_words} | {0}) != 2):
        raise AdapterError(f"label_words: needs equally many words, one or more, for each of {size.C} classes")
    triggers = Triggers(model, template, start, len(label_words[0]) if label_words else words)
    adapter = AutoPrompt(model, triggers, Search(candidates, accumulation, metric, excluded, dev or batches))
    if label_words:
        triggers.words.copy_(torch.tensor([list(w) for w in label_words]))
    else:
        triggers.words.copy_(find_label_words(model, batches, words))
    return adapter


def find_label_words(model: Encoder, batches: Sequence[Batch], count: int, steps: int = 300) -> Tensor:
    """The ``count`` words, (C, count), that a classifier of the mask's state takes for each class; no special tokens.

    Training is short: a classifier fitted to the end follows what tells the states best apart, which is no longer a
    direction that words point in.
    """
    states: list[Tensor] = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    h, y = torch.cat(states), torch.cat([batch.targets for batch in batches])
    out = model.lm_head.weight.detach()  # (V, d)
    a = out.new_zeros(model.size.C, out.shape[1]).requires_grad_()
    b = out.new_zeros(model.size.C).requires_grad_()
    optimizer = torch.optim.Adam([a, b], lr=3e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(F.linear(h, a, b), y).backward()
        optimizer.step()
    conviction = F.linear(out, a, b).detach().softmax(dim=-1)  # (V, C)
    conviction[[model.mask_token, model.class_token]] = -1.0
    return conviction.topk(count, dim=0).indices.T
