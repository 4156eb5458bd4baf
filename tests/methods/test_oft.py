"""OFT: what the paper and its code say about it, checked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.backbones import pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.oft import RotatedLinear, attach, cayley, skew

from .parity import (
    SHAPES,
    assert_no_drift,
    assert_same,
    copy_to,
    drift,
    in_peft,
    linear,
    matrices_computed,
    note,
    randomize,
    twin,
)
from .refused import assert_refused


def site(
    d_in: int = 12, d_out: int = 8, blocks: int = 3, *, share: bool = False, rescale: bool = False, spread: float = 0.5
) -> RotatedLinear:
    layer = RotatedLinear(linear(d_in, d_out).requires_grad_(False), blocks, share, rescale)
    randomize([p for p in layer.parameters() if p.requires_grad], spread)
    return layer


def whole(layer: RotatedLinear) -> Tensor:
    """R, (d_in, d_in)."""
    return torch.block_diag(*layer.rotation().expand(layer.blocks, -1, -1))


@pytest.mark.parametrize(
    ("d_in", "blocks", "share", "count"),
    [(128, 8, False, 960), (768, 24, False, 11_904), (12, 3, False, 18), (12, 3, True, 6), (12, 1, False, 66)],
)
def test_counts(d_in: int, blocks: int, share: bool, count: int) -> None:
    assert RotatedLinear(nn.Linear(d_in, 8), blocks, share, False).q.numel() == count


def test_fewer_numbers_than_lora_as_the_paper_says() -> None:
    assert RotatedLinear(nn.Linear(128, 128), 8, False, False).q.numel() == 960 < 8 * (128 + 128) == 2048


def test_start_is_the_base_model() -> None:
    for keywords in ({}, {"share": True}, {"rescale": True}):
        model = pretrained("decoder").double()
        batch = model.batch(0)
        before = model(batch)
        attach(model, **keywords)  # type: ignore[arg-type]
        assert torch.allclose(model(batch), before, rtol=0, atol=1e-13)


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_cayley_is_special_orthogonal_however_large(spread: float) -> None:
    Q = skew(spread * torch.randn(5, 10, dtype=torch.float64), 5)
    assert torch.equal(Q, -Q.mT)
    R = cayley(Q)
    eye = torch.eye(5, dtype=torch.float64)
    assert torch.allclose(R.mT @ R, eye.expand(5, 5, 5), rtol=0, atol=1e-12)
    assert torch.allclose(torch.linalg.det(R), torch.ones(5, dtype=torch.float64))
    assert torch.allclose(R, (eye + Q) @ torch.linalg.inv(eye - Q), rtol=0, atol=1e-11)
    assert torch.allclose(cayley(-Q), R.mT, rtol=0, atol=1e-12)
    # I + R = 2 (I - Q)^-1 can be inverted: no vector is turned into its opposite, so no reflection and no half turn.
    assert torch.allclose(eye + R, 2 * torch.linalg.inv(eye - Q), rtol=0, atol=1e-11)


def test_blocks_of_one_input_cannot_turn_and_have_nothing_to_train() -> None:
    layer = RotatedLinear(linear(12, 8), 12, False, False)
    assert layer.q.numel() == 0
    x = torch.randn(3, 12, dtype=torch.float64)
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_input_is_rotated_and_the_bias_is_not(shape: tuple[int, int], share: bool) -> None:
    layer = site(*shape, blocks=2, share=share)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    R = whole(layer)
    assert torch.allclose(layer(x), layer.base(x @ R), rtol=0, atol=1e-12)
    assert torch.allclose(layer.merged()["weight"], layer.base.weight @ R.T, rtol=0, atol=1e-13)
    assert torch.allclose(layer(torch.zeros_like(x))[0, 0], layer.base.bias)


def test_inner_products_of_neurons_are_kept_and_the_change_has_full_rank() -> None:
    layer = site(12, 8)
    V0, V = layer.base.weight, layer.merged()["weight"]
    assert torch.allclose(V @ V.T, V0 @ V0.T, rtol=0, atol=1e-13)
    assert not torch.allclose(V.T @ V, V0.T @ V0, atol=1e-2)
    assert torch.linalg.matrix_rank(V - V0) == 8


def test_one_block_reaches_every_rotation_without_half_turns() -> None:
    wanted = torch.linalg.matrix_exp(skew(torch.randn(15, dtype=torch.float64), 6))
    eye = torch.eye(6, dtype=torch.float64)
    Q = torch.linalg.solve(wanted + eye, wanted - eye)
    rows, columns = torch.triu_indices(6, 6, 1)
    layer = RotatedLinear(linear(6, 4), 1, False, False)
    copy_to(layer.q, Q[rows, columns])
    assert torch.allclose(layer.rotation()[0], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("c", [-1.0, 0.0, 0.5, 3.0])
def test_strength_scales_q_and_stays_orthogonal(c: float) -> None:
    layer = site(rescale=True)
    R = layer.rotation()
    layer.strength = c
    turned = layer.rotation()
    assert torch.allclose(turned.mT @ turned, torch.eye(4, dtype=torch.float64).expand(3, 4, 4), rtol=0, atol=1e-12)
    assert torch.allclose(turned, cayley(c * skew(layer.q, 4)))
    if c == -1:
        assert torch.allclose(turned, R.mT, rtol=0, atol=1e-13)
        assert layer.t is not None
        assert torch.allclose(layer.merged()["weight"].norm(dim=1), layer.base.weight.norm(dim=1) / layer.t.exp())
    if c == 0:
        assert torch.equal(layer.merged()["weight"], layer.base.weight)


def test_rescaling_is_one_positive_factor_a_neuron() -> None:
    layer = site(rescale=True)
    plain = twin(layer)
    plain.t = None
    assert layer.t is not None
    x = torch.randn(5, 12, dtype=torch.float64)
    bias = layer.base.bias
    assert torch.allclose(layer(x), layer.t.exp() * (plain(x) - bias) + bias, rtol=0, atol=1e-12)
    lengths = layer.merged()["weight"].norm(dim=1) / layer.base.weight.norm(dim=1)
    assert torch.allclose(lengths, layer.t.exp())


def test_factors_can_be_fitted_after_the_rotation() -> None:
    model = pretrained("decoder").double()
    adapter = attach(model, rescale=True)
    randomize(adapter.parameters(), 0.1)
    layers = [site for site in adapter.sites().values() if isinstance(site, RotatedLinear)]
    for layer in layers:
        layer.q.requires_grad_(False)
    turned = [layer.rotation() for layer in layers]
    assert adapter.count() == 3 * 4 * 32
    losses = adapter.fit([model.batch(0)] * 10)
    assert losses[-1] < losses[0]
    assert all(torch.equal(layer.rotation(), R) for layer, R in zip(layers, turned, strict=True))


@pytest.mark.parametrize(
    "claim", ["mergeable", "saves", "two-faces", "detachable", "device-dtype", "trained-tensors-learn"]
)
@pytest.mark.parametrize(
    "extra", [{"share": True}, {"rescale": True}, {"coft": True, "eps": 0.05}], ids=["share", "rescale", "coft"]
)
def test_claims_hold_for_the_variants(claim: str, extra: dict[str, Any]) -> None:
    result = measure(claim, Trial(load("oft"), "decoder", Expected(True, True, True, "nonlinear", extra)))
    assert result.status == "verified", result


def test_coft_keeps_every_rotation_near_the_identity() -> None:
    model = pretrained("decoder")
    adapter = attach(model, blocks=4, coft=True, eps=1e-4)
    adapter.fit([model.batch(i) for i in range(8)], learning_rate=1e-2)
    radius = 1e-4 * 8**2 / 2
    for layer in adapter.sites().values():
        assert isinstance(layer, RotatedLinear)
        Q, R = skew(layer.q, 8), layer.rotation()
        lengths = Q.flatten(1).norm(dim=1)
        assert bool((lengths <= radius * (1 + 1e-5)).all())
        assert bool((lengths > 0.99 * radius).any())
        assert bool(((R - torch.eye(8)).flatten(1).norm(dim=1) <= 2 * radius * (1 + 1e-5)).all())


def test_coft_leaves_what_is_inside_the_ball_alone() -> None:
    model = pretrained("decoder")
    adapter = attach(model, coft=True, eps=1e-2)
    randomize(adapter.parameters(), 1e-4)
    before = [p.detach().clone() for p in adapter.parameters()]
    adapter.after_step()
    assert all(torch.equal(p, b) for p, b in zip(adapter.parameters(), before, strict=True))
    free = attach(pretrained("decoder"))
    randomize(free.parameters(), 1.0)
    before = [p.detach().clone() for p in free.parameters()]
    free.after_step()
    assert all(torch.equal(p, b) for p, b in zip(free.parameters(), before, strict=True))


def test_official_halved_matrix_takes_the_same_adam_steps() -> None:
    layer = site(12, 8, spread=0.1)
    P = torch.zeros(3, 4, 4, dtype=torch.float64)
    rows, columns = torch.triu_indices(4, 4, 1)
    with torch.no_grad():
        P[:, rows, columns] = 2 * layer.q
    P.requires_grad_()
    x, target = torch.randn(20, 12, dtype=torch.float64), torch.randn(20, 8, dtype=torch.float64)

    def official() -> Tensor:
        R = torch.block_diag(*cayley((P - P.mT) / 2))
        return layer.base(x @ R)

    one = torch.optim.Adam([layer.q], lr=1e-2, eps=1e-16)
    two = torch.optim.Adam([P], lr=1e-2, eps=1e-16)
    for _ in range(5):
        for optimizer, output in ((one, layer(x)), (two, official())):
            optimizer.zero_grad()
            (output - target).square().sum().backward()
            optimizer.step()
    assert torch.allclose(((P - P.mT) / 2)[:, rows, columns], layer.q, rtol=0, atol=1e-9)


def test_official_paths_for_shared_and_for_batched_blocks_are_inverse_rotations() -> None:
    P = torch.randn(5, 5, dtype=torch.float64)
    skewed, eye = (P - P.T) / 2, torch.eye(5, dtype=torch.float64)
    shared = (eye + skewed) @ torch.linalg.inv(eye - skewed)
    batched = (eye - skewed) @ torch.linalg.inv(eye + skewed)
    assert torch.allclose(shared @ batched, eye, rtol=0, atol=1e-12)
    assert torch.allclose(cayley(skewed), shared, rtol=0, atol=1e-12)


def test_no_matrix_of_the_input_s_width_is_computed() -> None:
    layer = RotatedLinear(nn.Linear(64, 48).requires_grad_(False), 8, False, False)
    x = torch.randn(3, 64)
    assert not {(64, 64), (48, 64), (64, 48)} & matrices_computed(lambda: layer(x))


def negated(gradient: Tensor) -> Tensor:
    return -gradient


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_cayley_of_peft_is_the_inverse_rotation_of_the_same_entries(shape: tuple[int, int], share: bool) -> None:
    ours = site(*shape, blocks=2, share=share)
    size = shape[0] // 2
    theirs = in_peft("OFTConfig", ours.base, r=0, oft_block_size=size, use_cayley_neumann=False, block_share=share)
    weight = theirs.oft_R["default"].weight
    copy_to(weight, -ours.q)
    assert weight.numel() == ours.q.numel()
    assert_same(ours, theirs, [(ours.q, weight, negated)], shape[0])


def test_series_of_peft_s_default_is_not_orthogonal() -> None:
    ours = site(12, 12, spread=0.3)
    theirs = in_peft("OFTConfig", ours.base, r=0, oft_block_size=4)
    copy_to(theirs.oft_R["default"].weight, -ours.q)
    kept = torch.linalg.svdvals(ours.base.weight)
    theirs.merge()
    assert (torch.linalg.svdvals(theirs.base_layer.weight) - kept).abs().max() > 1e-2
    assert (torch.linalg.svdvals(ours.merged()["weight"]) - kept).abs().max() < 1e-12


def test_peft_does_not_halve_as_the_official_code_does() -> None:
    P = torch.randn(3, 4, 4, dtype=torch.float64)
    rows, columns = torch.triu_indices(4, 4, 1)
    official = cayley(-(P - P.mT) / 2)
    theirs = in_peft("OFTConfig", linear(12, 8), r=0, oft_block_size=4, use_cayley_neumann=False).oft_R["default"]
    upper = torch.triu(P, 1)
    copy_to(theirs.weight, (upper - upper.mT)[:, rows, columns])
    R = theirs.get_weight().view(3, 4, 3, 4)[range(3), :, range(3)]
    assert torch.allclose(R, cayley(-(upper - upper.mT)), rtol=0, atol=1e-12)
    assert not torch.allclose(R, cayley(-(upper - upper.mT) / 2), atol=1e-2)
    assert not torch.allclose(R, official, atol=1e-2)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_diag_oft_of_lycoris_turns_outputs(shape: tuple[int, int], rescale: bool) -> None:
    """It is this method on the transposed weight, with free matrices P, Q = P - P^T, and in float32 alone."""
    functional = pytest.importorskip("lycoris.functional.diag_oft")
    d_in, d_out = shape
    ours = site(d_out, d_in, blocks=2, spread=0.3)
    blocks = torch.triu(skew(-ours.q, d_out // 2)).detach().float().requires_grad_()
    factor = torch.full((d_out, 1), 1.5) if rescale else None
    weight = ours.base.weight.T.float()  # (d_out, d_in)
    theirs = weight + functional.diff_weight(weight, blocks, factor, backend="torch")
    mine = ours.merged()["weight"].T * (1.5 if rescale else 1.0)
    assert torch.allclose(mine, theirs.to(mine), rtol=0, atol=1e-5)
    (a,) = torch.autograd.grad(mine.square()[0].sum(), ours.q)
    (b,) = torch.autograd.grad(theirs.square()[0].sum(), blocks)
    rows, columns = torch.triu_indices(d_out // 2, d_out // 2, 1)
    note(mine, theirs.to(mine), [a], [-b[:, rows, columns].to(a)])
    assert torch.allclose(a, -b[:, rows, columns].to(a), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("r", "size"), [(2, 4), (0, 0)])
def test_peft_takes_a_number_of_blocks_or_their_size_and_not_both(r: int, size: int) -> None:
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match="oft_block_size"):
        peft.OFTConfig(r=r, oft_block_size=size)


def test_coft_of_peft_leaves_the_size_of_the_blocks_out_of_the_radius() -> None:
    layer = site(12, 8)
    theirs = in_peft("OFTConfig", layer.base, r=0, oft_block_size=4, use_cayley_neumann=False, coft=True, eps=1e-3)
    weight = theirs.oft_R["default"].weight
    copy_to(weight, layer.q)
    theirs(torch.randn(1, 12, dtype=torch.float64))
    lengths = skew(weight, 4).flatten(1).norm(dim=1)
    radius = 1e-3 * 4**2 / math.sqrt(3)  # the official code's
    assert torch.allclose(lengths, torch.full_like(lengths, radius / 4**2), rtol=1e-6)
    adapter = attach(nn.ModuleDict({"q": layer.base}), blocks=3, coft=True, eps=1e-3, targets=["q"])
    ours = adapter.sites()["q"]
    assert isinstance(ours, RotatedLinear)
    copy_to(ours.q, layer.q)
    adapter.after_step()
    assert torch.allclose(skew(ours.q, 4).flatten(1).norm(dim=1), torch.full_like(lengths, radius), rtol=1e-12)


def test_constraint_of_lycoris_is_on_all_blocks_together() -> None:
    functional = pytest.importorskip("lycoris.functional.diag_oft")
    blocks = torch.randn(3, 4, 4)
    R = functional.get_r(blocks, constraint=0.1)
    eye = torch.eye(4)
    Q = torch.linalg.solve(R + eye, R - eye)
    assert Q.norm().item() == pytest.approx(0.1, rel=1e-4)
    assert Q[0].norm() < 0.09


def test_rounding_piles_up_in_merges_of_peft_and_not_here() -> None:
    ours = site(12, 8)
    theirs = in_peft("OFTConfig", ours.base, r=0, oft_block_size=4, use_cayley_neumann=False).float()
    copy_to(theirs.oft_R["default"].weight, -ours.q)
    errors = drift(theirs)
    assert 0 < errors[0] < 1e-6
    assert errors[-1] > 3 * errors[0]
    assert_no_drift(attach)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"blocks": 5},
            r"blocks is 5; for the 32 inputs of stack.blocks.0.attention.q it must be one of \[1, 2, 4, 8, 16\]",
        ),
        ({"blocks": 32}, "blocks is 32"),
        ({"blocks": 0}, "blocks is 0"),
        ({"coft": True, "eps": 0.0}, "COFT needs a positive radius"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)


def test_angle_grows_with_the_entries() -> None:
    angle = 0.7
    layer = RotatedLinear(linear(2, 2), 1, False, False)
    copy_to(layer.q, torch.tensor([[-math.tan(angle / 2)]]))
    R = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    assert torch.allclose(layer.rotation()[0], R, rtol=0, atol=1e-7)
