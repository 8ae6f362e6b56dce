"""Whole runs: sums are exact, and a coordinator that lies gets nothing."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import MaskReuse, MasksDidNotCancel, MissingContributions, ReplayedStep, StaleSession
from common.secagg import aggregator, participant
from common.secagg.messages import MaskedContribution, RoundRequest, SessionKeys, Step, decode, encode, signed

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.secagg.ring import VectorSum

World = Any
LIMIT = 1 << 24
FIRST = Step(0, 0)


def wrapped(values: list[list[int]], bits: int) -> list[int]:
    """The sum as Python integers in the signed range: the oracle."""
    half = 1 << (bits - 1)
    return [(sum(column) + half) % (1 << bits) - half for column in zip(*values, strict=True)]


def signed_values(total: VectorSum) -> np.ndarray:
    """The words as two's complement has them."""
    return total.words.view(f"<i{total.bits // 8}")


def run(world: World, values: list[list[int]], order: list[int], step: Step = FIRST) -> list[int]:
    request = world.request(step)
    modulus = 1 << world.manifest.secure_aggregation.bits
    answers = [world.answer(place, request, np.array(values[place], dtype=object) % modulus) for place in order]
    for answer in answers:
        world.server = world.server.handle_contribution(answer)
    world.server, total = world.server.create_sum()
    return signed_values(total).tolist()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), n=st.integers(2, 6), d=st.integers(1, 40), bits=st.sampled_from([32, 64]))
def test_sum_is_exact_for_any_values_and_order(
    world: Callable[..., World], data: st.DataObject, n: int, d: int, bits: int
) -> None:
    edge = 1 << (bits - 1)
    integers = st.one_of(st.sampled_from([-edge, edge - 1, -1, 0, 1]), st.integers(-edge, edge - 1))
    values = data.draw(st.lists(st.lists(integers, min_size=d, max_size=d), min_size=n, max_size=n))
    order = data.draw(st.permutations(range(n)))
    made = world(n, dimension=d, bits=bits).open()
    assert run(made, values, order) == wrapped(values, bits)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_sum_is_exact_for_any_cohort_size(world: Callable[..., World], n: int, bits: int) -> None:
    rng = random.Random(n)  # noqa: S311 - test values
    edge = 1 << (bits - 1)
    values = [[rng.randrange(-edge, edge) for _ in range(5)] for _ in range(n)]
    order = list(range(n))
    rng.shuffle(order)
    assert run(world(n, dimension=5, bits=bits).open(), values, order) == wrapped(values, bits)


def test_vectors_longer_than_a_chunk_are_exact(world: Callable[..., World]) -> None:
    rng = np.random.default_rng(7)
    d = 40_001
    values = rng.integers(-(2**31), 2**31, size=(3, d))
    made = world(3, dimension=d).open()
    request = made.request(Step(0, 0))
    for place in (2, 0, 1):
        made.server = made.server.handle_contribution(made.answer(place, request, values[place]))
    _, total = made.server.create_sum()
    assert (signed_values(total) == values.sum(axis=0).astype(np.int32)).all()


def test_rounds_follow_one_another_in_one_session(world: Callable[..., World]) -> None:
    made = world(3, dimension=2).open()
    for step in (Step(0, 0), Step(1, 0), Step(1, 1), Step(5, 0)):
        assert run(made, [[1, 2], [3, 4], [5, 6]], [0, 1, 2], step) == [9, 12]


def test_missing_upload_gives_no_sum_and_survivors_retry(world: Callable[..., World]) -> None:
    made = world(4, dimension=2, minimum_cohort=3).open()
    request = made.request(Step(0, 0))
    for place in (0, 1, 2):
        made.server = made.server.handle_contribution(made.answer(place, request, [1, 1]))
    with pytest.raises(MissingContributions) as caught:
        made.server.create_sum()
    assert caught.value.missing == (3,)
    made.server = made.server.abort()
    with pytest.raises(ReplayedStep):
        made.request(Step(0, 0), cohort=(0, 1, 2))
    request = made.request(Step(0, 1), cohort=(0, 1, 2))
    for place in (0, 1, 2):
        made.server = made.server.handle_contribution(made.answer(place, request, [10, 20], cohort=3))
    made.server, total = made.server.create_sum()
    assert signed_values(total).tolist() == [30, 60]


