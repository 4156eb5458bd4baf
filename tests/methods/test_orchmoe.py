"""OrchMoE: what is known of the method, and what was filled in, checked."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Backbone, Batch, build
from reference_impls.claims.removal import differences
from reference_impls.claims.trial import like
from reference_impls.reparameterized.lora import LoRALinear
from reference_impls.reparameterized.orchmoe import OrchestratedLinear, OrchMoE, TaskRouter, attach
from reference_impls.reparameterized.poly import Routing, SkilledLinear

from .parity import SHAPES, copy_to, linear, matrices_computed, randomize

KIND = "multitask-encoder-decoder"


def site(d_in: int = 12, d_out: int = 8, tasks: int = 4, skills: int = 3) -> OrchestratedLinear:
    """A layer away from its start, between passes of three examples."""
    torch.manual_seed(0)
    base = linear(d_in, d_out).requires_grad_(False)
    router = TaskRouter(base.weight.new_empty(1, 7), tasks, 1.0)
    router.pooled = torch.randn(3, 7, dtype=torch.float64)
    layer = OrchestratedLinear(base, router, skills, 2)
    randomize([*router.parameters(), layer.A, layer.B, layer.z], 0.7)
    return layer


def mixed(**keywords: Any) -> tuple[Backbone, OrchMoE, Batch]:
    """A small encoder-decoder in float64, the method away from its start, and a batch."""
    model = build(KIND).double()
    torch.manual_seed(0)
    adapter = attach(model, **{"tasks": 3, "skills": 4, "rank": 2} | keywords)
    randomize(adapter.parameters(), 0.3)
    return model, adapter, like(model, model.batch(0, count=6))


def router_of(layer: OrchestratedLinear) -> TaskRouter:
    return layer._router[0]


def choose(router: TaskRouter, task: int) -> None:
    """All mass on one abstract task, for every input."""
    with torch.no_grad():
        router.task.weight.zero_()
        router.task.bias.fill_(-1e4)
        router.task.bias[task] = 0.0


def test_task_router_attends_without_parameters_pools_and_normalizes() -> None:
    router = TaskRouter(torch.empty(1, 7, dtype=torch.float64), 4, 1.0)
    X = torch.randn(2, 5, 7, dtype=torch.float64)
    visible = torch.ones(2, 5, dtype=torch.bool)
    visible[1, 3:] = False
    router.receive(nn.Identity(), (X, visible))
    for i, n in enumerate([5, 3]):
        x = X[i, :n]
        Xhat = torch.softmax(x @ x.T / 7**0.5, dim=1) @ x + x
        w = (Xhat @ router.task.weight.T + router.task.bias).mean(0).softmax(0)
        assert torch.allclose(router(2)[i], w, rtol=0, atol=1e-13)
    assert {name for name, _ in router.named_parameters()} == {"task.weight", "task.bias"}


@pytest.mark.parametrize("shape", SHAPES)
def test_change_is_the_double_sum_over_abstract_tasks_and_skills(shape: tuple[int, int]) -> None:
    layer = site(*shape)
    layer.strength = -0.5
    w, s = router_of(layer)(3), layer.z.sigmoid()
    v = s / s.sum(1, keepdim=True)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    change = torch.zeros(3, 5, shape[1], dtype=torch.float64)
    for i in range(4):
        for j in range(3):
            phi = v[i, j] * layer.B[:, 2 * j : 2 * j + 2] @ layer.A[2 * j : 2 * j + 2] / 2
            change = change + w[:, i, None, None] * (x @ phi.T)
    assert torch.allclose(layer(x), layer.base(x) - 0.5 * change, rtol=0, atol=1e-10)
    assert torch.allclose(layer.mixture(3).sum(1), torch.ones(3).double(), rtol=0, atol=1e-11)


def polytropon(layer: OrchestratedLinear) -> SkilledLinear:
    """Polytropon's layer with the same skills and allocations, at task 1."""
    routing = Routing(4)
    routing.task = 1
    other = SkilledLinear(layer.base, 3, 2, routing).double()
    copy_to(other.z, layer.z)
    copy_to(other.A, layer.A.unflatten(0, (3, 2)).transpose(1, 2))
    copy_to(other.B, layer.B.unflatten(1, (3, 2)).permute(1, 2, 0))
    return other


def test_all_mass_on_one_task_is_polytropon_with_that_row_but_for_the_cross_terms() -> None:
    layer = site()
    choose(router_of(layer), 1)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    other = polytropon(layer)
    w = other.weights(1)[0]
    products = sum(w[j] * other.A[j] @ other.B[j] for j in range(3)) / 2  # equation 3 of Polytropon
    assert torch.allclose(layer(x) - layer.base(x), x @ products, rtol=0, atol=1e-10)
    assert not torch.allclose(layer(x), other(x), rtol=0, atol=1e-2)  # its code averages factors
    with torch.no_grad():
        layer.z[1] = torch.tensor([-80.0, 80.0, -80.0])
    assert torch.allclose(layer(x), polytropon(layer)(x), rtol=0, atol=1e-10)


def test_one_abstract_task_and_one_skill_are_lora() -> None:
    layer = site(tasks=1, skills=1)
    lora = LoRALinear(layer.base, 2, 1.0, 0.0)
    copy_to(lora.A, layer.A)
    copy_to(lora.B, layer.B)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    assert torch.allclose(layer(x), lora(x), rtol=0, atol=1e-10)


