"""LoRA-FA: what the paper and its implementation in peft say about it, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.reparameterized.lora import LoRALinear
from reference_impls.reparameterized.lora_fa import LoRAFA, LoRAFALinear, attach

from .parity import (
    LLAMA_7B,
    SHAPES,
    Holder,
    assert_no_drift,
    assert_same,
    copy_to,
    drift,
    in_peft,
    linear,
    matrices_computed,
    randomize,
    same,
    twin,
)
from .refused import assert_refused


def site(d_in: int = 12, d_out: int = 8, rank: int = 4, alpha: float = 6) -> LoRAFALinear:
    torch.manual_seed(1)
    layer = LoRAFALinear(linear(d_in, d_out).requires_grad_(False), rank, alpha, 0.0)
    randomize([layer.B])
    return layer


def projector(A: Tensor) -> Tensor:
    """On the row space of A, from its singular vectors."""
    V = torch.linalg.svd(A, full_matrices=False).Vh
    V = V[: int(torch.linalg.matrix_rank(A))]
    return V.T @ V


def loss_of(weight_like: nn.Module, x: Tensor) -> Tensor:
    """A loss whose gradient in the weight has full rank."""
    return (weight_like(x) ** 3).sum()


def full_gradient(layer: LoRAFALinear, x: Tensor) -> Tensor:
    """G = dL/dW at the weight in effect."""
    weight = layer.merged()["weight"].detach().requires_grad_()
    (G,) = torch.autograd.grad((F.linear(x, weight, layer.base.bias) ** 3).sum(), weight)
    return G


def test_counts() -> None:
    layer = LoRAFALinear(nn.Linear(768, 768).requires_grad_(False), 8, 16, 0.0)
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 6_144
    adapter = attach(build("decoder", LLAMA_7B, device="meta"), rank=8)
    assert adapter.count() == 32 * 8 * (5 * 4096 + 2 * 11008)


def test_b_starts_at_zero_and_a_within_the_inverse_root_of_the_inputs() -> None:
    layer = LoRAFALinear(linear(768, 8), 4, 6, 0.0)
    assert not layer.B.any()
    assert 0.99 * 768**-0.5 < layer.A.abs().max() <= 768**-0.5
    assert abs(layer.A.mean()) < 0.1 * layer.A.std()
    assert not layer.A.requires_grad


@pytest.mark.parametrize("correct", [True, False])
def test_a_is_never_trained_and_spans_the_rows_of_the_change(correct: bool) -> None:
    model = pretrained("decoder").double()
    adapter = attach(model, rank=3, correct=correct)
    layers = [s for s in adapter.sites().values() if isinstance(s, LoRAFALinear)]
    before = [s.A.clone() for s in layers]
    adapter.fit([model.batch(i) for i in range(3)])
    for layer, A in zip(layers, before, strict=True):
        assert torch.equal(layer.A, A)
        delta = layer.delta_weight()
        assert delta.abs().max() > 1e-3
        assert torch.allclose(delta @ projector(A), delta, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_fast_form_is_the_definition(shape: tuple[int, int]) -> None:
    layer = site(*shape)
    x = torch.randn(3, 5, shape[0], dtype=torch.float64)
    expected = layer.base(x) + 1.5 * x @ layer.A.T @ layer.B.T
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)
    assert torch.allclose(layer.delta_weight(), 1.5 * layer.B @ layer.A, rtol=0, atol=1e-13)


@pytest.mark.parametrize("alpha", [2.0, 6.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_corrected_step_changes_w_by_the_projected_full_gradient(shape: tuple[int, int], alpha: float) -> None:
    layer = site(*shape, rank=3, alpha=alpha)
    x = torch.randn(20, shape[0], dtype=torch.float64)
    G = full_gradient(layer, x)
    (g,) = torch.autograd.grad(loss_of(layer, x), layer.B)
    assert torch.allclose(g, layer.scale * G @ layer.A.T, rtol=1e-10)
    step = layer.scale * layer.corrected(g, 0.0) @ layer.A  # change of W along the corrected gradient
    assert torch.allclose(step, G @ projector(layer.A), rtol=0, atol=1e-10 * float(G.abs().max()))
    plain = layer.scale * g @ layer.A
    assert not torch.allclose(plain, G @ projector(layer.A), rtol=0.1)


def test_no_other_gradient_of_b_comes_nearer_to_the_full_one() -> None:
    layer = site(rank=3)
    x = torch.randn(20, 12, dtype=torch.float64)
    G = full_gradient(layer, x)
    (g,) = torch.autograd.grad(loss_of(layer, x), layer.B)
    best = layer.corrected(g, 0.0).requires_grad_()
    (slope,) = torch.autograd.grad((layer.scale * best @ layer.A - G).square().sum(), best)
    assert slope.abs().max() < 1e-9 * G.abs().max()


@pytest.mark.parametrize("rank", [6, 9])
def test_with_as_many_rows_as_inputs_a_step_is_one_of_full_fine_tuning(rank: int) -> None:
    layer = site(6, 8, rank=rank)
    x = torch.randn(20, 6, dtype=torch.float64)
    G = full_gradient(layer, x)
    (g,) = torch.autograd.grad(loss_of(layer, x), layer.B)
    step = layer.scale * layer.corrected(g, 0.0) @ layer.A
    assert torch.allclose(step, G, rtol=0, atol=1e-8 * float(G.abs().max()))


def test_orthonormal_rows_at_scale_one_need_no_correction() -> None:
    layer = site(rank=3, alpha=3)
    layer.A.copy_(torch.linalg.qr(layer.A.T).Q.T)
    g = torch.randn(8, 3, dtype=torch.float64)
    assert torch.allclose(layer.corrected(g, 0.0), g, rtol=1e-12)


def test_ridge_is_added_to_the_gram_matrix() -> None:
    layer = site(rank=3)
    g = torch.randn(8, 3, dtype=torch.float64)
    gram = layer.A @ layer.A.T + 0.5 * torch.eye(3, dtype=torch.float64)
    assert torch.allclose(layer.corrected(g, 0.5) @ gram * layer.scale**2, g, rtol=1e-12)


@pytest.mark.parametrize("correct", [True, False])
def test_adam_takes_its_moments_from_the_corrected_gradient(correct: bool) -> None:
    model = pretrained("decoder").double()
    adapter = attach(model, rank=3, correct=correct, ridge=0.5)
    assert isinstance(adapter, LoRAFA)
    optimizer = adapter.optimizer(1e-3)
    adapter.loss(model.batch(0)).backward()
    layer = next(iter(adapter.sites().values()))
    assert isinstance(layer, LoRAFALinear)
    g = layer.B.grad
    assert g is not None
    g = g.clone()
    optimizer.step()
    expected = layer.corrected(g, 0.5) if correct else g
    assert torch.allclose(optimizer.state[layer.B]["exp_avg"], 0.1 * expected, rtol=1e-10)
    assert not torch.allclose(layer.corrected(g, 0.5), g, rtol=0.1)


def test_gradients_in_half_precision_stay_in_it() -> None:
    adapter = attach(pretrained("decoder").to(torch.bfloat16), rank=3)
    adapter.fit([adapter.model.batch(0)])  # type: ignore[operator]
    assert {p.dtype for p in adapter.parameters()} == {torch.bfloat16}
    assert all(torch.isfinite(p).all() for p in adapter.parameters())


def keeps_its_input(layer: nn.Module, x: Tensor) -> bool:
    """Whether the input is saved for the backward pass."""
    kept = set()

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    return x.untyped_storage().data_ptr() in kept


def test_the_input_is_not_kept_for_the_backward_pass_as_lora_keeps_it() -> None:
    layer = site()
    lora = LoRALinear(twin(layer.base), 4, 6, 0.0)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    assert not keeps_its_input(layer, x)
    assert keeps_its_input(lora, x)


def test_no_matrix_of_the_size_of_the_weight_is_computed() -> None:
    layer = LoRAFALinear(nn.Linear(64, 48).requires_grad_(False), 4, 8, 0.0)
    x = torch.randn(3, 64)
    shapes = matrices_computed(lambda: layer(x))
    assert (3, 4) in shapes
    assert not {(48, 64), (64, 48)} & shapes


def test_negated_b_is_the_oppolayerchange() -> None:
    layer = site()
    before = layer.delta_weight().detach().clone()
    with torch.no_grad():
        layer.B.neg_()
    assert torch.equal(layer.delta_weight(), -before)


def test_zero_a_could_never_learn() -> None:
    layer = site()
    layer.A.zero_()
    (g,) = torch.autograd.grad(loss_of(layer, torch.randn(5, 12, dtype=torch.float64)), layer.B)
    assert not g.any()


@pytest.mark.parametrize("claim", ["detachable", "mergeable", "saves", "trained-tensors-learn"])
def test_claims_hold_for_the_first_version(claim: str) -> None:
    expected = Expected(True, True, True, "linear", {"rank": 4, "alpha": 8, "correct": False})
    result = measure(claim, Trial(load("lora-fa"), "decoder", expected))
    assert result.status == "verified", result


def test_dropout_is_on_the_input_of_the_branch() -> None:
    layer = LoRAFALinear(linear(12, 8), 4, 6, 0.5)
    randomize([layer.B])
    x = torch.randn(4, 12, dtype=torch.float64)
    torch.manual_seed(5)
    trained = layer(x)
    torch.manual_seed(5)
    expected = layer.base(x) + F.dropout(x, 0.5) @ layer.delta_weight().T
    assert torch.allclose(trained, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [*SHAPES, (7, 5)])
def test_equals_the_layers_of_peft(shape: tuple[int, int]) -> None:
    ours = site(*shape)
    theirs = in_peft("LoraConfig", ours.base, r=4, lora_alpha=6)
    A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    copy_to(A, ours.A)
    copy_to(B, ours.B)
    assert_same(ours, theirs, [(ours.B, B, same)], shape[0])
    assert torch.allclose(theirs.get_delta_weight("default"), ours.delta_weight(), rtol=0, atol=1e-13)


def beside_peft(shape: tuple[int, int], dtype: torch.dtype) -> tuple[LoRAFA, Any, Any, Any]:
    """Our adapter and layer, peft's model and optimizer; no epsilon, which the two add at different places."""
    peft = pytest.importorskip("peft")
    optimizers = pytest.importorskip("peft.optimizers")
    torch.manual_seed(1)
    base = linear(*shape).to(dtype)
    theirs = peft.get_peft_model(Holder(twin(base)), peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q"])).to(dtype)
    adapter = attach(Holder(base), rank=4, alpha=6, targets=["q"])
    assert isinstance(adapter, LoRAFA)
    (layer,) = adapter.sites().values()
    assert isinstance(layer, LoRAFALinear)
    randomize([layer.B])
    factors = theirs.base_model.model.q
    copy_to(factors.lora_A["default"].weight, layer.A)
    copy_to(factors.lora_B["default"].weight, layer.B)
    optimizer = optimizers.create_lorafa_optimizer(model=theirs, r=4, lora_alpha=6, lr=1e-2)
    optimizer.param_groups[0]["eps"] = 0.0
    return adapter, layer, theirs, optimizer


@pytest.mark.parametrize("shape", [*SHAPES, (7, 5)])
def test_training_equals_the_optimizer_of_peft(shape: tuple[int, int]) -> None:
    adapter, layer, theirs, their_optimizer = beside_peft(shape, torch.float64)
    optimizer = adapter.optimizer(1e-2)
    optimizer.param_groups[0]["eps"] = 0.0
    x = torch.randn(20, shape[0], dtype=torch.float64)
    start = layer.B.detach().clone()
    for _ in range(4):
        for model, step in ((adapter.model, optimizer), (theirs, their_optimizer)):
            step.zero_grad()
            loss_of(model, x).backward()
            step.step()
    other = theirs.base_model.model.q.lora_B["default"].weight
    assert (layer.B - start).abs().min() > 1e-3
    assert torch.allclose(layer.B, other, rtol=0, atol=1e-10)


def test_peft_corrects_in_bfloat16_whatever_the_precision_of_training() -> None:
    accelerate = pytest.importorskip("accelerate.utils.imports")
    if not accelerate.is_bf16_available():
        pytest.skip("peft corrects in bfloat16 only where the machine has it")
    _, layer, theirs, optimizer = beside_peft((12, 8), torch.float32)
    loss_of(theirs, torch.randn(20, 12)).backward()
    g = theirs.base_model.model.q.lora_B["default"].weight.grad.clone()
    optimizer.step()
    (state,) = (s for s in optimizer.state.values() if "exp_avg_B" in s)
    exact = layer.corrected(g, 1e-8)
    error = ((state["exp_avg_B"] / 0.1 - exact).norm() / exact.norm()).item()
    assert 1e-4 < error < 1e-1


def test_rounding_piles_up_in_merges_of_peft_and_not_here() -> None:
    ours = site()
    theirs = in_peft("LoraConfig", ours.base, r=4, lora_alpha=6).float()
    copy_to(theirs.lora_B["default"].weight, ours.B)
    errors = drift(theirs)
    assert 0 < errors[0] < 1e-6
    assert_no_drift(attach)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"alpha": 0}, "alpha is 0"),
        ({"dropout": 1.0}, "at least 0 and below 1"),
        ({"ridge": -1.0}, "ridge is -1.0"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
        ({"targets": ["w"]}, "no module named w"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
