"""Bone and Bat: what the paper and its successor in peft say about them, checked."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.bone import BatLinear, BoneLinear, attach, chunk_sum

from .parity import (
    LLAMA_7B,
    SHAPES,
    assert_equals_miss_of_peft,
    assert_no_drift,
    copy_to,
    drift,
    in_peft,
    linear,
    matrices_computed,
    randomize,
)
from .refused import assert_refused


def plain(d_in: int = 12, d_out: int = 8, rank: int = 4) -> BoneLinear:
    layer = BoneLinear(linear(d_in, d_out).requires_grad_(False), rank)
    randomize([layer.D])
    return layer


def bat(d_in: int = 12, d_out: int = 8, rank: int = 4) -> BatLinear:
    layer = BatLinear(linear(d_in, d_out).requires_grad_(False), rank)
    randomize([layer.D])
    return layer


def block_by_block(layer: BatLinear) -> Tensor:
    """The change of Bat, written out."""
    W0, r = layer.base.weight, layer.size
    change = torch.zeros_like(W0)
    for o in range(W0.shape[0] // r):
        for i in range(W0.shape[1] // r):
            rows, columns = slice(o * r, o * r + r), slice(i * r, i * r + r)
            change[rows, columns] = W0[rows, columns] @ layer.D[o] + layer.D[o]
    return change


@pytest.mark.parametrize(("rank", "affine", "count"), [(4, False, 32), (5, False, 40), (4, True, 2 * 4 * 4)])
def test_counts(rank: int, affine: bool, count: int) -> None:
    model = nn.ModuleDict({"q": nn.Linear(12, 8)})
    assert attach(model, rank=rank, bat=affine, targets=["q"]).count() == count


@pytest.mark.parametrize("affine", [False, True])
def test_count_at_llama_7b_is_that_of_both_forms(affine: bool) -> None:
    assert attach(build("decoder", LLAMA_7B, device="meta"), rank=64, bat=affine).count() == 87_031_808


@pytest.mark.parametrize("rank", [1, 4, 5, 7, 12])
def test_sum_of_chunks(rank: int) -> None:
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    expected = torch.stack([x[..., j::rank].sum(-1) for j in range(rank)], dim=-1)
    assert torch.allclose(chunk_sum(x, rank), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rank", [1, 4, 5, 7])
@pytest.mark.parametrize("shape", [*SHAPES, (13, 7)])
def test_plain_form_gives_every_input_block_the_same_change(shape: tuple[int, int], rank: int) -> None:
    layer = plain(*shape, rank=rank)
    delta = layer.delta_weight()
    for start in range(0, shape[0], rank):
        block = delta[:, start : start + rank]
        assert torch.equal(block, layer.D.T[:, : block.shape[1]])
    assert torch.linalg.matrix_rank(delta) == min(rank, *shape)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    assert torch.allclose(layer(x), layer.base(x) + x @ delta.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_bat_multiplies_the_frozen_blocks_from_the_right(shape: tuple[int, int], rank: int) -> None:
    layer = bat(*shape, rank=rank)
    change = block_by_block(layer)
    assert torch.allclose(layer.delta_weight(), change, rtol=0, atol=1e-13)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    assert torch.allclose(layer(x), layer.base(x) + x @ change.T, rtol=0, atol=1e-12)


def test_bat_is_of_full_rank_and_acts_differently_on_every_input_block() -> None:
    assert attach(pretrained("decoder"), rank=4, bat=True).family is None
    delta = bat().delta_weight()
    assert torch.linalg.matrix_rank(delta) == 8
    assert not torch.allclose(delta[:, :4], delta[:, 4:8])


def test_bat_starts_as_the_plain_form_on_a_zero_weight() -> None:
    layer = bat()
    with torch.no_grad():
        layer.base.weight.zero_()
    assert torch.equal(layer.delta_weight()[:, :4], layer.D.flatten(0, 1))
    assert torch.equal(layer.delta_weight()[:, :4], layer.delta_weight()[:, 4:8])


def test_bat_is_undone_by_the_inverse_of_i_plus_d_block_by_block() -> None:
    layer = bat()
    changed = layer.merged()["weight"].unflatten(0, (-1, 4)).unflatten(2, (-1, 4))  # (o, a, i, b)
    inverse = torch.linalg.inv(torch.eye(4, dtype=torch.float64) + layer.D)
    restored = torch.einsum("oaib,obc->oaic", changed - layer.D[:, :, None], inverse).flatten(0, 1).flatten(1)
    assert torch.allclose(restored, layer.base.weight, rtol=0, atol=1e-11)


def test_bat_cannot_be_undone_where_i_plus_d_is_singular_but_here_the_weight_is_kept() -> None:
    model = pretrained("decoder").double()
    adapter = attach(model, rank=4, bat=True)
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(-torch.eye(4, dtype=torch.float64).expand_as(p))
    adapter.merge()
    adapter.detach()
    base = pretrained("decoder").double().state_dict()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


def test_two_bats_one_after_the_other_do_not_commute() -> None:
    def stacked(first: Tensor, second: Tensor) -> Tensor:
        layer = bat()
        with torch.no_grad():
            layer.base.weight.copy_(torch.arange(96, dtype=torch.float64).view(8, 12) / 50)
            for D in (first, second):
                layer.D.copy_(D)
                layer.base.weight.copy_(layer.merged()["weight"])
        return layer.base.weight

    a, b = (torch.randn(2, 4, 4, dtype=torch.float64) for _ in range(2))
    assert not torch.allclose(stacked(a, b), stacked(b, a), atol=1e-2)


@pytest.mark.parametrize("make", [plain, bat])
@pytest.mark.parametrize("c", [-1.0, 0.5, 2.0])
def test_change_is_linear_in_d(make: Any, c: float) -> None:
    layer = make()
    before = layer.delta_weight().detach().clone()
    with torch.no_grad():
        layer.D.mul_(c)
    assert torch.allclose(layer.delta_weight(), c * before, rtol=1e-14, atol=0)


@pytest.mark.parametrize("c", [-1.0, 0.5, 2.0])
def test_strength_scales_the_change_of_bat(c: float) -> None:
    layer = bat()
    x = torch.randn(3, 12, dtype=torch.float64)
    change = layer(x) - layer.base(x)
    layer.strength = c
    assert torch.allclose(layer(x) - layer.base(x), c * change, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [3, 8])
def test_blocks_of_bat_must_divide_inputs_and_outputs(rank: int) -> None:
    with pytest.raises(AdapterError, match=r"one of \[1, 2, 4\]"):
        attach(nn.ModuleDict({"q": nn.Linear(12, 8)}), rank=rank, bat=True, targets=["q"])


@pytest.mark.parametrize("affine", [False, True])
def test_start_is_the_base_model_and_d_learns_at_once(affine: bool) -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model, rank=4, bat=affine)
    assert torch.equal(model(batch), before)
    adapter.loss(batch).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())


@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize(
    "claim", ["detachable", "mergeable", "strength", "saves", "two-faces", "device-dtype", "family-invariant"]
)
def test_claims_hold_for_the_plain_form(claim: str, rank: int) -> None:
    result = measure(claim, Trial(load("bone"), "decoder", Expected(True, True, True, "linear", {"rank": rank})))
    assert result.status == "verified", result


def test_plain_form_computes_no_matrix_of_the_size_of_the_weight() -> None:
    layer = BoneLinear(nn.Linear(64, 48).requires_grad_(False), 4)
    x = torch.randn(3, 64)
    assert not {(48, 64), (64, 48)} & matrices_computed(lambda: layer(x))


@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize("shape", [*SHAPES, (13, 7)])
def test_plain_form_equals_miss_in_peft(shape: tuple[int, int], rank: int) -> None:
    ours = plain(*shape, rank=rank)
    assert_equals_miss_of_peft(ours, shape[0], r=rank)


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_bat_equals_miss_in_peft(shape: tuple[int, int], rank: int) -> None:
    ours = bat(*shape, rank=rank)
    assert_equals_miss_of_peft(ours, shape[0], r=rank, init_weights="bat")


def test_peft_has_no_bone_any_more() -> None:
    peft = pytest.importorskip("peft")
    assert not hasattr(peft, "BoneConfig")
    assert hasattr(peft, "MissConfig")


def test_peft_inverts_in_float32_to_unmerge_a_bat_and_drifts() -> None:
    ours = bat()
    theirs = in_peft("MissConfig", ours.base, r=4, init_weights="bat")
    copy_to(theirs.miss_block["default"], ours.D)
    errors = drift(theirs)
    assert errors[0] > 1e-10  # in float64
    assert errors[-1] > 5 * errors[0]
    for affine in (False, True):
        assert_no_drift(partial(attach, rank=4, bat=affine), cycles=3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 33}, "from 1 to its 32 inputs"),
        ({"rank": 5, "bat": True}, r"square blocks, so that it must be one of \[1, 2, 4, 8, 16, 32\]"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
