"""Text from papers and lists on a terminal: untrusted, so that nothing in it may steer the screen."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_UNUSUAL = re.compile(r"[^\n -~]")


def clean(text: str) -> str:
    """The text without control and formatting characters (escape sequences, direction overrides); newlines stay."""
    return _UNUSUAL.sub(lambda sign: sign[0] if harmless(sign[0]) else "�", text)


def escaped(document: str) -> str:
    """A JSON document in which those characters are written as escapes, so that it means what it meant."""
    return _UNUSUAL.sub(lambda sign: sign[0] if harmless(sign[0]) else json.dumps(sign[0])[1:-1], document)


def harmless(sign: str) -> bool:
    """Whether a terminal only shows it."""
    return unicodedata.category(sign) not in ("Cc", "Cf", "Cs")


def cell(value: object) -> str:
    """A value for a table: clean, and with rich's markup switched off."""
    from rich.markup import escape

    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(clean(str(value)))


def console() -> Console:
    """Where tables go: as wide as the terminal, or wide enough for a file."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)
