"""C3A: what the paper and its code say about it, checked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.c3a import CirculantLinear, attach

from .parity import (
    LLAMA_7B,
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
    same,
)
from .refused import assert_refused


def site(d_in: int = 12, d_out: int = 8, block_size: int = 4, scale: float | None = None) -> CirculantLinear:
    layer = CirculantLinear(linear(d_in, d_out).requires_grad_(False), block_size, "xavier", scale, 0.0)
    randomize([layer.w])
    return layer


def rolled(w: Tensor) -> Tensor:
    """The block-circulant matrix of equation 4, row by row: every row is the row above it rolled right by one."""
    blocks = [[torch.stack([kernel.roll(p) for p in range(len(kernel))]) for kernel in row] for row in w]
    return torch.cat([torch.cat(row, dim=1) for row in blocks])


def printed(w: Tensor, x: Tensor) -> Tensor:
    """Algorithm A1 of the paper, by its equation 1: complex transforms."""
    parts = x.unflatten(-1, (w.shape[1], w.shape[2]))
    product = torch.einsum("...nb,mnb->...mb", torch.fft.ifft(parts), torch.fft.fft(w))
    return torch.fft.fft(product).real.flatten(-2)


@pytest.mark.parametrize(
    ("size", "block_size", "count"),
    [
        (ROBERTA_BASE, 768, 18_432),
        (ROBERTA_BASE, 128, 110_592),
        (ROBERTA_LARGE, 1024, 49_152),
        (ROBERTA_LARGE, 128, 393_216),
    ],
)
def test_counts_of_the_paper(size: Any, block_size: int, count: int) -> None:
    assert attach(build("encoder", size, device="meta"), block_size=block_size).count() == count


def test_shares_of_the_paper_on_llama_are_queries_keys_values_and_one_feed_forward_matrix() -> None:
    """0.35 % of LLaMA2-7B and 0.26 % of LLaMA3-8B, at b = 4096 / 32; the paper does not name the matrices."""
    targets = ["q", "k", "v", "up"]
    count = attach(build("decoder", LLAMA_7B, device="meta"), block_size=128, targets=targets).count()
    assert round(100 * count / 6_738_415_616, 2) == 0.35
    shapes = {"q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "up": (4096, 14336)}
    block = nn.ModuleDict({name: nn.Linear(*shape, device="meta") for name, shape in shapes.items()})
    assert round(100 * 32 * attach(block, block_size=128, targets=targets).count() / 8_030_261_248, 2) == 0.26


def test_one_layer_trains_inputs_times_outputs_over_the_block_size() -> None:
    assert site(12, 8, 4).w.numel() == 24
    assert site(768, 768, 768).w.numel() == 768


def test_block_size_is_the_greatest_common_divisor_unless_told() -> None:
    adapter = attach(build("decoder", LLAMA_7B, device="meta"), targets=["q", "up"])
    sites = adapter.sites()
    assert [sites[f"stack.blocks.0.{p}"].block_size for p in ("attention.q", "mlp.up")] == [4096, 256]


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("shape", [(12, 12), (12, 24), (24, 12)])
def test_fast_form_is_the_matrix_of_rolled_rows(shape: tuple[int, int], block_size: int) -> None:
    layer = site(*shape, block_size, scale=1.0)
    assert torch.equal(layer.delta_weight(), rolled(layer.w))
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    assert torch.allclose(layer.delta(x), x @ rolled(layer.w).T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_fast_form_and_its_gradients_are_the_algorithm_that_the_paper_prints(shape: tuple[int, int]) -> None:
    layer = site(*shape, scale=1.0)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64, requires_grad=True)
    z, expected = layer.delta(x), printed(layer.w, x)
    assert torch.allclose(z, expected, rtol=0, atol=1e-13)
    g = torch.randn_like(z)
    for mine, theirs in zip(
        torch.autograd.grad((z * g).sum(), [x, layer.w]),
        torch.autograd.grad((expected * g).sum(), [x, layer.w]),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_gradient_of_the_kernel_is_the_paper_s_and_that_of_the_input_is_not() -> None:
    layer = site(8, 8, 8, scale=1.0)
    x = torch.randn(8, dtype=torch.float64, requires_grad=True)
    g = torch.randn(8, dtype=torch.float64)
    to_x, to_w = torch.autograd.grad(layer.delta(x) @ g, [x, layer.w])
    fft, ifft = torch.fft.fft, torch.fft.ifft
    assert torch.allclose(to_w[0, 0], fft(fft(g) * ifft(x)).real, rtol=0, atol=1e-13)
    assert torch.allclose(to_x, rolled(layer.w).T @ g, rtol=0, atol=1e-13)
    assert torch.allclose(to_x, ifft(fft(g) * fft(layer.w[0, 0])).real, rtol=0, atol=1e-13)
    assert (to_x - fft(fft(g) * ifft(layer.w[0, 0])).real).abs().max() > 0.1


def test_the_other_orientation_is_another_matrix() -> None:
    layer = site(8, 8, 8, scale=1.0)
    x = torch.randn(8, dtype=torch.float64)
    convolved = torch.fft.ifft(torch.fft.fft(layer.w[0, 0]) * torch.fft.fft(x)).real
    assert torch.allclose(convolved, layer.delta_weight().T @ x, rtol=0, atol=1e-13)
    assert (convolved - layer.delta(x)).abs().max() > 0.1


def test_kernel_and_input_can_change_places_up_to_the_order_of_outputs() -> None:
    """A correlation with its arguments exchanged is read backward; a convolution would commute as it is."""
    a, b = site(6, 6, 6, scale=1.0), site(6, 6, 6, scale=1.0)
    x = torch.randn(6, dtype=torch.float64)
    with torch.no_grad():
        b.w.copy_(x.reshape(1, 1, 6))
    backward = b.delta(a.w[0, 0]).flip(0).roll(1)
    assert torch.allclose(a.delta(x), backward, rtol=0, atol=1e-13)


def test_block_size_of_one_is_a_free_matrix() -> None:
    layer = site(12, 8, 1, scale=1.0)
    assert torch.equal(layer.delta_weight(), layer.w[..., 0])


@pytest.mark.parametrize(
    ("kernel", "rank"),
    [
        ([1.0, 1, 1, 1, 1, 1], 1),  # gcd with t^6 - 1 is 1 + t + .. + t^5, of degree 5
        ([1.0, -1, 0, 0, 0, 0], 5),  # shares the root 1 alone
        ([1.0, 0, 1, 0, 1, 0], 2),
        ([1.0, 0.3, -0.2, 0.5, 0, 2], 6),
    ],
)
def test_rank_is_the_block_size_less_the_common_roots(kernel: list[float], rank: int) -> None:
    layer = site(6, 6, 6)
    with torch.no_grad():
        layer.w.copy_(torch.tensor(kernel, dtype=torch.float64).reshape(1, 1, 6))
    assert torch.linalg.matrix_rank(layer.delta_weight()) == rank


def test_generic_kernels_give_full_rank_with_a_single_vector() -> None:
    assert torch.linalg.matrix_rank(site(12, 12, 12).delta_weight()) == 12


@pytest.mark.parametrize("c", [-1.0, 0.0, 0.5, 2.0])
def test_scaling_the_kernels_scales_the_change(c: float) -> None:
    layer = site()
    change = layer.delta_weight().detach().clone()
    with torch.no_grad():
        layer.w.mul_(c)
    assert torch.allclose(layer.delta_weight(), c * change, rtol=0, atol=1e-15)


def test_change_is_divided_by_the_inputs_unless_told() -> None:
    layer = site(12, 8)
    assert torch.allclose(layer.delta_weight() * 12, rolled(layer.w), rtol=0, atol=1e-15)
    assert torch.allclose(site(12, 8, scale=0.5).scale * rolled(layer.w), rolled(layer.w) / 2)


@pytest.mark.parametrize(
    ("start", "bound"), [("xavier", math.sqrt(6 / 144)), ("kaiming", math.sqrt(1 / 96)), ("gaussian", 6.0)]
)
def test_starts(start: Any, bound: float) -> None:
    w = CirculantLinear(nn.Linear(96, 48), 4, start, None, 0.0).w
    deviation = 1.0 if start == "gaussian" else bound / math.sqrt(3)
    assert w.std().item() == pytest.approx(deviation, rel=0.05)
    assert (0.9 if start != "gaussian" else 0.3) * bound < w.abs().max() <= bound


def test_zero_start_is_the_base_model_and_learns() -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model, start="zero")
    assert torch.equal(model(batch), before)
    adapter.loss(batch).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())


@pytest.mark.parametrize(
    "claim",
    ["identity-at-init", "mergeable", "strength", "two-faces", "saves", "device-dtype", "trained-tensors-learn"],
)
def test_claims_hold_with_zero_start_on_layers_of_several_shapes(claim: str) -> None:
    hyperparameters = {"start": "zero", "targets": ["q", "up", "down"]}
    result = measure(claim, Trial(load("c3a"), "decoder", Expected(True, True, True, "linear", hyperparameters)))
    assert result.status == "verified", result


def test_undivided_change_of_the_start_is_as_large_as_the_weight() -> None:
    base = nn.Linear(96, 96)
    undivided, divided = (CirculantLinear(base, 8, "xavier", s, 0.0).delta_weight().norm() for s in (1.0, None))
    assert undivided > base.weight.norm()
    assert divided < 0.05 * base.weight.norm()


def test_dropout_acts_on_the_input_of_the_convolutions_in_training_alone() -> None:
    layer = CirculantLinear(linear(12, 8), 4, "xavier", 1.0, 0.5)
    x = torch.ones(200, 12, dtype=torch.float64)
    torch.manual_seed(0)
    kept = layer.dropout(x)
    torch.manual_seed(0)
    assert torch.allclose(layer(x), layer.base(x) + kept @ rolled(layer.w).T, rtol=0, atol=1e-12)
    layer.eval()
    assert torch.allclose(layer(x), layer.base(x) + x @ rolled(layer.w).T, rtol=0, atol=1e-12)


def test_no_matrix_of_the_weight_s_size_is_computed() -> None:
    layer = CirculantLinear(nn.Linear(64, 48).requires_grad_(False), 16, "xavier", None, 0.0)
    x = torch.randn(3, 64)
    assert not {(64, 64), (48, 64), (64, 48), (48, 48)} & matrices_computed(lambda: layer(x))
    assert all(math.prod(shape) < 48 * 64 / 2 for shape in matrices_computed(lambda: layer(x)))


def test_spectra_of_input_and_kernels_are_all_that_the_backward_pass_needs() -> None:
    """That of the input is about as large as the input: b // 2 + 1 complex numbers from b real ones."""
    layer, kept = site(64, 48, 16), []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer.delta(torch.randn(2, 5, 64, dtype=torch.float64, requires_grad=True))
    assert kept == [(9, 10, 4), (9, 3, 4)]


