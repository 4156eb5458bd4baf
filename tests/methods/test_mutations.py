"""The checks are checked: broken on purpose, every method concerned must fail the claim that guards it."""

from __future__ import annotations

import pytest

from reference_impls.adapter import Adapter, _Place
from reference_impls.claims import measure
from reference_impls.registry import load

from .cases import entries, first_places, trial


def adapter_class(slug: str) -> type[Adapter]:
    found = [c for c in vars(load(slug)).values() if isinstance(c, type) and issubclass(c, Adapter)]
    own = [c for c in found if c.__module__ == load(slug).__name__]
    return own[0]


MERGEABLE = [p for p in first_places() if entries()[p[0]].reversibility.mergeable]  # type: ignore[union-attr]
SCALED = [p for p in first_places() if adapter_class(p[0]).has_strength]
ALL = first_places()


def contradicted(slug: str, kind: str, *claims: str) -> list[str]:
    """Which of the claims fail as a mutation makes them; a crash would prove nothing."""
    results = [measure(claim, trial(slug, kind)) for claim in claims]
    assert not [r.detail for r in results if r.measured == "failed"]
    return [r.claim for r in results if r.status == "contradicted"]


@pytest.mark.parametrize(("slug", "kind"), MERGEABLE)
def test_a_merge_that_writes_nothing_is_caught(slug: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Place, "folded", lambda self: {})
    assert contradicted(slug, kind, "mergeable") == ["mergeable"]


@pytest.mark.parametrize(("slug", "kind"), MERGEABLE)
def test_a_merge_that_does_nothing_is_caught(slug: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adapter, "merge", lambda self: setattr(self, "_kept", []))
    monkeypatch.setattr(Adapter, "unmerge", lambda self: setattr(self, "_kept", None))
    assert contradicted(slug, kind, "mergeable") == ["mergeable"]


@pytest.mark.parametrize(("slug", "kind"), ALL)
def test_a_detach_that_does_nothing_is_caught(slug: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adapter, "detach", lambda self: None)
    assert contradicted(slug, kind, "detachable") == ["detachable"]


@pytest.mark.parametrize(("slug", "kind"), MERGEABLE)
def test_an_unmerge_that_restores_nothing_is_caught(slug: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unmerge(adapter: Adapter) -> None:
        adapter._kept = None
        for change in adapter._changes:
            change.settle()

    monkeypatch.setattr(Adapter, "unmerge", unmerge)
    assert contradicted(slug, kind, "mergeable") == ["mergeable"]


@pytest.mark.parametrize(("slug", "kind"), SCALED)
def test_a_dropped_scaling_is_caught(slug: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adapter, "strength", property(lambda self: 1.0, lambda self, value: None))
    assert contradicted(slug, kind, "strength") == ["strength"]


@pytest.mark.parametrize(("slug", "kind"), ALL)
def test_a_base_weight_left_trainable_is_caught(slug: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def freeze(adapter: Adapter) -> None:
        for parameter in list(adapter.model.parameters())[1:]:
            parameter.requires_grad_(False)

    monkeypatch.setattr(Adapter, "_freeze", freeze)
    caught = contradicted(slug, kind, "trained-parameters", "only-trained-tensors-move")
    assert caught == ["trained-parameters", "only-trained-tensors-move"]
