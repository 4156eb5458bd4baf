r"""AutoPrompt: Eliciting Knowledge from Language Models with Automatically Generated Prompts.

Shin, Razeghi, Logan IV, Wallace, Singh; EMNLP 2020; arXiv 2010.15980, section 2.

A template puts T trigger tokens t_1 .. t_T, the same for every input, and one mask around the sentence. A frozen masked
language model fills the mask, and the words of a class share its probability:

    p(y | x) = sum_{w in V_y} p([MASK] = w | x, t),           loss = -log p(y | x)                        (equation 1)

Learned: the triggers, T integers in a buffer; no tensor is trained. Start: every trigger is the mask token.

Search (section 2.2), one step at a position j drawn at random, with e(w) in R^d the input embedding of w:

    g_j = sum of d loss / d e(t_j) over the examples,   V_cand = top-k_w [-e(w)^T g_j]                    (equation 2)

e(w)^T g_j - e(t_j)^T g_j is what exchanging t_j for w changes the loss by, to first order. Every candidate is then tried
on fresh batches, the present prompt too, on the same ones; t_j makes way only for a better one. The prompt that did
best on the ``dev`` batches is kept. The paper compares label probabilities, its code accuracies: ``metric``.

Label words (section 2.3), where none are given: a logistic regression a_y, b_y predicts the class from the state h at the
mask, and V_y are the k words whose output embeddings it takes for class y with most conviction:

    s(y, w) = softmax_y(a_y . w_out + b_y),                   V_y = top-k_w s(y, w)                   (equations 3 and 4)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    """The prompt: puts itself around a batch and reads the classes off the mask. Slots 0 .. T-1 and, the mask, T."""

    tokens: Tensor
    words: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, encoder: Encoder, template: str, words: int) -> None:
        super().__init__()
        parts = template.split()
        if parts.count(SENTENCE) != 1 or parts.count(MASK) != 1 or set(parts) != {SENTENCE, TRIGGER, MASK}:
            raise AdapterError(
                f"template {template!r}: {SENTENCE} and {MASK} once each, {TRIGGER} once or more, no more"
            )
        self.count = parts.count(TRIGGER)
        self.mask_token = encoder.mask_token
        numbers = iter(range(self.count))
        slots = [self.count if part == MASK else next(numbers) for part in parts if part != SENTENCE]
        sentence, device = parts.index(SENTENCE), encoder.embed.weight.device
        for name, side in (("left", slots[:sentence]), ("right", slots[sentence:])):
            self.register_buffer(name, torch.tensor(side, dtype=torch.long, device=device), persistent=False)
        self.register_buffer("tokens", torch.full((self.count,), self.mask_token, device=device))
        self.register_buffer("words", torch.zeros(encoder.size.C, words, dtype=torch.long, device=device))
        self.slots: Tensor | None = None
        """(B, n, T + 1): which position of the present batch holds which slot."""
        self.state: Tensor | None = None
        """(B, d): the states at the masks of the present batch."""

    def surround(self, _: nn.Module, args: tuple[Batch]) -> tuple[Batch]:
        """Pre-hook on the model: [class] sentence padding becomes [class] prompted sentence, then padding."""
        (batch,) = args
        inputs, rows = batch.inputs, len(batch.inputs)
        visible = torch.ones_like(inputs, dtype=torch.bool) if batch.visible is None else batch.visible
        prompt = torch.cat([self.tokens, self.tokens.new_full((1,), self.mask_token)])  # (T + 1,)

        def around(middle: Tensor, left: Tensor, right: Tensor) -> Tensor:
            return torch.cat([middle[:, :1], left.expand(rows, -1), middle[:, 1:], right.expand(rows, -1)], dim=1)

        tokens = around(inputs, prompt[self.left], prompt[self.right])
        seen = around(
            visible, torch.ones_like(self.left, dtype=torch.bool), torch.ones_like(self.right, dtype=torch.bool)
        )
        names = around(torch.full_like(inputs, -1), self.left, self.right)
        order = (~seen).long().argsort(dim=1, stable=True)  # padding goes to the end
        numbers = torch.arange(self.count + 1, device=inputs.device)
        self.slots = names.gather(1, order)[:, :, None] == numbers
        return (Batch(tokens.gather(1, order), batch.targets, seen.gather(1, order)),)

    def read(self, _: nn.Module, __: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Post-hook on the stack: the state at the mask."""
        if self.slots is not None:
            self.state = torch.einsum("bn,bnd->bd", self.slots[:, :, -1].to(output[0].dtype), output[0])

    def classify(self, encoder: Encoder, _: tuple[Batch], __: Tensor) -> Tensor:
        """Post-hook on the model: log p(y | x), (B, C), in place of what its own head says."""
        logp = encoder.lm_head(self.state).log_softmax(dim=-1)  # (B, V)
        self.state = self.slots = None
        return logp[:, self.words].logsumexp(dim=-1)


