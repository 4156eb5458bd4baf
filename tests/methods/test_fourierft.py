"""FourierFT: what the paper and its code say about it, checked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.backbones import Size, build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.fourierft import TOKENS, FourierLinear, Positions, attach, log_probabilities

from .parity import (
    LLAMA_7B,
    ROBERTA_BASE,
    SHAPES,
    assert_no_drift,
    assert_same,
    copy_to,
    drift,
    in_peft,
    linear,
    matrices_computed,
    same,
)
from .refused import assert_refused

ODD = [*SHAPES, (9, 7), (7, 10)]


def site(d_in: int = 12, d_out: int = 8, n: int = 10, alpha: float = 10.0, seed: int = 0) -> FourierLinear:
    base = linear(d_in, d_out).requires_grad_(False)
    layer = FourierLinear(base, Positions([base], n, seed, None, 200.0), alpha, "zero")
    with torch.no_grad():
        layer.c.copy_(torch.randn(n, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    return layer


def at(position: tuple[int, int], value: float, d_in: int = 12, d_out: int = 8, alpha: float = 1.0) -> FourierLinear:
    """A site with one coefficient at a chosen position."""
    layer = site(d_in, d_out, 1, alpha)
    layer.positions().copy_(torch.tensor(position)[:, None])
    with torch.no_grad():
        layer.c.fill_(value)
    return layer


def printed(layer: FourierLinear) -> Tensor:
    """The change by the paper's algorithm 1: dense spectrum, inverse transform, real part, scale."""
    dense = torch.zeros(layer.base.weight.shape, dtype=torch.float64)
    dense[layer.positions()[0], layer.positions()[1]] = layer.c
    return torch.fft.ifft2(dense).real * layer.alpha


@pytest.mark.parametrize(("size", "count"), [(ROBERTA_BASE, 24_000), (LLAMA_7B, 64_000)])
def test_counts_of_the_paper(size: Size, count: int) -> None:
    assert attach(build("decoder", size, device="meta")).count() == count


def test_every_layer_trains_n_numbers_and_stores_its_positions_once() -> None:
    adapter = attach(pretrained("decoder"), frequencies=10, targets=["q", "v", "up", "down"])
    assert {p.numel() for p in adapter.parameters()} == {10}
    saved = adapter.state_dict()
    shapes = {name: tuple(t.shape) for name, t in saved.items() if not name.endswith(".c")}
    assert shapes == {f"fourierft.{d}": (2, 10) for d in ("32x32", "64x32", "32x64")}
    assert sum(t.numel() for t in saved.values()) == adapter.count() + 3 * 20


@pytest.mark.parametrize("shape", ODD)
def test_change_is_the_algorithm_that_the_paper_prints(shape: tuple[int, int]) -> None:
    layer = site(*shape)
    assert torch.allclose(layer.delta_weight(), printed(layer), rtol=0, atol=1e-14)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64, requires_grad=True)
    change, expected = layer.delta(x), x @ printed(layer).T
    assert torch.allclose(change, expected, rtol=0, atol=1e-13)
    g = torch.randn_like(change)
    for mine, theirs in zip(
        torch.autograd.grad((change * g).sum(), [x, layer.c]),
        torch.autograd.grad((expected * g).sum(), [x, layer.c]),
        strict=True,
    ):
        assert mine.abs().max() > 1e-3
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_change_is_the_sum_of_cosines() -> None:
    layer = site()
    for p, q in ((0, 0), (3, 5), (7, 11)):
        total = sum(
            c * math.cos(2 * math.pi * (p * j / 8 + q * k / 12))
            for c, j, k in zip(layer.c.tolist(), *layer.positions().tolist(), strict=True)
        )
        assert layer.delta_weight()[p, q].item() == pytest.approx(10 / 96 * total, abs=1e-14)


def test_frequency_zero_alone_is_a_constant_change() -> None:
    assert torch.allclose(at((0, 0), 2.0).delta_weight(), torch.full((8, 12), 2 / 96, dtype=torch.float64))


