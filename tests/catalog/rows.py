"""Rows as measurements and fetches would store them."""

from __future__ import annotations

from typing import Any


def evidence_row(slug: str, **change: Any) -> dict[str, Any]:
    """A measured claim."""
    return {
        "slug": slug,
        "backbone": "decoder",
        "claim": "mergeable",
        "status": "verified",
        "expected": "yes",
        "measured": "yes",
        "torch": "2.13.0",
        "date": "2026-11-24",
    } | change


def bench_row(slug: str, **change: Any) -> dict[str, Any]:
    """A benchmark run."""
    return {"slug": slug, "backbone": "decoder", "device": "cpu", "trained": 1024, "step_ratio": 2.5} | change


ARXIV_STATEMENT = {
    "id": 1,
    "arxiv": "2106.09685",
    "version": 2,
    "as_of": "2026-11-24T00:00:00Z",
    "source": "query",
    "datestamp": "",
    "digest": "d",
    "record": "{}",
}
ARXIV_RECORD = {
    "arxiv": "2106.09685",
    "version": 2,
    "title": "LoRA",
    "published": "2021-06-17T00:00:00Z",
    "updated": "2021-10-16T00:00:00Z",
    "state": "listed",
    "as_of": "2026-11-24T00:00:00Z",
    "statement_id": 1,
}
"""What arXiv said, and the record that points to it."""
