"""VPT: what the paper and its code say about it, checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_impls.adapter import Adapter, AdapterError
from reference_impls.backbones import Backbone, Batch, Size, build, pretrained
from reference_impls.claims import measure
from reference_impls.claims.trial import distance, like
from reference_impls.prompt.vpt import attach

from .cases import trial
from .parity import copy_to, randomize, twin

VIT_B16 = Size(L=12, d=768, f=3072, heads=12, head_dim=64, positions=197, patch=16, image=224, C=10)


def prompted(count: int = 8, **keywords: Any) -> tuple[Backbone, Adapter, Batch, Tensor]:
    """A model in float64 with random prompts, a batch, and the prompts."""
    model = pretrained("vit").double()
    adapter = attach(model, **{"length": 4, "train_head": False} | keywords)
    randomize(adapter.parameters())
    return model, adapter, like(model, model.batch(0, count=count)), model.get_parameter("prompts.P")


def base() -> Backbone:
    return pretrained("vit").double()


def apart(a: Tensor, b: Tensor) -> float:
    return distance(a.detach(), b.detach())


def blocks_of(model: Backbone) -> list[Any]:
    return list(model.get_submodule("stack.blocks"))  # type: ignore[arg-type]


def embedded(model: Backbone, batch: Batch) -> Tensor:
    """Class token and patches with their positions, (B, 1 + m, d)."""
    tokens: Tensor = model.get_submodule("embed")(batch.inputs)
    return tokens + model.get_parameter("stack.positions.weight")


def read(model: Backbone, x: Tensor) -> Tensor:
    logits: Tensor = model.get_submodule("head")(model.get_submodule("stack.norm_out")(x)[:, 0])
    return logits


def shallow_by_the_equations(model: Backbone, batch: Batch, P: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what every block makes of the prompts, [P_0, Z_1, ..., Z_N]; prompts stand last here."""
    tokens = embedded(model, batch)
    m = tokens.shape[1]
    x = torch.cat([tokens, P.expand(len(tokens), -1, -1)], dim=1)
    Z = [x[:, m:]]
    for block in blocks_of(model):
        x = block(x)
        Z.append(x[:, m:])
    return read(model, x), Z


def deep_by_the_equations(model: Backbone, batch: Batch, P: Tensor) -> Tensor:
    """Each block on prompts of its own; prompts stand last here."""
    x = embedded(model, batch)
    for block, prompts in zip(blocks_of(model), P, strict=True):
        x = block(torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1))[:, : x.shape[1]]
    return read(model, x)


@pytest.mark.parametrize(
    ("keywords", "count"),
    [
        ({"length": 50, "deep": False, "train_head": False}, 38_400),
        ({"length": 50, "deep": True, "train_head": False}, 460_800),
        ({"length": 5, "deep": False}, 11_530),
        ({"length": 5, "deep": True}, 53_770),
    ],
)
def test_counts_of_vit_b16(keywords: dict[str, Any], count: int) -> None:
    assert attach(build("vit", VIT_B16, device="meta"), **keywords).count() == count


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("vit", {"length": 3, "deep": False}),
        ("vit", {"length": 3, "deep": True, "train_head": False}),
        ("vit", {"length": 0}),
    ],
)
def test_the_formula_holds_for_other_settings(kind: str, settings: dict[str, Any]) -> None:
    usual = trial("vpt", kind)
    other = replace(usual, expected=replace(usual.expected, hyperparameters=settings))
    assert measure("trained-parameters", other).status == "verified"


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_start_uniform_in_the_range_of_a_patch_embedding(deep: bool) -> None:
    model = build("vit", Size(L=2, d=768, f=8, heads=12, head_dim=64, positions=5, patch=16, image=32))
    attach(model, length=50, deep=deep)
    P = model.get_parameter("prompts.P")
    assert P.shape == ((2 if deep else 1), 50, 768)
    assert 0.0624 < P.abs().max() <= 0.0625
    assert P.std().item() == pytest.approx(0.0625 / 3**0.5, rel=0.02)


def test_shallow_does_what_its_equations_say() -> None:
    model, _, batch, P = prompted(deep=False)
    expected, _ = shallow_by_the_equations(base(), batch, P[0])
    assert torch.allclose(model(batch), expected, rtol=0, atol=1e-12)


def test_deep_does_what_its_equations_say() -> None:
    model, _, batch, P = prompted()
    assert len(P) == 3
    assert torch.allclose(model(batch), deep_by_the_equations(base(), batch, P), rtol=0, atol=1e-12)


def test_deep_with_the_outputs_of_the_block_before_is_shallow() -> None:
    shallow, _, batch, P = prompted(count=1, deep=False)
    model, _, _, deep = prompted()
    _, Z = shallow_by_the_equations(base(), batch, P[0])
    copy_to(deep, torch.cat(Z[:3]))
    assert torch.allclose(model(batch), shallow(batch), rtol=0, atol=1e-12)
    assert apart(Z[1], Z[0]) > 0.01


@pytest.mark.parametrize("deep", [True, False])
def test_sequence_is_class_token_prompts_patches_and_keeps_its_length(deep: bool) -> None:
    model, _, batch, P = prompted(deep=deep)
    inputs: list[Tensor] = []
    for block in blocks_of(model):
        block.attention.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    stack = model.get_submodule("stack")
    outputs: list[Any] = []
    stack.register_forward_hook(lambda _, __, output: outputs.append(output))
    model(batch)
    assert [x.shape[1] for x in inputs] == [1 + 4 + 16] * 3
    tokens = embedded(model, batch)
    norm = blocks_of(model)[0].norm1
    expected = torch.cat([tokens[:, :1], P[0].expand(len(tokens), -1, -1), tokens[:, 1:]], dim=1)
    assert torch.allclose(inputs[0], norm(expected), rtol=0, atol=1e-13)
    (hidden, visible) = outputs[0]
    assert hidden.shape == (8, 17, 32)
    assert visible.shape == (8, 17)