def test_one_generic_frequency_has_rank_two_and_a_known_length() -> None:
    change = at((3, 5), 1.0, alpha=7.0).delta_weight()
    assert torch.linalg.matrix_rank(change) == 2
    assert change.norm().item() == pytest.approx(7 / math.sqrt(2 * 96))


def test_a_frequency_and_its_negative_are_the_same_matrix() -> None:
    assert torch.allclose(at((3, 5), 1.0).delta_weight(), at((8 - 3, 12 - 5), 1.0).delta_weight(), rtol=0, atol=1e-15)


def test_exchanged_positions_give_the_transposed_change_that_the_official_code_applies() -> None:
    """It multiplies the input from the left, x @ change, where the paper has change @ x."""
    layer, exchanged = at((3, 5), 1.0, 12, 12), at((5, 3), 1.0, 12, 12)
    assert torch.allclose(exchanged.delta_weight(), layer.delta_weight().T, rtol=0, atol=1e-15)
    assert not torch.allclose(layer.delta_weight(), layer.delta_weight().T, atol=1e-4)


def test_all_positions_span_the_matrices_that_a_point_reflection_keeps_and_no_others() -> None:
    layer = site(6, 4, 24)
    change = layer.delta_weight()
    rows, columns = (torch.arange(d).neg() % d for d in (4, 6))
    assert torch.allclose(change, change[rows][:, columns], rtol=0, atol=1e-14)
    basis = []
    for unit in torch.eye(24, dtype=torch.float64):
        with torch.no_grad():
            layer.c.copy_(unit)
        basis.append(layer.delta_weight().detach().flatten())
    # A reflection of the 4 x 6 grid leaves 2 x 2 points alone and pairs the other twenty.
    assert torch.linalg.matrix_rank(torch.stack(basis)) == 4 + 20 // 2


def test_a_few_coefficients_give_a_change_of_high_rank() -> None:
    assert torch.linalg.matrix_rank(site(12, 12, 12).delta_weight()) > 6


@pytest.mark.parametrize("c", [-1.0, 0.0, 0.5, 2.0])
def test_scaling_the_coefficients_or_alpha_scales_the_change(c: float) -> None:
    layer = site()
    change = layer.delta_weight().detach().clone()
    layer.alpha *= c
    assert torch.allclose(layer.delta_weight(), c * change, rtol=0, atol=1e-15)
    layer.alpha = 10.0
    with torch.no_grad():
        layer.c.mul_(c)
    assert torch.allclose(layer.delta_weight(), c * change, rtol=0, atol=1e-15)


def test_coefficients_start_normal_and_the_start_is_near_the_base_only_on_large_layers() -> None:
    base = nn.Linear(768, 768)
    layer = FourierLinear(base, Positions([base], 1000, 0, None, 200.0), 300.0, "normal")
    assert layer.c.std().item() == pytest.approx(1.0, rel=0.1)
    assert layer.delta_weight().std().item() == pytest.approx(300 / 768**2 * math.sqrt(500), rel=0.1)
    assert layer.delta_weight().norm() < base.weight.norm()
    small = linear(12, 8)
    swamped = FourierLinear(small, Positions([small], 10, 0, None, 200.0), 300.0, "normal")
    assert swamped.delta_weight().norm() > 5 * small.weight.norm()


def test_zero_start_is_the_base_model() -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    attach(model, frequencies=10, start="zero")
    assert torch.allclose(model(batch), before, rtol=0, atol=1e-15)


def test_positions_are_distinct_shared_and_drawn_by_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = attach(pretrained("decoder"), frequencies=500).sites()
    torch.manual_seed(2)
    second = attach(pretrained("decoder"), frequencies=500).sites()
    other = attach(pretrained("decoder"), frequencies=500, seed=7).sites()
    positions = [s.positions() for s in first.values() if isinstance(s, FourierLinear)]
    assert all(p is positions[0] for p in positions)
    assert len({tuple(p) for p in positions[0].T.tolist()}) == 500
    name = "32x32"
    assert torch.equal(first["fourierft"].get_buffer(name), second["fourierft"].get_buffer(name))
    assert not torch.equal(first["fourierft"].get_buffer(name), other["fourierft"].get_buffer(name))


