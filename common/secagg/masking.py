"""Add the pairwise masks, and take the check coordinates off a sum.

A mask is the AES-256-CTR keystream under a key that serves one pair, one step and one context, read as little-endian
words; the nonce is fixed because no key is used twice. Of two institutions the one that stands first in the roster
adds it and the other subtracts it. Under the assumption that AES-256 is a pseudorandom permutation, a mask of 2²³
blocks (d = 1.6e7 at 64 bits) is told from uniform words with advantage below 2⁻⁸² (PRP/PRF switching, q²/2¹²⁹).

Each masked vector ends in coordinates that hold the constant 1. They show the coordinator that the masks cancelled,
i.e. that all sites saw the same round. They do not authenticate the sum: whoever sends a vector chooses its other
coordinates freely, and a lying coordinator needs no check. Their value is public, so masking them gives away their
mask words, which say nothing about the others.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Final

import numpy as np

from common.crypto.primitives import KEYSTREAM_PIECE_BYTES, Keystream, keystream_buffer
from common.errors import MasksDidNotCancel, WrongShape
from common.secagg.messages import check_coordinates
from common.secagg.ring import VectorSum, word_type

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from common.crypto.primitives import Secret
    from common.secagg.messages import Bits, RoundContext
    from common.secagg.ring import Summand, Words


_WORTH_A_THREAD: Final = 4 << 20
"""Bytes of keystream below which a thread costs more than it saves: half a millisecond's work."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MaskedVector:
    """Words that look uniform to whoever lacks one mask key of an honest pair; check coordinates last."""

    words: Words
    bits: Bits


def check_summand(summand: Summand, context: RoundContext) -> None:
    """Check that a summand was made for this step.

    Raises:
        WrongShape: Its dimension, word size or cohort is not the context's.

    """
    got = (summand.words.size, summand.bits, summand.cohort)
    wanted = (context.dimension, context.bits, len(context.cohort))
    if got != wanted:
        raise WrongShape(f"wanted (dimension, bits, cohort) = {wanted}, got {got}")


def mask(summand: Summand, context: RoundContext, keys: Mapping[int, Secret], *, place: int) -> MaskedVector:
    """Append the check coordinates and apply every pair's mask.

    Raises:
        WrongShape: The summand's dimension, word size or cohort is not the context's, or a peer's key is missing.

    """
    check_summand(summand, context)
    if set(keys) != set(context.cohort) - {place} or not keys:
        raise WrongShape("wanted exactly one mask key for every other participant")
    words = np.empty(context.dimension + check_coordinates(context.bits), dtype=word_type(context.bits))
    words[: context.dimension] = summand.words
    words[context.dimension :] = 1
    apply_masks(words, [(key, place < peer) for peer, key in keys.items()])
    return MaskedVector(words=words, bits=context.bits)


def unpack(data: bytes, context: RoundContext) -> MaskedVector:
    """Wire bytes as a masked vector, without a copy.

    Raises:
        WrongShape: Not exactly the context's number of bytes.

    """
    wanted = vector_bytes(context)
    if len(data) != wanted:
        raise WrongShape(f"wanted a masked vector of {wanted} bytes, got {len(data)}")
    return MaskedVector(words=np.frombuffer(data, dtype=word_type(context.bits)), bits=context.bits)


def vector_bytes(context: RoundContext) -> int:
    """Size of a masked vector on the wire."""
    return (context.dimension + check_coordinates(context.bits)) * (context.bits // 8)


def open_sum(total: Words, context: RoundContext) -> VectorSum:
    """Check that the masks cancelled and drop the check coordinates.

    Raises:
        MasksDidNotCancel: They did not; nothing is returned.

    Example:
        Two institutions mask (10, 20) and (1, 2) under a key that only they share; the coordinator adds:

        >>> from common.crypto.primitives import random_key
        >>> from common.secagg.messages import RoundContext, Step
        >>> from common.secagg.ring import from_integers
        >>> context = RoundContext(
        ...     session=bytes(32), step=Step(0, 0), adapter=bytes(32), cohort=(0, 1), dimension=2, bits=32
        ... )
        >>> inputs = [from_integers(np.array(each), bits=32, cohort=2) for each in ([10, 20], [1, 2])]
        >>> key = random_key()
        >>> masked = [mask(inputs[place], context, {1 - place: key}, place=place).words for place in (0, 1)]
        >>> open_sum(masked[0] + masked[1], context).words.tolist()
        [11, 22]
        >>> open_sum(masked[0] + 2 * masked[1], context)
        Traceback (most recent call last):
        common.errors.MasksDidNotCancel: ...

    """
    checks = total[context.dimension :]
    if not (checks == len(context.cohort)).all():
        raise MasksDidNotCancel(
            f"round {context.step.round}, attempt {context.step.attempt}: the institutions did not see the same round "
            "(adapter, cohort or session keys), or one sent a faulty vector; ask for a new attempt"
        )
    return VectorSum(words=total[: context.dimension], bits=context.bits, cohort=len(context.cohort))


def apply_masks(words: Words, masks: Sequence[tuple[Secret, bool]]) -> None:
    """Add (True) or subtract each mask in place; in two threads where there is enough to do.

    AES and the sums leave Python's lock alone while they work, so two cores take half the time.
    """
    turn, half = Lock(), len(masks) // 2
    if half == 0 or words.nbytes * len(masks) < _WORTH_A_THREAD:
        _apply(words, masks, turn)
        return
    with ThreadPoolExecutor(1) as lane:
        beside = lane.submit(_apply, words, masks[:half], turn)
        _apply(words, masks[half:], turn)
        beside.result()


def _apply(words: Words, masks: Sequence[tuple[Secret, bool]], turn: Lock) -> None:
    """Piece by piece: the sum of all masks stays in the cache, and is added when no other thread adds its own."""
    streams = [(Keystream(key), np.add if adds else np.subtract) for key, adds in masks]
    buffer = keystream_buffer()
    step = KEYSTREAM_PIECE_BYTES // words.itemsize
    room = np.empty(step, dtype=words.dtype)
    for start in range(0, words.size, step):
        piece = words[start : start + step]
        total = room[: piece.size]
        total.fill(0)
        for stream, combine in streams:
            combine(total, np.frombuffer(stream.read(piece.nbytes, buffer=buffer), dtype=words.dtype), out=total)
        with turn:
            piece += total
