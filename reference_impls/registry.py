"""Finds implementations by the name of their entry; imports a method's file only when it is asked for."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn

    from reference_impls.adapter import Adapter

CATEGORIES = ("selective", "additive", "prompt", "reparameterized", "hybrid")


def methods() -> dict[str, str]:
    """Slug of every implemented method -> its module's name, in the order of the folders.

    A file whose name begins with an underscore is a second part of the method it is named after.
    """
    root = Path(__file__).parent
    return {
        path.stem.replace("_", "-"): f"reference_impls.{category}.{path.stem}"
        for category in CATEGORIES
        for path in sorted((root / category).glob("*.py"))
        if not path.stem.startswith("_")
    }


def load(slug: str) -> ModuleType:
    """The module that implements ``slug``; KeyError with near misses when there is none."""
    known = methods()
    if slug not in known:
        near = difflib.get_close_matches(slug, known, n=3) or sorted(known)
        raise KeyError(f"no implementation named {slug!r}; known: {', '.join(near)}")
    return import_module(known[slug])


def attach(slug: str, model: nn.Module, **hyperparameters: Any) -> Adapter:
    """Attach the method ``slug`` to ``model``, in place."""
    adapter: Adapter = load(slug).attach(model, **hyperparameters)
    return adapter
