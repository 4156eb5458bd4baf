"""The program in processes of its own, forked from this one so that a start costs next to nothing."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORK = multiprocessing.get_context("fork")


def start(arguments: Sequence[str], err: Path | None = None) -> BaseProcess:
    """Run the program with these arguments beside the test; what it says on stderr goes into a file."""
    process = _FORK.Process(target=_run, args=(list(arguments), err), daemon=True)
    process.start()
    return process


def _run(arguments: list[str], err: Path | None) -> None:
    from catalog.cli import main

    with open(os.devnull, "w") as nothing, open(err or os.devnull, "w") as told:
        sys.stdout, sys.stderr = nothing, told
        sys.argv = ["peft-catalog", *arguments]
        try:
            main()
        except SystemExit as stop:
            told.flush()
            os._exit(int(stop.code or 0))
        os._exit(0)
