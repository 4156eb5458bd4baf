"""Comparing a site with the same layer of an independent library: copied weights, outputs and gradients."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reference_impls.adapter import Adapter
from reference_impls.backbones import Backbone, Size, pretrained

SHAPES = [(12, 12), (12, 8), (8, 12)]
"""(d_in, d_out): square, fewer outputs, more outputs."""

ROBERTA_BASE = Size(L=12, d=768, f=3072, heads=12, head_dim=64, V=50265, positions=514)
ROBERTA_LARGE = Size(L=24, d=1024, f=4096, heads=16, head_dim=64, V=50265, positions=514)
DEBERTA_BASE = Size(L=12, d=768, f=3072, heads=12, head_dim=64, V=128100, positions=0)
GPT2_MEDIUM = Size(L=24, d=1024, f=4096, heads=16, head_dim=64, V=50257, positions=1024)
GPT3 = Size(L=96, d=12288, f=49152, heads=96, head_dim=128, V=50257, positions=2048)
LLAMA_7B = Size(L=32, d=4096, f=11008, heads=32, head_dim=128, V=32000, positions=0, gated=True, norm="rms", bias=False)
LLAMA_13B = replace(LLAMA_7B, L=40, d=5120, f=13824, heads=40)


class Holder(nn.Module):
    """A model of one layer named q, as libraries find their targets by name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.q = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x)


def linear(d_in: int, d_out: int, bias: bool = True) -> nn.Linear:
    """A random layer in float64."""
    return nn.Linear(d_in, d_out, bias=bias).double()


def twin(layer: nn.Module) -> Any:
    """The same layer again, sharing nothing."""
    return copy.deepcopy(layer)


def in_peft(config: str, layer: nn.Module, **keywords: Any) -> Any:
    """``layer`` adapted by peft, in float64; the test is skipped where peft is missing."""
    peft = pytest.importorskip("peft")
    settings = getattr(peft, config)(target_modules=["q"], **keywords)
    return peft.get_peft_model(Holder(twin(layer)), settings).base_model.model.q.double()


def randomize(parameters: Sequence[Tensor], spread: float = 0.5, seed: int = 3) -> None:
    """Move trained tensors away from the start."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.add_(spread * torch.randn(p.shape, generator=source).to(p))


def copy_to(theirs: Tensor, value: Tensor) -> None:
    """Give a library's tensor our value."""
    with torch.no_grad():
        theirs.copy_(value.reshape(theirs.shape))


def assert_same(
    ours: nn.Module,
    theirs: Callable[[Tensor], Tensor],
    pairs: Sequence[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]],
    d_in: int,
    tolerance: float = 1e-11,
) -> None:
    """Equal outputs and gradients; a pair is our tensor, theirs, and what turns their gradient into ours."""
    x = torch.randn(3, 5, d_in, dtype=torch.float64, requires_grad=True)
    mine, other = ours(x), theirs(x)
    torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)
    weights = torch.randn_like(mine)
    a = torch.autograd.grad((mine * weights).sum(), [x, *[p for p, _, _ in pairs]])
    b = torch.autograd.grad((other * weights).sum(), [x, *[q for _, q, _ in pairs]])
    note(mine, other, a, [b[0], *[back(g) for g, (_, _, back) in zip(b[1:], pairs, strict=True)]])
    torch.testing.assert_close(a[0], b[0], rtol=0, atol=tolerance)
    for mine_grad, their_grad, (_, _, back) in zip(a[1:], b[1:], pairs, strict=True):
        assert mine_grad.abs().max() > 1e-6
        torch.testing.assert_close(mine_grad, back(their_grad), rtol=0, atol=tolerance)


NOTED: list[tuple[str, float, float]] = []
"""What was compared: the test, the largest difference of outputs, and of gradients relative to the largest entry."""


def note(mine: Tensor, other: Tensor, gradients: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Keep how far outputs and gradients are apart, for the table of the documentation."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0]
    apart = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(gradients, theirs, strict=True)]
    NOTED.append((test, float((mine - other).detach().abs().max()), max(apart)))


def assert_equals_miss_of_peft(ours: Any, d_in: int, **keywords: Any) -> None:
    """Outputs, gradients and merged weight of a block D and of peft's, which has the same shape."""
    theirs = in_peft("MissConfig", ours.base, **keywords)
    D = theirs.miss_block["default"]
    copy_to(D, ours.D)
    assert_same(ours, theirs, [(ours.D, D, same)], d_in)
    theirs.merge()
    torch.testing.assert_close(ours.merged()["weight"], theirs.base_layer.weight, rtol=0, atol=1e-13)


def same(gradient: Tensor) -> Tensor:
    """Their tensor is laid out as ours."""
    return gradient


def drift(theirs: Any, cycles: int = 100) -> list[float]:
    """How far a library's base weight is from where it was, after each of so many merges and unmerges."""
    start = theirs.base_layer.weight.detach().clone()
    errors = []
    for _ in range(cycles):
        theirs.merge()
        theirs.unmerge()
        errors.append((theirs.base_layer.weight - start).abs().max().item())
    return errors


def assert_no_drift(attach: Callable[[Backbone], Adapter], spread: float = 0.1, cycles: int = 20) -> None:
    """Ours merges and unmerges away from the start, and the small decoder is what it was, bit for bit."""
    model = pretrained("decoder")
    adapter = attach(model)
    randomize(adapter.parameters(), spread)
    for _ in range(cycles):
        adapter.merge()
        adapter.unmerge()
    adapter.detach()
    base = pretrained("decoder").state_dict()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


class Computed(TorchDispatchMode):
    """Records the shapes of every tensor computed meanwhile, views of the inputs of an operation left out."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in given:
                self.shapes.add(tuple(value.shape))
        return result


def matrices_computed(call: Callable[[], Tensor]) -> set[tuple[int, ...]]:
    """Shapes of at least two dimensions that a forward and a backward pass compute."""
    with Computed() as computed:
        call().sum().backward()
    return {shape for shape in computed.shapes if len(shape) >= 2}
