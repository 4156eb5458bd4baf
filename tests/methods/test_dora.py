"""DoRA: what the paper and its code say about it, checked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Size, build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.dora import DoRALinear, MagnitudeLinear, attach, row_norms

from .parity import (
    LLAMA_7B,
    LLAMA_13B,
    SHAPES,
    assert_same,
    copy_to,
    in_peft,
    linear,
    matrices_computed,
    randomize,
    same,
)
from .refused import assert_refused

TOTAL = {LLAMA_7B: 6_738_415_616, LLAMA_13B: 13_015_864_320}


def share(count: int, total: int) -> float:
    """Percent of all values, trained ones counted in, as the paper's tables have it."""
    return 100 * count / (total + count)


def site(d_in: int = 12, d_out: int = 8, *, simple: bool = True, dropout: float = 0.0) -> DoRALinear:
    layer = DoRALinear(linear(d_in, d_out).requires_grad_(False), 4, 6, dropout, simple)
    randomize([layer.B, layer.m], 0.3)
    return layer


def direction(layer: DoRALinear) -> Tensor:
    return layer.base.weight + layer.delta_weight()


def test_counts_at_llama_7b() -> None:
    adapter = attach(build("decoder", LLAMA_7B, device="meta"), rank=32)
    magnitudes = sum(p.numel() for name, p in adapter.named_parameters() if name.endswith(".m"))
    assert magnitudes == 876_544
    assert adapter.count() - magnitudes == 56_098_816
    assert round(share(adapter.count() - magnitudes, TOTAL[LLAMA_7B]), 2) == 0.83  # LoRA's


@pytest.mark.parametrize(
    ("size", "rank", "percent"),
    [
        (LLAMA_7B, 8, 0.22),
        (LLAMA_7B, 16, 0.43),
        (LLAMA_7B, 32, 0.84),
        (LLAMA_7B, 64, 1.65),
        (LLAMA_13B, 16, 0.35),
        (LLAMA_13B, 32, 0.68),
    ],
)
def test_shares_of_the_paper(size: Size, rank: int, percent: float) -> None:
    count = attach(build("decoder", size, device="meta"), rank=rank).count()
    assert round(share(count, TOTAL[size]), 2) == percent


@pytest.mark.parametrize(("size", "percent"), [(LLAMA_7B, 0.39), (LLAMA_13B, 0.31)])
def test_shares_of_the_paper_with_directions_for_q_k_v_alone(size: Size, percent: float) -> None:
    """Magnitudes for all seven matrices; the paper cuts the last digit off."""
    model = build("decoder", size, device="meta")
    adapter = attach(model, rank=32, targets=["q", "k", "v"], magnitude_only=["o", "gate", "up", "down"])
    assert int(100 * share(adapter.count(), TOTAL[size])) / 100 == percent


