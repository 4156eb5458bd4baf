"""SVFT: what the paper and its code say about it, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.backbones import Size, build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.svft import Pattern, SVFTLinear, attach, decompose, entries, positions

from .parity import DEBERTA_BASE, SHAPES, assert_no_drift, linear, matrices_computed, randomize
from .refused import assert_refused

VIT_BASE = Size(L=12, d=768, f=3072, heads=12, head_dim=64, positions=197, C=1000, patch=16, image=224)
VIT_LARGE = Size(L=24, d=1024, f=4096, heads=16, head_dim=64, positions=197, C=1000, patch=16, image=224)
PATTERNS: list[tuple[Pattern, int]] = [("banded", 0), ("banded", 2), ("random", 1), ("top-k", 1)]


def site(
    d_in: int = 12, d_out: int = 8, pattern: Pattern = "banded", off_diagonals: int = 2, *, gate: bool = False
) -> SVFTLinear:
    base = linear(d_in, d_out).requires_grad_(False)
    layer = SVFTLinear(base, pattern, off_diagonals, min(d_in, d_out), gate, False)
    randomize([p for p in layer.parameters() if p.requires_grad])
    return layer


def matrix(layer: SVFTLinear) -> Tensor:
    """M, entry by entry."""
    n = len(layer.Vt)
    M = torch.zeros(n, n, dtype=torch.float64)
    values = layer.m if layer.g is None else layer.m / (1 + torch.exp(-layer.g))
    for i, j, value in zip(layer.rows.tolist(), layer.columns.tolist(), values, strict=True):
        M[i, j] += value
    return M


def test_numbers_of_positions() -> None:
    assert [entries(8, d) for d in range(4)] == [8, 22, 34, 44]
    for n in (5, 8, 30):
        for q in range(n):
            assert entries(n, q) == n * q + (n - q) * (q + 1)  # the form in table 7
    assert entries(7, 6) == 49


@pytest.mark.parametrize(
    ("kind", "size", "keywords", "count"),
    [
        ("encoder", DEBERTA_BASE, {}, 55_296),  # 0.06M
        ("encoder", DEBERTA_BASE, {"pattern": "random", "off_diagonals": 2}, 276_048),  # 0.28M
        ("vit", VIT_BASE, {"off_diagonals": 2}, 276_048),  # 0.28M
        ("vit", VIT_BASE, {"off_diagonals": 4}, 496_224),  # 0.50M
        ("vit", VIT_BASE, {"off_diagonals": 8}, 934_848),  # 0.93M
        ("vit", VIT_LARGE, {"off_diagonals": 2}, 736_416),  # 0.74M
        ("vit", VIT_LARGE, {"off_diagonals": 4}, 1_324_224),  # 1.32M
        ("vit", VIT_LARGE, {"off_diagonals": 8}, 2_496_384),  # 2.50M
        ("vit", VIT_BASE, {"targets": ["q", "v"], "gate": True}, 18_456),  # 18.5K
        ("vit", VIT_BASE, {"targets": ["q", "v"]}, 18_432),
        ("vit", VIT_LARGE, {"targets": ["q", "v"], "gate": True}, 49_200),  # 49.2K
    ],
)
def test_counts_of_the_paper(kind: str, size: Size, keywords: dict[str, Any], count: int) -> None:
    assert attach(build(kind, size, device="meta"), **keywords).count() == count


def gemma_2b() -> nn.ModuleDict:
    """One of the 18 blocks; keys and values have a single head of width 256."""
    shapes = {"q": (2048, 2048), "k": (2048, 256), "v": (2048, 256), "o": (2048, 2048)}
    shapes |= {"gate": (2048, 16384), "up": (2048, 16384), "down": (16384, 2048)}
    return nn.ModuleDict({name: nn.Linear(*shape, device="meta") for name, shape in shapes.items()})


@pytest.mark.parametrize(
    ("keywords", "count"),
    [
        ({}, 193_536),  # 0.19M
        ({"off_diagonals": 16}, 6_352_416),  # 6.35M
        ({"pattern": "random", "off_diagonals": 16}, 6_352_416),
        ({"rank": 1536}, 147_456),  # 0.15M in table 10
        ({"rank": 1536, "off_diagonals": 2}, 736_524),  # 0.74M
        ({"rank": 128, "off_diagonals": 64}, 1_556_352),  # 1.55M, cut
    ],
)
def test_counts_of_the_paper_on_gemma_2b(keywords: dict[str, Any], count: int) -> None:
    assert 18 * attach(gemma_2b(), **keywords).count() == count


def test_count_of_the_paper_on_gemma_7b_takes_five_layers_a_block() -> None:
    """0.43M; the seven layers that the paper names would be 602,112."""
    shapes = [(3072, 4096), (3072, 4096), (3072, 4096), (3072, 24576), (24576, 3072)]
    block = nn.ModuleDict({name: nn.Linear(*s, device="meta") for name, s in zip("qkv", shapes, strict=False)})
    block["up"], block["down"] = (nn.Linear(*s, device="meta") for s in shapes[3:])
    assert 28 * attach(block).count() == 430_080


@pytest.mark.parametrize("n", [1, 5, 8])
def test_bands_are_those_of_the_official_code(n: int) -> None:
    U = torch.eye(n)
    for d in range(n):
        offsets = torch.cat([torch.arange(0, d + 1), torch.arange(-1, -d - 1, -1)])
        official = torch.sparse.spdiags(torch.ones(2 * d + 1, n), offsets, (n, n)).to_dense()
        rows, columns = positions(U, U, "banded", d)
        assert len(rows) == entries(n, d)
        ours = torch.zeros(n, n).index_put((rows, columns), torch.ones(len(rows)), accumulate=True)
        assert torch.equal(ours, official)


def test_random_positions_are_distinct_and_as_many_as_a_band_has() -> None:
    U = torch.eye(9)
    rows, columns = positions(U, U, "random", 2)
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == entries(9, 2)
    again = positions(U, U, "random", 2)
    assert not torch.equal(again[0], rows)


def test_top_positions_are_those_of_the_largest_alignments_whatever_the_signs() -> None:
    U, _, Vt = decompose(linear(12, 12).weight, 12)
    alignment = torch.tensor([[abs(float(U[:, i] @ Vt[j])) for j in range(12)] for i in range(12)])
    rows, columns = positions(U, Vt, "top-k", 1)
    chosen = torch.zeros(12, 12, dtype=torch.bool).index_put((rows, columns), torch.tensor(True))
    assert chosen.sum() == entries(12, 1)
    assert alignment[chosen].min() > alignment[~chosen].max()
    signs = torch.tensor([1.0, -1.0] * 6, dtype=torch.float64)
    flipped = positions(U * signs, signs[:, None] * Vt, "top-k", 1)
    assert {*zip(*(p.tolist() for p in flipped), strict=True)} == {*zip(rows.tolist(), columns.tolist(), strict=True)}


def test_official_ranking_compares_rows_of_u_with_columns_of_v_by_signed_value() -> None:
    U, _, Vt = decompose(linear(12, 12).weight, 12)
    official = (U @ Vt.T).flatten().topk(entries(12, 1)).indices
    rows, columns = positions(U, Vt, "top-k", 1)
    assert {*official.tolist()} != {*(12 * rows + columns).tolist()}


@pytest.mark.parametrize(("pattern", "off_diagonals"), PATTERNS)
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_as_the_definition_says(shape: tuple[int, int], pattern: Pattern, off_diagonals: int) -> None:
    if pattern == "top-k" and shape[0] != shape[1]:
        return  # refused, see below
    layer = site(*shape, pattern, off_diagonals)
    U, S, Vt = decompose(layer.base.weight, min(shape))
    weight = U @ (torch.diag(S) + matrix(layer)) @ Vt  # equation 1
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    assert torch.allclose(layer(x), F.linear(x, weight, layer.base.bias), rtol=0, atol=1e-12)
    assert torch.allclose(layer.merged()["weight"], weight, rtol=0, atol=1e-13)
    terms = sum(m * torch.outer(U[:, i], Vt[j]) for m, i, j in zip(layer.m, layer.rows, layer.columns, strict=True))
    assert torch.allclose(layer.delta_weight(), terms, rtol=0, atol=1e-13)  # equation 2


def test_norm_of_the_change_is_that_of_its_coefficients() -> None:
    layer = site()
    assert layer.delta_weight().norm().item() == pytest.approx(layer.m.norm().item(), rel=1e-14)


def test_gradient_of_an_entry_is_the_gradient_along_its_rank_one_term() -> None:
    layer = site()
    x = torch.randn(5, 12, dtype=torch.float64)
    weight = layer.merged()["weight"].detach().requires_grad_()
    (dW,) = torch.autograd.grad((F.linear(x, weight, layer.base.bias) ** 2).sum(), weight)
    (dm,) = torch.autograd.grad((layer(x) ** 2).sum(), layer.m)
    expected = (layer.U.T @ dW @ layer.Vt.T)[layer.rows, layer.columns]
    assert torch.allclose(dm, expected, rtol=0, atol=1e-11)


def test_plain_variant_keeps_the_singular_vectors_up_to_sign() -> None:
    layer = site(off_diagonals=0)
    _, S, _ = decompose(layer.base.weight, 8)
    middle = layer.U.T @ layer.merged()["weight"] @ layer.Vt.T
    assert torch.allclose(middle, torch.diag(S + layer.m), rtol=0, atol=1e-13)
    banded = site(off_diagonals=1)
    middle = banded.U.T @ banded.merged()["weight"] @ banded.Vt.T
    assert (middle - torch.diag(middle.diagonal())).abs().max() > 0.1  # one off-diagonal is not the plain variant


def test_rank_of_the_change_is_at_most_the_number_of_entries_and_can_be_full() -> None:
    layer = site(off_diagonals=0)
    assert torch.linalg.matrix_rank(layer.delta_weight()) == 8
    with torch.no_grad():
        layer.m[3:] = 0
    assert torch.linalg.matrix_rank(layer.delta_weight()) == 3


def test_a_full_matrix_reaches_any_change_of_a_square_weight_and_not_of_another() -> None:
    target = torch.randn(12, 12, dtype=torch.float64)
    layer = site(12, 12, "banded", 11)
    reached = layer.U @ (layer.U.T @ target @ layer.Vt.T) @ layer.Vt
    assert torch.allclose(reached, target, rtol=0, atol=1e-12)
    wide = site(12, 8, "banded", 7)
    out_of_reach = target[:8] - wide.U @ (wide.U.T @ target[:8] @ wide.Vt.T) @ wide.Vt
    assert out_of_reach.norm() > 1
    assert torch.allclose(out_of_reach @ wide.Vt.T, torch.zeros(8, 8, dtype=torch.float64), rtol=0, atol=1e-12)


def test_start_is_the_base_model_bit_for_bit() -> None:
    model = pretrained("decoder")
    batch = model.batch(0)
    before = model(batch)
    attach(model, off_diagonals=2)
    assert torch.equal(model(batch), before)


def test_official_start_is_near_the_base_model_and_not_at_it() -> None:
    sizes = []
    for seed in range(30):
        torch.manual_seed(seed)
        base = nn.Linear(12, 8).double()
        nn.init.normal_(base.weight)
        layer = SVFTLinear(base, "banded", 0, 8, True, False)
        assert layer.g is not None
        assert layer.g.item() == 0
        assert layer.delta_weight().norm().item() == pytest.approx(layer.m.norm().item() / 2)
        sizes.append((layer.delta_weight().norm() / base.weight.norm()).item())
    assert min(sizes) > 0.03
    assert sum(sizes) / 30 == pytest.approx(0.072, abs=0.02)
    many = SVFTLinear(linear(200, 200), "banded", 20, 200, True, False)
    assert many.delta_weight().norm().item() == pytest.approx(0.5**0.5, rel=0.05)  # whatever the weight
    assert many.m.std().item() == pytest.approx((2 / len(many.m)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("gate", [False, True])
def test_strength_acts_on_the_matrix_and_not_on_the_gate(gate: bool) -> None:
    layer = site(gate=gate)
    x = torch.randn(5, 12, dtype=torch.float64)
    change = layer(x) - layer.base(x)
    assert change.abs().max() > 0.1
    for c in (-1.0, 0.0, 2.0):
        layer.strength = c
        assert torch.allclose(layer(x) - layer.base(x), c * change, rtol=0, atol=1e-12)


def test_signs_of_singular_vectors_are_fixed() -> None:
    U, S, Vt = decompose(linear(12, 8).weight, 8)
    assert bool((U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all())
    assert torch.allclose(U.T @ U, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-13)
    again = decompose(U @ torch.diag(S) @ Vt, 8)
    assert torch.allclose(again[0], U, rtol=0, atol=1e-12)
    assert torch.allclose(again[2], Vt, rtol=0, atol=1e-12)


def test_a_cut_rank_takes_the_leading_vectors() -> None:
    base = linear(12, 8)
    layer = SVFTLinear(base, "banded", 1, 3, False, False)
    U, _, Vt = decompose(base.weight, 8)
    assert torch.equal(layer.U, U[:, :3])
    assert torch.equal(layer.Vt, Vt[:3])
    assert len(layer.m) == entries(3, 1)


def test_saved_bases_serve_where_singular_values_are_equal(tmp_path: Path) -> None:
    """A weight with equal singular values has bases without number: the saved ones are taken over."""
    model = nn.ModuleDict({"q": linear(6, 6)})
    with torch.no_grad():
        model["q"].weight.copy_(torch.eye(6))
    adapter = attach(model, off_diagonals=1, save_bases=True)
    first = adapter.sites()["q"]
    assert isinstance(first, SVFTLinear)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    first.U.copy_(turn)
    first.Vt.copy_(turn.T)
    randomize([first.m])
    adapter.save(tmp_path / "learned")
    other = nn.ModuleDict({"q": linear(6, 6)})
    other.load_state_dict({"q.weight": torch.eye(6), "q.bias": model["q"].base.bias})
    attach(other, off_diagonals=1, save_bases=True).load(tmp_path / "learned")
    x = torch.randn(4, 6, dtype=torch.float64)
    assert torch.equal(model["q"](x), other["q"](x))
    assert not [name for name in attach(pretrained("decoder")).state_dict() if name.endswith((".U", ".Vt", ".rows"))]


def test_no_matrix_of_the_size_of_the_weight_is_computed() -> None:
    layer = SVFTLinear(nn.Linear(64, 48).requires_grad_(False), "banded", 1, 48, False, False)
    x = torch.randn(3, 64)
    shapes = matrices_computed(lambda: layer(x))
    assert (3, entries(48, 1)) in shapes
    assert not {(48, 64), (64, 48), (48, 48)} & shapes


@pytest.mark.parametrize("claim", ["mergeable", "saves", "two-faces", "detachable", "device-dtype", "strength"])
@pytest.mark.parametrize(
    "extra",
    [
        {"pattern": "random", "off_diagonals": 2},
        {"pattern": "top-k", "off_diagonals": 2, "targets": ("q", "o")},
        {"off_diagonals": 1, "gate": True, "rank": 16},
    ],
    ids=["random", "top", "gate"],
)
def test_claims_hold_for_the_variants(claim: str, extra: dict[str, Any]) -> None:
    result = measure(claim, Trial(load("svft"), "decoder", Expected(None, True, True, "linear", extra)))
    assert result.status == "verified", result


def test_merging_leaves_no_drift() -> None:
    assert_no_drift(attach)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"pattern": "diagonal"}, "pattern is 'diagonal'; allowed: banded, random, top-k"),
        ({"off_diagonals": -1}, "off_diagonals is -1; .* has room for 0 to 31"),
        ({"off_diagonals": 32}, "off_diagonals is 32"),
        ({"off_diagonals": 4, "rank": 4}, "off_diagonals is 4; .* has room for 0 to 3"),
        ({"rank": 0}, "rank is 0"),
        ({"pattern": "top-k"}, "maps 32 to 64; it compares left with right"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
