"""LoHa: what FedPara, LyCORIS and their code say about it, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.loha import HadamardProduct, LoHaLayer, attach, widened

from .parity import (
    SHAPES,
    assert_no_drift,
    assert_same,
    copy_to,
    drift,
    in_peft,
    linear,
    matrices_computed,
    randomize,
    same,
    twin,
)
from .refused import assert_refused
from .unet_convolutions import CONVOLUTIONS_OF_THE_UNET, assert_trained_merged_and_detached

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": 2, "dilation": 2, "padding": 2},
    {"kernel_size": 1},
    {"kernel_size": 3, "groups": 2},
]
IMAGE = (4, 7, 6)
"""Channels, height and width."""


def moved(layer: LoHaLayer) -> LoHaLayer:
    randomize([p for p in layer.parameters() if p.requires_grad])
    return layer


def site(d_in: int = 12, d_out: int = 8, rank: int = 2, alpha: float = 3) -> LoHaLayer:
    return moved(LoHaLayer(linear(d_in, d_out).requires_grad_(False), rank, alpha, False))


def convolution(rank: int = 2, tucker: bool = False, outputs: int = 8, **keywords: Any) -> LoHaLayer:
    base = nn.Conv2d(IMAGE[0], outputs, **keywords).double().requires_grad_(False)
    return moved(LoHaLayer(base, rank, 3, tucker))


def on_images(layer: nn.Module) -> Any:
    """A layer that takes flat images, as the comparison makes them."""
    return lambda x: layer(x.view(-1, *IMAGE))


def images(count: int = 2) -> Tensor:
    return torch.randn(count, *IMAGE, dtype=torch.float64)


@pytest.mark.parametrize(
    ("d_in", "d_out", "rank", "count"), [(768, 768, 4, 12_288), (12, 8, 2, 80), (256, 256, 16, 16_384)]
)
def test_counts(d_in: int, d_out: int, rank: int, count: int) -> None:
    layer = LoHaLayer(nn.Linear(d_in, d_out, device="meta").requires_grad_(False), rank, 1, False)
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == count == 2 * rank * (d_in + d_out)


@pytest.mark.parametrize(("tucker", "count"), [(False, 2 * 16 * (256 + 9 * 256)), (True, 2 * 16 * (512 + 16 * 9))])
def test_counts_of_a_convolution_with_and_without_cores(tucker: bool, count: int) -> None:
    layer = LoHaLayer(nn.Conv2d(256, 256, 3, device="meta").requires_grad_(False), 16, 1, tucker)
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == count


def test_start_is_the_base_model_with_one_factor_at_zero() -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model)
    assert torch.equal(model(batch), before)
    zero = [name for name, p in adapter.named_parameters() if not p.any()]
    assert zero == [f"{path}.B2" for path in adapter.sites()]
    model.loss(batch).backward()
    learning = [name for name, p in adapter.named_parameters() if p.grad is not None and p.grad.any()]
    assert learning == zero


def test_factors_start_gaussian() -> None:
    layer = LoHaLayer(nn.Conv2d(300, 400, 3), 16, 1, True)
    assert layer.T1 is not None
    assert layer.T2 is not None
    for tensor, spread in ((layer.B1, 0.1), (layer.A1, 1), (layer.A2, 1), (layer.T1, 0.1), (layer.T2, 0.1)):
        assert tensor.std().item() == pytest.approx(spread, rel=0.05)
        assert abs(tensor.mean().item()) < 0.05 * spread


@pytest.mark.parametrize(("rank", "expected"), [(2, 4), (3, 9), (4, 16)])
def test_rank_of_the_change_is_the_square(rank: int, expected: int) -> None:
    layer = site(16, 16, rank)
    assert torch.linalg.matrix_rank(layer.delta_weight()) == expected == layer.rank


@pytest.mark.parametrize("claim", ["family-invariant", "trained-tensors-learn", "saves"])
def test_claims_hold_for_more_ranks_and_layers_than_the_entry_s(claim: str) -> None:
    hyperparameters = {"rank": 2, "targets": ["q", "down"]}
    result = measure(claim, Trial(load("loha"), "decoder", Expected(True, True, True, "linear", hyperparameters)))
    assert result.status == "verified", result


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_the_definition(shape: tuple[int, int], rank: int) -> None:
    layer = site(*shape, rank)
    assert layer.thin == (rank * rank * sum(shape) < shape[0] * shape[1])
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    change = 3 / rank * (layer.B1 @ layer.A1) * (layer.B2 @ layer.A2)
    assert torch.allclose(layer.delta_weight(), change, rtol=0, atol=1e-12)
    assert torch.allclose(layer(x), layer.base(x) + x @ change.T, rtol=0, atol=1e-11)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize("keywords", CONVOLUTIONS)
def test_forward_of_a_convolution_is_the_definition(keywords: dict[str, Any], tucker: bool, rank: int) -> None:
    layer = convolution(rank, tucker, padding_mode="reflect", **keywords)
    assert layer.thin == (rank == 1 and "groups" not in keywords)
    merged = twin(layer.base)
    copy_to(merged.weight, layer.merged()["weight"])
    x = images()
    assert torch.allclose(layer(x), merged(x), rtol=0, atol=1e-10)
    layer.strength = -0.5
    copy_to(merged.weight, layer.base.weight - 0.5 * layer.delta_weight())
    assert torch.allclose(layer(x), merged(x), rtol=0, atol=1e-10)


def test_kernel_with_cores_is_tucker_s_product() -> None:
    layer = convolution(3, True, kernel_size=(3, 2))
    T1, T2 = layer.T1, layer.T2
    assert T1 is not None
    assert T2 is not None
    assert T1.shape == (3, 3, 3, 2)
    first = torch.einsum("abkl,pa,bq->pqkl", T1, layer.B1, layer.A1)
    second = torch.einsum("abkl,pa,bq->pqkl", T2, layer.B2, layer.A2)
    assert torch.allclose(layer.delta_weight(), first * second, rtol=0, atol=1e-12)
    assert widened(layer.A1, None) is layer.A1


def test_pointwise_convolutions_need_no_core() -> None:
    layer = convolution(2, True, kernel_size=1)
    assert layer.T1 is None
    assert layer.A1.shape == (2, IMAGE[0])


def test_product_keeps_factors_alone_and_its_gradients_are_right() -> None:
    factors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((6, 2), (2, 5), (6, 2), (2, 5))]
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        product = HadamardProduct.apply(*factors)
    assert sorted(kept) == [(2, 5), (2, 5), (6, 2), (6, 2)]
    B1, A1, B2, A2 = factors
    assert torch.equal(product, (B1 @ A1) * (B2 @ A2))
    assert torch.autograd.gradcheck(HadamardProduct.apply, factors)


def test_no_matrix_of_the_weight_s_size_is_computed_while_ranks_are_few() -> None:
    x = torch.randn(3, 64)
    for rank, formed in ((2, False), (6, True)):
        layer = LoHaLayer(nn.Linear(64, 48).requires_grad_(False), rank, 4, False)
        shapes = matrices_computed(lambda layer=layer: layer(x))  # type: ignore[misc]
        assert ((48, 64) in shapes) == formed
        assert (64, 48) not in shapes
    layer = LoHaLayer(nn.Conv2d(16, 16, 3).requires_grad_(False), 2, 4, False)
    shapes = matrices_computed(lambda: layer(torch.randn(2, 16, 5, 5)))
    assert not {(16, 144), (16, 16, 3, 3)} & shapes
    assert (4, 16, 3, 3) in shapes


@pytest.mark.parametrize("c", [-1.0, 0.0, 2.0])
def test_change_is_linear_in_gamma_and_in_each_factor_but_not_in_several(c: float) -> None:
    layer = site()
    change = layer.delta_weight()

    def scaled(*names: str) -> Tensor:
        other = twin(layer)
        with torch.no_grad():
            for name in names:
                getattr(other, name).mul_(c)
        return other.delta_weight()

    for name in ("B1", "A1", "B2", "A2"):
        assert torch.allclose(scaled(name), c * change, rtol=0, atol=1e-13)
    assert torch.allclose(scaled("B1", "A2"), c**2 * change, rtol=0, atol=1e-13)
    assert torch.allclose(scaled("B1", "A1", "B2", "A2"), c**4 * change, rtol=0, atol=1e-12)
    layer.strength = c
    assert torch.allclose(layer.merged()["weight"], layer.base.weight + c * change, rtol=0, atol=1e-14)


def in_sequence() -> tuple[nn.Sequential, Tensor]:
    """A convolutional network with a linear head, and images for it."""
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(80, 3))
    return model.double(), images()


@pytest.mark.parametrize("tucker", [False, True])
def test_network_of_convolutions_is_adapted_merged_and_detached(tucker: bool) -> None:
    model, x = in_sequence()
    before, weights = model(x), twin(model).state_dict()
    adapter = attach(model, rank=2, tucker=tucker, targets=["0", "2", "4"])
    assert torch.equal(model(x), before)
    randomize(adapter.parameters())
    adapted = model(x)
    assert (adapted - before).abs().max() > 0.1
    adapter.merge()
    assert isinstance(model[0], nn.Conv2d)
    assert torch.allclose(model(x), adapted, rtol=0, atol=1e-9)
    adapter.unmerge()
    assert torch.equal(model(x), adapted)
    adapter.detach()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_convolutions_run_on_meta_and_in_bfloat16() -> None:
    for tucker in (False, True):
        layer = LoHaLayer(nn.Conv2d(4, 8, 3).requires_grad_(False), 2, 4, tucker)
        low = twin(layer).bfloat16()
        low(images().bfloat16()).sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in low.parameters() if p.requires_grad)
        layer.to("meta")(images().float().to("meta")).sum().backward()


def pairs(ours: LoHaLayer, theirs: Any, pick: Callable[[Any], Tensor]) -> list[tuple[Tensor, Tensor, Any]]:
    """Our tensors beside a library's, filled with our values; with cores theirs are (r, out) instead of (out, r)."""

    def transposed(gradient: Tensor) -> Tensor:
        return gradient.T

    found: list[tuple[Tensor, Tensor, Any]] = []
    for i in ("1", "2"):
        core = getattr(ours, f"T{i}")
        B, A = getattr(ours, f"B{i}"), getattr(ours, f"A{i}")
        their_B, their_A = (pick(getattr(theirs, f"hada_w{i}_{side}")) for side in "ab")
        copy_to(their_B, B if core is None else B.T)
        copy_to(their_A, A)
        found += [(B, their_B, same if core is None else transposed), (A, their_A, same)]
        if core is not None:
            their_core = pick(getattr(theirs, f"hada_t{i}"))
            copy_to(their_core, core)
            found.append((core, their_core, same))
    return found


