"""VB-LoRA: what the paper and its code say about it, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Size, build, pretrained
from reference_impls.reparameterized.vblora import Bank, VBLoRA, VectorBankLinear, attach

from .parity import (
    GPT2_MEDIUM,
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
    twin,
)
from .refused import assert_refused

ALL = ("q", "k", "v", "o", "up", "down")
SMALL: dict[str, Any] = {"vectors": 10, "length": 8}


def site(d_in: int = 12, d_out: int = 8, rank: int = 2, vectors: int = 6, k: int = 2) -> VectorBankLinear:
    base = linear(d_in, d_out).requires_grad_(False)
    bank = Bank(base.weight, vectors, 4, 0.02)
    layer = VectorBankLinear(base, bank, rank, k, 0.01, 0.0)
    randomize([bank.V, layer.logits_A, layer.logits_B])
    return layer


def bank_of(layer: VectorBankLinear) -> Tensor:
    return layer._shared[0].V


def factor(layer: VectorBankLinear, logits: Tensor) -> Tensor:
    """One row of concatenated sub-vectors a rank, by equation 3.3: softmax over logits of which only k are finite."""
    rows = []
    for row in logits:
        parts = []
        for sigma in row:
            kept = torch.full_like(sigma, -torch.inf)
            chosen = sigma.argsort(descending=True)[: layer.k]
            kept[chosen] = sigma[chosen]
            parts.append(kept.softmax(0) @ bank_of(layer))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def stored(size: Size, kind: str, **keywords: Any) -> float:
    """What the compact form of a large model takes, in numbers of four bytes, as the paper counts."""
    adapter = attach(build(kind, size, device="meta"), **keywords)
    assert isinstance(adapter, VBLoRA)
    total = 0.0
    for name, tensor in adapter.compact().items():
        total += tensor.numel() * (tensor.element_size() / 4 if name.endswith("indices") else 1)
    return total


def small(**keywords: Any) -> VBLoRA:
    adapter = attach(pretrained("decoder"), **{**SMALL, **keywords})
    assert isinstance(adapter, VBLoRA)
    randomize(adapter.parameters(), 0.3)
    return adapter


@pytest.mark.parametrize(
    ("targets", "size", "count"),
    [
        (("q", "v"), ROBERTA_BASE, 23_904),
        (ALL, ROBERTA_BASE, 26_928),
        (("q", "v"), ROBERTA_LARGE, 25_344),  # the paper prints 0.024M
        (ALL, ROBERTA_LARGE, 33_408),
    ],
)
def test_stored_counts_of_the_paper_on_roberta(targets: tuple[str, ...], size: Size, count: int) -> None:
    """0.023M (cut) and 0.027M on base, 0.033M on large: h b + 1.5 a sub-vector."""
    assert stored(size, "encoder", vectors=90, targets=targets) == count


def test_stored_count_of_the_paper_on_gpt2_medium() -> None:
    assert round(stored(GPT2_MEDIUM, "decoder", targets=ALL) / 1e6, 3) == 0.076


def test_stored_count_of_the_paper_on_gpt2_large_has_indices_of_four_bytes() -> None:
    """0.13M with h = 350; two bytes an index, which are enough, make 0.116M."""
    large = replace(GPT2_MEDIUM, L=36, d=1280, f=5120, heads=20)
    compact = stored(large, "decoder", vectors=350, targets=ALL)
    subvectors = 36 * 4 * 90
    assert compact == 350 * 256 + 2 * subvectors
    assert round((350 * 256 + 3 * subvectors) / 1e6, 2) == 0.13


def test_trained_counts_are_several_times_larger() -> None:
    assert attach(build("encoder", ROBERTA_BASE, device="meta"), vectors=90).count() == 74_880
    layer = site()
    assert layer.logits_A.numel() == 36
    assert layer.logits_B.numel() == 24
    assert sum(p.numel() for p in (layer.logits_A, layer.logits_B, bank_of(layer))) == 84
    one = VectorBankLinear(linear(768, 768), bank := Bank(torch.empty(0), 90, 256, 0.02), 4, 2, 0.01, 0.0)
    assert bank.V.numel() + one.logits_A.numel() + one.logits_B.numel() == 25_200


@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_equation_3_3_and_the_fast_form_is_their_product(shape: tuple[int, int], k: int) -> None:
    layer = site(*shape, k=k)
    A, B = factor(layer, layer.logits_A), factor(layer, layer.logits_B).T
    assert A.shape == (2, shape[0])
    assert B.shape == (shape[1], 2)
    assert torch.allclose(layer.delta_weight(), B @ A, rtol=0, atol=1e-14)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    assert torch.allclose(layer.delta(x), x @ A.T @ B.T, rtol=0, atol=1e-13)


def test_one_vector_is_a_hard_choice_and_all_vectors_the_dense_mix() -> None:
    hard, dense = site(k=1), site(k=6)
    chosen = bank_of(hard)[hard.logits_A.argmax(-1)].flatten(1)
    assert torch.equal(hard.mixed(hard.logits_A), chosen)
    mixed = (dense.logits_A.softmax(-1) @ bank_of(dense)).flatten(1)
    assert torch.allclose(dense.mixed(dense.logits_A), mixed, rtol=0, atol=1e-14)


def test_gradients_reach_the_chosen_logits_and_vectors_alone() -> None:
    layer = site(vectors=20)
    layer(torch.randn(5, 12, dtype=torch.float64)).square().sum().backward()
    used = set()
    for logits in (layer.logits_A, layer.logits_B):
        chosen = torch.zeros_like(logits).scatter(-1, logits.topk(2, dim=-1).indices, 1.0).bool()
        assert logits.grad is not None
        assert torch.equal(logits.grad != 0, chosen)
        used |= set(logits.topk(2, dim=-1).indices.flatten().tolist())
    gradient = bank_of(layer).grad
    assert gradient is not None
    assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) == used
    assert len(used) < 20


def test_choice_follows_the_logits_while_training() -> None:
    adapter = attach(pretrained("decoder"), **SMALL)
    first = {name: p.topk(2, dim=-1).indices.clone() for name, p in adapter.named_parameters() if "logits" in name}
    adapter.fit([adapter.model.batch(i) for i in range(30)], learning_rate=0.03)  # type: ignore[operator]
    moved = [not torch.equal(p.topk(2, dim=-1).indices, first[n]) for n, p in adapter.named_parameters() if n in first]
    assert any(moved)


def test_rank_of_the_change_is_r() -> None:
    values = torch.linalg.svdvals(site(12, 12, rank=2).delta_weight())
    assert values[1] > 1e-3
    assert values[2] < 1e-13


@pytest.mark.parametrize("c", [-1.0, 0.5, 2.0])
def test_change_is_quadratic_in_the_bank(c: float) -> None:
    layer = site()
    change = layer.delta_weight().detach().clone()
    with torch.no_grad():
        bank_of(layer).mul_(c)
    assert torch.allclose(layer.delta_weight(), c * c * change, rtol=0, atol=1e-14)


def test_zero_logits_are_not_the_base_and_shifted_logits_change_nothing() -> None:
    layer, other = site(), site()
    other._shared = layer._shared
    with torch.no_grad():
        other.logits_A.copy_(layer.logits_A + 3.0)
        other.logits_B.copy_(layer.logits_B)
    assert torch.allclose(layer.delta_weight(), other.delta_weight(), rtol=0, atol=1e-14)
    with torch.no_grad():
        other.logits_A.zero_()
        other.logits_B.zero_()
    assert other.delta_weight().norm() > 0.1 * layer.delta_weight().norm()


def test_start_is_near_the_base_model_and_not_equal_to_it() -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model, vectors=200, length=8)
    assert isinstance(adapter, VBLoRA)
    V = adapter.bank().V
    assert V.abs().max() <= 0.02
    assert V.std().item() == pytest.approx(0.02 / math.sqrt(3), rel=0.05)
    logits = torch.cat([p.flatten() for p in adapter.logits().values()])
    assert logits.std().item() == pytest.approx(0.01, rel=0.03)
    assert 0 < (model(batch) - before).abs().max() < 0.01


def test_logits_learn_ten_times_as_fast_as_the_bank() -> None:
    adapter = small()
    rates = {id(p): group["lr"] for group in adapter.optimizer(0.01).param_groups for p in group["params"]}
    assert rates.pop(id(adapter.bank().V)) == pytest.approx(0.001)
    assert set(rates.values()) == {0.01}
    assert len(rates) + 1 == len(adapter.parameters())


def test_bank_is_one_for_all_layers_of_every_size() -> None:
    adapter = small(targets=("q", "up", "down"))
    sites = [s for s in adapter.sites().values() if isinstance(s, VectorBankLinear)]
    assert all(s._shared[0] is adapter.bank() for s in sites)
    assert [name for name in adapter.state_dict() if name.endswith(".V")] == ["vblora.V"]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_compact_form_gives_the_same_model_and_cannot_be_trained_on(k: int) -> None:
    adapter = small(k=k)
    batch = adapter.model.batch(0)  # type: ignore[operator]
    state = adapter.compact()
    assert {t.dtype for name, t in state.items() if name.endswith("indices")} == {torch.uint8}
    assert {t.shape[-1] for name, t in state.items() if name.endswith("weights")} == {k - 1}
    other = attach(pretrained("decoder"), **SMALL, k=k)
    assert isinstance(other, VBLoRA)
    other.load_compact(state)
    assert torch.allclose(other.model(batch), adapter.model(batch), rtol=0, atol=1e-5)
    with pytest.raises(AdapterError, match="cannot be trained on"):
        other.loss(batch)
    assert adapter.loss(batch).isfinite()
    other.merge()
    assert torch.allclose(other.model(batch), adapter.model(batch), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("vectors", "kind"), [(256, torch.uint8), (257, torch.int16), (40_000, torch.int32)])
def test_compact_indices_are_the_smallest_integers_that_do(vectors: int, kind: torch.dtype) -> None:
    adapter = attach(build("decoder", Size(), device="meta"), vectors=vectors, length=8)
    assert isinstance(adapter, VBLoRA)
    assert {t.dtype for name, t in adapter.compact().items() if name.endswith("indices")} == {kind}


def test_compact_form_of_a_merged_adapter_is_the_same() -> None:
    adapter = small()
    before = adapter.compact()
    adapter.merge()
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.compact().items())


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


def test_change_is_not_formed_in_the_forward_pass() -> None:
    base = linear(64, 48).requires_grad_(False)
    layer = VectorBankLinear(base, Bank(base.weight, 10, 8, 0.02), 3, 2, 0.01, 0.0)
    x = torch.randn(3, 64, dtype=torch.float64)
    assert not {(64, 64), (48, 64), (64, 48), (48, 48)} & matrices_computed(lambda: layer(x))


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("shape", [*SHAPES, (4, 20)])
def test_equals_peft(shape: tuple[int, int], k: int) -> None:
    ours = site(*shape, k=k)
    theirs = in_peft("VBLoRAConfig", ours.base, r=2, num_vectors=6, vector_length=4, topk=k)
    V, a, b = theirs.vblora_vector_bank["default"], theirs.vblora_logits_A["default"], theirs.vblora_logits_B["default"]
    assert b.shape == (shape[1] // 4, 2, 6)
    copy_to(V, bank_of(ours))
    copy_to(a, ours.logits_A)
    copy_to(b, ours.logits_B.transpose(0, 1))
    pairs: list[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]] = [(bank_of(ours), V, same)]
    if k > 1:  # a single weight is always 1
        pairs += [(ours.logits_A, a, same), (ours.logits_B, b, lambda t: t.transpose(0, 1))]
    assert_same(ours, theirs, pairs, shape[0])
    assert torch.allclose(theirs.get_delta_weight("default"), ours.delta_weight(), rtol=0, atol=1e-14)


def test_logits_of_peft_start_ten_times_wider_than_the_official_code_s() -> None:
    peft = pytest.importorskip("peft")
    assert peft.VBLoRAConfig(target_modules=["q"]).init_logits_std == 0.1
    theirs = in_peft("VBLoRAConfig", linear(64, 64), r=4, num_vectors=200, vector_length=8)
    assert theirs.vblora_logits_A["default"].std().item() == pytest.approx(0.1, rel=0.03)
    assert theirs.vblora_vector_bank["default"].abs().max() <= 0.02


def test_peft_refuses_to_train_on_a_compact_checkpoint() -> None:
    theirs = in_peft("VBLoRAConfig", linear(12, 8), r=2, num_vectors=6, vector_length=4)
    with torch.no_grad():
        theirs.vblora_logits_A["default"][0, 0, 3:] = -torch.inf
    theirs.train()
    with pytest.raises(RuntimeError, match="save_only_topk_weights"):
        theirs(torch.randn(1, 12, dtype=torch.float64))


def test_merges_of_peft_leave_a_rounding_error_and_ours_none() -> None:
    ours = site()
    theirs = in_peft("VBLoRAConfig", ours.base, r=2, num_vectors=6, vector_length=4).float()
    copy_to(theirs.vblora_vector_bank["default"], bank_of(ours))
    assert 0 < max(drift(theirs)) < 1e-6
    assert_no_drift(lambda model: attach(model, **SMALL))


def test_twins_of_a_site_share_no_bank() -> None:
    """A copied model has a bank of its own, which its layers use."""
    adapter = small()
    other = twin(adapter.model)
    bank, layer = other.vblora, other.get_submodule("stack.blocks.0.attention.q")
    assert layer._shared[0] is bank
    assert bank is not adapter.bank()


def test_length_has_to_divide_the_outputs_too() -> None:
    model = nn.ModuleDict({"q": nn.Linear(16, 12)})
    with pytest.raises(AdapterError, match="16 inputs and 12 outputs of q"):
        attach(model, vectors=10, length=8, targets=["q"])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"k": 0}, "k is 0; with 10 vectors it must be from 1 to 10"),
        ({"k": 11}, "k is 11"),
        ({"bound": 0.0}, "bound is 0.0; it must be positive"),
        ({"length": 5}, "length is 5; it must divide the 32 inputs and 32 outputs of"),
        ({"length": 0}, "length is 0"),
        ({"dropout": 1.0}, "at least 0 and below 1"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, {**SMALL, **keywords}, message)
