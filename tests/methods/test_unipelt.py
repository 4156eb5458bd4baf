"""UniPELT: what the paper and its code say about it, checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Backbone, Batch, Size, build, pretrained
from reference_impls.backbones.layers import Attention
from reference_impls.claims import measure
from reference_impls.claims.trial import distance, like
from reference_impls.hybrid.unipelt import (
    GatedAdapterNorm,
    GatedLoRA,
    GatedPrefixAttention,
    RealTokens,
    UniPELT,
    attach,
)
from reference_impls.prompt.prefix_tuning import put_in_front

from .cases import trial
from .parity import linear, randomize, twin

BERT_BASE = Size(L=12, d=768, f=3072, heads=12, head_dim=64, V=30522, positions=512, C=2)
NONE = {"rank": 0, "length": 0, "bottleneck": 0}


def mixed(spread: float = 0.3, **keywords: Any) -> tuple[Backbone, UniPELT, Batch]:
    """The small encoder in float64 with random modules and gates, and a batch of sentences of several lengths."""
    model = pretrained("encoder").double()
    settings = {"rank": 3, "length": 4, "hidden": 8, "bottleneck": 5, "train_head": False}
    adapter = attach(model, **settings | keywords)
    assert isinstance(adapter, UniPELT)
    randomize(adapter.parameters(), spread)
    return model, adapter, like(model, model.batch(0))


def base() -> Backbone:
    return pretrained("encoder").double()


def tokens(*lengths: int) -> RealTokens:
    """Sentences of these lengths, padded to the longest."""
    real = RealTokens()
    real.visible = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return real


def lora(*lengths: int) -> GatedLoRA:
    site = GatedLoRA(linear(32, 32).requires_grad_(False), 3, tokens(*lengths))
    randomize([site.B, *site.gate.parameters()])
    return site


def adapter_norm(*lengths: int) -> GatedAdapterNorm:
    site = GatedAdapterNorm(nn.LayerNorm(32).double().requires_grad_(False), 5, tokens(*lengths))
    randomize([p for p in site.parameters() if p.requires_grad])
    return site


def prefix_attention(*lengths: int) -> GatedPrefixAttention:
    prefix = torch.randn(2, 4, 3, 8, dtype=torch.float64)
    site = GatedPrefixAttention(Attention(Size()).double(), lambda: (prefix[0], prefix[1]), tokens(*lengths))
    randomize(list(site.gate.parameters()))
    return site


def hidden_states(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, 32, dtype=torch.float64)


def gate(module: nn.Module, x: Tensor, count: int) -> Tensor:
    """Mean of the logistic units over the first ``count`` tokens of one sentence (T, d)."""
    return torch.sigmoid(x[:count] @ module.weight + module.bias).mean()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("keywords", "count"),
    [
        ({"hidden": 0}, 1_410_672),
        ({"hidden": 0, "rank": 0, "length": 0}, 894_528 + 12 * 769),
        ({"hidden": 0, "bottleneck": 0, "length": 0}, 294_912 + 24 * 769),
        ({"hidden": 0, "bottleneck": 0, "rank": 0}, 184_320 + 12 * 769),
        ({"bottleneck": 0, "rank": 0}, 9_857_024 + 12 * 769),
        ({}, 1_410_672 - 184_320 + 9_857_024),
        ({"hidden": 0, "train_head": True}, 1_410_672 + 2 * 768 + 2),
    ],
)
def test_counts_of_bert_base(keywords: dict[str, Any], count: int) -> None:
    model = build("encoder", BERT_BASE, device="meta")
    assert attach(model, **{"train_head": False} | keywords).count() == count


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("encoder", {"rank": 0, "length": 4, "hidden": 0}),
        ("encoder", {"rank": 3, "length": 0, "train_head": False}),
        ("encoder", {"rank": 3, "length": 4, "hidden": 5, "bottleneck": 0}),
    ],
)
def test_the_formula_holds_for_other_settings(kind: str, settings: dict[str, Any]) -> None:
    usual = trial("unipelt", kind)
    other = replace(usual, expected=replace(usual.expected, hyperparameters=settings))
    assert measure("trained-parameters", other).status == "verified"


def test_dropping_the_mlp_leaves_the_count_of_the_paper() -> None:
    adapter = attach(build("encoder", BERT_BASE, device="meta"), train_head=False)
    assert isinstance(adapter, UniPELT)
    adapter.drop_reparameterization()
    assert adapter.count() == 1_410_672
    assert round(100 * 1_410_672 / 109_482_240, 2) == 1.29


def test_every_layer_has_four_gates_of_its_own() -> None:
    _, adapter, _ = mixed()
    gates = [name for name, _ in adapter.named_parameters() if name.endswith("gate.weight")]
    assert len(gates) == 3 * 4
    assert len({id(p) for name, p in adapter.named_parameters() if "gate" in name}) == 3 * 4 * 2


def test_one_gate_a_sentence_the_mean_of_its_real_tokens() -> None:
    site, x = lora(5, 3), hidden_states(2, 5)
    g = site.gate(x)
    assert g.shape == (2, 1, 1)
    for row, count in enumerate((5, 3)):
        assert g[row].item() == pytest.approx(gate(site.gate, x[row], count).item(), abs=1e-12)
    assert (g[0] - g[1]).abs() > 1e-4


def test_lora_is_scaled_by_its_gate_alone() -> None:
    site, x = lora(5, 3), hidden_states(2, 5)
    expected = [
        site.base(s) + gate(site.gate, s, n) * (s @ site.A.T @ site.B.T) for s, n in zip(x, (5, 3), strict=True)
    ]
    assert torch.allclose(site(x), torch.stack(expected), rtol=0, atol=1e-12)


def test_no_weight_does_what_gated_lora_does() -> None:
    site = lora(5, 5)
    x = hidden_states(2, 5)
    scales = site.gate(x).flatten()
    weights = [site.base.weight + g * site.B @ site.A for g in scales]
    for row, other in ((0, 1), (1, 0)):
        assert torch.allclose(site(x)[row], F.linear(x[row], weights[row], site.base.bias), rtol=0, atol=1e-12)
        assert not torch.allclose(site(x)[row], F.linear(x[row], weights[other], site.base.bias), atol=1e-3)


def test_adapter_reads_the_norm_and_adds_to_what_is_under_it() -> None:
    site, x = adapter_norm(5, 3), hidden_states(2, 5)
    for row, count in enumerate((5, 3)):
        u = site.base(x[row])
        z = (u @ site.down.T + site.down_bias).clamp(min=0)
        change = gate(site.gate, u, count) * (z @ site.up.T + site.up_bias)
        assert torch.allclose(site(x)[row], site.base(x[row] + change), rtol=0, atol=1e-12)


def test_the_block_is_the_papers_equation() -> None:
    model, _, _ = mixed(rank=0, length=0)
    block: Any = model.get_submodule("stack.blocks.1")
    site, x = block.norm2, hidden_states(2, 5)
    site.gate.tokens.visible = torch.ones(2, 5, dtype=torch.bool)
    norm = site.base
    h = block.norm1(x + block.attention(x))
    o = block.mlp(h)
    u = norm(o + h)
    change = F.linear(F.relu(F.linear(u, site.down, site.down_bias)), site.up, site.up_bias)
    expected = norm(o + site.gate(u) * change + h)
    assert torch.allclose(block(x), expected, rtol=0, atol=1e-12)


def test_prefix_keys_and_values_are_scaled_by_their_gate() -> None:
    site, x = prefix_attention(5, 3), hidden_states(2, 5)
    attention = site.base
    keys, values = site.prefix()
    for row, count in enumerate((5, 3)):
        one = x[row : row + 1]
        q, k, v = (attention.split(part(one)) for part in (attention.q, attention.k, attention.v))
        g = gate(site.gate, x[row], count)
        joined = put_in_front(g * keys, g * values, q, k, v)
        expected = attention.o(F.scaled_dot_product_attention(*joined[:3]).transpose(1, 2).flatten(2))
        assert torch.allclose(site(x)[row], expected[0], rtol=0, atol=1e-12)


def test_every_layer_has_its_own_prefix_and_lora_on_queries_and_values() -> None:
    model, adapter, batch = mixed()
    seen: list[tuple[Tensor, ...]] = []
    gates: list[Tensor] = []
    for layer in range(3):
        attention: Any = model.get_submodule(f"stack.blocks.{layer}.attention")
        attention.gate.register_forward_hook(lambda _, __, output: gates.append(output))
        attention.base.core.register_forward_pre_hook(lambda _, args: seen.append(args))
    model(batch)
    prefix = adapter.prefixes()["stack.prefix"]
    for layer, ((_, k, v, _), g) in enumerate(zip(seen, gates, strict=True)):
        keys, values = prefix(layer)
        assert torch.allclose(k[:, :, :4], g[..., None] * keys, rtol=0, atol=1e-13)
        assert torch.allclose(v[:, :, :4], g[..., None] * values, rtol=0, atol=1e-13)
    changed = [path for path, site in adapter.sites().items() if isinstance(site, GatedLoRA)]
    assert changed == [f"stack.blocks.{layer}.attention.{name}" for layer in range(3) for name in "qv"]


def test_a_closed_gate_removes_lora_and_adapter() -> None:
    x = hidden_states(2, 5)
    for site in (lora(5, 5), adapter_norm(5, 5)):
        assert not torch.allclose(site(x), site.base(x), atol=1e-2)
        with torch.no_grad():
            site.gate.bias.fill_(-1e4)
        assert torch.equal(site(x), site.base(x))


def test_a_closed_gate_removes_no_prefix() -> None:
    site, x = prefix_attention(5, 5), hidden_states(2, 5)
    with torch.no_grad():
        site.gate.bias.fill_(-1e4)
    attention = site.base
    q, k, v = (attention.split(part(x)) for part in (attention.q, attention.k, attention.v))
    weights = (q @ k.mT / 8**0.5).exp()
    mixed_values = weights @ v / (weights.sum(-1, keepdim=True) + 3)  # three slots of exp(0), none of value
    expected = attention.o(mixed_values.transpose(1, 2).flatten(2))
    assert torch.allclose(site(x), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(site(x), attention(x), atol=1e-2)


def test_gates_start_near_a_half() -> None:
    model = pretrained("encoder").double()
    adapter = attach(model, rank=3, length=4, hidden=8, bottleneck=5)
    seen: list[Tensor] = []
    for module in model.modules():
        if type(module).__name__ == "Gate":
            module.register_forward_hook(lambda _, __, output: seen.append(output))
    model(like(model, model.batch(0)))
    assert len(seen) == 12
    assert (torch.cat(seen) - 0.5).abs().max() < 0.1
    adapter.detach()


def test_at_the_start_adapters_and_lora_do_next_to_nothing_and_prefixes_something() -> None:
    plain = base()
    batch = like(plain, plain.batch(0))
    reference = plain(batch).detach()
    changes = {}
    for part, size in (("rank", 3), ("bottleneck", 5), ("length", 4)):
        model = base()
        attach(model, **{**NONE, part: size})  # type: ignore[arg-type]
        changes[part] = distance(model(batch).detach(), reference)
    assert changes["rank"] < 1e-14
    assert 0 < changes["bottleneck"] < 0.01
    assert changes["length"] > 10 * changes["bottleneck"]


def test_weights_start_as_berts_do() -> None:
    model = build("encoder", Size(d=64, heads=4, head_dim=16))
    attach(model, rank=8, length=100, hidden=200, bottleneck=100)
    block: Any = model.get_submodule("stack.blocks.0")
    prefix: Any = model.get_submodule("stack.prefix.reparameterization")
    drawn = [block.norm2.down, block.norm2.up, prefix.embed.weight, prefix.inner.weight, prefix.outer.weight]
    for weight in drawn:
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    q = block.attention.base.q
    for site in (q, block.attention, block.norm2):
        assert site.gate.weight.std().item() == pytest.approx(0.02, rel=0.5)
        assert not site.gate.bias.any()
    assert not any(b.any() for b in (block.norm2.down_bias, block.norm2.up_bias, prefix.inner.bias, prefix.outer.bias))
    assert not q.B.any()
    assert q.A.abs().max() <= 1 / 8
    assert q.A.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)


def test_padding_changes_nothing_although_the_codes_mean_would() -> None:
    model, _, batch = mixed()
    assert batch.visible is not None
    before = model(batch)
    extra = torch.full((len(batch.inputs), 3), 5)
    padded = Batch(torch.cat([batch.inputs, extra], 1), batch.targets, F.pad(batch.visible, (0, 3)))
    assert torch.allclose(model(padded), before, rtol=0, atol=1e-12)
    site = lora(5, 3)
    x = hidden_states(2, 5)
    over_all = torch.sigmoid(x @ site.gate.weight + site.gate.bias).mean(1)
    assert abs(over_all[0] - site.gate(x)[0, 0, 0]) < 1e-12
    assert abs(over_all[1] - site.gate(x)[1, 0, 0]) > 1e-4


def test_one_sentence_does_not_see_another() -> None:
    model, _, batch = mixed()
    assert batch.visible is not None
    alone = model(Batch(batch.inputs[:1], batch.targets[:1], batch.visible[:1]))
    assert torch.allclose(model(batch)[:1], alone, rtol=0, atol=1e-12)


def test_strength_scales_the_gate_of_lora_and_of_the_adapter_under_the_norm() -> None:
    site, x = lora(5, 5), hidden_states(2, 5)
    full = site(x) - site.base(x)
    for c in (-1.0, 0.0, 2.0):
        site.strength = c
        assert torch.allclose(site(x) - site.base(x), c * full, rtol=0, atol=1e-12)
    norm = adapter_norm(5, 5)
    under: list[Tensor] = []
    norm.base.register_forward_pre_hook(lambda _, args: under.append(args[0]))
    for c in (1.0, -1.0, 2.0):
        norm.strength = c
        norm(x)
    changes = [under[i] - x for i in (1, 3, 5)]
    assert torch.allclose(changes[1], -changes[0], rtol=0, atol=1e-12)
    assert torch.allclose(changes[2], 2 * changes[0], rtol=0, atol=1e-12)


def test_strength_scales_the_prefix_through_the_softmax() -> None:
    model, adapter, batch = mixed(rank=0, bottleneck=0, hidden=0)
    adapter.strength = -2.0
    before = model(batch)
    adapter.strength = 1.0
    with torch.no_grad():
        model.get_parameter("stack.prefix.P").mul_(-2)
    assert torch.allclose(model(batch), before, rtol=0, atol=1e-12)


def test_all_parts_left_out_are_the_base_model() -> None:
    model = base()
    adapter = attach(model, **NONE, train_head=False)
    batch = model.batch(0)
    batch = like(model, batch)
    assert adapter.count() == 0
    assert torch.equal(model(batch), base()(batch))


@pytest.mark.parametrize("left_out", ["rank", "length", "bottleneck"])
def test_every_part_works_without_the_others(left_out: str) -> None:
    model, adapter, batch = mixed(**{left_out: 0})
    adapter.loss(batch).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in adapter.parameters())
    assert distance(model(batch).detach(), base()(batch).detach()) > 1e-3


def test_what_is_kept_loads_into_a_fresh_model_without_mlp() -> None:
    model, adapter, batch = mixed()
    state = adapter.state_dict()
    assert not [name for name in state if "reparameterization" in name]
    other = base()
    attach(other, rank=3, length=4, hidden=8, bottleneck=5, train_head=False).load_state_dict(state)
    assert torch.allclose(other(batch), model(batch), rtol=0, atol=1e-12)


def test_detach_after_training_is_the_base_model() -> None:
    model, adapter, batch = mixed(train_head=True)
    adapter.fit([batch] * 2)
    adapter.detach()
    assert torch.equal(model(batch), base()(batch))


def test_a_copied_model_keeps_its_own_modules_and_mask() -> None:
    model, adapter, batch = mixed()
    other = twin(model)
    before = other(batch)
    randomize(adapter.parameters(), seed=9)
    assert batch.visible is not None
    model(Batch(batch.inputs[:2], batch.targets[:2], batch.visible[:2]))
    assert torch.equal(other(batch), before)


@pytest.mark.parametrize(
    ("kind", "keywords", "message"),
    [
        ("encoder", {"rank": -1}, "rank is -1, bottleneck 48; both must be 0 or more"),
        ("encoder", {"bottleneck": -1}, "both must be 0 or more"),
        ("encoder", {"length": -1}, "length is -1, hidden 512; both must be 0 or more"),
        ("decoder", {}, "Decoder is no stack of post-norm blocks"),
        ("encoder-decoder", {}, "EncoderDecoder is no stack of post-norm blocks"),
        ("mlp", {}, "MLP has no attention"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(kind: str, keywords: dict[str, Any], message: str) -> None:
    model = pretrained(kind)
    with pytest.raises(AdapterError, match=message):
        attach(model, **keywords)
    assert all(p.requires_grad for p in model.parameters())
