"""Display equations are LaTeX that can be rendered."""

from __future__ import annotations

import re
from collections.abc import Iterator

from catalog.lint.core import Collection, Finding

_ESCAPED = re.compile(r"\\[\\{}$]")
_ENVIRONMENT = re.compile(r"\\(begin|end)\{(\w+\*?)\}")


def latex_balanced(collection: Collection) -> Iterator[Finding]:
    """Braces, \\left and \\right, \\begin and \\end come in pairs; no dollar signs, the equation is display math."""
    for file in collection.files:
        for index, equation in enumerate(file.entry.mechanism.latex):
            fault = _fault(equation)
            if fault:
                yield file.finding("latex-balanced", f"mechanism.latex[{index}]", fault, equation, "balanced LaTeX")


def _fault(equation: str) -> str | None:
    plain = _ESCAPED.sub("", equation)
    if "$" in plain:
        return "has a dollar sign"
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            break
    if depth:
        return "has unbalanced braces"
    if len(re.findall(r"\\left(?![a-z])", equation)) != len(re.findall(r"\\right(?![a-z])", equation)):
        return r"has a \left without \right"
    open_: list[str] = []
    for action, name in _ENVIRONMENT.findall(equation):
        if action == "begin":
            open_.append(name)
        elif not open_ or open_.pop() != name:
            return f"ends {name}, which is not open"
    return f"does not end {open_[-1]}" if open_ else None
