"""From an error to the code that the coordinator gets for it; the error's text stays at the institution."""

from __future__ import annotations

from typing import Final

from common.errors import (
    AlreadyCharged,
    BudgetExceeded,
    ConfigError,
    CryptoError,
    DarkroomError,
    DataError,
    ManifestError,
    MaskReuse,
    ModelError,
    NotApproved,
    OutOfOrder,
    PolicyRefusal,
    PrivacyError,
    ProtocolError,
    ReplayedStep,
    RequestNotAllowed,
    StaleSession,
    UnknownInstitution,
)
from common.messages import RefusalCode

_CODES: Final[tuple[tuple[type[DarkroomError], RefusalCode], ...]] = (
    (NotApproved, RefusalCode.AWAITING_APPROVAL),
    (PolicyRefusal, RefusalCode.NOT_ALLOWED),
    (RequestNotAllowed, RefusalCode.NOT_ALLOWED),
    (BudgetExceeded, RefusalCode.OVER_BUDGET),
    (AlreadyCharged, RefusalCode.REPLAYED),
    (ReplayedStep, RefusalCode.REPLAYED),
    (MaskReuse, RefusalCode.REPLAYED),
    (OutOfOrder, RefusalCode.NO_SESSION),
    (StaleSession, RefusalCode.NO_SESSION),
    (UnknownInstitution, RefusalCode.BAD_MANIFEST),
    (ManifestError, RefusalCode.BAD_MANIFEST),
    (ConfigError, RefusalCode.BAD_MANIFEST),
    (PrivacyError, RefusalCode.NOT_ALLOWED),
    (ProtocolError, RefusalCode.MALFORMED),
    (DataError, RefusalCode.NO_DATA),
    (ModelError, RefusalCode.NO_DATA),
    (CryptoError, RefusalCode.INTERNAL),
)
"""Narrower errors before the ones that they belong to."""


def refusal_code(error: DarkroomError) -> RefusalCode:
    """The code of the first kind that fits; ``internal`` for what is this institution's own trouble."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), RefusalCode.INTERNAL)
