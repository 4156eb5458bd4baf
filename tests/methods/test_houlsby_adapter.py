"""Houlsby's adapters: what the paper and its code say about them, checked."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter, AdapterError, FreeDelta
from reference_impls.additive.houlsby_adapter import BottleneckAdapter, attach
from reference_impls.backbones import Backbone, Size, build, pretrained
from reference_impls.backbones.layers import Block
from reference_impls.claims.training import held_out_loss
from reference_impls.claims.trial import base_output, distance, like

from .parity import SHAPES, assert_same, randomize, same

BERT_BASE = Size(L=12, d=768, f=3072, heads=12, head_dim=64, V=30522, positions=512, C=2)
BERT_LARGE = Size(L=24, d=1024, f=4096, heads=16, head_dim=64, V=30522, positions=512, C=2)


def bottlenecks(adapter: Adapter) -> list[BottleneckAdapter]:
    return [site for site in adapter.sites().values() if isinstance(site, BottleneckAdapter)]


def learned(sites: list[BottleneckAdapter]) -> list[Tensor]:
    return [p for site in sites for p in (site.down, site.down_bias, site.up, site.up_bias)]


def size_of(tensors: list[Tensor]) -> int:
    return sum(t.numel() for t in tensors)


def small(**keywords: float) -> tuple[Backbone, Adapter]:
    model = pretrained("encoder").double()
    return model, attach(model, bottleneck=8, **keywords)  # type: ignore[arg-type]


def site(d: int = 12, d_in: int = 12, width: int = 4) -> BottleneckAdapter:
    base = nn.Linear(d_in, d).double().requires_grad_(False)
    adapter = BottleneckAdapter(base, base.weight, width, 1e-2)
    randomize([adapter.down, adapter.down_bias, adapter.up, adapter.up_bias])
    return adapter


@pytest.mark.parametrize(
    ("size", "one", "all_of_them", "norms"),
    [(BERT_BASE, 99_136, 2_379_264, 38_400), (BERT_LARGE, 132_160, 6_343_680, 100_352)],
)
def test_counts_of_adapters_and_norms(size: Size, one: int, all_of_them: int, norms: int) -> None:
    adapter = attach(build("encoder", size, device="meta"), train_head=False)
    sites = bottlenecks(adapter)
    assert len(sites) == 2 * size.L
    assert [size_of(learned([site])) for site in sites] == [one] * len(sites)
    assert size_of(learned(sites)) == all_of_them
    assert adapter.count() == all_of_them + norms


def test_shares_and_sizes_the_paper_prints() -> None:
    large = build("encoder", BERT_LARGE, device="meta")
    blocks = sum(p.numel() for p in large.get_submodule("stack.blocks").parameters())
    assert round(100 * attach(large).count() / blocks, 1) == 2.1  # of what is not embedding, table 1
    adapter = attach(build("encoder", BERT_BASE, device="meta"))
    norms = [s.d.numel() for name, s in adapter.sites().items() if isinstance(s, FreeDelta) and "norm" in name]
    assert round(sum(norms), -4) == 40_000  # section 3.4: "40k"
    assert round(adapter.count(), -6) == 2_000_000  # section 3.4: about 2M at size 64


def test_two_adapters_a_block_and_every_norm_and_the_head_are_trained() -> None:
    _, adapter = small()
    blocks = [f"stack.blocks.{i}" for i in range(3)]
    norms = ["stack.norm_in", *(f"{block}.{norm}" for block in blocks for norm in ("norm1", "norm2"))]
    expected = {f"{block}.{sublayer}" for block in blocks for sublayer in ("attention", "mlp")}
    expected |= {f"{module}.{name}" for module in [*norms, "head"] for name in ("weight", "bias")}
    assert set(adapter.sites()) == expected


def test_a_block_is_the_equation() -> None:
    model, adapter = small(init_scale=0.3)
    block, base = (m.get_submodule("stack.blocks.1") for m in (model, pretrained("encoder").double()))
    assert isinstance(block, Block)
    assert isinstance(base, Block)
    randomize(adapter.parameters())
    one, two = bottlenecks(adapter)[2:4]
    x = torch.randn(2, 5, 32, dtype=torch.float64)

    def phi(v: Tensor) -> Tensor:
        return 0.5 * v * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    def adapted(h: Tensor, site: BottleneckAdapter) -> Tensor:
        return h + phi(h @ site.down.T + site.down_bias) @ site.up.T + site.up_bias

    x1 = block.norm1(x + adapted(base.attention(x), one))
    x2 = block.norm2(x1 + adapted(base.mlp(x1), two))
    torch.testing.assert_close(block(x), x2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_site_equals_its_base_and_two_linear_layers(shape: tuple[int, int]) -> None:
    d_in, d = shape
    ours = site(d, d_in)
    down, up = nn.Linear(d, 4).double(), nn.Linear(4, d).double()
    pairs = [(ours.down, down.weight), (ours.down_bias, down.bias), (ours.up, up.weight), (ours.up_bias, up.bias)]
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine)

    def theirs(x: Tensor) -> Tensor:
        h = ours.base(x)
        return h + up(nn.GELU(approximate="tanh")(down(h)))

    assert_same(ours, theirs, [(mine, other, same) for mine, other in pairs], d_in)


def test_nonlinearity_is_the_form_of_gelu_with_tanh() -> None:
    adapter = site()
    x = torch.randn(7, 12, dtype=torch.float64)
    with torch.no_grad():
        h = adapter.base(x)
        exact = h + F.linear(F.gelu(F.linear(h, adapter.down, adapter.down_bias)), adapter.up, adapter.up_bias)
        assert 1e-6 < distance(adapter(x), exact) < 1e-2


@pytest.mark.parametrize("silent", ["up", "down"])
def test_adapters_without_one_of_the_projections_are_the_identity(silent: str) -> None:
    model, adapter = small(init_scale=0.3)
    batch = like(model, model.batch(0))
    with torch.no_grad():
        for site in bottlenecks(adapter):
            getattr(site, silent).zero_()
        assert torch.equal(model(batch), base_output("encoder", torch.float64, batch))


def test_start_is_nearly_the_base_model_and_the_change_grows_with_the_square_of_the_scale() -> None:
    changes = []
    for scale in (1e-3, 1e-2):
        torch.manual_seed(0)
        model, _ = small(init_scale=scale)
        batch = like(model, model.batch(0))
        with torch.no_grad():
            changes.append(distance(model(batch), base_output("encoder", torch.float64, batch)))
    assert 0 < changes[0] < changes[1] < 1e-3
    assert changes[1] / changes[0] == pytest.approx(100, rel=0.05)


def test_linear_layers_at_their_usual_start_are_far_from_the_identity() -> None:
    model, adapter = small()
    batch = like(model, model.batch(0))
    reference = base_output("encoder", torch.float64, batch)
    with torch.no_grad():
        ours = distance(model(batch), reference)
        for site in bottlenecks(adapter):
            down, up = nn.Linear(32, 8), nn.Linear(8, 32)
            for mine, usual in zip(learned([site]), (down.weight, down.bias, up.weight, up.bias), strict=True):
                mine.copy_(usual)
        assert distance(model(batch), reference) > 100 * ours


def test_matrices_start_gaussian_cut_off_at_two_deviations_and_biases_at_zero() -> None:
    base = nn.Linear(600, 600)
    adapter = BottleneckAdapter(base, base.weight, 300, 1e-2)
    for weight in (adapter.down, adapter.up):
        assert 1.99e-2 < weight.abs().max() <= 2e-2
        assert weight.std().item() == pytest.approx(0.8796e-2, rel=0.02)  # the cut takes 12 % off the deviation
        assert abs(weight.mean().item()) < 1e-4
    assert not adapter.down_bias.any()
    assert not adapter.up_bias.any()


def test_coefficient_turns_one_adapters_change_around() -> None:
    adapter = site()
    x = torch.randn(5, 12, dtype=torch.float64)
    h = adapter.base(x)
    change = adapter(x) - h
    for c in (-1.0, 0.0, 2.5):
        adapter.strength = c
        torch.testing.assert_close(adapter(x) - h, c * change, rtol=0, atol=1e-13)


def test_without_adapters_but_with_the_tuned_norms_it_is_not_the_base_model() -> None:
    model, adapter = small()
    batch = like(model, model.batch(0))
    reference = base_output("encoder", torch.float64, batch)
    adapter.fit([like(model, model.batch(i)) for i in range(5)])
    with torch.no_grad():
        for name, tensor in adapter.named_parameters():
            if "norm" not in name:
                tensor.zero_()
        assert distance(model(batch), reference) > 0.01
        adapter.strength = 0.0
        assert torch.equal(model(batch), reference)


def test_norms_alone_learn_less_than_with_adapters() -> None:
    losses = {}
    for alone in (True, False):
        torch.manual_seed(0)
        model = pretrained("encoder")
        adapter = attach(model, bottleneck=8, train_head=False)
        for site in bottlenecks(adapter):
            if alone:
                for p in learned([site]):
                    p.requires_grad_(False)
        adapter.fit([model.batch(100 + i) for i in range(100)])
        losses[alone] = held_out_loss(model)
    assert losses[False] < 0.8 * losses[True]


def test_cross_attention_has_no_adapter() -> None:
    model = build("encoder-decoder", device="meta")
    names = set(attach(model, train_head=False).sites())
    assert not [name for name in names if name.endswith("cross")]
    assert {"decoder.blocks.0.attention", "decoder.blocks.0.mlp"} <= names


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"bottleneck": 0}, "bottleneck 0, init_scale 0.01: need 1 or more"),
        ({"init_scale": 0.0}, "init_scale 0.0: need 1 or more, and more than 0"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, float], message: str) -> None:
    model = pretrained("encoder")
    with pytest.raises(AdapterError, match=message):
        attach(model, **keywords)  # type: ignore[arg-type]
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_without_sublayers_is_refused() -> None:
    with pytest.raises(AdapterError, match="no module named attention or mlp"):
        attach(nn.Sequential(nn.Linear(4, 4)))
