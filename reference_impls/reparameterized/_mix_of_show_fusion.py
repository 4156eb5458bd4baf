r"""Gradient fusion: several ED-LoRAs in one model, without any of their pictures (Mix-of-Show, arXiv 2305.18292).

    model_i:  W_i = W0 + alpha_i U_i D_i                        (what concept i's owner has trained, mix_of_show.py)
    W* = argmin_W sum_i || W X_i - W_i X_i ||_F^2,    X_i in R^{d_in x N_i} the layer's inputs in model_i
       = W0 + (sum_i (W_i - W0) X_i X_i^T) (sum_i X_i X_i^T)^+      the solution nearest to W0

The mean of the W_i would be right only if all concepts had the same inputs; this weighs every direction by how much
each concept uses it, and with inputs in different directions keeps every concept whole. Biases take no part. In order:

1. the text encoder, on the prompts 'a V_rand V_class' and 'V_rand V_class';
2. keys and values of the cross-attention, layer by layer, on what the fused text encoder makes of the new words;
3. the rest of the U-Net's attention, on all it sees in so many steps of sampling from noise with the first prompt.

Embeddings need no fusion: the words of one concept mean nothing to another. The code runs L-BFGS from W0
(``quasi_newton``), 50 iterations for part 3 and 500 else, whose steps stay in the span of the inputs and which so has
``closed_form`` as its limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError, Delta, find
from reference_impls.backbones.base import Batch
from reference_impls.backbones.unet import UNet
from reference_impls.reparameterized.mix_of_show import Concepts

Solver = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]


def closed_form(W0: Tensor, changes: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """W* nearest to W0 (d_out, d_in), for the W_i - W0 and their inputs, X_i^T (N_i, d_in)."""
    # The pseudo-inverse of the inputs themselves: that of their Gram matrix would square the condition.
    wanted = torch.cat([X @ change.T for X, change in zip(inputs, changes, strict=True)])
    return W0 + (torch.linalg.pinv(torch.cat(list(inputs))) @ wanted).T


def quasi_newton(W0: Tensor, changes: Sequence[Tensor], inputs: Sequence[Tensor], iterations: int = 500) -> Tensor:
    """The same by L-BFGS from W0 on the mean squared error, as in the code: the best of at most ``iterations``."""
    X = torch.cat(list(inputs))
    wanted = torch.cat([X_i @ (W0 + change).T for X_i, change in zip(inputs, changes, strict=True)])
    W, best = W0.detach().clone().requires_grad_(), (math.inf, W0)
    optimizer = torch.optim.LBFGS(
        [W],
        max_iter=iterations,
        history_size=25,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-16,
        tolerance_change=1e-16,
    )

    def closure() -> Tensor:
        nonlocal best
        optimizer.zero_grad()
        loss = F.mse_loss(F.linear(X, W), wanted)
        loss.backward()
        if loss.item() < best[0]:
            best = loss.item(), W.detach().clone()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return best[1]


class Fused(Delta):
    """W* in place of W0: a full matrix, of no low rank any more."""

    change: Tensor

    def __init__(self, change: Tensor) -> None:
        super().__init__()
        self.register_buffer("change", change)

    def delta_weight(self, base: Tensor) -> Tensor:
        return self.change


class FusedConcepts(Concepts):
    """A model with the words of several concepts and changed weights; there is nothing left to train."""

    def __init__(self, model: nn.Module, words: Tensor, changes: Mapping[str, Tensor]) -> None:
        super().__init__(model)
        for path, change in changes.items():
            self.reparameterize(f"{path}.weight", Fused(change))
        self.teach(words)
        self.words.requires_grad_(False)


@torch.no_grad()
def fuse(
    model: UNet,
    concepts: Sequence[Mapping[str, Tensor]],
    *,
    alphas: Sequence[tuple[float, float]] | None = None,
    solve: Solver = closed_form,
    solve_rest: Solver | None = None,
    steps: int = 20,
    seed: int = 0,
) -> FusedConcepts:
    """Join the state dicts of several concepts' ED-LoRAs; the words of concept i are V + 2 i and V + 2 i + 1.

    ``alphas`` are a concept's scales in text encoder and U-Net, 1 and 1 unless given; ``steps`` those of sampling.
    ``solve`` does all three parts, ``solve_rest`` the third where given: the code has fewer iterations there.
    """
    alphas = alphas or [(1.0, 1.0)] * len(concepts)
    if not concepts or len(alphas) != len(concepts):
        raise AdapterError(f"there are {len(concepts)} concepts and {len(alphas)} alphas; both must be 1 or more")
    words = torch.cat([state["text.embed.new"] for state in concepts])
    learned = [changes_of(*pair) for pair in zip(concepts, alphas, strict=True)]
    prompts = [prompts_of(model, concept) for concept in range(len(concepts))]
    text = [path for path in learned[0] if path.startswith("text.")]
    keys = [path for path in learned[0] if path.endswith((".cross.k", ".cross.v"))]
    rest = [path for path in learned[0] if path not in {*text, *keys}]
    fused: dict[str, Tensor] = {}

    def settle(
        paths: list[str], solve: Solver, inputs: Callable[[FusedConcepts, list[Tensor]], dict[str, Tensor]]
    ) -> None:
        """Solve for these layers; model i has what is fused so far, and its own weights in these."""
        seen = []
        for own, tokens in zip(learned, prompts, strict=True):
            adapter = FusedConcepts(model, words, {**fused, **{path: own[path] for path in paths}})
            seen.append(inputs(adapter, tokens))
            adapter.detach()
        for path in paths:
            W0 = model.get_parameter(f"{path}.weight")
            solution = solve(W0, [own[path] for own in learned], [inputs_i[path] for inputs_i in seen])
            fused[path] = solution - W0

    settle(text, solve, lambda adapter, tokens: record(adapter, text, lambda: [model.text(one) for one in tokens]))
    settle(keys, solve, meanings)
    settle(
        rest,
        solve_rest or solve,
        lambda adapter, tokens: record(adapter, rest, lambda: sample(model, tokens[0], steps, seed)),
    )
    return FusedConcepts(model, words, fused)


def changes_of(state: Mapping[str, Tensor], alphas: tuple[float, float]) -> dict[str, Tensor]:
    """Path -> alpha U D of every adapted layer; D and U are A and B there."""
    paths = [name.removesuffix(".A") for name in state if name.endswith(".A")]
    return {
        path: alphas[0 if path.startswith("text.") else 1] * state[f"{path}.B"] @ state[f"{path}.A"] for path in paths
    }


def prompts_of(model: UNet, concept: int) -> list[Tensor]:
    """'a V_rand V_class' and 'V_rand V_class', (1, 3) and (1, 2)."""
    first = model.size.V + 2 * concept
    device = model.head.weight.device
    return [torch.tensor([words], device=device) for words in ([0, first, first + 1], [first, first + 1])]


def record(adapter: FusedConcepts, paths: Iterable[str], run: Callable[[], object]) -> dict[str, Tensor]:
    """Path -> every input (N, d_in) that the layer gets meanwhile."""
    rows: dict[str, list[Tensor]] = {path: [] for path in paths}
    for path, seen in rows.items():
        adapter.hook(path, pre=lambda _, args, seen=seen: seen.append(args[0].flatten(0, -2)))
    run()
    return {path: torch.cat(seen) for path, seen in rows.items()}


def meanings(adapter: FusedConcepts, prompts: Sequence[Tensor]) -> dict[str, Tensor]:
    """Path of every key and value projection -> the encodings (N, d) of the new words that it is fed."""
    known, model = adapter.words.base.num_embeddings, adapter.model
    encoded = [model.get_submodule("text")(tokens)[:, :, (tokens[0] >= known)] for tokens in prompts]  # (1, L, 2, d)
    rows = torch.cat(encoded, dim=2)[0]  # (L, N, d)
    return {f"{path}.{name}": rows[layer] for layer, path in enumerate(find(model, ["cross"])) for name in "kv"}


def sample(model: UNet, tokens: Tensor, steps: int, seed: int) -> Tensor:
    """A picture (1, 3, H, W) from noise, by deterministic steps between equally spaced times."""
    weight = model.head.weight
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 3, model.size.image, model.size.image, generator=source).to(weight)
    for now, then in pairwise(torch.linspace(0.9, 0.1, steps + 1).tolist()):
        noise = model(Batch(x, x, text=tokens, time=x.new_full((1,), now)))
        picture = (x - math.sin(now * math.pi / 2) * noise) / math.cos(now * math.pi / 2)
        x = math.cos(then * math.pi / 2) * picture + math.sin(then * math.pi / 2) * noise
    return x