class AutoPrompt(Adapter):
    """Trigger tokens found by gradient-guided search."""

    has_strength = False

    def __init__(self, model: Encoder, triggers: Triggers, dev: Sequence[Batch], **search: Any) -> None:
        super().__init__(model)
        self.triggers, self.dev = triggers, dev
        self.candidates: int = search["candidates"]
        self.accumulation: int = search["accumulation"]
        self.metric: str = search["metric"]
        self.excluded: Sequence[int] = search["excluded"]
        self.add("", "triggers", triggers)
        self.hook("", pre=triggers.surround, post=triggers.classify)
        self.hook("stack", post=triggers.read)

    def loss(self, batch: Batch) -> Tensor:
        """-log p(y | x): over the whole vocabulary, not over the label words alone."""
        return F.nll_loss(self.model(batch), batch.targets)

    def fit(self, batches: Iterable[Batch], learning_rate: float | None = None) -> list[float]:
        """Search; a step takes ``accumulation`` batches for the gradient and as many to try candidates on.

        Returns the loss on the latter after every step; ``learning_rate`` has no meaning here.
        """
        source = iter(batches)
        best, kept, losses = self.score(self.dev), self.triggers.tokens.clone(), []
        while fresh := self.next_two(source):
            accepted = self.step(*fresh)
            losses.append(-self.score(fresh[1], "probability"))
            if accepted and (score := self.score(self.dev)) >= best:
                best, kept = score, self.triggers.tokens.clone()
        self.triggers.tokens.copy_(kept)
        return losses

    def next_two(self, source: Iterator[Batch]) -> tuple[list[Batch], list[Batch]] | None:
        """Batches for the gradient and others to try candidates on; None when they do not suffice."""
        first, second = (list(islice(source, self.accumulation)) for _ in range(2))
        return (first, second) if second else None

    def step(self, batches: Sequence[Batch], fresh: Sequence[Batch]) -> bool:
        """Try to exchange one trigger; whether that was accepted."""
        tokens = self.triggers.tokens
        j = int(torch.randint(len(tokens), ()))
        ranked = self.rank(self.gradient(batches)[j])
        best, chosen, present = self.score(fresh), tokens[j].clone(), tokens[j].clone()
        for word in ranked:
            tokens[j] = word
            if (score := self.score(fresh)) > best:
                best, chosen = score, word
        tokens[j] = chosen
        return bool(chosen != present)

    def gradient(self, batches: Sequence[Batch]) -> Tensor:
        """d loss / d e(t_j), (T, d), taken at the output of the embedding; no parameter gets a gradient."""
        embedded: list[Tensor] = []

        def start_here(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            embedded.append(output.detach().requires_grad_())
            slots.append(self.triggers.slots)
            return embedded[-1]

        slots: list[Tensor | None] = []
        handle = self.model.get_submodule("embed").register_forward_hook(start_here)
        total = torch.stack([self.loss(batch) for batch in batches]).mean()
        handle.remove()
        found = torch.autograd.grad(total, embedded)
        at_triggers = [(s[:, :, :-1].to(g.dtype), g) for s, g in zip(slots, found, strict=True) if s is not None]
        return sum((torch.einsum("bnt,bnd->td", s, g) for s, g in at_triggers), start=torch.zeros(()).to(total))

    def rank(self, gradient: Tensor) -> Tensor:
        """The words that decrease the loss most to first order, (k,)."""
        table: Tensor = self.model.get_parameter("embed.weight")
        promise = -(table @ gradient)  # (V,)
        for word in self.excluded:
            promise[word] = -torch.inf
        return promise.topk(min(self.candidates, len(table) - len(self.excluded))).indices

    @torch.no_grad()
    def score(self, batches: Sequence[Batch], metric: str | None = None) -> float:
        """How good the present prompt is on ``batches``, more is better; 0 where there are none."""
        if (metric or self.metric) == "accuracy":
            scores = [(self.model(batch).argmax(dim=-1) == batch.targets).double().mean() for batch in batches]
        else:
            scores = [-self.loss(batch) for batch in batches]
        return float(torch.stack(scores).mean()) if scores else 0.0


def attach(
    model: nn.Module,
    *,
    template: str = "{sentence} [T] [T] [T] [MASK]",
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

    Without ``label_words``, ``words`` a class are found on ``batches``. The best prompt is chosen on ``dev``, by
    default the same batches; ``excluded`` tokens never become triggers.
    """
    if not isinstance(model, Encoder):
        raise AdapterError(f"{type(model).__name__} fills no masks: AutoPrompt needs the encoder")
    batches, dev = list(batches), list(dev)
    if min(words, candidates, accumulation) < 1:
        raise AdapterError(f"words {words}, candidates {candidates}, accumulation {accumulation}: need 1 or more")
    if metric not in ("probability", "accuracy"):
        raise AdapterError(f"metric: {metric!r} is neither probability nor accuracy")
    if not label_words and not batches:
        raise AdapterError("give label_words, or batches on which to find them")
    if label_words and (len(label_words) != model.size.C or len({len(w) for w in label_words} | {0}) != 2):
        raise AdapterError(f"label_words: need as many words for each of {model.size.C} classes, one or more")
    triggers = Triggers(model, template, len(label_words[0]) if label_words else words)
    search = {"candidates": candidates, "accumulation": accumulation, "metric": metric, "excluded": excluded}
    adapter = AutoPrompt(model, triggers, dev or batches, **search)
    if label_words:
        triggers.words.copy_(torch.tensor([list(w) for w in label_words]))
    else:
        triggers.words.copy_(find_label_words(model, batches, words))
    return adapter


def find_label_words(model: Encoder, batches: Sequence[Batch], count: int, steps: int = 300) -> Tensor:
    """The ``count`` words, (C, count), that a classifier of the mask's state takes for each class; no special tokens."""
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
    optimizer = torch.optim.Adam([a, b], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(F.linear(h, a, b), y).backward()
        optimizer.step()
    conviction = F.linear(out, a, b).detach().softmax(dim=-1)  # (V, C)
    conviction[model.mask_token] = conviction[model.class_token] = -1.0
    return conviction.topk(count, dim=0).indices.T
