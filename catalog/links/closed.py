"""Sites known to have closed: their addresses are dead without being asked."""

from __future__ import annotations

from catalog.lists.addresses import is_on

CLOSED_SINCE = {"paperswithcode.com": "2025-07"}
"""Host -> when it closed. Papers with Code failed from June 2025 on, and led to other sites from 2025-07-25:
https://github.com/paperswithcode/paperswithcode-data/issues/45"""


def closed_since(url: str) -> str | None:
    """When the site of an address closed; None for one that has not."""
    return next((since for host, since in CLOSED_SINCE.items() if is_on(url, (host,))), None)
