from __future__ import annotations

import math
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import DarkroomError, OutOfOrder, ProtocolError, RoundFailed
from common.wire.messages import Contribute, decode_request
from common.wire.replies import PlainContribution, decode_reply
from server.rounds.optimizer import initial_state
from server.rounds.rounds import Collecting, ReadyForRound, Rules, draw_participants
from tests.server.toy import DIMENSION, ToySpec, toy_config

NODES = (4, 9, 11, 30)


def mean_of(nodes: tuple[int, ...]) -> Any:
    vectors = [np.frombuffer(contribution(node).vector, "<f4").astype(np.float64) for node in nodes]
    return sum(vectors) / sum(1.0 + node for node in nodes)


def ready(rounds: int = 5, **changes: Any) -> ReadyForRound:
    config = toy_config(rounds, **changes)
    return ReadyForRound(
        rules=Rules(config=config, spec_digest=ToySpec().digest, dimension=DIMENSION),
        round=1,
        adapter=np.linspace(-1, 1, DIMENSION, dtype=np.float32),
        optimizer=initial_state(config.server, DIMENSION),
    )


def contribution(seed: int = 0, **changes: Any) -> PlainContribution:
    vector = np.random.default_rng(seed).normal(size=DIMENSION).astype("<f4").tobytes()
    values = {"round": 1, "attempt": 0, "vector": vector, "weight": 1.0 + seed, "train_loss": 0.5}
    return PlainContribution(**(values | changes))


def collecting(**changes: Any) -> Collecting:
    return ready(**changes).create_requests(NODES)[0]


def everybody(state: Collecting) -> Collecting:
    for node in state.outstanding:
        state = state.handle_reply(node, contribution(node))
    return state


def test_a_round_in_a_straight_line_is_one_weighted_sgd_step() -> None:
    start = ready()
    state, requests = start.create_requests(NODES)
    asked = decode_request(requests[4])
    assert isinstance(asked, Contribute)
    assert (asked.round, asked.attempt, asked.spec_digest) == (1, 0, ToySpec().digest)
    assert asked.adapter == start.adapter.tobytes()
    assert set(requests) == set(NODES)

    following = everybody(state).close()

    mean = mean_of(NODES)
    np.testing.assert_allclose(following.adapter, start.adapter - 0.5 * mean, rtol=1e-6)
    assert (following.round, following.attempt) == (2, 0)


def test_in_fedavg_the_step_goes_along_the_mean_change() -> None:
    start = ready(training={"mode": "fedavg"}, server={"learning_rate": 1.0})
    state, _ = start.create_requests(NODES)
    following = everybody(state).close()
    mean = mean_of(NODES)
    np.testing.assert_allclose(following.adapter, start.adapter + mean, rtol=1e-6)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(order=st.permutations(NODES), failing=st.sets(st.sampled_from(NODES), max_size=3))
def test_the_order_of_arrival_changes_no_bit(order: list[int], failing: set[int]) -> None:
    def run(sequence: list[int]) -> Collecting:
        state = collecting()
        for node in sequence:
            answered = node not in failing
            state = state.handle_reply(node, contribution(node)) if answered else state.handle_failure(node, "timeout")
        return state

    one, other = run(order), run(sorted(NODES))
    assert one.close().adapter.tobytes() == other.close().adapter.tobytes()
    assert one.train_loss == other.train_loss
    assert set(one.failures) == failing


def test_only_answers_that_overtook_somebody_are_held() -> None:
    state = collecting()
    for node in (4, 9):
        state = state.handle_reply(node, contribution(node))
        assert not state.held
    state = state.handle_reply(30, contribution(30))
    assert set(state.held) == {30}
    assert not state.handle_failure(11, "timeout").held


HUGE = np.full(DIMENSION, 3e38, dtype="<f4").tobytes()
REFUSED = {
    "another round": (4, {"round": 2}, OutOfOrder),
    "another attempt": (4, {"attempt": 1}, OutOfOrder),
    "a node that was not asked": (5, {}, OutOfOrder),
    "a short vector": (4, {"vector": contribution().vector[:-4]}, ProtocolError),
    "a long vector": (4, {"vector": contribution().vector + b"\0\0\0\0"}, ProtocolError),
    "a vector that is no float32": (4, {"vector": contribution().vector[:-1]}, ProtocolError),
    "an empty vector": (4, {"vector": b""}, ProtocolError),
    "not a number": (4, {"vector": np.full(DIMENSION, np.nan, dtype="<f4").tobytes()}, ProtocolError),
    "an infinity": (4, {"vector": np.array([1] * (DIMENSION - 1) + [-np.inf], "<f4").tobytes()}, ProtocolError),
    "weight zero": (4, {"weight": 0.0}, ProtocolError),
    "a negative weight": (4, {"weight": -1.0}, ProtocolError),
    "an infinite weight": (4, {"weight": math.inf}, ProtocolError),
    "a weight that is not a number": (4, {"weight": math.nan}, ProtocolError),
    "a mean beyond float32": (4, {"vector": HUGE, "weight": 1e-3}, ProtocolError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_never_summed(case: str) -> None:
    node, changes, error = REFUSED[case]
    state = collecting()
    with pytest.raises(error):
        state.handle_reply(node, contribution(**changes))
    assert state.sum.settled == 0
    assert not state.sum.vector.any()
    assert not state.answered


def test_a_second_answer_is_refused() -> None:
    state = collecting().handle_reply(4, contribution())
    for answer in (lambda: state.handle_reply(4, contribution(1)), lambda: state.handle_failure(4, "timeout")):
        with pytest.raises(OutOfOrder):
            answer()


def test_an_answer_after_a_failure_is_refused() -> None:
    state = collecting().handle_failure(4, "timeout")
    with pytest.raises(OutOfOrder):
        state.handle_reply(4, contribution())


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan])
def test_a_bad_weight_does_not_survive_decoding_and_checking(weight: float) -> None:
    wire = msgspec.msgpack.encode(contribution(weight=weight))
    with pytest.raises(DarkroomError):
        collecting().handle_reply(4, decode_reply(wire))  # type: ignore[arg-type]


