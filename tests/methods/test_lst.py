"""LST: what the paper and its code say about it, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError
from reference_impls.additive.lst import Ladder, Rung, attach
from reference_impls.backbones import Backbone, Batch, Size, build, pretrained
from reference_impls.backbones.layers import Stack, hide
from reference_impls.reparameterized import lora

from .parity import randomize, twin

T5_BASE = Size(L=12, L_dec=12, d=768, f=3072, heads=12, head_dim=64, V=32128, positions=0, norm="rms", bias=False)
KEPT = (1, 2, 3, 5, 6, 7, 9, 10, 11)
WIDE = Size(L=6, L_dec=6, d=64, f=256, heads=4, head_dim=16, positions=0, norm="rms", bias=False)


def away(kind: str = "encoder-decoder", **keywords: Any) -> tuple[Backbone, Adapter]:
    """A small pretrained model with a side network whose tensors have left their start."""
    model = pretrained(kind).double()
    adapter = attach(model, **{"reduction": 4, "importance": "magnitude", **keywords})
    randomize(adapter.parameters(), 0.2)
    return model, adapter


def ladders(adapter: Adapter) -> dict[str, Ladder]:
    return dict(adapter.sites())  # type: ignore[arg-type]


def numel(*parts: nn.Module | Tensor | None) -> int:
    return sum(
        p.numel()
        for part in parts
        if part is not None
        for p in (part.parameters() if isinstance(part, nn.Module) else [part])
    )


def set_gates(ladder: Ladder, a: float) -> None:
    with torch.no_grad():
        for rung in ladder.rungs:
            rung.a.fill_(a)


# Sizes.


def test_count_at_t5_base_is_the_official_one_without_the_gates_of_dropped_layers() -> None:
    model = build("encoder-decoder", T5_BASE, device="meta")
    adapter = attach(model, layers=KEPT, decoder_layers=KEPT, importance="magnitude")
    encoder, decoder = ladders(adapter)["encoder"], ladders(adapter)["decoder"]
    assert numel(encoder.P_0, encoder.rungs, encoder.side) == 1_735_776 + 9
    assert numel(decoder.P_0, decoder.rungs, decoder.side) == 2_068_416 + 9
    assert numel(decoder.P_out) == 74_496
    assert adapter.count() == 1_735_776 + 2_068_416 + 74_496 + 18 == 3_878_712 - (24 - 18)
    assert round(100 * adapter.count() / 222_903_552, 2) == 1.74


def test_one_side_layer_and_one_ladder_at_t5_base() -> None:
    model = build("encoder-decoder", T5_BASE, device="meta")
    encoder = ladders(attach(model, layers=KEPT, importance="random"))["encoder"]
    assert numel(encoder.side.blocks[0]) == 4 * 9_216 + 2 * 96 * 384 + 2 * 96 == 110_784
    assert numel(encoder.rungs[0].P) == 73_824
    assert encoder.side.blocks[0].attention.heads == 12
    assert encoder.side.blocks[0].attention.q.weight.shape == (12 * 8, 96)


@pytest.mark.parametrize(("layers", "blocks"), [(None, 12), (KEPT, 9), ((2, 3, 6, 7, 10, 11), 6), ((3, 7, 11), 3)])
def test_dropped_layers_have_no_side_block_no_ladder_and_no_gate(layers: tuple[int, ...] | None, blocks: int) -> None:
    model = build("encoder-decoder", T5_BASE, device="meta")
    adapter = attach(model, layers=layers, decoder_layers=layers, importance="random")
    one, two = 110_784 + 73_824 + 1, 8 * 9_216 + 2 * 96 * 384 + 3 * 96 + 73_824 + 1
    ends = 2 * (73_824 + 96 + 32 * 12) + 74_496
    assert adapter.count() == blocks * (one + two) + ends


# The forward pass.


def states(stack: Stack, x: Tensor, visible: Tensor, *cross: Tensor) -> tuple[list[Tensor], Tensor]:
    """h_0 .. h_L of a stack, and its output."""
    h = [stack.norm_in(stack.positions(x))]
    for block in stack.blocks:
        h.append(block(h[-1], stack.bias(x, visible), *cross))
    return h, stack.norm_out(h[-1])


def climb(ladder: Ladder, kept: tuple[int, ...], h: list[Tensor], visible: Tensor, *cross: Tensor) -> Tensor:
    """The side network along these states, step by step."""
    z = h[0] @ ladder.P_0.weight.T + ladder.P_0.bias
    bias = hide(visible[:, None, None], z.dtype)
    if ladder.base.causal:
        count = z.shape[1]
        bias = bias + torch.full((count, count), -math.inf, dtype=z.dtype).triu(1)
    if ladder.side.relative is not None:
        bias = bias + ladder.side.relative(z)
    for i, rung, block in zip(kept, ladder.rungs, ladder.side.blocks, strict=True):
        mu = 1 / (1 + torch.exp(-rung.a / 0.1))
        z = block(mu * z + (1 - mu) * (h[i + 1] @ rung.P.weight.T + rung.P.bias), bias, *cross)
    return ladder.side.norm_out(z)


def test_output_equals_the_ladders_of_encoder_and_decoder_step_by_step() -> None:
    model, adapter = away(layers=(1,), decoder_layers=(0, 2))
    base, encoder, decoder = pretrained("encoder-decoder").double(), *ladders(adapter).values()
    batch = padded(model)
    assert batch.visible is not None
    hidden = hide(batch.visible[:, None, None], torch.float64)
    previous = base.shift_right(batch.targets)
    seen = torch.ones_like(previous, dtype=torch.bool)
    h, memory = states(base.encoder, base.embed(batch.inputs), batch.visible)
    z = climb(encoder, (1,), h, batch.visible)
    h, _ = states(base.decoder, base.embed(previous), seen, memory, hidden)
    z = climb(decoder, (0, 2), h, seen, z, hidden)
    expected = base.head(z @ decoder.P_out.weight.T + decoder.P_out.bias)
    assert torch.allclose(model(batch), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [Size(), Size(positions=0, norm="rms", bias=False, gated=True)])
def test_output_equals_the_ladder_of_a_decoder_step_by_step(size: Size) -> None:
    model = build("decoder", size).double()
    base, adapter = twin(model), attach(model, reduction=4, layers=(0, 2), importance="magnitude")
    randomize(adapter.parameters(), 0.2)
    ladder, batch = ladders(adapter)["stack"], model.batch(0)
    seen = torch.ones_like(batch.inputs, dtype=torch.bool)
    h, _ = states(base.stack, base.embed(batch.inputs), seen)
    expected = base.head(climb(ladder, (0, 2), h, seen) @ ladder.P_out.weight.T + ladder.P_out.bias)
    assert torch.allclose(model(batch), expected, rtol=0, atol=1e-11)
    assert not any("positions" in name for name in adapter.state_dict())


def padded(model: Backbone) -> Batch:
    """A batch with sources of unequal lengths."""
    batch = model.batch(0)
    lengths = 3 + torch.arange(len(batch.inputs)) % 4
    return replace(batch, visible=torch.arange(batch.inputs.shape[1]) < lengths[:, None])


def test_padding_changes_nothing() -> None:
    model, _ = away()
    batch = padded(model)
    other = torch.where(batch.visible, batch.inputs, 7)  # type: ignore[arg-type]
    assert not torch.equal(other, batch.inputs)
    assert torch.equal(model(batch), model(replace(batch, inputs=other)))


def test_later_targets_change_nothing_before_them() -> None:
    model, _ = away()
    batch = model.batch(0)
    targets = batch.targets.clone()
    targets[:, 3:] = 1
    out, other = model(batch), model(replace(batch, targets=targets))
    assert torch.allclose(out[:, :4], other[:, :4], rtol=0, atol=1e-13)
    assert not torch.allclose(out[:, 4:], other[:, 4:], atol=1e-3)


def test_gate_multiplies_the_side_state_and_negated_it_trades_places() -> None:
    rung = Rung(8, 4, 0.1).double()
    z, h = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    randomize([rung.P.weight, rung.P.bias])
    with torch.no_grad():
        rung.a.fill_(0.07)
    mu = 1 / (1 + math.exp(-0.7))
    assert torch.allclose(rung(z, h), mu * z + (1 - mu) * rung.P(h), rtol=0, atol=1e-14)
    with torch.no_grad():
        rung.a.neg_()
    assert torch.allclose(rung(z, h), (1 - mu) * z + mu * rung.P(h), rtol=0, atol=1e-14)


def test_shut_gates_leave_the_last_backbone_state_alone_to_be_seen() -> None:
    model, adapter = away()
    decoder, batch = ladders(adapter)["decoder"], model.batch(0)
    set_gates(decoder, -1e3)
    before = model(batch)
    randomize([*decoder.P_0.parameters(), *decoder.rungs[:-1].parameters(), *decoder.side.blocks[:-1].parameters()])
    set_gates(decoder, -1e3)
    assert torch.equal(model(batch), before)


def test_open_gates_cut_the_ladder() -> None:
    model, adapter = away()
    batch = model.batch(0)
    for ladder in ladders(adapter).values():
        set_gates(ladder, 1e3)
    before = model(batch)
    for ladder in ladders(adapter).values():
        randomize(list(ladder.base.blocks.parameters()))
    assert torch.equal(model(batch), before)
    for ladder in ladders(adapter).values():
        set_gates(ladder, 0.0)
    assert not torch.allclose(model(batch), before, atol=1e-2)


@pytest.mark.parametrize(("decoder_layers", "read"), [((0, 1, 2), True), ((2,), True), ((0, 1), False)])
def test_rung_reads_what_its_own_backbone_block_puts_out(decoder_layers: tuple[int, ...], read: bool) -> None:
    model, adapter = away(decoder_layers=decoder_layers)
    batch = model.batch(0)
    before = model(batch)
    randomize(list(ladders(adapter)["decoder"].base.blocks[2].parameters()))
    assert torch.equal(model(batch), before) != read


def test_decoder_attends_to_the_encoders_side_network() -> None:
    model, adapter = away()
    batch = model.batch(0)
    before = model(batch)
    randomize(list(ladders(adapter)["encoder"].side.norm_out.parameters()))
    assert not torch.allclose(model(batch), before, atol=1e-3)


# What runs in the backbone.


def test_backbone_computes_what_it_did_and_nothing_flows_back() -> None:
    model, adapter = away()
    base, batch = pretrained("encoder-decoder").double(), model.batch(0)
    seen: dict[str, list[Tensor]] = {"base": [], "adapted": []}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: seen[name].append(output if isinstance(output, Tensor) else output[0])

    for stack in (base.encoder, base.decoder):
        for module in (stack, *stack.blocks):
            module.register_forward_hook(keep("base"))
    for ladder in ladders(adapter).values():
        for module in (ladder.base, *ladder.base.blocks):
            module.register_forward_hook(keep("adapted"))
    model.embed.weight.requires_grad_(True)
    with torch.no_grad():
        base(batch)
    model.loss(batch).backward()
    assert len(seen["base"]) == len(seen["adapted"]) == 7
    assert all(torch.equal(a, b) for a, b in zip(seen["base"], seen["adapted"], strict=True))
    assert not any(t.requires_grad for t in seen["adapted"])
    assert model.embed.weight.grad is None


def saved_bytes(model: Backbone) -> int:
    """Bytes that autograd keeps for the backward pass, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model.loss(model.batch(0))
    assert loss.requires_grad
    return sum(kept.values())


