"""From an error to the code that the coordinator gets for it, and to what this institution's own log says of it."""

from __future__ import annotations

from typing import Final

from common.errors import (
    AlreadyCharged,
    BudgetExceeded,
    ConfigError,
    CryptoError,
    DarkroomError,
    DataError,
    FiguresPending,
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
    TooManyUnits,
    UnknownInstitution,
)
from common.manifest.words import printable
from common.wire.messages import RefusalCode

MAX_QUOTED: Final = 2000
"""Characters of an error's text."""
_CODES: Final[tuple[tuple[type[DarkroomError], RefusalCode], ...]] = (
    (NotApproved, RefusalCode.AWAITING_APPROVAL),
    (FiguresPending, RefusalCode.BUSY),
    # a code of its own would tell for each largest_site that a coordinator tries whether there are more
    (TooManyUnits, RefusalCode.AWAITING_APPROVAL),
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


def loggable(error: Exception) -> str:
    """What a log may say: the text of our own errors about messages and rules; of all others the kind and the place.

    A log is read by more people than the vault, and a text about pictures or from a library may quote private data. One
    about a message may quote the message, so it is kept to one short line: else the coordinator could write lines of
    its own into the log, or fill the disk.
    """
    if isinstance(error, DarkroomError) and not isinstance(error, DataError):
        return printable(" ".join(str(error)[:MAX_QUOTED].splitlines()))
    return place_of(error)


def place_of(error: BaseException) -> str:
    """The error's kind and where it was raised, without a word of what it says."""
    trace, where = error.__traceback__, "an unknown place"
    while trace is not None:
        where = f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {where}"