def test_a_round_cannot_be_closed_early() -> None:
    state = collecting().handle_reply(4, contribution())
    with pytest.raises(OutOfOrder, match="3 participants"):
        state.close()


def test_too_few_answers_give_another_attempt_and_at_last_an_error() -> None:
    current = ready(server={"minimum_institutions": 3, "attempts": 2})
    for attempt in range(2):
        state, requests = current.create_requests(NODES)
        assert decode_request(requests[4]).attempt == attempt  # type: ignore[union-attr]
        for node in NODES[:2]:
            state = state.handle_reply(node, contribution(node, attempt=attempt))
        for node in NODES[2:]:
            state = state.handle_failure(node, "timeout")
        if attempt == 0:
            following = state.close()
            assert (following.round, following.attempt) == (1, 1)
            assert following.adapter is current.adapter
            current = following
    with pytest.raises(RoundFailed, match=r"2 of 4 institutions answered, 3 are needed, at attempt 2 of 2.*in time"):
        state.close()


def test_a_new_attempt_prefers_nodes_that_did_not_fail() -> None:
    current = ready(server={"minimum_institutions": 2, "institutions_per_round": 2})
    state, requests = current.create_requests(NODES)
    for node in requests:
        state = state.handle_failure(node, "unreachable")
    _, second = state.close().create_requests(NODES)
    assert set(second) == set(NODES) - set(requests)


def test_enough_answers_make_up_for_failures() -> None:
    state = collecting(server={"minimum_institutions": 3})
    for node in NODES[:3]:
        state = state.handle_reply(node, contribution(node))
    following = state.handle_failure(30, "protocol").close()
    mean = mean_of(NODES[:3])
    np.testing.assert_allclose(following.adapter, ready().adapter - 0.5 * mean, rtol=1e-6)


def test_too_few_nodes_at_hand() -> None:
    with pytest.raises(RoundFailed, match="1 institutions can be reached, 2 are needed"):
        ready(server={"minimum_institutions": 2}).create_requests([4])


def test_no_request_after_the_last_round() -> None:
    over = everybody(collecting(rounds=1)).close()
    assert over.is_over
    with pytest.raises(OutOfOrder):
        over.create_requests(NODES)


def test_a_step_out_of_range_ends_the_run() -> None:
    state = collecting(server={"learning_rate": 1e6})
    for node in NODES:
        state = state.handle_reply(node, contribution(vector=HUGE))
    with pytest.raises(RoundFailed, match="learning_rate"):
        state.close()


def test_a_missing_loss_is_left_out_of_the_mean() -> None:
    state = collecting().handle_reply(4, contribution(0, train_loss=math.nan))
    assert math.isnan(state.train_loss)
    state = state.handle_reply(9, contribution(1, train_loss=3.0)).handle_reply(11, contribution(0, train_loss=0.0))
    assert state.train_loss == pytest.approx(2.0)


def test_the_draw_is_public_sorted_and_of_the_right_size() -> None:
    drawn = draw_participants(NODES, count=2, seed=7, round_number=3)
    assert drawn == draw_participants(NODES, count=2, seed=7, round_number=3)
    assert len(drawn) == 2
    assert list(drawn) == sorted(drawn)
    assert draw_participants(NODES, count=None, seed=7, round_number=3) == NODES
    assert draw_participants(NODES, count=9, seed=7, round_number=3) == NODES


def test_the_draw_is_pinned() -> None:
    rounds = [draw_participants(range(10), count=3, seed=0, round_number=number) for number in (1, 2, 3)]
    assert rounds == [(4, 5, 6), (4, 5, 7), (0, 3, 4)]


def test_the_draw_is_fair() -> None:
    """Each of 10 nodes in 3 of 10 places over 2000 rounds: 600 expected, deviation 20.5; five of them allowed."""
    counts = Counter(
        node for number in range(2000) for node in draw_participants(range(10), count=3, seed=1, round_number=number)
    )
    assert all(abs(counts[node] - 600) < 5 * 20.5 for node in range(10))
