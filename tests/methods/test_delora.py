"""DeLoRA: what the paper and its code say about it, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.delora import DeLoRALinear, Norm, attach

from .parity import LLAMA_7B, ROBERTA_BASE, SHAPES, copy_to, in_peft, linear, matrices_computed, note, randomize, twin
from .refused import assert_refused


def start(d_in: int = 12, d_out: int = 8, *, norm: Norm = "columns", follows: bool = False) -> DeLoRALinear:
    return DeLoRALinear(linear(d_in, d_out).requires_grad_(False), 4, 2.0, 0.0, norm, follows)


def site(d_in: int = 12, d_out: int = 8, *, norm: Norm = "columns", follows: bool = False) -> DeLoRALinear:
    layer = start(d_in, d_out, norm=norm, follows=follows)
    randomize([layer.A, layer.B, layer.lambda_])
    return layer


def learned(layer: DeLoRALinear) -> Tensor:
    """B Xi A."""
    Xi = torch.diag(1 / (layer.B.norm(dim=0) * layer.A.norm(dim=1)))
    return layer.B @ Xi @ layer.A


def test_counts() -> None:
    assert attach(build("encoder", ROBERTA_BASE, device="meta"), rank=8).count() == 294_936 == 294_912 + 24
    assert attach(build("decoder", LLAMA_7B, device="meta"), rank=8).count() == 4_194_368
    assert (
        sum(p.numel() for p in DeLoRALinear(nn.Linear(768, 768), 8, 8, 0.0, "columns", False).parameters())
        - (768 * 769)
        == 12_289
    )
    assert sum(p.numel() for p in (start().A, start().B, start().lambda_)) == 81


def test_start_is_the_base_model_and_factors_are_uniform() -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model, rank=4)
    assert torch.allclose(model(batch), before, rtol=0, atol=1e-12)
    for layer in adapter.sites().values():
        assert isinstance(layer, DeLoRALinear)
        assert 0.1 < layer.A.abs().max() <= 32**-0.5
        assert 0.3 < layer.B.abs().max() <= 4**-0.5
        assert layer.lambda_.item() == 8


def test_frozen_copies_are_clones_and_stay() -> None:
    layer = start()
    assert layer.A_0.data_ptr() != layer.A.data_ptr()
    kept = layer.A_0.clone(), layer.B_0.clone()
    randomize([layer.A, layer.B])
    assert torch.equal(layer.A_0, kept[0])
    assert torch.equal(layer.B_0, kept[1])
    assert layer.delta_weight().norm() > 0.1
    assert not layer.A_0.requires_grad


def test_every_rank_one_piece_has_length_one_and_the_bound_holds() -> None:
    layer = site()
    pieces = torch.einsum("or,ri->roi", layer.B / layer.B.norm(dim=0), layer.A / layer.A.norm(dim=1, keepdim=True))
    assert torch.allclose(pieces.flatten(1).norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(pieces.sum(0), learned(layer))
    assert learned(layer).norm() < 4
    with torch.no_grad():
        layer.A.copy_(layer.A[:1].expand_as(layer.A).clone())
        layer.B.copy_(layer.B[:, :1].expand_as(layer.B).clone())
    assert learned(layer).norm().item() == pytest.approx(4)


@pytest.mark.parametrize("norm", ["columns", "matrix"])
@pytest.mark.parametrize("shape", SHAPES)
def test_change_is_the_paper_s_formula(shape: tuple[int, int], norm: Norm) -> None:
    layer = site(*shape, norm=norm)
    W = layer.base.weight
    n = W.norm(dim=0) if norm == "columns" else W.norm()
    first = twin(layer)
    with torch.no_grad():
        first.A.copy_(layer.A_0)
        first.B.copy_(layer.B_0)
    expected = (layer.lambda_ / 4 * learned(layer) - 2.0 / 4 * learned(first)) * n
    assert torch.allclose(layer.delta_weight(), expected, rtol=0, atol=1e-13)
    x = torch.randn(5, shape[0], dtype=torch.float64)
    assert torch.allclose(layer(x), layer.base(x) + x @ expected.T, rtol=0, atol=1e-12)


def test_learned_part_is_bounded_by_lambda_times_the_norm_of_the_weight() -> None:
    for norm in ("columns", "matrix"):
        layer = site(norm=norm)
        part = layer.lambda_ / 4 * learned(layer) * layer.n
        assert part.norm() <= layer.lambda_.abs() * layer.base.weight.norm()


def test_copy_may_follow_lambda_as_in_the_official_code() -> None:
    layer, official = site(), site(follows=True)
    official.load_state_dict(layer.state_dict())
    official.n.copy_(layer.n)
    change = official.delta_weight()
    assert not torch.allclose(layer.delta_weight(), change)
    with torch.no_grad():
        layer.lambda_.fill_(2.0)
        official.lambda_.fill_(2.0)
    assert torch.equal(layer.delta_weight(), official.delta_weight())
    with torch.no_grad():
        official.lambda_.zero_()
        layer.lambda_.zero_()
    assert not official.delta_weight().any()
    assert layer.delta_weight().norm() > 0.1


def test_rescaling_a_column_or_row_changes_nothing_and_a_sign_flips_its_piece() -> None:
    layer = site()
    before = learned(layer).detach().clone()
    piece = torch.outer(layer.B[:, 1] / layer.B[:, 1].norm(), layer.A[1] / layer.A[1].norm()).detach()
    with torch.no_grad():
        layer.B[:, 0] *= 7
        layer.A[2] *= 0.1
    assert torch.allclose(learned(layer), before, rtol=0, atol=1e-13)
    with torch.no_grad():
        layer.A[1] *= -3
    assert torch.allclose(learned(layer), before - 2 * piece, rtol=0, atol=1e-13)


@pytest.mark.parametrize("c", [-1.0, 0.0, 0.5, 3.0])
def test_lambda_scales_the_learned_part_exactly(c: float) -> None:
    layer = site(follows=True)
    change = layer.delta_weight().detach().clone()
    with torch.no_grad():
        layer.lambda_.mul_(c)
    assert torch.allclose(layer.delta_weight(), c * change, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["A", "B"])
def test_scaling_a_whole_factor_keeps_the_size_and_takes_the_sign(name: str) -> None:
    layer = site()
    part = learned(layer).detach().clone()
    for c, expected in ((2.0, part), (-0.5, -part)):  # one after the other: 2, then -1
        with torch.no_grad():
            getattr(layer, name).mul_(c)
        assert torch.allclose(learned(layer), expected, rtol=0, atol=1e-13)


def test_it_is_not_the_product_divided_by_its_norm() -> None:
    layer = site()
    product = layer.B @ layer.A
    assert not torch.allclose(learned(layer) / 4, product / product.norm(), atol=0.05)


def test_norm_of_the_matrix_is_that_of_its_columns_times_the_root_of_the_inputs_where_it_is_orthogonal() -> None:
    base = linear(9, 9).requires_grad_(False)
    base.weight.copy_(torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q)
    columns, matrix = (DeLoRALinear(base, 2, 1.0, 0.0, norm, False).n for norm in ("columns", "matrix"))
    assert torch.allclose(columns, torch.ones(9, dtype=torch.float64))
    assert matrix.item() == pytest.approx(9**0.5)


def test_learned_part_has_rank_r_and_the_change_twice_that() -> None:
    layer = site(12, 12)
    assert torch.linalg.matrix_rank(learned(layer) * layer.n) == 4
    assert torch.linalg.matrix_rank(layer.delta_weight()) == layer.rank == 8


def test_change_is_not_formed() -> None:
    layer = DeLoRALinear(nn.Linear(64, 48).requires_grad_(False), 2, 1.0, 0.0, "columns", False)
    x = torch.randn(3, 64)
    assert not {(48, 64), (64, 48)} & matrices_computed(lambda: layer(x))


def test_lambda_takes_smaller_steps() -> None:
    adapter = attach(pretrained("decoder"), lambda_rate=0.25)
    factors, strengths = adapter.optimizer(1e-2).param_groups
    assert (factors["lr"], strengths["lr"]) == (1e-2, 2.5e-3)
    assert len(factors["params"]) == 12
    assert [p.shape for p in strengths["params"]] == [(1,)] * 6
    assert sum(p.numel() for g in (factors, strengths) for p in g["params"]) == adapter.count()


@pytest.mark.parametrize("claim", ["identity-at-init", "mergeable", "strength", "saves", "two-faces"])
@pytest.mark.parametrize("extra", [{"norm": "matrix"}, {"copy_follows": True}], ids=["matrix", "follows"])
def test_claims_hold_for_the_variants(claim: str, extra: dict[str, Any]) -> None:
    expected = Expected(True, True, True, "linear", {"rank": 4, "lambda_start": 0.5, **extra})
    result = measure(claim, Trial(load("delora"), "decoder", expected))
    assert result.status == "verified", result


def peft_layer(layer: DeLoRALinear, A: Tensor, B: Tensor, scale: Tensor) -> Any:
    theirs = in_peft("DeloraConfig", layer.base, r=4, delora_lambda=2.0, init_weights=False)
    for other, mine in (
        (theirs.delora_A["default"], A),
        (theirs.delora_B["default"], B),
        (theirs.delora_lambda["default"], scale),
    ):
        copy_to(other, mine)
    theirs.delora_w_norm["default"] = layer.n  # kept in float32 there
    return theirs


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_peft_without_the_copy(shape: tuple[int, int]) -> None:
    ours = site(*shape)
    now = peft_layer(ours, ours.A, ours.B, ours.lambda_)
    then = peft_layer(ours, ours.A_0, ours.B_0, torch.tensor([2.0], dtype=torch.float64))
    x = torch.randn(5, shape[0], dtype=torch.float64, requires_grad=True)
    mine, other = ours(x), now(x) - then(x) + ours.base(x)
    assert torch.allclose(mine, other, rtol=0, atol=1e-11)
    a = torch.autograd.grad(mine.square().sum(), [x, ours.A, ours.B, ours.lambda_])
    theirs = [now.delora_A["default"], now.delora_B["default"], now.delora_lambda["default"]]
    b = torch.autograd.grad(other.square().sum(), [x, *theirs])
    note(mine, other, a, b)
    assert all(g.abs().max() > 1e-3 and torch.allclose(g, h, rtol=0, atol=1e-9) for g, h in zip(a, b, strict=True))


def test_peft_starts_at_zero_b_and_jumps_with_the_first_step() -> None:
    base = linear(12, 8)
    theirs = in_peft("DeloraConfig", base, r=4, delora_lambda=2.0)
    assert not theirs.delora_B["default"].any()
    sizes = []
    for step in (1e-3, 1e-2):
        layer = twin(theirs)
        randomize([layer.delora_B["default"]], step)
        sizes.append(layer.get_delta_weight("default").norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-6)
    assert sizes[0] > 0.3
    ours = start()
    small, large = twin(ours), twin(ours)
    randomize([small.A, small.B], 1e-4)
    randomize([large.A, large.B], 1e-3)
    assert (large.delta_weight().norm() / small.delta_weight().norm()).item() == pytest.approx(10, rel=0.05)


def test_default_lambda_of_peft_bounds_the_change_at_15_times_the_weight() -> None:
    theirs = in_peft("DeloraConfig", linear(12, 8), r=4, init_weights=False)
    with torch.no_grad():  # all pieces alike, along the direction that the weights' columns are longest in
        theirs.delora_A["default"].copy_(theirs.delora_w_norm["default"].expand(4, -1))
        theirs.delora_B["default"].copy_(torch.ones(8, 4))
    size, weight = theirs.get_delta_weight("default").norm(), theirs.base_layer.weight.norm()
    assert theirs.delora_lambda["default"].item() == 15
    assert 3 * weight < size <= 15 * weight


def test_shared_memory_of_the_official_copies_leaves_nothing_to_learn() -> None:
    layer = start()
    layer.A_0, layer.B_0 = layer.A.detach(), layer.B.detach()
    randomize([layer.A, layer.B])
    assert layer.delta_weight().abs().max() < 1e-14


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"lambda_start": 0.0}, "A and B would get no gradient"),
        ({"norm": "rows"}, "allowed: columns, matrix"),
        ({"dropout": 2.0}, "below 1"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
