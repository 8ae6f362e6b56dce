"""Masked vectors look uniform; masks come from the key schedule that the protocol states; costs stay bounded."""

from __future__ import annotations

import hashlib
import hmac
import os
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from common.crypto.primitives import Secret, aes_ctr_keystream
from common.errors import CohortRefused, MaskReuse, MasksDidNotCancel, StaleSession, UnknownInstitution, WrongShape
from common.secagg import masking
from common.secagg.keys import PairwiseKeys
from common.secagg.messages import (
    CONTRIBUTION_OVERHEAD_BYTES,
    MaskedContribution,
    RoundContext,
    SessionKeys,
    Step,
    check_coordinates,
    decode,
)
from common.secagg.ring import Summand

if TYPE_CHECKING:
    from collections.abc import Callable

World = Any
LIMIT = 1 << 26
HEAD = b"h" * 32
COUNTER_2 = bytes(15) + b"\x02"


def context(d: int = 8, bits: int = 32, cohort: tuple[int, ...] = (0, 1), **changes: Any) -> RoundContext:
    fields = {
        "session": b"s" * 32,
        "step": Step(1, 2),
        "adapter": b"a" * 32,
        "cohort": cohort,
        "dimension": d,
        "bits": bits,
    }
    return RoundContext(**{**fields, **changes})


def summand(words: np.ndarray, cohort: int = 2) -> Summand:
    return Summand(words=words, bits=8 * words.itemsize, cohort=cohort)  # type: ignore[arg-type]


