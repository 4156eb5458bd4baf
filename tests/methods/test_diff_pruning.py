"""Diff pruning: what the paper says about it, checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Size, build, pretrained
from reference_impls.backbones.base import Backbone
from reference_impls.selective.diff_pruning import DiffPruning, GatedDelta, HardConcrete, attach

BERT_LARGE = Size(L=24, d=1024, f=4096, heads=16, head_dim=64, V=28996, positions=512, C=2)
HEAD = 32 * 4 + 4


def gate(alpha: float, count: int = 1, low: float = -1.5, high: float = 1.5) -> HardConcrete:
    return HardConcrete(torch.full((count,), alpha, dtype=torch.float64), low, high)


def on_encoder(**keywords: object) -> tuple[Backbone, DiffPruning]:
    model = pretrained("encoder").double()
    adapter = attach(model, **keywords)  # type: ignore[arg-type]
    assert isinstance(adapter, DiffPruning)
    return model, adapter


def moved(**keywords: object) -> tuple[Backbone, DiffPruning]:
    """With changes and gates all over the place."""
    model, adapter = on_encoder(**keywords)
    with torch.no_grad():
        for site in adapter.deltas().values():
            site.w.normal_(std=0.05)
            site.gate.alpha.normal_(std=2.0)
    return model, adapter


def changes(model: Backbone) -> dict[str, Tensor]:
    base = pretrained("encoder").double()
    now = {}
    for name, start in base.named_parameters():
        owner, _, leaf = name.rpartition(".")
        now[name] = (getattr(model.get_submodule(owner), leaf) - start).detach()
    return now


# Gates.


@pytest.mark.parametrize(
    ("alpha", "z"), [(5.0, 1.0), (0.0, 0.0), (-3.0, 0.0), (0.5, 3 / (1 + 2.718281828459045**-0.5) - 1.5)]
)
def test_test_time_gates(alpha: float, z: float) -> None:
    assert gate(alpha)().item() == pytest.approx(z, abs=1e-12)


def test_alpha_5_stretches_to_1_480_before_it_is_cut() -> None:
    assert torch.sigmoid(torch.tensor(5.0)).item() * 3 - 1.5 == pytest.approx(1.480, abs=5e-4)


@pytest.mark.parametrize(("alpha", "expected"), [(5.0, 0.99331), (0.0, 0.5)])
def test_penalty_per_weight_is_the_sigmoid_of_alpha_for_symmetric_limits(alpha: float, expected: float) -> None:
    assert gate(alpha).open_probability().item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.0, -1.5, 1.5), (1.0, -0.1, 1.1), (-1.0, -0.5, 1.5)])
def test_penalty_is_the_probability_of_an_open_gate(alpha: float, low: float, high: float) -> None:
    sampled = gate(alpha, 200_000, low, high)
    sampled.sample()
    share = (sampled() > 0).double().mean().item()
    assert share == pytest.approx(sampled.open_probability()[0].item(), abs=0.005)


def test_samples_are_stretched_logistic_noise_cut_to_the_unit_interval() -> None:
    sampled = gate(0.0, 100_000)
    sampled.sample()
    z = sampled().detach()
    assert float(z.min()) == 0.0
    assert float(z.max()) == 1.0
    inside = z[(z > 0) & (z < 1)]
    # s is uniform for alpha = 0, so 1/3 of the gates lie strictly inside, uniformly.
    assert len(inside) / len(z) == pytest.approx(1 / 3, abs=0.01)
    assert float(inside.mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("alpha", "w_learns", "alpha_learns"), [(-3.0, False, False), (0.5, True, True), (5.0, True, False)]
)
def test_closed_gates_block_the_change_and_cut_gates_block_alpha(
    alpha: float, w_learns: bool, alpha_learns: bool
) -> None:
    site = GatedDelta(torch.zeros(3, dtype=torch.float64), alpha, -1.5, 1.5, structured=False)
    with torch.no_grad():
        site.w.fill_(1.0)
    site(torch.zeros(3, dtype=torch.float64)).sum().backward()
    assert bool((site.w.grad != 0).all()) == w_learns
    assert bool((site.gate.alpha.grad != 0).all()) == alpha_learns


@pytest.mark.parametrize("alpha", [5.0, 0.5, 0.0])
def test_the_group_gate_multiplies_every_change_of_its_tensor(alpha: float) -> None:
    base = torch.randn(3, 4, dtype=torch.float64)
    site = GatedDelta(base, 0.7, -1.5, 1.5, structured=True)
    assert site.group is not None
    with torch.no_grad():
        site.w.normal_()
        site.group.alpha.fill_(alpha)
    expected = gate(alpha)() * gate(0.7)() * site.w
    assert torch.allclose(site.delta_weight(base), expected, rtol=1e-12)
    assert bool(site.support(base).any()) == (alpha > 0)


# The start, the loss, what is trained.


def test_start_is_the_base_model_under_sampled_gates_too() -> None:
    model, adapter = on_encoder(penalty=0.0)
    batch = model.batch(0)
    assert torch.equal(adapter.loss(batch), pretrained("encoder").double().loss(batch))
    site = next(iter(adapter.deltas().values()))
    assert float(site.gate.alpha.detach().unique()) == 5.0
    assert site.group.alpha.item() == 5.0
    assert not site.w.any()


@pytest.mark.parametrize("structured", [True, False])
def test_penalty_multiplies_open_probabilities_of_weight_and_group(structured: bool) -> None:
    model, adapter = moved(penalty=1e-3, structured=structured)
    model.eval()
    expected = torch.zeros((), dtype=torch.float64)
    for site in adapter.deltas().values():
        group = torch.sigmoid(torch.tensor(5.0, dtype=torch.float64)) if structured else 1.0
        expected += group * torch.sigmoid(site.gate.alpha).sum()
    batch = model.batch(0)
    assert torch.allclose(adapter.loss(batch) - model.loss(batch), 1e-3 * expected, rtol=1e-10)


def test_head_is_outside_of_penalty_and_gates() -> None:
    _, adapter = on_encoder()
    assert not [path for path in adapter.deltas() if path.startswith(("head", "lm_head"))]
    assert {"head.weight", "head.bias"} <= set(adapter.sites())


def test_gates_are_sampled_in_the_training_loss_and_nowhere_else() -> None:
    model, adapter = moved()
    batch = model.batch(0)
    assert torch.equal(model(batch), model(batch))
    first, second = adapter.loss(batch), adapter.loss(batch)
    assert not torch.equal(first, second)
    assert torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(adapter.loss(batch), adapter.loss(batch))


def test_one_loss_sees_one_sample_of_every_gate() -> None:
    model, adapter = moved()
    site = adapter.deltas()["pooler.weight"]
    seen = []
    model.pooler.register_forward_hook(lambda m, args, out: seen.extend([site.gates(), site.gates()]))
    adapter.loss(model.batch(0))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], site.gates())


def test_bert_large_has_391_encoder_tensors_with_token_types() -> None:
    adapter = attach(build("encoder", BERT_LARGE, device="meta"))
    assert isinstance(adapter, DiffPruning)
    assert len(adapter.deltas()) + 1 == 391  # ours has no token-type table
    stored = 0.005 * (sum(site.w.numel() for site in adapter.deltas().values()) + 2 * 1024)
    assert stored / 1e6 == pytest.approx(1.67, abs=0.005)


def test_groups_and_budget_are_those_of_the_library_s_bert_large() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    with torch.device("meta"):
        config = transformers.BertConfig(vocab_size=28996, **sizes)
        model = transformers.BertForSequenceClassification(config)
    encoder = [p for name, p in model.named_parameters() if not name.startswith("classifier")]
    assert len(encoder) == 391
    assert sum(1 for _ in model.parameters()) == 393
    assert sum(p.numel() for p in encoder) == 333_579_264


def test_two_values_a_weight_and_one_a_tensor_are_trained() -> None:
    _, adapter = on_encoder()
    weights = sum(site.w.numel() for site in adapter.deltas().values())
    assert adapter.count() == 2 * weights + len(adapter.deltas()) + HEAD
    _, plain = on_encoder(structured=False)
    assert plain.count() == 2 * weights + HEAD


def test_alpha_has_a_learning_rate_of_its_own() -> None:
    _, adapter = on_encoder()
    rest, alphas = adapter.optimizer(1e-4).param_groups
    assert (rest["lr"], alphas["lr"]) == (1e-4, 0.1)
    assert len(alphas["params"]) == 2 * len(adapter.deltas())
    assert len(rest["params"]) + len(alphas["params"]) == len(adapter.parameters())


# The three stages.


def test_the_penalty_closes_gates() -> None:
    shares = []
    for penalty in (0.0, 1e-2):
        model, adapter = on_encoder(penalty=penalty, alpha=1.5)
        adapter._stage([model.batch(i) for i in range(25)], 1e-3)
        gates = torch.cat([site.gates().flatten() for site in adapter.deltas().values()])
        shares.append((gates > 0).double().mean().item())
    assert shares[0] > 0.9
    assert shares[1] < 0.1


def test_projection_draws_gates_once_and_keeps_the_largest_changes_of_the_whole_model() -> None:
    model, adapter = moved(target_sparsity=0.01)
    torch.manual_seed(4)
    before = {}
    for site in adapter.deltas().values():
        for gate_ in (m for m in site.modules() if isinstance(m, HardConcrete)):
            gate_.sample()
    for name, site in adapter.deltas().items():
        before[name] = (site.gates() * site.w).detach()
    sizes = torch.cat([c.abs().flatten() for c in before.values()])
    threshold = sizes.topk(int(0.01 * len(sizes))).values.min()
    torch.manual_seed(4)
    adapter.project()
    for name, now in changes(model).items():
        if name in before:
            expected = torch.where(before[name].abs() >= threshold - 1e-15, before[name], 0.0)
            assert torch.allclose(now, expected, rtol=0, atol=1e-15), name


def test_gates_drawn_in_the_projection_may_be_open_where_their_mean_is_closed() -> None:
    _, adapter = moved(target_sparsity=0.01, structured=False)
    with torch.no_grad():
        for site in adapter.deltas().values():
            site.gate.alpha.zero_()
            assert not site.gates().any()
    adapter.project()
    kept = torch.cat([site.kept.values for site in adapter.deltas().values() if site.kept is not None])
    assert kept.abs().min() > 0


def test_without_learned_gates_it_is_plain_magnitude_pruning_of_a_fine_tuned_model() -> None:
    """The paper's baseline, non-adaptive diff pruning."""
    model, adapter = on_encoder(penalty=0.0, alpha=20.0, alpha_learning_rate=0.0, target_sparsity=0.02)
    adapter._stage([model.batch(i) for i in range(4)], 1e-3)
    tuned = {name: change for name, change in changes(model).items() if name in adapter.deltas()}
    sizes = torch.cat([change.abs().flatten() for change in tuned.values()])
    threshold = sizes.topk(int(0.02 * len(sizes))).values.min()
    adapter.project()
    for name, now in changes(model).items():
        if name in tuned:
            expected = torch.where(tuned[name].abs() >= threshold, tuned[name], 0.0)
            assert torch.allclose(now, expected, rtol=0, atol=1e-12), name


