"""One number that stands for all rows of the index, so that none can be added, taken out, exchanged or put back.

Each row gives 32 bytes by HMAC under the vault's key, and their sum modulo 2²⁵⁶ is a commitment to the set (a keyed
additive multiset hash, Clarke et al. 2003): a change costs one addition, whatever the size of the vault. The sum is
sealed in the header with the number of changes so far and the digest of the state before, which chains the states as an
audit log chains its lines. Every earlier digest stays as a row, so that a vault can show that it grew out of one that
was noted elsewhere.

Guarantee: an index in which any row or the header is not as the last change left it does not open.
Guarantee: an index that is an older copy does not open where a later state is expected, and neither does one that grew
from an older copy.

Assumptions: the attacker, who may write anything into the directory, has no master key; and for the second, the
expected state is kept out of his reach. Rows are checked when a vault is opened and after every change that another
process makes, so a row that is exchanged under an open vault is caught by its own seal, or at the next opening.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from client.vault.errors import ForeignVault, VaultDamaged, VaultRolledBack, WrongMasterKey
from client.vault.index import TABLES, DerivedRow, Header, PastRow, RecordRow, RunRow, SubjectRow
from client.vault.records import VaultState
from client.vault.sealing import (
    Purpose,
    VaultKeys,
    open_facts,
    open_run,
    record_key,
    seal_run,
    seal_subject,
    subject_key,
    subject_name,
)
from common.crypto.primitives import DIGEST_BYTES, random_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from client.vault.index import Index, Row

_MODULUS: Final = 1 << 256


class State(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """What the header seals; at first, of a vault without rows."""

    generation: int = 0
    rows: int = 0
    total: bytes = bytes(DIGEST_BYTES)
    next_subject: int = 1
    next_record: int = 1
    previous: bytes = bytes(DIGEST_BYTES)
    lock: bytes
    """Digest of the header's slot and wrapped key: an old lock put back would let a withdrawn key open the vault."""


@dataclass(slots=True)
class Tally:
    """Number and sum of a set of rows."""

    keys: VaultKeys
    rows: int = 0
    total: int = 0

    def add(self, row: Row) -> None:
        """Count a row in."""
        self.rows += 1
        self.total = (self.total + self._number(row)) % _MODULUS

    def remove(self, row: Row) -> None:
        """Count a row out."""
        self.rows -= 1
        self.total = (self.total - self._number(row)) % _MODULUS

    def _number(self, row: Row) -> int:
        return int.from_bytes(self.keys.row_tag(msgspec.msgpack.encode((TABLES[type(row)], *row))), "big")


@dataclass(slots=True)
class Change:
    """One transaction's changes to the index, counted as they are made."""

    index: Index
    tally: Tally
    generation: int
    """The number of this change; the first one's is 1."""
    next_subject: int
    next_record: int

    def insert(self, *rows: Row) -> None:
        """Add rows."""
        for row in rows:
            self.index.insert(row)
            self.tally.add(row)

    def delete(self, rows: Iterable[Row]) -> None:
        """Take out rows that were read in this transaction."""
        for row in rows:
            self.index.delete(row)
            self.tally.remove(row)

    def new_subject(self) -> int:
        """A number that no subject had before."""
        self.next_subject += 1
        return self.next_subject - 1

    def new_record(self) -> int:
        """A number that no record had before."""
        self.next_record += 1
        return self.next_record - 1

    def rekey(self, old: VaultKeys, new: VaultKeys, *, slot: bytes, wrapped: bytes) -> None:
        """Seal every row again under new keys, and lock the index by this slot and wrapped key."""
        subjects, records = self.index.rows(SubjectRow), self.index.rows(RecordRow)
        derived, runs = self.index.rows(DerivedRow), self.index.rows(RunRow)
        for rows in (subjects, records, derived, runs):
            self.delete(rows)
        self.index.set_header(self.index.header()._replace(slot=slot, wrapped=wrapped))
        self.tally = Tally(new)
        for past in self.index.rows(PastRow):  # the only rows that stay as they are
            self.tally.add(past)
        self.insert(*derived)  # tagged by their record's key, which stays
        self.insert(*(seal_run(new, open_run(old, row), high_water=row.high_water) for row in runs))
        above = {row.subject: (subject_key(old, row), random_key()) for row in subjects}
        self.insert(
            *(seal_subject(new, row.subject, subject_name(old, row), key=above[row.subject][1]) for row in subjects)
        )
        for row in records:
            before, after = above[row.subject]
            key = record_key(old, row, before)
            exact_hash = open_facts(old, row, key).exact_hash
            self.insert(
                row._replace(
                    exact_tag=new.tag(Purpose.EXACT_HASH, exact_hash),
                    wrapped=new.wrap_key(after, Purpose.RECORD_KEY, key, row.record_id),
                )
            )


