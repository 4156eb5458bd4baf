"""X-LoRA: what the paper and its code say about it, checked."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError
from reference_impls.backbones import Backbone, Batch, build, pretrained
from reference_impls.claims import measure
from reference_impls.claims.trial import like
from reference_impls.reparameterized.lora import attach as attach_lora
from reference_impls.reparameterized.xlora import ExpertsLinear, Router, Routing, attach, classifier

from .cases import trial
from .parity import LLAMA_7B, SHAPES, Holder, copy_to, linear, note, randomize, twin
from .refused import assert_refused

ALPHAS = (6.0, 10.0, 3.0)


def mixed(**keywords: Any) -> tuple[Backbone, Adapter, Batch]:
    """The small decoder in float64 with experts, a classifier away from its start, and a batch."""
    model = pretrained("decoder").double()
    torch.manual_seed(0)
    adapter = attach(model, **{"experts": 3, "rank": 4, "hidden": 8, "dropout": 0.0} | keywords)
    randomize(list(router(model).parameters()))
    return model, adapter, like(model, model.batch(0, count=4))


def router(model: nn.Module) -> Router:
    found = model.get_submodule("router")
    assert isinstance(found, Router)
    return found


def scalings(model: nn.Module) -> Tensor:
    """Those of the last forward pass, (B, T, L, n)."""
    found = router(model).scalings
    assert found is not None
    return found


def expert(seed: int, rank: int = 4, **keywords: Any) -> dict[str, Tensor]:
    """The state of a LoRA adapter away from its start."""
    model = pretrained("decoder").double()
    adapter = attach_lora(model, rank=rank, **keywords)
    randomize(adapter.parameters(), 0.3, seed)
    return adapter.state_dict()


def site(d_in: int, d_out: int, experts: dict[int, int]) -> ExpertsLinear:
    """A layer, the second of three, with experts of these ranks, and scalings (3, 5, 3, 3) of a pass."""
    torch.manual_seed(1)
    pairs = {
        k: (torch.randn(r, d_in, dtype=torch.float64), torch.randn(d_out, r, dtype=torch.float64))
        for k, r in experts.items()
    }
    layer = ExpertsLinear(linear(d_in, d_out), pairs, ALPHAS, Router(nn.Sequential(), 3, 3, Routing()), 1)
    layer._router[0].scalings = torch.rand(3, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    return layer


@pytest.mark.parametrize(
    ("keywords", "count"),
    [
        ({}, 36_873),
        ({"layerwise": True}, 4 * 36_873),
        ({"depth": 4}, 4096 * 2048 + 2048 + 2 * (2048 * 2048 + 2048) + 2048 * 9 + 9),
    ],
)
def test_counts_at_a_width_of_4096_and_nine_experts(keywords: dict[str, Any], count: int) -> None:
    model = build("decoder", replace(LLAMA_7B, L=2, V=8), device="meta")
    assert attach(model, experts=9, rank=1, **keywords).count() == count


@pytest.mark.parametrize("settings", [{"depth": 1}, {"depth": 3, "hidden": 5, "targets": ["q", "up", "down"]}])
@pytest.mark.parametrize("layerwise", [False, True])
def test_the_formula_holds_for_other_settings(settings: dict[str, Any], layerwise: bool) -> None:
    usual = trial("xlora", "decoder")
    hyperparameters = {"experts": 2, "hidden": 8, "targets": ["q", "v"], "layerwise": layerwise} | settings
    other = replace(usual, expected=replace(usual.expected, hyperparameters=hyperparameters, reported=()))
    assert measure("trained-parameters", other).status == "verified"


def test_one_expert_is_that_lora() -> None:
    state = expert(5)
    model, _, batch = mixed(experts=[state], alpha=9)
    other = pretrained("decoder").double()
    attach_lora(other, rank=4, alpha=9).load_state_dict(state)
    assert torch.allclose(model(batch), other(batch), rtol=0, atol=1e-12)


def test_equal_logits_apply_every_expert_with_one_nth() -> None:
    states = [expert(5), expert(6), expert(7)]
    model, _, batch = mixed(experts=states, alpha=8)
    with torch.no_grad():
        for p in router(model).parameters():
            p.zero_()
    joined = {name: torch.cat([s[name] for s in states], dim=0 if name.endswith("A") else 1) for name in states[0]}
    other = pretrained("decoder").double()
    attach_lora(other, rank=12, alpha=12 * (8 / 4) / 3).load_state_dict(joined)
    assert torch.allclose(model(batch), other(batch), rtol=0, atol=1e-12)


def test_scalings_sum_to_one_and_change_from_token_to_token() -> None:
    for layerwise in (False, True):
        model, _, batch = mixed(layerwise=layerwise)
        model(batch)
        found = scalings(model)
        assert found.shape == (*batch.inputs.shape, 6, 3)
        assert torch.allclose(found.sum(-1), torch.ones(1, dtype=torch.float64))
        assert found.std(dim=1).min() > 1e-3
        assert (found.std(dim=2).max() > 1e-2) == layerwise


def test_top_k_keeps_the_largest_and_its_softmax_shares_them_out_anew() -> None:
    logits = torch.randn(2, 5, 3, 4)
    whole = logits.softmax(-1)
    kept = Routing(top_k=2).scalings(logits)
    assert bool(((kept > 0).sum(-1) == 2).all())
    assert torch.equal(kept.amax(-1), whole.amax(-1))
    assert torch.equal(kept.sum(-1), whole.topk(2, dim=-1).values.sum(-1))
    best, places = logits.topk(2, dim=-1)
    only = Routing(softmax=False, top_k=2, softmax_topk=True).scalings(logits)
    assert torch.allclose(only.gather(-1, places), best.softmax(-1))
    assert torch.allclose(only.sum(-1), torch.ones(1))
    twice = Routing(top_k=2, softmax_topk=True).scalings(logits)
    assert torch.allclose(twice.gather(-1, places), whole.topk(2, dim=-1).values.softmax(-1))
    assert (twice - only).abs().max() > 0.05


def test_classifier_of_every_depth() -> None:
    width = torch.empty(0, 12)
    assert [type(part).__name__ for part in classifier(width, 1, 7, 0.2, 5)] == ["Linear"]
    deep = classifier(width, 3, 7, 0.2, 5)
    assert [type(part).__name__ for part in deep] == [
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
        "ReLU",
        "Dropout",
        "Linear",
    ]
    assert [tuple(part.weight.shape) for part in deep if isinstance(part, nn.Linear)] == [(7, 12), (7, 7), (5, 7)]
    assert {part.p for part in deep if isinstance(part, nn.Dropout)} == {0.2}


def test_a_layer_is_the_equation_with_experts_of_several_ranks() -> None:
    layer = site(12, 8, {0: 2, 2: 3})  # the second expert does not adapt this layer
    layer.strength = -0.5
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    given = scalings(nn.ModuleDict({"router": layer._router[0]}))
    parts = {0: (layer.A[:2], layer.B[:, :2], 6 / 2), 2: (layer.A[2:], layer.B[:, 2:], 3 / 3)}
    change = sum(s * (given[:, :, 1, k, None] * x) @ A.T @ B.T for k, (A, B, s) in parts.items())
    assert torch.allclose(layer(x), layer.base(x) - 0.5 * change, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_first_pass_is_the_base_model_or_scales_every_expert_alike(value: float) -> None:
    states = [expert(5), expert(6)]
    model, adapter, batch = mixed(experts=states, alpha=8, scaling_pass_value=value)
    adapter.strength = 1.0
    read: list[Tensor] = []
    router(model).classifier.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    model(batch)
    other = pretrained("decoder").double()
    if value:
        joined = {name: torch.cat([s[name] for s in states], dim=0 if name.endswith("A") else 1) for name in states[0]}
        attach_lora(other, rank=8, alpha=8 * 2 * value).load_state_dict(joined)
    seen = torch.ones_like(batch.inputs, dtype=torch.bool)
    expected = other.stack(other.embed(batch.inputs), seen)[0]  # type: ignore[operator]
    assert torch.allclose(read[0], expected, rtol=0, atol=0 if not value else 1e-12)
    assert not read[0].requires_grad


def test_gradient_flows_through_the_second_pass_alone() -> None:
    model, adapter, batch = mixed()
    calls: list[bool] = []
    model.get_submodule("stack.blocks.0").register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    model(batch)
    assert calls == [False, True]
    adapter.loss(batch).backward()
    weight = router(model).classifier[0].weight
    with torch.no_grad():
        step = torch.zeros_like(weight)
        step[1, 2] = 1e-5
        losses = []
        for sign in (1, -1):
            weight.add_(sign * step)
            losses.append(adapter.loss(batch).item())
            weight.sub_(sign * step)
    assert weight.grad is not None
    assert weight.grad[1, 2].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5)


def test_strength_scales_every_expert_and_leaves_scalings_alone() -> None:
    model, adapter, batch = mixed()
    model(batch)
    before = scalings(model)
    adapter.strength = -2.0
    model(batch)
    assert torch.equal(scalings(model), before)
    adapter.strength = 0.0
    assert torch.equal(model(batch), pretrained("decoder").double()(batch))


@pytest.mark.parametrize("train_experts", [False, True])
def test_experts_stay_as_they_are_unless_trained_too(train_experts: bool) -> None:
    _, adapter, batch = mixed(train_experts=train_experts)
    before = adapter.state_dict()
    adapter.fit([batch] * 2)
    moved = {name.split(".")[-1] for name, t in adapter.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == ({"weight", "bias", "A", "B"} if train_experts else {"weight", "bias"})


def test_classifier_learns_to_choose_the_expert_of_the_task() -> None:
    model = pretrained("decoder")
    skilled = attach_lora(model, rank=4)
    skilled.fit((model.batch(i) for i in range(60)), 1e-2)
    state = skilled.state_dict()
    skilled.detach()
    spoiled = {name: t if name.endswith("A") else -t for name, t in state.items()}
    adapter = attach(model, experts=[spoiled, state], alpha=16)
    adapter.fit((model.batch(100 + i) for i in range(40)), 3e-2)
    model(model.batch(0))
    assert scalings(model)[..., 1].mean() > 0.8


def test_a_copied_model_has_a_router_of_its_own() -> None:
    model, _, batch = mixed()
    before = model(batch)
    other = copy.deepcopy(model)
    assert router(other).scalings is None
    with torch.no_grad():
        router(model).classifier[0].bias[0] += 5
    assert torch.equal(other(batch), before)
    assert not torch.equal(model(batch), before)


@pytest.mark.parametrize(("depth", "layerwise"), [(1, True), (2, False), (3, True)])
def test_classifier_equals_peft(depth: int, layerwise: bool) -> None:
    peft = pytest.importorskip("peft")
    from peft.tuners.xlora.classifier import XLoraClassifier

    settings = {"hidden_size": 12, "xlora_depth": depth, "xlora_size": 7, "xlora_dropout_p": 0.0}
    config = peft.XLoraConfig(
        adapters=dict.fromkeys("abc", ""), layerwise_scalings=layerwise, softmax_temperature=0.7, **settings
    )
    theirs = XLoraClassifier(linear(2, 2), config, 3, 4, torch.device("cpu"))
    f = classifier(linear(12, 12).weight, depth, 7, 0.0, 12 if layerwise else 3)
    ours = Router(f, 4, 3, Routing(temperature=0.7))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        copy_to(other, mine)
    h = torch.randn(2, 5, 12, dtype=torch.float64)
    a, b = ours(h), theirs(result=SimpleNamespace(hidden_states=[None, h]), input_ids=h[..., 0])
    assert a.shape == b.shape == (2, 5, 4, 3)
    assert torch.allclose(a, b, rtol=0, atol=1e-14)
    weights = torch.randn_like(a)
    for mine, other in zip(
        torch.autograd.grad((a * weights).sum(), list(ours.parameters())),
        torch.autograd.grad((b * weights).sum(), list(theirs.parameters())),
        strict=True,
    ):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)


def peft_layer(base: nn.Linear, **keywords: Any) -> tuple[Any, Any]:
    """peft's layer with experts of ranks 2, 4 and 3 in float64, mixed as the second adapted layer."""
    peft = pytest.importorskip("peft")
    from peft.tuners.xlora.layer import XLoraLinearLayer

    def config(r: int, alpha: float) -> Any:
        return peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=["q"])

    model = peft.get_peft_model(Holder(twin(base)), config(2, 6), adapter_name="0")
    model.add_adapter("1", config(4, 10))
    model.add_adapter("2", config(3, 3))
    layer = model.base_model.model.q.double()
    layer.set_adapter(["0", "1", "2"])
    settings = peft.XLoraConfig(hidden_size=12, adapters=dict.fromkeys("012", ""), **keywords)
    return layer, XLoraLinearLayer(SimpleNamespace(disabled=False), layer, layer.forward, 1, settings)


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_equals_peft(shape: tuple[int, int]) -> None:
    ours = site(*shape, {0: 2, 1: 4, 2: 3})
    layer, theirs = peft_layer(ours.base, global_scaling_weight=-0.7)
    ours.strength = -0.7
    A, B = ([getattr(layer, f"lora_{x}")[k].weight for k in "012"] for x in "AB")
    for k, part in enumerate(ours.A.split([2, 4, 3])):
        copy_to(A[k], part)
    for k, part in enumerate(ours.B.split([2, 4, 3], dim=1)):
        copy_to(B[k], part)
    given = scalings(nn.ModuleDict({"router": ours._router[0]}))
    x = torch.randn(3, 5, shape[0], dtype=torch.float64, requires_grad=True)
    a, b = ours(x), theirs.forward(x, scalings=given)
    assert torch.allclose(a, b, rtol=0, atol=1e-12)
    weights = torch.randn_like(a)
    mine = torch.autograd.grad((a * weights).sum(), [x, given, ours.A, ours.B])
    other = torch.autograd.grad((b * weights).sum(), [x, given, *A, *B])
    expected = (*other[:2], torch.cat(other[2:5]), torch.cat(other[5:], dim=1))
    note(a, b, mine, expected)
    for one, two in zip(mine, expected, strict=True):
        assert one.abs().max() > 1e-6
        assert torch.allclose(one, two, rtol=0, atol=1e-11)


