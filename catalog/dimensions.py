"""Real dimensions of well-known models, at which parameter formulas are evaluated and reported counts reproduced."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from catalog.errors import CatalogError


@dataclass(frozen=True)
class Dimensions:
    """Sizes of one model, under the names that formulas use."""

    kind: str
    """decoder, encoder, encoder-decoder or vit."""
    L: int
    """Blocks; of an encoder-decoder, those of the encoder."""
    d: int
    """Width of the residual stream."""
    f: int
    """Width of the hidden layer of the feed-forward network."""
    heads: int
    """Attention heads."""
    total: int
    """Published number of parameters."""
    V: int = 0
    """Vocabulary; 0 for vision models."""
    positions: int = 0
    """Learned positions; 0 for rotary and relative ones."""
    L_dec: int = 0
    """Blocks of the decoder of an encoder-decoder."""
    head_dim: int = 0
    """Width of one head; d / heads unless given."""
    C: int = 2
    """Classes of the task head."""
    gated: bool = False
    """Whether the feed-forward network has a gate beside its up projection."""
    norm: str = "layer"
    """layer or rms."""
    bias: bool = True
    """Whether the linear layers have biases."""
    patch: int = 0
    """Side of an image patch in pixels."""
    image: int = 0
    """Side of the input image in pixels."""

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.d // self.heads)

    def variables(self) -> dict[str, int]:
        """The numbers a formula may use; `head` is the task head, 0 where a method brings none."""
        numbers = {name: int(value) for name, value in asdict(self).items() if not isinstance(value, str)}
        return {**numbers, "head": 0}


_ROBERTA: dict[str, Any] = {"kind": "encoder", "V": 50265, "positions": 514}
_BERT: dict[str, Any] = {"kind": "encoder", "V": 30522, "positions": 512}
_GPT2: dict[str, Any] = {"kind": "decoder", "V": 50257, "positions": 1024}
_LLAMA: dict[str, Any] = {"kind": "decoder", "V": 32000, "gated": True, "norm": "rms", "bias": False}
_T5: dict[str, Any] = {
    "kind": "encoder-decoder",
    "V": 32128,
    "gated": True,
    "norm": "rms",
    "bias": False,
    "head_dim": 64,
}
_VIT: dict[str, Any] = {"kind": "vit", "patch": 16, "image": 224, "C": 1000}

# Totals are those of the released checkpoints, tied embeddings counted once: BERT and RoBERTa with their pooler,
# T5 1.1 (all but t5-base-v1.0) with its untied output head, ViT with the ImageNet-1k head; GPT-3 as rounded in its
# paper (table 2.1).
MODELS: Mapping[str, Dimensions] = MappingProxyType(
    {
        "roberta-base": Dimensions(**_ROBERTA, L=12, d=768, f=3072, heads=12, total=124_645_632),
        "roberta-large": Dimensions(**_ROBERTA, L=24, d=1024, f=4096, heads=16, total=355_359_744),
        "bert-base": Dimensions(**_BERT, L=12, d=768, f=3072, heads=12, total=109_482_240),
        "bert-large": Dimensions(**_BERT, L=24, d=1024, f=4096, heads=16, total=335_141_888),
        "gpt2": Dimensions(**_GPT2, L=12, d=768, f=3072, heads=12, total=124_439_808),
        "gpt2-medium": Dimensions(**_GPT2, L=24, d=1024, f=4096, heads=16, total=354_823_168),
        "gpt2-large": Dimensions(**_GPT2, L=36, d=1280, f=5120, heads=20, total=774_030_080),
        "gpt3-175b": Dimensions(
            kind="decoder", V=50257, positions=2048, L=96, d=12288, f=49152, heads=96, total=175_000_000_000
        ),
        "llama-7b": Dimensions(**_LLAMA, L=32, d=4096, f=11008, heads=32, total=6_738_415_616),
        "llama-13b": Dimensions(**_LLAMA, L=40, d=5120, f=13824, heads=40, total=13_015_864_320),
        "llama2-7b": Dimensions(**_LLAMA, L=32, d=4096, f=11008, heads=32, total=6_738_415_616),
        "t5-small": Dimensions(**_T5, L=8, L_dec=8, d=512, f=1024, heads=6, total=76_961_152),
        "t5-base": Dimensions(**_T5, L=12, L_dec=12, d=768, f=2048, heads=12, total=247_577_856),
        "t5-base-v1.0": Dimensions(
            kind="encoder-decoder",
            V=32128,
            norm="rms",
            bias=False,
            L=12,
            L_dec=12,
            d=768,
            f=3072,
            heads=12,
            total=222_903_552,
        ),
        "t5-large": Dimensions(**_T5, L=24, L_dec=24, d=1024, f=2816, heads=16, total=783_150_080),
        "t5-xl": Dimensions(**_T5, L=24, L_dec=24, d=2048, f=5120, heads=32, total=2_849_757_184),
        "t5-xxl": Dimensions(**_T5, L=24, L_dec=24, d=4096, f=10240, heads=64, total=11_135_332_352),
        "bart-large": Dimensions(
            kind="encoder-decoder",
            V=50265,
            positions=1026,
            L=12,
            L_dec=12,
            d=1024,
            f=4096,
            heads=16,
            total=406_291_456,
        ),
        "vit-b16": Dimensions(**_VIT, L=12, d=768, f=3072, heads=12, total=86_567_656),
        "vit-l16": Dimensions(**_VIT, L=24, d=1024, f=4096, heads=16, total=304_326_632),
        "deberta-v3-base": Dimensions(kind="encoder", V=128100, L=12, d=768, f=3072, heads=12, total=183_831_552),
    }
)


def model(name: str) -> Dimensions:
    """Dimensions of a model by name; a CatalogError with near misses when it is not known."""
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), MODELS, n=3, cutoff=0.5)
    raise CatalogError(
        f"no dimensions are known for the model {name!r}",
        allowed=MODELS,
        hint=f"did you mean {' or '.join(near)}?" if near else None,
    )