def test_backward_needs_a_third_of_what_full_fine_tuning_does_and_half_of_what_lora_does() -> None:
    full, low_rank, side = (build("encoder-decoder", WIDE) for _ in range(3))
    lora.attach(low_rank)
    attach(side, importance="random")
    assert saved_bytes(side) < saved_bytes(full) / 3
    assert saved_bytes(side) < saved_bytes(low_rank) / 2


def test_states_are_let_go_after_a_step() -> None:
    model, adapter = away()
    model.loss(model.batch(0)).backward()
    assert all(not ladder.states for ladder in ladders(adapter).values())


# The start.


def test_gates_start_half_open_and_projections_small() -> None:
    adapter = attach(build("encoder-decoder", replace(WIDE, d=512)), reduction=2, importance="random")
    for ladder in ladders(adapter).values():
        rung = ladder.rungs[0]
        assert torch.sigmoid(rung.a / rung.temperature).item() == 0.5
        for layer in (ladder.P_0, rung.P, *([ladder.P_out] if ladder.P_out is not None else [])):
            assert not layer.bias.any()
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)


def test_unreduced_side_blocks_start_as_the_backbones() -> None:
    model = pretrained("encoder-decoder")
    for path, ladder in ladders(attach(model, reduction=1, importance="magnitude")).items():
        own = dict(pretrained("encoder-decoder").get_submodule(path).named_parameters())
        assert all(torch.equal(p, own[name]) for name, p in ladder.side.named_parameters())


