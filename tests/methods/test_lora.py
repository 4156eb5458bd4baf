"""LoRA: what the paper and its code say about it, checked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Size, build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.lora import LoRAConv2d, LoRAEmbedding, LoRALinear, attach

from .parity import (
    GPT2_MEDIUM,
    GPT3,
    ROBERTA_BASE,
    ROBERTA_LARGE,
    SHAPES,
    assert_same,
    copy_to,
    in_peft,
    linear,
    matrices_computed,
    randomize,
    same,
    twin,
)
from .refused import assert_refused
from .unet_convolutions import CONVOLUTIONS_OF_THE_UNET, assert_trained_merged_and_detached


def site(d_in: int = 12, d_out: int = 8, rank: int = 4, alpha: float = 6, dropout: float = 0.0) -> LoRALinear:
    layer = LoRALinear(linear(d_in, d_out).requires_grad_(False), rank, alpha, dropout)
    randomize([layer.B])
    return layer


@pytest.mark.parametrize(
    ("kind", "size", "rank", "count"),
    [
        ("encoder", ROBERTA_BASE, 8, 294_912),
        ("encoder", ROBERTA_LARGE, 8, 786_432),
        ("decoder", GPT3, 1, 4_718_592),
        ("decoder", GPT3, 2, 9_437_184),
        ("decoder", GPT3, 4, 18_874_368),
        ("decoder", GPT3, 8, 37_748_736),
        ("decoder", GPT3, 64, 301_989_888),
        ("decoder", GPT2_MEDIUM, 4, 393_216),
    ],
)
def test_counts_of_the_paper(kind: str, size: Size, rank: int, count: int) -> None:
    assert attach(build(kind, size, device="meta"), rank=rank).count() == count


@pytest.mark.parametrize(("rank", "targets"), [(2, "v"), (1, "qv")])
def test_one_matrix_at_twice_the_rank_costs_what_two_do(rank: int, targets: str) -> None:
    assert attach(build("decoder", GPT3, device="meta"), rank=rank, targets=list(targets)).count() == 4_718_592


@pytest.mark.parametrize(("rank", "millions"), [(1, 9.4), (2, 18.8), (4, 37.7), (64, 603.9)])
def test_counts_of_the_paper_for_all_four_matrices(rank: int, millions: float) -> None:
    """Printed with the last digit cut off, and 603.8 for the last."""
    count = attach(build("decoder", GPT3, device="meta"), rank=rank, targets=["q", "k", "v", "o"]).count()
    assert count // 100_000 / 10 == millions


def test_start_is_the_base_model_exactly() -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    attach(model)
    assert torch.equal(model(batch), before)


def test_a_starts_uniform_within_the_inverse_root_of_the_inputs_and_b_at_zero() -> None:
    layer = LoRALinear(nn.Linear(400, 50), 64, 16, 0.0)
    assert not layer.B.any()
    assert layer.A.abs().max() <= 1 / 20
    assert layer.A.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)
    assert abs(layer.A.mean().item()) < 1e-3


def test_at_the_start_b_alone_gets_a_gradient() -> None:
    layer = LoRALinear(linear(12, 8), 4, 8, 0.0)
    layer(torch.randn(5, 12, dtype=torch.float64)).square().sum().backward()
    assert layer.A.grad is not None
    assert not layer.A.grad.any()
    assert layer.B.grad is not None
    assert layer.B.grad.abs().max() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_rank_of_the_change_is_r(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(site(*shape, rank=3).delta_weight())
    assert values[2] > 1e-3
    assert values[3] < 1e-12


def test_full_rank_reaches_every_change() -> None:
    layer = site(8, 8, rank=8, alpha=8)
    wanted = torch.randn(8, 8, dtype=torch.float64)
    with torch.no_grad():
        layer.B.copy_(wanted @ torch.linalg.inv(layer.A))
    assert torch.allclose(layer.delta_weight(), wanted, rtol=0, atol=1e-10)


def test_alpha_doubled_doubles_the_change_and_rank_divides_it() -> None:
    one, two = site(alpha=6), site(alpha=12)
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.delta_weight(), 2 * one.delta_weight())
    assert one.scale == 6 / 4


def test_rank_stabilized_scale_of_peft_divides_by_the_root_of_the_rank() -> None:
    ours = site()
    theirs = in_peft("LoraConfig", ours.base, r=4, lora_alpha=6, use_rslora=True)
    copy_to(theirs.lora_A["default"].weight, ours.A)
    copy_to(theirs.lora_B["default"].weight, ours.B)
    delta = theirs.get_delta_weight("default")
    assert torch.allclose(delta, 2 * ours.delta_weight(), rtol=0, atol=1e-13)  # 6 / sqrt 4 instead of 6 / 4


@pytest.mark.parametrize("c", [-1.0, 0.5, 3.0])
def test_strength_scaled_into_a_factor_hides_from_its_gradient_and_into_both_is_squared(c: float) -> None:
    layer, one, both = site(), site(), site()
    for other in (one, both):
        other.load_state_dict(layer.state_dict())
    x, weights = torch.randn(5, 12, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    change = layer.delta_weight()
    layer.strength = c
    with torch.no_grad():
        one.B.mul_(c)
        both.A.mul_(c)
        both.B.mul_(c)
    assert torch.allclose(one(x), layer(x), rtol=0, atol=1e-13)
    (right,) = torch.autograd.grad((layer(x) * weights).sum(), layer.B)
    (wrong,) = torch.autograd.grad((one(x) * weights).sum(), one.B)
    assert torch.allclose(right, c * wrong, rtol=0, atol=1e-12)
    assert torch.allclose(both.delta_weight(), c * c * change, rtol=0, atol=1e-13)


def test_dropout_acts_on_the_input_of_the_branch_alone() -> None:
    layer = site(dropout=0.5)
    x = torch.randn(4, 12, dtype=torch.float64)
    torch.manual_seed(5)
    trained = layer(x)
    torch.manual_seed(5)
    expected = layer.base(x) + layer.scale * F.dropout(x, 0.5) @ layer.A.T @ layer.B.T
    assert torch.allclose(trained, expected, rtol=0, atol=1e-13)
    assert torch.allclose(layer.eval()(x), F.linear(x, layer.merged()["weight"], layer.base.bias), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("bias", "extra"), [("none", 0), ("lora_only", 3 * 2 * 32), ("all", 3 * (4 * 32 + 64 + 64 + 32) + 32)]
)
def test_bias_option_trains_biases_of_adapted_layers_or_all(bias: str, extra: int) -> None:
    adapter = attach(pretrained("decoder"), rank=4, bias=bias)  # type: ignore[arg-type]
    assert adapter.count() == 3 * 2 * 4 * 64 + extra


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_bias_option_trains_what_loralib_marks(bias: str) -> None:
    loralib = pytest.importorskip("loralib")

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.other = nn.Linear(6, 6), nn.Linear(6, 6)

    theirs = Two()
    theirs.q = loralib.Linear(6, 6, r=2)
    loralib.mark_only_lora_as_trainable(theirs, bias=bias)
    marked = {name for name, p in theirs.named_parameters() if p.requires_grad and name.endswith("bias")}
    adapter = attach(Two(), rank=2, targets=["q"], bias=bias)  # type: ignore[arg-type]
    assert {name for name in adapter.sites() if name.endswith("bias")} == marked


def test_trained_biases_merge_and_detach() -> None:
    model = pretrained("decoder").double()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    adapter = attach(model, bias="all")
    randomize(adapter.parameters(), 0.1)
    batch = model.batch(0)
    adapted = model(batch)
    adapter.merge()
    assert list(model.state_dict()) == list(before)
    assert torch.allclose(model(batch), adapted, rtol=0, atol=1e-11)
    name = "stack.blocks.0.attention.q.bias"
    assert not torch.equal(model.get_parameter(name), before[name])
    adapter.detach()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("claim", ["identity-at-init", "detachable", "mergeable", "strength", "saves", "two-faces"])
def test_claims_hold_for_an_embedding_too(claim: str) -> None:
    expected = Expected(True, True, True, "linear", {"targets": ["embed", "q"], "rank": 4})
    result = measure(claim, Trial(load("lora"), "decoder", expected))
    assert result.status == "verified", result


def test_embedding_starts_with_a_at_zero_and_b_gaussian() -> None:
    layer = LoRAEmbedding(nn.Embedding(30, 400), 8, 16)
    assert not layer.A.any()
    assert layer.B.std().item() == pytest.approx(1.0, rel=0.05)
    assert layer.rank == 8


@pytest.mark.parametrize(("words", "width"), [(12, 12), (20, 6), (6, 20)])
def test_embedding_equals_loralib_and_peft(words: int, width: int) -> None:
    loralib = pytest.importorskip("loralib")
    base = nn.Embedding(words, width).double()
    ours = LoRAEmbedding(base, 4, 6)
    randomize([ours.A, ours.B])
    theirs = loralib.Embedding(words, width, r=4, lora_alpha=6, merge_weights=False).double()
    library = in_peft("LoraConfig", base, r=4, lora_alpha=6)
    for other, A, B in (
        (theirs, theirs.lora_A, theirs.lora_B),
        (library, library.lora_embedding_A["default"], library.lora_embedding_B["default"]),
    ):
        copy_to(A, ours.A)
        copy_to(B, ours.B)
        if other is theirs:
            copy_to(theirs.weight, base.weight)
        tokens = torch.randint(words, (3, 5))
        assert torch.allclose(ours(tokens), other(tokens), rtol=0, atol=1e-12)
        mine = torch.autograd.grad(ours(tokens).square().sum(), [ours.A, ours.B])
        assert all(
            torch.allclose(a, b, rtol=0, atol=1e-10)
            for a, b in zip(mine, torch.autograd.grad(other(tokens).square().sum(), [A, B]), strict=True)
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_equals_loralib(shape: tuple[int, int]) -> None:
    loralib = pytest.importorskip("loralib")
    ours = site(*shape)
    theirs = loralib.Linear(*shape, r=4, lora_alpha=6).double()
    for mine, other in ((ours.A, theirs.lora_A), (ours.B, theirs.lora_B)):
        copy_to(other, mine)
    copy_to(theirs.weight, ours.base.weight)
    copy_to(theirs.bias, ours.base.bias)
    assert_same(ours, theirs, [(ours.A, theirs.lora_A, same), (ours.B, theirs.lora_B, same)], shape[0])
    theirs.eval()
    assert torch.allclose(ours.merged()["weight"], theirs.weight, rtol=0, atol=1e-13)


def test_transposed_weights_of_gpt2_get_the_transposed_change() -> None:
    loralib = pytest.importorskip("loralib")
    ours = site(12, 8)
    theirs = loralib.Linear(12, 8, r=4, lora_alpha=6, fan_in_fan_out=True).double()
    for other, mine in (
        (theirs.lora_A, ours.A),
        (theirs.lora_B, ours.B),
        (theirs.weight, ours.base.weight.T),
        (theirs.bias, ours.base.bias),
    ):
        copy_to(other, mine)
    x = torch.randn(5, 12, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), rtol=0, atol=1e-12)
    theirs.eval()
    assert theirs.weight.shape == (12, 8)
    assert torch.allclose(ours.merged()["weight"].T, theirs.weight, rtol=0, atol=1e-13)


def test_loralib_merges_once_in_two_calls_of_eval_and_a_second_merge_here_is_refused() -> None:
    loralib = pytest.importorskip("loralib")
    theirs = loralib.Linear(12, 8, r=4).double()
    randomize([theirs.lora_B])
    theirs.eval()
    once = theirs.weight.detach().clone()
    theirs.eval()
    assert torch.equal(theirs.weight, once)
    adapter = attach(pretrained("decoder"))
    adapter.merge()
    with pytest.raises(AdapterError, match="already merged"):
        adapter.merge()


def test_fused_projection_of_loralib_is_one_pair_a_slice() -> None:
    loralib = pytest.importorskip("loralib")
    q, v = site(10, 10), site(10, 10)
    k = linear(10, 10)
    fused = loralib.MergedLinear(10, 30, r=4, lora_alpha=6, enable_lora=[True, False, True]).double()
    copy_to(fused.weight, torch.cat([q.base.weight, k.weight, v.base.weight]))
    copy_to(fused.bias, torch.cat([q.base.bias, k.bias, v.base.bias]))
    copy_to(fused.lora_A, torch.cat([q.A, v.A]))
    copy_to(fused.lora_B, torch.cat([q.B, v.B]))
    x = torch.randn(2, 3, 10, dtype=torch.float64)
    assert torch.allclose(torch.cat([q(x), k(x), v(x)], -1), fused(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_equals_peft(shape: tuple[int, int]) -> None:
    ours = site(*shape)
    theirs = in_peft("LoraConfig", ours.base, r=4, lora_alpha=6)
    A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    copy_to(A, ours.A)
    copy_to(B, ours.B)
    assert_same(ours, theirs, [(ours.A, A, same), (ours.B, B, same)], shape[0])
    assert torch.allclose(theirs.get_delta_weight("default"), ours.delta_weight(), rtol=0, atol=1e-13)


def test_a_of_peft_starts_uniform_and_gaussian_on_request() -> None:
    uniform = in_peft("LoraConfig", nn.Linear(400, 50), r=64).lora_A["default"].weight
    assert 0.99 / 20 < uniform.abs().max() <= 1 / 20
    gaussian = in_peft("LoraConfig", nn.Linear(400, 50), r=64, init_lora_weights="gaussian").lora_A["default"].weight
    assert gaussian.std().item() == pytest.approx(1 / 64, rel=0.02)
    assert gaussian.abs().max() > 3 / 64


@pytest.mark.parametrize("shape", SHAPES)
def test_change_equals_lycoris(shape: tuple[int, int]) -> None:
    functional = pytest.importorskip("lycoris.functional.locon")
    ours = site(*shape)
    theirs = functional.diff_weight(ours.A, ours.B, None, gamma=ours.scale, backend="torch")
    assert torch.allclose(ours.delta_weight(), theirs, rtol=0, atol=1e-13)
    weights = torch.randn_like(theirs)
    mine = torch.autograd.grad((ours.delta_weight() * weights).sum(), [ours.A, ours.B])
    other = torch.autograd.grad((theirs * weights).sum(), [ours.A, ours.B])
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(mine, other, strict=True))


KERNELS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 1},
    {"kernel_size": 2, "dilation": 2, "bias": False},
    {"kernel_size": 3, "groups": 2},
    {"kernel_size": 3, "groups": 3, "padding": 1},
]


def convolution(keywords: dict[str, Any], c_out: int = 12, rank: int = 2, dropout: float = 0.0) -> LoRAConv2d:
    layer = LoRAConv2d(nn.Conv2d(6, c_out, **keywords).double().requires_grad_(False), rank, 3, dropout)
    randomize([layer.A, layer.B])
    return layer


def pictures() -> torch.Tensor:
    return torch.randn(2, 6, 7, 5, dtype=torch.float64, requires_grad=True)


def in_loralib(layer: LoRAConv2d, rank: int = 2, **keywords: Any) -> Any:
    """The official code's convolution with copies of a site's tensors."""
    loralib, base = pytest.importorskip("loralib"), layer.base
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    settings = {name: getattr(base, name) for name in names} | {"bias": base.bias is not None} | keywords
    theirs = loralib.Conv2d(6, base.out_channels, base.kernel_size[0], r=rank, lora_alpha=3, **settings).double()
    for other, mine in ((theirs.lora_A, layer.A), (theirs.lora_B, layer.B), (theirs.conv.weight, base.weight)):
        copy_to(other, mine)
    if base.bias is not None:
        copy_to(theirs.conv.bias, base.bias)
    return theirs


@pytest.mark.parametrize("c_out", [12, 24])
@pytest.mark.parametrize("keywords", KERNELS)
def test_convolution_equals_loralib(keywords: dict[str, Any], c_out: int) -> None:
    ours = convolution(keywords, c_out)
    theirs, x = in_loralib(ours), pictures()
    assert ours.thin == (c_out > 2 * ours.kernel**2 and "groups" not in keywords)
    mine, other = ours(x), theirs(x)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)
    weights = torch.randn_like(mine)
    a = torch.autograd.grad((mine * weights).sum(), [x, ours.A, ours.B])
    b = torch.autograd.grad((other * weights).sum(), [x, theirs.lora_A, theirs.lora_B])
    assert all(torch.allclose(p, q, rtol=0, atol=1e-10) and p.abs().max() > 0.01 for p, q in zip(a, b, strict=True))
    theirs.eval()
    assert torch.allclose(ours.merged()["weight"], theirs.conv.weight, rtol=0, atol=1e-13)
    ours.strength = -0.5
    changed = twin(ours.base)
    copy_to(changed.weight, ours.merged()["weight"])
    assert torch.allclose(ours(x), changed(x), rtol=0, atol=1e-11)


def test_convolution_changes_its_kernel_in_rank_r_k_squared() -> None:
    layer = convolution({"kernel_size": 3}, 24)
    values = torch.linalg.svdvals(layer.delta_weight().flatten(1))
    assert layer.rank == 18
    assert values[17] > 1e-3
    assert values[18] < 1e-12


def test_kernel_s_change_is_formed_only_where_the_thin_convolutions_are_larger() -> None:
    for c_out, formed in ((24, False), (12, True)):
        layer, x = convolution({"kernel_size": 3}, c_out), pictures()
        assert ((c_out, 6, 3, 3) in matrices_computed(lambda: layer(x))) == formed  # noqa: B023


def test_a_of_a_convolution_starts_within_the_inverse_root_of_its_columns_and_b_at_zero() -> None:
    layer = LoRAConv2d(nn.Conv2d(100, 50, 4), 8, 16, 0.0)
    assert not layer.B.any()
    assert 0.99 / 20 < layer.A.abs().max() <= 1 / 20


def test_counts_of_a_convolution_of_stable_diffusion_here_and_in_peft() -> None:
    """r k^2 (c_in + c_out / g) values, where r (c_in k^2 + c_out) is what a convolution to r channels takes."""
    base = nn.Conv2d(320, 320, 3)
    adapter = attach(nn.ModuleDict({"conv1": twin(base).to("meta")}), rank=4, targets=["conv1"])
    assert adapter.count() == 4 * 9 * (320 + 320)
    theirs = in_peft("LoraConfig", base, r=4)
    assert sum(p.numel() for n, p in theirs.named_parameters() if "lora_" in n) == 4 * (320 * 9 + 320)


@pytest.mark.parametrize("k", [1, 3])
def test_peft_and_lycoris_change_a_kernel_by_other_factors_equal_for_a_single_pixel(k: int) -> None:
    ours = convolution({"kernel_size": k}, 24)
    theirs = in_peft("LoraConfig", ours.base, r=2, lora_alpha=3)
    A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    assert (A.shape, B.shape) == ((2, 6, k, k), (24, 2, 1, 1))
    randomize([A, B])
    change, x = theirs.get_delta_weight("default"), pictures()
    assert torch.linalg.matrix_rank(change.flatten(1)) == 2  # at k = 3 ours has 18
    functional = pytest.importorskip("lycoris.functional.locon")
    lycoris = functional.diff_weight(A, B, None, gamma=1.5, backend="torch")
    assert torch.allclose(lycoris.view_as(change), change, rtol=0, atol=1e-13)
    assert A.numel() == ours.A.numel()
    assert B.numel() * k * k == ours.B.numel()
    if k == 1:
        copy_to(ours.A, A)
        copy_to(ours.B, B)
        assert torch.allclose(ours(x), theirs(x), rtol=0, atol=1e-11)


def test_peft_ignores_dilation_and_padding_mode_of_a_convolution() -> None:
    dilated = in_peft("LoraConfig", nn.Conv2d(6, 8, 3, dilation=2).double(), r=2)
    with pytest.raises(RuntimeError, match="must match the size"):
        dilated(pictures())
    theirs = in_peft("LoraConfig", nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular").double(), r=2)
    randomize([theirs.lora_B["default"].weight])
    merged, x = twin(theirs.base_layer), pictures()
    copy_to(merged.weight, merged.weight + theirs.get_delta_weight("default"))
    assert torch.allclose(theirs(x)[..., 1:-1, 1:-1], merged(x)[..., 1:-1, 1:-1], rtol=0, atol=1e-11)
    assert not torch.allclose(theirs(x), merged(x), atol=1e-2)


def test_loralib_has_no_dropout_in_convolutions_and_this_has_it_on_the_branch_s_input() -> None:
    ours = convolution({"kernel_size": 3}, 24, dropout=0.5)
    theirs, x = in_loralib(ours, lora_dropout=0.5), pictures()
    assert torch.equal(theirs(x), theirs(x))
    torch.manual_seed(5)
    dropped = ours(x)
    torch.manual_seed(5)
    assert torch.allclose(dropped, ours.base(x) + ours.delta(F.dropout(x, 0.5)), rtol=0, atol=1e-12)
    assert not torch.allclose(dropped, theirs(x), atol=1e-2)
    assert torch.allclose(ours.eval()(x), theirs(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("rank", [2, 4])
def test_convolutions_of_the_unet_are_trained_merged_and_detached(rank: int) -> None:
    assert_trained_merged_and_detached(lambda model: attach(model, rank=rank, targets=CONVOLUTIONS_OF_THE_UNET))


@pytest.mark.parametrize("claim", ["identity-at-init", "saves", "strength", "device-dtype", "trained-tensors-learn"])
def test_claims_hold_for_convolutions_too(claim: str) -> None:
    """Rank 2 takes thin convolutions at the small U-Net's width of 32, and forms the change of the first one."""
    expected = Expected(
        True, True, True, "linear", {"targets": [*CONVOLUTIONS_OF_THE_UNET, "embed", "head"], "rank": 2}
    )
    result = measure(claim, Trial(load("lora"), "unet", expected))
    assert result.status == "verified", result