def test_start_and_counts() -> None:
    torch.manual_seed(1)
    router = TaskRouter(torch.empty(1, 64), 8, 1.0)
    layer = OrchestratedLinear(nn.Linear(75, 40), router, 4, 5)
    assert not layer.B.any()
    assert 0.95 / 15 < layer.A.abs().max() <= 1 / 15
    assert 5e-4 < layer.z.abs().max() <= 1e-3
    assert 0.05 < router.task.weight.abs().max() <= 1 / 8
    assert layer.A.numel() + layer.B.numel() == 4 * 5 * 115
    assert sum(p.numel() for p in router.parameters()) == 8 * 65


def test_no_task_ids_are_read_and_the_source_alone_decides() -> None:
    model, adapter, batch = mixed()
    seen: list[Tensor] = []
    adapter.router.register_forward_hook(lambda _, args, w: seen.append(w))
    without = model(replace(batch, task_ids=None))
    assert torch.equal(without, model(batch))
    assert len(seen) == 2 * (len(adapter.sites()) - 1)
    assert all(torch.equal(w, seen[0]) for w in seen)
    assert seen[0].std(dim=0).min() > 1e-3
    targets = batch.targets.clone()
    targets[:, -1] = (targets[:, -1] + 1) % 19
    assert torch.equal(model(replace(batch, targets=targets))[:, :-1], without[:, :-1])
    adapter.strength = 2.0
    model(batch)
    assert torch.equal(seen[-1], seen[0])


def test_padding_changes_nothing() -> None:
    model, _, batch = mixed()
    rows = torch.zeros_like(batch.inputs[:, :2])
    padded = replace(
        batch,
        inputs=torch.cat([batch.inputs, rows], 1),
        visible=torch.cat([batch.inputs >= 0, rows > 0], 1),
    )
    assert torch.allclose(model(padded), model(batch), rtol=0, atol=1e-12)


def test_every_layer_s_gradient_reaches_the_one_task_router() -> None:
    _, adapter, batch = mixed()
    assert [name for name, _ in adapter.named_parameters() if "task_router" in name] == [
        "task_router.task.weight",
        "task_router.task.bias",
    ]
    adapter.loss(batch).backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())


def test_allocations_are_sampled_inside_the_loss_and_in_training_mode_alone() -> None:
    model, adapter, batch = mixed(temperature=0.5)
    assert model.training
    assert torch.equal(model(batch), model(batch))
    assert adapter.loss(batch) != adapter.loss(batch)
    assert not adapter.router.sampling
    model.eval()
    assert adapter.loss(batch) == model.loss(batch)
    plain, other, _ = mixed(relaxed=False)
    assert other.loss(batch) == plain.loss(batch)
    layer = site()
    router_of(layer).sampling = True
    torch.manual_seed(2)
    m = layer.mixture(3)
    torch.manual_seed(2)
    sample = torch.distributions.RelaxedBernoulli(torch.tensor(1.0), logits=layer.z.expand(3, 4, 3)).rsample()
    v = sample / sample.sum(-1, keepdim=True)
    assert torch.allclose(m, (router_of(layer)(3)[:, :, None] * v).sum(1), rtol=0, atol=1e-10)


def test_nothing_of_the_size_of_the_weight_is_computed() -> None:
    layer = site(13, 11)
    shapes = matrices_computed(lambda: layer(torch.randn(3, 5, 13, dtype=torch.float64)))
    assert not [s for s in shapes if {13, 11} <= set(s)]


def test_it_cannot_be_merged() -> None:
    model, adapter, batch = mixed()
    before = model(batch)
    with pytest.raises(AdapterError, match="cannot be merged"):
        adapter.merge()
    assert torch.equal(model(batch), before)


def test_sequences_repeated_for_generation_keep_their_source_and_a_copied_model_its_own() -> None:
    layer = site()
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    assert torch.allclose(layer(x.repeat_interleave(2, 0)), layer(x).repeat_interleave(2, 0), rtol=0, atol=1e-12)
    with pytest.raises(AdapterError, match="4 examples and sources of 3"):
        layer(torch.zeros(4, 5, 12).double())
    model, adapter, batch = mixed()
    other = copy.deepcopy(model)
    before = other(batch)
    choose(adapter.router, 0)
    assert torch.equal(other(batch), before)
    assert not torch.equal(model(batch), before)


@pytest.mark.parametrize(
    ("kind", "keywords", "message"),
    [
        (KIND, {"rank": 0}, "rank is 0"),
        (KIND, {"tasks": 0}, "tasks is 0, skills 8, temperature 1.0; at least 1, 1, and positive"),
        (KIND, {"skills": 0}, "skills 0"),
        (KIND, {"temperature": 0.0}, "temperature 0.0"),
        (KIND, {"targets": ["norm1"]}, "this method adapts linear layers"),
        ("decoder", {}, "Decoder has no encoder whose input the task router could read"),
    ],
)
def test_bad_arguments_are_refused_and_the_model_left_alone(kind: str, keywords: dict[str, Any], message: str) -> None:
    model = build(kind)
    with pytest.raises(AdapterError, match=message):
        attach(model, **keywords)
    assert differences(model, build(kind)) == []