def test_share_of_the_paper_at_llama_3_8b_whose_keys_and_values_are_narrow() -> None:
    shapes = {"q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "up": (4096, 14336), "down": (14336, 4096)}
    block = nn.ModuleDict({name: nn.Linear(*shape, device="meta") for name, shape in shapes.items()})
    adapter = attach(block, rank=32)
    magnitudes = sum(p.numel() for name, p in adapter.named_parameters() if name.endswith(".m"))
    assert round(share(32 * adapter.count(), 8_030_261_248), 2) == 0.71
    assert round(share(32 * (adapter.count() - magnitudes), 8_030_261_248), 2) == 0.70


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gain_starts_at_one_exactly_in_every_precision(dtype: torch.dtype) -> None:
    base = nn.Linear(12, 8).to(dtype)
    layer = DoRALinear(base, 4, 6, 0.0, True)
    assert bool((layer.gain() == 1).all())
    assert torch.equal(layer.m, torch.linalg.vector_norm(base.weight, dim=1))
    assert not layer.B.any()
    assert layer.A.abs().max() <= 12**-0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_norm_without_the_product_is_the_norm_of_the_updated_weight(shape: tuple[int, int]) -> None:
    layer = site(*shape)
    assert torch.allclose(layer.relative_norm() * layer.m0, direction(layer).norm(dim=1), rtol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_the_merged_weight_have_length_m(shape: tuple[int, int]) -> None:
    layer = site(*shape)
    assert torch.allclose(layer.merged()["weight"].norm(dim=1), layer.m.abs(), rtol=1e-13)


def test_scale_of_the_direction_does_not_matter() -> None:
    layer, scaled = site(), site()
    scaled.load_state_dict(layer.state_dict())
    with torch.no_grad():
        scaled.base.weight.mul_(3)
        scaled.m0.copy_(3 * layer.m0)
        scaled.B.mul_(3)
    assert torch.allclose(scaled.merged()["weight"], layer.merged()["weight"], rtol=0, atol=1e-13)
    x = torch.randn(5, 12, dtype=torch.float64)
    assert torch.allclose(scaled(x), layer(x), rtol=0, atol=1e-12)


def test_magnitude_alone_rescales_output_rows() -> None:
    layer = DoRALinear(linear(12, 8), 4, 6, 0.0, True)
    x = torch.randn(5, 12, dtype=torch.float64)
    plain = F.linear(x, layer.base.weight)
    with torch.no_grad():
        layer.m[2] *= 5
    ratio = (layer(x) - layer.base.bias) / plain
    assert torch.allclose(ratio, torch.tensor([1.0, 1, 5, 1, 1, 1, 1, 1], dtype=torch.float64).expand(5, 8))


def gradients(layer: DoRALinear, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((layer(x) ** 2).sum(), [layer.m, layer.A, layer.B]))


def test_detached_norm_gives_the_gradients_of_the_paper() -> None:
    layer = site()
    x = torch.randn(5, 12, dtype=torch.float64)
    weight = layer.merged()["weight"].detach().requires_grad_()
    (dW,) = torch.autograd.grad((F.linear(x, weight, layer.base.bias) ** 2).sum(), weight)
    V = direction(layer).detach()
    n = V.norm(dim=1)
    dV = (layer.m / n)[:, None] * dW
    dm, dA, dB = gradients(layer, x)
    assert torch.allclose(dm, (dW * V).sum(1) / n, rtol=1e-11)
    assert torch.allclose(dA, layer.scale * layer.B.T @ dV, rtol=0, atol=1e-10)
    assert torch.allclose(dB, layer.scale * dV @ layer.A.T, rtol=0, atol=1e-10)


def test_attached_norm_projects_the_direction_itself_out() -> None:
    simple, full = site(), site(simple=False)
    full.load_state_dict(simple.state_dict())
    full.base.load_state_dict(simple.base.state_dict())
    full.m0.copy_(simple.m0)
    x = torch.randn(5, 12, dtype=torch.float64)
    assert torch.equal(simple(x), full(x))
    weight = simple.merged()["weight"].detach().requires_grad_()
    (dW,) = torch.autograd.grad((F.linear(x, weight, simple.base.bias) ** 2).sum(), weight)
    V = direction(simple).detach()
    n = V.norm(dim=1, keepdim=True)
    dV = (simple.m[:, None] / n) * (dW - V / n * (dW * V / n).sum(1, keepdim=True))
    (_, _, plain), (_, dA, dB) = gradients(simple, x), gradients(full, x)
    assert not torch.allclose(plain, dB, atol=1e-3)
    assert torch.allclose(dA, full.scale * full.B.T @ dV, rtol=0, atol=1e-10)
    assert torch.allclose(dB, full.scale * dV @ full.A.T, rtol=0, atol=1e-10)


def test_simple_keeps_less_for_the_backward_pass() -> None:
    def kept(layer: DoRALinear) -> int:
        sizes = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            layer.gain()
        return sum(sizes)

    assert kept(site()) < kept(site(simple=False)) / 5


@pytest.mark.parametrize("simple", [True, False])
def test_nothing_of_the_size_of_the_weight_is_computed(simple: bool) -> None:
    layer = DoRALinear(nn.Linear(64, 48).requires_grad_(False), 2, 4, 0.0, simple)
    x = torch.randn(3, 64)
    shapes = matrices_computed(lambda: layer(x))
    assert (3, 48) in shapes
    assert not {(48, 64), (64, 48)} & shapes


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_peft(shape: tuple[int, int], dropout: float) -> None:
    ours = site(*shape, dropout=dropout)
    theirs = in_peft("LoraConfig", ours.base, r=4, lora_alpha=6, use_dora=True, lora_dropout=dropout)
    A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    m = theirs.lora_magnitude_vector["default"].weight
    for mine, other in ((ours.A, A), (ours.B, B), (ours.m, m)):
        copy_to(other, mine)

    def seeded(layer: nn.Module) -> Any:
        def call(x: Tensor) -> Tensor:
            torch.manual_seed(9)
            return layer(x)

        return call

    pairs = [(ours.A, A, same), (ours.B, B, same), (ours.m, m, same)]
    assert_same(seeded(ours), seeded(theirs), pairs, shape[0])
    theirs.merge()
    assert torch.allclose(ours.merged()["weight"], theirs.base_layer.weight, rtol=0, atol=1e-12)


def test_dropout_leaves_one_base_path_alone() -> None:
    layer = site(dropout=0.5)
    x = torch.randn(4, 12, dtype=torch.float64)
    torch.manual_seed(5)
    trained = layer(x)
    torch.manual_seed(5)
    dropped = F.dropout(x, 0.5)
    g, W0 = layer.gain(), layer.base.weight
    expected = layer.base(x) + (g - 1) * (dropped @ W0.T) + g * (dropped @ layer.delta_weight().T)
    assert torch.allclose(trained, expected, rtol=0, atol=1e-12)


def test_magnitude_only_layers_have_no_factors() -> None:
    model = pretrained("decoder").double()
    adapter = attach(model, rank=2, targets=["q"], magnitude_only=["up"])
    assert adapter.count() == 3 * (2 * 64 + 32) + 3 * 64
    layer = adapter.sites()["stack.blocks.0.mlp.up"]
    assert isinstance(layer, MagnitudeLinear)
    with torch.no_grad():
        layer.m.mul_(2)
    x = torch.randn(5, 32, dtype=torch.float64)
    assert torch.allclose(layer(x), 2 * F.linear(x, layer.base.weight) + layer.base.bias, rtol=0, atol=1e-13)


@pytest.mark.parametrize("claim", ["detachable", "mergeable", "saves", "two-faces", "device-dtype"])
@pytest.mark.parametrize("extra", [{"magnitude_only": ["up"]}, {"simple": False}], ids=["magnitude", "attached"])
def test_claims_hold_for_the_variants(claim: str, extra: dict[str, Any]) -> None:
    expected = Expected(True, True, True, "nonlinear", {"targets": ["q"], "rank": 4, **extra})
    result = measure(claim, Trial(load("dora"), "decoder", expected))
    assert result.status == "verified", result


def test_strength_of_the_magnitude_alone_is_linear() -> None:
    expected = Expected(True, True, True, "linear", {"targets": [], "magnitude_only": ["q", "up"]})
    result = measure("strength", Trial(load("dora"), "decoder", expected))
    assert result.status == "verified", result


def test_strength_goes_through_the_normalization() -> None:
    layer = site()
    for c in (-1.0, 0.5, 2.0):
        layer.strength = c
        V = layer.base.weight + c * layer.delta_weight()
        m = layer.m0 + c * (layer.m - layer.m0)
        expected = (m / V.norm(dim=1))[:, None] * V
        x = torch.randn(5, 12, dtype=torch.float64)
        assert torch.allclose(layer(x), F.linear(x, expected, layer.base.bias), rtol=0, atol=1e-12)


def test_magnitude_only_layers_drop_inputs_of_the_change_alone() -> None:
    layer = MagnitudeLinear(linear(12, 8), dropout=0.5)
    randomize([layer.m])
    x = torch.randn(4, 12, dtype=torch.float64)
    torch.manual_seed(5)
    trained = layer(x)
    torch.manual_seed(5)
    expected = layer.base(x) + (layer.m / layer.m0 - 1) * F.linear(F.dropout(x, 0.5), layer.base.weight)
    assert torch.allclose(trained, expected, rtol=0, atol=1e-13)
    merged = F.linear(x, layer.merged()["weight"], layer.base.bias)
    assert torch.allclose(layer.eval()(x), merged, rtol=0, atol=1e-13)


def in_lycoris(layer: DoRALinear, on_out: bool = True) -> Any:
    """Its module with our values; magnitudes exist in float32 alone there."""
    modules = pytest.importorskip("lycoris.modules.locon")
    base = copy.deepcopy(layer.base).float()
    theirs = modules.LoConModule("q", base, lora_dim=4, alpha=6, weight_decompose=True, wd_on_out=on_out)
    copy_to(theirs.lora_down.weight, layer.A)
    copy_to(theirs.lora_up.weight, layer.B)
    return theirs


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_weight_and_its_gradients_equal_lycoris_whose_norm_is_attached(shape: tuple[int, int]) -> None:
    ours = site(*shape, simple=False)
    theirs = in_lycoris(ours)
    copy_to(theirs.dora_scale, ours.m)
    mine, other = ours.merged()["weight"], theirs.get_merged_weight()[0]
    assert torch.allclose(mine.float(), other, rtol=0, atol=1e-5)
    weights = torch.randn_like(other)
    trained = [theirs.lora_down.weight, theirs.lora_up.weight, theirs.dora_scale]
    a = torch.autograd.grad((mine * weights).sum(), [ours.A, ours.B, ours.m])
    b = torch.autograd.grad((other * weights).sum(), trained)
    assert all(torch.allclose(g.float(), h.view(g.shape), rtol=0, atol=1e-4) for g, h in zip(a, b, strict=True))


def test_lycoris_can_take_norms_of_input_columns_instead() -> None:
    ours = site()
    theirs = in_lycoris(ours, on_out=False)
    assert theirs.dora_scale.shape == (1, 12)
    weight = theirs.get_merged_weight()[0].double()
    assert torch.allclose(weight.norm(dim=0), ours.base.weight.norm(dim=0), rtol=1e-5)
    assert not torch.allclose(weight.norm(dim=1), ours.base.weight.norm(dim=1), rtol=1e-2)


def test_bias_is_not_scaled() -> None:
    layer = site()
    assert torch.allclose(layer(torch.zeros(1, 12, dtype=torch.float64)), layer.base.bias[None])


def test_a_row_of_zeros_is_refused() -> None:
    base = linear(4, 3)
    with torch.no_grad():
        base.weight[1] = 0
    with pytest.raises(AdapterError, match="row 1 of a weight is zero"):
        row_norms(base)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"targets": ["q"], "magnitude_only": ["q"]}, "q is in both"),
        ({"targets": []}, "nothing is in both"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