def test_retraining_with_fixed_positions_makes_up_for_what_the_projection_cuts_off() -> None:
    model, adapter = on_encoder(penalty=1e-5)
    held_out = model.batch(50_000, count=128)
    adapter._stage([model.batch(i) for i in range(40)], 3e-3)
    tuned = model.loss(held_out).item()
    adapter.project()
    cut = model.loss(held_out).item()
    adapter.fit([model.batch(100 + i) for i in range(30)], learning_rate=3e-3)
    retrained = model.loss(held_out).item()
    assert cut > tuned + 0.01
    assert retrained < cut - 0.01


@pytest.mark.parametrize("target", [0.0, 0.005, 0.25, 1.0])
def test_fit_changes_the_target_share_and_only_it(target: float) -> None:
    model, adapter = on_encoder(target_sparsity=target, penalty=1e-5)
    losses = adapter.fit([model.batch(i) for i in range(5)])
    assert len(losses) == 5
    assert adapter.projected
    total = sum(c.numel() for n, c in changes(model).items() if n in adapter.deltas())
    supported = sum(len(site.kept.values) for site in adapter.deltas().values() if site.kept is not None)
    assert supported == int(target * total)
    changed = sum(int((c != 0).sum()) for n, c in changes(model).items() if n in adapter.deltas())
    assert changed <= int(target * total)
    assert changed >= 0.5 * int(target * total)
    assert adapter.count() == supported + HEAD
    assert changes(model)["head.weight"].any()