def test_relative_positions_start_as_the_backbones_and_are_trained() -> None:
    model = pretrained("encoder-decoder")
    for ladder in ladders(attach(model, reduction=4, layers=(1,), importance="magnitude")).values():
        assert torch.equal(ladder.side.relative.weight, ladder.base.relative.weight)
        assert ladder.side.relative.weight.requires_grad
        assert not ladder.base.relative.weight.requires_grad


def largest(importance: Tensor, count: int) -> list[int]:
    """Rows with the largest sums."""
    sums = importance.sum(1).tolist()
    return sorted(sorted(range(len(sums)), key=lambda i: -sums[i])[:count])


def pruned(model: Backbone, scores: dict[str, Tensor], r: int) -> dict[str, Tensor]:
    """Every tensor of side blocks and final norms, matrix by matrix in the order in which a sentence meets them."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    columns = largest(scores["embed.weight"].T, model.size.d // r)
    cut = {}

    def norm(name: str) -> None:
        for key in (f"{name}.weight", f"{name}.bias"):
            if key in weights:
                cut[key] = weights[key][columns]

    def matrices(*names: str) -> list[int]:
        importance = reduce(torch.mul, [scores[f"{name}.weight"][:, columns] for name in names])
        rows = largest(importance, len(importance) // r)
        for name in names:
            cut[f"{name}.weight"] = weights[f"{name}.weight"][rows][:, columns]
            if f"{name}.bias" in weights:
                cut[f"{name}.bias"] = weights[f"{name}.bias"][rows]
        return rows

    for path, stack in model.named_children():
        for i, block in enumerate(getattr(stack, "blocks", [])):
            at = f"{path}.blocks.{i}"
            for before, name in (("norm1", "attention"), ("norm_cross", "cross")):
                if hasattr(block, name):
                    norm(f"{at}.{before}")
                    columns = matrices(*(f"{at}.{name}.{x}" for x in "qkv"))
                    columns = matrices(f"{at}.{name}.o")
            norm(f"{at}.norm2")
            columns = matrices(*(f"{at}.mlp.{x}" for x in (("gate", "up") if block.mlp.gated else ("up",))))
            columns = matrices(f"{at}.mlp.down")
        if hasattr(stack, "norm_out"):
            norm(f"{path}.norm_out")
    return cut


def assert_cut_out(adapter: Adapter, expected: dict[str, Tensor], kept: dict[str, tuple[int, ...]]) -> None:
    for path, ladder in ladders(adapter).items():
        for i, block in zip(kept[path], ladder.side.blocks, strict=True):
            for name, p in block.named_parameters():
                assert torch.equal(p, expected[f"{path}.blocks.{i}.{name}"]), name
        for name, p in ladder.side.norm_out.named_parameters():
            assert torch.equal(p, expected[f"{path}.norm_out.{name}"])


@pytest.mark.parametrize(
    ("kind", "gated", "kept"),
    [
        ("encoder-decoder", False, {"encoder": (1,), "decoder": (0, 2)}),
        ("encoder-decoder", True, {"encoder": (0, 1), "decoder": (1,)}),
        ("decoder", False, {"stack": (0, 2)}),
    ],
)
def test_magnitude_keeps_the_rows_with_the_largest_sums(
    kind: str, gated: bool, kept: dict[str, tuple[int, ...]]
) -> None:
    model = build(kind, replace(pretrained(kind).size, gated=gated)).double()
    randomize(list(model.parameters()), 0.1)
    expected = pruned(model, {name: p.detach().abs() for name, p in model.named_parameters()}, 4)
    first, second = kept.get("encoder", kept.get("stack")), kept.get("decoder")
    adapter = attach(model, reduction=4, layers=first, decoder_layers=second, importance="magnitude")
    assert_cut_out(adapter, expected, kept)


def squares(model: Backbone, batches: list[Batch]) -> dict[str, Tensor]:
    """Sum over examples of the squared gradients of the loss of one."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in batches:
        for i in range(len(batch.inputs)):
            model.zero_grad()
            model.loss(Batch(batch.inputs[i : i + 1], batch.targets[i : i + 1])).backward()
            for name, p in model.named_parameters():
                total[name] += p.grad.square()  # type: ignore[union-attr]
    return total


