"""Mix-of-Show: what the paper and its code say about joining several concepts, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Batch
from reference_impls.claims.removal import differences
from reference_impls.reparameterized._mix_of_show_fusion import (
    FusedConcepts,
    closed_form,
    fuse,
    prompts_of,
    quasi_newton,
)

from .test_mix_of_show import CROSS, batch_of, concept, heard, unet


def problem(rows: tuple[int, ...] = (9, 7), d_in: int = 6, d_out: int = 5) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """W0, low-rank changes and inputs of a layer."""
    source = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    return (
        random(d_out, d_in),
        [random(d_out, 2) @ random(2, d_in) for _ in rows],
        [random(n, d_in) for n in rows],
    )


def residual(W: Tensor, W0: Tensor, changes: list[Tensor], inputs: list[Tensor]) -> float:
    return sum(float((X @ (W - W0 - change).T).square().sum()) for X, change in zip(inputs, changes, strict=True))


def test_one_concept_is_kept_exactly() -> None:
    W0, changes, inputs = problem((9,))
    assert torch.allclose(closed_form(W0, changes, inputs), W0 + changes[0], rtol=0, atol=1e-12)


def test_closed_form_with_an_invertible_gram_matrix() -> None:
    W0, changes, inputs = problem()
    grams = [X.T @ X for X in inputs]
    expected = sum((W0 + D) @ G for D, G in zip(changes, grams, strict=True)) @ torch.linalg.inv(sum(grams))
    assert torch.allclose(closed_form(W0, changes, inputs), expected, rtol=0, atol=1e-11)


def test_concepts_with_the_same_gram_matrix_are_averaged() -> None:
    W0, changes, (X, _) = problem()
    rotation = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q
    fused = closed_form(W0, changes, [X, rotation @ X])
    assert torch.allclose(fused, W0 + sum(changes) / 2, rtol=0, atol=1e-12)
    assert not torch.allclose(closed_form(*problem()), W0 + sum(changes) / 2, atol=1e-2)


def test_concepts_with_inputs_in_orthogonal_directions_are_all_kept_and_their_mean_keeps_none() -> None:
    W0, changes, _ = problem()
    directions = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    inputs = [torch.randn(9, 3, dtype=torch.float64) @ directions[:3], torch.randn(7, 2).double() @ directions[3:5]]
    fused = closed_form(W0, changes, inputs)
    assert residual(fused, W0, changes, inputs) < 1e-20
    assert residual(W0 + sum(changes) / 2, W0, changes, inputs) > 1
    unused = directions[5]
    assert torch.allclose(fused @ unused, W0 @ unused, rtol=0, atol=1e-12)
    assert torch.allclose(quasi_newton(W0, changes, inputs) @ unused, W0 @ unused, rtol=0, atol=1e-12)
    assert torch.linalg.matrix_rank(fused - W0) == 2 + 2  # each change on its own inputs, where one has rank 2


def test_no_other_weight_in_question_fits_better() -> None:
    W0, changes, inputs = problem((9, 7, 30))
    best = residual(closed_form(W0, changes, inputs), W0, changes, inputs)
    others = [W0, *(W0 + change for change in changes), W0 + sum(changes) / 3]
    assert best > 0.1
    assert all(best < residual(W, W0, changes, inputs) for W in others)


@pytest.mark.parametrize("c", [-1.0, 0.0, 0.5])
def test_change_is_linear_in_a_common_alpha(c: float) -> None:
    W0, changes, inputs = problem()
    scaled = closed_form(W0, [c * change for change in changes], inputs) - W0
    assert torch.allclose(scaled, c * (closed_form(W0, changes, inputs) - W0), rtol=0, atol=1e-12)


def test_concepts_weigh_as_much_as_they_have_rows() -> None:
    W0, changes, (X, Y) = problem()
    twice = closed_form(W0, changes, [torch.cat([X, X]), Y])
    assert torch.allclose(twice, closed_form(W0, changes, [2**0.5 * X, Y]), rtol=0, atol=1e-12)
    assert not torch.allclose(twice, closed_form(W0, changes, [X, Y]), atol=1e-2)


@pytest.mark.parametrize("rows", [(9, 7), (2, 2)])
def test_quasi_newton_steps_end_at_the_closed_form(rows: tuple[int, ...]) -> None:
    W0, changes, inputs = problem(rows)
    kept = W0.clone()
    assert torch.allclose(quasi_newton(W0, changes, inputs), closed_form(W0, changes, inputs), rtol=0, atol=1e-6)
    assert torch.equal(W0, kept)


def test_few_quasi_newton_steps_stop_before_they_have_converged() -> None:
    W0, changes, inputs = problem((40, 40), d_in=30)
    stretched = [X * torch.logspace(0, -2, 30, dtype=torch.float64) for X in inputs]
    best = residual(closed_form(W0, changes, stretched), W0, changes, stretched)
    few, many = (residual(quasi_newton(W0, changes, stretched, n), W0, changes, stretched) - best for n in (50, 500))
    assert many < few / 10
    assert few > 1e-7


@torch.no_grad()
def test_fusing_one_concept_keeps_what_its_words_mean_and_do() -> None:
    with torch.enable_grad():
        model, adapter = concept()
    prompts, state = prompts_of(model, 0), adapter.state_dict()
    batch = batch_of(model, 1)
    named = Batch(batch.inputs, batch.targets, text=prompts[1], time=batch.time)
    meant, done, heard_before = [model.text(tokens) for tokens in prompts], model(named), heard(model, named)
    adapter.detach()
    fused = fuse(model, [state], steps=4)
    for tokens, states in zip(prompts, meant, strict=True):
        assert torch.allclose(model.text(tokens), states, rtol=0, atol=1e-9)
    for layer, path in enumerate(CROSS):
        words = heard_before[layer][0]
        for name in "kv":
            change = state[f"{path}.{name}.B"] @ state[f"{path}.{name}.A"]
            assert torch.allclose(words @ change_at(fused, f"{path}.{name}").T, words @ change.T, rtol=0, atol=1e-9)
            assert torch.linalg.matrix_rank(change_at(fused, f"{path}.{name}"), rtol=1e-9) == 4
    for path in ("contract.block.attention.v", "bottom.block.attention.o", "expand.block.cross.q"):
        change = state[f"{path}.B"] @ state[f"{path}.A"]
        assert torch.allclose(change_at(fused, path), change, rtol=0, atol=1e-7)
    error = (model(named) - done).norm()
    fused.strength = 0.0
    assert (
        error < 0.2 * (model(named) - done).norm()
    )  # outputs of an attention to three words were fitted, here are two
    assert not fused.parameters()
    fused.detach()
    assert differences(model, unet()) == []


def change_at(fused: FusedConcepts, path: str) -> Tensor:
    return fused.state_dict()[f"{path}.weight.change"]


@torch.no_grad()
def test_fusing_two_concepts_keeps_their_meanings_better_than_averaging() -> None:
    with torch.enable_grad():
        learned = [concept(seed) for seed in (3, 4)]
    wanted = [model.text(prompts_of(model, 0)[1]) for model, _ in learned]
    states = [adapter.state_dict() for _, adapter in learned]
    model, errors = unet(), []
    for solve in (closed_form, lambda W0, changes, _: W0 + sum(changes) / 2):
        fused = fuse(model, states, steps=2, solve=solve)
        spoken = [model.text(prompts_of(model, i)[1]) for i in range(2)]
        errors.append(max(float((a - b).norm() / b.norm()) for a, b in zip(spoken, wanted, strict=True)))
        fused.detach()
    assert errors[0] < errors[1] / 3, errors


def test_keys_and_values_are_solved_on_what_the_fused_text_encoder_says_and_the_rest_on_sampling() -> None:
    states = [concept(seed)[1].state_dict() for seed in (3, 4)]
    model, solved = unet(), []

    def solver(name: str) -> Any:
        def solve(W0: Tensor, changes: list[Tensor], inputs: list[Tensor]) -> Tensor:
            solved.append((name, [len(X) for X in inputs]))
            fed.append(inputs)
            return closed_form(W0, changes, inputs)

        return solve

    fed: list[list[Tensor]] = []
    fused = fuse(model, states, solve=solver("first"), solve_rest=solver("rest"), steps=3)
    text, keys, rest = solved[:4], solved[4:10], solved[10:]
    assert text == [("first", [3 * (3 + 2)] * 2)] * 4  # every token of both prompts, for every layer
    assert keys == [("first", [2 + 2] * 2)] * 6  # the new words of both
    assert sorted(rest) == [("rest", [3 * 16] * 2)] * 6 + [("rest", [3 * 64] * 2)] * 12  # every pixel at every step
    with torch.no_grad():
        for layer in range(3):
            said = torch.cat([model.text(tokens)[0, layer, -2:] for tokens in prompts_of(model, 1)])
            assert torch.allclose(fed[4 + 2 * layer][1], said, rtol=0, atol=1e-12)
    fused.detach()


def test_fusing_at_alpha_zero_leaves_the_base_weights_and_each_concept_has_its_own_alphas() -> None:
    states = [concept(seed)[1].state_dict() for seed in (3, 4)]
    model = unet()
    fused = fuse(model, states, alphas=[(0.0, 0.0)] * 2, steps=2)
    assert all(not tensor.any() for name, tensor in fused.state_dict().items() if name.endswith(".change"))
    assert torch.equal(fused.words.new, torch.cat([state["text.embed.new"] for state in states]))
    fused.detach()
    fused = fuse(model, states, alphas=[(0.0, 1.0), (0.0, 0.0)], steps=2)
    for path in fused.sites():
        if path != "text.embed":
            size = change_at(fused, path.removesuffix(".weight")).abs().max()
            assert size == 0 if path.startswith("text.") else size > 0.01
    fused.detach()
    assert differences(model, unet()) == []


@pytest.mark.parametrize("arguments", [([], None), ([{}], [(1.0, 1.0)] * 2)])
def test_fusing_nothing_or_with_other_alphas_is_refused(arguments: tuple[Any, Any]) -> None:
    with pytest.raises(AdapterError, match="both must be 1 or more"):
        fuse(unet(), arguments[0], alphas=arguments[1])
