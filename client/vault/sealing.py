"""A vault's keys, down to one for each record; and subjects, records and runs as rows of the index that they seal.

::

    master key ─wraps→ vault key ─wraps→ subject key ─wraps→ record key ─seals→ picture, facts, derived items

All but the first are random. Destroying a wrapped key destroys what hangs below it, whoever holds the keys above and
whatever copies of the sealed files exist: that is how a subject or a record is erased. Each sealed piece is bound to
its vault, its purpose and its place, so that it opens nowhere else.
"""

from __future__ import annotations

import enum
from datetime import date
from typing import TYPE_CHECKING, Final, final

import msgspec

from client.vault.errors import VaultDamaged, WrongMasterKey
from client.vault.index import RecordRow, RunRow, SubjectRow
from client.vault.records import RecordId, RecordInfo, Split, Subject, normal_subject_id
from common.crypto.primitives import (
    Label,
    Secret,
    expand_key,
    frame,
    keyed_tag,
    open_sealed,
    random_key,
    random_name,
    seal,
)
from common.errors import CryptoError

if TYPE_CHECKING:
    from client.vault.records import NewRecord

RECORD_ID_BYTES: Final = 16
PAD_FLOOR: Final = 512
"""Bytes; no sealed text shows that it is shorter."""
_LENGTH_BYTES: Final = 8


class Purpose(enum.Enum):
    """What a sealed piece, a derived key or a tag is for."""

    VAULT_KEY = b"vault key"
    SUBJECT_KEY = b"subject key"
    SUBJECT_ID = b"subject id"
    RECORD_KEY = b"record key"
    FACTS = b"facts"
    PICTURE = b"picture"
    DERIVED = b"derived"
    EXACT_HASH = b"exact hash"
    RUN = b"run"
    ROW = b"row"
    STATE = b"state"
    TAGS = b"tags"


@final
class VaultKeys:
    """A vault's id, and the keys that its vault key gives."""

    __slots__ = ("_rows", "_tags", "_wrap", "vault")

    def __init__(self, vault: bytes, vault_key: Secret) -> None:
        self.vault: Final = vault
        wrap, tags, rows = (
            _derived(vault_key, purpose) for purpose in (Purpose.SUBJECT_KEY, Purpose.TAGS, Purpose.ROW)
        )
        self._wrap: Final = wrap
        self._tags: Final = tags
        self._rows: Final = rows

    def tag(self, purpose: Purpose, *parts: bytes) -> bytes:
        """32 bytes by which something is found again; whoever lacks the key cannot test a guess against it."""
        return keyed_tag(self._tags, Label.VAULT, purpose.value, self.vault, *parts)

    def row_tag(self, content: bytes) -> bytes:
        """32 bytes that stand for one row of the index."""
        return keyed_tag(self._rows, Label.VAULT, Purpose.ROW.value, self.vault, content)

    def seal_top(self, purpose: Purpose, data: bytes, *place: bytes) -> bytes:
        """Seal what hangs directly under the vault key: subject keys, runs, the state."""
        return self.seal(self._wrap, purpose, data, *place)

    def open_top(self, purpose: Purpose, sealed: bytes, *place: bytes) -> bytes:
        """Undo :meth:`seal_top`, or raise VaultDamaged."""
        return self.open(self._wrap, purpose, sealed, *place)

    def seal(self, key: Secret, purpose: Purpose, data: bytes, *place: bytes) -> bytes:
        """Pad, so that the length tells little, and seal."""
        return seal(key, _pad(data), context=self._context(purpose, place))

    def open(self, key: Secret, purpose: Purpose, sealed: bytes, *place: bytes) -> bytes:
        """Undo :meth:`seal`.

        Raises:
            VaultDamaged: Altered, truncated, or sealed for another place, purpose, vault or key.

        """
        try:
            return _unpad(open_sealed(key, sealed, context=self._context(purpose, place)))
        except CryptoError as error:
            raise VaultDamaged(
                f"a {purpose.value.decode()} was altered, cut or put in the place of another; restore it from a backup"
            ) from error

    def wrap_key(self, above: Secret | None, purpose: Purpose, key: Secret, *place: bytes) -> bytes:
        """Seal a key under another; None: under the vault key."""
        return seal(above or self._wrap, key.reveal(), context=self._context(purpose, place))

    def unwrap_key(self, above: Secret | None, purpose: Purpose, wrapped: bytes, *place: bytes) -> Secret:
        """Undo :meth:`wrap_key`, or raise VaultDamaged."""
        try:
            return Secret(open_sealed(above or self._wrap, wrapped, context=self._context(purpose, place)))
        except CryptoError as error:
            raise VaultDamaged(f"a {purpose.value.decode()} was altered or exchanged; restore the index") from error

    def _context(self, purpose: Purpose, place: tuple[bytes, ...]) -> bytes:
        return frame(Label.VAULT, purpose.value, self.vault, *place)


def lock_vault_key(master: Secret, vault_key: Secret, *, vault: bytes, slot: bytes) -> bytes:
    """The vault key, wrapped by the master key and bound to the vault and to what is public about the lock."""
    return seal(master, vault_key.reveal(), context=frame(Label.VAULT, Purpose.VAULT_KEY.value, vault, slot))


def unlock_vault_key(master: Secret, wrapped: bytes, *, vault: bytes, slot: bytes) -> Secret:
    """Undo :func:`lock_vault_key`.

    Raises:
        WrongMasterKey: Another key; or the lock was altered, which looks the same.

    """
    try:
        return Secret(open_sealed(master, wrapped, context=frame(Label.VAULT, Purpose.VAULT_KEY.value, vault, slot)))
    except CryptoError as error:
        raise WrongMasterKey("this master key does not open this vault; is it another one's, or mistyped?") from error


