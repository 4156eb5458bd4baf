"""Parameter formulas: arithmetic over named numbers, evaluated without running any code of an entry file."""

from __future__ import annotations

import ast
import difflib
import math
import operator
from collections.abc import Callable, Mapping

from catalog.errors import FormulaError

Number = int | float

MAX_LENGTH = 500
MAX_POWER = 64
MAX_VALUE = 10**30

_OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "min": min,
    "max": max,
    "ceil": math.ceil,
    "floor": math.floor,
    "round": round,
}
ALLOWED = "numbers, names, + - * / // % **, parentheses and min max ceil floor round"


def evaluate(text: str, variables: Mapping[str, object]) -> int:
    """The whole number that a formula such as 'L * 2 * rank * 2 * d' gives for these variables."""
    value = _value(_parse(text), text, variables)
    rounded = round(value)
    if abs(value - rounded) > 1e-6:
        raise FormulaError(
            f"the formula gives {value}, which is not a whole number",
            where=text,
            hint="round it with floor() or ceil(), whichever the method does",
        )
    return rounded


def numbers(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings as a formula sees them: lists by their length."""
    return {name: len(value) if isinstance(value, list | tuple) else value for name, value in settings.items()}


def names(text: str) -> set[str]:
    """The variables that a formula uses."""
    tree = _parse(text)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(_FUNCTIONS)


def _parse(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"the formula is longer than {MAX_LENGTH} characters", where=f"{text[:60]}...")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FormulaError("the formula cannot be read", where=text, allowed=ALLOWED) from error


def _value(node: ast.expr, text: str, variables: Mapping[str, object]) -> Number:
    match node:
        case ast.Constant(value=value) if isinstance(value, int | float) and not isinstance(value, bool):
            result: Number = value
        case ast.Name(id=name):
            result = _variable(name, text, variables)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -_value(operand, text, variables)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            result = _power(_value(left, text, variables), _value(right, text, variables), text)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            result = _operate(type(sign), _value(left, text, variables), _value(right, text, variables), text)
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as arguments, keywords=[]) if name in _FUNCTIONS:
            result = _call(name, [_value(argument, text, variables) for argument in arguments], text)
        case _:
            raise FormulaError(
                f"the formula contains {ast.unparse(node)!r}, which is not arithmetic",
                where=text,
                allowed=ALLOWED,
            )
    if not abs(result) < MAX_VALUE:
        raise FormulaError("the formula gives a number that is too large", where=text)
    return result


def _variable(name: str, text: str, variables: Mapping[str, object]) -> Number:
    value = variables.get(name)
    if isinstance(value, int | float):
        return value
    if name in variables:
        raise FormulaError(f"{name} is {value!r} here, not a number", where=text)
    near = difflib.get_close_matches(name, variables, n=2, cutoff=0.5)
    raise FormulaError(
        f"the formula uses {name!r}, which has no value",
        where=text,
        allowed=sorted(variables),
        hint=f"did you mean {' or '.join(near)}?" if near else None,
    )


def _operate(sign: type[ast.operator], left: Number, right: Number, text: str) -> Number:
    try:
        return _OPERATORS[sign](left, right)
    except ZeroDivisionError as error:
        raise FormulaError("the formula divides by zero", where=text) from error


def _power(base: Number, exponent: Number, text: str) -> Number:
    if abs(exponent) > MAX_POWER:
        raise FormulaError(f"the formula has a power above {MAX_POWER}", where=text)
    try:
        result = base**exponent
    except (ZeroDivisionError, OverflowError) as error:
        raise FormulaError("the formula has a power that cannot be computed", where=text) from error
    if isinstance(result, complex):
        raise FormulaError("the formula takes a root of a negative number", where=text)
    return result


def _call(name: str, arguments: list[Number], text: str) -> Number:
    if len(arguments) > 1 and name not in ("min", "max"):
        raise FormulaError(f"{name}() takes one number", where=text)
    if len(arguments) == 1 and name in ("min", "max"):
        return arguments[0]
    return _FUNCTIONS[name](*arguments)
