"""QLoRA: what the paper and its code say about it, checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.lora import LoRALinear
from reference_impls.reparameterized.qlora import (
    BLOCK,
    CONSTANTS_BLOCK,
    NF4,
    NF4_LEVELS,
    QLoRALinear,
    attach,
    dynamic_levels,
)

from .parity import LLAMA_7B, SHAPES, assert_no_drift, assert_same, copy_to, in_peft, linear, randomize, same
from .refused import assert_refused

# A matrix (10, 64) of multiples of 1/50, and what bitsandbytes 0.50.2 makes of it on a CPU: the bytes of its first
# two blocks, the codes of the ten constants, their mean and the largest distance from it.
STEPS = torch.arange(640)
SAMPLE = (((STEPS * 37) % 101 - 50) / 50.0 * (1 + (STEPS // 64) % 7)).view(10, 64)
BYTES = (
    "04c16e29f3b05d17e29f3c05d18e2af4c16e18e3b05d17e29f3b05d18e2af4c1"
    "6d18e3b04c17e29f3b05d17e2af4c06d18e2a04c16e29f3b05d17e29f3c05d18"
)
CONSTANT_CODES = [23, 43, 63, 195, 215, 235, 255, 23, 43, 63]


def site(d_in: int = 12, d_out: int = 8, *, dropout: float = 0.0, double_quant: bool = True) -> QLoRALinear:
    layer = QLoRALinear(linear(d_in, d_out).requires_grad_(False), 4, 6, dropout, double_quant)
    randomize([layer.A, layer.B])
    return layer


def dequantized(layer: QLoRALinear) -> Tensor:
    return layer.quantized.dequantize(torch.float64)


def by_hand(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: level indices of every weight and constants of every block, one block after the other."""
    levels = torch.tensor(NF4_LEVELS)
    codes, constants = [], []
    for block in weight.float().flatten().split(BLOCK):
        c = block.abs().max()
        codes.append((block / c - levels[:, None]).abs().argmin(dim=0))
        constants.append(c)
    return torch.cat(codes), torch.stack(constants)


