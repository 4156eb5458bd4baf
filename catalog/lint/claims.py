"""Claimed parameter counts can be computed, and give what the papers report."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from catalog.dimensions import MODELS, Dimensions
from catalog.errors import CatalogError
from catalog.formula import evaluate, names, numbers
from catalog.lint.core import Collection, Finding

_DIMENSIONS = set(Dimensions("encoder", 1, 1, 1, 1, 1).variables())


def formula_readable(collection: Collection) -> Iterator[Finding]:
    """A formula is arithmetic over dimensions and named hyperparameters."""
    for file in collection.files:
        claims = file.entry.claims
        if claims.parameters is None:
            continue
        try:
            unknown = names(claims.parameters) - _DIMENSIONS - set(claims.defaults) - set(claims.hyperparameters)
        except CatalogError as error:
            yield file.finding("formula-readable", "claims.parameters", error.message, claims.parameters, error.allowed)
            continue
        for name in sorted(unknown):
            message = f"uses {name!r}, which is no dimension and has no default"
            allowed = sorted(_DIMENSIONS | set(claims.defaults))
            yield file.finding("formula-readable", "claims.parameters", message, claims.parameters, allowed)


def reported_model_known(collection: Collection) -> Iterator[Finding]:
    """A reported count is at a model whose dimensions are known."""
    for file in collection.files:
        for index, count in enumerate(file.entry.claims.counts):
            if count.at not in MODELS:
                yield file.finding(
                    "reported-model-known", f"claims.counts[{index}].at", "names no model", count.at, MODELS
                )


def reported_count_follows(collection: Collection) -> Iterator[Finding]:
    """A reported count is what the formula gives at that model."""
    for file in collection.files:
        claims = file.entry.claims
        for index, count in enumerate(claims.counts):
            if claims.parameters is None or count.at not in MODELS:
                continue
            settings = {**claims.defaults, **count.hyperparameters}
            variables = {**MODELS[count.at].variables(), **numbers(settings)}
            key = f"claims.counts[{index}].trained"
            try:
                computed = evaluate(claims.parameters, variables)
            except CatalogError as error:
                allowed = error.allowed or f"a formula with a value at {count.at}"
                yield file.finding("reported-count-follows", key, error.message, claims.parameters, allowed)
                continue
            if computed != count.trained:
                message = f"differs from the formula {claims.parameters!r}"
                yield file.finding("reported-count-follows", key, message, f"{count.trained:,}", f"{computed:,}")


def hyperparameter_is_keyword(collection: Collection) -> Iterator[Finding]:
    """Hyperparameters are keywords that Python accepts, since attach() takes them."""
    for file in collection.files:
        claims = file.entry.claims
        for key in ("hyperparameters", "defaults"):
            for name in getattr(claims, key):
                if not name.isidentifier() or name in ("self", "model") or not _parses(f"f({name}=1)"):
                    message = "is no keyword argument"
                    yield file.finding("hyperparameter-is-keyword", f"claims.{key}", message, name, "rank, alpha ...")


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True
