"""Where arXiv is and how it is asked; tests and mirrors point these elsewhere."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from catalog.errors import UsageError

URL_VARIABLE = "PEFT_CATALOG_ARXIV_URL"
PACE_VARIABLE = "PEFT_CATALOG_ARXIV_PACE"
TIMEOUT_VARIABLE = "PEFT_CATALOG_ARXIV_TIMEOUT"
STATE_VARIABLE = "PEFT_CATALOG_STATE"
QUERY = "https://export.arxiv.org/api/query"
OAI = "https://oaipmh.arxiv.org/oai"
PACE = 3.0
"""Seconds between two requests that arXiv's terms ask for, over all of its interfaces together."""


@dataclass(frozen=True)
class Settings:
    """Addresses of the two interfaces; seconds between requests, for one answer, and of patience in all."""

    query: str = QUERY
    oai: str = OAI
    pace: float = PACE
    connect_timeout: float = 15.0
    read_timeout: float = 30.0
    answer_timeout: float = 120.0
    patience: float = 900.0
    tries: int = 5
    most_bytes: int = 64 * 2**20

    @property
    def real(self) -> bool:
        """Whether this is arXiv itself."""
        return any(on_arxiv(address) for address in (self.query, self.oai))

    @property
    def site(self) -> str:
        """What is asked, as the name of a file; all of arXiv's hosts are one."""
        return "arxiv.org" if self.real else re.sub(r"[^\w.-]", "_", urlsplit(self.query).netloc)


def on_arxiv(address: str) -> bool:
    """Whether an address is on arXiv's own hosts."""
    host = urlsplit(address).hostname or ""
    return host == "arxiv.org" or host.endswith(".arxiv.org")


def settings(base: str | None = None) -> Settings:
    """From ``base``, else $PEFT_CATALOG_ARXIV_URL, else arXiv itself; UsageError for what is no address.

    $PEFT_CATALOG_ARXIV_PACE sets the seconds between requests; below three they are for other servers only.
    $PEFT_CATALOG_ARXIV_TIMEOUT sets the seconds for one whole answer.
    """
    chosen = base or os.environ.get(URL_VARIABLE)
    query, oai = (f"{_base(chosen)}/api/query", f"{_base(chosen)}/oai") if chosen else (QUERY, OAI)
    longest = _seconds(TIMEOUT_VARIABLE, Settings.answer_timeout)
    found = Settings(
        query,
        oai,
        pace=_seconds(PACE_VARIABLE, PACE),
        connect_timeout=min(Settings.connect_timeout, longest),
        read_timeout=min(Settings.read_timeout, longest),
        answer_timeout=longest,
    )
    if found.real and found.pace < PACE:
        raise UsageError(
            f"{found.pace:g} seconds between requests are fewer than arXiv's terms allow",
            where=PACE_VARIABLE,
            allowed=f"{PACE:g} or more",
        )
    return found


def state_folder() -> Path:
    """Where the time of the last request is kept: $PEFT_CATALOG_STATE, else the user's folder for such things."""
    chosen = os.environ.get(STATE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_state_dir("peft-catalog", appauthor=False))


def _base(address: str) -> str:
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if not usable or (on_arxiv(address) and parts.scheme != "https"):
        raise UsageError(
            f"{address!r} is no address of an arXiv server",
            where=f"--arxiv-url or {URL_VARIABLE}",
            allowed="https://host or http://host:port; arXiv itself by https only",
            hint="leave it out to ask arXiv",
        )
    return address.rstrip("/")


def _seconds(variable: str, default: float) -> float:
    given = os.environ.get(variable, "")
    try:
        seconds = float(given) if given else default
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise UsageError(f"{given!r} is no number of seconds", where=variable, allowed="0 to 3600")
    return seconds
