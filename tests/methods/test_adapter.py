"""The contract itself, on a method made for the purpose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reference_impls.adapter import Adapter, AdapterError, Delta, DeltaLinear, FreeDelta, find
from reference_impls.backbones import pretrained
from reference_impls.claims.removal import differences


class Dense(DeltaLinear):
    """An unrestricted change of a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.D = nn.Parameter(torch.randn_like(base.weight) * 0.1)

    def delta(self, x: Tensor) -> Tensor:
        return x @ self.D.T

    def delta_weight(self) -> Tensor:
        return self.D


class DenseAdapter(Adapter):
    mergeable = True


def attach(targets: tuple[str, ...] = ("q",)) -> tuple[nn.Module, DenseAdapter]:
    model = pretrained("decoder")
    adapter = DenseAdapter(model)
    for path, base in find(model, targets).items():
        adapter.replace(path, Dense(base))
    adapter.reparameterize("stack.blocks.0.mlp.up.bias", FreeDelta(model.get_parameter("stack.blocks.0.mlp.up.bias")))
    return model, adapter


def test_detach_restores_order_class_and_bits() -> None:
    model, adapter = attach()
    adapter.fit([model.batch(i) for i in range(2)])  # type: ignore[operator]
    assert differences(model, pretrained("decoder")) != []
    adapter.detach()
    assert differences(model, pretrained("decoder")) == []


def test_unmerge_gives_back_the_very_bits_after_many_cycles() -> None:
    model, adapter = attach()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for _ in range(50):
        adapter.merge()
        adapter.unmerge()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_merged_model_can_move_before_it_is_unmerged() -> None:
    model, adapter = attach()
    adapter.merge()
    model.double()
    adapter.unmerge()
    assert {p.dtype for p in model.parameters()} == {torch.float64, torch.float32}
    adapter.detach()
    base = pretrained("decoder").double()
    assert torch.equal(
        model.state_dict()["stack.blocks.0.attention.q.weight"], base.state_dict()["stack.blocks.0.attention.q.weight"]
    )


def test_merging_twice_and_other_impossible_orders_are_errors() -> None:
    _, adapter = attach()
    with pytest.raises(AdapterError, match="not merged"):
        adapter.unmerge()
    adapter.merge()
    with pytest.raises(AdapterError, match="already merged"):
        adapter.merge()
    with pytest.raises(AdapterError, match="unmerge"):
        adapter.strength = 0.5
    adapter.detach()
    with pytest.raises(AdapterError, match="already detached"):
        adapter.detach()


def test_a_state_that_does_not_fit_names_what_is_wrong(tmp_path: Path) -> None:
    _, adapter = attach()
    state = adapter.state_dict()
    first = next(iter(state))
    with pytest.raises(AdapterError, match=f"missing {first}"):
        adapter.load_state_dict({k: v for k, v in state.items() if k != first})
    with pytest.raises(AdapterError, match="has shape"):
        adapter.load_state_dict({**state, first: torch.zeros(1)})
    with pytest.raises(AdapterError, match="unknown extra"):
        adapter.load_state_dict({**state, "extra": torch.zeros(1)})


def test_learned_part_survives_the_disk(tmp_path: Path) -> None:
    model, adapter = attach()
    adapter.save(tmp_path / "learned.safetensors")
    other, second = attach()
    assert not torch.equal(
        second.state_dict()["stack.blocks.0.attention.q.D"], adapter.state_dict()["stack.blocks.0.attention.q.D"]
    )
    second.load(tmp_path / "learned.safetensors")
    batch = model.batch(3)  # type: ignore[operator]
    assert torch.equal(model(batch), other(batch))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["learned.safetensors"]


def test_two_adapters_on_one_tensor_are_refused() -> None:
    model, adapter = attach()

    class Twice(Delta):
        pass

    with pytest.raises(AdapterError, match="reparameterized already"):
        adapter.reparameterize("stack.blocks.0.mlp.up.bias", Twice())
    assert isinstance(model, nn.Module)


def test_unknown_targets_name_what_there_is() -> None:
    with pytest.raises(AdapterError, match=r"no module named query in Decoder; it has: .*q"):
        find(pretrained("decoder"), ["query"])


def test_strength_scales_merged_and_unmerged_alike() -> None:
    model, adapter = attach()
    model.double()
    batch = model.batch(3)  # type: ignore[operator]
    adapter.strength = -0.5
    before = model(batch)
    adapter.merge()
    torch.testing.assert_close(model(batch), before, rtol=0, atol=1e-12)
