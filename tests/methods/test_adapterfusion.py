"""AdapterFusion: what the paper and its code say about it, checked."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.additive.adapterfusion import AdapterFusion, FusedAdapters, Fusion, attach
from reference_impls.additive.houlsby_adapter import BottleneckAdapter
from reference_impls.additive.houlsby_adapter import attach as attach_houlsby
from reference_impls.backbones import Backbone, Batch, Size, build, pretrained
from reference_impls.backbones.layers import Block
from reference_impls.claims.training import held_out_loss
from reference_impls.claims.trial import base_output, distance, like

from .parity import randomize

BERT_BASE = Size(L=12, d=768, f=3072, heads=12, head_dim=64, V=30522, positions=512, C=2)
D = 12


def small(tasks: int = 3, spread: float = 0.3, **keywords: float) -> tuple[Backbone, AdapterFusion]:
    """A small model in float64 with adapters, their fusion and the head away from the start."""
    model = pretrained("encoder").double()
    torch.manual_seed(0)
    adapter = attach(model, tasks=tasks, bottleneck=8, **keywords)  # type: ignore[arg-type]
    for site in adapter.fused():
        randomize([*site.adapters.parameters(), *site.fusion.parameters()], spread)
    return model, adapter


def fusion(dropout: float = 0.0) -> tuple[Fusion, Tensor, Tensor]:
    """A fusion away from its start, with h (2, 5, d) and u (2, 5, N, d)."""
    torch.manual_seed(0)
    layer = Fusion(torch.zeros(1, D, dtype=torch.float64), dropout)
    randomize(list(layer.parameters()))
    h, u = torch.randn(2, 5, D, dtype=torch.float64), torch.randn(2, 5, 3, D, dtype=torch.float64)
    return layer, h, u


def set_to_identity(*layers: Fusion) -> None:
    with torch.no_grad():
        for layer in layers:
            layer.V.copy_(torch.eye(len(layer.V)))


def output(model: Backbone, batch: Batch) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(batch)
    return result


def batches(model: Backbone, first: int, count: int, task: str = "downstream") -> list[Batch]:
    return [like(model, model.batch(first + i, task)) for i in range(count)]  # type: ignore[arg-type]


def apart(a: Tensor, b: Tensor) -> float:
    return distance(a.detach(), b.detach())


def states(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def unchanged(tensors: Sequence[Tensor], before: Sequence[Tensor]) -> list[bool]:
    return [torch.equal(t, b) for t, b in zip(tensors, before, strict=True)]


@pytest.mark.parametrize("tasks", [1, 3, 16])
def test_fusion_has_the_same_size_for_any_number_of_adapters(tasks: int) -> None:
    adapter = attach(build("encoder", BERT_BASE, device="meta"), tasks=tasks, train_head=False)
    assert adapter.count() == 12 * 1_771_008 == 21_252_096
    for task in range(tasks):
        adapter.activate(task)
        assert adapter.count() == 894_528


def test_one_adapter_a_block_has_half_the_size_of_two() -> None:
    ours = attach(build("encoder", BERT_BASE, device="meta"), train_head=False)
    ours.activate(0)
    theirs = attach_houlsby(build("encoder", BERT_BASE, device="meta"), bottleneck=48, train_head=False)
    sites = [site for site in theirs.sites().values() if isinstance(site, BottleneckAdapter)]
    assert sum(p.numel() for site in sites for p in site.parameters() if p.requires_grad) == 2 * ours.count()


def test_a_block_is_the_equation_in_both_stages() -> None:
    model, adapter = small()
    block, base = (m.get_submodule("stack.blocks.1") for m in (model, pretrained("encoder").double()))
    assert isinstance(block, Block)
    assert isinstance(base, Block)
    site = adapter.sites()["stack.blocks.1.mlp"]
    assert isinstance(site, FusedAdapters)
    below = torch.randn(2, 5, 32, dtype=torch.float64)
    x = base.norm1(below + base.attention(below))
    a = base.mlp(x)
    h = base.norm2(a + x)
    branches = [F.relu(h @ m.down.T + m.down_bias) @ m.up.T + m.up_bias for m in site.adapters]  # type: ignore[operator]
    part = site.fusion
    q = h @ part.Q.T + part.query_bias
    scores = torch.stack([(q * (u @ part.K.T + part.key_bias)).sum(-1) for u in branches], -1)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    mixed = sum(weights[..., n, None] * (u @ part.V.T) for n, u in enumerate(branches))
    torch.testing.assert_close(block(below), base.norm2(a + mixed + x), rtol=0, atol=1e-12)
    for task, u in enumerate(branches):
        adapter.activate(task)
        torch.testing.assert_close(block(below), base.norm2(a + u + x), rtol=0, atol=1e-12)


def test_fast_fusion_is_the_definition_with_a_key_and_a_value_an_adapter() -> None:
    layer, h, u = fusion(dropout=0.5)
    parameters = list(layer.parameters())

    def defined() -> Tensor:
        q, k, v = F.linear(h, layer.Q, layer.query_bias), F.linear(u, layer.K, layer.key_bias), u @ layer.V.T
        s = F.dropout((q[..., None, :] * k).sum(-1), 0.5).softmax(-1)
        return (s[..., None] * v).sum(-2)

    torch.manual_seed(4)
    fast = layer(h, u)
    torch.manual_seed(4)
    torch.testing.assert_close(fast, defined(), rtol=0, atol=1e-12)
    w = torch.randn_like(fast)
    torch.manual_seed(4)
    expected = torch.autograd.grad((defined() * w).sum(), parameters)
    for mine, theirs in zip(torch.autograd.grad((fast * w).sum(), parameters), expected, strict=True):
        assert mine.abs().max() > 1e-3
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


def test_scores_are_not_divided_by_the_root_of_the_width() -> None:
    layer, h, u = fusion()
    k = F.linear(u, layer.K, layer.key_bias)
    scores = torch.einsum("btd,btnd->btn", F.linear(h, layer.Q, layer.query_bias), k)
    torch.testing.assert_close(layer.weights(h, u), scores.softmax(-1), rtol=0, atol=1e-12)
    assert (layer.weights(h, u) - (scores / D**0.5).softmax(-1)).abs().max() > 0.1


def test_one_adapter_fused_is_that_adapter() -> None:
    model, adapter = small(tasks=1)
    set_to_identity(*(site.fusion for site in adapter.fused()))
    batch = like(model, model.batch(0))
    fused = output(model, batch)
    adapter.activate(0)
    assert apart(fused, output(model, batch)) < 1e-13
    assert apart(fused, base_output("encoder", torch.float64, batch)) > 0.1


def test_equal_adapters_fused_are_that_adapter_whatever_queries_and_keys_are() -> None:
    model, adapter = small()
    for site in adapter.fused():
        set_to_identity(site.fusion)
        for other in list(site.adapters)[1:]:
            other.load_state_dict(site.adapters[0].state_dict())
    batch = like(model, model.batch(0))
    fused = output(model, batch)
    for site in adapter.fused():
        randomize([site.fusion.Q, site.fusion.K, site.fusion.query_bias], seed=8)
    assert apart(output(model, batch), fused) < 1e-12
    adapter.activate(1)
    assert apart(output(model, batch), fused) < 1e-12


def test_without_a_query_every_adapter_has_the_same_weight() -> None:
    layer, h, u = fusion()
    with torch.no_grad():
        layer.Q.zero_()
        layer.query_bias.zero_()
    torch.testing.assert_close(layer.weights(h, u), torch.full((2, 5, 3), 1 / 3, dtype=torch.float64))
    set_to_identity(layer)
    torch.testing.assert_close(layer(h, u), u.mean(-2))


def test_start_is_nearly_the_mean_of_the_adapters() -> None:
    torch.manual_seed(0)
    layer = Fusion(torch.zeros(1, D, dtype=torch.float64), 0.0)
    h, u = torch.randn(2, 5, D, dtype=torch.float64), torch.randn(2, 5, 3, D, dtype=torch.float64)
    assert 0 < apart(layer(h, u), u.mean(-2)) < 0.05


def test_weights_differ_from_token_to_token_and_sum_to_one() -> None:
    layer, h, u = fusion()
    s = layer.weights(h, u)
    torch.testing.assert_close(s.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    assert s.std(dim=1).min() > 1e-3


def test_the_order_of_the_adapters_means_nothing() -> None:
    layer, h, u = fusion()
    order = [2, 0, 1]
    torch.testing.assert_close(layer(h, u[..., order, :]), layer(h, u), rtol=0, atol=1e-13)


def test_a_residual_in_keys_changes_nothing_and_in_values_only_where_v_is_not_the_identity() -> None:
    layer, h, u = fusion()
    a = torch.randn_like(h)
    with_residual = u + a[..., None, :]
    torch.testing.assert_close(layer.weights(h, with_residual), layer.weights(h, u), rtol=0, atol=1e-10)
    assert apart(layer(h, with_residual), a + layer(h, u)) > 0.1
    set_to_identity(layer)
    torch.testing.assert_close(layer(h, with_residual), a + layer(h, u), rtol=0, atol=1e-10)


def test_query_is_the_normalized_state() -> None:
    model, adapter = small()
    site = adapter.fused()[0]
    seen = []
    site.fusion.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output(model, like(model, model.batch(0)))
    gain, shift = (getattr(model.get_submodule("stack.blocks.0.norm2"), name) for name in ("weight", "bias"))
    plain = (seen[0] - shift) / gain
    torch.testing.assert_close(plain.mean(-1), torch.zeros_like(plain[..., 0]), rtol=0, atol=1e-9)
    torch.testing.assert_close(plain.std(-1, correction=0), torch.ones_like(plain[..., 0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dropout", "moves"), [(0.0, False), (0.5, True)])
def test_a_keys_bias_does_nothing_without_dropout(dropout: float, moves: bool) -> None:
    layer, h, u = fusion(dropout)
    torch.manual_seed(2)
    before = layer(h, u)
    (gradient,) = torch.autograd.grad((before * torch.randn_like(before)).sum(), layer.key_bias)
    assert (gradient.abs().max() > 1e-3) == moves
    randomize([layer.key_bias])
    torch.manual_seed(2)
    assert (apart(layer(h, u), before) > 1e-6) == moves


def test_dropout_is_off_in_evaluation() -> None:
    layer, h, u = fusion(dropout=0.5)
    plain, _, _ = fusion()
    assert not torch.equal(layer(h, u), plain(h, u))
    assert torch.equal(layer.eval()(h, u), plain(h, u))


def test_start_of_queries_keys_values_and_adapters() -> None:
    layer = Fusion(torch.zeros(1, 400), 0.0)
    for weight in (layer.Q, layer.K):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not layer.query_bias.any()
    assert not layer.key_bias.any()
    assert torch.equal(layer.V.diagonal(), torch.ones(400))
    rest = layer.V[~torch.eye(400, dtype=torch.bool)]
    assert rest.std().item() == pytest.approx(1e-6, rel=0.02)
    adapter = attach(pretrained("encoder"), bottleneck=400).fused()[0].adapters[0]
    assert adapter.down.std().item() == pytest.approx(0.02, rel=0.05)  # type: ignore[operator]
    assert adapter.up.std().item() == pytest.approx(0.02, rel=0.05)  # type: ignore[operator]
    assert not adapter.down_bias.any()  # type: ignore[operator]
    assert not adapter.up_bias.any()  # type: ignore[operator]


def test_loss_of_stage_two_holds_v_to_the_identity_and_that_of_stage_one_does_not() -> None:
    model, adapter = small(regularization=0.25)
    batch = like(model, model.batch(0))
    squares = sum((site.fusion.V - torch.eye(32)).square().sum().item() for site in adapter.fused())
    extra = adapter.loss(batch) - model.loss(batch)
    assert extra.item() == pytest.approx(0.25 * squares, rel=1e-12)
    adapter.activate(0)
    assert torch.equal(adapter.loss(batch), model.loss(batch))


def test_regularizer_is_nothing_at_the_start_and_keeps_v_closer_to_the_identity() -> None:
    distances = []
    for weight in (0.01, 10.0):
        torch.manual_seed(0)
        model = pretrained("encoder")
        adapter = attach(model, bottleneck=8, regularization=weight)
        assert all(site.fusion.distance() < 1e-8 for site in adapter.fused())
        adapter.fit(batches(model, 100, 40))
        distances.append(sum(site.fusion.distance().item() for site in adapter.fused()))
    assert distances[1] < 0.2 * distances[0]


def test_stage_one_trains_one_adapter_and_the_head_and_stage_two_no_adapter() -> None:
    model, adapter = small()
    adapters = [[p for site in adapter.fused() for p in site.adapters[n].parameters()] for n in range(3)]
    fusions = [p for site in adapter.fused() for p in site.fusion.parameters() if p is not site.fusion.key_bias]
    before = [states(tensors) for tensors in [*adapters, fusions]]
    adapter.learn(1, batches(model, 0, 2))
    assert not any(unchanged(adapters[1], before[1]))
    for n in (0, 2):
        assert all(unchanged(adapters[n], before[n]))
    assert all(unchanged(fusions, before[3]))
    learned = states(adapters[1])
    adapter.fuse(batches(model, 2, 2))
    assert all(unchanged(adapters[1], learned))
    for n in (0, 2):
        assert all(unchanged(adapters[n], before[n]))
    assert not any(unchanged(fusions, before[3]))


def test_adapters_that_are_not_active_play_no_part_in_stage_one() -> None:
    model, adapter = small()
    batch = like(model, model.batch(0))
    adapter.activate(1)
    alone = output(model, batch)
    for site in adapter.fused():
        randomize([*site.adapters[0].parameters(), *site.adapters[2].parameters(), *site.fusion.parameters()], seed=9)
    assert torch.equal(output(model, batch), alone)


def test_every_task_starts_with_the_pretrained_head() -> None:
    model, adapter = small()
    head = model.get_parameter("head.parametrizations.weight.0.d")
    adapter.learn(0, batches(model, 0, 3))
    assert not head.any()
    adapter.fuse(batches(model, 0, 1))
    assert head.any()


def test_fit_is_both_stages_on_the_target_task() -> None:
    both, separate = (small()[1] for _ in range(2))
    model = both.model
    assert isinstance(model, Backbone)
    steps = batches(model, 0, 5)
    losses = both.fit(iter(steps))
    assert losses == separate.learn(2, steps[:2]) + separate.fuse(steps[2:])
    assert all(torch.equal(t, separate.state_dict()[name]) for name, t in both.state_dict().items())


def test_the_targets_own_adapter_gets_the_most_weight_and_fusion_learns_more_than_the_head() -> None:
    torch.manual_seed(0)
    model = pretrained("encoder")
    adapter = attach(model, tasks=2, bottleneck=8)
    adapter.learn(0, batches(model, 100, 100, "pretraining"))
    adapter.fit(batches(model, 100, 200))
    weights: list[Tensor] = []
    for site in adapter.fused():
        site.fusion.register_forward_pre_hook(lambda part, args: weights.append(part.weights(*args).mean((0, 1))))
    output(model, model.batch(7))
    assert torch.stack(weights).mean(0)[1] > 0.6
    fused = held_out_loss(model)
    head = pretrained("encoder")
    alone = attach(head, tasks=2, bottleneck=8)
    for site in alone.fused():
        site.strength = 0.0
    alone.fuse(batches(head, 100, 200))
    assert fused < 0.6 * held_out_loss(head)


def test_the_learned_part_holds_adapters_and_fusion() -> None:
    _, adapter = small()
    held = sum(t.numel() for t in adapter.state_dict().values())
    assert held == adapter.count() + 3 * 3 * (2 * 8 * 32 + 8 + 32)


def test_a_copied_model_uses_its_own_norms_and_adapters() -> None:
    model, adapter = small()
    other = copy.deepcopy(model)
    batch = like(model, model.batch(0))
    before = output(other, batch)
    randomize([p for site in adapter.fused() for p in site.parameters()], seed=5)
    with torch.no_grad():
        model.get_parameter("stack.blocks.0.norm2.weight").mul_(3)
    assert torch.equal(output(other, batch), before)
    assert not torch.equal(output(model, batch), before)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"tasks": 0}, "tasks 0, bottleneck 48: 1 or more"),
        ({"bottleneck": 0}, "bottleneck 0: 1 or more"),
        ({"dropout": 1.0}, "dropout 1.0: at least 0 and below 1"),
        ({"regularization": -1.0}, "regularization -1.0: 0 or more"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, float], message: str) -> None:
    model = pretrained("encoder")
    with pytest.raises(AdapterError, match=message):
        attach(model, **keywords)  # type: ignore[arg-type]
    assert all(p.requires_grad for p in model.parameters())


def test_a_pre_norm_model_is_refused() -> None:
    with pytest.raises(AdapterError, match="VisionTransformer has no post-norm blocks"):
        attach(build("vit"))


@pytest.mark.parametrize("task", [-1, 3])
def test_a_task_without_an_adapter_is_refused(task: int) -> None:
    _, adapter = small()
    with pytest.raises(AdapterError, match=f"task {task}: there are adapters for the tasks 0 to 2"):
        adapter.learn(task, [])
