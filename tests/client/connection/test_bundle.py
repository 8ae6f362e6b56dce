"""A bundle as a file: its name, its size, and every way of being none."""

from __future__ import annotations

import hashlib
import io
import tracemalloc
import zipfile
from typing import TYPE_CHECKING

import pytest

from client.connection.supernode import read_named
from common.errors import ProvisioningError
from common.host.app_bundle import MAX_BYTES, MAX_FILES, MAX_PACKED_BYTES, parse_bundle
from tests.client.connection.test_supernode import JOIN

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = '[project]\nname="app"\nversion="1.2.0"\n[tool.flwr.app]\npublisher="us"'


def bundle(project: str, compression: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("pyproject.toml", project)
        for name, content in more.items():
            archive.writestr(name, content)
    return stream.getvalue()


def file_name(content: bytes) -> str:
    return parse_bundle(content, source="bundle").file_name


def test_a_bundle_is_named_by_publisher_app_version_and_digest() -> None:
    content = bundle('[project]\nname="app"\nversion="1.2.0"\n[tool.flwr.app]\npublisher="us"')
    assert file_name(content) == f"us.app.1-2-0.{hashlib.sha256(content).hexdigest()[:8]}.fab"


def test_a_name_in_a_bundle_leads_to_no_other_folder() -> None:
    content = bundle('[project]\nname="app"\nversion="1"\n[tool.flwr.app]\npublisher="../../us"')
    assert "/" not in file_name(content)


@pytest.mark.parametrize("content", [b"", b"PK", bundle("= ="), bundle("[project]\nname='a'")])
def test_what_is_no_bundle_is_refused(content: bytes) -> None:
    with pytest.raises(ProvisioningError, match="not an app bundle"):
        file_name(content)


def altered(content: bytes, value: bytes, *, at: int, listed_at: int | None = None) -> bytes:
    """With other bytes at this offset of the file itself, and perhaps of its entry in the archive's list."""
    raw = bytearray(content)
    listed = raw.index(b"PK\x01\x02")
    raw[at : at + len(value)] = value
    if listed_at is not None:
        raw[listed + listed_at : listed + listed_at + len(value)] = value
    return bytes(raw)


HOSTILE = {
    "locked": altered(bundle(PROJECT), b"\x01", at=6, listed_at=8),
    "unknown compression": altered(bundle(PROJECT), b"\x63", at=8, listed_at=10),
    "compressed data that is none": altered(bundle("x=1" * 1000, zipfile.ZIP_DEFLATED), b"\xff" * 4, at=46),
    "lzma data that is none": altered(bundle("x=1" * 1000, zipfile.ZIP_LZMA), b"\xff" * 8, at=48),
    "deep nesting": bundle("x = " + "[" * 100_000),
    "a list for a table": bundle("tool = []"),
    "no text": bundle("x").replace(b"pyproject.toml", b"pyproject.t\xffml"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_told_as_any_other(what: str) -> None:
    with pytest.raises(ProvisioningError, match="not an app bundle"):
        file_name(HOSTILE[what])


def test_what_would_fill_memory_or_disk_is_refused_before_it_is_unpacked() -> None:
    bomb = bundle(PROJECT, zipfile.ZIP_DEFLATED, model=bytes(MAX_BYTES))
    project = bundle("#" * (2 << 20), zipfile.ZIP_DEFLATED)
    many = bundle(PROJECT, **{f"f{number}": b"" for number in range(MAX_FILES)})
    tracemalloc.start()
    for content in (bomb, project, many):
        with pytest.raises(
            ProvisioningError, match=r"not an app bundle: (its pyproject|more than 5000 files or 64 MiB)"
        ):
            file_name(content)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_bundle_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "bundle.fab"
    with path.open("wb") as file:
        file.truncate(MAX_PACKED_BYTES + 1)
    with pytest.raises(ProvisioningError, match="more than 16 MiB"):
        read_named(path, JOIN)
    with pytest.raises(ProvisioningError, match="cannot be read"):
        read_named(tmp_path / "none", JOIN)
    path.write_bytes(b"other")
    with pytest.raises(ProvisioningError, match="the join file names"):
        read_named(path, JOIN)
