"""MOELoRA: what the paper and its code say about it, checked."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Backbone, Batch, build
from reference_impls.claims.trial import like
from reference_impls.reparameterized.lora import LoRALinear
from reference_impls.reparameterized.moelora import ExpertsLinear, Gate, MOELoRA, attach

from .parity import SHAPES, assert_no_drift, copy_to, linear, matrices_computed, randomize
from .per_task import assert_merges_for_one_task, assert_tasks_are_asked_for
from .refused import assert_refused


def site(d_in: int = 12, d_out: int = 8, experts: int = 3, rank: int = 6) -> ExpertsLinear:
    """A layer away from its start, between passes of a batch of three examples."""
    torch.manual_seed(0)
    base = linear(d_in, d_out).requires_grad_(False)
    gate = Gate(base.weight, 4, 5, experts)
    gate.ids = torch.tensor([2, 0, 2])
    layer = ExpertsLinear(base, gate, rank, 9.0, 0.0)
    randomize([*gate.parameters(), layer.A, layer.B], 0.7)
    return layer


def mixed(**keywords: Any) -> tuple[Backbone, MOELoRA, Batch]:
    """A small decoder in float64, the method away from its start, and a batch of several tasks."""
    model = build("multitask-decoder").double()
    torch.manual_seed(0)
    adapter = attach(model, **{"tasks": 4, "experts": 2, "rank": 4, "width": 8} | keywords)
    randomize(adapter.parameters(), 0.2)
    return model, adapter, like(model, model.batch(0, count=6))


def gate_of(layer: ExpertsLinear) -> Gate:
    return layer._gate[0]


def test_counts_at_chatglm_6b() -> None:
    shapes = {"q": (4096, 12288), "o": (4096, 4096), "up": (4096, 16384), "down": (16384, 4096)}
    block = nn.ModuleDict({name: nn.Linear(*shape, device="meta") for name, shape in shapes.items()})
    adapter = attach(block, tasks=16)
    gate = sum(p.numel() for p in adapter.gate.parameters())
    assert gate == 17 * 64 + 8 * 64 == 1_600
    assert 28 * (adapter.count() - gate) == 29_360_128


def test_start() -> None:
    gate = Gate(torch.empty(1), 16, 64, 8)
    layer = ExpertsLinear(nn.Linear(100, 40), gate, 16, 32, 0.1)
    assert not layer.B.any()
    assert layer.A.std().item() == pytest.approx(0.01, rel=0.1)
    assert gate.E.shape == (17, 64)
    assert gate.E.std().item() == pytest.approx(1.0, rel=0.1)
    assert 0.9 / 8 < gate.W.abs().max() <= 1 / 8
    assert layer.scale == 2.0  # alpha over the total rank


@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_experts_are_mixed_by_the_example_s_task(shape: tuple[int, int]) -> None:
    layer = site(*shape)
    gate = gate_of(layer)
    layer.strength = -0.5
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    for i, task in enumerate([2, 0, 2]):
        w = (gate.W @ gate.E[task + 1]).softmax(0)
        assert w.std() > 0.05
        delta = 9 / 6 * sum(w[k] * layer.B[:, 2 * k : 2 * k + 2] @ layer.A[2 * k : 2 * k + 2] for k in range(3))
        assert torch.allclose(layer(x)[i], layer.base(x)[i] - 0.5 * x[i] @ delta.T, rtol=0, atol=1e-12)
        gate.task = task
        assert torch.allclose(layer.delta_weight(), delta, rtol=0, atol=1e-12)
        assert torch.linalg.matrix_rank(layer.delta_weight()) == 6
        gate.task = None


def test_one_expert_is_lora_and_equal_weights_are_a_share_of_the_stacked_one() -> None:
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    for experts in (1, 3):
        layer = site(experts=experts)
        nn.init.zeros_(gate_of(layer).W)
        lora = LoRALinear(layer.base, 6, 9.0, 0.0)
        copy_to(lora.A, layer.A)
        copy_to(lora.B, layer.B)
        assert torch.allclose(layer(x) - layer.base(x), lora.delta(x) / experts, rtol=0, atol=1e-12)


def test_examples_of_a_task_have_equal_weights_at_every_layer_and_token() -> None:
    model, adapter, batch = mixed()
    seen: list[Tensor] = []
    adapter.gate.register_forward_hook(lambda _, args, w: seen.append(w))
    model(batch)
    assert len(seen) == len(adapter.sites()) - 1
    assert all(torch.equal(w, seen[0]) for w in seen)
    for i in range(6):
        for j in range(6):
            assert torch.equal(seen[0][i], seen[0][j]) == bool(batch.task_ids[i] == batch.task_ids[j])


def test_there_is_one_gate_and_every_layer_s_gradient_reaches_it() -> None:
    _, adapter, batch = mixed()
    gates = [name for name, _ in adapter.named_parameters() if name.endswith((".E", ".W"))]
    assert gates == ["moelora_gate.E", "moelora_gate.W"]
    adapter.loss(batch).backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    assert adapter.gate.E.grad is not None
    assert adapter.gate.E.grad.any(1).tolist() == [False, *[bool((batch.task_ids == t).any()) for t in range(4)]]


def test_several_ids_of_an_example_are_averaged_before_the_gate() -> None:
    layer = site()
    gate = gate_of(layer)
    gate.ids = torch.tensor([[2, -1, -1], [0, 3, -1], [1, 0, 2]])
    e = torch.stack([gate.E[3], gate.E[[1, 4]].mean(0), gate.E[[2, 1, 3]].mean(0)])
    assert torch.allclose(gate(3), F.linear(e, gate.W).softmax(-1), rtol=0, atol=1e-13)
    model, _, batch = mixed()
    single = model(batch)
    padded = torch.stack([batch.task_ids, torch.full_like(batch.task_ids, -1)], dim=1)
    assert torch.allclose(model(replace(batch, task_ids=padded)), single, rtol=0, atol=1e-12)
    with pytest.raises(AdapterError, match="go from -1"):
        model(replace(batch, task_ids=torch.full_like(padded, -1)))


def test_broadcast_of_the_official_code_is_for_sequences_first() -> None:
    """Weights (B, N) as [1, B, 1] stand at the batch of (T, B, d), but at the tokens of (B, T, d)."""
    layer = site()
    x = torch.randn(3, 3, 12, dtype=torch.float64)  # three tokens: nothing else would fit
    w = gate_of(layer)(3)

    def official(x: Tensor) -> Tensor:
        parts = zip(layer.A.split(2), layer.B.split(2, dim=1), w.T, strict=True)
        return sum(x @ A.T @ B.T * 1.5 * v.unsqueeze(-1).unsqueeze(0) for A, B, v in parts)

    change = layer(x) - layer.base(x)
    assert torch.allclose(official(x.transpose(0, 1)).transpose(0, 1), change, rtol=0, atol=1e-12)
    assert not torch.allclose(official(x), change, rtol=0, atol=1e-2)


def test_dropout_is_on_the_branch_s_input() -> None:
    layer = site()
    layer.dropout.p = 0.5
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    torch.manual_seed(1)
    dropped = F.dropout(x, 0.5)
    torch.manual_seed(1)
    change = layer(x) - layer.base(x)
    layer.eval()
    assert torch.allclose(change, layer(dropped) - layer.base(dropped), rtol=0, atol=1e-12)


def test_nothing_of_the_size_of_the_weight_is_computed() -> None:
    layer = site(13, 11)
    shapes = matrices_computed(lambda: layer(torch.randn(3, 5, 13, dtype=torch.float64)))
    assert not [s for s in shapes if {13, 11} <= set(s)]


def test_merged_for_one_task_it_is_exact_for_its_examples() -> None:
    assert_merges_for_one_task(*mixed())


def test_merging_leaves_nothing_behind() -> None:
    def chosen(model: Backbone) -> MOELoRA:
        adapter = attach(model, tasks=2, experts=2, rank=2)
        adapter.task = 1
        return adapter

    assert_no_drift(chosen)


def test_a_batch_must_say_its_tasks() -> None:
    assert_tasks_are_asked_for(*mixed(), site())


def test_sequences_repeated_for_generation_keep_their_task_and_a_copied_model_its_own() -> None:
    layer = site()
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    assert torch.allclose(layer(x.repeat_interleave(2, 0)), layer(x).repeat_interleave(2, 0), rtol=0, atol=1e-12)
    model, adapter, batch = mixed()
    other = copy.deepcopy(model)
    before = other(batch)
    with torch.no_grad():
        adapter.gate.W.mul_(3)
    assert torch.equal(other(batch), before)
    assert not torch.equal(model(batch), before)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 12}, "rank is 12, for 8 experts together; it must be a multiple"),
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0}, "alpha is 0"),
        ({"dropout": 1.0}, "at least 0 and below 1"),
        ({"tasks": 0}, "tasks is 0, experts 8, width 64; all must be at least 1"),
        ({"experts": 0}, "experts 0"),
        ({"width": 0}, "width 0"),
        ({"targets": ["norm1"]}, "this method adapts linear layers"),
    ],
)
def test_bad_arguments_are_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, {"tasks": 4} | keywords, message)
