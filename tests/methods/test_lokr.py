"""LoKr: what LyCORIS and its code say about it, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.lokr import LoKrLayer, attach, factorization

from .parity import (
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
    twin,
)
from .refused import assert_refused
from .unet_convolutions import CONVOLUTIONS_OF_THE_UNET, assert_trained_merged_and_detached

MORE_SHAPES = [*SHAPES, (24, 40), (13, 7)]
IMAGE = (12, 5, 4)
"""Channels, height and width."""
CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": 2, "dilation": 2, "padding": 2},
    {"kernel_size": 1},
    {"kernel_size": 3, "groups": 2},
]
WAYS: list[dict[str, Any]] = [{}, {"rank": 1}, {"rank": 1, "both": True}, {"rank": 1, "tucker": True}]
"""Whole factors, a split right one, both split, and with a core."""


def moved(layer: LoKrLayer) -> LoKrLayer:
    randomize([p for p in layer.parameters() if p.requires_grad])
    return layer


def site(d_in: int = 12, d_out: int = 8, factor: int | None = None, rank: int | None = None, **ways: Any) -> LoKrLayer:
    return moved(LoKrLayer(linear(d_in, d_out).requires_grad_(False), factor, rank, 3.0, **ways))


def convolution(keywords: dict[str, Any], rank: int | None = None, **ways: Any) -> LoKrLayer:
    base = nn.Conv2d(IMAGE[0], 8, **keywords).double().requires_grad_(False)
    return moved(LoKrLayer(base, None, rank, 3.0, **ways))


def trained(layer: LoKrLayer) -> int:
    return sum(p.numel() for p in layer.parameters() if p.requires_grad)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, *IMAGE, dtype=torch.float64)


def on_images(layer: nn.Module) -> Any:
    """A layer that takes flat images, as the comparison makes them."""
    return lambda x: layer(x.view(-1, *IMAGE))


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        (127, None, (1, 127)),
        (128, None, (8, 16)),
        (250, None, (10, 25)),
        (360, None, (18, 20)),
        (512, None, (16, 32)),
        (1024, None, (32, 32)),
        (128, 4, (4, 32)),
        (250, 4, (2, 125)),
        (360, 16, (15, 24)),
        (12, 6, (3, 4)),
        (7, 7, (1, 7)),
        (1, None, (1, 1)),
    ],
)
def test_factors_of_a_dimension(size: int, factor: int | None, expected: tuple[int, int]) -> None:
    assert factorization(size, factor) == expected


@pytest.mark.parametrize(
    ("shape", "keywords", "count"),
    [
        ((768, 768), {"factor": None, "rank": 8}, 24 * 24 + 8 * 64),
        ((768, 768), {"factor": 8, "rank": None}, 9_280),
        ((12, 8), {"factor": None, "rank": 2}, 22),
        ((12, 8), {"factor": None, "rank": 1}, 14),
        ((12, 8), {"factor": 4, "rank": 1, "both": True}, 13),
        ((768, 768), {"factor": 1, "rank": None}, 768 * 768 + 1),
    ],
)
def test_counts(shape: tuple[int, int], keywords: dict[str, Any], count: int) -> None:
    base = nn.Linear(*shape, device="meta").requires_grad_(False)
    assert trained(LoKrLayer(base, **keywords)) == count


@pytest.mark.parametrize(
    ("ways", "count"), list(zip(WAYS, [2 * 3 + 4 * 4 * 9, 6 + 4 + 36, 5 + 4 + 36, 6 + 4 + 4 + 9], strict=True))
)
def test_counts_of_a_convolution(ways: dict[str, Any], count: int) -> None:
    assert trained(convolution({"kernel_size": 3}, **ways)) == count


@pytest.mark.parametrize("ways", [{}, {"rank": 2, "alpha": 2.0}, {"rank": 1, "both": True, "factor": None}])
def test_start_is_the_base_model_and_the_zero_side_learns_first(ways: dict[str, Any]) -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model, **ways)
    assert torch.equal(model(batch), before)
    zero = {name for name, p in adapter.named_parameters() if not p.any()}
    assert {name.rpartition(".")[2] for name in zero} == ({"A"} if ways else {"D"})
    model.loss(batch).backward()
    assert zero == {name for name, p in adapter.named_parameters() if p.grad is not None and p.grad.any()}


def test_random_factors_start_within_the_inverse_root_of_their_width() -> None:
    layer = LoKrLayer(nn.Conv2d(400, 900, 3), None, 4, both=True, tucker=True)
    assert layer.T is not None
    for tensor, width in ((layer.C1, 4), (layer.C2, 20), (layer.B, 4), (layer.T, 4 * 9)):
        assert 0.9 / math.sqrt(width) < tensor.abs().max() <= 1 / math.sqrt(width)


@pytest.mark.parametrize(("rank", "expected"), [(None, 8), (1, 2)])
def test_ranks_multiply(rank: int | None, expected: int) -> None:
    layer = site(rank=rank)
    assert torch.linalg.matrix_rank(layer.delta_weight()) == expected
    assert torch.linalg.matrix_rank(layer.left()) * torch.linalg.matrix_rank(layer.right()) == expected


def test_small_factor_stands_on_the_left() -> None:
    layer = site()
    C, D, change = layer.left(), layer.right(), layer.delta_weight()
    for i, s, j, t in ((0, 0, 0, 0), (1, 2, 2, 3), (0, 3, 1, 0)):
        assert change[i * 4 + s, j * 4 + t] == C[i, j] * D[s, t]
    assert not torch.allclose(change, torch.kron(D, C), atol=1e-2)


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("shape", MORE_SHAPES)
def test_forward_is_the_definition(shape: tuple[int, int], ways: dict[str, Any]) -> None:
    layer = site(*shape, **ways)
    C = layer.C if layer.C is not None else layer.C1 @ layer.C2
    D = layer.D if layer.D is not None else 3 * layer.B @ layer.A
    change = torch.kron(C, D)
    assert torch.allclose(layer.delta_weight(), change, rtol=0, atol=1e-12)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    assert torch.allclose(layer(x), layer.base(x) + x @ change.T, rtol=0, atol=1e-11)


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("keywords", CONVOLUTIONS)
def test_forward_of_a_convolution_is_the_definition(keywords: dict[str, Any], ways: dict[str, Any]) -> None:
    layer = convolution({**keywords, "padding_mode": "circular"}, **ways)
    D = layer.right()
    first, second = layer.left()[1, 0] * D, layer.left()[1, 1] * D
    v_p, v_q = D.shape[:2]
    change = layer.delta_weight()
    assert torch.allclose(change[v_p:, :v_q], layer.scale * first, rtol=0, atol=1e-13)
    assert torch.allclose(change[v_p : 2 * v_p, v_q : 2 * v_q], layer.scale * second, rtol=0, atol=1e-13)
    merged = twin(layer.base)
    x = images()
    for c in (1.0, -0.5):
        layer.strength = c
        copy_to(merged.weight, layer.base.weight + c * change)
        assert torch.allclose(layer(x), merged(x), rtol=0, atol=1e-10)
        assert torch.allclose(layer.merged()["weight"], merged.weight, rtol=0, atol=0)
    assert torch.allclose(layer(x[0]), merged(x)[0], rtol=0, atol=1e-10)


def test_kernel_with_a_core_is_tucker_s_product() -> None:
    layer = convolution({"kernel_size": (3, 2)}, 1, tucker=True)
    assert layer.T is not None
    assert layer.T.shape == (1, 1, 3, 2)
    wide = LoKrLayer(nn.Conv2d(64, 49, (3, 2)).double(), None, 2, both=True, tucker=True)
    moved(wide)
    assert wide.T is not None
    expected = torch.einsum("ijkl,si,jt->stkl", wide.T, wide.B, wide.A)
    assert torch.allclose(wide.right(), expected, rtol=0, atol=1e-13)
    x = torch.randn(2, 64, 5, 4, dtype=torch.float64)
    assert torch.allclose(wide.delta(x), F.conv2d(x, wide.delta_weight()), rtol=0, atol=1e-10)


def test_scale_is_one_where_nothing_is_split() -> None:
    assert site(rank=2).D is not None
    assert site(rank=2).scale == 1
    assert site(rank=1).scale == 3
    assert site(24, 40, rank=2).scale == 1.5


def test_pointwise_convolutions_need_no_core() -> None:
    layer = convolution({"kernel_size": 1}, 1, tucker=True)
    assert layer.T is None
    assert layer.A.shape == (1, 4, 1, 1)


@pytest.mark.parametrize("ways", [{}, {"rank": 2}, {"rank": 2, "both": True}])
def test_neither_the_change_nor_a_split_factor_is_formed(ways: dict[str, Any]) -> None:
    layer = LoKrLayer(nn.Linear(70, 48).requires_grad_(False), None, ways.get("rank"), both="both" in ways)
    x = torch.randn(3, 70)
    formed = matrices_computed(lambda: layer(x))
    assert not {(48, 70), (70, 48)} & formed
    assert ((8, 10) in formed) == (not ways)  # the gradient of a whole right factor


def kept_beside(x: Tensor, layer: LoKrLayer) -> list[int]:
    """Sizes of what a forward pass keeps for the backward pass, the input and parameters left out."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer.delta(x)
    given = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters())}
    return sorted(storage.nbytes() // x.element_size() for place, storage in storages.items() if place not in given)


@pytest.mark.parametrize("both", [False, True])
def test_a_split_factor_leaves_thin_matrices_alone_for_the_backward_pass(both: bool) -> None:
    """X A^T and C X A^T, of u_q x r and u_p x r, beside C; X D^T would be of u_q x v_p."""
    layer = LoKrLayer(nn.Linear(70, 48).requires_grad_(False), None, 2, both=both)
    C, thin = 6 * 7, [2 * 7 * 30, 2 * 6 * 30]
    assert sorted([C, *thin]) == kept_beside(torch.randn(3, 10, 70, requires_grad=True), layer)


def test_kernel_of_a_convolution_is_not_formed() -> None:
    layer = LoKrLayer(nn.Conv2d(16, 9, 3).requires_grad_(False), None, None)
    maps = torch.randn(2, 16, 5, 5)
    assert (9, 16, 3, 3) not in matrices_computed(lambda: layer(maps))


@pytest.mark.parametrize("c", [-1.0, 0.0, 2.0])
def test_change_is_linear_in_gamma_and_in_either_side_and_quadratic_in_both(c: float) -> None:
    layer = site()
    change = layer.delta_weight()

    def scaled(*names: str) -> Tensor:
        other = twin(layer)
        with torch.no_grad():
            for name in names:
                getattr(other, name).mul_(c)
        return other.delta_weight()

    assert torch.allclose(scaled("C"), c * change, rtol=0, atol=1e-14)
    assert torch.allclose(scaled("D"), c * change, rtol=0, atol=1e-14)
    assert torch.allclose(scaled("C", "D"), c * c * change, rtol=0, atol=1e-14)
    layer.strength = c
    assert torch.allclose(layer.merged()["weight"], layer.base.weight + c * change, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "claim", ["mergeable", "saves", "two-faces", "strength", "detachable", "device-dtype", "trained-tensors-learn"]
)
@pytest.mark.parametrize("extra", [{"rank": 2}, {"rank": 1, "both": True}], ids=["right", "both"])
def test_claims_hold_for_split_factors(claim: str, extra: dict[str, Any]) -> None:
    expected = Expected(True, True, True, "linear", {"factor": 4, "targets": ["q", "up"], **extra})
    result = measure(claim, Trial(load("lokr"), "decoder", expected))
    assert result.status == "verified", result


@pytest.mark.parametrize("ways", WAYS)
def test_network_of_convolutions_is_adapted_merged_and_detached(ways: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(24, 6)).double()
    x = images()
    before, weights = model(x), twin(model).state_dict()
    adapter = attach(model, targets=["0", "2", "4"], **ways)
    assert torch.equal(model(x), before)
    randomize(adapter.parameters())
    adapted = model(x)
    assert (adapted - before).abs().max() > 0.1
    adapter.merge()
    assert isinstance(model[0], nn.Conv2d)
    assert torch.allclose(model(x), adapted, rtol=0, atol=1e-9)
    adapter.unmerge()
    assert torch.equal(model(x), adapted)
    adapter.detach()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_convolutions_run_on_meta_and_in_bfloat16() -> None:
    for ways in WAYS:
        layer = convolution({"kernel_size": 3}, **ways)
        low = twin(layer).bfloat16()
        low(images().bfloat16()).sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in low.parameters() if p.requires_grad)
        layer.to("meta")(images().to("meta")).sum().backward()


