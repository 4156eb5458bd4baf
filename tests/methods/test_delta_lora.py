"""Delta-LoRA: what the paper says about it, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.adapter import Adapter
from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial
from reference_impls.registry import load
from reference_impls.reparameterized import lora
from reference_impls.reparameterized.delta_lora import DeltaLoRALinear, attach

from .parity import ROBERTA_BASE, SHAPES, assert_no_drift, linear, matrices_computed, randomize, twin
from .refused import assert_refused


class Model(nn.Module):
    """One layer and a loss whose gradient in its weight has full rank."""

    def __init__(self, q: nn.Linear) -> None:
        super().__init__()
        self.q = q

    def loss(self, x: Tensor) -> Tensor:
        return ((self.q(x) - 1) ** 2).mean()


def attached(shape: tuple[int, int] = (12, 8), **keywords: Any) -> tuple[Adapter, DeltaLoRALinear]:
    torch.manual_seed(1)
    adapter = attach(Model(linear(*shape)), rank=3, alpha=6, targets=["q"], **keywords)
    (site,) = adapter.sites().values()
    assert isinstance(site, DeltaLoRALinear)
    return adapter, site


def batches(count: int, width: int = 12) -> list[Tensor]:
    source = torch.Generator().manual_seed(4)
    return [torch.randn(20, width, dtype=torch.float64, generator=source) for _ in range(count)]


def train(adapter: Adapter, steps: int, decay: float = 0.0, width: int = 12) -> list[Tensor]:
    """B A after every step, the start first."""
    (site,) = adapter.sites().values()
    assert isinstance(site, DeltaLoRALinear)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.02, weight_decay=decay)
    products = [(site.B @ site.A).detach()]
    for x in batches(steps, width):
        optimizer.zero_grad()
        adapter.loss(x).backward()
        optimizer.step()
        adapter.after_step()
        products.append((site.B @ site.A).detach())
    return products


def by_the_algorithm(layer: DeltaLoRALinear, ratio: float, K: int, steps: int, decay: float, width: int) -> Tensor:
    """W^T + s B^T A^T with W written to in every step, as the paper has it."""
    W, bias = layer.base.weight.detach().clone(), layer.base.bias.detach()
    A, B = nn.Parameter(layer.A.detach().clone()), nn.Parameter(layer.B.detach().clone())
    optimizer = torch.optim.AdamW([A, B], lr=0.02, weight_decay=decay)
    for t, x in enumerate(batches(steps, width)):
        before = (B @ A).detach()
        optimizer.zero_grad()
        y = F.linear(x, W, bias) + 2.0 * F.linear(F.linear(x, A), B)
        ((y - 1) ** 2).mean().backward()
        optimizer.step()
        if t > K:
            W += ratio * 2.0 * ((B @ A).detach() - before)
    return (W + 2.0 * B @ A).detach()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ratio", "K", "decay"), [(2.0, 0, 0.0), (0.5, 3, 0.0), (2.0, 2, 0.3), (2.0, 50, 0.0)])
def test_training_equals_the_algorithm_that_writes_to_the_weight(
    shape: tuple[int, int], ratio: float, K: int, decay: float
) -> None:
    adapter, site = attached(shape, ratio=ratio, start=K)
    expected = by_the_algorithm(site, ratio, K, 8, decay, shape[0])
    train(adapter, 8, decay, shape[0])
    weight = site.merged()["weight"]
    assert (weight - site.base.weight).abs().max() > 0.05
    assert torch.allclose(weight, expected, rtol=0, atol=1e-12)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    assert torch.allclose(site(x), F.linear(x, expected, site.base.bias), rtol=0, atol=1e-12)


@pytest.mark.parametrize("K", [0, 2, 5])
def test_changes_passed_on_telescope(K: int) -> None:
    adapter, site = attached(ratio=0.7, start=K)
    products = train(adapter, 8)
    passed_on = site.delta_weight() - 2.0 * products[-1]
    assert torch.allclose(passed_on, 0.7 * 2.0 * (products[-1] - products[K + 1]), rtol=0, atol=1e-13)
    assert torch.linalg.matrix_rank(site.delta_weight()) == 6 <= site.rank
    assert torch.linalg.matrix_rank(products[-1]) == 3


def test_no_step_up_to_k_reaches_the_weight() -> None:
    adapter, site = attached(start=3)
    products = train(adapter, 4)  # t = 0 .. 3
    assert torch.allclose(site.delta_weight(), 2.0 * products[-1], rtol=0, atol=1e-14)
    train(adapter, 1)  # t = 4
    assert not torch.allclose(site.delta_weight(), 2.0 * (site.B @ site.A), atol=1e-3)


@pytest.mark.parametrize("keywords", [{"ratio": 0.0, "start": 0}, {"ratio": 2.0, "start": 8}])
def test_without_ratio_or_before_k_it_is_lora(keywords: dict[str, Any]) -> None:
    adapter, site = attached(**keywords)
    torch.manual_seed(1)
    plain = lora.attach(Model(linear(12, 8)), rank=3, alpha=6, targets=["q"])
    train(adapter, 8)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.02, weight_decay=0.0)
    for x in batches(8):
        optimizer.zero_grad()
        plain.loss(x).backward()
        optimizer.step()
    (other,) = plain.sites().values()
    assert isinstance(other, lora.LoRALinear)
    assert torch.allclose(site.merged()["weight"], other.merged()["weight"], rtol=0, atol=1e-12)


def test_weight_has_no_gradient_and_the_base_tensor_stays_though_the_weight_in_effect_moves() -> None:
    adapter, site = attached(start=0)
    before = site.base.weight.detach().clone()
    products = train(adapter, 4)
    assert site.base.weight.grad is None
    assert not site.base.weight.requires_grad
    assert torch.equal(site.base.weight, before)
    assert (site.merged()["weight"] - before - 2.0 * products[-1]).abs().max() > 0.05


def test_no_gradient_reaches_the_factors_through_what_was_passed_on() -> None:
    adapter, site = attached(start=0)
    train(adapter, 4)
    x = batches(1)[0]
    weight = site.merged()["weight"].detach().requires_grad_()
    (G,) = torch.autograd.grad(((F.linear(x, weight, site.base.bias) - 1) ** 2).mean(), weight)
    dA, dB = torch.autograd.grad(adapter.loss(x), [site.A, site.B])
    assert torch.allclose(dB, 2.0 * G @ site.A.T, rtol=0, atol=1e-13)
    assert torch.allclose(dA, 2.0 * site.B.T @ G, rtol=0, atol=1e-13)


def test_gradient_of_the_input_goes_through_the_moved_weight() -> None:
    adapter, site = attached(start=0)
    train(adapter, 4)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(site(x).sum(), x)
    assert torch.allclose(dx, site.merged()["weight"].sum(0).expand(5, 12), rtol=0, atol=1e-12)


def test_counts() -> None:
    _, site = attached()
    assert sum(p.numel() for p in site.parameters() if p.requires_grad) == 3 * (12 + 8)
    assert attach(build("encoder", ROBERTA_BASE, device="meta")).count() == 294_912


def test_start_is_the_base_model() -> None:
    model = pretrained("decoder").double()
    batch = model.batch(0)
    before = model(batch)
    adapter = attach(model)
    assert torch.equal(model(batch), before)
    for site in adapter.sites().values():
        assert isinstance(site, DeltaLoRALinear)
        assert not site.B.any()
        assert 0 < site.A.abs().max() <= 32**-0.5


def test_learned_part_carries_what_was_passed_on_and_the_step() -> None:
    adapter, site = attached(start=2)
    train(adapter, 5)
    other, fresh = attached(start=2)
    other.load_state_dict(adapter.state_dict())
    assert torch.equal(fresh.delta_weight(), site.delta_weight())
    for each in (adapter, other):
        train(each, 2)
    assert torch.equal(fresh.delta_weight(), site.delta_weight())


def test_branch_has_no_dropout() -> None:
    _, site = attached()
    randomize([site.B])
    x = torch.randn(5, 12, dtype=torch.float64)
    assert torch.equal(site.train()(x), site.eval()(x))
    with pytest.raises(TypeError, match="dropout"):
        attach(Model(twin(site.base)), dropout=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize("c", [-1.0, 0.5, 2.0])
def test_strength_scales_the_whole_change(c: float) -> None:
    adapter, site = attached(start=0)
    train(adapter, 4)
    x = torch.randn(5, 12, dtype=torch.float64)
    change = site(x) - site.base(x)
    adapter.strength = c
    assert torch.allclose(site(x) - site.base(x), c * change, rtol=0, atol=1e-13)


def test_no_matrix_of_the_size_of_the_weight_is_computed() -> None:
    site = DeltaLoRALinear(nn.Linear(64, 48).requires_grad_(False), 4, 8, 2.0, 0)
    x = torch.randn(3, 64)
    assert not {(48, 64), (64, 48)} & matrices_computed(lambda: site(x))


def test_claims_are_measured_where_the_weight_has_moved() -> None:
    """Perturbed factors alone are LoRA."""
    expected = Expected(True, True, True, "linear", {"rank": 4, "alpha": 8, "start": 1})
    _, adapter, _ = Trial(load("delta-lora"), "decoder", expected).away()
    for site in adapter.sites().values():
        assert isinstance(site, DeltaLoRALinear)
        passed_on = site.B_last @ site.A_last - site.B_first @ site.A_first
        assert passed_on.abs().max() > 1e-3


def test_merge_fold_and_detach_after_training_leave_the_base() -> None:
    model = pretrained("decoder").double()
    batch: Any = model.batch(0)
    adapter = attach(model, start=0)
    adapter.fit([model.batch(i) for i in range(4)])
    adapted = model(batch).detach()
    adapter.merge()
    assert torch.allclose(model(batch), adapted, rtol=0, atol=1e-12)
    adapter.detach()
    base = pretrained("decoder").double().state_dict()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())
    assert_no_drift(attach, cycles=3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0}, "alpha is 0"),
        ({"ratio": -1.0}, "ratio is -1.0 and start 500; neither may be negative"),
        ({"start": -1}, "start -1; neither may be negative"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
