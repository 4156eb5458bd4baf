"""repeng: what the library and the paper it implements say about control vectors, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_impls.adapter import AdapterError
from reference_impls.additive.repeng import (
    Contrast,
    ControlVector,
    Repeng,
    attach,
    contrast_of,
    direction,
    first_component,
    last_token,
)
from reference_impls.backbones import Batch, build, pretrained
from reference_impls.backbones.base import rule

from .parity import LLAMA_7B
from .refused import assert_refused

BLOCKS = "stack.blocks"


def controlled(**keywords: Any) -> Repeng:
    """The small decoder in float64 under control, its vector at random."""
    adapter = attach(pretrained("decoder").double(), **keywords)
    assert isinstance(adapter, Repeng)
    source = torch.Generator().manual_seed(3)
    adapter.vector = ControlVector({b: torch.randn(32, generator=source).double() for b in adapter.controlled})
    return adapter


def texts(seed: int = 3, count: int = 4) -> Batch:
    return pretrained("decoder").batch(seed, count=count)


def outputs(adapter: Repeng, batch: Batch, block: int) -> Tensor:
    """What a block puts out, control included."""
    seen: list[Tensor] = []
    module = adapter.model.get_submodule(f"{BLOCKS}.{block}")
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        adapter.model(batch)
    handle.remove()
    return seen[0]


def constant_shift() -> tuple[Tensor, Tensor]:
    """40 pairs in 16 dimensions that all differ by 3 along the first one, and by a little noise."""
    source = torch.Generator().manual_seed(0)
    positive = torch.randn(40, 16, generator=source, dtype=torch.float64)
    negative = positive + 0.1 * torch.randn(40, 16, generator=source, dtype=torch.float64)
    negative[:, 0] -= 3
    return positive, negative


@pytest.mark.parametrize(
    ("method", "found"), [("pca_diff", False), ("pca_center", True), ("pca_shuffled", True), ("cluster_mean", True)]
)
def test_a_shift_common_to_all_pairs_is_lost_to_the_pca_of_differences_alone(method: Any, found: bool) -> None:
    torch.manual_seed(0)
    v = direction(*constant_shift(), method)
    cosine = float(v[0] / v.norm())
    assert cosine > 0.999 if found else abs(cosine) < 0.5


def test_the_mean_difference_keeps_its_length_and_components_have_length_one() -> None:
    positive, negative = constant_shift()
    expected = positive.mean(0) - negative.mean(0)
    torch.testing.assert_close(direction(positive, negative, "cluster_mean"), expected, rtol=0, atol=1e-14)
    assert expected.norm().item() == pytest.approx(3, abs=0.1)
    for method in ("pca_diff", "pca_center", "pca_shuffled"):
        assert direction(positive, negative, method).norm().item() == pytest.approx(1, abs=1e-12)  # type: ignore[arg-type]


def test_a_component_is_the_eigenvector_of_the_covariance() -> None:
    rows = torch.randn(20, 7, dtype=torch.float64) * torch.arange(1, 8) + 5
    v = first_component(rows)
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    assert abs(float(v @ vectors[:, -1])) == pytest.approx(1, abs=1e-10)
    torch.testing.assert_close(torch.cov(rows.T) @ v, values[-1] * v, rtol=0, atol=1e-10)


def test_centering_the_pairs_is_not_centering_the_differences() -> None:
    positive, negative = torch.randn(2, 30, 9, dtype=torch.float64)
    difference = positive - negative + 0.5
    v = direction(positive + 0.5, negative, "pca_center")
    second_moment = torch.linalg.eigh(difference.T @ difference)[1][:, -1]
    assert abs(float(v @ second_moment)) == pytest.approx(1, abs=1e-10)
    covariance = torch.linalg.eigh(torch.cov(difference.T))[1][:, -1]
    assert abs(float(direction(positive + 0.5, negative, "pca_diff") @ covariance)) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("method", ["pca_diff", "pca_center", "pca_shuffled"])
def test_the_sign_points_to_where_more_of_the_positive_texts_lie_further(method: Any) -> None:
    for seed in range(6):
        positive, negative = torch.randn(2, 15, 6, dtype=torch.float64)
        torch.manual_seed(seed)
        v = direction(positive, negative, method)
        assert (positive @ v > negative @ v).sum() >= 8
        torch.manual_seed(seed)
        torch.testing.assert_close(direction(negative, positive, method), -v, rtol=0, atol=1e-10)


def test_the_sign_counts_pairs_not_sizes_and_a_tie_leaves_it() -> None:
    negative = torch.zeros(3, 2, dtype=torch.float64)
    positive = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-9.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(direction(positive, negative, "pca_diff"), positive[0], rtol=0, atol=1e-12)
    tied = torch.tensor([[1.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(direction(tied, negative[:2], "pca_diff"), first_component(tied), rtol=0, atol=0)


def test_random_order_follows_the_seed() -> None:
    positive, negative = torch.randn(2, 9, 5, dtype=torch.float64)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(direction(positive, negative, "pca_shuffled"))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


@pytest.mark.parametrize("c", [-1.0, 0.0, 1.0, 2.0])
def test_the_first_controlled_block_shifts_by_the_coefficient_times_the_vector(c: float) -> None:
    adapter, batch = controlled(layers=[1, 2]), texts()
    base = outputs(Repeng(pretrained("decoder").double(), [1], "pca_diff", False), batch, 1)  # type: ignore[arg-type]
    adapter.strength = c
    v = adapter.vector.directions[1]
    torch.testing.assert_close(outputs(adapter, batch, 1) - base, (c * v).expand_as(base), rtol=0, atol=1e-13)


@pytest.mark.parametrize("normalize", [False, True])
def test_coefficient_zero_no_vector_and_detaching_are_the_base_model_to_the_bit(normalize: bool) -> None:
    adapter, batch, base = controlled(normalize=normalize), texts(), pretrained("decoder").double()(texts())
    assert not torch.equal(adapter.model(batch), base)
    adapter.strength = 0.0
    assert torch.equal(adapter.model(batch), base)
    adapter.strength = 1.0
    adapter.vector = adapter.vector * 0.0
    assert torch.equal(adapter.model(batch), base)
    adapter.detach()
    assert torch.equal(adapter.model(batch), base)


def test_logits_are_not_antisymmetric() -> None:
    adapter, base = controlled(layers=[1, 2]), pretrained("decoder").double()(texts())
    plus = adapter.model(texts()) - base
    adapter.strength = -1.0
    minus = adapter.model(texts()) - base
    assert (plus + minus).norm() / plus.norm() > 0.1


def test_normalizing_keeps_every_tokens_norm_and_is_not_linear() -> None:
    adapter, batch, out = controlled(layers=[1], normalize=True), texts(), {}
    for c in (0.0, 1.0, 2.0):
        adapter.strength = c
        out[c] = outputs(adapter, batch, 1)
    torch.testing.assert_close(out[2.0].norm(dim=-1), out[0.0].norm(dim=-1), rtol=1e-13, atol=0)
    v = adapter.vector.directions[1]
    cosine = torch.cosine_similarity(out[2.0], out[0.0] + 2 * v, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-12)
    once, twice = out[1.0] - out[0.0], out[2.0] - out[0.0]
    assert (twice - 2 * once).norm() / once.norm() > 0.1


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_is_not_shifted_and_the_last_real_token_is_read(padding: str) -> None:
    adapter, batch = controlled(layers=[1]), texts()
    visible = torch.ones_like(batch.inputs, dtype=torch.bool)
    visible[0, :3] = padding == "right"
    visible[0, -3:] = padding == "left"
    batch = replace(batch, visible=visible)
    v, on = adapter.vector.directions[1], outputs(adapter, batch, 1)
    adapter.strength = 0.0
    off = outputs(adapter, batch, 1)
    torch.testing.assert_close((on - off)[visible], v.expand_as(on)[visible], rtol=0, atol=1e-13)
    assert torch.equal(on[0][~visible[0]].nan_to_num(), off[0][~visible[0]].nan_to_num())
    last = [12, 12, 12, 12] if padding == "left" else [9, 12, 12, 12]
    assert last_token(batch).tolist() == last
    assert torch.equal(adapter.read([batch])[1], off[range(4), last])


def test_a_fit_reads_what_blocks_put_out_without_control_and_trains_nothing() -> None:
    adapter, pairs = controlled(layers=[0, -1]), [contrast_of(pretrained("decoder"), texts(i)) for i in range(2)]
    base, plain = pretrained("decoder").double().state_dict(), controlled(layers=[0, 2])
    plain.strength = 0.0
    adapter.fit(pairs)
    for block in (0, 2):
        positive, negative = (
            torch.cat([outputs(plain, batch, block)[:, -1] for batch in side])
            for side in ([p.positive for p in pairs], [p.negative for p in pairs])
        )
        expected = direction(positive, negative, "pca_diff")
        torch.testing.assert_close(adapter.vector.directions[block], expected, rtol=0, atol=1e-12)
    assert adapter.strength == 1.0
    assert adapter.parameters() == []
    assert all(p.grad is None for p in adapter.model.parameters())
    adapter.detach()
    assert all(torch.equal(tensor, base[name]) for name, tensor in adapter.model.state_dict().items())


@pytest.mark.parametrize("method", ["pca_center", "cluster_mean"])
def test_the_direction_from_one_last_word_to_another_turns_what_comes_next(method: Any) -> None:
    adapter, follows = attach(pretrained("decoder").double(), layers=[0], method=method), rule(0, 22)
    ends = [texts(i, count=32) for i in range(3)]
    pairs = [
        Contrast(*(replace(t, inputs=t.inputs.index_fill(1, torch.tensor([12]), word)) for word in (4, 9)))
        for t in ends
    ]
    adapter.fit(pairs[:2])
    chances = []
    for c in (-2.0, 0.0, 2.0):
        adapter.strength = c * (3 if method == "pca_center" else 1)
        with torch.no_grad():
            logp = adapter.model(pairs[2].negative)[:, -1].log_softmax(dim=-1).mean(dim=0)
        chances.append(float(logp[follows[4]] - logp[follows[9]]))
    assert chances == sorted(chances)
    assert chances[1] < -5
    assert chances[2] > 3


def test_vectors_add_subtract_and_scale_block_by_block() -> None:
    a = ControlVector({0: torch.tensor([1.0, 2.0]), 1: torch.tensor([3.0, 4.0])})
    b = ControlVector({1: torch.tensor([1.0, 1.0]), 2: torch.tensor([5.0, 6.0])})
    mixed = 2 * a - b / 2
    assert {k: v.tolist() for k, v in mixed.directions.items()} == {0: [2, 4], 1: [5.5, 7.5], 2: [-2.5, -3]}
    assert {k: v.tolist() for k, v in (-a + a).directions.items()} == {0: [0, 0], 1: [0, 0]}


def test_control_takes_the_blocks_it_has_of_a_vector_and_refuses_one_without_them() -> None:
    adapter = controlled(layers=[1])
    adapter.vector = ControlVector({b: torch.full((32,), float(b)) for b in range(3)})
    assert {b: float(v[0]) for b, v in adapter.vector.directions.items()} == {1: 1.0}
    with pytest.raises(AdapterError, match=r"no direction for block 1; it has \[0\]"):
        adapter.vector = ControlVector({0: torch.zeros(32)})


def test_own_pairs_differ_in_their_mark_alone() -> None:
    pair = contrast_of(pretrained("decoder"), texts())
    assert set(pair.positive.inputs[:, 0].tolist()) == {22}
    assert set(pair.negative.inputs[:, 0].tolist()) == {23}
    assert torch.equal(pair.positive.inputs[:, 1:], pair.negative.inputs[:, 1:])


def test_by_default_all_blocks_of_llama_but_the_first_are_controlled_and_nothing_is_trained() -> None:
    adapter = attach(build("decoder", LLAMA_7B, device="meta"))
    assert list(adapter.sites()) == [f"{BLOCKS}.{i}" for i in range(1, 32)]
    assert adapter.count() == 0
    assert sum(v.numel() for v in adapter.state_dict().values()) == 31 * 4096


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no texts"),
        ([texts(count=1)], "1 rows that do not vary"),
        ([Batch(texts().inputs[:, 1:], texts().targets)], "do not begin with one of the marks 22 and 23"),
    ],
    ids=["none", "one pair", "no marks"],
)
def test_texts_that_give_no_direction_are_refused(batches: list[Batch], message: str) -> None:
    adapter = controlled()
    before = adapter.vector
    with pytest.raises(AdapterError, match=message):
        adapter.fit(batches)
    assert all(torch.equal(v, before.directions[b]) for b, v in adapter.vector.directions.items())
    assert adapter.strength == 1.0


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"layers": [3]}, "allowed: one or more of -3 to 2"),
        ({"layers": []}, r"layers are \[\]"),
        ({"layers": [-1, 2]}, "none twice"),
        ({"method": "umap"}, "method is 'umap'; allowed: pca_diff, pca_center"),
    ],
)
def test_refusals(keywords: Mapping[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)


def test_texts_without_a_partner_are_no_pairs() -> None:
    with pytest.raises(AdapterError, match="4 texts and 3 texts are no pairs"):
        Contrast(texts(), texts(count=3))
    with pytest.raises(AdapterError, match="MLP is no decoder"):
        attach(pretrained("mlp"))
