"""Polytropon: what the paper and its code say about it, checked."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Backbone, Batch, Size, build
from reference_impls.claims.trial import like
from reference_impls.reparameterized.lora import LoRALinear
from reference_impls.reparameterized.poly import Poly, Routing, SkilledLinear, attach, log_prior

from .parity import SHAPES, assert_no_drift, assert_same, copy_to, in_peft, linear, matrices_computed, randomize, same
from .per_task import assert_merges_for_one_task, assert_tasks_are_asked_for
from .refused import assert_refused

KIND = "multitask-encoder-decoder"
BART_LARGE_TWELFTH = Size(L=1, L_dec=1, d=1024, f=4096, heads=16, head_dim=64, V=10, positions=10)


def site(d_in: int = 12, d_out: int = 8, skills: int = 3, tasks: int = 4, **keywords: Any) -> SkilledLinear:
    """A layer away from its start, between passes of a batch of three examples."""
    torch.manual_seed(0)
    routing = Routing(tasks)
    routing.ids = torch.tensor([2, 0, 2])
    layer = SkilledLinear(linear(d_in, d_out).requires_grad_(False), skills, 2, routing, **keywords)
    randomize(list(layer.parameters()), 0.7)
    return layer


def mixed(**keywords: Any) -> tuple[Backbone, Poly, Batch]:
    """A small encoder-decoder in float64, the method away from its start, and a batch of several tasks."""
    model = build(KIND).double()
    torch.manual_seed(0)
    adapter = attach(model, **{"tasks": 4, "skills": 3, "rank": 2} | keywords)
    randomize(adapter.parameters(), 0.3)
    return model, adapter, like(model, model.batch(0, count=6))


def test_counts_of_the_paper_leave_cross_attention_out_where_the_code_adapts_it() -> None:
    adapter = attach(build(KIND, BART_LARGE_TWELFTH, device="meta"), tasks=120, skills=8)
    within = sum(p.numel() for name, p in adapter.named_parameters() if ".cross." not in name)
    assert 12 * within == 8 * (3_145_728 + 96 * 120)
    assert 12 * adapter.count() == 8 * (4_718_592 + 144 * 120)


def test_start() -> None:
    layer = SkilledLinear(nn.Linear(75, 40), 4, 5, Routing(6))
    assert not layer.B.any()
    assert 0.95 / 15 < layer.A.abs().max() <= 1 / 15  # sqrt(1/3) / sqrt(75)
    assert 5e-4 < layer.z.abs().max() <= 1e-3
    assert layer.z.shape == (6, 4)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_example_is_changed_by_its_own_task_s_averages(shape: tuple[int, int]) -> None:
    layer = site(*shape)
    layer.strength = -0.5
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    for i, task in enumerate([2, 0, 2]):
        w = layer.z[task].sigmoid() / layer.z[task].sigmoid().sum()
        A = sum(w[j] * layer.A[j] for j in range(3))
        B = sum(w[j] * layer.B[j] for j in range(3))
        assert torch.allclose(layer(x)[i], layer.base(x)[i] - 0.5 * x[i] @ A @ B / 2, rtol=0, atol=1e-10)


def test_factors_are_averaged_not_products() -> None:
    """Equation 3 with Phi = flatten(A B) would average products; the code's product of averages has cross terms."""
    layer = site()
    layer._routing.task = 1
    w = layer.weights(1)[0]
    products = sum(w[j] * (layer.A[j] @ layer.B[j]).T for j in range(3)) / 2
    crossed = sum(w[j] * w[k] * (layer.A[j] @ layer.B[k]).T for j in range(3) for k in range(3)) / 2
    assert torch.allclose(layer.delta_weight(), crossed, rtol=0, atol=1e-12)
    assert (layer.delta_weight() - products).abs().max() > 0.1
    assert torch.linalg.matrix_rank(layer.delta_weight()) == layer.rank


