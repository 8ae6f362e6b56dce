from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.errors import CheckpointError, RoundFailed
from server.run.attempts import FILE, AttemptJournal

if TYPE_CHECKING:
    from pathlib import Path


def test_what_was_recorded_is_never_free_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "attempts.json"
    first = AttemptJournal(path, most=10)
    first.record(1, 0)
    first.record(2, 0)
    first.record(2, 1)
    again = AttemptJournal(path, most=10)
    assert [again.free_attempt(number) for number in (1, 2, 3)] == [1, 2, 0]
    assert again.sent == 3
    with pytest.raises(RoundFailed, match="sent before"):
        again.record(2, 1)


def test_no_more_attempts_are_sent_than_the_noise_is_sized_for(tmp_path: Path) -> None:
    journal = AttemptJournal(tmp_path / "attempts.json", most=2)
    journal.record(1, 0)
    journal.record(1, 1)
    with pytest.raises(RoundFailed, match="sized for 2 attempts"):
        journal.record(2, 0)
    assert AttemptJournal(tmp_path / "attempts.json", most=2).sent == 2


def test_skipped_attempts_count_as_sent(tmp_path: Path) -> None:
    journal = AttemptJournal(tmp_path / "attempts.json", most=9)
    journal.record(1, 3)
    assert journal.sent == 4


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"1": "x"}', b"[1]", b'{"1": -5, "3": 2}', b'{"1": 0}', b'{"-3": 2}', b'{"1": "\xff"}']
)
def test_a_damaged_journal_stops_the_run(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "attempts.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="nobody knows what was asked"):
        AttemptJournal(path, most=3)


def test_no_round_before_one_that_was_asked_for_comes_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = AttemptJournal(tmp_path / FILE, most=10)
    assert journal.next_round(0) == 1
    for number in (1, 2, 3):
        journal.record(number, 0)
    assert journal.next_round(3) == 4
    assert journal.next_round(2) == 3
    assert not caplog.text
    assert AttemptJournal(tmp_path / FILE, most=10).next_round(1) == 3
    assert "rounds 2 to 2 are lost" in caplog.text
