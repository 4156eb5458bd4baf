"""MAM adapter: what the paper and its code say about it, checked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Backbone, Batch, Size, build, pretrained
from reference_impls.backbones.layers import FeedForward
from reference_impls.claims import measure
from reference_impls.claims.trial import distance, like
from reference_impls.hybrid.mam_adapter import MAMAdapter, ScaledParallelAdapter, attach
from reference_impls.reparameterized.lora import LoRALinear

from .cases import trial
from .parity import ROBERTA_BASE, linear, randomize, twin

BART_LARGE = Size(L=12, L_dec=12, d=1024, f=4096, heads=16, head_dim=64, V=50265, positions=1026)


def mixed(kind: str = "encoder-decoder", **keywords: Any) -> tuple[Backbone, MAMAdapter, Batch]:
    """A model in float64 with a random prefix and random adapters, and a batch."""
    model = pretrained(kind).double()
    adapter = attach(model, **{"length": 4, "hidden": 8, "rank": 6} | keywords)
    assert isinstance(adapter, MAMAdapter)
    randomize(adapter.parameters(), 0.3)
    return model, adapter, like(model, model.batch(0))


def beside(rank: int = 6, scale: float = 4.0, dropout: float = 0.0) -> ScaledParallelAdapter:
    """A random adapter beside a random feed-forward sublayer."""
    site = ScaledParallelAdapter(FeedForward(Size()).double().requires_grad_(False), rank, scale, dropout)
    randomize([site.up, site.down_bias, site.up_bias])
    return site


def change(site: ScaledParallelAdapter, x: Tensor) -> Tensor:
    difference: Tensor = site(x) - site.base(x)
    return difference


def own(site: ScaledParallelAdapter) -> list[nn.Parameter]:
    return [p for p in site.parameters() if p.requires_grad]


def share(q: Tensor, prefix_k: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """lam, from the exponentials of all scores."""
    root = math.sqrt(q.shape[-1])
    prefix = (q @ prefix_k.mT / root).exp().sum(-1, keepdim=True)
    return prefix / (prefix + (q @ k.mT / root + bias).exp().sum(-1, keepdim=True))


def test_counts_of_bart_large() -> None:
    adapter = attach(build("encoder-decoder", BART_LARGE, device="meta"))
    assert isinstance(adapter, MAMAdapter)
    adapters = sum(p.numel() for s in adapter.sites().values() if isinstance(s, ScaledParallelAdapter) for p in own(s))
    assert adapters == 24 * 1_050_112 == 25_202_688
    assert adapter.count() - adapters == 61_608_288
    adapter.drop_reparameterization()
    assert adapter.count() - adapters == 2_211_840
    assert adapter.count() == 27_414_528
    assert round(100 * adapter.count() / 406_291_456, 2) == 6.75


def test_counts_of_roberta_base() -> None:
    adapter = attach(build("encoder", ROBERTA_BASE, device="meta"), length=16, hidden=0, rank=16, scale=2)
    assert adapter.count() == 12 * (2 * 768 * 16 + 16 + 768) + 12 * 2 * 768 * 16 == 599_232
    assert round(100 * adapter.count() / 124_645_632, 1) == 0.5


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("encoder", {"length": 4, "hidden": 0, "rank": 3}),
        ("encoder-decoder", {"length": 4, "hidden": 5, "rank": 0}),
        ("encoder-decoder", {"length": 0, "hidden": 0, "rank": 3}),
    ],
)
def test_the_formula_holds_for_other_settings(kind: str, settings: dict[str, Any]) -> None:
    usual = trial("mam-adapter", kind)
    other = replace(usual, expected=replace(usual.expected, hyperparameters=settings))
    assert measure("trained-parameters", other).status == "verified"


def test_every_attention_gets_a_prefix_and_every_feed_forward_an_adapter() -> None:
    _, adapter, _ = mixed()
    paths = list(adapter.sites())
    assert paths[:3] == ["encoder.prefix", "decoder.prefix", "decoder.prefix_cross"]
    assert paths[3:] == [f"encoder.blocks.{i}.mlp" for i in range(2)] + [f"decoder.blocks.{i}.mlp" for i in range(3)]


def test_settings_reach_the_adapters() -> None:
    for keywords, scale, dropout in (({}, 4.0, 0.0), ({"scale": 2.0, "dropout": 0.1}, 2.0, 0.1)):
        _, adapter, _ = mixed(**keywords)
        sites = [site for site in adapter.sites().values() if isinstance(site, ScaledParallelAdapter)]
        assert {(site.scale, site.dropout.p) for site in sites} == {(scale, dropout)}


def test_adapters_start_as_nothing_for_any_scale_and_prefixes_do_not() -> None:
    plain = pretrained("encoder-decoder").double()
    batch = plain.batch(0)
    for scale in (4.0, -1e6):
        model = pretrained("encoder-decoder").double()
        attach(model, length=0, rank=6, scale=scale)
        assert torch.allclose(model(batch), plain(batch), rtol=0, atol=1e-13)
    model = pretrained("encoder-decoder").double()
    attach(model, length=4, rank=0)
    assert distance(model(batch).detach(), plain(batch).detach()) > 0.01


def test_an_adapter_starts_as_lora_does() -> None:
    site = ScaledParallelAdapter(FeedForward(Size(d=400)), 64, 4.0)
    assert not site.up.any()
    assert not site.down_bias.any()
    assert not site.up_bias.any()
    assert site.down.abs().max() <= 1 / 20
    assert site.down.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("kind", ["encoder-decoder", "encoder", "decoder"])
def test_without_prefix_and_adapter_it_is_the_base_model(kind: str) -> None:
    model = pretrained(kind).double()
    batch = like(model, model.batch(0))
    before = model(batch)
    adapter = attach(model, length=0, hidden=0, rank=0)
    assert adapter.count() == 0
    assert torch.allclose(model(batch), before, rtol=0, atol=1e-13)


def test_every_attention_mixes_text_and_prefix_by_the_share_lambda() -> None:
    model, adapter, batch = mixed()
    seen: dict[str, list[Any]] = {}
    for name, core in model.named_modules():
        if name.endswith(".core"):
            core.register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(name, []).append(args), prepend=True
            )
            core.register_forward_hook(lambda _, __, output, name=name: seen[name].append(output))
    model(batch)
    assert len(seen) == 2 + 3 + 3
    for name, ((q, k, v, bias), output) in seen.items():
        stack, _, layer, kind, _ = name.split(".")
        prefix = adapter.prefixes()[f"{stack}.prefix{'_cross' if kind == 'cross' else ''}"]
        prefix_k, prefix_v = (x.expand(len(q), -1, -1, -1) for x in prefix(int(layer)))
        lam = share(q, prefix_k, k, bias)
        text = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        alone = F.scaled_dot_product_attention(q, prefix_k, prefix_v)
        torch.testing.assert_close(output, (1 - lam) * text + lam * alone, rtol=0, atol=1e-12)
        assert 1e-4 < lam.mean() < 1 - 1e-4


def test_scale_is_a_pure_multiplier() -> None:
    site = beside(scale=4.0)
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    before = change(site, x)
    with torch.no_grad():
        site.up.mul_(4)
        site.up_bias.mul_(4)
    site.scale = 1.0
    assert torch.allclose(change(site, x), before, rtol=0, atol=1e-12)


def test_scale_does_change_what_training_does() -> None:
    one, four = beside(scale=1.0), beside(scale=4.0)
    with torch.no_grad():
        four.load_state_dict(one.state_dict())
        four.up.div_(4)
        four.up_bias.div_(4)
    x, weights = (torch.randn(3, 5, 32, dtype=torch.float64) for _ in range(2))
    gradients = [torch.autograd.grad((site(x) * weights).sum(), [site.down, site.up]) for site in (one, four)]
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=0, atol=1e-10)
    torch.testing.assert_close(4 * gradients[0][1], gradients[1][1], rtol=0, atol=1e-10)


def test_strength_is_linear_in_the_sublayer() -> None:
    site = beside()
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    full = change(site, x)
    for c in (-1.0, 0.0, 0.5, 2.0):
        site.strength = c
        assert torch.allclose(change(site, x), c * full, rtol=0, atol=1e-12)


def test_an_adapter_without_nonlinearity_and_biases_is_lora() -> None:
    layer = LoRALinear(linear(32, 32).requires_grad_(False), 6, 24, 0.0)
    randomize([layer.B])
    site = beside(rank=6, scale=24 / 6)
    with torch.no_grad():
        layer.A.abs_()
        site.down.copy_(layer.A)
        site.up.copy_(layer.B)
        site.down_bias.zero_()
        site.up_bias.zero_()
    x = torch.rand(3, 5, 32, dtype=torch.float64)  # positive, as A is: ReLU does nothing
    assert torch.allclose(change(site, x), layer.delta(x), rtol=0, atol=1e-12)
    assert not torch.allclose(change(site, -x), layer.delta(-x), atol=1e-2)


def test_an_adapter_is_a_relu_bottleneck_on_the_sublayers_input() -> None:
    site = beside(scale=4.0)
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    expected = site.base(x) + 4.0 * ((x @ site.down.T + site.down_bias).clamp(min=0) @ site.up.T + site.up_bias)
    assert torch.allclose(site(x), expected, rtol=0, atol=1e-12)


def test_the_adapter_stands_inside_residual_and_norm_of_a_post_norm_block() -> None:
    model, _, _ = mixed("encoder", length=0)
    block: Any = model.get_submodule("stack.blocks.1")
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    h = block.norm1(x + block.attention(x))
    site = block.mlp
    assert torch.allclose(block(x), block.norm2(h + site.base(h) + change(site, h)), rtol=0, atol=1e-12)


def test_the_adapter_reads_behind_the_norm_of_a_pre_norm_block() -> None:
    model, _, _ = mixed("decoder", length=0)
    block: Any = model.get_submodule("stack.blocks.1")
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    h = x + block.attention(block.norm1(x))
    expected = h + block.mlp.base(block.norm2(h)) + change(block.mlp, block.norm2(h))
    assert torch.allclose(block(x), expected, rtol=0, atol=1e-12)


def test_dropout_acts_on_the_hidden_layer_alone() -> None:
    site = beside(dropout=0.5)
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    torch.manual_seed(5)
    dropped = site(x)
    torch.manual_seed(5)
    z = F.dropout(F.relu(F.linear(x, site.down, site.down_bias)), 0.5)
    expected = site.base(x) + 4 * F.linear(z, site.up, site.up_bias)
    assert torch.allclose(dropped, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(site.eval()(x), expected, atol=1e-3)


def test_what_is_kept_holds_prefixes_without_mlp() -> None:
    model, adapter, batch = mixed()
    before = model(batch)
    state = adapter.state_dict()
    assert not [name for name in state if "reparameterization" in name]
    other = pretrained("encoder-decoder").double()
    attach(other, length=4, hidden=8, rank=6).load_state_dict(state)
    assert torch.allclose(other(batch), before, rtol=0, atol=1e-12)


def test_a_copied_model_keeps_its_own_learned_part() -> None:
    model, adapter, batch = mixed()
    other = twin(model)
    before = other(batch)
    randomize(adapter.parameters(), seed=9)
    assert torch.equal(other(batch), before)


def test_detach_after_training_is_the_base_model() -> None:
    model, adapter, batch = mixed()
    adapter.fit([batch] * 2)
    adapter.detach()
    assert torch.equal(model(batch), pretrained("encoder-decoder").double()(batch))


@pytest.mark.parametrize(
    ("kind", "keywords", "message"),
    [
        ("encoder-decoder", {"length": -1}, "length is -1, hidden 800; both must be 0 or more"),
        ("encoder-decoder", {"rank": -1}, "rank is -1; it must be 0 or more"),
        ("encoder-decoder", {"dropout": -0.1}, "at least 0 and below 1"),
        ("mlp", {}, "MLP has no attention"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(kind: str, keywords: dict[str, Any], message: str) -> None:
    model = pretrained(kind)
    with pytest.raises(AdapterError, match=message):
        attach(model, **keywords)
    assert all(p.requires_grad for p in model.parameters())
