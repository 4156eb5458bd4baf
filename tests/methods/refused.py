"""What every method does with arguments that make no sense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from reference_impls.adapter import Adapter, AdapterError
from reference_impls.backbones import pretrained
from reference_impls.claims.removal import differences


def assert_refused(attach: Callable[..., Adapter], keywords: Mapping[str, Any], message: str) -> None:
    """An AdapterError with this message, and a small decoder that is as it was: modules, hooks, flags and bits."""
    model = pretrained("decoder")
    with pytest.raises(AdapterError, match=message):
        attach(model, **keywords)
    assert differences(model, pretrained("decoder")) == []
