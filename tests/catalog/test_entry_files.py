"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from catalog.errors import CatalogError
from catalog.files import write_atomic


def test_text_and_bytes_are_written_as_they_are(tmp_path):
    path = tmp_path / "folder" / "file"
    write_atomic(path, "ä\nb\n")
    assert path.read_bytes() == "ä\nb\n".encode()
    write_atomic(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "file", "old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CatalogError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stands_until_the_new_one_takes_its_name(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "file", "old")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CatalogError, match="Input/output error"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_keeps_its_permissions_and_a_new_one_follows_the_umask(tmp_path):
    path = write_atomic(tmp_path / "file", "old")
    assert path.stat().st_mode & 0o077 == 0o066 & ~current_umask()
    path.chmod(0o640)
    write_atomic(path, "new")
    assert path.stat().st_mode & 0o777 == 0o640


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_folder_that_cannot_be_made_is_an_error_for_people(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CatalogError, match="cannot write"):
        write_atomic(tmp_path / "file" / "below", "y")
