"""The only source of secret randomness: sampling, noise and keys all draw from here.

Secret draws come from :class:`SystemRandomness`: every request takes a fresh key from the operating system and expands
it with AES-256-CTR. Nothing is kept between requests, so a forked process, a second thread or a restored snapshot
cannot repeat a stream, and there is no state whose theft would reveal earlier noise.

Repeatable draws exist for tests and simulations only. They are had from :func:`repeatable_randomness` alone, which
wants a sentence said out loud, and everything drawn from them is marked ``private = False``.
"""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import numpy as np

from common.crypto.primitives import KEY_BYTES, NONCE_BYTES, aes_ctr_keystream
from common.errors import NotPrivate

if TYPE_CHECKING:
    import numpy.typing as npt

REPEATABLE_WORDS: Final = "whoever knows the seed can remove the noise"
"""What a caller of :func:`repeatable_randomness` must repeat word for word."""


class Randomness(ABC):
    """A source of independent uniform bytes, and the draws made from them."""

    @property
    @abstractmethod
    def private(self) -> bool:
        """Whether the draws are secret; False voids every (ε, δ) that rests on them."""

    @abstractmethod
    def take(self, n: int) -> bytes:
        """``n`` uniform bytes, independent of all others taken."""

    def words(self, n: int) -> npt.NDArray[np.uint64]:
        """``n`` uniform 64-bit integers."""
        return np.frombuffer(self.take(8 * n), dtype="<u8")

    def uniforms(self, n: int) -> npt.NDArray[np.float64]:
        """``n`` multiples of 2⁻⁵³, uniform in [0, 1)."""
        return (self.words(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def coins(self, n: int, rate: float) -> npt.NDArray[np.bool_]:
        """``n`` independent draws that are True with probability ``rate`` (to 2⁻⁵³)."""
        return self.uniforms(n) < rate

    def permutation(self, n: int) -> npt.NDArray[np.int64]:
        """The numbers 0 … n−1 in uniformly random order (uniform to n²·2⁻⁶⁵, the chance of equal sort keys)."""
        return np.argsort(self.words(n), kind="stable").astype(np.int64)


class SystemRandomness(Randomness):
    """Secret randomness: an AES-256-CTR keystream under a fresh key from the operating system for every request.

    Guarantee: if ``os.urandom`` yields secret uniform keys and AES-256 is a pseudorandom permutation, no one can tell
    the draws from uniform ones; two requests, in whatever threads or forked processes, never share a key.
    """

    @property
    def private(self) -> bool:
        """Always True."""
        return True

    def take(self, n: int) -> bytes:
        """``n`` secret bytes."""
        return aes_ctr_keystream(os.urandom(KEY_BYTES), bytes(NONCE_BYTES), n)


class _RepeatableRandomness(Randomness):
    """A named stream that a seed determines, for tests and simulations."""

    def __init__(self, name: str, seed: int) -> None:
        self._name = name
        self._key = hashlib.sha256(f"darkroom/repeatable\x00{seed}\x00{name}".encode()).digest()
        self._requests = 0
        self._lock = threading.Lock()

    @property
    def private(self) -> bool:
        return False

    def take(self, n: int) -> bytes:
        with self._lock:
            request, self._requests = self._requests, self._requests + 1
        # the upper half of the counter block numbers the request, the lower half is left to the cipher
        return aes_ctr_keystream(self._key, request.to_bytes(8, "big") + bytes(8), n)

    def __repr__(self) -> str:
        return f"<repeatable, not private: {self._name!r}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a repeatable stream is not copied or sent: a copy would draw the same values twice")


def repeatable_randomness(name: str, *, seed: int, acknowledge: str) -> Randomness:
    """A deterministic stream for tests and simulations; draws are marked not private.

    Args:
        name: Streams of different names are independent.
        seed: The same seed and name give the same draws in the same order.
        acknowledge: The sentence :data:`REPEATABLE_WORDS`.

    Raises:
        NotPrivate: The sentence was not given.

    """
    if acknowledge != REPEATABLE_WORDS:
        raise NotPrivate(
            f'repeatable noise protects no one: say acknowledge = "{REPEATABLE_WORDS}"; got {acknowledge!r}'
        )
    return _RepeatableRandomness(name, seed)
