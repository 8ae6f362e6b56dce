"""Who a picture shows, under which name, and on which side of the hold-out split.

Guarantee: without the intake key a pseudonym tells nothing about the patient's number, and no number can be tested
against it.
Guarantee: a subject has one side. It depends on the key and the subject alone, and for a subject that the vault holds
it is the side that the vault has, whatever the share is now.

The key comes from the site's identity and not from the vault, whose own keys change when it is rotated: re-ingested
patients must fall together with their earlier pictures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from client.vault.captions import read_list
from client.vault.records import normal_subject_id
from common.crypto import Label, derive_key, keyed_tag

if TYPE_CHECKING:
    from pathlib import Path

    from client.vault.records import Split
    from common.crypto import Identity, Secret

_DIGEST: Final = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_PSEUDONYM_DIGITS: Final = 32
_SCALE: Final = 2**64


@dataclass(frozen=True, slots=True)
class IntakeKey:
    """Names patients and draws the hold-out."""

    secret: Secret

    @classmethod
    def of(cls, identity: Identity) -> IntakeKey:
        """The site's key: the same as long as the site keeps its identity."""
        return cls(derive_key(identity.seed(), salt=Label.INTAKE_KEY.value, info=b""))

    def pseudonym(self, patient: str) -> str:
        """A subject id for a patient's number (128 bits: no two patients share one by chance)."""
        number = normal_subject_id(patient).encode("utf-8", "surrogatepass")
        return f"patient-{keyed_tag(self.secret, Label.INTAKE_PSEUDONYM, number).hex()[:_PSEUDONYM_DIGITS]}"

    def split(self, subject_id: str, *, holdout: float) -> Split:
        """Held out with this probability, over keys."""
        subject = normal_subject_id(subject_id).encode("utf-8", "surrogatepass")
        drawn = int.from_bytes(keyed_tag(self.secret, Label.INTAKE_SPLIT, subject)[:8], "big")
        return "holdout" if drawn < round(holdout * _SCALE) else "train"


@dataclass(frozen=True, slots=True)
class OptOut:
    """Who and what must not enter: subject ids or patients' numbers, and SHA-256 of files."""

    subjects: frozenset[str] = field(default=frozenset(), repr=False)
    files: frozenset[bytes] = field(default=frozenset(), repr=False)
    _loose: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the list to compare with."""
        object.__setattr__(self, "_loose", frozenset(_loosely(subject) for subject in self.subjects))

    @classmethod
    def read(cls, path: Path) -> OptOut:
        """One entry a line: 64 hexadecimal digits are a file's digest, anything else is a subject.

        Raises:
            ConfigError: Missing or not UTF-8.

        """
        entries = read_list(path)
        digests = {entry: found.group(1) for entry in entries if (found := _DIGEST.fullmatch(entry.lower()))}
        return cls(
            subjects=frozenset(normal_subject_id(entry) for entry in entries if entry not in digests),
            files=frozenset(bytes.fromhex(digits) for digits in digests.values()),
        )

    def covers(self, subjects: tuple[str, ...], file_digest: bytes) -> bool:
        """Whether the file, or anybody it may be known as, is on the list."""
        named = (name for subject in subjects for name in (subject, subject.rpartition("/")[2]))
        return file_digest in self.files or any(_loosely(name) in self._loose for name in named)


def _loosely(subject: str) -> str:
    """Small letters, so that whoever is on the list is not let in for another way of writing."""
    return normal_subject_id(subject).casefold()
