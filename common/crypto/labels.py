"""Purposes of hashes, signatures and keys; :mod:`common.crypto.primitives` puts one before everything it computes."""

from __future__ import annotations

import enum


class Label(enum.Enum):
    """What a hash, a signature or a derived key is for; changing one makes a new protocol version."""

    ADAPTER = b"darkroom/adapter/1"
    ADVERT = b"darkroom/session-key/1"
    APPROVAL = b"darkroom/site-approval/1"
    AUDIT_ENTRY = b"darkroom/audit-entry/1"
    AUDIT_GENESIS = b"darkroom/audit-genesis/1"
    AUDIT_HASH = b"darkroom/audit-hash/1"
    CONTRIBUTION = b"darkroom/masked-contribution/1"
    ERASED_SUBJECT = b"darkroom/erased-subject/1"
    FINGERPRINT = b"darkroom/fingerprint/1"
    INTAKE_KEY = b"darkroom/intake-key/1"
    INTAKE_PICTURE = b"darkroom/intake-picture/1"
    INTAKE_PSEUDONYM = b"darkroom/intake-pseudonym/1"
    INTAKE_RECEIPT = b"darkroom/intake-receipt/1"
    INTAKE_RULES = b"darkroom/intake-rules/1"
    INTAKE_SPLIT = b"darkroom/intake-split/1"
    JOIN_FILE = b"darkroom/join-file/1"
    LEDGER_ROW = b"darkroom/ledger-row/1"
    MANIFEST = b"darkroom/manifest/1"
    MANIFEST_ACCEPTED = b"darkroom/manifest-accepted/1"
    MANIFEST_SIGNED = b"darkroom/manifest-signed/1"
    MASK = b"darkroom/mask/1"
    OPEN_SESSION = b"darkroom/open-session/1"
    PAIR = b"darkroom/pair/1"
    RELEASE = b"darkroom/release/1"
    RELEASE_COUNTERSIGNED = b"darkroom/release-countersigned/1"
    RELEASE_SIGNED = b"darkroom/release-signed/1"
    ROUND_CONTEXT = b"darkroom/round-context/1"
    ROUND_REQUEST = b"darkroom/round-request/1"
    SEAL = b"darkroom/seal/1"
    SESSION = b"darkroom/session/1"
    SESSION_KEYS = b"darkroom/session-keys/1"
    SITE_REQUEST = b"darkroom/site-request/1"
    VAULT = b"darkroom/vault/1"
    VECTOR = b"darkroom/vector/1"
