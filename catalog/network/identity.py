"""Who is asking: an honest User-Agent with a way to reach the person behind it."""

from __future__ import annotations

import os
import re
from importlib.metadata import version

from catalog.errors import UsageError

CONTACT_VARIABLE = "PEFT_CATALOG_CONTACT"
_CONTACT = re.compile(r"^[!-~]+@[!-~]+$|^https?://[!-~]+$")


def contact() -> str | None:
    """The mail or web address of who runs this program, from $PEFT_CATALOG_CONTACT; UsageError for anything else."""
    given = os.environ.get(CONTACT_VARIABLE, "").strip()
    if not given:
        return None
    if not _CONTACT.match(given) or any(sign in given for sign in "()<>"):
        raise UsageError(
            f"{given!r} is no address at which you can be reached",
            where=CONTACT_VARIABLE,
            allowed="a mail address, or a web address that starts with https://",
        )
    return given


def user_agent() -> str:
    """Program, version and contact."""
    return f"peft-catalog/{version('peft-catalog')} ({contact() or 'no contact given'})"
