"""PiSSA: what the paper and its code say about it, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.pissa import PiSSALinear, QPiSSALinear, attach, principal
from reference_impls.reparameterized.qlora import NF4

from .parity import (
    LLAMA_7B,
    SHAPES,
    assert_no_drift,
    assert_same,
    copy_to,
    in_peft,
    linear,
    matrices_computed,
    randomize,
    same,
)
from .refused import assert_refused


def site(d_in: int = 12, d_out: int = 8, *, rank: int = 3, alpha: float = 5.0) -> PiSSALinear:
    layer = PiSSALinear(linear(d_in, d_out).requires_grad_(False), rank, alpha, None)
    randomize([layer.A, layer.B])
    return layer


def residual(layer: PiSSALinear) -> Tensor:
    return layer.base.weight - layer.scale * layer.B0 @ layer.A0


def test_count_at_llama_2_7b() -> None:
    assert attach(build("decoder", LLAMA_7B, device="meta")).count() == 319_815_680


@pytest.mark.parametrize("alpha", [3.0, 5.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_factors_start_at_the_principal_part_for_every_alpha(shape: tuple[int, int], alpha: float) -> None:
    layer = PiSSALinear(linear(*shape), 3, alpha, None)
    U, S, Vt = torch.linalg.svd(layer.base.weight, full_matrices=False)
    part = layer.scale * layer.B @ layer.A
    assert torch.allclose(part, U[:, :3] @ torch.diag(S[:3]) @ Vt[:3], rtol=0, atol=1e-14)
    assert torch.linalg.matrix_norm(part, 2).item() == pytest.approx(S[0].item())
    rest = torch.linalg.svdvals(residual(layer))
    assert torch.allclose(rest[: len(S) - 3], S[3:], rtol=0, atol=1e-14)
    assert rest[len(S) - 3 :].max() < 1e-14


def test_singular_values_are_split_evenly_between_the_factors() -> None:
    layer = PiSSALinear(linear(12, 8), 3, 5.0, None)
    diagonal = torch.diag(torch.linalg.svdvals(layer.base.weight)[:3] / layer.scale)
    assert torch.allclose(layer.A @ layer.A.T, diagonal, rtol=0, atol=1e-14)
    assert torch.allclose(layer.B.T @ layer.B, diagonal, rtol=0, atol=1e-14)


def test_full_rank_leaves_no_residual() -> None:
    assert residual(PiSSALinear(linear(12, 8), 8, 8.0, None)).abs().max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_start_is_the_base_model_bit_for_bit_and_both_factors_learn(dtype: torch.dtype) -> None:
    model = pretrained("decoder").to(dtype)
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model, rank=4)
    assert torch.equal(model(batch), before)
    adapter.loss(batch).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())


@pytest.mark.parametrize("power_iterations", [0, 4])
def test_randomized_decomposition_starts_at_the_base_model_too(power_iterations: int) -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    attach(model, rank=4, power_iterations=power_iterations)
    assert torch.equal(model(batch), before)


def test_power_iterations_come_close_to_the_exact_decomposition() -> None:
    weight = linear(40, 30).weight
    S = torch.linalg.svdvals(weight)
    errors = []
    for n in (0, 2, 16):
        torch.manual_seed(0)
        A, B = principal(weight, 5, 1.0, n)
        assert A.shape == (5, 40)
        assert B.shape == (30, 5)
        errors.append((torch.linalg.matrix_norm(weight - B @ A) / S[5:].norm()).item() - 1)
    assert errors[0] > errors[1] > errors[2] >= -1e-12
    assert errors[2] < 1e-3


def test_half_precision_is_decomposed_in_float32() -> None:
    weight = torch.randn(8, 12).to(torch.bfloat16)
    A, B = principal(weight, 3, 1.0, None)
    assert A.dtype == B.dtype == torch.float32
    layer = PiSSALinear(nn.Linear(12, 8).to(torch.bfloat16), 3, 3, None)
    assert layer.A.dtype == layer.B0.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", SHAPES)
def test_is_a_lora_of_twice_the_rank_on_the_original_weight(shape: tuple[int, int]) -> None:
    ours = site(*shape)
    theirs = in_peft("LoraConfig", ours.base, r=6, lora_alpha=6 * ours.scale)
    copy_to(theirs.lora_A["default"].weight, torch.cat([ours.A, ours.A0]))
    copy_to(theirs.lora_B["default"].weight, torch.cat([ours.B, -ours.B0], dim=1))
    x = torch.randn(5, shape[0], dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), rtol=0, atol=1e-12)
    assert torch.allclose(ours.delta_weight(), theirs.get_delta_weight("default"), rtol=0, atol=1e-13)


@pytest.mark.parametrize("alpha", [3.0, 5.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_starts_as_peft_does(shape: tuple[int, int], alpha: float) -> None:
    base = nn.Linear(*shape)
    theirs = in_peft("LoraConfig", base, r=3, lora_alpha=alpha, init_lora_weights="pissa")
    ours = PiSSALinear(base, 3, alpha, None)
    A, B = theirs.lora_A["default"].weight.float(), theirs.lora_B["default"].weight.float()
    signs = (A * ours.A).sum(dim=1).sign()
    assert torch.allclose(ours.A, signs[:, None] * A, rtol=0, atol=1e-5)
    assert torch.allclose(ours.B, signs * B, rtol=0, atol=1e-5)
    assert torch.allclose(theirs.base_layer.weight.float(), residual(ours), rtol=0, atol=1e-5)


def test_peft_refuses_to_decompose_a_weight_in_float64() -> None:
    with pytest.raises(TypeError, match="float32, float16, or bfloat16"):
        in_peft("LoraConfig", linear(12, 8), r=3, init_lora_weights="pissa")


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_peft(shape: tuple[int, int]) -> None:
    """Our factors over the residual weight in its place of the base weight."""
    ours = site(*shape)
    theirs = in_peft("LoraConfig", ours.base.float(), r=3, lora_alpha=5, init_lora_weights="pissa")
    ours.base.double()
    A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    start = theirs.base_layer.weight + ours.scale * B @ A
    assert torch.allclose(start, ours.base.weight, rtol=0, atol=1e-6)
    copy_to(A, ours.A)
    copy_to(B, ours.B)
    copy_to(theirs.base_layer.weight, residual(ours))
    assert_same(ours, theirs, [(ours.A, A, same), (ours.B, B, same)], shape[0])
    theirs.merge()
    assert torch.allclose(ours.merged()["weight"], theirs.base_layer.weight, rtol=0, atol=1e-13)


def test_without_its_factors_peft_has_the_residual_and_this_the_base_model() -> None:
    base = nn.Linear(12, 8)
    theirs = in_peft("LoraConfig", base, r=3, lora_alpha=5, init_lora_weights="pissa")
    x = torch.randn(5, 12, dtype=torch.float64)
    theirs.enable_adapters(False)
    assert not torch.allclose(theirs(x), base.double()(x), atol=1e-2)
    ours = site()
    ours.strength = 0.0
    assert torch.equal(ours(x), ours.base(x))
    assert torch.equal(ours.merged()["weight"], ours.base.weight)


@pytest.mark.parametrize("quantize", [0, 1])
def test_a_saved_adapter_carries_its_start(quantize: int) -> None:
    """Loaded where the decomposition came out with other signs, or from random numbers, it means the same."""
    model, other = pretrained("decoder").double(), pretrained("decoder").double()
    adapter = attach(model, rank=4, power_iterations=0, quantize=quantize)
    randomize(adapter.parameters(), 0.1)
    torch.manual_seed(77)
    attach(other, rank=4, power_iterations=0, quantize=quantize).load_state_dict(adapter.state_dict())
    batch = model.batch(0)
    assert torch.equal(model(batch), other(batch))


def test_no_matrix_of_the_size_of_the_weight_is_computed() -> None:
    layer = PiSSALinear(nn.Linear(64, 48).requires_grad_(False), 2, 4, None)
    x = torch.randn(3, 64)
    shapes = matrices_computed(lambda: layer(x))
    assert (3, 48) in shapes
    assert not {(48, 64), (64, 48)} & shapes


def quantized_site(d_in: int = 32, d_out: int = 24, rounds: int = 1) -> QPiSSALinear:
    return QPiSSALinear(linear(d_in, d_out).requires_grad_(False), 4, 6, None, rounds)


def error(layer: QPiSSALinear) -> float:
    """How far the start is from the base weight, in the nuclear norm that the paper measures it in."""
    return torch.linalg.matrix_norm(layer.merged()["weight"] - layer.base.weight, "nuc").item()


def test_one_round_of_qpissa_quantizes_the_residual() -> None:
    layer = quantized_site()
    plain = PiSSALinear(layer.base, 4, 6, None)
    assert torch.allclose(layer.A, plain.A)
    assert torch.allclose(layer.B, plain.B)
    expected = NF4(residual(plain), double_quant=False).dequantize(torch.float64)
    assert torch.equal(layer.quantized.dequantize(torch.float64), expected)


def test_rounds_of_qpissa_are_those_of_the_official_script() -> None:
    layer = quantized_site(rounds=3)
    W = rest = layer.base.weight
    for _ in range(3):
        U, S, Vt = torch.linalg.svd(rest, full_matrices=False)
        low_rank = U[:, :4] @ torch.diag(S[:4]) @ Vt[:4]
        Q = NF4(W - low_rank, double_quant=False).dequantize(torch.float64)
        rest = W - Q
    assert torch.allclose(layer.scale * layer.B @ layer.A, low_rank, rtol=0, atol=1e-12)
    assert torch.allclose(layer.merged()["weight"], Q + low_rank, rtol=0, atol=1e-12)


def test_qpissa_starts_nearer_to_the_base_model_than_qlora_and_nearer_still_with_more_rounds() -> None:
    torch.manual_seed(3)
    base = linear(64, 48)
    with torch.no_grad():  # a spectrum that falls off, as trained weights have
        U, S, Vt = torch.linalg.svd(base.weight, full_matrices=False)
        base.weight.copy_(U @ torch.diag(S * torch.linspace(3, 0.3, 48, dtype=torch.float64) ** 2) @ Vt)
    rounded = NF4(base.weight, double_quant=False).dequantize(torch.float64)
    qlora = torch.linalg.matrix_norm(rounded - base.weight, "nuc").item()
    one, five = (error(QPiSSALinear(base, 8, 8, None, rounds)) for rounds in (1, 5))
    assert five < one < qlora


def test_qpissa_answers_as_its_definition_says() -> None:
    layer = quantized_site(rounds=2)
    randomize([layer.A, layer.B])
    x = torch.randn(5, 32, dtype=torch.float64)
    Q = layer.quantized.dequantize(torch.float64)
    for c in (1.0, -1.0, 0.0, 0.5):
        layer.strength = c
        low_rank = layer.B0 @ layer.A0 + c * (layer.B @ layer.A - layer.B0 @ layer.A0)
        expected = F.linear(x, Q + layer.scale * low_rank, layer.base.bias)
        assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)
        assert torch.allclose(F.linear(x, layer.merged()["weight"], layer.base.bias), expected, rtol=0, atol=1e-12)


VARIANTS = ["mergeable", "saves", "two-faces", "detachable", "device-dtype", "determinism", "only-trained-tensors-move"]


@pytest.mark.parametrize("claim", VARIANTS)
@pytest.mark.parametrize("extra", [{"power_iterations": 2}, {"quantize": 2}], ids=["randomized", "quantized"])
def test_claims_hold_for_the_variants(claim: str, extra: dict[str, Any]) -> None:
    expected = Expected(True, True, True, "linear", {"rank": 4, "alpha": 4, "targets": ["q", "up"], **extra})
    result = measure(claim, Trial(load("pissa"), "decoder", expected))
    assert result.status == "verified", result


def test_qpissa_does_not_start_at_the_base_model() -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    attach(model, rank=4, quantize=1)
    change = ((model(batch) - before).norm() / before.norm()).item()
    assert 1e-4 < change < 0.1


def test_merging_leaves_no_drift() -> None:
    assert_no_drift(lambda model: attach(model, rank=4))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 33}, "rank is 33; the weight of .* has 32 singular values"),
        ({"rank": 33, "targets": ["up"]}, "rank is 33; the weight of .* has 32 singular values"),
        ({"rank": 4, "alpha": 0}, "alpha is 0"),
        ({"rank": 4, "power_iterations": -1}, "power_iterations is -1"),
        ({"rank": 4, "quantize": -1}, "quantize is -1"),
        ({"rank": 4, "targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
