"""Methods on the convolutions of the small U-Net, away from the attention that they are measured on."""

from __future__ import annotations

from collections.abc import Callable

import torch

from reference_impls.adapter import Adapter
from reference_impls.backbones import Backbone, pretrained
from reference_impls.claims.removal import differences

CONVOLUTIONS_OF_THE_UNET = ["conv1", "conv2", "shrink", "grow"]
"""Padded by one: at full and at half resolution, between them with a stride of 2, and back."""


def assert_trained_merged_and_detached(attach: Callable[[Backbone], Adapter]) -> None:
    """A few steps lower the loss; merged, unmerged and detached, all is as it should be."""
    model = pretrained("unet").double()
    batches = [model.batch(i, count=8).to(dtype=torch.float64) for i in range(15)]
    batch = model.batch(500).to(dtype=torch.float64)
    with torch.no_grad():
        before = model.loss(batch)
        adapter = attach(model)
        assert len(adapter.sites()) == 8
        with torch.enable_grad():
            adapter.fit(batches)
        assert model.loss(batch) < 0.95 * before
        trained = model(batch)
        adapter.merge()
        assert torch.allclose(model(batch), trained, rtol=0, atol=1e-10)
        adapter.unmerge()
        assert torch.equal(model(batch), trained)
        adapter.detach()
    assert differences(model, pretrained("unet").double()) == []
