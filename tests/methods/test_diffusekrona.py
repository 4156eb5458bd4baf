"""DiffuseKronA: what the paper and its code say about it, checked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.backbones import pretrained
from reference_impls.reparameterized import lora
from reference_impls.reparameterized.diffusekrona import KroneckerLinear, attach
from reference_impls.reparameterized.lokr import LoKrLayer

from .parity import assert_no_drift, assert_same, copy_to, linear, matrices_computed, randomize, same
from .refused import assert_refused
from .stable_diffusion import CLIP_L, SD_15, SDXL, stable_diffusion_15, stable_diffusion_xl

SIZES = [(12, 8, 4, 3), (12, 8, 2, 6), (8, 12, 3, 2), (12, 12, 1, 1), (12, 8, 8, 12), (10, 21, 7, 2)]
"""(d_in, d_out, a1, a2): wide and tall, both factors of either form, and each of them a single number."""


def site(d_in: int = 12, d_out: int = 8, a1: int = 4, a2: int = 3) -> KroneckerLinear:
    layer = KroneckerLinear(linear(d_in, d_out).requires_grad_(False), a1, a2)
    randomize([layer.A, layer.B])
    return layer


def released(layer: KroneckerLinear, x: Tensor) -> Tensor:
    """The change as the official code flattens it: B X^T A^T, (b1, a1), row by row."""
    X = x.unflatten(-1, (layer.a2, layer.b2))
    return (layer.B @ X.mT @ layer.A.T).flatten(-2)


@pytest.mark.parametrize(
    ("a1", "a2", "unet", "text"), [(16, 16, 398_048, 122_880), (64, 4, 398_048, 122_880), (64, 8, 248_176, None)]
)
def test_counts_on_stable_diffusion_15(a1: int, a2: int, unet: int, text: int | None) -> None:
    """The paper's 0.52M are those of both at a1 a2 = 256; the released scripts have 512."""
    assert attach(stable_diffusion_15(), a1=a1, a2=a2).count() == unet
    if text is not None:
        assert attach(stable_diffusion_15(), a1=a1, a2=a2, text_encoder=True).count() == unet + text == 520_928


@pytest.mark.parametrize(("a1", "a2", "count"), [(32, 8, 3_874_560), (4, 64, 3_874_560), (64, 8, 2_152_320)])
def test_counts_on_stable_diffusion_xl(a1: int, a2: int, count: int) -> None:
    """The paper's 3.8M, and what the released scripts train."""
    assert attach(stable_diffusion_xl(), a1=a1, a2=a2).count() == count


def test_counts_of_the_loras_that_the_paper_compares_with() -> None:
    """1.09M on Stable Diffusion 1.5 with its text encoder and 5.8M on XL, at rank 4."""
    assert lora.attach(stable_diffusion_15(), rank=4, targets=["q", "k", "v", "o"]).count() == 797_184 + 294_912
    assert lora.attach(stable_diffusion_xl(), rank=4, targets=["q", "k", "v", "o"]).count() == 5_806_080


def test_numbers_of_attention_blocks_are_those_of_the_released_models() -> None:
    assert (len(SD_15), len(SDXL), len(CLIP_L)) == (16, 70, 12)


def test_factors_of_a_layer_320_wide() -> None:
    layer = KroneckerLinear(nn.Linear(320, 320, device="meta"), 64, 8)
    assert (layer.A.shape, layer.B.shape) == ((64, 8), (5, 40))
    assert layer.A.numel() + layer.B.numel() == 712