def default(tensors: Any) -> Tensor:
    tensor: Tensor = tensors["default"]
    return tensor


def itself(tensor: Tensor) -> Tensor:
    return tensor


def in_lycoris(layer: LoHaLayer, tucker: bool = False) -> Any:
    """The library's module around a copy of the base layer, in float64."""
    modules = pytest.importorskip("lycoris.modules.loha")
    rank = layer.B1.shape[1]
    base = twin(layer.base)
    return modules.LohaModule("q", base, lora_dim=rank, alpha=layer.scale * rank, use_tucker=tucker).double()


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("shape", [*SHAPES, (13, 7)])
def test_equals_peft(shape: tuple[int, int], rank: int) -> None:
    ours = site(*shape, rank)
    theirs = in_peft("LoHaConfig", ours.base, r=rank, alpha=3)
    assert_same(ours, theirs, pairs(ours, theirs, default), shape[0], 1e-10)
    assert torch.allclose(theirs.get_delta_weight("default"), ours.delta_weight(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("shape", [*SHAPES, (13, 7)])
def test_equals_lycoris(shape: tuple[int, int], rank: int) -> None:
    ours = site(*shape, rank)
    theirs = in_lycoris(ours)
    assert_same(ours, theirs, pairs(ours, theirs, itself), shape[0], 1e-10)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("keywords", CONVOLUTIONS)
def test_convolutions_equal_peft(keywords: dict[str, Any], rank: int) -> None:
    ours = convolution(rank, **keywords)
    theirs = in_peft("LoHaConfig", ours.base, r=rank, alpha=3)
    assert_same(on_images(ours), on_images(theirs), pairs(ours, theirs, default), 4 * 7 * 6, 1e-9)


@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("keywords", CONVOLUTIONS)
def test_convolutions_equal_lycoris(keywords: dict[str, Any], rank: int, tucker: bool) -> None:
    ours = convolution(rank, tucker, **keywords)
    theirs = in_lycoris(ours, tucker)
    assert_same(on_images(ours), on_images(theirs), pairs(ours, theirs, itself), 4 * 7 * 6, 1e-9)


def test_peft_computes_wrong_gradients_with_cores() -> None:
    """Outputs agree; of the gradients, those of the output factors mix up the two halves."""
    ours = convolution(2, True, kernel_size=3)
    theirs = in_peft("LoHaConfig", ours.base, r=2, alpha=3, use_effective_conv2d=True)
    found = pairs(ours, theirs, default)
    x = images()
    mine, other = ours(x), theirs(x)
    assert torch.allclose(mine, other, rtol=0, atol=1e-10)
    a = torch.autograd.grad(mine.sum(), [p for p, _, _ in found])
    b = torch.autograd.grad(other.sum(), [q for _, q, _ in found])
    agree = [torch.allclose(g, back(h), rtol=1e-9) for g, h, (_, _, back) in zip(a, b, found, strict=True)]
    assert agree == [False, True, True, False, True, True]  # B1, A1, T1, B2, A2, T2

    def numerical(step: float) -> Tensor:
        with torch.no_grad():
            theirs.hada_w1_a["default"][0, 0] += step
            return theirs(x).sum()

    slope = (numerical(1e-6) - numerical(-2e-6)) / 2e-6
    assert a[0][0, 0].item() == pytest.approx(slope.item(), rel=1e-6)
    assert b[0][0, 0].item() != pytest.approx(slope.item(), rel=1e-2)


def test_libraries_ignore_the_padding_mode_of_a_convolution() -> None:
    ours = convolution(2, kernel_size=3, padding=1, padding_mode="circular")
    x = images()
    for theirs, pick in ((in_peft("LoHaConfig", ours.base, r=2, alpha=3), default), (in_lycoris(ours), itself)):
        pairs(ours, theirs, pick)
        assert torch.allclose(theirs(x)[..., 1:-1, 1:-1], ours(x)[..., 1:-1, 1:-1], rtol=0, atol=1e-10)
        assert not torch.allclose(theirs(x), ours(x), atol=1e-2)


def test_peft_zeroes_another_factor_and_has_scale_one_by_default() -> None:
    theirs = in_peft("LoHaConfig", linear(12, 8))
    assert not theirs.hada_w2_b["default"].any()
    assert theirs.hada_w2_a["default"].any()
    assert theirs.scaling["default"] == 1


def test_lycoris_zeroes_b2_and_its_functional_form_b1() -> None:
    modules = pytest.importorskip("lycoris.modules.loha")
    theirs = modules.LohaModule("q", nn.Linear(12, 8))
    assert not theirs.hada_w2_a.any()
    assert theirs.hada_w1_a.any()
    assert theirs.scale == 0.25
    functional = pytest.importorskip("lycoris.functional.loha")
    _, w1u, _, w2u, _, _ = functional.weight_gen(torch.empty(8, 12), 4)
    assert not w1u.any()
    assert w2u.any()


def test_lycoris_merges_with_the_square_of_the_scale() -> None:
    ours = site(rank=2, alpha=1)
    theirs = in_lycoris(ours)
    pairs(ours, theirs, itself)
    x = torch.randn(3, 12, dtype=torch.float64)
    assert torch.allclose(theirs(x), ours(x), rtol=0, atol=1e-12)
    merged, _ = theirs.get_merged_weight()
    assert torch.allclose(merged, ours.base.weight + 0.5 * ours.delta_weight(), rtol=0, atol=1e-12)
    assert not torch.allclose(F.linear(x, merged, ours.base.bias), theirs(x), atol=1e-2)


def test_peft_takes_a_merge_out_up_to_rounding_and_this_bit_for_bit() -> None:
    theirs = in_peft("LoHaConfig", linear(12, 8), r=2).float()
    randomize([p for p in theirs.parameters() if p.requires_grad])
    errors = drift(theirs)
    assert 0 < max(errors) < 1e-6
    assert_no_drift(attach)


@pytest.mark.parametrize("extra", [{"rank": 2}, {"tucker": True}], ids=["thin", "tucker"])
def test_convolutions_of_the_unet_are_trained_merged_and_detached(extra: dict[str, Any]) -> None:
    assert_trained_merged_and_detached(lambda model: attach(model, targets=CONVOLUTIONS_OF_THE_UNET, **extra))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0}, "alpha is 0; it must be positive"),
        ({"targets": ["embed"]}, "embed is a Embedding; LoHa adapts linear layers and two-dimensional convolutions"),
        ({"targets": ["nowhere"]}, "no module named nowhere"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)


def test_other_convolutions_are_refused() -> None:
    with pytest.raises(AdapterError, match="q is a Conv1d"):
        attach(nn.ModuleDict({"q": nn.Conv1d(4, 4, 3)}))
