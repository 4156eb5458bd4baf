r"""QLoRA: Efficient Finetuning of Quantized LLMs.

Dettmers, Pagnoni, Holtzman, Zettlemoyer; NeurIPS 2023; arXiv 2305.14314.

    y = x deq(W)^T + b + s dropout(x) A^T B^T,   s = alpha / r
    W in R^{d_out x d_in} in 4 bits, frozen;  A in R^{r x d_in},  B in R^{d_out x r} in the precision of the activations

    NF4, in blocks of 64 of the flattened W:  c_j = max |w|,  k_i = argmin_k |w_i / c_j - q_k|,  w^_i = q_{k_i} c^_j
    q_0 .. q_15: quantiles of a normal distribution, seven below zero and eight above, so that 0 and the ends are exact
    double quantization, in blocks of 256 of the c_j:  m = mean(c),  a = max |c - m|,  c^_j = m + a p_{l_j}

The paper calls the second data type an 8-bit float; its code runs the dynamic 8-bit type of bitsandbytes, followed
here: p is 0, 1 and +-10^{i-6} times the middles of 2^i equal parts of [0.1, 1], i = 0 .. 6: 256 numbers.
A weight takes 4 + 8/64 + 32/(64 * 256) = 4.127 bits; without double quantization 4.5.

Trained: A and B of every linear layer of the blocks; the paper finds that all of them are needed.
Start: as in LoRA, A from Kaiming's uniform distribution and B = 0, so that training departs from the quantized model.
That is not the base model: it differs by the rounding of W, which the factors learn to make up for.

The backward pass dequantizes W once more instead of keeping a copy; no gradient flows into W. The base weight itself
stays beside its quantized copy, untouched, so that ``detach`` gives back the unquantized model: what is saved in
practice by dropping it is not saved here. ``merge`` folds the factors into deq(W) in the base's own precision. The
coefficient c acts on B A: c = 0 is the quantized model, and what is learned is linear in c around it.

Paged optimizer states, the paper's third device, move memory between GPU and CPU and change no number: left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, find_linear
from reference_impls.reparameterized.lora import LoRALinear, check

BLOCK, CONSTANTS_BLOCK = 64, 256

# The levels of NF4, q_0 .. q_15.
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def dynamic_levels() -> list[float]:
    """The 256 numbers p of the dynamic 8-bit type: finer towards zero, over seven orders of magnitude."""
    positive = [10.0 ** (i - 6) * (0.1 + 0.9 * (j + 0.5) / 2**i) for i in range(7) for j in range(2**i)]
    return sorted([0.0, 1.0, *positive, *(-p for p in positive)])


class Levels(nn.Module):
    """A code book: sorted numbers, the nearest of which stands for a value.

    float32 tensors of this file are kept as their bits, in int32, so that a model cast to half precision leaves them.
    """

    bits: Tensor

    def __init__(self, levels: Sequence[float], like: Tensor) -> None:
        super().__init__()
        table = torch.tensor(levels, dtype=torch.float32, device=like.device)
        self.register_buffer("bits", table.view(torch.int32), persistent=False)

    def nearest(self, values: Tensor) -> Tensor:
        """Index of the level nearest to every value, uint8; a tie goes to the lower one."""
        table = self.bits.view(torch.float32)
        return torch.bucketize(values, (table[1:] + table[:-1]) / 2).to(torch.uint8)

    def forward(self, codes: Tensor) -> Tensor:
        """The levels that codes stand for, float32."""
        return self.bits.view(torch.float32)[codes.int()]


def quantize(values: Tensor, size: int, levels: Levels) -> tuple[Tensor, Tensor]:
    """Codes (blocks, size) and largest magnitudes (blocks,) of flat values, the last block filled up with zeros."""
    blocks = F.pad(values, (0, -len(values) % size)).view(-1, size)
    largest = blocks.abs().amax(dim=1)
    unit = blocks / torch.where(largest > 0, largest, 1.0)[:, None]
    return levels.nearest(unit), largest


class NF4(nn.Module):
    """A matrix in 4-bit NormalFloat: two codes a byte, constants in 8 bits (``double_quant``) or in float32."""

    codes: Tensor
    constant_codes: Tensor
    constants: Tensor
    mean: Tensor

    def __init__(self, weight: Tensor, double_quant: bool = True, persistent: bool = False) -> None:
        super().__init__()
        self.shape, self.double_quant = weight.shape, double_quant
        self.levels = Levels(NF4_LEVELS, weight)
        codes, constants = quantize(weight.detach().float().flatten(), BLOCK, self.levels)
        pairs = codes.view(-1, 2)
        self.register_buffer("codes", pairs[:, 0] << 4 | pairs[:, 1], persistent)
        if double_quant:
            self.constant_levels = Levels(dynamic_levels(), weight)
            mean = constants.mean()
            codes, constants = quantize(constants - mean, CONSTANTS_BLOCK, self.constant_levels)
            self.register_buffer("constant_codes", codes.flatten()[: len(pairs) * 2 // BLOCK], persistent)
            self.register_buffer("mean", mean.view(torch.int32), persistent)
        self.register_buffer("constants", constants.view(torch.int32), persistent)

    def block_constants(self) -> Tensor:
        """c^, (blocks,), float32."""
        largest = self.constants.view(torch.float32)
        if not self.double_quant:
            return largest
        unit = self.constant_levels(self.constant_codes)
        wide = largest.repeat_interleave(CONSTANTS_BLOCK)[: len(unit)]
        return self.mean.view(torch.float32) + wide * unit

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """deq(W), in the shape of W."""
        codes = torch.stack([self.codes >> 4, self.codes & 15], dim=1)
        values = self.levels(codes).view(-1, BLOCK) * self.block_constants()[:, None]
        return values.flatten()[: self.shape.numel()].view(self.shape).to(dtype)

    def storage_bits(self) -> int:
        """Bits that the matrix takes, code books left out."""
        return sum(8 * tensor.nbytes for tensor in self.buffers(recurse=False))


class Product(torch.autograd.Function):
    """x deq(W)^T, for which the backward pass keeps the codes of W alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: NF4) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight.dequantize(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.weight.dequantize(grad.dtype), None


class QLoRALinear(LoRALinear):
    """LoRA over the 4-bit copy of a linear layer's weight."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float, double_quant: bool) -> None:
        super().__init__(base, rank, alpha, dropout)
        self.quantized = NF4(base.weight, double_quant)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Product.apply(x, self.quantized)
        if self.base.bias is not None:
            y = y + self.base.bias
        return y + self.strength * self.delta(x)

    def merged(self) -> dict[str, Tensor]:
        return {"weight": self.quantized.dequantize(self.base.weight.dtype) + self.strength * self.delta_weight()}


class QLoRA(Adapter):
    """Low-rank adaptation of linear layers held in 4 bits."""

    mergeable = True


def attach(
    model: nn.Module,
    *,
    rank: int = 64,
    alpha: float = 16,
    dropout: float = 0.0,
    double_quant: bool = True,
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down"),
) -> Adapter:
    """Quantize and adapt every linear layer in ``targets``; ``double_quant`` quantizes the constants too."""
    check(rank, alpha, dropout)
    layers = find_linear(model, targets)
    adapter = QLoRA(model)
    for path, base in layers.items():
        adapter.replace(path, QLoRALinear(base, rank, alpha, dropout, double_quant))
    return adapter