def test_count_is_least_where_a_has_the_root_of_the_entries() -> None:
    counts = {n: n + 320 * 320 // n for n in range(1, 320 * 320 + 1) if 320 * 320 % n == 0}
    assert min(counts, key=lambda n: counts[n]) == 320
    layer = KroneckerLinear(nn.Linear(320, 320, device="meta"), 20, 16)
    assert layer.A.numel() + layer.B.numel() == counts[320] == 2 * 320


@pytest.mark.parametrize("sizes", SIZES)
def test_forward_is_the_definition_entry_by_entry(sizes: tuple[int, ...]) -> None:
    layer = site(*sizes)
    d_in, d_out, a1, a2 = sizes
    b1, b2 = d_out // a1, d_in // a2
    change = torch.empty(d_out, d_in, dtype=torch.float64)
    for row in range(d_out):
        for column in range(d_in):
            change[row, column] = layer.A[row // b1, column // b2] * layer.B[row % b1, column % b2]
    assert torch.allclose(layer.delta_weight(), change, rtol=0, atol=1e-14)
    x = torch.randn(2, 3, d_in, dtype=torch.float64)
    for c in (1.0, -0.5):
        layer.strength = c
        assert torch.allclose(layer(x), layer.base(x) + c * x @ change.T, rtol=0, atol=1e-12)
        assert torch.allclose(layer.merged()["weight"], layer.base.weight + c * change, rtol=0, atol=1e-14)
    assert layer(x[0, 0]).shape == (d_out,)


def test_column_by_column_the_identity_has_the_factors_exchanged() -> None:
    layer = site()
    x = torch.randn(12, dtype=torch.float64)
    columns = layer.B @ x.view(3, 4).T @ layer.A.T  # X read column by column, (b2, a2)
    assert torch.allclose(layer.delta(x), columns.T.flatten(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("sizes", SIZES)
def test_released_forward_is_the_equation_with_its_outputs_shuffled(sizes: tuple[int, ...]) -> None:
    layer = site(*sizes)
    x = torch.randn(2, 3, sizes[0], dtype=torch.float64)
    a1, b1 = layer.A.shape[0], layer.B.shape[0]
    order = [q * b1 + p for p in range(b1) for q in range(a1)]  # at p a1 + q stands what belongs at q b1 + p
    assert torch.allclose(released(layer, x), layer.delta(x)[..., order], rtol=0, atol=1e-13)
    assert torch.allclose(released(layer, x), layer.delta(x), atol=1e-3) == (1 in (a1, b1))


@pytest.mark.parametrize("sizes", SIZES[:3])
def test_same_factors_as_lokr_give_the_same_outputs_and_gradients(sizes: tuple[int, ...]) -> None:
    ours = site(*sizes)
    theirs = LoKrLayer(ours.base, None, None)
    theirs.u_q, theirs.v_q = ours.a2, ours.b2
    theirs.C, theirs.D = nn.Parameter(ours.A.detach().clone()), nn.Parameter(ours.B.detach().clone())
    assert_same(ours, theirs, [(ours.A, theirs.C, same), (ours.B, theirs.D, same)], sizes[0])


def test_peft_s_lokr_has_it_as_a_special_case() -> None:
    functional = pytest.importorskip("peft.tuners.lokr.layer")
    layer = site()
    assert torch.equal(functional.make_kron(layer.A, layer.B, 1.0), layer.delta_weight())


@pytest.mark.parametrize("sizes", SIZES)
def test_ranks_norms_and_singular_values_multiply(sizes: tuple[int, ...]) -> None:
    layer = site(*sizes)
    change = layer.delta_weight()
    products = torch.outer(torch.linalg.svdvals(layer.A), torch.linalg.svdvals(layer.B)).flatten()
    values = torch.linalg.svdvals(change)
    assert torch.allclose(values[: len(products)], products.sort(descending=True).values, rtol=0, atol=1e-12)
    assert (values[len(products) :] < 1e-12).all()
    assert torch.allclose(change.norm(), layer.A.norm() * layer.B.norm(), rtol=1e-12, atol=0)
    assert len(products) == min(layer.A.shape) * min(layer.B.shape)


def test_layer_320_wide_changes_in_rank_40() -> None:
    assert torch.linalg.matrix_rank(site(320, 320, 64, 8).delta_weight()) == 40


@pytest.mark.parametrize("c", [-1.0, 3.0])
def test_factors_are_determined_up_to_one_number(c: float) -> None:
    layer, other = site(), site()
    copy_to(other.A, c * layer.A)
    assert torch.allclose(other.delta_weight(), c * layer.delta_weight(), rtol=0, atol=1e-14)
    copy_to(other.B, layer.B / c)
    assert torch.allclose(other.delta_weight(), layer.delta_weight(), rtol=0, atol=1e-14)
    copy_to(other.B, layer.B * c)
    assert torch.allclose(other.delta_weight(), c * c * layer.delta_weight(), rtol=0, atol=1e-13)


def test_start_is_the_base_model_and_b_alone_learns_first() -> None:
    model = pretrained("unet").double()
    batch = model.batch(0).to(dtype=torch.float64)
    before = model(batch)
    adapter = attach(model, a1=8, a2=4)
    assert torch.equal(model(batch), before)
    model.loss(batch).backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any() == name.endswith(".B")


def test_a_starts_gaussian_with_the_inverse_of_its_rows() -> None:
    layer = KroneckerLinear(nn.Linear(256, 64), 64, 128)
    assert layer.A.std().item() == pytest.approx(1 / 64, rel=0.03)
    assert abs(layer.A.mean().item()) < 1e-3
    assert layer.A.abs().max() > 3 / 64  # not uniform
    assert not layer.B.any()


def test_neither_the_change_nor_its_gradient_is_formed() -> None:
    layer = KroneckerLinear(nn.Linear(70, 48).requires_grad_(False), 8, 5)
    x = torch.randn(3, 70)
    formed = matrices_computed(lambda: layer(x))
    assert not {shape for shape in formed if math.prod(shape) >= 48 * 70}


def test_attention_of_the_unet_is_adapted_and_that_of_the_text_encoder_on_request() -> None:
    paths = set(attach(pretrained("unet"), a1=8, a2=4).sites())
    stages = [f"{stage}.block.{kind}" for stage in ("contract", "bottom", "expand") for kind in ("attention", "cross")]
    assert paths == {f"{stage}.{name}" for stage in stages for name in "qkvo"}
    more = set(attach(pretrained("unet"), a1=8, a2=4, text_encoder=True).sites())
    assert more - paths == {f"text.stack.blocks.0.attention.{name}" for name in "qkvo"}


def test_projections_may_have_sizes_of_their_own() -> None:
    adapter = attach(pretrained("unet"), a1=8, a2=4, factors={"v": (2, 16)}, targets=["q", "v"])
    shapes = {path[-1]: adapter.state_dict()[f"{path}.A"].shape for path in adapter.sites()}
    assert shapes == {"q": (8, 4), "v": (2, 16)}


def test_merges_do_not_drift() -> None:
    assert_no_drift(lambda model: attach(model, a1=8, a2=4))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "a1 is 64; for stack.blocks.0.attention.q it must divide the layer's output width 32"),
        ({"a1": 8, "a2": 5}, "a2 is 5; for .* it must divide the layer's input width 32"),
        ({"a1": 0, "a2": 4}, "a1 is 0"),
        ({"a1": 8, "a2": 4, "factors": {"o": (3, 4)}}, r"a1 is 3; for .*\.o it must divide"),
        ({"a1": 8, "a2": 4, "factors": {"up": (3, 4)}}, "factors has up; allowed: the targets q, k, v, o"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)


@pytest.mark.parametrize(
    ("targets", "message"), [(["conv1"], "is a Conv2d; this method adapts linear layers"), (["text"], "TextEncoder")]
)
def test_convolutions_are_refused_as_paper_and_code_have_none(targets: list[str], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        attach(pretrained("unet"), targets=targets)


def test_targets_in_the_text_encoder_alone_need_the_option() -> None:
    model = stable_diffusion_15()
    model.get_submodule("text").add_module("proj", nn.Linear(64, 64, device="meta"))
    with pytest.raises(AdapterError, match="text encoder alone"):
        attach(model, targets=["proj"])
    assert attach(model, targets=["proj"], text_encoder=True).count() == 512 + 8
