r"""X-LoRA: Mixture of Low-Rank Adapter Experts.

Buehler, Buehler; APL Machine Learning 2(2), 2024; arXiv 2402.07148.

n LoRA experts (A_k, B_k), trained beforehand, sit on L linear layers; a classifier f says for every token, and every
adapted layer l, how much of each is applied. It reads the last hidden state of the model without them:

    pass 1    h = last hidden state in R^{B x T x H}, no expert at work, no gradient
              lambda = softmax_k(f(h) / tau) in R^{B x T x L x n}
    pass 2    y = W0 x + b + c sum_k s_k B_k A_k (lambda_{l,k} * x),    s_k = alpha_k / r_k
    f         depth 1: Linear(H, o);  more: Linear(H, S), ReLU, dropout, (Linear(S, S), ReLU, dropout) .., Linear(S, o)

o = n L with ``layerwise`` scalings; otherwise o = n, the same lambda for every layer. ``top_k`` keeps the k largest
lambda of a token and layer as they are; ``softmax_topk`` takes a softmax over them besides.

Trained: f alone, through pass 2; with ``train_experts`` the experts too.
Start: f as torch starts linear layers, so that every expert gets roughly 1/n; the experts as they come out of their own
training. That is the mean of the experts, not the base model.

lambda is one number a token and expert, so it may be applied behind A_k: all A_k together are one thin product, whose
outputs are scaled, and all B_k another. Experts run without dropout.

``experts`` takes the ``state_dict()`` of LoRA adapters. A number makes as many of random factors instead, B not zero as
an untrained expert's would be: experts that do nothing leave nothing to choose and f without a gradient. They stand in
for trained ones where mechanics are measured; nobody has taught them anything.

The coefficient c is the global scaling weight. Pass 1 runs without it, so that lambda is the same for every c.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, check_dropout, check_rank, find_linear
from reference_impls.backbones.layers import Stack

Expert = dict[str, tuple[Tensor, Tensor]]
"""Path of a linear layer -> A (r, d_in) and B (d_out, r)."""


@dataclass(frozen=True)
class Routing:
    """From the classifier's logits to scalings; ``scaling_pass_value`` is every expert's scaling in pass 1."""

    softmax: bool = True
    temperature: float = 1.0
    top_k: int | None = None
    softmax_topk: bool = False
    scaling_pass_value: float = 0.0

    def check(self, experts: int) -> None:
        """AdapterError for a choice that leaves no scalings."""
        if self.temperature <= 0:
            raise AdapterError(f"temperature is {self.temperature}; it must be positive")
        if self.top_k is not None and not 1 <= self.top_k <= experts:
            raise AdapterError(f"top_k is {self.top_k}; of {experts} experts it may keep 1 to {experts}")
        if self.softmax_topk and self.top_k is None:
            raise AdapterError("softmax_topk is a softmax over the best experts; say with top_k how many they are")

    def scalings(self, logits: Tensor) -> Tensor:
        """(..., n) -> lambda (..., n)."""
        values = (logits / self.temperature).softmax(-1) if self.softmax else logits
        if self.top_k is None:
            return values
        best = values.topk(self.top_k, dim=-1).indices
        others = torch.ones_like(values, dtype=torch.bool).scatter(-1, best, False)
        return values.masked_fill(others, -math.inf).softmax(-1) if self.softmax_topk else values * ~others


class Router(nn.Module):
    """h (B, T, H) -> lambda (B, T, L, n). Runs pass 1 and keeps the ``scalings`` for the layers of pass 2."""

    scalings: Tensor | None = None
    """None: no expert is at work."""

    def __init__(self, classifier: nn.Sequential, layers: int, experts: int, routing: Routing) -> None:
        super().__init__()
        self.classifier = classifier
        self.layers, self.experts, self.routing = layers, experts, routing

    def first_pass(self, stack: nn.Module, args: tuple[Any, ...]) -> None:
        """Pre-hook on the stack, on the inputs of pass 2."""
        value = self.routing.scaling_pass_value
        self.scalings = args[0].new_full((1, 1, self.layers, self.experts), value) if value else None
        with torch.no_grad():
            h, *_ = stack.forward(*args)
        self.scalings = self(h)

    def forward(self, h: Tensor) -> Tensor:
        logits = self.classifier(h).unflatten(-1, (-1, self.experts))  # (B, T, L or 1, n)
        return self.routing.scalings(logits).expand(-1, -1, self.layers, -1)

    def __getstate__(self) -> dict[str, Any]:
        # The last scalings hang on a graph, which cannot be copied with the model.
        return {**self.__dict__, "scalings": None}


class ExpertsLinear(Wrapper):
    """The adapted layer number ``index`` and its experts, of R = sum_k r_k directions together."""

    base: nn.Linear
    owner: Tensor
    scale: Tensor

    def __init__(
        self,
        base: nn.Linear,
        experts: Mapping[int, tuple[Tensor, Tensor]],
        alphas: Sequence[float],
        router: Router,
        index: int,
    ) -> None:
        super().__init__(base)
        # A tuple hides the router from module registration: it belongs to the model, once, not to every layer.
        self._router, self.index = (router,), index
        self.A = nn.Parameter(torch.cat([A.detach() for A, _ in experts.values()]).to(base.weight))  # (R, d_in)
        self.B = nn.Parameter(torch.cat([B.detach() for _, B in experts.values()], 1).to(base.weight))  # (d_out, R)
        owner = [k for k, (A, _) in experts.items() for _ in range(len(A))]
        scale = [alphas[k] / len(A) for k, (A, _) in experts.items() for _ in range(len(A))]
        self.register_buffer("owner", torch.tensor(owner, device=base.weight.device), persistent=False)
        self.register_buffer("scale", base.weight.new_tensor(scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        (router,) = self._router
        if router.scalings is None:
            return y
        weights = router.scalings[:, :, self.index][..., self.owner]  # (B, T, R)
        z = F.linear(x, self.A) * (self.strength * self.scale * weights)
        return y + F.linear(z, self.B)


class XLoRA(Adapter):
    """LoRA experts and the classifier that mixes them, token by token."""


def attach(
    model: nn.Module,
    *,
    experts: int | Sequence[Mapping[str, Tensor]] = 4,
    rank: int = 8,
    alpha: float | Sequence[float] = 16,
    targets: Sequence[str] = ("q", "v"),
    train_experts: bool = False,
    depth: int = 1,
    hidden: int = 2048,
    dropout: float = 0.2,
    layerwise: bool = False,
    softmax: bool = True,
    temperature: float = 1.0,
    top_k: int | None = None,
    softmax_topk: bool = False,
    scaling_pass_value: float = 0.0,
) -> Adapter:
    """Mix ``experts``, the states of n LoRA adapters; ``alpha`` is theirs, one for all or one for each.

    A number of experts makes stand-ins of ``rank`` on the linear layers named in ``targets``. ``depth``, ``hidden`` (S)
    and ``dropout`` shape the classifier.
    """
    stack = getattr(model, "stack", None)
    if not isinstance(stack, Stack):
        raise AdapterError(f"{type(model).__name__} has no one stack whose last hidden state the classifier could read")
    n = experts if isinstance(experts, int) else len(experts)
    alphas = list(alpha) if isinstance(alpha, Sequence) else [alpha] * n
    if n < 1 or len(alphas) != n or min(alphas) <= 0:
        raise AdapterError(f"{n} experts, alpha {alpha}: need 1 or more, and positive numbers, one for all or for each")
    if depth < 1 or hidden < 1:
        raise AdapterError(f"depth is {depth}, hidden {hidden}; both must be at least 1")
    check_dropout(dropout)
    routing = Routing(softmax, temperature, top_k, softmax_topk, scaling_pass_value)
    routing.check(n)
    mixed = stand_ins(model, n, rank, targets) if isinstance(experts, int) else [read(model, s) for s in experts]
    paths = [path for path, _ in model.named_modules() if any(path in expert for expert in mixed)]
    outside = [path for path in paths if not path.startswith("stack.")]
    if outside:
        raise AdapterError(f"{outside[0]} is outside the stack; only there has every token its scaling")
    width = stack.blocks[0].attention.q.weight  # type: ignore[union-attr]
    f = classifier(width, depth, hidden, dropout, n * len(paths) if layerwise else n)  # type: ignore[arg-type]
    router = Router(f, len(paths), n, routing)
    adapter = XLoRA(model)
    adapter.add("", "router", router)
    for index, path in enumerate(paths):
        pairs = {k: expert[path] for k, expert in enumerate(mixed) if path in expert}
        base: Any = model.get_submodule(path)
        site: Any = adapter.replace(path, ExpertsLinear(base, pairs, alphas, router, index))
        site.A.requires_grad_(train_experts)
        site.B.requires_grad_(train_experts)
    adapter.hook("stack", pre=router.first_pass)
    return adapter


def classifier(like: Tensor, depth: int, hidden: int, dropout: float, outputs: int) -> nn.Sequential:
    """f, of ``depth`` linear layers; ``like`` (.., H) tells its input's width, place and precision."""
    widths = [like.shape[1], *[hidden] * (depth - 1), outputs]
    parts: list[nn.Module] = []
    for d_in, d_out in pairwise(widths):
        parts += [nn.ReLU(), nn.Dropout(dropout)] if parts else []
        parts.append(nn.Linear(d_in, d_out, device=like.device, dtype=like.dtype))
    return nn.Sequential(*parts)