def test_no_prompts_are_linear_probing() -> None:
    model = base()
    batch = like(model, model.batch(0))
    before = model(batch)
    adapter = attach(model, length=0)
    assert torch.allclose(model(batch), before, rtol=0, atol=1e-13)
    adapter.loss(batch).backward()
    probed = base()
    features = probed.get_submodule("stack")(probed.get_submodule("embed")(batch.inputs), torch.ones(32, 17) > 0)[0]
    head = probed.get_submodule("head")
    torch.nn.functional.cross_entropy(head(features[:, 0].detach()), batch.targets).backward()
    gradients = {name: p.grad for name, p in adapter.named_parameters() if p.numel()}
    assert len(gradients) == 2
    for name, expected in head.named_parameters():
        (mine,) = (g for key, g in gradients.items() if f".{name}." in key)
        torch.testing.assert_close(mine, expected.grad, rtol=0, atol=1e-12)


def test_prompts_of_zeros_are_not_the_base_model() -> None:
    model, adapter, batch, P = prompted()
    adapter.strength = 0.0
    off = model(batch)
    adapter.strength = 1.0
    copy_to(P, torch.zeros_like(P))
    assert torch.equal(model(batch), off)
    assert apart(off, base()(batch)) > 0.01


def test_a_prompt_of_zeros_is_the_bias_of_the_norm() -> None:
    model, _, _, P = prompted()
    norm = blocks_of(model)[0].norm1
    assert torch.equal(norm(torch.zeros_like(P[0])), norm.bias.expand(4, -1))


@pytest.mark.parametrize("deep", [True, False])
def test_permuting_the_prompts_of_a_layer_changes_nothing(deep: bool) -> None:
    model, _, batch, P = prompted(deep=deep)
    before = model(batch)
    copy_to(P, P[:, [2, 0, 3, 1]].clone())
    assert torch.allclose(model(batch), before, rtol=0, atol=1e-12)


def test_prompts_of_another_layer_are_not_the_same() -> None:
    model, _, batch, P = prompted()
    before = model(batch)
    copy_to(P, P[[1, 0, 2]].clone())
    assert apart(model(batch), before) > 0.01


def test_the_length_of_a_deep_prompt_means_nothing_and_of_a_shallow_one_something() -> None:
    for deep, low, high in ((True, 0.0, 1e-4), (False, 1e-2, 10.0)):
        model, adapter, batch, _ = prompted(deep=deep)
        before = model(batch)
        adapter.strength = 3.0
        assert low <= apart(model(batch), before) <= high
        adapter.strength = -1.0
        assert apart(model(batch), before) > 1e-2


def test_dropout_acts_on_the_prompts_alone_and_for_every_image_anew() -> None:
    model, _, batch, P = prompted(dropout=0.5, deep=False)
    seen: list[Tensor] = []
    blocks_of(model)[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(batch)
    tokens, prompts = seen[0], seen[0][:, 1:5]
    kept = prompts != 0
    assert 0.4 < kept.double().mean() < 0.6
    assert not torch.equal(kept[0], kept[1])
    assert torch.allclose(prompts, torch.where(kept, 2 * P[0], 0.0), rtol=0, atol=1e-13)
    assert torch.allclose(torch.cat([tokens[:, :1], tokens[:, 5:]], dim=1), embedded(model, batch), rtol=0, atol=1e-13)
    model.eval()
    assert torch.allclose(model(batch), shallow_by_the_equations(base(), batch, P[0])[0], rtol=0, atol=1e-12)


def test_dropout_reaches_deep_prompts_too() -> None:
    model, _, batch, _ = prompted(dropout=0.5)
    seen: list[Tensor] = []
    for block in blocks_of(model):
        block.norm1.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 1:5]))
    model(batch)
    assert [0.4 < (x == 0).double().mean() < 0.6 for x in seen] == [True] * 3


def test_head_is_a_copy_and_the_models_own_comes_back() -> None:
    model = base()
    adapter = attach(model, length=2)
    randomize(adapter.parameters())
    kept = base().get_parameter("head.weight")
    assert not torch.allclose(model.get_submodule("head").weight, kept)  # type: ignore[arg-type]
    adapter.detach()
    assert torch.equal(model.get_parameter("head.weight"), kept)


def test_a_copied_model_keeps_its_own_prompts() -> None:
    model, adapter, batch, _ = prompted()
    other = twin(model)
    before = other(batch)
    randomize(adapter.parameters(), seed=9)
    assert torch.equal(other(batch), before)


@pytest.mark.parametrize(
    ("kind", "keywords", "message"),
    [
        ("vit", {"length": -1}, "length is -1; it must be 0 or more"),
        ("vit", {"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
        ("encoder", {}, "Encoder embeds no patches: visual prompts need a vision transformer"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(kind: str, keywords: dict[str, Any], message: str) -> None:
    model = pretrained(kind)
    with pytest.raises(AdapterError, match=message):
        attach(model, **keywords)
    assert all(p.requires_grad for p in model.parameters())
