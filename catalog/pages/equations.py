"""LaTeX to MathML, at build time: browsers draw it without a script or a font from elsewhere."""

from __future__ import annotations

from html import unescape
from xml.etree import ElementTree

from markupsafe import Markup

from catalog.errors import CatalogError
from catalog.pages.text import plain

# How many parts these elements have; the converter leaves a part out where the LaTeX lacks an argument.
_PARTS = {"mfrac": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "mroot": 2, "msubsup": 3, "munderover": 3}


def mathml(latex: str, where: str) -> Markup:
    """A display equation; its source is kept as the text that screen readers and copying fall back to."""
    source = plain(latex)
    tree = _converted(source, where)
    for node in tree.iter():
        node.text = unescape(node.text) if node.text else node.text  # it writes signs as references, and no others
        if (node.text or "").startswith("\\"):
            raise _unreadable(f"{node.text} is not known to the converter", source, where)
        if len(node) != _PARTS.get(node.tag, len(node)):
            raise _unreadable(f"an argument is missing in {node.tag}", source, where)
    tree.set("alttext", source)
    drawn = ElementTree.tostring(tree, encoding="unicode").replace("\n", " ")
    return Markup('<div class="pc-equation" role="group" aria-label="Equation {}" tabindex="0">{}</div>').format(
        source, Markup(drawn)
    )


def _converted(source: str, where: str) -> ElementTree.Element:
    try:
        from latex2mathml.converter import convert_to_element
    except ImportError as error:
        raise CatalogError(
            "drawing equations needs latex2mathml, which is not installed", hint="pip install 'peft-catalog[site]'"
        ) from error
    try:
        # As elements: the converter's own text output leaves < and & in \text{} as they are.
        tree: ElementTree.Element = convert_to_element(source, display="block")
    except Exception as error:  # beside its own exceptions it fails with IndexError, StopIteration and others
        raise _unreadable(str(error) or type(error).__name__, source, where) from error
    return tree


def _unreadable(why: str, source: str, where: str) -> CatalogError:
    return CatalogError(
        f"an equation cannot be turned into MathML: {why}",
        where=f"{where}, mechanism.latex: {source}",
        hint="keep to the LaTeX that latex2mathml reads, or say it in mechanism.equations instead",
    )