def forge(made: World, **changes: Any) -> tuple[bytes, Any]:
    """A request that the coordinator signs although its own state did not make it."""
    fields = {
        "session": made.server.session,
        "round": 0,
        "attempt": 0,
        "cohort": tuple(sorted(made.sites)),
        "dimension": made.manifest.dimension,
        "bits": made.manifest.secure_aggregation.bits,
        "head": b"h" * 32,
        "adapter": b"adapter",
    }
    message = signed(RoundRequest(**{**fields, **changes}), made.coordinator)
    return encode(message), message


def lying_sum(answers: list[bytes], d: int) -> np.ndarray:
    """What a coordinator that skips every check computes."""
    vectors = [np.frombuffer(decode(each, MaskedContribution, limit=LIMIT).vector, np.uint32) for each in answers]
    return np.sum(vectors, axis=0, dtype=np.uint32)[:d]


def looks_uniform(words: np.ndarray) -> bool:
    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return bool(((counts - expected) ** 2 / expected).sum() < 400)  # 255 degrees: 99.99999 % lie below 400


@pytest.mark.parametrize("lie", ["adapter", "cohort", "attempt", "round"])
def test_split_views_leave_the_liar_uniform_words(world: Callable[..., World], lie: str) -> None:
    d = 20_000
    made = world(4, dimension=d).open()
    changed = {
        "adapter": {"adapter": b"other"},
        "cohort": {"cohort": (0, 1, 3)},
        "attempt": {"attempt": 1},
        "round": {"round": 1},
    }
    truth, _ = forge(made)
    lies, _ = forge(made, **changed[lie])
    told = {0: lies, 1: truth, 2: truth, 3: truth}
    size = {0: 3 if lie == "cohort" else 4}
    answers = [made.answer(place, told[place], np.zeros(d), cohort=size.get(place, 4)) for place in range(4)]
    assert looks_uniform(lying_sum(answers, d))
    assert looks_uniform(lying_sum(answers[1:], d))


def test_without_a_lie_the_same_sum_is_plain(world: Callable[..., World]) -> None:
    d = 20_000
    made = world(4, dimension=d).open()
    truth, _ = forge(made)
    answers = [made.answer(place, truth, np.zeros(d)) for place in range(4)]
    assert not lying_sum(answers, d).any()
    assert not looks_uniform(lying_sum(answers, d))


def test_a_view_that_differs_is_refused_at_upload_and_by_the_check_coordinates(world: Callable[..., World]) -> None:
    made = world(3, dimension=4).open()
    made.request(Step(0, 0))
    lies, _ = forge(made_open := _opened(made), adapter=b"other")
    answer = made_open.answer(0, lies, [0] * 4)
    with pytest.raises(StaleSession, match="another step, adapter, cohort or session"):
        made.server.handle_contribution(answer)
    message = decode(answer, MaskedContribution)
    # an institution that lies about what it saw gets past the first check and not past the second
    relabelled = signed(
        MaskedContribution(context=made.server.context.digest(), place=0, head=message.head, vector=message.vector),
        made.identities[0],
    )
    truth, _ = forge(made_open)
    state = made.server.handle_contribution(encode(relabelled))
    for place in (1, 2):
        state = state.handle_contribution(made.answer(place, truth, [0] * 4))
    with pytest.raises(MasksDidNotCancel):
        state.create_sum()
    assert state.abort().last == Step(0, 0)


def _opened(made: World) -> World:
    """The same institutions, with the server as it was before the step."""
    return type(made)(
        manifest=made.manifest,
        coordinator=made.coordinator,
        identities=made.identities,
        server=made.server.opened,
        sites=made.sites,
    )