def chi_square(words: np.ndarray) -> float:
    """Statistic of the bytes against uniform, 255 degrees of freedom: mean 255, standard deviation 22.6."""
    counts = np.bincount(np.ascontiguousarray(words).view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Standardised: a normal variable if the two are independent."""
    return float(np.corrcoef(one.astype(np.float64), other.astype(np.float64))[0, 1] * np.sqrt(one.size))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("n", [2, 5])
def test_masked_upload_is_uniform_and_unrelated_to_its_input(world: Callable[..., World], n: int, bits: int) -> None:
    d = 200_000
    rng = np.random.default_rng(11)
    values = np.rint(rng.normal(0, 1000, d)).astype(np.int64)
    made = world(n, dimension=d, bits=bits).open()
    answer = made.answer(0, made.request(Step(0, 0)), values)
    masked = np.frombuffer(decode(answer, MaskedContribution, limit=LIMIT).vector, f"<u{bits // 8}")[:d]
    assert chi_square(masked) < 400
    assert abs(correlation(masked.view(f"<i{bits // 8}"), values)) < 5.5


def test_with_its_only_mask_removed_the_upload_is_neither() -> None:
    d = 200_000
    values = np.rint(np.random.default_rng(12).normal(0, 1000, d)).astype(np.int64)
    key = Secret(b"k" * 32)
    masked = masking.mask(summand(values.astype(np.uint32)), context(d), {1: key}, place=0).words
    stream = np.frombuffer(aes_ctr_keystream(key.reveal(), COUNTER_2, masked.nbytes), "<u4")
    assert chi_square(masked[:d]) < 400
    bare = masked - stream
    assert chi_square(bare[:d]) > 10_000
    assert correlation(bare[:d].view(np.int32), values) > 400


def test_masks_follow_the_stated_key_schedule(world: Callable[..., World]) -> None:
    """Rebuilt from RFC 5869 with hmac alone: extract over the transcript, expand over names, expand over context."""
    made = world(3, dimension=5)
    made.server, opening = made.server.create_open_session()
    pairs = [made.sites[place].handle_open_session(opening) for place in range(3)]
    for _, advert in pairs:
        made.server = made.server.handle_advert(advert)
    made.server, keys = made.server.create_session_keys()
    session = decode(keys, SessionKeys)
    agreement = pairs[0][0].secret._agreement
    raw = {peer: agreement.agree(session.adverts[peer].key).reveal() for peer in (1, 2)}
    made.sites = {place: state.handle_session_keys(keys) for place, (state, _) in enumerate(pairs)}
    asked = made.request(Step(4, 2), adapter=b"theta")
    answer = decode(made.answer(0, asked, [7] * 5), MaskedContribution)

    def framed(*parts: bytes) -> bytes:
        return b"".join(len(part).to_bytes(8, "big") + part for part in parts)

    def number(*values: int) -> bytes:
        return b"".join(value.to_bytes(8, "big") for value in values)

    def expand(key: bytes, info: bytes) -> bytes:
        return hmac.digest(key, info + b"\x01", "sha256")

    keys_in_order = [part for advert in session.adverts for part in (number(advert.place), advert.key)]
    transcript = hashlib.sha256(framed(b"darkroom/session/1", made.digest, number(0), *keys_in_order)).digest()
    adapter = hashlib.sha256(framed(b"darkroom/adapter/1", b"theta")).digest()
    bound = hashlib.sha256(
        framed(b"darkroom/round-context/1", transcript, number(4, 2), adapter, number(0, 1, 2), number(5, 32))
    ).digest()
    assert answer.context == bound
    expected = np.array([7] * 5 + [1] * 4, np.uint32)
    for peer in (1, 2):
        pair = expand(hmac.digest(transcript, raw[peer], "sha256"), framed(b"darkroom/pair/1", number(0), number(peer)))
        mask_key = expand(pair, framed(b"darkroom/mask/1", bound))
        expected += np.frombuffer(aes_ctr_keystream(mask_key, COUNTER_2, 36), "<u4")
    assert (np.frombuffer(answer.vector, "<u4") == expected).all()


@pytest.mark.parametrize(
    "change",
    [
        {"session": b"t" * 32},
        {"step": Step(1, 3)},
        {"step": Step(2, 2)},
        {"adapter": b"b" * 32},
        {"cohort": (0, 1, 2)},
        {"d": 9},
        {"bits": 64},
    ],
)
def test_every_part_of_the_context_changes_the_masks(change: dict[str, Any]) -> None:
    assert context(**change).digest() != context().digest()


def test_keys_of_a_step_are_handed_out_once() -> None:
    pairwise = PairwiseKeys(session=b"s" * 32, place=0, _shared={1: Secret(b"k" * 32), 2: Secret(b"l" * 32)})
    assert set(pairwise.take(context(cohort=(0, 1, 2)))) == {1, 2}
    for step in (Step(1, 2), Step(1, 1), Step(0, 9)):
        with pytest.raises(MaskReuse):
            pairwise.take(context(step=step))
    assert set(pairwise.take(context(step=Step(1, 3)))) == {1}
    with pytest.raises(StaleSession):
        pairwise.take(context(step=Step(9, 0), session=b"t" * 32))
    with pytest.raises(UnknownInstitution):
        pairwise.take(context(step=Step(9, 0), cohort=(0, 5)))
    with pytest.raises(CohortRefused):
        pairwise.take(context(step=Step(9, 0), cohort=(1, 2)))
    assert pairwise.take(context(step=Step(9, 0)))


def test_a_forked_process_gets_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    pairwise = PairwiseKeys(session=b"s" * 32, place=0, _shared={1: Secret(b"k" * 32)})
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(MaskReuse, match="another process"):
        pairwise.take(context())


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (np.zeros(7, np.uint32), {1}),
        (np.zeros(8, np.uint64), {1}),
        (np.zeros(8, np.uint32), set()),
        (np.zeros(8, np.uint32), {1, 2}),
        (np.zeros(8, np.uint32), {0}),
    ],
)
def test_mask_refuses_what_does_not_fit(words: np.ndarray, keys: set[int]) -> None:
    with pytest.raises(WrongShape):
        masking.mask(summand(words), context(), {peer: Secret(b"k" * 32) for peer in keys}, place=0)


def test_a_cohort_of_one_cannot_be_masked() -> None:
    with pytest.raises(WrongShape):
        masking.mask(summand(np.zeros(8, np.uint32), 1), context(cohort=(0,)), {}, place=0)


@pytest.mark.parametrize("bits", [32, 64])
def test_each_check_coordinate_counts(bits: int) -> None:
    n = check_coordinates(bits)  # type: ignore[arg-type]
    assert n * bits == 128
    total = np.full(8 + n, 2, f"<u{bits // 8}")
    assert masking.open_sum(total, context(bits=bits)).words.size == 8
    for index in range(8, 8 + n):
        wrong = total.copy()
        wrong[index] += 1
        with pytest.raises(MasksDidNotCancel, match="round 1, attempt 2"):
            masking.open_sum(wrong, context(bits=bits))


def test_an_upload_is_four_bytes_a_coordinate_and_little_more(world: Callable[..., World]) -> None:
    made = world(100, dimension=1000).open()
    asked = made.request(Step(0, 0), adapter=bytes(4000))
    answer = made.answer(0, asked, np.zeros(1000))
    assert len(answer) - 4000 < CONTRIBUTION_OVERHEAD_BYTES < 2048
    assert len(asked) - 4000 < 2048


def test_an_answer_takes_at_most_four_vectors_of_memory(world: Callable[..., World]) -> None:
    d = 1_000_000
    made = world(10, dimension=d).open()
    asked = made.request(Step(0, 0))
    working = made.sites[0].handle_round_request(asked)
    tracemalloc.start()
    contribution = made.share(np.zeros(d, np.uint32))
    working.create_contribution(contribution, head=HEAD)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4.1 * 4 * d


@pytest.mark.parametrize("count", [1, 2, 5])
def test_two_threads_apply_the_masks_of_plain_counter_mode(count: int) -> None:
    rng = np.random.default_rng(4)
    words = rng.integers(0, 2**32, (5 << 20) // 4 + 7, dtype=np.uint32)  # worth a thread; no whole pieces
    keys = [bytes([number]) * 32 for number in range(count)]
    expected = words.astype(np.uint64)
    for number, key in enumerate(keys):
        stream = np.frombuffer(aes_ctr_keystream(key, (2).to_bytes(16, "big"), words.nbytes), dtype="<u4")
        expected = expected + stream if number % 2 == 0 else expected - stream
    masking.apply_masks(words, [(Secret(key), number % 2 == 0) for number, key in enumerate(keys)])
    assert (words == expected.astype(np.uint32)).all()
