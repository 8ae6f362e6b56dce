"""Identities on disk: private to their owner, never overwritten, and never quoted."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from common.crypto.identity_file import create_identity_file, read_identity_file
from common.errors import CryptoError

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_written_is_read_back_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "identity"
    made = create_identity_file(path)
    assert read_identity_file(path).public == made.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    made = create_identity_file(path)
    with pytest.raises(CryptoError, match="not overwritten"):
        create_identity_file(path)
    assert read_identity_file(path).public == made.public


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    create_identity_file(path)
    path.chmod(0o640)
    with pytest.raises(CryptoError, match="chmod 600"):
        read_identity_file(path)


@pytest.mark.parametrize("content", [b"", b"zz" * 32, b"ab" * 31, b"ab" * 33, b"\xff" * 64, b"ab" * 32 + b"\n\n"])
def test_anything_else_is_refused_without_being_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(CryptoError) as caught:
        read_identity_file(path)
    assert not content.strip() or content.decode("latin-1").strip() not in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CryptoError, match="cannot be read"):
        read_identity_file(tmp_path / "nothing")
