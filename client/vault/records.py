"""What goes into a vault and what comes out of it."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, NewType, TypeAlias

from common.crypto.primitives import DIGEST_BYTES
from common.errors import DataError, VaultError

if TYPE_CHECKING:
    from datetime import date

RecordId = NewType("RecordId", str)
"""32 hexadecimal digits, random: tells nothing about the picture."""
Subject = NewType("Subject", int)
"""A subject's number in its vault, never given twice; tells nothing about who it is."""
Split: TypeAlias = Literal["train", "holdout"]

MAX_TEXT_BYTES: Final = 1 << 16
"""Of one caption, label, subject id or file name, in UTF-8."""
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_STATE: Final = re.compile(r"([0-9a-f]{32}):([0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRecord:
    """A picture to keep, already de-identified; only its split and date of expiry print."""

    image: bytes = field(repr=False)
    """PNG, 8-bit RGB, without metadata. Only its first bytes are checked here."""
    caption: str = field(repr=False)
    subject_id: str = field(repr=False)
    """Who or what is shown. Kept in one spelling, see :func:`normal_subject_id`."""
    label: str = field(repr=False)
    source_name: str = field(repr=False)
    """The original file's name, for the institution's own people."""
    exact_hash: bytes = field(repr=False)
    """32 bytes; which hash of what, is the intake's choice."""
    perceptual_hash: int = field(repr=False)
    """64 bits, as an unsigned number."""
    split: Split = "train"
    expires: date | None = None
    """First day on which the picture may no longer be used."""

    def __post_init__(self) -> None:
        """Refuse what could not be kept or found again.

        Raises:
            DataError: Not a PNG, a hash of another size, a blank subject, or text that is too long or not Unicode.

        """
        if not self.image.startswith(_PNG):
            raise DataError("wanted a picture as PNG; convert it before it is added to the vault")
        if len(self.exact_hash) != DIGEST_BYTES or not 0 <= self.perceptual_hash < 1 << 64:
            raise DataError(f"wanted an exact hash of {DIGEST_BYTES} bytes and a perceptual hash of 64 bits")
        if not normal_subject_id(self.subject_id):
            raise DataError("wanted a subject id, got a blank one; name the subject, or use the file's name")
        for name in ("caption", "subject_id", "label", "source_name"):
            _check_text(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordInfo:
    """What a record says about itself without its content."""

    record_id: RecordId
    subject: Subject
    split: Split
    expires: date | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRecord:
    """A record as it was added, opened; only its id, subject number, split and date of expiry print."""

    info: RecordInfo
    image: bytes = field(repr=False)
    caption: str = field(repr=False)
    subject_id: str = field(repr=False)
    label: str = field(repr=False)
    source_name: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordHashes:
    """What near-duplicates are searched by. An attacker can match it against known pictures: keep it in memory only."""

    record_id: RecordId
    subject: Subject
    exact: bytes = field(repr=False)
    perceptual: int = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ErasurePlan:
    """What erasing would destroy; nothing has happened yet."""

    subjects: int
    """That would be forgotten altogether."""
    records: int
    derived: int
    """Encoded pictures and captions that were computed from the records."""
    bytes_freed: int
    runs: tuple[str, ...]
    """Runs that may have trained on any of the records, oldest first; see :meth:`client.vault.vault.Vault.note_run`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Erased:
    """What was destroyed."""

    plan: ErasurePlan
    state: VaultState
    """The vault afterwards, for the audit log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VaultState:
    """A commitment to everything in a vault at one time, for the audit log; tells nothing without the vault's key.

    Not even the number of changes, which grows with the number of pictures: an audit log may be shown to others.
    """

    vault: bytes
    """16 bytes, random: which vault."""
    digest: bytes
    """32 bytes, keyed: over all rows and all states before."""

    def text(self) -> str:
        """One word for a log: ``vault:digest`` in hexadecimal."""
        return f"{self.vault.hex()}:{self.digest.hex()}"

    @classmethod
    def parse(cls, text: str) -> VaultState:
        """Undo :meth:`text`.

        Raises:
            VaultError: Something else.

        """
        found = _STATE.fullmatch(text)
        if found is None:
            raise VaultError(f"wanted a vault's state as vault:digest, got {text[:150]!r}")
        vault, digest = found.groups()
        return cls(vault=bytes.fromhex(vault), digest=bytes.fromhex(digest))


def today() -> date:
    """The date by which records expire: of where the site is, or of UTC if that is further on."""
    now = datetime.now(UTC)
    return max(now.date(), now.astimezone().date())


def normal_subject_id(subject_id: str) -> str:
    """One spelling a subject: stray blanks or another Unicode form must not hide a person from their own erasure."""
    return unicodedata.normalize("NFC", subject_id).strip()


def _check_text(name: str, text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise DataError(f"{name}: holds half of a surrogate pair, which is not Unicode text; mend it") from None
    if size > MAX_TEXT_BYTES:
        raise DataError(f"{name}: wanted at most {MAX_TEXT_BYTES} bytes of UTF-8, got {size}; shorten it")
