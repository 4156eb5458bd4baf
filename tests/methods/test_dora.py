"""DoRA: what the paper and its code say about it, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.dora import DoRALinear, MagnitudeLinear, attach, row_norms

from .parity import LLAMA_7B, SHAPES, assert_same, copy_to, in_peft, linear, matrices_computed, randomize, same


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
    assert round(100 * adapter.count() / (6_738_415_616 + adapter.count()), 2) == 0.84


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
    model = pretrained("decoder")
    with pytest.raises(AdapterError, match=message):
        attach(model, **keywords)
    assert all(p.requires_grad for p in model.parameters())
