"""How many parameters a method trains on a well-known model, by the formula of its entry."""

from __future__ import annotations

from catalog.dimensions import model as dimensions_of
from catalog.entry import Entry
from catalog.errors import FormulaError
from catalog.formula import evaluate, numbers


def trained_at(entry: Entry, model: str) -> int | None:
    """An entry's formula at a model's dimensions and the paper's usual setting; None without a formula, for a model
    of another kind, or where the formula needs a setting the entry does not give."""
    formula, dimensions = entry.claims.parameters, dimensions_of(model)
    kinds = {str(kind) for kind in entry.claim_backbones}
    if formula is None or not kinds & {dimensions.kind, "mlp"}:
        return None
    given = {**entry.claims.hyperparameters, **entry.claims.defaults}
    try:
        return evaluate(formula, {**dimensions.variables(), **numbers(given)})
    except FormulaError:
        return None