@dataclass(slots=True)
class Commitment:
    """Checks and renews what the header says of the rows. Its caller sees to it that one thread works at a time."""

    index: Index
    keys: VaultKeys
    lock: bytes
    """Digest of the slot and wrapped key that this vault was opened by."""
    _sealed: bytes = field(default=b"", repr=False)
    _state: State | None = field(default=None, repr=False)

    @contextlib.contextmanager
    def reading(self) -> Iterator[State]:
        """One moment of the index, checked."""
        with self.index.snapshot():
            yield self._checked()

    @contextlib.contextmanager
    def changing(self) -> Iterator[Change]:
        """Changes that all happen, durably, or none; the state is renewed with them."""
        with self.index.transaction():
            before = self._checked()
            tally = Tally(self.keys, before.rows, int.from_bytes(before.total, "big"))
            change = Change(self.index, tally, before.generation + 1, before.next_subject, before.next_record)
            yield change
            change.insert(PastRow(before.generation, self._digest(before)))
            header = self.index.header()
            after = State(
                generation=change.generation,
                rows=change.tally.rows,
                total=change.tally.total.to_bytes(DIGEST_BYTES, "big"),
                next_subject=change.next_subject,
                next_record=change.next_record,
                previous=self._digest(before),
                lock=lock_digest(change.tally.keys, header),
            )
            sealed = seal_state(change.tally.keys, after)
            self.index.set_header(header._replace(state=sealed))
        # only now is it so: a transaction that fails leaves the state that was
        self.keys, self.lock, self._sealed, self._state = change.tally.keys, after.lock, sealed, after

    def public(self, state: State) -> VaultState:
        """What may be written down elsewhere."""
        return VaultState(vault=self.keys.vault, digest=self._digest(state))

    def check_successor(self, state: State, expected: VaultState) -> None:
        """Check, inside :meth:`reading`, that the vault is the expected one or grew out of it.

        Raises:
            ForeignVault: Another vault.
            VaultRolledBack: Older, or of another history.

        """
        if expected.vault != self.keys.vault:
            raise ForeignVault(
                f"wanted vault {expected.vault.hex()}, got {self.keys.vault.hex()}; was the directory exchanged? If "
                "this is the one to go on with: darkroom-client accept-vault"
            )
        if self._digest(state) != expected.digest and not self.index.rows(PastRow, "digest = ?", expected.digest):
            raise VaultRolledBack(
                "the vault was never in the state that was noted last: it is an older copy, or grew out of one; "
                "restore the newest, or what was erased since is back. If there is none: darkroom-client accept-vault"
            )

    def _checked(self) -> State:
        header = self.index.header()
        if self._state is not None and header.state == self._sealed:  # sealed under a fresh nonce at every change
            return self._state
        if lock_digest(self.keys, header) != self.lock:
            raise WrongMasterKey("the vault was locked anew since it was opened; open it again with its new key")
        state = _open_state(self.keys, header)
        if state.lock != self.lock:
            raise VaultDamaged("the vault's lock is an older one put back; restore the index from a backup")
        tally = Tally(self.keys)
        for row in self.index.every_row():
            tally.add(row)
        if (tally.rows, tally.total.to_bytes(DIGEST_BYTES, "big")) != (state.rows, state.total):
            raise VaultDamaged(
                f"rows of the index were added, taken out or exchanged ({tally.rows} rows, {state.rows} were written); "
                "restore it from a backup"
            )
        self._sealed, self._state = header.state, state
        return state

    def _digest(self, state: State) -> bytes:
        return self.keys.tag(Purpose.STATE, msgspec.msgpack.encode(state))


def first_state(keys: VaultKeys, slot: bytes, wrapped: bytes) -> bytes:
    """The sealed state of a vault without rows."""
    header = Header(keys.vault, slot, wrapped, b"")
    return seal_state(keys, State(lock=lock_digest(keys, header)))


def seal_state(keys: VaultKeys, state: State) -> bytes:
    """What the header holds of a state."""
    return keys.seal_top(Purpose.STATE, msgspec.msgpack.encode(state))


def lock_digest(keys: VaultKeys, header: Header) -> bytes:
    """32 bytes that stand for how the vault is locked."""
    return keys.tag(Purpose.VAULT_KEY, header.slot, header.wrapped)


def _open_state(keys: VaultKeys, header: Header) -> State:
    try:
        return msgspec.msgpack.decode(keys.open_top(Purpose.STATE, header.state), type=State)
    except msgspec.DecodeError as error:
        raise VaultDamaged(f"the vault's state was written by something else ({error})") from error
