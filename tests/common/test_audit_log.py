"""The log keeps every entry, in order, signed; rewriting it shows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import audit_log
from common.audit_log import MAX_LINE_BYTES, AuditLog, Entry, genesis, verify_log
from common.crypto.primitives import Identity, Label, Secret
from common.errors import AuditLogError

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
OWNER = Identity(Secret(b"o" * 32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def filled(path: Path, entries: int = 5) -> list[bytes]:
    """A log of so many entries; its heads, the empty log's first."""
    log = AuditLog(path=path, identity=OWNER)
    return [log.head, *(log.append("contributed", {"round": i, "attempt": 0}) for i in range(entries))]


def test_an_empty_log_is_named_by_its_owner(path: Path) -> None:
    assert filled(path, 0) == [genesis(OWNER.public)]
    assert genesis(OWNER.public) != genesis(Identity.generate().public)
    assert verify_log(path, OWNER.public).entries == 0


def test_entries_come_back_in_order_and_heads_are_witnessed(path: Path) -> None:
    heads = filled(path)
    found = verify_log(path, OWNER.public, witnessed=heads)
    assert (found.entries, found.head) == (5, heads[-1])
    assert len(set(heads)) == 6
    lines = [msgspec.json.decode(line, type=Entry) for line in path.read_bytes().splitlines()]
    assert [line.details["round"] for line in lines] == [0, 1, 2, 3, 4]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_log_goes_on_after_a_restart(path: Path) -> None:
    heads = filled(path)
    log = AuditLog(path=path, identity=OWNER, now=lambda: datetime(2030, 1, 1, tzinfo=UTC))
    assert log.head == heads[-1]
    log.append("refused", {"code": "stale_session"})
    assert verify_log(path, OWNER.public, witnessed=heads).entries == 6
    assert b"2030-01-01T00:00:00+00:00" in path.read_bytes()


def test_another_key_than_the_owners_is_told_from_a_rewritten_log(path: Path) -> None:
    filled(path)
    other = Identity.generate().public
    with pytest.raises(AuditLogError, match=f"begins the log of another key than {other.hex()}.*coordinator's in"):
        verify_log(path, other)


def edit(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[bytes], bytes]:
    return lambda data: b"".join(line + b"\n" for line in change(data.splitlines()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edit(lambda lines: lines[1:]), "does not follow"),
        (edit(lambda lines: [*lines[:2], *lines[3:]]), "does not follow"),
        (edit(lambda lines: [lines[1], lines[0], *lines[2:]]), "does not follow"),
        (edit(lambda lines: [*lines, lines[-1]]), "does not follow"),
        (edit(lambda lines: [lines[0].replace(b'"round":0', b'"round":9'), *lines[1:]]), "not signed"),
        (edit(lambda lines: [lines[0].replace(b'"round":0', b'"round": 0'), *lines[1:]]), "canonical"),
        (edit(lambda lines: [lines[0][:-20], *lines[1:]]), "cannot be read"),
        (edit(lambda lines: [b"", *lines]), "cannot be read"),
        (lambda data: data[:-1], "unfinished"),
        (lambda data: data + b"x" * (MAX_LINE_BYTES + 10), "unfinished or too long"),
    ],
)
def test_an_edited_log_is_refused(path: Path, change: Callable[[bytes], bytes], reason: str) -> None:
    filled(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(AuditLogError, match=reason):
        verify_log(path, OWNER.public)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_changed_byte_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    filled(path, 2)
    whole = path.read_bytes()
    where = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:where] + bytes([whole[where] ^ data.draw(st.integers(1, 255))]) + whole[where + 1 :])
    with pytest.raises(AuditLogError):
        verify_log(path, OWNER.public)


def test_the_owner_cannot_rewrite_what_the_other_side_holds(path: Path) -> None:
    """A log that is rewritten with the real key is consistent; the heads that were sent out show it."""
    heads = filled(path)
    path.unlink()
    log = AuditLog(path=path, identity=OWNER)
    for _ in range(5):
        log.append("contributed", {"round": 77})
    assert verify_log(path, OWNER.public).entries == 5
    with pytest.raises(AuditLogError, match="rewritten"):
        verify_log(path, OWNER.public, witnessed=[heads[3]])


def test_two_histories_of_one_owner_cannot_be_spliced(path: Path, tmp_path: Path) -> None:
    filled(path)
    other = AuditLog(path=tmp_path / "other", identity=OWNER)
    for _ in range(5):
        other.append("refused", {"code": "stale_session"})
    lines = path.read_bytes().splitlines()[:3] + other.path.read_bytes().splitlines()[3:]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    with pytest.raises(AuditLogError, match="does not follow"):
        verify_log(path, OWNER.public)