def pairs(ours: LoKrLayer, theirs: Any, pick: Callable[[Any], Tensor]) -> list[tuple[Tensor, Tensor, Any]]:
    """Our tensors beside a library's, filled with our values; with a core their w2_a is (r, v_p)."""
    found: list[tuple[Tensor, Tensor, Any]] = []
    names = {"C": "w1", "C1": "w1_a", "C2": "w1_b", "D": "w2", "B": "w2_a", "A": "w2_b", "T": "t2"}
    for name, tensor in ours.named_parameters():
        if name not in names:
            continue
        other = pick(getattr(theirs, f"lokr_{names[name]}"))
        transposed = name == "B" and ours.T is not None
        copy_to(other, tensor.T if transposed else tensor)

        def back(gradient: Tensor, shape: torch.Size = tensor.shape, transposed: bool = transposed) -> Tensor:
            return gradient.T if transposed else gradient.view(shape)

        found.append((tensor, other, back))
    return found


def default(tensors: Any) -> Tensor:
    tensor: Tensor = tensors["default"]
    return tensor


def in_lycoris(layer: LoKrLayer, rank: int | None, both: bool = False, tucker: bool = False, **keywords: Any) -> Any:
    """The library's module around a copy of the base layer, in float64; no rank: its full matrices."""
    modules = pytest.importorskip("lycoris.modules.lokr")
    settings = {"lora_dim": rank or 1, "alpha": 3, "decompose_both": both, "use_tucker": tucker, **keywords}
    return modules.LokrModule("q", twin(layer.base), full_matrix=rank is None, **settings).double()


