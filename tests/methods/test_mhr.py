"""MHR: what the paper and its code say about it, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Backbone, Batch, Size, build
from reference_impls.claims.trial import like
from reference_impls.reparameterized.lora import LoRALinear
from reference_impls.reparameterized.mhr import MHR, MultiHeadLinear, attach, average
from reference_impls.reparameterized.poly import Routing, SkilledLinear

from .parity import SHAPES, assert_no_drift, assert_same, copy_to, in_peft, linear, matrices_computed, randomize
from .refused import assert_refused

KIND = "multitask-encoder-decoder"


def site(d_in: int = 12, d_out: int = 8, splits: int = 4, rank: int = 2) -> MultiHeadLinear:
    """A layer away from its start, between passes of a batch of three examples."""
    torch.manual_seed(0)
    routing = Routing(4)
    routing.ids = torch.tensor([2, 0, 2])
    layer = MultiHeadLinear(linear(d_in, d_out).requires_grad_(False), 3, rank, splits, routing, 1.5)
    randomize(list(layer.parameters()), 0.7)
    return layer


def mixed(**keywords: Any) -> tuple[Backbone, MHR, Batch]:
    """A small encoder-decoder in float64, the method away from its start, and a batch of several tasks."""
    model = build(KIND).double()
    torch.manual_seed(0)
    adapter = attach(model, **{"tasks": 4, "skills": 3, "rank": 2, "splits": 4} | keywords)
    randomize(adapter.parameters(), 0.3)
    return model, adapter, like(model, model.batch(0, count=6))


def polytropon(layer: MultiHeadLinear, z: Tensor) -> SkilledLinear:
    """The same skills routed by one row a task, (|T|, |S|)."""
    other = SkilledLinear(layer.base, 3, layer.rank, layer._routing, 1.5).double()
    for mine, theirs in ((layer.A, other.A), (layer.B, other.B), (z, other.z)):
        copy_to(theirs, mine)
    return other


@pytest.mark.parametrize("shape", SHAPES)
def test_every_block_is_mixed_by_its_own_row(shape: tuple[int, int]) -> None:
    layer = site(*shape)
    layer.strength = -0.5
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    for i, task in enumerate([2, 0, 2]):
        A, B = torch.zeros(shape[0], 2).double(), torch.zeros(2, shape[1]).double()
        for k in range(4):
            inputs, outputs = (slice(k * n // 4, (k + 1) * n // 4) for n in shape)
            w = layer.z[task, k].sigmoid() / layer.z[task, k].sigmoid().sum()
            A[inputs] = sum(w[s] * layer.A[s, inputs] for s in range(3))
            B[:, outputs] = sum(w[s] * layer.B[s, :, outputs] for s in range(3))
        assert torch.allclose(layer(x)[i], layer.base(x)[i] - 0.5 * 1.5 / 2 * x[i] @ A @ B, rtol=0, atol=1e-10)
        layer._routing.task = task
        assert torch.allclose(layer.delta_weight(), 1.5 / 2 * (A @ B).T, rtol=0, atol=1e-11)
        layer._routing.task = None


def test_a_reshape_without_transposing_would_be_another_model_from_rank_two_on() -> None:
    for rank, equal in ((1, True), (2, False)):
        layer = site(rank=rank)
        _, right = layer.pair(layer.weights(3))
        blocks = torch.einsum("nks,srko->nkro", layer.weights(3), layer.B.unflatten(2, (4, -1)))
        assert torch.allclose(blocks.reshape(3, rank, 8), right) == equal


def test_one_split_is_polytropon_and_so_are_equal_rows() -> None:
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    one = site(splits=1)
    assert torch.allclose(one(x), polytropon(one, one.z)(x), rtol=0, atol=1e-12)
    many = site(splits=4)
    assert not torch.allclose(many(x), polytropon(many, many.z[:, 0])(x), rtol=0, atol=1e-2)
    with torch.no_grad():
        many.z.copy_(many.z[:, :1].expand_as(many.z))
    assert torch.allclose(many(x), polytropon(many, many.z[:, 0])(x), rtol=0, atol=1e-12)


def test_counts() -> None:
    layer = MultiHeadLinear(nn.Linear(1024, 1024, device="meta"), 8, 1, 64, Routing(1), 1.0)
    assert layer.A.numel() + layer.B.numel() == 16_384
    assert layer.z.numel() == 512
    size = Size(L=1, L_dec=1, d=2048, f=5120, heads=32, head_dim=64, V=10, positions=0, gated=True, norm="rms")
    for splits, routing in ((64, 221_184), (1, 3_456)):  # a twenty-fourth of T5-XL, at the settings for T0
        adapter = attach(build(KIND, size, device="meta"), tasks=1, splits=splits)
        assert 24 * adapter.count() == 17_694_720 + routing
        adapter.freeze_skills()
        assert 24 * adapter.count() == routing


@pytest.mark.parametrize(("d_in", "d_out"), [(6, 4), (4, 6)])
def test_splits_divide_inputs_and_outputs(d_in: int, d_out: int) -> None:
    with pytest.raises(AdapterError, match=f"the {d_in} inputs and {d_out} outputs of q"):
        attach(nn.ModuleDict({"q": nn.Linear(d_in, d_out)}), tasks=1, splits=3)


def test_start_is_polytropon_s_for_every_number_of_splits() -> None:
    torch.manual_seed(1)
    layer = MultiHeadLinear(nn.Linear(75, 40), 4, 5, 5, Routing(6), 1.0)
    assert not layer.B.any()
    assert 0.95 / 15 < layer.A.abs().max() <= 1 / 15
    assert layer.z.shape == (6, 5, 4)
    assert 5e-4 < layer.z.abs().max() <= 1e-3


def test_only_the_routing_of_the_new_task_is_tuned_in_mhr_z() -> None:
    _, adapter, batch = mixed()
    new = adapter.add_task()
    adapter.freeze_skills()
    before = adapter.state_dict()
    assert len(adapter.optimizer(1e-3).param_groups) == 1
    adapter.fit([Batch(batch.inputs, batch.targets, task_ids=torch.full((6,), new))] * 2)
    for name, tensor in adapter.state_dict().items():
        moved = (tensor != before[name]).flatten(1).any(1).tolist()
        assert moved == ([False] * 4 + [True] if name.endswith(".z") else [False] * 3)


def test_mhr_mu_is_one_lora_and_equals_logits_of_zero() -> None:
    model, adapter, batch = mixed(alpha=1.5)
    assert {layer.scale for layer in adapter.layers()} == {1.5 / 2}
    with torch.no_grad():
        for layer in adapter.layers():
            layer.z.zero_()
    expected = model(batch)
    paths = list(adapter.sites())
    lora = average(adapter)
    assert list(lora.sites()) == paths
    assert all(type(s) is LoRALinear for s in lora.sites().values())
    assert torch.allclose(model(batch), expected, rtol=0, atol=1e-10)
    assert torch.equal(model(batch), model(Batch(batch.inputs, batch.targets)))
    assert lora.count() == sum(2 * (s.base.in_features + s.base.out_features) for s in lora.sites().values())
    lora.merge()
    assert torch.allclose(model(batch), expected, rtol=0, atol=1e-10)
    lora.detach()
    assert torch.equal(model(batch), build(KIND).double()(batch))


def test_z_is_faster_and_sampling_is_an_option() -> None:
    model, adapter, batch = mixed()
    skills, logits = adapter.optimizer(1e-3).param_groups
    assert (skills["lr"], logits["lr"]) == (1e-3, 0.1)
    assert adapter.loss(batch) == model.loss(batch)
    _, sampled, _ = mixed(relaxed=True)
    assert sampled.loss(batch) != sampled.loss(batch)


def test_nothing_of_the_size_of_the_weight_is_computed() -> None:
    layer = site(15, 20, splits=5)
    shapes = matrices_computed(lambda: layer(torch.randn(3, 4, 15, dtype=torch.float64)))
    assert not [s for s in shapes if {15, 20} <= set(s)]


def test_merged_for_one_task_it_is_exact_for_its_examples() -> None:
    model, adapter, batch = mixed()
    mine, alone = batch.task_ids == 3, model(batch)
    assert mine.tolist() == [False, True, False, False, True, True]
    with pytest.raises(AdapterError, match=r"set adapter\.task"):
        adapter.merge()
    adapter.task = 3
    adapter.merge()
    assert torch.allclose(model(batch)[mine], alone[mine], rtol=0, atol=1e-11)
    adapter.unmerge()
    adapter.task = None
    assert torch.equal(model(batch), alone)


def test_merging_leaves_nothing_behind() -> None:
    def chosen(model: Backbone) -> MHR:
        adapter = attach(model, tasks=2, skills=2, rank=2, splits=4)
        adapter.task = 1
        return adapter

    assert_no_drift(chosen)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_equals_peft(shape: tuple[int, int], training: bool) -> None:
    """In evaluation, and in training with the same draws."""
    ours = site(*shape)
    ours.scale = 1 / 2  # peft has no alpha
    ours._routing.sampling = training
    theirs = in_peft("PolyConfig", ours.base, r=2, n_tasks=4, n_skills=3, n_splits=4).train(training)
    A, B, z = theirs.poly_lora_A["default"], theirs.poly_lora_B["default"], theirs.poly_router["default"].module_logits
    copy_to(A, ours.A.unflatten(1, (4, -1)).transpose(0, 1))
    copy_to(B, ours.B.unflatten(2, (4, -1)).permute(2, 0, 1, 3))
    copy_to(z, ours.z)

    def seeded(layer: Any, **keywords: Any) -> Any:
        return lambda x: (torch.manual_seed(5), layer(x, **keywords))[1]

    pairs = [
        (ours.A, A, lambda g: g.transpose(0, 1).flatten(1, 2)),
        (ours.B, B, lambda g: g.permute(1, 2, 0, 3).flatten(2)),
        (ours.z, z, lambda g: g.view(4, 4, 3)),
    ]
    assert_same(seeded(ours), seeded(theirs, task_ids=ours._routing.ids), pairs, shape[0])


def test_peft_draws_a_wider_the_more_splits_there_are() -> None:
    theirs = in_peft("PolyConfig", nn.Linear(75, 40), r=8, n_tasks=4, n_skills=4, n_splits=5)
    assert theirs.poly_lora_A["default"].abs().max() > 3 / 15  # up to 1/sqrt(75 / 5), not 1/sqrt(3 * 75)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"splits": 0}, "splits is 0, alpha 1.0; at least 1, and positive"),
        ({"alpha": 0.0}, "alpha 0.0; at least 1, and positive"),
        ({"splits": 5}, "splits is 5; it must divide the 32 inputs and 32 outputs of stack.blocks.0.attention.q"),
        ({"splits": 4, "tasks": 0}, "tasks is 0"),
        ({"splits": 4, "rank": 0}, "rank is 0"),
    ],
)
def test_bad_arguments_are_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, {"tasks": 4} | keywords, message)
