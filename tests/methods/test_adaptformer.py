"""AdaptFormer: what the paper and its code say about it, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.additive.adaptformer import AdaptMLPBlock, attach
from reference_impls.backbones import SMALL, Size, build, pretrained
from reference_impls.backbones.layers import Block
from reference_impls.hybrid.mam_adapter import ScaledParallelAdapter

from .parity import randomize, twin

VIT_B = Size(L=12, d=768, f=3072, heads=12, head_dim=64, positions=197, patch=16, image=224, C=100)


def block(norm: bool = False, dropout: float = 0.0, scale: float = 0.1) -> AdaptMLPBlock:
    """A frozen random block with a bottleneck of rank 5 away from its start."""
    base = Block(SMALL["vit"]).double().requires_grad_(False)
    randomize(list(base.parameters()), 0.1)
    site = AdaptMLPBlock(base, 5, scale, dropout, norm)
    randomize([p for p in site.parameters() if p.requires_grad])
    return site


def tokens() -> Tensor:
    return torch.randn(3, 7, 32, dtype=torch.float64)


def after_attention(site: AdaptMLPBlock, x: Tensor) -> Tensor:
    return x + site.base.attention(site.base.norm1(x))


@pytest.mark.parametrize(
    ("keywords", "count"),
    [
        ({"rank": 64, "train_head": False}, 1_189_632),
        ({"rank": 64}, 1_266_532),
        ({"rank": 1, "train_head": False}, 12 * 2_305),
        ({"rank": 64, "train_head": False, "norm": True}, 1_189_632 + 12 * 2 * 768),
    ],
)
def test_counts_at_vit_b16_with_100_classes(keywords: dict[str, Any], count: int) -> None:
    assert attach(build("vit", VIT_B, device="meta"), **keywords).count() == count


def test_what_is_trained_at_rank_64_is_less_than_two_percent_of_the_model() -> None:
    model = build("vit", VIT_B, device="meta")
    total = sum(p.numel() for p in model.parameters())
    assert 100 * attach(model).count() / total == pytest.approx(1.46, abs=0.02)


@pytest.mark.parametrize("norm", [False, True])
def test_start_is_the_base_model_exactly(norm: bool) -> None:
    model = pretrained("vit").double()
    batch = model.batch(0).to(dtype=torch.float64)
    before = model(batch)
    attach(model, norm=norm)
    assert torch.equal(model(batch), before)


def test_down_starts_uniform_within_the_inverse_root_of_d_and_all_else_at_zero() -> None:
    size = Size(L=1, d=400, f=8, heads=1, head_dim=4, positions=17)
    site = AdaptMLPBlock(Block(size), 50, 0.1, 0.0, False)
    assert not site.up.any()
    assert not site.up_bias.any()
    assert not site.down_bias.any()
    assert site.down.abs().max() <= 1 / 20
    assert site.down.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.03)


def silence_up(site: AdaptMLPBlock) -> None:
    with torch.no_grad():
        site.up.zero_()
        site.up_bias.zero_()


@pytest.mark.parametrize("silence", [silence_up, lambda site: setattr(site, "scale", 0.0)])
def test_no_scale_or_no_up_projection_is_the_frozen_block_exactly(silence: Callable[[AdaptMLPBlock], None]) -> None:
    site, x = block(), tokens()
    assert not torch.allclose(site(x), site.base(x), atol=1e-3)
    silence(site)
    assert torch.equal(site(x), site.base(x))


def test_bottleneck_reads_the_residual_stream_itself() -> None:
    site, x = block(), tokens()
    inner = after_attention(site, x)
    a = (inner @ site.down.T + site.down_bias).clamp(min=0) @ site.up.T + site.up_bias
    expected = inner + site.base.mlp(site.base.norm2(inner)) + 0.1 * a
    assert torch.allclose(site(x), expected, rtol=0, atol=1e-12)
    normed = site.base.norm2(inner)
    other = (normed @ site.down.T + site.down_bias).clamp(min=0) @ site.up.T + site.up_bias
    assert not torch.allclose(a, other, atol=0.1)


def test_printed_form_normalizes_first_with_gain_and_bias_of_its_own() -> None:
    site, x = block(norm=True), tokens()
    assert isinstance(site.norm, nn.LayerNorm)
    inner = after_attention(site, x)
    centered = inner - inner.mean(-1, keepdim=True)
    normed = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * site.norm.weight + site.norm.bias
    a = (normed @ site.down.T + site.down_bias).clamp(min=0) @ site.up.T + site.up_bias
    assert torch.allclose(site(x), site.base(x) + 0.1 * a, rtol=0, atol=1e-12)
    assert site.norm.weight.data_ptr() != site.base.norm2.weight.data_ptr()


def test_printed_form_with_the_blocks_own_norm_is_the_scaled_parallel_adapter() -> None:
    site, x = block(norm=True), tokens()
    site.norm.load_state_dict(site.base.norm2.state_dict())
    theirs = twin(site.base)
    theirs.mlp = ScaledParallelAdapter(theirs.mlp, 5, 0.1).double()
    named = {name: getattr(site, name) for name in ("down", "down_bias", "up", "up_bias")}
    with torch.no_grad():
        for name, value in named.items():
            getattr(theirs.mlp, name).copy_(value)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = site(mine), theirs(other)
    assert torch.allclose(out, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(mine.grad, other.grad, rtol=0, atol=1e-11)
    for name, value in named.items():
        assert value.grad.abs().max() > 1e-3
        assert torch.allclose(value.grad, getattr(theirs.mlp, name).grad, rtol=0, atol=1e-11)


def test_scale_and_strength_are_factors_on_the_same_fixed_function() -> None:
    site, x = block(), tokens()
    base = site.base(x)
    change = site(x) - base
    site.scale = 0.3
    assert torch.allclose(site(x) - base, 3 * change, rtol=0, atol=1e-12)
    site.scale, site.strength = 0.1, -1.0
    assert torch.allclose(site(x) - base, -change, rtol=0, atol=1e-12)


def test_dropout_acts_behind_the_nonlinearity_and_in_training_alone() -> None:
    site, x = block(dropout=0.5), tokens()
    inner = after_attention(site, x)
    hidden = (inner @ site.down.T + site.down_bias).clamp(min=0)
    torch.manual_seed(4)
    dropped = site.bottleneck(inner)
    torch.manual_seed(4)
    expected = nn.functional.dropout(hidden, 0.5) @ site.up.T + site.up_bias
    assert torch.allclose(dropped, expected, rtol=0, atol=1e-12)
    assert torch.allclose(site.eval().bottleneck(inner), hidden @ site.up.T + site.up_bias, rtol=0, atol=1e-12)


def test_every_block_gets_a_bottleneck_and_the_head_is_trained() -> None:
    names = list(attach(pretrained("vit")).sites())
    assert names == ["stack.blocks.0", "stack.blocks.1", "stack.blocks.2", "head.weight", "head.bias"]
    assert list(attach(pretrained("vit"), train_head=False).sites()) == names[:3]


def test_bottlenecks_learn_without_a_head() -> None:
    model = pretrained("vit")
    batch = model.batch(99, count=256)
    before = model.loss(batch).item()
    adapter = attach(model, rank=8, train_head=False)
    adapter.fit([model.batch(i) for i in range(60)], learning_rate=1e-2)
    adapter.strength = 0.0
    assert model.loss(batch).item() == pytest.approx(before, rel=1e-6)
    adapter.strength = 1.0
    assert model.loss(batch).item() < 0.7 * before


@pytest.mark.parametrize(
    ("kind", "keywords", "message"),
    [
        ("vit", {"rank": 0}, "rank 0, dropout 0.1"),
        ("vit", {"dropout": 1.0}, "less than 1"),
        ("encoder", {}, "Encoder is no stack of pre-norm blocks"),
        ("encoder-decoder", {}, "EncoderDecoder is no stack of pre-norm blocks"),
        ("mlp", {}, "MLP is no stack of pre-norm blocks"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(kind: str, keywords: dict[str, Any], message: str) -> None:
    model = build(kind)
    with pytest.raises(AdapterError, match=message):
        attach(model, **keywords)
    assert all(p.requires_grad for p in model.parameters())
