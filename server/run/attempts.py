"""Which attempts were sent: written down before anybody is asked, so that none is ever sent twice.

With privacy an institution answers a repeated request with fresh noise over a fresh sample. Two answers to one request
would cost twice and be counted once, and a resumed run would not know of the first.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from common.durable_files import write_atomically
from common.errors import CheckpointError, RoundFailed

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "attempts.json"
_Round = Annotated[int, Meta(ge=1)]
_Attempts = Annotated[int, Meta(ge=1)]
"""A negative one would make room for more than the noise is sized for."""
_log = logging.getLogger(__name__)


class AttemptJournal:
    """The attempts of one run, in a file of its directory.

    Guarantee: a round and attempt that :meth:`record` has returned for is never free again, after whatever crash.
    """

    def __init__(self, path: Path, *, most: int) -> None:
        """Use the file, which is made on the first record; ``most`` attempts may be sent in all."""
        self._path = path
        self._most = most
        self._sent = self._read()

    @property
    def sent(self) -> int:
        """Attempts that were sent, or may have been."""
        return sum(self._sent.values())

    def next_round(self, completed: int) -> int:
        """The round to go on with after a checkpoint of this many, which may be an earlier one than the last.

        An institution gives no masked vector for a round before one that it has answered, so rounds that were lost with
        a checkpoint stay lost.
        """
        following = completed + 1
        last = max(self._sent, default=0)
        if last <= following:
            return following
        _log.warning("rounds %d to %d are lost with a checkpoint; going on with round %d", following, last - 1, last)
        return last

    def free_attempt(self, round_number: int) -> int:
        """The least attempt at this round that was never sent."""
        return self._sent.get(round_number, 0)

    def record(self, round_number: int, attempt: int) -> None:
        """Write down that this attempt will be sent now.

        Raises:
            RoundFailed: The run's attempts are used up, or this one was sent before.

        """
        if attempt < self.free_attempt(round_number):
            raise RoundFailed(f"round {round_number}, attempt {attempt} was sent before and is not sent again")
        if self.sent >= self._most:
            raise RoundFailed(
                f"round {round_number}: the noise is sized for {self._most} attempts in all, and all were sent; more "
                "would pass the promised epsilon, so the run ends here"
            )
        self._sent[round_number] = attempt + 1
        write_atomically(self._path, msgspec.json.encode(self._sent))

    def _read(self) -> dict[int, int]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[_Round, _Attempts])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{self._path}: cannot be read ({error}), so nobody knows what was asked already; restore it, or start "
                "a new run in another directory"
            ) from error
