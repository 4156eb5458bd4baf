"""Every method's claims as tests: `pytest -k lora` runs one method's.

`pytest tests/methods --record-parity` writes how far libraries are from the implementations here.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pytest
import torch

from .parity import NOTED

torch.set_num_threads(1)

LIBRARIES = {"peft": "peft", "lycoris": "lycoris-lora", "loralib": "loralib"}
"""Word in the name of a test that compares with a library -> the library's name."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table of parity, where it was asked for."""
    if session.config.getoption("--record-parity"):
        from catalog import evidence

        evidence.record("parity", compared(), ("slug", "library"))


def compared() -> Iterator[dict[str, Any]]:
    """One row a method and library: the largest differences over all cases."""
    found: dict[tuple[str, str], list[tuple[str, float, float]]] = {}
    for test, outputs, gradients in NOTED:
        file, _, name = test.partition("::")
        slug = file.rpartition("/")[2].removeprefix("test_").removesuffix(".py").replace("_", "-")
        for word in LIBRARIES:
            if word in name:
                found.setdefault((slug, LIBRARIES[word]), []).append((test, outputs, gradients))
    for (slug, library), cases in found.items():
        yield {
            "slug": slug,
            "library": library,
            "version": version(library),
            "cases": len(cases),
            "outputs": max(outputs for _, outputs, _ in cases),
            "gradients": max(gradients for _, _, gradients in cases),
            "tests": sorted({test.partition("[")[0] for test, _, _ in cases}),
            "torch": torch.__version__,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
