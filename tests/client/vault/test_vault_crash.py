from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.vault import blobs
from tests.client.vaults import filled, record

ROOT = Path(__file__).parents[3]
OPERATIONS = ("add", "put_derived", "erase_subject", "erase_expired", "rotate", "note_run", "tidy")


def die_at_every(stride: int, operation: str, root: Path) -> int:
    """Number of deaths that were survived."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "client" / "vault_crashes.py"), str(root), operation, str(stride)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return int(done.stdout)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_dying_at_any_moment_loses_nothing_and_shows_no_half(operation: str, tmp_path: Path) -> None:
    assert die_at_every(13, operation, tmp_path) > 5


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_dying_at_every_line(operation: str, tmp_path: Path) -> None:
    assert die_at_every(1, operation, tmp_path) > 80


def test_files_and_their_names_are_on_disk_before_the_index_refers_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What dying cannot show: a power cut also takes what was written and not yet forced to disk."""
    events: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append("folder" if target.is_dir() else "file")
        real(descriptor)

    with filled(tmp_path, count=0) as vault:
        vault._interior.index._store.set_trace_callback(
            lambda statement: events.append(statement) if statement in {"COMMIT", "VACUUM"} else None
        )
        monkeypatch.setattr(blobs.os, "fsync", fsync)
        (record_id, _) = vault.add([record(0, "p"), record(1, "p")])
        vault.put_derived("kind", {record_id: b"x"})
        vault.erase_subject("p")
    # reads commit as well; only what is written matters
    order = [event for at, event in enumerate(events) if event != "COMMIT" or events[at - 1] != "COMMIT"]
    assert order[order.index("file") :][:4] == ["file", "file", "folder", "COMMIT"]
    assert order[order.index("file") :][4:7] == ["file", "folder", "COMMIT"]
    # the keys' traces are gone before the files are, and both before the erasure is acknowledged
    assert order[order.index("file") :][7:] == ["VACUUM", "folder", "COMMIT"]


def test_files_of_a_transaction_that_failed_while_it_was_committed_are_kept_for_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it took effect is known only after the next opening: taking the files away could lose records."""
    with filled(tmp_path) as vault:
        monkeypatch.setattr(vault._interior.index.__class__, "set_header", _fail)
        with pytest.raises(OSError, match="while committing"):
            vault.add([record(50)])
        monkeypatch.undo()
        assert len(list((tmp_path / "vault" / "blobs").iterdir())) == 6 + 4 + 1
        vault._interior.tidy()
        assert len(list((tmp_path / "vault" / "blobs").iterdir())) == 6 + 4
        assert len(vault.infos()) == 6


def _fail(*_: object) -> None:
    raise OSError("while committing")
