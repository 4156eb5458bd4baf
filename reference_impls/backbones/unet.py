"""A convolutional denoiser with attention to a text (Stable Diffusion's U-Net and text encoder) at its smallest."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.backbones.base import Backbone, Batch, Task, generator
from reference_impls.backbones.layers import Block, Stack
from reference_impls.backbones.size import Size


class UNet(Backbone):
    """noisy images (B, 3, H, W), times (B,), prompts (B, S) -> the noise in the images (B, 3, H, W).

    One stage at full resolution on either side of one at half of it; the first is handed over to the last.
    """

    kind = "unet"
    pretraining_steps = 250
    learning_rate = 3e-3

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        d = size.d
        self.text = TextEncoder(size)
        self.time = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d))
        self.embed = nn.Conv2d(3, d, kernel_size=3, padding=1)
        self.contract = Stage(size, d)
        self.shrink = nn.Conv2d(d, d, kernel_size=3, stride=2, padding=1)
        self.bottom = Stage(size, d)
        self.grow = nn.Conv2d(d, d, kernel_size=3, padding=1)
        self.expand = Stage(size, 2 * d)
        self.norm_out = nn.GroupNorm(4, d)
        self.head = nn.Conv2d(d, 3, kernel_size=3, padding=1)

    def forward(self, batch: Batch) -> Tensor:
        assert batch.text is not None
        assert batch.time is not None
        return self.denoise(batch.inputs, batch.time, self.text(batch.text))

    def denoise(self, images: Tensor, time: Tensor, memory: Tensor) -> Tensor:
        """The noise in ``images``, given the encoded prompts ``memory`` (B, S, d)."""
        moment = self.time(waves(time, self.size.d))  # (B, d)
        first = self.contract(self.embed(images), moment, memory)  # (B, d, H, W)
        low = self.bottom(self.shrink(first), moment, memory)  # (B, d, H/2, W/2)
        back = self.grow(F.interpolate(low, scale_factor=2.0, mode="nearest"))
        last = self.expand(torch.cat([back, first], dim=1), moment, memory)
        return self.head(F.silu(self.norm_out(last)))

    def loss(self, batch: Batch) -> Tensor:
        return F.mse_loss(self(batch), batch.targets)

    def batch(self, seed: int, task: Task = "downstream", count: int = 16) -> Batch:
        """Pictures, one pattern a class, that a prompt names, with noise; downstream the patterns have changed.

        A prompt is the word "a", one of two adjectives (bright or dark) and the name of the class; the targets are the
        noise.
        """
        size, source = self.size, generator(seed)
        pictures = torch.randn(size.C, 3, size.image, size.image, generator=generator(7))
        if task == "downstream":
            fresh = torch.randn(size.C, 3, size.image, size.image, generator=generator(8))
            pictures = (0.5 * pictures.roll(1, dims=0) + fresh) / 1.25**0.5
        named = torch.randint(size.C, (count,), generator=source)
        bright = torch.randint(2, (count,), generator=source)
        text = torch.stack([torch.zeros_like(named), 1 + bright, 3 + named], dim=1)
        picture = (0.5 + bright)[:, None, None, None] * pictures[named]
        time = 0.1 + 0.8 * torch.rand(count, generator=source)
        noise = torch.randn(picture.shape, generator=source)
        angle = (time * math.pi / 2)[:, None, None, None]
        return Batch(angle.cos() * picture + angle.sin() * noise, noise, text=text, time=time)


class TextEncoder(nn.Module):
    """Prompts (B, S) -> states (B, S, d), causal as CLIP's text encoder."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(size.V, size.d)
        self.stack = Stack(size, size.L, causal=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encode(self.embed(tokens))

    def encode(self, embedded: Tensor) -> Tensor:
        """Embedded tokens (B, S, d) -> states (B, S, d)."""
        visible = torch.ones(embedded.shape[:2], dtype=torch.bool, device=embedded.device)
        hidden, _ = self.stack(embedded, visible)
        return hidden


class Stage(nn.Module):
    """A residual convolution that knows the time, then a block that attends to the picture and to the text.

    (B, channels, H, W), (B, d), (B, S, d) -> (B, d, H, W).
    """

    def __init__(self, size: Size, channels: int) -> None:
        super().__init__()
        self.residual = ResidualConvolution(size.d, channels)
        self.block = Block(size, cross=True)

    def forward(self, x: Tensor, moment: Tensor, memory: Tensor) -> Tensor:
        x = self.residual(x, moment)
        pixels = x.flatten(2).transpose(1, 2)  # (B, H W, d)
        return self.block(pixels, memory=memory).transpose(1, 2).view_as(x)


class ResidualConvolution(nn.Module):
    """skip(x) + conv2(conv1(x) + shift(time)), each behind a group norm: (B, channels, H, W) -> (B, d, H, W)."""

    def __init__(self, d: int, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(4, channels)
        self.conv1 = nn.Conv2d(channels, d, kernel_size=3, padding=1)
        self.shift = nn.Linear(d, d)
        self.norm2 = nn.GroupNorm(4, d)
        self.conv2 = nn.Conv2d(d, d, kernel_size=3, padding=1)
        self.skip = nn.Conv2d(channels, d, kernel_size=1)

    def forward(self, x: Tensor, moment: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x))) + self.shift(moment)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(hidden)))


def waves(time: Tensor, width: int) -> Tensor:
    """Sines and cosines of the time at ``width`` / 2 frequencies, (B,) -> (B, width)."""
    frequencies = torch.arange(width // 2, device=time.device, dtype=time.dtype).exp2().clamp(max=2.0**8)
    angles = time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
