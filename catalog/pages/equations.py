"""LaTeX to MathML, at build time: browsers draw it without a script or a font from elsewhere."""

from __future__ import annotations

from xml.etree import ElementTree

from markupsafe import Markup, escape

from catalog.errors import CatalogError
from catalog.pages.text import plain

_NAMESPACE = "http://www.w3.org/1998/Math/MathML"


def mathml(latex: str, where: str) -> Markup:
    """A display equation; its source is kept as the text that screen readers without MathML, and copying, fall back to."""
    from latex2mathml.converter import convert

    source = plain(latex)
    try:
        tree = ElementTree.fromstring(convert(source, display="block"))
    except Exception as error:  # the converter has no exception of its own: it fails in a dozen ways
        raise CatalogError(
            f"an equation cannot be turned into MathML: {error or type(error).__name__}",
            where=f"{where}, mechanism.latex: {source}",
            hint="keep to the LaTeX that latex2mathml reads, or say it in mechanism.equations instead",
        ) from error
    unknown = [node.text for node in tree.iter() if (node.text or "").startswith("\\")]
    if unknown:
        raise CatalogError(
            f"an equation uses LaTeX that the converter does not know: {unknown[0]}",
            where=f"{where}, mechanism.latex: {source}",
        )
    ElementTree.register_namespace("", _NAMESPACE)
    tree.set("alttext", source)
    drawn = ElementTree.tostring(tree, encoding="unicode").replace("\n", " ")
    return Markup('<div class="pc-equation" role="group" aria-label="Equation {}" tabindex="0">{}</div>').format(
        escape(source), Markup(drawn)
    )
