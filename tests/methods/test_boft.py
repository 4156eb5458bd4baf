"""BOFT: what the paper and the libraries say about it, checked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.boft import ButterflyLayer, attach, stage
from reference_impls.reparameterized.oft import RotatedLinear, cayley, skew

from .parity import (
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

CASES = [(12, 8, 1, 4), (16, 16, 3, 4), (16, 24, 4, 2), (24, 8, 2, 6), (12, 8, 1, 3)]
"""(d_in, d_out, m, b)."""
IMAGE = (8, 5, 5)
"""Channels, height and width."""


def moved(layer: ButterflyLayer, spread: float = 0.5) -> ButterflyLayer:
    randomize([p for p in layer.parameters() if p.requires_grad], spread)
    return layer


def site(d_in: int = 16, d_out: int = 8, factors: int = 3, size: int = 4, **keywords: Any) -> ButterflyLayer:
    return moved(ButterflyLayer(linear(d_in, d_out).requires_grad_(False), factors, size, **keywords))


def convolution(keywords: dict[str, Any], factors: int = 2, size: int = 4, rescale: bool = False) -> ButterflyLayer:
    base = nn.Conv2d(IMAGE[0], 6, **keywords).double().requires_grad_(False)
    return moved(ButterflyLayer(base, factors, size, rescale))


def images(count: int = 2) -> Tensor:
    return torch.randn(count, *IMAGE, dtype=torch.float64)


def order(d: int, size: int, k: int) -> list[int]:
    """Coordinates in the order in which blocks of stage k (from 0) take them: half-blocks that are 2^k apart."""
    half, reach = size / 2, 2**k
    found: list[int] = []
    for start in range(0, d, int(2 * reach * half)):
        for j in range(reach):
            for side in (0, 1):
                first = start + (side * reach + j) * half
                found += range(int(first), int(first + half))
    return found


def factor(G: Tensor, k: int) -> Tensor:
    """F_{k+1} = P^T blockdiag(G) P from explicit permutation matrices, (d, d)."""
    D = torch.block_diag(*G)
    if k == 0:
        return D
    P = torch.eye(len(D), dtype=D.dtype)[order(len(D), G.shape[-1], k)]
    return P.T @ D @ P


def whole(layer: ButterflyLayer) -> Tensor:
    """R = F_m .. F_1, (d, d)."""
    G = layer.blocks()
    R = torch.eye(G.shape[1] * G.shape[2], dtype=G.dtype)
    for k in range(len(G)):
        R = factor(G[k], k) @ R
    return R


@pytest.mark.parametrize(
    ("d", "factors", "size", "count"),
    [(512, 9, 2, 2_304), (512, 1, 16, 3_840), (768, 2, 8, 2 * 768 * 7 // 2), (12, 1, 4, 18), (12, 1, 12, 66)],
)
def test_counts(d: int, factors: int, size: int, count: int) -> None:
    layer = ButterflyLayer(nn.Linear(d, 8), factors, size)
    assert layer.q.numel() == count == factors * d * (size - 1) // 2


def test_start_is_the_base_model() -> None:
    variants: list[dict[str, Any]] = [{}, {"rescale": True}, {"factors": 1, "block_size": 32, "targets": ["q"]}]
    for keywords in variants:
        model = pretrained("decoder").double()
        batch = model.batch(0)
        before = model(batch)
        attach(model, **keywords)
        assert torch.allclose(model(batch), before, rtol=0, atol=1e-13)


def test_stages_couple_half_blocks_at_doubling_distances() -> None:
    assert order(16, 4, 1)[:8] == [0, 1, 4, 5, 2, 3, 6, 7]
    assert order(16, 4, 2) == [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    rows = torch.arange(16.0)[None]
    for k, distance in ((0, 2), (1, 4), (2, 8)):
        swap = torch.eye(4).roll(2, 0).expand(4, 4, 4)  # exchanges the halves of every block
        moved_to = stage(rows, swap, k)[0]
        assert torch.equal((moved_to - rows[0]).abs(), torch.full((16,), float(distance)))


def test_paper_s_butterfly_is_dense_after_its_last_stage_and_not_before() -> None:
    layer = site(16, 8, 3, 4)
    G = layer.blocks()
    product, zeros = torch.eye(16, dtype=torch.float64), []
    for k in (2, 1, 0):
        product = product @ factor(G[k], k)
        zeros.append(int((product == 0).sum()))
    assert zeros == [192, 128, 0]
    assert torch.allclose(product, whole(layer), rtol=0, atol=1e-14)
    assert torch.allclose(product.T @ product, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("d", "size", "dense"), [(16, 2, 4), (512, 16, 6), (32, 4, 4)])
def test_one_stage_more_than_the_binary_logarithm_of_the_blocks_is_dense(d: int, size: int, dense: int) -> None:
    assert dense == 1 + math.log2(d / size)
    for factors, reached in ((dense, True), (dense - 1, False)):
        layer = ButterflyLayer(linear(d, 2), factors, size)
        randomize([layer.q])
        x = torch.zeros(d, d, dtype=torch.float64) + torch.eye(d, dtype=torch.float64)
        for k in reversed(range(factors)):
            x = stage(x, layer.blocks()[k], k)
        assert bool((x != 0).all()) == reached


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("d_in", "d_out", "factors", "size"), CASES)
def test_forward_is_the_definition_for_few_rows_and_for_many(
    d_in: int, d_out: int, factors: int, size: int, rescale: bool
) -> None:
    layer = site(d_in, d_out, factors, size, rescale=rescale)
    R, W, s = whole(layer), layer.base.weight, torch.ones(d_out) if layer.s is None else layer.s
    assert torch.allclose(layer.merged()["weight"], s[:, None] * (W @ R.T), rtol=0, atol=1e-13)
    for count in (2, 50):
        x = torch.randn(count, d_in, dtype=torch.float64)
        expected = s * (x @ R @ W.T) + layer.base.get_parameter("bias")
        assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)
        assert torch.allclose(layer(x.view(2, -1, d_in)).flatten(0, 1), expected, rtol=0, atol=1e-12)


def test_rows_that_are_turned_are_the_fewer_ones() -> None:
    layer = ButterflyLayer(nn.Linear(32, 24).requires_grad_(False), 2, 4)
    for count, weight_turned in ((5, False), (100, True)):
        x = torch.randn(count, 32)
        shapes = matrices_computed(lambda x=x: layer(x))  # type: ignore[misc]
        assert not {(32, 32), (64, 64)} & shapes
        assert ((count, 8, 4) in shapes) == (not weight_turned)
        assert ((24, 8, 4) in shapes) == weight_turned


def test_one_stage_is_oft() -> None:
    for size in (4, 12):
        layer = site(12, 8, 1, size)
        assert isinstance(layer.base, nn.Linear)
        oft = RotatedLinear(layer.base, 12 // size, False, False)
        copy_to(oft.q, layer.q)
        x = torch.randn(3, 12, dtype=torch.float64)
        assert torch.allclose(layer(x), oft(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_rotation_is_orthogonal_however_large_and_neurons_keep_their_angles(spread: float) -> None:
    layer = moved(ButterflyLayer(linear(16, 8).requires_grad_(False), 3, 4), spread)
    R, eye = whole(layer), torch.eye(16, dtype=torch.float64)
    assert torch.allclose(R.T @ R, eye, rtol=0, atol=1e-12)
    W, turned = layer.base.weight, layer.merged()["weight"]
    assert torch.allclose(turned @ turned.T, W @ W.T, rtol=0, atol=1e-12)
    assert not torch.allclose(turned.T @ turned, W.T @ W, atol=1e-2)


def test_learned_scale_changes_lengths_and_no_angles() -> None:
    layer = site(rescale=True)
    assert layer.s is not None
    W, turned = layer.base.weight, layer.merged()["weight"]
    assert torch.allclose(turned.norm(dim=1), layer.s.abs() * W.norm(dim=1))
    before, after = F.normalize(W), F.normalize(turned * layer.s.sign()[:, None])
    assert torch.allclose(after @ after.T, before @ before.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("c", [-1.0, 0.0, 0.5, 3.0])
def test_strength_scales_the_generators_and_stays_orthogonal(c: float) -> None:
    layer = site(rescale=True)
    R = whole(layer)
    layer.strength = c
    turned = whole(layer)
    assert torch.allclose(layer.blocks(), cayley(c * skew(layer.q, 4)), rtol=0, atol=1e-13)
    assert torch.allclose(turned.T @ turned, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)
    assert layer.s is not None
    lengths = layer.merged()["weight"].norm(dim=1) / layer.base.weight.norm(dim=1)
    assert torch.allclose(lengths, (1 + c * (layer.s - 1)).abs())
    if c == 0:
        assert torch.allclose(layer.merged()["weight"], layer.base.weight, rtol=0, atol=0)
    if c == -1:
        G = layer.blocks()
        inverse = factor(G[0], 0) @ factor(G[1], 1) @ factor(G[2], 2)
        assert torch.allclose(inverse, R.T, rtol=0, atol=1e-13)
        assert not torch.allclose(turned, R.T, atol=1e-2)


def dropped(layer: ButterflyLayer) -> Tensor:
    """Which blocks are the identity, (m, d / b)."""
    G = layer.blocks(dropped=True)
    return torch.eq(G, torch.eye(G.shape[-1])).flatten(2).all(-1)


@pytest.mark.parametrize(
    ("share", "stages", "counts"), [(0.5, 1.0, [2, 2, 2]), (0.9, 0.4, [0, 3, 3]), (0.2, 1.0, [0] * 3)]
)
def test_dropout_makes_a_share_of_blocks_in_a_share_of_stages_the_identity(
    share: float, stages: float, counts: list[int]
) -> None:
    layer = site(dropout=share, factor_dropout=stages)
    assert sorted(dropped(layer).sum(1).tolist()) == counts
    drawn = {tuple(dropped(layer).flatten().tolist()) for _ in range(30)}
    assert (len(drawn) > 5) == (max(counts) > 0)
    torch.manual_seed(1)
    G = layer.blocks(dropped=True)
    torch.manual_seed(1)
    kept = ~dropped(layer)
    assert torch.equal(G[kept], layer.blocks()[kept])


def test_dropout_is_for_training_alone_and_never_merged() -> None:
    layer = site(dropout=0.5)
    x = torch.randn(4, 16, dtype=torch.float64)
    merged = F.linear(x, layer.merged()["weight"], layer.base.bias)
    assert not torch.allclose(layer(x), merged, atol=1e-3)
    assert torch.allclose(layer.eval()(x), merged, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(
    "keywords",
    [
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        {"kernel_size": (1, 2), "stride": 2, "dilation": 2},
        {"kernel_size": 2, "groups": 2, "bias": False},
    ],
)
def test_convolutions_have_their_flattened_kernels_turned(keywords: dict[str, Any], rescale: bool) -> None:
    layer = convolution(keywords, rescale=rescale)
    kernels = layer.base.weight.flatten(1)
    s = torch.ones(6) if layer.s is None else layer.s
    assert torch.allclose(layer.merged()["weight"].flatten(1), s[:, None] * (kernels @ whole(layer).T), atol=1e-13)
    merged = twin(layer.base)
    copy_to(merged.weight, layer.merged()["weight"])
    x = images()
    assert torch.allclose(layer(x), merged(x), rtol=0, atol=1e-11)


def test_network_of_convolutions_is_adapted_merged_and_detached() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(36, 3)).double()
    x = images()
    before, weights = model(x), twin(model).state_dict()
    adapter = attach(model, factors=2, block_size=2, targets=["0", "2", "4"], rescale=True)
    assert torch.allclose(model(x), before, rtol=0, atol=1e-13)
    randomize(adapter.parameters())
    adapted = model(x)
    assert (adapted - before).abs().max() > 0.1
    adapter.merge()
    assert torch.allclose(model(x), adapted, rtol=0, atol=1e-10)
    adapter.detach()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("claim", "extra"),
    [
        *((c, {"rescale": True}) for c in ("mergeable", "saves", "two-faces", "detachable", "device-dtype")),
        *((c, {"dropout": 0.5}) for c in ("detachable", "device-dtype", "trained-tensors-learn", "family-invariant")),
    ],
)
def test_claims_hold_for_the_variants(claim: str, extra: dict[str, Any]) -> None:
    hyperparameters = {"factors": 3, "block_size": 4, "targets": ["q", "up"], **extra}
    result = measure(claim, Trial(load("boft"), "decoder", Expected(True, True, True, "nonlinear", hyperparameters)))
    assert result.status == "verified", result


class BlockDiagonals:
    """Does what peft's CUDA extension does, blocks (m, n, b, b) to matrices (m, n b, n b), on any device."""

    @staticmethod
    def forward(blocks: Tensor) -> list[Tensor]:
        return [torch.stack([torch.block_diag(*stage_blocks) for stage_blocks in blocks])]

    @staticmethod
    def backward(gradient: Tensor, blocks: Tensor) -> list[Tensor]:
        n, b = blocks.shape[1:3]
        diagonal = gradient.unflatten(-1, (n, b)).unflatten(-3, (n, b)).diagonal(dim1=1, dim2=3)
        return [diagonal.movedim(-1, 1).contiguous()]


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = pytest.importorskip("peft.tuners.boft.layer")
    monkeypatch.setattr(layers, "get_fbd_cuda", lambda: BlockDiagonals)


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a CUDA compiler, but without trying one."""
    layers = pytest.importorskip("peft.tuners.boft.layer")
    monkeypatch.setattr(layers, "get_fbd_cuda", lambda: None)


def free_matrix(layer: ButterflyLayer) -> Tensor:
    """What peft's Q = (A - A^T) / 2 and its inverse rotation make of our entries."""
    upper = -torch.triu(skew(layer.q, layer.block_size)).detach()
    return 2 * upper


