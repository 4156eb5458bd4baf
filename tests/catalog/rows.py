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


ARXIV = {
    "arxiv": "2106.09685",
    "version": 2,
    "title": "LoRA",
    "authors": "[]",
    "abstract": "",
    "categories": "cs.CL",
    "published": "2021-06-17",
    "updated": "2021-10-16",
    "withdrawn": False,
    "fetched": "2026-11-24",
}
