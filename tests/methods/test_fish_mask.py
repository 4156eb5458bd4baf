"""FISH Mask: what the paper says about it, checked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError, FreeDelta
from reference_impls.backbones import Batch, Size, build, pretrained
from reference_impls.selective.fish_mask import SparseDelta, attach, fisher, largest

BERT_LARGE = Size(L=24, d=1024, f=4096, heads=16, head_dim=64, V=28996, positions=512, C=2)
HEAD = 32 * 4 + 4


class Net(nn.Module):
    """A small network with a squared error of half its usual size: -log p of a Gaussian."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, batch: Batch) -> Tensor:
        return self.layers(batch.inputs)

    def loss(self, batch: Batch) -> Tensor:
        return 0.5 * (self(batch) - batch.targets).square().sum()


def singles(batch: Batch) -> Iterator[Batch]:
    return (Batch(batch.inputs[i : i + 1], batch.targets[i : i + 1]) for i in range(len(batch.inputs)))


def on_encoder(**keywords: object) -> tuple[nn.Module, Adapter]:
    model = pretrained("encoder").double()
    return model, attach(model, batches=[model.batch(i, count=8) for i in range(3)], **keywords)  # type: ignore[arg-type]


def chosen(adapter: Adapter) -> dict[str, list[int]]:
    return {n: s.positions.tolist() for n, s in adapter.sites().items() if isinstance(s, SparseDelta)}


def test_fisher_of_a_linear_layer_is_error_times_input_squared() -> None:
    net = Net(nn.Linear(5, 1, bias=False)).double()
    x, y = torch.randn(1, 5, dtype=torch.float64), torch.randn(1, 1, dtype=torch.float64)
    scores = fisher(net, [Batch(x, y)])["layers.0.weight"]
    error = net(Batch(x, y)) - y
    assert torch.allclose(scores, (error.square() * x.square()).detach(), rtol=1e-12)
    assert set(largest({"w": scores}, 2)["w"].tolist()) == set(x.abs().topk(2).indices[0].tolist())


def test_squares_are_taken_example_by_example_and_then_averaged() -> None:
    net = Net(nn.Linear(1, 1, bias=False)).double()
    x = torch.ones(2, 1, dtype=torch.float64)
    w = net.layers[0].weight.detach()
    opposite = Batch(x, torch.cat([w + 3.0, w - 3.0]))  # errors -3 and 3: the batch gradient vanishes
    (whole,) = torch.autograd.grad(net.loss(opposite), list(net.parameters()))
    assert float(whole.abs()) < 1e-12
    assert fisher(net, singles(opposite))["layers.0.weight"].item() == pytest.approx(9.0)
    assert fisher(net, singles(opposite), grad_type="absolute")["layers.0.weight"].item() == pytest.approx(3.0)


def test_gradients_that_are_never_cleared_square_running_sums() -> None:
    """As an early script of the official code has it; the mean of squares is another number."""
    net = Net(nn.Linear(1, 1, bias=False)).double()
    w = net.layers[0].weight.detach()
    batch = Batch(torch.ones(2, 1, dtype=torch.float64), torch.cat([w + 3.0, w - 3.0]))
    scores = torch.zeros(1, 1, dtype=torch.float64)
    for single in singles(batch):
        net.loss(single).backward()
        scores += net.layers[0].weight.grad.square()
    assert scores.item() / 2 == pytest.approx(4.5)  # (9 + 0) / 2
    assert fisher(net, singles(batch))["layers.0.weight"].item() == pytest.approx(9.0)


def test_order_of_examples_and_scale_of_the_loss_do_not_matter_to_the_mask() -> None:
    model = pretrained("encoder").double()
    batch = model.batch(0, count=8)
    turned = Batch(batch.inputs.flip(0), batch.targets.flip(0), batch.visible.flip(0))
    plain = chosen(attach(model, batches=[batch], keep_ratio=0.02))
    assert chosen(attach(pretrained("encoder").double(), batches=[turned], keep_ratio=0.02)) == plain
    scaled = pretrained("encoder").double()
    original = scaled.loss
    scaled.loss = lambda b: 7.0 * original(b)  # type: ignore[method-assign]
    assert chosen(attach(scaled, batches=[batch], keep_ratio=0.02)) == plain


def test_weights_that_feed_dead_units_have_no_information_and_are_not_chosen() -> None:
    net = Net(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        net.layers[0].bias[1] = -100.0
    batch = Batch(torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64))
    scores = fisher(net, singles(batch))
    assert torch.equal(scores["layers.0.weight"][1], torch.zeros(3, dtype=torch.float64))
    positive = sum(int((s > 0).sum()) for s in scores.values())
    picked = largest(scores, positive)
    assert not set(picked["layers.0.weight"].tolist()) & {3, 4, 5}