def test_positions_stay_fixed_while_the_last_stage_trains_their_values() -> None:
    model, adapter = moved(target_sparsity=0.02)
    adapter.project()
    before = changes(model)
    adapter.fit([model.batch(i) for i in range(3)])  # projected: all steps are of the last stage
    after = changes(model)
    for name in adapter.deltas():
        assert torch.equal((after[name] != 0) & (before[name] == 0), torch.zeros_like(after[name], dtype=torch.bool))
    assert any(not torch.equal(after[name], before[name]) for name in adapter.deltas())


def test_the_penalty_ends_with_the_projection() -> None:
    model, adapter = moved(penalty=1.0)
    adapter.project()
    batch = model.batch(0)
    assert torch.equal(adapter.loss(batch), model.loss(batch))


def test_without_penalty_and_with_all_gates_open_it_is_full_fine_tuning() -> None:
    model, adapter = on_encoder(penalty=0.0, target_sparsity=1.0)
    twin = pretrained("encoder").double()
    adapter.project()
    optimizer = torch.optim.AdamW([p for n, p in twin.named_parameters() if not n.startswith("lm_head")], 1e-3)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    for i in range(3):
        optimizer.zero_grad()
        twin.loss(twin.batch(i)).backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
    adapter.fit([model.batch(i) for i in range(3)], learning_rate=1e-3 / 5)
    assert torch.allclose(model(model.batch(9)), twin(twin.batch(9)), rtol=0, atol=1e-7)