def test_fisher_keeps_the_rows_with_the_largest_squared_gradients_of_single_examples() -> None:
    model = pretrained("encoder-decoder").double()
    batches = [model.batch(i, count=3) for i in range(2)]
    scores = squares(twin(model), batches)
    adapter = attach(model, reduction=4, batches=batches)
    kept: dict[str, tuple[int, ...]] = {"encoder": (0, 1), "decoder": (0, 1, 2)}
    assert_cut_out(adapter, pruned(pretrained("encoder-decoder").double(), scores, 4), kept)
    together = twin(pretrained("encoder-decoder").double())
    other = pruned(together, {name: p.detach().abs() for name, p in together.named_parameters()}, 4)
    name = "encoder.blocks.0.attention.q.weight"
    assert not torch.equal(ladders(adapter)["encoder"].side.blocks[0].attention.q.weight, other[name])


def test_fisher_looks_at_the_first_samples_alone_and_leaves_no_gradient() -> None:
    model, other = pretrained("encoder-decoder"), pretrained("encoder-decoder")
    attach(model, reduction=4, batches=[model.batch(0, count=8)], num_samples=3)
    few = attach(other, reduction=4, batches=[replace(b := other.batch(0, count=8), inputs=b.inputs[:3])])
    mine = {name: p for name, p in model.named_parameters() if ".side." in name}
    assert mine
    assert all(torch.equal(mine[name], p) for name, p in few.named_parameters() if ".side." in name)
    assert all(p.grad is None for p in model.parameters())


