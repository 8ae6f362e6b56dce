"""The one file that uses the ``cryptography`` package."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 16


def aes_ctr_keystream(key: bytes, nonce: bytes, n: int) -> bytes:
    """The first ``n`` bytes of AES-256-CTR under ``key`` (32 bytes), counting up from ``nonce`` (16 bytes, big-endian).

    A (key, nonce) pair must be used for one stream only. Raises ValueError for a key or nonce of another length.
    """
    if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES:
        raise ValueError(f"wanted a {KEY_BYTES}-byte key and a {NONCE_BYTES}-byte nonce")
    encryptor = Cipher(AES256(key), CTR(nonce)).encryptor()
    return encryptor.update(bytes(n)) + encryptor.finalize()
