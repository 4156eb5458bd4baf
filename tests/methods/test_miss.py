"""MiSS: what the paper and peft say about it, checked."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.bone import BatLinear
from reference_impls.reparameterized.miss import MiSSLinear, ShardLinear, attach

from .parity import (
    LLAMA_7B,
    LLAMA_13B,
    ROBERTA_BASE,
    SHAPES,
    assert_equals_miss_of_peft,
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


def site(d_in: int = 12, d_out: int = 8, rank: int = 4, width: int | None = None, dropout: float = 0.0) -> MiSSLinear:
    layer = MiSSLinear(linear(d_in, d_out).requires_grad_(False), rank, width or d_out, dropout)
    randomize([layer.D])
    return layer


def shards(d_in: int = 12, d_out: int = 8, count: int = 3) -> ShardLinear:
    layer = ShardLinear(linear(d_in, d_out).requires_grad_(False), count, 0.0)
    randomize([layer.D])
    return layer


def entry_by_entry(layer: MiSSLinear) -> Tensor:
    """The change, written out: column j is row j mod r of D, its outputs repeated."""
    r, m = layer.D.shape
    d_out, d_in = layer.base.weight.shape
    return torch.stack([torch.stack([layer.D[j % r, o % m] for j in range(d_in)]) for o in range(d_out)])


@pytest.mark.parametrize(
    ("shape", "keywords", "count"),
    [
        ((768, 768), {"rank": 64}, 49_152),
        ((12, 8), {"rank": 4}, 32),
        ((12, 8), {"rank": 5}, 40),
        ((12, 8), {"rank": 4, "form": "bat"}, 32),
        ((12, 8), {"rank": 4, "form": "mini", "width": 2}, 8),
        ((12, 8), {"rank": 4, "form": "definition"}, 48),
    ],
)
def test_counts(shape: tuple[int, int], keywords: dict[str, Any], count: int) -> None:
    assert attach(nn.ModuleDict({"q": nn.Linear(*shape)}), targets=["q"], **keywords).count() == count


def test_count_at_llama_7b_on_all_seven_matrices() -> None:
    count = attach(build("decoder", LLAMA_7B, device="meta"), rank=64).count()
    assert count == 64 * 32 * (4 * 4096 + 2 * 11008 + 4096) == 87_031_808


def test_255m_of_the_paper_at_13b_take_a_rank_below_its_128() -> None:
    model = build("decoder", LLAMA_13B, device="meta")
    adapter = attach(model, rank=120)
    assert int(adapter.count() / 1e6) == 255
    adapter.detach()
    assert int(attach(model, rank=128).count() / 1e6) == 272


def test_share_of_the_paper_at_roberta_base_is_rank_16_on_queries_and_values() -> None:
    """The paper cuts the last digit off."""
    count = attach(build("encoder", ROBERTA_BASE, device="meta"), rank=16, targets=["q", "v"]).count()
    assert int(100_000 * count / 124_645_632) == 236


@pytest.mark.parametrize("rank", [1, 4, 5, 12])
@pytest.mark.parametrize("shape", [(12, 12), (12, 8), (13, 7)])
def test_column_j_of_the_change_is_row_j_modulo_r_of_d(shape: tuple[int, int], rank: int) -> None:
    layer = site(*shape, rank=rank)
    assert torch.equal(layer.delta_weight(), entry_by_entry(layer))
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    assert torch.allclose(layer(x), layer.base(x) + x @ entry_by_entry(layer).T, rtol=0, atol=1e-12)
    assert torch.linalg.matrix_rank(layer.delta_weight()) == min(rank, *shape)


def test_sharing_is_interleaved_not_contiguous() -> None:
    layer = site(12, 8, 4)
    delta = layer.delta_weight()
    assert torch.equal(delta[:, 0], delta[:, 4])
    assert torch.equal(delta.unflatten(1, (3, 4)), layer.D.T[:, None].expand(8, 3, 4))
    assert not torch.allclose(delta[:, 0], delta[:, 1])


def test_last_columns_take_the_first_rows_of_d_where_chunks_do_not_fit() -> None:
    layer = site(12, 8, 5)
    assert torch.equal(layer.delta_weight()[:, 10:], layer.D[:2].T)


def test_with_r_as_wide_as_the_inputs_every_change_is_reachable() -> None:
    layer = site(12, 8, 12)
    target = torch.randn(8, 12, dtype=torch.float64)
    with torch.no_grad():
        layer.D.copy_(target.T)
    assert torch.equal(layer.delta_weight(), target)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_mini_repeats_the_outputs(width: int) -> None:
    layer = site(12, 8, 4, width=width)
    assert torch.equal(layer.delta_weight(), entry_by_entry(layer))
    assert torch.equal(layer.delta_weight()[0], layer.delta_weight()[width])
    assert torch.linalg.matrix_rank(layer.delta_weight()) == min(4, width)
    for x in (torch.randn(12, dtype=torch.float64), torch.randn(3, 5, 12, dtype=torch.float64)):
        assert layer(x).shape == layer.base(x).shape
        assert torch.allclose(layer(x), layer.base(x) + x @ entry_by_entry(layer).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("d_out", "count"), [(8, 1), (8, 2), (8, 3), (7, 5), (8, 8)])
def test_definition_repeats_row_i_of_d_for_the_outputs_of_shard_i(d_out: int, count: int) -> None:
    layer = shards(12, d_out, count)
    sizes = torch.bincount(layer.shard).tolist()
    assert sum(sizes) == d_out
    assert len(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    ones = [torch.ones(size, 1, dtype=torch.float64) @ row[None] for size, row in zip(sizes, layer.D, strict=True)]
    expanded = torch.cat(ones)  # equation 3
    assert torch.allclose(layer.delta_weight(), expanded, rtol=0, atol=0)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    assert torch.allclose(layer(x), layer.base(x) + x @ expanded.T, rtol=0, atol=1e-12)
    assert torch.linalg.matrix_rank(expanded) == min(count, 12)


def test_definition_and_efficient_form_are_transposed_ideas_with_different_counts() -> None:
    efficient, definition = site(12, 8, 4), shards(12, 8, 4)
    assert efficient.D.numel() == 4 * 8
    assert definition.D.numel() == 4 * 12
    assert torch.equal(efficient.delta_weight()[:, 0], efficient.delta_weight()[:, 4])
    assert torch.equal(definition.delta_weight()[0], definition.delta_weight()[1])


FORMS: dict[str, dict[str, Any]] = {
    "efficient": {"rank": 4},
    "padded": {"rank": 5},
    "mini": {"rank": 4, "form": "mini", "width": 2},
    "definition": {"rank": 4, "form": "definition"},
    "bat": {"rank": 4, "form": "bat"},
}


@pytest.mark.parametrize("form", FORMS)
def test_start_is_the_base_model_and_d_learns_at_once(form: str) -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model, **FORMS[form])
    assert torch.equal(model(batch), before)
    adapter.loss(batch).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())


@pytest.mark.parametrize("claim", ["detachable", "mergeable", "strength", "saves", "two-faces", "device-dtype"])
@pytest.mark.parametrize("form", ["padded", "mini", "definition", "bat"])
def test_claims_hold_for_the_other_forms(form: str, claim: str) -> None:
    result = measure(claim, Trial(load("miss"), "decoder", Expected(True, True, True, "linear", FORMS[form])))
    assert result.status == "verified", result


@pytest.mark.parametrize("form", ["padded", "mini", "definition"])
def test_rank_is_bounded_in_the_other_forms(form: str) -> None:
    result = measure("family-invariant", Trial(load("miss"), "decoder", Expected(True, True, True, "", FORMS[form])))
    assert result.status == "verified", result


def test_bat_claims_no_bound_on_the_rank() -> None:
    assert attach(pretrained("decoder"), rank=4, form="bat").family is None


def test_no_matrix_of_the_size_of_the_weight_is_computed() -> None:
    x = torch.randn(3, 64)
    base = nn.Linear(64, 48).requires_grad_(False)
    layers = [MiSSLinear(base, 4, 48, 0.0), MiSSLinear(base, 4, 2, 0.0), ShardLinear(base, 4, 0.0)]
    for layer in layers:
        assert not {(48, 64), (64, 48)} & matrices_computed(lambda layer=layer: layer(x))  # type: ignore[misc]


@pytest.mark.parametrize("make", [site, shards])
def test_dropout_is_on_the_input_of_the_branch(make: Any) -> None:
    layer = make()
    layer.dropout.p = 0.5
    x = torch.randn(4, 12, dtype=torch.float64)
    torch.manual_seed(5)
    trained = layer(x)
    torch.manual_seed(5)
    expected = layer.base(x) + F.dropout(x, 0.5) @ layer.delta_weight().T
    assert torch.allclose(trained, expected, rtol=0, atol=1e-12)


def test_dropout_reaches_the_sites() -> None:
    for form in ("efficient", "mini", "definition"):
        adapter = attach(pretrained("decoder"), rank=4, form=form, dropout=0.25)
        assert all(s.dropout.p == 0.25 for s in adapter.sites().values())  # type: ignore[union-attr]


@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize("shape", [*SHAPES, (13, 7)])
def test_equals_peft(shape: tuple[int, int], rank: int) -> None:
    ours = site(*shape, rank=rank)
    assert_equals_miss_of_peft(ours, shape[0], r=rank)


@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_mini_equals_peft(shape: tuple[int, int], rank: int) -> None:
    ours = site(*shape, rank=rank, width=2)
    assert_equals_miss_of_peft(ours, shape[0], r=rank, mini_r=2, init_weights="mini")


@pytest.mark.parametrize("shape", SHAPES)
def test_bat_equals_peft(shape: tuple[int, int]) -> None:
    ours = BatLinear(linear(*shape).requires_grad_(False), 4)
    randomize([ours.D])
    theirs = in_peft("MissConfig", ours.base, r=4, init_weights="bat")
    D = theirs.miss_block["default"]
    copy_to(D, ours.D)
    assert_same(ours, theirs, [(ours.D, D, same)], shape[0])
    delta = theirs.get_delta_weight("default", ours.base.weight)
    assert torch.allclose(ours.delta_weight(), delta, rtol=0, atol=1e-13)


def test_dropout_equals_peft() -> None:
    ours = site(dropout=0.5)
    theirs = in_peft("MissConfig", ours.base, r=4, miss_dropout=0.5)
    copy_to(theirs.miss_block["default"], ours.D)
    x = torch.randn(4, 12, dtype=torch.float64)
    torch.manual_seed(5)
    mine = ours(x)
    torch.manual_seed(5)
    assert torch.allclose(mine, theirs.train()(x), rtol=0, atol=1e-12)


def test_bat_of_peft_ignores_its_dropout() -> None:
    theirs = in_peft("MissConfig", linear(12, 8), r=4, init_weights="bat", miss_dropout=0.5)
    randomize([theirs.miss_block["default"]])
    x = torch.randn(4, 12, dtype=torch.float64)
    assert torch.equal(theirs.train()(x), theirs.eval()(x))


def test_peft_refuses_a_strength_though_the_change_is_linear() -> None:
    theirs = in_peft("MissConfig", linear(12, 8), r=4)
    with pytest.warns(UserWarning, match="not supported"):
        theirs.scale_layer(2.0)


@pytest.mark.parametrize(("rank", "written"), [(4, False), (5, True)])
def test_merge_of_peft_writes_into_the_weight_where_chunks_do_not_fit(rank: int, written: bool) -> None:
    theirs = in_peft("MissConfig", linear(12, 8), r=rank)
    randomize([theirs.miss_block["default"]])
    held = theirs.base_layer.weight.data
    before = held.clone()
    theirs.merge()
    assert torch.equal(held, before) != written


def test_rounding_of_merges_in_peft_and_none_here() -> None:
    ours = site()
    theirs = in_peft("MissConfig", ours.base, r=4).float()
    copy_to(theirs.miss_block["default"], ours.D)
    errors = drift(theirs)
    assert 0 < errors[0] < 1e-6
    for keywords in FORMS.values():
        assert_no_drift(partial(attach, **keywords), cycles=3)


def test_pseudocode_of_the_paper_does_not_run() -> None:
    with pytest.raises(RuntimeError, match="must match the existing size"):
        torch.zeros(4, 8).expand(3, 1)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 33}, "from 1 to its 32 inputs"),
        ({"rank": 0, "form": "definition"}, "rank is 0"),
        ({"rank": 65, "form": "definition"}, "has 32 outputs to cut into shards"),
        ({"rank": 5, "form": "bat"}, r"one of \[1, 2, 4, 8, 16, 32\]"),
        ({"rank": 4, "form": "mini", "width": 3}, r"width is 3; for .* it must be one of \[1, 2, 4"),
        ({"rank": 4, "form": "mini", "width": 0}, "width is 0"),
        ({"form": "full"}, "allowed: efficient, mini, definition, bat"),
        ({"dropout": 1.0}, "at least 0 and below 1"),
        ({"rank": 4, "form": "bat", "dropout": 0.1}, "no branch to drop inputs of"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
