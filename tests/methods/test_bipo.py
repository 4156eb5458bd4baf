"""BiPO: what the paper and its code say about it, checked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference_impls.adapter import AdapterError
from reference_impls.additive.bipo import IGNORED, BiPO, Pairs, SteeredLinear, attach, log_likelihood, pairs_of
from reference_impls.backbones import Batch, Size, build, pretrained
from reference_impls.backbones.base import rule
from reference_impls.backbones.decoder import Decoder

from .parity import LLAMA_7B, assert_no_drift, linear, randomize
from .refused import assert_refused


def decoder() -> Decoder:
    model = pretrained("decoder").double()
    assert isinstance(model, Decoder)
    return model


def steered(spread: float = 0.5, **keywords: Any) -> BiPO:
    """The small decoder in float64, its vector away from the start."""
    adapter = attach(decoder(), **keywords)
    assert isinstance(adapter, BiPO)
    randomize(adapter.parameters(), spread)
    return adapter


def pairs(seed: int = 3, count: int = 4) -> Pairs:
    return pairs_of(pretrained("decoder").batch(seed, count=count))


def swapped(given: Pairs) -> Pairs:
    return Pairs(given.opposite, given.matching)


def negate(adapter: BiPO) -> None:
    with torch.no_grad():
        adapter.site.v.neg_()


def by_hand(model: Decoder, batch: Batch, row: int) -> Tensor:
    """log pi(y) of one answer, a token at a time."""
    logp = model(batch)[row].log_softmax(dim=-1)
    marks = [(t, int(y)) for t, y in enumerate(batch.targets[row]) if y != IGNORED]
    return torch.stack([logp[t, y] for t, y in marks]).sum()


@pytest.mark.parametrize("sign", [1, -1])
def test_at_the_start_the_loss_is_log_two_for_both_signs_and_the_gradient_the_same(sign: int) -> None:
    adapter, plus = steered(spread=0.0), steered(spread=0.0)
    loss = adapter.preference_loss(pairs(), sign)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    loss.backward()
    plus.preference_loss(pairs(), 1).backward()
    torch.testing.assert_close(adapter.site.v.grad, plus.site.v.grad, rtol=0, atol=1e-15)
    assert plus.site.v.grad.abs().max() > 1e-4  # type: ignore[union-attr]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_loss_is_its_definition_with_a_vector_added_to_the_blocks_output(sign: int) -> None:
    adapter, base, given = steered(), decoder(), pairs()
    v = adapter.site.v.detach()
    shifted = decoder()
    shifted.stack.blocks[1].register_forward_hook(lambda _, __, output: output + sign * v)
    losses = []
    for row in range(4):
        ratio = [by_hand(shifted, b, row) - by_hand(base, b, row) for b in (given.matching, given.opposite)]
        losses.append(-F.logsigmoid(sign * 0.1 * (ratio[0] - ratio[1])))
    assert torch.stack(losses).std() > 1e-3
    torch.testing.assert_close(adapter.preference_loss(given, sign), torch.stack(losses).mean(), rtol=0, atol=1e-12)


def test_with_the_sign_fixed_it_is_dpo_on_a_bias_of_one_block() -> None:
    adapter, model, frozen, given = steered(), decoder(), decoder(), pairs()
    bias = model.stack.blocks[1].mlp.down.bias
    with torch.no_grad():
        bias += adapter.site.v
    policy, reference = (
        torch.stack([log_likelihood(m, given.matching), log_likelihood(m, given.opposite)]) for m in (model, frozen)
    )
    dpo = -F.logsigmoid(0.1 * ((policy[0] - policy[1]) - (reference[0] - reference[1]))).mean()
    ours = adapter.preference_loss(given, 1)
    torch.testing.assert_close(ours, dpo, rtol=0, atol=1e-12)
    (expected,) = torch.autograd.grad(dpo, bias)
    (found,) = torch.autograd.grad(ours, adapter.site.v)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_swapped_pairs_a_turned_vector_and_a_turned_sign_give_the_same_loss(sign: int) -> None:
    adapter = steered()
    loss = adapter.preference_loss(pairs(), sign)
    negate(adapter)
    torch.testing.assert_close(adapter.preference_loss(swapped(pairs()), -sign), loss, rtol=0, atol=1e-14)
    assert abs(adapter.preference_loss(pairs(), sign) - loss) > 1e-3


def test_training_on_swapped_pairs_with_turned_signs_gives_the_turned_vector() -> None:
    vectors = []
    for turn in (1, -1):
        adapter = steered(spread=0.0)
        optimizer = adapter.optimizer(0.05)
        for step, sign in enumerate([1, -1, -1, 1, 1]):
            given = pairs(step)
            optimizer.zero_grad()
            adapter.preference_loss(given if turn == 1 else swapped(given), turn * sign).backward()
            optimizer.step()
        vectors.append(adapter.site.v.detach())
    assert vectors[0].norm() > 0.5
    torch.testing.assert_close(vectors[1], -vectors[0], rtol=0, atol=1e-10)


def two_rules(seed: int, count: int = 16, length: int = 8) -> Pairs:
    """The same start, continued by the first rule that the small decoder knows or by the second; the mark is random."""
    source, tokens = torch.Generator().manual_seed(seed), 22
    first, mark = torch.randint(tokens, (count,), generator=source), torch.randint(2, (count,), generator=source)
    answers = []
    for table in (rule(0, tokens), rule(1, tokens)):
        walk = [first]
        for _ in range(length):
            walk.append(table[walk[-1]])
        targets = torch.stack(walk, dim=1)
        inputs = torch.cat([mark[:, None] + tokens, targets[:, :-1]], dim=1)
        answers.append(Batch(inputs, targets.index_fill(1, torch.tensor([0]), IGNORED)))
    return Pairs(*answers)


def test_training_makes_a_dial_between_two_ways_to_answer() -> None:
    adapter = steered(spread=0.0)
    torch.manual_seed(0)
    adapter.fit((two_rules(step) for step in range(100)), learning_rate=0.05)
    margins = []
    for multiplier in (-1.0, -0.5, 0.0, 0.5, 1.0):
        adapter.strength = multiplier
        with torch.no_grad():
            margins.append(adapter.margin(two_rules(999, count=64)).mean().item())
    assert all(after - before > 0.4 for before, after in itertools.pairwise(margins))


def test_the_sign_is_one_a_step_and_follows_torchs_seed() -> None:
    adapter, given = steered(), pairs()
    both = [adapter.preference_loss(given, sign).item() for sign in (-1, 1)]
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append([adapter.loss(given).item() for _ in range(24)])
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == set(both)
    assert 6 < drawn[0].count(both[1]) < 18


def test_the_loss_leaves_the_strength_as_it_was_and_does_not_depend_on_it() -> None:
    adapter, given = steered(), pairs()
    expected = adapter.preference_loss(given, -1)
    adapter.strength = 2.0
    assert torch.equal(adapter.preference_loss(given, -1), expected)
    assert adapter.strength == adapter.site.strength == 2.0


@pytest.mark.parametrize("layer", [0, 2])
def test_the_shift_is_at_the_output_of_the_block_at_every_position_and_linear(layer: int) -> None:
    adapter, outputs = steered(layer=layer), {}
    blocks = adapter.model.get_submodule("stack.blocks")
    blocks[layer].register_forward_hook(lambda _, __, output: outputs.update({adapter.strength: output}))  # type: ignore
    for multiplier in (-2.0, 0.0, 1.0):
        adapter.strength = multiplier
        adapter.model(pairs().matching)
    for multiplier in (-2.0, 1.0):
        expected = (multiplier * adapter.site.v).expand_as(outputs[0.0])
        torch.testing.assert_close(outputs[multiplier] - outputs[0.0], expected, rtol=0, atol=1e-13)


def test_multiplier_zero_is_the_base_model_to_the_bit() -> None:
    adapter, batch = steered(), pairs().matching
    adapter.strength = 0.0
    assert torch.equal(adapter.model(batch), decoder()(batch))


def test_the_gradient_comes_through_later_blocks_alone() -> None:
    adapter = steered()
    reached: dict[int, bool] = {}
    for i, block in enumerate(adapter.model.get_submodule("stack.blocks")):  # type: ignore[arg-type]
        block.register_forward_hook(lambda _, __, output, i=i: reached.update({i: output.requires_grad}))
    adapter.model(pairs().matching)
    assert reached == {0: False, 1: True, 2: True}


def test_count_is_the_width_and_the_layer_of_llama_is_the_15th() -> None:
    adapter = attach(build("decoder", LLAMA_7B, device="meta"))
    assert adapter.count() == 4096
    assert list(adapter.sites()) == ["stack.blocks.15.mlp.down"]


def test_merged_the_vector_is_in_the_bias_and_nothing_else_changes() -> None:
    adapter = steered()
    adapter.strength = -1.5
    v, base = adapter.site.v.detach().clone(), decoder().state_dict()
    adapter.merge()
    name = "stack.blocks.1.mlp.down.bias"
    merged = adapter.model.state_dict()
    torch.testing.assert_close(merged.pop(name), base.pop(name) - 1.5 * v, rtol=0, atol=1e-15)
    assert all(torch.equal(tensor, base[key]) for key, tensor in merged.items())


def test_merging_leaves_no_trace() -> None:
    assert_no_drift(attach)


def test_a_model_without_biases_is_steered_and_refuses_to_merge() -> None:
    adapter = attach(build("decoder", Size(gated=True, norm="rms", bias=False)))
    randomize(adapter.parameters())
    with pytest.raises(AdapterError, match="has no bias for v"):
        adapter.merge()
    assert SteeredLinear(linear(8, 12, bias=False)).merged() is None


def test_pairs_of_a_batch_share_the_question_and_exchange_the_answers() -> None:
    batch = pretrained("decoder").batch(0, count=3)
    given = pairs_of(batch)
    assert torch.equal(given.matching.inputs, batch.inputs)
    assert torch.equal(given.matching.targets[:, 6:], batch.targets[:, 6:])
    assert torch.equal(given.opposite.targets[:, 6:], batch.targets[[2, 0, 1], 6:])
    for answered in (given.matching, given.opposite):
        assert torch.equal(answered.inputs[:, :7], batch.inputs[:, :7])
        assert torch.equal(answered.inputs[:, 7:], answered.targets[:, 6:-1])
        assert bool((answered.targets[:, :6] == IGNORED).all())


@pytest.mark.parametrize("change", ["padding", "one row", "one token"])
def test_a_batch_that_gives_no_pairs_is_refused(change: str) -> None:
    batch = pretrained("decoder").batch(0, count=1 if change == "one row" else 2)
    if change == "padding":
        batch = replace(batch, visible=torch.ones_like(batch.inputs, dtype=torch.bool))
    if change == "one token":
        batch = Batch(batch.inputs[:, :1], batch.targets[:, :1])
    with pytest.raises(AdapterError, match="give Pairs"):
        steered().loss(batch)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"layer": 3}, "layer is 3; allowed: 0 to 2"),
        ({"layer": -1}, "allowed: 0 to 2"),
        ({"beta": 0.0}, "beta is 0.0; it must be positive"),
    ],
)
def test_refusals(keywords: Mapping[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)


def test_a_model_that_continues_no_text_is_refused() -> None:
    with pytest.raises(AdapterError, match="needs the decoder"):
        attach(pretrained("mlp"))