def test_expect_averages_over_the_models_own_labels() -> None:
    model = pretrained("encoder").double()
    single = model.batch(0, count=1)
    expected = torch.zeros_like(model.pooler.weight)
    for y in range(4):
        log_p = model(single)[0].log_softmax(-1)[y]
        (gradient,) = torch.autograd.grad(log_p, [model.pooler.weight])
        expected += log_p.exp().detach() * gradient.square()
    assert torch.allclose(fisher(model, [single], "expect")["pooler.weight"], expected, rtol=1e-10)


def test_selection_is_global_so_that_some_tensors_get_nothing() -> None:
    model = pretrained("encoder").double()
    examples = [model.batch(i, count=8) for i in range(3)]
    adapter = attach(model, batches=examples, keep_ratio=0.01)
    scores = fisher(pretrained("encoder").double(), (b for batch in examples for b in one_by_one(batch)))
    flat = torch.cat([s.flatten() for n, s in scores.items() if not n.startswith("head")])
    picked = chosen(adapter)
    count = sum(len(p) for p in picked.values())
    threshold = flat.topk(count).values.min()
    for name, score in scores.items():
        if not name.startswith("head"):
            expected = (score.flatten() >= threshold).nonzero().flatten().tolist()
            assert picked.get(name, []) == expected, name
    assert len(picked) < len(scores) - 2


def one_by_one(batch: Batch) -> Iterator[Batch]:
    for i in range(len(batch.inputs)):
        yield Batch(batch.inputs[i : i + 1], batch.targets[i : i + 1], batch.visible[i : i + 1])


def test_num_samples_limits_the_examples() -> None:
    model = pretrained("encoder").double()
    batch = model.batch(0, count=8)
    first = Batch(batch.inputs[:3], batch.targets[:3], batch.visible[:3])
    assert chosen(attach(model, batches=[batch], keep_ratio=0.02, num_samples=3)) == chosen(
        attach(pretrained("encoder").double(), batches=[first], keep_ratio=0.02)
    )


def test_budget_contains_the_head() -> None:
    _, adapter = on_encoder(keep_ratio=0.05)
    reached = sum(p.numel() for n, p in pretrained("encoder").named_parameters() if not n.startswith("lm_head"))
    assert adapter.count() == int(0.05 * reached)
    assert sum(p.numel() for n, p in adapter.named_parameters() if n.startswith("head.")) == HEAD


@pytest.mark.parametrize("keep_ratio", [0.005, 0.02])
def test_half_a_percent_of_bert_large_is_1_67_million_values(keep_ratio: float) -> None:
    model = build("encoder", BERT_LARGE, device="meta")
    batch = model.batch(0, count=1)
    batch = Batch(batch.inputs.to("meta"), batch.targets.to("meta"), batch.visible.to("meta"))
    count = attach(model, batches=[batch], keep_ratio=keep_ratio).count()
    assert count / 1e6 == pytest.approx(keep_ratio * 333.58, abs=0.01 if keep_ratio < 0.01 else 0.02)


def test_keep_ratio_1_is_full_fine_tuning() -> None:
    model, adapter = on_encoder(keep_ratio=1.0)
    twin = pretrained("encoder").double()
    optimizer = torch.optim.AdamW([p for n, p in twin.named_parameters() if not n.startswith("lm_head")], 1e-3)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    for i in range(3):
        optimizer.zero_grad()
        twin.loss(twin.batch(i)).backward()
        optimizer.step()
    adapter.fit((model.batch(i) for i in range(3)), learning_rate=1e-3)  # type: ignore[operator]
    assert torch.allclose(model(model.batch(9)), twin(twin.batch(9)), rtol=0, atol=1e-7)  # type: ignore[operator]


def test_the_smallest_keep_ratio_trains_the_head_alone() -> None:
    reached = sum(p.numel() for n, p in pretrained("encoder").named_parameters() if not n.startswith("lm_head"))
    _, adapter = on_encoder(keep_ratio=(HEAD + 0.5) / reached)
    assert adapter.count() == HEAD
    assert all(isinstance(site, FreeDelta) for site in adapter.sites().values())