def test_a_log_cut_back_to_an_earlier_head_is_found_by_a_later_one(path: Path) -> None:
    heads = filled(path)
    path.write_bytes(b"".join(line + b"\n" for line in path.read_bytes().splitlines()[:3]))
    verify_log(path, OWNER.public, witnessed=heads[:4])
    with pytest.raises(AuditLogError, match="rewritten"):
        verify_log(path, OWNER.public, witnessed=heads)


def test_a_log_of_another_owner_is_refused(path: Path) -> None:
    filled(path)
    with pytest.raises(AuditLogError):
        AuditLog(path=path, identity=Identity.generate())
    with pytest.raises(AuditLogError):
        verify_log(path, Identity.generate().public)


def test_an_entry_signed_by_somebody_else_is_refused(path: Path) -> None:
    entry = Entry(index=0, previous=genesis(OWNER.public).hex(), time="now", kind="forged", details={})
    signature = Identity.generate().sign(Label.AUDIT_ENTRY, entry.content()).hex()
    line = msgspec.json.encode(msgspec.structs.replace(entry, signature=signature), order="sorted")
    path.write_bytes(line + b"\n")
    with pytest.raises(AuditLogError, match="not signed"):
        verify_log(path, OWNER.public)


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_crash_in_mid_line_is_mended_and_written_down(path: Path, cut: int) -> None:
    heads = filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    log = AuditLog(path=path, identity=OWNER)
    last = msgspec.json.decode(path.read_bytes().splitlines()[-1], type=Entry)
    assert (last.kind, last.index) == ("recovered", 4)
    assert last.details == {"bytes_cut": len(whole.splitlines()[-1]) + 1 - cut}
    log.append("contributed", {"round": 4})
    verify_log(path, OWNER.public, witnessed=heads[:5])


def test_a_crash_in_the_first_line_leaves_an_empty_log(path: Path) -> None:
    path.write_bytes(b'{"details"')
    log = AuditLog(path=path, identity=OWNER)
    assert verify_log(path, OWNER.public).head == log.head
    assert verify_log(path, OWNER.public).entries == 1


def test_long_garbage_is_not_cut_off(path: Path) -> None:
    path.write_bytes(b"x" * (2 * MAX_LINE_BYTES))
    with pytest.raises(AuditLogError, match="unfinished or too long"):
        AuditLog(path=path, identity=OWNER)
    assert path.stat().st_size == 2 * MAX_LINE_BYTES


def test_a_second_writer_is_refused(path: Path) -> None:
    filled(path, 1)
    one, other = AuditLog(path=path, identity=OWNER), AuditLog(path=path, identity=OWNER)
    one.append("contributed", {})
    with pytest.raises(AuditLogError, match="another process"):
        other.append("contributed", {})
    assert verify_log(path, OWNER.public).entries == 2


def test_an_emptied_log_is_not_appended_to(path: Path) -> None:
    log = AuditLog(path=path, identity=OWNER)
    log.append("contributed", {})
    path.write_bytes(b"")
    with pytest.raises(AuditLogError, match="another process"):
        log.append("contributed", {})


def test_entries_too_large_or_of_odd_kind_are_refused_and_not_written(path: Path) -> None:
    log = AuditLog(path=path, identity=OWNER)
    head = log.head
    for kind, text in (("contributed", "x" * MAX_LINE_BYTES), ("Not a kind!", "")):
        with pytest.raises(AuditLogError):
            log.append(kind, {"text": text})
    assert log.head == head
    assert path.read_bytes() == b""


def test_a_log_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(AuditLogError, match="cannot be opened"):
        AuditLog(path=tmp_path / "missing" / "log", identity=OWNER)
    with pytest.raises(AuditLogError, match="cannot be read"):
        verify_log(tmp_path / "missing", OWNER.public)


def test_a_full_disk_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(path=path, identity=OWNER)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device", str(descriptor))

    monkeypatch.setattr(audit_log.os, "fsync", full)
    head = log.head
    with pytest.raises(AuditLogError, match="No space left"):
        log.append("contributed", {})
    assert log.head == head


def test_a_killed_writer_leaves_a_log_that_holds_every_acknowledged_head(path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from common.audit_log import AuditLog
        from common.crypto.primitives import Identity, Secret
        log = AuditLog(path=Path(sys.argv[1]), identity=Identity(Secret(b"o" * 32)))
        while True:
            print(log.append("contributed", {"text": "x" * 5000}).hex(), flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    heads = [bytes.fromhex(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    heads += [bytes.fromhex(line) for line in process.communicate()[0].splitlines() if len(line) == 64]
    AuditLog(path=path, identity=OWNER)
    verify_log(path, OWNER.public, witnessed=heads)