def entries(gradient: Tensor) -> Tensor:
    """The gradient of our entries from that of A: Q takes half of A's entry and minus half of its mirror image."""
    rows, columns = torch.triu_indices(gradient.shape[-1], gradient.shape[-1], 1)
    return -(gradient - gradient.mT)[..., rows, columns]


def peft_pairs(ours: ButterflyLayer, theirs: Any) -> list[tuple[Tensor, Tensor, Any]]:
    R, s = theirs.boft_R["default"], theirs.boft_s["default"]
    copy_to(R, free_matrix(ours))
    assert ours.s is not None
    copy_to(s, ours.s)
    return [(ours.q, R, entries), (ours.s, s, Tensor.flatten)]


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize(("d_in", "d_out", "factors", "size"), [(12, 12, 1, 4), *CASES])
def test_equals_peft_with_its_extension(d_in: int, d_out: int, factors: int, size: int) -> None:
    ours = site(d_in, d_out, factors, size, rescale=True)
    theirs = in_peft("BOFTConfig", ours.base, boft_block_size=size, boft_n_butterfly_factor=factors)
    assert_same(ours, theirs, peft_pairs(ours, theirs), d_in, 1e-10)
    theirs.merge()
    assert torch.allclose(ours.merged()["weight"], theirs.base_layer.weight, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("no_extension")
@pytest.mark.parametrize("shape", [(12, 12), (12, 8), (8, 12)])
def test_equals_peft_without_its_extension(shape: tuple[int, int]) -> None:
    ours = site(*shape, 1, 4, rescale=True)
    theirs = in_peft("BOFTConfig", ours.base, boft_block_size=4)
    assert_same(ours, theirs, peft_pairs(ours, theirs), shape[0], 1e-11)


@pytest.mark.usefixtures("extension")
def test_convolutions_equal_peft() -> None:
    ours = convolution({"kernel_size": 3, "padding": 1, "stride": 2}, factors=2, size=4, rescale=True)
    theirs = in_peft("BOFTConfig", ours.base, boft_block_size=4, boft_n_butterfly_factor=2)

    def on_images(layer: nn.Module) -> Any:
        return lambda x: layer(x.view(-1, *IMAGE))

    pairs = peft_pairs(ours, theirs)
    assert_same(on_images(ours), on_images(theirs), pairs, 8 * 5 * 5, 1e-10)


@pytest.mark.usefixtures("no_extension")
def test_peft_without_its_extension_trains_one_factor_whatever_was_asked_for() -> None:
    base = linear(16, 8)
    theirs = in_peft("BOFTConfig", base, boft_block_size=4, boft_n_butterfly_factor=2)
    assert theirs.boft_R["default"].shape == (1, 4, 4, 4)


@pytest.mark.usefixtures("extension")
def test_peft_counts_factors_as_the_paper_does_and_one_less_inside() -> None:
    theirs = in_peft("BOFTConfig", linear(16, 8), boft_block_size=4, boft_n_butterfly_factor=3)
    assert theirs.boft_R["default"].shape == (3, 4, 4, 4)


@pytest.mark.usefixtures("no_extension")
@pytest.mark.parametrize(("shape", "size", "count"), [((12, 8), 4, 56), ((16, 8), 2, 40), ((768, 768), 8, 6_912)])
def test_peft_trains_whole_blocks_and_a_scale(shape: tuple[int, int], size: int, count: int) -> None:
    theirs = in_peft("BOFTConfig", linear(*shape), boft_block_size=size)
    assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == count == shape[0] * size + shape[1]


@pytest.mark.usefixtures("no_extension")
def test_rotation_of_peft_s_blocks_is_the_inverse_of_the_paper_s() -> None:
    theirs = in_peft("BOFTConfig", linear(12, 8), boft_block_size=4)
    A = torch.randn(3, 4, 4, dtype=torch.float64)
    assert torch.allclose(theirs.cayley_batch(A), cayley((A - A.mT) / 2).mT, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("no_extension")
def test_coefficient_on_the_blocks_of_peft_leaves_the_scale() -> None:
    theirs = in_peft("BOFTConfig", linear(12, 8), boft_block_size=4)
    randomize(list(theirs.parameters()), 0.3)
    with torch.no_grad():
        theirs.boft_R["default"].zero_()
    x = torch.randn(3, 12, dtype=torch.float64)
    assert not torch.allclose(theirs(x), theirs.base_layer(x), atol=1e-2)
    ours = site(12, 8, 1, 4, rescale=True)
    ours.strength = 0.0
    assert torch.allclose(ours(x), ours.base(x), rtol=0, atol=1e-14)


@pytest.mark.usefixtures("no_extension")
def test_peft_ignores_the_dilation_of_a_convolution() -> None:
    ours = convolution({"kernel_size": 2, "dilation": 2}, 1, 4, rescale=True)
    theirs = in_peft("BOFTConfig", ours.base, boft_block_size=4)
    assert theirs.base_layer(images()).shape == ours(images()).shape == (2, 6, 3, 3)
    assert theirs(images()).shape == (2, 6, 4, 4)


@pytest.mark.usefixtures("no_extension")
def test_peft_takes_kernels_for_square() -> None:
    with pytest.raises(ValueError, match="72"):  # 8 * 3 * 3
        in_peft("BOFTConfig", nn.Conv2d(8, 6, (3, 2)), boft_block_size=16)
    assert convolution({"kernel_size": (3, 2)}, 1, 16).q.shape == (1, 3, 120)


@pytest.mark.usefixtures("no_extension")
def test_rounding_piles_up_in_merges_of_peft_and_not_here() -> None:
    theirs = in_peft("BOFTConfig", linear(12, 8), boft_block_size=4).float()
    randomize([p for p in theirs.parameters() if p.requires_grad], 0.3)
    errors = drift(theirs)
    assert 0 < errors[0] < 1e-5
    assert errors[-1] > 2 * errors[0]
    assert_no_drift(attach)


@pytest.mark.parametrize(("outputs", "most", "factors", "size"), [(16, 4, 3, 4), (16, 2, 4, 2), (24, 6, 3, 6)])
def test_lycoris_turns_outputs_with_all_stages(outputs: int, most: int, factors: int, size: int) -> None:
    """It is this method on the transposed weight, Q = A - A^T, a block's coordinates in another order, in float32."""
    modules = pytest.importorskip("lycoris.modules.boft")
    base = nn.Linear(10, outputs)
    theirs = modules.ButterflyOFTModule("q", base, lora_dim=most)
    assert theirs.oft_blocks.shape == (factors, outputs // size, size, size)
    ours = site(outputs, 10, factors, size)
    copy_to(ours.base.weight, base.weight.T.double())
    shuffle = torch.arange(size).view(2, -1).T.flatten()  # theirs goes through the halves in turns
    upper = torch.triu(skew(ours.q, size)).detach()
    A = (upper - upper.mT)[..., shuffle, :][..., shuffle]
    copy_to(theirs.oft_blocks, torch.triu(A))
    x = torch.randn(5, 10)
    weight = ours.merged()["weight"].T  # R V
    mine = F.linear(x.double(), weight, base.bias.double())
    assert torch.allclose(mine.float(), theirs(x), rtol=0, atol=1e-5)
    (a,) = torch.autograd.grad(mine.square().sum(), ours.q)
    (b,) = torch.autograd.grad(theirs(x).square().sum(), theirs.oft_blocks)
    back = torch.empty_like(shuffle)
    back[shuffle] = torch.arange(size)
    gradient = b[..., back, :][..., back]
    rows, columns = torch.triu_indices(size, size, 1)
    note(mine.float(), theirs(x), [a.float()], [gradient[..., rows, columns]])
    assert torch.allclose(a.float(), gradient[..., rows, columns], rtol=0, atol=1e-3)


def test_strength_of_lycoris_mixes_every_stage_with_the_identity() -> None:
    functional = pytest.importorskip("lycoris.functional.boft")
    weight = torch.randn(16, 10)
    blocks = torch.randn(3, 4, 4, 4)
    half = weight + functional.diff_weight(weight, blocks, None, scale=0.5, backend="torch")
    kept = torch.linalg.svdvals(weight)
    assert (torch.linalg.svdvals(half) - kept).abs().max() > 0.1
    one = weight + functional.diff_weight(weight, blocks, None, backend="torch")
    assert torch.allclose(torch.linalg.svdvals(one), kept, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"factors": 3, "block_size": 5},
            r"block_size is 5; for the 32 inputs of stack.*0.attention.q and 3 factors it must be one of \[2, 4, 8\]",
        ),
        ({"factors": 1, "block_size": 5}, r"must be one of \[2, 4, 8, 16, 32\]"),
        ({"factors": 4, "block_size": 8}, r"must be one of \[2, 4\]"),
        ({"factors": 1, "block_size": 1}, "block_size is 1"),
        ({"block_size": 0}, "block_size is 0"),
        ({"factors": 0}, "factors is 0"),
        ({"dropout": 1.0}, "at least 0 and below 1"),
        ({"factor_dropout": 0.0}, "factor_dropout is 0.0"),
        ({"targets": ["norm1"]}, "is a LayerNorm; BOFT adapts linear layers and two-dimensional convolutions"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)


def test_odd_blocks_and_an_odd_number_of_them_allow_one_stage_alone() -> None:
    layer = {"q": nn.Linear(12, 4)}
    attach(nn.ModuleDict(layer), factors=1, block_size=3, targets=["q"])
    with pytest.raises(AdapterError, match=r"it must be one of \[2, 6\]"):
        attach(nn.ModuleDict({"q": nn.Linear(12, 4)}), factors=2, block_size=3, targets=["q"])
    with pytest.raises(AdapterError, match=r"it must be one of \[2, 6\]"):
        attach(nn.ModuleDict({"q": nn.Linear(12, 4)}), factors=2, block_size=4, targets=["q"])
