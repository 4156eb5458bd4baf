"""The attention of Stable Diffusion at its real widths, without memory, for counting adapters of its projections.

Widths are those of diffusers' UNet2DConditionModel in the released configurations. Stable Diffusion 1.5:
block_out_channels 320, 640, 1280, 1280 with one transformer block behind each of 2 residual blocks on the way down and
of 3 on the way up, none at the last width, and one in the middle; text of width 768. XL: 320, 640, 1280 with 0, 2 and
10 transformer blocks (10 in the middle), text of width 2048.
"""

from __future__ import annotations

from torch import nn

SD_15 = [320] * 2 + [640] * 2 + [1280] * 2 + [1280] + [1280] * 3 + [640] * 3 + [320] * 3
SDXL = [640] * 2 * 2 + [1280] * 2 * 10 + [1280] * 10 + [1280] * 3 * 10 + [640] * 3 * 2
CLIP_L = [768] * 12
"""Blocks of the text encoder of Stable Diffusion 1.5, CLIP ViT-L/14's."""


def projections(width: int, source: int) -> nn.ModuleDict:
    """q, k, v, o of an attention from ``width`` to something ``source`` wide."""
    layers = {name: nn.Linear(source if name in "kv" else width, width, device="meta") for name in ("q", "k", "v", "o")}
    return nn.ModuleDict({**layers, "core": nn.Identity()})


def attention_layers(widths: list[int], text: int) -> nn.Module:
    """The self- and cross-attention of a U-Net's transformer blocks."""
    return nn.ModuleList(
        nn.ModuleDict({"attention": projections(width, width), "cross": projections(width, text)}) for width in widths
    )


def stable_diffusion_15() -> nn.Module:
    """Text encoder and U-Net of Stable Diffusion 1.5, the attention alone and the words."""
    blocks = nn.ModuleList(nn.ModuleDict({"attention": projections(width, width)}) for width in CLIP_L)
    text = nn.ModuleDict({"embed": nn.Embedding(49_408, 768, device="meta"), "blocks": blocks})
    model = nn.Module()
    model.text, model.blocks = text, attention_layers(SD_15, 768)
    return model


def stable_diffusion_xl() -> nn.Module:
    """The attention of the U-Net of Stable Diffusion XL."""
    return attention_layers(SDXL, 2048)