def test_the_last_stage_takes_five_times_the_steps_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watch(optimizer: torch.optim.AdamW) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    model, adapter = on_encoder()
    adapter.fit([model.batch(i) for i in range(4)], learning_rate=1e-5)
    assert rates == pytest.approx([1e-5, 1e-5, 5e-5, 5e-5])


def test_gradients_of_changes_and_of_gates_are_clipped_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[list[float]] = []
    step = torch.optim.AdamW.step

    def watch(optimizer: torch.optim.AdamW) -> None:
        norms.append([torch.stack([p.grad.norm() for p in g["params"]]).norm().item() for g in optimizer.param_groups])
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    model, adapter = on_encoder(penalty=1e3)
    adapter.fit([model.batch(0)])
    assert norms[0][1] == pytest.approx(1.0, abs=1e-4)  # the penalty's gradient, cut
    assert norms[0][0] <= 1.0 + 1e-6


# What is stored.


def test_a_projected_state_holds_values_and_positions_and_loads_into_a_fresh_adapter(tmp_path: Path) -> None:
    model, adapter = on_encoder(target_sparsity=0.01, penalty=1e-5)
    adapter.fit([model.batch(i) for i in range(4)])
    size = adapter.save(tmp_path / "learned.safetensors")
    kept = sum(len(s.kept.values) for s in adapter.deltas().values() if s.kept is not None)
    assert sum(t.numel() for n, t in adapter.state_dict().items() if n.endswith(".positions")) == kept
    other, second = on_encoder(target_sparsity=0.01)
    assert size < 0.2 * second.save(tmp_path / "full.safetensors")
    second.load(tmp_path / "learned.safetensors")
    batch = model.batch(9)
    assert second.projected
    assert torch.equal(other(batch), model(batch))
    second.detach()
    assert torch.equal(other(batch), pretrained("encoder").double()(batch))


def test_a_state_of_learned_gates_does_not_fit_a_projected_adapter() -> None:
    _, adapter = on_encoder()
    _, second = on_encoder()
    second.project()
    with pytest.raises(AdapterError, match="does not fit"):
        second.load_state_dict(adapter.state_dict())


def test_merge_after_projection_is_the_sparse_sum() -> None:
    model, adapter = moved(target_sparsity=0.02)
    adapter.project()
    batch = model.batch(0)
    adapter.strength = -1.0
    before = model(batch)
    adapter.merge()
    assert torch.allclose(model(batch), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"target_sparsity": 1.5}, r"target_sparsity is in \[0, 1\]"),
        ({"penalty": -1.0}, "penalty at least 0"),
        ({"low": 0.0}, "low < 0"),
        ({"high": 1.0}, "high > 1"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, float], words: str) -> None:
    model = pretrained("encoder")
    with pytest.raises(AdapterError, match=words):
        attach(model, **keywords)  # type: ignore[arg-type]
    assert all(p.requires_grad for p in model.parameters())