def indices(quantized: NF4) -> Tensor:
    """Level indices of every weight from the packed bytes."""
    pairs = torch.stack([quantized.codes // 16, quantized.codes % 16], dim=1)
    return pairs.flatten()[: quantized.shape.numel()].long()


def test_levels_of_nf4() -> None:
    assert len(NF4_LEVELS) == 16
    assert list(NF4_LEVELS) == sorted(NF4_LEVELS)
    assert (NF4_LEVELS[0], NF4_LEVELS[7], NF4_LEVELS[15]) == (-1.0, 0.0, 1.0)
    negative, positive = NF4_LEVELS[:7], NF4_LEVELS[8:]
    assert (len(negative), len(positive)) == (7, 8)
    assert not {round(-v, 3) for v in negative[1:]} & {round(v, 3) for v in positive}  # not mirrored


def test_levels_of_nf4_are_quantiles_of_a_normal_distribution() -> None:
    """Eight equal steps of probability from 1/2 up, seven down, the tails cut at the same quantile; scaled to 1."""
    tail = 0.9677083  # (1 - 1/30 + 1 - 1/32) / 2
    normal = torch.distributions.Normal(0.0, 1.0)
    positive = normal.icdf(torch.linspace(tail, 0.5, 9)[:-1])
    negative = -normal.icdf(torch.linspace(tail, 0.5, 8)[:-1])
    levels = torch.cat([negative, torch.zeros(1), positive.flip(0)]) / positive.max()
    assert torch.allclose(levels, torch.tensor(NF4_LEVELS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 64), (12, 8), (33, 7), (5, 130)])
def test_codes_are_those_of_the_nearest_levels_in_blocks_of_64(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    quantized = NF4(weight, double_quant=False)
    codes, constants = by_hand(weight)
    assert torch.equal(indices(quantized), codes)
    assert torch.equal(quantized.block_constants(), constants)
    blocks = constants.repeat_interleave(BLOCK)[: weight.numel()]
    expected = (torch.tensor(NF4_LEVELS)[codes] * blocks).view(shape)
    assert torch.equal(quantized.dequantize(torch.float32), expected)


def test_bytes_are_those_of_bitsandbytes() -> None:
    quantized = NF4(SAMPLE)
    assert bytes(quantized.codes[:64].tolist()).hex() == BYTES
    assert quantized.constant_codes.tolist() == CONSTANT_CODES
    assert quantized.mean.view(torch.float32).item() == pytest.approx(3.4)
    assert quantized.constants.view(torch.float32).item() == pytest.approx(3.6)


def test_dynamic_type_has_256_levels_finer_towards_zero() -> None:
    levels = torch.tensor(dynamic_levels())
    assert len(levels) == len(levels.unique()) == 256
    assert levels.max() == 1
    assert levels.min() == pytest.approx(-0.99296875)
    positive = levels[levels > 0]
    assert positive.min() == pytest.approx(0.55e-6)
    for i in range(7):
        decade = positive[(positive > 10.0 ** (i - 7)) & (positive < 10.0 ** (i - 6))]
        assert len(decade) == 2**i
    assert 0.0 in levels


def test_double_quantization_subtracts_the_mean_and_works_in_blocks_of_256() -> None:
    weight = torch.randn(600, 64) * torch.linspace(0.1, 2.0, 600)[:, None]
    quantized, plain = NF4(weight), NF4(weight, double_quant=False)
    c = plain.block_constants()
    groups = (c - c.mean()).split(CONSTANTS_BLOCK)
    levels = torch.tensor(dynamic_levels())
    expected = []
    for group in groups:
        a = group.abs().max()
        nearest = (group[:, None] / a - levels).abs().argmin(dim=1)
        expected.append(c.mean() + a * levels[nearest])
    assert len(groups) == 3
    assert torch.allclose(quantized.block_constants(), torch.cat(expected), rtol=0, atol=1e-6)
    assert torch.equal(quantized.codes, plain.codes)
    assert not torch.equal(quantized.block_constants(), c)
    assert (quantized.block_constants() - c).norm() < 0.01 * c.norm()


def test_one_block_has_its_constant_in_the_mean() -> None:
    weight = torch.randn(8, 8)
    quantized = NF4(weight)
    assert torch.equal(quantized.mean.view(torch.float32), weight.abs().max())
    assert torch.equal(quantized.block_constants(), weight.abs().max()[None])


def test_multiples_of_the_levels_come_back_exactly_without_double_quantization() -> None:
    codes = torch.randint(16, (4, 64), generator=torch.Generator().manual_seed(1))
    codes[:, 5] = torch.tensor([0, 15, 0, 15])
    weight = torch.tensor(NF4_LEVELS)[codes] * torch.tensor([0.5, 2.0, 4.0, 0.25])[:, None]
    assert torch.equal(NF4(weight, double_quant=False).dequantize(torch.float32), weight)


def test_quantizing_twice_is_quantizing_once_without_double_quantization() -> None:
    once = NF4(torch.randn(24, 32), double_quant=False).dequantize(torch.float32)
    assert torch.equal(NF4(once, double_quant=False).dequantize(torch.float32), once)


@pytest.mark.parametrize("double_quant", [True, False])
def test_zeros_survive_exactly(double_quant: bool) -> None:
    weight = torch.randn(16, 64)
    weight[::2, ::3] = 0
    weight[3] = 0  # a block of nothing but zeros has no largest weight to divide by
    restored = NF4(weight, double_quant).dequantize(torch.float32)
    assert not restored[weight == 0].any()
    assert torch.isfinite(restored).all()


def test_the_largest_weight_of_a_block_survives_up_to_its_constant() -> None:
    weight = torch.randn(16, 64)
    for double_quant, tolerance in ((False, 0.0), (True, 0.02)):
        restored = NF4(weight, double_quant).dequantize(torch.float32)
        place = weight.abs().argmax(dim=1, keepdim=True)
        positive = weight.gather(1, place) > 0
        assert positive.any()
        error = (restored.gather(1, place) - weight.gather(1, place)).abs()
        assert error.max() <= tolerance


def test_storage() -> None:
    """0.5 bits a weight for float32 constants, 0.127 with double quantization: 0.373 saved."""
    weight = torch.randn(64 * CONSTANTS_BLOCK, 16)
    bits = {double_quant: NF4(weight, double_quant).storage_bits() / weight.numel() for double_quant in (True, False)}
    assert bits[False] == 4.5
    assert bits[True] == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=2e-4)  # and one float32, the mean
    assert round(0.5 - (8 / 64 + 32 / (64 * 256)), 3) == 0.373


def test_casting_the_model_leaves_constants_and_levels_in_full_precision() -> None:
    weight = torch.randn(16, 64)
    quantized, cast = NF4(weight), NF4(weight).to(torch.bfloat16)
    assert torch.equal(cast.dequantize(torch.float32), quantized.dequantize(torch.float32))
    assert cast.dequantize(torch.bfloat16).dtype == torch.bfloat16


def test_counts() -> None:
    """The script halves the count it prints for 4-bit models, factors included: 79,953,920."""
    adapter = attach(build("decoder", LLAMA_7B, device="meta"))
    assert adapter.count() == 32 * (4 * 64 * 8192 + 3 * 64 * 15104) == 159_907_840 == 2 * 79_953_920
    assert len(adapter.sites()) == 7 * 32
    assert not [path for path in adapter.sites() if "head" in path or "embed" in path]


def test_start_is_the_quantized_model_and_not_the_base_model() -> None:
    model, other = pretrained("decoder").double(), pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model)
    for path, layer in adapter.sites().items():
        assert isinstance(layer, QLoRALinear)
        with torch.no_grad():
            other.get_submodule(path).weight.copy_(dequantized(layer))
    assert torch.allclose(model(batch), other(batch), rtol=0, atol=1e-12)
    assert (model(batch) - before).norm() > 0.01 * before.norm()


