"""HRA: what the paper and its code say about it, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.hra import HRA, ReflectedLinear, attach

from .parity import (
    DEBERTA_BASE,
    LLAMA_7B,
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
)
from .refused import assert_refused


def site(d_in: int = 12, d_out: int = 8, rank: int = 4, *, orthogonal: bool = False) -> ReflectedLinear:
    layer = ReflectedLinear(linear(d_in, d_out).requires_grad_(False), rank, orthogonal)
    randomize([layer.V])
    return layer


def chain(layer: ReflectedLinear) -> Tensor:
    """H = H_1 H_2 .. H_r, one factor after the other."""
    eye = torch.eye(layer.base.in_features, dtype=torch.float64)
    H = eye
    for v in layer.V.T:
        u = v / v.norm()
        H = H @ (eye - 2 * torch.outer(u, u))
    return H


def gram_schmidt(V: Tensor) -> Tensor:
    columns: list[Tensor] = []
    for v in V.T:
        for u in columns:
            v = v - (u @ v) * u
        columns.append(v / v.norm())
    return torch.stack(columns, dim=1)


def test_counts() -> None:
    assert site(768, 768, 8).V.numel() == 6_144
    assert attach(build("encoder", DEBERTA_BASE, device="meta"), rank=8).count() == 663_552


@pytest.mark.parametrize(("rank", "percent"), [(8, 0.03), (16, 0.06), (32, 0.12)])
def test_shares_of_the_paper_at_llama_2_7b_on_queries_and_values(rank: int, percent: float) -> None:
    count = attach(build("decoder", LLAMA_7B, device="meta"), rank=rank, targets=["q", "v"]).count()
    assert count == 262_144 * rank
    assert round(100 * count / 6_738_415_616, 2) == percent


@pytest.mark.parametrize("rank", [2, 4, 6])
def test_start_is_the_base_model_in_equal_pairs(rank: int) -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model, rank=rank)
    assert torch.allclose(model(batch), before, rtol=0, atol=1e-12)
    for layer in adapter.sites().values():
        assert isinstance(layer, ReflectedLinear)
        assert torch.equal(layer.V[:, ::2], layer.V[:, 1::2])
        assert bool((layer.V.norm(dim=0) > 0).all())


@pytest.mark.parametrize("rank", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("shape", SHAPES)
def test_compact_form_is_the_chain(shape: tuple[int, int], rank: int) -> None:
    layer = ReflectedLinear(linear(*shape), 2, False)
    layer.V = nn.Parameter(torch.randn(shape[0], rank, dtype=torch.float64))
    U = layer.normals()
    H = chain(layer)
    eye = torch.eye(shape[0], dtype=torch.float64)
    assert torch.allclose(eye + U @ layer.middle(U) @ U.T, H, rtol=0, atol=1e-13)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    assert torch.allclose(layer(x), layer.base(x @ H.T), rtol=0, atol=1e-12)
    assert torch.allclose(layer.merged()["weight"], layer.base.weight @ H, rtol=0, atol=1e-13)


def test_middle_matrix_follows_the_recursion_of_the_paper() -> None:
    layer = site()
    U = layer.normals()
    G = torch.full((1, 1), -2.0, dtype=torch.float64)
    for i in range(1, 4):
        column = -2 * G @ (U[:, :i].T @ U[:, i : i + 1])
        bottom = torch.cat([torch.zeros(1, i, dtype=torch.float64), torch.full((1, 1), -2.0, dtype=torch.float64)], 1)
        G = torch.cat([torch.cat([G, column], 1), bottom])
    assert torch.allclose(layer.middle(U), G, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_chain_is_orthogonal_with_determinant_minus_one_to_the_r(rank: int) -> None:
    layer = site()
    layer.V = nn.Parameter(torch.randn(12, rank, dtype=torch.float64))
    H = chain(layer)
    assert torch.allclose(H.T @ H, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-13)
    assert torch.linalg.det(H).item() == pytest.approx((-1) ** rank)


def test_norms_and_angles_of_neurons_are_kept_and_the_change_has_rank_r() -> None:
    layer = site(12, 8, 4)
    W0, W = layer.base.weight, layer.merged()["weight"]
    assert torch.allclose(W @ W.T, W0 @ W0.T, rtol=0, atol=1e-13)
    assert torch.linalg.matrix_rank(W - W0) == 4


def test_reversed_chain_is_the_inverse() -> None:
    layer, other = site(), site()
    with torch.no_grad():
        other.V.copy_(layer.V.flip(1))
    assert torch.allclose(chain(layer) @ chain(other), torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-13)


def test_order_of_the_reflections_matters() -> None:
    layer, other = site(), site()
    with torch.no_grad():
        other.V.copy_(layer.V.flip(1))
        other.base.weight.copy_(layer.base.weight)
    assert not torch.allclose(layer.merged()["weight"], other.merged()["weight"], atol=1e-3)


@pytest.mark.parametrize("c", [-1.0, 0.5, 7.0])
def test_rescaling_a_column_changes_nothing(c: float) -> None:
    layer = site()
    before = layer.merged()["weight"].detach().clone()
    with torch.no_grad():
        layer.V[:, 1] *= c
    assert torch.allclose(layer.merged()["weight"], before, rtol=0, atol=1e-13)


def test_there_is_no_strength() -> None:
    with pytest.raises(AdapterError, match="HRA has no strength"):
        attach(pretrained("decoder")).strength = 0.5


def test_d_minus_one_reflections_reach_a_given_rotation() -> None:
    target = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    target[:, 0] *= torch.linalg.det(target).sign()
    remaining, normals = target.clone(), []
    for i in range(4):  # Householder's own algorithm: reflect column i of what remains onto e_i
        e = torch.eye(5, dtype=torch.float64)[i]
        v = remaining[:, i] - e
        normals.append(v)
        remaining = remaining - 2 * torch.outer(v, v @ remaining) / (v @ v)
    layer = ReflectedLinear(linear(5, 3), 2, False)
    layer.V = nn.Parameter(torch.stack(normals, dim=1))
    assert torch.allclose(layer.merged()["weight"], layer.base.weight @ target, rtol=0, atol=1e-12)


def test_penalty_is_the_paper_s_and_joins_the_loss() -> None:
    model = pretrained("decoder").double()
    adapter = attach(model, rank=4, penalty=0.3)
    assert isinstance(adapter, HRA)
    batch = model.batch(0)
    pairs = 4.0  # two equal pairs, each with a one on both sides of the diagonal
    for layer in adapter.sites().values():
        assert isinstance(layer, ReflectedLinear)
        assert layer.penalty().item() >= pairs
    randomize(adapter.parameters(), 0.1)
    total = 0.0
    for layer in adapter.sites().values():
        assert isinstance(layer, ReflectedLinear)
        U = layer.V / layer.V.norm(dim=0)
        total += (torch.eye(4) - U.T @ U).square().sum().item()
    assert adapter.loss(batch).item() == pytest.approx(model.loss(batch).item() + 0.3 * total, rel=1e-10)


def test_penalty_makes_the_normals_orthogonal() -> None:
    model = pretrained("decoder")
    adapter = attach(model, rank=4, penalty=1.0)
    randomize(adapter.parameters(), 0.1)

    def distance() -> float:
        return sum(s.penalty().item() for s in adapter.sites().values() if isinstance(s, ReflectedLinear))

    before = distance()
    adapter.fit([model.batch(i) for i in range(20)], learning_rate=1e-2)
    assert distance() < 0.5 * before


def test_strict_variant_is_gram_schmidt_of_the_columns() -> None:
    layer = site(12, 8, 3, orthogonal=True)
    U = gram_schmidt(layer.V)
    H = torch.eye(12, dtype=torch.float64) - 2 * U @ U.T
    x = torch.randn(5, 12, dtype=torch.float64)
    assert torch.allclose(layer(x), layer.base(x @ H), rtol=0, atol=1e-12)
    assert torch.allclose(layer.merged()["weight"], layer.base.weight @ H, rtol=0, atol=1e-12)
    assert layer.penalty().item() < 1e-24
    assert torch.allclose(H @ H, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-13)


def test_strict_variant_starts_by_flipping_r_inputs() -> None:
    layer = ReflectedLinear(linear(12, 8), 3, True)
    weight = layer.base.weight.clone()
    weight[:, :3] *= -1
    assert torch.allclose(layer.merged()["weight"], weight)


@pytest.mark.parametrize(
    "claim", ["mergeable", "saves", "two-faces", "detachable", "family-invariant", "device-dtype", "identity-at-init"]
)
def test_claims_hold_for_the_strict_variant(claim: str) -> None:
    hyperparameters = {"rank": 3, "orthogonal": True, "targets": ["q", "up", "down"]}
    result = measure(claim, Trial(load("hra"), "decoder", Expected(False, True, True, "none", hyperparameters)))
    assert result.status == "verified", result


def test_strict_variant_learns_in_half_precision_and_has_no_penalty() -> None:
    adapter = attach(pretrained("decoder"), rank=3, penalty=1.0, orthogonal=True)
    assert isinstance(adapter, HRA)
    assert adapter.penalty == 0.0
    assert adapter.model.to(torch.bfloat16).loss(adapter.model.batch(0)).dtype == torch.bfloat16  # type: ignore[operator]


@pytest.mark.parametrize("orthogonal", [False, True])
def test_no_matrix_of_the_input_s_width_is_computed(orthogonal: bool) -> None:
    layer = ReflectedLinear(nn.Linear(64, 48).requires_grad_(False), 4, orthogonal)
    x = torch.randn(3, 64)
    assert not {(64, 64), (48, 64), (64, 48)} & matrices_computed(lambda: layer(x))


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_peft(shape: tuple[int, int], orthogonal: bool) -> None:
    ours = site(*shape, orthogonal=orthogonal)
    theirs = in_peft("HRAConfig", ours.base, r=4, apply_GS=orthogonal)
    u = theirs.hra_u["default"]
    copy_to(u, ours.V)
    assert_same(ours, theirs, [(ours.V, u, same)], shape[0])
    theirs.merge()
    assert torch.allclose(ours.merged()["weight"], theirs.base_layer.weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3])
def test_odd_ranks_of_peft_are_not_the_base_model_at_the_start(rank: int) -> None:
    base = linear(12, 8)
    x = torch.randn(5, 12, dtype=torch.float64)
    with pytest.warns(UserWarning, match="odd"):
        theirs = in_peft("HRAConfig", base, r=rank)
    assert (theirs(x) - base(x)).abs().max() > 0.1


def test_gram_schmidt_of_peft_fails_on_its_own_paired_start() -> None:
    base = linear(12, 8)
    theirs = in_peft("HRAConfig", base, r=4, apply_GS=True)
    x = torch.randn(5, 12, dtype=torch.float64)
    assert not torch.allclose(theirs(x), base(x), atol=1e-2)


def test_a_zero_column_has_no_direction_here_and_in_peft() -> None:
    layer = site()
    theirs = in_peft("HRAConfig", layer.base, r=4)
    for parameter in (layer.V, theirs.hra_u["default"]):
        with torch.no_grad():
            parameter[:, 0] = 0
    x = torch.randn(1, 12, dtype=torch.float64)
    assert torch.isnan(layer(x)).all()
    assert torch.isnan(theirs(x)).all()


def test_official_epsilon_under_the_root_leaves_short_normals_and_no_orthogonal_chain() -> None:
    eps, eye = 6e-5, torch.eye(12, dtype=torch.float64)
    for length, departs in ((1e-3, True), (1.0, False)):
        v = torch.zeros(12, dtype=torch.float64)
        v[0] = length
        u = v / (v.square().sum() + eps).sqrt()
        H = eye - 2 * torch.outer(u, u)
        assert bool((H @ H - eye).abs().max() > 0.05) == departs
        assert ((H - eye).abs().max() < 0.04) == departs  # hardly a reflection: near the identity


def test_rounding_piles_up_in_merges_of_peft_and_not_here() -> None:
    ours = site()
    theirs = in_peft("HRAConfig", ours.base, r=4).float()
    copy_to(theirs.hra_u["default"], ours.V)
    errors = drift(theirs)
    assert 0 < errors[0] < 1e-6
    assert errors[-1] > 5 * errors[0]
    assert_no_drift(attach)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 3}, "rank is 3; it must be positive, and even"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": 0, "orthogonal": True}, "rank is 0"),
        ({"rank": 33, "orthogonal": True}, "has room for 32 orthogonal normals"),
        ({"penalty": -1.0}, "must not be negative"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