def kind_tag(record_key: Secret, kind: str) -> bytes:
    """32 bytes by which a derived item is found; made by the record's key, so that rotation leaves it."""
    return keyed_tag(record_key, Label.VAULT, Purpose.DERIVED.value, kind.encode())


def padded_size(size: int) -> int:
    """Padmé (Nikitin et al. 2019): at most 12 % more, and only O(log log size) bits of the size remain to be seen.

    A sealed picture's exact size would be enough to recognise a known picture by.
    """
    if size <= PAD_FLOOR:
        return PAD_FLOOR
    exponent = size.bit_length() - 1
    low = exponent - exponent.bit_length()
    return (size + (1 << low) - 1) >> low << low


class Facts(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """A record without its picture."""

    caption: str
    label: str
    source_name: str
    split: Split
    expires: date | None
    exact_hash: bytes
    perceptual_hash: int

    def __repr__(self) -> str:
        """Nothing of it."""
        return "Facts(…)"


class Noted(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """A run that trained on the vault."""

    run: str
    first_used: str


def subject_tag(keys: VaultKeys, subject_id: str) -> bytes:
    """What a subject is found by."""
    return keys.tag(Purpose.SUBJECT_ID, normal_subject_id(subject_id).encode())


def seal_subject(keys: VaultKeys, subject: int, subject_id: str, *, key: Secret) -> SubjectRow:
    """A subject's row, under this key of its own."""
    return SubjectRow(
        subject=subject,
        tag=subject_tag(keys, subject_id),
        wrapped=keys.wrap_key(None, Purpose.SUBJECT_KEY, key, _number(subject)),
        sealed=keys.seal(key, Purpose.SUBJECT_ID, normal_subject_id(subject_id).encode(), _number(subject)),
    )


def subject_key(keys: VaultKeys, row: SubjectRow) -> Secret:
    """The subject's key, or VaultDamaged."""
    return keys.unwrap_key(None, Purpose.SUBJECT_KEY, row.wrapped, _number(row.subject))


def subject_name(keys: VaultKeys, row: SubjectRow) -> str:
    """The subject's id, or VaultDamaged."""
    return keys.open(subject_key(keys, row), Purpose.SUBJECT_ID, row.sealed, _number(row.subject)).decode()


def seal_record(
    keys: VaultKeys, record: NewRecord, *, number: int, subject: SubjectRow, blob: bytes
) -> tuple[RecordRow, bytes]:
    """A new record's row and its sealed picture, under a key of its own."""
    key, record_id = random_key(), random_name(RECORD_ID_BYTES)
    facts = Facts(**{name: getattr(record, name) for name in Facts.__struct_fields__})
    row = RecordRow(
        number=number,
        record_id=record_id,
        subject=subject.subject,
        exact_tag=keys.tag(Purpose.EXACT_HASH, record.exact_hash),
        wrapped=keys.wrap_key(subject_key(keys, subject), Purpose.RECORD_KEY, key, record_id),
        facts=keys.seal(key, Purpose.FACTS, msgspec.msgpack.encode(facts), record_id),
        blob=blob,
    )
    return row, keys.seal(key, Purpose.PICTURE, record.image, record_id, blob)


def record_key(keys: VaultKeys, row: RecordRow, above: Secret) -> Secret:
    """The record's key, or VaultDamaged."""
    return keys.unwrap_key(above, Purpose.RECORD_KEY, row.wrapped, row.record_id)


def open_facts(keys: VaultKeys, row: RecordRow, key: Secret) -> Facts:
    """The record's facts, or VaultDamaged."""
    try:
        return msgspec.msgpack.decode(keys.open(key, Purpose.FACTS, row.facts, row.record_id), type=Facts)
    except msgspec.DecodeError as error:
        raise VaultDamaged("a record's facts were written by something else; use the Darkroom of that time") from error


def info_of(row: RecordRow, facts: Facts) -> RecordInfo:
    """What a record says about itself without its content."""
    return RecordInfo(
        record_id=RecordId(row.record_id.hex()), subject=Subject(row.subject), split=facts.split, expires=facts.expires
    )


def run_tag(keys: VaultKeys, run: str) -> bytes:
    """What a run is found by."""
    return keys.tag(Purpose.RUN, run.encode())


def seal_run(keys: VaultKeys, noted: Noted, *, high_water: int) -> RunRow:
    """A run's row."""
    tag = run_tag(keys, noted.run)
    return RunRow(tag=tag, high_water=high_water, sealed=keys.seal_top(Purpose.RUN, msgspec.msgpack.encode(noted), tag))


def open_run(keys: VaultKeys, row: RunRow) -> Noted:
    """What a run's row holds, or VaultDamaged."""
    return msgspec.msgpack.decode(keys.open_top(Purpose.RUN, row.sealed, row.tag), type=Noted)


def _number(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _derived(vault_key: Secret, purpose: Purpose) -> Secret:
    return expand_key(vault_key, info=frame(Label.VAULT, purpose.value))


def _pad(data: bytes) -> bytes:
    size = _LENGTH_BYTES + len(data)
    return b"".join((len(data).to_bytes(_LENGTH_BYTES, "big"), data, bytes(padded_size(size) - size)))


def _unpad(padded: bytes) -> bytes:
    length = int.from_bytes(padded[:_LENGTH_BYTES], "big")
    return padded[_LENGTH_BYTES : _LENGTH_BYTES + length]