def peft_settings(rank: int | None, both: bool = False, tucker: bool = False) -> dict[str, Any]:
    """peft has no full matrices but through a large rank, and divides by that."""
    if rank is None:
        return {"r": 100, "alpha": 100}
    return {"r": rank, "alpha": 3, "decompose_both": both, "use_effective_conv2d": tucker}


@pytest.mark.parametrize("ways", WAYS[:3])
@pytest.mark.parametrize("shape", MORE_SHAPES)
def test_equals_peft(shape: tuple[int, int], ways: dict[str, Any]) -> None:
    ours = site(*shape, **ways)
    theirs = in_peft("LoKrConfig", ours.base, **peft_settings(**{"rank": None, **ways}))
    assert_same(ours, theirs, pairs(ours, theirs, default), shape[0], 1e-10)
    assert torch.allclose(theirs.get_delta_weight("default"), ours.delta_weight(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bypass", [False, True])
@pytest.mark.parametrize("ways", WAYS[:3])
@pytest.mark.parametrize("shape", MORE_SHAPES)
def test_equals_lycoris(shape: tuple[int, int], ways: dict[str, Any], bypass: bool) -> None:
    ours = site(*shape, **ways)
    theirs = in_lycoris(ours, **{"rank": None, **ways}, bypass_mode=bypass)
    assert_same(ours, theirs, pairs(ours, theirs, lambda tensor: tensor), shape[0], 1e-10)


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("keywords", CONVOLUTIONS)
def test_convolutions_equal_peft(keywords: dict[str, Any], ways: dict[str, Any]) -> None:
    ours = convolution(keywords, **ways)
    theirs = in_peft("LoKrConfig", ours.base, **peft_settings(**{"rank": None, **ways}))
    assert_same(on_images(ours), on_images(theirs), pairs(ours, theirs, default), 12 * 5 * 4, 1e-9)


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("keywords", CONVOLUTIONS)
def test_convolutions_equal_lycoris(keywords: dict[str, Any], ways: dict[str, Any]) -> None:
    ours = convolution(keywords, **ways)
    theirs = in_lycoris(ours, **{"rank": None, **ways})
    assert_same(on_images(ours), on_images(theirs), pairs(ours, theirs, lambda tensor: tensor), 12 * 5 * 4, 1e-9)


def test_libraries_zero_opposite_sides_at_the_start() -> None:
    theirs = in_peft("LoKrConfig", linear(24, 40), r=1)
    assert not theirs.lokr_w1["default"].any()
    assert theirs.lokr_w2_b["default"].any()
    theirs = in_peft("LoKrConfig", linear(24, 40), r=1, init_weights="lycoris")
    assert theirs.lokr_w1["default"].any()
    assert not theirs.lokr_w2_b["default"].any()
    theirs = in_lycoris(site(24, 40), 1)
    assert theirs.lokr_w1.any()
    assert not theirs.lokr_w2_b.any()


def test_libraries_factor_otherwise_where_the_factor_is_above_the_root_and_divides() -> None:
    lycoris = pytest.importorskip("lycoris.functional.general").factorization
    peft = pytest.importorskip("peft.tuners.lokr.layer").factorization
    for size in range(1, 150):
        for factor in (-1, *range(1, 40)):
            ours = factorization(size, None if factor < 0 else factor)
            if factor**2 <= size or size % factor or factor < 0:
                assert lycoris(size, factor) == peft(size, factor) == ours
            else:
                assert peft(size, factor) == (factor, size // factor)
                assert lycoris(size, factor) == (size // factor, factor)
    assert factorization(12, 6) == (3, 4)
    assert peft(12, 6) == (6, 2)
    assert lycoris(12, 6) == (2, 6)


def test_table_in_the_source_of_lycoris_is_not_what_its_code_gives() -> None:
    lycoris = pytest.importorskip("lycoris.functional.general").factorization
    assert "360 -> 8, 45" in lycoris.__doc__
    assert lycoris(360, -1) == (18, 20)
    assert "360 -> 12, 30" in lycoris.__doc__
    assert lycoris(360, 16) == (15, 24)


def test_peft_divides_by_a_rank_that_splits_nothing_and_lycoris_does_not() -> None:
    theirs = in_peft("LoKrConfig", linear(12, 8), r=8, alpha=4)
    assert "default" in theirs.lokr_w2
    assert theirs.scaling["default"] == 0.5
    assert in_lycoris(site(), 8).scale == 1


def test_lycoris_merges_with_the_square_of_the_scale() -> None:
    ours = site(24, 40, rank=2)
    theirs = in_lycoris(ours, 2)
    pairs(ours, theirs, lambda tensor: tensor)
    x = torch.randn(3, 24, dtype=torch.float64)
    assert torch.allclose(theirs(x), ours(x), rtol=0, atol=1e-12)
    merged, _ = theirs.get_merged_weight()
    assert torch.allclose(merged, ours.base.weight + 1.5 * ours.delta_weight(), rtol=0, atol=1e-12)
    assert not torch.allclose(F.linear(x, merged, ours.base.bias), theirs(x), atol=1e-2)


def test_libraries_ignore_the_padding_mode_of_a_convolution() -> None:
    ours = convolution({"kernel_size": 3, "padding": 1, "padding_mode": "circular"})
    x = images()
    peft = in_peft("LoKrConfig", ours.base, **peft_settings(None))
    for theirs, pick in ((peft, default), (in_lycoris(ours, None), same)):
        pairs(ours, theirs, pick)
        assert torch.allclose(theirs(x)[..., 1:-1, 1:-1], ours(x)[..., 1:-1, 1:-1], rtol=0, atol=1e-10)
        assert not torch.allclose(theirs(x), ours(x), atol=1e-2)


def test_peft_takes_a_merge_out_up_to_rounding_and_this_bit_for_bit() -> None:
    theirs = in_peft("LoKrConfig", linear(12, 8), r=2).float()
    randomize([p for p in theirs.parameters() if p.requires_grad])
    assert 0 < max(drift(theirs)) < 1e-6
    assert_no_drift(attach)


@pytest.mark.parametrize("ways", [{}, {"rank": 2, "tucker": True}], ids=["whole", "tucker"])
def test_convolutions_of_the_unet_are_trained_merged_and_detached(ways: dict[str, Any]) -> None:
    assert_trained_merged_and_detached(lambda model: attach(model, factor=4, targets=CONVOLUTIONS_OF_THE_UNET, **ways))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"factor": 0}, "factor is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": 8, "factor": 4}, "rank is 8; it splits nothing, as right factors are at most 16 wide"),
        ({"rank": 1, "alpha": 0}, "alpha is 0; it must be positive"),
        ({"both": True}, "need a rank"),
        ({"tucker": True}, "need a rank"),
        ({"targets": ["norm1"]}, "is a LayerNorm; LoKr adapts linear layers and two-dimensional convolutions"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)


def test_other_convolutions_are_refused() -> None:
    with pytest.raises(AdapterError, match="q is a Conv1d"):
        attach(nn.ModuleDict({"q": nn.Conv1d(4, 4, 3)}))
