"""A stand-in for arXiv on loopback: both interfaces, the catalog's own facts, and every misbehavior on demand.

    from tests.standin import StandIn, papers

    with StandIn(papers.catalogued()) as arxiv:
        arxiv.misbehave("rate text", times=2)
        ...                      # run a command with --arxiv-url arxiv.url
        arxiv.log                # every request: when, what, how many at once

By hand: python -m tests.standin --help
"""

from tests.standin.server import Logged, StandIn

__all__ = ["Logged", "StandIn"]