@pytest.mark.parametrize(
    ("layer", "message"),
    [(nn.Conv2d(4, 4, (3, 2)), r"kernel of \(3, 2\); .* square kernels"), (nn.Conv1d(4, 4, 3), "is a Conv1d")],
)
def test_other_kernels_and_convolutions_are_refused(layer: nn.Module, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        attach(nn.ModuleDict({"q": layer}), targets=["q"])


def test_loralib_takes_a_merge_out_up_to_rounding_and_this_bit_for_bit() -> None:
    loralib = pytest.importorskip("loralib")
    theirs = loralib.Linear(64, 64, r=4)
    randomize([theirs.lora_B])
    kept = theirs.weight.detach().clone()
    theirs.eval()
    theirs.train()
    assert not torch.equal(theirs.weight, kept)
    assert torch.allclose(theirs.weight, kept, atol=1e-6)
    model = pretrained("decoder")
    adapter = attach(model)
    randomize(adapter.parameters())
    name = "stack.blocks.0.attention.q.base.weight"
    kept = model.get_parameter(name).clone()
    adapter.merge()
    adapter.unmerge()
    assert torch.equal(model.get_parameter(name), kept)


def test_a_copied_model_keeps_its_own_factors() -> None:
    model = pretrained("decoder")
    adapter = attach(model)
    other = twin(model)
    batch = model.batch(0)
    before = other(batch)
    randomize(adapter.parameters())
    assert torch.equal(other(batch), before)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be at least 1"),
        ({"alpha": 0}, "alpha is 0; it must be positive"),
        ({"dropout": 1.0}, "below 1"),
        ({"bias": "some"}, "allowed: none, lora_only, all"),
        ({"targets": ["norm1"]}, "is a LayerNorm; LoRA adapts linear layers, embeddings and Conv2d"),
        ({"targets": ["query"]}, "no module named query"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, object], message: str) -> None:
    assert_refused(attach, keywords, message)
