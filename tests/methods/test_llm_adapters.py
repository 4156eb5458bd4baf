"""LLM-Adapters: what the paper and its code say about their bottleneck adapters, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import AdapterError
from reference_impls.additive.llm_adapters import NONLINEARITIES, LinearWithBottleneck, Side, attach
from reference_impls.backbones import Size, build, pretrained
from reference_impls.claims.trial import distance

from .parity import LLAMA_7B, SHAPES, linear, randomize
from .refused import assert_refused

SIDES: list[Side] = ["input", "output", "parallel"]
GATED = Size(gated=True, norm="rms", bias=False)


def site(side: Side, d_in: int = 12, d_out: int = 8, **keywords: Any) -> LinearWithBottleneck:
    """A random layer with a bottleneck of width 5 away from its start, in float64."""
    settings = {"bottleneck": 5, "f": torch.tanh, "scaling": 1.0, "init": "bert", "dropout": 0.0} | keywords
    base = linear(d_in, d_out).requires_grad_(False)
    made = LinearWithBottleneck(base, side, **settings)
    randomize([p for p in made.parameters() if p.requires_grad])
    return made


def inputs(d_in: int = 12) -> Tensor:
    return torch.randn(3, 4, d_in, dtype=torch.float64)


def by_hand(s: LinearWithBottleneck, x: Tensor, scale: float) -> Tensor:
    """The equation of the site's side, one vector at a time."""
    W, bias, D, U = s.base.weight, s.base.bias, s.down, s.up
    rows = []
    for v in x.flatten(0, 1):
        if s.side == "input":
            rows.append(W @ (v + scale * U @ torch.tanh(D @ v)) + bias)
        elif s.side == "output":
            z = W @ v + bias
            rows.append(z + scale * U @ torch.tanh(D @ z))
        else:
            rows.append(W @ v + bias + scale * U @ torch.tanh(D @ v))
    return torch.stack(rows).unflatten(0, x.shape[:-1])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
@pytest.mark.parametrize("scaling", [1.0, 0.4, "learned"])
def test_forward_and_gradients_are_those_of_the_equation(side: Side, d_in: int, d_out: int, scaling: Any) -> None:
    s, x = site(side, d_in, d_out, scaling=scaling), inputs(d_in)
    s.strength = -0.7
    expected = by_hand(s, x, -0.7 * s.scale)  # type: ignore[operator]
    trained = [p for p in s.parameters() if p.requires_grad]
    torch.testing.assert_close(s(x), expected, rtol=0, atol=1e-12)
    ours = torch.autograd.grad(s(x).square().sum(), trained)
    theirs = torch.autograd.grad(expected.square().sum(), trained)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert len(trained) == (3 if scaling == "learned" else 2)


@pytest.mark.parametrize(
    ("side", "down", "up"),
    [("input", (5, 12), (12, 5)), ("output", (5, 8), (8, 5)), ("parallel", (5, 12), (8, 5))],
)
def test_shapes_follow_the_side_and_there_are_no_biases(side: Side, down: Any, up: Any) -> None:
    names = {name: tuple(p.shape) for name, p in site(side).named_parameters() if not name.startswith("base.")}
    assert names == {"down": down, "up": up}


@pytest.mark.parametrize(
    ("parallel", "targets", "count", "share"),
    [
        (True, ("up", "down"), 247_463_936, 3.67),
        (False, ("up", "gate"), 134_217_728, 1.99),
        (False, ("down",), 67_108_864, 1.00),
    ],
)
def test_counts_at_llama_7b(parallel: bool, targets: tuple[str, ...], count: int, share: float) -> None:
    adapter = attach(build("decoder", LLAMA_7B, device="meta"), parallel=parallel, targets=targets)
    assert adapter.count() == count
    assert 100 * count / 6_738_415_616 == pytest.approx(share, abs=0.005)


def test_shares_of_base_and_adapters_together() -> None:
    assert round(100 * 247_463_936 / (6_738_415_616 + 247_463_936), 2) == 3.54
    assert round(100 * 67_108_864 / (6_738_415_616 + 67_108_864), 2) == 0.99


def test_a_learned_scale_is_one_number_a_layer_from_one() -> None:
    model = pretrained("decoder")
    adapter = attach(model, bottleneck=4, scaling="learned", targets=("up", "down"))
    assert adapter.count() == attach(pretrained("decoder"), bottleneck=4, targets=("up", "down")).count() + 2 * 3
    assert all(p.tolist() == [1.0] for name, p in adapter.named_parameters() if name.endswith("scale"))


def test_series_sides_go_with_the_layers_names() -> None:
    adapter = attach(build("decoder", GATED), bottleneck=4, targets=("up", "gate", "down", "o"))
    sides = {path.rpartition(".")[2]: s.side for path, s in adapter.sites().items()}
    assert sides == {"gate": "input", "up": "input", "down": "output", "o": "output"}


def test_up_and_gate_have_adapters_of_their_own_although_they_read_the_same() -> None:
    model = build("decoder", GATED).double()
    adapter = attach(model, bottleneck=4, targets=("up", "gate"))
    randomize(adapter.parameters())
    mlp, x = model.get_submodule("stack.blocks.0.mlp"), torch.randn(2, 32, dtype=torch.float64)
    assert not torch.equal(mlp.up.down, mlp.gate.down)  # type: ignore[arg-type, union-attr]
    gate, up = by_part(mlp.gate, x), by_part(mlp.up, x)
    torch.testing.assert_close(mlp(x), mlp.down(nn.functional.silu(gate) * up), rtol=0, atol=1e-12)  # type: ignore[operator]