def test_rows_are_kept_regardless_of_heads() -> None:
    model = pretrained("encoder-decoder")
    weight = model.encoder.blocks[0].attention
    scores = weight.q.weight.abs() * weight.k.weight.abs() * weight.v.weight.abs()
    adapter = attach(model, reduction=4, importance="magnitude")
    columns = largest(model.embed.weight.abs().T, 8)
    rows = largest(scores[:, columns], 8)
    side = ladders(adapter)["encoder"].side.blocks[0].attention
    assert torch.equal(side.v.weight, weight.v.weight[rows][:, columns])
    assert sorted(torch.tensor(rows).div(8, rounding_mode="floor").bincount(minlength=4).tolist()) != [2, 2, 2, 2]


def test_random_start_takes_nothing_from_the_backbone() -> None:
    first = attach(pretrained("encoder-decoder"), reduction=4, importance="random").state_dict()
    second = attach(pretrained("encoder-decoder"), reduction=4, importance="random").state_dict()
    name = "encoder.side.blocks.0.attention.q.weight"
    assert not torch.equal(first[name], second[name])


# Refusals.


def test_prediction_is_no_change_of_the_backbones_so_there_is_no_strength() -> None:
    _, adapter = away()
    with pytest.raises(AdapterError, match="no strength"):
        adapter.strength = 0.5


@pytest.mark.parametrize(
    ("kind", "keywords", "message"),
    [
        ("encoder-decoder", {"reduction": 3}, "reduction 3 has to divide the widths 32, 64 and 8"),
        ("encoder-decoder", {"reduction": 0}, "reduction 0"),
        ("encoder-decoder", {"temperature": 0.0}, "must be positive"),
        ("encoder-decoder", {"layers": (2,)}, r"blocks \[2\] of the encoder: name at least one of 0 to 1"),
        ("encoder-decoder", {"decoder_layers": ()}, r"blocks \[\] of the decoder"),
        ("encoder-decoder", {"importance": "l1"}, "importance is one of fisher, magnitude, random, not 'l1'"),
        ("encoder-decoder", {"importance": "fisher"}, "give batches"),
        ("decoder", {"decoder_layers": (0,)}, "has no stack beside"),
        ("encoder", {}, "Encoder is no pre-norm transformer over embedded tokens"),
        ("vit", {}, "VisionTransformer is no pre-norm transformer over embedded tokens"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(kind: str, keywords: dict[str, Any], message: str) -> None:
    model = build(kind)
    with pytest.raises(AdapterError, match=message):
        attach(model, **{"importance": "magnitude", **keywords})
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