def test_positions_without_bias_are_uniform() -> None:
    drawn = Positions([nn.Linear(64, 32)], 1024, 0, None, 200.0).get_buffer("32x64").double()
    assert drawn.amax(dim=1).tolist() == [31, 63]
    assert drawn.mean(dim=1).tolist() == pytest.approx([15.5, 31.5], rel=0.05)


def test_probabilities_of_positions_are_equation_5() -> None:
    probabilities = log_probabilities(8, 12, 3.0, 5.0).exp()
    for j, k in ((1, 0), (3, 2), (7, 11), (4, 6), (5, 1)):
        distance = math.hypot(min(j, 8 - j), min(k, 12 - k))
        expected = math.exp(-(((distance**2 - 9) / (distance * 5)) ** 2))
        assert probabilities[j, k].item() == pytest.approx(expected)
    assert probabilities[0, 0] == 0
    assert probabilities[0, 3] == probabilities[3, 0] == 1
    assert log_probabilities(8, 12, 0.0, 5.0)[0, 0] == 0


def test_biased_positions_follow_the_probabilities() -> None:
    layer, constant = nn.Linear(2, 1), 0  # frequencies 0 and 1, whose probabilities are as 1 to exp(-1)
    for seed in range(3000):
        constant += int(Positions([layer], 1, seed, 0.0, 1.0).get_buffer("1x2")[1, 0] == 0)
    assert constant / 3000 == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)


@pytest.mark.parametrize("favored", [5.0, 20.0])
def test_biased_positions_are_distinct_and_gather_around_the_favored_frequency(favored: float) -> None:
    rows, columns = Positions([nn.Linear(64, 64)], 100, 0, favored, 4.0).get_buffer("64x64").double()
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == 100
    distance = torch.hypot(rows.minimum(64 - rows), columns.minimum(64 - columns))
    assert distance.mean().item() == pytest.approx(favored, abs=1.5)
    assert (distance - favored).abs().max() < 8


def test_biased_positions_are_adapted_like_others() -> None:
    adapter = attach(pretrained("decoder").double(), frequencies=10, favored=4.0, bandwidth=3.0)
    layer = adapter.sites()["stack.blocks.0.attention.q"]
    assert isinstance(layer, FourierLinear)
    x = torch.randn(5, 32, dtype=torch.float64)
    assert torch.allclose(layer.delta(x), x @ printed(layer).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "claim",
    ["identity-at-init", "mergeable", "strength", "two-faces", "saves", "device-dtype", "trained-tensors-learn"],
)
def test_claims_hold_with_zero_start_on_layers_of_several_shapes(claim: str) -> None:
    hyperparameters = {"frequencies": 40, "alpha": 4.0, "start": "zero", "targets": ["q", "up", "down"]}
    expected = Expected(True, True, True, "linear", hyperparameters)
    result = measure(claim, Trial(load("fourierft"), "decoder", expected))
    assert result.status == "verified", result


def test_neither_the_spectrum_nor_the_change_is_formed_in_the_forward_pass() -> None:
    base = nn.Linear(64, 48).requires_grad_(False)
    layer = FourierLinear(base, Positions([base], 20, 0, None, 200.0), 300.0, "normal")
    x = torch.randn(3, 64)
    assert not {(64, 64), (48, 64), (64, 48), (48, 33), (64, 25)} & matrices_computed(lambda: layer(x))


