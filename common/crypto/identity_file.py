"""A party's long-term Ed25519 key on disk: made where it is used, and never sent anywhere.

The file holds the 32-byte seed as 64 hexadecimal digits and a newline, readable by its owner alone.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final

from common.crypto.primitives import KEY_BYTES, Identity, Secret
from common.durable_files import write_new
from common.errors import CryptoError

if TYPE_CHECKING:
    from pathlib import Path

_DIGITS: Final = re.compile(rb"[0-9a-f]{%d}" % (2 * KEY_BYTES))
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def create_identity_file(path: Path) -> Identity:
    """Make a fresh key and its file; the folder is made if it is missing.

    Raises:
        CryptoError: There is a file already: overwriting it would end the identity.

    """
    identity = Identity.generate()
    try:
        write_new(path, identity.seed().reveal().hex().encode() + b"\n")
    except FileExistsError as error:
        raise CryptoError(
            f"{path}: exists; it is not overwritten, because a lost identity cannot be had back"
        ) from error
    return identity


def read_identity_file(path: Path) -> Identity:
    """The key in this file.

    Raises:
        CryptoError: Missing, unreadable, open to other users, or no such key. The message never quotes the content.

    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(2 * KEY_BYTES + 2)
    except OSError as error:
        raise CryptoError(f"{path}: the identity cannot be read ({error.strerror})") from error
    if mode & _OTHERS:
        raise CryptoError(f"{path}: other users can read this identity; run: chmod 600 {path}")
    digits = content.removesuffix(b"\n")
    if not _DIGITS.fullmatch(digits):
        raise CryptoError(f"{path}: wanted {2 * KEY_BYTES} hexadecimal digits")
    return Identity(Secret(bytes.fromhex(digits.decode())))
