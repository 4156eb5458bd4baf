"""What every method with a change for each task keeps: merging for one of them, and batches that say theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reference_impls.adapter import AdapterError
from reference_impls.backbones import Backbone, Batch
from reference_impls.tasks import PerTask


def assert_merges_for_one_task(model: Backbone, adapter: PerTask, batch: Batch) -> None:
    """Exact for the examples of task 3, and for no others; unmerged, every example has its own task again."""
    assert batch.task_ids is not None
    alone, mine = model(batch), batch.task_ids == 3
    assert mine.tolist() == [False, True, False, False, True, True]
    with pytest.raises(AdapterError, match=r"set adapter\.task"):
        adapter.merge()
    for strength in (1.0, -0.5):
        adapter.strength, adapter.task = strength, 3
        before = model(batch)
        adapter.merge()
        with pytest.raises(AdapterError, match="unmerge"):
            adapter.task = 1
        assert torch.allclose(model(batch), before, rtol=0, atol=1e-11)
        if strength == 1.0:
            assert torch.allclose(model(batch)[mine], alone[mine], rtol=0, atol=1e-11)
            assert not torch.allclose(model(batch)[~mine], alone[~mine], rtol=0, atol=1e-3)
        adapter.unmerge()
    adapter.strength, adapter.task = 1.0, None
    assert torch.equal(model(batch), alone)


def assert_tasks_are_asked_for(model: Backbone, adapter: PerTask, batch: Batch, layer: Any) -> None:
    """A batch without ids, with unknown ones, or of another size than the layer's is refused, as is an unknown task."""
    with pytest.raises(AdapterError, match="no task_ids"):
        model(Batch(batch.inputs, batch.targets))
    for ids in ([0, 4], [-1, 0]):
        with pytest.raises(AdapterError, match="known: 0 to 3"):
            model(Batch(batch.inputs[:2], batch.targets[:2], task_ids=torch.tensor(ids)))
    for task in (-1, 4):
        with pytest.raises(AdapterError, match="known: 0 to 3"):
            adapter.task = task
    with pytest.raises(AdapterError, match="4 examples and task_ids of 3"):
        layer(torch.zeros(4, 5, 12).double())
