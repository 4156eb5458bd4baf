"""MPOP: what the paper and its code say about it, checked."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Backbone, Batch, Size, build, pretrained
from reference_impls.claims.trial import base_output, distance, like
from reference_impls.reparameterized.mpo_lightweight import (
    MPOP,
    MPOEmbedding,
    MPOLinear,
    attach,
    contract,
    decompose,
    factorize,
    rebuild,
)

from .parity import assert_no_drift, linear, matrices_computed, randomize
from .refused import assert_refused

BERT_BASE = Size(L=12, d=768, f=3072, heads=12, head_dim=64, V=30522, positions=512, C=2)
ROWS, COLUMNS = [2, 3, 4], [3, 2, 2]
ATTENTION = ["q", "k", "v", "o"]


def matrix(rows: int = 24, columns: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def site(bond: int | None = None, spread: float = 0.2) -> MPOLinear:
    """A layer (12 -> 24) on three tensors, away from the start."""
    torch.manual_seed(0)
    layer = MPOLinear(linear(12, 24).requires_grad_(False), (ROWS, COLUMNS), bond)
    randomize(list(layer.auxiliary), spread)
    return layer


def small(kind: str = "encoder", **keywords: Any) -> tuple[Backbone, MPOP, Batch]:
    model = pretrained(kind).double()
    adapter = attach(model, **keywords)
    return model, adapter, like(model, model.batch(0))


def test_tensors_of_the_papers_attention_matrix() -> None:
    model = build("encoder", BERT_BASE, device="meta")
    adapter = attach(model, targets=["q"])
    layer = adapter.chains()["stack.blocks.0.attention.q"]
    assert (layer.rows, layer.columns) == ([3, 4, 4, 4, 4], [4, 4, 4, 4, 3])
    assert layer.bonds() == [12, 192, 192, 12]
    assert [T.numel() for T in layer.tensors()] == [144, 36_864, 589_824, 36_864, 144]
    assert layer.central.numel() == 768 * 768
    assert adapter.count() == 12 * 74_016
    assert attach(build("encoder", BERT_BASE, device="meta"), targets=["q"], bond=100).count() == 12 * 2 * (
        144 + 12 * 16 * 100
    )


def test_lists_of_the_official_code_can_be_given() -> None:
    lists = {(3072, 768): ([4, 4, 8, 6, 4], [3, 4, 4, 4, 4])}
    adapter = attach(build("encoder", BERT_BASE, device="meta"), targets=["up"], factors=lists)
    assert adapter.chains()["stack.blocks.0.mlp.up"].bonds() == [12, 192, 384, 16]
    assert adapter.count() == 12 * (12**2 + 192**2 + 384**2 + 16**2)


@pytest.mark.parametrize(
    ("width", "factors"),
    [
        (768, [3, 4, 4, 4, 4]),
        (3072, [4, 4, 8, 6, 4]),
        (30_000, [5, 10, 10, 10, 6]),
        (128, [2, 2, 4, 4, 2]),
        (1024, [4, 4, 4, 4, 4]),
        (7, [1, 1, 7, 1, 1]),
        (1, [1, 1, 1, 1, 1]),
    ],
)
def test_balanced_factors_are_those_of_the_official_code(width: int, factors: list[int]) -> None:
    assert factorize(width, 5) == factors


@pytest.mark.parametrize(
    ("rows", "columns"), [(ROWS, COLUMNS), ([2, 2, 2, 2, 2], [2, 2, 3, 2, 1]), ([24], [12]), ([1, 5, 2], [3, 1, 7])]
)
def test_full_bonds_give_the_matrix_back(rows: list[int], columns: list[int]) -> None:
    W = matrix(prod(rows), prod(columns))
    tensors, spectra = decompose(W, rows, columns)
    assert torch.allclose(rebuild(tensors), W, rtol=0, atol=1e-13)
    pairs = [i * j for i, j in zip(rows, columns, strict=True)]
    for k, (T, S) in enumerate(zip(tensors[:-1], spectra, strict=True), 1):
        assert T.shape[-1] == len(S) == min(prod(pairs[:k]), prod(pairs[k:]))


def test_one_tensor_is_the_dense_matrix_and_two_with_a_cut_bond_a_truncated_svd() -> None:
    W = matrix()
    (only,), _ = decompose(W, [24], [12])
    assert torch.equal(only.reshape(24, 12), W)
    tensors, _ = decompose(W, [24, 1], [1, 12], [5])
    U, S, Vt = torch.linalg.svd(W)
    assert torch.allclose(rebuild(tensors), U[:, :5] * S[:5] @ Vt[:5], rtol=0, atol=1e-12)


def test_factors_of_rows_and_columns_are_interleaved() -> None:
    A, B, C = matrix(2, 3), matrix(3, 2, 1), matrix(4, 2, 2)
    product = torch.kron(torch.kron(A, B), C)
    _, spectra = decompose(product, ROWS, COLUMNS)
    assert [int((1e-10 * S[0] < S).sum()) for S in spectra] == [1, 1]
    tensors, _ = decompose(product, ROWS, COLUMNS, [1, 1])
    assert torch.allclose(rebuild(tensors), product, rtol=0, atol=1e-12)


def test_both_neighbors_of_a_bond_hold_the_root_of_its_singular_values() -> None:
    tensors, spectra = decompose(matrix(), ROWS, COLUMNS)
    left, right = tensors[0].flatten(0, -2), torch.tensordot(tensors[1], tensors[2], 1).flatten(1)
    unfolded = torch.linalg.svdvals(left @ right)[:6]
    assert torch.allclose(unfolded, spectra[0], rtol=0, atol=1e-12)
    for gram in (left.T @ left, right @ right.T):
        assert torch.allclose(gram, torch.diag(spectra[0]), rtol=0, atol=1e-12)


def test_what_is_cut_off_bounds_the_error() -> None:
    W = matrix()
    _, spectra = decompose(W, ROWS, COLUMNS)
    for bonds in ([3, 8], [6, 4], [2, 2], [5, 8]):
        error = (rebuild(decompose(W, ROWS, COLUMNS, bonds)[0]) - W).norm()
        dropped = [S[d:].square().sum() for S, d in zip(spectra, bonds, strict=True)]
        assert error <= sum(dropped).sqrt() * (1 + 1e-12)  # type: ignore[union-attr]
        assert error >= max(dropped).sqrt() * (1 - 1e-12)


def test_singular_values_of_zero_are_left_out_where_the_codes_damping_costs_accuracy() -> None:
    W = matrix() @ torch.diag(torch.tensor([1.0] * 4 + [0.0] * 8, dtype=torch.float64)) @ matrix(12, 12, 1)
    tensors, spectra = decompose(W, ROWS, COLUMNS)
    assert all(bool(T.isfinite().all()) for T in tensors)
    assert torch.allclose(rebuild(tensors), W, rtol=0, atol=1e-12)
    assert not rebuild(decompose(torch.zeros_like(W), ROWS, COLUMNS)[0]).any()
    S = spectra[0]
    damped = tensors[1] * ((S / (S + 1e-6)).sqrt())[:, None, None, None]
    assert (rebuild([tensors[0], damped, tensors[2]]) - W).abs().max() > 1e-8


@pytest.mark.parametrize("bond", [None, 2])
def test_layer_and_chain_are_the_definition(bond: int | None) -> None:
    layer, x = site(bond), matrix(15, 12).view(3, 5, 12)
    one, two, three = layer.tensors()
    W = torch.einsum("aijb,bklc,cmnd->ikmjln", one, two, three).reshape(24, 12)
    assert torch.allclose(rebuild(layer.tensors()), W, rtol=0, atol=1e-12)
    assert torch.allclose(contract(layer.tensors(), x), x @ W.T, rtol=0, atol=1e-12)
    assert torch.allclose(layer(x), x @ W.T + layer.base.bias, rtol=0, atol=1e-12)
    layer.strength = -0.5
    expected = layer.base.weight + -0.5 * (W - layer.base.weight)
    assert torch.allclose(layer(x), x @ expected.T + layer.base.bias, rtol=0, atol=1e-12)


def test_short_bonds_form_no_matrix_and_long_ones_do_once() -> None:
    x, short, long = matrix(7, 12), site(1), site(None)
    assert not [shape for shape in matrices_computed(lambda: short(x)) if prod(shape) >= 24 * 12]
    assert (24, 12) in matrices_computed(lambda: long(x))


@pytest.mark.parametrize("bond", [1, 2, None])
def test_the_way_with_fewer_multiplications_is_taken(bond: int | None) -> None:
    layer = site(bond)

    def flops(call: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    for tokens in (1, 4, 40):
        x = matrix(tokens, 12)
        through = flops(lambda x=x: contract(layer.tensors(), x))
        dense = flops(lambda x=x: x @ rebuild(layer.tensors()).T)
        assert layer.short(tokens) == (through < dense)
        assert flops(lambda x=x: layer(x)) == min(through, dense)


def test_central_tensor_stays_and_every_entry_of_the_matrix_moves() -> None:
    _, adapter, batch = small(targets=ATTENTION)
    before = {path: (layer.central.clone(), layer.weight().detach()) for path, layer in adapter.chains().items()}
    assert not [name for name, _ in adapter.named_parameters() if "central" in name]
    adapter.fit([batch] * 3)
    for path, (central, W) in before.items():
        layer = adapter.chains()[path]
        assert torch.equal(layer.central, central)
        assert bool((layer.weight() != W).all())
        assert torch.linalg.matrix_rank(layer.weight() - W) == 32


def test_a_squeeze_costs_the_smallest_singular_value() -> None:
    _, adapter, _ = small(targets=ATTENTION)
    randomize(adapter.parameters(), 0.05)
    before = {path: layer.weight().detach() for path, layer in adapter.chains().items()}
    smallest = min(float(S[-1]) for layer in adapter.chains().values() for S in layer.spectra())
    ((path, k, error),) = adapter.squeeze()
    assert error == smallest
    after = {path: layer.weight().detach() for path, layer in adapter.chains().items()}
    assert float((after[path] - before[path]).norm()) == pytest.approx(error, rel=1e-9)
    assert [p for p in before if not torch.equal(before[p], after[p])] == [path]
    full = [4, 16, 16, 4]
    assert adapter.chains()[path].bonds() == [d - (i == k - 1) for i, d in enumerate(full)]
    more = adapter.squeeze(30)
    for p, layer in adapter.chains().items():
        bound = sum(e for q, _, e in [(path, k, error), *more] if q == p)
        assert float((layer.weight().detach() - before[p]).norm()) <= bound * (1 + 1e-9) + 1e-12


def test_squeezed_chains_train_save_load_and_come_off(tmp_path: Path) -> None:
    model, adapter, batch = small(targets=["q", "embed"], bond=6)
    count = adapter.count()
    adapter.squeeze(40)
    assert adapter.count() < count
    adapter.fit([batch] * 2)
    adapter.save(tmp_path / "learned")
    other, second, _ = small(targets=["q", "embed"])
    second.load(tmp_path / "learned")
    assert torch.equal(other(batch), model(batch))
    adapter.detach()
    assert torch.equal(model(batch), base_output("encoder", torch.float64, batch))
    state = second.state_dict()
    state["embed.central"] = state["embed.central"][..., :-1]
    with pytest.raises(AdapterError, match=r"embed.central has shape"):
        second.load_state_dict(state)


def test_squeezing_stops_and_takes_back_the_round_that_went_too_far() -> None:
    _, adapter, batch = small(targets=["q"])
    losses = iter([1.0, 1.1, 1.2, 1.4])
    states = []

    def batches() -> list[Batch]:
        states.append({path: layer.bonds() for path, layer in adapter.chains().items()})
        return [batch]

    assert adapter.squeeze_and_tune(batches, lambda: next(losses), 0.3, cuts=5) == 2
    assert len(states) == 3
    assert {path: layer.bonds() for path, layer in adapter.chains().items()} == states[1]


def test_nothing_is_left_to_squeeze_in_the_end() -> None:
    _, adapter, batch = small(targets=["q"], bond=1)
    with pytest.raises(AdapterError, match="nothing left to squeeze"):
        adapter.squeeze()
    assert adapter.squeeze_and_tune(lambda: [batch], lambda: 0.0, 0.1) == 0


def test_embedding_and_pooler_are_chains_too_and_the_start_is_the_base_model() -> None:
    model, adapter, batch = small()
    assert isinstance(adapter.chains()["embed"], MPOEmbedding)
    assert len(adapter.chains()) == 2 + 6 * 3
    assert distance(model(batch).detach(), base_output("encoder", torch.float64, batch)) < 1e-13
    randomize(adapter.parameters(), 0.01)
    table = adapter.chains()["embed"]
    assert torch.equal(table(batch.inputs), table.weight()[batch.inputs])
    assert distance(model(batch).detach(), base_output("encoder", torch.float64, batch)) > 1e-3


def test_the_rest_is_trained_with_a_step_size_of_its_own() -> None:
    _, adapter, _ = small(targets=ATTENTION, train_rest=True, chain_rate=0.1)
    trained = {name.removesuffix(".0.d") for name, _ in adapter.named_parameters()}
    assert "head.parametrizations.weight" in trained
    assert "stack.blocks.0.attention.q.base.parametrizations.bias" in trained
    assert not [name for name in trained if name.endswith("attention.q.base.weight")]
    total = sum(p.numel() for p in pretrained("encoder").parameters())
    assert adapter.count() == total - 12 * 32 * 32 + 12 * 2 * (16 + 256)
    chains, rest = adapter.optimizer(0.5).param_groups
    assert (chains["lr"], rest["lr"]) == (0.05, 0.5)
    assert sum(p.numel() for p in chains["params"]) == 12 * 2 * (16 + 256)
    assert sum(p.numel() for p in rest["params"]) == total - 12 * 32 * 32


def test_a_cut_start_is_near_the_base_model_and_strength_zero_is_it() -> None:
    model, adapter, batch = small(targets=ATTENTION, bond=8)
    base = base_output("encoder", torch.float64, batch)
    assert distance(model(batch).detach(), base) > 1e-3
    adapter.strength = 0.0
    assert distance(model(batch).detach(), base) < 1e-14


def test_merge_and_unmerge_leave_nothing_behind() -> None:
    assert_no_drift(lambda model: attach(model, targets=["q", "down"], bond=5))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"tensors": 4}, "tensors is 4; it must be odd and at least 3"),
        ({"tensors": 1}, "tensors is 1; it must be odd and at least 3"),
        ({"bond": 0}, "bond is 0"),
        ({"chain_rate": 0.0}, "chain_rate 0.0; need 1 or more"),
        ({"targets": ["norm1"]}, "is a LayerNorm; chains replace linear layers and embeddings"),
        ({"factors": {(32, 32): ([2, 2, 2, 2, 3], [2, 2, 2, 2, 2])}}, r"are not 5 each that give \(32, 32\)"),
        ({"factors": {(32, 32): ([4, 2, 4], [2, 2, 2, 2, 2])}}, r"are not 5 each that give \(32, 32\)"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)


def test_half_precision_is_decomposed_in_single_and_stays_half() -> None:
    layer = MPOLinear(nn.Linear(12, 24).bfloat16(), (ROWS, COLUMNS), None)
    assert {T.dtype for T in layer.tensors()} == {torch.bfloat16}
    assert distance(layer.weight().detach().float(), layer.base.weight.float()) < 0.02
