"""Text from papers and lists on a terminal: untrusted, so that nothing in it may steer the screen."""

from __future__ import annotations

import unicodedata


def clean(text: str) -> str:
    """The text without control and formatting characters (escape sequences, direction overrides); newlines stay."""
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "�" for c in text)


def cell(value: object) -> str:
    """A value for a table: clean, and with rich's markup switched off."""
    from rich.markup import escape

    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(clean(str(value)))