def test_weights_sum_to_one_a_common_factor_does_not_matter_and_logits_of_zero_average_all_alike() -> None:
    layer = site()
    assert torch.allclose(layer.weights(3).sum(1), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-11)
    hat = torch.rand(4, 3, dtype=torch.float64) + 0.1
    one, two = site(allocation=hat), site(allocation=7 * hat)
    assert torch.allclose(one.weights(3), two.weights(3), rtol=0, atol=1e-10)
    layer._routing.task = 0
    nn.init.zeros_(layer.z)
    expected = (layer.A.mean(0) @ layer.B.mean(0)).T / 2
    assert torch.allclose(layer.delta_weight(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("hat", [torch.ones(4, 1), torch.eye(4)], ids=["shared", "private"])
def test_fixed_allocations_share_one_lora_or_give_every_task_its_own(hat: Tensor) -> None:
    layer = site(skills=hat.shape[1], allocation=hat)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["A", "B"]
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    for i, task in enumerate([2, 0, 2]):
        lora = LoRALinear(layer.base, 2, 1, 0.0)
        skill = 0 if hat.shape[1] == 1 else task
        copy_to(lora.A, layer.A[skill].T.contiguous())
        copy_to(lora.B, layer.B[skill].T.contiguous())
        assert torch.allclose(layer(x)[i], lora(x)[i], rtol=0, atol=1e-10)


def test_nothing_of_the_size_of_the_weight_is_computed() -> None:
    layer = site(13, 11)
    shapes = matrices_computed(lambda: layer(torch.randn(3, 5, 13, dtype=torch.float64)))
    assert not [s for s in shapes if {13, 11} <= set(s)]


def test_sampling_is_torch_s_relaxed_bernoulli_inside_the_loss_and_in_training_mode_alone() -> None:
    routing, z = Routing(4, temperature=0.5), torch.randn(4, 3)
    routing.sampling = True
    torch.manual_seed(3)
    ours = routing.allocate(z)
    torch.manual_seed(3)
    theirs = torch.distributions.RelaxedBernoulli(torch.tensor(0.5), logits=z).rsample()
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    routing.task = 1
    assert len(routing.rows(z, 3)) == 3  # every example its own draw
    model, adapter, batch = mixed()
    assert model.training
    assert torch.equal(model(batch), model(batch))
    assert adapter.loss(batch) != adapter.loss(batch)
    assert not adapter.routing.sampling
    model.eval()
    assert adapter.loss(batch) == model.loss(batch)
    model.train()
    plain = mixed(relaxed=False)[1]
    assert plain.loss(batch) == plain.loss(batch) == model.loss(batch)


def test_two_learning_rates() -> None:
    _, adapter, _ = mixed(speed=100.0)
    skills, logits = adapter.optimizer(1e-3).param_groups
    assert (skills["lr"], logits["lr"]) == (1e-3, 0.1)
    assert {p.shape for p in logits["params"]} == {(4, 3)}
    assert len(skills["params"]) + len(logits["params"]) == len(adapter.parameters())


def test_prior_is_a_distribution_over_allocations() -> None:
    """Two tasks, and numbers of skills that the first, the second or both use; the paper's sum of harmonic numbers over
    tasks, H_1 + H_2, would leave out a factor exp(-alpha H_1)."""
    total = 0.0
    for first, second, both in itertools.product(range(6), repeat=3):
        columns = [[9.0, -9.0]] * first + [[-9.0, 9.0]] * second + [[9.0, 9.0]] * both
        columns += [[-9.0, -9.0]] * 2  # skills that nobody uses say nothing
        total += log_prior(torch.tensor(columns, dtype=torch.float64).T, 0.7).exp().item()
    assert total == pytest.approx(1.0, abs=1e-3)


def test_prior_has_a_straight_through_gradient_and_goes_into_the_loss() -> None:
    z = torch.tensor([[2.0, -1.0, 0.5], [1.0, -2.0, -0.5]], dtype=torch.float64, requires_grad=True)
    value = log_prior(z, 5.0)
    constant = -5.0 * 1.5 + 2 * math.log(5.0) - 2 * math.log(2)
    assert value.item() == pytest.approx(constant)  # m is 2 and 1, hence 0! 1! and 1! 0!; no two histories alike
    (gradient,) = torch.autograd.grad(value, z)
    m = torch.tensor([2.0, 1.0], dtype=torch.float64)
    slope = z.sigmoid() * (1 - z.sigmoid())
    assert torch.allclose(gradient[:, [0, 2]], (m.digamma() - (3 - m).digamma()) * slope[:, [0, 2]])
    assert not gradient[:, 1].any()
    assert torch.equal(torch.autograd.grad(log_prior(z, 2.0), z)[0], gradient)  # alpha is in constants alone
    start = torch.full((2, 3), 1e-3, dtype=torch.bfloat16, requires_grad=True)  # whose sigmoid is rounded to 1/2
    assert torch.autograd.grad(log_prior(start, 5.0), start)[0].all()
    model, adapter, batch = mixed(prior=0.1, relaxed=False)
    expected = model.loss(batch) - 0.1 * sum(log_prior(layer.z, 5.0) for layer in adapter.layers())
    assert torch.allclose(adapter.loss(batch), expected)


def test_a_new_task_gets_a_fresh_row_and_the_others_stay() -> None:
    model, adapter, batch = mixed()
    before = model(batch)
    assert adapter.add_task() == 4
    assert torch.equal(model(batch), before)
    new = Batch(batch.inputs, batch.targets, task_ids=torch.full((6,), 4))
    logits = adapter.layers()[0].z.detach().clone()
    assert logits[4].abs().max() <= 1e-3
    adapter.fit([new] * 2)
    moved = (adapter.layers()[0].z != logits).any(1)
    assert moved.tolist() == [False] * 4 + [True]
    adapter.task = 4  # known now
    with pytest.raises(AdapterError, match="nor to a fixed allocation"):
        mixed(allocation=torch.ones(4, 3))[1].add_task()


def test_both_stacks_follow_the_tasks_of_the_batch() -> None:
    model, adapter, batch = mixed()
    other = Batch(batch.inputs, batch.targets, task_ids=(batch.task_ids + 1) % 4)
    outputs = []
    for path, layer in adapter.sites().items():
        if path in ("encoder.blocks.0.attention.q", "decoder.blocks.2.cross.k"):
            layer.register_forward_hook(lambda _, args, y: outputs.append(y))
    assert not torch.allclose(model(batch), model(other))
    first, last = outputs[0] - outputs[2], outputs[1] - outputs[3]
    assert min(first.abs().amax((1, 2)).min(), last.abs().amax((1, 2)).min()) > 1e-3


def test_merged_for_one_task_it_is_exact_for_its_examples() -> None:
    assert_merges_for_one_task(*mixed())


def test_no_row_is_added_while_merged() -> None:
    _, adapter, _ = mixed()
    adapter.task = 3
    adapter.merge()
    with pytest.raises(AdapterError, match="while the adapter is merged"):
        adapter.add_task()


def test_merging_leaves_nothing_behind() -> None:
    def chosen(model: Backbone) -> Poly:
        adapter = attach(model, tasks=2, skills=2, rank=2)
        adapter.task = 1
        return adapter

    assert_no_drift(chosen)


def test_a_batch_must_say_its_tasks() -> None:
    assert_tasks_are_asked_for(*mixed(), site())
    model, _, batch = mixed()
    with pytest.raises(AdapterError, match="one task an example"):
        model(Batch(batch.inputs, batch.targets, task_ids=batch.task_ids[:, None]))


def test_sequences_repeated_for_generation_keep_their_task_and_a_copied_model_its_own() -> None:
    layer = site()
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    assert torch.allclose(layer(x.repeat_interleave(2, 0)), layer(x).repeat_interleave(2, 0), rtol=0, atol=1e-12)
    model, _, batch = mixed()
    other = copy.deepcopy(model)
    before = other(batch)
    model(Batch(batch.inputs, batch.targets, task_ids=(batch.task_ids + 1) % 4))
    assert torch.equal(other(batch), before)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_equals_peft(shape: tuple[int, int], training: bool) -> None:
    """In evaluation, and in training with the same draws."""
    ours = site(*shape)
    theirs = in_peft("PolyConfig", ours.base, r=2, n_tasks=4, n_skills=3).train(training)
    ours._routing.sampling = training
    A, B, z = theirs.poly_lora_A["default"], theirs.poly_lora_B["default"], theirs.poly_router["default"].module_logits
    for mine, other in ((ours.A, A), (ours.B, B), (ours.z, z)):
        copy_to(other, mine)

    def seeded(layer: Any, **keywords: Any) -> Any:
        return lambda x: (torch.manual_seed(5), layer(x, **keywords))[1]

    pairs = [(ours.A, A, lambda g: g[0]), (ours.B, B, lambda g: g[0]), (ours.z, z, same)]
    assert_same(seeded(ours), seeded(theirs, task_ids=ours._routing.ids), pairs, shape[0])


def test_peft_draws_a_wider_than_the_official_code() -> None:
    theirs = in_peft("PolyConfig", nn.Linear(75, 40), r=8, n_tasks=4, n_skills=4)
    assert theirs.poly_lora_A["default"].abs().max() > 1.5 / 15  # up to 1/sqrt(75), not 1/sqrt(3 * 75)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"tasks": 0}, "tasks is 0, skills 8; both must be at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"speed": -1.0}, "speed -1.0; both must be positive"),
        ({"prior": -1.0}, "prior is -1.0, alpha 5.0; at least 0"),
        ({"prior": 1.0, "skills": 1, "allocation": torch.ones(4, 1)}, "no prior on a fixed allocation"),
        ({"allocation": torch.ones(4, 1)}, r"allocation must be \(4, 8\)"),
        ({"skills": 1, "allocation": torch.zeros(4, 1)}, "no task without a skill"),
        ({"targets": ["norm1"]}, "this method adapts linear layers"),
    ],
)
def test_bad_arguments_are_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, {"tasks": 4} | keywords, message)