def stand_ins(model: nn.Module, count: int, rank: int, targets: Sequence[str]) -> list[Expert]:
    """Experts of random factors, both as LoRA draws its A: in +-1/sqrt(inputs of the factor)."""
    check_rank(rank)
    layers = find_linear(model, targets)

    def draw(like: Tensor, *shape: int) -> Tensor:
        return nn.init.kaiming_uniform_(like.new_empty(shape), a=math.sqrt(5))

    return [
        {p: (draw(m.weight, rank, m.in_features), draw(m.weight, m.out_features, rank)) for p, m in layers.items()}
        for _ in range(count)
    ]


def read(model: nn.Module, state: Mapping[str, Tensor]) -> Expert:
    """The expert of a LoRA state; AdapterError where it is none, or none of this model."""
    modules = dict(model.named_modules())
    expert: Expert = {}
    for path in sorted({name.rpartition(".")[0] for name in state}):
        layer = modules.get(path)
        if not isinstance(layer, nn.Linear):
            raise AdapterError(f"an expert adapts {path!r}, which is no linear layer of this {type(model).__name__}")
        A, B = state.get(f"{path}.A"), state.get(f"{path}.B")
        if A is None or B is None or (*B.shape, *A.shape) != (layer.out_features, len(A), len(A), layer.in_features):
            shapes = f"({layer.out_features}, r) and (r, {layer.in_features})"
            raise AdapterError(f"an expert's factors B and A of {path} must be there and be {shapes}")
        expert[path] = A, B
    if not expert:
        raise AdapterError("an expert's state is empty; it holds names that end in .A and .B")
    return expert
