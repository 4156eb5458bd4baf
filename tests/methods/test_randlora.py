"""RandLoRA: what the paper and its code say about it, checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.backbones import Size, build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.randlora import Bases, RandLoRALinear, attach

from .parity import (
    ROBERTA_BASE,
    ROBERTA_LARGE,
    SHAPES,
    assert_no_drift,
    assert_same,
    copy_to,
    drift,
    in_peft,
    linear,
    matrices_computed,
    randomize,
    twin,
)
from .refused import assert_refused

UNEVEN = [*SHAPES, (10, 7), (7, 10)]


def site(d_in: int = 12, d_out: int = 8, rank: int = 3, largest: tuple[int, int] | None = None) -> RandLoRALinear:
    base = linear(d_in, d_out).requires_grad_(False)
    smaller, larger = largest or (min(d_in, d_out), max(d_in, d_out))
    shared = Bases(base.weight, rank, smaller, larger, 0, None, True)
    layer = RandLoRALinear(base, shared, 2.0 * rank, 0.0)
    randomize([layer.lambda_, layer.g])
    return layer


def equation_4(layer: RandLoRALinear) -> Tensor:
    """The sum of the paper, term by term, with its diagonal matrices; transposed where outputs are fewer."""
    A, B = layer.bases()
    terms = [B[j].T @ torch.diag(layer.lambda_[j]) @ A @ torch.diag(layer.g[j]) for j in range(len(B))]
    total = torch.stack(terms).sum(0)
    return total.T if layer.base.in_features > layer.base.out_features else total


@pytest.mark.parametrize(
    ("rank", "count"),
    [(6, 99_072), (32, 19_200), (768, 1_536), (100, 6_944)],  # the last: eight terms, though 768 / 100 is less
)
def test_counts_of_one_square_layer_fall_as_the_rank_of_the_bases_grows(rank: int, count: int) -> None:
    model = nn.ModuleDict({"q": nn.Linear(768, 768, device="meta")})
    assert attach(model, rank=rank, targets=["q"]).count() == count


@pytest.mark.parametrize(("size", "rank", "millions"), [(ROBERTA_BASE, 64, 0.7), (ROBERTA_LARGE, 100, 1.8)])
def test_counts_of_the_paper_are_those_of_all_linear_layers(size: Size, rank: int, millions: float) -> None:
    assert round(attach(build("encoder", size, device="meta"), rank=rank).count() / 1e6, 1) == millions


def test_share_of_the_paper_at_llama_3_8b_whose_keys_and_values_are_narrow() -> None:
    """With queries, keys, values, up and down projections, as in DoRA's scripts, which the paper follows."""
    shapes = {"q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "up": (4096, 14336), "down": (14336, 4096)}
    block = nn.ModuleDict({name: nn.Linear(*shape, device="meta") for name, shape in shapes.items()})
    assert round(100 * 32 * attach(block, rank=60, targets=list(shapes)).count() / 8_030_261_248, 2) == 0.36


def test_full_lora_of_the_same_rank_trains_more_than_the_weight() -> None:
    """n LoRA pairs of rank r cost d (D + d) numbers; the scalings d^2 / r + d."""
    layer = site(12, 12, 3)
    assert sum(p.numel() for p in (layer.lambda_, layer.g)) == 12 * 12 // 3 + 12 < 12 * (12 + 12)


@pytest.mark.parametrize("rank", [1, 3, 4, 7])
@pytest.mark.parametrize("shape", UNEVEN)
def test_fast_form_and_definition_are_equation_4(shape: tuple[int, int], rank: int) -> None:
    layer = site(*shape, rank)
    n = math.ceil(min(shape) / rank)
    assert layer.lambda_.shape == (n, rank)
    assert layer.g.shape == (n, min(shape))
    expected = 2.0 / math.sqrt(n) * equation_4(layer)
    assert torch.allclose(layer.delta_weight(), expected, rtol=0, atol=1e-12)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    assert torch.allclose(layer.delta(x), x @ expected.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_change_has_full_rank_whatever_the_rank_of_the_bases(shape: tuple[int, int], rank: int) -> None:
    assert torch.linalg.matrix_rank(site(*shape, rank).delta_weight()) == min(shape)


def test_fewer_terms_would_leave_the_rank_lower() -> None:
    layer = site(12, 12, 3)
    with torch.no_grad():
        layer.lambda_[2:] = 0
    assert torch.linalg.matrix_rank(layer.delta_weight()) == 6


@pytest.mark.parametrize("c", [-1.0, 0.5, 2.0])
def test_change_is_linear_in_either_scaling_and_quadratic_in_both(c: float) -> None:
    layer = site()
    change = layer.delta_weight()

    def scaled(*names: str) -> Tensor:
        other = twin(layer)
        with torch.no_grad():
            for name in names:
                getattr(other, name).mul_(c)
        return other.delta_weight()

    assert torch.allclose(scaled("lambda_"), c * change, rtol=0, atol=1e-12)
    assert torch.allclose(scaled("g"), c * change, rtol=0, atol=1e-12)
    assert torch.allclose(scaled("lambda_", "g"), c * c * change, rtol=0, atol=1e-12)


def test_start_is_the_base_model() -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model, rank=6)
    assert torch.equal(model(batch), before)
    layer = adapter.sites()["stack.blocks.0.mlp.up"]
    assert isinstance(layer, RandLoRALinear)
    assert not layer.lambda_.any()
    assert bool((layer.g == 1 / 32).all())


def test_scale_is_divided_by_the_root_of_the_number_of_terms() -> None:
    assert site(12, 12, 3).scale == pytest.approx(2 / math.sqrt(4))
    assert site(12, 12, 12).scale == 2


def test_size_of_the_change_does_not_depend_on_the_number_of_terms() -> None:
    sizes = {}
    for rank in (2, 16, 64):
        base = nn.Linear(64, 64).double()
        layer = RandLoRALinear(base, Bases(base.weight, rank, 64, 64, 0, None, True), 2.0 * rank, 0.0)
        randomize([layer.lambda_], 1.0)
        sizes[rank] = layer.delta_weight().norm().item() / math.sqrt(rank)
    assert max(sizes.values()) < 1.5 * min(sizes.values())


def test_dense_bases_are_uniform_with_unit_deviation() -> None:
    bases = Bases(torch.empty(0), 16, 100, 150, 0, None, True)
    assert bases.A.shape == (16, 100)
    assert bases.B.shape == (7, 16, 150)
    for base in (bases.A, bases.B):
        assert base.std().item() == pytest.approx(1.0, abs=1e-5)
        assert 0.98 * math.sqrt(3) < base.abs().max() < 1.05 * math.sqrt(3)
        assert base.mean().abs() < 0.1


@pytest.mark.parametrize("sparsity", [2.0, 6.0, 30.0])
def test_sparse_bases_have_ones_of_either_sign_with_the_paper_s_probability(sparsity: float) -> None:
    bases = Bases(torch.empty(0), 32, 200, 300, 0, sparsity, True)
    for base in (bases.A, bases.B):
        assert base.std().item() == pytest.approx(1.0, abs=1e-5)
        low, *zero, high = base.unique().tolist()
        assert low == pytest.approx(-high)
        assert zero in ([0.0], [])
        for value in (low, high):
            assert (base == value).double().mean().item() == pytest.approx(1 / sparsity, rel=0.15)


@pytest.mark.parametrize("sparsity", [2.0, 3.0])
def test_sparse_bases_can_still_give_full_rank(sparsity: float) -> None:
    base = linear(24, 24)
    layer = RandLoRALinear(base, Bases(base.weight, 6, 24, 24, 0, sparsity, True), 12.0, 0.0)
    randomize([layer.lambda_, layer.g])
    assert torch.linalg.matrix_rank(layer.delta_weight()) == 24


def test_sparsest_shared_a_is_blind_to_most_inputs() -> None:
    """A column of A is zero with probability (1 - 2 / s)^r, and no scaling brings it back: rank is lost."""
    base = linear(192, 192)
    layer = RandLoRALinear(base, Bases(base.weight, 6, 192, 192, 0, math.sqrt(192), True), 12.0, 0.0)
    randomize([layer.lambda_, layer.g])
    blind = int((layer.bases()[0] == 0).all(dim=0).sum())
    assert blind / 192 == pytest.approx((1 - 2 / math.sqrt(192)) ** 6, rel=0.2)
    assert int((layer.delta_weight() == 0).all(dim=0).sum()) == blind
    assert torch.linalg.matrix_rank(layer.delta_weight()) <= 192 - blind
    theirs = in_peft("RandLoraConfig", linear(768, 768), r=6, very_sparse=True)
    zero = (theirs.randlora_A["default"] == 0).all(dim=0).double().mean().item()
    assert zero == pytest.approx((1 - 1 / math.sqrt(768)) ** 6, rel=0.05)
    assert zero > 0.7


def test_one_set_of_bases_serves_layers_of_every_size() -> None:
    model = pretrained("decoder").double()
    adapter = attach(model, rank=5, targets=["q", "up", "down"])
    bases = adapter.sites()["randlora"]
    assert isinstance(bases, Bases)
    assert bases.A.shape == (5, 32)
    assert bases.B.shape == (7, 5, 64)
    randomize(adapter.parameters())
    for name in ("attention.q", "mlp.up", "mlp.down"):
        layer = adapter.sites()[f"stack.blocks.0.{name}"]
        assert isinstance(layer, RandLoRALinear)
        A, B = layer.bases()
        assert torch.equal(A, bases.A[:, :32])
        assert torch.equal(B, bases.B[:, :, : max(layer.base.weight.shape)])
        assert torch.allclose(layer.delta_weight(), layer.scale * equation_4(layer), rtol=0, atol=1e-12)


def test_a_smaller_layer_takes_fewer_terms_of_the_shared_bases() -> None:
    layer = site(12, 8, 3, largest=(20, 30))
    A, B = layer.bases()
    assert torch.equal(A, layer._shared[0].A[:, :8])
    assert torch.equal(B, layer._shared[0].B[:3, :, :12])
    assert B.shape == (3, 3, 12)
    assert layer.scale == pytest.approx(2 / math.sqrt(3))
    x = torch.randn(5, 12, dtype=torch.float64)
    assert torch.allclose(layer.delta(x), x @ layer.delta_weight().T, rtol=0, atol=1e-12)


def test_bases_are_as_large_as_the_largest_of_the_smaller_and_of_the_larger_sides() -> None:
    model = nn.ModuleDict({"q": nn.Linear(12, 12), "up": nn.Linear(8, 30)})
    bases = attach(model, rank=5, targets=["q", "up"]).sites()["randlora"]
    assert isinstance(bases, Bases)
    assert bases.A.shape == (5, 12)
    assert bases.B.shape == (3, 5, 30)


def test_bases_are_saved_once_and_never_trained() -> None:
    adapter = attach(pretrained("decoder"), rank=8)
    assert sorted(n for n in adapter.state_dict() if n.endswith((".A", ".B"))) == ["randlora.A", "randlora.B"]
    assert all(name.endswith((".lambda_", ".g")) for name, _ in adapter.named_parameters())


def test_bases_left_out_come_back_from_the_seed(tmp_path: Path) -> None:
    model = pretrained("decoder")
    adapter = attach(model, rank=8, seed=3, save_bases=False)
    randomize(adapter.parameters())
    adapter.save(tmp_path / "small")
    batch = model.batch(0)
    other = pretrained("decoder")
    attach(other, rank=8, seed=3, save_bases=False).load(tmp_path / "small")
    assert torch.equal(model(batch), other(batch))
    third = pretrained("decoder")
    attach(third, rank=8, seed=4, save_bases=False).load(tmp_path / "small")
    assert not torch.allclose(model(batch), third(batch), atol=1e-3)


def test_dropout_acts_on_the_input_in_training_alone() -> None:
    layer = site()
    layer.dropout.p = 0.5
    x = torch.ones(200, 12, dtype=torch.float64)
    torch.manual_seed(0)
    kept = layer.dropout(x)
    torch.manual_seed(0)
    assert torch.allclose(layer(x), layer.base(x) + kept @ layer.delta_weight().T, rtol=0, atol=1e-12)
    layer.eval()
    assert torch.allclose(layer(x), layer.base(x) + x @ layer.delta_weight().T, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "claim",
    ["mergeable", "strength", "two-faces", "saves", "device-dtype", "trained-tensors-learn", "identity-at-init"],
)
def test_claims_hold_with_sparse_bases(claim: str) -> None:
    hyperparameters = {"rank": 6, "sparsity": 3.0, "targets": ["q", "up", "down"]}
    result = measure(claim, Trial(load("randlora"), "decoder", Expected(True, True, True, "linear", hyperparameters)))
    assert result.status == "verified", result


@pytest.mark.parametrize("shape", [(64, 48), (48, 64)])
def test_change_is_not_formed_in_the_forward_pass(shape: tuple[int, int]) -> None:
    base = nn.Linear(*shape).requires_grad_(False)
    layer = RandLoRALinear(base, Bases(base.weight, 5, 48, 64, 0, None, True), 10.0, 0.0)
    x = torch.randn(3, shape[0])
    assert not {(64, 64), (48, 64), (64, 48)} & matrices_computed(lambda: layer(x))


@pytest.mark.parametrize("rank", [2, 3, 4, 7])
@pytest.mark.parametrize("shape", UNEVEN)
def test_equals_peft_up_to_the_order_of_random_columns_and_the_root(shape: tuple[int, int], rank: int) -> None:
    """Column k n + j of their stack of B_j meets row j of lambda's column k: a relabeling of random columns."""
    ours = site(*shape, rank)
    n = len(ours.g)
    alpha = 6.0
    ours.scale = alpha / rank  # theirs lacks the root
    theirs = in_peft("RandLoraConfig", ours.base, r=rank, randlora_alpha=alpha, projection_prng_key=0)
    A, B = ours.bases()
    assert theirs.randlora_A["default"].shape == (rank, 1, min(shape))
    assert theirs.randlora_B["default"].shape == (max(shape), n, rank)
    theirs.randlora_A["default"] = A[:, None]
    theirs.randlora_B["default"] = B.permute(2, 1, 0).reshape(max(shape), n, rank)
    lambda_, g = theirs.randlora_lambda["default"], theirs.randlora_gamma["default"]
    copy_to(lambda_, ours.lambda_.T)
    copy_to(g, ours.g)
    assert_same(ours, theirs, [(ours.lambda_, lambda_, torch.t), (ours.g, g, lambda t: t)], shape[0])
    assert torch.allclose(theirs.get_delta_weight("default"), ours.delta_weight(), rtol=0, atol=1e-12)


def test_peft_does_not_divide_by_the_root_of_the_number_of_terms() -> None:
    theirs = in_peft("RandLoraConfig", linear(12, 12), r=3, randlora_alpha=6)
    assert theirs.num_bases == 4
    assert theirs.scaling["default"] == 2.0
    assert site(12, 12, 3).scale == 1.0


@pytest.mark.parametrize("shape", SHAPES)
def test_peft_starts_alike(shape: tuple[int, int]) -> None:
    theirs = in_peft("RandLoraConfig", linear(*shape), r=4)
    n = min(shape) // 4
    assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == n * (4 + min(shape))
    assert not theirs.randlora_lambda["default"].any()
    assert bool((theirs.randlora_gamma["default"] == torch.tensor(1 / min(shape)).double()).all())
    for name in ("randlora_A", "randlora_B"):
        assert getattr(theirs, name)["default"].std().item() == pytest.approx(1.0, abs=0.01)


def test_dense_bases_of_a_seed_are_those_of_peft_which_draws_in_half_precision() -> None:
    """Before its relabeling, and up to the rounding of bfloat16 (of float16 on machines that lack it)."""
    theirs = in_peft("RandLoraConfig", linear(12, 8), r=4, projection_prng_key=7)
    bases = Bases(torch.empty(0, dtype=torch.float64), 4, 8, 12, 7, None, True)
    A, B = theirs.randlora_A["default"], theirs.randlora_B["default"]
    assert torch.allclose(A[:, 0], bases.A, rtol=0.01, atol=0.01)
    assert torch.allclose(B.permute(1, 2, 0), bases.B, rtol=0.01, atol=0.01)
    assert torch.equal(A, A.bfloat16().double()) or torch.equal(A, A.half().double())


def test_sparse_bases_of_peft_have_half_the_ones_that_the_paper_gives_to_its_ratio() -> None:
    """Probability 1 / (2 s) each: its s = 3 is the paper's s = 6."""
    theirs = in_peft("RandLoraConfig", linear(96, 96), r=8, sparse=True)
    B = theirs.randlora_B["default"]
    assert (B != 0).double().mean().item() == pytest.approx(2 / 6, rel=0.1)
    ours = Bases(B, 8, 96, 96, 0, 6.0, True).B
    assert (ours != 0).double().mean().item() == pytest.approx(2 / 6, rel=0.1)
    very = in_peft("RandLoraConfig", linear(96, 96), r=8, very_sparse=True).randlora_B["default"]
    assert (very != 0).double().mean().item() == pytest.approx(1 / math.sqrt(96), rel=0.1)


def test_rounding_piles_up_in_no_merge() -> None:
    ours = site()
    theirs = in_peft("RandLoraConfig", ours.base, r=3).float()
    copy_to(theirs.randlora_lambda["default"], ours.lambda_.T)
    assert max(drift(theirs)) < 1e-3
    assert_no_drift(lambda model: attach(model, rank=6))


def test_bases_follow_the_model_to_its_device() -> None:
    bases = attach(build("decoder", Size(), device="meta"), rank=8).sites()["randlora"]
    assert isinstance(bases, Bases)
    assert bases.A.device.type == bases.B.device.type == "meta"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 33}, "rank is 33; the smallest side of the layers is 32"),
        ({"alpha": 0.0}, "leaves nothing to train"),
        ({"dropout": 1.0}, "at least 0 and below 1"),
        ({"sparsity": 1.5}, "sparsity is 1.5; it must be at least 2"),
        ({"sparsity": 1e9}, "leaves nothing of a base of"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