def test_equals_masking_the_gradients_of_all_weights() -> None:
    model, adapter = on_encoder(keep_ratio=0.03)
    twin = pretrained("encoder").double()
    masks = {n: s.support(twin.get_parameter(n)) for n, s in adapter.sites().items() if isinstance(s, SparseDelta)}
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    mine = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for i in range(4):
        optimizer.zero_grad()
        twin.loss(twin.batch(i)).backward()
        for name, p in twin.named_parameters():
            if p.grad is not None and not name.startswith("head."):
                p.grad.mul_(masks.get(name, torch.zeros_like(p)))
        optimizer.step()
        mine.zero_grad()
        adapter.loss(model.batch(i)).backward()  # type: ignore[operator]
        mine.step()
    assert torch.allclose(model(model.batch(9)), twin(twin.batch(9)), rtol=0, atol=1e-10)  # type: ignore[operator]
    base = pretrained("encoder").double()
    changed = 0
    for name, mask in masks.items():
        owner, _, leaf = name.rpartition(".")
        now = getattr(model.get_submodule(owner), leaf)
        assert torch.equal(now[~mask], base.get_parameter(name)[~mask]), name
        changed += int((now != base.get_parameter(name)).sum())
    assert changed > 0


def test_decay_moves_masked_weights_in_place_and_nothing_outside_the_mask_here() -> None:
    model, adapter = on_encoder(keep_ratio=0.03)
    base = pretrained("encoder").double()
    masks = {n: s.support(base.get_parameter(n)) for n, s in adapter.sites().items() if isinstance(s, SparseDelta)}
    mine = torch.optim.AdamW(adapter.parameters(), lr=0.01, weight_decay=0.5)
    theirs = torch.optim.AdamW(base.parameters(), lr=0.01, weight_decay=0.5)
    start = pretrained("encoder").double()
    for network, optimizer in ((model, mine), (base, theirs)):
        optimizer.zero_grad()
        network.loss(network.batch(0)).backward()  # type: ignore[operator]
        for name, mask in masks.items() if network is base else ():
            network.get_parameter(name).grad.mul_(mask)
        optimizer.step()
    for name, mask in masks.items():
        owner, _, leaf = name.rpartition(".")
        now = getattr(model.get_submodule(owner), leaf)
        assert torch.equal(now[~mask], start.get_parameter(name)[~mask]), name
    name = "pooler.weight"
    assert not torch.equal(base.get_parameter(name)[~masks[name]], start.get_parameter(name)[~masks[name]])


def test_fast_form_equals_the_definition() -> None:
    base = torch.randn(4, 5, dtype=torch.float64)
    site = SparseDelta(base, torch.tensor([1, 7, 19]))
    with torch.no_grad():
        site.values.copy_(torch.tensor([1.0, 2.0, 3.0]))
    site.strength = -0.5
    assert torch.allclose(site(base), base - 0.5 * site.delta_weight(base), rtol=0, atol=1e-15)
    assert site.delta_weight(base).flatten()[[1, 7, 19]].tolist() == [1.0, 2.0, 3.0]
    assert int(site.support(base).sum()) == 3


def test_a_state_holds_a_value_and_a_position_for_every_chosen_weight() -> None:
    _, adapter = on_encoder(keep_ratio=0.05)
    state = adapter.state_dict()
    positions = [t for n, t in state.items() if n.endswith(".positions")]
    assert sum(t.numel() for t in positions) == adapter.count() - HEAD
    assert {t.dtype for t in positions} == {torch.int32}


def test_a_language_model_ranks_its_head_like_everything_else() -> None:
    model = pretrained("decoder")
    adapter = attach(model, batches=[model.batch(0, count=4)], keep_ratio=0.05, train_head=False)
    assert isinstance(adapter.sites()["head.weight"], SparseDelta)
    assert adapter.count() == int(0.05 * sum(p.numel() for p in pretrained("decoder").parameters()))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"sample_type": "labels"}, "label, expect"),
        ({"grad_type": "cube"}, "square, absolute"),
        ({"keep_ratio": 0.0}, r"keep_ratio is in \(0, 1\]"),
        ({"num_samples": 0}, "num_samples at least 1"),
        ({"keep_ratio": 0.001}, "less than the head's 132"),
        ({"batches": []}, "no example"),
    ],
)
def test_bad_input_is_refused_and_the_model_left_alone(keywords: dict[str, object], words: str) -> None:
    model = pretrained("encoder")
    with pytest.raises(AdapterError, match=words):
        attach(model, **({"batches": [model.batch(0, count=2)]} | keywords))  # type: ignore[arg-type]
    assert all(p.requires_grad for p in model.parameters())


def test_expect_needs_more_than_one_output() -> None:
    net = Net(nn.Linear(5, 1)).double()
    single = Batch(torch.randn(1, 5, dtype=torch.float64), torch.randn(1, 1, dtype=torch.float64))
    with pytest.raises(AdapterError, match="and regression"):
        fisher(net, [single], "expect")


def test_expect_needs_class_logits() -> None:
    model = pretrained("decoder")
    with pytest.raises(AdapterError, match="logits of classes"):
        attach(model, batches=[model.batch(0, count=2)], sample_type="expect", train_head=False)
