r"""Mix-of-Show: Decentralized Low-Rank Adaptation for Multi-Concept Customization of Diffusion Models.

Gu, Wang, Wu, Shi, Chen, Fan, Xiao, Zhao, Chang, Wu, Ge, Shan, Shou; NeurIPS 2023; arXiv 2305.18292. Official code:
TencentARC/Mix-of-Show, followed where the paper is silent.

One concept, learned by whoever has its pictures (ED-LoRA, ``attach``). Two new words V_rand, V_class name it, and each
means something else to every cross-attention of the U-Net: e in R^{2 x L x d}. A prompt is encoded once per
cross-attention, L times, and layer l (on the way down, in the middle, on the way up) reads the encoding l. The
projections of all attention, of text encoder and U-Net, get y = W0 x + b + alpha U D x, D in R^{r x d_in},
U in R^{d_out x r}: a LoRA whose alpha is not divided by r.

Trained: the 2 L embeddings, D and U. The loss is the denoiser's inside the mask of the subject, plus a small term on
the normalized attention maps of the two words: V_rand must not look outside the mask, nor V_class, which with
``full_identity`` is to equal it. Once the new embeddings' mean norm has reached a limit they stay as they are: longer
ones would be unlike every word that the text encoder knows, and the identity is to be in words more than in weights.
Start: the same vector for all layers, V_rand ~ N(0, 0.013^2), about CLIP's own spread, and V_class the embedding of a
word for the class; D from Kaiming's uniform distribution, U = 0. Prompts without the new words are the base model's.

Several concepts are joined by someone without any pictures: ``fuse`` in ``_mix_of_show_fusion.py``. The third part of
the paper, a sampling that gives every concept a region of the picture, trains nothing and is not here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, Wrapper, check_rank, find, find_linear
from reference_impls.backbones.base import Batch
from reference_impls.reparameterized.lora import LoRALinear


class ConceptEmbedding(Wrapper):
    """An embedding with new words behind the V known ones: one token id for each new word and layer, as in the code."""

    base: nn.Embedding

    def __init__(self, base: nn.Embedding, new: Tensor) -> None:
        super().__init__(base)
        self.new = nn.Parameter(new)  # (words, L, d)

    def bind(self, tokens: Tensor) -> Tensor:
        """Prompts (B, S), whose new word w is V + w -> the same for every layer, (B L, S), with V + w L + l."""
        known, layers = self.base.num_embeddings, self.new.shape[1]
        each = tokens[:, None]
        new = known + (each - known) * layers + torch.arange(layers, device=tokens.device)[:, None]
        return torch.where(each < known, each, new).flatten(0, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        known = self.base.num_embeddings
        new = self.new.flatten(0, 1)[(tokens - known).clamp(min=0)]
        return torch.where((tokens >= known)[..., None], new, self.base(tokens.clamp(max=known - 1)))


class Concepts(Adapter):
    """A text encoder that knows new words, and a U-Net whose every cross-attention has its own encoding of a prompt."""

    words: ConceptEmbedding

    def teach(self, new: Tensor) -> None:
        """Add words (words, L, d); the last change to the text encoder's tree."""
        self.words = ConceptEmbedding(self.model.get_submodule("text.embed"), new)  # type: ignore[arg-type]
        self.replace("text.embed", self.words)
        self.hook(
            "text",
            pre=lambda _, args: (self.words.bind(args[0]),),
            post=lambda _, args, states: states.unflatten(0, (-1, new.shape[1])),  # (B, L, S, d)
        )
        for layer, path in enumerate(find(self.model, ["cross"])):
            self.hook(path, pre=partial(read, layer))


