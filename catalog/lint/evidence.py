"""What an entry rests on, and who departs from the paper, is said so that it can be looked up."""

from __future__ import annotations

import re
from collections.abc import Iterator

from catalog.lint.core import Collection, Finding
from catalog.taxonomy import Fidelity

_TEST = re.compile(r"^tests/[\w/]+\.py::test_\w+(\[[^\]]+\])?$")


def reconstruction_is_explained(collection: Collection) -> Iterator[Finding]:
    """A reconstruction says in its note what was filled in."""
    for file in collection.files:
        fidelity = file.entry.fidelity
        if fidelity and fidelity.basis is Fidelity.RECONSTRUCTION and fidelity.note is None:
            message = "is missing for a reconstruction"
            allowed = "what was filled in, and what it rests on"
            yield file.finding("reconstruction-is-explained", "fidelity.note", message, "nothing", allowed)


def deviation_names_version(collection: Collection) -> Iterator[Finding]:
    """A library that departs from the paper is named with its version: the next one may not."""
    libraries = {library for file in collection.files for library in file.entry.libraries}
    for file in collection.files:
        for index, deviation in enumerate(file.entry.deviations):
            library, _, version = deviation.who.partition(" ")
            if library in libraries and not re.match(r"\d", version):
                key, allowed = f"deviations[{index}].who", f"'{library} 1.2.3', the version that was looked at"
                yield file.finding("deviation-names-version", key, "names no version", deviation.who, allowed)


def deviation_test_well_formed(collection: Collection) -> Iterator[Finding]:
    """The test that shows a deviation is named as pytest names it."""
    for file in collection.files:
        for index, deviation in enumerate(file.entry.deviations):
            if deviation.test is not None and not _TEST.match(deviation.test):
                key, allowed = f"deviations[{index}].test", "tests/methods/test_slug.py::test_name"
                yield file.finding("deviation-test-well-formed", key, "is no test id", deviation.test, allowed)
