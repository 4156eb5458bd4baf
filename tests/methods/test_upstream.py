"""What entries say that libraries ship is what the installed packages have, and what they have is named somewhere."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import version

import pytest

from catalog.entry import load_entries
from catalog.upstream import upstream

CONFIG = re.compile(r"\b\w+Config\b")


def shipped() -> set[str]:
    """Configuration classes of all method types of the installed peft."""
    mapping = pytest.importorskip("peft.mapping")
    return {config.__name__ for config in mapping.PEFT_TYPE_TO_CONFIG_MAPPING.values()}


def named() -> set[str]:
    """Configuration classes of peft that entries name."""
    return {name for entry in load_entries() for name in CONFIG.findall(entry.libraries.get("peft", ""))}


def test_every_method_type_of_peft_has_an_entry_or_is_listed_as_missing() -> None:
    (peft,) = (each for each in upstream() if each.library == "peft")
    assert shipped() - named() == set(peft.not_catalogued)
    assert list(peft.not_catalogued) == sorted(peft.not_catalogued)


def test_the_version_is_the_one_installed() -> None:
    pytest.importorskip("peft")
    assert {each.library: version(each.library) for each in upstream()} == {e.library: e.version for e in upstream()}


def test_every_class_of_peft_that_an_entry_names_exists() -> None:
    peft = pytest.importorskip("peft")
    words = {entry.slug: entry.libraries["peft"] for entry in load_entries() if "peft" in entry.libraries}
    missing = {
        slug: name
        for slug, text in words.items()
        for name in CONFIG.findall(text)
        if not (hasattr(peft, name) or name == "BitsAndBytesConfig")  # that one is of transformers
    }
    assert missing == {}
    assert all(CONFIG.search(text) for text in words.values())


def test_every_module_of_lycoris_that_an_entry_names_exists() -> None:
    pytest.importorskip("lycoris")
    names = [entry.libraries["lycoris-lora"] for entry in load_entries() if "lycoris-lora" in entry.libraries]
    assert names
    assert [n for n in names if importlib.util.find_spec(f"lycoris.modules.{n.replace('-', '_')}") is None] == []