@pytest.mark.parametrize("softmax_topk", [False, True])
def test_top_k_equals_peft(softmax_topk: bool) -> None:
    _, theirs = peft_layer(linear(12, 8), top_k_lora=2, enable_softmax_topk=softmax_topk)
    logits = torch.randn(2, 5, 4, 3)
    ours = Routing(top_k=2, softmax_topk=softmax_topk).scalings(logits)[:, :, 1]
    assert torch.equal(theirs.get_maybe_topk_scalings(logits.softmax(-1)), ours)


def test_softmax_over_the_best_of_peft_never_applies_an_expert_that_scales_with_zero() -> None:
    _, theirs = peft_layer(linear(12, 8), enable_softmax=False, top_k_lora=2, enable_softmax_topk=True)
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(1, 1, 4, 3)
    assert torch.equal(theirs.get_maybe_topk_scalings(logits)[0, 0], torch.tensor([0.0, 1.0, 0.0]))
    ours = Routing(softmax=False, top_k=2, softmax_topk=True)
    assert torch.allclose(ours.scalings(logits)[0, 0, 1], torch.tensor([1.0, math.e, 0.0]) / (1 + math.e))
    zero = torch.zeros(1, 1, 4, 3)
    assert not theirs.get_maybe_topk_scalings(zero).any()
    assert bool((ours.scalings(zero).sum(-1) == 1.0).all())