def test_detach_gives_back_the_unquantized_model() -> None:
    model, base = pretrained("decoder"), pretrained("decoder")
    adapter = attach(model)
    adapter.fit([model.batch(i) for i in range(2)])
    adapter.detach()
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("shape", SHAPES)
def test_is_lora_on_the_dequantized_weight(shape: tuple[int, int]) -> None:
    """Outputs and gradients, with the weight of a plain layer replaced."""
    ours = site(*shape)
    plain = nn.Linear(*shape).double().requires_grad_(False)
    with torch.no_grad():
        plain.weight.copy_(dequantized(ours))
        plain.bias.copy_(ours.base.bias)
    lora = LoRALinear(plain, 4, 6, 0.0)
    lora.load_state_dict({"A": ours.A, "B": ours.B}, strict=False)
    assert_same(ours, lora, [(ours.A, lora.A, same), (ours.B, lora.B, same)], shape[0])
    assert torch.allclose(ours.merged()["weight"], lora.merged()["weight"], rtol=0, atol=1e-14)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_peft_on_the_dequantized_weight(shape: tuple[int, int], dropout: float) -> None:
    ours = site(*shape, dropout=dropout)
    plain = nn.Linear(*shape).double()
    copy_to(plain.weight, dequantized(ours))
    copy_to(plain.bias, ours.base.bias)
    theirs = in_peft("LoraConfig", plain, r=4, lora_alpha=6, lora_dropout=dropout)
    A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    copy_to(A, ours.A)
    copy_to(B, ours.B)

    def seeded(layer: nn.Module) -> Any:
        def call(x: Tensor) -> Tensor:
            torch.manual_seed(9)
            return layer(x)

        return call

    assert_same(seeded(ours), seeded(theirs), [(ours.A, A, same), (ours.B, B, same)], shape[0])


def test_backward_dequantizes_again_instead_of_keeping_the_weight() -> None:
    layer = QLoRALinear(nn.Linear(64, 48).requires_grad_(False), 2, 4, 0.0, True)
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    x = torch.randn(3, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    assert (64, 2) in kept or (2, 64) in kept
    assert not {(48, 64), (64, 48)} & set(kept)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    weight = layer.merged()["weight"]
    assert torch.allclose(gradient, weight.sum(dim=0).expand(3, 64), rtol=0, atol=1e-5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        F.linear(x, layer.quantized.dequantize(torch.float32))
    assert {(48, 64), (64, 48)} & set(kept)  # what plain autograd keeps


def test_gradient_through_the_product_is_right() -> None:
    layer = site()
    x = torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_change_is_linear_around_the_quantized_model_and_c_zero_is_not_the_base() -> None:
    layer = site()
    x = torch.randn(5, 12, dtype=torch.float64)
    answers = {}
    for c in (-1.0, 0.0, 0.5, 1.0, 2.0):
        layer.strength = c
        answers[c] = layer(x)
    quantized = F.linear(x, dequantized(layer), layer.base.bias)
    assert torch.allclose(answers[0.0], quantized, rtol=0, atol=1e-14)
    assert not torch.allclose(answers[0.0], layer.base(x), atol=1e-3)
    for c in (-1.0, 0.5, 2.0):
        assert torch.allclose(answers[c] - quantized, c * (answers[1.0] - quantized), rtol=0, atol=1e-13)


def test_merging_into_four_bits_would_lose_what_was_learned() -> None:
    """Requantizing changes the sum by far more than merging in full precision does."""
    layer = site(64, 48)
    with torch.no_grad():
        layer.B.mul_(0.01)
    merged = layer.merged()["weight"]
    requantized = NF4(merged).dequantize(torch.float64)
    assert (requantized - merged).norm() > 0.5 * layer.delta_weight().norm()


@pytest.mark.parametrize("claim", ["mergeable", "saves", "two-faces", "detachable", "device-dtype", "determinism"])
@pytest.mark.parametrize(
    "extra", [{"double_quant": False}, {"targets": ("q",)}, {"dropout": 0.1}], ids=["single", "queries", "dropout"]
)
def test_claims_hold_for_the_variants(claim: str, extra: dict[str, Any]) -> None:
    if claim in ("mergeable", "saves", "two-faces") and "dropout" in extra:
        return  # random by design
    expected = Expected(False, True, True, "nonlinear", {"rank": 4, **extra})
    result = measure(claim, Trial(load("qlora"), "decoder", expected))
    assert result.status == "verified", result


def test_works_on_a_gated_model_and_one_already_in_half_precision() -> None:
    model = build("decoder", replace(pretrained("decoder").size, gated=True)).to(torch.bfloat16)
    adapter = attach(model, rank=2)
    assert any(path.endswith("gate") for path in adapter.sites())
    adapter.loss(model.batch(0)).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in adapter.parameters())


def test_merging_leaves_no_drift() -> None:
    assert_no_drift(attach)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0}, "alpha is 0"),
        ({"dropout": 1.0}, "at least 0 and below 1"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
