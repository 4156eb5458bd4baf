"""Small frozen models the methods attach to, each with its batch and its loss.

model = pretrained("decoder")                    # a fresh copy of the small model, pretrained for a moment
model = build("encoder", Size(L=12, d=768, ...), device="meta")      # real dimensions, no memory
"""

from __future__ import annotations

import copy
from functools import cache

import torch

from reference_impls.backbones.base import Backbone, Batch, Task
from reference_impls.backbones.decoder import Decoder
from reference_impls.backbones.encoder import Encoder
from reference_impls.backbones.encoder_decoder import EncoderDecoder
from reference_impls.backbones.mlp import MLP
from reference_impls.backbones.multitask import MultitaskDecoder, MultitaskEncoderDecoder
from reference_impls.backbones.size import Size
from reference_impls.backbones.unet import UNet
from reference_impls.backbones.vit import VisionTransformer

__all__ = ["KINDS", "SMALL", "Backbone", "Batch", "Size", "Task", "build", "pretrained", "trained"]

KINDS: dict[str, type[Backbone]] = {
    cls.kind: cls
    for cls in (
        Decoder,
        Encoder,
        EncoderDecoder,
        VisionTransformer,
        MLP,
        MultitaskDecoder,
        MultitaskEncoderDecoder,
        UNet,
    )
}

SMALL: dict[str, Size] = {
    "decoder": Size(),
    "encoder": Size(),
    "encoder-decoder": Size(L=2, L_dec=3, norm="rms", bias=False, positions=0),
    "vit": Size(positions=17),
    "mlp": Size(L=2),
    "multitask-decoder": Size(),
    "multitask-encoder-decoder": Size(L=2, L_dec=3, norm="rms", bias=False, positions=0),
    "unet": Size(L=1, V=12, image=8),
}


def build(kind: str, size: Size | None = None, *, device: str = "cpu", seed: int = 0) -> Backbone:
    """A backbone with seeded random weights; KeyError naming the kinds when there is none such."""
    if kind not in KINDS:
        raise KeyError(f"no backbone named {kind!r}; there are: {', '.join(KINDS)}")
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return KINDS[kind](size or SMALL[kind])


@cache
def trained(kind: str, task: Task) -> Backbone:
    """The small model after its pretraining task or, from there, after full fine-tuning downstream."""
    model = build(kind) if task == "pretraining" else copy.deepcopy(trained(kind, "pretraining"))
    optimizer = torch.optim.Adam(model.parameters(), lr=model.learning_rate)
    for step in range(model.pretraining_steps):
        optimizer.zero_grad()
        model.training_loss(step, task).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def pretrained(kind: str) -> Backbone:
    """A fresh copy of the small pretrained model; the same weights every time."""
    return copy.deepcopy(trained(kind, "pretraining"))