def test_softmax_over_the_best_is_that_of_a_token_where_the_official_codes_is_that_of_the_batch() -> None:
    kept = Routing(top_k=2).scalings(torch.randn(2, 5, 3, 4))
    flat = torch.zeros_like(kept)
    flat[kept != 0] = kept[kept != 0].softmax(-1)  # as xlora_insertion.py has it
    assert flat.sum().item() == pytest.approx(1.0)
    ours = Routing(top_k=2, softmax_topk=True).scalings(torch.randn(2, 5, 3, 4))
    assert ours.sum().item() == pytest.approx(2 * 5 * 3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"experts": 0}, "0 experts, alpha 16: need 1 or more"),
        ({"alpha": (1.0, 2.0)}, "4 experts, alpha .*: need 1 or more, and positive numbers"),
        ({"alpha": -1}, "positive numbers, one for all or for each"),
        ({"rank": 0}, "rank is 0"),
        ({"depth": 0}, "depth is 0, hidden 2048; both must be at least 1"),
        ({"dropout": 1.0}, "at least 0 and below 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ({"top_k": 5}, "of 4 experts it may keep 1 to 4"),
        ({"softmax_topk": True}, "say with top_k how many"),
        ({"targets": ["head"]}, "head is outside the stack"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
        ({"experts": [{}]}, "state is empty"),
        ({"experts": [{"stack.blocks.9.attention.q.A": torch.ones(2, 32)}]}, "is no linear layer of this Decoder"),
        ({"experts": [{"stack.blocks.0.attention.q.A": torch.ones(2, 32)}]}, r"must be there and be \(32, r\) and"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)


@pytest.mark.parametrize("kind", ["mlp", "encoder-decoder"])
def test_a_model_without_one_stack_is_refused(kind: str) -> None:
    with pytest.raises(AdapterError, match="has no one stack"):
        attach(build(kind))