def test_gradient_of_the_kernels_needs_none_of_the_input() -> None:
    layer = site(12, 8, 4, scale=1.0)
    x = torch.randn(5, 12, dtype=torch.float64)
    (mine,) = torch.autograd.grad(layer.delta(x).square().sum(), [layer.w])
    (theirs,) = torch.autograd.grad((x @ rolled(layer.w).T).square().sum(), [layer.w])
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-11)


def test_half_precision_transforms_in_single_precision() -> None:
    layer = CirculantLinear(nn.Linear(12, 8), 4, "xavier", 1.0, 0.0).bfloat16()
    x = torch.randn(5, 12).bfloat16()
    exact = x.float() @ rolled(layer.w.float()).T
    assert layer.delta(x).dtype == torch.bfloat16
    assert torch.allclose(layer.delta(x).float(), exact, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize(
    ("d_in", "d_out", "block_size"), [(12, 12, 1), (12, 12, 3), (12, 8, 2), (12, 8, 4), (18, 24, 6)]
)
def test_outputs_and_gradients_of_the_kernels_equal_peft(d_in: int, d_out: int, block_size: int) -> None:
    """peft converts to float32 inside: equal up to its rounding."""
    ours = site(d_in, d_out, block_size)
    theirs = in_peft("C3AConfig", ours.base, block_size=block_size)
    w = theirs.c3a_kernel["default"]
    assert w.shape == ours.w.shape
    copy_to(w, ours.w)
    assert torch.allclose(theirs.get_delta_weight("default"), ours.delta_weight(), rtol=0, atol=1e-6)
    x = torch.randn(3, 5, d_in, dtype=torch.float64)
    mine, other = ours(x), theirs(x)
    assert torch.allclose(mine, other, rtol=0, atol=1e-5)
    g = torch.randn_like(mine)
    (to_w,), (their_w,) = (torch.autograd.grad((y * g).sum(), [p]) for y, p in ((mine, ours.w), (other, w)))
    assert to_w.abs().max() > 0.1
    assert torch.allclose(to_w, their_w, rtol=0, atol=1e-5)


@pytest.mark.parametrize("block_size", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_peft_with_gradients_of_inputs_for_blocks_no_longer_than_two(
    shape: tuple[int, int], block_size: int
) -> None:
    ours = site(*shape, block_size)
    theirs = in_peft("C3AConfig", ours.base, block_size=block_size)
    w = theirs.c3a_kernel["default"]
    copy_to(w, ours.w)
    assert_same(ours, theirs, [(ours.w, w, same)], shape[0], tolerance=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_peft_for_the_input_is_not_that_of_its_output(shape: tuple[int, int]) -> None:
    """Its backward pass is the paper's: w[p + r] g[r] instead of w[p - r] g[r] summed over r."""
    ours = site(*shape, 4)
    theirs = in_peft("C3AConfig", ours.base, block_size=4)
    copy_to(theirs.c3a_kernel["default"], ours.w)
    x = torch.randn(shape[0], dtype=torch.float64, requires_grad=True)
    g = torch.randn(shape[1], dtype=torch.float64)
    exact = (ours.base.weight + ours.delta_weight()).T @ g
    mine, other = (torch.autograd.grad(layer(x) @ g, [x])[0] for layer in (ours, theirs))
    assert torch.allclose(mine, exact, rtol=0, atol=1e-13)
    index = torch.arange(4)
    mirrored = ours.w[..., (index[:, None] + index) % 4]  # (m, n, b, b): w[p + r]
    wrong = torch.einsum("mnpr,mr->np", mirrored, g.unflatten(0, (-1, 4))).flatten() / shape[0]
    assert torch.allclose(other, ours.base.weight.T @ g + wrong, rtol=0, atol=1e-5)
    assert (other - exact).abs().max() > 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_peft_divides_by_the_inputs_where_the_paper_s_algorithm_does_not(shape: tuple[int, int]) -> None:
    layer = site(*shape, scale=1.0)
    theirs = in_peft("C3AConfig", layer.base, block_size=4)
    copy_to(theirs.c3a_kernel["default"], layer.w)
    x = torch.randn(5, shape[0], dtype=torch.float64)
    assert torch.allclose(shape[0] * (theirs(x) - layer.base(x)), printed(layer.w, x), rtol=0, atol=1e-4)


def test_starts_of_peft() -> None:
    bounds = {"xavier_uniform": math.sqrt(6 / 20), "kaiming_uniform": math.sqrt(1 / 12)}
    for name, bound in bounds.items():
        w = in_peft("C3AConfig", linear(12, 8), block_size=1, init_weights=name).c3a_kernel["default"]
        assert 0.8 * bound < w.abs().max() <= bound
    theirs = in_peft("C3AConfig", linear(12, 8), block_size=4)
    assert 0 < theirs.get_delta_weight("default").abs().max() <= math.sqrt(6 / 20) / 12
    assert not in_peft("C3AConfig", linear(12, 8), block_size=4, init_weights=True).c3a_kernel["default"].any()


def test_two_active_adapters_of_peft_do_not_add_up() -> None:
    """The first one's output becomes the second one's input; on a layer that is not square the shapes clash."""
    peft = pytest.importorskip("peft")

    def both(d_in: int, d_out: int) -> Any:
        model = peft.get_peft_model(nn.Sequential(linear(d_in, d_out)), config := settings())
        model.add_adapter("second", config)
        model.base_model.set_adapter(["default", "second"])
        return model.base_model.model[0]

    def settings() -> Any:
        return peft.C3AConfig(target_modules=["0"], block_size=4, init_weights="gaussian")

    layer = both(12, 12)
    x = torch.randn(5, 12, dtype=torch.float64)
    first, second = (layer.get_delta_weight(name).detach() for name in ("default", "second"))
    change = layer(x).detach() - layer.base_layer(x).detach()
    assert torch.allclose(change, x @ first.T + x @ first.T @ second.T, rtol=0, atol=1e-5)
    assert not torch.allclose(change, x @ (first + second).T, rtol=0, atol=1e-1)
    with pytest.raises(RuntimeError, match="shape"):
        both(12, 8)(x)


def test_merges_of_peft_leave_a_rounding_error_and_ours_none() -> None:
    ours = site()
    theirs = in_peft("C3AConfig", ours.base, block_size=4).float()
    copy_to(theirs.c3a_kernel["default"], ours.w)
    assert max(drift(theirs)) < 1e-6
    assert_no_drift(attach)


def test_merged_layer_is_a_plain_linear_layer() -> None:
    layer = site()
    x = torch.randn(5, 12, dtype=torch.float64)
    assert torch.allclose(layer(x), functional_call(layer.base, layer.merged(), (x,)), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"block_size": 5}, r"block_size is 5; for .* it must be one of \[1, 2, 4, 8, 16, 32\]"),
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": 64, "targets": ["up"]}, "32 inputs and 64 outputs"),
        ({"start": "xavier_uniform"}, "start is 'xavier_uniform'; allowed: xavier, zero, gaussian, kaiming"),
        ({"scale": 0.0}, "leaves nothing to train"),
        ({"dropout": 1.0}, "at least 0 and below 1"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