def read(layer: int, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give a cross-attention, called with (x, bias, memory), the encoding that was made for it."""
    x, bias, memory = args
    return x, bias, memory[:, layer] if memory.ndim == 4 else memory


class EDLoRA(Concepts):
    """One concept: two words with an embedding per layer, and factors without a divided scale."""

    family = "low-rank"
    norm_limit: float | None = None
    attention_weight = 0.01
    full_identity = False
    settled: Tensor | None = None
    maps: list[Tensor] | None = None

    def bind(self, batch: Batch) -> Batch:
        """The batch with the concept's words in front of its captions, in place of the article there."""
        assert batch.text is not None
        known = self.words.base.num_embeddings
        concept = torch.arange(known, known + 2, device=batch.text.device).expand(len(batch.text), 2)
        return replace(batch, text=torch.cat([concept, batch.text[:, 1:]], dim=1))

    def loss(self, batch: Batch, mask: Tensor | None = None) -> Tensor:
        """The task's loss on captions that name the concept; inside ``mask`` (B, 1, H, W) of 0 and 1 where given."""
        batch = self.bind(batch)
        if mask is None:
            return super().loss(batch)
        self.maps = []
        try:
            error = (self.model(batch) - batch.targets).square() * mask
            inside = mask.expand_as(error).flatten(1).sum(1)
            return (error.flatten(1).sum(1) / inside).mean() + self.attention_weight * self.attention_term(mask)
        finally:
            self.maps = None

    def watch(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep what a cross-attention looks at, (B, h, T, S), while a mask is at hand to judge it by."""
        if self.maps is not None:
            q, k = args[:2]
            self.maps.append((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1))

    def attention_term(self, mask: Tensor) -> Tensor:
        """Mean attention to the words outside the mask, over heads and layers of one resolution, summed over these."""
        total = mask.new_zeros(())
        for pixels in {attention.shape[-2] for attention in self.maps or ()}:
            mean = torch.cat([m for m in self.maps or () if m.shape[-2] == pixels], dim=1).mean(1)  # (B, T, S)
            subject = F.interpolate(mask, size=(math.isqrt(pixels),) * 2, mode="nearest").flatten(1)
            rand, kind = (mean[..., word] / mean[..., word].max() for word in (0, 1))
            outside = (subject == 0).to(mean) / (subject == 0).sum().clamp(min=1)
            total = total + (rand * outside).sum()
            total = total + (F.mse_loss(kind, subject) if self.full_identity else (kind * outside).sum())
        return total

    def after_step(self) -> None:
        """Put embeddings back that have reached the limit; their mean norm is what has to."""
        with torch.no_grad():
            if self.settled is not None:
                self.words.new.copy_(self.settled)
            elif self.norm_limit is not None and self.words.new.norm(dim=-1).mean() >= self.norm_limit:
                self.settled = self.words.new.clone()

    def optimizer(self, learning_rate: float) -> torch.optim.Optimizer:
        """AdamW with decay 0.01; embeddings 10 times and the text encoder a tenth of the U-Net's step (1e-4)."""
        rates: dict[float, list[nn.Parameter]] = {10.0: [], 0.1: [], 1.0: []}
        for name, parameter in self.named_parameters():
            rates[10.0 if name.endswith(".new") else 0.1 if name.startswith("text.") else 1.0].append(parameter)
        groups = [{"params": p, "lr": rate * learning_rate} for rate, p in rates.items()]
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.01)


def attach(
    model: nn.Module,
    *,
    rank: int = 4,
    alpha: float = 1.0,
    class_word: int | None = None,
    spread: float = 0.013,
    norm_limit: float | None = 0.55,
    full_identity: bool = False,
    targets: Sequence[str] = ("q", "k", "v", "o"),
) -> EDLoRA:
    """Teach ``model``, a U-Net with a text encoder, one concept.

    ``class_word`` is the token that V_class starts from, None: at random like V_rand, with the standard deviation
    ``spread``. ``norm_limit`` is for embeddings of CLIP's size (None: no limit); ``full_identity`` is above.
    """
    check_rank(rank)
    cross, layers = find(model, ["cross"]), find_linear(model, targets)
    embed = getattr(getattr(model, "text", None), "embed", None)
    if not isinstance(embed, nn.Embedding):
        raise AdapterError(f"{type(model).__name__} has no text.embed; Mix-of-Show adapts models that follow a prompt")
    if class_word is not None and not 0 <= class_word < embed.num_embeddings:
        raise AdapterError(f"class_word is {class_word}; the known words are 0 to {embed.num_embeddings - 1}")
    start = spread * torch.randn_like(embed.weight.new_empty(2, embed.embedding_dim))
    if class_word is not None:
        start[1] = embed.weight[class_word].detach()
    adapter = EDLoRA(model)
    adapter.norm_limit, adapter.full_identity = norm_limit, full_identity
    for path, layer in layers.items():
        adapter.replace(path, LoRALinear(layer, rank, alpha * rank, 0.0))  # its scale is divided by the rank
    adapter.teach(start[:, None].repeat(1, len(cross), 1))
    for path in cross:
        adapter.hook(f"{path}.core", pre=adapter.watch)
    return adapter