def test_spectrum_of_the_input_is_the_one_activation_kept_for_the_backward_pass() -> None:
    """It is about as large as the input: d // 2 + 1 real and as many imaginary parts."""
    layer, kept = site(64, 48), []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    x = torch.randn(3, 5, 64, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer.delta(x)
    assert [shape for shape in kept if 15 in shape or math.prod(shape) > 20] == [(2 * 33, 15)]


def test_tokens_are_transformed_in_groups_without_a_difference() -> None:
    layer = site()
    x = torch.randn(2 * TOKENS + 3, 12, dtype=torch.float64, requires_grad=True)
    change, expected = layer.delta(x), x @ printed(layer).T
    assert torch.allclose(change, expected, rtol=0, atol=1e-12)
    g = torch.randn_like(change)
    for mine, theirs in zip(
        torch.autograd.grad((change * g).sum(), [x, layer.c]),
        torch.autograd.grad((expected * g).sum(), [x, layer.c]),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-11)


def test_gradient_of_the_coefficients_needs_none_of_the_input() -> None:
    layer = site()
    x = torch.randn(5, 12, dtype=torch.float64)
    (mine,) = torch.autograd.grad(layer.delta(x).square().sum(), [layer.c])
    (theirs,) = torch.autograd.grad((x @ printed(layer).T).square().sum(), [layer.c])
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-11)


def test_half_precision_transforms_in_single_precision() -> None:
    layer = site().bfloat16()
    x = torch.randn(5, 12).bfloat16()
    assert layer.delta(x).dtype == layer.delta_weight().dtype == torch.bfloat16
    exact = x.double() @ printed(layer.double()).T
    assert torch.allclose(layer.bfloat16().delta(x).double(), exact, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("shape", ODD)
def test_equals_peft(shape: tuple[int, int]) -> None:
    """peft transforms in float32: equal up to its rounding."""
    ours = site(*shape, seed=5)
    theirs = in_peft("FourierFTConfig", ours.base, n_frequency=10, scaling=10.0, random_loc_seed=5)
    assert torch.equal(theirs.indices["default"], ours.positions())
    c = theirs.fourierft_spectrum["default"]
    copy_to(c, ours.c)
    assert_same(ours, theirs, [(ours.c, c, same)], shape[0], tolerance=1e-5)
    assert torch.allclose(theirs.get_delta_weight("default"), ours.delta_weight(), rtol=0, atol=1e-6)


def test_scale_and_start_of_peft() -> None:
    peft = pytest.importorskip("peft")
    assert peft.FourierFTConfig().scaling == 150.0
    assert peft.FourierFTConfig().n_frequency == 1000
    theirs = in_peft("FourierFTConfig", linear(768, 768), n_frequency=1000)
    assert theirs.fourierft_spectrum["default"].std().item() == pytest.approx(1.0, rel=0.1)
    assert in_peft("FourierFTConfig", linear(12, 8), n_frequency=10).get_delta_weight("default").abs().max() > 1
    zero = in_peft("FourierFTConfig", linear(12, 8), n_frequency=10, init_weights=True)
    assert not zero.get_delta_weight("default").any()


def test_equation_without_the_factor_is_as_many_times_larger_as_the_weight_has_entries() -> None:
    layer = site()
    j, k = layer.positions()
    p, q = (torch.arange(d, dtype=torch.float64) for d in (8, 12))
    p, q = p[:, None, None], q[:, None]
    equation_3 = (layer.c * torch.exp(2j * torch.pi * (p * j / 8 + q * k / 12))).sum(-1).real
    assert torch.allclose(layer.delta_weight() * 96, 10 * equation_3, rtol=0, atol=1e-11)


def test_merges_of_peft_leave_a_rounding_error_and_ours_none() -> None:
    ours = site()
    theirs = in_peft("FourierFTConfig", ours.base, n_frequency=10, scaling=10.0).float()
    assert max(drift(theirs)) < 1e-5
    assert_no_drift(lambda model: attach(model, frequencies=10))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"frequencies": 0}, "frequencies is 0; .* has room for 1 to 1024"),
        ({"frequencies": 1025}, "frequencies is 1025"),
        ({"alpha": 0.0}, "leaves nothing to train"),
        ({"start": "gaussian"}, "start is 'gaussian'; allowed: normal, zero"),
        ({"favored": -1.0}, "favored is -1.0"),
        ({"favored": 1.0, "bandwidth": 0.0}, "bandwidth 0.0"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, {"frequencies": 10, **keywords}, message)
