"""A file is written whole or not at all."""

import os

import pytest

from autoquant.core.errors import RunError
from autoquant.core.files import atomic_write_bytes, atomic_write_text, file_sha256


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    atomic_write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    assert file_sha256(path) == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"

    def broken(_fd):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(RunError, match="Input/output error"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == "é".encode()
    assert os.listdir(path.parent) == ["file"]