def test_sites_with_other_key_lists_do_not_cancel(world: Callable[..., World]) -> None:
    """A coordinator that leaves one advert out for some sites splits the session."""
    d = 20_000
    made = world(4, dimension=d)
    made.server, opening = made.server.create_open_session()
    adverts = []
    for place in range(4):
        made.sites[place], advert = made.sites[place].handle_open_session(opening)
        adverts.append(advert)
        made.server = made.server.handle_advert(advert)
    _, keys = made.server.create_session_keys()
    everybody = decode(keys, SessionKeys)
    fewer = signed(SessionKeys(manifest=everybody.manifest, epoch=0, adverts=everybody.adverts[:3]), made.coordinator)
    answers = []
    for place, told in enumerate((fewer, everybody, everybody)):
        state = made.sites[place].handle_session_keys(encode(told))
        request, _ = forge_for(made, told.transcript())
        _, answer = state.handle_round_request(request).create_contribution(made.share(np.zeros(d), 3), head=b"h" * 32)
        answers.append(answer)
    assert looks_uniform(lying_sum(answers, d))


def forge_for(made: World, session: bytes) -> tuple[bytes, Any]:
    message = RoundRequest(
        session=session,
        round=0,
        attempt=0,
        cohort=(0, 1, 2),
        dimension=made.manifest.dimension,
        bits=32,
        head=b"h" * 32,
        adapter=b"adapter",
    )
    return encode(signed(message, made.coordinator)), message


def test_masks_differ_across_steps_and_sessions(world: Callable[..., World]) -> None:
    d = 4096
    seen: list[np.ndarray] = []
    made = world(2, dimension=d)
    for session in range(3):
        made.open()
        for step in (Step(session, 0), Step(session, 1)):
            answer = made.answer(0, made.request(step), np.zeros(d))
            made.server = made.server.abort()
            seen.append(np.frombuffer(decode(answer, MaskedContribution, limit=LIMIT).vector, np.uint32)[:d])
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert looks_uniform(one - other)


def test_a_restarted_steward_has_other_masks_for_the_same_step(world: Callable[..., World]) -> None:
    d = 4096
    vectors = []
    for _ in range(2):
        made = world(2, dimension=d).open()  # the same identities, manifest and session number
        answer = made.answer(0, made.request(Step(0, 0)), np.zeros(d))
        vectors.append(np.frombuffer(decode(answer, MaskedContribution, limit=LIMIT).vector, np.uint32)[:d])
    assert looks_uniform(vectors[0] - vectors[1])


def test_kept_states_cannot_make_a_two_time_pad(world: Callable[..., World]) -> None:
    made = world(2, dimension=4)
    made.server, opening = made.server.create_open_session()
    waiting = []
    for place in range(2):
        state, advert = made.sites[place].handle_open_session(opening)
        waiting.append(state)
        made.server = made.server.handle_advert(advert)
    made.server, keys = made.server.create_session_keys()
    ready = waiting[0].handle_session_keys(keys)
    with pytest.raises(MaskReuse, match="open a new session"):
        waiting[0].handle_session_keys(keys)
    made.sites = {0: ready, 1: waiting[1]}
    request = made.request(Step(0, 0))
    working = ready.handle_round_request(request)
    working.create_contribution(made.share([1] * 4), head=b"h" * 32)
    with pytest.raises(MaskReuse, match="spent"):
        working.create_contribution(made.share([2] * 4), head=b"h" * 32)
    with pytest.raises(MaskReuse, match="spent"):
        ready.handle_round_request(request).create_contribution(made.share([2] * 4), head=b"h" * 32)


def test_a_restarted_coordinator_goes_on_after_its_checkpoint(world: Callable[..., World]) -> None:
    made = world(3, dimension=2).open()
    run(made, [[1, 1]] * 3, [0, 1, 2], Step(4, 0))
    server = made.server
    made.server = aggregator.start(made.manifest, made.digest, made.coordinator, epoch=server.epoch, last=server.last)
    made.open()
    assert run(made, [[1, 1]] * 3, [0, 1, 2], Step(5, 0)) == [3, 3]


def test_a_restarted_steward_keeps_its_last_step(world: Callable[..., World]) -> None:
    made = world(2, dimension=2)
    for place, who in enumerate(made.identities):
        made.sites[place] = participant.enrol(made.manifest, made.digest, who, last=Step(3, 1))
    made.open()
    with pytest.raises(ReplayedStep, match="raise the attempt"):
        made.answer(0, made.request(Step(3, 1)), [0, 0])
    made.server = made.server.abort()
    assert run(made, [[1, 1]] * 2, [1, 0], Step(3, 2)) == [2, 2]