def by_part(s: Any, x: Tensor) -> Tensor:
    return nn.functional.linear(x + torch.tanh(x @ s.down.T) @ s.up.T, s.base.weight)


def test_a_parallel_adapter_stands_beside_one_layer_not_beside_the_feed_forward_network() -> None:
    model = build("decoder", Size()).double()
    adapter = attach(model, bottleneck=4, parallel=True, targets=("down",))
    randomize(adapter.parameters())
    mlp, x = model.get_submodule("stack.blocks.0.mlp"), torch.randn(2, 32, dtype=torch.float64)
    s, hidden = mlp.down, mlp.act(mlp.up(x))  # type: ignore[operator]
    expected = s.base(hidden) + torch.tanh(hidden @ s.down.T) @ s.up.T  # type: ignore[operator, union-attr]
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-12)
    assert s.down.shape == (4, 64)  # type: ignore[union-attr]


@pytest.mark.parametrize("side", SIDES)
def test_with_up_at_zero_any_side_is_the_base_layer(side: Side) -> None:
    s, x = site(side), inputs()
    with torch.no_grad():
        s.up.zero_()
    assert torch.equal(s(x), s.base(x))


@pytest.mark.parametrize("parallel", [False, True])
def test_mam_start_is_the_base_model_and_bert_start_is_only_near_it(parallel: bool) -> None:
    model = pretrained("decoder").double().requires_grad_(False)
    batch, distances = model.batch(0), {}
    base = model(batch)
    for init in ("mam_adapter", "bert"):
        adapter = attach(model, bottleneck=8, parallel=parallel, targets=("up", "down"), init=init)
        distances[init] = distance(model(batch).detach(), base)
        adapter.detach()
    assert distances["mam_adapter"] == 0.0
    assert 1e-6 < distances["bert"] < 0.05


def test_draws_of_the_two_starts() -> None:
    torch.manual_seed(0)
    base = nn.Linear(400, 300)
    bert = LinearWithBottleneck(base, "parallel", 100, torch.tanh, 1.0, "bert", 0.0)
    for weight in (bert.down, bert.up):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert weight.abs().max() > 0.06
    mam = LinearWithBottleneck(base, "parallel", 100, torch.tanh, 1.0, "mam_adapter", 0.0)
    assert not mam.up.any()
    assert mam.down.abs().max() <= 1 / 20
    assert mam.down.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.03)


@pytest.mark.parametrize("side", SIDES)
def test_half_precision_is_computed_in_float32_and_cast_back(side: Side) -> None:
    base = linear(12, 8).to(torch.bfloat16).requires_grad_(False)
    s = LinearWithBottleneck(base, side, 5, torch.tanh, 1.0, "bert", 0.0)
    randomize([s.down, s.up])
    assert s.down.dtype == s.up.dtype == torch.float32
    x = inputs().to(torch.bfloat16)
    z = base(x) if side == "output" else x
    exact = torch.tanh(z.float() @ s.down.T) @ s.up.T
    assert torch.equal(s.change(z), exact.to(torch.bfloat16))
    assert s(x).dtype == torch.bfloat16
    s.to(torch.bfloat16)  # as when the whole model is moved: the weights are rounded, the arithmetic is not
    rounded = torch.tanh(z.float() @ s.down.float().T) @ s.up.float().T
    assert torch.equal(s.change(z), rounded.to(torch.bfloat16))


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_nonlinearities(name: str) -> None:
    model = pretrained("decoder").double()
    adapter = attach(model, bottleneck=4, nonlinearity=name)
    randomize(adapter.parameters())
    s: Any = adapter.sites()["stack.blocks.1.mlp.down"]
    x = torch.randn(5, 64, dtype=torch.float64)
    z = s.base(x)
    expected = z + getattr(torch if name == "tanh" else nn.functional, name)(z @ s.down.T) @ s.up.T
    torch.testing.assert_close(s(x), expected, rtol=0, atol=1e-12)


def test_dropout_acts_on_what_enters_the_bottleneck() -> None:
    s, x = site("parallel", dropout=0.5), torch.ones(4, 12, dtype=torch.float64)
    torch.manual_seed(0)
    dropped = s(x)
    torch.manual_seed(0)
    entering = nn.functional.dropout(x, 0.5)
    torch.testing.assert_close(dropped, s.base(x) + torch.tanh(entering @ s.down.T) @ s.up.T, rtol=0, atol=1e-12)
    s.eval()
    torch.testing.assert_close(s(x), by_hand(s, x[None], 1.0)[0], rtol=0, atol=1e-12)


def test_it_is_not_merged_for_there_is_a_nonlinearity() -> None:
    with pytest.raises(AdapterError, match="cannot be merged"):
        attach(pretrained("decoder"), bottleneck=4).merge()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"bottleneck": 0}, "bottleneck is 0; it must be at least 1"),
        ({"nonlinearity": "sin"}, "nonlinearity is 'sin'; allowed: tanh, relu, gelu, silu"),
        ({"init": "zeros"}, "init is 'zeros'; allowed: bert, mam_adapter"),
        ({"scaling": 0.0}, r"scaling is 0.0; allowed: a number other than 0"),
        ({"scaling": "fixed"}, 'or "learned"'),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"targets": ("q", "down")}, "no side at q; it has at up, gate, down, o"),
        ({"targets": ("norm1",), "parallel": True}, "adapts linear layers"),
    ],
)
def test_refusals(keywords: Mapping[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
