"""Right on every device and in half precision, checked without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reference_impls.adapter import Adapter
from reference_impls.backbones import Batch
from reference_impls.claims.trial import Measurement, Trial, judge, like


class OneDevice(TorchDispatchMode):
    """Rejects every operation that mixes devices or creates a tensor on another than ``device``."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            # A zero-dimensional CPU tensor is a number to torch and allowed everywhere.
            if isinstance(value, Tensor) and value.device.type != self.device and value.ndim > 0:
                raise RuntimeError(f"{func} touched a tensor on {value.device}, the model is on {self.device}")
        return result


def device_dtype(trial: Trial) -> Measurement:
    """Forward and backward after a move to the meta device touch no other; in bfloat16 all stays bfloat16."""
    faults = []
    model, adapter = trial.fresh(torch.float32)
    model.to("meta")
    batch = like(model, model.batch(3))
    try:
        with OneDevice("meta"):
            step(adapter, batch)
    except RuntimeError as error:
        faults.append(f"meta: {error}")
    model, adapter = trial.fresh(torch.float32)
    model.to(torch.bfloat16)
    try:
        loss = step(adapter, like(model, model.batch(3)))
        wrong = [n for n, p in adapter.named_parameters() if p.grad is not None and p.grad.dtype != torch.bfloat16]
        if not torch.isfinite(loss):
            faults.append("bfloat16: the loss is not finite")
        faults += [f"bfloat16: {n} is in another precision" for n in wrong]
    except RuntimeError as error:
        faults.append(f"bfloat16: {error}")
    return judge(
        "device-dtype",
        not faults,
        expected="one device, one precision",
        measured="one device, one precision" if not faults else f"{len(faults)} faults",
        detail="; ".join(faults[:2])[:300],
        dtype="float32 on meta, bfloat16",
    )


def step(adapter: Adapter, batch: Batch) -> Tensor:
    """One forward and, where something is trained by gradient, one backward pass."""
    loss = adapter.loss(batch)
    if adapter.parameters():
        loss.backward()
    return loss
