"""SHiRA: what the paper and PEFT's tuner say about it, checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError
from reference_impls.backbones import build, pretrained
from reference_impls.claims import Expected, Trial, measure
from reference_impls.registry import load
from reference_impls.selective.diff_pruning import SparseDelta
from reference_impls.selective.shira import MASKS, attach, fuse, interference, structured

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
    randomize,
    same,
)
from .refused import assert_refused


def on_decoder(mask: str, density: float = 0.05, **keywords: Any) -> tuple[Any, Adapter]:
    model = pretrained("decoder").double()
    batches = [cast(model.batch(900 + i, count=8)) for i in range(2)]
    return model, attach(model, mask=mask, density=density, batches=batches, **keywords)


def cast(batch: Any) -> Any:
    return batch.to(dtype=torch.float64)


def sites(adapter: Adapter) -> dict[str, SparseDelta]:
    return {path: site for path, site in adapter.sites().items() if isinstance(site, SparseDelta)}


def base_weight(path: str) -> Tensor:
    return pretrained("decoder").double().get_parameter(path).detach()


def test_a_hundredth_of_a_wide_layer_against_lora() -> None:
    layer = nn.ModuleDict({"q": nn.Linear(4096, 4096, bias=False, device="meta")})
    count = attach(layer, density=0.01, targets=["q"]).count()
    assert count == 167_772
    assert 20 * (4096 + 4096) == 163_840  # LoRA of rank 20
    assert 32 * (4096 + 4096) / 4096**2 == 0.015625  # PEFT's r = 32


def test_lora_changes_two_thirds_of_llama_where_a_sparse_adapter_changes_a_hundredth() -> None:
    model = build("decoder", LLAMA_7B, device="meta")
    adapter = attach(model, density=0.01)
    total = 6_738_415_616
    adapted = sum(site.support(model.get_parameter(name)).numel() for name, site in originals(adapter, model).items())
    assert int(10_000 * adapted / total) == 6_672  # the paper's 66.72 percent, cut off
    assert adapter.count() == 32 * (3 * 167_772 + 2 * 450_887)


def originals(adapter: Adapter, model: nn.Module) -> dict[str, SparseDelta]:
    """Sites by the name of the base tensor underneath."""
    return {f"{path.removesuffix('.weight')}.parametrizations.weight.original": s for path, s in sites(adapter).items()}


@pytest.mark.parametrize("mask", MASKS)
def test_start_is_the_base_model_and_masks_are_chosen_layer_by_layer(mask: str) -> None:
    base = pretrained("decoder").double()
    batch = base.batch(0)
    model, adapter = on_decoder(mask)
    assert torch.equal(model(batch), base(batch))
    for path, site in sites(adapter).items():
        budget = int(0.05 * base_weight(path).numel())
        assert budget - 64 < len(site.positions) <= budget
        assert len(site.positions) == budget or mask in ("rows", "columns")
        assert sorted(set(site.positions.tolist())) == site.positions.tolist()


def test_magnitude_mask_takes_the_largest_weights() -> None:
    _, adapter = on_decoder("magnitude")
    for path, site in sites(adapter).items():
        weight = base_weight(path).abs()
        support = site.support(weight)
        assert weight[support].min() >= weight[~support].max()


@pytest.mark.parametrize("mask", ["gradient", "snip"])
def test_masks_from_data_take_the_largest_scores_of_the_summed_loss(mask: str) -> None:
    model = pretrained("decoder").double()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    sum(model.loss(cast(model.batch(900 + i, count=8))) for i in range(2)).backward()  # type: ignore[union-attr]
    _, adapter = on_decoder(mask)
    for path, site in sites(adapter).items():
        parameter = model.get_parameter(path)
        assert parameter.grad is not None
        score = (parameter.grad * (parameter if mask == "snip" else 1)).abs()
        support = site.support(score)
        assert score[support].min() >= score[~support].max()


def test_choosing_from_data_leaves_no_gradients_and_no_flags() -> None:
    model, adapter = on_decoder("snip")
    assert all(p.grad is None for p in model.parameters())
    assert len(adapter.parameters()) == len(adapter.sites())


@pytest.mark.parametrize(
    ("shape", "count", "rows"), [((8, 12), 8 + 3 * 12, 3), ((12, 8), 8 + 2 * 8 + 7, 2), ((8, 8), 8, 0)]
)
def test_structured_mask_is_spaced_rows_and_the_diagonal(shape: tuple[int, int], count: int, rows: int) -> None:
    mask = structured(shape, count)
    assert count - shape[1] < mask.sum() + rows <= count + rows
    full = mask.all(dim=1)
    assert full.sum() == rows
    assert bool(mask.diagonal().all())
    off = mask & ~full[:, None]
    assert off.sum() == (~full[: min(shape)]).sum()  # nothing but the diagonal outside the rows
    if rows > 1:
        places = full.nonzero().flatten()
        assert places.diff().min() >= shape[0] // rows


def test_structured_masks_are_rows_and_the_columns_of_the_transpose() -> None:
    for mask in ("rows", "columns"):
        _, adapter = on_decoder(mask, density=0.2)
        for path, site in sites(adapter).items():
            weight = base_weight(path)
            budget = int(0.2 * weight.numel())
            expected = structured(weight.shape, budget) if mask == "rows" else structured(weight.T.shape, budget).T
            assert torch.equal(site.support(weight), expected)


def test_rows_bound_the_rank_and_the_diagonal_lifts_it() -> None:
    values = torch.randn(16, 16, dtype=torch.float64)
    assert torch.linalg.matrix_rank(values * structured((16, 16), 48, diagonal=False)) == 3
    assert torch.linalg.matrix_rank(values * structured((16, 16), 48)) == 16
    assert torch.linalg.matrix_rank(structured((16, 16), 48, diagonal=False).double()) == 1  # the mask itself


def test_disjoint_rows_do_not_interfere_and_disjoint_columns_do() -> None:
    values = torch.randn(2, 16, 16, dtype=torch.float64)
    rows = structured((16, 16), 48, diagonal=False)
    first, second = values[0] * rows, values[1] * rows.roll(1, 0)
    assert interference(first, second) == (0.0, 1.0)
    awom, awor = interference(first.T, second.T)
    assert awom > 1
    assert awor == 1 - 9 / 256
    assert awom == pytest.approx((first @ second.T).square().sum().sqrt().item())


def test_random_masks_come_from_a_seed() -> None:
    first, second, other = (
        [site.positions for site in sites(on_decoder("random", seed=seed)[1]).values()] for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])  # layers of one shape differ


def test_everything_dense_is_full_fine_tuning_of_the_layers() -> None:
    model, adapter = on_decoder("random", density=1.0)
    assert adapter.count() == sum(base_weight(path).numel() for path in adapter.sites())
    for path, site in sites(adapter).items():
        target = torch.randn_like(base_weight(path))
        copy_to(site.values, target - base_weight(path))
        assert torch.allclose(model.get_submodule(path.removesuffix(".weight")).weight, target, rtol=0, atol=1e-14)


def test_training_takes_the_steps_of_masked_gradients() -> None:
    model, adapter = on_decoder("magnitude")
    batches = [cast(model.batch(i)) for i in range(4)]
    adapter.fit(batches, learning_rate=1e-2)
    other = pretrained("decoder").double()
    trained = {path: other.get_parameter(path) for path in adapter.sites()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0)
    for batch in batches:
        optimizer.zero_grad()
        other.loss(batch).backward()
        for path, parameter in trained.items():
            assert parameter.grad is not None
            parameter.grad *= sites(adapter)[path].support(parameter)
        optimizer.step()
    for path, parameter in trained.items():
        assert torch.allclose(model.get_submodule(path.removesuffix(".weight")).weight, parameter, rtol=0, atol=1e-12)


def test_weight_decay_would_move_entries_outside_the_mask() -> None:
    weight = torch.ones(4, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    (weight * torch.tensor([1.0, 0, 0, 0])).sum().backward()
    optimizer.step()
    assert bool((weight[1:] != 1).all())
    _, adapter = on_decoder("random")
    assert all(group["weight_decay"] == 0 for group in adapter.optimizer(0.1).param_groups)


@pytest.mark.parametrize("c", [-1.0, 0.0, 0.3, 2.0])
def test_strength_scales_the_sparse_change(c: float) -> None:
    model, adapter = on_decoder("random")
    randomize(adapter.parameters())
    adapter.strength = c
    for path, site in sites(adapter).items():
        weight = base_weight(path)
        now = model.get_submodule(path.removesuffix(".weight")).weight
        expected = weight.flatten().clone()
        expected[site.positions.long()] += c * site.values
        assert torch.allclose(now, expected.view_as(weight), rtol=0, atol=1e-15)
        if c == 0:
            assert torch.equal(now, weight)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("claim", ["mergeable", "saves", "detachable", "family-invariant", "device-dtype"])
def test_claims_hold_for_every_mask(claim: str, mask: str) -> None:
    expected = Expected(True, True, True, "linear", {"mask": mask, "density": 0.1, "targets": ["q", "up"]})
    result = measure(claim, Trial(load("shira"), "decoder", expected))
    assert result.status == "verified", result


def test_counts_come_out_on_meta_for_every_mask() -> None:
    model = build("decoder", device="meta")
    batches = [model.batch(0).to("meta")]
    for mask in MASKS:
        count = attach(build("decoder", device="meta"), mask=mask, density=0.05, batches=batches).count()
        assert count == on_decoder(mask)[1].count()


def test_state_of_another_mask_and_density_is_switched_to() -> None:
    model, adapter = on_decoder("random", density=0.1)
    randomize(adapter.parameters())
    batch = cast(model.batch(0))
    other, second = on_decoder("magnitude", density=0.05)
    randomize(second.parameters(), seed=4)
    second.load_state_dict(adapter.state_dict())
    assert torch.equal(model(batch), other(batch))
    assert second.count() == adapter.count()
    second.detach()
    assert torch.equal(other(batch), pretrained("decoder").double()(batch))


def test_state_that_does_not_fit_is_refused_and_nothing_changed() -> None:
    _, adapter = on_decoder("random")
    before = adapter.state_dict()
    state = on_decoder("random", density=0.1)[1].state_dict()
    name = next(iter(state))
    for wrong in (
        {k: v for k, v in state.items() if k != name},
        state | {name: state[name][1:]},
        state | {"x.values": state[name]},
    ):
        with pytest.raises(AdapterError, match="does not fit"):
            adapter.load_state_dict(wrong)
        assert all(torch.equal(tensor, before[key]) for key, tensor in adapter.state_dict().items())


def test_adapters_are_fused_by_adding_their_changes() -> None:
    parts = []
    expected = {path: base_weight(path) for path in on_decoder("random")[1].sites()}
    for seed, mask, a in ((1, "random", 1.0), (2, "magnitude", -0.5), (3, "rows", 2.0)):
        _, adapter = on_decoder(mask, density=0.1, seed=seed)
        randomize(adapter.parameters(), seed=seed)
        parts.append((adapter.state_dict(), a))
        expected = {path: w + a * sites(adapter)[path].delta_weight(w) for path, w in expected.items()}
    model, fused = on_decoder("random")
    fused.load_state_dict(fuse(*parts))
    for path, weight in expected.items():
        assert torch.allclose(model.get_submodule(path.removesuffix(".weight")).weight, weight, rtol=0, atol=1e-14)


def test_writing_the_originals_back_is_exact_where_subtracting_is_not() -> None:
    weight = torch.randn(64, 64)
    values, positions = torch.randn(400), torch.randperm(64 * 64)[:400]
    overwritten, subtracted = weight.clone().flatten(), weight.clone().flatten()
    originals = overwritten[positions]
    overwritten[positions] += values
    overwritten[positions] = originals
    subtracted[positions] += values
    subtracted[positions] -= values
    assert torch.equal(overwritten.view_as(weight), weight)
    assert not torch.equal(subtracted.view_as(weight), weight)
    assert_no_drift(attach)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_peft(shape: tuple[int, int]) -> None:
    layer = linear(*shape)
    theirs = in_peft("ShiraConfig", layer, r=2)
    weight, indices = theirs.shira_weight["default"], theirs.shira_indices["default"]
    model = Holder(layer)
    adapter = attach(model, density=2 * sum(shape) / (shape[0] * shape[1]), targets=["q"])
    (site,) = sites(adapter).values()
    copy_to(site.positions, indices[0] * shape[0] + indices[1])
    randomize(adapter.parameters())
    copy_to(weight, site.values)
    for a in (1.0, -0.7):
        adapter.strength = a
        theirs.set_scale("default", a)
        assert_same(model, theirs, [(site.values, weight, same)], shape[0])
    theirs.merge()
    merged = layer.parametrizations["weight"].original - 0.7 * site.delta_weight(layer.weight)  # type: ignore[index,union-attr]
    assert torch.allclose(theirs.base_layer.weight, merged, rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_draws_the_positions_that_peft_draws(seed: int) -> None:
    theirs = in_peft("ShiraConfig", linear(12, 8), r=2, random_seed=seed).shira_indices["default"]
    (site,) = sites(attach(Holder(linear(12, 8)), density=40 / 96, seed=seed, targets=["q"])).values()
    assert torch.equal(site.positions, theirs[0] * 12 + theirs[1])


def test_a_seed_of_peft_draws_one_mask_for_all_layers_of_a_shape() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(pretrained("decoder"), peft.ShiraConfig(r=2, random_seed=3, target_modules=["q", "v"]))
    masks = [m.shira_indices["default"] for m in model.modules() if hasattr(m, "shira_indices")]
    assert len(masks) == 6
    assert all(torch.equal(mask, masks[0]) for mask in masks)


def test_peft_ties_the_number_of_entries_to_a_rank_and_has_random_masks_alone() -> None:
    peft = pytest.importorskip("peft")
    theirs = in_peft("ShiraConfig", linear(12, 8), r=3)
    assert theirs.shira_weight["default"].numel() == 3 * (12 + 8)
    assert theirs.scaling["default"] == 1.0
    with pytest.raises(ValueError, match="more shira params"):
        in_peft("ShiraConfig", linear(12, 8), r=5)
    with pytest.warns(UserWarning, match="not recognized"):
        assert peft.ShiraConfig(mask_type="snip").mask_fn is None


def test_peft_takes_a_merge_out_up_to_rounding() -> None:
    theirs = in_peft("ShiraConfig", linear(12, 8), r=2).float()
    randomize([theirs.shira_weight["default"]])
    assert max(drift(theirs)) > 0


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"mask": "best"}, "mask is 'best'; allowed: rows, columns, random, magnitude, gradient, snip"),
        ({"density": 0.0}, "density is 0.0"),
        ({"density": 1.1}, "density is 1.1"),
        ({"mask": "snip"}, "a snip mask is chosen from data"),
        ({"mask": "gradient", "batches": []}, "a gradient mask is chosen from data"),
        ({"mask": "rows"}, "density 0.01 leaves 10 entries of .*; a rows mask has at least 32"),
        ({"density": 0.0001}, "leaves 0 entries of .*; a random mask has at least 1"),
        ({"targets": ["norm1"]}, "is a LayerNorm; this method adapts linear layers"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, Any], message: str) -> None:
    assert_refused(attach, keywords, message)
