"""VeRA: what the paper says about it, checked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reference_impls.backbones import Size, build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.vera import Projections, VeRALinear, attach

from .parity import (
    GPT2_MEDIUM,
    GPT3,
    LLAMA_7B,
    LLAMA_13B,
    ROBERTA_BASE,
    ROBERTA_LARGE,
    SHAPES,
    assert_same,
    copy_to,
    in_peft,
    linear,
    randomize,
    same,
    twin,
)
from .refused import assert_refused


def site(d_in: int = 12, d_out: int = 8, rank: int = 4, widest: tuple[int, int] = (12, 12)) -> VeRALinear:
    base = linear(d_in, d_out).requires_grad_(False)
    layer = VeRALinear(base, Projections(base.weight, rank, *widest, 0, True), 0.1, 0.0)
    randomize([layer.d, layer.b])
    return layer


@pytest.mark.parametrize(
    ("kind", "size", "rank", "count"),
    [
        ("encoder", ROBERTA_BASE, 1024, 43_008),
        ("encoder", ROBERTA_BASE, 1, 18_456),
        ("encoder", ROBERTA_BASE, 16, 18_816),
        ("encoder", ROBERTA_BASE, 256, 24_576),
        ("encoder", ROBERTA_LARGE, 256, 61_440),
        ("encoder", ROBERTA_LARGE, 1, 49_200),
        ("decoder", GPT2_MEDIUM, 1024, 98_304),
        ("decoder", replace(GPT2_MEDIUM, L=36, d=1280, f=5120, heads=20), 1024, 165_888),
        ("decoder", GPT3, 1, 2_359_488),
    ],
)
def test_counts_of_the_paper(kind: str, size: Size, rank: int, count: int) -> None:
    assert attach(build(kind, size, device="meta"), rank=rank).count() == count


@pytest.mark.parametrize(("size", "millions"), [(LLAMA_7B, 1.6), (LLAMA_13B, 2.4)])
def test_counts_of_the_paper_for_all_linear_layers_but_the_head(size: Size, millions: float) -> None:
    targets = ["q", "k", "v", "o", "gate", "up", "down"]
    assert round(attach(build("decoder", size, device="meta"), targets=targets).count() / 1e6, 1) == millions


def test_one_layer_trains_its_outputs_and_the_rank() -> None:
    layer = site(768, 768, 256, (768, 768))
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 1_024


def test_random_pair_is_kaiming_uniform_with_the_paper_s_bounds() -> None:
    pair = Projections(torch.empty(0), 64, 300, 500, 0, True)
    for matrix, fan_in in ((pair.A, 300), (pair.B, 64)):
        bound = math.sqrt(6 / fan_in)
        assert 0.99 * bound < matrix.abs().max() <= bound
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_vectors_start_at_a_tenth_and_zero() -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model, rank=8)
    assert torch.equal(model(batch), before)
    values = {name.rpartition(".")[2]: p for name, p in adapter.named_parameters()}
    assert bool((values["d"] == 0.1).all())
    assert not values["b"].any()


def test_zero_b_is_the_base_whatever_d() -> None:
    layer = site()
    with torch.no_grad():
        layer.b.zero_()
    assert not layer.delta_weight().any()


@pytest.mark.parametrize("c", [-1.0, 0.5, 2.0])
def test_change_is_linear_in_each_vector_and_quadratic_in_both(c: float) -> None:
    layer = site()
    change = layer.delta_weight()

    def scaled(*names: str) -> torch.Tensor:
        other = twin(layer)
        with torch.no_grad():
            for name in names:
                getattr(other, name).mul_(c)
        return other.delta_weight()

    assert torch.allclose(scaled("b"), c * change, rtol=0, atol=1e-14)
    assert torch.allclose(scaled("d"), c * change, rtol=0, atol=1e-14)
    assert torch.allclose(scaled("b", "d"), c * c * change, rtol=0, atol=1e-14)


def test_rank_of_the_change_is_r() -> None:
    values = torch.linalg.svdvals(site(rank=4).delta_weight())
    assert values[3] > 1e-3
    assert values[4] < 1e-12


def test_one_pair_serves_layers_of_every_size() -> None:
    model = pretrained("decoder").double()
    adapter = attach(model, rank=8, targets=["q", "up", "down"])
    pair = adapter.sites()["vera"]
    assert isinstance(pair, Projections)
    assert pair.A.shape == (8, 64)
    assert pair.B.shape == (64, 8)
    down = adapter.sites()["stack.blocks.0.mlp.down"]
    assert isinstance(down, VeRALinear)
    A, B = down.pair()
    assert torch.equal(A, pair.A)
    assert torch.equal(B, pair.B[:32])
    x = torch.randn(3, 64, dtype=torch.float64)
    randomize([down.b])
    expected = down.base(x) + down.b * (pair.B[:32] @ (down.d[:, None] * (pair.A @ x.T))).T
    assert torch.allclose(down(x), expected, rtol=0, atol=1e-12)


def test_pair_is_saved_once_and_never_trained() -> None:
    adapter = attach(pretrained("decoder"), rank=8)
    saved = adapter.state_dict()
    assert sorted(name for name in saved if name.endswith((".A", ".B"))) == ["vera.A", "vera.B"]
    assert all(name.endswith((".d", ".b")) for name, _ in adapter.named_parameters())


def test_pair_left_out_comes_back_from_the_seed(tmp_path: Path) -> None:
    model = pretrained("decoder")
    adapter = attach(model, rank=8, seed=3, save_projection=False)
    randomize(adapter.parameters())
    size = adapter.save(tmp_path / "learned")
    assert size < attach(pretrained("decoder"), rank=8).save(tmp_path / "whole")
    other = pretrained("decoder")
    torch.manual_seed(99)
    attach(other, rank=8, seed=3, save_projection=False).load(tmp_path / "learned")
    batch = model.batch(0)
    assert torch.equal(model(batch), other(batch))
    wrong = pretrained("decoder")
    attach(wrong, rank=8, seed=4, save_projection=False).load(tmp_path / "learned")
    assert not torch.equal(model(batch), wrong(batch))


@pytest.mark.parametrize("claim", ["saves", "mergeable", "two-faces", "detachable", "device-dtype"])
def test_claims_hold_for_layers_of_different_size(claim: str) -> None:
    hyperparameters = {"rank": 16, "targets": ["q", "up", "down"], "save_projection": False}
    result = measure(claim, Trial(load("vera"), "decoder", Expected(True, True, True, "linear", hyperparameters)))
    assert result.status == "verified", result


def test_a_copied_model_has_its_own_pair() -> None:
    model = pretrained("decoder")
    adapter = attach(model, rank=8)
    randomize(adapter.parameters())
    other = twin(model)
    batch = model.batch(0)
    before = other(batch)
    with torch.no_grad():
        model.get_buffer("vera.A").zero_()
    assert torch.equal(other(batch), before)
    other.double()
    other(batch)


def test_detach_removes_the_pair() -> None:
    model = pretrained("decoder")
    attach(model, rank=8).detach()
    assert not hasattr(model, "vera")


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_peft(shape: tuple[int, int]) -> None:
    ours = site(*shape, widest=shape)
    theirs = in_peft("VeraConfig", ours.base, r=4, projection_prng_key=0)
    b, d = theirs.vera_lambda_b["default"], theirs.vera_lambda_d["default"]
    assert theirs.vera_A["default"].shape == (4, shape[0])
    A, B = ours.pair()
    theirs.vera_A["default"], theirs.vera_B["default"] = A, B
    copy_to(b, ours.b)
    copy_to(d, ours.d)
    assert_same(ours, theirs, [(ours.b, b, same), (ours.d, d, same)], shape[0])
    assert torch.allclose(theirs.get_delta_weight("default"), ours.delta_weight(), rtol=0, atol=1e-13)


def test_peft_starts_alike() -> None:
    theirs = in_peft("VeraConfig", linear(12, 8), r=4)
    assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == 12
    assert bool((theirs.vera_lambda_d["default"] == torch.tensor(0.1).double()).all())
    assert not theirs.vera_lambda_b["default"].any()
    assert theirs.vera_A["default"].abs().max() <= math.sqrt(6 / 12)
    assert theirs.vera_B["default"].abs().max() <= math.sqrt(6 / 4)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_draws_the_pair_that_peft_draws(seed: int) -> None:
    theirs = in_peft("VeraConfig", linear(12, 8), r=4, projection_prng_key=seed)
    pair = Projections(torch.empty(0, dtype=torch.float64), 4, 12, 8, seed, True)
    assert torch.equal(theirs.vera_A["default"].double(), pair.A)
    assert torch.equal(theirs.vera_B["default"].double(), pair.B)


def test_a_second_adapter_of_peft_cannot_be_wider_than_the_first() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(pretrained("decoder"), peft.VeraConfig(r=4, target_modules=["q"]))
    with pytest.raises(ValueError, match="vera_A"):
        model.add_adapter("second", peft.VeraConfig(r=4, target_modules=["down"]))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"d_initial": 0.0}, "neither would ever get a gradient"),
        ({"dropout": -0.1}, "at least 0 and below 1"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
